"""Workers are killed, stopped and drained at random while Redis restarts, and the records remain correct."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from tests.support.effort import effort
from tests.support.processes import LEASE_S, WITNESSED, Process, Site
from tests.support.redis_users import RedisServer
from tests.support.waiting import until

from tweezer import AsyncBatch, BatchStatus, JobStatus
from tweezer.model.ids import job_id
from tweezer.store.scripts import LOST_MAX

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

WORKERS, LANES = 3, 2
BATCHES, JOBS = effort(short=5, full=10), 120
STORM_S, PATIENCE_S = effort(short=10.0, full=20.0), 60.0
MISHAPS = ("kill", "kill", "freeze", "terminate")


@pytest.fixture
def server(tmp_path: Path, real_redis_url: str) -> Iterator[RedisServer]:
    """A private server that may be killed. The fixture of the shared one skips the test if none is installed."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


class Storm:
    """Mishaps of workers, chosen with a seed."""

    def __init__(self, site: Site, witness: Path, seed: int) -> None:
        self._site = site
        self._witness = witness
        self._random = random.Random(seed)
        self._frozen: dict[Process, float] = {}
        self.workers = [self._new() for _ in range(WORKERS)]
        self.mishaps: Counter[str] = Counter()

    async def strike(self) -> None:
        """Replace dead workers, continue those that were stopped for long enough, and cause one mishap."""
        self._restore()
        victim = self._random.choice(self.workers)
        if victim in self._frozen or not victim.logged("worker.started"):
            return
        mishap = self._random.choice(MISHAPS)
        self.mishaps[mishap] += 1
        match mishap:
            case "kill":
                victim.kill()
            case "freeze":
                victim.signal(signal.SIGSTOP)
                self._frozen[victim] = time.monotonic() + self._random.uniform(0.2, 2.5) * LEASE_S
            case "terminate":
                victim.terminate()

    async def finish(self) -> None:
        """Cause no more mishaps, and wait until all workers are up."""
        self._frozen = dict.fromkeys(self._frozen, 0.0)
        self._restore()
        for worker in self.workers:
            await self._site.serves(worker)

    def _restore(self) -> None:
        now = time.monotonic()
        for worker in [worker for worker, until_s in self._frozen.items() if until_s <= now]:
            del self._frozen[worker]
            if worker.alive:  # the worker may have been killed while it was stopped
                worker.thaw()
        self.workers = [worker if worker.alive else self._new() for worker in self.workers]

    def _new(self) -> Process:
        return self._site.worker(WITNESSED, lanes=LANES, test_witness=self._witness)


async def test_a_storm_loses_nothing_and_ends_every_job_once(server: RedisServer, tmp_path: Path) -> None:
    seed = random.randrange(1_000_000)
    print("seed of the storm:", seed)  # noqa: T201  # shown when the test fails
    draw = random.Random(seed)
    witness = tmp_path / "witness"
    async with Site(server.url, tmp_path, worker_drain_s=1) as site:
        storm = Storm(site, witness, seed)
        for worker in storm.workers:
            await site.serves(worker)
        batches: list[AsyncBatch] = []
        began = time.monotonic()
        restarts = 0
        cancelled: set[UUID] = set()
        while (elapsed_s := time.monotonic() - began) < STORM_S:
            if len(batches) < BATCHES and elapsed_s >= len(batches) * STORM_S / BATCHES * 0.8:
                jobs = [{"sleep_s": draw.uniform(0.02, 0.05)} for _ in range(JOBS)]
                batches.append(await site.submit(jobs, device=WITNESSED))
                await cancel_some(draw, batches, cancelled)
            if restarts == 0 and elapsed_s > STORM_S / 2:
                await asyncio.to_thread(server.restart)
                restarts += 1
            await storm.strike()
            await asyncio.sleep(draw.uniform(0.1, 0.5))  # the interval between mishaps, not a wait for a condition
        await storm.finish()
        for batch in batches:
            assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
        await check_records(site, batches, witness, cancelled)
        await check_leftovers(site)
        print(dict(storm.mishaps), f"{len(site.processes)} processes")  # noqa: T201  # as above
    assert len(batches) == BATCHES
    assert min(storm.mishaps[mishap] for mishap in MISHAPS) > 0


async def cancel_some(draw: random.Random, batches: list[AsyncBatch], cancelled: set[UUID]) -> None:
    batch, indices = draw.choice(batches), draw.sample(range(JOBS), 5)
    await batch.cancel_jobs(indices)
    cancelled |= {job_id(batch.id, index) for index in indices}


async def check_records(site: Site, batches: list[AsyncBatch], witness: Path, cancelled: set[UUID]) -> None:
    """Check that each job ended once, by a complete execution on a lane, and that events and counters agree."""
    witnessed = read_executions(witness)
    executions = {execution: job for job, execution in witnessed}
    assert len(executions) == len(witnessed)
    attempts = 0
    for batch in batches:
        jobs = await site.audit(batch)
        assert len(jobs) == JOBS
        for finished in await batch.results():
            attempts += finished.record.attempt
            if finished.status is JobStatus.CANCELED:
                assert finished.id in cancelled
                continue
            if finished.status is JobStatus.ERROR:
                assert finished.record.attempt >= LOST_MAX, "only a job that lost this many workers may fail"
                continue
            (execution,) = finished.counter
            assert executions[execution] == str(finished.id)
    assert {job for job, _ in witnessed} <= {str(job.id) for batch in batches for job in await batch.jobs()}
    print(f"{len(witnessed)} executions, {attempts} attempts of {BATCHES * JOBS} jobs")  # noqa: T201


def read_executions(witness: Path) -> list[tuple[str, str]]:
    """Return the job and the execution of each line of the file."""
    return [(job, execution) for job, execution in map(str.split, witness.read_text(encoding="utf-8").splitlines())]


async def check_leftovers(site: Site) -> None:
    """Check that every key has an owner or an expiry, and that no worker is listed after all have ended."""
    await site.idle()
    for worker in site.processes:
        if worker.alive:
            worker.terminate()
    for worker in site.processes:
        await worker.ended()

    async def no_worker() -> bool:
        return await site.queue.workers() == []

    await until(no_worker, "the end of the last heartbeat")
