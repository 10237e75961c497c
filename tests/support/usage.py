"""Compute what the counters of projects should be from everything that Redis holds."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

from tests.support.records import OLDER, VERSION, read_record

from tweezer.model.messages import stored_size
from tweezer.model.quotas import BATCH_BYTES, JOB_BYTES
from tweezer.store.connection import Store
from tweezer.store.keys import Key

Counts = dict[str, dict[str, int]]


async def expected_counts(store: Store) -> Counts:
    """Return the expected value by project and counter, without zeros."""
    found: dict[str, Counter[str]] = {}
    async for batch_id in store.snapshots.batch_ids():
        row = await read_record(store, batch_id)
        if row.get("v", b"").decode() in (VERSION, OLDER):
            of_project = found.setdefault(row["project"].decode(), Counter())
            of_project.update(await _of_batch(store, batch_id, row))
    return _without_zeros(found)


async def found_counts(store: Store) -> Counts:
    """Return the value by project and counter, without limits and without what only the ledger knows."""
    redis: Any = store.redis
    prefix = store.keys(Key.PROJECT, "")
    found = {}
    for name in await redis.keys(f"{prefix}*"):
        row = {field.decode(): int(value) for field, value in (await redis.hgetall(name)).items()}
        counters = {field: value for field, value in row.items() if field != "kept" and not field.startswith("max:")}
        assert row, f"{name} is empty"
        assert 0 not in counters.values(), f"{name} keeps a counter that is 0"
        found[name.decode().removeprefix(prefix)] = counters
    return _without_zeros(found)


async def _of_batch(store: Store, batch_id: UUID, row: dict[str, bytes]) -> dict[str, int]:
    redis: Any = store.redis
    results = await redis.hvals(store.keys(Key.RESULT, batch_id))
    counts = {"jobs": int(row.get("pending", 0)), "results": sum(map(stored_size, results)), "bytes": 0}
    if row["status"] in (b"P", b"R", b"S"):
        specs = await redis.hvals(store.keys(Key.SPEC, batch_id))
        counts["bytes"] = BATCH_BYTES + len(row["doc"]) + sum(JOB_BYTES + len(spec) for spec in specs)
    return counts


def _without_zeros(found: Any) -> Counts:
    kept = {project: {name: n for name, n in counters.items() if n} for project, counters in found.items()}
    return {project: counters for project, counters in kept.items() if counters}
