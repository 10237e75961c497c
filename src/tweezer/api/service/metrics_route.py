"""Metrics, for Prometheus."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request, Response

from tweezer.api.access.dependencies import Scraper
from tweezer.api.http.openapi import failure_docs
from tweezer.api.service.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["service"], responses=failure_docs(403))


async def _metrics(request: Request) -> Metrics:
    return cast(Metrics, request.app.state.metrics)


@router.get(
    "/metrics",
    summary="Metrics of the queue and of this process",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}},
)
async def get_metrics(caller: Scraper, metrics: Annotated[Metrics, Depends(_metrics)]) -> Response:
    """For keys of the roles `metrics` and `operator`. What cannot be read now is left out, see `tweezer_redis_up`."""
    return Response(await metrics.text(), media_type=CONTENT_TYPE)
