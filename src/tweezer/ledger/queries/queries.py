"""Queries of the ledger: batches, jobs, results and transitions by id, and lists of batches and jobs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from sqlalchemy import BindParameter, Connection, Row, Select, and_, bindparam, literal, or_, select

from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.dead_letters import Consumer
from tweezer.ledger.migrate import exists, require_schema, schema_version
from tweezer.ledger.positions import recorded_entry, recorder_position
from tweezer.ledger.queries.filters import BatchFilter, BatchOrder, JobFilter, JobOrder, PageRequest
from tweezer.ledger.queries.lists import Listing, ListPage, Scope
from tweezer.ledger.schema import batches, dead_letters, jobs, projects, results, sequences, transitions
from tweezer.model.cancels import read_attempts
from tweezer.model.events import Event
from tweezer.model.ids import job_id, split_job_id
from tweezer.model.lifecycle import BATCH_BY_LETTER, JOB_BY_LETTER, BatchStatus, JobStatus
from tweezer.model.messages import decode_fault
from tweezer.store.records import BatchRecord, JobOwner, JobRecord, batch_record, has_cancels, job_record
from tweezer.store.scripts import split_pages
from tweezer.store.snapshots import Snapshot, SnapshotRequest
from tweezer.store.streams.feed import Entry, position_number

T = TypeVar("T")

_PAGE = 500  # ids in one statement
_CHILDREN_MAX = 1000

_fields_decoder = msgspec.msgpack.Decoder(dict[str, bytes])


_FAULTS = and_(results.c.id == jobs.c.id, jobs.c.failed)
_RECORD: Select[Any] = select(batches.c.record).where(batches.c.id == bindparam("id"))
_BATCH: Select[Any] = (
    select(batches.c.about, sequences.c.sequence)
    .select_from(batches.outerjoin(sequences, sequences.c.id == batches.c.id))
    .where(batches.c.id == bindparam("id"))
)
_JOB: Select[Any] = (
    select(jobs.c.spec, jobs.c.state, results.c.fault)
    .select_from(jobs.outerjoin(results, _FAULTS))
    .where(jobs.c.id == bindparam("id"))
)
_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_ALL_BATCHES: Select[Any] = select(batches.c.id, batches.c.record, batches.c.about, batches.c.jobs)
_BATCHES = _ALL_BATCHES.where(batches.c.id.in_(_IDS))
_ALL_JOBS: Select[Any] = select(
    jobs.c.id, jobs.c.project, jobs.c.status, jobs.c.spec, jobs.c.state, results.c.fault
).select_from(jobs.outerjoin(results, _FAULTS))
_JOBS = _ALL_JOBS.where(jobs.c.id.in_(_IDS))
_JOB_SNAPSHOTS: Select[Any] = (
    select(jobs.c.id, jobs.c.spec, jobs.c.state, results.c.result, results.c.fault)
    .select_from(jobs.outerjoin(results, results.c.id == jobs.c.id))
    .where(jobs.c.id.in_(_IDS))
)
_RECORDS: Select[Any] = select(batches.c.id, batches.c.record).where(batches.c.id.in_(_IDS))
_ENDS = select(batches.c.id, batches.c.status, batches.c.record).where(batches.c.id.in_(_IDS))
_CHILDREN = select(batches.c.id).where(batches.c.parent == bindparam("id")).order_by(batches.c.id).limit(_CHILDREN_MAX)
_REPEATED = select(batches.c.parent).where(batches.c.parent.in_(_IDS)).distinct()
_RESULT = select(results.c.result).where(results.c.id == bindparam("id"))
_PARKED = (
    select(dead_letters.c.batch)
    .where(dead_letters.c.consumer == Consumer.RECORDER, dead_letters.c.batch.is_not(None))
    .distinct()
)
_SPACED = literal(" ") + transitions.c.words
_TRANSITIONS = (
    select(transitions)
    .where(transitions.c.batch == bindparam("batch"))
    .where(
        or_(  # the word of a range may include any job
            _SPACED.like(bindparam("pending")), _SPACED.like(bindparam("running")), transitions.c.words.like("%-%")
        )
    )
    .order_by(transitions.c.position)
)
_ENTRIES = (
    select(transitions)
    .where(transitions.c.batch == bindparam("batch"), transitions.c.position > bindparam("after"))
    .order_by(transitions.c.position)
    .limit(_PAGE)
)


class Queries:
    """Queries of the ledger.

    All methods block, except :meth:`ask`, which runs them in a thread, and raise Unavailable. Objects that the caller
    may not see are treated as if they did not exist.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(cls, place: OpenDatabase) -> Queries | None:
        """Open a ledger's database for queries only; :meth:`close` closes it. Return None if it has no tables yet.

        Raises InvalidInput, and TweezerError if the tables are not those that this version needs.
        """
        with ExitStack() as unfit:
            database = Database.open(place)
            unfit.callback(database.close)
            if exists(database) and schema_version(database) is not None:
                require_schema(database)
                unfit.pop_all()
                return cls(database)
        return None

    def close(self) -> None:
        self.database.close()

    async def ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """Call one of the methods in a thread of the database."""
        return await self.database.run(question, *arguments)

    def ping(self) -> None:
        """Raise Unavailable if the database does not respond."""
        with self.database.read() as connection:
            connection.execute(select(1))

    def recorded(self, namespace: str) -> tuple[int, list[UUID]]:
        """Return how far the stream is recorded, and the batches that are parked: their rows are missing or old.

        The former is the time of the last recorded entry, in milliseconds since 1970; 0 for none.
        """
        with self.database.read() as connection:
            parked = list(connection.execute(_PARKED).scalars())
            return recorder_position(connection, namespace) >> 20, parked  # as in position_number

    def projects(self) -> list[str]:
        """Return the ids of all projects."""
        with self.database.read() as connection:
            return list(connection.execute(select(projects.c.id)).scalars())

    # -- by id ------------------------------------------------------------------------------------------

    def batch(self, caller: Principal, batch_id: UUID) -> BatchRecord | None:
        """Return the batch with its sequence and the ids of the batches that repeat it (at most 1,000), or None."""
        with self.database.read() as connection:
            fields = _fields_for(connection, caller, batch_id)
            if fields is None:
                return None
            row = connection.execute(_BATCH, {"id": batch_id}).one()
            children = tuple(connection.execute(_CHILDREN, {"id": batch_id}).scalars())
        record = batch_record(batch_id, {**fields, "doc": row.about})
        doc = msgspec.structs.replace(record.doc, sequence=row.sequence)
        return msgspec.structs.replace(record, doc=doc, children=children)

    def ends(self, project: str, batch_ids: Collection[UUID]) -> dict[UUID, str]:
        """Return the ends of batches of a project as :func:`read_ends`."""
        with self.database.read() as connection:
            return read_ends(connection, batch_ids, project)

    def repeated(self, batch_ids: Sequence[UUID]) -> set[UUID]:
        """Return those of the batches that another batch repeats."""
        with self.database.read() as connection:
            pages = split_pages(batch_ids, _PAGE)
            return {row for page in pages for row in connection.execute(_REPEATED, {"ids": page}).scalars()}

    def job(self, caller: Principal, job_id: UUID) -> JobRecord | None:
        """Return the job, or None."""
        batch_id, index = split_job_id(job_id)
        with self.database.read() as connection:
            fields = _fields_for(connection, caller, batch_id)
            row = None if fields is None else connection.execute(_JOB, {"id": job_id}).one_or_none()
        if fields is None or row is None:
            return None
        return job_record(_owner(batch_id, fields), index, row.spec, _state(row), row.fault)

    def batch_jobs(self, batch: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        """Return the jobs of the batch that the ledger has, in the order of the indices."""
        found: dict[UUID, JobRecord] = {}
        ids = [job_id(batch.id, index) for index in indices]
        with self.database.read() as connection:
            for page in split_pages(ids, _PAGE):
                for row in connection.execute(_JOBS, {"ids": page}):
                    _, index = split_job_id(row.id)
                    found[row.id] = job_record(batch, index, row.spec, _state(row), row.fault)
        return [found[identity] for identity in ids if identity in found]

    def packed_result(self, job_id: UUID) -> bytes | None:
        """Return a job's packed result, or None; the caller must have checked the job's project."""
        with self.database.read() as connection:
            packed: bytes | None = connection.execute(_RESULT, {"id": job_id}).scalar()
        return packed

    def transitions(self, job_id: UUID) -> list[Event]:
        """Return a job's recorded transitions, oldest first; the caller must have checked the job's project."""
        with self.database.read() as connection:
            entries = _entries_of_job(connection, job_id)
        return _events_of_job(entries, job_id)

    def transitions_and_position(self, job_id: UUID, namespace: str) -> tuple[list[Event], int]:
        """Return the same as :meth:`transitions`, and the position in the stream up to which they are complete."""
        with self.database.read() as connection:
            position = recorder_position(connection, namespace)  # first, because more may be recorded meanwhile
            entries = [it for it in _entries_of_job(connection, job_id) if position_number(it.id) <= position]
        return _events_of_job(entries, job_id), position

    def entries(self, batch_id: UUID, after: int) -> list[Entry]:
        """Return the batch's next recorded entries after a position, oldest first.

        The caller must have checked the batch's project.
        """
        with self.database.read() as connection:
            rows = connection.execute(_ENTRIES, {"batch": batch_id, "after": after}).all()
        return list(map(recorded_entry, rows))

    def snapshots(self, wanted: Sequence[SnapshotRequest]) -> dict[UUID, Snapshot]:
        """Return the batches that the ledger has, with their doc (without the sequence) and the touched jobs."""
        found: dict[UUID, Snapshot] = {}
        with self.database.read() as connection:
            for page in split_pages([want.batch_id for want in wanted], _PAGE):
                for row in connection.execute(_BATCHES, {"ids": page}):
                    found[row.id] = Snapshot(row.id, _fields_decoder.decode(row.record), row.jobs, row.about)
            ids = [job_id(want.batch_id, index) for want in wanted if want.batch_id in found for index in want.touched]
            for page in split_pages(ids, _PAGE):
                for row in connection.execute(_JOB_SNAPSHOTS, {"ids": page}):
                    batch_id, index = split_job_id(row.id)
                    _add_job(found[batch_id], index, row)
        return found

    # -- lists ------------------------------------------------------------------------------------------

    def batches(
        self,
        caller: Principal,
        wanted: BatchFilter,
        order: BatchOrder = BatchOrder.CREATED,
        paging: PageRequest | None = None,
    ) -> ListPage[BatchRecord]:
        """Return a page of batches, without their sequences."""
        paging = paging or PageRequest()
        with self.database.read() as connection:
            scope = Scope.read(connection, caller, wanted.projects)
            page = Listing(connection, scope, wanted).page(order, paging, _ALL_BATCHES)
        return ListPage([listed_batch(row) for row in page.rows], page.total)

    def jobs(
        self,
        caller: Principal,
        wanted: JobFilter,
        order: JobOrder = JobOrder.CREATED,
        paging: PageRequest | None = None,
    ) -> ListPage[JobRecord]:
        """Return a page of jobs."""
        paging = paging or PageRequest()
        with self.database.read() as connection:
            scope = Scope.read(connection, caller, wanted.projects)
            page = Listing(connection, scope, wanted).page(order, paging, _ALL_JOBS)
            return ListPage(_listed_jobs(connection, scope, page.rows), page.total)

    def batch_counts(self, caller: Principal, wanted: BatchFilter) -> dict[BatchStatus, int]:
        """Return the number of batches in each status, counted consistently."""
        found = self._counts(caller, wanted)
        return dict.fromkeys(BatchStatus, 0) | {BATCH_BY_LETTER[letter]: count for letter, count in found.items()}

    def job_counts(self, caller: Principal, wanted: JobFilter) -> dict[JobStatus, int]:
        """Return the number of jobs in each status, counted consistently."""
        found = self._counts(caller, wanted)
        return dict.fromkeys(JobStatus, 0) | {JOB_BY_LETTER[letter]: count for letter, count in found.items()}

    def _counts(self, caller: Principal, wanted: BatchFilter | JobFilter) -> dict[str, int]:
        with self.database.read() as connection:
            return Listing(connection, Scope.read(connection, caller, wanted.projects), wanted).counts()


def _add_job(snapshot: Snapshot, index: int, row: Row[Any]) -> None:
    snapshot.specs[index] = row.spec
    for column, value in ((snapshot.states, _state(row)), (snapshot.results, row.result), (snapshot.faults, row.fault)):
        if value is not None:
            column[index] = value


def _entries_of_job(connection: Connection, job_id: UUID) -> list[Entry]:
    """Return the recorded entries that may have an event of the job, oldest first."""
    batch_id, index = split_job_id(job_id)
    likely = {"pending": f"% {index}P%", "running": f"% {index}R%"}
    return list(map(recorded_entry, connection.execute(_TRANSITIONS, {"batch": batch_id, **likely})))


def _events_of_job(entries: Iterable[Entry], job_id: UUID) -> list[Event]:
    _, index = split_job_id(job_id)
    return [event for entry in entries for event in entry.events if event.index == index]


def read_ends(connection: Connection, batch_ids: Collection[UUID], project: str | None = None) -> dict[UUID, str]:
    """Return how batches ended, as in :attr:`~tweezer.store.records.BatchRecord.end`, without those that do not exist.

    project: return only those of this project.
    """
    found = {}
    for batch_id, status, record in connection.execute(_ENDS, {"ids": list(batch_ids)}):
        fields = _fields_decoder.decode(record)
        if project in (None, fields["project"].decode()):
            has_failed = fields.get("error", b"0") != b"0"
            is_over = BATCH_BY_LETTER[status].terminal
            found[batch_id] = f"{status}{'F' if has_failed else ''}" if is_over else ""
    return found


def _fields_for(connection: Connection, caller: Principal, batch_id: UUID) -> dict[str, bytes] | None:
    """Return the record of a batch if the caller may see it; only then more of it is read."""
    record = connection.execute(_RECORD, {"id": batch_id}).scalar()
    fields = None if record is None else _fields_decoder.decode(record)
    return fields if fields is not None and caller.sees(fields["project"].decode()) else None


def listed_batch(row: Row[Any]) -> BatchRecord:
    return batch_record(row.id, {**_fields_decoder.decode(row.record), "doc": row.about})


def _state(row: Row[Any]) -> bytes | None:
    return None if row.state is None else row.state.encode()


def _listed_jobs(connection: Connection, scope: Scope, rows: Iterable[Row[Any]]) -> list[JobRecord]:
    """Return the jobs of the rows; from their batches, the fault that a job shares, and the cancel requests."""
    placed = [(*split_job_id(row.id), _state(row), row) for row in rows]
    owners, more = {}, set()
    for batch_id, _, state, row in placed:
        if batch_id not in owners:
            owners[batch_id] = JobOwner(batch_id, scope.projects[row.project])
        if (row.status == JobStatus.ERROR.letter and row.fault is None) or has_cancels(state):
            more.add(batch_id)
    if more:
        for row in connection.execute(_RECORDS, {"ids": list(more)}):
            owners[row.id] = _owner(row.id, _fields_decoder.decode(row.record))
    return [job_record(owners[batch_id], index, row.spec, state, row.fault) for batch_id, index, state, row in placed]


def _owner(batch_id: UUID, fields: dict[str, bytes]) -> JobOwner:
    fault = decode_fault(fields["fault"]) if "fault" in fields else None
    cancels = read_attempts(fields.get("cancels", b"").decode())
    return JobOwner(batch_id, fields["project"].decode(), fault, cancels)
