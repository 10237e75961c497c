"""Older and other ways to the same routes: those of version 1, its first clients' verbs, third parties' paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fastapi import APIRouter, Response
from fastapi.routing import APIRoute

from tweezer.api.access.dependencies import BatchId, Caller, JobId, LiveStore
from tweezer.api.batches import bulk, lists, read, service_side, write
from tweezer.api.batches import jobs as job_routes
from tweezer.api.batches.commands import Queue
from tweezer.api.batches.read import EMBEDDED_JOBS_MAX
from tweezer.api.batches.schemas import OlderBatchResponse, OlderJobResponse
from tweezer.api.http.openapi import failure_docs, success_docs
from tweezer.api.http.responses import success
from tweezer.model.messages import Result, result_file

THIRD_PARTY = "/api/v1/third-party-access/ovh"

router = APIRouter()


@router.get(
    "/api/v1/batches/{batch_id}",
    tags=["batches"],
    summary="A batch, its sequence and its jobs, the older way",
    responses=success_docs(OlderBatchResponse) | failure_docs(404, 422, 503),
)
async def get_batch_v1(batch_id: BatchId, caller: Caller, live: LiveStore) -> Response:
    """As version 2 has it. The results of jobs have routes of their own."""
    record, jobs = await live.batch_with_jobs(caller, batch_id, jobs_max=EMBEDDED_JOBS_MAX)
    return success(OlderBatchResponse.from_records(record, jobs))


@router.get(
    "/api/v1/jobs/{job_id}",
    tags=["jobs"],
    summary="A job with its result, the older way",
    responses=success_docs(OlderJobResponse) | failure_docs(404, 422, 503),
)
async def get_job_v1(job_id: JobId, caller: Caller, live: LiveStore, queue: Queue) -> Response:
    """As version 2 has it, and its result, unless that is so large that it is kept in a file."""
    job = await live.job(caller, job_id)
    packed = await live.packed_result(job)
    result: Result | None = None
    if packed is not None and result_file(packed) is None:
        result = await queue.results.unpack(packed)
    return success(OlderJobResponse.with_result(job, result))


def _known(routers: Iterable[APIRouter]) -> dict[Callable[..., Any], APIRoute]:
    """The route of each function; of several, the first."""
    found: dict[Callable[..., Any], APIRoute] = {}
    for each in routers:
        for route in each.routes:
            assert isinstance(route, APIRoute)
            found.setdefault(route.endpoint, route)
    return found


_ROUTES = _known(module.router for module in (read, job_routes, lists, bulk, service_side, write))
_ALIASES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("POST", "/api/v1/batches/{batch_id}/jobs", write.add_jobs),
    ("PATCH", "/api/v1/batches/{batch_id}/complete", write.close_batch),
    ("PUT", "/api/v1/batches/{batch_id}/complete", write.close_batch),
    ("PATCH", "/api/v1/batches/{batch_id}/cancel", write.cancel_batch),
    ("PUT", "/api/v1/batches/{batch_id}/cancel", write.cancel_batch),
    ("PATCH", "/api/v2/batches/cancel", bulk.cancel_batches),
    ("PATCH", "/api/v1/batches/{batch_id}/cancel/jobs", bulk.cancel_jobs),
    ("PATCH", "/api/v1/jobs/{job_id}/cancel", write.cancel_job),
    ("PUT", "/api/v1/jobs/{job_id}/cancel", write.cancel_job),
    ("PUT", "/api/v1/batches/{batch_id}/status", service_side.set_batch_status),
    ("PUT", "/api/v1/jobs/{job_id}/status", service_side.set_job_status),
    ("POST", f"{THIRD_PARTY}/batches", write.create_batch),
    ("GET", f"{THIRD_PARTY}/batches/{{batch_id}}", read.get_batch),
    ("GET", f"{THIRD_PARTY}/batches/{{batch_id}}/status", read.get_batch_status),
    ("GET", f"{THIRD_PARTY}/jobs", lists.list_jobs),
    ("GET", f"{THIRD_PARTY}/jobs/{{job_id}}/results_link", job_routes.get_results_link),
    ("GET", f"{THIRD_PARTY}/jobs/{{job_id}}/status", job_routes.get_job_status),
)


def _name_of(method: str, path: str, endpoint: Callable[..., Any]) -> str:
    way = "third_party" if path.startswith(THIRD_PARTY) else path.split("/")[2]
    return f"{endpoint.__name__}_{way}_{method.lower()}"


for _method, _path, _endpoint in _ALIASES:
    _route = _ROUTES[_endpoint]
    router.add_api_route(
        _path,
        _endpoint,
        methods=[_method],
        name=_name_of(_method, _path, _endpoint),
        tags=_route.tags,
        summary=f"{_route.summary}: another way",
        response_model=_route.response_model,
        responses=_route.responses,
        openapi_extra=_route.openapi_extra,
    )
