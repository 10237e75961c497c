"""Statistics about devices and projects, from the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response

from tweezer.api.access.dependencies import Caller, Ledger
from tweezer.api.batches.filters import VALUES_MAX, Text, Time
from tweezer.api.http.openapi import describe_route
from tweezer.api.http.responses import Count, Moment, RecordResponse, Seconds, Source, doc, success
from tweezer.ledger.queries import statistics
from tweezer.ledger.queries.statistics import Span
from tweezer.model.messages import Priority

_SHOWN = {Span.HOUR: timedelta(days=1), Span.DAY: timedelta(days=30), Span.MONTH: timedelta(days=365)}

router = APIRouter()


class LastActivityResponse(msgspec.Struct, frozen=True):
    """When something last changed in a project."""

    project_id: Annotated[str, doc("Id of the project.", "default")]
    last_activity_date: Annotated[Moment | None, doc("When something last changed; null if nothing ever did.")]


class DeviceQueueResponse(RecordResponse, frozen=True):
    """The queue of a device, for one priority."""

    queue: Annotated[Priority, doc("The priority.", "MEDIUM")]
    number_of_batches: Annotated[Count, Source("batches"), doc("Number of batches with pending jobs.", 2)]
    number_of_jobs: Annotated[Count, Source("jobs"), doc("Number of pending jobs.", 16)]
    number_of_shots: Annotated[Count, Source("shots"), doc("Number of their shots, where it is known.", 1600)]


class QueueSizeResponse(msgspec.Struct, frozen=True):
    """The queues of a device."""

    device_queues: Annotated[list[DeviceQueueResponse], doc("One queue for each priority.")]

    @classmethod
    def from_sizes(cls, sizes: Mapping[Priority, statistics.QueueSize]) -> QueueSizeResponse:
        return cls([DeviceQueueResponse.from_record(size, queue=priority) for priority, size in sizes.items()])


class QueueTimeResponse(msgspec.Struct, frozen=True):
    """The average queue time of a device."""

    device_type: Annotated[str, doc("Name of the device.", "EMU_FREE")]
    average_queue_time: Annotated[
        Seconds | None, doc("Average seconds from submission to start; null if no job ended.", 12.5)
    ]
    jobs_count: Annotated[Count, doc("Number of jobs in the average.", 340)]


class DeviceCountsResponse(msgspec.Struct, frozen=True):
    """Numbers of jobs that were submitted in one period."""

    datetime: Annotated[str, doc("When the period begins, in UTC.", "2026-11-22T10:00:00Z")]
    devices: Annotated[dict[str, Count], doc("Number of jobs by device name.", {"EMU_FREE": 120, "EMU_MPS": 4})]


class JobFrequencyResponse(msgspec.Struct, frozen=True):
    """Numbers of submitted jobs by period and device."""

    job_date_scope: Annotated[statistics.Span, doc("The length of a period.", "DAY")]
    count: Annotated[list[DeviceCountsResponse], doc("The periods with jobs, oldest first.")]

    @classmethod
    def from_counts(cls, span: statistics.Span, counts: Sequence[statistics.SpanCount]) -> JobFrequencyResponse:
        shown = [DeviceCountsResponse(f"{each.start:%Y-%m-%dT%H:%M:%SZ}", each.devices) for each in counts]
        return cls(job_date_scope=span, count=shown)


Projects = Annotated[
    tuple[Text, ...],
    Query(
        max_length=VALUES_MAX, description="Id of a project; all projects of the caller by default. May be repeated."
    ),
]


@router.get(
    "/api/v1/batches/last_activity",
    tags=["batches"],
    summary="Get the last activity of projects",
    **describe_route(list[LastActivityResponse], 422),
)
async def get_last_activity(caller: Caller, ledger: Ledger, project_id: Projects = ()) -> Response:
    """Return the time of the last change in each project of the caller, sorted by project id."""
    found = await ledger.run(statistics.last_activity, ledger, caller, project_id)
    return success([LastActivityResponse(project_id=each.project, last_activity_date=each.time) for each in found])


@router.get(
    "/api/v1/devices/job_counts",
    tags=["devices"],
    summary="Count submitted jobs by period",
    **describe_route(JobFrequencyResponse, 422),
)
async def get_job_counts(
    caller: Caller,
    ledger: Ledger,
    scope: Annotated[Span, Query(description="The length of a period: an hour, day or month in UTC.")],
    project_id: Projects = (),
    start_date: Annotated[
        Time | None,
        Query(
            description="Start of the counted time (ISO 8601). Default: a day before the end for `HOUR`, 30 days "
            "for `DAY`, and a year for `MONTH`."
        ),
    ] = None,
    end_date: Annotated[Time | None, Query(description="End of the counted time (ISO 8601). Default: now.")] = None,
) -> Response:
    """Return the number of jobs that were submitted to the caller's projects, by hour, day or month and by device."""
    until = end_date or datetime.now(UTC)
    since = start_date or until - _SHOWN[scope]
    found = await ledger.run(statistics.job_counts, ledger, caller, project_id, scope, since, until)
    return success(JobFrequencyResponse.from_counts(scope, found))
