"""Report when an event loop is blocked, and where: everything else of its process waits meanwhile."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import structlog

log = structlog.get_logger(__name__)

BEAT_S = 1.0
"""How often the loop shows that it runs, and how often that is checked."""

LATE_S = 2.0
"""A loop that has not run for this time is reported."""

_FRAMES = 4  # of the innermost ones, in a report


@contextmanager
def watching_loop(*, beat_s: float = BEAT_S, late_s: float = LATE_S) -> Iterator[None]:
    """Watch the running loop, whose thread this is, until the end of the block."""
    watchdog = _Watchdog(asyncio.get_running_loop(), beat_s, late_s)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()


class _Watchdog:
    """Looks from a thread of its own, which runs when the loop does not."""

    def __init__(self, loop: asyncio.AbstractEventLoop, beat_s: float, late_s: float) -> None:
        self._loop = loop
        self._beat_s = beat_s
        self._late_s = late_s
        self._watched = threading.get_ident()
        self._beaten = time.monotonic()
        self._next: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._next is not None:
            self._next.cancel()
        self._thread.join()

    def _beat(self) -> None:
        self._beaten = time.monotonic()
        self._next = self._loop.call_later(self._beat_s, self._beat)

    def _watch(self) -> None:
        looked, since = time.monotonic(), None
        while not self._stopped.wait(self._beat_s):
            now, beaten = time.monotonic(), self._beaten
            slept = now - looked > self._late_s  # the whole process did: it was stopped, or its machine slept
            looked = now
            if since is not None and beaten > since:
                log.warning("loop.runs_again", blocked_s=round(beaten - since, 1))
                since = None
            elif since is None and now - beaten > self._late_s and not slept:
                since = beaten
                at = _places(sys._current_frames().get(self._watched))  # noqa: SLF001  # public, but for its name
                log.warning("loop.blocked", for_s=round(now - beaten, 1), at=at)


def _places(frame: FrameType | None) -> list[str]:
    """Return where a thread is, the innermost place first."""
    found: list[str] = []
    while frame is not None and len(found) < _FRAMES:
        code = frame.f_code
        found.append(f"{code.co_filename}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return found
