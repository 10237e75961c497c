"""Figures about devices and projects, from the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response
from msgspec import Meta

from tweezer.api.access.dependencies import Caller, Ledger
from tweezer.api.batches.filters import VALUES_MAX, Text, Time
from tweezer.api.http.openapi import answers
from tweezer.api.http.responses import Count, Moment, RecordResponse, Seconds, Source, doc, success
from tweezer.ledger.queries import statistics
from tweezer.ledger.queries.statistics import Span
from tweezer.model.messages import Priority

_SHOWN = {Span.HOUR: timedelta(days=1), Span.DAY: timedelta(days=30), Span.MONTH: timedelta(days=365)}

router = APIRouter()


class LastActivityResponse(msgspec.Struct, frozen=True):
    """When something last changed in a project."""

    project_id: Annotated[str, Meta(examples=["default"])]
    last_activity_date: Annotated[Moment | None, doc("Null while it has no history.")]


class DeviceQueueResponse(RecordResponse, frozen=True):
    """What waits for a device, of one priority."""

    queue: Annotated[Priority, Meta(examples=["MEDIUM"])]
    number_of_batches: Annotated[Count, Source("batches"), doc("Batches with pending jobs.", 2)]
    number_of_jobs: Annotated[Count, Source("jobs"), doc("Pending jobs.", 16)]
    number_of_shots: Annotated[Count, Source("shots"), doc("Their runs, where they say how many.", 1600)]


class QueueSizeResponse(msgspec.Struct, frozen=True):
    """What waits for a device."""

    device_queues: Annotated[list[DeviceQueueResponse], doc("One of each priority.")]

    @classmethod
    def from_sizes(cls, sizes: Mapping[Priority, statistics.QueueSize]) -> QueueSizeResponse:
        return cls([DeviceQueueResponse.from_record(size, queue=priority) for priority, size in sizes.items()])


class QueueTimeResponse(msgspec.Struct, frozen=True):
    """How long jobs wait for a device."""

    device_type: Annotated[str, Meta(examples=["EMU_FREE"])]
    average_queue_time: Annotated[
        Seconds | None, doc("Seconds from submit to start, on average; null when no job ended.", 12.5)
    ]
    jobs_count: Annotated[Count, doc("Over how many jobs: those that ended lately.", 340)]


class DeviceCountsResponse(msgspec.Struct, frozen=True):
    """Jobs that were submitted in a span of time."""

    datetime: Annotated[str, doc("When the span begins, UTC.", "2026-11-22T10:00:00Z")]
    devices: Annotated[dict[str, Count], Meta(examples=[{"EMU_FREE": 120, "EMU_MPS": 4}])]


class JobFrequencyResponse(msgspec.Struct, frozen=True):
    """Jobs that were submitted, by span of time and device."""

    job_date_scope: Annotated[statistics.Span, Meta(examples=["DAY"])]
    count: Annotated[list[DeviceCountsResponse], doc("Oldest first; spans without jobs are left out.")]

    @classmethod
    def from_counts(cls, span: statistics.Span, counts: Sequence[statistics.SpanCount]) -> JobFrequencyResponse:
        shown = [DeviceCountsResponse(f"{each.start:%Y-%m-%dT%H:%M:%SZ}", each.devices) for each in counts]
        return cls(job_date_scope=span, count=shown)


Projects = Annotated[
    tuple[Text, ...],
    Query(max_length=VALUES_MAX, description="Projects. May be repeated. Default: all of the caller's."),
]


@router.get(
    "/api/v1/batches/last_activity",
    tags=["batches"],
    summary="When something last happened in a project",
    **answers(list[LastActivityResponse], 422),
)
async def get_last_activity(caller: Caller, ledger: Ledger, project_id: Projects = ()) -> Response:
    """One entry a project that the caller sees, by id."""
    found = await ledger.run(statistics.last_activity, ledger, caller, project_id)
    return success([LastActivityResponse(project_id=each.project, last_activity_date=each.time) for each in found])


@router.get(
    "/api/v1/devices/job_counts",
    tags=["devices"],
    summary="How many jobs were submitted",
    **answers(JobFrequencyResponse, 422),
)
async def get_job_counts(
    caller: Caller,
    ledger: Ledger,
    scope: Annotated[Span, Query(description="What is counted together, in UTC.")],
    project_id: Projects = (),
    start_date: Annotated[Time | None, Query(description="Default: a day, 30 days or a year before the end.")] = None,
    end_date: Annotated[Time | None, Query(description="Default: now.")] = None,
) -> Response:
    """Jobs that were submitted to the caller's projects, by hour, day or month and device."""
    until = end_date or datetime.now(UTC)
    since = start_date or until - _SHOWN[scope]
    found = await ledger.run(statistics.job_counts, ledger, caller, project_id, scope, since, until)
    return success(JobFrequencyResponse.from_counts(scope, found))
