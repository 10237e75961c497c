"""What the state machine of remote jobs asks of a QPU or another server: hooks, without decisions about submits."""

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
"""Between tries to reach what cannot be reached."""

J = TypeVar("J")


class Detached(Exception):
    """The ticket is somebody else's."""


class RemoteId(msgspec.Struct, frozen=True):
    """What the other side calls a job. named: whether it returned the id that we gave the job; None where that does not
    matter."""

    uid: str
    named: bool | None = None


class Observed(msgspec.Struct, Generic[J], frozen=True):
    """One poll of a job. running_s: for how long it has run, where the other side reports it; device_s: the time that
    it took in the end. has_begun: False of one that was stopped before any of it ran."""

    job: J
    status: JobStatus
    progress: Progress
    running_s: float | None = None
    device_s: float | None = None
    has_begun: bool = True


class JobContext:
    """A job in the hands of its lane: what it is, the guard of its submit, and what the worker asks of it meanwhile."""

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
        return self.batch.doc.limits.job_timeout_s

    def request_cancel(self) -> None:
        self.cancel_requested = True
        self.wake()

    def detach(self) -> None:
        """The ticket is lost."""
        self.is_lost = True
        self.wake()

    def wake(self) -> None:
        """End a sleep whose condition has changed."""
        self._woken.set()

    async def sleep(
        self, delay_s: float, *, through_cancel: bool = False, until: Callable[[], bool] | None = None
    ) -> None:
        """Wait until a cancel is requested (unless ``through_cancel``), or ``until`` holds. Raises Detached."""
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
        """Wait before the next of some tries. Raises Detached."""
        await self.sleep(min(BACKOFF.delay_s(tries), at_most_s), through_cancel=through_cancel)


class RemoteService(ABC, Generic[J]):
    """One QPU or other server, and how jobs are sent there; a lane has one, for one job after the other.

    Its methods raise RemoteError for what the other side does, and Detached where they wait.

    name and unit: what messages call the other side, and what it knows by an id.
    turned_away_s, ask_again_s: see RemoteOptions. arrives_s: after how long a submit that was sent is surely there, and
    found. recognises_s: for how long the same submit may be sent again because the other side makes no second job of
    it; 0: never. forgotten_s: for how long it may say that it does not know a job before that is believed. confirm_s:
    for how long it may go on with a job that it was asked to stop. runs_at_once: a job runs as soon as it is submitted.
    reuses_ids: an id may come to mean another job, so a job is stopped only right after it was recognised.
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
        """As :attr:`tweezer.adapters.protocol.Lane.jail`: the worker itself speaks with the other side."""
        return ""

    async def prepare(self, batch: BatchWork) -> None:
        """Get ready to run jobs of this batch. Raises ExecutionError."""

    async def close(self) -> None:
        """Free what the service holds."""

    def begin(self) -> None:
        """Forget the former job: another one begins."""

    # -- submit ---------------------------------------------------------------------------------------

    async def make_ready(self, context: JobContext) -> Outcome | None:
        """Build what is submitted, and wait until jobs are taken; called before each try.

        Returns the outcome of a job that cannot be built. Raises DeviceUnavailable where no jobs are taken now.
        """
        return None

    @abstractmethod
    async def find(self, context: JobContext, intent: Intent) -> RemoteId | None:
        """Return the id of the job, if it was submitted and can be found."""

    @abstractmethod
    async def send(self, context: JobContext, before_send: Callable[[], None]) -> RemoteId:
        """Send the submit, once. ``before_send`` is called right before the first byte, and may raise NotSent.

        Raises SubmitRefused, SubmitDeferred and SubmitUncertain.
        """

    @abstractmethod
    async def decide_refused(self, context: JobContext, error: SubmitRefused) -> Outcome | None:
        """Return the outcome of a job whose submit was refused; None to try it once more. Raises DeviceUnavailable."""

    # -- follow ---------------------------------------------------------------------------------------

    @abstractmethod
    async def poll(self, context: JobContext, uid: str) -> Observed[J] | Outcome:
        """Poll the job. Returns an outcome when nothing more can be known of it.

        Raises UnknownRemoteJob when the other side does not know it."""

    @abstractmethod
    async def cancel(self, uid: str) -> None:
        """Ask for the end of the job. Raises TooLate."""

    @abstractmethod
    async def rest(self, context: JobContext, uid: str, *, through_cancel: bool) -> Outcome | None:
        """Wait before the next poll. Returns an outcome when there is no need of one."""

    async def end_following(self) -> None:
        """Nothing more is asked of the job, however it ended."""

    async def note_forgotten(self, context: JobContext) -> None:
        """The other side is believed to have forgotten the job."""

    @abstractmethod
    async def collect(self, context: JobContext, job: J) -> Outcome:
        """Return the outcome of a job that is DONE, with its result."""

    @abstractmethod
    async def collect_part(self, context: JobContext, job: J) -> Result | None:
        """Return what a job measured until it was stopped, if anything."""

    @abstractmethod
    def decide_failed(self, uid: str, job: J) -> Outcome:
        """Return the outcome of a job that ended in ERROR."""

    @abstractmethod
    def explain_displaced(self, uid: str) -> str:
        """Say that somebody else stopped the job."""


def fail(code: str, message: str, kind: FaultKind, field: str | None = None) -> Outcome:
    """Return the outcome of a job that ended without a result."""
    return Outcome(OutcomeKind.ERROR, fault=Fault(code, message, field), cause=kind)
