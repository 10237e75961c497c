"""Commands on tasks: restart, delete, archive, restore and cancel, one at a time or several by id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request, Response
from msgspec import Meta

from tweezer.api.access.dependencies import Ledger, LiveStore, Queue, ReadBodies, Submitter, TaskId
from tweezer.api.batches.bulk import cancel_one, repeat_jobs, select_repeated
from tweezer.api.batches.commands import IdempotencyKey
from tweezer.api.batches.filters import JobParams
from tweezer.api.http.openapi import describe_bare, describe_failures
from tweezer.api.http.responses import json_response
from tweezer.api.read_model import ReadModel
from tweezer.api.tasks.reads import task_response
from tweezer.api.tasks.schemas import (
    ArchivedOlderResponse,
    ArchivedTaskResponse,
    ArchivedTasksResponse,
    CanceledTasksResponse,
    DeletedTaskResponse,
    DeletedTasksResponse,
    RestoredTaskResponse,
    TaskResponse,
)
from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.archive import archive, archive_older, restore_archived
from tweezer.ledger.database import Database
from tweezer.ledger.queries.filters import JobFilter
from tweezer.ledger.repetition import UNSUCCESSFUL
from tweezer.ledger.retention import delete_batches, find_ended
from tweezer.model.errors import Conflict, InvalidInput, NotFound
from tweezer.store.connection import Store
from tweezer.store.producers import id_of
from tweezer.store.scripts import split_pages

IDS_MAX = 1000
"""Tasks that one request may name."""

_HOURS_MAX = 100_000.0
_PAGE = 50  # tasks that are deleted at once

router = APIRouter(tags=["tasks"], responses=describe_failures(403, 422, 503))


class TaskIdsBody(msgspec.Struct, frozen=True):
    """The tasks that a request is about."""

    task_ids: Annotated[
        list[UUID],
        Meta(
            max_length=IDS_MAX,
            description=f"Ids of the tasks, at most {IDS_MAX}.",
            extra_json_schema={"minItems": 0},
        ),
    ]


@router.post(
    "/api/tasks/{task_id}/restart",
    summary="Run jobs of a task again in a new task",
    **describe_bare(TaskResponse, 400, 404, 409, 413),
)
async def restart_task(
    request: Request,
    task_id: TaskId,
    query: JobParams,
    caller: Submitter,
    queue: Queue,
    live: LiveStore,
    idempotency_key: IdempotencyKey = "",
) -> Response:
    """Submit the jobs that match the parameters in a new task, and return it. Without parameters, these are the jobs
    that ended without success. The new task has the id of this one as `metadata.parent_id`. It is the same as
    `POST /api/v1/batches/{batch_id}/rebatch`."""
    batch = await live.batch(caller, task_id)
    wanted = query.filter
    if wanted == JobFilter():
        wanted = JobFilter(statuses=UNSUCCESSFUL)
    jobs = await select_repeated(live, caller, batch, wanted)
    if not jobs:
        raise InvalidInput(
            "jobs", f"no job of task {task_id} ended without success, or matches the parameters; select jobs by status"
        )
    written = await repeat_jobs(request, queue, caller, batch, jobs, idempotency_key)
    return await task_response(caller, live, queue, id_of(written))


@router.delete("/api/tasks/{task_id}", summary="Delete a task", **describe_bare(DeletedTaskResponse, 404, 409))
async def delete_task(task_id: TaskId, caller: Submitter, queue: Queue, live: LiveStore, ledger: Ledger) -> Response:
    """Delete a task that has ended, with its jobs and results, whether or not it is archived. A task that has not
    ended is kept (409, with the reason `live`): cancel it first."""
    await _delete_one(caller, queue, live, ledger, task_id)
    return json_response(DeletedTaskResponse(task_id))


@router.post(
    "/api/tasks/bulk-delete",
    summary="Delete several tasks",
    **describe_bare(DeletedTasksResponse, body=TaskIdsBody),
)
async def bulk_delete_tasks(
    request: Request, caller: Submitter, bodies: ReadBodies, queue: Queue, live: LiveStore, ledger: Ledger
) -> Response:
    """Delete each of the tasks that has ended. The others are kept, and listed."""
    body = await bodies.read(request, TaskIdsBody, account=caller.account)
    sorted_ids = await _delete(caller, queue, live, ledger, body.task_ids)
    return json_response(
        DeletedTasksResponse(sorted_ids.done, sorted_ids.missing, sorted_ids.live, len(sorted_ids.done))
    )


@router.post(
    "/api/tasks/bulk-archive",
    summary="Archive several tasks",
    **describe_bare(ArchivedTasksResponse, body=TaskIdsBody),
)
async def bulk_archive_tasks(
    request: Request, caller: Submitter, bodies: ReadBodies, live: LiveStore, ledger: Ledger
) -> Response:
    """Archive each of the tasks that has ended. The others stay as they are, and are listed."""
    body = await bodies.read(request, TaskIdsBody, account=caller.account)
    sorted_ids = await _archive(caller, live, ledger, body.task_ids)
    return json_response(
        ArchivedTasksResponse(sorted_ids.done, sorted_ids.missing, sorted_ids.live, len(sorted_ids.done))
    )


@router.post(
    "/api/tasks/bulk-cancel",
    summary="Cancel several tasks",
    **describe_bare(CanceledTasksResponse, body=TaskIdsBody),
)
async def bulk_cancel_tasks(
    request: Request, caller: Submitter, bodies: ReadBodies, queue: Queue, live: LiveStore
) -> Response:
    """Cancel each of the tasks independently. Running jobs are asked to stop, and their task ends when they have
    stopped."""
    body = await bodies.read(request, TaskIdsBody, account=caller.account)
    canceled: list[UUID] = []
    missing: list[UUID] = []
    running: list[UUID] = []
    ended: list[UUID] = []
    for task_id in dict.fromkeys(body.task_ids):
        try:
            batch = await cancel_one(queue, live, caller, task_id)
        except NotFound:
            missing.append(task_id)
        except Conflict:
            ended.append(task_id)
        else:
            canceled.append(task_id)
            if not batch.status.terminal:
                running.append(task_id)
    return json_response(CanceledTasksResponse(canceled, missing, running, ended, len(canceled)))


@router.post("/api/tasks/archive-expired", summary="Archive old tasks", **describe_bare(ArchivedOlderResponse))
async def archive_expired_tasks(
    caller: Submitter,
    ledger: Ledger,
    hours: Annotated[
        float, Query(ge=0, le=_HOURS_MAX, allow_inf_nan=False, description="Hours since the last change of a task.")
    ] = 72.0,
    terminal_only: Annotated[
        bool, Query(description="`false`: also archive tasks that have not ended. They continue unseen.")
    ] = True,
) -> Response:
    """Archive the tasks of the caller's projects that last changed longer ago than that, at most 10,000 in one
    request; repeat the request for the rest."""
    found = await archive_older(ledger, caller, hours=hours, ended_only=terminal_only)
    return json_response(ArchivedOlderResponse(found.done, len(found.done), hours, terminal_only, len(found.live)))


@router.post("/api/tasks/{task_id}/archive", summary="Archive a task", **describe_bare(ArchivedTaskResponse, 404, 409))
async def archive_task(task_id: TaskId, caller: Submitter, live: LiveStore, ledger: Ledger) -> Response:
    """Archive a task that has ended: the list and the counts of tasks leave it out, and `GET /api/archive` has it.
    Archiving an archived task changes nothing."""
    _expect_done(task_id, await _archive(caller, live, ledger, [task_id]))
    return json_response(ArchivedTaskResponse(task_id))


@router.post(
    "/api/archive/restore/{task_id}", summary="Restore an archived task", **describe_bare(RestoredTaskResponse, 404)
)
async def restore_task(task_id: TaskId, caller: Submitter, ledger: Ledger) -> Response:
    """Put an archived task back into the list of tasks. It stays there until it is archived on request."""
    if not await ledger.run_write(restore_archived, caller, task_id):
        raise NotFound("archived task", str(task_id))
    return json_response(RestoredTaskResponse(task_id))


@router.delete(
    "/api/archive/{task_id}", summary="Delete an archived task", **describe_bare(DeletedTaskResponse, 404, 409)
)
async def delete_archived_task(
    task_id: TaskId, caller: Submitter, queue: Queue, live: LiveStore, ledger: Ledger
) -> Response:
    """Delete an archived task; 404 if it is not archived."""
    recorded = await live.recorded_tasks(caller, [task_id])
    if not recorded or recorded[0].archived is None:
        raise NotFound("archived task", str(task_id))
    await _delete_one(caller, queue, live, ledger, task_id)
    return json_response(DeletedTaskResponse(task_id))


class _Sorted(msgspec.Struct, frozen=True):
    """Ids of tasks by the outcome, each in the order of the request."""

    done: list[UUID]
    missing: list[UUID]
    live: list[UUID]


async def _sort(live: ReadModel, caller: Principal, task_ids: Sequence[UUID], done: Sequence[UUID]) -> _Sorted:
    """Sort the ids of a request of which some are done: of the others, those are missing that do not exist."""
    others = [task_id for task_id in dict.fromkeys(task_ids) if task_id not in set(done)]
    recorded = {task.batch.id for task in await live.recorded_tasks(caller, others)}
    missing = [
        task_id for task_id in others if task_id not in recorded and await live.live_batch(caller, task_id) is None
    ]
    kept = [task_id for task_id in others if task_id not in set(missing)]
    return _Sorted([task_id for task_id in dict.fromkeys(task_ids) if task_id in set(done)], missing, kept)


async def _delete(
    caller: Principal, queue: Store, live: ReadModel, ledger: Database, task_ids: Sequence[UUID]
) -> _Sorted:
    mine = [task.batch.id for task in await live.recorded_tasks(caller, list(dict.fromkeys(task_ids)))]
    ended = await ledger.run_read(find_ended, mine)
    done: list[UUID] = []
    for page in split_pages(list(ended), _PAGE):
        done += await delete_batches(queue, ledger, {task_id: ended[task_id] for task_id in page})
    return await _sort(live, caller, task_ids, done)


async def _delete_one(caller: Principal, queue: Store, live: ReadModel, ledger: Database, task_id: UUID) -> None:
    _expect_done(task_id, await _delete(caller, queue, live, ledger, [task_id]))


async def _archive(caller: Principal, live: ReadModel, ledger: Database, task_ids: Sequence[UUID]) -> _Sorted:
    archived = await ledger.run_write(archive, caller, list(dict.fromkeys(task_ids)))
    return await _sort(live, caller, task_ids, archived.done)


def _expect_done(task_id: UUID, found: _Sorted) -> None:
    """Raise the error for a single task that was not changed."""
    if found.missing:
        raise NotFound("task", str(task_id))
    if found.live:
        problem = f"task {task_id} has not ended, or is still being recorded; cancel it first, or try again"
        raise Conflict(problem, code="live")
