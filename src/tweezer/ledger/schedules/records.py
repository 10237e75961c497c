"""The records of schedules and their ticks, as the Python API and the HTTP API show them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any
from uuid import UUID

import msgspec

from tweezer.model.arguments import shown
from tweezer.model.checks import MAX_INTEGER, MAX_NAME_LENGTH, MAX_TAGS, check_text
from tweezer.model.errors import InvalidInput
from tweezer.model.ids import INDEX_BITS

SCHEDULES_MAX = 100
"""The most schedules that a project can have."""

LEAST_S = 60
"""The shortest interval of a schedule, in seconds."""

MOST_S = 366 * 86_400
GRACE_S = 60
"""By default, how late a tick may be submitted before it counts as missed, in seconds."""

GRACE_LEAST_S, GRACE_MOST_S = 10, 7 * 86_400
CRON_LENGTH_MAX = 200
ZONE_LENGTH_MAX = 64
OWN_TAGS = 2
"""Number of tags that a schedule adds to those of its template."""


class Overlap(StrEnum):
    """What happens at a tick while the batch of the last tick has not ended.

    Attributes:
        SKIP: No batch is submitted.
        QUEUE: The batch is submitted all the same, and waits like every other batch.
    """

    SKIP = "skip"
    QUEUE = "queue"


class Missed(StrEnum):
    """What happens to ticks whose time passed while no scheduler could submit them.

    Attributes:
        RUN_ONCE: One batch is submitted for the last of them.
        SKIP: None is submitted if the last of them is later than the grace.
    """

    RUN_ONCE = "run_once"
    SKIP = "skip"


class ScheduleStatus(StrEnum):
    """Whether a schedule submits batches. Stopped: by Tweezer, because its creator lost access."""

    ACTIVE = "active"
    PAUSED = "paused"
    STOPPED = "stopped"


class TickOutcome(StrEnum):
    """The outcome of a tick. Pending: its batch is being submitted."""

    PENDING = "pending"
    SUBMITTED = "submitted"
    SKIPPED = "skipped"
    FAILED = "failed"


class ScheduleTick(msgspec.Struct, frozen=True):
    """A tick of a schedule, or a run on request.

    Attributes:
        tick_at: Its time by the schedule, or the time of the request.
        manual: Whether it was run on request.
        outcome: Whether its batch was submitted.
        batch_id: The batch that was submitted, else None.
        code: Why it was skipped (``overlap``, ``missed``) or failed (the code of the error), else None.
        message: The same for people.
        missed: Number of earlier ticks that were left out, because they were missed together.
        updated_at: When the outcome was recorded.
    """

    tick_at: datetime
    manual: bool
    outcome: TickOutcome
    batch_id: UUID | None
    code: str | None
    message: str | None
    missed: int
    updated_at: datetime


class Schedule(msgspec.Struct, frozen=True):
    """A schedule.

    Attributes:
        id: Its UUID.
        project_id: Id of its project.
        name: Its name, which no other schedule of the project has.
        cron: Its cron expression; None if it has an interval.
        time_zone: The time zone of the cron expression.
        every_s: Its interval in seconds; None if it has a cron expression.
        overlap: What happens while the last batch has not ended.
        missed: What happens to missed ticks.
        grace_s: How late a tick may be submitted before it counts as missed, in seconds.
        status: Whether it submits batches.
        reason: Why it is paused or stopped.
        changed_by: Who created, paused, resumed or stopped it last.
        status_since: Since when it has its status.
        created_by: Who created it; batches are submitted on behalf of that user or key.
        user_id: Id of that user, if it is one.
        created_at: When it was created.
        updated_at: When it was last changed.
        revision: Number of its changes; a change can require that it is the latest.
        next_at: Time of its next tick; None unless it is active.
        last: Its last tick; None before the first one.
        template: The fields of the submit, as in the HTTP API; only in the record of a single schedule.
        ticks: Its last ticks, newest first; only in the record of a single schedule.
    """

    id: UUID
    project_id: str
    name: str
    cron: str | None
    time_zone: str
    every_s: int | None
    overlap: Overlap
    missed: Missed
    grace_s: int
    status: ScheduleStatus
    reason: str | None
    changed_by: str
    status_since: datetime
    created_by: str
    user_id: str | None
    created_at: datetime
    updated_at: datetime
    revision: int
    next_at: datetime | None
    last: ScheduleTick | None = None
    template: dict[str, Any] | None = None
    ticks: tuple[ScheduleTick, ...] = ()

    def describe_timing(self) -> str:
        """Return when it runs, for people: ``30 2 * * * Europe/Paris`` or ``every 3600 s``."""
        return f"every {self.every_s} s" if self.cron is None else f"{self.cron} {self.time_zone}"


class ScheduleSettings(msgspec.Struct, frozen=True):
    """When a schedule runs, unchecked; see Schedule for the fields."""

    name: str
    cron: str | None = None
    time_zone: str = "UTC"
    every_s: float | None = None
    overlap: str = Overlap.SKIP
    missed: str = Missed.RUN_ONCE
    grace_s: float = GRACE_S


class ScheduleChange(msgspec.Struct, frozen=True):
    """Changes of a schedule; None leaves a field as it is. revision: the one that is changed, if that matters."""

    revision: int | None = None
    name: str | None = None
    cron: str | None = None
    time_zone: str | None = None
    every_s: float | None = None
    overlap: str | None = None
    missed: str | None = None
    grace_s: float | None = None


class Creator(msgspec.Struct, frozen=True):
    """Who acts. user: id of a user. key: id of a key, unless the user logged in. by: the same for people."""

    by: str
    user: str | None = None
    key: str | None = None


def check_settings(given: ScheduleSettings) -> ScheduleSettings:
    """Return the settings with checked values, except cron expression and time zone. Raises InvalidInput."""
    values = {name: getattr(given, name) for name in _CHECKS}
    checked = ScheduleSettings(**_check_values(values, optional={"cron", "every_s"}))
    if checked.cron is None and checked.every_s is None:
        raise InvalidInput("cron", "is required, unless every_s is given")
    return checked


def check_change(given: ScheduleChange) -> ScheduleChange:
    """Return the change with checked values, as :func:`check_settings`. Raises InvalidInput."""
    revision = given.revision
    if revision is not None and (type(revision) is not int or not 1 <= revision <= MAX_INTEGER):
        raise InvalidInput("revision", f"expected the revision of a schedule, got {shown(revision)}")
    values = {name: getattr(given, name) for name in _CHECKS}
    return ScheduleChange(revision, **_check_values(values, optional=values.keys()))


def check_template_tags(tags: object) -> None:
    """Raise InvalidInput unless there is room for the tags that the schedule adds."""
    most = MAX_TAGS - OWN_TAGS
    if isinstance(tags, (list, tuple)) and len(tags) > most:
        problem = f"at most {most} tags are allowed in a schedule, which adds {OWN_TAGS} more (got {len(tags)})"
        raise InvalidInput("tags", problem)


def is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def make_batch_id(schedule: UUID, key: str, at_ms: int) -> UUID:
    """Return the id of the batch of a tick. All schedulers derive the same, so a repeated submit is recognised."""
    digest = int.from_bytes(hashlib.sha256(f"{schedule} {key}".encode()).digest())
    high = (at_ms & ((1 << 48) - 1)) << 16 | 8 << 12 | digest & 0xFFF
    low = 0b10 << 62 | (digest >> 12 & ((1 << 38) - 1)) << INDEX_BITS
    return UUID(int=high << 64 | low)


def _check_values(values: dict[str, Any], *, optional: Collection[str]) -> dict[str, Any]:
    """Return the checked values. optional: those that may be None."""
    checked = {
        name: None if value is None and name in optional else _CHECKS[name](name, value)
        for name, value in values.items()
    }
    if None not in (checked["cron"], checked["every_s"]):
        raise InvalidInput("every_s", "contradicts cron; give one of them")
    return checked


def _check_name(field: str, value: object) -> str:
    name = check_text(field, value, MAX_NAME_LENGTH)
    if name != name.strip():
        raise InvalidInput(field, "must not begin or end with a space")
    if is_uuid(name):
        raise InvalidInput(field, "must not have the form of an id")
    return name


def _check_whole(field: str, value: object, least: int, most: int) -> int:
    is_whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    if not is_whole or not least <= value <= most:  # type: ignore[operator]
        raise InvalidInput(field, f"must be a whole number of seconds from {least} to {most} (got {shown(value)})")
    return int(value)  # type: ignore[call-overload,no-any-return]


def _check_choice(field: str, value: object, kind: type[StrEnum]) -> StrEnum:
    try:
        return kind(value)  # type: ignore[arg-type]
    except ValueError:
        raise InvalidInput(field, f"must be {' or '.join(kind)} (got {shown(value)})") from None


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "name": _check_name,
    "cron": partial(check_text, most=CRON_LENGTH_MAX),
    "time_zone": partial(check_text, most=ZONE_LENGTH_MAX),
    "every_s": partial(_check_whole, least=LEAST_S, most=MOST_S),
    "overlap": partial(_check_choice, kind=Overlap),
    "missed": partial(_check_choice, kind=Missed),
    "grace_s": partial(_check_whole, least=GRACE_LEAST_S, most=GRACE_MOST_S),
}
