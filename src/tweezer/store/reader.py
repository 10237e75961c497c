"""Reads batches, jobs, results, devices and workers."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast
from uuid import UUID

from redis import exceptions as redis_errors

from tweezer.model.errors import NotFound, ResultUnavailable
from tweezer.model.ids import split_job_id
from tweezer.model.messages import Result
from tweezer.model.windows import Window
from tweezer.store.keys import KINDS, Key
from tweezer.store.records import (
    DEVICE_FIELDS,
    BatchRecord,
    DeviceRecord,
    JobRecord,
    Lease,
    TicketRef,
    WorkerRecord,
    batch_record,
    device_record,
    job_record,
    moment,
    window_record,
)
from tweezer.store.results import Results
from tweezer.store.scripts import Scripts, translating

T = TypeVar("T")

_PAGE = 500  # jobs read in one go


class Reader:
    """Reads what Redis holds. A foreign project's things are as if they did not exist."""

    def __init__(self, scripts: Scripts, results: Results) -> None:
        self._redis = scripts.redis
        self._keys = scripts.keys
        self._results = results

    async def batch(self, batch_id: UUID, *, project: str | None) -> BatchRecord:
        """The batch; raises NotFound."""
        row = cast(dict[bytes, bytes], await self._ask(self._redis.hgetall(self._keys(Key.BATCH, batch_id))))
        fields = {name.decode(): value for name, value in row.items()}
        if "project" not in fields or project not in (None, fields["project"].decode()):
            raise NotFound("batch", str(batch_id))
        return batch_record(batch_id, fields)

    async def job(self, job_id: UUID, *, project: str | None) -> JobRecord:
        """The job; raises NotFound."""
        batch_id, index = split_job_id(job_id)
        try:
            batch = await self.batch(batch_id, project=project)
        except NotFound:
            raise NotFound("job", str(job_id)) from None
        if index >= batch.jobs:
            raise NotFound("job", str(job_id))
        found = await self.jobs(batch, [index])
        if not found:  # forgotten since
            raise NotFound("job", str(job_id))
        return found[0]

    async def jobs(self, batch: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        """Jobs of the batch, in the order of the indices, all of which it must have."""
        if not indices:
            return []
        specs, states, faults = await self._columns(batch.id, indices, Key.SPEC, Key.STATE, Key.FAULT)
        return [
            job_record(batch, index, spec, state, fault)
            for index, spec, state, fault in zip(indices, specs, states, faults, strict=True)
            if spec is not None
        ]

    async def results(self, batch_id: UUID, indices: Sequence[int]) -> dict[int, Result]:
        """The results that there are, by index; check first whose the batch is. Raises ResultUnavailable."""
        packed = await self.packed_results(batch_id, indices)
        return {index: await self._results.unpack(data) for index, data in packed.items()}

    async def each_result(self, batch_id: UUID, indices: Sequence[int]) -> dict[int, Result | ResultUnavailable]:
        """The same, with why it cannot be read for each result that cannot."""
        packed = await self.packed_results(batch_id, indices)
        return {index: await self._results.read(data) for index, data in packed.items()}

    async def packed_results(self, batch_id: UUID, indices: Sequence[int]) -> dict[int, bytes]:
        """The same, as Redis has them."""
        if not indices:
            return {}
        (packed,) = await self._columns(batch_id, indices, Key.RESULT)
        return {index: data for index, data in zip(indices, packed, strict=True) if data is not None}

    async def device(self, name: str) -> DeviceRecord | None:
        """The device, or None when nobody ever announced it."""
        return device_record(
            name, await self._ask(self._redis.hmget(self._keys(Key.DEVICE, name), list(DEVICE_FIELDS)))
        )

    async def windows(self, device: str) -> list[Window]:
        """The planned maintenance of a device, in order; that which is over may be among it for a second."""
        values = await self._ask(self._redis.hvals(self._keys(Key.WINDOWS, device)))
        return sorted(map(window_record, (value.decode() for value in values)), key=lambda it: it.begins)

    async def device_names(self) -> list[str]:
        names = cast(set[bytes], await self._ask(self._redis.smembers(self._keys(Key.DEVICES))))
        return sorted(_names(names))

    async def devices(self) -> list[DeviceRecord]:
        """All devices, by name."""
        found = [device_record(name, row) for name, row in await self._all_devices(DEVICE_FIELDS)]
        return [device for device in found if device is not None]

    async def device_specs(self) -> dict[str, str]:
        """The specs of all devices that have some and are active, by the device's name."""
        rows = await self._all_devices(("specs", "inactive"))
        return {name: specs.decode() for name, (specs, inactive) in rows if specs is not None and inactive is None}

    async def workers(self) -> list[WorkerRecord]:
        """The live workers of all devices."""
        workers = []
        for device in await self.device_names():
            names = await self._ask(self._redis.zrange(self._keys(Key.WORKERS, device), 0, -1))
            for name in _names(names):
                row = cast(dict[bytes, bytes], await self._ask(self._redis.hgetall(self._keys(Key.WORKER, name))))
                if row:
                    workers.append(_worker(name, {k.decode(): v.decode() for k, v in row.items()}))
        return workers

    async def leases(self, device: str) -> list[Lease]:
        """Return leases of a device's tickets, those that were renewed last first, at most 500."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        pipeline.zrange(self._keys(Key.LEASES, device), 0, _PAGE - 1, desc=True, withscores=True)
        (seconds, micros), held = cast(Any, await self._ask(pipeline.execute()))
        for name, _ in held:
            ticket = TicketRef.parse(name.decode())
            pipeline.hget(self._keys(Key.BATCH, ticket.batch_id), f"t:{ticket.number}")
        rows: list[bytes | None] = await self._ask(pipeline.execute())
        return [
            Lease(row.decode().rpartition(" ")[2], expiry_ms / 1000 - seconds - micros / 1e6)
            for (_, expiry_ms), row in zip(held, rows, strict=True)
            if row is not None
        ]

    async def ping(self) -> None:
        """Raises Unavailable when Redis does not answer."""
        await self._ask(self._redis.ping())

    async def foreign_keys(self) -> dict[str, tuple[str, str]]:
        """Find shared keys that hold something else than Tweezer keeps there: their type, and the expected one."""
        pipeline = self._redis.pipeline(transaction=False)
        for key in KINDS:
            pipeline.type(self._keys(key))
        found = [kind.decode() for kind in cast(list[bytes], await self._ask(pipeline.execute()))]
        expected = zip(KINDS.items(), found, strict=True)
        return {self._keys(key): (kind, right) for (key, right), kind in expected if kind not in (right, "none")}

    async def server_info(self, section: str | None = None) -> dict[str, Any]:
        """The sections of Redis' INFO, flat; or one of them, which costs a tenth."""
        return cast(dict[str, Any], await self._ask(self._redis.info(section)))

    async def server_config(self, pattern: str) -> dict[str, str]:
        """Redis' own settings; empty where they may not be read."""
        try:
            return cast(dict[str, str], await self._redis.config_get(pattern))
        except redis_errors.ResponseError:
            return {}

    async def _all_devices(self, fields: Sequence[str]) -> list[tuple[str, list[bytes | None]]]:
        names = await self.device_names()
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            pipeline.hmget(self._keys(Key.DEVICE, name), list(fields))
        rows: list[list[bytes | None]] = await self._ask(pipeline.execute())
        return list(zip(names, rows, strict=True))

    async def _columns(self, batch_id: UUID, indices: Sequence[int], *columns: Key) -> list[list[bytes | None]]:
        found: list[list[bytes | None]] = [[] for _ in columns]
        for first in range(0, len(indices), _PAGE):
            page = list(indices[first : first + _PAGE])
            pipeline = self._redis.pipeline(transaction=False)  # Redis refuses to queue a MULTI above its maxmemory
            for column in columns:
                pipeline.hmget(self._keys(column, batch_id), page)
            answer: list[list[bytes | None]] = await self._ask(pipeline.execute())
            for values, more in zip(found, answer, strict=True):
                values.extend(more)
        return found

    async def _ask(self, call: Awaitable[T] | T) -> T:
        with translating():
            return await cast(Awaitable[T], call)


def _names(members: Iterable[bytes]) -> Iterator[str]:
    """Yield the names in a set; what is not UTF-8 is not a name, and was not put there by Tweezer."""
    for member in members:
        with contextlib.suppress(UnicodeDecodeError):
            yield member.decode()


def _worker(name: str, row: dict[str, str]) -> WorkerRecord:
    started = moment(row["started"])
    assert started is not None
    return WorkerRecord(
        id=name,
        device=row["device"],
        lanes=int(row["lanes"]),
        busy=int(row.get("busy", "0")),
        host=row.get("host", ""),
        version=row.get("version", ""),
        record_version=int(row.get("record_version", "0")),
        draining=row.get("draining") == "1",
        started=started,
        jail=row.get("jail", ""),
    )
