"""Wakes the couriers when a delivery is due: a deferred arq job on their queue.

The row in the ledger is the truth of a delivery. An alarm that is lost costs time, until the couriers' sweep, and an
alarm too many nothing.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from uuid import UUID, uuid4

from arq.connections import ArqRedis

from tweezer.model.wire import deserialize, serialize
from tweezer.store.connection import Store
from tweezer.store.keys import Key
from tweezer.store.scripts import translating

DELIVER = "deliver"
"""The function that an alarm calls, with the id of the endpoint as text."""

_KEPT_S = 7 * 86_400  # how late an alarm may be: no courier may have run for a weekend


class Alarms:
    """Sets alarms. Raises Unavailable."""

    def __init__(self, store: Store) -> None:
        self._queue = store.keys(Key.COURIER)
        self._endpoints = store.keys(Key.ENDPOINTS)
        self._arq = ArqRedis(store.redis.connection_pool, serialize, deserialize)

    async def changed(self) -> None:
        """Endpoints were made, changed or removed: couriers read them again before they tell of what happens next."""
        with translating():
            await self._arq.incr(self._endpoints)

    async def arm(self, endpoint: UUID, due_ms: int | None) -> None:
        """Something is due for the endpoint at that time (milliseconds since 1970), or now.

        Those of one endpoint and second are one. An alarm never rings before its time, and one for now is always a
        job of its own: who is woken by another one may have looked already.
        """
        now = time.time()
        due_s = 0 if due_ms is None else -(-due_ms // 1000)
        wait_s = max(due_s - now, 0.0)
        # arq keeps the jobs of all queues in one place: the queue's name keeps installations apart.
        job = f"{self._queue}:{endpoint}:{due_s if wait_s else uuid4()}"
        with translating():
            await self._arq.enqueue_job(
                DELIVER,
                str(endpoint),
                _job_id=job,
                _queue_name=self._queue,
                _defer_until=datetime.fromtimestamp(due_s, UTC) if wait_s else None,
                _expires=wait_s + _KEPT_S,
            )
