"""Cancelling asyncio tasks, for sure.

In Python 3.11 a cancellation that meets an arriving answer is swallowed on its way up (``asyncio.wait_for``,
which redis-py sends each command with; mended in 3.12).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def is_cancelled() -> bool:
    """Whether somebody asked the current task to end.

    Loops that run until they are cancelled look here each time around: the cancellation itself may have been
    swallowed (seen in one shutdown of fifty).
    """
    return _requests() > 0


@contextlib.contextmanager
def heeding_cancel() -> Iterator[None]:
    """Raises CancelledError at the end if the current task was cancelled within, even if that was swallowed."""
    before = _requests()
    try:
        yield
    finally:
        if _requests() > before:
            raise asyncio.CancelledError


async def run_to_end(work: Awaitable[T]) -> T:
    """Await something to its end, also when the current task is cancelled meanwhile: within ``heeding_cancel``."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks, again and again, until they have ended; how they ended is of no interest."""
    while live := [task for task in tasks if not task.done()]:
        for task in live:
            task.cancel()
        await asyncio.wait(live, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)


def _requests() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
