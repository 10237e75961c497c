"""Request and response schemas of the routes of schedules."""

from __future__ import annotations

from typing import Annotated, Any, Self
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from tweezer.api.batches.bodies import BatchBody
from tweezer.api.batches.filters import Number, Text
from tweezer.api.http.responses import Count, Moment, RecordResponse, doc
from tweezer.ledger.schedules.records import (
    GRACE_LEAST_S,
    GRACE_MOST_S,
    GRACE_S,
    LEAST_S,
    Missed,
    Overlap,
    Schedule,
    ScheduleStatus,
    ScheduleTick,
    TickOutcome,
)
from tweezer.model.checks import MAX_NAME_LENGTH

_ID = "c2b7d9f0-51c4-4f0e-8a86-2f6e0d3b9a17"
_BATCH = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"

_NAME = doc(
    f"Name of the schedule, which no other one of the project has, at most {MAX_NAME_LENGTH} characters.", "nightly"
)
_CRON = doc(
    "Cron expression: minute, hour, day of month, month and day of week. Give either this or `every_s`.", "30 2 * * *"
)
_ZONE = doc("Time zone of the cron expression, by its name in the IANA database.", "Europe/Paris")
_EVERY = doc(
    f"Interval in seconds, at least {LEAST_S}, counted from the creation of the schedule or the last change of its "
    "times.",
    None,
)
_OVERLAP = doc(
    "What happens while the batch of the last tick has not ended. `skip`: no batch is submitted; `queue`: it is "
    "submitted all the same.",
    "skip",
)
_MISSED = doc(
    "What happens to ticks whose time passed while no scheduler ran. `run_once`: one batch is submitted for the last "
    "of them; `skip`: only if that is not later than `grace_s`.",
    "run_once",
)
_GRACE = doc(
    f"How late a tick may be submitted before it counts as missed, in seconds: {GRACE_LEAST_S} to {GRACE_MOST_S}.", 60
)
_TEMPLATE = doc("The batch: the fields of a submit, without `not_before`.")


class NewSchedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A schedule to create."""

    name: Annotated[str, _NAME]
    template: Annotated[BatchBody, _TEMPLATE]
    cron: Annotated[str | None, _CRON] = None
    time_zone: Annotated[str, _ZONE] = "UTC"
    every_s: Annotated[float | None, _EVERY] = None
    overlap: Annotated[str, _OVERLAP] = Overlap.SKIP.value
    missed: Annotated[str, _MISSED] = Missed.RUN_ONCE.value
    grace_s: Annotated[float, _GRACE] = GRACE_S
    project_id: Annotated[
        str | None, doc("Id of the project; may be omitted if the key belongs to a single project.")
    ] = None
    id: Annotated[
        UUID | None,
        doc(
            "A new random UUID, which makes the request safe to repeat: with the same content it takes effect once. "
            "Null: the server chooses one.",
            None,
        ),
    ] = None


class ScheduleChangeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Changes to a schedule; null leaves a field unchanged. `cron` replaces `every_s`, and the reverse."""

    revision: Annotated[
        int | None, doc("The `revision` that was read: a schedule that has another one is not changed (409).", 1)
    ] = None
    name: Annotated[str | None, _NAME] = None
    template: Annotated[BatchBody | None, _TEMPLATE] = None
    cron: Annotated[str | None, _CRON] = None
    time_zone: Annotated[str | None, _ZONE] = None
    every_s: Annotated[float | None, _EVERY] = None
    overlap: Annotated[str | None, _OVERLAP] = None
    missed: Annotated[str | None, _MISSED] = None
    grace_s: Annotated[float | None, _GRACE] = None


class SchedulePageQuery(BaseModel):
    """The filter and page of a list of schedules."""

    model_config = ConfigDict(frozen=True)

    project_id: tuple[Text, ...] = Field(
        (), max_length=300, description="Id of a project; all projects of the caller by default. May be repeated."
    )
    name: Text | None = Field(None, description="Only the schedules with this name.")
    status: ScheduleStatus | None = Field(None, description="Only schedules with this status.")
    limit: int = Field(100, ge=1, le=100, description="The largest number of rows to return.")
    offset: Number = Field(
        0, description="The number of rows to skip. For the next page, send `pagination.end` of this one."
    )


class ScheduleTickResponse(RecordResponse, frozen=True):
    """A tick of a schedule, or a run on request."""

    tick_at: Annotated[Moment, doc("Its time by the schedule, or the time of the request.")]
    manual: Annotated[bool, doc("Whether it was run on request.", False)]
    outcome: Annotated[
        TickOutcome,
        doc(
            "`pending`: its batch is being submitted; `submitted`; `skipped`: because the last batch had not ended, or "
            "the tick was missed; `failed`: its batch was rejected.",
            "submitted",
        ),
    ]
    batch_id: Annotated[UUID | None, doc("Id of the batch that was submitted; null without one.", _BATCH)]
    code: Annotated[
        str | None, doc("Why it was skipped (`overlap`, `missed`) or failed (the code of the error), or null.", None)
    ]
    message: Annotated[str | None, doc("The same for people.", None)]
    missed: Annotated[Count, doc("Number of earlier ticks that were left out with it, because they were missed.", 0)]
    updated_at: Annotated[Moment, doc("When its outcome was recorded.")]


class ScheduleResponse(RecordResponse, frozen=True):
    """A schedule, without its template."""

    id: Annotated[UUID, doc("Id of the schedule.", _ID)]
    project_id: Annotated[str, doc("Id of its project.", "default")]
    name: Annotated[str, doc("Its name.", "nightly")]
    cron: Annotated[str | None, doc("Its cron expression; null if it has an interval.", "30 2 * * *")]
    time_zone: Annotated[str, _ZONE]
    every_s: Annotated[int | None, doc("Its interval in seconds; null if it has a cron expression.", None)]
    overlap: Annotated[Overlap, _OVERLAP]
    missed: Annotated[Missed, _MISSED]
    grace_s: Annotated[int, _GRACE]
    status: Annotated[
        ScheduleStatus,
        doc(
            "`active`; `paused`: by a user; `stopped`: by Tweezer, because its creator lost access or its project is "
            "being deleted.",
            "active",
        ),
    ]
    reason: Annotated[str | None, doc("Why it is paused or stopped, for people; else null.", None)]
    changed_by: Annotated[str, doc("Who created, paused, resumed or stopped it last, for people.", "key k3v9q2m7x4ab")]
    status_since: Annotated[Moment, doc("Since when it has its status.")]
    created_by: Annotated[str, doc("Who created it; it submits batches on their behalf.", "key k3v9q2m7x4ab")]
    user_id: Annotated[str | None, doc("Id of that user; null if it is not a user.", None)]
    created_at: Annotated[Moment, doc("When it was created.")]
    updated_at: Annotated[Moment, doc("When it was last changed.")]
    revision: Annotated[Count, doc("Number of its changes, including its creation.", 1)]
    next_at: Annotated[Moment | None, doc("Time of its next tick; null unless it is active.")]
    last: Annotated[ScheduleTickResponse | None, doc("Its last tick; null before the first one.")]

    @classmethod
    def from_record(cls, record: Schedule, **computed: Any) -> Self:
        last = None if record.last is None else ScheduleTickResponse.from_record(record.last)
        return super().from_record(record, last=last, **computed)


class FullScheduleResponse(ScheduleResponse, frozen=True):
    """A schedule with its template and its last ticks."""

    template: Annotated[BatchBody, doc("The batch, with the fields of a submit.")]
    ticks: Annotated[list[ScheduleTickResponse], doc("Its last 20 ticks, newest first.")]


def write_ticks(ticks: tuple[ScheduleTick, ...]) -> list[ScheduleTickResponse]:
    return [ScheduleTickResponse.from_record(tick) for tick in ticks]
