"""Reads and changes the records of batches as they are in Redis."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec

from tweezer.model.messages import RECORD_VERSION
from tweezer.store import records
from tweezer.store.connection import Store
from tweezer.store.keys import Key
from tweezer.store.records import RECORD, RECORD_VALUES, unpack_record

VERSION, OLDER, NEWER = str(RECORD_VERSION), records.OLDER.decode(), str(RECORD_VERSION + 1)


async def read_record(store: Store, batch_id: UUID | str) -> dict[str, bytes]:
    """Return the fields of the batch's hash, with the values of its record as fields."""
    row: Any = await store.redis.hgetall(store.keys(Key.BATCH, batch_id))  # type: ignore[misc]
    return unpack_record({name.decode(): value for name, value in row.items()})


async def change_record(store: Store, batch_id: UUID | str, **values: int) -> None:
    """Overwrite values of the batch's record."""
    redis: Any = store.redis
    name = store.keys(Key.BATCH, batch_id)
    for part, names in RECORD.items():
        packed = msgspec.json.decode(b"[%b]" % await redis.hget(name, part))
        packed += [0] * (len(names) - len(packed))
        changed = [values.get(field, value) for field, value in zip(names, packed, strict=True)]
        await redis.hset(name, part, msgspec.json.encode(changed)[1:-1])


async def end_earlier(store: Store, batch_id: UUID | str, *, by_s: float) -> None:
    """Let an ended batch have ended earlier."""
    redis: Any = store.redis
    ended = int((await read_record(store, batch_id))["ended"]) - round(1000 * by_s)
    await change_record(store, batch_id, ended=ended)
    await redis.zadd(store.keys(Key.ENDED), {str(batch_id): ended})


def drop_update(row: dict[bytes, bytes]) -> None:
    """Remove the time of the last change from a batch's hash; do nothing to others."""
    if times := row.get(b"times"):
        row[b"times"] = times.partition(b",")[2]


async def make_older(store: Store, batch_id: UUID | str) -> None:
    """Write the batch's record as the previous version did: each value in a field."""
    redis: Any = store.redis
    name = store.keys(Key.BATCH, batch_id)
    fields = {field: value for field, value in (await read_record(store, batch_id)).items() if field in RECORD_VALUES}
    await redis.hdel(name, *RECORD)
    await redis.hset(name, mapping={**fields, "v": OLDER})
