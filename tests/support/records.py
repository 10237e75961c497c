"""Reads and changes the records of batches as they are in Redis, and makes some."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import RECORD_VERSION, BatchDoc, JobSpec, Priority
from tweezer.store import records
from tweezer.store.connection import Store
from tweezer.store.keys import Key
from tweezer.store.records import NO_TIMES, RECORD, RECORD_VALUES, BatchRecord, JobRecord, unpack_record

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
        packed = msgspec.json.decode(b"[%b]" % (await redis.hget(name, part) or NO_TIMES))
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


BATCH_ID = UUID("01a22a95-f4fa-8e78-bcf7-757a82000000")
BEGAN = datetime(2026, 11, 30, 8, 0, tzinfo=UTC)


def make_batch(counts: dict[JobStatus, int] | None = None, **fields: Any) -> BatchRecord:
    """Return the record of a batch on EMU_FREE with these jobs, else with three DONE ones."""
    counts = dict.fromkeys(JobStatus, 0) | (counts or {JobStatus.DONE: 3})
    usual: dict[str, Any] = {
        "id": BATCH_ID,
        "project": "default",
        "device": "EMU_FREE",
        "priority": Priority.MEDIUM,
        "status": BatchStatus.DONE,
        "open": False,
        "created": BEGAN,
        "updated": BEGAN,
        "jobs": sum(counts.values()),
        "counts": counts,
        "sequence_number": 1,
        "doc": BatchDoc("EMU_FREE", "{}"),
    }
    return BatchRecord(**usual | fields)


def make_job(index: int = 0, status: JobStatus = JobStatus.DONE, **fields: Any) -> JobRecord:
    """Return the record of a job of the batch of :func:`make_batch`."""
    spec = fields.pop("spec", JobSpec(runs=500, variables={"omega": 6.5}))
    return JobRecord(BATCH_ID, index, "default", status, spec, BEGAN, **fields)
