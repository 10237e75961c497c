"""What changes the queue: submitting batches, adding jobs, closing and cancelling."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, cast
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Request, Response

from tweezer.api.answers import success
from tweezer.api.bodies import Bodies, body_docs
from tweezer.api.dependencies import BatchId, JobId, LiveStore, Submitter
from tweezer.api.envelope import Envelope, failure_docs
from tweezer.api.live import Live
from tweezer.api.routes_batches import EMBEDDED_JOBS_MAX
from tweezer.api.schemas import Batch, Job
from tweezer.api.submissions import (
    BatchBody,
    Jobs,
    check_jobs_sent,
    in_words_of_the_body,
    plain_jobs,
    project_of,
    submission_of,
)
from tweezer.ledger.credentials import Principal
from tweezer.model.errors import Conflict, InvalidInput, NotFound, Unavailable
from tweezer.model.ids import split_job_id
from tweezer.store.commands import CancelAnswer
from tweezer.store.connection import Store
from tweezer.store.records import BatchRecord

router = APIRouter(responses=failure_docs(403, 409, 422, 503))

_BODY_FAILURES = failure_docs(400, 408, 413, 415)
_NAMES_A_THING = failure_docs(404)


async def _store(request: Request) -> Store:
    return cast(Store, request.app.state.store)


async def _bodies(request: Request) -> Bodies:
    return cast(Bodies, request.app.state.bodies)


Queue = Annotated[Store, Depends(_store)]
ReadBodies = Annotated[Bodies, Depends(_bodies)]
IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        max_length=255,
        description="Calls of a project with the same key within a day count once; with other content they conflict.",
    ),
]


@router.post(
    "/api/v1/batches",
    tags=["batches"],
    summary="Submit a batch",
    response_model=Envelope[Batch],
    responses=_BODY_FAILURES,
    openapi_extra=body_docs(BatchBody),
)
async def create_batch(
    request: Request,
    caller: Submitter,
    bodies: ReadBodies,
    queue: Queue,
    live: LiveStore,
    idempotency_key: IdempotencyKey = "",
) -> Response:
    """Checks all that can be checked without Pulser, then writes all or nothing.

    The batch belongs to the project of the credentials. Fields that are not listed here are passed over.
    """
    body = await bodies.read(request, BatchBody, key=caller.key)
    project = project_of(caller, body.project_id)
    try:
        submission = submission_of(body, user=caller.user, idempotency_key=idempotency_key)
        batch_id = await queue.admission.submit(submission, project=project)
    except InvalidInput as error:
        raise in_words_of_the_body(error) from error
    return await _answer(live, caller, batch_id)


@router.post(
    "/api/v2/batches/{batch_id}/jobs",
    tags=["batches"],
    summary="Add jobs to an open batch",
    response_model=Envelope[Batch],
    responses=_BODY_FAILURES | _NAMES_A_THING,
    openapi_extra=body_docs(Jobs),
)
async def add_jobs(
    request: Request,
    batch_id: BatchId,
    caller: Submitter,
    bodies: ReadBodies,
    queue: Queue,
    live: LiveStore,
    idempotency_key: IdempotencyKey = "",
) -> Response:
    """Appends all of them or none. The body is the list itself; errors call its entries `jobs[0]`, `jobs[1]`, …"""
    batch = await live.batch(caller, batch_id)
    jobs = await bodies.read(request, Jobs, key=caller.key, root="jobs")
    check_jobs_sent(jobs)
    async with _unless_forgotten(batch):
        await queue.admission.add_jobs(
            batch_id, plain_jobs(jobs), project=batch.project, idempotency_key=idempotency_key
        )
    return await _answer(live, caller, batch_id)


@router.patch(
    "/api/v2/batches/{batch_id}/complete",
    tags=["batches"],
    summary="Close a batch",
    response_model=Envelope[Batch],
    responses=_NAMES_A_THING,
)
async def close_batch(batch_id: BatchId, caller: Submitter, queue: Queue, live: LiveStore) -> Response:
    """No more jobs will come: the batch ends with those it has. Nothing changes if that is so already."""
    batch = await live.batch(caller, batch_id)
    if not batch.status.terminal:
        async with _unless_forgotten(batch):
            await queue.commands.close(batch_id, project=batch.project)
    return await _answer(live, caller, batch_id)


@router.patch(
    "/api/v2/batches/{batch_id}/cancel",
    tags=["batches"],
    summary="Cancel a batch",
    response_model=Envelope[Batch],
    responses=_NAMES_A_THING,
)
async def cancel_batch(batch_id: BatchId, caller: Submitter, queue: Queue, live: LiveStore) -> Response:
    """Cancels its pending jobs, and asks those that run to stop; it ends when they have."""
    batch = await live.batch(caller, batch_id)
    async with _unless_forgotten(batch):
        await queue.commands.cancel(batch_id, project=batch.project)
    return await _answer(live, caller, batch_id)


@router.patch(
    "/api/v2/jobs/{job_id}/cancel",
    tags=["jobs"],
    summary="Cancel a job",
    response_model=Envelope[Job],
    responses=_NAMES_A_THING,
)
async def cancel_job(job_id: JobId, caller: Submitter, queue: Queue, live: LiveStore) -> Response:
    """Cancels a pending job; asks one that runs to stop, which its status shows when it has."""
    job = await live.job(caller, job_id)
    batch_id, index = split_job_id(job_id)
    if not job.status.terminal:
        async with _unless_forgotten(await live.batch(caller, batch_id)):
            (answer,) = await queue.commands.cancel_jobs(batch_id, [index], project=job.project)
        if answer in (CancelAnswer.CANCELED, CancelAnswer.REQUESTED):
            return success(Job.fields_of(await live.job(caller, job_id)))
    raise Conflict(f"job {job_id} has ended", code="terminal")


async def _answer(live: Live, caller: Principal, batch_id: UUID) -> Response:
    """The batch as it stands after a command."""
    record, jobs = await live.batch_with_jobs(caller, batch_id, jobs_max=EMBEDDED_JOBS_MAX)
    return success(Batch.all_fields_of(record, jobs))


@contextlib.asynccontextmanager
async def _unless_forgotten(batch: BatchRecord) -> AsyncIterator[None]:
    """Says of a batch that the caller sees but Redis does not know what it is: it has ended and was forgotten."""
    try:
        yield
    except NotFound:
        if not batch.status.terminal:  # lost with Redis' last second, and not put back yet
            raise Unavailable(f"batch {batch.id} is being restored; try again") from None
        raise Conflict(f"batch {batch.id} has ended", code="terminal") from None
