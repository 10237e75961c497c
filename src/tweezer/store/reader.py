"""Reads batches, jobs, results, devices and workers."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, cast
from uuid import UUID

import msgspec
from redis import exceptions as redis_errors

from tweezer.model.cancels import read_attempts
from tweezer.model.errors import NotFound
from tweezer.model.ids import split_job_id
from tweezer.model.lru import CombinedCalls, Recent
from tweezer.model.messages import Result, decode_fault
from tweezer.model.windows import Window
from tweezer.store.keys import KINDS, Key
from tweezer.store.records import (
    DEVICE_FIELDS,
    BatchRecord,
    DeviceRecord,
    JobOwner,
    JobRecord,
    Lease,
    TicketRef,
    WorkerRecord,
    batch_record,
    check_version,
    device_record,
    job_record,
    moment,
    window_record,
)
from tweezer.store.results import Results
from tweezer.store.scripts import Scripts, ask, split_pages

_PAGE = 500  # jobs read at once


class Reader:
    """Reads from Redis. The batches and jobs of other projects are treated as if they did not exist."""

    def __init__(self, scripts: Scripts, results: Results) -> None:
        self._redis = scripts.redis
        self._keys = scripts.keys
        self._results = results

    async def batch(self, batch_id: UUID, *, project: str | None) -> BatchRecord:
        """Return the batch. Raises NotFound."""
        row = cast(dict[bytes, bytes], await ask(self._redis.hgetall(self._keys(Key.BATCH, batch_id))))
        fields = {name.decode(): value for name, value in row.items()}
        if "project" not in fields or project not in (None, fields["project"].decode()):
            raise NotFound("batch", str(batch_id))
        return batch_record(batch_id, fields)

    async def jobs(self, batch: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        """Return jobs of the batch, in the order of the indices, all of which must exist."""
        if not indices:
            return []
        specs, states, faults = await self._columns(batch.id, indices, Key.SPEC, Key.STATE, Key.FAULT)
        return [
            job_record(batch, index, spec, state, fault)
            for index, spec, state, fault in zip(indices, specs, states, faults, strict=True)
            if spec is not None
        ]

    async def results(self, batch_id: UUID, indices: Sequence[int]) -> dict[int, Result]:
        """Return the existing results by index; the caller must have checked the batch's project.

        Raises ResultUnavailable.
        """
        packed = await self.packed_results(batch_id, indices)
        return {index: await self._results.unpack(data) for index, data in packed.items()}

    async def packed_results(self, batch_id: UUID, indices: Sequence[int]) -> dict[int, bytes]:
        """Return the existing results by index, packed as in Redis."""
        if not indices:
            return {}
        (packed,) = await self._columns(batch_id, indices, Key.RESULT)
        return {index: data for index, data in zip(indices, packed, strict=True) if data is not None}

    async def device(self, name: str) -> DeviceRecord | None:
        """Return the device, or None if it was never announced or created."""
        return device_record(name, await ask(self._redis.hmget(self._keys(Key.DEVICE, name), list(DEVICE_FIELDS))))

    async def windows(self, device: str) -> list[Window]:
        """Return the maintenance windows of a device, in order; one that is over may be included for a second."""
        values = await ask(self._redis.hvals(self._keys(Key.WINDOWS, device)))
        return sorted(map(window_record, (value.decode() for value in values)), key=lambda it: it.begins)

    async def device_names(self) -> list[str]:
        names = cast(set[bytes], await ask(self._redis.smembers(self._keys(Key.DEVICES))))
        return sorted(_names(names))

    async def devices(self) -> list[DeviceRecord]:
        """Return all devices, ordered by name."""
        found = [device_record(name, row) for name, row in await self._all_devices(DEVICE_FIELDS)]
        return [device for device in found if device is not None]

    async def device_specs(self) -> dict[str, str]:
        """Return the specs of all active devices that have some, by the device's name."""
        rows = await self._all_devices(("specs", "inactive"))
        return {name: specs.decode() for name, (specs, inactive) in rows if specs is not None and inactive is None}

    async def workers(self) -> list[WorkerRecord]:
        """Return the live workers of all devices."""
        workers = []
        for device in await self.device_names():
            names = await ask(self._redis.zrange(self._keys(Key.WORKERS, device), 0, -1))
            for name in _names(names):
                row = cast(dict[bytes, bytes], await ask(self._redis.hgetall(self._keys(Key.WORKER, name))))
                if row:
                    workers.append(_worker(name, {k.decode(): v.decode() for k, v in row.items()}))
        return workers

    async def leases(self, device: str) -> list[Lease]:
        """Return leases of a device's tickets, the most recently renewed first, at most 500."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        pipeline.zrange(self._keys(Key.LEASES, device), 0, _PAGE - 1, desc=True, withscores=True)
        (seconds, micros), held = cast(Any, await ask(pipeline.execute()))
        for name, _ in held:
            ticket = TicketRef.parse(name.decode())
            pipeline.hget(self._keys(Key.BATCH, ticket.batch_id), f"t:{ticket.number}")
        rows: list[bytes | None] = await ask(pipeline.execute())
        return [
            Lease(row.decode().rpartition(" ")[2], expiry_ms / 1000 - seconds - micros / 1e6)
            for (_, expiry_ms), row in zip(held, rows, strict=True)
            if row is not None
        ]

    async def ping(self) -> None:
        """Raise Unavailable if Redis does not respond."""
        await ask(self._redis.ping())

    async def foreign_keys(self) -> dict[str, tuple[str, str]]:
        """Return the global keys whose type is not that which Tweezer uses, with their type and the expected one."""
        pipeline = self._redis.pipeline(transaction=False)
        for key in KINDS:
            pipeline.type(self._keys(key))
        found = [kind.decode() for kind in cast(list[bytes], await ask(pipeline.execute()))]
        expected = zip(KINDS.items(), found, strict=True)
        return {self._keys(key): (kind, right) for (key, right), kind in expected if kind not in (right, "none")}

    async def server_info(self, section: str | None = None) -> dict[str, Any]:
        """Return all sections of Redis' INFO as one dictionary; or one section, which takes a tenth of the time."""
        return cast(dict[str, Any], await ask(self._redis.info(section)))

    async def server_config(self, pattern: str) -> dict[str, str]:
        """Return Redis' settings; empty if this user may not read them."""
        try:
            return cast(dict[str, str], await self._redis.config_get(pattern))
        except redis_errors.ResponseError:
            return {}

    async def _all_devices(self, fields: Sequence[str]) -> list[tuple[str, list[bytes | None]]]:
        names = await self.device_names()
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            pipeline.hmget(self._keys(Key.DEVICE, name), list(fields))
        rows: list[list[bytes | None]] = await ask(pipeline.execute())
        return list(zip(names, rows, strict=True))

    async def _columns(self, batch_id: UUID, indices: Sequence[int], *columns: Key) -> list[list[bytes | None]]:
        found: list[list[bytes | None]] = [[] for _ in columns]
        for page in split_pages(indices, _PAGE):
            pipeline = self._redis.pipeline(transaction=False)  # Redis refuses to queue a MULTI above its maxmemory
            for column in columns:
                pipeline.hmget(self._keys(column, batch_id), list(page))
            answer: list[list[bytes | None]] = await ask(pipeline.execute())
            for values, more in zip(found, answer, strict=True):
                values.extend(more)
        return found


def _names(members: Iterable[bytes]) -> Iterator[str]:
    """Yield the names in a set, without members that are not UTF-8, which Tweezer did not add."""
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


_REMEMBERED_MAX = 20_000


class Owners:
    """Looks up the projects of batches in Redis, and caches them."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._known: Recent[UUID, str] = Recent(_REMEMBERED_MAX)

    async def projects(self, batch_ids: Iterable[UUID]) -> dict[UUID, str]:
        """Return the project of each batch that Redis has. Raises Unavailable."""
        wanted = set(batch_ids)
        found = {batch_id: project for batch_id in wanted if (project := self._known.get(batch_id)) is not None}
        if unknown := [batch_id for batch_id in wanted if batch_id not in found]:
            pipeline = self._scripts.redis.pipeline(transaction=False)
            for batch_id in unknown:
                pipeline.hget(self._scripts.keys(Key.BATCH, batch_id), "project")
            answers = await ask(pipeline.execute())
            for batch_id, raw in zip(unknown, answers, strict=True):
                if raw is not None:
                    found[batch_id] = raw.decode()
                    self._known.put(batch_id, found[batch_id])
        return found


_TOGETHER_MAX = 64  # jobs per call of the script


class Lookups:
    """Reads batches and jobs for many concurrent requests: requests for jobs share a round trip.

    projects: ids of the projects that the caller may see; None for all.
    """

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._jobs = CombinedCalls(self._read, most=_TOGETHER_MAX)

    async def batch(
        self, batch_id: UUID, *, projects: Collection[str] | None, jobs_max: int = -1
    ) -> tuple[BatchRecord, list[JobRecord]] | None:
        """Return the batch and, if it has at most ``jobs_max`` (up to 1,000), its jobs, read atomically.

        Raises Unavailable.
        """
        found = await self._scripts.call(
            "look_up_batch",
            batch_id=str(batch_id),
            jobs_max=jobs_max,
            project_count=-1 if projects is None else len(projects),
            projects=projects or (),
        )
        if not found:
            return None
        flat, *columns = found
        fields = dict(zip((name.decode() for name in flat[::2]), flat[1::2], strict=True))
        batch = batch_record(batch_id, fields)
        rows = enumerate(zip(*columns, strict=True))
        return batch, [job_record(batch, index, spec, state, fault) for index, (spec, state, fault) in rows]

    async def job(self, job_id: UUID, *, projects: Collection[str] | None) -> JobRecord | None:
        """Return the job, or None. Raises Unavailable."""
        batch_id, index = split_job_id(job_id)
        row = await self._jobs.get(_JobRequest(str(batch_id), index, projects))
        if row is None:
            return None
        project, doom, cancels, spec, state, fault, version = row
        check_version(batch_id, version or b"")
        fault_of_batch = None if doom is None else decode_fault(doom)
        owner = JobOwner(batch_id, project.decode(), fault_of_batch, read_attempts((cancels or b"").decode()))
        return job_record(owner, index, spec, state, fault)

    async def _read(self, asked: list[_JobRequest]) -> list[list[Any] | None]:
        return await self._scripts.call(
            "look_up_jobs",
            jobs=[(it.batch_id, it.index, -1 if it.projects is None else len(it.projects)) for it in asked],
            projects=[project for it in asked for project in it.projects or ()],
        )


class _JobRequest(msgspec.Struct, frozen=True):
    """A job to read, for a caller that may see these projects."""

    batch_id: str
    index: int
    projects: Collection[str] | None
