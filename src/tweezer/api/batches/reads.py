"""Reads of batches and jobs: lists, current states, held status requests, transitions, results and logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse

from tweezer.api.access.dependencies import (
    BatchId,
    Caller,
    HeldRequests,
    JobId,
    LiveStore,
    Queue,
    ResultsLinks,
    ResultsReader,
    WaitSeconds,
)
from tweezer.api.batches.filters import BatchPageParams, BatchParams, FindText, JobPageParams, JobParams, ProjectIds
from tweezer.api.batches.results import KeptResults, result_response, stream_lines
from tweezer.api.batches.schemas import (
    BatchResponse,
    BatchStateResponse,
    FoundBatchResponse,
    JobAttemptResponse,
    JobLineResponse,
    JobResponse,
    JobResultResponse,
    JobStateResponse,
    ListedBatchResponse,
    LogsLinkResponse,
    LogsResponse,
    ResultsLinkResponse,
    TransitionResponse,
)
from tweezer.api.http.longpoll import may_change_job, may_end_batch
from tweezer.api.http.openapi import (
    LINES,
    CollectionRoute,
    describe_failures,
    describe_list,
    describe_response,
    describe_route,
    describe_stream,
)
from tweezer.api.http.responses import page, success
from tweezer.api.read_model import ReadModel
from tweezer.ledger.access.links import Linked
from tweezer.ledger.queries.filters import LIMIT_MAX
from tweezer.model.cancels import read_ranges
from tweezer.model.checks import MAX_INTEGER
from tweezer.model.errors import NotFound
from tweezer.model.ids import split_job_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import MAX_JOBS_PER_BATCH
from tweezer.store.records import BatchRecord

router = APIRouter(route_class=CollectionRoute, responses=describe_failures(422, 503))


@router.get("/api/v1/batches", summary="List batches", **describe_list(ListedBatchResponse))
@router.get(
    "/api/v2/batches", name="list_batches_v2", summary="List batches (alias)", **describe_list(ListedBatchResponse)
)
async def list_batches(query: BatchPageParams, caller: Caller, live: LiveStore) -> Response:
    """Return a page of the batches of the caller's projects, without their sequences and jobs. By default the page has
    the 100 newest batches. The list is read from the ledger, which is usually a fraction of a second behind."""
    found = await live.list_batches(caller, query.filter, query.order_by, query.paging)
    return page(await _as_rows(live, found.rows), offset=query.offset, total=found.total)


async def _as_rows(live: ReadModel, found: Sequence[BatchRecord]) -> list[ListedBatchResponse]:
    devices = await live.devices_of_waiting(found)
    return [ListedBatchResponse.from_record(record, devices.get(record.device)) for record in found]


@router.get("/api/v2/jobs", summary="List jobs", **describe_list(JobResponse))
@router.get("/api/v1/jobs", name="list_jobs_v1", summary="List jobs (alias)", **describe_list(JobResponse))
async def list_jobs(query: JobPageParams, caller: Caller, live: LiveStore) -> Response:
    """Return a page of the jobs of the caller's projects. By default the page has the 100 newest jobs. With a single
    `batch_id` the jobs are current. Otherwise the list is read from the ledger, which is usually a fraction of a second
    behind."""
    found = await live.list_jobs(caller, query.filter, query.order_by, query.paging)
    return page([JobResponse.from_record(record) for record in found.rows], offset=query.offset, total=found.total)


@router.get("/api/v2/batches/counts", summary="Count batches by status", **describe_route(dict[BatchStatus, int]))
async def count_batches(query: BatchParams, caller: Caller, live: LiveStore) -> Response:
    """Return the number of matching batches for every status, including zeros. All counts are from the same moment."""
    return success(await live.batch_counts(caller, query.filter))


@router.get("/api/v2/jobs/counts", summary="Count jobs by status", **describe_route(dict[JobStatus, int]))
async def count_jobs(query: JobParams, caller: Caller, live: LiveStore) -> Response:
    """Return the number of matching jobs for every status, including zeros. All counts are from the same moment."""
    return success(await live.job_counts(caller, query.filter))


@router.get(
    "/api/v2/batches/find",
    summary="Find a batch by its short id or its name",
    **describe_route(FoundBatchResponse, 404, 409),
)
async def find_batch(text: FindText, caller: Caller, live: LiveStore, project_id: ProjectIds = ()) -> Response:
    """Return the id of the batch that people mean by a text, among the batches of the caller's projects.

    The text is a short id such as `5m2q0xw8kd`; `@last`, the last batch that the caller submitted, or `@last~1`, the
    one before it; or the name of a batch. If several batches match, the response is 409, and lists them.
    """
    return success(FoundBatchResponse(await live.find(caller, text, projects=project_id)))


@router.get("/api/v2/batches/newest", summary="List the newest batches", **describe_route(list[ListedBatchResponse]))
async def list_newest_batches(
    query: BatchParams,
    caller: Caller,
    live: LiveStore,
    limit: Annotated[int, Query(ge=1, le=2 * LIMIT_MAX, description="The largest number of batches.")] = LIMIT_MAX,
) -> Response:
    """Return the newest matching batches of the caller's projects, newest first, in their current state. Unlike the
    list of batches, it has batches that were submitted a moment ago. For the next page, send the `created_at` of the
    last batch as `max_created_at`, and skip the batches of this page that were created at that time."""
    return success(await _as_rows(live, await live.newest_batches(caller, query.filter, limit)))


_INDICES_LENGTH = 8000

EMBEDDED_JOBS_MAX = 100
"""A batch with more jobs is shown without them: clients then request the jobs separately."""


@router.get(
    "/api/v2/batches/{batch_id}", summary="Get a batch with its sequence and jobs", **describe_route(BatchResponse, 404)
)
async def get_batch(
    batch_id: BatchId,
    caller: Caller,
    live: LiveStore,
    jobs: Annotated[bool, Query(description="`false`: without its jobs and their ids.")] = True,
    sequence: Annotated[bool, Query(description="`false`: without its sequence, which never changes.")] = True,
) -> Response:
    """Return the current state of the batch, with its jobs if there are at most 100. A program that reads the batch
    again and again should leave out the jobs and the sequence."""
    record, embedded = await live.batch_with_jobs(caller, batch_id, jobs_max=EMBEDDED_JOBS_MAX if jobs else -1)
    left_out: dict[str, Any] = {} if jobs else {"job_ids": None}
    left_out |= {} if sequence else {"sequence_builder": None}
    devices = await live.devices_of_waiting([record])
    return success(BatchResponse.from_records(record, embedded, devices.get(record.device), **left_out))


@router.get(
    "/api/v2/batches/{batch_id}/jobs",
    summary="Stream the jobs of a batch, with their results",
    response_class=Response,
    responses=describe_stream(JobLineResponse) | describe_failures(404),
)
async def stream_jobs(
    batch_id: BatchId,
    caller: Caller,
    live: LiveStore,
    kept: KeptResults,
    indices: Annotated[
        str,
        Query(
            max_length=_INDICES_LENGTH,
            pattern=r"^(\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*)?$",
            description="Indices of jobs, as in `0-3,7`; all jobs by default. Those that the batch lacks are left out.",
        ),
    ] = "",
    results: Annotated[bool, Query(description="Whether to send the results of the jobs, too.")] = False,
) -> Response:
    """Send each job as a line of JSON, in the order of `indices`, and `{"end": true}` as the last line. Unlike a list,
    the stream has any number of jobs, with results of any size. A program that misses the last line asks again, for the
    jobs that it has not received."""
    batch = await live.batch(caller, batch_id)
    chosen = _select(batch.jobs, indices)
    return StreamingResponse(stream_lines(live, kept, batch, chosen, results=results), media_type=LINES)


@router.get(
    "/api/v1/batches/{batch_id}/status",
    summary="Wait for a batch to end and get its status",
    **describe_route(BatchStateResponse, 404),
)
async def get_batch_status(
    batch_id: BatchId, caller: Caller, live: LiveStore, holds: HeldRequests, wait_s: WaitSeconds, request: Request
) -> Response:
    """Hold the request until no job of the batch is pending or running, for `wait_s` seconds at most, and return the
    current status.

    If the batch has no such jobs, the response is sent at once, even if the batch is open. The status is never
    `PAUSED`: see `paused`.
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


def _select(jobs: int, indices: str) -> Sequence[int]:
    """Return the indices below ``jobs`` that are meant. Raises RequestValidationError if they are too many."""
    if not indices:
        return range(jobs)
    ranges = [range(first, min(last + 1, jobs)) for first, last in read_ranges(indices) or ()]
    if sum(map(len, ranges)) > MAX_JOBS_PER_BATCH:
        problem = f"has more than {MAX_JOBS_PER_BATCH} indices; name each job once"
        raise RequestValidationError([{"type": "value_error", "loc": ("query", "indices"), "msg": problem}])
    return [index for each in ranges for index in each]


def _is_idle(record: BatchRecord) -> bool:
    return record.counts[JobStatus.PENDING] + record.counts[JobStatus.RUNNING] == 0


@router.get("/api/v2/jobs/{job_id}", summary="Get a job", **describe_route(JobResponse, 404))
async def get_job(job_id: JobId, caller: Caller, live: LiveStore) -> Response:
    """Return the current state of the job, with its own sequence if it has one."""
    return success(JobResponse.from_record(await live.job(caller, job_id)))


@router.get(
    "/api/v2/jobs/{job_id}/transitions",
    summary="List the transitions of a job",
    **describe_route(list[TransitionResponse], 404),
)
async def get_job_transitions(job_id: JobId, caller: Caller, live: LiveStore) -> Response:
    """Return the changes of the job's status, oldest first. They are read from the ledger, which is usually a fraction
    of a second behind."""
    return success([TransitionResponse.from_record(event) for event in await live.transitions(caller, job_id)])


@router.get(
    "/api/v2/jobs/{job_id}/attempts",
    summary="List the attempts of a job",
    **describe_route(list[JobAttemptResponse], 404),
)
async def get_job_attempts(job_id: JobId, caller: Caller, live: LiveStore) -> Response:
    """Return each execution of the job, oldest first: where it ran, from when to when, and how it ended. The list is
    current, and empty if the job has never begun. The last attempt has no end while the job is `RUNNING`."""
    return success([JobAttemptResponse.from_record(attempt) for attempt in await live.attempts(caller, job_id)])


@router.get(
    "/api/v1/jobs/{job_id}/status",
    summary="Wait for a job to end and get its status",
    **describe_route(JobStateResponse, 404),
)
async def get_job_status(
    job_id: JobId, caller: Caller, live: LiveStore, holds: HeldRequests, wait_s: WaitSeconds, request: Request
) -> Response:
    """Hold the request until the job has ended, for `wait_s` seconds at most, and return the current status.

    A job of a paused batch is `PENDING` until it starts.
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
    summary="Get a link to the results of a job",
    **describe_route(ResultsLinkResponse, 404),
)
async def get_results_link(
    job_id: JobId, caller: Caller, live: LiveStore, links: ResultsLinks, request: Request
) -> Response:
    """Return an absolute URL, or null while the job has no result. It stays null if the job ends without one.

    The URL is signed: anyone who has it can download the results, without a key, for an hour by default
    (`TWEEZER_API_LINK_S`). It begins with the server's public URL, or with the host of this request if none is set.
    """
    record = await live.job(caller, job_id)
    if await live.packed_result(record) is None:
        return success(ResultsLinkResponse(results_link=None))
    return success(ResultsLinkResponse(results_link=await links.link(request, record.id)))


@router.get(
    "/api/v1/jobs/{job_id}/results",
    summary="Download the results of a job",
    response_class=Response,
    responses=describe_response(JobResultResponse, "The result, without the envelope.") | describe_failures(403, 404),
)
async def get_results(
    job_id: JobId, reader: ResultsReader, live: LiveStore, results: KeptResults, request: Request
) -> Response:
    """Return the measurements of the job as a JSON object without the envelope, or 404 if the job has no result. A job
    that was stopped while it was running has the measurements made until then, if its device reports them.

    A large result is streamed, compressed with gzip if the client accepts it.
    """
    record = await live.job(reader, job_id)
    packed = await live.packed_result(record)
    if packed is None:
        raise NotFound("result of job", f"{job_id}; its status is {record.status.value}")
    return await result_response(packed, results, request.headers.get("Accept-Encoding", ""))


@router.get(
    "/api/v1/jobs/{job_id}/logs_link",
    summary="Get a link to the logs of a job",
    **describe_route(LogsLinkResponse, 404),
)
async def get_logs_link(
    job_id: JobId, caller: Caller, live: LiveStore, links: ResultsLinks, queue: Queue, request: Request
) -> Response:
    """Return an absolute URL, or null while the job has written nothing. It is signed, as that of the results."""
    record = await live.job(caller, job_id)
    if not (await queue.job_logs.read(record.id)).next:
        return success(LogsLinkResponse(logs_link=None))
    return success(LogsLinkResponse(logs_link=await links.link(request, record.id, Linked.LOGS)))


@router.get(
    "/api/v1/jobs/{job_id}/logs",
    summary="Download the logs of a job",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The logs as plain text."},
        **describe_failures(403, 404),
    },
)
async def download_logs(job_id: JobId, reader: ResultsReader, live: LiveStore, queue: Queue) -> Response:
    """Return what the emulator wrote while the job ran, as plain text; empty if it wrote nothing. Of more than 64 KiB
    the end is kept, and the first line shows how much is missing."""
    record = await live.job(reader, job_id)
    found = await queue.job_logs.read(record.id)
    head = f"[{found.cut} bytes of earlier output were not kept]\n" if found.cut else ""
    return Response(head + found.text, media_type="text/plain; charset=utf-8")


@router.get("/api/v2/jobs/{job_id}/logs", summary="Read the logs of a job", **describe_route(LogsResponse, 404))
async def get_logs(
    job_id: JobId,
    caller: Caller,
    live: LiveStore,
    queue: Queue,
    after: Annotated[
        int,
        Query(
            ge=0,
            le=MAX_INTEGER,
            description="Return what was written after this position: the `next` of an earlier response.",
        ),
    ] = 0,
) -> Response:
    """Return what the emulator wrote while the job ran, after a position. While the job runs, repeat the request with
    `after` set to the `next` of the last response. New output is readable after a second at most."""
    record = await live.job(caller, job_id)  # before the log, so that an ended job has no later output
    found = await queue.job_logs.read(record.id, after=after)
    return success(LogsResponse(found.text, found.next, found.cut, record.status.terminal))
