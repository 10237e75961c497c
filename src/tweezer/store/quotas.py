"""Quotas as Redis has them: what projects use, their own limits, and the results that only the ledger has."""

from __future__ import annotations

from collections.abc import Mapping

from tweezer.model.quotas import QUOTAS, Usage
from tweezer.store.keys import Key
from tweezer.store.scripts import Scripts, translating

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
        for first in range(0, len(rows), _PROJECTS_MAX):
            page = rows[first : first + _PROJECTS_MAX]
            await self._scripts.call("set_limits", limits=[part for row in page for part in row])

    async def is_counted(self) -> bool:
        """Whether the results of which only the ledger knows were counted, and this Redis has the count."""
        with translating():
            return bool(await self._scripts.redis.exists(self._scripts.keys(Key.COUNTED)))

    async def forget_count(self) -> None:
        """Have the recorder count these results again."""
        with translating():
            await self._scripts.redis.delete(self._scripts.keys(Key.COUNTED))

    async def set_kept(self, kept: Mapping[str, int], *, counted_s: float) -> None:
        """Set for each project the bytes of results that only the ledger has; the count holds for that long."""
        await self._scripts.call("set_kept", counted_ms=round(counted_s * 1000), kept=kept.items())

    async def drop_kept(self, dropped: Mapping[str, int]) -> None:
        """Take off the bytes of results that were deleted from the ledger."""
        await self._scripts.call("drop_kept", dropped=dropped.items())
