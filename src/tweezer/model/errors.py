"""The errors that Tweezer raises."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any


class TweezerError(Exception):
    """Base class of all errors that Tweezer raises.

    Attributes:
        message: What is wrong and what to do, for people.
        code: A stable identifier of the error, for programs.
        retryable: Whether the same call may succeed when it is repeated.
    """

    code: str = "error"
    retryable: bool = False

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Support pickle and copy for all subclasses, whose arguments differ: errors cross processes."""
        return _rebuild, (type(self), *self.args), self.__dict__


def install_command(extra: str) -> str:
    """Return the command that installs an extra, for messages. Tweezer is on no package index yet."""
    return f"`pip install '.[{extra}]'` in a checkout of Tweezer"


def describe_os_error(error: OSError) -> str:
    """Return the file and the reason, for messages."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _rebuild(kind: type[TweezerError], *arguments: Any) -> TweezerError:
    return kind.__new__(kind, *arguments)


class InvalidInput(TweezerError):
    """An argument or request field is invalid. Nothing was written.

    Attributes:
        field: The path of the invalid value, such as ``jobs[3].variables.omega``.
        problem: What is wrong with it and what to do; ``str(error)`` is ``"<field>: <problem>"``.
    """

    code = "invalid"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class NotFound(TweezerError):
    """The batch, job, device or other object does not exist, or belongs to another project."""

    code = "not_found"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"there is no {kind} {name}")


class Conflict(TweezerError):
    """The object exists, but its state does not allow the call.

    Examples: the batch is closed or has ended, or the idempotency key was used for a call with other content.

    Attributes:
        field: The argument that contradicts the state, such as ``name``; None if it is not about one.
    """

    code = "conflict"

    def __init__(self, problem: str, *, code: str | None = None, field: str | None = None) -> None:
        super().__init__(f"{field}: {problem}" if field else problem, code=code)
        self.field = field


class QueueFull(TweezerError):
    """Redis or the device's backlog is full. Nothing was written; try again later."""

    code = "full"
    retryable = True


class Unavailable(TweezerError):
    """Redis, the ledger or the API cannot be reached, or refuses requests for now.

    Whether a write took effect is unknown: repeat the call, with the same idempotency key where it takes one.

    Attributes:
        retry_after_s: How long to wait before that, in seconds; 0 if unknown.
    """

    code = "unavailable"
    retryable = True
    retry_after_s: float = 0.0


class EventsTrimmed(TweezerError):
    """The requested events are no longer in Redis, and no ledger that contains them is available."""

    code = "events_trimmed"


class ResultUnavailable(TweezerError):
    """A large result cannot be written to or read from the results folder."""

    code = "result_unavailable"


class Unreadable(TweezerError):
    """A record, a stream entry or a message cannot be decoded: it is damaged, or was not written by Tweezer."""

    code = "unreadable"


class NewerRecord(Unreadable):
    """A batch was written by a newer version of Tweezer. This process does not touch it."""

    code = "newer_record"

    def __init__(self, batch: object, ours: int, version: str = "") -> None:
        theirs = f"version {version}" if version else "a newer version"
        super().__init__(
            f"batch {batch} was written by a newer Tweezer: its record has {theirs}, and this process supports "
            f"version {ours}; upgrade this process"
        )


class FaultKind(StrEnum):
    """Why an execution failed. It determines whether the job is retried.

    Attributes:
        USER: The sequence or its values are invalid. Final.
        TIMEOUT: The job exceeded its time limit. Final.
        OUT_OF_MEMORY: The job needs more memory than its lane has. Final.
        TRANSIENT: Something outside the job failed. Retried with backoff.
        CRASH: The lane's process died while it ran the job. Retried until the limit for crashes is reached.
        INTERNAL: A bug in Tweezer or in the emulator. Final.
    """

    USER = "user"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    TRANSIENT = "transient"
    CRASH = "crash"
    INTERNAL = "internal"


class ExecutionError(TweezerError):
    """Raised by an adapter that cannot prepare a batch, open a lane or run a job.

    Attributes:
        kind: Why it failed, and so whether the job is retried.
        problem: The message without the field.
        field: The input that caused the failure; None if it is not one field.
    """

    code = "execution"

    def __init__(self, kind: FaultKind, message: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message, code=kind.value)
        self.problem = message
        self.kind = kind
        self.field = field
