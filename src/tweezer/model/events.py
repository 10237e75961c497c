"""Events: one per transition, as the scripts write them into the stream.

An entry holds all events of one script call on one batch, as words: ``5PR`` (job 5 went from PENDING to
RUNNING), ``0-99PC`` (jobs 0 to 99 from PENDING to CANCELED), ``PR`` (the batch), ``NP:20`` (the batch was
created with 20 jobs), ``RI`` (the batch, which is RUNNING, will time out soon for want of jobs). Letters are those of
the statuses. Each transition has a sequence number; they count up by one within a batch, in the order of the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from tweezer.model.lifecycle import BATCH_BY_LETTER, JOB_BY_LETTER, BatchStatus, JobStatus

_WORD = re.compile(r"(?:(\d+)(?:-(\d+))?)?([A-Z])([A-Z])(?::(\d+))?\Z")


_KNOWN_WORD = re.compile(
    r"\d{1,5}(?:-\d{1,5})?[PRDEC][PRDEC]|N[PRSDECT](?::\d{1,9})?|[PRSDECT][PRSDECTI]"  # indices below 100,000
)


def check_words(words: str) -> None:
    """Raise ValueError unless :func:`read_events` can read the words."""
    for word in words.split():
        if _KNOWN_WORD.fullmatch(word) is None:
            raise ValueError(f"{word[:40]!r} is not a word of an event")


class Event(msgspec.Struct, frozen=True):
    """One transition. ``index`` is the job's, None for one of the batch; ``previous`` is None for
    ``batch.created``, whose ``jobs`` is the number of jobs submitted."""

    batch_id: UUID
    sequence: int
    time_us: int
    status: JobStatus | BatchStatus
    previous: JobStatus | BatchStatus | None
    index: int | None = None
    jobs: int | None = None

    @property
    def id(self) -> str:
        """The same wherever the event is told."""
        return f"{self.batch_id}:{self.sequence}:{self.time_us}"

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self.time_us / 1_000_000, UTC)

    @property
    def type(self) -> str:
        """``job.running``, ``batch.done``, …; ``job.pending`` (back after a reclaim or retry) is internal."""
        if self.index is not None:
            return f"job.{self.status.value.lower()}"
        if self.previous is None:
            return "batch.created"
        if self.previous is self.status:
            return "batch.idle"
        if self.previous is BatchStatus.PAUSED and not BatchStatus(self.status).terminal:
            return "batch.resumed"
        return f"batch.{self.status.value.lower()}"


def jobs_of(word: str) -> range:
    """The indices of the jobs that a word is about; none where it is about the batch."""
    if not word[0].isdigit():
        return range(0)
    first, _, last = word[:-2].partition("-")
    return range(int(first), int(last or first) + 1)


def read_events(batch_id: UUID, first: int, time_us: int, words: str) -> Iterator[Event]:
    """The events of one entry, whose first has sequence number ``first``. Raises ValueError on junk."""
    sequence = first
    for word in words.split():
        match = _WORD.match(word)
        if match is None:
            raise ValueError(f"{word!r} is not a word of an event")
        start, end, before, after, jobs = match.groups()
        if start is None:
            previous = None if before == "N" else BATCH_BY_LETTER[before]
            count = None if jobs is None else int(jobs)
            status = BATCH_BY_LETTER[before if after == "I" else after]
            yield Event(batch_id, sequence, time_us, status, previous, None, count)
            sequence += 1
            continue
        for index in range(int(start), int(end or start) + 1):
            yield Event(batch_id, sequence, time_us, JOB_BY_LETTER[after], JOB_BY_LETTER[before], index)
            sequence += 1
