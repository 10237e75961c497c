"""A store with one device for tests: submit, take, settle and inspect, and a check that no key leaks.

Tests do not wait for time to pass: ``lapse``, ``make_due`` and ``run_out`` move due times into the past.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast
from uuid import UUID

from redis.asyncio import Redis
from tests.support.records import read_record

from tweezer.duties import Backoff
from tweezer.model.errors import FaultKind
from tweezer.model.events import Event
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import BatchDoc, Fault, JobSpec, Limits, Outcome, OutcomeKind, Result
from tweezer.store.connection import Store
from tweezer.store.keys import Key
from tweezer.store.records import BatchRecord, JobRecord
from tweezer.store.workers import Grant, JobProgress, Settlement, SettleResult

DEVICE = "EMU"
LEASE_S = 15.0
LONG_AGO_MS = 1


class StoreRig:
    """A store with shortcuts for the calls of its tests."""

    def __init__(self, redis: Redis, store: Store | None = None) -> None:
        self.checks_usage = True  # set to False by a test that damages records by hand
        self.redis: Any = redis  # the stubs of redis-py do not distinguish sync from async
        self.store = store or Store(redis, namespace="test")
        self.keys = self.store.keys
        self.commands = self.store.commands
        self.tickets = self.store.tickets
        self.devices = self.store.devices
        self.reader = self.store.reader
        self.recovery = self.store.recovery

    async def announce(self, device: str = DEVICE, *, lanes: int = 1, worker: str = "w", **about: Any) -> str:
        """Send the heartbeat of a worker; return why the device is paused, or ''."""
        beat = await self.tickets.heartbeat(
            worker,
            device,
            ttl_s=60,
            about_device={"adapter": "null", "exclusive": 0, "max_runs": 1000, **about},
            about_worker={"lanes": lanes, "started": 1, "host": "here", "version": "0", "record_version": 1},
        )
        return beat.paused

    async def submit(
        self, jobs: int | Sequence[JobSpec] = 1, *, project: str = "a", device: str = DEVICE, **options: Any
    ) -> UUID:
        limits = options.pop("limits", Limits())
        specs = [JobSpec(runs=10)] * jobs if isinstance(jobs, int) else jobs
        rules = options.pop("rules", None)
        doc = BatchDoc(device=device, sequence="{}", limits=limits, rules=rules, **options.pop("about", {}))
        return await self.commands.submit(options.pop("batch_id", new_batch_id()), project, doc, specs, **options)

    async def grants(self, lanes: int = 1, *, device: str = DEVICE) -> list[Grant]:
        taken = await self.tickets.take(device, [f"lane:{n}" for n in range(lanes)], lease_s=LEASE_S)
        return taken.grants

    async def take(self, *, device: str = DEVICE) -> Grant:
        """Take a ticket and return it; there must be exactly one."""
        (grant,) = await self.grants(device=device)
        return grant

    async def take_as(self, lane: str) -> Grant:
        """Take a ticket as this lane, once jobs that wait for a retry and tickets are due."""
        for batch_id in {it.split(":")[0] for it in await self.members(Key.DUE, DEVICE)}:
            await self.make_due(UUID(batch_id))
        (grant,) = (await self.tickets.take(DEVICE, [lane], lease_s=LEASE_S)).grants
        return grant

    async def settle(
        self, grant: Grant, outcomes: Mapping[int, OutcomeKind | Outcome], *, want: int = 1, used_s: float = 0.0
    ) -> SettleResult:
        settlements = [
            Settlement.of(index, self.outcome(what) if isinstance(what, OutcomeKind) else what)
            for index, what in outcomes.items()
        ]
        return await self.tickets.settle(
            grant.ticket, grant.token, settlements, want=want, used_s=used_s, lease_s=LEASE_S
        )

    async def sweep_all(self) -> None:
        """Sweep as often as a process does at once."""
        while (await self.tickets.sweep()).more:
            pass

    async def swept(self) -> tuple[int, int, int]:
        """Sweep; return the numbers of timed-out batches, expired leases and ready tickets."""
        found = await self.tickets.sweep()
        return found.timed_out, len(found.reclaimed), found.readied

    async def renew(self, grant: Grant, *progress: JobProgress) -> set[int] | None:
        """Renew the lease; return the held jobs that must be stopped, or None if the ticket is lost."""
        renewal = await self.tickets.renew(grant.ticket, grant.token, progress, lease_s=LEASE_S)
        return None if renewal is None else set(renewal.stop)

    async def release(self, grant: Grant, fault: Fault, *, retry_in_s: float = 0.0, failures_max: int = 9) -> bool:
        """Give the ticket back after a failure; return whether that ended the batch."""
        backoff = Backoff(base_s=retry_in_s, cap_s=retry_in_s)
        return await self.tickets.release(grant.ticket, grant.token, fault, backoff=backoff, failures_max=failures_max)

    async def run(self, grant: Grant, kind: OutcomeKind = OutcomeKind.DONE, *, want: int = 1) -> None:
        """Settle the jobs of the grant, and all jobs that it gets in return, with one outcome."""
        jobs = grant.jobs
        while jobs:
            jobs = (await self.settle(grant, {job.index: kind for job in jobs}, want=want)).jobs

    async def run_all(self, *, device: str = DEVICE) -> list[UUID]:
        """Run all jobs; return the batches in the order in which they were granted."""
        order = []
        while grants := await self.grants(device=device):
            order.append(grants[0].batch_id)
            await self.run(grants[0], want=10_000)
        return order

    @staticmethod
    def outcome(kind: OutcomeKind, cause: FaultKind | None = None, *, retry_in_s: float = 0.0) -> Outcome:
        if kind is OutcomeKind.DONE:
            return Outcome(kind, result=Result(counter={"01": 10}), preparation_s=0.5, device_s=1.5)
        if kind is OutcomeKind.CANCELED:
            return Outcome(kind)
        cause = cause or (FaultKind.TRANSIENT if kind is OutcomeKind.RETRY else FaultKind.USER)
        return Outcome(kind, fault=Fault(cause.value, "it broke"), cause=cause, retry_in_s=retry_in_s)

    async def forget(self, batch_id: UUID, *, least_age_s: float = 0) -> bool:
        """Remove the batch as if it were recorded to its last event; return whether it was removed."""
        recorded = (await self.batch(batch_id)).sequence_number
        return await self.recovery.forget({batch_id: recorded}, least_age_s=least_age_s) == [batch_id]

    async def lapse(self, grant: Grant) -> None:
        """Make the lease of the grant expire."""
        await self.redis.zadd(self.keys(Key.LEASES, DEVICE), {str(grant.ticket): LONG_AGO_MS}, xx=True)

    async def start_again(self, run: str = "another run") -> bytes:
        """Act as the first client after a restart of Redis; return the reply of ``arrive.lua``."""
        reply = await self.store.scripts.call("arrive", run_id=run)
        return cast(bytes, reply[0])

    async def make_due(self, batch_id: UUID, *, device: str = DEVICE) -> None:
        """Make the delayed jobs and tickets of the batch due."""
        for name in (self.keys(Key.DELAY, batch_id), self.keys(Key.DUE, device)):
            members = await self.redis.zrange(name, 0, -1)
            if members:
                await self.redis.zadd(name, dict.fromkeys(members, LONG_AGO_MS))

    async def run_out(self, batch_id: UUID) -> None:
        """Let the deadline of an open batch without work pass; it must have one."""
        changed = await self.redis.zadd(self.keys(Key.IDLE), {str(batch_id): LONG_AGO_MS}, xx=True, ch=True)
        assert changed == 1

    async def let_expire(self, batch_id: UUID) -> None:
        """Let the queue timeout of a batch pass; it must have one."""
        name = self.keys(Key.BATCH, batch_id)
        rules = json.loads(await self.redis.hget(name, "rules"))
        assert rules["expires"] > LONG_AGO_MS
        await self.redis.hset(name, "rules", json.dumps(rules | {"expires": LONG_AGO_MS}))
        await self.redis.zadd(self.keys(Key.DEADLINES), {str(batch_id): LONG_AGO_MS}, xx=True)

    async def batch(self, batch_id: UUID) -> BatchRecord:
        return await self.reader.batch(batch_id, project=None)

    async def jobs(self, batch_id: UUID) -> list[JobRecord]:
        batch = await self.batch(batch_id)
        return await self.reader.jobs(batch, range(batch.jobs))

    async def job(self, batch_id: UUID, index: int) -> JobRecord:
        return (await self.reader.jobs(await self.batch(batch_id), [index]))[0]

    async def statuses(self, batch_id: UUID) -> list[JobStatus]:
        return [job.status for job in await self.jobs(batch_id)]

    async def events(self, batch_id: UUID) -> list[Event]:
        entries = await self.store.events.read(most=100_000)
        return [event for entry in entries for event in entry.events if event.batch_id == batch_id]

    async def event_texts(self, batch_id: UUID) -> list[str]:
        """Return the batch's events as texts: ``batch.created``, ``0 job.running``, …"""
        return [
            event.type if event.index is None else f"{event.index} {event.type}"
            for event in await self.events(batch_id)
        ]

    async def members(self, key: Key, *parts: object) -> set[str]:
        """Return the members of a sorted set, a set or a list."""
        name = self.keys(key, *parts)
        kind = (await self.redis.type(name)).decode()
        match kind:
            case "zset":
                found = await self.redis.zrange(name, 0, -1)
            case "set":
                found = await self.redis.smembers(name)
            case "list":
                found = await self.redis.lrange(name, 0, -1)
            case _:
                found = []
        return {member.decode() for member in found}

    async def bell(self, device: str = DEVICE) -> int:
        return int(await self.redis.llen(self.keys(Key.BELL, device)))

    async def silence(self, device: str = DEVICE) -> None:
        """Empty the doorbell, as a worker does when it wakes up."""
        await self.redis.delete(self.keys(Key.BELL, device))

    async def snapshot(self, *, but: Iterable[str] = ()) -> dict[str, Any]:
        """Return all keys of Redis except ``but`` with their values, to show that a call changed nothing else."""
        found: dict[str, Any] = {}
        redis = self.redis
        for raw in sorted(await redis.keys("*")):
            name = raw.decode()
            if name in but:
                continue
            match (await redis.type(name)).decode():
                case "hash":
                    found[name] = await redis.hgetall(name)
                case "list":
                    found[name] = await redis.lrange(name, 0, -1)
                case "set":
                    found[name] = await redis.smembers(name)
                case "zset":
                    found[name] = await redis.zrange(name, 0, -1, withscores=True)
                case "stream":
                    found[name] = await redis.xrange(name)
                case _:
                    found[name] = await redis.get(name)
        return found

    async def leaks(self) -> list[str]:
        """Return the keys that have no owner and do not expire."""
        found = []
        for raw in await self.redis.keys("*"):
            name = raw.decode()
            if await self.redis.pttl(name) < 0 and not await self._is_owned(name):
                found.append(name)
        return sorted(found)

    async def _indexed(self, project: str) -> set[str]:
        return {name.decode() for name in await self.redis.zrange(self.keys(Key.BATCHES, project), 0, -1)}

    async def _batches_of(self, project: str) -> set[str]:
        names = [self.keys(Key.BATCH, batch_id) async for batch_id in self.store.snapshots.batch_ids()]
        owners = [(name, await self.redis.hget(name, "project")) for name in names]
        return {name.rpartition(":")[2] for name, owner in owners if owner == project.encode()}

    async def _all_wait_for(self, batch_id: str) -> bool:
        """Return whether a batch is live, and each member of its dependents waits for it."""
        status = (await read_record(self.store, batch_id)).get("status")
        records = [await read_record(self.store, it) for it in await self.members(Key.DEPENDENTS, batch_id)]
        return status in (b"P", b"R", b"S") and all(batch_id.encode() in row.get("parents", b"") for row in records)

    async def _is_owned(self, name: str) -> bool:
        redis = self.redis
        kind, *parts = name.removeprefix(self.keys.prefix).split(":")
        match kind, *parts:
            case ("devices" | "settings" | "idle" | "ended" | "events" | "ledger" | "installation" | "server",):
                return True
            case ("deadlines",):
                return await self.members(Key.DEADLINES) <= {str(it) async for it in self.store.snapshots.batch_ids()}
            case "dependents", batch_id:
                return await self._all_wait_for(batch_id)
            case "project", _:
                return True  # tests.support.usage checks its counters
            case "batches", project:
                return await self._indexed(project) == await self._batches_of(project)
            case "device", device, *_:
                return bool(await redis.sismember(self.keys(Key.DEVICES), device))
            case "batch", batch_id, "held", number:
                of_batch = await read_record(self.store, batch_id)
                leases = self.keys(Key.LEASES, of_batch.get("device", b"").decode())
                return await redis.zscore(leases, f"{batch_id}:{number}") is not None
            case "batch", batch_id, *_:
                status = (await read_record(self.store, batch_id)).get("status")
                ended = await redis.zscore(self.keys(Key.ENDED), batch_id) is not None
                return ended is (status not in (b"P", b"R", b"S"))
            case _:
                return False
