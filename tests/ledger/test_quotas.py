"""What the ledger publishes to Redis for quotas: limits of projects, and bytes of results that Redis has forgotten."""

from __future__ import annotations

from uuid import UUID

import pytest
from tests.support.ledger_rig import LedgerRig
from tests.support.power_loss import checkpoint, fall_back
from tests.support.usage import expected_counts, found_counts

from tweezer.ledger.access.projects import find_project, set_limits
from tweezer.ledger.quotas import QuotaPublisher
from tweezer.ledger.retention import delete_batch, delete_project
from tweezer.model.errors import InvalidInput, NotFound
from tweezer.model.quotas import QuotaExceeded
from tweezer.store.keys import Key


async def _ended(bench: LedgerRig, project: str = "a") -> tuple[UUID, int]:
    """Record a batch that has ended; return it and the bytes of its results."""
    before = await _results(bench, project)
    batch_id = await bench.rig.submit(2, project=project)
    await bench.rig.run_all()
    await bench.record()
    return batch_id, await _results(bench, project) - before


async def _results(bench: LedgerRig, project: str = "a") -> int:
    usage = await bench.rig.store.quotas.usage(project)
    return next(it.used for it in usage if it.quota == "result_bytes")


async def _look(bench: LedgerRig) -> None:
    """Do what a recorder does after it has recorded everything."""
    await QuotaPublisher(bench.rig.store, bench.database).look()


async def test_a_deleted_batch_frees_the_bytes_of_its_results(bench: LedgerRig) -> None:
    first, first_size = await _ended(bench)
    second, second_size = await _ended(bench)
    await bench.rig.forget(first)
    assert await _results(bench) == first_size + second_size
    await delete_batch(bench.rig.store, bench.database, first, project="a")
    assert await _results(bench) == second_size
    await delete_batch(bench.rig.store, bench.database, second, project="a")
    assert await _results(bench) == 0
    assert await bench.rig.redis.exists(bench.rig.keys(Key.PROJECT, "a")) == 0


async def test_a_redis_that_lost_everything_gets_the_bytes_that_the_ledger_keeps(bench: LedgerRig) -> None:
    empty = await checkpoint(bench.rig.store)
    batch_id, size = await _ended(bench)
    await _look(bench)
    await bench.rig.forget(batch_id)
    await fall_back(bench.rig.store, empty)
    assert await _results(bench) == 0
    await _look(bench)
    assert await _results(bench) == size


async def test_results_that_redis_still_has_are_not_counted_twice(bench: LedgerRig) -> None:
    _, first = await _ended(bench)
    forgotten, second = await _ended(bench)
    _, other = await _ended(bench, "b")
    await bench.rig.forget(forgotten)
    await bench.rig.redis.hset(bench.rig.keys(Key.PROJECT, "a"), "kept", 5)
    await bench.rig.store.quotas.forget_count()
    await _look(bench)
    assert (await _results(bench, "a"), await _results(bench, "b")) == (first + second, other)
    assert await found_counts(bench.rig.store) == await expected_counts(bench.rig.store)


async def test_results_are_not_counted_twice(bench: LedgerRig) -> None:
    await _ended(bench)
    await _look(bench)
    await bench.rig.redis.hset(bench.rig.keys(Key.PROJECT, "a"), "kept", 5)
    await _look(bench)
    assert await bench.rig.redis.hget(bench.rig.keys(Key.PROJECT, "a"), "kept") == b"5"


async def test_a_project_has_its_own_limit_and_others_the_default(bench: LedgerRig) -> None:
    await _ended(bench, "a")
    with bench.database.write() as connection:
        assert set_limits(connection, "a", {"queued_jobs": 1}).limits == {"queued_jobs": 1}
    await _look(bench)
    with pytest.raises(QuotaExceeded, match="project a may have 1 queued jobs"):
        await bench.rig.submit(2, project="a")
    await bench.rig.submit(2, project="b")
    usage = {it.quota: it for it in await bench.rig.store.quotas.usage("a")}
    assert (usage["queued_jobs"].limit, usage["queued_jobs"].own, usage["queued_bytes"].own) == (1, True, False)


async def test_limits_that_redis_lost_or_kept_too_long_are_published_again(bench: LedgerRig) -> None:
    await _ended(bench, "a")
    await _ended(bench, "b")
    with bench.database.write() as connection:
        set_limits(connection, "a", {"queued_jobs": 0, "queued_bytes": 5000})
    await bench.rig.store.quotas.set_limits({"b": {"queued_jobs": 1}})
    await _look(bench)
    assert await _limits(bench, "a") == {b"max:queued_jobs": b"0", b"max:queued_bytes": b"5000"}
    assert await _limits(bench, "b") == {}


async def test_a_limit_can_be_removed(bench: LedgerRig) -> None:
    await _ended(bench, "a")
    with bench.database.write() as connection:
        set_limits(connection, "a", {"queued_jobs": 1, "result_bytes": 7})
        assert set_limits(connection, "a", {"queued_jobs": None}).limits == {"result_bytes": 7}
        assert find_project(connection, "a").limits == {"result_bytes": 7}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"queued_jobs": -1}, "queued_jobs: must be between 0"), ({"atoms": 5}, "quota: atoms is not a quota")],
)
async def test_a_wrong_limit_is_refused_and_changes_nothing(
    bench: LedgerRig, changes: dict[str, int], problem: str
) -> None:
    await _ended(bench, "a")
    with pytest.raises(InvalidInput, match=problem), bench.database.write() as connection:
        set_limits(connection, "a", {"result_bytes": 7} | changes)
    with bench.database.read() as connection:
        assert find_project(connection, "a").limits == {}


async def test_limits_of_an_unknown_project_are_refused(bench: LedgerRig) -> None:
    with pytest.raises(NotFound), bench.database.write() as connection:
        set_limits(connection, "nobody", {"queued_jobs": 1})


async def test_a_deleted_project_leaves_no_counter_and_no_limit(bench: LedgerRig) -> None:
    await _ended(bench, "a")
    with bench.database.write() as connection:
        set_limits(connection, "a", {"queued_jobs": 9})
    await _look(bench)
    await delete_project(bench.rig.store, bench.database, "a")
    assert await bench.rig.redis.exists(bench.rig.keys(Key.PROJECT, "a")) == 0
    assert bench.rows("SELECT count(*) FROM limits") == [(0,)]
    assert bench.rows("SELECT count(*) FROM result_sizes") == [(0,)]


async def _limits(bench: LedgerRig, project: str) -> dict[bytes, bytes]:
    row = await bench.rig.redis.hgetall(bench.rig.keys(Key.PROJECT, project))
    return {name: value for name, value in row.items() if name.startswith(b"max:")}
