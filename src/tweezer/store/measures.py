"""Measurements for operators: the state of the queue, read in one call, and the quotas of projects."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from tweezer.model.quotas import QUOTAS, Usage
from tweezer.store.keys import Key
from tweezer.store.scripts import Scripts, ask, split_pages

_ENTRIES_MOST = 1000
_FRONT = 50


class DeviceMeasures(msgspec.Struct, frozen=True):
    """A device and its workers.

    Attributes:
        pending: Pending jobs.
        running: Running jobs.
        lost: Leases that expired and were reclaimed, since Redis was set up.
        stale: Settles that were refused because another worker has the ticket, since Redis was set up.
        ready: Tickets that can be taken.
        due: Tickets that wait for a time.
        leased: Tickets that a lane works on.
        lanes: Lanes of live workers.
        busy: Busy lanes, according to the last heartbeats.
        draining: Free lanes of workers that drain and take no more tickets.
        late: Batches that were late, since Redis was set up.
        expired: Batches that did not start before their queue timeout, since Redis was set up.
        stopped: How often a batch was paused or cancelled because of its failed jobs, since Redis was set up.
        longest_wait_s: Seconds since the submission of the job that has waited longest at the front of the queue: the
            next job of each batch with one of the 50 first-ranked tickets or one of the 50 leases that expire first.
            None if no job waits there.
        up: Whether it starts jobs: it has lanes, and is neither paused nor under maintenance nor down.
        answers: Whether its machine answered when it was last asked; None without a machine.
    """

    name: str
    paused: bool
    pending: int
    running: int
    lost: int
    stale: int
    ready: int
    due: int
    leased: int
    workers: int
    lanes: int
    busy: int
    draining: int
    late: int
    expired: int
    stopped: int
    longest_wait_s: float | None
    up: bool = False
    answers: bool | None = None


_COUNTS = DeviceMeasures.__struct_fields__[2:-3]
"""In the order in which the script returns them."""


class Measures(msgspec.Struct, frozen=True):
    """The whole queue.

    Attributes:
        stream: Entries in the stream of events.
        unrecorded: Entries that the recorder has not recorded, counted up to 1,000.
        unrecorded_s: Age of the oldest of these, in seconds.
        undelivered: Entries for which the couriers have not yet written deliveries, counted up to 1,000.
        undelivered_s: Age of the oldest of these, in seconds.
        ended: Batches that have ended and are still in Redis.
    """

    stream: int
    unrecorded: int
    unrecorded_s: float
    undelivered: int
    undelivered_s: float
    ended: int
    gate_shut: bool
    recorder_active: bool
    scheduler_active: bool
    devices: list[DeviceMeasures]


async def measure(scripts: Scripts, recorded: str | None, delivered: str | None = None) -> Measures:
    """Measure the queue. Raises Unavailable.

    recorded: id of the last recorded entry. delivered: id of the last entry whose deliveries are all written. With
    None nothing is counted as missing.
    """
    reply = await scripts.call(
        "measure", recorded=recorded or "", delivered=delivered or "", entries_max=_ENTRIES_MOST, tickets_max=_FRONT
    )
    now_ms, stream, unrecorded, first, undelivered, first_undelivered, *rest = reply
    ended, gate_shut, recorder_active, scheduler_active, *devices = rest
    return Measures(
        stream=int(stream),
        unrecorded=int(unrecorded),
        unrecorded_s=_age_s(first, int(now_ms)),
        undelivered=int(undelivered),
        undelivered_s=_age_s(first_undelivered, int(now_ms)),
        ended=int(ended),
        gate_shut=gate_shut == b"1",
        recorder_active=recorder_active == b"1",
        scheduler_active=scheduler_active == b"1",
        devices=[_device(*row) for row in devices],
    )


def _age_s(entry_id: bytes, now_ms: int) -> float:
    """Return the age of an entry; 0 without an entry."""
    return max(now_ms - int(entry_id.partition(b"-")[0]), 0) / 1000 if entry_id else 0.0


def _device(name: bytes, paused: bytes, up: bytes, answers: bytes, *numbers: Any) -> DeviceMeasures:
    *counts, wait_ms = map(int, numbers)
    return DeviceMeasures(
        name=name.decode(),
        paused=paused == b"1",
        longest_wait_s=None if wait_ms < 0 else wait_ms / 1000,
        up=up == b"1",
        answers=answers == b"1" if answers else None,
        **dict(zip(_COUNTS, counts, strict=True)),
    )


REPORT_S = 10.0
"""How often a scheduler or an API reports that it runs, in seconds."""


class ProcessKind(StrEnum):
    """The processes that have no other sign of life in Redis."""

    API = "api"
    SCHEDULER = "scheduler"


class Processes:
    """Which kinds of processes run."""

    def __init__(self, scripts: Scripts) -> None:
        self._redis = scripts.redis
        self._keys = scripts.keys

    async def report(self, kind: ProcessKind, process: str) -> None:
        """Report that the process with this id runs. To be repeated every REPORT_S. Raises Unavailable."""
        await ask(self._redis.set(self._keys(Key.PROCESS, kind), process, px=round(3000 * REPORT_S)))

    async def find(self, kind: ProcessKind) -> str | None:
        """Return the id of a process of this kind that runs, or None. Raises Unavailable."""
        found: bytes | None = await ask(self._redis.get(self._keys(Key.PROCESS, kind)))
        return None if found is None else found.decode(errors="replace")


_PROJECTS_MAX = 500  # per call


class Quotas:
    """Reads and writes the counters and limits that scripts use to check quotas. All methods raise Unavailable."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def usage(self, project: str) -> list[Usage]:
        """Return the project's use of each quota, and its limits as the scripts apply them."""
        rows = await self._scripts.call("usage", project=project)
        return [
            Usage(quota=name.decode(), used=int(used), limit=int(limit), own=own == b"1")
            for name, used, limit, own in rows
        ]

    async def set_limits(self, limits: Mapping[str, Mapping[str, int]]) -> None:
        """Set the limits of these projects by quota; quotas without a value get the default."""
        rows = [(project, *(own.get(quota.name, "") for quota in QUOTAS)) for project, own in limits.items()]
        for page in split_pages(rows, _PROJECTS_MAX):
            await self._scripts.call("set_limits", limits=[part for row in page for part in row])

    async def is_counted(self) -> bool:
        """Return whether this Redis has a count of the results that only the ledger has."""
        return bool(await ask(self._scripts.redis.exists(self._scripts.keys(Key.COUNTED))))

    async def forget_count(self) -> None:
        """Make the recorder count these results again."""
        await ask(self._scripts.redis.delete(self._scripts.keys(Key.COUNTED)))

    async def set_kept(self, kept: Mapping[str, int], *, counted_s: float) -> None:
        """Set the bytes of results that only the ledger has, by project; the count expires after ``counted_s``."""
        await self._scripts.call("set_kept", counted_ms=round(counted_s * 1000), kept=kept.items())

    async def drop_kept(self, dropped: Mapping[str, int]) -> None:
        """Subtract the bytes of results that were deleted from the ledger, by project."""
        await self._scripts.call("drop_kept", dropped=dropped.items())
