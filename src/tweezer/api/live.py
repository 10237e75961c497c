"""Reads live work for the API: as far as the caller may see it, and not more at once than Redis' pool allows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

from tweezer.model.errors import NotFound, Unavailable
from tweezer.model.ids import split_job_id
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import Result
from tweezer.store.connection import Store
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord

READS_MAX = 48
"""Reads at once, for all requests of the process: fewer than the store's connections, which refuse to queue."""

_READY_S = 2.0


class Live:
    """The store as the API's callers may see it.

    Until credentials exist the caller is an operator: ``project`` is None, and everybody's work is shown.
    ``patience_s``: how long a read queues behind others before Unavailable is raised.
    """

    def __init__(self, store: Store, *, project: str | None, patience_s: float) -> None:
        self._store = store
        self._project = project
        self._patience_s = patience_s
        self._turns = asyncio.Semaphore(READS_MAX)

    async def batch(self, batch_id: UUID) -> BatchRecord:
        """The batch; raises NotFound, Unavailable."""
        async with self._turn():
            return await self._store.reader.batch(batch_id, project=self._project)

    async def jobs(self, batch: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        """Jobs of the batch; fewer when it was forgotten meanwhile. Raises Unavailable."""
        async with self._turn():
            return await self._store.reader.jobs(batch, indices)

    async def job(self, job_id: UUID) -> JobRecord:
        """The job; raises NotFound, Unavailable."""
        batch_id, index = split_job_id(job_id)
        with contextlib.suppress(NotFound):  # of the batch: the caller asked for a job
            batch = await self.batch(batch_id)
            if index < batch.jobs and (jobs := await self.jobs(batch, [index])):
                return jobs[0]
        raise NotFound("job", str(job_id))

    async def result(self, job: JobRecord) -> Result | None:
        """What the job measured, if it has a result. Raises Unavailable."""
        if job.status is not JobStatus.DONE:
            return None
        async with self._turn():
            return (await self._store.reader.results(job.batch_id, [job.index])).get(job.index)

    async def devices(self) -> list[DeviceRecord]:
        """All devices by name; raises Unavailable."""
        async with self._turn():
            return await self._store.reader.devices()

    async def check(self) -> None:
        """Raises Unavailable when Redis does not answer promptly."""
        try:
            async with asyncio.timeout(_READY_S), self._turn():
                await self._store.reader.ping()
        except TimeoutError as error:
            raise Unavailable(f"Redis has not answered for {_READY_S:g} s") from error

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._turns.acquire()
        except TimeoutError as error:
            raise Unavailable(f"Redis is slow: {READS_MAX} reads are waiting for it") from error
        try:
            yield
        finally:
            self._turns.release()
