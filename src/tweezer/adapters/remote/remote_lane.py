"""What the slots have in common whose jobs run elsewhere, on a QPU or another server: how they are told to stop, how
they part from a job, and the last look before a submit."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from tweezer.adapters.protocol import Custody, Report
from tweezer.duties import Backoff
from tweezer.model.errors import FaultKind, TweezerError
from tweezer.model.messages import BatchWork, Fault, JobWork, Outcome, OutcomeKind

AWAY = Backoff(base_s=0.5, cap_s=15.0)
"""Between tries to reach what cannot be reached."""

_PARTING_S = 2.0  # for taking an intent back when the worker goes


class NotSent(TweezerError):
    """The submit was about to be sent, and was not: the lease was over, or the job's cancel requested."""

    code = "not_sent"


class Detached(Exception):
    """The ticket is somebody else's."""


class RemoteLane(ABC):
    """A :class:`~tweezer.adapters.protocol.Lane` whose jobs are run by :meth:`run_remotely`, and not by ``run``."""

    @property
    def jail(self) -> str:
        """As :attr:`tweezer.adapters.protocol.Lane.jail`: the worker itself speaks with the other side."""
        return ""

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._cancel_requested = False
        self._detached = False
        self._sent = False

    @abstractmethod
    async def prepare(self, batch: BatchWork) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def _submit_and_follow(self, job: JobWork, report: Report, custody: Custody) -> Outcome:
        """As :meth:`run_remotely`. May raise Detached."""

    async def run(self, job: JobWork, report: Report) -> Outcome:
        """Not for jobs that run elsewhere. Raises TypeError."""
        raise TypeError("jobs that run elsewhere are run by run_remotely")

    async def run_remotely(self, job: JobWork, report: Report, custody: Custody, *, cancel: bool) -> Outcome:
        """Submits the job once, or takes up one that was submitted, and says how it ended. cancel: it is to be stopped.

        Cancelling this task, or :meth:`detach`, leaves the job to where it runs. Raises
        :class:`~tweezer.adapters.protocol.Away`.
        """
        self._woken.clear()
        self._cancel_requested, self._detached = cancel, False
        try:
            return await self._submit_and_follow(job, report, custody)
        except Detached:
            return Outcome(OutcomeKind.CANCELED)  # of no interest: the ticket is lost

    async def cancel(self) -> None:
        """Asks for the end of the job where it runs; what is said there then is what counts."""
        self._cancel_requested = True
        self._woken.set()

    def detach(self) -> None:
        """The ticket is somebody else's: ``run_remotely`` returns soon, and cancels nothing."""
        self._detached = True
        self._woken.set()

    @contextlib.asynccontextmanager
    async def _submitting(self, custody: Custody) -> AsyncIterator[None]:
        """Around a submit: takes the intent back when the worker goes, or the ticket is lost, before it was sent."""
        self._sent = False
        try:
            yield
        except (asyncio.CancelledError, Detached):
            if not self._sent:  # else whoever comes next would look for it in vain
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PARTING_S):
                        await custody.withdraw()
            raise

    def _last_look(self, custody: Custody) -> None:
        """When the connection stands, right before the first byte. Raises NotSent."""
        if self._detached or custody.left_s() <= 0:
            raise NotSent("the lease was over before the submit was sent")
        if self._cancel_requested:
            raise NotSent("the job's cancel was requested before the submit was sent")
        self._sent = True

    async def _sleep(self, delay_s: float, *, whatever: bool = False) -> None:
        """Waits; a cancel ends the wait unless ``whatever``. Raises Detached."""
        deadline = time.monotonic() + delay_s
        while (left := deadline - time.monotonic()) > 0 and not self._detached:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._woken.wait()
            self._woken.clear()
            if self._cancel_requested and not whatever:
                break
        if self._detached:
            raise Detached


class TurnedAway:
    """Submits of one job that something other than the API answered, such as a proxy before it. They are repeated for
    limit_s: the job is not at fault, but it holds what others wait for."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: float | None = None

    def outcome(self, message: str) -> Outcome | None:
        """Count one more; the outcome of the job when the limit is reached."""
        self._since = self._since or time.monotonic()
        if time.monotonic() - self._since < self._limit_s:
            return None
        return failed("refused", f"{message} (for {self._limit_s:g} s)", FaultKind.INTERNAL)


def failed(code: str, message: str, kind: FaultKind, field: str | None = None) -> Outcome:
    """The outcome of a job that ended without a result."""
    return Outcome(OutcomeKind.ERROR, fault=Fault(code, message, field), cause=kind)
