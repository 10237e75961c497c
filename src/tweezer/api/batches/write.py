"""What changes the queue: submitting batches, adding jobs, closing, cancelling and tagging."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from msgspec import Meta

from tweezer.api.access.dependencies import BatchId, JobId, Ledger, LiveStore, Submitter
from tweezer.api.access.replay_guard import get_call_key
from tweezer.api.batches.bodies import (
    BatchBody,
    Jobs,
    check_jobs_sent,
    in_words_of_the_body,
    plain_jobs,
    project_of,
    sends_placeholders,
    submission_of,
)
from tweezer.api.batches.commands import IdempotencyKey, Queue, ReadBodies, answer_batch, asker, ended, unless_forgotten
from tweezer.api.batches.schemas import BatchResponse, JobResponse
from tweezer.api.http.openapi import body_docs, failure_docs, success_docs
from tweezer.api.http.responses import success
from tweezer.api.webhooks.service import Hooks, check_webhook
from tweezer.ledger.recorder.writing import record_tags
from tweezer.model.checks import MAX_TAG_LENGTH, MAX_TAGS, check_tags
from tweezer.model.errors import InvalidInput, NotFound, Unavailable
from tweezer.model.ids import split_job_id
from tweezer.store.producers import CancelAnswer

router = APIRouter(responses=failure_docs(403, 409, 422, 503))

_BODY_FAILURES = failure_docs(400, 408, 413, 415)
_NAMES_A_THING = failure_docs(404)

Tags = Annotated[
    list[str],
    Meta(
        description=f"At most {MAX_TAGS} of up to {MAX_TAG_LENGTH} characters, none twice.",
        examples=[["sweep"]],
        extra_json_schema={"maxItems": MAX_TAGS},
    ),
]


@router.post(
    "/api/v1/batches",
    tags=["batches"],
    summary="Submit a batch",
    responses=success_docs(BatchResponse) | _BODY_FAILURES,
    openapi_extra=body_docs(BatchBody),
)
async def create_batch(
    request: Request,
    caller: Submitter,
    bodies: ReadBodies,
    queue: Queue,
    live: LiveStore,
    webhooks: Hooks,
    idempotency_key: IdempotencyKey = "",
) -> Response:
    """Checks all that can be checked without Pulser, then writes all or nothing.

    The batch belongs to the project of the credentials. Fields that are not listed here are passed over.
    """
    body = await bodies.read(request, BatchBody, account=caller.account)
    project = project_of(caller, body.project_id)
    check_webhook(body.webhook, webhooks.policy)
    idempotency_key = idempotency_key or await get_call_key(request, caller, project)
    try:
        agent = request.headers.get("User-Agent", "")
        submission = submission_of(body, user=caller.user, idempotency_key=idempotency_key, user_agent=agent)
        batch_id = await queue.admission.submit(submission, project=project)
    except InvalidInput as error:
        raise in_words_of_the_body(error) from error
    return await answer_batch(live, caller, batch_id)


@router.post(
    "/api/v2/batches/{batch_id}/jobs",
    tags=["batches"],
    summary="Add jobs to an open batch",
    responses=success_docs(BatchResponse) | _BODY_FAILURES | _NAMES_A_THING,
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
    jobs = await bodies.read(request, Jobs, account=caller.account, root="jobs")
    check_jobs_sent(jobs)
    idempotency_key = idempotency_key or await get_call_key(request, caller, batch.project)
    agent = request.headers.get("User-Agent", "")
    sent = plain_jobs(jobs, placeholders=sends_placeholders(agent, batch.doc.backend_configuration))
    async with unless_forgotten(batch):
        await queue.admission.add_jobs(batch_id, sent, project=batch.project, idempotency_key=idempotency_key)
    return await answer_batch(live, caller, batch_id)


@router.patch(
    "/api/v2/batches/{batch_id}/complete",
    tags=["batches"],
    summary="Close a batch",
    responses=success_docs(BatchResponse) | _NAMES_A_THING,
)
async def close_batch(batch_id: BatchId, caller: Submitter, queue: Queue, live: LiveStore) -> Response:
    """No more jobs will come: the batch ends with those it has. Nothing changes if that is so already."""
    batch = await live.batch(caller, batch_id)
    if not batch.status.terminal:
        async with unless_forgotten(batch):
            await queue.commands.close(batch_id, project=batch.project)
    return await answer_batch(live, caller, batch_id)


@router.patch(
    "/api/v2/batches/{batch_id}/cancel",
    tags=["batches"],
    summary="Cancel a batch",
    responses=success_docs(BatchResponse) | _NAMES_A_THING,
)
async def cancel_batch(batch_id: BatchId, caller: Submitter, queue: Queue, live: LiveStore) -> Response:
    """Cancels its pending jobs, and asks those that run to stop; it ends when they have."""
    batch = await live.batch(caller, batch_id)
    async with unless_forgotten(batch):
        await queue.commands.cancel(batch_id, project=batch.project, by=asker(caller))
    return await answer_batch(live, caller, batch_id)


@router.patch(
    "/api/v1/batches/{batch_id}/tags",
    tags=["batches"],
    summary="Replace the tags of a batch",
    responses=success_docs(BatchResponse) | _BODY_FAILURES | _NAMES_A_THING,
    openapi_extra=body_docs(Tags),
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
    """The body is the list of all that it is to have, live or ended. Lists find it by them once they are recorded."""
    batch = await live.batch(caller, batch_id)
    tags = await bodies.read(request, list[str], account=caller.account, root="tags")
    check_tags(tags)
    in_ledger = batch.status.terminal and await ledger.run(record_tags, ledger, batch_id, tags)
    try:
        await queue.commands.set_tags(batch_id, tags, project=batch.project)
    except NotFound:
        if not in_ledger:
            raise Unavailable(f"batch {batch_id} is being restored; try again") from None
    return await answer_batch(live, caller, batch_id)


@router.patch(
    "/api/v2/jobs/{job_id}/cancel",
    tags=["jobs"],
    summary="Cancel a job",
    responses=success_docs(JobResponse) | _NAMES_A_THING,
)
async def cancel_job(job_id: JobId, caller: Submitter, queue: Queue, live: LiveStore) -> Response:
    """Cancels a pending job; asks one that runs to stop, which its status shows when it has."""
    job = await live.job(caller, job_id)
    batch_id, index = split_job_id(job_id)
    if not job.status.terminal:
        async with unless_forgotten(await live.batch(caller, batch_id)):
            asked = queue.commands.cancel_jobs(batch_id, [index], project=job.project, by=asker(caller))
            (answer,) = await asked
        if answer in (CancelAnswer.CANCELED, CancelAnswer.REQUESTED):
            return success(JobResponse.from_record(await live.job(caller, job_id)))
    raise ended("job", job_id)
