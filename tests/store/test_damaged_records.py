"""Records that are damaged, or that a newer Tweezer wrote: errors name them, and no worker stops because of them."""

from __future__ import annotations

from uuid import UUID

import pytest
from tests.support.power_loss import recorded
from tests.support.records import NEWER, VERSION
from tests.support.store_rig import StoreRig

from tweezer.model.errors import NewerRecord, NotFound, Unreadable
from tweezer.model.messages import OutcomeKind, Priority
from tweezer.store.keys import Key
from tweezer.store.reader import Lookups
from tweezer.store.records import NO_TIMES


async def put(rig: StoreRig, name: str, field: str, value: bytes) -> bytes:
    key = rig.keys.prefix + name
    was: bytes | None = await rig.redis.hget(key, field)
    await rig.redis.hset(key, field, value)
    return NO_TIMES if was is None else was


async def test_every_command_names_the_version_of_a_batch_that_a_newer_tweezer_wrote(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await put(rig, f"batch:{batch_id}", "v", NEWER.encode())
    for call in (
        lambda: rig.commands.cancel(batch_id, project="a"),
        lambda: rig.commands.cancel_jobs(batch_id, [0], project="a"),
        lambda: rig.commands.close(batch_id, project=None),
        lambda: rig.commands.pause(batch_id, project=None),
        lambda: rig.commands.resume(batch_id, project=None),
        lambda: rig.commands.set_tags(batch_id, ["a"], project=None),
        lambda: rig.commands.set_priority(batch_id, Priority.LOW, project=None),
        lambda: rig.reader.batch(batch_id, project="a"),
        lambda: rig.commands.discard(batch_id),
        lambda: Lookups(rig.store.scripts).batch(batch_id, projects=["a"]),
    ):
        with pytest.raises(NewerRecord, match="was written by a newer Tweezer") as refused:
            await call()
        assert refused.value.code == "newer_record"
    with pytest.raises(NotFound):
        await rig.commands.cancel(batch_id, project="another")
    await put(rig, f"batch:{batch_id}", "v", VERSION.encode())
    await rig.run_all()


async def test_a_damaged_batch_is_named_and_can_be_cancelled(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    doc = await put(rig, f"batch:{batch_id}", "doc", b"\xc1")
    with pytest.raises(Unreadable, match=f"the record of batch {batch_id} cannot be read"):
        await rig.reader.batch(batch_id, project=None)
    await rig.commands.cancel(batch_id, project=None)
    await put(rig, f"batch:{batch_id}", "doc", doc)
    assert (await rig.reader.batch(batch_id, project=None)).status.terminal


async def test_a_worker_gets_unreadable_jobs_with_the_reason(rig: StoreRig) -> None:
    rig.checks_usage = False
    bad, half = await rig.submit(1), await rig.submit(2)
    await put(rig, f"batch:{bad}", "doc", b"\xc1")
    await put(rig, f"batch:{half}:spec", "1", b"1 \xc1")
    grants: dict[UUID, str | None] = {}
    taken = await rig.tickets.take("EMU", ["lane-1", "lane-2"], lease_s=60)
    for grant in taken.grants:
        grants[grant.batch_id] = grant.problem
    assert set(grants) == {bad, half}
    assert grants[half] is None
    assert "malformed" in str(grants[bad])
    grant = next(it for it in taken.grants if it.batch_id == half)
    turn = await rig.settle(grant, {0: OutcomeKind.DONE})
    assert [(job.index, job.problem is not None) for job in turn.jobs] == [(1, True)]


async def test_junk_in_shared_sets_stops_no_reader(rig: StoreRig) -> None:
    rig.checks_usage = False
    for name in (Key.IDLE, Key.ENDED):
        await rig.redis.zadd(rig.keys(name), {"junk": 1, b"\xff": 1, "": 1})
    for name in (Key.LEASES, Key.DUE, Key.READY):
        await rig.redis.zadd(rig.keys(name, "EMU"), {"junk": 1, b"\xff": 1, "": 1})
    await rig.redis.zadd(rig.keys(Key.WORKERS, "EMU"), {b"\xff": 2**53, "gone": 2**53})
    await rig.redis.sadd(rig.keys(Key.DEVICES), "junk", b"\xff")
    batch_id = await rig.submit(1)
    await rig.store.tickets.sweep()
    assert "EMU" in [device.name for device in await rig.reader.devices()]
    assert [worker.id for worker in await rig.reader.workers()] == ["w"]
    assert not await rig.redis.exists(rig.keys(Key.DEVICE, "junk"))
    assert await rig.run_all() == [batch_id]


DAMAGE = [("now", b"junk"), ("now", b""), ("now", b'"P",""'), ("made", b'"EMU'), ("times", b"1,")]


@pytest.mark.parametrize(("part", "value"), DAMAGE, ids=str)
async def test_a_batch_with_a_damaged_record_is_left_alone_and_others_run(
    rig: StoreRig, part: str, value: bytes
) -> None:
    rig.checks_usage = False
    damaged, other = await rig.submit(1), await rig.submit(1)
    was = await put(rig, f"batch:{damaged}", part, value)
    with pytest.raises(Unreadable, match=f"the record of batch {damaged} cannot be read"):
        await rig.reader.batch(damaged, project=None)
    taken = await rig.tickets.take("EMU", ["lane-1", "lane-2"], lease_s=60)
    assert [grant.batch_id for grant in taken.grants] == [other]
    assert taken.left_alone == [f"{damaged}:0"]
    await put(rig, f"batch:{damaged}", part, was)
    await rig.make_due(damaged)
    assert [grant.batch_id for grant in await rig.grants(2)] == [damaged]


@pytest.mark.parametrize(("part", "value"), DAMAGE, ids=str)
async def test_a_batch_with_a_damaged_record_is_named_by_commands_and_can_be_discarded(
    rig: StoreRig, part: str, value: bytes
) -> None:
    rig.checks_usage = False
    batch_id = await rig.submit(1, project="a")
    await put(rig, f"batch:{batch_id}", part, value)
    with pytest.raises(Unreadable, match=f"the record of batch {batch_id} cannot be read"):
        await rig.commands.cancel(batch_id, project="a")
    with pytest.raises(NotFound):
        await rig.commands.cancel(batch_id, project="another")
    await rig.commands.discard(batch_id)
    assert not await rig.redis.exists(rig.keys(Key.BATCH, batch_id))
    assert (await rig.tickets.take("EMU", ["lane"], lease_s=60)).grants == []


@pytest.mark.parametrize(("part", "value"), DAMAGE, ids=str)
async def test_a_batch_with_a_damaged_record_ends_no_restore(rig: StoreRig, part: str, value: bytes) -> None:
    rig.checks_usage = False
    batch_id = await rig.submit(1)
    batch, jobs = await recorded(rig.store, batch_id)
    was = await put(rig, f"batch:{batch_id}", part, value)
    assert await rig.recovery.restore(batch, jobs) == 0
    await rig.recovery.open_gate()
    await put(rig, f"batch:{batch_id}", part, was)
    assert await rig.run_all() == [batch_id]
