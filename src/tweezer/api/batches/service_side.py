"""The service side of Pasqal's API: operators set statuses, progress and errors of batches and jobs.

Every change follows the lifecycle table. Only the worker that holds a job can start it or report its result.
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
from tweezer.api.http.openapi import describe_failures, describe_route
from tweezer.api.http.responses import doc
from tweezer.api.read_model import ReadModel
from tweezer.ledger.access.credentials import Principal
from tweezer.model.checks import check_characters
from tweezer.model.errors import Conflict, InvalidInput
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import MAX_PROGRESS_LENGTH, MAX_STEPS, Fault, Steps
from tweezer.store.connection import Store
from tweezer.store.producers import Commands
from tweezer.store.records import BatchRecord, JobRecord

_ERRORS_MAX = 20
_ERROR_LENGTH_MAX = 2000

router = APIRouter(tags=["service side"], responses=describe_failures(404, 409, 422))

Text = Annotated[str, Meta(max_length=_ERROR_LENGTH_MAX)]
Errors = Annotated[
    list[Text],
    Meta(
        min_length=1,
        max_length=_ERRORS_MAX,
        description="Why the job failed, for its user; each entry is shown on a separate line.",
    ),
]


class BatchStatusBody(msgspec.Struct, frozen=True):
    """The new status of a batch. Times in the body are ignored; Redis' clock is used."""

    status: Annotated[BatchStatus, doc("The new status.", "PAUSED")]
    reason: Annotated[Text | None, doc("Why the status is `ERROR`, for the user.", "the laser is out of lock")] = None


class StepsBody(msgspec.Struct, frozen=True):
    """The progress of a running job in steps. Without `progress`, the percentage follows from them."""

    done: Annotated[Annotated[int, Meta(ge=0, le=MAX_STEPS)] | None, doc("Number of finished steps.", 1200)] = None
    total: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None, doc("Number of all steps; required with `done`.", 3000)
    ] = None
    message: Annotated[
        Annotated[str, Meta(min_length=1, max_length=MAX_PROGRESS_LENGTH)] | None,
        doc("What the job does, for people, on one line.", "1200 of 3000 ns"),
    ] = None

    def steps(self) -> Steps:
        """Return the steps. Raises InvalidInput."""
        if (self.done is None) != (self.total is None):
            missing, given = ("total", "done") if self.total is None else ("done", "total")
            raise InvalidInput(f"steps.{missing}", f"is missing; give it together with {given}")
        if self.done is not None and self.total is not None and self.done > self.total:
            raise InvalidInput("steps.done", f"must be at most the total of {self.total} (got {self.done})")
        if self.message is not None and not self.message.isprintable():
            raise InvalidInput("steps.message", "must be one line of printable characters")
        return Steps(self.done, self.total, self.message)


class JobStatusBody(msgspec.Struct, frozen=True):
    """The new status or progress of a job. Times in the body are ignored; Redis' clock is used."""

    status: Annotated[JobStatus | None, doc("The new status; null leaves it unchanged.")] = None
    progress: Annotated[
        Annotated[int, Meta(ge=0, le=100)] | None,
        doc("Progress of a running job in percent, 0 to 100; null leaves it unchanged.", 40),
    ] = None
    steps: Annotated[
        StepsBody | None, doc("The same progress in steps; null leaves them unchanged, as do its fields that are null.")
    ] = None
    errors: Annotated[Errors | None, doc("Why the job failed, for its user; null leaves the errors unchanged.")] = None


class JobErrorsBody(msgspec.Struct, frozen=True):
    """The errors of a job, for its user."""

    errors: Errors


@router.patch(
    "/api/v1/batches/{batch_id}/status",
    summary="Set the status of a batch",
    **describe_route(BatchResponse, body=BatchStatusBody),
)
async def set_batch_status(
    request: Request, batch_id: BatchId, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore
) -> Response:
    """For operators. `PAUSED` pauses the batch, `PENDING` and `RUNNING` resume it, `CANCELED` cancels it, and `DONE`
    closes it. `ERROR` ends its pending jobs at once, and the batch when its running jobs have ended. `TIMED_OUT` ends
    an open batch that has no pending or running jobs."""
    batch = await live.batch(caller, batch_id)
    body = await bodies.read(request, BatchStatusBody, account=caller.account, is_open=True)
    check_characters("reason", body.reason or "", lines=True)
    if body.status is not batch.status:
        if batch.status.terminal:
            raise terminal_error("batch", batch_id)
        async with expect_live(batch):
            await _move(queue.commands, caller, batch, body)
    return await get_batch(batch_id, caller, live)


@router.patch(
    "/api/v1/jobs/{job_id}/status", summary="Set the status of a job", **describe_route(JobResponse, body=JobStatusBody)
)
@router.patch(
    "/api/v1/jobs/{job_id}",
    name="patch_job",
    summary="Set the status or progress of a job",
    **describe_route(JobResponse, body=JobStatusBody),
)
async def set_job_status(
    request: Request, job_id: JobId, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore
) -> Response:
    """For operators. `ERROR` and `CANCELED` end a job that has not ended. `PENDING` takes a running job from its worker
    and queues it for another attempt. `RUNNING` and `DONE` are rejected: only the worker that holds the job reports
    them. `progress` and `steps` set the progress of a running job."""
    job = await live.job(caller, job_id)
    body = await bodies.read(request, JobStatusBody, account=caller.account, is_open=True)
    await _report(queue, live, caller, job, body)
    return await get_job(job_id, caller, live)


@router.post(
    "/api/v1/jobs/{job_id}/errors",
    summary="Report the errors of a job",
    **describe_route(JobResponse, body=JobErrorsBody),
)
async def post_job_errors(
    request: Request, job_id: JobId, caller: Operator, bodies: ReadBodies, queue: Queue, live: LiveStore
) -> Response:
    """For operators. Report the errors of a job. The job shows them until it ends, and keeps them
    unless it ends as `DONE`. Report them before the final status, or together with it."""
    job = await live.job(caller, job_id)
    body = await bodies.read(request, JobErrorsBody, account=caller.account, is_open=True)
    await _report(queue, live, caller, job, JobStatusBody(errors=body.errors))
    return await get_job(job_id, caller, live)


async def _report(queue: Store, live: ReadModel, caller: Principal, job: JobRecord, body: JobStatusBody) -> None:
    """Apply a report about a job. Raises Conflict if the lifecycle forbids it."""
    steps = None if body.steps is None else body.steps.steps()
    if body.progress is None and steps in (None, Steps()) and body.errors is None and body.status in (None, job.status):
        return
    if job.status.terminal:
        raise terminal_error("job", job.id)
    fault = None if body.errors is None else Fault("reported", "\n".join(body.errors))
    if fault is None and body.status is JobStatus.ERROR and not job.faults:
        fault = Fault("reported", "an operator ended the job without giving a reason")
    async with expect_live(await live.batch(caller, job.batch_id)):
        await queue.commands.report(
            job.batch_id,
            job.index,
            status=body.status,
            percent=body.progress,
            steps=steps,
            fault=fault,
            project=job.project,
        )


async def _move(commands: Commands, caller: Principal, batch: BatchRecord, body: BatchStatusBody) -> None:
    """Apply a new status to a batch. Raises Conflict if the lifecycle forbids it."""
    match body.status:
        case BatchStatus.PAUSED:
            await commands.pause(batch.id, project=batch.project, by=describe_caller(caller))
        case BatchStatus.PENDING | BatchStatus.RUNNING:
            if batch.status is not BatchStatus.PAUSED:
                raise Conflict(
                    f"batch {batch.id} is {batch.status}; only a paused batch can be set to PENDING or RUNNING"
                )
            await commands.resume(batch.id, project=batch.project)
        case BatchStatus.CANCELED:
            await commands.cancel(batch.id, project=batch.project, by=describe_caller(caller))
        case BatchStatus.DONE:
            if not batch.open:
                raise Conflict(f"batch {batch.id} is closed; it becomes DONE when all of its jobs have ended")
            await commands.close(batch.id, project=batch.project)
        case BatchStatus.ERROR:
            fault = Fault("reported", body.reason or "an operator ended the batch without giving a reason")
            await commands.end(batch.id, body.status, fault=fault, project=batch.project)
        case BatchStatus.TIMED_OUT:
            await commands.end(batch.id, body.status, project=batch.project)
        case _:
            assert_never(body.status)
