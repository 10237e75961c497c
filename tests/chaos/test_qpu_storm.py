"""Random failures of a QPU's workers and of Redis: the machine's journal shows that no job was submitted twice.

Workers are killed, stopped and drained while Redis restarts.

CI runs about a third of it. To run all of it, and write the figures as JSON to a file:

    TWEEZER_TEST_FULL=1 TWEEZER_STORM_FIGURES=/tmp/qpu-storm.json pytest tests/chaos/test_qpu_storm.py -s
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import psutil
import pytest
from sqlalchemy import select
from tests.support.effort import effort
from tests.support.power_loss import AppendOnlyFile
from tests.support.processes import LEASE_S, QUICK_QPU, Process, Site
from tests.support.qpu_process import QpuProcess
from tests.support.redis_users import RedisServer
from tests.support.waiting import until

from tweezer import AsyncBatch, BatchStatus, Job, JobStatus
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.ledger.schema import transitions
from tweezer.model.events import Event, read_events
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import BatchDoc
from tweezer.qpu_sim.journal import JournalEntry, JournalEvent, read_journal
from tweezer.store.keys import Key

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

DEVICE = "FRESNEL"
SEQUENCE = Path(__file__).with_name("sequence.json").read_text("utf-8")
"""Three atoms and one pulse, as an earlier Pulser serialised them."""

WORKERS, BATCHES = 3, 10
SUBMIT_TIMEOUT_S = 1.0
FROZEN_S = (1.1, 2.5)
"""How long a process is stopped, in leases: long enough for another process to take its device."""

STOPS = "before:0.03,after:0.03"
"""The probabilities that a process stops itself around the last check of its lease before a submit."""

LATE_S = 3.0
"""How long after a stop a process may still complete one write to a socket without a lease."""

LOST_S = 1.0
"""Redis loses the writes of this many seconds."""

FORGOTTEN_S = LOST_S + LEASE_S + SUBMIT_TIMEOUT_S + 3.0
"""How long after a loss a holder may continue although Redis has lost its ticket."""

PATIENCE_S = 90.0


class Mishaps(msgspec.Struct, frozen=True):
    """The number of mishaps of each kind.

    ``cuts`` are restarts of Redis in which it loses the end of its file. In ``set_backs`` the machine forgets its jobs,
    and their ids restart; this is not combined with cuts, because a
    job that both lose cannot be recovered.
    """

    jobs: int
    kills: int
    freezes: int
    drains: int
    restarts: int
    cuts: int
    set_backs: int = 0

    @property
    def names(self) -> list[str]:
        return [
            *["kill"] * self.kills,
            *["freeze"] * self.freezes,
            *["drain"] * self.drains,
            *["restart"] * (self.restarts - self.cuts),
            *["cut"] * self.cuts,
            *["set back"] * self.set_backs,
        ]


LOSING = effort(
    short=Mishaps(jobs=40, kills=6, freezes=2, drains=2, restarts=2, cuts=1),
    full=Mishaps(jobs=200, kills=30, freezes=10, drains=10, restarts=10, cuts=3),
)
"""Redis may lose its last second."""

LOSSLESS = effort(
    short=Mishaps(jobs=30, kills=4, freezes=1, drains=1, restarts=1, cuts=0, set_backs=1),
    full=Mishaps(jobs=80, kills=12, freezes=2, drains=2, restarts=2, cuts=0, set_backs=3),
)
"""Each write is on the disk before it is answered."""


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A private server. The fixture of the shared one skips the test if none is installed."""
    request.getfixturevalue(f"{request.param}_server")
    with RedisServer(
        tmp_path / "redis",
        kind=request.param,
        appendfsync="always" if request.param == "redis" else "everysec",
        options={"auto-aof-rewrite-percentage": "0"},
        workers_read_settings=request.param == "redis",
    ) as server:
        yield server


@pytest.fixture
def qpu(tmp_path: Path) -> Iterator[QpuProcess]:
    folder = tmp_path / "qpu"
    folder.mkdir()
    misbehaviours = {
        "job-seconds": "0.02:0.3",
        "lose-replies": 0.05,
        "submit-errors": 0.02,
        "read-errors": 0.02,
        "late-cancels": 0.3,
        "seed": random.randrange(1_000_000),
    }
    with QpuProcess(
        folder, *(part for name, value in misbehaviours.items() for part in (f"--{name}", str(value)))
    ) as process:
        yield process


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(OpenDatabase(f"sqlite:///{tmp_path / 'ledger.db'}"), create=True)
    upgrade(opened)
    yield opened
    opened.close()


class Storm:
    """Mishaps of workers and Redis, chosen with a seed. Times are on the host's monotonic clock, as in the journal."""

    def __init__(self, site: Site, qpu: QpuProcess, file: AppendOnlyFile, witness: Path, seed: int) -> None:
        self._site = site
        self._qpu = qpu
        self._file = file
        self.witness = witness
        self._random = random.Random(seed)
        self._frozen: dict[Process, float] = {}
        self.thawed: list[tuple[float, int]] = []
        self.cut: list[float] = []
        self.caught: set[tuple[UUID, int]] = set()
        self.mishaps: Counter[str] = Counter()
        self.batches: list[AsyncBatch] = []
        self.workers = [self._new() for _ in range(WORKERS)]

    async def run(self, planned: Mishaps) -> None:
        """Cause all mishaps in a random order, and submit the batches meanwhile."""
        mishaps = planned.names
        self._random.shuffle(mishaps)
        for number, mishap in enumerate(mishaps):
            while len(self.batches) < BATCHES and len(self.batches) * len(mishaps) <= number * BATCHES:
                self.batches.append(await self._submit(planned.jobs // BATCHES))
            await self._pass(self._random.uniform(0.2, 1.2))
            await until(self._has_target, "a running worker")
            await self._strike(mishap)
        while len(self.batches) < BATCHES:
            self.batches.append(await self._submit(planned.jobs // BATCHES))

    async def finish(self) -> None:
        """Wait until all batches are done; no more mishaps, but continue processes that stopped themselves."""
        ended = asyncio.gather(*(batch.wait(PATIENCE_S) for batch in self.batches))
        while not ended.done():
            await self._pass(0.1)
        for record in await ended:
            assert record.status is BatchStatus.DONE

    async def _submit(self, jobs: int) -> AsyncBatch:
        """Submit a batch and protect it from later losses, because a lost submit could not be checked."""
        doc = BatchDoc(device=DEVICE, sequence=SEQUENCE)
        batch_id = await self._site.store.commands.submit(
            new_batch_id(), self._site.queue.project or "ours", doc, [Job(runs=20)] * jobs
        )
        self._file.keep()
        return self._site.queue.batch(batch_id)

    async def _pass(self, seconds: float) -> None:
        """Let time pass: replace dead processes, and continue those that were stopped for long enough."""
        deadline = time.monotonic() + seconds
        while True:
            self._file.look()
            self._restore()
            if time.monotonic() >= deadline:
                return
            await asyncio.sleep(0.1)  # the interval between mishaps, not a wait for a condition

    def _restore(self) -> None:
        now = time.monotonic()
        for worker in self.workers:
            if worker.alive and worker not in self._frozen and _is_stopped(worker):
                self.mishaps["stopped itself"] += 1
                self._frozen[worker] = now + self._random.uniform(*FROZEN_S) * LEASE_S
        for worker in [worker for worker, until_s in self._frozen.items() if until_s <= now]:
            del self._frozen[worker]
            self.thawed.append((now, worker.pid))
            worker.thaw()
        self.workers = [worker if worker.alive else self._new() for worker in self.workers]

    def _has_target(self) -> bool:
        self._restore()
        return any(self._is_up(worker) for worker in self.workers)

    def _is_up(self, worker: Process) -> bool:
        return worker.alive and worker not in self._frozen and bool(worker.logged("worker.started"))

    async def _strike(self, mishap: str) -> None:
        self.mishaps[mishap] += 1
        up = [worker for worker in self.workers if self._is_up(worker)]
        match mishap:
            case "kill":
                victim = await self._victim(up)
                await self._catch(victim)
                victim.kill()
            case "freeze":
                victim = await self._victim(up)
                await self._catch(victim)
                self._frozen[victim] = time.monotonic() + self._random.uniform(*FROZEN_S) * LEASE_S
            case "drain":
                for victim in self._random.sample(up, min(2, len(up))):
                    victim.terminate()
            case "restart":
                await asyncio.to_thread(self._file.restart)
            case "cut":
                await asyncio.to_thread(self._file.restart, losing_s=LOST_S)
                self.cut.append(time.monotonic())
            case "set back":
                await asyncio.to_thread(self._qpu.ask, "POST", "/sim/reset")

    async def _victim(self, up: list[Process]) -> Process:
        """Choose a worker, usually the one that has the machine."""
        redis: Any = self._site.store.redis
        for raw in await redis.zrange(self._site.store.keys(Key.LEASES, DEVICE), 0, -1):
            batch_id, _, number = raw.decode().rpartition(":")
            lane = await redis.hget(self._site.store.keys(Key.BATCH, batch_id), f"t:{number}")
            holders = [worker for worker in up if lane and f":{worker.pid}:".encode() in lane]
            if holders and self._random.random() < 0.9:
                return holders[0]
        return self._random.choice(up)

    async def _catch(self, victim: Process) -> None:
        """Stop the process, and note the jobs that have an intent but no id from the machine yet."""
        victim.signal(signal.SIGSTOP)
        redis: Any = self._site.store.redis
        for batch in self.batches:
            records = await redis.hgetall(self._site.store.keys(Key.REMOTE, batch.id))
            self.caught |= {(batch.id, int(index)) for index, record in records.items() if record.endswith(b" - 1")}

    def _new(self) -> Process:
        options = {
            "base_url": self._qpu.url,
            "poll_s": 0.03,
            "probe_s": 0.5,
            "submit_timeout_s": SUBMIT_TIMEOUT_S,
            "retry_s": 1.0,
            "ask_again_s": 0.3,
            "forgotten_s": 2.0,
        }
        devices = {DEVICE: {"adapter": QUICK_QPU, "options": options}}
        return self._site.spawn(
            "worker", worker_device=DEVICE, devices=json.dumps(devices), test_witness=self.witness, test_stops=STOPS
        )


class Checks:
    """Compare the machine's journal and the ledger with the queue's record of each job."""

    def __init__(self, storm: Storm, site: Site, qpu: QpuProcess, database: Database, cancelled: set[UUID]) -> None:
        self._storm = storm
        self._site = site
        self._database = database
        self._cancelled = cancelled
        self._witness = storm.witness
        self._restarts = storm.mishaps["restart"] + storm.mishaps["cut"] + storm.mishaps["set back"]
        self._lines = read_journal(qpu.journal)
        self._tallies = qpu.read_tallies()
        self.figures: Counter[str] = Counter()

    async def check(self) -> None:
        for batch in self._storm.batches:
            for job in await batch.results():
                self._check_job(str(job.id), job)
        self._check_submits()
        self._check_displaced()
        uncertain = sum(len(worker.logged("remote.submit_uncertain")) for worker in self._site.processes)
        self.figures["submits with an unknown outcome"] = uncertain
        self.figures["submits caught without an id"] = len(self._storm.caught)
        stops = len(self._witness.read_text().splitlines()) if self._witness.exists() else 0
        self.figures["stops around the last check"] = stops
        assert self.figures["unknown"] <= uncertain + len(self._storm.caught) + stops + self._restarts

    def _check_job(self, name: str, job: Any) -> None:
        """Check that the job has one outcome, and that it agrees with the machine's."""
        tally = self._tallies.get(name)
        self.figures["jobs"] += 1
        self.figures[job.status.value] += 1
        match job.status:
            case JobStatus.DONE:
                (end,) = [line for line in self._ends(name) if line.status == "DONE"]
                assert job.counter == end.counter
                assert job.result.provenance.remote_id == str(end.uid)
            case JobStatus.ERROR:
                code = job.record.faults[0].code
                self.figures[code] += 1
                assert code in ("displaced", "unknown"), job.record.faults
                if code == "displaced":
                    assert tally is not None
                    lost_cancel = bool(self._storm.cut) and job.id in self._cancelled  # sent, then lost by Redis
                    assert tally.displaced or lost_cancel
            case JobStatus.CANCELED:
                assert job.id in self._cancelled
            case _:
                pytest.fail(f"{name} has not ended: {job.status}")

    def _check_submits(self) -> None:
        known = {str(job_id(batch.id, index)) for batch in self._storm.batches for index in range(10_000)}
        assert set(self._tallies) <= known
        twice = {name: tally for name, tally in self._tallies.items() if tally.submits > 1}
        assert not twice, twice
        self.figures["submitted"] = sum(tally.submits for tally in self._tallies.values())
        self.figures["lost replies"] = sum(tally.lost_replies for tally in self._tallies.values())
        canceled = [name for name, tally in self._tallies.items() if tally.cancels - tally.displaced > 0]
        self.figures["cancels without a request"] = sum(UUID(name) not in self._cancelled for name in canceled)
        assert not self.figures["cancels without a request"]

    def _check_displaced(self) -> None:
        """Check that each displacement involves a process that was stopped, or whose ticket Redis lost."""
        submits: dict[
            int | None, JournalEntry
        ] = {}  # by the machine's id; after a restart of the ids, later submits replace earlier ones
        for line in self._lines:
            if line.event is JournalEvent.SUBMIT:
                submits[line.uid] = line
            if line.displaced_by is None:
                continue
            by = submits[line.displaced_by]
            late = self._is_late(by) or self._is_late(submits[line.uid])
            lost = any(-FORGOTTEN_S < by.t - at < FORGOTTEN_S for at in self._storm.cut)
            self.figures["displaced after a stop" if late else "displaced after a loss"] += 1
            assert late or lost, f"{line.job} was displaced by {by}"

    def _is_late(self, submit: JournalEntry) -> bool:
        """Return whether the sender had just been stopped, so that it may have lost its lease."""
        by = submit.by or ""
        return any(f":{pid}:" in by and 0 <= submit.t - at < LATE_S for at, pid in self._storm.thawed)

    async def check_events(self) -> None:
        """Check that events are numbered without a gap, that none follows a job's end, and that the records agree.

        Each event starts at the status at which the previous one ended, unless Redis lost an event between them.
        """
        for batch in self._storm.batches:
            events = self._events(batch.id)
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            statuses: dict[int, JobStatus] = {}
            for event in events:
                if event.index is not None:
                    before = statuses.get(event.index, JobStatus.PENDING)
                    assert not before.terminal, event
                    assert event.previous is before or self._storm.cut, event
                    statuses[event.index] = JobStatus(event.status)
            assert events[-1].status is BatchStatus.DONE
            assert {job.index: job.status for job in await batch.jobs()} == statuses
            self.figures["events"] += len(events)

    def _ends(self, name: str) -> list[JournalEntry]:
        return [line for line in self._lines if line.event is JournalEvent.END and line.job == name]

    def _events(self, batch_id: UUID) -> list[Event]:
        table = transitions.c
        query = select(table.batch, table.sequence_number, table.time_us, table.words).where(table.batch == batch_id)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return sorted((event for entry in rows for event in read_events(*entry)), key=lambda event: event.sequence)

    def is_recorded(self) -> bool:
        """Return whether the ends of all batches are in the ledger."""
        return all(
            any(event.index is None and event.status.terminal for event in self._events(batch.id))
            for batch in self._storm.batches
        )


@pytest.mark.timeout(560)
async def test_in_a_storm_no_job_is_lost_or_submitted_twice(
    server: RedisServer, qpu: QpuProcess, database: Database, tmp_path: Path
) -> None:
    seed = random.randrange(1_000_000)
    planned = LOSSLESS if server.kind == "redis" else LOSING
    settings = {"database_url": str(database.engine.url), "data_dir": tmp_path}
    async with Site(server.url, tmp_path, **settings) as site:
        recorder = site.spawn("recorder")
        await site.serves(recorder)
        await recorder.wait_logged(
            "recorder.active"
        )  # the protected part of the file then records that there is a ledger
        began = time.monotonic()
        storm = Storm(site, qpu, AppendOnlyFile(server), tmp_path / "witness", seed)
        await site.serves(storm.workers[0])
        cancelled: set[UUID] = set()
        cancelling = asyncio.create_task(cancel_some(storm, cancelled))
        try:
            await storm.run(planned)
            await storm.finish()
        finally:
            cancelling.cancel()
        checks = Checks(storm, site, qpu, database, cancelled)
        try:
            await checks.check()
            await until(checks.is_recorded, "the ends of all batches in the ledger")
            await checks.check_events()
            await site.idle()
        finally:
            figures = {
                "seed": seed,
                "server": server.kind,
                "seconds": round(time.monotonic() - began),
                "processes": len(site.processes),
                **storm.mishaps,
                **checks.figures,
            }
            report(figures)


async def cancel_some(storm: Storm, cancelled: set[UUID]) -> None:
    """Cancel a running job every few seconds."""
    while True:
        await asyncio.sleep(3)  # the interval between cancels
        for batch in storm.batches[-3:]:
            running = [job for job in await batch.jobs() if job.status is JobStatus.RUNNING]
            if running:
                cancelled.add(running[0].id)
                await batch.cancel_jobs([running[0].index])
                break


def report(figures: dict[str, Any]) -> None:
    """Print the figures, and write them to a file if one is requested."""
    line = json.dumps(figures)
    sys.stderr.write(f"{line}\n")
    if path := os.environ.get("TWEEZER_STORM_FIGURES"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def _is_stopped(worker: Process) -> bool:
    try:
        return bool(psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False
