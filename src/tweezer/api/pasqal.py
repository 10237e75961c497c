"""Routes for Pasqal's clients and third parties only: a path prefix, version 1, older methods, and workloads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fastapi import APIRouter, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from tweezer.api.access.dependencies import BatchId, Caller, JobId, LiveStore, Queue, Submitter
from tweezer.api.batches import bulk, commands, reads, service_side
from tweezer.api.batches.reads import EMBEDDED_JOBS_MAX
from tweezer.api.batches.schemas import OlderBatchResponse, OlderJobResponse
from tweezer.api.http.openapi import describe_failures, describe_response, describe_route
from tweezer.api.http.responses import Failure, RequestRejected, success
from tweezer.model.messages import Result, result_file

THIRD_PARTY = "/api/v1/third-party-access/ovh"

router = APIRouter()


@router.get(
    "/api/v1/batches/{batch_id}",
    tags=["batches"],
    summary="Get a batch (version 1)",
    **describe_route(OlderBatchResponse, 404, 422),
)
async def get_batch_v1(batch_id: BatchId, caller: Caller, live: LiveStore) -> Response:
    """Return the same as `GET /api/v2/batches/{batch_id}`. For the results of its jobs, use
    `GET /api/v1/jobs/{job_id}/results_link`."""
    record, jobs = await live.batch_with_jobs(caller, batch_id, jobs_max=EMBEDDED_JOBS_MAX)
    devices = await live.devices_of_waiting([record])
    return success(OlderBatchResponse.from_records(record, jobs, devices.get(record.device)))


@router.get(
    "/api/v1/jobs/{job_id}",
    tags=["jobs"],
    summary="Get a job and its result (version 1)",
    **describe_route(OlderJobResponse, 404, 422),
)
async def get_job_v1(job_id: JobId, caller: Caller, live: LiveStore, queue: Queue) -> Response:
    """Return the same as `GET /api/v2/jobs/{job_id}`, with the result. A large result, which is stored in a file, is
    left out: get it with `GET /api/v1/jobs/{job_id}/results_link`."""
    job = await live.job(caller, job_id)
    packed = await live.packed_result(job)
    result: Result | None = None
    if packed is not None and result_file(packed) is None:
        result = await queue.results.unpack(packed)
    return success(OlderJobResponse.with_result(job, result))


def _routes_by_function(routers: Iterable[APIRouter]) -> dict[Callable[..., Any], APIRoute]:
    """Return the route of each function; the first one if a function has several."""
    found: dict[Callable[..., Any], APIRoute] = {}
    for each in routers:
        for route in each.routes:
            assert isinstance(route, APIRoute)
            found.setdefault(route.endpoint, route)
    return found


_ROUTES = _routes_by_function(module.router for module in (reads, bulk, service_side, commands))
_ALIASES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("POST", "/api/v1/batches/{batch_id}/jobs", commands.add_jobs),
    ("PATCH", "/api/v1/batches/{batch_id}/complete", commands.close_batch),
    ("PUT", "/api/v1/batches/{batch_id}/complete", commands.close_batch),
    ("PATCH", "/api/v1/batches/{batch_id}/cancel", commands.cancel_batch),
    ("PUT", "/api/v1/batches/{batch_id}/cancel", commands.cancel_batch),
    ("PATCH", "/api/v2/batches/cancel", bulk.cancel_batches),
    ("PATCH", "/api/v1/batches/{batch_id}/cancel/jobs", bulk.cancel_jobs),
    ("PATCH", "/api/v1/jobs/{job_id}/cancel", commands.cancel_job),
    ("PUT", "/api/v1/jobs/{job_id}/cancel", commands.cancel_job),
    ("PUT", "/api/v1/batches/{batch_id}/status", service_side.set_batch_status),
    ("PUT", "/api/v1/jobs/{job_id}/status", service_side.set_job_status),
    ("POST", f"{THIRD_PARTY}/batches", commands.create_batch),
    ("GET", f"{THIRD_PARTY}/batches/{{batch_id}}", reads.get_batch),
    ("GET", f"{THIRD_PARTY}/batches/{{batch_id}}/status", reads.get_batch_status),
    ("GET", f"{THIRD_PARTY}/jobs", reads.list_jobs),
    ("GET", f"{THIRD_PARTY}/jobs/{{job_id}}/results_link", reads.get_results_link),
    ("GET", f"{THIRD_PARTY}/jobs/{{job_id}}/status", reads.get_job_status),
)


def _route_name(method: str, path: str, endpoint: Callable[..., Any]) -> str:
    way = "third_party" if path.startswith(THIRD_PARTY) else path.split("/")[2]
    return f"{endpoint.__name__}_{way}_{method.lower()}"


for _method, _path, _endpoint in _ALIASES:
    _route = _ROUTES[_endpoint]
    router.add_api_route(
        _path,
        _endpoint,
        methods=[_method],
        name=_route_name(_method, _path, _endpoint),
        tags=_route.tags,
        summary=f"{(_route.summary or '').removesuffix(' (alias)')} (alias)",
        responses=_route.responses,
        openapi_extra=_route.openapi_extra,
    )


_WORKLOAD_RESPONSES = describe_failures() | describe_response(Failure, "Workloads are not supported.", status=501)


async def read_workload(caller: Caller) -> None:
    """Return 501: workloads are not supported. Submit a batch instead."""
    raise RequestRejected(501, "not_implemented", "workloads are not supported; submit a batch of pulse sequences")


async def change_workload(caller: Submitter) -> None:
    """Return 501: workloads are not supported. Submit a batch instead."""
    await read_workload(caller)


_ID = {
    "name": "workload_id",
    "in": "path",
    "required": True,
    "description": "Id of a workload.",
    "schema": {"type": "string"},
}
_WORKLOADS = (
    ("POST", "/api/v1/workloads", "create_workload"),
    ("GET", "/api/v1/workloads", "list_workloads"),
    ("GET", "/api/v1/workloads/{workload_id}", "get_workload_v1"),
    ("GET", "/api/v2/workloads/{workload_id}", "get_workload"),
    ("PUT", "/api/v1/workloads/{workload_id}/cancel", "cancel_workload"),
    ("PATCH", "/api/v1/workloads/{workload_id}/status", "set_workload_status"),
    ("POST", "/api/v1/workloads/{workload_id}/result", "post_workload_result"),
    ("POST", "/api/v1/workloads/{workload_id}/errors", "post_workload_errors"),
)
for method, path, name in _WORKLOADS:
    router.add_api_route(
        path,
        read_workload if method == "GET" else change_workload,
        methods=[method],
        name=name,
        tags=["workloads"],
        responses=_WORKLOAD_RESPONSES,
        summary=name.replace("_v1", " (version 1)").replace("_", " ").capitalize(),
        status_code=501,
        openapi_extra={"parameters": [_ID]} if "{" in path else None,
    )


CORE_PREFIX = "/core-fast"


class PathPrefixMiddleware:
    """ASGI middleware: remove the prefix from paths."""

    def __init__(self, app: ASGIApp, *, prefix: str = CORE_PREFIX) -> None:
        self._app = app
        self._prefix = f"{prefix}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._prefix):
            size = len(self._prefix) - 1
            scope = {**scope, "path": scope["path"][size:]}
            raw: bytes | None = scope.get("raw_path")
            if raw is not None:
                scope["raw_path"] = raw.removeprefix(self._prefix[:-1].encode())
        await self._app(scope, receive, send)
