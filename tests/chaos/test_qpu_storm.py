"""A storm over a QPU: its workers are killed, stopped and drained while Redis restarts, and the machine's own journal
shows that no job was submitted twice.

CI runs a third of it. Run all of it, with the figures as JSON in a file, by

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
"""How long a process is stopped, in leases: when it continues, another process has its device."""

STOPS = "before:0.03,after:0.03"
"""The probabilities that a process stops itself around the last check of its lease before a submit."""

LATE_S = 3.0
"""How long after a stop a process may act without a lease: one write to a socket."""

LOST_S = 1.0
"""How much of its file Redis loses, in seconds."""

UNEASY_S = LOST_S + LEASE_S + SUBMIT_TIMEOUT_S + 3.0
"""How long after a loss a holder that Redis forgot may continue."""

PATIENCE_S = 90.0


class Weather(msgspec.Struct, frozen=True):
    """The number of mishaps of each kind.

    ``cuts`` are restarts of Redis in which it loses the end of its file. In ``set_backs`` the machine forgets its jobs,
    and their ids restart; not together with cuts, because a job that both forget is lost for good.
    """

    jobs: int
    kills: int
    freezes: int
    drains: int
    restarts: int
    cuts: int
    set_backs: int = 0

    @property
    def mishaps(self) -> list[str]:
        return [
            *["kill"] * self.kills,
            *["freeze"] * self.freezes,
            *["drain"] * self.drains,
            *["restart"] * (self.restarts - self.cuts),
            *["cut"] * self.cuts,
            *["set back"] * self.set_backs,
        ]


LOSING = effort(
    short=Weather(jobs=40, kills=6, freezes=2, drains=2, restarts=2, cuts=1),
    full=Weather(jobs=200, kills=30, freezes=10, drains=10, restarts=10, cuts=3),
)
"""Redis may lose its last second."""

LOSSLESS = effort(
    short=Weather(jobs=30, kills=4, freezes=1, drains=1, restarts=1, cuts=0, set_backs=1),
    full=Weather(jobs=80, kills=12, freezes=2, drains=2, restarts=2, cuts=0, set_backs=3),
)
"""Each write is on the disk before it is answered."""


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A private server; the shared one comes first, which skips the test if there is no server."""
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
    """The mishaps of workers and Redis, from a seed. Times are on the host's monotonic clock, as in the journal."""

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

    async def rage(self, weather: Weather) -> None:
        """Cause all mishaps in a random order, each while there is work; submit the batches meanwhile."""
        mishaps = weather.mishaps
        self._random.shuffle(mishaps)
        for number, mishap in enumerate(mishaps):
            while len(self.batches) < BATCHES and len(self.batches) * len(mishaps) <= number * BATCHES:
                self.batches.append(await self._submit(weather.jobs // BATCHES))
            await self._pass(self._random.uniform(0.2, 1.2))
            await until(self._has_weather, "a worker to strike")
            await self._strike(mishap)
        while len(self.batches) < BATCHES:
            self.batches.append(await self._submit(weather.jobs // BATCHES))

    async def calm(self) -> None:
        """Cause no more mishaps, and continue the processes that stopped themselves."""
        ended = asyncio.gather(*(batch.wait(PATIENCE_S) for batch in self.batches))
        while not ended.done():
            await self._pass(0.1)
        for record in await ended:
            assert record.status is BatchStatus.DONE

    async def _submit(self, jobs: int) -> AsyncBatch:
        """Submit a batch that Redis does not lose, because a lost submit could not be checked."""
        doc = BatchDoc(device=DEVICE, sequence=SEQUENCE)
        batch_id = await self._site.store.commands.submit(
            new_batch_id(), self._site.queue.project, doc, [Job(runs=20)] * jobs
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
            if worker.alive and worker not in self._frozen and _stands_still(worker):
                self.mishaps["stopped itself"] += 1
                self._frozen[worker] = now + self._random.uniform(*FROZEN_S) * LEASE_S
        for worker in [worker for worker, until_s in self._frozen.items() if until_s <= now]:
            del self._frozen[worker]
            self.thawed.append((now, worker.pid))
            worker.thaw()
        self.workers = [worker if worker.alive else self._new() for worker in self.workers]

    def _has_weather(self) -> bool:
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
        """Choose a worker: mostly the one that has the machine."""
        redis: Any = self._site.store.redis
        for raw in await redis.zrange(self._site.store.keys(Key.LEASES, DEVICE), 0, -1):
            batch_id, _, number = raw.decode().rpartition(":")
            lane = await redis.hget(self._site.store.keys(Key.BATCH, batch_id), f"t:{number}")
            holders = [worker for worker in up if lane and f":{worker.pid}:".encode() in lane]
            if holders and self._random.random() < 0.9:
                return holders[0]
        return self._random.choice(up)

    async def _catch(self, victim: Process) -> None:
        """Stop the process, and note whether it was between an intent and the machine's id of the job."""
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


class Oracle:
    """The comparison of the machine's journal and the ledger with the queue's record of each job."""

    def __init__(self, storm: Storm, site: Site, qpu: QpuProcess, database: Database, asked: set[UUID]) -> None:
        self._storm = storm
        self._site = site
        self._database = database
        self._asked = asked
        self._witness = storm.witness
        self._lost_sight = storm.mishaps["restart"] + storm.mishaps["cut"] + storm.mishaps["set back"]
        self._lines = read_journal(qpu.journal)
        self._tallies = qpu.witnessed()
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
        assert self.figures["unknown"] <= uncertain + len(self._storm.caught) + stops + self._lost_sight

    def _check_job(self, name: str, job: Any) -> None:
        """Check that the job has one outcome, which agrees with the machine."""
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
                    assert tally.displaced
            case JobStatus.CANCELED:
                assert job.id in self._asked
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
        self.figures["cancels without a request"] = sum(UUID(name) not in self._asked for name in canceled)
        assert not self.figures["cancels without a request"]

    def _check_displaced(self) -> None:
        """Check that each displaced submit, or the one that displaced it, came from a stopped or forgotten process."""
        submits: dict[int | None, JournalEntry] = {}  # since the ids restarted
        for line in self._lines:
            if line.event is JournalEvent.SUBMIT:
                submits[line.uid] = line
            if line.displaced_by is None:
                continue
            by = submits[line.displaced_by]
            late = self._is_late(by) or self._is_late(submits[line.uid])
            lost = any(-UNEASY_S < by.t - at < UNEASY_S for at in self._storm.cut)
            self.figures["displaced after a stop" if late else "displaced after a loss"] += 1
            assert late or lost, f"{line.job} was displaced by {by}"

    def _is_late(self, submit: JournalEntry) -> bool:
        """Return whether the sender had just been stopped, so that it may have lost its lease."""
        by = submit.by or ""
        return any(f":{pid}:" in by and 0 <= submit.t - at < LATE_S for at, pid in self._storm.thawed)

    async def check_events(self) -> None:
        """Check that events are numbered without a gap, that none follows a job's end, and that the records agree.

        Each starts at the status in which the previous one ended, unless Redis lost an event between them.
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
async def test_in_a_storm_no_job_is_submitted_twice_and_none_is_lost(
    server: RedisServer, qpu: QpuProcess, database: Database, tmp_path: Path
) -> None:
    seed = random.randrange(1_000_000)
    weather = LOSSLESS if server.kind == "redis" else LOSING
    settings = {"database_url": str(database.engine.url), "data_dir": tmp_path}
    async with Site(server.url, tmp_path, **settings) as site:
        recorder = site.spawn("recorder")
        await site.serves(recorder)
        await recorder.wait_logged("recorder.active")  # what Redis keeps includes that there is a ledger
        began = time.monotonic()
        storm = Storm(site, qpu, AppendOnlyFile(server), tmp_path / "witness", seed)
        await site.serves(storm.workers[0])
        asked: set[UUID] = set()
        cancelling = asyncio.create_task(cancel_some(storm, asked))
        try:
            await storm.rage(weather)
            await storm.calm()
        finally:
            cancelling.cancel()
        oracle = Oracle(storm, site, qpu, database, asked)
        try:
            await oracle.check()
            await until(oracle.is_recorded, "the ends of all batches in the ledger")
            await oracle.check_events()
            await site.idle()
        finally:
            figures = {
                "seed": seed,
                "server": server.kind,
                "seconds": round(time.monotonic() - began),
                "processes": len(site.processes),
                **storm.mishaps,
                **oracle.figures,
            }
            report(figures)


async def cancel_some(storm: Storm, asked: set[UUID]) -> None:
    """Cancel a running job now and then."""
    while True:
        await asyncio.sleep(3)  # the interval between cancels
        for batch in storm.batches[-3:]:
            running = [job for job in await batch.jobs() if job.status is JobStatus.RUNNING]
            if running:
                asked.add(running[0].id)
                await batch.cancel_jobs([running[0].index])
                break


def report(figures: dict[str, Any]) -> None:
    """Print the figures, and write them to a file if one is requested."""
    line = json.dumps(figures)
    sys.stderr.write(f"{line}\n")
    if path := os.environ.get("TWEEZER_STORM_FIGURES"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def _stands_still(worker: Process) -> bool:
    try:
        return bool(psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False
