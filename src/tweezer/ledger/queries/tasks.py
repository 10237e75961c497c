"""Tasks: batches seen as one unit, with lists, counts by status, and what the ledger adds to the batch in Redis."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self
from uuid import UUID

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    FunctionElement,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    func,
    or_,
    select,
    union_all,
)
from sqlalchemy.ext.compiler import compiles

from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.database import Database
from tweezer.ledger.queries.lists import MERGED_MAX, Condition, Scope, is_any_of, tag_conditions
from tweezer.ledger.queries.queries import listed_batch
from tweezer.ledger.schema import NAME, as_datetime, batch_names, batches, counters, result_sizes
from tweezer.model.lifecycle import BATCH_BY_LETTER, BatchStatus, JobStatus
from tweezer.model.tasks import STATES, StateFilter, TaskState, TaskStatus, task_status
from tweezer.store.records import BatchRecord, JobRecord

NAMES_SCANNED = 5000
"""The newest tasks whose names are searched for a text."""


class TaskFilter(msgspec.Struct, frozen=True):
    """A filter for tasks, which must match all given criteria. tags: groups; a task has any tag of each group."""

    status: TaskStatus | None = None
    state: StateFilter = StateFilter.CURRENT
    backend: str | None = None
    tags: tuple[tuple[str, ...], ...] = ()
    name_contains: str = ""

    @property
    def is_coarse(self) -> bool:
        """Whether the counters of tasks are sufficient to count those that match."""
        return msgspec.structs.replace(self, status=None, backend=None) == TaskFilter()


class TaskExtras(msgspec.Struct, frozen=True):
    """What the ledger has of a task beside its batch.

    Attributes:
        status: The recorded status of the batch.
        shots: Number of shots of all of its jobs.
        device_s: Time on the device of its ended jobs, in seconds.
        previous: Its status before the last transition; None if none is recorded.
        changed: Time of the last transition, and ``previously`` of the one before; None if they are not recorded.
        archived: When it was archived; None if it is not.
        has_result: Whether any of its jobs has a recorded result.
    """

    status: BatchStatus
    shots: int
    device_s: float
    previous: BatchStatus | None
    changed: datetime | None
    previously: datetime | None
    archived: datetime | None
    has_result: bool

    @classmethod
    def read(cls, row: Row[Any]) -> Self:
        """Return the extras in a row of ``_TASKS``."""
        return cls(
            status=BATCH_BY_LETTER[row.status],
            shots=int(row.shots),
            device_s=int(row.device_ms) / 1000,
            previous=None if row.previous is None else BATCH_BY_LETTER[row.previous],
            changed=as_datetime(row.changed_ms),
            previously=as_datetime(row.previous_ms),
            archived=as_datetime(row.archived_ms),
            has_result=bool(row.bytes),
        )


class TaskRecord(msgspec.Struct, frozen=True):
    """A task: the current state of a batch, what the ledger adds to it, and its jobs if they were read.

    Attributes:
        extras: None until the batch is recorded.
        jobs: Its jobs in their order; empty if they were not read.
    """

    batch: BatchRecord
    extras: TaskExtras | None = None
    jobs: tuple[JobRecord, ...] = ()

    @property
    def status(self) -> TaskStatus:
        """The coarse status."""
        return task_status(self.batch.status, has_failures=self.batch.counts[JobStatus.ERROR] > 0)

    @property
    def state(self) -> TaskState:
        """The exact state."""
        return STATES[self.batch.status]

    @property
    def shots(self) -> int | None:
        """The number of shots of all jobs; None if they were neither recorded nor read."""
        if len(self.jobs) == self.batch.jobs:
            return sum(job.spec.runs or job.spec.runs_shown or 1 for job in self.jobs)
        return None if self.extras is None else self.extras.shots

    @property
    def archived(self) -> datetime | None:
        """When it was archived; None if it is not."""
        return None if self.extras is None else self.extras.archived

    @property
    def has_result(self) -> bool:
        """Whether any of its jobs has a result."""
        return self.batch.counts[JobStatus.DONE] > 0 or (self.extras is not None and self.extras.has_result)

    @property
    def device_s(self) -> float:
        """The time on the device of its ended jobs, in seconds, as far as it is recorded."""
        return 0.0 if self.extras is None else self.extras.device_s

    @property
    def ended_jobs(self) -> int:
        """The number of its jobs that have ended."""
        return sum(count for status, count in self.batch.counts.items() if status.terminal)

    @property
    def error(self) -> str | None:
        """Why it failed, for people; None if it did not."""
        batch = self.batch
        if batch.fault is not None:
            return str(batch.fault)
        if batch.counts[JobStatus.ERROR]:
            return f"{batch.counts[JobStatus.ERROR]} of {batch.jobs} jobs failed"
        return "the open batch had no work for too long" if batch.status is BatchStatus.TIMED_OUT else None

    @property
    def first_failed(self) -> JobRecord | None:
        """The first of the jobs that failed."""
        return next((job for job in self.jobs if job.status is JobStatus.ERROR), None)

    def transitions(self) -> tuple[BatchStatus | None, datetime, datetime | None]:
        """Return the previous status, and the times of the last two transitions of the batch.

        For a transition that is not recorded they follow from the times of the batch.
        """
        batch, extras = self.batch, self.extras
        if extras is not None and extras.status is batch.status and extras.changed is not None:
            return extras.previous, extras.changed, extras.previously
        earlier = batch.created if batch.started is None else batch.started
        before = BatchStatus.PENDING if batch.started is None else BatchStatus.RUNNING
        if extras is not None and extras.status is not batch.status:
            before, earlier = extras.status, extras.changed or earlier
        if batch.ended is not None:
            return before, batch.ended, earlier
        match batch.status:
            case BatchStatus.PAUSED:
                return before, batch.updated if batch.pause is None else batch.pause.at, earlier
            case BatchStatus.RUNNING if batch.started is not None:
                return BatchStatus.PENDING, batch.started, batch.created
            case _:
                return None, batch.created, None


class TaskPage(msgspec.Struct, frozen=True):
    """A page of tasks, and the number of tasks on all pages.

    is_cut: whether only the names of the newest tasks were searched, because there are more than NAMES_SCANNED.
    """

    tasks: list[TaskRecord]
    total: int
    is_cut: bool = False


_EXTRAS = (
    *(batches.c.status, batches.c.shots, batches.c.device_ms, batches.c.previous, batches.c.changed_ms),
    *(batches.c.previous_ms, batches.c.archived_ms, result_sizes.c.bytes),
)
_TASKS: Select[Any] = (
    select(batches.c.id, batches.c.record, batches.c.about, *_EXTRAS)
    .select_from(batches.outerjoin(result_sizes, result_sizes.c.batch == batches.c.id))
    .where(batches.c.id.in_(bindparam("ids", expanding=True)))
)
_NEWEST = (batches.c.created_ms.desc(), batches.c.id.desc())


class text_position(FunctionElement[int]):  # noqa: N801  a function of SQL
    """The position of a text in another one, which case matters for; 0 if it is not found."""

    inherit_cache = True
    type = Integer()
    sqlite, postgresql = "instr", "strpos"


@compiles(text_position)
def _compile_position(element: text_position, compiler: Any, **options: Any) -> str:
    return f"{getattr(element, compiler.dialect.name)}({compiler.process(element.clauses, **options)})"


def list_tasks(database: Database, caller: Principal, wanted: TaskFilter, *, limit: int, offset: int) -> TaskPage:
    """Return a page of the caller's tasks, newest first, as they are recorded, without their sequences."""
    with database.read() as connection:
        scope = Scope.read(connection, caller)
        conditions = [*_conditions(wanted), *tag_conditions(batches, wanted.tags, scope)]
        if wanted.name_contains:
            return _search_names(connection, scope, conditions, wanted.name_contains, limit, offset)
        ids = _newest(connection, scope, conditions, limit, offset)
        if len(ids) < limit and (ids or not offset):
            total = offset + len(ids)
        elif wanted.is_coarse:
            total = sum(_counts(connection, scope, wanted).values())
        else:
            every = select(func.count()).select_from(batches).where(*scope.condition(batches), *conditions)
            total = int(connection.execute(every).scalar_one())
        return TaskPage(_read(connection, ids), total)


def read_tasks(database: Database, caller: Principal, batch_ids: Sequence[UUID]) -> list[TaskRecord]:
    """Return those of the tasks that are recorded and that the caller may see, in the order of their ids."""
    with database.read() as connection:
        found = _read(connection, batch_ids)
    return [task for task in found if caller.sees(task.batch.project)]


def count_tasks(database: Database, caller: Principal) -> dict[TaskStatus, int]:
    """Return the number of the caller's tasks in each status, without archived ones, from one statement."""
    with database.read() as connection:
        return _counts(connection, Scope.read(connection, caller), TaskFilter())


def _conditions(wanted: TaskFilter) -> list[Condition]:
    """Return the conditions of the filter on batches, except tags, names and projects."""
    is_archived = wanted.state is StateFilter.ARCHIVED
    found: list[Condition] = [batches.c.archived_ms.is_not(None) if is_archived else batches.c.archived_ms.is_(None)]
    if len(wanted.state.statuses) < len(BatchStatus):
        found.append(is_any_of(batches.c.status, sorted(status.letter for status in wanted.state.statuses)))
    if wanted.backend is not None:
        found.append(batches.c.device == wanted.backend)
    if wanted.status is not None:
        found.append(_has_status(wanted.status))
    return found


def _has_status(wanted: TaskStatus) -> Condition:
    """Return the condition that a task has this coarse status."""
    found: list[Condition] = []
    for status in BatchStatus:
        is_status = batches.c.status == status.letter
        with_failures, without = (task_status(status, has_failures=it) is wanted for it in (True, False))
        if with_failures and without:
            found.append(is_status)
        elif with_failures or without:
            failed: ColumnElement[bool] = batches.c.failed > 0 if with_failures else batches.c.failed == 0
            found.append(and_(is_status, failed))
    return or_(*found)


def _newest(
    connection: Connection, scope: Scope, conditions: Sequence[Condition], limit: int, offset: int
) -> list[UUID]:
    """Return the ids of a page, newest first. In the index, the rows of a project are in this order."""
    if 1 < len(scope.projects) <= MERGED_MAX:
        firsts = [
            select(batches.c.id, batches.c.created_ms)
            .where(batches.c.project == no, *conditions)
            .order_by(*_NEWEST)
            .limit(offset + limit)
            .subquery()
            for no in scope.projects
        ]
        merged = union_all(*map(select, firsts)).subquery()
        query = select(merged.c.id).order_by(merged.c.created_ms.desc(), merged.c.id.desc())
    else:
        query = select(batches.c.id).where(*scope.condition(batches), *conditions).order_by(*_NEWEST)
    return [row[0] for row in connection.execute(query.limit(limit).offset(offset))]


def _search_names(
    connection: Connection, scope: Scope, conditions: Sequence[Condition], part: str, limit: int, offset: int
) -> TaskPage:
    """Return a page of those of the newest matching tasks whose name contains the text."""
    newest = _newest(connection, scope, conditions, NAMES_SCANNED + 1, 0)
    scanned = newest[:NAMES_SCANNED]
    found: set[UUID] = set()
    for first in range(0, len(scanned), _IDS_MAX):
        named = select(batch_names.c.batch).where(
            batch_names.c.batch.in_(scanned[first : first + _IDS_MAX]),
            batch_names.c.kind == NAME,
            text_position(batch_names.c.name, part) > 0,
        )
        found.update(row[0] for row in connection.execute(named))
    matching = [batch_id for batch_id in scanned if batch_id in found]
    return TaskPage(_read(connection, matching[offset : offset + limit]), len(matching), len(newest) > NAMES_SCANNED)


_IDS_MAX = 1000  # in one statement


def _counts(connection: Connection, scope: Scope, wanted: TaskFilter) -> dict[TaskStatus, int]:
    """Return the number of tasks by status, of those with the status and the backend of the filter."""
    conditions: list[Condition] = [counters.c.kind == "T", *scope.condition(counters)]
    if wanted.backend is not None:
        conditions.append(counters.c.device == wanted.backend)
    query = select(counters.c.status, func.sum(counters.c.count)).where(*conditions).group_by(counters.c.status)
    by_letter = {row[0]: int(row[1]) for row in connection.execute(query)}
    statuses = TaskStatus if wanted.status is None else (wanted.status,)
    return {status: by_letter.get(status.letter, 0) for status in statuses}


def _read(connection: Connection, batch_ids: Sequence[UUID]) -> list[TaskRecord]:
    """Return the tasks with these ids, in their order."""
    found: dict[UUID, TaskRecord] = {}
    for first in range(0, len(batch_ids), _IDS_MAX):
        for row in connection.execute(_TASKS, {"ids": batch_ids[first : first + _IDS_MAX]}):
            found[row.id] = TaskRecord(listed_batch(row), TaskExtras.read(row))
    return [found[batch_id] for batch_id in batch_ids if batch_id in found]
