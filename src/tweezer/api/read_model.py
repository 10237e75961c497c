"""Reads for the API: live work from Redis, what Redis has forgotten from the ledger, as far as the caller may see it.

What belongs to others is not there: the same is done and said for it as for what does not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from typing import Any, TypeVar
from uuid import UUID

from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.database import Database
from tweezer.ledger.queries.filters import BatchFilter, BatchOrder, JobFilter, JobOrder, PageRequest, job_key
from tweezer.ledger.queries.lists import ListPage
from tweezer.ledger.queries.queries import Queries
from tweezer.model import windows
from tweezer.model.errors import NotFound, Unavailable
from tweezer.model.events import Event
from tweezer.model.ids import device_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Result
from tweezer.store.connection import Store
from tweezer.store.reader import Lookups
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord

T = TypeVar("T")

READS_MAX = 48
"""Reads at once, for all requests of the process: fewer than the store's connections, which refuse to queue."""

_READY_S = 2.0
_PAGE = 500  # jobs of a batch that are filtered at a time
_REST_MAX_S = 0.1  # between two pages, at most: as long as the last one took


class Live:
    """Batches and jobs as they stand now.

    ``patience_s``: how long a read queues behind others before Unavailable is raised. All methods raise Unavailable
    when Redis, or the ledger where it is needed, does not answer.
    """

    def __init__(self, store: Store, database: Database, *, patience_s: float) -> None:
        self._store = store
        self._database = database
        self._lookups = Lookups(store.scripts)
        self._queries = Queries(database)
        self._patience_s = patience_s
        self._turns = asyncio.Semaphore(READS_MAX)
        self._scans: dict[str, _Scans] = {}

    async def batch(self, caller: Principal, batch_id: UUID) -> BatchRecord:
        """The batch; raises NotFound."""
        batch, _ = await self.batch_with_jobs(caller, batch_id, jobs_max=-1)
        return batch

    async def batch_with_jobs(
        self, caller: Principal, batch_id: UUID, *, jobs_max: int
    ) -> tuple[BatchRecord, list[JobRecord]]:
        """The batch, and its jobs if there are at most ``jobs_max``; raises NotFound."""
        async with self._turn():
            found = await self._lookups.batch(batch_id, projects=_projects(caller), jobs_max=jobs_max)
        if found is not None:
            return found
        batch = await self._ask(self._queries.batch, caller, batch_id)
        if batch is None:
            raise NotFound("batch", str(batch_id))
        if batch.jobs > jobs_max:
            return batch, []
        return batch, await self._ask(self._queries.batch_jobs, batch, range(batch.jobs))

    async def jobs(self, batch: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        """Jobs of the batch; fewer when it was deleted meanwhile."""
        async with self._turn():
            found = await self._store.reader.jobs(batch, indices)
        return found if len(found) == len(indices) else await self._ask(self._queries.batch_jobs, batch, indices)

    async def job(self, caller: Principal, job_id: UUID) -> JobRecord:
        """The job; raises NotFound."""
        job = await self._lookups.job(job_id, projects=_projects(caller))
        if job is None:
            job = await self._ask(self._queries.job, caller, job_id)
        if job is None:
            raise NotFound("job", str(job_id))
        return job

    async def list_batches(
        self, caller: Principal, wanted: BatchFilter, order: BatchOrder, paging: PageRequest
    ) -> ListPage[BatchRecord]:
        """A page of batches as the ledger has them, without their sequences."""
        return await self._ask(self._queries.batches, caller, wanted, order, paging)

    async def list_jobs(
        self, caller: Principal, wanted: JobFilter, order: JobOrder, paging: PageRequest
    ) -> ListPage[JobRecord]:
        """A page of jobs: those of one batch as they stand, others as the ledger has them."""
        if len(wanted.batches) == 1:
            async with self._turn():
                found = await self._lookups.batch(wanted.batches[0], projects=_projects(caller))
            if found is not None:
                return await self._jobs_of(caller, found[0], wanted, order, paging)
        return await self._ask(self._queries.jobs, caller, wanted, order, paging)

    async def batch_counts(self, caller: Principal, wanted: BatchFilter) -> dict[BatchStatus, int]:
        """How many batches there are in each status, as the ledger has them."""
        return await self._ask(self._queries.batch_counts, caller, wanted)

    async def job_counts(self, caller: Principal, wanted: JobFilter) -> dict[JobStatus, int]:
        """How many jobs there are in each status, as the ledger has them."""
        return await self._ask(self._queries.job_counts, caller, wanted)

    async def transitions(self, caller: Principal, job_id: UUID) -> list[Event]:
        """What is recorded of the job's transitions, oldest first; raises NotFound."""
        await self.job(caller, job_id)
        return await self._ask(self._queries.transitions, job_id)

    async def packed_result(self, job: JobRecord) -> bytes | None:
        """What the job measured, as settle packed it, if it has a result."""
        if not job.may_have_result:
            return None
        async with self._turn():
            packed = (await self._store.reader.packed_results(job.batch_id, [job.index])).get(job.index)
        return packed if packed is not None else await self._ask(self._queries.packed_result, job.id)

    async def result(self, job: JobRecord) -> Result | None:
        """What the job measured, if it has a result. Raises ResultUnavailable."""
        packed = await self.packed_result(job)
        return None if packed is None else await self._store.results.unpack(packed)

    async def devices(self) -> list[DeviceRecord]:
        """All devices by name."""
        async with self._turn():
            return await self._store.reader.devices()

    async def device(self, name: str) -> DeviceRecord:
        """The device of this name, or id; raises NotFound."""
        async with self._turn():
            device = await self._store.reader.device(name)
            if device is None:
                devices = await self._store.reader.devices()
                device = next((each for each in devices if str(device_id(each.name)) == name.lower()), None)
        if device is None:
            raise NotFound("device", name)
        return device

    async def windows(self, device: str) -> list[windows.Window]:
        """Its maintenance that is under way or planned, in order."""
        async with self._turn():
            return await self._store.reader.windows(device)

    async def device_specs(self) -> dict[str, str]:
        """What clients are told of the devices, by name: Pulser's abstract representation of each."""
        async with self._turn():
            return await self._store.reader.device_specs()

    async def check(self) -> None:
        """Raises Unavailable when Redis or the ledger does not answer promptly."""
        try:
            async with asyncio.timeout(_READY_S), self._turn():
                await self._store.reader.ping()
        except TimeoutError as error:
            raise Unavailable(f"Redis has not answered for {_READY_S:g} s") from error
        try:
            async with asyncio.timeout(_READY_S):
                await self._ask(self._queries.ping)
        except TimeoutError as error:
            raise Unavailable(f"the ledger's database has not answered for {_READY_S:g} s") from error

    async def pages(
        self, caller: Principal, batch: BatchRecord, indices: Sequence[int]
    ) -> AsyncGenerator[list[JobRecord], None]:
        """All of these jobs, some at a time. Each account reads so one batch at a time, with rests between."""
        scans = self._scans.setdefault(caller.account, _Scans())
        scans.users += 1
        try:
            async with scans.turn:
                for first in range(0, len(indices), _PAGE):
                    began = time.monotonic()
                    jobs = await self.jobs(batch, indices[first : first + _PAGE])
                    yield jobs
                    await asyncio.sleep(min(time.monotonic() - began, _REST_MAX_S))
        finally:
            scans.users -= 1
            if not scans.users:
                del self._scans[caller.account]

    async def _jobs_of(
        self, caller: Principal, batch: BatchRecord, wanted: JobFilter, order: JobOrder, paging: PageRequest
    ) -> ListPage[JobRecord]:
        if not wanted.takes_from(batch):
            return ListPage([], 0)
        indices: Sequence[int] = range(batch.jobs)
        if not wanted.takes_whole_batches or job_key(order) is not None:
            indices = await self._sorted(caller, batch, wanted, order, descending=paging.descending)
        elif paging.descending:
            indices = indices[::-1]
        page = indices[paging.offset : paging.offset + paging.limit]
        return ListPage(await self.jobs(batch, page), len(indices))

    async def _sorted(
        self, caller: Principal, batch: BatchRecord, wanted: JobFilter, order: JobOrder, *, descending: bool
    ) -> list[int]:
        """The indices of those jobs of the batch that the filter means."""
        key = job_key(order)
        found: list[tuple[Any, int]] = []
        async with contextlib.aclosing(self.pages(caller, batch, range(batch.jobs))) as pages:
            async for jobs in pages:
                found += [(None if key is None else key(job), job.index) for job in jobs if wanted.takes(job)]
        with_value = sorted(((value, index) for value, index in found if value is not None), reverse=descending)
        without = sorted((index for value, index in found if value is None), reverse=descending)
        return [index for _, index in with_value] + without

    async def _ask(self, question: Callable[..., T], *arguments: Any) -> T:
        return await self._database.run(question, *arguments)

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


class _Scans:
    """Which request of one caller's projects may read all jobs of a batch, and how many of them there are."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.users = 0


def _projects(caller: Principal) -> Collection[str] | None:
    return None if caller.sees_all else caller.projects
