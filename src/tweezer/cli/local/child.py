"""A process of our own that is kept running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tweezer.duties import Backoff

_RESTARTS = Backoff(base_s=0.5, cap_s=10.0)
_RESTARTS_MAX = 5
_STEADY_S = 60.0
_LOG_LINES = 10


class Child:
    """A ``tweezer`` command as a child: started again when it dies, and never longer alive than we are.

    It is given up, with the reason in ``failure``, when it dies before :attr:`ready` was set, or more than five
    times without a minute between. log: where its output goes; None leaves it to ours.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        stop_s: float,
        log: Path | None,
        say: Callable[[str], None],
    ) -> None:
        self.name = arguments[0]
        self.ready = False
        self.failure: str | None = None
        self._arguments = arguments
        self._environment = environment
        self._stop_s = stop_s
        self._log = log
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._spawning = threading.Lock()
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name=f"keeper-{self.name}", daemon=True)

    def start(self) -> None:
        self._keeper.start()

    @property
    def pid(self) -> int | None:
        """Its process now; it changes with a restart."""
        return None if self._process is None else self._process.pid

    def stop(self, hurry: Callable[[], bool]) -> None:
        """SIGTERM, and SIGKILL when it does not end in time or ``hurry`` says so."""
        with self._spawning:
            self._stopping.set()
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGTERM)
            deadline = time.monotonic() + self._stop_s
            while self._process.poll() is None:
                if hurry() or time.monotonic() > deadline:
                    self._signal(signal.SIGKILL)
                    self._process.wait()
                time.sleep(0.02)
        if self._keeper.ident is not None:
            self._keeper.join()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _keep(self) -> None:
        """Runs in a thread of its own that starts the process and outlives it: see :mod:`tweezer.cli.local.owned`."""
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
            self._say(f"{ended}; starting it again in {delay_s:.1f} s")
            self._stopping.wait(delay_s)

    def _spawn(self) -> subprocess.Popen[bytes]:
        output = None if self._log is None else os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "tweezer.cli.local.owned", str(os.getpid()), *self._arguments],
                stdin=subprocess.DEVNULL if sys.platform == "linux" else subprocess.PIPE,
                stdout=2 if output is None else output,
                stderr=output,
                env=dict(self._environment),
                process_group=0,  # Ctrl-C in a terminal is for us, who end the children in order
            )
        finally:
            if output is not None:
                os.close(output)

    def _last_words(self) -> str:
        if self._log is None:
            return "; its log is above"
        said = self._log.read_text("utf-8", "replace").strip().splitlines()[-_LOG_LINES:]
        return "; the end of its log:\n" + "\n".join(said) if said else ""


def _ended(status: int) -> str:
    return f"ended with exit code {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
