"""Ctrl-C and SIGTERM, for commands that have something to clean up."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_S = 0.1


class Interrupts:
    """Takes note of signals instead of dying; a context manager, for the main thread.

    They interrupt only what runs within :meth:`allowed`, so that starting and stopping are never cut in half.
    """

    def __init__(self) -> None:
        self.came = threading.Event()
        self.count = 0
        self._first: int | None = None
        self._allowed = False
        self._cancel: Callable[[], object] | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that the first signal ended."""
        return 128 + (self._first or signal.SIGINT)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Raises KeyboardInterrupt at a signal, or at once if one came before."""
        self._allowed = True
        try:
            if self.came.is_set():
                raise KeyboardInterrupt
            yield
        finally:
            self._allowed = False

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine within :meth:`allowed`. A signal cancels it; then KeyboardInterrupt is raised.

        Raised in the middle of a loop, KeyboardInterrupt could end any task in place of the right one.
        """

        async def cancellable() -> None:
            loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

            def cancel() -> None:  # more than once: Python 3.11 may lose a cancellation
                if not task.done():
                    task.cancel()
                    loop.call_later(_AGAIN_S, cancel)

            self._cancel = lambda: loop.call_soon_threadsafe(cancel)
            if self.came.is_set():
                cancel()
            await task

        try:
            asyncio.run(cancellable())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            self._cancel = None
        if self.came.is_set():
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._first = self._first or number
        self.count += 1
        self.came.set()
        if self._cancel is not None:
            self._cancel()
        elif self._allowed:
            self._allowed = False
            raise KeyboardInterrupt
