"""Whose a batch is: asked of Redis once, since it never changes."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from tweezer.model.lru import Recent
from tweezer.store.keys import Key
from tweezer.store.scripts import Scripts, translating

_REMEMBERED_MAX = 20_000


class Owners:
    """The projects of batches, as far as Redis has them."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._known: Recent[UUID, str] = Recent(_REMEMBERED_MAX)

    async def projects(self, batch_ids: Iterable[UUID]) -> dict[UUID, str]:
        """The project of each batch; those that Redis does not have are left out. Raises Unavailable."""
        wanted = set(batch_ids)
        found = {batch_id: project for batch_id in wanted if (project := self._known.get(batch_id)) is not None}
        if unknown := [batch_id for batch_id in wanted if batch_id not in found]:
            pipeline = self._scripts.redis.pipeline(transaction=False)
            for batch_id in unknown:
                pipeline.hget(self._scripts.keys(Key.BATCH, batch_id), "project")
            with translating():
                answers = await pipeline.execute()
            for batch_id, raw in zip(unknown, answers, strict=True):
                if raw is not None:
                    found[batch_id] = raw.decode()
                    self._known.put(batch_id, found[batch_id])
        return found
