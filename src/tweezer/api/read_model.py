"""Reads for the API: those of :class:`BatchReader`, lists and counts from the ledger, and devices.

What belongs to another project is reported as not found, after the same time and with the same response as what does
not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

import msgspec

from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.batch_reader import BatchReader, ask_at_once
from tweezer.ledger.database import Database
from tweezer.ledger.queries import tasks
from tweezer.ledger.queries.filters import BatchFilter, BatchOrder, JobFilter, JobOrder, PageRequest, job_key
from tweezer.ledger.queries.lists import ListPage
from tweezer.ledger.queries.queries import Queries
from tweezer.ledger.queries.tasks import TaskFilter, TaskPage, TaskRecord
from tweezer.model import windows
from tweezer.model.errors import InvalidInput, NotFound, Unavailable
from tweezer.model.events import Event
from tweezer.model.ids import device_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import decode_result, result_file
from tweezer.model.tasks import TaskStatus
from tweezer.store.connection import Store
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord, WorkerRecord
from tweezer.store.scripts import split_pages

T = TypeVar("T")

READS_MAX = 48
"""Concurrent reads of all requests of the process: fewer than the store's connections, whose pool does not queue."""

_READY_S = 2.0
_PAGE = 500  # jobs of a batch that are filtered at a time
_REST_MAX_S = 0.1  # the longest pause between two pages; it lasts as long as the last page took


class ReadModel(BatchReader):
    """The reads of the API: batches and jobs with their lists and counts, and devices.

    patience_s: how long a read waits behind others before Unavailable is raised. All methods raise Unavailable when
    Redis, or the ledger where it is needed, does not answer.
    """

    def __init__(self, store: Store, database: Database, *, patience_s: float) -> None:
        self._queries = Queries(database)
        super().__init__(store, self._queries, ask=self._ask_in_turn, ask_for_job=ask_at_once)
        self._patience_s = patience_s
        self._turns = asyncio.Semaphore(READS_MAX)
        self._scans: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by account, while it scans

    async def list_batches(
        self, caller: Principal, wanted: BatchFilter, order: BatchOrder, paging: PageRequest
    ) -> ListPage[BatchRecord]:
        """Return a page of batches from the ledger, without their sequences."""
        return await self._queries.ask(self._queries.batches, caller, wanted, order, paging)

    async def list_jobs(
        self, caller: Principal, wanted: JobFilter, order: JobOrder, paging: PageRequest
    ) -> ListPage[JobRecord]:
        """Return a page of jobs: the current ones if the filter names one batch, else those in the ledger."""
        if len(wanted.batches) == 1:
            found = await self.live_batch(caller, wanted.batches[0])
            if found is not None:
                return await self._list_live_jobs(caller, found[0], wanted, order, paging)
        return await self._queries.ask(self._queries.jobs, caller, wanted, order, paging)

    async def list_tasks(self, caller: Principal, wanted: TaskFilter, *, limit: int, offset: int) -> TaskPage:
        """Return a page of tasks from the ledger; of those that have not ended there, the current state."""
        page = await self._queries.ask(
            partial(tasks.list_tasks, self._queries.database, caller, wanted, limit=limit, offset=offset)
        )
        live = {task.batch.id: task.batch.doc for task in page.tasks if not task.batch.status.terminal}
        if not live:
            return page
        current = await self._ask_in_turn(partial(self._store.index.current, live))
        found = [msgspec.structs.replace(task, batch=current.get(task.batch.id, task.batch)) for task in page.tasks]
        return msgspec.structs.replace(page, tasks=found)

    async def task(self, caller: Principal, task_id: UUID, *, jobs_max: int) -> TaskRecord:
        """Return the current state of a task, with its jobs if there are at most ``jobs_max``. Raises NotFound."""
        batch, jobs = await self.batch_with_jobs(caller, task_id, jobs_max=jobs_max)
        recorded = await self.recorded_tasks(caller, [task_id])
        return TaskRecord(batch, recorded[0].extras if recorded else None, tuple(jobs))

    async def recorded_tasks(self, caller: Principal, task_ids: Sequence[UUID]) -> list[TaskRecord]:
        """Return those of the tasks that are recorded, as they are in the ledger."""
        return await self._queries.ask(tasks.read_tasks, self._queries.database, caller, task_ids)

    async def task_counts(self, caller: Principal) -> dict[TaskStatus, int]:
        """Count the recorded tasks by status, without archived ones."""
        return await self._queries.ask(tasks.count_tasks, self._queries.database, caller)

    async def batch_counts(self, caller: Principal, wanted: BatchFilter) -> dict[BatchStatus, int]:
        """Count the batches of the ledger by status."""
        return await self._queries.ask(self._queries.batch_counts, caller, wanted)

    async def job_counts(self, caller: Principal, wanted: JobFilter) -> dict[JobStatus, int]:
        """Count the jobs of the ledger by status."""
        return await self._queries.ask(self._queries.job_counts, caller, wanted)

    async def transitions(self, caller: Principal, job_id: UUID) -> list[Event]:
        """Return the recorded transitions of the job, oldest first. Raises NotFound."""
        await self.job(caller, job_id)
        return await self._queries.ask(self._queries.transitions, job_id)

    async def packed_result(self, job: JobRecord) -> bytes | None:
        """Return the packed result of the job, if it has one."""
        if not job.may_have_result:
            return None
        return (await self.packed_results(job.batch_id, [job.index])).get(job.index)

    async def machine_ids(self, batch: BatchRecord, indices: Sequence[int]) -> dict[int, str]:
        """Return the ids that a machine or another server gave to these jobs, by index, as far as they are known."""
        async with self._turn():
            device = await self._store.reader.device(batch.device)
        if device is not None and not device.reattaches:
            return {}
        found: dict[int, str] = {}
        for page in split_pages(indices, _PAGE):
            found |= await self._ask_in_turn(partial(self._store.remote.machine_ids, batch.id, page))
            for index, data in (await self.packed_results(batch.id, page)).items():
                provenance = None if result_file(data) is not None else decode_result(data).provenance
                if provenance is not None and provenance.remote_id is not None:
                    found.setdefault(index, provenance.remote_id)
        return found

    async def devices(self) -> list[DeviceRecord]:
        """Return all devices, sorted by name."""
        return await self._ask_in_turn(self._store.reader.devices)

    async def workers(self) -> list[WorkerRecord]:
        """Return the live workers of all devices."""
        return await self._ask_in_turn(self._store.reader.workers)

    async def device(self, name: str) -> DeviceRecord:
        """Return the device with this name or id. Raises NotFound."""
        async with self._turn():
            device = await self._store.reader.device(name)
            if device is None:
                devices = await self._store.reader.devices()
                device = next((each for each in devices if str(device_id(each.name)) == name.lower()), None)
        if device is None:
            raise NotFound("device", name)
        return device

    async def device_of_new(self, batch: BatchRecord) -> DeviceRecord | None:
        """Return the device of a batch that was just submitted, from its state of the last seconds."""
        with contextlib.suppress(InvalidInput):  # it has been removed since
            return await self._store.admission.device(batch.device) if batch.may_wait else None
        return None

    async def devices_of_waiting(self, batches: Iterable[BatchRecord]) -> dict[str, DeviceRecord]:
        """Return the devices of those batches that may wait for theirs, by name."""
        names = sorted({batch.device for batch in batches if batch.may_wait})
        async with self._turn() if names else contextlib.nullcontext():
            found = [await self._store.reader.device(name) for name in names]
        return {device.name: device for device in found if device is not None}

    async def windows(self, device: str) -> list[windows.Window]:
        """Return the device's current and planned maintenance windows, in order."""
        async with self._turn():
            return await self._store.reader.windows(device)

    async def device_specs(self) -> dict[str, str]:
        """Return the specs of all devices by name, each as Pulser's abstract representation."""
        return await self._ask_in_turn(self._store.reader.device_specs)

    async def check(self) -> None:
        """Check that Redis and the ledger respond within two seconds each. Raises Unavailable."""
        try:
            async with asyncio.timeout(_READY_S), self._turn():
                await self._store.reader.ping()
        except TimeoutError as error:
            raise Unavailable(f"Redis has not responded for {_READY_S:g} s") from error
        try:
            async with asyncio.timeout(_READY_S):
                await self._queries.ask(self._queries.ping)
        except TimeoutError as error:
            raise Unavailable(f"the ledger's database has not responded for {_READY_S:g} s") from error

    async def pages(
        self, caller: Principal, batch: BatchRecord, indices: Sequence[int]
    ) -> AsyncGenerator[list[JobRecord], None]:
        """Yield the jobs in pages, with pauses in between. An account reads one batch at a time in this way."""
        turn = self._scans.setdefault(caller.account, asyncio.Lock())
        async with turn:
            for first in range(0, len(indices), _PAGE):
                began = time.monotonic()
                jobs = await self.jobs(batch, indices[first : first + _PAGE])
                yield jobs
                await asyncio.sleep(min(time.monotonic() - began, _REST_MAX_S))

    async def _list_live_jobs(
        self, caller: Principal, batch: BatchRecord, wanted: JobFilter, order: JobOrder, paging: PageRequest
    ) -> ListPage[JobRecord]:
        if not wanted.takes_from(batch):
            return ListPage([], 0)
        indices: Sequence[int] = range(batch.jobs)
        if not wanted.takes_whole_batches or job_key(order) is not None:
            indices = await self._select(caller, batch, wanted, order, descending=paging.descending)
        elif paging.descending:
            indices = indices[::-1]
        page = indices[paging.offset : paging.offset + paging.limit]
        return ListPage(await self.jobs(batch, page), len(indices))

    async def _select(
        self, caller: Principal, batch: BatchRecord, wanted: JobFilter, order: JobOrder, *, descending: bool
    ) -> list[int]:
        """Return the indices of the jobs that match the filter, in order."""
        key = job_key(order)
        found: list[tuple[Any, int]] = []
        async with contextlib.aclosing(self.pages(caller, batch, range(batch.jobs))) as pages:
            async for jobs in pages:
                found += [(None if key is None else key(job), job.index) for job in jobs if wanted.takes(job)]
        with_value = sorted(((value, index) for value, index in found if value is not None), reverse=descending)
        without = sorted((index for value, index in found if value is None), reverse=descending)
        return [index for _, index in with_value] + without

    async def _ask_in_turn(self, call: Callable[[], Awaitable[T]]) -> T:
        async with self._turn():
            return await call()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._patience_s if self._turns.locked() else None):
                await self._turns.acquire()
        except TimeoutError as error:
            raise Unavailable(f"too many reads are waiting for Redis; try again: {READS_MAX} are running") from error
        try:
            yield
        finally:
            self._turns.release()
