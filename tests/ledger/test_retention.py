"""Deleted batches are gone everywhere and for good; live or unrecorded ones are kept."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text
from tests.support.ledger_rig import LedgerRig

from tweezer.ledger.access.projects import create_project, set_retention
from tweezer.ledger.retention import delete_batch, delete_project, expire
from tweezer.model.errors import Conflict, NotFound
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import Result
from tweezer.store.results import Results, ResultsFolder

DAY_S = 86_400
_TABLES = ("jobs", "results", "batches", "sequences", "tags", "transitions", "deliveries")


def _age(bench: LedgerRig, *batch_ids: UUID, seconds: int) -> None:
    with bench.database.write() as connection:
        for batch_id in batch_ids:
            connection.execute(
                text("UPDATE batches SET ended_ms = ended_ms - :age WHERE id = :id"),
                {"age": seconds * 1000, "id": bench.database.id(batch_id)},
            )


async def _ended(bench: LedgerRig, project: str, jobs: int = 2) -> UUID:
    batch_id = await bench.rig.submit(jobs, project=project)
    await bench.rig.run_all()
    await bench.record()
    return batch_id


async def test_batches_past_the_retention_of_their_project_are_deleted(bench: LedgerRig) -> None:
    old, young, other = await _ended(bench, "a"), await _ended(bench, "a"), await _ended(bench, "b")
    _age(bench, old, other, seconds=2 * DAY_S)
    with bench.database.write() as connection:
        set_retention(connection, "a", DAY_S)
    assert await expire(bench.rig.store, bench.database, retention_s=0) == 1
    assert bench.batch(old) is None
    with pytest.raises(NotFound):
        await bench.rig.reader.batch(old, project=None)
    assert bench.batch(young) is not None
    assert bench.batch(other) is not None, "without a retention it is kept for ever"
    assert await expire(bench.rig.store, bench.database, retention_s=DAY_S) == 1
    assert bench.batch(other) is None
    bench.counts_add_up()


async def test_a_deleted_batch_leaves_no_row(bench: LedgerRig) -> None:
    batch_id = await _ended(bench, "a", jobs=3)
    await delete_batch(bench.rig.store, bench.database, batch_id, project="a")
    for table in _TABLES:
        assert bench.rows(f"SELECT count(*) FROM {table}") == [(0,)], table  # noqa: S608
    bench.counts_add_up()
    await bench.record()
    assert bench.batch(batch_id) is None


async def test_a_live_batch_is_not_deleted(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit(1)
    await bench.record()
    with pytest.raises(Conflict, match="has not ended"):
        await delete_batch(bench.rig.store, bench.database, batch_id, project="a")
    await bench.agree(batch_id)


async def test_a_batch_whose_last_events_are_not_recorded_is_not_deleted(bench: LedgerRig) -> None:
    batch_id = await _ended(bench, "a")
    with bench.database.write() as connection:
        connection.execute(text("UPDATE batches SET sequence_number = sequence_number - 1"))
    with pytest.raises(Conflict, match="try again"):
        await delete_batch(bench.rig.store, bench.database, batch_id, project=None)
    assert bench.batch(batch_id) is not None


async def test_deleting_a_foreign_batch_reports_not_found(bench: LedgerRig) -> None:
    batch_id = await _ended(bench, "a")
    with pytest.raises(NotFound) as foreign:
        await delete_batch(bench.rig.store, bench.database, batch_id, project="b")
    absent = new_batch_id()
    with pytest.raises(NotFound) as missing:
        await delete_batch(bench.rig.store, bench.database, absent, project="b")
    assert foreign.value.message.replace(str(batch_id), "") == missing.value.message.replace(str(absent), "")
    assert bench.batch(batch_id) is not None


async def test_large_results_are_deleted_with_their_batch(bench: LedgerRig, tmp_path: Path) -> None:
    batch_id = await _ended(bench, "a")
    results = Results(ResultsFolder(tmp_path), inline_max=1)
    await results.pack(batch_id, 0, Result(counter={"01": 1}))
    bench.rig.store.results = results
    assert _files(tmp_path)
    await delete_batch(bench.rig.store, bench.database, batch_id, project=None)
    assert not _files(tmp_path)


async def test_a_deleted_project_leaves_nothing_in_redis_or_ledger(bench: LedgerRig) -> None:
    with bench.database.write() as connection:
        create_project(connection, "lab", "lab")
    await bench.rig.submit(1, project="lab", idempotency_key="once")
    await bench.rig.run_all()
    for _ in range(3):
        await _ended(bench, "lab")
    kept = await _ended(bench, "other")
    assert await delete_project(bench.rig.store, bench.database, "lab") == 4
    assert [key async for key in bench.rig.redis.scan_iter(match="*lab*")] == []
    assert bench.rows("SELECT id FROM projects") == [("other",)]
    assert bench.rows("SELECT count(*) FROM hours WHERE project NOT IN (SELECT no FROM projects)") == [(0,)]
    await bench.agree(kept)
    with pytest.raises(NotFound):
        await delete_project(bench.rig.store, bench.database, "lab")


async def test_a_project_with_live_work_is_not_deleted(bench: LedgerRig) -> None:
    await _ended(bench, "a")
    await bench.rig.submit(1, project="a")
    await bench.record()
    with pytest.raises(Conflict, match="cancel them first"):
        await delete_project(bench.rig.store, bench.database, "a")
    assert bench.rows("SELECT count(*) FROM batches") == [(2,)]


def _files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.gz"))
