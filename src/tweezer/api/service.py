"""The service itself: whether it is alive, whether it can work, and its metrics."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Response
from msgspec import Meta

from tweezer.api.access.dependencies import LiveStore, Scraper, part
from tweezer.api.http.openapi import answers, failure_docs
from tweezer.api.http.responses import success
from tweezer.api.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["service"])


class HealthResponse(msgspec.Struct, frozen=True):
    """How the API itself is."""

    health: Annotated[str, Meta(examples=["ok"])]


@router.get("/health", summary="Whether the process is alive", **answers(HealthResponse, keyless=True))
async def get_health() -> Response:
    """Asks nothing of anybody: restart the process when this does not answer."""
    return success(HealthResponse(health="ok"))


@router.get("/ready", summary="Whether Redis and the ledger answer", **answers(HealthResponse, 503, keyless=True))
async def get_ready(live: LiveStore) -> Response:
    """503 while Redis or the ledger's database does not answer within two seconds: send no requests here then."""
    await live.check()
    return success(HealthResponse(health="ok"))


@router.get(
    "/metrics",
    summary="Metrics of the queue and of this process",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}, **failure_docs(403)},
)
async def get_metrics(caller: Scraper, metrics: Annotated[Metrics, part("metrics")]) -> Response:
    """For keys of the roles `metrics` and `operator`. What cannot be read now is left out, see `tweezer_redis_up`."""
    return Response(await metrics.text(), media_type=CONTENT_TYPE)
