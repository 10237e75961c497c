"""The service itself: whether it lives, and whether it can work."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Response
from msgspec import Meta

from tweezer.api.access.dependencies import LiveStore
from tweezer.api.http.openapi import failure_docs, success_docs
from tweezer.api.http.responses import success

router = APIRouter(tags=["service"])


class HealthResponse(msgspec.Struct, frozen=True):
    """How the API itself is."""

    health: Annotated[str, Meta(examples=["ok"])]


@router.get(
    "/health",
    summary="Whether the process is alive",
    responses=success_docs(HealthResponse) | failure_docs(keyless=True),
)
async def get_health() -> Response:
    """Asks nothing of anybody: restart the process when this does not answer."""
    return success(HealthResponse(health="ok"))


@router.get(
    "/ready",
    summary="Whether Redis and the ledger answer",
    responses=success_docs(HealthResponse) | failure_docs(503, keyless=True),
)
async def get_ready(live: LiveStore) -> Response:
    """503 while Redis or the ledger's database does not answer within two seconds: send no requests here then."""
    await live.check()
    return success(HealthResponse(health="ok"))
