"""What keeps a device from beginning jobs, and for how long: pauses, planned maintenance, its machine, no workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from tweezer.model.arguments import shown
from tweezer.model.errors import InvalidInput

WINDOWS_MAX = 100
"""Windows of maintenance of one device."""


class Window(msgspec.Struct, frozen=True):
    """Planned maintenance of a device. Times are UTC; reason: for people."""

    id: str
    begins: datetime
    ends: datetime
    reason: str


class DeviceState(msgspec.Struct, frozen=True):
    """Why a device begins no jobs, as Redis keeps it with a window, and as notices have it. until: ISO 8601."""

    device: str
    status: str
    reason: str | None = None
    until: str | None = None


class UnavailabilityKind(StrEnum):
    """Why a device begins no jobs."""

    PAUSED = "paused"  # by an operator
    MAINTENANCE = "maintenance"  # planned by one
    DOWN = "down"  # its machine says so
    UNSERVED = "no worker"


class Unavailability(msgspec.Struct, frozen=True):
    """Why a device begins no jobs now. until: None where nobody has said."""

    kind: UnavailabilityKind
    reason: str = ""
    until: datetime | None = None

    def describe(self, clock: Callable[[datetime], str]) -> str:
        """``paused until 14:00: new lens``, with times as the clock writes them."""
        until = "" if self.until is None else f" until {clock(self.until)}"
        return f"{self.kind.value}{until}{self.reason and f': {self.reason}'}"


def remaining_s(
    *, pending: int, begun: bool, lanes: int, job_s: float | None, batch_job_s: float | None, limit_s: float
) -> float:
    """How long a batch is expected to need until its end; of one that has begun, until the end of one more job.

    That is what it must have before the maintenance of its device. job_s, batch_job_s: how long jobs of the device, and
    of the batch, take; without either nothing is known and nothing is kept from beginning. limit_s: the most that a job
    may take. The scripts reckon the same (``ends_in_time.lua``).
    """
    each_s = min(batch_job_s or job_s or 0.0, limit_s)
    return each_s * (1 if begun else math.ceil(pending / max(lanes, 1)))


def check_time(field: str, at: object) -> None:
    """Raises InvalidInput unless this is an aware time that can be kept."""
    if not isinstance(at, datetime):
        raise InvalidInput(field, f"expects an aware datetime, such as datetime.now(UTC), got {shown(at)}")
    if at.utcoffset() is None:
        raise InvalidInput(field, "has no time zone; give an aware datetime, such as datetime.now(UTC)")
    if not _YEARS[0] <= at.year <= _YEARS[1]:
        raise InvalidInput(field, f"must be of a year from {_YEARS[0]} to {_YEARS[1]}, not {at.year}")
    if at.astimezone(UTC).astimezone(at.tzinfo).replace(tzinfo=None, fold=0) != at.replace(tzinfo=None, fold=0):
        raise InvalidInput(field, f"{at:%Y-%m-%dT%H:%M} does not exist in {at.tzinfo}: the clocks go forward then")


_YEARS = (1971, 9998)  # a day from 1970 and from what a datetime holds, in any time zone
