"""The simulated QPU behind the API. It runs one job at a time, and a new submit cancels the running job."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from typing import Any

import msgspec

from tweezer.adapters.remote.qpu.api import Operational
from tweezer.duties import end_tasks
from tweezer.model.errors import InvalidInput
from tweezer.model.lifecycle import JobStatus
from tweezer.model.sequence import read_sequence
from tweezer.model.specs import DeviceSpecs
from tweezer.qpu_sim.counters import CannotRun, Counters, take_part
from tweezer.qpu_sim.journal import Journal, JournalEntry, JournalEvent
from tweezer.qpu_sim.misbehaviours import Misbehaviours

_FAILS_AT = 0.5
"""The progress at which a job that fails ends."""


class SubmitRequest(msgspec.Struct, frozen=True):
    """The body of a submit."""

    nb_run: int
    pulser_sequence: str
    context: dict[str, Any] = {}

    @property
    def job(self) -> str | None:
        return _text(self.context.get("pasqman_job_id"))

    @property
    def batch(self) -> str | None:
        return _text(self.context.get("batch_id"))


class SimulatedJob(msgspec.Struct):
    """A job of the machine.

    digest: SHA-256 of its sequence. measured: All its bitstrings, as soon as they are computed. counter: The bitstrings
    of the runs that were made before it ended.
    """

    uid: int
    asked: SubmitRequest
    digest: str
    qubits: int
    status: JobStatus = JobStatus.PENDING
    created: str = ""
    started: str | None = None
    ended: str | None = None
    began_s: float = 0.0
    lasts_s: float = 0.0
    measured: dict[str, int] | None = None
    counter: dict[str, int] | None = None

    @property
    def runs_made(self) -> int:
        """The number of runs made so far."""
        if self.status is not JobStatus.RUNNING or self.measured is None or self.lasts_s <= 0:
            return 0
        return min(int(self.asked.nb_run * (time.monotonic() - self.began_s) / self.lasts_s), self.asked.nb_run)

    def get_counter(self) -> dict[str, int] | None:
        """Return the bitstrings measured so far; None if there is no run yet."""
        if self.counter is None and (made := self.runs_made) and self.measured is not None:
            return take_part(self.measured, made, self.uid)
        return self.counter


class NotAccepted(Exception):
    """A request is refused, for this reason."""


class NotCancellable(Exception):
    """A cancel is too late. The text is the status of the job's program."""


class SimulatedQpu:
    """A simulated QPU. Its jobs are in memory and in the journal.

    A new simulator reads its predecessor's jobs from the journal; a job that was running then ends in ERROR.
    """

    def __init__(self, specs: DeviceSpecs, counters: Counters, journal: Journal, misbehaviours: Misbehaviours) -> None:
        self.specs = specs
        self.misbehaviours = misbehaviours
        self.forced: Operational | None = None
        """A status set by ``/sim/status``; None: the ``down`` windows decide."""
        self.journal = journal
        self._counters = counters
        self._started_s = time.monotonic()
        self._jobs: dict[int, SimulatedJob] = {}
        self._sequences: dict[str, tuple[str, int]] = {}
        self._current: SimulatedJob | None = None
        self._running: asyncio.Task[None] | None = None
        self._stopped: set[asyncio.Task[None]] = set()
        journal.write(JournalEvent.OPEN)
        self._restore(journal.past)
        for job in self._jobs.values():
            if not job.status.terminal:
                self._end(job, JobStatus.ERROR, "the machine was restarted while the job ran")

    @property
    def operational(self) -> Operational:
        if self.forced is not None:
            return self.forced
        down = self.misbehaviours.is_down(time.monotonic() - self._started_s)
        return Operational.DOWN if down else Operational.UP

    def find(self, uid: int) -> SimulatedJob | None:
        return self._jobs.get(uid)

    def submit(self, asked: SubmitRequest, by: str) -> SimulatedJob:
        """Accept a job, which displaces the one before it. Raises NotAccepted."""
        digest, qubits = self._check(asked)
        if self.operational is Operational.DOWN:
            raise NotAccepted("the operational status is DOWN")
        job = SimulatedJob(len(self._jobs) + 1, asked, digest, qubits)
        self._jobs[job.uid] = job
        job.created = self._write(
            JournalEvent.SUBMIT,
            job,
            batch=asked.batch,
            by=by,
            nb_run=asked.nb_run,
            context=asked.context,
            sequence=digest,
        )
        if self._current is not None:
            self._write(JournalEvent.CANCEL, self._current, displaced_by=job.uid)
            self._stop(self._current)
        self._current = job
        self._running = asyncio.create_task(self._execute(job))
        return job

    def cancel(self, job: SimulatedJob, by: str) -> None:
        """Stop a job. Raises NotCancellable."""
        late = job.status.terminal or self.misbehaviours.happens(self.misbehaviours.late_cancels, "late", job.uid)
        self._write(JournalEvent.CANCEL, job, by=by, late=late)
        if late:
            raise NotCancellable(get_program_status(job))
        self._stop(job)

    async def reset(self) -> None:
        """Delete all jobs and counts."""
        await self._halt()
        self._jobs.clear()
        self._sequences.clear()
        self._current = None
        self.forced = None
        self._started_s = time.monotonic()
        self.journal.write(JournalEvent.RESET)

    async def close(self) -> None:
        await self._halt()
        await self._counters.close()
        self.journal.close()

    async def _execute(self, job: SimulatedJob) -> None:
        await asyncio.sleep(0)  # the answer to the submit shows it as PENDING
        job.status, job.began_s = JobStatus.RUNNING, time.monotonic()
        job.started = self._write(JournalEvent.BEGIN, job)
        misbehaviours, uid = self.misbehaviours, job.uid
        if misbehaviours.happens(misbehaviours.hang, "hang", uid):
            await asyncio.Event().wait()
        fails = misbehaviours.happens(misbehaviours.fail, "fail", uid)
        lasts_s = misbehaviours.lasts_s(job.asked.nb_run, uid)
        text = self._sequences[job.digest][0]
        try:
            job.measured = await self._counters.measure(uid, text, job.qubits, job.asked.nb_run)
        except CannotRun as error:
            self._end(job, JobStatus.ERROR, str(error))
            return
        job.lasts_s = max(lasts_s, time.monotonic() - job.began_s)
        if lasts_s:
            left_s = lasts_s * (_FAILS_AT if fails else 1.0) - (time.monotonic() - job.began_s)
            await asyncio.sleep(max(left_s, 0.0))
        if fails:
            self._end(job, JobStatus.ERROR, "the job failed (simulated)")
        else:
            self._end(job, JobStatus.DONE)

    def _stop(self, job: SimulatedJob) -> None:
        """Stop a job that has not ended. The bitstrings measured so far are kept."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            self._stopped.add(running)
            running.add_done_callback(self._stopped.discard)
        self._end(job, JobStatus.CANCELED)

    def _end(self, job: SimulatedJob, status: JobStatus, reason: str | None = None) -> None:
        job.counter = job.measured if status is JobStatus.DONE else job.get_counter()
        job.status, job.measured = status, None
        if self._current is job:
            self._current = None
        job.ended = self._write(JournalEvent.END, job, status=status.value, counter=job.counter, reason=reason)

    async def _halt(self) -> None:
        tasks = [task for task in (self._running, *self._stopped) if task is not None]
        self._running = None
        await end_tasks(*tasks)

    def _check(self, asked: SubmitRequest) -> tuple[str, int]:
        """Return the digest and number of qubits of a sequence. Raises NotAccepted if the machine cannot run it."""
        limits = self.specs
        if not 1 <= asked.nb_run <= (limits.max_runs or asked.nb_run):
            raise NotAccepted(f"nb_run: must be between 1 and {limits.max_runs} (got {asked.nb_run})")
        digest = hashlib.sha256(asked.pulser_sequence.encode(errors="replace")).hexdigest()
        known = self._sequences.get(digest)
        if known is not None:
            return digest, known[1]
        try:
            header = read_sequence(asked.pulser_sequence)
        except InvalidInput as error:
            raise NotAccepted(f"pulser_sequence: {error.problem}") from error
        if header.needs_build:
            raise NotAccepted("pulser_sequence: must be built: it must have no variables and a concrete register")
        if limits.max_atom_num is not None and header.qubits > limits.max_atom_num:
            raise NotAccepted(f"pulser_sequence: must have at most {limits.max_atom_num} atoms (got {header.qubits})")
        self._sequences[digest] = asked.pulser_sequence, header.qubits
        self.journal.write(JournalEvent.SEQUENCE, sequence=digest, text=asked.pulser_sequence)
        return digest, header.qubits

    def _restore(self, entries: list[JournalEntry]) -> None:
        """Restore the jobs and sequences from the journal of an earlier simulator."""
        for entry in entries:
            match entry.event:
                case JournalEvent.SEQUENCE if entry.sequence is not None and entry.text is not None:
                    self._sequences[entry.sequence] = entry.text, read_sequence(entry.text).qubits
                case JournalEvent.SUBMIT if entry.uid is not None and entry.sequence is not None:
                    text, qubits = self._sequences[entry.sequence]
                    asked = SubmitRequest(entry.nb_run or 1, text, entry.context or {})
                    self._jobs[entry.uid] = SimulatedJob(entry.uid, asked, entry.sequence, qubits, created=entry.at)
                case JournalEvent.BEGIN if entry.uid is not None:
                    job = self._jobs[entry.uid]
                    job.status, job.started = JobStatus.RUNNING, entry.at
                case JournalEvent.END if entry.uid is not None and entry.status is not None:
                    job = self._jobs[entry.uid]
                    job.status, job.ended, job.counter = JobStatus(entry.status), entry.at, entry.counter
                case _:
                    pass

    def _write(self, event: JournalEvent, job: SimulatedJob, **fields: Any) -> str:
        return self.journal.write(event, uid=job.uid, job=job.asked.job, **fields)


def get_program_status(job: SimulatedJob) -> str:
    """Return the status of the program behind a job."""
    words: dict[JobStatus, str] = {JobStatus.PENDING: "CREATED", JobStatus.ERROR: "DONE"}
    return words.get(job.status, job.status.value)


def to_wire(job: SimulatedJob) -> dict[str, Any]:
    """Return the job as the API represents it."""
    asked, counter = job.asked, job.get_counter()
    running = job.status is JobStatus.RUNNING
    return {
        "uid": job.uid,
        "batch_id": asked.batch,
        "status": job.status.value,
        "nb_run": asked.nb_run,
        "pulser_sequence": asked.pulser_sequence,
        "program_id": job.uid,
        "result": None if counter is None else json.dumps({"counter": counter}),
        "created_datetime": job.created,
        "start_datetime": job.started,
        "end_datetime": job.ended,
        "progress": {"completed_runs": job.runs_made, "total_runs": asked.nb_run} if running else None,
        "context": asked.context,
    }


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
