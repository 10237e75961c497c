"""Commands on several batches, or on the jobs of a batch that match a filter."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request, Response
from msgspec import Meta

from tweezer.api.access.dependencies import BatchId, Caller, LiveStore, Queue, ReadBodies, ResultsLinks, Submitter
from tweezer.api.access.replay_guard import begin_call
from tweezer.api.batches.bodies import renaming_fields
from tweezer.api.batches.commands import (
    DryRun,
    IdempotencyKey,
    batch_response,
    check_submission,
    describe_caller,
    expect_live,
    terminal_error,
    write_traced,
)
from tweezer.api.batches.filters import TIME_FORMAT, VALUES_MAX, JobParams, Time
from tweezer.api.batches.schemas import (
    BatchResponse,
    CanceledBatchesResponse,
    CanceledJobsResponse,
    CheckedBatchResponse,
    EmbeddedJobResponse,
    ListedBatchResponse,
    ResultsLinksOfBatchResponse,
)
from tweezer.api.http.openapi import describe_failures, describe_route
from tweezer.api.http.responses import RequestRejected, success
from tweezer.api.read_model import ReadModel
from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.queries.filters import JobFilter
from tweezer.ledger.repetition import build_repetition
from tweezer.model.errors import Conflict, InvalidInput, NewerRecord, NotFound, Unreadable
from tweezer.model.ids import split_job_id
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import MAX_JOBS_PER_CALL
from tweezer.store.connection import Store
from tweezer.store.producers import CancelAnswer, id_of
from tweezer.store.records import BatchRecord, JobRecord, NewBatch

BATCHES_MAX = 1000
"""Batches that one request may cancel."""

router = APIRouter(tags=["batches"], responses=describe_failures(422, 503))


class BatchesBody(msgspec.Struct, frozen=True):
    """The batches to cancel."""

    batch_ids: Annotated[
        list[UUID],
        Meta(
            max_length=BATCHES_MAX,
            description=f"Ids of the batches, at most {BATCHES_MAX}.",
            extra_json_schema={"minItems": 0},
        ),
    ]


@router.patch(
    "/api/v1/batches/cancel",
    summary="Cancel several batches",
    **describe_route(CanceledBatchesResponse, body=BatchesBody),
)
async def cancel_batches(
    request: Request, caller: Submitter, bodies: ReadBodies, queue: Queue, live: LiveStore
) -> Response:
    """Cancel each batch independently. Batches that cannot be cancelled are listed in `errors`, with the reason."""
    body = await bodies.read(request, BatchesBody, account=caller.account)
    canceled: list[BatchRecord] = []
    errors: dict[UUID, str] = {}
    for batch_id in dict.fromkeys(body.batch_ids):
        try:
            canceled.append(await cancel_one(queue, live, caller, batch_id))
        except (NotFound, Conflict, NewerRecord, Unreadable) as error:
            errors[batch_id] = error.message
    return success({"batches": [ListedBatchResponse.from_record(batch) for batch in canceled], "errors": errors})


@router.patch(
    "/api/v2/batches/{batch_id}/cancel/jobs",
    summary="Cancel jobs of a batch",
    **describe_route(CanceledJobsResponse, 404, 409, 413),
)
async def cancel_jobs(
    batch_id: BatchId, query: JobParams, caller: Submitter, queue: Queue, live: LiveStore
) -> Response:
    """Cancel the jobs that match the parameters, or all jobs without parameters. Pending jobs are cancelled at once;
    running jobs are asked to stop, and their status changes when they have stopped. Jobs that have already ended are
    listed in `errors`, with the reason."""
    batch = await live.batch(caller, batch_id)
    jobs = await select_jobs(live, caller, batch, query.filter)
    errors = _find_foreign_ids(batch, query.filter)
    errors |= {job.id: terminal_error("job", job.id).message for job in jobs if job.status.terminal}
    indices = [job.index for job in jobs if not job.status.terminal]
    canceled: list[JobRecord] = []
    if indices:
        async with expect_live(batch):
            answers = await queue.commands.cancel_jobs(
                batch_id, indices, project=batch.project, by=describe_caller(caller)
            )
        taken = (CancelAnswer.CANCELED, CancelAnswer.REQUESTED)
        done = [index for index, answer in zip(indices, answers, strict=True) if answer in taken]
        canceled = await live.jobs(batch, done)
        late = {job.id for job in jobs if job.index in indices} - {job.id for job in canceled}
        errors |= {identity: terminal_error("job", identity).message for identity in sorted(late)}
    return success({"jobs": [EmbeddedJobResponse.from_record(job) for job in canceled], "errors": errors})


@router.post(
    "/api/v1/batches/{batch_id}/rebatch",
    summary="Run jobs of a batch again in a new batch",
    **describe_route(BatchResponse, 400, 404, 409, 413, dry_run=CheckedBatchResponse),
)
async def rebatch(
    request: Request,
    batch_id: BatchId,
    query: JobParams,
    caller: Submitter,
    queue: Queue,
    live: LiveStore,
    idempotency_key: IdempotencyKey = "",
    dry_run: DryRun = False,
) -> Response:
    """Submit the jobs that match the parameters, or all jobs without parameters, in a new batch for the same device
    and project.

    The batch must be closed. The new batch has its id as `parent_id`, and each new job the id of the job that it
    repeats. It has the limits and the rules of the batch, but no start time, and depends on no other batch.
    """
    batch = await live.batch(caller, batch_id)
    jobs = await select_repeated(live, caller, batch, query.filter)
    if not jobs:
        raise InvalidInput(
            "jobs", f"no job of batch {batch_id} matches the parameters; change them, or omit them to repeat all jobs"
        )
    if dry_run:
        submission = build_repetition(batch, jobs, user=caller.user, idempotency_key=idempotency_key)
        with renaming_fields():
            return await check_submission(request, queue, submission, project=batch.project)
    written = await repeat_jobs(request, queue, caller, batch, jobs, idempotency_key)
    return await batch_response(written, caller, live)


async def select_repeated(live: ReadModel, caller: Principal, batch: BatchRecord, wanted: JobFilter) -> list[JobRecord]:
    """Return the jobs of a closed batch that match. Raises Conflict if it is open; RequestRejected."""
    if batch.open:
        raise Conflict(f"batch {batch.id} is open; add the jobs to it, or close it first", code="open")
    return await select_jobs(live, caller, batch, wanted)


async def repeat_jobs(
    request: Request,
    queue: Store,
    caller: Principal,
    batch: BatchRecord,
    jobs: Sequence[JobRecord],
    idempotency_key: str,
) -> NewBatch | UUID:
    """Submit the jobs in a new batch, which becomes a child of theirs; return it, or the id of an earlier call's."""
    submission = build_repetition(batch, jobs, user=caller.user, idempotency_key=idempotency_key)
    with renaming_fields():
        async with begin_call(request, caller, idempotency_key) as attempt:
            written = await write_traced(request, queue, submission, project=batch.project, attempt=attempt)
    await queue.commands.note_child(batch.id, id_of(written))
    return written


@router.get(
    "/api/v1/batches/{batch_id}/results_link",
    summary="Get links to the results of a batch",
    **describe_route(ResultsLinksOfBatchResponse, 404, 413),
)
async def get_batch_results_links(
    batch_id: BatchId,
    caller: Caller,
    live: LiveStore,
    links: ResultsLinks,
    request: Request,
    id: Annotated[
        tuple[UUID, ...], Query(max_length=VALUES_MAX, description="Ids of jobs; all jobs by default. May be repeated.")
    ] = (),
    start_date: Annotated[
        Time | None, Query(description=f"Only jobs that started at this time or later ({TIME_FORMAT}).")
    ] = None,
    end_date: Annotated[
        Time | None, Query(description=f"Only jobs that ended at this time or earlier ({TIME_FORMAT}).")
    ] = None,
) -> Response:
    """Return a link for each job that has a result, as `GET /api/v1/jobs/{job_id}/results_link` does. The other jobs
    are listed in `errors`, with the reason."""
    batch = await live.batch(caller, batch_id)
    wanted = JobFilter(ids=id, started_from=start_date, ended_to=end_date)
    jobs = await select_jobs(live, caller, batch, wanted)
    errors = _find_foreign_ids(batch, wanted)
    found: dict[UUID, str] = {}
    for job in jobs:
        if job.status is JobStatus.DONE or await live.packed_result(job) is not None:
            found[job.id] = await links.link(request, job.id)
        else:
            errors[job.id] = f"job {job.id} has no result; its status is {job.status}"
    return success(ResultsLinksOfBatchResponse(results_links=found, errors=errors))


async def cancel_one(queue: Store, live: ReadModel, caller: Principal, batch_id: UUID) -> BatchRecord:
    batch = await live.batch(caller, batch_id)
    async with expect_live(batch):
        await queue.commands.cancel(batch_id, project=batch.project, by=describe_caller(caller))
    return await live.batch(caller, batch_id)


def _find_foreign_ids(batch: BatchRecord, wanted: JobFilter) -> dict[UUID, str]:
    """Return an error for each id that is not a job of the batch."""
    strangers = {}
    for identity in wanted.ids:
        batch_id, index = split_job_id(identity)
        if batch_id != batch.id or index >= batch.jobs:
            strangers[identity] = NotFound("job", f"{identity} in batch {batch.id}").message
    return strangers


async def select_jobs(live: ReadModel, caller: Principal, batch: BatchRecord, wanted: JobFilter) -> list[JobRecord]:
    """Return the current jobs that match, in creation order. Raises RequestRejected if there are too many."""
    if not wanted.takes_from(batch):
        return []
    found: list[JobRecord] = []
    async with contextlib.aclosing(live.pages(caller, batch, _named(batch, wanted))) as pages:
        async for jobs in pages:
            found += filter(wanted.takes, jobs)
            if len(found) > MAX_JOBS_PER_CALL:
                problem = (
                    f"more than {MAX_JOBS_PER_CALL} jobs match, the limit per request; select fewer by id or status"
                )
                raise RequestRejected(413, "too_many_jobs", problem, field="id")
    return found


def _named(batch: BatchRecord, wanted: JobFilter) -> Sequence[int]:
    """Return the indices of the jobs whose ids are in the filter, or all of the batch."""
    if not wanted.ids:
        return range(batch.jobs)
    named = (split_job_id(identity) for identity in wanted.ids)
    return sorted({index for batch_id, index in named if batch_id == batch.id and index < batch.jobs})
