"""The routes of devices: specs, status, queues and maintenance."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from tweezer.adapters.specs import check_specs
from tweezer.api.access.dependencies import Caller, Ledger, LiveStore, Operator, Queue, ReadBodies
from tweezer.api.batches.filters import DevicePageParams, Direction, Text
from tweezer.api.devices.schemas import (
    DeviceResponse,
    DeviceSpecsResponse,
    DeviceStatus,
    MaintenanceBody,
    MaintenanceResponse,
    NewDevice,
    SpecsBody,
    StatusBody,
    StatusesBody,
    WorkerResponse,
)
from tweezer.api.devices.statistics import QueueSizeResponse, QueueTimeResponse
from tweezer.api.http.openapi import describe_list, describe_route
from tweezer.api.http.responses import RequestRejected, created, page, success
from tweezer.api.read_model import ReadModel
from tweezer.ledger.database import Database
from tweezer.ledger.queries import statistics
from tweezer.model import specs as model
from tweezer.model.checks import MAX_DEVICE_LENGTH, check_text
from tweezer.model.errors import InvalidInput, NotFound, TweezerError
from tweezer.store.connection import Store
from tweezer.store.devices import new_window
from tweezer.store.records import DeviceRecord

router = APIRouter(tags=["devices"])

_HELD_BY_API = "set DOWN through the API"
_LATELY = timedelta(days=1)

WindowId = Annotated[Text, Path(description="Id of the maintenance window.", examples=["5f3a90c1"])]
DeviceName = Annotated[Text, Path(description="Name or id of a device.", examples=["EMU_FREE"])]


@router.get("/api/v1/devices", summary="List devices", **describe_list(DeviceResponse, 422))
@router.get(
    "/api/v2/devices", name="list_devices_v2", summary="List devices (alias)", **describe_list(DeviceResponse, 422)
)
async def list_devices(query: DevicePageParams, caller: Caller, live: LiveStore, ledger: Ledger) -> Response:
    """Return a page of the devices that workers have announced or operators have created, newest first by default."""
    records = [record for record in await live.devices() if record.active or query.include_legacy]
    found = await _devices(records, ledger)
    found.sort(key=lambda device: device.name)
    with_place = [device for device in found if device.place(query.order_by) is not None]
    with_place.sort(
        key=lambda device: device.place(query.order_by), reverse=query.order_by_direction is Direction.DESCENDING
    )
    found = with_place + [device for device in found if device.place(query.order_by) is None]
    rows = found[query.offset : query.offset + query.limit]
    return page(rows, offset=query.offset, total=len(found))


@router.post("/api/v1/devices", summary="Create a device", **describe_route(DeviceResponse, 409, 422, body=NewDevice))
async def create_device(
    request: Request, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore, ledger: Ledger
) -> Response:
    """For operators. Create a device that no worker serves yet: clients see it, and batches for it are accepted and
    wait until a worker serves a device with this name. The worker's configuration decides how it is served.
    You do not need to create devices that workers announce."""
    body = await bodies.read(request, NewDevice, account=caller.account, is_open=True)
    specs = await _checked(body.specs)
    held = {"paused": _HELD_BY_API} if body.status is DeviceStatus.DOWN else {}
    await queue.devices.create(body.device_type, body.about() | held, specs)
    return success(await _device(live, ledger, body.device_type))


@router.get("/api/v2/workers", summary="List workers", **describe_route(list[WorkerResponse]))
async def list_workers(caller: Operator, live: LiveStore) -> Response:
    """For operators. Return the live workers of all devices, with the names of their machines."""
    return success([WorkerResponse.from_record(worker) for worker in await live.workers()])


_STATUSES = describe_route(list[DeviceResponse], 404, 422, body=StatusesBody)
_STATUS = describe_route(DeviceResponse, 404, 422, body=StatusBody)


@router.put("/api/v1/devices/status", summary="Set the status of devices", **_STATUSES)
@router.patch("/api/v1/devices/status", name="patch_statuses", summary="Set the status of devices (alias)", **_STATUSES)
async def set_statuses(
    request: Request, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore, ledger: Ledger
) -> Response:
    """For operators. `DOWN` pauses the devices: running jobs finish, and no new ones start until someone sets the
    devices `UP` again, or until the time in `until`. `UP` resumes them; a device that no worker serves stays `DOWN`.
    Nothing changes if one of the names is unknown."""
    body = await bodies.read(request, StatusesBody, account=caller.account)
    for place, name in enumerate(body.device_type_names):
        check_text(f"device_type_names[{place}]", name, MAX_DEVICE_LENGTH)
    names = [(await live.device(name)).name for name in body.device_type_names]
    for name in names:
        await _set_status(queue, name, body)
    return success(await _devices([await live.device(name) for name in names], ledger))


@router.put("/api/v1/devices/{device}/status", summary="Set the status of a device", **_STATUS)
@router.patch(
    "/api/v1/devices/{device}/status", name="patch_status", summary="Set the status of a device (alias)", **_STATUS
)
async def set_status(
    device: DeviceName,
    request: Request,
    caller: Operator,
    bodies: ReadBodies,
    queue: Queue,
    live: LiveStore,
    ledger: Ledger,
) -> Response:
    """For operators. `DOWN` pauses the device: running jobs finish, and no new ones start until someone sets the device
    `UP` again, or until the time in `until`. Setting `DOWN` again replaces the reason and the time. `UP` resumes the
    device; it stays `DOWN` if no worker serves it, or if it is under maintenance."""
    name = (await live.device(device)).name
    body = await bodies.read(request, StatusBody, account=caller.account)
    await _set_status(queue, name, body)
    return success(await _device(live, ledger, name))


@router.get(
    "/api/v1/devices/{device}/maintenance",
    summary="List maintenance windows",
    **describe_route(list[MaintenanceResponse], 404, 422),
)
async def get_maintenance(device: DeviceName, caller: Caller, live: LiveStore) -> Response:
    """Return the current and planned maintenance windows of the device, earliest first."""
    windows = await live.windows((await live.device(device)).name)
    return success([MaintenanceResponse.from_record(window) for window in windows])


@router.post(
    "/api/v1/devices/{device}/maintenance",
    summary="Plan maintenance",
    **describe_route(MaintenanceResponse, 404, 409, 422, body=MaintenanceBody, creates=True),
)
async def plan_maintenance(
    device: DeviceName, request: Request, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore
) -> Response:
    """For operators. Plan a maintenance window: during the window the device starts no jobs, and before it no batch
    that would not end in time. Running jobs finish. Windows of a device must not overlap."""
    name = (await live.device(device)).name
    body = await bodies.read(request, MaintenanceBody, account=caller.account)
    window = new_window(body.begins_at, body.ends_at, body.reason, window_id=body.id)
    await queue.devices.plan(name, window)
    return created(MaintenanceResponse.from_record(window))


@router.delete(
    "/api/v1/devices/{device}/maintenance/{window}", summary="Cancel maintenance", **describe_route(None, 404, 422)
)
async def drop_maintenance(
    device: DeviceName, window: WindowId, caller: Operator, queue: Queue, live: LiveStore
) -> Response:
    """For operators. Delete a maintenance window. A window that has already begun ends now."""
    await queue.devices.drop((await live.device(device)).name, window)
    return success(None)


@router.get("/api/v1/devices/specs", summary="Get the specs of all devices", **describe_route(dict[str, str]))
async def get_all_specs(caller: Caller, live: LiveStore) -> Response:
    """Return an object with the specs of each device, by device name. Each value is a string: Pulser's abstract
    representation of the device, valid for the server's version of Pulser."""
    return success(await live.device_specs())


@router.get(
    "/api/v1/devices/public-specs",
    summary="Get the specs of all devices without a key",
    **describe_route(list[DeviceSpecsResponse], 503, keyless=True),
)
async def get_public_specs(live: LiveStore) -> Response:
    """Return the specs of all devices as a list. The list does not reveal whether the devices are available."""
    specs = await live.device_specs()
    return success([DeviceSpecsResponse(device_type=name, specs=text) for name, text in specs.items()])


@router.get(
    "/api/v1/devices/{device}/specs",
    summary="Get the specs of a device",
    **describe_route(DeviceSpecsResponse, 404, 422),
)
async def get_specs(device: DeviceName, caller: Caller, live: LiveStore) -> Response:
    """Return the specs that an operator has set, or else those that the device's workers announce."""
    name = (await live.device(device)).name
    specs = (await live.device_specs()).get(name)
    if specs is None:
        raise NotFound("specs of device", name)
    return success(DeviceSpecsResponse(device_type=name, specs=specs))


@router.put(
    "/api/v1/devices/{device}/specs",
    summary="Set the specs of a device",
    **describe_route(DeviceSpecsResponse, 404, 422, body=SpecsBody),
)
async def set_specs(
    device: DeviceName, request: Request, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore
) -> Response:
    """For operators. Replace the specs that workers announce: clients see the new specs, and submitted batches are
    checked against them. Pulser must accept the specs, and they must not contain the name of another device."""
    name = (await live.device(device)).name
    body = await bodies.read(request, SpecsBody, account=caller.account)
    specs = await _checked(body.specs)
    await queue.devices.give_specs(name, specs)
    return success(DeviceSpecsResponse(device_type=name, specs=specs.text))


@router.delete(
    "/api/v1/devices/{device}/specs",
    summary="Remove the specs that an operator has set",
    **describe_route(None, 404, 409, 422),
)
async def forget_specs(device: DeviceName, caller: Operator, queue: Queue, live: LiveStore) -> Response:
    """For operators. Remove the specs that an operator has set. The specs that the device's workers announce apply
    again from their next heartbeat."""
    await queue.devices.forget_specs((await live.device(device)).name)
    return success(None)


@router.get(
    "/api/v1/devices/{device}/queue_size",
    summary="Get the queue size of a device",
    **describe_route(QueueSizeResponse, 404, 422),
)
async def get_queue_size(device: DeviceName, caller: Caller, ledger: Ledger, live: LiveStore) -> Response:
    """Return the pending batches, jobs and shots of all projects by priority, as recorded in the ledger."""
    name = (await live.device(device)).name
    return success(QueueSizeResponse.from_sizes(await ledger.run(statistics.queue_sizes, ledger, name)))


@router.get(
    "/api/v1/devices/{device}/average_queue_time",
    summary="Get the average queue time of a device",
    **describe_route(QueueTimeResponse, 404, 422),
)
async def get_average_queue_time(
    device: DeviceName,
    caller: Caller,
    ledger: Ledger,
    live: LiveStore,
    hours: Annotated[
        int, Query(ge=1, le=8784, description="Number of hours: only jobs that ended in the last `hours` hours.")
    ] = 24,
) -> Response:
    """Return the average time from submission to start, over jobs of all projects."""
    name = (await live.device(device)).name
    since = datetime.now(UTC) - timedelta(hours=hours)
    found = (await ledger.run(statistics.queue_times, ledger, since)).get(name, statistics.QueueTime())
    return success(QueueTimeResponse(device_type=name, average_queue_time=found.seconds, jobs_count=found.jobs))


async def _set_status(queue: Store, name: str, body: StatusBody | StatusesBody) -> None:
    match body.status:
        case DeviceStatus.UP:
            await queue.devices.resume(name)
        case DeviceStatus.DOWN:
            await queue.devices.pause(name, body.reason or _HELD_BY_API, until=body.until)


async def _device(live: ReadModel, ledger: Database, name: str) -> DeviceResponse:
    (found,) = await _devices([await live.device(name)], ledger)
    return found


async def _devices(records: Iterable[DeviceRecord], ledger: Database) -> list[DeviceResponse]:
    waited = await ledger.run(statistics.queue_times, ledger, datetime.now(UTC) - _LATELY)
    return [DeviceResponse.from_device(record, waited.get(record.name)) for record in records]


async def _checked(text: str) -> model.DeviceSpecs:
    """Return the specs if Pulser accepts them. Raises InvalidInput, and RequestRejected if they cannot be checked."""
    try:
        return await asyncio.to_thread(check_specs, text)
    except InvalidInput:
        raise
    except TweezerError as error:
        raise RequestRejected(503, error.code, error.message) from error
