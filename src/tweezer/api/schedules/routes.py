"""The routes of schedules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from tweezer.api.access.dependencies import Caller, Ledger, LiveStore, Queue, ReadBodies, Submitter
from tweezer.api.batches.bodies import BatchBody, build_submission, choose_project, renaming_fields
from tweezer.api.batches.commands import By, IdempotencyKey, Reason, describe_caller
from tweezer.api.batches.reads import get_batch
from tweezer.api.batches.schemas import BatchResponse
from tweezer.api.http.openapi import describe_failures, describe_list, describe_route
from tweezer.api.http.responses import RequestRejected, created, page, success
from tweezer.api.schedules.schemas import (
    FullScheduleResponse,
    NewSchedule,
    ScheduleChangeBody,
    SchedulePageQuery,
    ScheduleResponse,
    write_ticks,
)
from tweezer.api.webhooks.service import Hooks, check_webhook, visible_projects
from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.schedules.records import Creator, Schedule, ScheduleChange, ScheduleSettings
from tweezer.ledger.schedules.runner import ScheduleRunner
from tweezer.ledger.schedules.schedules import (
    TICKS_SHOWN,
    change_schedule,
    count_schedules,
    create_schedule,
    delete_schedule,
    find_schedule,
    list_schedules,
    pause_schedule,
    prepare_template,
    read_template,
    resume_schedule,
)
from tweezer.model.errors import InvalidInput
from tweezer.store.connection import Store
from tweezer.transports.http_records import write_submission

router = APIRouter(tags=["schedules"], responses=describe_failures(403, 422, 503))

ScheduleId = Annotated[UUID, Path(description="Id of a schedule.", examples=["c2b7d9f0-51c4-4f0e-8a86-2f6e0d3b9a17"])]
SchedulePageParams = Annotated[SchedulePageQuery, Query()]

_JOBS = [{"runs": 100, "variables": {"omega": 4.0}}]
_TEMPLATE = {
    "sequence_builder": "the text that Sequence.to_abstract_repr() returns",
    "device_type": "EMU_FREE",
    "jobs": _JOBS,
}
_EXAMPLE = {"name": "nightly", "cron": "30 2 * * *", "time_zone": "Europe/Paris", "template": _TEMPLATE}
_CHANGE_EXAMPLE = {"revision": 1, "cron": "0 3 * * *"}


@router.get("/api/v2/schedules", summary="List schedules", **describe_list(ScheduleResponse))
async def list_all_schedules(query: SchedulePageParams, caller: Caller, ledger: Ledger) -> Response:
    """Return a page of the schedules of the caller's projects by name, without their templates."""
    projects = visible_projects(caller)
    if query.project_id:
        projects = {it for it in query.project_id if caller.sees(it)}
    found = await ledger.run_read(
        list_schedules, projects, name=query.name, status=query.status, limit=query.limit, offset=query.offset
    )
    total = await ledger.run_read(count_schedules, projects, name=query.name, status=query.status)
    return page([ScheduleResponse.from_record(it) for it in found], offset=query.offset, total=total)


@router.post(
    "/api/v2/schedules",
    summary="Create a schedule",
    **describe_route(FullScheduleResponse, 409, body=NewSchedule, example=_EXAMPLE, creates=True),
)
async def add_schedule(
    request: Request, caller: Submitter, bodies: ReadBodies, ledger: Ledger, queue: Queue, webhooks: Hooks
) -> Response:
    """Create a schedule, which submits a batch at each of its ticks on behalf of the caller. The template is checked
    like a submit. The schedule stops when the caller's key is revoked or expires, or when the user is disabled."""
    body = await bodies.read(request, NewSchedule, account=caller.account)
    project = choose_project(caller, body.project_id)
    template = await _prepare(request, body.template, caller, queue, project, webhooks)
    settings = msgspec.convert(body, ScheduleSettings, from_attributes=True)
    identity = await ledger.run_write(
        create_schedule, body.id, settings, template, project_id=project, creator=_creator(caller)
    )
    return created(await _read_full(ledger, caller, identity))


@router.get("/api/v2/schedules/{schedule_id}", summary="Get a schedule", **describe_route(FullScheduleResponse, 404))
async def get_schedule(schedule_id: ScheduleId, caller: Caller, ledger: Ledger) -> Response:
    """Return the schedule with its template and its last ticks."""
    return success(await _read_full(ledger, caller, schedule_id))


@router.patch(
    "/api/v2/schedules/{schedule_id}",
    summary="Change a schedule",
    **describe_route(FullScheduleResponse, 404, 409, body=ScheduleChangeBody, example=_CHANGE_EXAMPLE),
)
async def modify_schedule(
    request: Request,
    schedule_id: ScheduleId,
    caller: Submitter,
    bodies: ReadBodies,
    ledger: Ledger,
    queue: Queue,
    webhooks: Hooks,
) -> Response:
    """Change the given fields, from the next tick on."""
    body = await bodies.read(request, ScheduleChangeBody, account=caller.account)
    projects = visible_projects(caller)
    found = await ledger.run_read(find_schedule, schedule_id, projects)
    template = None
    if body.template is not None:
        template = await _prepare(request, body.template, caller, queue, found.project_id, webhooks)
    change = msgspec.convert(body, ScheduleChange, from_attributes=True)
    await ledger.run_write(change_schedule, schedule_id, change, template, project_ids=projects)
    return success(await _read_full(ledger, caller, schedule_id))


@router.delete("/api/v2/schedules/{schedule_id}", summary="Delete a schedule", **describe_route(None, 404))
async def remove_schedule(schedule_id: ScheduleId, caller: Submitter, ledger: Ledger) -> Response:
    """Delete the schedule permanently. Its batches stay."""
    await ledger.run_write(delete_schedule, schedule_id, project_ids=visible_projects(caller))
    return success(None)


@router.post(
    "/api/v2/schedules/{schedule_id}/pause", summary="Pause a schedule", **describe_route(ScheduleResponse, 400, 404)
)
async def pause_one_schedule(
    schedule_id: ScheduleId, caller: Submitter, ledger: Ledger, by: By = "", reason: Reason = ""
) -> Response:
    """Submit no more batches until the schedule is resumed. Pausing a paused or stopped schedule changes nothing."""
    changed = await ledger.run_write(
        pause_schedule,
        schedule_id,
        creator=_creator(caller, by),
        reason=reason,
        project_ids=visible_projects(caller),
    )
    return success(ScheduleResponse.from_record(changed))


@router.post(
    "/api/v2/schedules/{schedule_id}/resume", summary="Resume a schedule", **describe_route(ScheduleResponse, 404)
)
async def resume_one_schedule(schedule_id: ScheduleId, caller: Submitter, ledger: Ledger, by: By = "") -> Response:
    """Resume a paused or stopped schedule with its next tick; the ticks in between do not count as missed. A stopped
    schedule runs on behalf of the caller from now on."""
    changed = await ledger.run_write(
        resume_schedule, schedule_id, creator=_creator(caller, by), project_ids=visible_projects(caller)
    )
    return success(ScheduleResponse.from_record(changed))


@router.post(
    "/api/v2/schedules/{schedule_id}/run",
    summary="Run a schedule now",
    **describe_route(BatchResponse, 400, 404, 409, 413),
)
async def run_schedule(
    schedule_id: ScheduleId,
    caller: Submitter,
    ledger: Ledger,
    queue: Queue,
    live: LiveStore,
    by: By = "",
    idempotency_key: IdempotencyKey = "",
) -> Response:
    """Submit the batch of the schedule now, in any status of the schedule; its ticks do not change. Requests with the
    same `Idempotency-Key` submit one batch."""
    batch_id = await ScheduleRunner(queue, ledger).run_now(
        schedule_id, idempotency_key, creator=_creator(caller, by), project_ids=visible_projects(caller)
    )
    return await get_batch(batch_id, caller, live)


def _creator(caller: Principal, by: str = "") -> Creator:
    return Creator(describe_caller(caller, by), caller.user, None if caller.is_session else caller.key)


async def _prepare(
    request: Request, body: BatchBody, caller: Principal, queue: Store, project: str, webhooks: Hooks
) -> bytes:
    """Check the template of a schedule as a submit, and pack it."""
    check_webhook(body.webhook, webhooks.policy, "template.webhook")
    with _in_template():
        if body.project_id not in (None, "", project):
            raise InvalidInput("project_id", "is not the project of the schedule; omit it")
        agent = request.headers.get("User-Agent", "")
        submission = build_submission(body, user=caller.user, idempotency_key="", user_agent=agent)
        find_ends = request.app.state.live.find_ends
        with renaming_fields():
            return await prepare_template(queue.admission, submission, project_id=project, find_ends=find_ends)


@contextlib.contextmanager
def _in_template() -> Iterator[None]:
    """Name the part of the template in errors."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"template.{error.field}", error.problem) from error
    except RequestRejected as error:
        if error.field is None:
            raise
        problem = error.message.removeprefix(f"{error.field}: ")
        raise RequestRejected(error.status, error.code, problem, field=f"template.{error.field}") from error


async def _read_full(ledger: Ledger, caller: Principal, schedule_id: UUID) -> FullScheduleResponse:
    found: Schedule = await ledger.run_read(find_schedule, schedule_id, visible_projects(caller), ticks=TICKS_SHOWN)
    submission = await ledger.run_read(read_template, schedule_id)
    template = msgspec.convert(write_submission(submission, is_template=True), BatchBody)
    return FullScheduleResponse.from_record(found, template=template, ticks=write_ticks(found.ticks))
