"""The one slot of a QPU: each job is submitted once, and followed to its end by whoever holds it.

The order of things is the point. A job's intent is on Redis' disk before anything is sent. Before a submit the
machine's newest jobs are looked through for ours: if Redis forgot its last second, the machine has not. The lease is
looked at when the connection stands, right before the first byte. A submit that may have arrived is never repeated: the
job is looked for by its own id, and when it is not to be found its outcome is unknown, which is an error and no second
run.

The ids of a machine that is reinstalled begin anew, a *set-back*. So before each search the last known job is checked,
and a job under the id of ours counts as ours, and is cancelled, only after its name, or its shots and batch, were
compared.
"""

from __future__ import annotations

import contextlib
import math
import time
from functools import partial
from typing import assert_never

import msgspec
import structlog

from tweezer.adapters.lane.lane import ChildLane
from tweezer.adapters.protocol import Away, Custody, Report
from tweezer.adapters.remote.qpu.answers import Operational, RemoteJob, RemoteStatus
from tweezer.adapters.remote.qpu.api import Context, QpuApi
from tweezer.adapters.remote.qpu.errors import (
    QpuError,
    QpuUnreachable,
    SubmitDeferred,
    SubmitRefused,
    SubmitTurnedAway,
    SubmitUncertain,
    TooLate,
    UnknownJob,
)
from tweezer.adapters.remote.qpu.options import QpuOptions
from tweezer.adapters.remote.remote_lane import AWAY, NotSent, RemoteLane, TurnedAway, failed
from tweezer.model.errors import FaultKind
from tweezer.model.lifecycle import Stage
from tweezer.model.lru import Recent
from tweezer.model.messages import BatchWork, JobWork, Outcome, OutcomeKind, Progress
from tweezer.model.remote import Intent, Mark

log = structlog.get_logger(__name__)

_REFUSALS = 2  # by a machine that is up, before a job counts as refused: it may have been down for a moment
_GAPS = 3  # unknown uids in a row behind which there are no more jobs
_LOOKED_THROUGH = 2000  # jobs of the machine, at most, in search of one
_NAMES_KEPT = 50_000
_OLDER = 200  # jobs before those that are known to be looked at, to be sure


class _Stop(msgspec.Struct):
    """That the machine is asked to stop a job. since, asked: monotonic seconds of the first and the last request.
    too_late: the machine said that it cannot be aborted any more."""

    is_timeout: bool
    since: float
    asked: float = -math.inf
    too_late: bool = False


class QpuLane(RemoteLane):
    """builder: makes sequences and results, elsewhere."""

    def __init__(self, api: QpuApi, builder: ChildLane, options: QpuOptions) -> None:
        super().__init__()
        self._api = api
        self._builder = builder
        self._options = options
        self._batch: BatchWork | None = None
        self._looked = -1, 0  # of which job of the batch the machine's jobs were looked through, and up to which
        self._names: Recent[int, str] = Recent(_NAMES_KEPT)  # whose the machine's jobs are, "" if nobody's
        self._last_named: tuple[int, str] | None = None  # the last entry of these
        self._refusals, self._turned_away = 0, TurnedAway(options.turned_away_s)  # of the job's submits

    @property
    def jail(self) -> str:
        """That of the process that reads the users' sequences."""
        return self._builder.jail

    async def prepare(self, batch: BatchWork) -> None:
        self._looked = -1, 0
        await self._builder.prepare(batch)
        self._batch = batch

    async def close(self) -> None:
        await self._builder.close()

    async def _submit_and_follow(self, job: JobWork, report: Report, custody: Custody) -> Outcome:
        self._looked = -1, 0
        self._refusals, self._turned_away = 0, TurnedAway(self._options.turned_away_s)
        began = time.monotonic()
        found = await self._submitted(job, report, custody)
        if isinstance(found, Outcome):
            return found
        uid, intent = found
        prepared = time.monotonic()
        if intent is not None:  # another holder submitted it
            began = prepared = prepared - intent.age_s
        report(Progress(Stage.ON_DEVICE))
        stop = _Stop(is_timeout=True, since=time.monotonic()) if intent is not None and intent.timed_out else None
        outcome = await self._follow(job, uid, report, custody, since=prepared, stop=stop)
        return msgspec.structs.replace(
            outcome, preparation_s=prepared - began, device_s=max(time.monotonic() - prepared, outcome.device_s)
        )

    # -- submit -------------------------------------------------------------------------------------

    async def _submitted(self, job: JobWork, report: Report, custody: Custody) -> tuple[int, Intent | None] | Outcome:
        """The machine's id of the job, which is submitted if it never was, and the intent of who did so before; or how
        it ended without one."""
        tries, sequence = 0, None
        while True:
            intent = await custody.known()
            if intent is not None and intent.uid is not None:
                return int(intent.uid), intent
            if intent is not None and intent.may_be_sent:
                log.warning("qpu.intent_without_a_job", job=str(job.job_id), age_s=intent.age_s)
                patience_s = custody.lease_s + self._options.submit_timeout_s - intent.age_s
                found = await self._recover(job, intent, custody, patience_s=patience_s)
            else:
                if sequence is None:
                    built = await self._builder.run(job, report)
                    if built.result is None:
                        return built
                    sequence = built.result.serialised_results or ""
                await self._until_it_takes_jobs(tries)
                found = await self._try_once(job, sequence, custody)
                tries += 1
            if isinstance(found, Outcome):
                return found
            if found is not None:
                return found, None

    async def _try_once(self, job: JobWork, sequence: str, custody: Custody) -> int | Outcome | None:
        """Says that the job is to be submitted, and submits it. None: it was not, and may be tried again."""
        intent: Intent | None = None
        try:
            async with self._submitting(custody):
                intent = None if self._cancel_requested else await custody.intend(unsent=True)
                if intent is None:
                    return Outcome(OutcomeKind.CANCELED, began=False)
                if not intent.is_new:
                    return None
                uid, named = await self._find(job, intent, custody), True
                if uid is None and (patience_s := self._uneasy_s(intent, custody)) > 0:
                    await custody.withdraw()
                    log.warning("qpu.waits_for_what_was_lost", job=str(job.job_id), seconds=patience_s)
                    await self._sleep(patience_s)
                    return None
                if uid is None:
                    uid, named = await self._submit(job, sequence, custody)
        except SubmitUncertain as error:
            assert intent is not None
            log.warning("qpu.submit_uncertain", job=str(job.job_id), error=error.message)
            return await self._recover(job, intent, custody, patience_s=self._options.submit_timeout_s)
        except (SubmitDeferred, NotSent) as error:
            log.warning("qpu.submit_deferred", job=str(job.job_id), error=error.message)
            await custody.withdraw()
            return self._turned_away.outcome(error.message) if isinstance(error, SubmitTurnedAway) else None
        except SubmitRefused as error:
            await custody.withdraw()
            return await self._refused(error)
        except QpuError as error:
            log.warning("qpu.not_submitted", job=str(job.job_id), error=error.message)
            await custody.withdraw()
            return None
        await custody.note(str(uid), named=named)
        return uid

    async def _submit(self, job: JobWork, sequence: str, custody: Custody) -> tuple[int, bool]:
        """Submit the job; return the machine's id of it, and whether the machine returned ours."""
        assert self._batch is not None
        if not await custody.set_out():
            raise NotSent("the lease of the device was lost before the submit was sent")

        remote = await self._api.submit(
            nb_run=job.spec.runs or 0,
            pulser_sequence=sequence,
            context=Context(str(self._batch.batch_id), str(job.job_id)),
            last_look=partial(self._last_look, custody),
        )
        log.info("qpu.submitted", job=str(job.job_id), uid=remote.uid)
        return remote.uid, remote.pasqman_job_id is not None

    async def _until_it_takes_jobs(self, tries: int) -> None:
        """Returns when the machine is up. Raises Away when it is down; while it cannot be reached it is waited for."""
        if tries:
            await self._sleep(AWAY.delay_s(tries))
        while not self._cancel_requested:
            try:
                if await self._api.operational() is Operational.UP:
                    return
                raise Away("the machine is down")
            except QpuError as error:
                tries += 1
                log.warning("qpu.unknown_whether_up", error=error.message, tries=tries)
                await self._sleep(AWAY.delay_s(tries))

    async def _refused(self, error: SubmitRefused) -> Outcome | None:
        """Decide on a submit that the API refused: the outcome, or None to try it once more. Raises Away unless the
        machine says that it is up: then it was not because of the job."""
        try:
            is_up = await self._api.operational() is Operational.UP
        except QpuError as unknown:
            raise Away(f"the machine refused a job, and whether it is up is not known: {unknown.message}") from unknown
        if not is_up:
            raise Away("the machine is down") from error
        self._refusals += 1
        if self._refusals < _REFUSALS:
            log.warning("qpu.refused_once", error=error.message)
            return None
        return failed("refused", error.message, FaultKind.USER)

    async def _find(self, job: JobWork, intent: Intent, custody: Custody) -> int | None:
        """The machine's id of the job, if it is among its newest. Raises QpuError.

        Of more than it looks through at once the rest is for the next time.
        """
        mark = await self._check_for_set_back(custody)
        if self._looked[0] != job.index:
            after = mark.after(intent)
            self._looked = job.index, after if after is not None else await self._before_newest()
        uid, gaps = self._looked[1] + 1, 0
        for _ in range(_LOOKED_THROUGH):
            try:
                name = await self._name(uid)
            except UnknownJob:
                gaps += 1
                if gaps == _GAPS:
                    return None
            else:
                gaps = 0
                if name == str(job.job_id):
                    log.warning("qpu.found", job=str(job.job_id), uid=uid)
                    return uid
            uid += 1
        self._looked = job.index, uid - _OLDER  # ids may become known out of turn, but not by that many
        raise QpuUnreachable(f"the machine has more than {_LOOKED_THROUGH} jobs that were not looked at yet")

    async def _name(self, uid: int) -> str:
        """Whose job that is; asked once, as jobs that wait since before Redis came back are looked for among many."""
        name = self._names.get(uid)
        if name is None:
            name = (await self._api.job(uid)).pasqman_job_id or ""
            self._names.put(uid, name)
            self._last_named = uid, name
        return name

    async def _check_for_set_back(self, custody: Custody) -> Mark:
        """Return the last known job, after a check that the machine still has it under this id. If not, the machine's
        ids began anew: report that and forget what was known of them. Raises QpuError."""
        mark = await custody.mark()
        known = [] if mark.uid is None or mark.uid < 1 else [(mark.uid, mark.job)]
        if self._last_named is not None:
            known.append(self._last_named)
        for uid, name in known:
            remote = await self._job_if_any(uid)
            found = None if remote is None else remote.pasqman_job_id or ""
            if found is not None and (name in (None, found) or not (found or mark.has_names)):
                continue
            since = await self._before_newest(behind=uid)
            log.error("qpu.set_back", last_uid=uid, job=name, found=found, since=since)
            self._names, self._last_named, self._looked = Recent(_NAMES_KEPT), None, (-1, 0)
            await custody.note_set_back(mark.uid, since)
            return await custody.mark()
        return mark

    async def _before_newest(self, behind: int = 0) -> int:
        """Return an id that is older than the newest jobs of the machine, or 0. Raises QpuError.

        behind: an id; where the machine has jobs right behind it, it has no newer ones before it.
        """
        known = 0
        for uid in range(behind + 1, behind + 1 + _GAPS):
            known = uid if await self._job_if_any(uid) else known
        step = 1
        while await self._job_if_any(known + step):
            known, step = known + step, 2 * step
        while step > 1:
            step //= 2
            known += step if await self._job_if_any(known + step) else 0
        return max(known - _OLDER, 0)

    async def _job_if_any(self, uid: int) -> RemoteJob | None:
        try:
            return await self._api.job(uid)
        except UnknownJob:
            return None

    def _uneasy_s(self, intent: Intent, custody: Custody) -> float:
        """For how long another holder's submit may still be under way of which the queue knows nothing: where it may
        have lost its last second, until that holder's lease is over and nothing that it sent can arrive any more."""
        if intent.since_loss_s is None:
            return 0.0
        return custody.lease_s + self._options.submit_timeout_s - intent.since_loss_s

    async def _recover(
        self, job: JobWork, intent: Intent, custody: Custody, *, patience_s: float
    ) -> int | Outcome | None:
        """Looks for a job that may have been submitted, until nothing that was sent can arrive any more. None: whoever
        was to submit it says that it was not."""
        deadline, tries = time.monotonic() + patience_s, 0
        while True:
            is_last = time.monotonic() >= deadline
            known = await custody.known()
            if known is None or not known.may_be_sent:
                return None
            if known.uid is not None:
                return int(known.uid)
            try:
                uid = await self._find(job, intent, custody)
            except QpuError as error:
                log.warning("qpu.not_looked_through", error=error.message)
                uid, is_last = None, False
            if uid is not None:
                await custody.note(str(uid), named=True)
                return uid
            if is_last:
                message = (
                    "it is not known whether the machine ran it: the submit was sent, or may have been, and the "
                    "machine does not know the job; it is not submitted again, submit a new one if it may run twice"
                )
                return failed("unknown", message, FaultKind.INTERNAL)
            tries += 1
            await self._sleep(min(AWAY.delay_s(tries), max(deadline - time.monotonic(), 0.05)), whatever=True)

    # -- follow -------------------------------------------------------------------------------------

    async def _follow(
        self, job: JobWork, uid: int, report: Report, custody: Custody, *, since: float, stop: _Stop | None
    ) -> Outcome:
        """Polls the job to its end, and cancels it when that is asked for, or it takes too long since then (monotonic).

        It is cancelled only right after the machine has said that it is this job, and not another one under its id.
        """
        assert self._batch is not None
        limit_s = self._batch.doc.limits.job_timeout_s
        has_names = (await custody.mark()).has_names
        failures, unknown_since = 0, math.inf
        while True:
            now, is_ours = time.monotonic(), False
            if stop is None and self._cancel_requested:
                stop = _Stop(is_timeout=False, since=now)
            elif stop is None and now - since >= limit_s:
                stop = _Stop(is_timeout=True, since=now)
                await custody.note_timeout()
            try:
                remote = await self._api.job(uid, patient=False)
                if not self._is_ours(remote, job, has_names=has_names):
                    await self._report_set_back(custody)
                    return _stranger(remote)
                is_ours, has_names = True, has_names or remote.pasqman_job_id is not None
                failures, unknown_since = 0, math.inf
                if remote.status.terminal:
                    return await self._ended(job, remote, stop, report)
                report(Progress(Stage.ON_DEVICE, _fraction(remote)))
            except UnknownJob as error:
                failures, unknown_since = 0, min(unknown_since, now)
                if now - unknown_since >= self._options.forgotten_s:
                    await self._report_set_back(custody)
                    return failed("unknown", f"the machine forgot job {uid}: {error.message}", FaultKind.INTERNAL)
            except QpuError as error:
                failures += 1
                log.warning("qpu.not_polled", uid=uid, error=error.message, failures=failures)
            now = time.monotonic()
            if stop is not None and now - stop.since >= self._options.confirm_s and not stop.too_late:
                return self._unconfirmed(uid, stop)
            if stop is not None and is_ours and now - stop.asked >= self._options.ask_again_s:
                if await self._ask_to_stop(uid, stop):
                    stop.asked = now
                    continue
                failures = 1
            if failures:
                await self._sleep(AWAY.delay_s(failures), whatever=stop is not None)
            else:
                await self._sleep(self._options.poll_s, whatever=stop is not None)

    async def _ask_to_stop(self, uid: int, stop: _Stop) -> bool:
        """Ask the machine once to stop the job; return whether it answered."""
        try:
            await self._api.cancel(uid)
            log.info("qpu.cancel_sent", uid=uid)
        except TooLate:
            stop.too_late = True
            log.info("qpu.too_late_to_cancel", uid=uid)
        except QpuError as error:
            log.warning("qpu.not_canceled", uid=uid, error=error.message)
            return not error.retryable
        return True

    def _is_ours(self, remote: RemoteJob, job: JobWork, *, has_names: bool) -> bool:
        """Whether this is the job that was submitted under its id. A machine that returns names returns ours."""
        assert self._batch is not None
        if remote.pasqman_job_id is not None or has_names:
            return remote.pasqman_job_id == str(job.job_id)
        same_batch = remote.batch_id in (None, str(self._batch.batch_id))
        return same_batch and remote.nb_run in (None, job.spec.runs)

    async def _report_set_back(self, custody: Custody) -> None:
        """Check for a set-back now; if the machine cannot be asked, the next submit finds it."""
        with contextlib.suppress(QpuError):
            await self._check_for_set_back(custody)

    def _unconfirmed(self, uid: int, stop: _Stop) -> Outcome:
        """The machine was asked to stop the job, and does not say that it did."""
        why = "it took too long" if stop.is_timeout else "its cancel was requested"
        log.warning("qpu.cancel_not_confirmed", uid=uid)
        return failed(
            "unconfirmed",
            f"{why}, and the machine has not confirmed within {self._options.confirm_s:g} s that it stopped job {uid}; "
            "it may have run to its end",
            FaultKind.TIMEOUT if stop.is_timeout else FaultKind.INTERNAL,
        )

    async def _ended(self, job: JobWork, remote: RemoteJob, stop: _Stop | None, report: Report) -> Outcome:
        match remote.status:
            case RemoteStatus.DONE:
                return await self._collect(job, remote, report)
            case RemoteStatus.ERROR:
                return failed("machine", f"the machine ended job {remote.uid} in an error", FaultKind.INTERNAL)
            case RemoteStatus.CANCELED if stop is not None:
                partial = await self._collect(job, remote, report) if remote.result is not None else None
                measured = None if partial is None else partial.result
                if not stop.is_timeout:
                    return Outcome(OutcomeKind.CANCELED, result=measured)
                limit_s = self._batch.doc.limits.job_timeout_s if self._batch is not None else 0.0
                message = f"the job took longer than {limit_s:g} s on the machine"
                return msgspec.structs.replace(failed("timeout", message, FaultKind.TIMEOUT), result=measured)
            case RemoteStatus.CANCELED:
                message = (
                    f"somebody else cancelled job {remote.uid} on the machine, or submitted another one, which cancels "
                    "what runs; it is not submitted again"
                )
                return failed("displaced", message, FaultKind.INTERNAL)
            case RemoteStatus.PENDING | RemoteStatus.RUNNING:
                raise AssertionError(f"job {remote.uid} has not ended")
            case _:
                assert_never(remote.status)

    async def _collect(self, job: JobWork, remote: RemoteJob, report: Report) -> Outcome:
        """The outcome of a job that measured something, with Pulser's results made of it."""
        report(Progress(Stage.COLLECTING))
        try:
            counter = remote.counter()
        except QpuUnreachable as error:
            return failed("machine", error.message, FaultKind.INTERNAL)
        if counter is None:
            return failed(
                "machine", f"the machine says that job {remote.uid} is done, with no result", FaultKind.INTERNAL
            )
        made = await self._builder.run(job, report, counter)
        while made.kind is OutcomeKind.RETRY:  # its process died: what was measured is here all the same
            await self._sleep(self._options.poll_s, whatever=True)
            made = await self._builder.run(job, report, counter)
        if made.result is None or made.result.provenance is None:
            return made
        provenance = msgspec.structs.replace(made.result.provenance, remote_id=str(remote.uid))
        result = msgspec.structs.replace(made.result, provenance=provenance)
        return msgspec.structs.replace(made, result=result)


def _stranger(remote: RemoteJob) -> Outcome:
    whose = remote.pasqman_job_id or "without a name"
    message = (
        f"the machine's job {remote.uid} is another client's ({whose}): its job ids began anew, or base_url leads to "
        "another machine; the outcome of this job is not known, and it is not submitted again"
    )
    return failed("unknown", message, FaultKind.INTERNAL)


def _fraction(remote: RemoteJob) -> float | None:
    """How far the job is, where the machine tells: runs of how many, or a number of percent."""
    match remote.progress:
        case {"completed_runs": int(done), "total_runs": int(total)} if total > 0:
            return min(max(done / total, 0.0), 1.0)
        case int(percent) | float(percent) if 0 <= percent <= 100:
            return percent / 100
        case _:
            return None
