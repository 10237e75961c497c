"""Reads batches and jobs from Redis, and from the ledger those that Redis has forgotten."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol, TypeVar
from uuid import UUID

import msgspec

from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.queries.filters import BatchFilter, BatchOrder, PageRequest
from tweezer.model.attempts import JobAttempt, read_attempts
from tweezer.model.errors import Conflict, EventsTrimmed, NotFound, ResultUnavailable, Unavailable
from tweezer.model.events import Event
from tweezer.model.ids import job_id, read_short_id
from tweezer.model.messages import Result
from tweezer.store.connection import Store
from tweezer.store.reader import Lookups
from tweezer.store.records import BatchRecord, JobRecord
from tweezer.store.snapshots import Snapshot, SnapshotRequest
from tweezer.store.streams.feed import Entry, position_id, position_number

if TYPE_CHECKING:  # the base install has no database
    from tweezer.ledger.queries.queries import Queries

T = TypeVar("T")

_Created = tuple[int, UUID]  # when a batch was created (ms), and its id
_PAGE = 100
_CANDIDATES_MAX = 10  # that an error lists
_EVENTS_PAGE = 1000  # entries of the stream
_EVENTS_MAX = 100_000  # entries that are not in the ledger yet
_REREADS_MAX = 3
_SLACK_MS = 1000  # maximum difference between the creation of a batch and the position of its first entry
LAST_PATTERN = r"@last(?:~([0-9]{1,4}))?"
_LAST = re.compile(LAST_PATTERN)
_UNNAMEABLE = re.compile(r"[\0\ud800-\udfff]")  # characters that no name has, and that databases reject


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

    async def batches(self, caller: Principal, wanted: BatchFilter) -> AsyncGenerator[BatchRecord, None]:
        """Yield the batches that match, newest first, from Redis and the ledger, without their sequences.

        Batches that the ledger has not recorded yet are read from Redis. Of the others, those that have not ended in
        the ledger are shown, and compared with the filter, in their current state.
        """
        queries, recorded_ms, parked = await self._open(), 0, list[UUID]()
        if queries is not None:
            recorded_ms, parked = await queries.ask(queries.recorded, self._store.keys.namespace)
        projects: Collection[str] = wanted.projects
        if not caller.sees_all:
            projects = caller.projects.intersection(projects) if projects else caller.projects
        elif not projects and queries is not None:
            projects = await queries.ask(queries.projects)
        unrecorded: set[UUID] = set()
        sources = [self._newest(project, wanted, recorded_ms - _SLACK_MS) for project in projects]
        sources.append(_by_id(parked))
        async with contextlib.aclosing(_pages(_merge(sources), wanted)) as pages:
            async for page in pages:
                for record in await self._ask(partial(self._store.index.records, page)):
                    is_first = record.id not in unrecorded
                    unrecorded.add(record.id)
                    if is_first and record.project in projects and wanted.takes(record):
                        yield msgspec.structs.replace(record, doc=msgspec.structs.replace(record.doc, sequence=None))
        if queries is not None:
            async with contextlib.aclosing(self._recorded(queries, caller, wanted)) as found:
                async for record in found:
                    if record.id not in unrecorded:
                        yield record

    async def newest_batches(
        self, caller: Principal, wanted: BatchFilter, most: int, *, without: Collection[UUID] = ()
    ) -> list[BatchRecord]:
        """Return the newest batches that match, except some, as :meth:`batches` yields them."""
        found: list[BatchRecord] = []
        async with contextlib.aclosing(self.batches(caller, wanted)) as each:
            async for record in each:
                if record.id not in without:
                    found.append(record)
                if len(found) == most:
                    break
        return found

    async def find(self, caller: Principal, text: str, *, projects: tuple[str, ...] = ()) -> UUID:
        """Return the id of the batch that a text names.

        The text is an id, a short id, ``@last`` (the last batch that the caller submitted; ``@last~1`` the one before
        it) or the name of a batch. The existence of an id is not checked. projects: look only in these. Raises
        NotFound; Conflict ("ambiguous") if several batches match.
        """
        with contextlib.suppress(ValueError):
            return UUID(text)
        if match := _LAST.fullmatch(text):
            users = () if caller.user is None else (caller.user,)
            number = int(match[1] or 0) + 1
            last = await self.newest_batches(caller, BatchFilter(users=users, projects=projects), number)
            if len(last) == number:
                return last[-1].id
            raise NotFound("batch", text)
        if _UNNAMEABLE.search(text):
            raise NotFound("batch", repr(text))
        short = read_short_id(text)
        ways = [BatchFilter(names=(text,), projects=projects)]
        if short is not None:
            ways.insert(0, BatchFilter(short_id=short, projects=projects))
        found: list[BatchRecord] = []
        for wanted in ways:
            found = found or await self.newest_batches(caller, wanted, _CANDIDATES_MAX)
        match found:
            case []:
                raise NotFound("batch", text)
            case [batch]:
                return batch.id
            case _:
                listed = "; ".join(f"{it.id}, {it.created:%Y-%m-%d %H:%M} UTC, {it.doc.name or '-'}" for it in found)
                raise Conflict(f"{text!r} is not unique; use an id, such as one of these: {listed}", code="ambiguous")

    async def find_ends(self, project: str, batch_ids: Collection[UUID]) -> dict[UUID, str]:
        """Return the recorded ends of batches of a project, as in :attr:`~tweezer.store.records.BatchRecord.end`."""
        queries = await self._open()
        return {} if queries is None else await queries.ask(queries.ends, project, batch_ids)

    async def repeated(self, batch_ids: Sequence[UUID]) -> set[UUID]:
        """Return those of the batches that another batch repeats."""
        found = await self._ask(partial(self._store.index.repeated, batch_ids))
        if (queries := await self._open()) is not None:
            found |= await queries.ask(queries.repeated, batch_ids)
        return found

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

    async def attempts(self, caller: Principal, job_id: UUID) -> list[JobAttempt]:
        """Return the attempts of the job, oldest first. Raises NotFound, EventsTrimmed."""
        job = await self.job(caller, job_id)
        events = await self._events_of_job(job)
        return read_attempts(events, started=job.started, fault=job.faults[0] if job.faults else None)

    async def _events_of_job(self, job: JobRecord) -> list[Event]:
        """Return the events of the job: those in the ledger, then those of the stream after them."""
        queries, rereads, scanned = await self._open(), 0, 0
        events: list[Event] = []
        position = max(round(job.created.timestamp() * 1000) - _SLACK_MS, 0) << 20
        if queries is not None:
            events, position = await queries.ask(queries.transitions_and_position, job.id, self._store.keys.namespace)
        while not (events and events[-1].status.terminal):
            read = partial(self._store.events.read_on, position_id(position), most=_EVENTS_PAGE)
            entries, trimmed = await self._ask(read)
            if position_number(trimmed) > position and queries is None and (job.attempt or job.started):
                raise EventsTrimmed(
                    f"events of job {job.id} may no longer be in Redis; set database_url=… or TWEEZER_DATABASE_URL to "
                    "the ledger that has them"
                )
            if position_number(trimmed) > position and queries is not None and rereads < _REREADS_MAX:
                rereads += 1  # what was trimmed has been recorded
                ask = (queries.transitions_and_position, job.id, self._store.keys.namespace)
                events, position = await queries.ask(*ask)
                continue
            of_batch = (entry for entry in entries if entry.batch_id == job.batch_id and not entry.is_restored)
            events += [event for entry in of_batch for event in entry.events if event.index == job.index]
            if len(entries) < _EVENTS_PAGE:
                break
            position, scanned = position_number(entries[-1].id), scanned + len(entries)
            if scanned >= _EVENTS_MAX and queries is not None:
                raise Unavailable("the ledger is too far behind to show attempts; check that a recorder runs")
        return events

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

    async def _newest(self, project: str, wanted: BatchFilter, since_ms: int) -> AsyncGenerator[_Created, None]:
        """Yield the project's batches in Redis that were created since then, within the times of the filter."""
        if wanted.created_from is not None:
            since_ms = max(since_ms, int(wanted.created_from.timestamp() * 1000))
        until_ms = None if wanted.created_to is None else int(wanted.created_to.timestamp() * 1000) + 1
        at_last: set[UUID] = set()  # batches that were created in the last millisecond that was read
        while True:
            read = partial(self._store.index.newest, project, since_ms=since_ms, until_ms=until_ms, without=at_last)
            page = await self._ask(read)
            if not page:
                return
            for created in page:
                yield created
            last_ms = page[-1][0]
            at_last = {it for at_ms, it in page if at_ms == last_ms} | (at_last if last_ms == until_ms else set())
            until_ms = last_ms

    async def _recorded(
        self, queries: Queries, caller: Principal, wanted: BatchFilter
    ) -> AsyncGenerator[BatchRecord, None]:
        """Yield the batches of the ledger that match in their current state, newest first."""
        until, at_last = wanted.created_to, set[UUID]()
        while True:
            asked = msgspec.structs.replace(wanted, created_to=until, with_live=True)
            paging = PageRequest(limit=_PAGE, offset=len(at_last), counted=False)
            rows = (await queries.ask(queries.batches, caller, asked, BatchOrder.CREATED, paging)).rows
            live = {row.id: row.doc for row in rows if not row.status.terminal}
            current = await self._ask(partial(self._store.index.current, live)) if live else {}
            for row in rows:
                record = current.get(row.id, row)
                if row.id not in at_last and (row.status.terminal or wanted.takes(record)):
                    yield record
            if len(rows) < _PAGE:
                return
            last = rows[-1].created
            at_last = {row.id for row in rows if row.created == last} | (at_last if last == until else set())
            until = last

    async def _open(self) -> Queries | None:
        return await self._ledger() if callable(self._ledger) else self._ledger


async def _merge(sources: Sequence[AsyncGenerator[_Created, None]]) -> AsyncGenerator[_Created, None]:
    """Merge sources that are sorted newest first."""
    heads = [(head, source) for source in sources if (head := await anext(source, None)) is not None]
    while heads:
        heads.sort(key=itemgetter(0))
        newest, source = heads.pop()
        yield newest
        if (head := await anext(source, None)) is not None:
            heads.append((head, source))


async def _by_id(batch_ids: Iterable[UUID]) -> AsyncGenerator[_Created, None]:
    """Yield batches by the time in their ids, newest first."""
    for batch_id in sorted(batch_ids, reverse=True):
        yield batch_id.int >> 80, batch_id


async def _pages(found: AsyncGenerator[_Created, None], wanted: BatchFilter) -> AsyncGenerator[list[UUID], None]:
    """Yield pages of the batches whose ids match."""
    page: list[UUID] = []
    async for _, batch_id in found:
        if wanted.takes_id(batch_id):
            page.append(batch_id)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page


def _visible_projects(caller: Principal) -> Collection[str] | None:
    """Return the projects that the caller may see; None means all."""
    return None if caller.sees_all else caller.projects
