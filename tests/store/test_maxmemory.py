"""Redis at its memory limit: new work is refused, and work that has begun ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tweezer.model.errors import QueueFull
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import BatchDoc, JobSpec, OutcomeKind
from tweezer.store.connection import Store
from tweezer.store.keys import Key
from tweezer.store.scripts import StoreConfig
from tweezer.store.workers import JobProgress
from tweezer.worker.config import WorkerConfig
from tweezer.worker.heartbeat import Sweeper

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

DONE, PENDING, RUNNING, CANCELED = JobStatus.DONE, JobStatus.PENDING, JobStatus.RUNNING, JobStatus.CANCELED


@pytest.fixture
async def rig(real_rig: StoreRig) -> AsyncIterator[StoreRig]:
    """A rig that restores the memory limit of its server afterwards."""
    yield real_rig
    await real_rig.redis.config_set("maxmemory", 0)


async def fill(rig: StoreRig) -> None:
    """Set the memory limit of Redis below what it uses."""
    await rig.redis.config_set("maxmemory", 1)


async def test_a_submit_is_refused_as_full_and_nothing_is_written(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    before = await rig.snapshot()
    await fill(rig)
    with pytest.raises(QueueFull, match="maxmemory"):
        await rig.submit(1, idempotency_key="k")
    with pytest.raises(QueueFull, match="maxmemory"):
        await rig.commands.add_jobs(batch_id, [JobSpec()] * 5, project="a")
    assert await rig.snapshot() == before


async def test_running_jobs_end_and_their_ticket_retires(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    await fill(rig)
    grant = await rig.take()
    assert await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE, 0.5)) == set()
    await rig.run(grant)
    batch = await rig.batch(batch_id)
    assert (batch.status, batch.counts[DONE]) == (BatchStatus.DONE, 3)
    assert len(await rig.reader.results(batch_id, range(3))) == 3


async def test_a_cancel_works(rig: StoreRig) -> None:
    batch_id = await rig.submit(100)
    grant = await rig.take()
    await fill(rig)
    await rig.commands.cancel_jobs(batch_id, [99], project="a")
    await rig.commands.cancel(batch_id, project="a")
    assert await rig.renew(grant) == {0}
    await rig.settle(grant, {0: OutcomeKind.CANCELED})
    assert (await rig.batch(batch_id)).counts[CANCELED] == 100


async def test_a_lost_ticket_is_reclaimed(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    await rig.lapse(grant)
    await fill(rig)
    assert await rig.swept() == (0, 1, 0)
    assert await rig.statuses(batch_id) == [PENDING, PENDING]
    again = await rig.take()
    await rig.tickets.drain(again.ticket, again.token)
    assert await rig.run_all() == [batch_id]


async def test_pause_resume_close_forget_and_heartbeat_work(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    await fill(rig)
    await rig.commands.pause(batch_id, project="a")
    await rig.commands.resume(batch_id, project="a")
    await rig.announce(lanes=2)
    await rig.devices.pause("EMU", "maintenance")
    await rig.devices.resume("EMU")
    await rig.run_all()
    await rig.commands.close(batch_id, project="a")
    assert await rig.forget(batch_id)
    assert await rig.redis.keys(f"*{batch_id}*") == []


async def test_settings_are_published_and_the_limit_is_noted(rig: StoreRig) -> None:
    await fill(rig)
    await rig.tickets.publish_settings(StoreConfig(quantum_s=5))
    await rig.tickets.set_full("Redis uses 9 of its 10 MiB", ttl_s=60)
    assert await rig.redis.hget(rig.keys(Key.SETTINGS), "quantum") == b"5000"
    assert await rig.tickets.is_full()
    await rig.tickets.set_full(None, ttl_s=60)
    assert not await rig.tickets.is_full()


async def test_a_scheduled_batch_starts(rig: StoreRig) -> None:
    doc = BatchDoc(device="EMU", sequence="{}")
    later = datetime(2999, 1, 1, tzinfo=UTC)
    batch_id = await rig.commands.submit(new_batch_id(), "a", doc, [JobSpec()], not_before=later)
    await rig.make_due(batch_id)
    await fill(rig)
    assert await rig.swept() == (0, 0, 1)
    assert await rig.run_all() == [batch_id]


async def test_a_sweep_marks_a_nearly_full_redis_and_removes_the_mark(rig: StoreRig) -> None:
    sweeper = Sweeper(Store(rig.redis, namespace=rig.keys.prefix.removesuffix(":")), WorkerConfig(full_at=0.8))
    await rig.tickets.set_full("a process that died found it full", ttl_s=60)
    await sweeper.sweep()
    assert not await rig.tickets.is_full()
    await fill(rig)
    await sweeper.sweep()
    assert await rig.tickets.is_full()
    await rig.redis.config_set("maxmemory", 0)
    await sweeper.sweep()
    assert not await rig.tickets.is_full()
