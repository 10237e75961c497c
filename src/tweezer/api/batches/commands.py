"""Commands on one batch or job (submit, add jobs, close, cancel, tag), and what all commands share."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response
from msgspec import Meta

from tweezer import tracing
from tweezer.api.access.dependencies import BatchId, JobId, Ledger, LiveStore, Queue, ReadBodies, Submitter
from tweezer.api.access.replay_guard import begin_call
from tweezer.api.batches.bodies import (
    BatchBody,
    Jobs,
    build_submission,
    check_jobs_sent,
    choose_project,
    convert_jobs,
    renaming_fields,
    sends_placeholders,
)
from tweezer.api.batches.filters import NO_CONTROLS
from tweezer.api.batches.reads import EMBEDDED_JOBS_MAX, get_batch, get_job
from tweezer.api.batches.schemas import BatchResponse, CheckedBatchResponse, ExtendedBatchResponse, JobResponse
from tweezer.api.http.openapi import CollectionRoute, describe_failures, describe_route
from tweezer.api.http.responses import doc, success
from tweezer.api.read_model import ReadModel
from tweezer.api.webhooks.service import Hooks, check_webhook
from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.recorder.writing import replace_tags
from tweezer.model.cancels import BY_LENGTH_MAX
from tweezer.model.checks import MAX_KEY_LENGTH, MAX_REASON_LENGTH, MAX_TAG_LENGTH, MAX_TAGS, check_tags
from tweezer.model.errors import Conflict, NotFound, Unavailable
from tweezer.model.ids import split_job_id
from tweezer.model.messages import MAX_JOBS_PER_BATCH
from tweezer.store.connection import Store
from tweezer.store.guards import CallAttempt
from tweezer.store.producers import CancelAnswer, Submission, check_priority
from tweezer.store.records import BatchRecord, NewBatch

IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        max_length=MAX_KEY_LENGTH,
        pattern=NO_CONTROLS,
        description="Makes the request safe to repeat: within a day, requests of a project with the same value here "
        "and the same content take effect only once. The same value with other content is rejected (409).",
    ),
]


By = Annotated[
    str,
    Query(
        max_length=BY_LENGTH_MAX,
        pattern=NO_CONTROLS,
        description="Name of the person or program that makes the request, to record beside the key.",
        examples=["alice@lab"],
    ),
]

Reason = Annotated[
    str,
    Query(
        max_length=MAX_REASON_LENGTH,
        pattern=NO_CONTROLS,
        description="Why, for people.",
        examples=["wait for the calibration"],
    ),
]


DryRun = Annotated[
    bool,
    Query(description="`true`: check the request as usual, and return what it would do, but write nothing."),
]


def describe_caller(caller: Principal, by: str = "") -> str:
    """Return the text that is recorded with a request: the given name, the user if there is one, and the key's id."""
    known = ", ".join(filter(None, (caller.user, f"key {caller.key}")))
    if by.strip():
        return f"{by[: BY_LENGTH_MAX - len(known) - 3]} ({known})"
    return f"key {caller.key}" if caller.user is None else f"{caller.user} (key {caller.key})"


def terminal_error(kind: str, identity: UUID) -> Conflict:
    """Return the error for a batch or job that has ended, and so cannot be changed."""
    return Conflict(f"{kind} {identity} has ended", code="terminal")


@contextlib.asynccontextmanager
async def expect_live(batch: BatchRecord) -> AsyncIterator[None]:
    """Raise the right error if Redis does not have a batch that the caller can see: usually it has ended."""
    try:
        yield
    except NotFound:
        if not batch.status.terminal:  # lost with the last second of Redis, and not restored yet
            raise Unavailable(f"batch {batch.id} is being restored; try again") from None
        raise terminal_error("batch", batch.id) from None


async def write_traced(
    request: Request, queue: Store, submission: Submission, *, project: str, attempt: CallAttempt | None
) -> NewBatch | UUID:
    """Write a batch as ``Admission.write``, in the trace of the request, which the batch continues."""
    given = tracing.check_traceparent(request.headers.get("traceparent"))
    with tracing.continued("tweezer.submit", given, **{"tweezer.project": project}):
        if (trace := tracing.current() or given) is not None:
            submission = msgspec.structs.replace(submission, trace=trace)
        find_ends = request.app.state.live.find_ends
        return await queue.admission.write(submission, project=project, attempt=attempt, find_ends=find_ends)


async def check_submission(request: Request, queue: Store, submission: Submission, *, project: str) -> Response:
    """Return the response to a dry run of a submit."""
    find_ends = request.app.state.live.find_ends
    checked = await queue.admission.check(submission, project=project, find_ends=find_ends)
    return success(CheckedBatchResponse.from_record(checked))


async def batch_response(written: NewBatch | UUID, caller: Principal, live: ReadModel) -> Response:
    """Return the response to a submit: the batch as it was written, or its current state if it existed already."""
    if isinstance(written, UUID):
        return await get_batch(written, caller, live)
    jobs = written.jobs() if written.batch.jobs <= EMBEDDED_JOBS_MAX else []
    return success(BatchResponse.from_records(written.batch, jobs, await live.device_of_new(written.batch)))


router = APIRouter(route_class=CollectionRoute, responses=describe_failures(403, 409, 422, 503))


Tags = Annotated[
    list[str],
    Meta(
        description=f"At most {MAX_TAGS} distinct tags of up to {MAX_TAG_LENGTH} characters each.",
        examples=[["sweep"]],
        extra_json_schema={"maxItems": MAX_TAGS},
    ),
]


_JOBS_EXAMPLE = [{"runs": 100, "variables": {"omega": 4.0}}, {"runs": 100, "variables": {"omega": 6.0}}]
_BATCH_EXAMPLE = {
    "sequence_builder": "the text that Sequence.to_abstract_repr() returns",
    "device_type": "EMU_FREE",
    "jobs": _JOBS_EXAMPLE,
    "name": "antiferromagnet",
    "tags": ["sweep"],
}


@router.post(
    "/api/v1/batches",
    summary="Submit a batch",
    **describe_route(BatchResponse, body=BatchBody, example=_BATCH_EXAMPLE, dry_run=CheckedBatchResponse),
)
async def create_batch(
    request: Request,
    caller: Submitter,
    bodies: ReadBodies,
    queue: Queue,
    live: LiveStore,
    webhooks: Hooks,
    idempotency_key: IdempotencyKey = "",
    dry_run: DryRun = False,
) -> Response:
    """Submit a batch of jobs; the batch is written completely or not at all.

    The batch is checked before it is written. Only what needs Pulser, such as whether the device can play a pulse, is
    checked later by a worker: the batch then ends with the status `ERROR`. Unknown fields of the body are rejected,
    except from Pasqal's clients.
    """
    body = await bodies.read(request, BatchBody, account=caller.account)
    project = choose_project(caller, body.project_id)
    check_webhook(body.webhook, webhooks.policy)
    agent = request.headers.get("User-Agent", "")
    with renaming_fields():
        submission = build_submission(body, user=caller.user, idempotency_key=idempotency_key, user_agent=agent)
        if dry_run:
            return await check_submission(request, queue, submission, project=project)
        async with begin_call(request, caller, idempotency_key) as attempt:
            written = await write_traced(request, queue, submission, project=project, attempt=attempt)
    return await batch_response(written, caller, live)


@router.post(
    "/api/v2/batches/{batch_id}/jobs",
    summary="Add jobs to an open batch",
    **describe_route(ExtendedBatchResponse, 404, body=Jobs, example=_JOBS_EXAMPLE),
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
    """Add all of the jobs, or none if one of them is not valid. The body is a JSON array of jobs; errors refer to its
    entries as `jobs[0]`, `jobs[1]`, …"""
    batch = await live.batch(caller, batch_id)
    jobs = await bodies.read(request, Jobs, account=caller.account, root="jobs")
    check_jobs_sent(jobs)
    agent = request.headers.get("User-Agent", "")
    sent = convert_jobs(jobs, placeholders=sends_placeholders(agent, batch.doc.backend_configuration))
    async with expect_live(batch), begin_call(request, caller, idempotency_key) as attempt:
        first = await queue.admission.add_jobs(
            batch_id, sent, project=batch.project, idempotency_key=idempotency_key, attempt=attempt
        )
    record, embedded = await live.batch_with_jobs(caller, batch_id, jobs_max=EMBEDDED_JOBS_MAX)
    devices = await live.devices_of_waiting([record])
    device = devices.get(record.device)
    return success(ExtendedBatchResponse.from_records(record, embedded, device, first_added=first))


@router.patch("/api/v2/batches/{batch_id}/complete", summary="Close a batch", **describe_route(BatchResponse, 404))
async def close_batch(batch_id: BatchId, caller: Submitter, queue: Queue, live: LiveStore) -> Response:
    """Close an open batch: no more jobs can be added, and the batch ends when all of its jobs have ended. Closing a
    closed batch changes nothing."""
    batch = await live.batch(caller, batch_id)
    if not batch.status.terminal:
        async with expect_live(batch):
            await queue.commands.close(batch_id, project=batch.project)
    return await get_batch(batch_id, caller, live)


@router.patch("/api/v2/batches/{batch_id}/cancel", summary="Cancel a batch", **describe_route(BatchResponse, 400, 404))
async def cancel_batch(
    batch_id: BatchId,
    caller: Submitter,
    queue: Queue,
    live: LiveStore,
    by: By = "",
    idempotency_key: IdempotencyKey = "",
) -> Response:
    """Cancel the pending jobs of the batch, and ask its running jobs to stop. The batch ends when they have
    stopped."""
    batch = await live.batch(caller, batch_id)
    async with expect_live(batch):
        await queue.commands.cancel(
            batch_id, project=batch.project, by=describe_caller(caller, by), idempotency_key=idempotency_key
        )
    return await get_batch(batch_id, caller, live)


class IndicesBody(msgspec.Struct, frozen=True):
    """Jobs of a batch to cancel."""

    indices: Annotated[
        list[Annotated[int, Meta(ge=0, lt=MAX_JOBS_PER_BATCH)]],
        Meta(
            min_length=1,
            max_length=MAX_JOBS_PER_BATCH,
            description="Indices of the jobs in the batch, from 0.",
            examples=[[0, 3]],
        ),
    ]


@router.post(
    "/api/v2/batches/{batch_id}/cancel/jobs",
    name="cancel_jobs_by_index",
    summary="Cancel jobs of a batch by index",
    **describe_route(list[CancelAnswer], 404, body=IndicesBody),
)
async def cancel_jobs_by_index(
    request: Request,
    batch_id: BatchId,
    caller: Submitter,
    bodies: ReadBodies,
    queue: Queue,
    live: LiveStore,
    by: By = "",
    idempotency_key: IdempotencyKey = "",
) -> Response:
    """Cancel jobs, and return one answer for each index, in the same order: `canceled`, `requested` (the running job
    was asked to stop), `over` (it had ended) or `unknown` (the batch has no such job)."""
    batch = await live.batch(caller, batch_id)
    body = await bodies.read(request, IndicesBody, account=caller.account)
    async with expect_live(batch):
        answers = await queue.commands.cancel_jobs(
            batch_id,
            body.indices,
            project=batch.project,
            by=describe_caller(caller, by),
            idempotency_key=idempotency_key,
        )
    return success(answers)


@router.patch("/api/v2/batches/{batch_id}/pause", summary="Pause a batch", **describe_route(BatchResponse, 400, 404))
async def pause_batch(
    batch_id: BatchId, caller: Submitter, queue: Queue, live: LiveStore, by: By = "", reason: Reason = ""
) -> Response:
    """Pause the batch: its running jobs finish, and no further ones start. Pausing a paused batch changes nothing,
    except that a reason replaces its reason."""
    batch = await live.batch(caller, batch_id)
    async with expect_live(batch):
        await queue.commands.pause(batch_id, project=batch.project, by=describe_caller(caller, by), reason=reason)
    return await get_batch(batch_id, caller, live)


@router.patch("/api/v2/batches/{batch_id}/resume", summary="Resume a batch", **describe_route(BatchResponse, 404))
async def resume_batch(batch_id: BatchId, caller: Submitter, queue: Queue, live: LiveStore) -> Response:
    """Resume a paused batch. Resuming a batch that is not paused changes nothing."""
    batch = await live.batch(caller, batch_id)
    async with expect_live(batch):
        await queue.commands.resume(batch_id, project=batch.project)
    return await get_batch(batch_id, caller, live)


class PriorityBody(msgspec.Struct, frozen=True):
    """A new priority of a batch."""

    queue_priority: Annotated[str, doc("`HIGH`, `MEDIUM` or `LOW`.", "HIGH")]


@router.patch(
    "/api/v2/batches/{batch_id}/priority",
    summary="Change the priority of a batch",
    **describe_route(BatchResponse, 404, body=PriorityBody),
)
async def set_priority(
    request: Request, batch_id: BatchId, caller: Submitter, bodies: ReadBodies, queue: Queue, live: LiveStore
) -> Response:
    """Change the priority of a batch that has not ended. Its pending jobs move in the queue at once; running jobs are
    not affected. Lists filter by the new priority once it is recorded in the ledger, usually within a fraction of a
    second."""
    batch = await live.batch(caller, batch_id)
    body = await bodies.read(request, PriorityBody, account=caller.account)
    with renaming_fields():
        priority = check_priority(body.queue_priority)
    async with expect_live(batch):
        await queue.commands.set_priority(batch_id, priority, project=batch.project)
    return await get_batch(batch_id, caller, live)


@router.patch(
    "/api/v1/batches/{batch_id}/tags",
    summary="Replace the tags of a batch",
    **describe_route(BatchResponse, 404, body=Tags),
)
async def set_tags(
    request: Request,
    batch_id: BatchId,
    caller: Submitter,
    bodies: ReadBodies,
    queue: Queue,
    live: LiveStore,
    ledger: Ledger,
) -> Response:
    """Replace the tags of a batch, even if it has ended. The body is a JSON array of all its new tags.

    Lists find the batch by its new tags once they are recorded in the ledger, usually within a fraction of a second.
    """
    batch = await live.batch(caller, batch_id)
    tags = await bodies.read(request, list[str], account=caller.account, root="tags")
    check_tags(tags)
    in_ledger = batch.status.terminal and await ledger.run_write(replace_tags, batch_id, tags)
    try:
        await queue.commands.set_tags(batch_id, tags, project=batch.project)
    except NotFound:
        if not in_ledger:
            raise Unavailable(f"batch {batch_id} is being restored; try again") from None
    return await get_batch(batch_id, caller, live)


@router.patch("/api/v2/jobs/{job_id}/cancel", summary="Cancel a job", **describe_route(JobResponse, 404))
async def cancel_job(job_id: JobId, caller: Submitter, queue: Queue, live: LiveStore) -> Response:
    """Cancel a pending job. A running job is asked to stop, and its status changes when it has stopped."""
    job = await live.job(caller, job_id)
    batch_id, index = split_job_id(job_id)
    if not job.status.terminal:
        async with expect_live(await live.batch(caller, batch_id)):
            asked = queue.commands.cancel_jobs(batch_id, [index], project=job.project, by=describe_caller(caller))
            (answer,) = await asked
        if answer in (CancelAnswer.CANCELED, CancelAnswer.REQUESTED):
            return await get_job(job_id, caller, live)
    raise terminal_error("job", job_id)
