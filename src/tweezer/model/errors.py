"""Every error that Tweezer raises on purpose.

An error has a ``code`` for programs, a message that tells a person what to do, and says whether the
same call may succeed when it is repeated (``retryable``).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any


class TweezerError(Exception):
    """The root of all errors of Tweezer."""

    code: str = "error"
    retryable: bool = False

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Survive pickle and copy, whatever arguments the subclass takes: an error may cross processes."""
        return _rebuild, (type(self), *self.args), self.__dict__


def _rebuild(kind: type[TweezerError], *arguments: Any) -> TweezerError:
    return kind.__new__(kind, *arguments)


class InvalidInput(TweezerError):
    """What the caller sent cannot be used. ``field`` names the part that is wrong; nothing was written."""

    code = "invalid"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class NotFound(TweezerError):
    """There is no such batch, job or device in the caller's project."""

    code = "not_found"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"there is no {kind} {name}")


class Conflict(TweezerError):
    """The thing exists but its state forbids the call (closed, terminal, another body under the same key)."""

    code = "conflict"


class QueueFull(TweezerError):
    """Redis or the device's backlog is full: nothing was written; try again later."""

    code = "full"
    retryable = True


class Unavailable(TweezerError):
    """Redis cannot be reached or refuses to serve: the outcome of a write is unknown; repeat it."""

    code = "unavailable"
    retryable = True


class EventsTrimmed(TweezerError):
    """Events that were asked for are no longer in Redis, and there is no ledger at hand that has them."""

    code = "events_trimmed"


class ResultUnavailable(TweezerError):
    """A large result cannot be written to the results folder, or read from it."""

    code = "result_unavailable"


class Unreadable(TweezerError):
    """A record, an entry of the stream or a message cannot be read: it is damaged, or nobody of ours wrote it."""

    code = "unreadable"


class NewerRecord(Unreadable):
    """A batch was written by a newer version of Tweezer, and this process leaves it alone."""

    code = "newer_record"

    def __init__(self, batch: object, ours: int, version: str = "") -> None:
        theirs = f"has record version {version}" if version else "has a newer record version"
        super().__init__(
            f"batch {batch} was written by a newer Tweezer: it {theirs}, and this process reads version {ours}; "
            "upgrade this process"
        )


class FaultKind(StrEnum):
    """Why an execution failed, and with that what happens next.

    ``user``: the sequence or its values are wrong; final. ``timeout`` and ``out_of_memory``: the job
    asks for more than its limits; final. ``transient``: something outside the job failed; retried with
    backoff. ``crash``: the lane's process died under the job; retried until the limit for crashes.
    ``internal``: a fault of Tweezer or of the emulator; final.
    """

    USER = "user"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    TRANSIENT = "transient"
    CRASH = "crash"
    INTERNAL = "internal"


class ExecutionError(TweezerError):
    """An adapter could not prepare a batch or open a lane."""

    code = "execution"

    def __init__(self, kind: FaultKind, message: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message, code=kind.value)
        self.problem = message
        self.kind = kind
        self.field = field
