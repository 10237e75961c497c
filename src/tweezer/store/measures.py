"""What operators watch: the queue, read in one call, and what projects use of their quotas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tweezer.model.quotas import QUOTAS, Usage
from tweezer.store.keys import Key
from tweezer.store.scripts import Scripts, ask, split_pages

_ENTRIES_MOST = 1000
_FRONT = 50


class DeviceMeasures(msgspec.Struct, frozen=True):
    """A device and its pool.

    pending, running: jobs. lost: leases that expired and were taken back; stale: settles that were refused because the
    ticket was another's; both since Redis was set up. ready, due, leased: tickets that may be taken, that wait for a
    time, that a lane works on. lanes: of live workers; busy: of these, as their last heartbeats said; draining: those
    that are free but will take no more. longest_wait_s: how long ago the job was submitted that waits longest of those
    at the front of the queue: the next job of each batch that has one of the 50 tickets ranked first, or one of the 50
    leases that expire first. None when none waits there.
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
    longest_wait_s: float | None


_COUNTS = DeviceMeasures.__struct_fields__[2:-1]
"""In the order in which the script answers them."""


class Measures(msgspec.Struct, frozen=True):
    """The queue as a whole.

    stream: entries of the stream of events. unrecorded: those that the recorder has not read, counted up to 1,000;
    unrecorded_s: age of the oldest of them. undelivered, undelivered_s: the same of those whose webhooks the couriers
    have not written down. ended: batches that have ended and are not forgotten.
    """

    stream: int
    unrecorded: int
    unrecorded_s: float
    undelivered: int
    undelivered_s: float
    ended: int
    gate_shut: bool
    recorder_active: bool
    devices: list[DeviceMeasures]


async def measure(scripts: Scripts, recorded: str | None, delivered: str | None = None) -> Measures:
    """Measures the queue. ``recorded``: id of the last entry that the recorder has written, ``delivered``: of the last
    one of which the couriers have written all deliveries; None counts none as left. Raises Unavailable."""
    reply = await scripts.call(
        "measure", recorded=recorded or "", delivered=delivered or "", entries_max=_ENTRIES_MOST, tickets_max=_FRONT
    )
    now_ms, stream, unrecorded, first, undelivered, first_undelivered, *rest = reply
    ended, gate_shut, recorder_active, *devices = rest
    return Measures(
        stream=int(stream),
        unrecorded=int(unrecorded),
        unrecorded_s=_age_s(first, int(now_ms)),
        undelivered=int(undelivered),
        undelivered_s=_age_s(first_undelivered, int(now_ms)),
        ended=int(ended),
        gate_shut=gate_shut == b"1",
        recorder_active=recorder_active == b"1",
        devices=[_device(*row) for row in devices],
    )


def _age_s(entry_id: bytes, now_ms: int) -> float:
    """0 where there is no entry."""
    return max(now_ms - int(entry_id.partition(b"-")[0]), 0) / 1000 if entry_id else 0.0


def _device(name: bytes, paused: bytes, *numbers: Any) -> DeviceMeasures:
    *counts, wait_ms = map(int, numbers)
    return DeviceMeasures(
        name=name.decode(),
        paused=paused == b"1",
        longest_wait_s=None if wait_ms < 0 else wait_ms / 1000,
        **dict(zip(_COUNTS, counts, strict=True)),
    )


_PROJECTS_MAX = 500  # of one call


class Quotas:
    """Reads and writes what the scripts check quotas by. All methods raise Unavailable."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def usage(self, project: str) -> list[Usage]:
        """What the project uses of each quota, and its limits as the scripts apply them."""
        rows = await self._scripts.call("usage", project=project)
        return [
            Usage(quota=name.decode(), used=int(used), limit=int(limit), own=own == b"1")
            for name, used, limit, own in rows
        ]

    async def set_limits(self, limits: Mapping[str, Mapping[str, int]]) -> None:
        """Give each of these projects these limits of its own, by quota, and the defaults for the others."""
        rows = [(project, *(own.get(quota.name, "") for quota in QUOTAS)) for project, own in limits.items()]
        for page in split_pages(rows, _PROJECTS_MAX):
            await self._scripts.call("set_limits", limits=[part for row in page for part in row])

    async def is_counted(self) -> bool:
        """Whether the results of which only the ledger knows were counted, and this Redis has the count."""
        return bool(await ask(self._scripts.redis.exists(self._scripts.keys(Key.COUNTED))))

    async def forget_count(self) -> None:
        """Have the recorder count these results again."""
        await ask(self._scripts.redis.delete(self._scripts.keys(Key.COUNTED)))

    async def set_kept(self, kept: Mapping[str, int], *, counted_s: float) -> None:
        """Set for each project the bytes of results that only the ledger has; the count holds for that long."""
        await self._scripts.call("set_kept", counted_ms=round(counted_s * 1000), kept=kept.items())

    async def drop_kept(self, dropped: Mapping[str, int]) -> None:
        """Take off the bytes of results that were deleted from the ledger."""
        await self._scripts.call("drop_kept", dropped=dropped.items())
