"""Lists of batches and jobs by filter, page by page, and how many there are by status."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from tweezer.api.access.dependencies import Caller, LiveStore
from tweezer.api.batches.filters import BatchesAsked, BatchPageAsked, JobPageAsked, JobsAsked
from tweezer.api.batches.schemas import JobResponse, ListedBatchResponse
from tweezer.api.http.openapi import failure_docs, page_docs, success_docs
from tweezer.api.http.responses import page, success
from tweezer.model.lifecycle import BatchStatus, JobStatus

router = APIRouter(responses=failure_docs(422, 503))

_HEADERS = {
    "Content-Range": {
        "description": "`first-last/total`, from 0; `*/total` for an empty page.",
        "schema": {"type": "string", "examples": ["0-19/41"]},
    }
}
PAGE_DOCS: dict[int | str, dict[str, Any]] = {200: {"headers": _HEADERS, "description": "A page."}}


@router.get("/api/v1/batches", tags=["batches"], summary="Batches", responses=page_docs(ListedBatchResponse))
@router.get(
    "/api/v2/batches",
    name="list_batches_v2",
    tags=["batches"],
    summary="The same",
    responses=page_docs(ListedBatchResponse),
)
async def list_batches(asked: BatchPageAsked, caller: Caller, live: LiveStore) -> Response:
    """Batches of the caller's projects, without their sequences and jobs, as they are recorded: usually a fraction of
    a second behind. Without parameters: the newest hundred."""
    found = await live.list_batches(caller, asked.filter, asked.order_by, asked.paging)
    return page(
        [ListedBatchResponse.from_record(record) for record in found.rows], offset=asked.offset, total=found.total
    )


@router.get("/api/v2/jobs", tags=["jobs"], summary="Jobs", responses=page_docs(JobResponse))
@router.get("/api/v1/jobs", name="list_jobs_v1", tags=["jobs"], summary="The same", responses=page_docs(JobResponse))
async def list_jobs(asked: JobPageAsked, caller: Caller, live: LiveStore) -> Response:
    """Jobs of the caller's projects: those of one `batch_id` as they stand now, others as they are recorded, usually a
    fraction of a second behind. Without parameters: the newest hundred."""
    found = await live.list_jobs(caller, asked.filter, asked.order_by, asked.paging)
    return page([JobResponse.from_record(record) for record in found.rows], offset=asked.offset, total=found.total)


@router.get(
    "/api/v2/batches/counts",
    tags=["batches"],
    summary="How many batches there are by status",
    responses=success_docs(dict[BatchStatus, int]),
)
async def count_batches(asked: BatchesAsked, caller: Caller, live: LiveStore) -> Response:
    """All from one moment; every status is there."""
    return success(await live.batch_counts(caller, asked.filter))


@router.get(
    "/api/v2/jobs/counts",
    tags=["jobs"],
    summary="How many jobs there are by status",
    responses=success_docs(dict[JobStatus, int]),
)
async def count_jobs(asked: JobsAsked, caller: Caller, live: LiveStore) -> Response:
    """All from one moment; every status is there."""
    return success(await live.job_counts(caller, asked.filter))
