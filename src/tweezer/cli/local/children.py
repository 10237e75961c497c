"""Supervised child processes, and the handling of Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from tweezer.cli.local.owned import start_owned
from tweezer.duties import Backoff
from tweezer.model.errors import TweezerError
from tweezer.settings import Settings, to_environment

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_S = 0.1


class Interrupts:
    """Records signals instead of ending the process; a context manager for the main thread.

    Signals interrupt only code within :meth:`allowed`, so that starting and stopping always complete.
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
        """The exit code that shells expect of a process ended by the first signal."""
        return 128 + (self._first or signal.SIGINT)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Raise KeyboardInterrupt on a signal, or at once if one has already arrived."""
        self._allowed = True
        try:
            if self.came.is_set():
                raise KeyboardInterrupt
            yield
        finally:
            self._allowed = False

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine within :meth:`allowed`. A signal cancels it; then KeyboardInterrupt is raised.

        Raising KeyboardInterrupt inside the event loop could end the wrong task.
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


_LOG_BYTES = 8 << 20
_LOG_LINES = 10
_WARNINGS = 5  # shown at once
_LOUD = re.compile(
    r"""^\S+\ \[(?P<level>warning|error|critical)\ *\]\ (?P<event>.*?)\ *\[[\w.]+\]\ *(?P<about>.*)$"""
    r"""|^\{.*"level":\ ?"(?:warning|error|critical)".*$""",
    re.MULTILINE | re.VERBOSE,
)
"""A line of the format ``console`` or ``json``."""


class LogFile:
    """The log of a process: a file of limited size, and one with what was written before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = self._size()

    def open(self) -> int:
        """Open the file for the output of a process; only its owner can read it."""
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def last_lines(self) -> list[str]:
        return self.path.read_text("utf-8", "replace").strip().splitlines()[-_LOG_LINES:]

    def new_warnings(self) -> list[str]:
        """Return the warnings and errors that were written since the last call, and keep the file small."""
        size = self._size()
        if size == self._read_to:
            return []
        if size < self._read_to:  # someone emptied it
            self._read_to = 0
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            text = file.read(_LOG_BYTES)
        complete = text[: text.rfind(b"\n") + 1]
        self._read_to += len(complete)
        if self._read_to > _LOG_BYTES:
            shutil.copy(self.path, self.path.with_name(f"{self.path.name}.1"))
            os.truncate(self.path, 0)  # processes append to it
            self._read_to = 0
        found = [
            " ".join(filter(None, (it["event"], it["about"]))) if it["level"] else it[0]
            for it in _LOUD.finditer(complete.decode("utf-8", "replace"))
        ]
        more = [f"{len(found) - _WARNINGS} more warnings"] if len(found) > _WARNINGS else []
        return [*found[:_WARNINGS], *more]

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0


_RESTARTS = Backoff(base_s=0.5, cap_s=10.0)
_RESTARTS_MAX = 5
_STEADY_S = 60.0


class Child:
    """A ``tweezer`` command as a child process, which is restarted when it dies, and ends with this process.

    It is not restarted, and ``failure`` is set, if it dies before :attr:`ready` is set, or more than five times without
    running for a minute. log: file for its output; None inherits the output of this process.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        stop_s: float,
        log: LogFile | None,
        report: Callable[[str], None],
    ) -> None:
        self.name = arguments[0]
        self.log = log
        self.ready = False
        self.failure: str | None = None
        self._arguments = arguments
        self._environment = environment
        self._stop_s = stop_s
        self._report = report
        self._process: subprocess.Popen[bytes] | None = None
        self._spawning = threading.Lock()
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name=f"keeper-{self.name}", daemon=True)

    def start(self) -> None:
        self._keeper.start()

    @property
    def pid(self) -> int | None:
        """The current process id; it changes with a restart."""
        return None if self._process is None else self._process.pid

    def stop(self, hurry: Callable[[], bool]) -> None:
        """Send SIGTERM, then SIGKILL if it does not end in time or ``hurry`` returns true."""
        with self._spawning:
            self._stopping.set()
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGTERM)
            deadline = time.monotonic() + self._stop_s
            while self._process.poll() is None:
                if hurry() or time.monotonic() > deadline:
                    self._signal(signal.SIGKILL)
                    self._process.wait()
                    if not hurry():
                        self._report(f"{self.name} did not end within {self._stop_s:g} s and was killed")
                time.sleep(0.02)
        if self._keeper.ident is not None:
            self._keeper.join()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _keep(self) -> None:
        """Start the process, and restart it when it ends, until it fails for good."""
        deaths = 0
        while True:
            began = time.monotonic()
            with self._spawning:
                if self._stopping.is_set():
                    return
                try:
                    self._process = self._spawn()
                except OSError as error:
                    self.failure = f"{self.name} cannot be started: {error}"
                    return
            status = self._process.wait()
            if self._stopping.is_set():
                return
            deaths = 1 if time.monotonic() - began >= _STEADY_S else deaths + 1
            ended = f"{self.name} (process {self._process.pid}) {_ended(status)}"
            if not self.ready or deaths > _RESTARTS_MAX:
                self.failure = ended + self._last_words()
                return
            delay_s = _RESTARTS.delay_s(deaths)
            self._report(f"{ended}; restarting it in {delay_s:.1f} s")
            self._stopping.wait(delay_s)

    def _spawn(self) -> subprocess.Popen[bytes]:
        output = None if self.log is None else self.log.open()
        try:
            command = [sys.executable, "-P", "-m", "tweezer.cli", *self._arguments]
            return start_owned(
                command, stdout=2 if output is None else output, stderr=output, env=dict(self._environment)
            )
        finally:
            if output is not None:
                os.close(output)

    def _last_words(self) -> str:
        if self.log is None:
            return "; its log is above"
        lines = self.log.last_lines()
        return f"; the end of {self.log.path}:\n" + "\n".join(lines) if lines else ""


def _ended(status: int) -> str:
    return f"ended with exit code {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"


_LOOK_S = 0.2
_READY_S = 5.0  # a process that has run for this time has started
_STOP_S = 25.0


def keep_several(arguments: list[str], settings: Settings, count: int, *, report: Callable[[str], None]) -> None:
    """Keep several processes of a command running until a signal. Raises TweezerError when one dies at its start, or
    repeatedly."""
    given = {
        "redis.url": settings.redis.url,
        "namespace": settings.namespace,
        "project_id": settings.project_id,
        "data_dir": str(settings.data_dir.absolute()),
        "database.url": settings.locate_ledger().url,
        "webhook.allow": settings.webhook.allow,
    }
    environment = os.environ | to_environment(given)
    children = [Child(arguments, environment, stop_s=_STOP_S, log=None, report=report) for _ in range(count)]
    with Interrupts() as interrupts:
        try:
            for child in children:
                child.start()
            looked_s = 0.0
            while not interrupts.came.wait(_LOOK_S):
                looked_s += _LOOK_S
                for child in children:
                    child.ready = looked_s >= _READY_S
                    if child.failure is not None:
                        raise TweezerError(child.failure, code="child_died")
        finally:
            stopping = [threading.Thread(target=child.stop, args=(lambda: interrupts.count > 1,)) for child in children]
            for thread in stopping:
                thread.start()
            for thread in stopping:
                thread.join()
