"""Periodic work: sweep, forget, heartbeat, records of another version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.records import VERSION

from tweezer.model.errors import NewerRecord, NotFound
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import OutcomeKind
from tweezer.store.keys import Key
from tweezer.store.scripts import StoreConfig
from tweezer.store.workers import NextStep

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig


async def test_a_batch_that_ended_stays_until_it_is_forgotten(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.ERROR})
    await rig.settle(grant, {1: OutcomeKind.DONE})
    assert await rig.members(Key.ENDED) == set()
    await rig.settle(grant, {2: OutcomeKind.DONE})
    assert await rig.members(Key.ENDED) == {str(batch_id)}
    names = await rig.redis.keys(f"*{batch_id}*")
    assert len(names) == 5  # the record, specs, states, results, faults
    assert all([await rig.redis.pttl(name) == -1 for name in names])


async def test_batches_that_ended_are_listed_by_their_age(rig: StoreRig) -> None:
    ended = [await rig.submit(0) for _ in range(4)]
    live = await rig.submit(1)
    for minutes, batch_id in enumerate(ended):
        await rig.redis.zincrby(rig.keys(Key.ENDED), -60_000 * minutes, str(batch_id))
    assert await rig.recovery.ended(least_age_s=0, most=10) == list(reversed(ended))
    assert await rig.recovery.ended(least_age_s=0, most=2) == [ended[3], ended[2]]
    assert await rig.recovery.ended(least_age_s=90, most=10) == [ended[3], ended[2]]
    assert live in [grant.batch_id for grant in await rig.grants()]


async def test_a_forgotten_batch_leaves_nothing_behind(rig: StoreRig) -> None:
    empty = await rig.snapshot(but={rig.keys(Key.EVENTS), rig.keys(Key.BELL, "EMU")})
    batch_id = await rig.submit(3)
    await rig.run_all()
    assert await rig.forget(batch_id)
    with pytest.raises(NotFound):
        await rig.batch(batch_id)
    after = await rig.snapshot(but={rig.keys(Key.EVENTS), rig.keys(Key.BELL, "EMU")})
    after.pop(rig.keys(Key.FAIR, "EMU"), None)
    device = rig.keys(Key.DEVICE, "EMU")
    assert (after[device].pop(b"pending"), after[device].pop(b"running")) == (b"0", b"0")
    assert after[device].pop(b"job_ms") == b"2000"  # the mean duration of jobs belongs to the device
    assert set(after.pop(rig.keys(Key.PROJECT, "a"))) == {b"kept"}  # results in the ledger count towards the quota
    assert after == empty


async def test_a_batch_is_forgotten_even_if_a_lost_worker_holds_a_cancelled_job(rig: StoreRig) -> None:
    batch_id = await rig.submit(10)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE}, want=3)
    await rig.settle(grant, {1: OutcomeKind.DONE})
    await rig.commands.cancel(batch_id, project="a")
    await rig.settle(grant, {2: OutcomeKind.CANCELED}, want=1)
    assert (await rig.batch(batch_id)).status is BatchStatus.CANCELED
    assert await rig.forget(batch_id)
    assert await rig.redis.keys(f"*{batch_id}*") == []
    assert (await rig.settle(grant, {3: OutcomeKind.DONE})).next is NextStep.STALE


async def test_a_live_batch_is_not_forgotten(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    before = await rig.snapshot()
    assert not await rig.forget(batch_id)
    assert await rig.snapshot() == before


async def test_a_batch_with_events_that_are_not_recorded_is_not_forgotten(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.run_all()
    number = (await rig.batch(batch_id)).sequence_number
    before = await rig.snapshot()
    assert await rig.recovery.forget({batch_id: number - 1}, least_age_s=0) == []
    assert await rig.snapshot() == before
    assert await rig.recovery.forget({batch_id: number}, least_age_s=0) == [batch_id]


async def test_several_batches_are_forgotten_in_one_call_independently(rig: StoreRig) -> None:
    ended, live, gone = await rig.submit(0), await rig.submit(1), new_batch_id()
    recorded = {live: 1, ended: 2, gone: 7}
    assert await rig.recovery.forget(recorded, least_age_s=0) == [ended, gone]
    assert await rig.recovery.forget({}, least_age_s=0) == []


async def test_a_forgotten_batch_is_no_longer_listed(rig: StoreRig) -> None:
    batch_id = await rig.submit(0)
    for name in await rig.redis.keys(f"*{batch_id}*"):
        await rig.redis.delete(name)
    await rig.recovery.forget({batch_id: 2}, least_age_s=0)
    assert await rig.recovery.ended(least_age_s=0, most=10) == []
    await rig.redis.delete(rig.keys(Key.BATCHES, "a"))


async def test_a_forgotten_project_leaves_nothing_behind(rig: StoreRig) -> None:
    ours = await rig.submit(3, project="a*", idempotency_key="k")
    await rig.submit(3, project="ab", idempotency_key="k")
    grant = await rig.take()
    await rig.commands.cancel(ours, project="a*")
    await rig.settle(grant, {0: OutcomeKind.CANCELED})
    assert await rig.forget(ours)
    await rig.commands.forget_project("a*")
    assert await rig.redis.hkeys(rig.keys(Key.FAIR, "EMU")) == [b"p:ab"]
    assert await rig.redis.keys("*idempotency*") == [rig.keys(Key.IDEMPOTENCY, "ab", "k").encode()]


async def test_a_batch_is_not_forgotten_before_its_grace_is_over(rig: StoreRig) -> None:
    batch_id = await rig.submit(0)
    assert not await rig.forget(batch_id, least_age_s=60)
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE
    assert await rig.forget(batch_id, least_age_s=0)
    assert await rig.redis.keys(f"*{batch_id}*") == []


async def test_a_sweep_finds_nothing_to_do_when_nothing_is_due(rig: StoreRig) -> None:
    await rig.submit(1, open=True)
    await rig.submit(0, open=True)
    await rig.take()
    before = await rig.snapshot()
    assert await rig.swept() == (0, 0, 0)
    assert await rig.snapshot() == before


async def test_a_sweep_has_a_limit_for_each_kind_of_work(rig: StoreRig) -> None:
    batches = [await rig.submit(0, open=True) for _ in range(5)]
    for batch_id in batches:
        await rig.run_out(batch_id)
    assert [(await rig.tickets.sweep(most=2)).timed_out for _ in range(4)] == [2, 2, 1, 0]
    assert {(await rig.batch(batch_id)).status for batch_id in batches} == {BatchStatus.TIMED_OUT}


async def test_a_sweep_reclaims_and_wakes_a_worker(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.lapse(grant)
    await rig.silence()
    assert await rig.swept() == (0, 1, 0)
    assert await rig.bell() == 1
    assert await rig.statuses(batch_id) == [JobStatus.PENDING]


async def test_a_sweep_makes_due_tickets_ready_and_wakes_a_worker(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.settle(await rig.take(), {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)})
    await rig.silence()
    await rig.make_due(batch_id)
    assert await rig.swept() == (0, 0, 1)
    assert await rig.bell() == 1


async def test_only_lanes_of_live_workers_are_counted(rig: StoreRig) -> None:
    async def lanes() -> int:
        device = await rig.reader.device("EMU")
        assert device is not None
        return device.lanes

    await rig.announce(lanes=2, worker="w")
    await rig.announce(lanes=3, worker="x")
    assert await lanes() == 5
    assert sorted((worker.id, worker.lanes) for worker in await rig.reader.workers()) == [("w", 2), ("x", 3)]

    await rig.redis.zadd(rig.keys(Key.WORKERS, "EMU"), {"x": 1})  # its heartbeat stopped
    await rig.tickets.sweep()
    assert await lanes() == 2

    await rig.tickets.heartbeat("w", "EMU", ttl_s=0, about_device={}, about_worker={})
    assert await lanes() == 0
    assert await rig.reader.device_names() == ["EMU"]
    assert 0 < await rig.redis.pttl(rig.keys(Key.WORKER, "x")) <= 60_000


async def test_work_waits_for_a_device_whose_workers_are_gone(rig: StoreRig) -> None:
    await rig.tickets.heartbeat("w", "EMU", ttl_s=0, about_device={}, about_worker={})
    batch_id = await rig.submit(3)
    await rig.announce(lanes=2)
    assert [grant.batch_id for grant in await rig.grants(2)] == [batch_id] * 2


async def test_a_ready_batch_of_an_unknown_version_is_left_alone(rig: StoreRig) -> None:
    newer, ours = await rig.submit(2, project="a"), await rig.submit(1, project="b")
    await rig.redis.hset(rig.keys(Key.BATCH, newer), "v", "999")
    record = await rig.redis.hgetall(rig.keys(Key.BATCH, newer))
    taken = await rig.tickets.take("EMU", ["lane:1", "lane:2"], lease_s=15)
    assert taken.left_alone == [f"{newer}:0"]
    assert [grant.batch_id for grant in taken.grants] == [ours]
    await rig.run(taken.grants[0])
    for call in (rig.commands.cancel, rig.commands.close, rig.commands.pause):
        with pytest.raises(NewerRecord):
            await call(newer, project="a")
    assert await rig.recovery.forget({newer: 1_000_000}, least_age_s=0) == []
    assert await rig.redis.hgetall(rig.keys(Key.BATCH, newer)) == record

    await rig.make_due(newer)
    await rig.tickets.sweep()  # it reads the batch again, and changes nothing again
    assert await rig.redis.hgetall(rig.keys(Key.BATCH, newer)) == record
    await rig.redis.hset(rig.keys(Key.BATCH, newer), "v", VERSION)  # as a worker of its version would see it
    await rig.make_due(newer)
    assert (await rig.take()).batch_id == newer


async def test_a_leased_batch_of_an_unknown_version_keeps_its_jobs(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.redis.hset(rig.keys(Key.BATCH, batch_id), "v", "999")
    await rig.lapse(grant)
    await rig.tickets.sweep()
    assert await rig.members(Key.HELD, batch_id, 0) == {"0"}
    await rig.redis.hset(rig.keys(Key.BATCH, batch_id), "v", VERSION)
    await rig.lapse(grant)
    assert [job.attempt for job in (await rig.take()).jobs] == [2]


async def test_an_idle_batch_of_an_unknown_version_keeps_its_deadline(rig: StoreRig) -> None:
    batch_id = await rig.submit(0, open=True)
    await rig.redis.hset(rig.keys(Key.BATCH, batch_id), "v", "999")
    await rig.run_out(batch_id)
    assert await rig.swept() == (0, 0, 0)
    await rig.redis.hset(rig.keys(Key.BATCH, batch_id), "v", VERSION)
    await rig.run_out(batch_id)
    assert await rig.swept() == (1, 0, 0)


async def test_scripts_use_the_settings_of_operators(rig: StoreRig) -> None:
    await rig.tickets.publish_settings(StoreConfig(idempotency_s=50, quantum_s=5))
    await rig.submit(3, idempotency_key="k")
    grant = await rig.take()
    await rig.submit(1, project="b")
    assert (await rig.settle(grant, {0: OutcomeKind.DONE}, used_s=4)).next is NextStep.JOBS
    assert (await rig.settle(grant, {1: OutcomeKind.DONE}, used_s=4)).next is NextStep.YIELD
    await rig.run_all()
    assert 40_000 < await rig.redis.pttl(rig.keys(Key.IDEMPOTENCY, "a", "k")) <= 50_000
