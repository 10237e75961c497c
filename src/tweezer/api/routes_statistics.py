"""Figures about devices and projects, from the ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query

from tweezer.api.dependencies import Caller, Ledger, LiveStore
from tweezer.api.envelope import Envelope, failure_docs
from tweezer.api.parameters import VALUES_MAX, Text, Time
from tweezer.api.schemas_statistics import JobFrequency, LastActivity, QueueSize, QueueTime
from tweezer.ledger import statistics
from tweezer.ledger.statistics import Span

_SHOWN = {Span.HOUR: timedelta(days=1), Span.DAY: timedelta(days=30), Span.MONTH: timedelta(days=365)}

router = APIRouter()

DeviceName = Annotated[Text, Path(description="Name of a device.", examples=["EMU_FREE"])]
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


@router.get(
    "/api/v1/devices/{device}/queue_size",
    tags=["devices"],
    summary="What waits for a device",
    responses=failure_docs(404, 422, 503),
)
async def get_queue_size(device: DeviceName, caller: Caller, ledger: Ledger, live: LiveStore) -> Envelope[QueueSize]:
    """Batches, jobs and shots of all projects, by priority, as they are recorded."""
    await live.check_device(device)
    return Envelope(data=QueueSize.of(await ledger.run(statistics.queue_sizes, ledger, device)))


@router.get(
    "/api/v1/devices/{device}/average_queue_time",
    tags=["devices"],
    summary="How long jobs wait for a device",
    responses=failure_docs(404, 422, 503),
)
async def get_average_queue_time(
    device: DeviceName,
    caller: Caller,
    ledger: Ledger,
    live: LiveStore,
    hours: Annotated[int, Query(ge=1, le=8784, description="Of the jobs that ended in so many last hours.")] = 24,
) -> Envelope[QueueTime]:
    """From submit to start, of jobs of all projects."""
    await live.check_device(device)
    since = datetime.now(UTC) - timedelta(hours=hours)
    found = await ledger.run(statistics.queue_time, ledger, device, since)
    return Envelope(data=QueueTime(device_type=device, average_queue_time=found.seconds, jobs_count=found.jobs))
