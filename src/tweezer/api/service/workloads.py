"""Workloads: paths of Pasqal's API that are known, and not served yet."""

from __future__ import annotations

from fastapi import APIRouter

from tweezer.api.access.dependencies import Caller, Submitter
from tweezer.api.http.openapi import failure_docs, response_docs
from tweezer.api.http.responses import Failure, RequestRefused

router = APIRouter(tags=["workloads"], responses=failure_docs() | response_docs(Failure, "Not there yet.", status=501))


async def read_workload(caller: Caller) -> None:
    """Workloads are not served yet: submit batches."""
    raise RequestRefused(
        501, "not_implemented", "Tweezer runs batches of pulse sequences; workloads are not served yet"
    )


async def change_workload(caller: Submitter) -> None:
    """Workloads are not served yet: submit batches."""
    await read_workload(caller)


_ID = {"name": "workload_id", "in": "path", "required": True, "schema": {"type": "string", "title": "Workload Id"}}
_ROUTES = (
    ("POST", "/api/v1/workloads", "create_workload"),
    ("GET", "/api/v1/workloads", "list_workloads"),
    ("GET", "/api/v1/workloads/{workload_id}", "get_workload_v1"),
    ("GET", "/api/v2/workloads/{workload_id}", "get_workload"),
    ("PUT", "/api/v1/workloads/{workload_id}/cancel", "cancel_workload"),
    ("PATCH", "/api/v1/workloads/{workload_id}/status", "set_workload_status"),
    ("POST", "/api/v1/workloads/{workload_id}/result", "post_workload_result"),
    ("POST", "/api/v1/workloads/{workload_id}/errors", "post_workload_errors"),
)
for method, path, name in _ROUTES:
    router.add_api_route(
        path,
        read_workload if method == "GET" else change_workload,
        methods=[method],
        name=name,
        summary=name.replace("_", " ").capitalize(),
        status_code=501,
        openapi_extra={"parameters": [_ID]} if "{" in path else None,
    )
