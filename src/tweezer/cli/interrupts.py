"""Ctrl-C and SIGTERM, for commands that have something to clean up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Takes note of signals instead of dying; a context manager, for the main thread.

    They interrupt only what runs within :meth:`allowed`, so that starting and stopping are never cut in half.
    """

    def __init__(self) -> None:
        self.came = threading.Event()
        self.count = 0
        self._first: int | None = None
        self._allowed = False
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

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._first = self._first or number
        self.count += 1
        self.came.set()
        if self._allowed:
            self._allowed = False
            raise KeyboardInterrupt
