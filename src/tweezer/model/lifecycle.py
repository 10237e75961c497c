"""Statuses and the table of every transition: the single truth that the Lua scripts enforce.

The loader of the scripts prepends these tables to each of them, the documentation draws its diagram
from them, and a test walks every (status, event, token) case to show that scripts and table agree.
"""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """Where a job stands. The wire words are Pasqal's.

    PENDING: submitted, or back after a reclaim, a retry or a drain; a ticket may hold it, but its own
    execution has not begun. A crash of its worker leaves it PENDING.

    RUNNING: its execution began (begin, by a worker that holds it). A crash of its worker brings it
    back to PENDING within a lease and a second, or to CANCELED when a cancel was requested.

    DONE: its result was recorded by the worker that held it. Terminal.

    ERROR: it failed for good (its own fault, too many attempts), or its batch cannot run. Terminal.

    CANCELED: cancelled before it began, or stopped while it ran. Terminal.
    """

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    ERROR = "ERROR"
    CANCELED = "CANCELED"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL_JOB

    @property
    def letter(self) -> str:
        """How scripts and the events stream write it."""
        return self.value[0]


class BatchStatus(StrEnum):
    """Where a batch stands. The wire words are Pasqal's.

    PENDING: none of its jobs ever began. RUNNING: at least one began. PAUSED: no job is handed out;
    what runs finishes. DONE: closed, and every job terminal, even if some ended in ERROR.
    ERROR: it cannot run (its sequence is wrong, or its tickets failed too often in a row).
    CANCELED: the batch itself was cancelled. TIMED_OUT: it stayed open without work past its deadline.
    The last four are terminal.
    """

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    DONE = "DONE"
    ERROR = "ERROR"
    CANCELED = "CANCELED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL_BATCH

    @property
    def letter(self) -> str:
        """How scripts and the events stream write it (PAUSED is ``S``, suspended: ``P`` is taken)."""
        return "S" if self is BatchStatus.PAUSED else self.value[0]


TERMINAL_JOB = frozenset({JobStatus.DONE, JobStatus.ERROR, JobStatus.CANCELED})
TERMINAL_BATCH = frozenset({BatchStatus.DONE, BatchStatus.ERROR, BatchStatus.CANCELED, BatchStatus.TIMED_OUT})

JOB_BY_LETTER = {status.letter: status for status in JobStatus}
BATCH_BY_LETTER = {status.letter: status for status in BatchStatus}


class Stage(StrEnum):
    """What a job is doing within PENDING or RUNNING; each stage has its own clock."""

    QUEUED = "queued"
    PREPARING = "preparing"
    ON_DEVICE = "on_device"
    COLLECTING = "collecting"


class JobEvent(StrEnum):
    """What can happen to a job."""

    BEGIN = "begin"  # a worker that holds it begins its execution
    FINISH = "finish"  # its holder settles a result
    FAIL = "fail"  # its holder settles a final error, or an attempt limit is reached
    STOP = "stop"  # its holder settles that it was stopped
    RETRY = "retry"  # its holder settles a failure that may be retried
    RECLAIM = "reclaim"  # the lease of its holder expired and was taken back
    GIVE_BACK = "give_back"  # its holder gives it back (drain, failure of the ticket)
    CANCEL = "cancel"  # a user asks for its end
    DOOM = "doom"  # its batch cannot run


JOB_TABLE: dict[tuple[JobStatus, JobEvent], JobStatus] = {
    (JobStatus.PENDING, JobEvent.BEGIN): JobStatus.RUNNING,
    (JobStatus.PENDING, JobEvent.CANCEL): JobStatus.CANCELED,
    (JobStatus.PENDING, JobEvent.DOOM): JobStatus.ERROR,
    (JobStatus.PENDING, JobEvent.RECLAIM): JobStatus.PENDING,
    (JobStatus.PENDING, JobEvent.GIVE_BACK): JobStatus.PENDING,
    (JobStatus.RUNNING, JobEvent.FINISH): JobStatus.DONE,
    (JobStatus.RUNNING, JobEvent.FAIL): JobStatus.ERROR,
    (JobStatus.RUNNING, JobEvent.STOP): JobStatus.CANCELED,
    (JobStatus.RUNNING, JobEvent.RETRY): JobStatus.PENDING,
    (JobStatus.RUNNING, JobEvent.RECLAIM): JobStatus.PENDING,
    (JobStatus.RUNNING, JobEvent.GIVE_BACK): JobStatus.PENDING,
    (JobStatus.RUNNING, JobEvent.CANCEL): JobStatus.RUNNING,
    (JobStatus.RUNNING, JobEvent.DOOM): JobStatus.RUNNING,
}
"""Pairs that are absent are refused and change nothing; in particular everything from a terminal status.

Two rules refine it. A settled outcome of a held job that was not begun counts as *begin* and then the
outcome (two events). A RUNNING job whose cancel was requested ends in CANCELED where RETRY, RECLAIM and
GIVE_BACK lead to PENDING: it is never run again.
"""


class BatchEvent(StrEnum):
    """What can happen to a batch."""

    BEGIN = "begin"  # the first of its jobs begins
    PAUSE = "pause"
    RESUME = "resume"
    COMPLETE = "complete"  # closed, nothing pending or running, no other fate
    CANCEL = "cancel"  # cancelled, and what ran has ended
    DOOM = "doom"  # it cannot run, and what ran has ended
    EXPIRE = "expire"  # open without work past its deadline


_LIVE_ENDS = {
    BatchEvent.COMPLETE: BatchStatus.DONE,
    BatchEvent.CANCEL: BatchStatus.CANCELED,
    BatchEvent.DOOM: BatchStatus.ERROR,
}

BATCH_TABLE: dict[tuple[BatchStatus, BatchEvent], BatchStatus] = {
    (BatchStatus.PENDING, BatchEvent.BEGIN): BatchStatus.RUNNING,
    (BatchStatus.PENDING, BatchEvent.PAUSE): BatchStatus.PAUSED,
    (BatchStatus.PENDING, BatchEvent.EXPIRE): BatchStatus.TIMED_OUT,
    (BatchStatus.RUNNING, BatchEvent.PAUSE): BatchStatus.PAUSED,
    (BatchStatus.RUNNING, BatchEvent.EXPIRE): BatchStatus.TIMED_OUT,
    (BatchStatus.PAUSED, BatchEvent.RESUME): BatchStatus.RUNNING,
    **{
        (status, event): end
        for status in (BatchStatus.PENDING, BatchStatus.RUNNING, BatchStatus.PAUSED)
        for event, end in _LIVE_ENDS.items()
    },
}
"""RESUME leads back to PENDING instead when no job of the batch ever began. A job that is held while the
batch is paused may still begin; the batch stays PAUSED and resumes to RUNNING."""
