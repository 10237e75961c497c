"""The batches of projects that Redis has: their ids, newest first, and their records."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, Collection, Mapping, Sequence
from typing import cast
from uuid import UUID

from tweezer.model.errors import NewerRecord, Unreadable
from tweezer.model.messages import BatchDoc
from tweezer.store.keys import Key
from tweezer.store.records import OLDER, RECORD, BatchRecord, batch_record
from tweezer.store.scripts import Scripts, ask

_PAGE = 500
_FIELDS = ("v", "project", *RECORD, "fault", "tags", "children", "cancels", "rules", "parents")


class BatchIndex:
    """Reads the index of each project's batches, which contains exactly those that Redis has."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._redis = scripts.redis
        self._keys = scripts.keys

    async def newest(
        self, project: str, *, since_ms: int, until_ms: int | None, without: Collection[UUID] = ()
    ) -> list[tuple[int, UUID]]:
        """Return some batches that were created in this time, newest first; none at the end.

        Each is its creation in milliseconds since 1970, and its id. For the next page, continue at the last creation
        ``without`` the batches of that millisecond that were returned.
        """
        name, until = self._keys(Key.BATCHES, project), "+inf" if until_ms is None else until_ms
        most, start = _PAGE + len(without), 0
        while True:
            rows = await ask(
                self._redis.zrevrangebyscore(name, until, since_ms, start=start, num=most, withscores=True)
            )
            found: list[tuple[int, UUID]] = []
            for batch_id, created_ms in rows:
                with contextlib.suppress(ValueError):  # not an id: Tweezer did not add it
                    found.append((int(created_ms), UUID(batch_id.decode())))
            if found := [it for it in found if it[1] not in without][:_PAGE]:
                return found
            if len(rows) < most:
                return []
            start += most

    async def now_ms(self) -> int:
        """Return the time of Redis, by which batches are created, in milliseconds since 1970."""
        seconds, microseconds = await ask(self._redis.time())
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def add(self, ids: AsyncIterable[UUID]) -> None:
        """Add batches that are missing in the index, because an older release wrote them."""
        page: list[str] = []
        async for batch_id in ids:
            page.append(str(batch_id))
            if len(page) == _PAGE:
                await self._scripts.call("index_batches", batches=page)
                page = []
        await self._scripts.call("index_batches", batches=page)

    async def records(self, ids: Sequence[UUID]) -> list[BatchRecord]:
        """Return the batches that exist and can be read, in the order of the ids."""
        pipeline = self._redis.pipeline(transaction=False)
        for batch_id in ids:
            pipeline.hgetall(self._keys(Key.BATCH, batch_id))
        rows = cast(list[dict[bytes, bytes]], await ask(pipeline.execute()))
        named = ({name.decode(): value for name, value in row.items()} for row in rows)
        found = (_record(batch_id, row, None) for batch_id, row in zip(ids, named, strict=True))
        return [record for record in found if record is not None]

    async def repeated(self, ids: Sequence[UUID]) -> set[UUID]:
        """Return those of the batches that are known to be repeated by another batch."""
        pipeline = self._redis.pipeline(transaction=False)
        for batch_id in ids:
            pipeline.hget(self._keys(Key.BATCH, batch_id), "children")
        rows = cast(list[bytes | None], await ask(pipeline.execute()))
        return {batch_id for batch_id, children in zip(ids, rows, strict=True) if children}

    async def current(self, known: Mapping[UUID, BatchDoc]) -> dict[UUID, BatchRecord]:
        """Return the current records of batches whose docs are known, if they exist and can be read."""
        pipeline = self._redis.pipeline(transaction=False)
        for batch_id in known:
            pipeline.hmget(self._keys(Key.BATCH, batch_id), list(_FIELDS))
        rows = cast(list[list[bytes | None]], await ask(pipeline.execute()))
        found: dict[UUID, BatchRecord] = {}
        for (batch_id, doc), values in zip(known.items(), rows, strict=True):
            row = {name: value for name, value in zip(_FIELDS, values, strict=True) if value is not None}
            if row.get("v") != OLDER and (record := _record(batch_id, row, doc)) is not None:
                found[batch_id] = record
        older = [batch_id for batch_id, values in zip(known, rows, strict=True) if values[0] == OLDER]
        return found | {record.id: record for record in await self.records(older)}


def _record(batch_id: UUID, row: dict[str, bytes], doc: BatchDoc | None) -> BatchRecord | None:
    """Return the record; None for a batch that is gone, damaged, or being restored."""
    with contextlib.suppress(Unreadable, NewerRecord):
        return batch_record(batch_id, row, doc) if "project" in row else None
    return None
