"""What is asked for all the time, answered without FastAPI's way of finding a route and giving it its parameters.

That way costs several times what the answer costs. The routes here call the same functions as those of FastAPI, which
describe them in the OpenAPI document and answer what is not quite as usual: an id in another form, another method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

from fastapi import Request, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from tweezer.api.access.dependencies import READERS, caller_with
from tweezer.api.batches.jobs import get_job
from tweezer.api.batches.read import get_batch
from tweezer.api.read_model import ReadModel
from tweezer.ledger.access.credentials import Principal

Getter = Callable[[UUID, Principal, ReadModel], Awaitable[Response]]


class QuickRoute(Route):
    """GET of a thing by its id, which is what the path has for a parameter."""

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
        caller = caller_with(request, READERS)
        (identity,) = request.path_params.values()
        return await self._get(identity, caller, request.app.state.live)


def quick_routes() -> list[QuickRoute]:
    """To stand before all others."""
    return [QuickRoute("/api/v2/jobs/{job_id}", get_job), QuickRoute("/api/v2/batches/{batch_id}", get_batch)]
