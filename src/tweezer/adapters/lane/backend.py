"""The interface of a backend: the code that runs an emulator in a lane's process.

A backend is named ``module:factory``. The factory takes a :class:`Watch`, the number of bytes that it may use to keep
evolutions for equal jobs, and the further arguments of its adapter. It returns a :class:`Backend`. The module is
imported in lane processes only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from tweezer.model.errors import FaultKind
from tweezer.model.messages import BatchWork, Fault, JobWork, Result, Steps


class Refusal(Exception):
    """Raised for a batch or job that cannot run.

    Args:
        fault: The reason, for the user, with the field at fault.
        kind: How the failure is handled.
    """

    def __init__(self, fault: Fault, kind: FaultKind = FaultKind.USER) -> None:
        super().__init__(str(fault))
        self.fault = fault
        self.kind = kind


class Aborted(BaseException):
    """Raised inside a solver to stop it. It is a ``BaseException`` so that no library catches it."""


class Execution(msgspec.Struct, frozen=True):
    """A job that ran to its end.

    Attributes:
        result: The job's result.
        preparation_s: Seconds before the job ran on the emulator.
        device_s: Seconds that the job took on the emulator.
    """

    result: Result
    preparation_s: float
    device_s: float


class Backend(Protocol):
    """Runs jobs, one at a time, in the main thread of a lane's process.

    Its methods raise :class:`Refusal` for invalid input and must not catch :class:`Aborted`. Any other exception counts
    as an internal error of the emulator.

    Attributes:
        evolutions: How many evolutions were solved so far.
    """

    evolutions: int

    def prepare(self, batch: BatchWork) -> None:
        """Parse and validate a batch. The next jobs belong to it.

        Args:
            batch: The batch.

        Raises:
            Refusal: The batch cannot run.
        """

    def run(self, job: JobWork) -> Execution:
        """Run one job. All its random numbers must come from generators seeded with ``job.seed``.

        Args:
            job: A job of the prepared batch.

        Returns:
            The result and durations.

        Raises:
            Refusal: The job cannot run.
            Aborted: ``Watch`` was asked to stop the job.
        """


class Collector(Backend, Protocol):
    """A backend that also makes results from a machine's measurements."""

    def collect(self, job: JobWork, measured: dict[str, int]) -> Execution:
        """Make the result of a job that a machine ran.

        Args:
            job: A job of the prepared batch.
            measured: Bitstring → number of shots, bits in the register's qubit order.

        Returns:
            The result and durations.
        """


class Watch:
    """Reports the progress of a job, and stops it on request.

    The solver calls ``advance`` and ``check``; the thread that reads the worker's messages calls ``abort``.
    """

    def __init__(self, send: Callable[[float, Steps | None], None], interval_s: float) -> None:
        self._send = send
        self._interval_s = interval_s
        self._sent_at = time.monotonic()
        self._aborted = threading.Event()

    def begin(self) -> None:
        """Begin a request. Nothing is reported for one interval, so short jobs report nothing."""
        self._aborted.clear()
        self._sent_at = time.monotonic()

    def abort(self) -> None:
        """Stop the current request at its next check."""
        self._aborted.set()

    def check(self) -> None:
        """Raise :class:`Aborted` if the request must stop."""
        if self._aborted.is_set():
            raise Aborted

    def advance(self, fraction: float, count_steps: Callable[[], Steps] | None = None) -> None:
        """Report the progress of the job, unless the last report is recent.

        Args:
            fraction: The finished part of the job, from 0 to 1.
            count_steps: Returns the finished and all steps, and what the solver does. It is called for a report only.

        Raises:
            Aborted: The job must stop.
        """
        self.check()
        now = time.monotonic()
        if now - self._sent_at >= self._interval_s:
            self._sent_at = now
            steps = None if count_steps is None else count_steps()
            self._send(float(min(max(fraction, 0.0), 1.0)), steps)
