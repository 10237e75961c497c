"""Reads batches and jobs from Redis, and from the ledger those that Redis has forgotten."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar
from uuid import UUID

from tweezer.ledger.access.credentials import Principal
from tweezer.model.errors import NotFound, ResultUnavailable
from tweezer.model.ids import job_id
from tweezer.model.messages import Result
from tweezer.store.connection import Store
from tweezer.store.reader import Lookups
from tweezer.store.records import BatchRecord, JobRecord
from tweezer.store.snapshots import Snapshot, SnapshotRequest
from tweezer.store.streams.feed import Entry

if TYPE_CHECKING:  # the base install has no database
    from tweezer.ledger.queries.queries import Queries

T = TypeVar("T")


class AskRedis(Protocol):
    """Makes a call to Redis: at once, after queueing, or with retries while Redis is unavailable."""

    async def __call__(self, call: Callable[[], Awaitable[T]], /) -> T: ...


async def ask_at_once(call: Callable[[], Awaitable[T]], /) -> T:
    return await call()


class BatchReader:
    """Reads batches for the API, the Python client, the command line and webhooks.

    All methods raise Unavailable. Batches that the caller may not see are treated as if they did not exist.

    Args:
        store: Access to Redis.
        ledger: The ledger's queries, or a function that opens them when they are first needed; None without a ledger.
        ask: How calls to Redis are made.
        ask_for_job: How calls for single jobs are made, if different; concurrent ones share a round trip.
    """

    def __init__(
        self,
        store: Store,
        ledger: Queries | Callable[[], Awaitable[Queries | None]] | None,
        *,
        ask: AskRedis = ask_at_once,
        ask_for_job: AskRedis | None = None,
    ) -> None:
        self._store = store
        self._lookups = Lookups(store.scripts)
        self._ledger = ledger
        self._ask = ask
        self._ask_for_job = ask_for_job or ask

    async def batch(self, caller: Principal, batch_id: UUID) -> BatchRecord:
        """Return the batch. Raises NotFound."""
        batch, _ = await self.batch_with_jobs(caller, batch_id, jobs_max=-1)
        return batch

    async def batch_with_jobs(
        self, caller: Principal, batch_id: UUID, *, jobs_max: int
    ) -> tuple[BatchRecord, list[JobRecord]]:
        """Return the batch, and its jobs if there are at most ``jobs_max``. Raises NotFound."""
        found = await self.live_batch(caller, batch_id, jobs_max=jobs_max)
        if found is not None:
            return found
        queries = await self._open()
        batch = None if queries is None else await queries.ask(queries.batch, caller, batch_id)
        if queries is None or batch is None:
            raise NotFound("batch", str(batch_id))
        if batch.jobs > jobs_max:
            return batch, []
        return batch, await queries.ask(queries.batch_jobs, batch, range(batch.jobs))

    async def live_batch(
        self, caller: Principal, batch_id: UUID, *, jobs_max: int = -1
    ) -> tuple[BatchRecord, list[JobRecord]] | None:
        """Return the same as :meth:`batch_with_jobs` if Redis has the batch, else None."""
        projects = _visible_projects(caller)
        return await self._ask(lambda: self._lookups.batch(batch_id, projects=projects, jobs_max=jobs_max))

    async def is_recorded(self, caller: Principal, batch_id: UUID) -> bool:
        """Return whether the ledger has the batch."""
        queries = await self._open()
        return queries is not None and await queries.ask(queries.batch, caller, batch_id) is not None

    async def job(self, caller: Principal, job_id: UUID) -> JobRecord:
        """Return the job. Raises NotFound."""
        projects = _visible_projects(caller)
        job = await self._ask_for_job(lambda: self._lookups.job(job_id, projects=projects))
        if job is None and (queries := await self._open()) is not None:
            job = await queries.ask(queries.job, caller, job_id)
        if job is None:
            raise NotFound("job", str(job_id))
        return job

    async def jobs(self, batch: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        """Return jobs of a batch that was read before, in the order of the indices; fewer if some were deleted."""
        found = await self._ask(lambda: self._store.reader.jobs(batch, indices))
        if len(found) < len(indices) and (queries := await self._open()) is not None:
            return await queries.ask(queries.batch_jobs, batch, indices)
        return found

    async def packed_results(self, batch_id: UUID, indices: Sequence[int]) -> dict[int, bytes]:
        """Return the existing results by index, packed; of a batch that was read before."""
        found = await self._ask(lambda: self._store.reader.packed_results(batch_id, indices))
        missing = [index for index in indices if index not in found]
        if missing and (queries := await self._open()) is not None:
            for index in missing:
                packed = await queries.ask(queries.packed_result, job_id(batch_id, index))
                if packed is not None:
                    found[index] = packed
        return found

    async def results(self, batch_id: UUID, indices: Sequence[int]) -> dict[int, Result | ResultUnavailable]:
        """Return the existing results by index, each unpacked or as the error why it cannot be read."""
        packed = await self.packed_results(batch_id, indices)
        return {index: await self._store.results.read(data) for index, data in packed.items()}

    async def entries(self, batch: BatchRecord, after: int) -> list[Entry]:
        """Return the batch's next recorded entries after a position, oldest first."""
        queries = await self._open()
        return [] if queries is None else await queries.ask(queries.entries, batch.id, after)

    async def snapshots(
        self, wanted: Sequence[SnapshotRequest], newest: Mapping[UUID, int] | None = None
    ) -> dict[UUID, Snapshot]:
        """Return batches with some of their jobs, from the ledger if Redis lacks them or has an older state.

        newest: by batch, the number of an event that the snapshot must include.
        """
        newest = newest or {}
        found = await self._ask(lambda: self._store.snapshots.take(wanted))
        lacking = []
        for want in wanted:
            snapshot = found.get(want.batch_id)
            if snapshot is None or snapshot.sequence_number < newest.get(want.batch_id, 0):
                lacking.append(want)
        if lacking and (queries := await self._open()) is not None:
            for batch_id, snapshot in (await queries.ask(queries.snapshots, lacking)).items():
                if batch_id not in found or found[batch_id].sequence_number < snapshot.sequence_number:
                    found[batch_id] = snapshot
        return found

    async def _open(self) -> Queries | None:
        return await self._ledger() if callable(self._ledger) else self._ledger


def _visible_projects(caller: Principal) -> Collection[str] | None:
    """Return the projects that the caller may see; None means all."""
    return None if caller.sees_all else caller.projects
