"""Statuses and the tables of every allowed transition, which the Lua scripts enforce.

The loader of the scripts generates their tables from these, and the documentation draws its diagrams from them. A test
tries every combination of status, event and token to check that scripts and tables agree.
"""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """The status of a job, with Pasqal's names.

    PENDING: submitted, or back after a reclaim, a retry or a drain. A ticket may hold it, but its own
    execution has not begun. A crash of its worker leaves it PENDING.

    RUNNING: its execution began. A crash of its worker brings it back to PENDING within a lease and a
    second, or to CANCELED if a cancel was requested.

    DONE: its worker settled its result. Terminal.

    ERROR: it failed permanently (a fault, or too many attempts), or its batch cannot run. Terminal.

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
        """The letter for it in scripts and the stream of events."""
        return self.value[0]


class BatchStatus(StrEnum):
    """The status of a batch, with Pasqal's names.

    PENDING: none of its jobs ever began. RUNNING: at least one began. PAUSED: no job is handed out, and
    running jobs finish. DONE: closed, and every job terminal, even if some ended in ERROR.
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
        """The letter for it in scripts and the stream of events. PAUSED is ``S`` (suspended), since ``P`` is taken."""
        return "S" if self is BatchStatus.PAUSED else self.value[0]


TERMINAL_JOB = frozenset({JobStatus.DONE, JobStatus.ERROR, JobStatus.CANCELED})
TERMINAL_BATCH = frozenset({BatchStatus.DONE, BatchStatus.ERROR, BatchStatus.CANCELED, BatchStatus.TIMED_OUT})

JOB_BY_LETTER = {status.letter: status for status in JobStatus}
BATCH_BY_LETTER = {status.letter: status for status in BatchStatus}


class Stage(StrEnum):
    """The stage of a job within PENDING or RUNNING. Each stage has its own clock."""

    QUEUED = "queued"
    PREPARING = "preparing"
    ON_DEVICE = "on_device"
    COLLECTING = "collecting"


class JobEvent(StrEnum):
    """An event of a job."""

    BEGIN = "begin"  # the worker that holds it begins to execute it
    FINISH = "finish"  # its holder settles a result
    FAIL = "fail"  # its holder settles a final error, or an attempt limit is reached
    STOP = "stop"  # its holder settles that it was stopped
    RETRY = "retry"  # its holder settles a failure that may be retried
    RECLAIM = "reclaim"  # the lease of its ticket expired
    GIVE_BACK = "give_back"  # its holder gives it back (a drain, or a failure while working on the ticket)
    CANCEL = "cancel"  # a user cancels it
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
"""The status after each event. Absent pairs are refused and change nothing, such as every event of a terminal status.

Two rules refine it. The outcome of a held job that has not begun counts as *begin* followed by the outcome (two
events). A RUNNING job whose cancel was requested ends in CANCELED where RETRY, RECLAIM and GIVE_BACK lead to PENDING:
it is never run again.
"""


class BatchEvent(StrEnum):
    """An event of a batch."""

    BEGIN = "begin"  # the first of its jobs begins
    PAUSE = "pause"
    RESUME = "resume"
    COMPLETE = "complete"  # it is closed, and its last job ended
    CANCEL = "cancel"  # it was cancelled, and its running jobs have ended
    DOOM = "doom"  # it cannot run, and its running jobs have ended
    EXPIRE = "expire"  # it was open without work past its deadline


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
"""The status after each event. RESUME leads to PENDING instead if no job of the batch ever began.

A job that is held while the batch is paused may still begin. The batch then stays PAUSED and resumes to RUNNING.
"""
