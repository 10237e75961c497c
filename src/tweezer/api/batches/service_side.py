"""The service's side: what operators say of batches and jobs, beside the work that workers hold.

All of it goes by the lifecycle table. Only who holds a job begins it and has its result: neither is said here.
"""

from __future__ import annotations

from typing import Annotated, assert_never

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta

from tweezer.api.access.dependencies import BatchId, JobId, LiveStore, Operator, Queue, ReadBodies
from tweezer.api.batches.commands import describe_caller, expect_live, terminal_error
from tweezer.api.batches.reads import get_batch, get_job
from tweezer.api.batches.schemas import BatchResponse, JobResponse
from tweezer.api.http.openapi import answers, failure_docs
from tweezer.api.http.responses import doc
from tweezer.api.read_model import ReadModel
from tweezer.ledger.access.credentials import Principal
from tweezer.model.checks import check_characters
from tweezer.model.errors import Conflict
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Fault
from tweezer.store.connection import Store
from tweezer.store.producers import Commands
from tweezer.store.records import BatchRecord, JobRecord

_ERRORS_MAX = 20
_ERROR_LENGTH_MAX = 2000

router = APIRouter(tags=["service side"], responses=failure_docs(404, 409, 422))

Text = Annotated[str, Meta(max_length=_ERROR_LENGTH_MAX)]
Errors = Annotated[list[Text], Meta(min_length=1, max_length=_ERRORS_MAX, description="For its user, one a line.")]


class BatchStatusBody(msgspec.Struct, frozen=True):
    """The status that a batch is to have. Times are those of Redis' clock, whatever is sent."""

    status: BatchStatus
    reason: Annotated[Text | None, doc("Of an `ERROR`, for the user.", "the laser is out of lock")] = None


class JobStatusBody(msgspec.Struct, frozen=True):
    """The status that a job is to have, and how far it is. Times are those of Redis' clock, whatever is sent."""

    status: Annotated[JobStatus | None, doc("Null leaves it as it is.")] = None
    progress: Annotated[Annotated[int, Meta(ge=0, le=100)] | None, doc("Percent, of a job that runs.")] = None
    errors: Annotated[Errors | None, doc("Why it fails.")] = None


class JobErrorsBody(msgspec.Struct, frozen=True):
    """Why a job fails."""

    errors: Errors


@router.patch(
    "/api/v1/batches/{batch_id}/status",
    summary="Set the status of a batch",
    **answers(BatchResponse, body=BatchStatusBody),
)
async def set_batch_status(
    request: Request, batch_id: BatchId, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore
) -> Response:
    """`PAUSED` pauses, `PENDING` and `RUNNING` resume, `CANCELED` cancels, `DONE` closes, `ERROR` ends what is pending
    and the batch when nothing of it runs any more, `TIMED_OUT` ends one that is open without work."""
    batch = await live.batch(caller, batch_id)
    body = await bodies.read(request, BatchStatusBody, account=caller.account)
    check_characters("reason", body.reason or "", lines=True)
    if body.status is not batch.status:
        if batch.status.terminal:
            raise terminal_error("batch", batch_id)
        async with expect_live(batch):
            await _move(queue.commands, caller, batch, body)
    return await get_batch(batch_id, caller, live)


@router.patch(
    "/api/v1/jobs/{job_id}/status", summary="Set the status of a job", **answers(JobResponse, body=JobStatusBody)
)
@router.patch(
    "/api/v1/jobs/{job_id}",
    name="patch_job",
    summary="Set the status or the progress of a job",
    **answers(JobResponse, body=JobStatusBody),
)
async def set_job_status(
    request: Request, job_id: JobId, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore
) -> Response:
    """`ERROR` and `CANCELED` end a live job, `PENDING` lets one that runs wait for another attempt: who held it has
    lost it. `RUNNING` and `DONE` are its holder's to say."""
    job = await live.job(caller, job_id)
    await _report(queue, live, caller, job, await bodies.read(request, JobStatusBody, account=caller.account))
    return await get_job(job_id, caller, live)


@router.post("/api/v1/jobs/{job_id}/errors", summary="Say why a job fails", **answers(JobResponse, body=JobErrorsBody))
async def post_job_errors(
    request: Request, job_id: JobId, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore
) -> Response:
    """Shown with the job while it is live, and after it if it does not end in `DONE`. Say it before the status, or
    with it."""
    job = await live.job(caller, job_id)
    body = await bodies.read(request, JobErrorsBody, account=caller.account)
    await _report(queue, live, caller, job, JobStatusBody(errors=body.errors))
    return await get_job(job_id, caller, live)


async def _report(queue: Store, live: ReadModel, caller: Principal, job: JobRecord, body: JobStatusBody) -> None:
    """Raises Conflict where the lifecycle forbids it."""
    if body.progress is None and body.errors is None and body.status in (None, job.status):
        return
    if job.status.terminal:
        raise terminal_error("job", job.id)
    fault = None if body.errors is None else Fault("reported", "\n".join(body.errors))
    if fault is None and body.status is JobStatus.ERROR and not job.faults:
        fault = Fault("reported", "the job was ended by an operator, who gave no reason")
    async with expect_live(await live.batch(caller, job.batch_id)):
        await queue.commands.report(
            job.batch_id, job.index, status=body.status, percent=body.progress, fault=fault, project=job.project
        )


async def _move(commands: Commands, caller: Principal, batch: BatchRecord, body: BatchStatusBody) -> None:
    """Raises Conflict where the lifecycle forbids it."""
    match body.status:
        case BatchStatus.PAUSED:
            await commands.pause(batch.id, project=batch.project)
        case BatchStatus.PENDING | BatchStatus.RUNNING:
            if batch.status is not BatchStatus.PAUSED:
                raise Conflict(
                    f"batch {batch.id} is {batch.status}: its jobs make it RUNNING, and nothing PENDING again"
                )
            await commands.resume(batch.id, project=batch.project)
        case BatchStatus.CANCELED:
            await commands.cancel(batch.id, project=batch.project, by=describe_caller(caller))
        case BatchStatus.DONE:
            if not batch.open:
                raise Conflict(f"batch {batch.id} is closed, and DONE when all of its jobs have ended")
            await commands.close(batch.id, project=batch.project)
        case BatchStatus.ERROR:
            fault = Fault("reported", body.reason or "the batch was ended by the service, which gave no reason")
            await commands.end(batch.id, body.status, fault=fault, project=batch.project)
        case BatchStatus.TIMED_OUT:
            await commands.end(batch.id, body.status, project=batch.project)
        case _:
            assert_never(body.status)
