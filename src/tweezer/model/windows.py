"""Reasons why a device begins no jobs (pause, maintenance, machine down, no workers), and maintenance windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from tweezer.model.arguments import shown
from tweezer.model.errors import InvalidInput

WINDOWS_MAX = 100
"""Maximum number of maintenance windows of a device."""


class Window(msgspec.Struct, frozen=True):
    """A maintenance window of a device. Times are UTC. reason: for people."""

    id: str
    begins: datetime
    ends: datetime
    reason: str


class DeviceState(msgspec.Struct, frozen=True):
    """Why a device begins no jobs, as stored in Redis with a window and sent in notices. until: ISO 8601."""

    device: str
    status: str
    reason: str | None = None
    until: str | None = None


class UnavailabilityKind(StrEnum):
    """Why a device begins no jobs."""

    PAUSED = "paused"  # by an operator
    MAINTENANCE = "maintenance"  # planned by an operator
    DOWN = "down"  # as its machine reports
    UNSERVED = "no worker"


class Unavailability(msgspec.Struct, frozen=True):
    """Why a device begins no jobs now. until: None if unknown."""

    kind: UnavailabilityKind
    reason: str = ""
    until: datetime | None = None

    def describe(self, clock: Callable[[datetime], str]) -> str:
        """Return ``paused until 14:00: new lens``; ``clock`` formats the time."""
        until = "" if self.until is None else f" until {clock(self.until)}"
        return f"{self.kind.value}{until}{self.reason and f': {self.reason}'}"


def remaining_s(
    *, pending: int, begun: bool, lanes: int, job_s: float | None, batch_job_s: float | None, limit_s: float
) -> float:
    """Return how much time, in seconds, a batch needs before the next maintenance of its device begins.

    A batch that has not begun needs the time of all its pending jobs; one that has begun needs the time of one more
    job. job_s, batch_job_s: the average duration of a job on the device, and in the batch; if both are unknown, the
    result is 0 and nothing is held back. limit_s: the time limit of a job. ``ends_in_time.lua`` computes the same.
    """
    each_s = min(batch_job_s or job_s or 0.0, limit_s)
    return each_s * (1 if begun else math.ceil(pending / max(lanes, 1)))


def check_time(field: str, at: object) -> None:
    """Raise InvalidInput unless this is an aware time that can be stored."""
    if not isinstance(at, datetime):
        raise InvalidInput(field, f"expected an aware datetime, such as datetime.now(UTC), got {shown(at)}")
    if at.utcoffset() is None:
        raise InvalidInput(field, "has no time zone; use an aware datetime, such as datetime.now(UTC)")
    if not _YEARS[0] <= at.year <= _YEARS[1]:
        raise InvalidInput(field, f"the year must be {_YEARS[0]} to {_YEARS[1]} (got {at.year})")
    if at.astimezone(UTC).astimezone(at.tzinfo).replace(tzinfo=None, fold=0) != at.replace(tzinfo=None, fold=0):
        raise InvalidInput(field, f"{at:%Y-%m-%dT%H:%M} does not exist in {at.tzinfo}: the clocks go forward then")


_YEARS = (1971, 9998)  # at least a day from 1970 and from the last datetime, in any time zone
