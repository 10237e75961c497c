"""Health, readiness and metrics of the API process."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Response

from tweezer.api.access.dependencies import LiveStore, Scraper, part
from tweezer.api.http.openapi import describe_failures, describe_route
from tweezer.api.http.responses import doc, success
from tweezer.api.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["service"])


class HealthResponse(msgspec.Struct, frozen=True):
    """The health of the API process."""

    health: Annotated[str, doc("Always `ok`.", "ok")]


@router.get("/health", summary="Check that the process is alive", **describe_route(HealthResponse, keyless=True))
async def get_health() -> Response:
    """Return 200 without contacting Redis or the database. Restart the process if this route does not respond."""
    return success(HealthResponse(health="ok"))


@router.get(
    "/ready", summary="Check that Redis and the ledger respond", **describe_route(HealthResponse, 503, keyless=True)
)
async def get_ready(live: LiveStore) -> Response:
    """Return 503 while Redis or the ledger's database does not respond within two seconds. Send no requests to this
    process until the route returns 200."""
    await live.check()
    return success(HealthResponse(health="ok"))


@router.get(
    "/metrics",
    summary="Get metrics of the queue and of this process",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."},
        **describe_failures(403),
    },
)
async def get_metrics(caller: Scraper, metrics: Annotated[Metrics, part("metrics")]) -> Response:
    """Return metrics in Prometheus' text format, for keys with the role `metrics` or `operator`. While Redis or the
    ledger does not respond, its metrics are left out, and `tweezer_redis_up` or `tweezer_ledger_up` is 0."""
    return Response(await metrics.text(), media_type=CONTENT_TYPE)
