"""Supervised background loops ("duties"): a failure is logged, and the loop continues after a pause.

This module also has their tools: backoff, and reliable cancellation. In Python 3.11 ``asyncio.wait_for``, which
redis-py uses, swallows a cancellation that coincides with the reply. Python 3.12 fixed this.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import structlog

from tweezer.model.errors import TweezerError

log = structlog.get_logger(__name__)

T = TypeVar("T")
Step = Callable[[], Awaitable[object]]


class Backoff(msgspec.Struct, frozen=True):
    """Exponential backoff with full jitter, in seconds.

    The delay before try *n* (1-based) is uniform between half and all of ``min(cap_s, base_s * 2 ** (n - 1))``, so that
    many waiters do not return at the same time.
    """

    base_s: float = 0.1
    cap_s: float = 5.0

    def delay_s(self, attempt: int) -> float:
        ceiling = min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 30))
        return ceiling * random.uniform(0.5, 1.0)


DUTY_BACKOFF = Backoff(base_s=0.1, cap_s=5.0)
"""The default pause after a failed step."""

_HEALTHY_S = 10.0  # a step that ran this long before it failed resets the backoff


class DutyEnded(TweezerError):
    """A background task ended without being stopped, so its process ends, too."""

    code = "duty_ended"


async def repeat(
    name: str,
    step: Step,
    *,
    every_s: float = 0.0,
    backoff: Backoff = DUTY_BACKOFF,
    while_: Callable[[], bool] = lambda: True,
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Repeat a step until the current task is cancelled, even if the step raises.

    Args:
        name: The duty's name in the log.
        step: Called repeatedly.
        every_s: Seconds between the end of a step and the start of the next one.
        backoff: The pause after consecutive failures, in place of ``every_s``.
        while_: Checked before each step; the loop ends when it is false.
        pause: Waits for the given number of seconds, or less if there is a reason to continue.
    """
    failures = 0
    while not is_cancelled() and while_():
        began = time.monotonic()
        try:
            await step()
            failures = 0
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            failures += 1  # a task that the step awaited was cancelled, not this duty
            log.error("duty.failed", duty=name, error="an awaited task was cancelled", failures=failures)  # noqa: TRY400
        except (TweezerError, OSError) as error:
            failures += 1
            log.warning("duty.failed", duty=name, error=str(error), failures=failures)
        except Exception as error:  # a bug, logged with its traceback; the duty continues
            failures += 1
            log.exception("duty.failed", duty=name, error=str(error), failures=failures)
        if failures and time.monotonic() - began > _HEALTHY_S:
            failures = 1
        if not is_cancelled() and (wait_s := backoff.delay_s(failures) if failures else every_s):
            await pause(wait_s)


async def until_answered(call: Callable[[], Awaitable[T]], backoff: Backoff, what: str) -> T:
    """Repeat a call until Redis or the database answers. Raises errors that are not retryable."""
    tries = 0
    while True:
        try:
            return await call()
        except TweezerError as error:
            if not error.retryable:
                raise
            tries += 1
            log.warning("store.unavailable", while_doing=what, tries=tries, error=error.message)
            await asyncio.sleep(backoff.delay_s(tries))


class Duty:
    """A loop that runs only while it is needed.

    name: in the log. step: see :func:`repeat`. is_needed: the loop ends when it returns false. ended: called when the
    loop's task ends although it is still needed; the next :meth:`start` starts it again.
    """

    def __init__(
        self, name: str, step: Step, *, is_needed: Callable[[], bool], ended: Callable[[TweezerError], object]
    ) -> None:
        self._name = name
        self._step = step
        self._is_needed = is_needed
        self._notify_ended = ended
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task of the loop; None or done if the loop is not running."""
        return self._task

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Start the loop unless it is running."""
        if not self.is_running:
            self._stopping = False
            self._task = asyncio.create_task(
                repeat(self._name, self._step, while_=self._is_needed), name=f"duty-{self._name}"
            )
            self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        self._stopping = True
        if self._task is not None:
            await end_tasks(self._task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._stopping or task is not self._task or not self._is_needed():
            return
        if not task.cancelled() and task.exception() is None:  # it was needed again just as it ended
            self.start()
        else:
            log.error("duty.ended", duty=self._name, error=_reason(task))
            self._notify_ended(DutyEnded(f"the background task {self._name!r} ended: {_reason(task)}"))


class Duties:
    """The duties of a process, as an async context manager around its main work.

    They are stopped at the end of the block. If one ends earlier, the block is cancelled and raises :class:`DutyEnded`
    with the reason.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, asyncio.Task[None]] = {}
        """The tasks by the names of their duties."""
        self.failure: DutyEnded | None = None
        """Set if a duty ended without being stopped."""
        self._main: asyncio.Task[Any] | None = None
        self._stopping = False

    def start(self, name: str, step: Step, *, every_s: float = 0.0, backoff: Backoff = DUTY_BACKOFF) -> None:
        """Start to :func:`repeat` a step."""
        self.watch(name, repeat(name, step, every_s=every_s, backoff=backoff))

    def watch(self, name: str, duty: Any) -> None:
        """Run a coroutine as a duty: it is stopped with the others, and its early end is a failure."""
        task = self.tasks[name] = asyncio.create_task(duty, name=f"duty-{name}")
        task.add_done_callback(lambda _: self._ended(name, task))

    async def __aenter__(self) -> Self:
        self._main = asyncio.current_task()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        await end_tasks(*self.tasks.values())
        if self.failure is not None and kind in (None, asyncio.CancelledError):
            assert self._main is not None
            self._main.uncancel()
            raise self.failure from error

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._stopping or self.failure is not None or self._main is None or self._main.cancelling():
            return
        self.failure = DutyEnded(f"the background task {name!r} of this process ended: {_reason(task)}")
        log.error("duty.ended", duty=name, error=_reason(task))
        self._main.cancel()


def _reason(task: asyncio.Task[None]) -> str:
    if task.cancelled():
        return "it was cancelled"
    error = task.exception()
    return "it returned" if error is None else f"{type(error).__name__}: {error}"


def is_cancelled() -> bool:
    """Return whether cancellation of the current task was requested.

    Loops that run until they are cancelled check this in each iteration, because the CancelledError itself may have
    been swallowed (seen in one of fifty shutdowns).
    """
    return _requests() > 0


@contextlib.contextmanager
def heeding_cancel() -> Iterator[None]:
    """Raise CancelledError at the end of the block if the task was cancelled within, even if that was swallowed."""
    before = _requests()
    try:
        yield
    finally:
        if _requests() > before:
            raise asyncio.CancelledError


async def run_to_end(work: Awaitable[T]) -> T:
    """Await something to its end, even if the current task is cancelled meanwhile. Use it in ``heeding_cancel``."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks repeatedly until they have ended, ignoring their results."""
    while live := [task for task in tasks if not task.done()]:
        for task in live:
            task.cancel()
        await asyncio.wait(live, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)


def _requests() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
