"""What the routes of statistics answer with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from pydantic import Field

from tweezer.api.batches.schemas import Count, Schema, Seconds
from tweezer.ledger.queries import statistics
from tweezer.model.messages import Priority


class LastActivity(Schema):
    """When something last changed in a project."""

    project_id: str = Field(examples=["default"])
    last_activity_date: datetime | None = Field(
        description="Null while it has no history.", examples=["2026-11-22T10:00:04.120000Z"]
    )


class DeviceQueue(Schema):
    """What waits for a device, of one priority."""

    queue: Priority = Field(examples=["MEDIUM"])
    number_of_batches: Count = Field(description="Batches with pending jobs.", examples=[2])
    number_of_jobs: Count = Field(description="Pending jobs.", examples=[16])
    number_of_shots: Count = Field(description="Their runs, where they say how many.", examples=[1600])


class QueueSize(Schema):
    """What waits for a device."""

    device_queues: list[DeviceQueue] = Field(description="One of each priority.")

    @classmethod
    def of(cls, sizes: Mapping[Priority, statistics.QueueSize]) -> QueueSize:
        return cls(
            device_queues=[
                DeviceQueue(
                    queue=priority,
                    number_of_batches=size.batches,
                    number_of_jobs=size.jobs,
                    number_of_shots=size.shots,
                )
                for priority, size in sizes.items()
            ]
        )


class QueueTime(Schema):
    """How long jobs wait for a device."""

    device_type: str = Field(examples=["EMU_FREE"])
    average_queue_time: Seconds | None = Field(
        description="Seconds from submit to start, on average; null when no job ended.", examples=[12.5]
    )
    jobs_count: Count = Field(description="Over how many jobs: those that ended lately.", examples=[340])


class DeviceCounts(Schema):
    """Jobs that were submitted in a span of time."""

    datetime: str = Field(description="When the span begins, UTC.", examples=["2026-11-22T10:00:00Z"])
    devices: dict[str, Count] = Field(examples=[{"EMU_FREE": 120, "EMU_MPS": 4}])


class JobFrequency(Schema):
    """Jobs that were submitted, by span of time and device."""

    job_date_scope: statistics.Span = Field(examples=["DAY"])
    count: list[DeviceCounts] = Field(description="Oldest first; spans without jobs are left out.")

    @classmethod
    def of(cls, span: statistics.Span, counts: Sequence[statistics.SpanCount]) -> JobFrequency:
        return cls(
            job_date_scope=span,
            count=[DeviceCounts(datetime=f"{each.start:%Y-%m-%dT%H:%M:%SZ}", devices=each.devices) for each in counts],
        )
