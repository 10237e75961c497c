"""Events: one per transition, in the form in which the scripts write them to the stream.

A stream entry contains all events of one script call on one batch, as words: ``5PR`` (job 5 went from PENDING to
RUNNING), ``0-99PC`` (jobs 0 to 99 went from PENDING to CANCELED), ``PR`` (the batch itself), ``NP:20`` (the batch was
created with 20 jobs), ``RI`` (the RUNNING batch has no work and will soon time out), ``PL`` (the PENDING batch is
late). The letters are those of the statuses. Each transition has a sequence number, which increases by one within a
batch, in the order of the words. The entry also names the lane that held the ticket, if one did, and why running jobs
became pending again: ``host:812:3fa901:0 lost``. If their attempts failed, it has the faults, one on a line:
``5,7 retry {"code":…}``.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from tweezer.model.lifecycle import BATCH_BY_LETTER, JOB_BY_LETTER, BatchStatus, JobStatus, Stage
from tweezer.model.messages import Fault, Steps, decode_fault, read_steps

_WORD = re.compile(  # indices below 100,000
    r"(\d{1,5})(?:-(\d{1,5}))?([PRDEC][PRDEC])|(N[PRSDECT])(?::(\d{1,9}))?|([PRSDECT][PRSDECTIL])"
)


RETURNS = {
    "lost": "its worker stopped renewing its lease",
    "drain": "its worker gave it back, because it was stopping or its device became unavailable",
    "fail": "its lane failed",
    "retry": "it failed for a reason that may pass",
    "crash": "its lane's process died",
    "report": "it was reported as pending through the API",
    "restart": "Redis restarted and lost its ticket",
}
"""Why a running job became pending again: the words of the scripts, with an explanation."""


class Event(msgspec.Struct, frozen=True):
    """One transition of a batch or of one of its jobs.

    Attributes:
        batch_id: The batch.
        sequence: Number of the event within the batch, from 1.
        time_us: When it happened, in microseconds since 1970 (UTC).
        status: The new status.
        previous: The previous status; None for ``batch.created``.
        index: Index of the job within the batch; None for an event of the batch itself.
        jobs: The number of submitted jobs, for ``batch.created`` only.
        worker: For an event of a job, the id of the worker that held it, as in ``tweezer workers``; None if none did,
            or for an event from before this was recorded.
        lane: The number of the worker's lane.
        why: Why a running job became pending again, a key of ``RETURNS``.
        fault: Why its attempt failed, if that made it pending again.
        is_late: Whether it is ``batch.late``, which does not change the status.
    """

    batch_id: UUID
    sequence: int
    time_us: int
    status: JobStatus | BatchStatus
    previous: JobStatus | BatchStatus | None
    index: int | None = None
    jobs: int | None = None
    worker: str | None = None
    lane: int | None = None
    why: str | None = None
    fault: Fault | None = None
    is_late: bool = False

    @property
    def reason(self) -> str | None:
        """Why a running job became pending again, for people."""
        return None if self.why is None else RETURNS[self.why]

    @property
    def id(self) -> str:
        """The event's id, the same in the feed, in the stream and in webhooks."""
        return f"{self.batch_id}:{self.sequence}:{self.time_us}"

    @property
    def time(self) -> datetime:
        """When it happened, in UTC."""
        return datetime.fromtimestamp(self.time_us / 1_000_000, UTC)

    @property
    def type(self) -> str:
        """The event's type: ``job.running``, ``batch.done``, …; ``job.pending`` (after a retry) is internal."""
        if self.index is not None:
            return f"job.{self.status.value.lower()}"
        if self.previous is None:
            return "batch.created"
        if self.previous is self.status:
            return "batch.late" if self.is_late else "batch.idle"
        if self.previous is BatchStatus.PAUSED and not BatchStatus(self.status).terminal:
            return "batch.resumed"
        return f"batch.{self.status.value.lower()}"


class Notice(msgspec.Struct, frozen=True):
    """An event of a device or a webhook endpoint, not of a batch.

    id: the same in the feed, in the stream and in webhooks. project: None if it concerns all projects. data: a JSON
    object.
    """

    id: str
    type: str
    project: str | None
    time_us: int
    data: str


class Word(msgspec.Struct, frozen=True):
    """A word of an entry: the same transition of consecutive jobs, or a transition of the batch.

    jobs: indices of the jobs; empty for the batch. letters: the statuses before and after; ``N`` as the first letter
    means that the batch was created, ``I`` as the second that it has no work, and ``L`` that it is late. submitted: the
    number of jobs that the batch was created with.
    """

    letters: str
    jobs: range = range(0)
    submitted: int | None = None

    @classmethod
    def parse(cls, text: str) -> Word:
        """Parse a word. Raises ValueError if it is invalid."""
        return _parse(text)

    def __str__(self) -> str:
        if self.submitted is not None:
            return f"{self.letters}:{self.submitted}"
        ends = (self.jobs.start, self.jobs.stop - 1)[: len(self.jobs)]
        return "-".join(map(str, ends)) + self.letters

    @property
    def count(self) -> int:
        """The number of events in the word."""
        return len(self.jobs) or 1

    @property
    def moves_batch(self) -> bool:
        """Whether the batch itself was created or changed its status."""
        return not self.jobs and self.letters[1] in BATCH_BY_LETTER

    def skip(self, count: int) -> Word:
        """Return the word without its first ``count`` events; it must contain more."""
        return Word(self.letters, self.jobs[count:], self.submitted) if count > 0 else self

    def events(
        self, batch_id: UUID, sequence: int, time_us: int, holder: str = "", faults: str = ""
    ) -> Iterator[Event]:
        """Yield the events of the word; the first one has this sequence number. The rest as :func:`read_events`."""
        before, after = self.letters[0], self.letters[1]
        if self.jobs:
            worker, lane, why = _read_holder(holder)
            returns = _read_faults(faults) if faults and after == "P" else {}
            by = (worker, lane, why if after == "P" else None)
            for number, index in enumerate(self.jobs, sequence):
                last = by if index not in returns else (worker, lane, *returns[index])
                yield Event(batch_id, number, time_us, JOB_BY_LETTER[after], JOB_BY_LETTER[before], index, None, *last)
        else:
            previous = None if before == "N" else BATCH_BY_LETTER[before]
            status = BATCH_BY_LETTER[before if after in "IL" else after]
            yield Event(batch_id, sequence, time_us, status, previous, None, self.submitted, is_late=after == "L")


@functools.lru_cache(maxsize=1024)
def _read_holder(text: str) -> tuple[str | None, int | None, str | None]:
    """Split ``worker:lane why``; parts that are missing or invalid are None."""
    held, _, why = text.partition(" ")
    worker, _, lane = held.rpartition(":")
    number = int(lane) if re.fullmatch(r"\d{1,5}", lane, re.ASCII) else None
    return worker or None, number, why if why in RETURNS else None


@functools.lru_cache(maxsize=256)
def _read_faults(text: str) -> Mapping[int, tuple[str | None, Fault]]:
    """Return why each job became pending, and its fault. Lines that are not valid are ignored."""
    found: dict[int, tuple[str | None, Fault]] = {}
    for line in text.splitlines():
        indices, _, rest = line.partition(" ")
        why, _, packed = rest.partition(" ")
        if re.fullmatch(r"\d{1,5}(,\d{1,5})*", indices, re.ASCII) is None:
            continue
        with contextlib.suppress(msgspec.MsgspecError):
            fault = decode_fault(packed.encode())
            found |= dict.fromkeys(map(int, indices.split(",")), (why if why in RETURNS else None, fault))
    return found


@functools.lru_cache(maxsize=8192)
def _parse(text: str) -> Word:
    match = _WORD.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a valid event word")
    first, last, job, created, submitted, batch = match.groups()
    if job is not None:
        return Word(job, range(int(first), int(last or first) + 1))
    return Word(created or batch, submitted=None if submitted is None else int(submitted))


def read_words(words: str) -> list[Word]:
    """Parse the words of an entry. Raises ValueError if one is invalid."""
    return list(map(_parse, words.split()))


def count_events(words: str) -> int:
    """Return the number of events in the words of an entry."""
    return sum(word.count for word in read_words(words))


def read_events(
    batch_id: UUID, first: int, time_us: int, words: str, holder: str = "", faults: str = ""
) -> Iterator[Event]:
    """Yield the events of an entry. Raises ValueError for invalid words.

    first: the first sequence number. holder: the lane that held the ticket and why its jobs became pending, as in the
    stream. faults: why attempts failed that are repeated, as in the stream.
    """
    sequence = first
    for word in read_words(words):
        yield from word.events(batch_id, sequence, time_us, holder, faults)
        sequence += word.count


class JobNews(msgspec.Struct, frozen=True):
    """The progress of a running job, as it is published. percent, steps: None if unknown."""

    index: int
    stage: Stage
    percent: float | None
    steps: Steps | None = None


def read_news(message: bytes) -> JobNews | list[Word]:
    """Parse a message on a channel of a batch: the progress of a job, or the words of an entry."""
    text = message.decode()
    if not text.startswith("~"):
        return read_words(text)
    index, stage, percent, *steps = text[1:].split()
    return JobNews(int(index), Stage(stage), None if percent == "-" else float(percent), read_steps(*steps))


def words_of_news(messages: Iterable[bytes]) -> list[Word]:
    """Return the words in messages of a batch's channel, without progress."""
    return [word for message in messages if not message.startswith(b"~") for word in read_words(message.decode())]
