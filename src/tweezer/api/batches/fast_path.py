"""The most frequent requests, without FastAPI's routing and parsing of parameters.

These would cost several times as much as the response. The functions are those of the FastAPI routes, which document
them in the OpenAPI document and handle the rare cases: an id in another format, another method, a header.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from tweezer.api.access.dependencies import READERS, WRITERS, require_role
from tweezer.api.batches.commands import create_batch
from tweezer.api.batches.reads import get_batch, get_job


class FastRoute(Route):
    """A route of one method, for requests without query parameters and without an ``Idempotency-Key``."""

    def __init__(self, method: str, path: str, respond: Callable[[Request], Awaitable[Response]]) -> None:
        super().__init__(path.replace("}", ":uuid}"), respond, methods=[method], include_in_schema=False)
        self.path = path  # the route's name in metrics
        self._method = method

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or scope["method"] != self._method or scope.get("query_string"):
            return Match.NONE, {}
        match, child_scope = super().matches(scope)
        if match is Match.FULL and any(name == b"idempotency-key" for name, _ in scope["headers"]):
            return Match.NONE, {}
        return match, {**child_scope, "route": self}


async def _get_job(request: Request) -> Response:
    return await get_job(request.path_params["job_id"], require_role(request, READERS), request.app.state.live)


async def _get_batch(request: Request) -> Response:
    return await get_batch(request.path_params["batch_id"], require_role(request, READERS), request.app.state.live)


async def _create_batch(request: Request) -> Response:
    caller, parts = require_role(request, WRITERS), request.app.state
    return await create_batch(request, caller, parts.bodies, parts.store, parts.live, parts.webhooks)


def fast_routes() -> list[FastRoute]:
    """Return the fast routes; they must come before all others."""
    return [
        FastRoute("GET", "/api/v2/jobs/{job_id}", _get_job),
        FastRoute("GET", "/api/v2/batches/{batch_id}", _get_batch),
        FastRoute("POST", "/api/v1/batches", _create_batch),
    ]
