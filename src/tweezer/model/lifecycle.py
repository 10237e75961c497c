"""Statuses and the tables of all transitions, which the Lua scripts enforce.

The script loader generates Lua tables from them, the documentation draws its diagram from them, and a test walks
every (status, event, token) case to show that scripts and tables agree.
"""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """The status of a job. The values are those of Pasqal's cloud API.

    Attributes:
        PENDING: The job waits: it was submitted, or came back after a reclaim, a retry or a drain. A ticket may hold
            it, but its execution has not begun. It stays PENDING if its worker crashes.
        RUNNING: A worker that holds the job began its execution. If the worker crashes, the job returns to PENDING
            within the lease time and a second, or becomes CANCELED if a cancel was requested.
        DONE: The worker that held the job recorded its result. Terminal.
        ERROR: The job failed (because of its input, or after too many attempts), or its batch cannot run. Terminal.
        CANCELED: The job was cancelled before it began, or stopped while it ran. Terminal.
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
        """The status in scripts and in the stream of events."""
        return self.value[0]


class BatchStatus(StrEnum):
    """The status of a batch. The values are those of Pasqal's cloud API; the last four are terminal.

    Attributes:
        PENDING: None of its jobs has begun.
        RUNNING: At least one of its jobs has begun.
        PAUSED: No job is handed out; running jobs finish.
        DONE: The batch is closed and every job is terminal, even if some ended in ERROR.
        ERROR: The batch cannot run: its sequence is invalid, or its tickets failed too often in a row.
        CANCELED: The batch itself was cancelled, by a user or by one of its rules.
        TIMED_OUT: The batch was open without work past its deadline, or did not start before its queue timeout.
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
        """The status in scripts and in the stream of events (PAUSED is ``S``, for suspended, as ``P`` is taken)."""
        return "S" if self is BatchStatus.PAUSED else self.value[0]


TERMINAL_JOB = frozenset({JobStatus.DONE, JobStatus.ERROR, JobStatus.CANCELED})
TERMINAL_BATCH = frozenset({BatchStatus.DONE, BatchStatus.ERROR, BatchStatus.CANCELED, BatchStatus.TIMED_OUT})

JOB_BY_LETTER = {status.letter: status for status in JobStatus}
BATCH_BY_LETTER = {status.letter: status for status in BatchStatus}


class Stage(StrEnum):
    """The stage of a PENDING or RUNNING job; each stage is timed separately."""

    QUEUED = "queued"
    PREPARING = "preparing"
    ON_DEVICE = "on_device"
    COLLECTING = "collecting"


class JobEvent(StrEnum):
    """Events that change the status of a job."""

    BEGIN = "begin"  # the worker that holds it begins its execution
    FINISH = "finish"  # its holder settles a result
    FAIL = "fail"  # its holder settles a final error, or an attempt limit is reached
    STOP = "stop"  # its holder settles that it was stopped
    RETRY = "retry"  # its holder settles a failure that may be retried
    RECLAIM = "reclaim"  # its holder's lease expired
    GIVE_BACK = "give_back"  # its holder gives it back (drain, failure of the ticket)
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
"""Pairs that are not in the table are refused and change nothing; a terminal status never changes.

Two rules refine the table. The outcome of a held job that had not begun counts as *begin* followed by the outcome
(two events). A RUNNING job whose cancel was requested becomes CANCELED where RETRY, RECLAIM or GIVE_BACK would lead
to PENDING: it never runs again.
"""


class BatchEvent(StrEnum):
    """Events that change the status of a batch."""

    BEGIN = "begin"  # the first of its jobs begins
    PAUSE = "pause"
    RESUME = "resume"
    COMPLETE = "complete"  # it is closed, has no pending or running jobs, and was not cancelled or doomed
    CANCEL = "cancel"  # it was cancelled, and its running jobs have ended
    DOOM = "doom"  # it cannot run, and its running jobs have ended
    EXPIRE = "expire"  # it was open without work past its deadline
    OVERDUE = "overdue"  # none of its jobs began within its queue timeout


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
    (BatchStatus.PENDING, BatchEvent.OVERDUE): BatchStatus.TIMED_OUT,
    (BatchStatus.PAUSED, BatchEvent.OVERDUE): BatchStatus.TIMED_OUT,
    **{
        (status, event): end
        for status in (BatchStatus.PENDING, BatchStatus.RUNNING, BatchStatus.PAUSED)
        for event, end in _LIVE_ENDS.items()
    },
}
"""RESUME leads to PENDING instead if no job of the batch has begun. A job that is held while the batch is paused may
still begin; the batch then stays PAUSED, and resumes to RUNNING. OVERDUE does not happen to a PAUSED batch of which a
job has begun."""
