"""The simulated QPU behind its API: one job at a time, and a new submit cancels the one that runs."""

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
from tweezer.qpu_sim.counters import CannotRun, Counters, part
from tweezer.qpu_sim.journal import Journal, JournalEntry, JournalEvent
from tweezer.qpu_sim.misbehaviours import Misbehaviours

_FAILS_AT = 0.5
"""How far a job comes that fails."""


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
    """A job of the machine. digest: of its sequence. measured: all its bitstrings, once they are known; counter: those
    of the runs that were made when it ended."""

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
        """How many runs were made by now."""
        if self.status is not JobStatus.RUNNING or self.measured is None or self.lasts_s <= 0:
            return 0
        return min(int(self.asked.nb_run * (time.monotonic() - self.began_s) / self.lasts_s), self.asked.nb_run)

    def so_far(self) -> dict[str, int] | None:
        """Return what was measured by now; None for nothing."""
        if self.counter is None and (made := self.runs_made) and self.measured is not None:
            return part(self.measured, made, self.uid)
        return self.counter


class NotAccepted(Exception):
    """A request that is refused, for this reason."""


class NotCancellable(Exception):
    """A cancel that comes too late. Its text is the status of the job's program."""


class SimulatedQpu:
    """Jobs, in memory and in the journal, from which a new simulator takes them over; what ran then ends in ERROR."""

    def __init__(self, specs: DeviceSpecs, counters: Counters, journal: Journal, misbehaviours: Misbehaviours) -> None:
        self.specs = specs
        self.misbehaviours = misbehaviours
        self.forced: Operational | None = None
        """What somebody says it is; None leaves it to the windows."""
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
                self._end(job, JobStatus.ERROR, "the machine was started anew while it ran")

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
            raise NotCancellable(program_status(job))
        self._stop(job)

    async def reset(self) -> None:
        """Forget all jobs and counts."""
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
        await asyncio.sleep(0)  # it is PENDING for whoever submitted it
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
            self._end(job, JobStatus.ERROR, "it failed, as such machines do")
        else:
            self._end(job, JobStatus.DONE)

    def _stop(self, job: SimulatedJob) -> None:
        """Stop the execution of a job that has not ended; what it measured so far is kept."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            self._stopped.add(running)
            running.add_done_callback(self._stopped.discard)
        self._end(job, JobStatus.CANCELED)

    def _end(self, job: SimulatedJob, status: JobStatus, reason: str | None = None) -> None:
        job.counter = job.measured if status is JobStatus.DONE else job.so_far()
        job.status, job.measured = status, None
        if self._current is job:
            self._current = None
        job.ended = self._write(JournalEvent.END, job, status=status.value, counter=job.counter, reason=reason)

    async def _halt(self) -> None:
        tasks = [task for task in (self._running, *self._stopped) if task is not None]
        self._running = None
        await end_tasks(*tasks)

    def _check(self, asked: SubmitRequest) -> tuple[str, int]:
        """Return the digest and the number of qubits of a sequence that the machine can run. Raises NotAccepted."""
        limits = self.specs
        if not 1 <= asked.nb_run <= (limits.max_runs or asked.nb_run):
            raise NotAccepted(f"nb_run: must be between 1 and {limits.max_runs}, not {asked.nb_run}")
        digest = hashlib.sha256(asked.pulser_sequence.encode(errors="replace")).hexdigest()
        known = self._sequences.get(digest)
        if known is not None:
            return digest, known[1]
        try:
            header = read_sequence(asked.pulser_sequence)
        except InvalidInput as error:
            raise NotAccepted(f"pulser_sequence: {error.problem}") from error
        if header.needs_build:
            raise NotAccepted("pulser_sequence: must be built, without variables and with a register")
        if limits.max_atom_num is not None and header.qubits > limits.max_atom_num:
            raise NotAccepted(f"pulser_sequence: has {header.qubits} atoms; the device takes {limits.max_atom_num}")
        self._sequences[digest] = asked.pulser_sequence, header.qubits
        self.journal.write(JournalEvent.SEQUENCE, sequence=digest, text=asked.pulser_sequence)
        return digest, header.qubits

    def _restore(self, entries: list[JournalEntry]) -> None:
        """Take over the jobs and sequences of a former simulator's journal."""
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

    def _write(self, event: JournalEvent, job: SimulatedJob, **told: Any) -> str:
        return self.journal.write(event, uid=job.uid, job=job.asked.job, **told)


def program_status(job: SimulatedJob) -> str:
    """Return the word for the program behind a job."""
    words: dict[JobStatus, str] = {JobStatus.PENDING: "CREATED", JobStatus.ERROR: "DONE"}
    return words.get(job.status, job.status.value)


def wire(job: SimulatedJob) -> dict[str, Any]:
    """Return the job as the API shows it."""
    asked, counter = job.asked, job.so_far()
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
