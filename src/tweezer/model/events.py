"""Events: one per transition, as the scripts write them into the stream.

An entry holds all events of one script call on one batch, as words: ``5PR`` (job 5 went from PENDING to
RUNNING), ``0-99PC`` (jobs 0 to 99 from PENDING to CANCELED), ``PR`` (the batch), ``NP:20`` (the batch was
created with 20 jobs), ``RI`` (the batch, which is RUNNING, will time out soon for want of jobs). Letters are those of
the statuses. Each transition has a sequence number; they count up by one within a batch, in the order of the words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from tweezer.model.lifecycle import BATCH_BY_LETTER, JOB_BY_LETTER, BatchStatus, JobStatus, Stage

_WORD = re.compile(  # indices below 100,000
    r"(\d{1,5})(?:-(\d{1,5}))?([PRDEC][PRDEC])|(N[PRSDECT])(?::(\d{1,9}))?|([PRSDECT][PRSDECTI])"
)


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


class Notice(msgspec.Struct, frozen=True):
    """An event that is of no batch: of a device, or of an endpoint of webhooks.

    id: the same wherever it is told. project: whose it is; None: everybody's. data: a JSON object.
    """

    id: str
    type: str
    project: str | None
    time_us: int
    data: str


class Word(msgspec.Struct, frozen=True):
    """A word of an entry: a transition of some jobs, one after the other, or of the batch.

    jobs: indices of the jobs; empty for the batch. letters: of the statuses before and after; ``N`` before is a batch
    that was created, ``I`` after one that is without work. submitted: number of jobs that a batch was created with.
    """

    letters: str
    jobs: range = range(0)
    submitted: int | None = None

    @classmethod
    def parse(cls, text: str) -> Word:
        """Raises ValueError on junk."""
        return _parse(text)

    def __str__(self) -> str:
        if self.submitted is not None:
            return f"{self.letters}:{self.submitted}"
        ends = (self.jobs.start, self.jobs.stop - 1)[: len(self.jobs)]
        return "-".join(map(str, ends)) + self.letters

    @property
    def count(self) -> int:
        """How many events it stands for."""
        return len(self.jobs) or 1

    def skip(self, count: int) -> Word:
        """Return it without its first events, of which there are more than that."""
        return Word(self.letters, self.jobs[count:], self.submitted) if count > 0 else self

    def events(self, batch_id: UUID, sequence: int, time_us: int) -> Iterator[Event]:
        """Yield its events, the first with this sequence number."""
        before, after = self.letters[0], self.letters[1]
        if self.jobs:
            for number, index in enumerate(self.jobs, sequence):
                yield Event(batch_id, number, time_us, JOB_BY_LETTER[after], JOB_BY_LETTER[before], index)
        else:
            previous = None if before == "N" else BATCH_BY_LETTER[before]
            status = BATCH_BY_LETTER[before if after == "I" else after]
            yield Event(batch_id, sequence, time_us, status, previous, None, self.submitted)


@functools.lru_cache(maxsize=8192)
def _parse(text: str) -> Word:
    match = _WORD.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a word of an event")
    first, last, job, created, submitted, batch = match.groups()
    if job is not None:
        return Word(job, range(int(first), int(last or first) + 1))
    return Word(created or batch, submitted=None if submitted is None else int(submitted))


def read_words(words: str) -> list[Word]:
    """Return the words of an entry. Raises ValueError on junk."""
    return list(map(_parse, words.split()))


def count_events(words: str) -> int:
    """Return how many events the words of an entry stand for."""
    return sum(word.count for word in read_words(words))


def read_events(batch_id: UUID, first: int, time_us: int, words: str) -> Iterator[Event]:
    """Yield the events of one entry, whose first has sequence number ``first``. Raises ValueError on junk."""
    sequence = first
    for word in read_words(words):
        yield from word.events(batch_id, sequence, time_us)
        sequence += word.count


class JobNews(msgspec.Struct, frozen=True):
    """What a running job is doing: news of its batch, published and not kept. percent: None if it is not known."""

    index: int
    stage: Stage
    percent: float | None


def read_news(message: bytes) -> JobNews | list[Word]:
    """Return what is published on the channel of a batch: progress of a job, or the words of an entry."""
    text = message.decode()
    if not text.startswith("~"):
        return read_words(text)
    index, stage, percent = text[1:].split()
    return JobNews(int(index), Stage(stage), None if percent == "-" else float(percent))


def words_of_news(messages: Iterable[bytes]) -> list[Word]:
    """Return the words among the news of a batch; progress is left out."""
    return [word for message in messages if not message.startswith(b"~") for word in read_words(message.decode())]
