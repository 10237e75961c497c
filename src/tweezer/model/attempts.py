"""Attempts of a job: its executions, as its events show them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

import msgspec

from tweezer.model.events import RETURNS, Event
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import Fault


class JobAttemptOutcome(StrEnum):
    """How an attempt ended. After the first three and ``unknown`` come the reasons for another attempt, see RETURNS."""

    DONE = "done"
    ERROR = "error"
    CANCELED = "canceled"
    LOST = "lost"
    DRAIN = "drain"
    FAIL = "fail"
    RETRY = "retry"
    CRASH = "crash"
    REPORT = "report"
    RESTART = "restart"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> JobAttemptOutcome:
        """Take a word of a newer version for unknown."""
        return cls.UNKNOWN


class JobAttempt(msgspec.Struct, frozen=True):
    """One execution of a job.

    Attributes:
        number: Its number, from 1. It counts every execution, also one that a drain ended, which the ``attempt`` of a
            job does not count.
        worker: Id of the worker that held the job last, as in ``tweezer workers``; None if it was not recorded. A job
            on a machine continues under another worker in the same attempt.
        lane: The number of the worker's lane.
        started: When it began; None if it was not recorded.
        ended: When it ended; None while it runs, and if it was not recorded.
        outcome: How it ended; None while it runs.
        fault: Why it failed.
    """

    number: int
    worker: str | None
    lane: int | None
    started: datetime | None
    ended: datetime | None = None
    outcome: JobAttemptOutcome | None = None
    fault: Fault | None = None

    @property
    def reason(self) -> str | None:
        """Why the job became pending again, for people; None if it did not."""
        return None if self.outcome is None else RETURNS.get(self.outcome)

    @property
    def duration_s(self) -> float | None:
        """How long it ran, in seconds; None while it runs, and if it was not recorded."""
        if self.started is None or self.ended is None:
            return None
        return max((self.ended - self.started).total_seconds(), 0.0)


def read_attempts(
    events: Iterable[Event], *, started: datetime | None = None, fault: Fault | None = None
) -> list[JobAttempt]:
    """Return the attempts of a job.

    Args:
        events: All events of the job, oldest first.
        started: When its last attempt began, by its record. The event of a begin that was reported together with the
            end has the time of the end.
        fault: Why the job ended in ERROR.
    """
    found: list[JobAttempt] = []
    begun: Event | None = None  # the begin of the last attempt while its end was not seen
    for event in events:
        if event.status is JobStatus.RUNNING:
            if begun is not None:  # Redis lost the end in a power loss
                found[-1] = msgspec.structs.replace(found[-1], outcome=JobAttemptOutcome.UNKNOWN)
            begun = event
            found.append(JobAttempt(len(found) + 1, event.worker, event.lane, event.time))
        elif event.previous is JobStatus.RUNNING or begun is not None:
            if begun is None:
                found.append(JobAttempt(len(found) + 1, event.worker, event.lane, None))
            at_once = begun is not None and begun.time_us == event.time_us
            began = started if at_once and event.status.terminal and started is not None else found[-1].started
            found[-1] = msgspec.structs.replace(
                found[-1],
                worker=event.worker or found[-1].worker,
                lane=found[-1].lane if event.worker is None else event.lane,
                started=began,
                ended=event.time,
                outcome=_outcome(event),
                fault=fault if event.status is JobStatus.ERROR else event.fault,
            )
            begun = None
    return found


def _outcome(event: Event) -> JobAttemptOutcome:
    if event.status is JobStatus.PENDING:
        return JobAttemptOutcome.UNKNOWN if event.why is None else JobAttemptOutcome(event.why)
    return JobAttemptOutcome(event.status.lower())
