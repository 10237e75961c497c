"""The index of a project's batches: exactly those that Redis has, newest first."""

from __future__ import annotations

from uuid import UUID

import pytest
from tests.support.store_rig import StoreRig

from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus
from tweezer.model.messages import BatchDoc
from tweezer.store import batch_index
from tweezer.store.keys import Key


async def _newest(rig: StoreRig, project: str = "a", *, since_ms: int = 0, until_ms: int | None = None) -> list[UUID]:
    found = await rig.store.index.newest(project, since_ms=since_ms, until_ms=until_ms)
    return [batch_id for _, batch_id in found]


async def test_the_index_has_the_batches_of_one_project_newest_first(rig: StoreRig) -> None:
    batches = [await rig.submit() for _ in range(3)]
    others = [await rig.submit(project="b")]
    created = {batch_id: (await rig.batch(batch_id)).created for batch_id in batches}
    assert sorted(batches, key=lambda it: (created[it], it), reverse=True) == await _newest(rig)
    assert await _newest(rig, "b") == others
    assert await _newest(rig, "c") == []


async def test_a_refused_submit_is_not_in_the_index(rig: StoreRig) -> None:
    batch_id = await rig.submit()
    assert await rig.submit(batch_id=batch_id) == batch_id
    await rig.tickets.set_full("full", ttl_s=60)
    with pytest.raises(Exception, match="full"):
        await rig.submit()
    assert await _newest(rig) == [batch_id]


async def test_a_forgotten_or_discarded_batch_leaves_the_index(rig: StoreRig) -> None:
    forgotten, discarded, kept = [await rig.submit() for _ in range(3)]
    await rig.run(await rig.take())
    assert await rig.forget(forgotten)
    await rig.commands.discard(discarded)
    assert await _newest(rig) == [kept]
    await rig.commands.discard(kept)
    assert await rig.redis.exists(rig.keys(Key.BATCHES, "a")) == 0


async def test_pages_continue_without_gaps_and_repetitions(rig: StoreRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_index, "_PAGE", 2)
    name, times = rig.keys(Key.BATCHES, "a"), (1, 2, 2, 2, 2, 3)
    ids = [new_batch_id() for _ in times]
    await rig.redis.zadd(name, {str(it): at for it, at in zip(ids, times, strict=True)} | {"junk": 4, b"\xff": 4})
    found: list[tuple[int, UUID]] = []
    until_ms: int | None = None
    while True:
        without = [it for at, it in found if at == until_ms]
        page = await rig.store.index.newest("a", since_ms=0, until_ms=until_ms, without=without)
        found += page
        if not page:
            break
        until_ms = found[-1][0]
    assert found == sorted(zip(times, ids, strict=True), reverse=True)
    assert await _newest(rig, since_ms=3) == [ids[-1]]
    assert await _newest(rig, until_ms=1) == [ids[0]]
    await rig.redis.delete(name)


async def test_records_are_those_of_the_reader(rig: StoreRig) -> None:
    batches = [await rig.submit(about={"name": "one", "tags": ("x",)}), await rig.submit(2, not_before=None)]
    await rig.run(await rig.take())
    await rig.commands.set_tags(batches[1], ["y"], project="a")
    expected = [await rig.batch(batch_id) for batch_id in batches]
    assert await rig.store.index.records([batches[0], new_batch_id(), batches[1]]) == expected
    docs = {record.id: record.doc for record in expected}
    assert await rig.store.index.current(docs) == {record.id: record for record in expected}
    assert await rig.store.index.records([]) == []
    assert await rig.store.index.current({}) == {}


async def test_a_damaged_record_does_not_hide_the_others(rig: StoreRig) -> None:
    rig.checks_usage = False
    damaged, good = await rig.submit(), await rig.submit()
    await rig.redis.hset(rig.keys(Key.BATCH, damaged), "now", "junk")
    assert [record.id for record in await rig.store.index.records([damaged, good])] == [good]
    docs = dict.fromkeys((damaged, good), BatchDoc("EMU"))
    current = await rig.store.index.current(docs)
    assert [(record.id, record.status) for record in current.values()] == [(good, BatchStatus.PENDING)]
    await rig.commands.discard(damaged)


async def test_batches_of_an_older_release_are_added(rig: StoreRig) -> None:
    batches = [await rig.submit() for _ in range(3)] + [await rig.submit(project="b")]
    before = {project: await rig.store.index.newest(project, since_ms=0, until_ms=None) for project in "ab"}
    await rig.redis.delete(rig.keys(Key.BATCHES, "a"), rig.keys(Key.BATCHES, "b"))
    kept = await rig.submit()
    await rig.store.index.add(rig.store.snapshots.batch_ids())
    await rig.store.index.add(rig.store.snapshots.batch_ids())
    assert set(await _newest(rig)) == {*batches[:3], kept}
    after = {project: await rig.store.index.newest(project, since_ms=0, until_ms=None) for project in "ab"}
    assert [it for it in after["a"] if it[1] != kept] == before["a"]
    assert after["b"] == before["b"]


async def test_a_batch_that_is_gone_is_not_added(rig: StoreRig) -> None:
    await rig.store.scripts.call("index_batches", batches=[str(new_batch_id())])
    assert not await rig.redis.exists(rig.keys(Key.BATCHES, "a"))
