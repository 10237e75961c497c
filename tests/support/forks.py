"""Processes for tests that start at once: forks of a process that has imported their modules.

Importing the worker takes half a second, importing the API more than one, and the tests start hundreds of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "tests.support.processes",
        "tweezer.api.app",
        "tweezer.processes.courier",
        "tweezer.ledger.recorder.recorder",
        "tweezer.qpu_sim.serve",
    ]
)


class Fork:
    """A process that calls ``program(arguments)`` in this folder, with its output in a file.

    ``environment`` has all its variables.
    """

    def __init__(
        self,
        program: Callable[[Sequence[str]], object],
        arguments: Sequence[str],
        environment: dict[str, str],
        log: Path,
    ) -> None:
        log.write_bytes(b"")
        self.log = log
        self._process = _context.Process(target=_run, args=(program, arguments, environment, Path.cwd(), log))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def text(self) -> str:
        """Everything that it has printed."""
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.alive:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self._process.kill()
        self._process.join()

    def wait(self, within_s: float) -> int:
        """Wait for the end; return the exit status, which is negative for a signal."""
        self._process.join(within_s)
        assert self._process.exitcode is not None, f"process {self.pid} did not end within {within_s:g} s"
        return self._process.exitcode


def _run(
    program: Callable[[Sequence[str]], object],
    arguments: Sequence[str],
    environment: dict[str, str],
    folder: Path,
    log: Path,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with log.open("ab") as output:
        for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(output.fileno(), descriptor)
    program(arguments)
