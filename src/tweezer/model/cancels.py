"""Cancel requests: who made them, for which jobs, and their outcome."""

from __future__ import annotations

import functools
import getpass
import socket
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from tweezer.model.errors import InvalidInput

TIMEOUT = "timeout"
"""The requester that is recorded when a job exceeds its time limit."""

RULE = "tweezer"
"""The requester that is recorded when a rule of a batch cancels its jobs, such as its queue timeout."""

UNKNOWN = "unknown"
"""The requester that is recorded when the caller gave no name."""

BY_LENGTH_MAX = 200
"""Maximum length of the name of a requester."""

_ALL = "*"


class CancelOutcome(StrEnum):
    """The effect of a cancel on a job that has ended.

    prevented: The job never ran: it was pending, its batch was still being prepared, or it had not been submitted to
        the machine.
    stopped: The job was stopped while it ran.
    too_late: The job ended first, or could not be aborted any more; it is DONE or in ERROR.
    unconfirmed: The job was asked to stop, but it is unknown whether it did.
    """

    PREVENTED = "prevented"
    STOPPED = "stopped"
    TOO_LATE = "too_late"
    UNCONFIRMED = "unconfirmed"


class CancelAttempt(msgspec.Struct, frozen=True):
    """One cancel request.

    ranges: the first and last index of each range of jobs that it applied to; None for all jobs of the batch that had
    not ended.
    """

    at: datetime
    by: str
    ranges: tuple[tuple[int, int], ...] | None

    @property
    def jobs(self) -> str:
        """The indices of the jobs, as in ``0-3,7``; ``*`` for all that had not ended."""
        return _ALL if self.ranges is None else show_ranges(self.ranges)

    def concerns(self, index: int, requested: datetime | None, ended: datetime | None) -> bool:
        """Return whether the request applied to a job, given when its cancel was first requested and when it ended."""
        if self.ranges is not None:
            return any(first <= index <= last for first, last in self.ranges)
        return requested is not None and requested <= self.at and (ended is None or self.at <= ended)


@functools.lru_cache(maxsize=64)
def read_attempts(text: str) -> tuple[CancelAttempt, ...]:
    """Parse the attempts of a batch, oldest first: one line each, with milliseconds, the jobs and the requester."""
    return tuple(map(_attempt, text.split("\n"))) if text else ()


def _attempt(line: str) -> CancelAttempt:
    milliseconds, jobs, by = line.split(" ", 2)
    return CancelAttempt(datetime.fromtimestamp(int(milliseconds) / 1000, UTC), by, read_ranges(jobs))


def read_ranges(jobs: str) -> tuple[tuple[int, int], ...] | None:
    """Parse indices of jobs such as ``0-3,7``; ``*`` means all jobs that had not ended, and returns None."""
    return None if jobs == _ALL else tuple(map(_range, jobs.split(",")))


def as_ranges(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Return the indices as the first and last index of each range of consecutive ones, in the given order."""
    ranges: list[tuple[int, int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], index
        else:
            ranges.append((index, index))
    return ranges


def show_ranges(ranges: Iterable[tuple[int, int]]) -> str:
    """Format ranges of indices as in ``0-3,7``."""
    return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in ranges)


def _range(word: str) -> tuple[int, int]:
    first, _, last = word.partition("-")
    return int(first), int(last or first)


def check_by(by: object) -> str:
    """Return the name of the requester. Raises InvalidInput("by", …)."""
    if not isinstance(by, str) or not 1 <= len(by) <= BY_LENGTH_MAX or not by.isprintable() or not by.strip():
        raise InvalidInput("by", f"must be 1 to {BY_LENGTH_MAX} printable characters: a name, or user@host")
    return by


def user_at_host() -> str:
    """Return ``user@host`` of this process: the requester where the caller gives no name."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # in a container whose user has no passwd entry
        user = UNKNOWN
    name = "".join(filter(str.isprintable, f"{user}@{socket.gethostname()}"))
    return name[:BY_LENGTH_MAX]
