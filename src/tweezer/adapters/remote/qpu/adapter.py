"""A QPU with Pasqal's on-premises API: one slot, and jobs that survive their worker.

Before a submit the machine's newest jobs are searched for ours; one is known by its own id, or else by its shots and
batch. The ids of a machine that is reinstalled begin anew, a *set-back*. So before each search the last known job is
checked, and a job under the id of ours counts as ours, and is cancelled, only after it was recognised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
import structlog

from tweezer.adapters.lane.lane import ChildLane, LaneOptions
from tweezer.adapters.protocol import Capabilities, Condition, DeviceUnavailable, MachineState, SubmitGuard
from tweezer.adapters.remote.errors import RemoteError, RemoteUnreachable, SubmitRefused, UnknownRemoteJob
from tweezer.adapters.remote.lane import RemoteLane
from tweezer.adapters.remote.options import QpuOptions
from tweezer.adapters.remote.qpu.api import Operational, QpuApi, QpuJob, SubmitContext
from tweezer.adapters.remote.service import JobContext, Observed, RemoteId, RemoteService, fail
from tweezer.model.errors import ExecutionError, FaultKind
from tweezer.model.ids import new_worker_id
from tweezer.model.intents import Intent, Mark
from tweezer.model.lifecycle import Stage
from tweezer.model.lru import Recent
from tweezer.model.messages import BatchWork, Outcome, OutcomeKind, Progress, Result

log = structlog.get_logger(__name__)

BUILDER = "tweezer.adapters.remote.sequence_builder:open_backend"
"""The backend that builds sequences, in a process of its own."""

_REFUSALS = 2  # by a machine that is up, before a job counts as refused: it may have been down for a moment
_GAPS = 3  # unknown uids in a row behind which there are no more jobs
_SEARCHED_AT_ONCE = 2000  # jobs of the machine, at most, in search of one
_NAMES_KEPT = 50_000
_OLDER = 200  # jobs before those that are known that are searched, too, to be sure


class QpuAdapter:
    """An :class:`~tweezer.adapters.protocol.Adapter`, and a :class:`~tweezer.adapters.protocol.MachineAdapter`."""

    def __init__(self, options: QpuOptions, lanes: LaneOptions) -> None:
        self.capabilities = Capabilities(exclusive=True, is_emulator=False, reattaches=True, probe_s=options.probe_s)
        self._options = options
        self._lane_options = lanes
        self._api = QpuApi(options, agent=f"tweezer {new_worker_id()}")

    async def open_lane(self) -> RemoteLane:
        """Read the machine's specs, and start the process that builds sequences for it.

        Raises ``ExecutionError``: transient while the machine cannot be asked, internal when it refuses to say.
        """
        try:
            specs = await self._api.system()
        except RemoteError as error:
            kind = FaultKind.TRANSIENT if error.retryable else FaultKind.INTERNAL
            raise ExecutionError(kind, error.message) from error
        builder = ChildLane(BUILDER, self._lane_options, (specs,))
        await builder.warm()
        return RemoteLane(QpuService(self._api, builder, self._options))

    async def specs_text(self) -> str:
        return await self._api.system()

    async def probe(self) -> Condition:
        try:
            status = await self._api.operational()
        except RemoteError as error:
            return Condition(MachineState.UNKNOWN, error.message)
        if status is Operational.UP:
            return Condition(MachineState.UP)
        return Condition(MachineState.DOWN, "the machine says that it is down")

    async def close(self) -> None:
        await self._api.close()


class QpuService(RemoteService[QpuJob]):
    """builder: makes sequences and results, in a process of its own."""

    name = "the machine"
    unit = "job"
    runs_at_once = True
    reuses_ids = True

    def __init__(self, api: QpuApi, builder: ChildLane, options: QpuOptions) -> None:
        self._api = api
        self._builder = builder
        self._poll_s = options.poll_s
        self.turned_away_s = options.turned_away_s
        self.ask_again_s = options.ask_again_s
        self.arrives_s = options.submit_timeout_s
        self.forgotten_s = options.forgotten_s
        self.confirm_s = options.confirm_s
        self._names: Recent[int, str] = Recent(_NAMES_KEPT)  # whose the machine's jobs are, "" if nobody's
        self._last_named: tuple[int, str] | None = None  # the last entry of these
        self.begin()

    @property
    def jail(self) -> str:
        """That of the process that reads the users' sequences."""
        return self._builder.jail

    async def prepare(self, batch: BatchWork) -> None:
        await self._builder.prepare(batch)

    async def close(self) -> None:
        await self._builder.close()

    def begin(self) -> None:
        self._sequence: str | None = None
        self._refusals = 0
        self._searched: int | None = None  # the last job of the machine that was looked at in search of ours
        self._has_names: bool | None = None  # whether the machine returns the ids that we give our jobs

    # -- submit -------------------------------------------------------------------------------------

    async def make_ready(self, context: JobContext) -> Outcome | None:
        """Build the sequence, and wait for a machine that cannot be reached. Raises DeviceUnavailable if it is down."""
        if self._sequence is None:
            built = await self._builder.run(context.job, context.report)
            if built.result is None:
                return built
            self._sequence = built.result.serialised_results or ""
        tries = 0
        while not context.cancel_requested:
            try:
                if await self._api.operational() is Operational.UP:
                    return None
                raise DeviceUnavailable("the machine is down")
            except RemoteError as error:
                tries += 1
                log.warning("qpu.unknown_whether_up", error=error.message, tries=tries)
                await context.back_off(tries)
        return None

    async def send(self, context: JobContext, before_send: Callable[[], None]) -> RemoteId:
        submitted = await self._api.submit(
            nb_run=context.job.spec.runs or 0,
            pulser_sequence=self._sequence or "",
            context=SubmitContext(str(context.batch.batch_id), str(context.job.job_id)),
            before_send=before_send,
        )
        return RemoteId(str(submitted.uid), named=submitted.pasqman_job_id is not None)

    async def decide_refused(self, context: JobContext, error: SubmitRefused) -> Outcome | None:
        """Raises DeviceUnavailable unless the machine says that it is up: then it was not because of the job."""
        try:
            is_up = await self._api.operational() is Operational.UP
        except RemoteError as unknown:
            message = f"the machine refused a job, and whether it is up is not known: {unknown.message}"
            raise DeviceUnavailable(message) from unknown
        if not is_up:
            raise DeviceUnavailable("the machine is down") from error
        self._refusals += 1
        problem = f"the QPU's API refuses the job with {error.status}: {error.message}"
        if self._refusals < _REFUSALS:
            log.warning("qpu.refused_once", error=problem)
            return None
        return fail("refused", problem, FaultKind.USER)

    # -- search -------------------------------------------------------------------------------------

    async def find(self, context: JobContext, intent: Intent) -> RemoteId | None:
        """Search the machine's newest jobs. Of more than are searched at once the rest is for the next time."""
        mark = await self._check_for_set_back(context.guard)
        if self._searched is None:
            after = mark.after(intent)
            self._searched = after if after is not None else await self._before_newest()
        uid, gaps = self._searched + 1, 0
        for _ in range(_SEARCHED_AT_ONCE):
            try:
                name = await self._name(uid)
            except UnknownRemoteJob:
                gaps += 1
                if gaps == _GAPS:
                    return None
            else:
                gaps = 0
                if name == str(context.job.job_id):
                    log.warning("qpu.found", job=name, uid=uid)
                    return RemoteId(str(uid), named=True)
            uid += 1
        self._searched = uid - _OLDER  # ids may become known out of turn, but not by that many
        raise RemoteUnreachable(f"the machine has more than {_SEARCHED_AT_ONCE} jobs that were not looked at yet")

    async def _name(self, uid: int) -> str:
        """Whose job that is; asked once, as jobs that wait since before Redis came back are looked for among many."""
        name = self._names.get(uid)
        if name is None:
            name = (await self._api.job(uid)).pasqman_job_id or ""
            self._names.put(uid, name)
            self._last_named = uid, name
        return name

    async def _check_for_set_back(self, guard: SubmitGuard) -> Mark:
        """Return the last known job, after a check that the machine still has it under this id. If not, the machine's
        ids began anew: report that and forget what was known of them."""
        mark = await guard.mark()
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
            self._names, self._last_named, self._searched = Recent(_NAMES_KEPT), None, None
            await guard.note_set_back(mark.uid, since)
            return await guard.mark()
        return mark

    async def _before_newest(self, behind: int = 0) -> int:
        """Return an id that is older than the newest jobs of the machine, or 0.

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

    async def _job_if_any(self, uid: int) -> QpuJob | None:
        try:
            return await self._api.job(uid)
        except UnknownRemoteJob:
            return None

    # -- follow -------------------------------------------------------------------------------------

    async def poll(self, context: JobContext, uid: str) -> Observed[QpuJob] | Outcome:
        if self._has_names is None:
            self._has_names = (await context.guard.mark()).has_names
        job = await self._api.job(int(uid), patient=False)
        if not self._is_ours(job, context):
            await self.note_forgotten(context)
            return _stranger(job)
        self._has_names = self._has_names or job.pasqman_job_id is not None
        return Observed(job, job.status, Progress(Stage.ON_DEVICE, job.fraction()))

    def _is_ours(self, job: QpuJob, context: JobContext) -> bool:
        """Return whether this is the job that was submitted under its id. A machine that returns names returns ours."""
        if job.pasqman_job_id is not None or self._has_names:
            return job.pasqman_job_id == str(context.job.job_id)
        same_batch = job.batch_id in (None, str(context.batch.batch_id))
        return same_batch and job.nb_run in (None, context.job.spec.runs)

    async def cancel(self, uid: str) -> None:
        await self._api.cancel(int(uid))

    async def rest(self, context: JobContext, uid: str, *, through_cancel: bool) -> None:
        await context.sleep(self._poll_s, through_cancel=through_cancel)

    async def note_forgotten(self, context: JobContext) -> None:
        """Check for a set-back now; if the machine cannot be asked, the next submit finds it."""
        with contextlib.suppress(RemoteError):
            await self._check_for_set_back(context.guard)

    async def collect(self, context: JobContext, job: QpuJob) -> Outcome:
        """Have Pulser's results made of what was measured."""
        try:
            counter = job.counter()
        except RemoteUnreachable as error:
            return fail("machine", error.message, FaultKind.INTERNAL)
        if counter is None:
            message = f"the machine says that job {job.uid} is done, with no result"
            return fail("machine", message, FaultKind.INTERNAL)
        made = await self._builder.run(context.job, context.report, counter)
        while made.kind is OutcomeKind.RETRY:  # its process died: what was measured is here all the same
            await context.sleep(self._poll_s, through_cancel=True)
            made = await self._builder.run(context.job, context.report, counter)
        if made.result is None or made.result.provenance is None:
            return made
        provenance = msgspec.structs.replace(made.result.provenance, remote_id=str(job.uid))
        result = msgspec.structs.replace(made.result, provenance=provenance)
        return msgspec.structs.replace(made, result=result)

    async def collect_part(self, context: JobContext, job: QpuJob) -> Result | None:
        return None if job.result is None else (await self.collect(context, job)).result

    def decide_failed(self, uid: str, job: QpuJob) -> Outcome:
        return fail("machine", f"the machine ended job {uid} in an error", FaultKind.INTERNAL)

    def explain_displaced(self, uid: str) -> str:
        return (
            f"somebody else cancelled job {uid} on the machine, or submitted another one, which cancels what runs; it "
            "is not submitted again"
        )


def _stranger(job: QpuJob) -> Outcome:
    whose = job.pasqman_job_id or "without a name"
    message = (
        f"the machine's job {job.uid} is another client's ({whose}): its job ids began anew, or base_url leads to "
        "another machine; the outcome of this job is not known, and it is not submitted again"
    )
    return fail("unknown", message, FaultKind.INTERNAL)
