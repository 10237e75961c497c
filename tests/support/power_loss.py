"""Simulate a Redis that loses its last writes: go back to an earlier state, and read what a ledger would have."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.support.records import read_record
from tests.support.redis_users import RedisServer

from tweezer.model.lifecycle import BATCH_BY_LETTER
from tweezer.store.connection import Store
from tweezer.store.keys import Key
from tweezer.store.recovery import RestoredBatch, RestoredJob

Checkpoint = dict[bytes, tuple[bytes, int]]
Recorded = tuple[RestoredBatch, list[RestoredJob]]


async def checkpoint(store: Store) -> Checkpoint:
    """Return all keys of the store with their values, as if they were now on the disk."""
    redis: Any = store.redis
    names = await redis.keys(f"{store.keys.prefix}*")
    return {name: (await redis.dump(name), max(await redis.pttl(name), 0)) for name in names}


async def fall_back(store: Store, to: Checkpoint) -> None:
    """Replace all keys of Redis with those of the checkpoint."""
    redis: Any = store.redis
    for name in await redis.keys(f"{store.keys.prefix}*"):
        await redis.delete(name)
    for name, (dumped, ttl_ms) in to.items():
        await redis.restore(name, ttl_ms, dumped)


async def recorded(store: Store, batch_id: UUID) -> Recorded:
    """Return the batch as an up-to-date ledger would return it."""
    redis: Any = store.redis

    async def column(key: Key) -> dict[int, bytes]:
        return {int(index): value for index, value in (await redis.hgetall(store.keys(key, batch_id))).items()}

    row = await read_record(store, batch_id)
    fields = {name: value for name, value in row.items() if not name.startswith("t:")}
    specs, states = await column(Key.SPEC), await column(Key.STATE)
    results, faults = await column(Key.RESULT), await column(Key.FAULT)
    jobs = [
        RestoredJob(
            index,
            specs[index],
            states[index].decode() if index in states else None,
            results.get(index),
            faults.get(index),
        )
        for index in range(int(row.get("jobs", b"0")))
    ]
    return RestoredBatch(batch_id, int(row["seq"]), BATCH_BY_LETTER[row["status"].decode()], fields), jobs


class AppendOnlyFile:
    """Redis' append-only file, whose end can be cut off. The server must have automatic rewrites switched off."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._sizes: list[tuple[float, int]] = []
        self._kept = 0

    def look(self) -> None:
        """Record the current length of the file."""
        self._sizes.append((time.monotonic(), self._path().stat().st_size))

    def keep(self) -> None:
        """Protect the current content from every later restart."""
        self._kept = self._path().stat().st_size

    def restart(self, *, losing_s: float = 0.0) -> None:
        """Kill Redis and start it without the writes of the last seconds, up to a length that ``look`` recorded."""
        self._server.kill()
        if losing_s:
            before = time.monotonic() - losing_s
            os.truncate(self._path(), max([self._kept, *(size for at, size in self._sizes if at <= before)]))
            self._sizes.clear()
        self._server.restart()

    def _path(self) -> Path:
        (path,) = self._server.data.rglob("*.incr.aof")
        return path
