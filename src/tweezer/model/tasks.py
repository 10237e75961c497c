"""Tasks: a batch seen as one unit. Its coarse status, its exact state, and the groups of states of filters."""

from __future__ import annotations

from enum import StrEnum

from tweezer.model.lifecycle import TERMINAL_BATCH, BatchStatus


class TaskStatus(StrEnum):
    """The coarse status of a task, for counting and colours. ``success`` means DONE without a failed job."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def letter(self) -> str:
        """The letter under which the ledger counts such tasks."""
        return self.value[0].upper()


class TaskState(StrEnum):
    """The exact state of a task: the status of its batch in other words."""

    WAITING = "waiting"
    RUNNING = "running"
    SUSPENDED = "suspended"
    FINISHED = "finished"
    ERROR = "error"
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"


STATES = {
    BatchStatus.PENDING: TaskState.WAITING,
    BatchStatus.RUNNING: TaskState.RUNNING,
    BatchStatus.PAUSED: TaskState.SUSPENDED,
    BatchStatus.DONE: TaskState.FINISHED,
    BatchStatus.ERROR: TaskState.ERROR,
    BatchStatus.TIMED_OUT: TaskState.TIMED_OUT,
    BatchStatus.CANCELED: TaskState.CANCELED,
}

_COARSE = {
    BatchStatus.PENDING: TaskStatus.PENDING,
    BatchStatus.RUNNING: TaskStatus.RUNNING,
    BatchStatus.PAUSED: TaskStatus.PENDING,
    BatchStatus.DONE: TaskStatus.SUCCESS,
    BatchStatus.ERROR: TaskStatus.FAILED,
    BatchStatus.TIMED_OUT: TaskStatus.FAILED,
    BatchStatus.CANCELED: TaskStatus.CANCELLED,
}


class StateFilter(StrEnum):
    """A value of the filter by state: a single state, or a group.

    Attributes:
        COMPLETE: All states of tasks that have ended.
        INCOMPLETE: All other states.
        CURRENT: All states, without archived tasks. This is the default.
        ARCHIVED: All states, archived tasks only.
    """

    WAITING = "waiting"
    RUNNING = "running"
    SUSPENDED = "suspended"
    FINISHED = "finished"
    ERROR = "error"
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"
    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    CURRENT = "current"
    ARCHIVED = "archived"

    @property
    def statuses(self) -> frozenset[BatchStatus]:
        """The statuses of the batches that are meant."""
        match self:
            case StateFilter.COMPLETE:
                return TERMINAL_BATCH
            case StateFilter.INCOMPLETE:
                return frozenset(BatchStatus) - TERMINAL_BATCH
            case StateFilter.CURRENT | StateFilter.ARCHIVED:
                return frozenset(BatchStatus)
            case _:
                return frozenset(status for status, state in STATES.items() if state == self.value)


def task_status(status: BatchStatus, *, has_failures: bool) -> TaskStatus:
    """Return the status of the task of a batch. has_failures: whether a job of the batch failed."""
    if status is BatchStatus.DONE and has_failures:
        return TaskStatus.FAILED
    return _COARSE[status]
