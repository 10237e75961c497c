"""Batches and jobs: lists, the current state of one, its status held until its end, transitions and results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

from fastapi import APIRouter, Request, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from tweezer.api.access.dependencies import (
    READERS,
    BatchId,
    Caller,
    HeldRequests,
    JobId,
    LiveStore,
    ResultsLinks,
    ResultsReader,
    WaitSeconds,
    require_role,
)
from tweezer.api.batches.filters import BatchPageParams, BatchParams, JobPageParams, JobParams
from tweezer.api.batches.results import KeptResults, result_response
from tweezer.api.batches.schemas import (
    BatchResponse,
    BatchStateResponse,
    JobResponse,
    JobResultResponse,
    JobStateResponse,
    ListedBatchResponse,
    ResultsLinkResponse,
    TransitionResponse,
)
from tweezer.api.http.longpoll import may_change_job, may_end_batch
from tweezer.api.http.openapi import CollectionRoute, answers, failure_docs, pages, response_docs
from tweezer.api.http.responses import page, success
from tweezer.api.read_model import ReadModel
from tweezer.ledger.access.credentials import Principal
from tweezer.model.errors import NotFound
from tweezer.model.ids import split_job_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.store.records import BatchRecord

router = APIRouter(route_class=CollectionRoute, responses=failure_docs(422, 503))


@router.get("/api/v1/batches", summary="Batches", **pages(ListedBatchResponse))
@router.get("/api/v2/batches", name="list_batches_v2", summary="The same", **pages(ListedBatchResponse))
async def list_batches(query: BatchPageParams, caller: Caller, live: LiveStore) -> Response:
    """Batches of the caller's projects, without their sequences and jobs, as they are recorded: usually a fraction of
    a second behind. Without parameters: the newest hundred."""
    found = await live.list_batches(caller, query.filter, query.order_by, query.paging)
    return page(
        [ListedBatchResponse.from_record(record) for record in found.rows], offset=query.offset, total=found.total
    )


@router.get("/api/v2/jobs", summary="Jobs", **pages(JobResponse))
@router.get("/api/v1/jobs", name="list_jobs_v1", summary="The same", **pages(JobResponse))
async def list_jobs(query: JobPageParams, caller: Caller, live: LiveStore) -> Response:
    """Jobs of the caller's projects: those of one `batch_id` as they stand now, others as they are recorded, usually a
    fraction of a second behind. Without parameters: the newest hundred."""
    found = await live.list_jobs(caller, query.filter, query.order_by, query.paging)
    return page([JobResponse.from_record(record) for record in found.rows], offset=query.offset, total=found.total)


@router.get("/api/v2/batches/counts", summary="How many batches there are by status", **answers(dict[BatchStatus, int]))
async def count_batches(query: BatchParams, caller: Caller, live: LiveStore) -> Response:
    """All from one moment; every status is there."""
    return success(await live.batch_counts(caller, query.filter))


@router.get("/api/v2/jobs/counts", summary="How many jobs there are by status", **answers(dict[JobStatus, int]))
async def count_jobs(query: JobParams, caller: Caller, live: LiveStore) -> Response:
    """All from one moment; every status is there."""
    return success(await live.job_counts(caller, query.filter))


EMBEDDED_JOBS_MAX = 100
"""A batch of more jobs is shown without them: clients take an empty list as "ask for the jobs"."""


@router.get("/api/v2/batches/{batch_id}", summary="A batch, its sequence and its jobs", **answers(BatchResponse, 404))
async def get_batch(batch_id: BatchId, caller: Caller, live: LiveStore) -> Response:
    """The batch as it stands now. Its jobs are with it when there are at most 100."""
    record, jobs = await live.batch_with_jobs(caller, batch_id, jobs_max=EMBEDDED_JOBS_MAX)
    return success(BatchResponse.from_records(record, jobs))


@router.get(
    "/api/v1/batches/{batch_id}/status",
    summary="The status of a batch, waiting for its end",
    **answers(BatchStateResponse, 404),
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


@router.get("/api/v2/jobs/{job_id}", summary="A job", **answers(JobResponse, 404))
async def get_job(job_id: JobId, caller: Caller, live: LiveStore) -> Response:
    """The job as it stands now, with the sequence if it has one of its own."""
    return success(JobResponse.from_record(await live.job(caller, job_id)))


@router.get(
    "/api/v2/jobs/{job_id}/transitions", summary="The transitions of a job", **answers(list[TransitionResponse], 404)
)
async def get_job_transitions(job_id: JobId, caller: Caller, live: LiveStore) -> Response:
    """What happened to the job, oldest first, as far as it is recorded: usually a fraction of a second behind."""
    return success([TransitionResponse.from_record(event) for event in await live.transitions(caller, job_id)])


@router.get(
    "/api/v1/jobs/{job_id}/status", summary="The status of a job, waiting for its end", **answers(JobStateResponse, 404)
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
    "/api/v1/jobs/{job_id}/results_link", summary="Where the results of a job are", **answers(ResultsLinkResponse, 404)
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
    responses=response_docs(JobResultResponse, "The result, as it is.") | failure_docs(403, 404),
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


Getter = Callable[[UUID, Principal, ReadModel], Awaitable[Response]]


class FastRoute(Route):
    """GET of a batch or job by its id, without FastAPI's search for a route and its parameters.

    That search costs several times what the answer costs. The function is that of FastAPI's route, which describes it
    in the OpenAPI document and answers what is less usual: an id in another form, another method.
    """

    def __init__(self, path: str, get: Getter) -> None:
        super().__init__(path.replace("}", ":uuid}"), self._answer, include_in_schema=False)
        self.path = path  # by which metrics know it
        self._get = get

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or scope["method"] != "GET":
            return Match.NONE, {}
        match, child_scope = super().matches(scope)
        return match, {**child_scope, "route": self}

    async def _answer(self, request: Request) -> Response:
        caller = require_role(request, READERS)
        (identity,) = request.path_params.values()
        return await self._get(identity, caller, request.app.state.live)


def fast_routes() -> list[FastRoute]:
    """Return the routes that must come before all others."""
    return [FastRoute("/api/v2/jobs/{job_id}", get_job), FastRoute("/api/v2/batches/{batch_id}", get_batch)]
