"""Publishes data about quotas from the ledger to Redis: limits of projects, and results that Redis has forgotten."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import structlog
from sqlalchemy import Connection, func, select

from tweezer.ledger.access.projects import list_projects
from tweezer.ledger.database import Database
from tweezer.ledger.schema import projects, result_sizes
from tweezer.store.connection import Store

log = structlog.get_logger(__name__)

PUBLISHED_S = 10.0
"""How often the limits are written to Redis again, because it may have lost the last change, in seconds."""

COUNTED_S = 86_400
"""Maximum age of the count of results that only the ledger has, in seconds."""

_PAGE = 500


class QuotaPublisher:
    """The recorder's task for quotas. It runs when everything is recorded, so that ledger and Redis agree."""

    def __init__(self, store: Store, database: Database) -> None:
        self._store = store
        self._database = database
        self._publish_at = 0.0

    async def look(self) -> None:
        """Publish the limits if they are due, and count the results if Redis has no count. Raises Unavailable."""
        if not await self._store.quotas.is_counted():
            await self._count()
        if time.monotonic() >= self._publish_at:
            found = await self._database.run_read(list_projects)
            await self._store.quotas.set_limits({project.id: project.limits for project in found})
            self._publish_at = time.monotonic() + PUBLISHED_S

    async def _count(self) -> None:
        """Count the results of batches that Redis has forgotten: those of all batches, less those that Redis has."""
        kept: Counter[str] = Counter(await self._database.run_read(_read_all_sizes))
        page: list[UUID] = []
        async for batch_id in self._store.snapshots.batch_ids():
            page.append(batch_id)
            if len(page) == _PAGE:
                kept.subtract(await self._database.run_read(_read_sizes, page))
                page = []
        kept.subtract(await self._database.run_read(_read_sizes, page))
        await self._store.quotas.set_kept(kept, counted_s=COUNTED_S)
        log.info("quotas.counted", projects=len(kept))


def _read_all_sizes(connection: Connection) -> dict[str, int]:
    """Return the bytes of results by project, 0 for projects without results."""
    sizes = select(result_sizes.c.project, func.sum(result_sizes.c.bytes).label("bytes")).group_by("project").subquery()
    query = select(projects.c.id, sizes.c.bytes).join(sizes, sizes.c.project == projects.c.no, isouter=True)
    return {project: int(size or 0) for project, size in connection.execute(query)}


def _read_sizes(connection: Connection, batch_ids: Sequence[UUID]) -> dict[str, int]:
    query = (
        select(projects.c.id, func.sum(result_sizes.c.bytes))
        .join(result_sizes, result_sizes.c.project == projects.c.no)
        .where(result_sizes.c.batch.in_(set(batch_ids)))
        .group_by(projects.c.id)
    )
    return {project: int(size) for project, size in connection.execute(query)}
