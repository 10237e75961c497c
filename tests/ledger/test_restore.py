"""A Redis that lost the end of its append-only file is restored from the ledger: the ledger wins."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
from redis.asyncio import Redis
from tests.support.ledger_rig import NAMESPACE, OPERATOR, LedgerRig
from tests.support.redis_users import RedisServer
from tests.support.store_rig import LEASE_S, StoreRig
from tests.support.waiting import until

from tweezer.ledger.batch_reader import BatchReader
from tweezer.ledger.database import Database
from tweezer.model.events import read_events
from tweezer.model.ids import job_id
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import JobSpec, OutcomeKind, Priority
from tweezer.model.rules import Rules
from tweezer.store.connection import Connect, Store
from tweezer.store.keys import Key
from tweezer.store.workers import JobProgress

pytestmark = [pytest.mark.redis, pytest.mark.chaos]

DONE, ERROR = OutcomeKind.DONE, OutcomeKind.ERROR


class Mortal(LedgerRig):
    """A bench on a private Redis whose file can be cut."""

    def __init__(self, server: RedisServer, database: Database) -> None:
        self.server = server
        super().__init__(self._rig(), database)

    def _rig(self) -> StoreRig:
        rig = StoreRig(Redis.from_url(self.server.url))
        store = Store.open(Connect(url=self.server.url, namespace=NAMESPACE))
        rig.redis, rig.store = store.redis, store
        rig.keys, rig.commands, rig.tickets, rig.reader = store.keys, store.commands, store.tickets, store.reader
        return rig

    def size(self) -> int:
        """Return the current length of the file."""
        return self._file().stat().st_size

    async def come_back_with(self, size: int) -> None:
        """Kill Redis, and start it with this much of its file."""
        await self.rig.store.close()
        self.server.kill()
        os.truncate(self._file(), size)
        self.server.restart()
        self.rig = self._rig()
        self.recorder = self.another_recorder(lease_s=1.0, look_s=0.05)

    def _file(self) -> Path:
        (file,) = Path(self.server.data).rglob("*.incr.aof")
        return file

    @contextlib.asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.recorder.run())
        yield
        task.cancel()
        await asyncio.wait([task])

    async def gate_is_open(self) -> bool:
        return not (await self.rig.store.recovery.gate()).is_shut

    def ends_of_jobs(self) -> dict[tuple[UUID, int], int]:
        """Return how many ends are recorded for each job."""
        query = "SELECT batch, sequence_number, time_us, words FROM transitions"
        ends: collections.Counter[tuple[UUID, int]] = collections.Counter()
        for batch, first, time_us, words in self.rows(query):
            batch_id = UUID(bytes=batch) if isinstance(batch, bytes) else UUID(str(batch))
            for event in read_events(batch_id, first, time_us, words):
                if event.index is not None and event.status.terminal:
                    ends[batch_id, event.index] += 1
        return ends


@pytest.fixture
async def mortal(database: Database, tmp_path: Path) -> AsyncIterator[Mortal]:
    options = {"auto-aof-rewrite-percentage": "0"}
    with RedisServer(tmp_path / "redis", kind="redis", port=0, appendfsync="always", options=options) as server:
        bench = Mortal(server, database)
        await bench.rig.announce(lanes=2)
        yield bench
        await bench.rig.store.close()


async def test_jobs_that_redis_lost_are_restored_from_the_ledger_and_do_not_run_twice(mortal: Mortal) -> None:
    rig = mortal.rig
    half = await rig.submit(10)
    grant = await rig.take()
    for index in range(3):
        await rig.settle(grant, {index: DONE})
    grown = await rig.submit([JobSpec(runs=1)], open=True)
    await mortal.record()
    size = mortal.size()

    for index in range(3, 7):
        await rig.settle(grant, {index: ERROR if index == 5 else DONE})
    await rig.commands.add_jobs(grown, [JobSpec(runs=2), JobSpec(runs=3)], project=None)
    whole = await rig.submit(3, project="b")
    fresh = await rig.submit([JobSpec(runs=4), JobSpec(runs=5)], open=True, project="c")
    canceled = await rig.submit(4, project="d")
    await rig.commands.cancel(canceled, project=None)
    (other,) = await rig.grants()
    while other.batch_id != whole:
        await rig.tickets.drain(other.ticket, other.token)
        (other,) = await rig.grants()
    await rig.run(other, want=10)
    await mortal.record()

    await mortal.come_back_with(size)
    rig = mortal.rig
    await rig.announce(lanes=2)
    assert await rig.grants(2) == [], "claims are shut until the recorder has looked"
    async with mortal.recording():
        await until(mortal.gate_is_open, "the recorder opens the gate")

    batches = (half, grown, whole, fresh, canceled)
    ended = {batch_id: await _counts(rig, batch_id) for batch_id in batches}
    assert ended[half][JobStatus.DONE] == 6
    assert ended[half][JobStatus.ERROR] == 1
    assert ended[grown][JobStatus.PENDING] == 3
    assert ended[whole][JobStatus.DONE] == 3
    assert ended[fresh][JobStatus.PENDING] == 2
    assert ended[canceled][JobStatus.CANCELED] == 4
    assert (await rig.reader.batch(whole, project=None)).status is BatchStatus.DONE
    assert (await rig.reader.batch(canceled, project=None)).status is BatchStatus.CANCELED
    assert set(await rig.reader.results(half, range(10))) == {0, 1, 2, 3, 4, 6}

    late = await rig.tickets.settle(grant.ticket, grant.token, [], want=1, used_s=0, lease_s=LEASE_S)
    for job in late.jobs:  # the old holder continues with the rest
        await rig.settle(grant, {job.index: DONE}, want=10)
    await rig.redis.zadd(rig.keys.prefix + "device:EMU:leases", {str(grant.ticket): 1}, xx=True)
    await rig.run_all()
    for batch_id in (grown, fresh):
        await rig.commands.close(batch_id, project=None)
    await rig.run_all()
    await mortal.record()
    for batch_id in batches:
        assert (await rig.reader.batch(batch_id, project=None)).status.terminal
        assert [job.status for job in mortal.jobs(batch_id)] == [
            job.status
            for job in await rig.reader.jobs(
                await rig.reader.batch(batch_id, project=None), range(_jobs_of(mortal, batch_id))
            )
        ]
    assert set(mortal.ends_of_jobs().values()) == {1}
    assert len(mortal.ends_of_jobs()) == 10 + 3 + 3 + 2 + 4
    mortal.counts_add_up()


async def test_attempts_survive_a_redis_that_lost_them(mortal: Mortal) -> None:
    batch_id = await mortal.rig.submit(1)
    await mortal.record()
    size = mortal.size()
    await mortal.rig.settle(await mortal.rig.take(), {0: OutcomeKind.RETRY})
    await mortal.rig.make_due(batch_id)
    await mortal.rig.renew(await mortal.rig.take(), JobProgress(0, Stage.ON_DEVICE))
    await mortal.record()
    await mortal.come_back_with(size)
    await mortal.rig.announce(lanes=2)
    async with mortal.recording():
        await until(mortal.gate_is_open, "the recorder opens the gate")
    await mortal.rig.make_due(batch_id)
    await mortal.rig.run_all()
    await mortal.record()
    reader = BatchReader(mortal.rig.store, mortal.queries)
    attempts = await reader.attempts(OPERATOR, job_id(batch_id, 0))
    assert [(it.outcome, it.fault and it.fault.message) for it in attempts] == [
        ("retry", "it broke"),
        ("restart", None),
        ("done", None),
    ]


async def test_a_redis_that_lost_nothing_hands_out_work_after_the_recorders_check(mortal: Mortal) -> None:
    batch_id = await mortal.rig.submit(2)
    await mortal.record()
    await mortal.come_back_with(mortal.size())
    await mortal.rig.announce(lanes=2)
    assert await mortal.rig.grants() == []
    async with mortal.recording():
        await until(mortal.gate_is_open, "the recorder opens the gate")
    await mortal.rig.run_all()
    await mortal.record()
    await mortal.agree(batch_id)


async def test_a_redis_that_lost_everything_gets_its_live_batches_back(mortal: Mortal) -> None:
    ended, live = await mortal.rig.submit(2), await mortal.rig.submit(3, open=True)
    await mortal.rig.run_all()
    await mortal.record()
    await mortal.come_back_with(0)
    await mortal.rig.announce(lanes=2)
    async with mortal.recording():
        await until(lambda: _is_there(mortal.rig, ended, live), "the batches are there again")
        await until(mortal.gate_is_open, "the recorder opens the gate")
    assert (await mortal.rig.reader.batch(ended, project=None)).status is BatchStatus.DONE
    await mortal.rig.commands.close(live, project=None)
    await mortal.record()
    assert set(mortal.ends_of_jobs().values()) == {1}


async def test_a_redis_that_lost_everything_gets_the_rules_of_its_batches_back(mortal: Mortal) -> None:
    rules = Rules(queue_timeout_s=60, failure_threshold=1, total_retries=1)
    started = await mortal.rig.submit(3, rules=rules)
    (grant,) = await mortal.rig.grants()
    await mortal.rig.settle(grant, {0: OutcomeKind.RETRY}, want=0)
    waiting = await mortal.rig.submit(2, rules=rules)
    expires = (await mortal.rig.batch(waiting)).expires
    await mortal.record()
    await mortal.come_back_with(0)
    await mortal.rig.announce(lanes=2)
    async with mortal.recording():
        await until(lambda: _is_there(mortal.rig, started, waiting), "the batches are there again")
        await until(mortal.gate_is_open, "the recorder opens the gate")
    assert await mortal.rig.members(Key.DEADLINES) == {str(waiting)}
    assert [(await mortal.rig.batch(it)).retried for it in (started, waiting)] == [1, 0]
    assert (await mortal.rig.batch(waiting)).expires == expires
    await mortal.rig.let_expire(waiting)
    assert (await mortal.rig.tickets.sweep()).timed_out == 1
    (grant,) = await mortal.rig.grants()
    await mortal.rig.settle(grant, {grant.jobs[0].index: ERROR})
    assert (await mortal.rig.batch(started)).status is BatchStatus.PAUSED


async def test_without_a_recorder_the_gate_opens_by_itself(mortal: Mortal) -> None:
    await mortal.rig.submit(1)
    await mortal.record()
    await mortal.come_back_with(mortal.size())
    assert not await mortal.gate_is_open()
    left_ms = await mortal.rig.redis.pttl(mortal.rig.keys.prefix + "gate")
    assert 0 < left_ms <= 30_000


async def _counts(rig: StoreRig, batch_id: UUID) -> dict[JobStatus, int]:
    return (await rig.reader.batch(batch_id, project=None)).counts


async def _is_there(rig: StoreRig, *batch_ids: UUID) -> bool:
    there = await rig.redis.exists(*(rig.keys.prefix + f"batch:{batch_id}" for batch_id in batch_ids))
    return bool(there == len(batch_ids))


def _jobs_of(bench: LedgerRig, batch_id: UUID) -> int:
    batch = bench.batch(batch_id)
    assert batch is not None
    return batch.jobs


async def test_tags_and_priority_that_redis_lost_are_restored_from_the_ledger(mortal: Mortal) -> None:
    batch_id = await mortal.rig.submit(1)
    await mortal.record()
    size = mortal.size()
    await mortal.rig.commands.set_tags(batch_id, ["new"], project="a")
    await mortal.rig.commands.set_priority(batch_id, Priority.HIGH, project="a")
    await mortal.record()
    await mortal.come_back_with(size)
    async with mortal.recording():
        await until(mortal.gate_is_open, "the recorder opens the gate")
    for batch in (await mortal.rig.batch(batch_id), mortal.batch(batch_id)):
        assert batch is not None
        assert (batch.doc.tags, batch.priority) == (("new",), Priority.HIGH)
