"""Figures about devices and projects, from the ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from tweezer.api.access.dependencies import Caller, Ledger
from tweezer.api.batches.filters import VALUES_MAX, Text, Time
from tweezer.api.devices.statistics_schemas import JobFrequency, LastActivity
from tweezer.api.http.envelope import Envelope, failure_docs
from tweezer.ledger.queries import statistics
from tweezer.ledger.queries.statistics import Span

_SHOWN = {Span.HOUR: timedelta(days=1), Span.DAY: timedelta(days=30), Span.MONTH: timedelta(days=365)}

router = APIRouter()

Projects = Annotated[
    tuple[Text, ...],
    Query(max_length=VALUES_MAX, description="Projects. May be repeated. Default: all of the caller's."),
]


@router.get(
    "/api/v1/batches/last_activity",
    tags=["batches"],
    summary="When something last happened in a project",
    responses=failure_docs(422, 503),
)
async def get_last_activity(caller: Caller, ledger: Ledger, project_id: Projects = ()) -> Envelope[list[LastActivity]]:
    """One entry a project that the caller sees, by id."""
    found = await ledger.run(statistics.last_activity, ledger, caller, project_id)
    return Envelope(data=[LastActivity(project_id=each.project, last_activity_date=each.time) for each in found])


@router.get(
    "/api/v1/devices/job_counts",
    tags=["devices"],
    summary="How many jobs were submitted",
    responses=failure_docs(422, 503),
)
async def get_job_counts(
    caller: Caller,
    ledger: Ledger,
    scope: Annotated[Span, Query(description="What is counted together, in UTC.")],
    project_id: Projects = (),
    start_date: Annotated[Time | None, Query(description="Default: a day, 30 days or a year before the end.")] = None,
    end_date: Annotated[Time | None, Query(description="Default: now.")] = None,
) -> Envelope[JobFrequency]:
    """Jobs that were submitted to the caller's projects, by hour, day or month and device."""
    until = end_date or datetime.now(UTC)
    since = start_date or until - _SHOWN[scope]
    found = await ledger.run(statistics.job_counts, ledger, caller, project_id, scope, since, until)
    return Envelope(data=JobFrequency.of(scope, found))
