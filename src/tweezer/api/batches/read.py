"""Batches: as they stand, and their status held until nothing of them is pending or running."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from tweezer.api.access.dependencies import BatchId, Caller, HeldRequests, LiveStore, WaitSeconds
from tweezer.api.batches.schemas import BatchResponse, BatchStateResponse
from tweezer.api.http.longpoll import may_end_batch
from tweezer.api.http.openapi import failure_docs, success_docs
from tweezer.api.http.responses import success
from tweezer.model.lifecycle import JobStatus
from tweezer.store.records import BatchRecord

EMBEDDED_JOBS_MAX = 100
"""A batch of more jobs is shown without them: clients take an empty list as "ask for the jobs"."""

router = APIRouter(tags=["batches"], responses=failure_docs(404, 422, 503))


@router.get(
    "/api/v2/batches/{batch_id}", summary="A batch, its sequence and its jobs", responses=success_docs(BatchResponse)
)
async def get_batch(batch_id: BatchId, caller: Caller, live: LiveStore) -> Response:
    """The batch as it stands now. Its jobs are with it when there are at most 100."""
    record, jobs = await live.batch_with_jobs(caller, batch_id, jobs_max=EMBEDDED_JOBS_MAX)
    return success(BatchResponse.from_records(record, jobs))


@router.get(
    "/api/v1/batches/{batch_id}/status",
    summary="The status of a batch, waiting for its end",
    responses=success_docs(BatchStateResponse),
)
async def get_batch_status(
    batch_id: BatchId, caller: Caller, live: LiveStore, holds: HeldRequests, wait_s: WaitSeconds, request: Request
) -> Response:
    """Held until no job of the batch is pending or running, at most 20 s; then the status as it stands.

    An open batch without work is answered at once. The status is never `PAUSED`: see `paused`.
    """
    record = await holds.until(
        _is_idle,
        lambda: live.batch(caller, batch_id),
        batch_id=batch_id,
        matters=may_end_batch,
        wait_s=wait_s,
        account=caller.account,
        receive=request.receive,
    )
    return success(BatchStateResponse.from_record(record))


def _is_idle(record: BatchRecord) -> bool:
    return record.counts[JobStatus.PENDING] + record.counts[JobStatus.RUNNING] == 0
