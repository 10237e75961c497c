"""Reads the raw records of many batches in a few round trips, for the recorder and the couriers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any
from uuid import UUID

import msgspec

from tweezer.model.errors import NewerRecord, Unreadable
from tweezer.model.messages import RECORD_VERSION
from tweezer.store.keys import Key
from tweezer.store.records import DAMAGED, OLDER, RECORD, RECORD_VALUES, unpack_record
from tweezer.store.scripts import Scripts, split_pages, translating

_FIELDS = ("v", "project", *RECORD, "fault", "tags", "cancels", "paused", "rules", "parents")
_PARTIAL = b"0"  # version of a batch that is being restored
_VERSION = str(RECORD_VERSION).encode()
_PAGE = 500  # fields per command

_WITH_RESULT, _WITH_FAULT = b"DC", b"EC"


class SnapshotRequest(msgspec.Struct, frozen=True):
    """What to read of a batch.

    Attributes:
        known: The number of jobs that the reader already has; None if it does not have the batch. The spec and state
            of all further jobs are read.
        touched: Indices of other jobs whose state may have changed.
        doc: Read the batch's doc even if the reader has the batch.
        specs: Read the specs of the touched jobs, too.
    """

    batch_id: UUID
    known: int | None
    touched: Collection[int]
    doc: bool = False
    specs: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the batch record to read."""
        return (*_FIELDS, "doc") if self.doc or self.known is None else _FIELDS


class Snapshot(msgspec.Struct):
    """The state of a batch and some of its jobs at the time of reading; columns of jobs are by index.

    Attributes:
        fields: Fields of the batch record.
        doc: The batch's doc, if it was new to the reader or requested.
        specs: Specs of the jobs that were new to the reader or requested.
        states: States of the new and the touched jobs that have one.
        results: Results of these jobs, if they have ended.
        faults: Faults of these jobs, if they have ended.
    """

    batch_id: UUID
    fields: dict[str, bytes]
    jobs: int
    doc: bytes | None
    specs: dict[int, bytes] = {}
    states: dict[int, bytes] = {}
    results: dict[int, bytes] = {}
    faults: dict[int, bytes] = {}

    @property
    def sequence_number(self) -> int:
        """The number of the batch's last event."""
        return int(self.fields["seq"])


class Snapshots:
    """Takes snapshots of batches."""

    def __init__(self, scripts: Scripts) -> None:
        self._redis = scripts.redis
        self._keys = scripts.keys

    async def batch_ids(self) -> AsyncIterator[UUID]:
        """Yield the ids of all batches; an id may appear twice."""
        name = self._keys(Key.BATCH, "")
        with translating():
            async for found in self._redis.scan_iter(match=f"{name}*", count=1000):
                rest = found.decode().removeprefix(name)
                if ":" not in rest:
                    with contextlib.suppress(ValueError):  # not one of Tweezer's keys
                        yield UUID(rest)

    async def take(self, wanted: Sequence[SnapshotRequest]) -> dict[UUID, Snapshot]:
        """Return snapshots of the batches that Redis still has, without jobs that do not exist.

        Raises NewerRecord, Unreadable, Unavailable.
        """
        found: dict[UUID, Snapshot] = {}
        records = await self._ask([(Key.BATCH, want.batch_id, want.fields) for want in wanted])
        for want, values in zip(wanted, records, strict=True):
            if values[0] not in (None, _PARTIAL):
                if values[0] not in (_VERSION, OLDER):
                    raise NewerRecord(want.batch_id, RECORD_VERSION, values[0].decode(errors="replace"))
                fields = {name: value for name, value in zip(want.fields, values, strict=True) if value is not None}
                found[want.batch_id] = Snapshot(want.batch_id, fields, 0, fields.pop("doc", None))
        await self._unpack(found)
        calls: list[tuple[Key, UUID, Sequence[Any]]] = []
        columns: list[tuple[dict[int, bytes], Sequence[int]]] = []

        def read(column: Key, snapshot: Snapshot, into: dict[int, bytes], indices: Sequence[int]) -> None:
            for page in split_pages(indices, _PAGE):
                calls.append((column, snapshot.batch_id, page))
                columns.append((into, page))

        for want in wanted:
            snapshot = found.get(want.batch_id)
            if snapshot is not None:
                fresh = range(want.known or 0, snapshot.jobs)
                touched = [index for index in want.touched if index < fresh.start]
                read(Key.SPEC, snapshot, snapshot.specs, fresh)
                if want.specs:
                    read(Key.SPEC, snapshot, snapshot.specs, touched)
                read(Key.STATE, snapshot, snapshot.states, touched)
                read(Key.STATE, snapshot, snapshot.states, fresh)
        await self._fill(calls, columns)
        calls, columns = [], []
        for snapshot in found.values():
            over = [index for index, state in snapshot.states.items() if state[:1] in _WITH_RESULT]
            read(Key.RESULT, snapshot, snapshot.results, over)
            over = [index for index, state in snapshot.states.items() if state[:1] in _WITH_FAULT]
            read(Key.FAULT, snapshot, snapshot.faults, over)
        await self._fill(calls, columns)
        return found

    async def _unpack(self, found: dict[UUID, Snapshot]) -> None:
        """Replace the record in the fields by its values. Raises Unreadable."""
        older = [it for it in found.values() if it.fields["v"] == OLDER]
        names = ("v", *RECORD, *RECORD_VALUES)  # it may have been rewritten since
        rows = await self._ask([(Key.BATCH, it.batch_id, names) for it in older])
        for snapshot, values in zip(older, rows, strict=True):
            named = zip(names, values, strict=True)
            snapshot.fields.update((name, value) for name, value in named if value is not None)
            if values[0] is None:
                del found[snapshot.batch_id]
        for snapshot in found.values():
            try:
                snapshot.fields = unpack_record(snapshot.fields)
                snapshot.jobs = int(snapshot.fields.get("jobs", b"0"))
            except DAMAGED as error:
                raise Unreadable(f"the record of batch {snapshot.batch_id} cannot be read: {error}") from error

    async def _fill(
        self,
        calls: Sequence[tuple[Key, UUID, Sequence[Any]]],
        columns: Sequence[tuple[dict[int, bytes], Sequence[int]]],
    ) -> None:
        for (into, page), values in zip(columns, await self._ask(calls), strict=True):
            into.update((index, value) for index, value in zip(page, values, strict=True) if value is not None)

    async def _ask(self, calls: Sequence[tuple[Key, UUID, Sequence[Any]]]) -> list[list[Any]]:
        if not calls:
            return []
        commands = [("HMGET", self._keys(column, batch_id), *fields) for column, batch_id, fields in calls]
        with translating():
            if len(commands) == 1:
                return [await self._redis.execute_command(*commands[0])]
            pipeline = self._redis.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            answer: list[list[Any]] = await pipeline.execute()
        return answer
