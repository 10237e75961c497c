"""Jobs: as they stand, their status held until they have ended, their transitions and their results."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from tweezer.api.access.dependencies import (
    Caller,
    HeldRequests,
    JobId,
    LiveStore,
    ResultsLinks,
    ResultsReader,
    WaitSeconds,
)
from tweezer.api.batches.results import KeptResults, result_response
from tweezer.api.batches.schemas import (
    JobResponse,
    JobResultResponse,
    JobStateResponse,
    ResultsLinkResponse,
    TransitionResponse,
)
from tweezer.api.http.longpoll import may_change_job
from tweezer.api.http.openapi import failure_docs, response_docs, success_docs
from tweezer.api.http.responses import success
from tweezer.model.errors import NotFound
from tweezer.model.ids import split_job_id

router = APIRouter(tags=["jobs"], responses=failure_docs(404, 422, 503))


@router.get("/api/v2/jobs/{job_id}", summary="A job", responses=success_docs(JobResponse))
async def get_job(job_id: JobId, caller: Caller, live: LiveStore) -> Response:
    """The job as it stands now, with the sequence if it has one of its own."""
    return success(JobResponse.from_record(await live.job(caller, job_id)))


@router.get(
    "/api/v2/jobs/{job_id}/transitions",
    summary="The transitions of a job",
    responses=success_docs(list[TransitionResponse]),
)
async def get_job_transitions(job_id: JobId, caller: Caller, live: LiveStore) -> Response:
    """What happened to the job, oldest first, as far as it is recorded: usually a fraction of a second behind."""
    return success([TransitionResponse.from_event(event) for event in await live.transitions(caller, job_id)])


@router.get(
    "/api/v1/jobs/{job_id}/status",
    summary="The status of a job, waiting for its end",
    responses=success_docs(JobStateResponse),
)
async def get_job_status(
    job_id: JobId, caller: Caller, live: LiveStore, holds: HeldRequests, wait_s: WaitSeconds, request: Request
) -> Response:
    """Held until the job has ended, at most 20 s; then the status as it stands.

    A job of a paused batch is `PENDING` until it begins, as any other.
    """
    batch_id, index = split_job_id(job_id)
    record = await holds.until(
        lambda job: job.status.terminal,
        lambda: live.job(caller, job_id),
        batch_id=batch_id,
        matters=lambda messages, _: may_change_job(messages, index),
        wait_s=wait_s,
        account=caller.account,
        receive=request.receive,
    )
    return success(JobStateResponse.from_record(record))


@router.get(
    "/api/v1/jobs/{job_id}/results_link",
    summary="Where the results of a job are",
    responses=success_docs(ResultsLinkResponse),
)
async def get_results_link(
    job_id: JobId, caller: Caller, live: LiveStore, links: ResultsLinks, request: Request
) -> Response:
    """An absolute URL, or null while the job has no result (and for ever, if it ends without one).

    The URL is good for an hour (unless set otherwise), for whoever has it. It begins with the server's public URL, or
    else with the host by which this request came.
    """
    record = await live.job(caller, job_id)
    if await live.packed_result(record) is None:
        return success(ResultsLinkResponse(results_link=None))
    return success(ResultsLinkResponse(results_link=await links.results(request, record.id)))


@router.get(
    "/api/v1/jobs/{job_id}/results",
    summary="The results of a job",
    response_class=Response,
    responses=response_docs(JobResultResponse, "The result, as it is.") | failure_docs(403),
)
async def get_results(
    job_id: JobId, reader: ResultsReader, live: LiveStore, results: KeptResults, request: Request
) -> Response:
    """What the job measured: a JSON object that is not in an envelope. A job without a result has none: 404. A job that
    was stopped while it ran has what its machine had measured before, if that says so.

    A large one comes gzipped, to whoever accepts that, and in parts.
    """
    record = await live.job(reader, job_id)
    packed = await live.packed_result(record)
    if packed is None:
        raise NotFound("result of job", f"{job_id}: it is {record.status.value}")
    return await result_response(packed, results, request.headers.get("Accept-Encoding", ""))
