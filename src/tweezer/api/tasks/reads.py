"""Reads of tasks: lists, counts, one task with its result, its shards, and the body that would submit it again."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Response

from tweezer.api.access.dependencies import Caller, LiveStore, Queue, TaskId
from tweezer.api.batches.bodies import BatchBody, JobBody, LimitsBody, check_jobs_sent
from tweezer.api.batches.filters import TASKS_MAX, Number, TaskParams, TaskQuery
from tweezer.api.http.openapi import describe_bare, describe_failures
from tweezer.api.http.responses import json_response
from tweezer.api.read_model import ReadModel
from tweezer.api.tasks.schemas import (
    InstanceResultResponse,
    ShardResponse,
    ShardsResponse,
    TaskCountsResponse,
    TaskResponse,
    TaskRowResponse,
    TasksResponse,
    TaskSummariesResponse,
    TaskSummaryResponse,
    redact,
)
from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.queries.tasks import TaskPage, TaskRecord
from tweezer.model.errors import NotFound, ResultUnavailable
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import MAX_JOBS_PER_CALL, decode_result, result_file
from tweezer.model.rule_fields import Retries
from tweezer.model.rules import Rules
from tweezer.model.tasks import StateFilter
from tweezer.store.connection import Store
from tweezer.store.records import BatchRecord, JobRecord

JOBS_READ_MAX = 1000
"""A task with more jobs is shown without results."""

_TRACEBACK_MAX = 16 << 10
_TRACEBACK = "Traceback (most recent call last)"

router = APIRouter(tags=["tasks"], responses=describe_failures(422, 503))


@router.get("/api/tasks", summary="List tasks", **describe_bare(TasksResponse))
async def list_tasks(query: TaskParams, caller: Caller, live: LiveStore) -> Response:
    """Return a page of the tasks of the caller's projects, newest first. A task is a batch seen as one unit. The list
    is read from the ledger, so a new task appears after a fraction of a second; tasks that have not ended are shown
    in their current state."""
    found = await _list(query, caller, live)
    return json_response(TasksResponse(tasks=[TaskRowResponse.of(task) for task in found.tasks], **_page(query, found)))


@router.get(
    "/api/tasks/counts",
    summary="Count tasks by status",
    **describe_bare(TaskCountsResponse),
)
async def count_tasks(caller: Caller, live: LiveStore) -> Response:
    """Return the number of tasks by status, without archived ones. All counts are from the same moment, so they add
    up."""
    counts = await live.task_counts(caller)
    named = {status.value: count for status, count in counts.items()}
    return json_response(TaskCountsResponse(**named, total=sum(counts.values())))


@router.get(
    "/api/tasks/summaries",
    summary="List summaries of tasks",
    **describe_bare(TaskSummariesResponse),
)
async def list_task_summaries(query: TaskParams, caller: Caller, live: LiveStore) -> Response:
    """Return the same page as `GET /api/tasks`, with the states and the times of each task instead of what was
    submitted."""
    found = await _list(query, caller, live)
    rows = [TaskSummaryResponse.of(task) for task in found.tasks]
    return json_response(TaskSummariesResponse(tasks=rows, **_page(query, found)))


@router.get(
    "/api/tasks/{task_id}",
    summary="Get a task with its result",
    **describe_bare(TaskResponse, 404),
)
async def get_task(task_id: TaskId, caller: Caller, live: LiveStore, queue: Queue) -> Response:
    """Return everything about a task in its current state, whether or not it is archived."""
    return await task_response(caller, live, queue, task_id)


@router.get(
    "/api/tasks/{task_id}/shards",
    summary="List the shards of a task",
    **describe_bare(ShardsResponse, 404),
)
async def get_task_shards(task_id: TaskId, caller: Caller, live: LiveStore) -> Response:
    """Return the shards of a task: each has the jobs that one claim of a lane began or settled. Results are left
    out."""
    batch = await live.batch(caller, task_id)
    claims: dict[str, list[JobRecord]] = {}
    async with contextlib.aclosing(live.pages(caller, batch, range(batch.jobs))) as pages:
        async for jobs in pages:
            for job in jobs:
                if job.token is not None and job.status is not JobStatus.PENDING:
                    claims.setdefault(job.token, []).append(job)
    firsts = [jobs[0].index for jobs in claims.values()]
    machine_ids = await live.machine_ids(batch, firsts)
    shards = [
        ShardResponse.of(batch.id, number, batch.device, jobs, machine_ids.get(jobs[0].index))
        for number, (_, jobs) in enumerate(sorted(claims.items(), key=lambda claim: int(claim[0])))
    ]
    return json_response(ShardsResponse(batch.id, len(shards), shards))


@router.get(
    "/api/tasks/{task_id}/snapshot",
    summary="Get the body that would submit a task again",
    **describe_bare(BatchBody, 404, 413),
)
async def get_task_snapshot(task_id: TaskId, caller: Caller, live: LiveStore) -> Response:
    """Return what was submitted, as a body of `POST /api/v1/batches`. Start time and dependencies are left out. Values
    that look like credentials are redacted, so fill them in before you submit the body. A task with more than 10,000
    jobs does not fit into one request (413)."""
    batch = await live.batch(caller, task_id)
    jobs: list[JobRecord] = []
    if batch.jobs <= MAX_JOBS_PER_CALL:
        async with contextlib.aclosing(live.pages(caller, batch, range(batch.jobs))) as pages:
            async for page in pages:
                jobs += page
    body = _snapshot(batch, jobs)
    check_jobs_sent(body.jobs if jobs else [JobBody()] * batch.jobs)
    return json_response(body)


@router.get(
    "/api/archive",
    summary="List archived tasks",
    **describe_bare(TasksResponse),
)
async def list_archive(
    caller: Caller,
    live: LiveStore,
    limit: Annotated[int, Query(ge=1, le=TASKS_MAX, description="The largest number of tasks to return.")] = 100,
    offset: Annotated[Number, Query(description="The number of tasks to skip.")] = 0,
) -> Response:
    """Return a page of the archived tasks of the caller's projects, newest first: the same as
    `GET /api/tasks?state=archived`."""
    return await list_tasks(TaskQuery(state=StateFilter.ARCHIVED, limit=limit, offset=offset), caller, live)


@router.get(
    "/api/archive/{task_id}",
    summary="Get an archived task",
    **describe_bare(TaskResponse, 404),
)
async def get_archived_task(task_id: TaskId, caller: Caller, live: LiveStore, queue: Queue) -> Response:
    """Return everything about an archived task; 404 if it is not archived."""
    return await task_response(caller, live, queue, task_id, is_archived=True)


async def task_response(
    caller: Principal, live: ReadModel, queue: Store, task_id: UUID, *, is_archived: bool = False
) -> Response:
    """Return everything about a task. Raises NotFound, also for a task that should be archived and is not."""
    task = await live.task(caller, task_id, jobs_max=JOBS_READ_MAX)
    if is_archived and task.archived is None:
        raise NotFound("archived task", str(task_id))
    traceback = await _traceback(queue, task) if caller.role is Role.OPERATOR else None
    return json_response(TaskResponse.build(task, traceback=traceback, result=await _results(live, task)))


async def _list(query: TaskQuery, caller: Principal, live: ReadModel) -> TaskPage:
    return await live.list_tasks(caller, query.filter, limit=query.limit, offset=query.offset)


def _page(query: TaskQuery, found: TaskPage) -> dict[str, Any]:
    page = {"total": found.total, "limit": query.limit, "offset": query.offset}
    return page | ({"is_cut": found.is_cut} if query.name__contains else {})


async def _results(live: ReadModel, task: TaskRecord) -> list[InstanceResultResponse] | None:
    """Return the results of the jobs that were read, without those that are stored in files."""
    having = {job.index: job for job in task.jobs if job.may_have_result}
    packed = await live.packed_results(task.batch.id, [*having]) if having else {}
    small = {index: data for index, data in packed.items() if result_file(data) is None}
    return [InstanceResultResponse.of(having[index], decode_result(data)) for index, data in small.items()] or None


async def _traceback(queue: Store, task: TaskRecord) -> str | None:
    """Return the end of the last traceback in the log of the first failed job."""
    if task.first_failed is None:
        return None
    with contextlib.suppress(ResultUnavailable):
        log = await queue.job_logs.read(task.first_failed.id)
        if (start := log.text.rfind(_TRACEBACK)) >= 0:
            return log.text[start:].encode()[-_TRACEBACK_MAX:].decode(errors="ignore")
    return None


def _snapshot(batch: BatchRecord, jobs: list[JobRecord]) -> BatchBody:
    submitted = batch.doc
    rules = submitted.rules or Rules()
    return BatchBody(
        jobs=[JobBody(job.spec.runs, job.spec.variables or None, job.spec.seed, job.spec.sequence) for job in jobs],
        sequence_builder=submitted.sequence,
        device_type=batch.device,
        project_id=batch.project,
        tags=list(submitted.tags),
        webhook=submitted.webhook,
        backend_configuration=redact(submitted.backend_configuration),
        configuration=redact(submitted.configuration),
        queue_priority=batch.priority.value,
        limits=LimitsBody(**msgspec.structs.asdict(submitted.limits)),
        name=submitted.name,
        queue_timeout_s=rules.queue_timeout_s,
        failure_threshold=rules.failure_threshold,
        on_failures=None if rules.failure_threshold is None else rules.on_failures.value,
        retries=None if rules.total_retries is None else Retries(total=rules.total_retries),
        keep_s=rules.keep_s,
    )
