"""Lists of batches and jobs by filter, page by page, and how many there are by status."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from tweezer.api.access.dependencies import Caller, LiveStore
from tweezer.api.batches.filters import BatchesAsked, BatchPageAsked, JobPageAsked, JobsAsked
from tweezer.api.batches.schemas import Job, ListedBatch, Page
from tweezer.api.http.envelope import Envelope, failure_docs
from tweezer.api.http.responses import page
from tweezer.model.lifecycle import BatchStatus, JobStatus

router = APIRouter(responses=failure_docs(422, 503))

_HEADERS = {
    "Content-Range": {
        "description": "`first-last/total`, from 0; `*/total` for an empty page.",
        "schema": {"type": "string", "examples": ["0-19/41"]},
    }
}
PAGE_DOCS: dict[int | str, dict[str, Any]] = {200: {"headers": _HEADERS, "description": "A page."}}


@router.get(
    "/api/v1/batches", tags=["batches"], summary="Batches", response_model=Page[ListedBatch], responses=PAGE_DOCS
)
@router.get(
    "/api/v2/batches",
    name="list_batches_v2",
    tags=["batches"],
    summary="The same",
    response_model=Page[ListedBatch],
    responses=PAGE_DOCS,
)
async def list_batches(asked: BatchPageAsked, caller: Caller, live: LiveStore) -> Response:
    """Batches of the caller's projects, without their sequences and jobs, as they are recorded: usually a fraction of
    a second behind. Without parameters: the newest hundred."""
    found = await live.list_batches(caller, asked.filter, asked.order_by, asked.window)
    return page([ListedBatch.fields_of(record) for record in found.rows], offset=asked.offset, total=found.total)


@router.get("/api/v2/jobs", tags=["jobs"], summary="Jobs", response_model=Page[Job], responses=PAGE_DOCS)
@router.get(
    "/api/v1/jobs",
    name="list_jobs_v1",
    tags=["jobs"],
    summary="The same",
    response_model=Page[Job],
    responses=PAGE_DOCS,
)
async def list_jobs(asked: JobPageAsked, caller: Caller, live: LiveStore) -> Response:
    """Jobs of the caller's projects: those of one `batch_id` as they stand now, others as they are recorded, usually a
    fraction of a second behind. Without parameters: the newest hundred."""
    found = await live.list_jobs(caller, asked.filter, asked.order_by, asked.window)
    return page([Job.fields_of(record) for record in found.rows], offset=asked.offset, total=found.total)


@router.get("/api/v2/batches/counts", tags=["batches"], summary="How many batches there are by status")
async def count_batches(asked: BatchesAsked, caller: Caller, live: LiveStore) -> Envelope[dict[BatchStatus, int]]:
    """All from one moment; every status is there."""
    return Envelope(data=await live.batch_counts(caller, asked.filter))


@router.get("/api/v2/jobs/counts", tags=["jobs"], summary="How many jobs there are by status")
async def count_jobs(asked: JobsAsked, caller: Caller, live: LiveStore) -> Envelope[dict[JobStatus, int]]:
    """All from one moment; every status is there."""
    return Envelope(data=await live.job_counts(caller, asked.filter))
