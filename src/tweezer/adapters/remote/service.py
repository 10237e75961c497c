"""The interface of a QPU or another server to the state machine of remote jobs, ``RemoteLane``.

Its methods are hooks. They contain no decisions about submits.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from tweezer.adapters.protocol import Report, SubmitGuard
from tweezer.adapters.remote.errors import SubmitRefused
from tweezer.duties import Backoff
from tweezer.model.errors import FaultKind
from tweezer.model.intents import Intent
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import BatchWork, Fault, JobWork, Outcome, OutcomeKind, Progress, Result

BACKOFF = Backoff(base_s=0.5, cap_s=15.0)
"""The pauses between attempts to reach the remote."""

J = TypeVar("J")


class Detached(Exception):
    """The ticket is lost: another holder may have it."""


class RemoteId(msgspec.Struct, frozen=True):
    """A job's id on the remote.

    Attributes:
        uid: The id.
        named: Whether the remote returned the id that we gave the job; None if that does not matter.
    """

    uid: str
    named: bool | None = None


class Observed(msgspec.Struct, Generic[J], frozen=True):
    """The result of one poll of a job.

    Attributes:
        job: The job as the remote reports it.
        status: Its status.
        progress: Its stage and progress.
        running_s: Seconds for which it has run, if the remote reports that.
        device_s: Seconds that it took in total, if it has ended and the remote reports that.
        has_begun: False if the job was stopped before it began to run.
    """

    job: J
    status: JobStatus
    progress: Progress
    running_s: float | None = None
    device_s: float | None = None
    has_begun: bool = True


class JobContext:
    """The job that a lane runs, and the requests that its worker makes meanwhile.

    Attributes:
        job: The job.
        batch: Its batch.
        report: Callback for its progress.
        guard: The record of its submit.
        cancel_requested: Whether its cancel was requested.
        is_lost: Whether its ticket was lost.
    """

    def __init__(self, job: JobWork, batch: BatchWork, report: Report, guard: SubmitGuard, *, cancel: bool) -> None:
        self.job = job
        self.batch = batch
        self.report = report
        self.guard = guard
        self.cancel_requested = cancel
        self.is_lost = False
        self._woken = asyncio.Event()

    @property
    def limit_s(self) -> float:
        """The job's time limit in seconds."""
        return self.batch.doc.limits.job_timeout_s

    def request_cancel(self) -> None:
        """Request the job's cancel, which ends a sleep."""
        self.cancel_requested = True
        self.wake()

    def detach(self) -> None:
        """Mark the ticket as lost, which ends a sleep with ``Detached``."""
        self.is_lost = True
        self.wake()

    def wake(self) -> None:
        """Let a sleep check its condition now."""
        self._woken.set()

    async def sleep(
        self, delay_s: float, *, through_cancel: bool = False, until: Callable[[], bool] | None = None
    ) -> None:
        """Wait for ``delay_s`` seconds, or less.

        Args:
            delay_s: Seconds to wait at most.
            through_cancel: Whether to continue when a cancel is requested.
            until: A condition that ends the wait; it is checked at the start and on :meth:`wake`.

        Raises:
            Detached: The ticket was lost.
        """
        deadline = time.monotonic() + delay_s
        while (left_s := deadline - time.monotonic()) > 0 and not self.is_lost:
            if (self.cancel_requested and not through_cancel) or (until is not None and until()):
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._woken.wait()
            self._woken.clear()
        if self.is_lost:
            raise Detached

    async def back_off(self, tries: int, *, at_most_s: float = math.inf, through_cancel: bool = False) -> None:
        """Wait before the next attempt, longer after each one.

        Args:
            tries: The number of failed attempts so far.
            at_most_s: The longest wait in seconds.
            through_cancel: Whether to continue when a cancel is requested.

        Raises:
            Detached: The ticket was lost.
        """
        await self.sleep(min(BACKOFF.delay_s(tries), at_most_s), through_cancel=through_cancel)


class RemoteService(ABC, Generic[J]):
    """A QPU or another server (*the remote*), and how jobs are sent to it. Each lane has its own.

    It runs one job at a time. Its methods raise :class:`~tweezer.adapters.remote.errors.RemoteError` for failures of
    the remote, and those that wait raise :class:`Detached`.

    Attributes:
        name: The name of the remote in messages.
        unit: The name of what it creates for a job, in messages.
        turned_away_s: See :class:`~tweezer.adapters.remote.options.RemoteOptions`.
        ask_again_s: See :class:`~tweezer.adapters.remote.options.RemoteOptions`.
        arrives_s: Seconds after which a submit that was sent has arrived and is found.
        recognises_s: Seconds for which the same submit may be sent again, because the remote makes no second job of it;
            0: never.
        forgotten_s: Seconds for which the remote must report that it does not know a job before that is believed.
        confirm_s: Seconds for which a job may continue after the remote was asked to stop it.
        runs_at_once: A job runs as soon as it is submitted.
        reuses_ids: An id may later denote another job, so a job is stopped only right after it was recognised.
    """

    name: str
    unit: str
    turned_away_s: float
    ask_again_s: float
    arrives_s: float
    recognises_s: float = 0.0
    forgotten_s: float
    confirm_s: float = math.inf
    runs_at_once: bool = False
    reuses_ids: bool = False

    @property
    def jail(self) -> str:
        """See :attr:`tweezer.adapters.protocol.Lane.jail`. Empty, because the worker itself calls the remote."""
        return ""

    async def prepare(self, batch: BatchWork) -> None:
        """Prepare for jobs of this batch.

        Args:
            batch: The batch.

        Raises:
            tweezer.model.errors.ExecutionError: The batch cannot be prepared.
        """

    async def close(self) -> None:
        """Free all resources."""

    def begin(self) -> None:
        """Reset the state of the previous job, because another one begins."""

    # -- submit ---------------------------------------------------------------------------------------

    async def make_ready(self, context: JobContext) -> Outcome | None:
        """Build what is submitted, and wait until the remote can be reached. Called before each attempt to submit.

        Args:
            context: The job.

        Returns:
            None if the job can be submitted; the outcome of a job that cannot be built.

        Raises:
            tweezer.adapters.protocol.DeviceUnavailable: The remote accepts no jobs now.
        """
        return None

    @abstractmethod
    async def find(self, context: JobContext, intent: Intent) -> RemoteId | None:
        """Search the remote for the job by the id that we gave it.

        Args:
            context: The job.
            intent: The intent under which it may have been submitted.

        Returns:
            The job's id on the remote; None if the remote does not have it.
        """

    @abstractmethod
    async def send(self, context: JobContext, before_send: Callable[[], None]) -> RemoteId:
        """Send the submit once.

        Args:
            context: The job.
            before_send: To be called on the open connection, right before the first byte is sent. It may raise
                ``NotSent``; then nothing must be sent.

        Returns:
            The job's id on the remote.

        Raises:
            tweezer.adapters.remote.errors.SubmitRefused: Not executed, and would be refused again.
            tweezer.adapters.remote.errors.SubmitDeferred: Not executed, and may be sent again.
            tweezer.adapters.remote.errors.SubmitUncertain: Perhaps executed.
        """

    @abstractmethod
    async def decide_refused(self, context: JobContext, error: SubmitRefused) -> Outcome | None:
        """Decide what happens to a job whose submit was refused.

        Args:
            context: The job.
            error: The refusal.

        Returns:
            The job's outcome; None to submit it once more.

        Raises:
            tweezer.adapters.protocol.DeviceUnavailable: The remote refused because it accepts no jobs now.
        """

    # -- follow ---------------------------------------------------------------------------------------

    @abstractmethod
    async def poll(self, context: JobContext, uid: str) -> Observed[J] | Outcome:
        """Poll the job.

        Args:
            context: The job.
            uid: Its id on the remote.

        Returns:
            Its state; or its outcome if polling it further is useless.

        Raises:
            tweezer.adapters.remote.errors.UnknownRemoteJob: The remote does not know the job.
        """

    @abstractmethod
    async def cancel(self, uid: str) -> None:
        """Ask the remote to stop the job.

        Args:
            uid: The job's id on the remote.

        Raises:
            tweezer.adapters.remote.errors.TooLate: The job cannot be stopped any more.
        """

    @abstractmethod
    async def rest(self, context: JobContext, uid: str, *, through_cancel: bool) -> Outcome | None:
        """Wait before the next poll.

        Args:
            context: The job.
            uid: Its id on the remote.
            through_cancel: Whether to continue to wait when a cancel is requested.

        Returns:
            None; or the job's outcome if another poll is useless.
        """

    async def end_following(self) -> None:
        """Release what following the job needed. Called after its end."""

    async def note_forgotten(self, context: JobContext) -> None:
        """React to the fact that the remote no longer knows the job."""

    @abstractmethod
    async def collect(self, context: JobContext, job: J) -> Outcome:
        """Return the outcome, with the result, of a job with the status DONE."""

    @abstractmethod
    async def collect_part(self, context: JobContext, job: J) -> Result | None:
        """Return the partial result of a job that was stopped, if it has one."""

    @abstractmethod
    def decide_failed(self, uid: str, job: J) -> Outcome:
        """Return the outcome of a job with the status ERROR."""

    @abstractmethod
    def explain_displaced(self, uid: str) -> str:
        """Return the message of a job that another client stopped."""


def fail(code: str, message: str, kind: FaultKind, field: str | None = None) -> Outcome:
    """Make the outcome of a job that ended without a result.

    Args:
        code: The fault's code.
        message: The fault's message, for the user.
        kind: How the failure is handled.
        field: The input at fault, if there is one.

    Returns:
        The outcome, of kind ``error``.
    """
    return Outcome(OutcomeKind.ERROR, fault=Fault(code, message, field), cause=kind)
