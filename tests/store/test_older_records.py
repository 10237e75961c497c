"""Batches whose record was written by the previous version: they are read, and rewritten by their next change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from tests.support.power_loss import checkpoint, fall_back, recorded
from tests.support.records import OLDER, VERSION, make_older, read_record
from tests.support.store_rig import StoreRig

from tweezer.model.lifecycle import BatchStatus
from tweezer.model.messages import JobSpec, OutcomeKind, Priority
from tweezer.store.keys import Key
from tweezer.store.records import RECORD, RECORD_VALUES
from tweezer.store.snapshots import SnapshotRequest

Change = Callable[[StoreRig, UUID], Awaitable[Any]]
CHANGES: dict[str, Change] = {
    "add_jobs": lambda rig, batch_id: rig.commands.add_jobs(batch_id, [JobSpec(runs=10)], project="a"),
    "close": lambda rig, batch_id: rig.commands.close(batch_id, project="a"),
    "cancel": lambda rig, batch_id: rig.commands.cancel(batch_id, project="a"),
    "pause": lambda rig, batch_id: rig.commands.pause(batch_id, project="a"),
    "set_tags": lambda rig, batch_id: rig.commands.set_tags(batch_id, ["new"], project="a"),
    "set_priority": lambda rig, batch_id: rig.commands.set_priority(batch_id, Priority.LOW, project="a"),
    "take": lambda rig, _: rig.take(),
}


async def hash_of(rig: StoreRig, batch_id: UUID) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = await rig.redis.hgetall(rig.keys(Key.BATCH, batch_id))
    return found


async def test_an_older_record_reads_the_same(rig: StoreRig) -> None:
    batch_id = await rig.submit(3, open=True, project="a")
    await rig.settle(await rig.take(), {0: OutcomeKind.DONE}, want=1)
    wanted = [SnapshotRequest(batch_id, None, ())]
    before = await rig.batch(batch_id), (await rig.store.snapshots.take(wanted))[batch_id]
    await make_older(rig.store, batch_id)
    batch, snapshot = await rig.batch(batch_id), (await rig.store.snapshots.take(wanted))[batch_id]
    assert batch == before[0]
    assert snapshot.fields == before[1].fields
    assert (snapshot.jobs, snapshot.doc, snapshot.states) == (before[1].jobs, before[1].doc, before[1].states)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_rewrites_an_older_record(rig: StoreRig, change: str) -> None:
    batch_id = await rig.submit(2, open=True, project="a")
    reference = await rig.submit(2, open=True, project="a")
    await make_older(rig.store, batch_id)
    assert (await hash_of(rig, batch_id))[b"v"].decode() == OLDER
    await CHANGES[change](rig, batch_id)
    row = await hash_of(rig, batch_id)
    assert row[b"v"].decode() == VERSION
    assert {name.decode() for name in row}.isdisjoint(RECORD_VALUES)
    assert {name.encode() for name in RECORD} <= row.keys()
    if change != "take":
        await CHANGES[change](rig, reference)
        ours, theirs = await read_record(rig.store, batch_id), await read_record(rig.store, reference)
        differing = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
        assert differing <= {"created", "updated", "ended", "cancels", "paused"}


async def test_an_older_batch_runs_to_its_end(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    await make_older(rig.store, batch_id)
    assert await rig.run_all() == [batch_id]
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE
    assert await rig.forget(batch_id)


async def test_a_lost_batch_is_restored_from_an_older_ledger_entry(rig: StoreRig) -> None:
    before = await checkpoint(rig.store)
    batch_id = await rig.submit(3)
    await rig.settle(await rig.take(), {0: OutcomeKind.DONE}, want=1)
    await make_older(rig.store, batch_id)
    batch, jobs = await recorded(rig.store, batch_id)
    assert batch.fields["v"].decode() == OLDER
    await fall_back(rig.store, before)
    assert await rig.recovery.restore(batch, jobs) == 0
    assert (await hash_of(rig, batch_id))[b"v"].decode() == VERSION
    await rig.recovery.open_gate()
    assert await rig.run_all() == [batch_id]


async def test_a_snapshot_of_an_older_record_that_is_rewritten_meanwhile(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await rig.submit(2)
    await make_older(rig.store, batch_id)
    ask, grants = rig.store.snapshots._ask, []

    async def ask_and_take(commands: Any) -> Any:
        found = await ask(commands)
        grants.extend(await rig.grants())
        return found

    monkeypatch.setattr(rig.store.snapshots, "_ask", ask_and_take)
    snapshot = (await rig.store.snapshots.take([SnapshotRequest(batch_id, None, ())]))[batch_id]
    assert grants
    assert (snapshot.jobs, snapshot.fields["status"], len(snapshot.specs)) == (2, b"R", 2)


async def test_a_restore_that_the_previous_version_began_is_finished(rig: StoreRig) -> None:
    before = await checkpoint(rig.store)
    batch_id = await rig.submit(3)
    batch, jobs = await recorded(rig.store, batch_id)
    await fall_back(rig.store, before)
    assert await rig.recovery.restore(batch, jobs[:1]) == 2
    await make_older(rig.store, batch_id)
    await rig.redis.hset(rig.keys(Key.BATCH, batch_id), "v", "0")
    assert await rig.recovery.restore(batch, jobs) == 0
    await rig.recovery.open_gate()
    assert await rig.run_all() == [batch_id]
