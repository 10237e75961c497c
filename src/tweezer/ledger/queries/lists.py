"""Pages of batches and jobs by filter, with exact totals, and counts by status.

Lists scan the index that begins with the project and has all columns to filter and order by. The cost of a page is
therefore limited by the size of the projects, regardless of the filter. If a filter on batch id, user, device, priority
or tags selects few batches, only the jobs of those batches are read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    FunctionElement,
    LargeBinary,
    Row,
    Select,
    Subquery,
    Table,
    and_,
    case,
    func,
    or_,
    select,
    union_all,
)
from sqlalchemy.ext.compiler import compiles

from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.queries.filters import BatchFilter, BatchOrder, JobFilter, JobOrder, PageRequest
from tweezer.ledger.schema import NAME, PARENT, SHORT_ID, Id, batch_names, batches, counters, jobs, projects, tags
from tweezer.model.lifecycle import TERMINAL_BATCH, BatchStatus
from tweezer.model.messages import Priority

Condition = ColumnElement[bool]

_EPOCH, _MILLISECOND = datetime.fromtimestamp(0, UTC), timedelta(milliseconds=1)
_LIVE = [status.letter for status in BatchStatus if status not in TERMINAL_BATCH]
_RANK = {Priority.LOW: 0, Priority.MEDIUM: 1, Priority.HIGH: 2}

_ORDERED_BY = {
    "CREATED": "created_ms",
    "UPDATED": "updated_ms",
    "STARTED": "started_ms",
    "ENDED": "ended_ms",
    "ERRORS": "failed",
    "BATCH": "id",
    "CREATION": "id",
}
"""The columns of orders whose name differs from the column's."""


class batch_part(FunctionElement[bytes]):  # noqa: N801  a function of SQL
    """The common prefix of the ids of a batch and its jobs: their first thirteen bytes."""

    inherit_cache = True
    type = LargeBinary()
    sqlite, postgresql = "substr({}, 1, 13)", "substring(uuid_send({}) FROM 1 FOR 13)"


class last_job_in(FunctionElement[UUID]):  # noqa: N801  a function of SQL
    """The last possible id of a job in a batch."""

    inherit_cache = True
    type = Id()
    sqlite = "CAST(substr({}, 1, 13) || x'ffffff' AS BLOB)"
    postgresql = "CAST(substr(CAST({} AS text), 1, 30) || 'ffffff' AS uuid)"


@compiles(batch_part)
@compiles(last_job_in)
def _compile_function(element: batch_part | last_job_in, compiler: Any, **options: Any) -> str:
    template: str = getattr(element, compiler.dialect.name)
    return template.format(compiler.process(element.clauses, **options))


class Scope(msgspec.Struct, frozen=True):
    """The projects that a query may read: ids by number. everything: whether these are all projects."""

    projects: dict[int, str]
    everything: bool

    @classmethod
    def read(cls, connection: Connection, caller: Principal, wanted: tuple[str, ...] = ()) -> Scope:
        """Return the wanted projects that the caller may see, or all that the caller may see."""
        names = None if caller.sees_all else caller.projects
        if wanted:
            names = frozenset(wanted) if names is None else names.intersection(wanted)
        statement = select(projects.c.no, projects.c.id)
        if names is not None:
            statement = statement.where(projects.c.id.in_(sorted(names)))
        return cls({row.no: row.id for row in connection.execute(statement)}, names is None)

    def condition(self, table: Table) -> list[Condition]:
        """Return the conditions that restrict a table to these projects."""
        if self.everything:
            return []
        return [is_any_of(table.c.project, self.projects)]


def is_any_of(column: Column[Any], values: Any) -> Condition:
    """Return the condition that the column has one of the values; for one value an equality, to keep index order."""
    found = list(values)
    return column == found[0] if len(found) == 1 else column.in_(found)


def batch_conditions(wanted: BatchFilter, scope: Scope) -> list[Condition]:
    """Return the filter's conditions on batches, except the projects."""
    found = [*_conditions_of_batches(batches, wanted, scope), *_own_conditions(batches, wanted)]
    found += _named(wanted, scope)
    changing = [*_changing_conditions(batches, wanted), *_bounds(batches.c.jobs, wanted.jobs_min, wanted.jobs_max)]
    if wanted.open is not None:
        changing.append(batches.c.open == wanted.open)
    if changing and wanted.with_live:
        return [*found, or_(and_(*changing), batches.c.status.in_(_LIVE))]
    return found + changing


def job_conditions(wanted: JobFilter) -> list[Condition]:
    """Return the filter's conditions on jobs, except those on columns that a job shares with its batch."""
    found = [*_own_conditions(jobs, wanted), *_changing_conditions(jobs, wanted)]
    if wanted.failed is not None:
        found.append(jobs.c.failed == wanted.failed)
    return found + _bounds(jobs.c.runs, wanted.runs_min, wanted.runs_max)


def sort_key(order: BatchOrder | JobOrder, scope: Scope, *, by_batch: bool) -> ColumnElement[Any]:
    """Return the sort key of a list; equal rows are sorted by id. by_batch: the list is read batch after batch."""
    table = jobs if isinstance(order, JobOrder) else batches
    column = table.c[_ORDERED_BY.get(order.name, order.name.lower())]
    if column is table.c.id and (by_batch or not scope.everything):
        # Without coalesce databases would scan all rows in the order of ids to find the few that match.
        return func.coalesce(column, column)
    if column.name == "priority":
        return case(*((column == priority[0], rank) for priority, rank in _RANK.items()))
    return column


def in_direction(
    paging: PageRequest, key: ColumnElement[Any], identity: ColumnElement[Any]
) -> list[ColumnElement[Any]]:
    """Return the terms of ORDER BY for the direction of the page. Rows without a value are last."""
    keys: list[ColumnElement[Any]] = [term.desc() if paging.descending else term.asc() for term in (key, identity)]
    return [keys[0].nulls_last(), keys[1]] if getattr(key, "nullable", False) else keys


def _conditions_of_batches(table: Table, wanted: BatchFilter | JobFilter, scope: Scope) -> list[Condition]:
    """Return the filter's conditions on columns in which jobs equal their batch, except the projects, and on tags."""
    found: list[Condition] = []
    if wanted.users:
        found.append(is_any_of(table.c.user, wanted.users))
    if wanted.devices:
        found.append(is_any_of(table.c.device, wanted.devices))
    if wanted.priorities:
        found.append(is_any_of(table.c.priority, [priority[0] for priority in wanted.priorities]))
    if wanted.origins:
        found.append(is_any_of(table.c.origin, [origin[0] for origin in wanted.origins]))
    tagged = [(tag,) for tag in dict.fromkeys(wanted.tags_all)] + ([wanted.tags_any] if wanted.tags_any else [])
    return found + tag_conditions(table, tagged, scope)


def _own_conditions(table: Table, wanted: BatchFilter | JobFilter) -> list[Condition]:
    """Return the other conditions that batches and jobs have in common."""
    found: list[Condition] = []
    if wanted.ids:
        found.append(table.c.id.in_(wanted.ids))
    if wanted.id_prefix:
        found.append(table.c.id.between(*wanted.id_range()))
    return found + _bounds(table.c.created_ms, _at_least(wanted.created_from), _at_most(wanted.created_to))


def _changing_conditions(table: Table, wanted: BatchFilter | JobFilter) -> list[Condition]:
    """Return the conditions on columns that change until a batch or job ends."""
    found: list[Condition] = []
    if wanted.statuses:
        found.append(is_any_of(table.c.status, [status.letter for status in wanted.statuses]))
    found += _bounds(table.c.started_ms, _at_least(wanted.started_from), None)
    return found + _bounds(table.c.ended_ms, None, _at_most(wanted.ended_to))


def _named(wanted: BatchFilter, scope: Scope) -> list[Condition]:
    """Return the conditions on the names of a batch."""
    found: list[Condition] = []
    names = ((SHORT_ID, [wanted.short_id] if wanted.short_id else []), (NAME, wanted.names))
    for kind, texts in (*names, (PARENT, [parent.hex for parent in wanted.depends_on])):
        if texts:
            table = batch_names.c
            whose = is_any_of(table.project, scope.projects)  # also if these are all projects: the index begins with it
            named = select(table.batch).where(whose, table.kind == kind, is_any_of(table.name, texts))
            found.append(batches.c.id.in_(named))
    return found


def tag_conditions(table: Table, wanted: Sequence[tuple[str, ...]], scope: Scope) -> list[Condition]:
    """Return the conditions that a batch, or the batch of a job, has any tag of each group."""
    if not wanted:
        return []
    batch: ColumnElement[Any] = batches.c.id
    tagged: ColumnElement[Any] = tags.c.batch
    if table is jobs:
        batch, tagged = batch_part(jobs.c.id), batch_part(tags.c.batch)
    first, *others = [
        select(tags.c.batch).where(*scope.condition(tags), is_any_of(tags.c.tag, each)) for each in wanted
    ]
    found = first.with_only_columns(tagged).where(*(tags.c.batch.in_(other) for other in others))
    # IS TRUE prevents PostgreSQL from using a join, which may be a nested loop; it fills a hash table instead.
    return [batch.in_(found).is_(True)]


def _bounds(column: Column[Any], least: int | None, most: int | None) -> list[Condition]:
    found: list[Condition] = []
    if least is not None:
        found.append(column >= least)
    if most is not None:
        found.append(column <= most)
    return found


def _at_least(time: datetime | None) -> int | None:
    return None if time is None else -((_EPOCH - time) // _MILLISECOND)


def _at_most(time: datetime | None) -> int | None:
    return None if time is None else (time - _EPOCH) // _MILLISECOND


T = TypeVar("T")

MERGED_MAX = 50  # projects whose pages are merged; with more, all rows are sorted
_FEW_JOBS = 10_000  # below this number, a scan is as fast as finding the batches
_LARGE_BATCH = 20  # jobs; of batches that are smaller on average, all jobs are scanned
_FEW_PAGES = 10  # longer lists are scanned, which finds a page soon if they are in order of creation


class ListPage(msgspec.Struct, Generic[T], frozen=True):
    """A page, and the number of rows on all pages."""

    rows: list[T]
    total: int


class Listing:
    """The rows that match a filter within a scope."""

    def __init__(self, connection: Connection, scope: Scope, wanted: BatchFilter | JobFilter) -> None:
        self._connection = connection
        self._scope = scope
        self._wanted = wanted
        self._table: Table = jobs if isinstance(wanted, JobFilter) else batches
        self._conditions: list[Condition]
        if isinstance(wanted, JobFilter):
            self._conditions = [*_conditions_of_batches(jobs, wanted, scope), *job_conditions(wanted)]
        else:
            self._conditions = batch_conditions(wanted, scope)

    def page(self, order: BatchOrder | JobOrder, paging: PageRequest, statement: Select[Any]) -> ListPage[Row[Any]]:
        """Return the rows of a page in their order, and the total. statement: selects the columns of all rows."""
        total, by_batch = None, self._names_batches
        if not by_batch and self._matching_batches is not None:
            total = self._total()
            by_batch = total <= _FEW_PAGES * (paging.offset + paging.limit)
        ids = self._ids(order, paging, by_batch=by_batch).subquery()
        named = statement.where(self._table.c.id == ids.c.id).order_by(*in_direction(paging, ids.c.key, ids.c.id))
        found = list(self._connection.execute(named))
        if not paging.counted or (total is None and len(found) < paging.limit and (found or not paging.offset)):
            total = paging.offset + len(found)
        return ListPage(found, self._total() if total is None else total)

    def counts(self) -> dict[str, int]:
        """Return the number of rows by the letter of their status, consistently."""
        statement: Select[Any]
        if self._is_coarse:
            statement = select(counters.c.status, func.sum(counters.c.count)).where(*self._of_counters())
        else:
            found = self._matching(self._table.c.status).subquery()
            statement = select(found.c.status, func.count())
        rows = self._connection.execute(statement.group_by(statement.selected_columns.status)).all()
        return {row[0]: int(row[1]) for row in rows}

    def _total(self) -> int:
        if self._is_coarse:
            return sum(self.counts().values())
        found = self._matching(self._table.c.id).subquery()
        return int(self._connection.execute(select(func.count()).select_from(found)).scalar_one())

    @functools.cached_property
    def _matching_batches(self) -> list[Condition] | None:
        """The conditions on the batches whose jobs may match; None if a scan of all jobs is likely to be faster."""
        wanted = self._wanted
        if not isinstance(wanted, JobFilter):
            return None
        conditions = _conditions_of_batches(batches, wanted, self._scope)
        if wanted.batches:
            return [batches.c.id.in_(wanted.batches), *conditions, *self._scope.condition(batches)]
        if self._is_coarse or wanted.names_rows or not conditions:
            return None
        sums = select(counters.c.kind, func.sum(counters.c.count)).where(*self._scope.condition(counters))
        counts = {row[0]: int(row[1]) for row in self._connection.execute(sums.group_by(counters.c.kind))}
        scanned = counts.get("J", 0)
        if scanned < max(_FEW_JOBS, _LARGE_BATCH * counts.get("B", 0)):
            return None
        conditions += self._scope.condition(batches)
        if created := _bounds(batches.c.created_ms, _at_least(wanted.created_from), _at_most(wanted.created_to)):
            scanned = self._jobs_of([*self._scope.condition(batches), *created])  # the index has them together
        return conditions if self._jobs_of(conditions) <= scanned // 2 else None

    def _jobs_of(self, conditions: list[Condition]) -> int:
        """Return the number of jobs of all batches that meet the conditions."""
        return int(self._connection.execute(select(func.sum(batches.c.jobs)).where(*conditions)).scalar() or 0)

    @property
    def _names_batches(self) -> bool:
        return isinstance(self._wanted, JobFilter) and bool(self._wanted.batches)

    @functools.cached_property
    def _is_coarse(self) -> bool:
        """Whether the recorder's counters are sufficient."""
        return msgspec.structs.replace(self._wanted, projects=(), devices=(), statuses=()) == type(self._wanted)()

    def _of_counters(self) -> list[Condition]:
        found = [counters.c.kind == self._table.name[0].upper(), *self._scope.condition(counters)]
        if self._wanted.devices:
            found.append(is_any_of(counters.c.device, self._wanted.devices))
        if self._wanted.statuses:
            found.append(is_any_of(counters.c.status, [status.letter for status in self._wanted.statuses]))
        return found

    def _matching(self, *columns: ColumnElement[Any], by_batch: bool = True) -> Select[Any]:
        """Select columns of all rows that match. by_batch: read the jobs of matching batches, if that is possible."""
        if self._matching_batches is None or not by_batch:
            return select(*columns).where(*self._scope.condition(self._table), *self._conditions)
        assert isinstance(self._wanted, JobFilter)
        in_batch = jobs.c.id.between(batches.c.id, last_job_in(batches.c.id))
        if self._connection.dialect.name == "sqlite":
            found = select(*columns).select_from(batches.join(jobs, in_batch)).where(*job_conditions(self._wanted))
        else:
            # PostgreSQL assumes that a batch has a fixed share of all jobs, and would compare each job with each batch.
            # OFFSET prevents that.
            of_batch = select(*columns).where(in_batch, *job_conditions(self._wanted)).offset(0)
            found = select(of_batch.correlate(batches).lateral()).select_from(batches)
        return found.where(*self._matching_batches)

    def _ids(self, order: BatchOrder | JobOrder, paging: PageRequest, *, by_batch: bool) -> Select[Any]:
        """Select the ids of a page, each with its sort key."""
        several = not by_batch and 1 < len(self._scope.projects) <= MERGED_MAX
        if several and order.value == BatchOrder.CREATED.value and not self._wanted.names_rows:
            found = self._merged(paging)
        else:
            key = sort_key(order, self._scope, by_batch=by_batch).label("key")
            found = self._matching(self._table.c.id, key, by_batch=by_batch).subquery()
        ordered = select(found).order_by(*in_direction(paging, found.c.key, found.c.id))
        return ordered.limit(paging.limit).offset(paging.offset)

    def _merged(self, paging: PageRequest) -> Subquery:
        """Merge the first rows of each project by creation time; they are contiguous in the index."""
        table = self._table
        firsts = [
            select(table.c.id, table.c.created_ms.label("key"))
            .where(table.c.project == no, *self._conditions)
            .order_by(*in_direction(paging, table.c.created_ms, table.c.id))
            .limit(paging.offset + paging.limit)
            .subquery()
            for no in self._scope.projects
        ]
        return union_all(*map(select, firsts)).subquery()
