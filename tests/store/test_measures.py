"""Measures for operators: jobs, tickets, lanes and waits of each device, lost leases, and the recorder's delay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tweezer.model.messages import OutcomeKind
from tweezer.store.keys import Key
from tweezer.store.measures import DeviceMeasures, Measures, measure
from tweezer.store.streams.feed import START, EntryGroup

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

DAY_US = 86_400_000_000


async def measured(rig: StoreRig, recorded: str | None = None, delivered: str | None = None) -> Measures:
    return await measure(rig.store.scripts, recorded, delivered)


async def device(rig: StoreRig, name: str = "EMU") -> DeviceMeasures:
    (found,) = [device for device in (await measured(rig)).devices if device.name == name]
    return found


async def submitted_before(rig: StoreRig, batch_id: Any, index: int, age_us: int) -> None:
    """Move the time of the job's submit into the past."""
    name = rig.keys(Key.SPEC, batch_id)
    now_us, _, packed = (await rig.redis.hget(name, index)).partition(b" ")
    await rig.redis.hset(name, index, b"%d %s" % (int(now_us) - age_us, packed))


async def test_an_idle_device_has_free_lanes_and_no_waiting_jobs(rig: StoreRig) -> None:
    await rig.announce(lanes=3, worker="v")
    assert await device(rig) == DeviceMeasures(
        "EMU",
        *(False, 0, 0, 0, 0, 0, 0, 0),
        workers=2,
        lanes=4,
        busy=0,
        draining=0,
        late=0,
        expired=0,
        stopped=0,
        longest_wait_s=None,
        up=True,
    )


async def test_jobs_and_tickets_are_counted_where_they_are(two_lanes: StoreRig) -> None:
    rig = two_lanes
    await rig.submit(5)
    await rig.take()
    delayed = await rig.submit(1)
    found = await device(rig)
    assert (found.pending, found.running) == (5, 1)
    assert (found.ready, found.due, found.leased) == (2, 0, 1)
    grant = next(grant for grant in await rig.grants(2) if grant.batch_id == delayed)
    await rig.settle(grant, {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)})
    assert (await device(rig)).due == 1


async def test_lanes_are_those_of_the_last_heartbeats(rig: StoreRig) -> None:
    rows: dict[str, dict[str, Any]] = {
        "w": {"lanes": 1, "busy": 1},
        "v": {"lanes": 4, "busy": 3},
        "u": {"lanes": 2, "busy": 1, "draining": 1},
    }
    for worker, about in rows.items():
        await rig.tickets.heartbeat(
            worker, "EMU", ttl_s=60, about_device={"exclusive": 0}, about_worker={"started": 1, **about}
        )
    found = await device(rig)
    assert (found.workers, found.lanes, found.busy, found.draining) == (3, 7, 5, 1)
    await rig.redis.delete(rig.keys(Key.WORKER, "v"))
    found = await device(rig)
    assert (found.workers, found.lanes, found.busy) == (2, 3, 2)


async def test_a_pause_is_measured(rig: StoreRig) -> None:
    await rig.announce("OTHER")
    await rig.devices.pause("EMU", "for a test")
    assert {found.name: found.paused for found in (await measured(rig)).devices} == {"EMU": True, "OTHER": False}


async def test_a_lost_lease_is_counted_once_by_take_or_sweep(rig: StoreRig) -> None:
    for find in (rig.tickets.sweep, rig.take):
        await rig.submit(1)
        grant = await rig.take()
        await rig.lapse(grant)
        await find()
        await rig.run_all()
    assert (await device(rig)).lost == 2


async def test_a_settle_of_a_stale_ticket_counts_once_a_call(rig: StoreRig) -> None:
    await rig.submit(3)
    grant = await rig.take()
    stale = msgspec.structs.replace(grant, token="1")
    await rig.settle(stale, {0: OutcomeKind.DONE, 1: OutcomeKind.DONE})
    assert (await device(rig)).stale == 1
    await rig.run(grant)
    found = await device(rig)
    assert (found.stale, found.lost) == (1, 0)


async def test_a_settle_repeated_after_a_lost_reply_is_not_stale(rig: StoreRig) -> None:
    await rig.submit(1)
    grant = await rig.take()
    for _ in range(2):
        await rig.settle(grant, {0: OutcomeKind.DONE})
    assert (await device(rig)).stale == 0


async def test_the_longest_wait_is_of_a_job_and_not_of_its_batch(rig: StoreRig) -> None:
    old = await rig.submit(1, open=True)
    await submitted_before(rig, old, 0, 7 * DAY_US)
    assert ((await device(rig)).longest_wait_s or 0) > 6 * 86_400
    await rig.run_all()
    assert (await device(rig)).longest_wait_s is None
    await rig.commands.add_jobs(old, [(await rig.job(old, 0)).spec], project="a")
    wait_s = (await device(rig)).longest_wait_s
    assert wait_s is not None
    assert wait_s < 60


async def test_a_job_waits_although_lanes_work_on_all_tickets_of_its_batch(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    grant = await rig.take()
    await submitted_before(rig, batch_id, 1, 2 * DAY_US)
    found = await device(rig)
    assert found.ready == 0
    assert (found.longest_wait_s or 0) > 86_400
    await rig.settle(grant, {0: OutcomeKind.DONE})
    wait_s = (await device(rig)).longest_wait_s
    assert wait_s is not None
    assert wait_s < 60


async def test_a_job_that_came_back_waits_since_its_submit(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    await submitted_before(rig, batch_id, 0, 2 * DAY_US)
    grant = await rig.take()
    assert ((await device(rig)).longest_wait_s or 0) < 60
    await rig.tickets.drain(grant.ticket, grant.token)
    assert ((await device(rig)).longest_wait_s or 0) > 86_400


async def test_unrecorded_entries_are_counted_up_to_a_limit(rig: StoreRig) -> None:
    await rig.submit(1)
    await rig.run_all()
    entries = await rig.store.events.read(most=100)
    found = await measured(rig, "0-0")
    assert (found.stream, found.unrecorded) == (len(entries), len(entries))
    assert 0 <= found.unrecorded_s < 60
    assert (await measured(rig, entries[0].id)).unrecorded == len(entries) - 1
    found = await measured(rig, entries[-1].id)
    assert (found.unrecorded, found.unrecorded_s) == (0, 0.0)
    assert (await measured(rig)).unrecorded == 0


async def test_entries_not_read_by_couriers_are_counted_separately(rig: StoreRig) -> None:
    await rig.submit(1)
    await rig.run_all()
    entries = await rig.store.events.read(most=100)
    found = await measured(rig, entries[-1].id, entries[0].id)
    assert (found.unrecorded, found.undelivered) == (0, len(entries) - 1)
    assert 0 <= found.undelivered_s < 60
    assert (await measured(rig, "0-0")).undelivered == 0


async def test_entries_acknowledged_by_couriers_are_done_even_if_a_restored_ledger_lacks_them(rig: StoreRig) -> None:
    group = EntryGroup(rig.store.scripts, "couriers", "one")
    await group.join(START)
    await rig.submit(1)
    await rig.run_all()
    given = (await group.read(most=100, wait_s=0.01)).entries
    await group.acknowledge([entry.id for entry in given[:-1]])
    found = await measured(rig, None, START)
    assert (found.undelivered, found.unrecorded) == (1, 0)
    await group.acknowledge([given[-1].id])
    assert (await measured(rig, None, START)).undelivered == 0
    await rig.submit(1)
    assert (await measured(rig, None, START)).undelivered == 1
    assert (await measured(rig, None, await rig.store.events.last())).undelivered == 0


async def test_the_age_of_unrecorded_entries_is_that_of_the_oldest(rig: StoreRig) -> None:
    seconds, _ = await rig.redis.time()
    for age_s in (500, 100):
        await rig.redis.xadd(rig.keys(Key.EVENTS), {"b": "x"}, id=f"{(seconds - age_s) * 1000}-0")
    assert 499 <= (await measured(rig, "0-0")).unrecorded_s < 560
    assert 99 <= (await measured(rig, f"{(seconds - 500) * 1000}-0")).unrecorded_s < 160


async def test_an_empty_installation_can_be_measured(rig: StoreRig) -> None:
    await rig.redis.flushall()
    assert await measured(rig, "0-0") == Measures(0, 0, 0.0, 0, 0.0, 0, False, False, False, [])


async def test_a_measure_reads_only_the_front_of_the_queue(rig: StoreRig) -> None:
    for _ in range(60):
        await rig.submit(1)
    last = await rig.submit(1)
    await submitted_before(rig, last, 0, 2 * DAY_US)
    found = await device(rig)
    assert found.ready == 61
    assert (found.longest_wait_s or 0) < 60
