"""A slot of a forwarder: each job is sent on once, as a batch of its own, and followed to its end by whoever holds it.

The order of things is that of a QPU: the intent is on Redis' disk before anything is sent, and the lease is looked at
when the connection stands. A batch carries the job's id as a tag, by which it is found again when the answer to its
submit was lost; a server that heeds idempotency keys is asked again with the same key, which makes no second batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import Any, assert_never

import msgspec
import structlog

from tweezer.adapters.protocol import Custody, Report
from tweezer.adapters.remote.forward.answers import RemoteJob
from tweezer.adapters.remote.forward.api import ForwardApi
from tweezer.adapters.remote.forward.errors import (
    ForwardError,
    SubmitRefused,
    SubmitTurnedAway,
    SubmitUncertain,
    UnknownBatch,
)
from tweezer.adapters.remote.forward.options import ForwardOptions
from tweezer.adapters.remote.remote_lane import AWAY, NotSent, RemoteLane, TurnedAway, failed
from tweezer.model.errors import FaultKind
from tweezer.model.lifecycle import JobStatus, Stage
from tweezer.model.messages import BatchWork, JobWork, Outcome, OutcomeKind, Progress, Provenance, Result
from tweezer.model.remote import Intent

log = structlog.get_logger(__name__)

_MARGIN = 0.9  # of the time that the server knows an idempotency key
_CONFLICT = 409  # the key was used with another body: by a Tweezer of ours of another version
_ENDS = frozenset({"DONE", "ERROR", "CANCELED", "TIMED_OUT"})
_HELD = 5  # times as rarely a job is looked at while the server holds the question how its batch stands
_STRANDED = 5  # looks at a job without an end in a batch that has one, before that is believed
_STAGES = {stage.value: stage for stage in Stage}
_OUR_FIELDS = {"sequence_builder": "sequence", "device_type": "device"}


class _Seen:
    """What was seen of a job that is followed. stop: why it was asked to stop, and asked: when, last.

    before: of the holder that submitted it, if that was another.
    """

    def __init__(self, before: Intent | None) -> None:
        self.stop = "timeout" if before is not None and before.timed_out else None
        self.asked: float | None = None
        self.failures = 0
        self.stranded = 0
        self._began = time.monotonic() - (0.0 if before is None else before.age_s)
        self._running_since: float | None = None
        self._missing_since: float | None = None

    def look(self, job: RemoteJob) -> None:
        """The server told of it, and it has not ended."""
        self.failures, self._missing_since = 0, None
        if job.status is JobStatus.RUNNING and self._running_since is None:
            self._running_since = max(time.monotonic() - job.started_s_ago(), self._began)

    def running_s(self) -> float:
        return 0.0 if self._running_since is None else time.monotonic() - self._running_since

    def missing_s(self) -> float:
        """For how long the server has not known it, now that it does not."""
        self.failures = 0
        self._missing_since = self._missing_since or time.monotonic()
        return time.monotonic() - self._missing_since

    def timed(self, outcome: Outcome, job: RemoteJob) -> Outcome:
        """The outcome with its durations: on the device, as the server says or as it was seen; and before that."""
        device_s = self.running_s() if job.device_s is None else job.device_s
        before_s = max(time.monotonic() - self._began - device_s, 0.0)
        began = outcome.kind is not OutcomeKind.CANCELED or job.start_timestamp is not None
        return msgspec.structs.replace(outcome, preparation_s=before_s, device_s=device_s, began=began)


class ForwardLane(RemoteLane):
    """Has nothing of its own to stop: what was sent on runs elsewhere."""

    def __init__(self, api: ForwardApi, options: ForwardOptions) -> None:
        super().__init__()
        self._api = api
        self._options = options
        self._batch: BatchWork | None = None
        self._turned_away = TurnedAway(options.turned_away_s)  # submits of the job

    async def prepare(self, batch: BatchWork) -> None:
        self._batch = batch

    async def close(self) -> None:
        pass

    async def _submit_and_follow(self, job: JobWork, report: Report, custody: Custody) -> Outcome:
        self._turned_away = TurnedAway(self._options.turned_away_s)
        found = await self._submitted(job, custody)
        if isinstance(found, Outcome):
            return found
        batch_id, before = found
        return await self._follow(batch_id, report, custody, _Seen(before))

    # -- submit -------------------------------------------------------------------------------------

    async def _submitted(self, job: JobWork, custody: Custody) -> tuple[str, Intent | None] | Outcome:
        """The server's id of the job's batch, which is submitted if it never was, and the intent of who did so before;
        or how the job ended without one."""
        tries = 0
        while True:
            intent = await custody.known()
            if intent is not None and intent.uid is not None:
                return intent.uid, intent
            if intent is not None and intent.may_be_sent:
                log.warning("forward.intent_without_a_batch", job=str(job.job_id), age_s=intent.age_s)
                found = await self._recover(job, intent, custody)
            else:
                if tries:
                    await self._sleep(AWAY.delay_s(tries))
                found = await self._try_once(job, custody)
                tries += 1
            if isinstance(found, Outcome):
                return found
            if found is not None:
                return found, None

    async def _try_once(self, job: JobWork, custody: Custody) -> str | Outcome | None:
        """Says that the job is to be submitted, and submits it. None: it was not, and may be tried again."""
        intent = None if self._cancel_requested else await custody.intend(unsent=True)
        if intent is None:
            return Outcome(OutcomeKind.CANCELED, began=False)
        if not intent.is_new:
            return None
        try:
            async with self._submitting(custody):
                batch_id = await self._found_before(job, intent, custody)
                if batch_id is None:
                    if not await custody.set_out():
                        raise NotSent("the ticket was lost before the submit was sent")
                    batch_id = await self._submit(job, custody)
        except SubmitUncertain as error:
            log.warning("forward.submit_uncertain", job=str(job.job_id), error=error.message)
            return await self._recover(job, intent, custody)
        except SubmitRefused as error:
            await custody.withdraw()
            return _refused(error, job)
        except (NotSent, ForwardError) as error:
            log.warning("forward.not_submitted", job=str(job.job_id), error=error.message)
            await custody.withdraw()
            return self._turned_away.outcome(error.message) if isinstance(error, SubmitTurnedAway) else None
        await custody.note(batch_id)
        return batch_id

    async def _found_before(self, job: JobWork, intent: Intent, custody: Custody) -> str | None:
        """A server without idempotency keys is looked through before a submit: if our Redis forgot, it has not.

        Raises NotSent when Redis lately came back without its last second, in which somebody may have submitted the
        job: what is under way since then must be in the lists first.
        """
        if self._options.idempotency_s:
            return None
        batch_id = await self._api.find(_tag(job))
        if batch_id is not None or intent.since_loss_s is None:
            return batch_id
        left_s = self._arrival_s(custody) - intent.since_loss_s
        if left_s > 0:
            raise NotSent(f"the queue may have lost a submit, which is waited for for {left_s:.0f} s")
        return None

    def _arrival_s(self, custody: Custody) -> float:
        """After how long whatever a holder sent has arrived, and is in the lists."""
        return custody.lease_s + self._options.submit_timeout_s + self._options.lag_s

    async def _submit(self, job: JobWork, custody: Custody) -> str:
        batch_id = await self._api.submit(
            self._body(job), idempotency_key=_tag(job), last_look=partial(self._last_look, custody)
        )
        log.info("forward.submitted", job=str(job.job_id), remote_batch=batch_id)
        return batch_id

    def _body(self, job: JobWork) -> dict[str, Any]:
        """The batch of this one job; the same each time, so that it has one idempotency key."""
        assert self._batch is not None
        doc, spec = self._batch.doc, job.spec
        one = {"runs": spec.runs, "variables": spec.variables or None, "sequence": spec.sequence, "seed": spec.seed}
        body: dict[str, Any] = {
            "sequence_builder": None if spec.sequence is not None else doc.sequence,
            "device_type": self._options.device,
            "project_id": self._options.project_id,
            "jobs": [{name: value for name, value in one.items() if value is not None}],
            "open": False,
            "tags": [_tag(job), f"tweezer-batch:{self._batch.batch_id}"],
            "backend_configuration": doc.backend_configuration,
            "configuration": doc.configuration,
        }
        return {name: value for name, value in body.items() if value is not None or name == "sequence_builder"}

    async def _recover(self, job: JobWork, intent: Intent, custody: Custody) -> str | Outcome | None:
        """Finds a batch that may have been submitted, or makes sure of it by its idempotency key, for as long as the
        server knows that; without one, until nothing that was sent can arrive any more, and no list lacks it. None:
        whoever was to submit it says that it was not."""
        began, tries = time.monotonic(), 0
        while True:
            known = await custody.known()
            if known is None or not known.may_be_sent:
                return None
            if known.uid is not None:
                return known.uid
            age_s = intent.age_s + time.monotonic() - began
            is_last = age_s >= self._arrival_s(custody)
            try:
                batch_id = await self._api.find(_tag(job))
                if batch_id is None and age_s < _MARGIN * self._options.idempotency_s:
                    is_last = False
                    batch_id = await self._submit(job, custody)
            except SubmitRefused as error:
                if error.status != _CONFLICT:
                    await custody.withdraw()  # had it arrived, the same would have been answered as then
                    return _refused(error, job)
                batch_id = None
            except (NotSent, ForwardError) as error:
                log.warning("forward.not_recovered", job=str(job.job_id), error=error.message, tries=tries)
                batch_id, is_last = None, False
            if batch_id is not None:
                await custody.note(batch_id)
                return batch_id
            if is_last:
                message = (
                    "it is not known whether the server ran it: the submit was sent, or may have been, and the server "
                    "does not list it; it is not submitted again, submit a new one if it may run twice"
                )
                return failed("unknown", message, FaultKind.INTERNAL)
            tries += 1
            await self._sleep(AWAY.delay_s(tries), whatever=True)

    # -- follow -------------------------------------------------------------------------------------

    async def _follow(self, batch_id: str, report: Report, custody: Custody, seen: _Seen) -> Outcome:
        """Looks at the job until its end, and cancels it when that is asked for, or it takes too long there.

        Beside that the server is asked for the status of the batch: a Tweezer holds that question until the end.
        """
        held: asyncio.Task[str] | None = None
        try:
            while True:
                try:
                    job = await self._api.job(batch_id)
                    if job.status.terminal:
                        return seen.timed(await self._ended(job, batch_id, seen.stop, report), job)
                    report(_progress(job))
                    seen.look(job)
                except UnknownBatch as error:
                    if seen.missing_s() >= self._options.lag_s:
                        message = f"the server forgot batch {batch_id}: {error.message}"
                        return failed("unknown", message, FaultKind.INTERNAL)
                except ForwardError as error:
                    seen.failures += 1
                    log.warning("forward.not_looked_at", remote_batch=batch_id, error=error.message)
                if await self._stop_if_due(batch_id, seen, custody):
                    continue
                if seen.failures:
                    await self._sleep(AWAY.delay_s(seen.failures), whatever=seen.stop is not None)
                    continue
                if held is None or held.done():
                    held = asyncio.create_task(self._api.status(batch_id))
                if await self._rest(held, whatever=seen.stop is not None) in _ENDS:
                    seen.stranded += 1
                    if seen.stranded == _STRANDED:
                        message = f"the server ended batch {batch_id} and not its job; it is not submitted again"
                        return failed("displaced", message, FaultKind.INTERNAL)
        finally:
            if held is not None:
                held.cancel()
                await asyncio.gather(held, return_exceptions=True)

    async def _stop_if_due(self, batch_id: str, seen: _Seen, custody: Custody) -> bool:
        """Asks for the job's end, when it is to stop and was not asked to lately; whether it did."""
        assert self._batch is not None
        if seen.stop is None and self._cancel_requested:
            seen.stop = "cancel"
        elif seen.stop is None and seen.running_s() >= self._batch.doc.limits.job_timeout_s:
            seen.stop = "timeout"
            await custody.note_timeout()
        now = time.monotonic()
        if seen.stop is None or (seen.asked is not None and now - seen.asked < self._options.ask_again_s):
            return False
        seen.asked = now
        await self._ask_to_stop(batch_id)
        return True

    async def _rest(self, held: asyncio.Task[str], *, whatever: bool) -> str | None:
        """Waits until there may be something new of the job: the status of its batch, where the server said it."""
        began = time.monotonic()
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            timeout_s = (1 if whatever else _HELD) * self._options.poll_s
            await asyncio.wait((held, woken), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
        status = None
        if held.done():
            with contextlib.suppress(ForwardError):
                status = held.result()
        wait_s = self._options.poll_s - (time.monotonic() - began)
        await self._sleep(0.0 if status in _ENDS else max(wait_s, 0.0), whatever=whatever)
        return status

    async def _ask_to_stop(self, batch_id: str) -> None:
        try:
            await self._api.cancel(batch_id)
            log.info("forward.cancel_sent", remote_batch=batch_id)
        except ForwardError as error:
            log.warning("forward.not_canceled", remote_batch=batch_id, error=error.message)

    async def _ended(self, job: RemoteJob, batch_id: str, stop: str | None, report: Report) -> Outcome:
        match job.status:
            case JobStatus.DONE:
                result = await self._collect(job, report)
                if result is None:
                    message = f"the server says that job {job.id} is done, and has no result"
                    return failed("server", message, FaultKind.INTERNAL)
                return Outcome(OutcomeKind.DONE, result=result)
            case JobStatus.ERROR:
                message = "; ".join(job.errors or ()) or f"the server ended job {job.id} in an error"
                return failed("server", message, FaultKind.USER)
            case JobStatus.CANCELED if stop is not None:
                measured = None
                with contextlib.suppress(ForwardError):
                    measured = await self._result(job)
                if stop == "cancel":
                    return Outcome(OutcomeKind.CANCELED, result=measured)
                limit_s = self._batch.doc.limits.job_timeout_s if self._batch is not None else 0.0
                message = f"the job took longer than {limit_s:g} s on the server"
                return msgspec.structs.replace(failed("timeout", message, FaultKind.TIMEOUT), result=measured)
            case JobStatus.CANCELED:
                message = f"somebody else cancelled batch {batch_id} on the server; it is not submitted again"
                return failed("displaced", message, FaultKind.INTERNAL)
            case JobStatus.PENDING | JobStatus.RUNNING:
                raise AssertionError(f"job {job.id} has not ended")
            case _:
                assert_never(job.status)

    async def _collect(self, job: RemoteJob, report: Report) -> Result | None:
        """The result, waited for while the server cannot be asked, and a little longer than its lists may be behind."""
        report(Progress(Stage.COLLECTING))
        deadline, tries = time.monotonic() + self._options.lag_s, 0
        while True:
            try:
                result = await self._result(job)
                if result is not None or time.monotonic() >= deadline:
                    return result
            except ForwardError as error:
                log.warning("forward.not_collected", remote_job=job.id, error=error.message, tries=tries)
            tries += 1
            await self._sleep(AWAY.delay_s(tries), whatever=True)

    async def _result(self, job: RemoteJob) -> Result | None:
        result = await self._api.result(job.id)
        if result is None:
            return None
        made = result.provenance or Provenance(backend=self._options.device)
        where = msgspec.structs.replace(made, remote_id=job.id, server=self._options.url)
        return msgspec.structs.replace(result, provenance=where)


def _tag(job: JobWork) -> str:
    return f"tweezer:{job.job_id}"


def _refused(error: SubmitRefused, job: JobWork) -> Outcome:
    """What the server will not have, with the name that the field has here."""
    field = error.field
    if field is not None:
        field = _OUR_FIELDS.get(field, field).replace("jobs[0]", f"jobs[{job.index}]", 1)
    return failed("refused", f"the server refuses it with {error.status}: {error.message}", FaultKind.USER, field)


def _progress(job: RemoteJob) -> Progress:
    """How far it is: by the server's own stage where it tells."""
    waits = job.status is JobStatus.PENDING
    stage = _STAGES.get(job.stage or "", Stage.QUEUED if waits else Stage.ON_DEVICE)
    return Progress(stage, None if job.progress is None else min(max(job.progress / 100, 0.0), 1.0))
