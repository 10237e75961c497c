"""The state machine of a job on a QPU or another server: submit it once and follow it to its end.

In these docstrings *the remote* is the QPU or the other server. No job is submitted twice, because of the order of the
steps in :class:`_RemoteRun`:

1. An *intent* is on Redis' disk before anything is sent. Only :meth:`_RemoteRun._try_once` writes one, and only if no
   submit may have been sent before.
2. Before each submit the job is searched on the remote, because Redis may have lost its last second of writes, and the
   remote has not. While a submit that Redis lost may still be in transit, none is sent. The search is skipped if the
   remote recognises a repeated submit (``recognises_s``).
3. ``guard.set_out`` marks the intent as possibly sent, unless another holder has the job by now.
4. The lease is checked on the open connection, right before the first byte (:meth:`_RemoteRun._check_before_send`).
5. From then on the intent is withdrawn only if the remote, or the connection, shows that the submit was definitely not
   executed. Otherwise :meth:`_RemoteRun._recover` searches for the job. It sends nothing, except if the remote
   recognises the same submit. A job that is not found ends with the error ``unknown`` and is not run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from typing import Any, assert_never

import msgspec
import structlog

from tweezer.adapters.protocol import Report, SubmitGuard, describe_timeout
from tweezer.adapters.remote.errors import (
    NotSent,
    RemoteError,
    SubmitRefused,
    SubmitTurnedAway,
    SubmitUncertain,
    TooLate,
    UnknownRemoteJob,
)
from tweezer.adapters.remote.service import Detached, JobContext, Observed, RemoteId, RemoteService, fail
from tweezer.model.errors import FaultKind
from tweezer.model.intents import Intent
from tweezer.model.lifecycle import JobStatus, Stage
from tweezer.model.messages import BatchWork, JobWork, Outcome, OutcomeKind, Progress

log = structlog.get_logger(__name__)

_WITHDRAW_S = 2.0  # to withdraw an intent when the worker stops
_CONFLICT = 409  # the same submit was sent with another body, by another version of Tweezer


class RemoteLane:
    """A :class:`~tweezer.adapters.protocol.Lane` whose jobs run elsewhere; the worker calls :meth:`run_remotely`."""

    def __init__(self, service: RemoteService[Any]) -> None:
        self._service = service
        self._batch: BatchWork | None = None
        self._context: JobContext | None = None

    @property
    def jail(self) -> str:
        return self._service.jail

    async def prepare(self, batch: BatchWork) -> None:
        await self._service.prepare(batch)
        self._batch = batch

    async def close(self) -> None:
        await self._service.close()

    async def run(self, job: JobWork, report: Report) -> Outcome:
        """Raise TypeError; use :meth:`run_remotely`."""
        raise TypeError("a RemoteLane runs jobs with run_remotely")

    async def run_remotely(self, job: JobWork, report: Report, guard: SubmitGuard, *, cancel: bool) -> Outcome:
        """Submit a job, or follow one that was submitted before, to its end.

        The job continues to run elsewhere if this task is cancelled or :meth:`detach` is called.

        Args:
            job: A job of the prepared batch.
            report: Callback for the job's progress.
            guard: The record of the job's submit.
            cancel: Whether the job must be stopped.

        Returns:
            The job's outcome.

        Raises:
            tweezer.adapters.protocol.DeviceUnavailable: The machine accepts no jobs now; this one was not submitted.
        """
        assert self._batch is not None
        self._context = JobContext(job, self._batch, report, guard, cancel=cancel)
        try:
            return await _RemoteRun(self._service, self._context).run()
        except Detached:
            return Outcome(OutcomeKind.CANCELED)  # is ignored, because the ticket is lost

    async def cancel(self) -> None:
        """Ask the remote to stop the job. The state that it then reports is the outcome."""
        if self._context is not None:
            self._context.request_cancel()

    def detach(self) -> None:
        """Stop following the job, because the ticket is lost. ``run_remotely`` returns soon and cancels nothing."""
        if self._context is not None:
            self._context.detach()


class _StopRequest(msgspec.Struct):
    """A request to the remote to stop the job.

    since, asked: Monotonic seconds of the first and the last request. too_late: The remote answered that the job cannot
    be stopped any more.
    """

    is_timeout: bool
    since: float
    asked: float = -math.inf
    too_late: bool = False


class _RemoteRun:
    """One job, from its intent to its outcome."""

    def __init__(self, service: RemoteService[Any], context: JobContext) -> None:
        self._service = service
        self._context = context
        self._guard = context.guard
        self._log = log.bind(job=str(context.job.job_id))
        self._began = time.monotonic()
        self._running_since: float | None = None
        self._turned_away_since: float | None = None
        self._is_sent = False

    async def run(self) -> Outcome:
        self._service.begin()
        found = await self._submit()
        if isinstance(found, Outcome):
            return found
        uid, before = found
        try:
            return await self._follow(uid, before)
        finally:
            await self._service.end_following()

    # -- submit -------------------------------------------------------------------------------------

    async def _submit(self) -> tuple[str, Intent | None] | Outcome:
        """Submit the job unless it was submitted before.

        Returns the job's id and, if it was submitted before, that intent; or the outcome of a job that was not
        submitted.
        """
        tries = 0
        while True:
            intent = await self._guard.known()
            if intent is not None and intent.uid is not None:
                return intent.uid, intent
            if intent is not None and intent.may_be_sent:
                self._log.warning("remote.intent_without_a_job", age_s=intent.age_s)
                found = await self._recover(intent, self._arrival_s - intent.age_s)
            else:
                if tries:
                    await self._context.back_off(tries)
                tries += 1
                found = await self._service.make_ready(self._context) or await self._try_once()
            if isinstance(found, Outcome):
                return found
            if found is not None:
                return found, None

    async def _try_once(self) -> str | Outcome | None:
        """Record an intent and submit the job. Return None if it was not submitted and may be tried again."""
        intent: Intent | None = None
        try:
            async with self._withdrawing_if_unsent():
                intent = None if self._context.cancel_requested else await self._guard.intend(unsent=True)
                if intent is None:
                    return Outcome(OutcomeKind.CANCELED, began=False)
                if not intent.is_new:
                    return None
                found = await self._find_forgotten(intent)
                if found is None:
                    if not await self._guard.set_out():
                        raise NotSent("the ticket was lost before the submit was sent")
                    found = await self._send()
        except SubmitUncertain as error:
            assert intent is not None
            self._log.warning("remote.submit_uncertain", error=error.message)
            return await self._recover(intent, self._service.arrives_s)
        except SubmitRefused as error:
            await self._guard.withdraw()
            return await self._service.decide_refused(self._context, error)
        except RemoteError as error:
            self._log.warning("remote.not_submitted", error=error.message)
            await self._guard.withdraw()
            return self._decide_turned_away(error) if isinstance(error, SubmitTurnedAway) else None
        await self._guard.note(found.uid, named=found.named)
        return found.uid

    async def _find_forgotten(self, intent: Intent) -> RemoteId | None:
        """Search for a submit that Redis lost.

        Raises NotSent while one may be in transit: Redis recently restarted without its last second of writes, and the
        lease of that submit's holder has not expired, or the submit may still arrive.
        """
        if self._service.recognises_s:
            return None
        found = await self._service.find(self._context, intent)
        if found is None and intent.since_loss_s is not None:
            left_s = self._arrival_s - intent.since_loss_s
            if left_s > 0:
                raise NotSent(f"Redis may have lost an earlier submit; waiting {left_s:.0f} s for it to arrive")
        return found

    @property
    def _arrival_s(self) -> float:
        """The seconds after which any submit of another holder has been sent, has arrived, and is found."""
        return self._guard.lease_s + self._service.arrives_s

    @contextlib.asynccontextmanager
    async def _withdrawing_if_unsent(self) -> AsyncIterator[None]:
        """Withdraw the intent if the worker stops, or the ticket is lost, before the submit was sent."""
        self._is_sent = False
        try:
            yield
        except (asyncio.CancelledError, Detached):
            if not self._is_sent:  # otherwise the next holder would search for it
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_WITHDRAW_S):
                        await self._guard.withdraw()
            raise

    async def _send(self) -> RemoteId:
        found = await self._service.send(self._context, self._check_before_send)
        self._log.info("remote.submitted", uid=found.uid)
        return found

    def _check_before_send(self) -> None:
        """Check the lease right before the first byte is sent. Raises NotSent."""
        if self._context.is_lost or self._guard.left_s() <= 0:
            raise NotSent("the lease expired before the submit was sent")
        if self._context.cancel_requested:
            raise NotSent("the job's cancel was requested before the submit was sent")
        self._is_sent = True

    def _decide_turned_away(self, error: SubmitTurnedAway) -> Outcome | None:
        """Return None to try again for ``turned_away_s``, then an outcome: other jobs wait for the device."""
        now, limit_s = time.monotonic(), self._service.turned_away_s
        self._turned_away_since = self._turned_away_since or now
        if now - self._turned_away_since < limit_s:
            return None
        return fail("refused", f"{error.message} (repeatedly, for {limit_s:g} s)", FaultKind.INTERNAL)

    async def _recover(self, intent: Intent, patience_s: float) -> str | Outcome | None:
        """Search for a job that may have been submitted, until no submit can arrive any more.

        While the remote recognises the same submit, send it again. Return None if its holder has recorded that
        the job was not submitted.
        """
        began, tries = time.monotonic(), 0
        deadline = began + patience_s
        while True:
            now = time.monotonic()
            is_last = now >= deadline
            known = await self._guard.known()
            if known is None or not known.may_be_sent:
                return None
            if known.uid is not None:
                return known.uid
            found: RemoteId | None = None
            try:
                found = await self._service.find(self._context, intent)
                is_recognised = intent.age_s + now - began < self._service.recognises_s
                if found is None and is_recognised and not self._context.cancel_requested:
                    is_last = False
                    found = await self._send()
            except SubmitRefused as error:
                if error.status != _CONFLICT:
                    await self._guard.withdraw()  # if the first submit had arrived, this one would have got its answer
                    return await self._service.decide_refused(self._context, error)
            except RemoteError as error:
                self._log.warning("remote.search_failed", error=error.message, tries=tries)
                is_last = False
            if found is not None:
                await self._guard.note(found.uid, named=found.named)
                return found.uid
            if is_last:
                name = self._service.name
                message = (
                    f"it is unknown whether {name} ran the job: the submit was or may have been sent, but {name} does "
                    "not know the job; it is not submitted again; submit a new job if it may run twice"
                )
                return fail("unknown", message, FaultKind.INTERNAL)
            tries += 1
            left_s = max(deadline - time.monotonic(), 0.05) if deadline > now else math.inf
            await self._context.back_off(tries, at_most_s=left_s, through_cancel=True)

    # -- follow -------------------------------------------------------------------------------------

    async def _follow(self, uid: str, before: Intent | None) -> Outcome:
        """Poll the job until it ends. Stop it if that is requested or it exceeds its time limit."""
        service, context = self._service, self._context
        submitted = time.monotonic()
        stop: _StopRequest | None = None
        if before is not None:
            stop = _StopRequest(is_timeout=True, since=submitted) if before.timed_out else None
            self._began = submitted = submitted - before.age_s
        if service.runs_at_once:
            self._running_since = submitted
            context.report(Progress(Stage.ON_DEVICE))
        failures, unknown_since = 0, math.inf
        while True:
            now, is_seen = time.monotonic(), False
            stop = stop or await self._decide_stop(now)
            try:
                seen = await service.poll(context, uid)
                if isinstance(seen, Outcome):
                    return self._add_durations(seen)
                is_seen, failures, unknown_since = True, 0, math.inf
                if seen.running_s is not None and self._running_since is None:
                    self._running_since = max(time.monotonic() - seen.running_s, submitted)
                if seen.status.terminal:
                    return self._add_durations(await self._conclude(uid, seen, stop), seen)
                context.report(seen.progress)
            except UnknownRemoteJob as error:
                failures, unknown_since = 0, min(unknown_since, now)
                if now - unknown_since >= service.forgotten_s:
                    await service.note_forgotten(context)
                    message = f"{service.name} forgot {service.unit} {uid}, so its outcome is unknown: {error.message}"
                    return self._add_durations(fail("unknown", message, FaultKind.INTERNAL))
            except RemoteError as error:
                failures += 1
                self._log.warning("remote.not_polled", uid=uid, error=error.message, failures=failures)
            if stop is not None:
                now = time.monotonic()
                if now - stop.since >= service.confirm_s and not stop.too_late:
                    return self._add_durations(self._decide_unconfirmed(uid, stop))
                if (is_seen or not service.reuses_ids) and now - stop.asked >= service.ask_again_s:
                    if await self._ask_to_stop(uid, stop):
                        stop.asked = now
                        continue
                    failures = failures or 1
            if failures:
                await context.back_off(failures, through_cancel=stop is not None)
            elif (ended := await service.rest(context, uid, through_cancel=stop is not None)) is not None:
                return self._add_durations(ended)

    async def _decide_stop(self, now: float) -> _StopRequest | None:
        if self._context.cancel_requested:
            return _StopRequest(is_timeout=False, since=now)
        if self._running_since is None or now - self._running_since < self._context.limit_s:
            return None
        await self._guard.note_timeout()
        return _StopRequest(is_timeout=True, since=now)

    async def _ask_to_stop(self, uid: str, stop: _StopRequest) -> bool:
        """Ask the remote once to stop the job. Return whether it answered."""
        try:
            await self._service.cancel(uid)
            self._log.info("remote.cancel_sent", uid=uid)
        except TooLate:
            stop.too_late = True
            self._log.info("remote.too_late_to_cancel", uid=uid)
        except RemoteError as error:
            self._log.warning("remote.not_canceled", uid=uid, error=error.message)
            return not error.retryable
        return True

    def _decide_unconfirmed(self, uid: str, stop: _StopRequest) -> Outcome:
        """Return the outcome of a job that the remote was asked to stop, without confirming it."""
        service = self._service
        why = "it exceeded its time limit" if stop.is_timeout else "its cancel was requested"
        self._log.warning("remote.cancel_not_confirmed", uid=uid)
        return fail(
            "unconfirmed",
            f"{why}, but {service.name} did not confirm within {service.confirm_s:g} s that it stopped "
            f"{service.unit} {uid}; the job may have run to its end",
            FaultKind.TIMEOUT if stop.is_timeout else FaultKind.INTERNAL,
        )

    async def _conclude(self, uid: str, seen: Observed[Any], stop: _StopRequest | None) -> Outcome:
        service, context = self._service, self._context
        match seen.status:
            case JobStatus.DONE:
                context.report(Progress(Stage.COLLECTING))
                return await service.collect(context, seen.job)
            case JobStatus.ERROR:
                return service.decide_failed(uid, seen.job)
            case JobStatus.CANCELED if stop is not None:
                measured = await service.collect_part(context, seen.job)
                if not stop.is_timeout:
                    return Outcome(OutcomeKind.CANCELED, result=measured)
                message = describe_timeout(context.limit_s)
                return msgspec.structs.replace(fail("timeout", message, FaultKind.TIMEOUT), result=measured)
            case JobStatus.CANCELED:
                return fail("displaced", service.explain_displaced(uid), FaultKind.INTERNAL)
            case JobStatus.PENDING | JobStatus.RUNNING:
                raise AssertionError(f"{service.unit} {uid} has not ended")
            case _:
                assert_never(seen.status)

    def _add_durations(self, outcome: Outcome, seen: Observed[Any] | None = None) -> Outcome:
        """Return the outcome with its durations. The time on the device is the remote's if it reports one."""
        now = time.monotonic()
        device_s = 0.0 if self._running_since is None else now - self._running_since
        if seen is not None and seen.device_s is not None:
            device_s = seen.device_s
        return msgspec.structs.replace(
            outcome,
            preparation_s=max(now - self._began - device_s, 0.0),
            device_s=device_s,
            began=outcome.kind is not OutcomeKind.CANCELED or seen is None or seen.has_begun,
        )
