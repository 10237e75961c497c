"""The devices: what they are like, whether they work, how long their queues are; and what operators change of them."""

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
)
from tweezer.api.devices.statistics import QueueSizeResponse, QueueTimeResponse
from tweezer.api.http.openapi import answers, pages
from tweezer.api.http.responses import RequestRejected, page, success
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

WindowId = Annotated[Text, Path(description="Id of the maintenance.", examples=["5f3a90c1"])]
DeviceName = Annotated[Text, Path(description="Name or id of a device.", examples=["EMU_FREE"])]


@router.get("/api/v1/devices", summary="Devices", **pages(DeviceResponse, 422))
@router.get("/api/v2/devices", name="list_devices_v2", summary="The same", **pages(DeviceResponse, 422))
async def list_devices(query: DevicePageParams, caller: Caller, live: LiveStore, ledger: Ledger) -> Response:
    """Those that workers have announced or operators created; the newest first, unless asked for otherwise."""
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


@router.post("/api/v1/devices", summary="Create a device", **answers(DeviceResponse, 409, 422, body=NewDevice))
async def create_device(
    request: Request, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore, ledger: Ledger
) -> Response:
    """Clients are told of it, and batches for it are taken and wait, until a worker serves a device of this name. What
    serves it is the worker's configuration; a device that workers have announced needs no creating."""
    body = await bodies.read(request, NewDevice, account=caller.account)
    specs = await _checked(body.specs)
    held = {"paused": _HELD_BY_API} if body.status is DeviceStatus.DOWN else {}
    await queue.devices.create(body.device_type, body.about() | held, specs)
    return success(await _device(live, ledger, body.device_type))


_STATUSES = answers(list[DeviceResponse], 404, 422, body=StatusesBody)
_STATUS = answers(DeviceResponse, 404, 422, body=StatusBody)


@router.put("/api/v1/devices/status", summary="Set the status of devices", **_STATUSES)
@router.patch("/api/v1/devices/status", name="patch_statuses", summary="The same", **_STATUSES)
async def set_statuses(
    request: Request, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore, ledger: Ledger
) -> Response:
    """`DOWN` holds them: running jobs finish, and no more begin, until somebody sets them `UP`, or until the time that
    is given. `UP` lets them go on; one that no worker serves stays `DOWN`. When one of the names is not known, nothing
    changes."""
    body = await bodies.read(request, StatusesBody, account=caller.account)
    for place, name in enumerate(body.device_type_names):
        check_text(f"device_type_names[{place}]", name, MAX_DEVICE_LENGTH)
    names = [(await live.device(name)).name for name in body.device_type_names]
    for name in names:
        await _set_status(queue, name, body)
    return success(await _devices([await live.device(name) for name in names], ledger))


@router.put("/api/v1/devices/{device}/status", summary="Set the status of a device", **_STATUS)
@router.patch("/api/v1/devices/{device}/status", name="patch_status", summary="The same", **_STATUS)
async def set_status(
    device: DeviceName,
    request: Request,
    caller: Operator,
    bodies: ReadBodies,
    queue: Queue,
    live: LiveStore,
    ledger: Ledger,
) -> Response:
    """`DOWN` holds it: running jobs finish, and no more begin, until somebody sets it `UP`, or until the time that is
    given; doing it again changes reason and time. `UP` lets it go on; if no worker serves it, or it is under
    maintenance, it stays `DOWN`."""
    name = (await live.device(device)).name
    body = await bodies.read(request, StatusBody, account=caller.account)
    await _set_status(queue, name, body)
    return success(await _device(live, ledger, name))


@router.get(
    "/api/v1/devices/{device}/maintenance",
    summary="Planned maintenance",
    **answers(list[MaintenanceResponse], 404, 422),
)
async def get_maintenance(device: DeviceName, caller: Caller, live: LiveStore) -> Response:
    """What is under way or planned, in order."""
    windows = await live.windows((await live.device(device)).name)
    return success([MaintenanceResponse.from_record(window) for window in windows])


@router.post(
    "/api/v1/devices/{device}/maintenance",
    summary="Plan maintenance",
    **answers(MaintenanceResponse, 404, 409, 422, body=MaintenanceBody),
)
async def plan_maintenance(
    device: DeviceName, request: Request, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore
) -> Response:
    """From its begin to its end the device begins nothing, and before it no batch that would not end in time. Running
    jobs finish. It must not overlap with other maintenance of the device."""
    name = (await live.device(device)).name
    body = await bodies.read(request, MaintenanceBody, account=caller.account)
    window = new_window(body.begins_at, body.ends_at, body.reason)
    await queue.devices.plan(name, window)
    return success(MaintenanceResponse.from_record(window))


@router.delete(
    "/api/v1/devices/{device}/maintenance/{window}", summary="Take maintenance back", **answers(None, 404, 422)
)
async def drop_maintenance(
    device: DeviceName, window: WindowId, caller: Operator, queue: Queue, live: LiveStore
) -> Response:
    """If it is under way it ends now."""
    await queue.devices.drop((await live.device(device)).name, window)
    return success(None)


@router.get("/api/v1/devices/specs", summary="Specs of all devices", **answers(dict[str, str]))
async def get_all_specs(caller: Caller, live: LiveStore) -> Response:
    """Of each device by its name: Pulser's abstract representation, as a string, valid for the Pulser of here."""
    return success(await live.device_specs())


@router.get(
    "/api/v1/devices/public-specs",
    summary="The same, without a key",
    **answers(list[DeviceSpecsResponse], 503, keyless=True),
)
async def get_public_specs(live: LiveStore) -> Response:
    """What anybody may know of the devices: what they are like, not whether they work."""
    specs = await live.device_specs()
    return success([DeviceSpecsResponse(device_type=name, specs=text) for name, text in specs.items()])


@router.get("/api/v1/devices/{device}/specs", summary="Specs of a device", **answers(DeviceSpecsResponse, 404, 422))
async def get_specs(device: DeviceName, caller: Caller, live: LiveStore) -> Response:
    """Those that an operator gave, else those that its workers announce."""
    name = (await live.device(device)).name
    specs = (await live.device_specs()).get(name)
    if specs is None:
        raise NotFound("specs of the device", name)
    return success(DeviceSpecsResponse(device_type=name, specs=specs))


@router.put(
    "/api/v1/devices/{device}/specs",
    summary="Give a device other specs",
    **answers(DeviceSpecsResponse, 404, 422, body=SpecsBody),
)
async def set_specs(
    device: DeviceName, request: Request, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore
) -> Response:
    """Clients are told these instead of what workers announce, and submits are checked against them. Pulser must be
    able to read them, and their name must be no other device's."""
    name = (await live.device(device)).name
    body = await bodies.read(request, SpecsBody, account=caller.account)
    specs = await _checked(body.specs)
    await queue.devices.give_specs(name, specs)
    return success(DeviceSpecsResponse(device_type=name, specs=specs.text))


@router.delete(
    "/api/v1/devices/{device}/specs", summary="Take an operator's specs back", **answers(None, 404, 409, 422)
)
async def forget_specs(device: DeviceName, caller: Operator, queue: Queue, live: LiveStore) -> Response:
    """Those that its workers announce count again, from their next heartbeat on."""
    await queue.devices.forget_specs((await live.device(device)).name)
    return success(None)


@router.get(
    "/api/v1/devices/{device}/queue_size", summary="What waits for a device", **answers(QueueSizeResponse, 404, 422)
)
async def get_queue_size(device: DeviceName, caller: Caller, ledger: Ledger, live: LiveStore) -> Response:
    """Batches, jobs and shots of all projects, by priority, as they are recorded."""
    name = (await live.device(device)).name
    return success(QueueSizeResponse.from_sizes(await ledger.run(statistics.queue_sizes, ledger, name)))


@router.get(
    "/api/v1/devices/{device}/average_queue_time",
    summary="How long jobs wait for a device",
    **answers(QueueTimeResponse, 404, 422),
)
async def get_average_queue_time(
    device: DeviceName,
    caller: Caller,
    ledger: Ledger,
    live: LiveStore,
    hours: Annotated[int, Query(ge=1, le=8784, description="Of the jobs that ended in so many last hours.")] = 24,
) -> Response:
    """From submit to start, of jobs of all projects."""
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
