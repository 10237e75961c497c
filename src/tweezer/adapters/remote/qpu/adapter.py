"""A QPU with Pasqal's on-premises API. It runs one job at a time, and jobs continue without their worker.

Before a submit, the machine's newest jobs are searched for ours. A job is recognised by the id that we gave it, or, if
the machine does not return that, by its shots and batch. When a machine is reinstalled its ids begin anew, a
*set-back*. The last known job is therefore checked before each search, and a job counts as ours, and is cancelled, only
after it was recognised.
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
from tweezer.model.lru import Recent
from tweezer.model.messages import BatchWork, Outcome, OutcomeKind, Result

log = structlog.get_logger(__name__)

BUILDER = "tweezer.adapters.remote.sequence_builder:open_backend"
"""The backend that builds sequences, in a lane process."""

_REFUSALS = 2  # refusals by a machine that is up before a job fails, because it may have been down briefly
_GAPS = 3  # consecutive unknown uids after which the machine has no more jobs
_SEARCHED_AT_ONCE = 2000  # the largest number of jobs that one search reads
_NAMES_KEPT = 50_000
_OLDER = 200  # how many jobs before the known ones are searched too, for safety


class QpuAdapter:
    """An :class:`~tweezer.adapters.protocol.Adapter`, and a :class:`~tweezer.adapters.protocol.MachineAdapter`."""

    def __init__(self, options: QpuOptions, lanes: LaneOptions) -> None:
        self.capabilities = Capabilities(exclusive=True, is_emulator=False, reattaches=True, probe_s=options.probe_s)
        self._options = options
        self._lane_options = lanes
        self._api = QpuApi(options, agent=f"tweezer {new_worker_id()}")

    async def open_lane(self) -> RemoteLane:
        """Read the machine's specs and start the process that builds sequences for it.

        Raises ``ExecutionError``: transient if the machine cannot be reached, internal if it refuses.
        """
        try:
            specs = await self._api.get_specs()
        except RemoteError as error:
            kind = FaultKind.TRANSIENT if error.retryable else FaultKind.INTERNAL
            raise ExecutionError(kind, error.message) from error
        builder = ChildLane(BUILDER, self._lane_options, (specs,))
        await builder.warm()
        return RemoteLane(QpuService(self._api, builder, self._options))

    async def specs_text(self) -> str:
        return await self._api.get_specs()

    async def probe(self) -> Condition:
        try:
            status = await self._api.get_status()
        except RemoteError as error:
            return Condition(MachineState.UNKNOWN, error.message)
        if status is Operational.UP:
            return Condition(MachineState.UP)
        return Condition(MachineState.DOWN, "the machine reports that it is down")

    async def close(self) -> None:
        await self._api.close()


class QpuService(RemoteService[QpuJob]):
    """Runs jobs on a QPU.

    builder: The lane whose process builds sequences and makes results.
    """

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
        self._names: Recent[int, str] = Recent(_NAMES_KEPT)  # uid → the id that its client gave the job; "" if none
        self._last_named: tuple[int, str] | None = None  # the last entry of _names
        self.begin()

    @property
    def jail(self) -> str:
        """The jail of the process that reads the users' sequences."""
        return self._builder.jail

    async def prepare(self, batch: BatchWork) -> None:
        await self._builder.prepare(batch)

    async def close(self) -> None:
        await self._builder.close()

    def begin(self) -> None:
        self._sequence: str | None = None
        self._refusals = 0
        self._searched: int | None = None  # the last job of the machine that was searched
        self._has_names: bool | None = None  # whether the machine returns the ids that we give our jobs

    # -- submit -------------------------------------------------------------------------------------

    async def make_ready(self, context: JobContext) -> Outcome | None:
        """Build the sequence, and wait until the machine can be reached. Raises DeviceUnavailable if it is down."""
        if self._sequence is None:
            built = await self._builder.run(context.job, context.report)
            if built.result is None:
                return built
            self._sequence = built.result.serialised_results or ""
        tries = 0
        while not context.cancel_requested:
            try:
                if await self._api.get_status() is Operational.UP:
                    return None
                raise DeviceUnavailable("the machine is down")
            except RemoteError as error:
                tries += 1
                log.warning("qpu.status_unknown", error=error.message, tries=tries)
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
        """Fail a job that was refused twice while the machine is up. Raises DeviceUnavailable if it is not up."""
        try:
            is_up = await self._api.get_status() is Operational.UP
        except RemoteError as unknown:
            message = f"the machine refused a job, and it is unknown whether it is up: {unknown.message}"
            raise DeviceUnavailable(message) from unknown
        if not is_up:
            raise DeviceUnavailable("the machine is down") from error
        self._refusals += 1
        problem = f"the QPU's API refused the job with {error.status}: {error.message}"
        if self._refusals < _REFUSALS:
            log.warning("qpu.refused_once", error=problem)
            return None
        return fail("refused", problem, FaultKind.USER)

    # -- search -------------------------------------------------------------------------------------

    async def find(self, context: JobContext, intent: Intent) -> RemoteId | None:
        """Search the machine's newest jobs. A long search continues in the next call."""
        mark = await self._check_for_set_back(context.guard)
        if self._searched is None:
            after = mark.after(intent)
            self._searched = after if after is not None else await self._find_before_newest()
        uid, gaps = self._searched + 1, 0
        for _ in range(_SEARCHED_AT_ONCE):
            try:
                name = await self._get_name(uid)
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
        self._searched = uid - _OLDER  # ids may appear out of order, but not by so many
        raise RemoteUnreachable(f"the machine has more than {_SEARCHED_AT_ONCE} new jobs; the search continues")

    async def _get_name(self, uid: int) -> str:
        """Return the id that its client gave a job. Cached, because after a restart of Redis many jobs are searched."""
        name = self._names.get(uid)
        if name is None:
            name = (await self._api.get_job(uid)).pasqman_job_id or ""
            self._names.put(uid, name)
            self._last_named = uid, name
        return name

    async def _check_for_set_back(self, guard: SubmitGuard) -> Mark:
        """Return the last known job, after a check that the machine still has it under this id.

        If it does not, the machine's ids began anew: record that and clear the caches.
        """
        mark = await guard.mark()
        known = [] if mark.uid is None or mark.uid < 1 else [(mark.uid, mark.job)]
        if self._last_named is not None:
            known.append(self._last_named)
        for uid, name in known:
            remote = await self._job_if_any(uid)
            found = None if remote is None else remote.pasqman_job_id or ""
            if found is not None and (name in (None, found) or not (found or mark.has_names)):
                continue
            since = await self._find_before_newest(behind=uid)
            log.error("qpu.set_back", last_uid=uid, job=name, found=found, since=since)
            self._names, self._last_named, self._searched = Recent(_NAMES_KEPT), None, None
            await guard.note_set_back(mark.uid, since)
            return await guard.mark()
        return mark

    async def _find_before_newest(self, behind: int = 0) -> int:
        """Return an id that is older than the machine's newest jobs, or 0.

        behind: An id. If the machine has jobs right after it, its newest jobs come after it too.
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
            return await self._api.get_job(uid)
        except UnknownRemoteJob:
            return None

    # -- follow -------------------------------------------------------------------------------------

    async def poll(self, context: JobContext, uid: str) -> Observed[QpuJob] | Outcome:
        if self._has_names is None:
            self._has_names = (await context.guard.mark()).has_names
        job = await self._api.get_job(int(uid), patient=False)
        if not self._is_ours(job, context):
            await self.note_forgotten(context)
            return _fail_stranger(job)
        self._has_names = self._has_names or job.pasqman_job_id is not None
        return Observed(job, job.status, job.read_progress())

    def _is_ours(self, job: QpuJob, context: JobContext) -> bool:
        """Return whether this is the job that we submitted. A machine that returns names must return ours."""
        if job.pasqman_job_id is not None or self._has_names:
            return job.pasqman_job_id == str(context.job.job_id)
        same_batch = job.batch_id in (None, str(context.batch.batch_id))
        return same_batch and job.nb_run in (None, context.job.spec.runs)

    async def cancel(self, uid: str) -> None:
        await self._api.cancel(int(uid))

    async def rest(self, context: JobContext, uid: str, *, through_cancel: bool) -> None:
        await context.sleep(self._poll_s, through_cancel=through_cancel)

    async def note_forgotten(self, context: JobContext) -> None:
        """Check for a set-back now. If the machine cannot be reached, the next submit checks again."""
        with contextlib.suppress(RemoteError):
            await self._check_for_set_back(context.guard)

    async def collect(self, context: JobContext, job: QpuJob) -> Outcome:
        """Make Pulser's results from the measured bitstrings."""
        try:
            counter = job.counter()
        except RemoteUnreachable as error:
            return fail("machine", error.message, FaultKind.INTERNAL)
        if counter is None:
            message = f"the machine reports that job {job.uid} is done, but returned no result"
            return fail("machine", message, FaultKind.INTERNAL)
        made = await self._builder.run(context.job, context.report, counter)
        while made.kind is OutcomeKind.RETRY:  # its process died; the measured bitstrings are still here
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
        return fail("machine", f"job {uid} failed on the machine, which gave no reason", FaultKind.INTERNAL)

    def explain_displaced(self, uid: str) -> str:
        return (
            f"another client cancelled job {uid} on the machine, or submitted a job, which cancels the running one; it "
            "is not submitted again"
        )


def _fail_stranger(job: QpuJob) -> Outcome:
    name = f"named {job.pasqman_job_id}" if job.pasqman_job_id else "without a name"
    message = (
        f"the machine's job {job.uid} is now another client's ({name}): its job ids began anew, or base_url leads to "
        "another machine; the outcome of this job is unknown, and it is not submitted again"
    )
    return fail("unknown", message, FaultKind.INTERNAL)
