"""A device whose jobs another server runs. It can have any number of lanes, and jobs continue without their worker.

Each job is forwarded as a separate batch. The batch has the job's id as a tag, by which it is found if the answer to
its submit was lost. A server that supports idempotency keys gets the submit again with the same key, which creates no
second batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from tweezer.adapters.lane.lane import LaneOptions
from tweezer.adapters.protocol import Capabilities, Condition, MachineState
from tweezer.adapters.remote.errors import RemoteError, SubmitRefused
from tweezer.adapters.remote.forward.api import ForwardApi, ServerJob
from tweezer.adapters.remote.lane import RemoteLane
from tweezer.adapters.remote.options import ForwardOptions
from tweezer.adapters.remote.service import JobContext, Observed, RemoteId, RemoteService, fail
from tweezer.duties import end_tasks
from tweezer.model.errors import FaultKind
from tweezer.model.ids import new_worker_id
from tweezer.model.intents import Intent
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import JobWork, Outcome, OutcomeKind, Provenance, Result

log = structlog.get_logger(__name__)

_MARGIN = 0.9  # of the time for which the server knows an idempotency key
_ENDS = frozenset({"DONE", "ERROR", "CANCELED", "TIMED_OUT"})
_HELD = 5  # the factor by which polls are rarer while a long poll for the batch's status is open
_STRANDED = 5  # how often a job must be seen unfinished in an ended batch before that is believed
_FIELD_NAMES = {"sequence_builder": "sequence", "device_type": "device"}


class ForwardAdapter:
    """An :class:`~tweezer.adapters.protocol.Adapter`, and a :class:`~tweezer.adapters.protocol.MachineAdapter`.

    Its lanes have no processes: each lane follows one job.
    """

    def __init__(self, options: ForwardOptions, lanes: LaneOptions) -> None:
        self.capabilities = Capabilities(
            is_emulator=options.is_emulator, max_runs=options.max_runs, reattaches=True, probe_s=options.probe_s
        )
        self._options = options
        self._api = ForwardApi(options, agent=f"tweezer {new_worker_id()}")

    async def open_lane(self) -> RemoteLane:
        return RemoteLane(ForwardService(self._api, self._options))

    async def specs_text(self) -> str:
        return await self._api.get_specs()

    async def probe(self) -> Condition:
        """Return the device's condition on the server. While it is down, jobs wait here and can be cancelled unsent."""
        try:
            device = await self._api.get_device()
        except RemoteError as error:
            return Condition(MachineState.UNKNOWN, error.message)
        if device is None:
            return Condition(MachineState.DOWN, f"the server has no device {self._options.device}")
        if device.status == "DOWN":
            return Condition(MachineState.DOWN, f"{self._options.device} is down on the server")
        return Condition(MachineState.UP)

    async def close(self) -> None:
        await self._api.close()


class ForwardService(RemoteService[ServerJob]):
    """Runs jobs as batches on another server."""

    name = "the server"
    unit = "batch"

    def __init__(self, api: ForwardApi, options: ForwardOptions) -> None:
        self._api = api
        self._options = options
        self.turned_away_s = options.turned_away_s
        self.ask_again_s = options.ask_again_s
        self.arrives_s = options.submit_timeout_s + options.lag_s
        self.recognises_s = _MARGIN * options.idempotency_s
        self.forgotten_s = options.lag_s
        self._held: asyncio.Task[str] | None = None
        self.begin()

    def begin(self) -> None:
        self._stranded = 0

    # -- submit -------------------------------------------------------------------------------------

    async def find(self, context: JobContext, intent: Intent) -> RemoteId | None:
        batch_id = await self._api.find_batch(_make_tag(context.job))
        return None if batch_id is None else RemoteId(batch_id)

    async def send(self, context: JobContext, before_send: Callable[[], None]) -> RemoteId:
        key = _make_tag(context.job)
        return RemoteId(await self._api.submit(self._build_body(context), idempotency_key=key, before_send=before_send))

    def _build_body(self, context: JobContext) -> dict[str, Any]:
        """Build the batch of one job. It is always the same, as its idempotency key requires."""
        doc, spec = context.batch.doc, context.job.spec
        one = {"runs": spec.runs, "variables": spec.variables or None, "sequence": spec.sequence, "seed": spec.seed}
        body: dict[str, Any] = {
            "sequence_builder": None if spec.sequence is not None else doc.sequence,
            "device_type": self._options.device,
            "project_id": self._options.project_id,
            "jobs": [{name: value for name, value in one.items() if value is not None}],
            "open": False,
            "tags": [_make_tag(context.job), f"tweezer-batch:{context.batch.batch_id}"],
            "backend_configuration": doc.backend_configuration,
            "configuration": doc.configuration,
        }
        return {name: value for name, value in body.items() if value is not None or name == "sequence_builder"}

    async def decide_refused(self, context: JobContext, error: SubmitRefused) -> Outcome:
        """Fail the job, with the field's name in Tweezer."""
        field = error.field
        if field is not None:
            field = _FIELD_NAMES.get(field, field).replace("jobs[0]", f"jobs[{context.job.index}]", 1)
        message = f"the server refused the job with {error.status}: {error.message}"
        return fail("refused", message, FaultKind.USER, field)

    # -- follow -------------------------------------------------------------------------------------

    async def poll(self, context: JobContext, uid: str) -> Observed[ServerJob]:
        job = await self._api.get_job(uid)
        return Observed(
            job,
            job.status,
            job.read_progress(),
            running_s=job.started_s_ago() if job.status is JobStatus.RUNNING else None,
            device_s=job.device_s,
            has_begun=job.start_timestamp is not None,
        )

    async def cancel(self, uid: str) -> None:
        await self._api.cancel(uid)

    async def rest(self, context: JobContext, uid: str, *, through_cancel: bool) -> Outcome | None:
        """Wait until the job may have changed.

        Meanwhile a request for the batch's status is open, which a Tweezer answers only when the batch has ended.
        """
        began, poll_s = time.monotonic(), self._options.poll_s
        if self._held is None or self._held.done():
            self._held = asyncio.create_task(self._api.get_batch_status(uid))
            self._held.add_done_callback(lambda _: context.wake())
        held_s = poll_s if through_cancel else _HELD * poll_s
        await context.sleep(held_s, through_cancel=through_cancel, until=self._held.done)
        if self._held.done():
            with contextlib.suppress(RemoteError):
                if self._held.result() in _ENDS:
                    self._stranded += 1
                    if self._stranded < _STRANDED:
                        return None
                    message = f"batch {uid} has ended on the server, but its job has not; it is not submitted again"
                    return fail("displaced", message, FaultKind.INTERNAL)
        await context.sleep(poll_s - (time.monotonic() - began), through_cancel=through_cancel)
        return None

    async def end_following(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            await end_tasks(held)

    async def collect(self, context: JobContext, job: ServerJob) -> Outcome:
        """Fetch the result. Retry while the server cannot be reached, and for ``lag_s`` while it has none."""
        deadline, tries = time.monotonic() + self._options.lag_s, 0
        while True:
            try:
                result = await self._fetch_result(job)
                if result is not None:
                    return Outcome(OutcomeKind.DONE, result=result)
                if time.monotonic() >= deadline:
                    message = f"the server reports that job {job.id} is done, but has no result for it"
                    return fail("server", message, FaultKind.INTERNAL)
            except RemoteError as error:
                log.warning("forward.not_collected", remote_job=job.id, error=error.message, tries=tries)
            tries += 1
            await context.back_off(tries, through_cancel=True)

    async def collect_part(self, context: JobContext, job: ServerJob) -> Result | None:
        with contextlib.suppress(RemoteError):
            return await self._fetch_result(job)
        return None

    async def _fetch_result(self, job: ServerJob) -> Result | None:
        result = await self._api.get_result(job.id)
        if result is None:
            return None
        made = result.provenance or Provenance(backend=self._options.device)
        where = msgspec.structs.replace(made, remote_id=job.id, server=self._options.url)
        return msgspec.structs.replace(result, provenance=where)

    def decide_failed(self, uid: str, job: ServerJob) -> Outcome:
        message = "; ".join(job.errors or ()) or f"job {job.id} failed on the server, which gave no reason"
        return fail("server", message, FaultKind.USER)

    def explain_displaced(self, uid: str) -> str:
        return f"another client cancelled batch {uid} on the server; the job is not submitted again"


def _make_tag(job: JobWork) -> str:
    return f"tweezer:{job.job_id}"
