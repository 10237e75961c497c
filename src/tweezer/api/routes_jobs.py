"""Jobs: as they stand, their status held until they have ended, and their results."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response

from tweezer.api.dependencies import HeldRequests, JobId, LiveStore, WaitSeconds
from tweezer.api.edge import check_origin
from tweezer.api.envelope import Envelope, failure_docs
from tweezer.api.longpoll import may_change_job
from tweezer.api.schemas import Job, JobResult, JobState, ResultsLink
from tweezer.model.errors import NotFound
from tweezer.model.ids import split_job_id

router = APIRouter(tags=["jobs"], responses=failure_docs(404, 422, 503))


@router.get("/api/v2/jobs/{job_id}", summary="A job")
async def get_job(job_id: JobId, live: LiveStore) -> Envelope[Job]:
    """The job as it stands now, with the sequence if it has one of its own."""
    return Envelope(data=Job.of(await live.job(job_id)))


@router.get("/api/v1/jobs/{job_id}/status", summary="The status of a job, waiting for its end")
async def get_job_status(
    job_id: JobId, live: LiveStore, holds: HeldRequests, wait_s: WaitSeconds, request: Request
) -> Envelope[JobState]:
    """Held until the job has ended, at most 20 s; then the status as it stands.

    A job of a paused batch is `PENDING` until it begins, as any other.
    """
    batch_id, index = split_job_id(job_id)
    record = await holds.until(
        lambda job: job.status.terminal,
        lambda: live.job(job_id),
        batch_id=batch_id,
        matters=lambda messages, _: may_change_job(messages, batch_id, index),
        wait_s=wait_s,
        receive=request.receive,
    )
    return Envelope(data=JobState.of(record))


@router.get("/api/v1/jobs/{job_id}/results_link", summary="Where the results of a job are")
async def get_results_link(job_id: JobId, live: LiveStore, request: Request) -> Envelope[ResultsLink]:
    """An absolute URL, or null while the job has no result (and for ever, if it ends without one).

    The URL has the host and port by which this request came, which the server has checked to be this
    machine's. It is neither signed nor does it expire: there are no credentials yet that it could spare.
    """
    record = await live.job(job_id)
    if await live.result(record) is None:
        return Envelope(data=ResultsLink(results_link=None))
    path = request.app.url_path_for("get_results", job_id=str(record.id))
    return Envelope(data=ResultsLink(results_link=f"{check_origin(request.scope)}{path}"))


@router.get(
    "/api/v1/jobs/{job_id}/results",
    summary="The results of a job",
    response_class=Response,
    responses={200: {"model": JobResult, "description": "The result, as it is."}},
)
async def get_results(job_id: JobId, live: LiveStore) -> Response:
    """What the job measured: a JSON object that is not in an envelope. A job without a result has none: 404."""
    record = await live.job(job_id)
    result = await live.result(record)
    if result is None:
        raise NotFound("result of job", f"{job_id}: it is {record.status.value}")
    body = {"counter": None} | msgspec.to_builtins(result)
    return Response(msgspec.json.encode(body), media_type="application/json")
