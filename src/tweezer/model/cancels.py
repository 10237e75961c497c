"""Who asked for the end of jobs, and what came of it."""

from __future__ import annotations

import functools
import getpass
import socket
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from tweezer.model.errors import InvalidInput

TIMEOUT = "timeout"
"""Who asks when a job takes longer than its limit."""

UNKNOWN = "unknown"
"""Who asks when nobody said."""

_LENGTH_MAX = 200
_ALL = "*"


class CancelOutcome(StrEnum):
    """What a cancel did to a job that has ended.

    prevented: nothing of it ran: it was pending, its batch was still being prepared, or it was not yet submitted to the
    machine. stopped: it was stopped while it ran. too_late: its end came first, or it could not be aborted any more; it
    is DONE or in ERROR. unconfirmed: it was asked to stop, and nobody knows whether it did.
    """

    PREVENTED = "prevented"
    STOPPED = "stopped"
    TOO_LATE = "too_late"
    UNCONFIRMED = "unconfirmed"


class CancelAttempt(msgspec.Struct, frozen=True):
    """One request to end jobs. ranges: first and last index of those that it was heeded for; None for all of the batch
    that had not ended."""

    at: datetime
    by: str
    ranges: tuple[tuple[int, int], ...] | None

    @property
    def jobs(self) -> str:
        """Their indices, as in ``0-3,7``; ``*`` for all that had not ended."""
        if self.ranges is None:
            return _ALL
        return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in self.ranges)

    def concerns(self, index: int, requested: datetime | None, ended: datetime | None) -> bool:
        """Whether it was about this job, whose end was first requested and came then."""
        if self.ranges is not None:
            return any(first <= index <= last for first, last in self.ranges)
        return requested is not None and requested <= self.at and (ended is None or self.at <= ended)


@functools.lru_cache(maxsize=64)
def read_attempts(text: str) -> tuple[CancelAttempt, ...]:
    """The attempts of a batch, the oldest first: a line each with milliseconds, the jobs, and who it was."""
    return tuple(map(_attempt, text.split("\n"))) if text else ()


def _attempt(line: str) -> CancelAttempt:
    milliseconds, jobs, by = line.split(" ", 2)
    ranges = None if jobs == _ALL else tuple(map(_range, jobs.split(",")))
    return CancelAttempt(datetime.fromtimestamp(int(milliseconds) / 1000, UTC), by, ranges)


def _range(word: str) -> tuple[int, int]:
    first, _, last = word.partition("-")
    return int(first), int(last or first)


def check_by(by: object) -> str:
    """Who asks, if that can be noted. Raises InvalidInput("by", …)."""
    if not isinstance(by, str) or not 1 <= len(by) <= _LENGTH_MAX or not by.isprintable() or not by.strip():
        raise InvalidInput("by", f"must be 1 to {_LENGTH_MAX} printable characters: a name, or user@host")
    return by


def user_at_host() -> str:
    """Who runs this process, for when nobody gives a name."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container whose user has no entry
        user = UNKNOWN
    name = "".join(filter(str.isprintable, f"{user}@{socket.gethostname()}"))
    return name[:_LENGTH_MAX]
