"""Lists of batches, and finding one by a short id or a name, from Redis and the ledger together."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, insert
from tests.support.ledger_rig import OPERATOR, LedgerRig
from tests.support.records import end_earlier

from tweezer.ledger import batch_reader
from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.batch_reader import BatchReader
from tweezer.ledger.queries.filters import BatchFilter
from tweezer.ledger.schema import batches, dead_letters
from tweezer.model.errors import Conflict, NotFound
from tweezer.model.ids import new_batch_id, short_id
from tweezer.model.lifecycle import BatchStatus
from tweezer.model.messages import OutcomeKind
from tweezer.store.keys import Key

CALLER = Principal("key", Role.USER, frozenset({"a"}))


@pytest.fixture
def reader(bench: LedgerRig) -> BatchReader:
    return BatchReader(bench.rig.store, bench.queries)


@pytest.fixture
def without_ledger(bench: LedgerRig) -> BatchReader:
    return BatchReader(bench.rig.store, None)


async def _list(reader: BatchReader, caller: Principal = CALLER, **wanted: Any) -> list[UUID]:
    return [record.id async for record in reader.batches(caller, BatchFilter(**wanted))]


async def _recorded_long_ago(bench: LedgerRig) -> None:
    """Record everything, and let the recorder's position be later than the creation of all batches."""
    await bench.record()
    for project in ("a", "b"):
        name = bench.rig.keys(Key.BATCHES, project)
        for member in await bench.rig.redis.zrange(name, 0, -1):
            await bench.rig.redis.zadd(name, {member: 1})


async def _forget(bench: LedgerRig, batch_id: UUID) -> None:
    await bench.record()
    await bench.rig.tickets.set_full("full", ttl_s=60)
    await end_earlier(bench.rig.store, batch_id, by_s=30)
    await bench.recorder._forgetter.forget()
    await bench.rig.redis.delete(bench.rig.keys(Key.FULL))
    assert not await bench.rig.redis.exists(bench.rig.keys(Key.BATCH, batch_id))


async def _history(bench: LedgerRig) -> list[UUID]:
    """Submit a batch that Redis forgets, one that is recorded, and one that is not; return them, newest first."""
    forgotten = await bench.rig.submit(about={"name": "old", "tags": ("x", "y")})
    await bench.rig.run_all()
    await _forget(bench, forgotten)
    recorded = await bench.rig.submit(about={"name": "kept", "tags": ("x",), "user": "ada"})
    await _recorded_long_ago(bench)
    fresh = await bench.rig.submit(about={"name": "new", "user": "bob"})
    return [fresh, recorded, forgotten]


async def test_a_list_has_each_batch_once_newest_first(bench: LedgerRig, reader: BatchReader) -> None:
    history = await _history(bench)
    await bench.rig.submit(project="b")
    assert await _list(reader) == history
    await bench.record()
    assert await _list(reader) == history


async def test_listed_records_are_current_and_have_no_sequence(bench: LedgerRig, reader: BatchReader) -> None:
    await _history(bench)
    grant = (await bench.rig.grants())[0]
    records = [record async for record in reader.batches(CALLER, BatchFilter())]
    for record in records:
        assert record.doc.sequence is None
        assert (await reader.batch(CALLER, record.id)).status is record.status
    assert BatchStatus.RUNNING in {record.status for record in records if record.id == grant.batch_id}


async def test_without_a_ledger_a_list_has_what_redis_has(bench: LedgerRig, without_ledger: BatchReader) -> None:
    fresh, recorded, _ = await _history(bench)
    assert set(await _list(without_ledger)) == {fresh, recorded}
    assert await _list(without_ledger, names=("new",)) == [fresh]


async def test_a_filter_sees_the_current_state(bench: LedgerRig, reader: BatchReader) -> None:
    fresh, recorded, forgotten = await _history(bench)
    await bench.rig.run_all()  # the ledger does not have these ends yet
    assert await _list(reader, statuses=(BatchStatus.DONE,)) == [fresh, recorded, forgotten]
    assert await _list(reader, statuses=(BatchStatus.PENDING, BatchStatus.RUNNING)) == []
    failed = await bench.rig.submit()
    await _recorded_long_ago(bench)
    await bench.rig.run(await bench.rig.take(), OutcomeKind.ERROR)
    await bench.rig.commands.set_tags(failed, ["changed"], project="a")
    assert await _list(reader, statuses=(BatchStatus.DONE,), created_from=(await bench.rig.batch(failed)).created) == [
        failed
    ]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"names": ("old",)}, [2]),
        ({"names": ("new", "kept")}, [0, 1]),
        ({"tags_all": ("x",)}, [1, 2]),
        ({"tags_all": ("x", "y")}, [2]),
        ({"users": ("ada",)}, [1]),
        ({"users": ("bob", "ada")}, [0, 1]),
        ({"devices": ("EMU",)}, [0, 1, 2]),
        ({"devices": ("OTHER",)}, []),
        ({"statuses": (BatchStatus.DONE,)}, [2]),
        ({"statuses": (BatchStatus.PENDING,)}, [0, 1]),
        ({"projects": ("b",)}, []),
    ],
)
async def test_filters_apply_wherever_a_batch_is(
    bench: LedgerRig, reader: BatchReader, wanted: dict[str, Any], expected: list[int]
) -> None:
    history = await _history(bench)
    assert await _list(reader, **wanted) == [history[at] for at in expected]


async def test_times_bound_a_list(bench: LedgerRig, reader: BatchReader) -> None:
    history = await _history(bench)
    created = {record.id: record.created async for record in reader.batches(CALLER, BatchFilter())}
    for batch_id in history:
        since = await _list(reader, created_from=created[batch_id])
        until = await _list(reader, created_to=created[batch_id])
        assert since == [it for it in history if created[it] >= created[batch_id]]
        assert until == [it for it in history if created[it] <= created[batch_id]]


async def test_long_lists_have_no_gaps_and_repetitions(
    bench: LedgerRig, reader: BatchReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_reader, "_PAGE", 3)
    recorded = [await bench.rig.submit() for _ in range(10)]
    await _recorded_long_ago(bench)
    fresh = [await bench.rig.submit() for _ in range(7)]
    found = await _list(reader)
    assert sorted(found[:7]) == sorted(fresh)
    assert sorted(found[7:]) == sorted(recorded)


async def test_an_operator_lists_all_projects(bench: LedgerRig, reader: BatchReader) -> None:
    batches = [await bench.rig.submit(project=project) for project in ("a", "b", "a")]
    await bench.record()
    batches += [await bench.rig.submit(project=project) for project in ("b", "a")]
    created = {batch_id: (await bench.rig.batch(batch_id)).created for batch_id in batches}
    found = await _list(reader, OPERATOR)
    assert sorted(found) == sorted(batches)
    assert [created[it] for it in found] == sorted(created.values(), reverse=True)


@pytest.fixture(params=["with the ledger", "without"])
def any_reader(request: pytest.FixtureRequest, bench: LedgerRig) -> BatchReader:
    return BatchReader(bench.rig.store, bench.queries if request.param == "with the ledger" else None)


async def test_a_batch_is_found_by_each_of_its_names(bench: LedgerRig, any_reader: BatchReader) -> None:
    older = await bench.rig.submit(about={"name": "first"})
    await _recorded_long_ago(bench)
    newer = await bench.rig.submit(about={"name": "a second / one"})
    for batch_id, name in ((older, "first"), (newer, "a second / one")):
        for text in (str(batch_id), batch_id.hex, short_id(batch_id), short_id(batch_id).upper(), name):
            assert await any_reader.find(CALLER, text) == batch_id
    assert await any_reader.find(CALLER, "@last") == newer
    assert await any_reader.find(CALLER, "@last~0") == newer
    assert await any_reader.find(CALLER, "@last~1") == older


async def test_a_forgotten_batch_is_found(bench: LedgerRig, reader: BatchReader) -> None:
    *_, forgotten = await _history(bench)
    assert await reader.find(CALLER, short_id(forgotten)) == forgotten
    assert await reader.find(CALLER, "old") == forgotten
    assert await reader.find(CALLER, "@last~2") == forgotten


@pytest.mark.parametrize(
    "text", ["@last~1", "@last~9999", "@first", "second", "First", "5m2q0xw8kd", "", "%", "\0", "\udc80", "x" * 300]
)
async def test_an_unknown_name_is_not_found(bench: LedgerRig, any_reader: BatchReader, text: str) -> None:
    await bench.rig.submit(about={"name": "first"})
    await bench.record()
    with pytest.raises(NotFound):
        await any_reader.find(CALLER, text)


async def test_a_batch_of_another_project_is_not_found(bench: LedgerRig, any_reader: BatchReader) -> None:
    recorded = await bench.rig.submit(project="b", about={"name": "theirs"})
    await _recorded_long_ago(bench)
    fresh = await bench.rig.submit(project="b", about={"name": "theirs, too"})
    for text in (short_id(recorded), short_id(fresh), "theirs", "theirs, too", "@last"):
        with pytest.raises(NotFound):
            await any_reader.find(CALLER, text)


async def test_a_name_of_several_batches_lists_them(bench: LedgerRig, any_reader: BatchReader) -> None:
    batches = [await bench.rig.submit(about={"name": "again"}) for _ in range(2)]
    await _recorded_long_ago(bench)
    batches.append(await bench.rig.submit(about={"name": "again"}))
    with pytest.raises(Conflict, match="'again' is not unique") as several:
        await any_reader.find(CALLER, "again")
    assert several.value.code == "ambiguous"
    for batch_id in batches:
        assert f"{batch_id}, 20" in several.value.message


async def test_equal_short_ids_are_ambiguous(bench: LedgerRig, any_reader: BatchReader) -> None:
    one = new_batch_id()
    other = UUID(int=one.int ^ 1 << 90)  # at another time
    await bench.rig.submit(batch_id=one, about={"name": "one"})
    await bench.record()
    await bench.rig.submit(batch_id=other)
    with pytest.raises(Conflict, match=f"{one}, .* UTC, one") as several:
        await any_reader.find(CALLER, short_id(one))
    assert str(other) in several.value.message
    assert await any_reader.find(CALLER, "one") == one


async def test_a_short_id_precedes_an_equal_name(bench: LedgerRig, any_reader: BatchReader) -> None:
    batch_id = await bench.rig.submit()
    other = await bench.rig.submit(about={"name": short_id(batch_id)})
    await bench.record()
    assert await any_reader.find(CALLER, short_id(batch_id)) == batch_id
    assert await any_reader.find(CALLER, short_id(other)) == other


async def test_the_last_batch_of_a_user_is_their_own(bench: LedgerRig, any_reader: BatchReader) -> None:
    hers = await bench.rig.submit(about={"user": "ada"})
    await _recorded_long_ago(bench)
    his = await bench.rig.submit(about={"user": "bob"})
    for user, batch_id in (("ada", hers), ("bob", his), (None, his)):
        caller = Principal("key", Role.USER, frozenset({"a"}), user)
        assert await any_reader.find(caller, "@last") == batch_id


async def test_a_deleted_batch_leaves_no_names(bench: LedgerRig, reader: BatchReader) -> None:
    from tweezer.ledger.retention import delete_batch

    batch_id = await bench.rig.submit(about={"name": "gone"})
    await bench.rig.run_all()
    await bench.record()
    await delete_batch(bench.rig.store, bench.database, batch_id, project="a")
    assert bench.rows("SELECT * FROM batch_names") == []
    assert await _list(reader) == []


async def test_a_restored_batch_is_in_the_index(bench: LedgerRig, without_ledger: BatchReader) -> None:
    batch_id = await bench.rig.submit(about={"name": "lost"})
    await bench.record()
    names = [name async for name in bench.rig.redis.scan_iter(match=f"{bench.rig.keys.prefix}batch*")]
    await bench.rig.redis.delete(*names, bench.rig.keys(Key.EVENTS))
    assert await _list(without_ledger) == []
    await bench.recorder._restore()
    assert await without_ledger.find(CALLER, "lost") == batch_id


async def test_a_batch_that_cannot_be_recorded_is_listed_and_found(bench: LedgerRig, reader: BatchReader) -> None:
    parked = await bench.rig.submit(about={"name": "parked"})
    theirs = await bench.rig.submit(project="b")
    await _recorded_long_ago(bench)
    letter = {"consumer": "recorder", "error": "", "position": 1, "last_position": 1, "waiting": 0, "size": 0}
    with bench.database.write() as connection:
        connection.execute(delete(batches).where(batches.c.id.in_([parked, theirs])))
        for origin, batch_id in (("1", parked), ("2", parked), ("3", theirs), ("4", None), ("5", new_batch_id())):
            row = letter | {"origin": origin, "batch": batch_id, "version": "0", "created_ms": 1}
            connection.execute(insert(dead_letters).values(row))
    assert await _list(reader) == [parked]
    assert await reader.find(CALLER, "parked") == parked
