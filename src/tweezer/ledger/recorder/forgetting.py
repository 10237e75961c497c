"""Lets go of what Redis need not hold any more: batches that ended and are recorded (rule 25)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

import msgspec
from sqlalchemy import select

from tweezer.ledger.database import Database
from tweezer.ledger.schema import batches
from tweezer.store.connection import Store

_PAGE = 200


class Forgotten(msgspec.Struct, frozen=True):
    """Batches that were forgotten, and those that could not be: the ledger does not have them to their end."""

    gone: list[UUID]
    unrecorded: list[UUID]


class Forgetter:
    """Forgets batches once they ended ``grace_s`` ago; at once when Redis runs full."""

    def __init__(self, store: Store, database: Database, *, grace_s: float) -> None:
        self._store = store
        self._database = database
        self._grace_s = grace_s

    async def forget(self, kept: Collection[UUID] = ()) -> Forgotten:
        """Forgets some, the oldest first, and none of those that are kept. Raises Unavailable."""
        least_age_s = 0.0 if await self._store.tickets.is_full() else self._grace_s
        ended = await self._store.commands.ended(least_age_s=least_age_s, most=_PAGE + len(kept))
        found = [batch_id for batch_id in ended if batch_id not in kept][:_PAGE]
        if not found:
            return Forgotten([], [])
        recorded = await self._database.run(self._recorded, found)
        gone = await self._store.commands.forget(recorded, least_age_s=least_age_s)
        return Forgotten(gone, [batch_id for batch_id in found if batch_id not in gone])

    def _recorded(self, batch_ids: Sequence[UUID]) -> dict[UUID, int]:
        query = select(batches.c.id, batches.c.sequence_number).where(batches.c.id.in_(batch_ids))
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}
