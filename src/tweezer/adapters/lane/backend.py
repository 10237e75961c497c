"""What a backend is, in the process of a lane: the code that knows an emulator.

A backend is named ``module:factory``; the factory takes a :class:`Watch`, the bytes that it may keep for jobs
that are equal, and what arguments its adapter gives, and returns a :class:`Backend`. Its module is imported in the
lane's process only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from tweezer.model.errors import FaultKind
from tweezer.model.messages import BatchWork, Fault, JobWork, Result


class Refusal(Exception):
    """The batch or job cannot be run; ``fault`` says why, for its user."""

    def __init__(self, fault: Fault, kind: FaultKind = FaultKind.USER) -> None:
        super().__init__(str(fault))
        self.fault = fault
        self.kind = kind


class Aborted(BaseException):
    """Raised inside a solver to stop it; a ``BaseException`` so that no library takes it for its own."""


class Execution(msgspec.Struct, frozen=True):
    """A job that ran to its end. Durations in seconds."""

    result: Result
    preparation_s: float
    device_s: float


class Backend(Protocol):
    """Runs jobs, one at a time, in the main thread of a lane's process.

    Both methods raise :class:`Refusal` for what is wrong with their input, let :class:`Aborted` through,
    and raise anything else for faults of their own. ``evolutions`` counts the evolutions solved so far.
    """

    evolutions: int

    def prepare(self, batch: BatchWork) -> None:
        """Parse and validate the batch; the jobs that follow are of this batch."""

    def run(self, job: JobWork) -> Execution:
        """Run one job. Everything random in it is drawn from generators seeded with ``job.seed``."""


class Collector(Backend, Protocol):
    """A backend that also makes results of what a machine measured."""

    def collect(self, job: JobWork, measured: dict[str, int]) -> Execution:
        """Return the result of a job, of its bitstrings and how often each was measured."""


class Watch:
    """Reports the progress of a job, and stops it on request.

    ``advance`` and ``check`` are called from the solver, ``abort`` from the thread that reads messages.
    """

    def __init__(self, send: Callable[[float], None], interval_s: float) -> None:
        self._send = send
        self._interval_s = interval_s
        self._sent_at = time.monotonic()
        self._aborted = threading.Event()

    def begin(self) -> None:
        """Begin a request; nothing is reported for one interval, so that short jobs stay silent."""
        self._aborted.clear()
        self._sent_at = time.monotonic()

    def abort(self) -> None:
        """Stop the current request at its next check."""
        self._aborted.set()

    def check(self) -> None:
        """Raises :class:`Aborted` when the request is to stop."""
        if self._aborted.is_set():
            raise Aborted

    def advance(self, fraction: float) -> None:
        """Report how far the job is (0 to 1), unless the last report is recent. Raises ``Aborted``."""
        self.check()
        now = time.monotonic()
        if now - self._sent_at >= self._interval_s:
            self._sent_at = now
            self._send(float(min(max(fraction, 0.0), 1.0)))
