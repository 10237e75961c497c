"""Pages of batches and jobs by filter, with exact totals, and counts by status.

Lists scan the index that begins with the project and has all columns to filter and order by. The cost of a page is
therefore limited by the size of the projects, regardless of the filter.
"""

from __future__ import annotations

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
    Select,
    Table,
    case,
    func,
    or_,
    select,
    union_all,
)
from sqlalchemy.ext.compiler import compiles

from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.queries.filters import BatchFilter, BatchOrder, JobFilter, JobOrder, PageRequest
from tweezer.ledger.schema import Id, batches, counters, jobs, projects, tags
from tweezer.model.ids import last_job_id
from tweezer.model.messages import Priority

Condition = ColumnElement[bool]

_EPOCH, _MILLISECOND = datetime.fromtimestamp(0, UTC), timedelta(milliseconds=1)
_RANGES_MAX = 10  # batches that are searched as ranges of ids; with more, each job's batch is compared
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
    found = _common_conditions(batches, wanted)
    found += _tagged(batches.c.id, tags.c.batch, wanted, scope)
    if wanted.open is not None:
        found.append(batches.c.open == wanted.open)
    return found + _bounds(batches.c.jobs, wanted.jobs_min, wanted.jobs_max)


def job_conditions(wanted: JobFilter, scope: Scope) -> list[Condition]:
    """Return the filter's conditions on jobs, except the projects."""
    found = _common_conditions(jobs, wanted)
    found += _tagged(batch_part(jobs.c.id), batch_part(tags.c.batch), wanted, scope)
    if 0 < len(wanted.batches) <= _RANGES_MAX:
        found.append(or_(*(jobs.c.id.between(first, last_job_id(first)) for first in wanted.batches)))
    elif wanted.batches:
        found.append(batch_part(jobs.c.id).in_([batch.bytes[:13] for batch in wanted.batches]))
    if wanted.failed is not None:
        found.append(jobs.c.failed == wanted.failed)
    return found + _bounds(jobs.c.runs, wanted.runs_min, wanted.runs_max)


def order_keys(order: BatchOrder | JobOrder, paging: PageRequest, scope: Scope) -> list[ColumnElement[Any]]:
    """Return the sort keys of a page; the last one is the id."""
    table = jobs if isinstance(order, JobOrder) else batches
    column, identity = table.c[_ORDERED_BY.get(order.name, order.name.lower())], table.c.id
    if column is identity:
        # Without coalesce PostgreSQL would scan all projects in the order of ids to find the few rows of these.
        return in_direction(paging, identity if scope.everything else func.coalesce(identity, identity))
    key: ColumnElement[Any] = column
    if column.name == "priority":
        key = case(*((column == priority[0], rank) for priority, rank in _RANK.items()))
    keys = in_direction(paging, key, identity)
    return [keys[0].nulls_last(), keys[1]] if column.nullable else keys


def in_direction(paging: PageRequest, *keys: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    """Return the keys in the direction of the page."""
    return [key.desc() if paging.descending else key.asc() for key in keys]


def _common_conditions(table: Table, wanted: BatchFilter | JobFilter) -> list[Condition]:
    found: list[Condition] = []
    if wanted.ids:
        found.append(table.c.id.in_(wanted.ids))
    if wanted.id_prefix:
        found.append(table.c.id.between(*wanted.id_range()))
    if wanted.users:
        found.append(is_any_of(table.c.user, wanted.users))
    if wanted.devices:
        found.append(is_any_of(table.c.device, wanted.devices))
    if wanted.statuses:
        found.append(is_any_of(table.c.status, [status.letter for status in wanted.statuses]))
    if wanted.priorities:
        found.append(is_any_of(table.c.priority, [priority[0] for priority in wanted.priorities]))
    if wanted.origins:
        found.append(is_any_of(table.c.origin, [origin[0] for origin in wanted.origins]))
    found += _bounds(table.c.started_ms, _at_least(wanted.started_from), None)
    found += _bounds(table.c.ended_ms, None, _at_most(wanted.ended_to))
    return found + _bounds(table.c.created_ms, _at_least(wanted.created_from), _at_most(wanted.created_to))


def _tagged(
    batch: ColumnElement[Any], tagged: ColumnElement[Any], wanted: BatchFilter | JobFilter, scope: Scope
) -> list[Condition]:
    names: list[tuple[str, ...]] = [(tag,) for tag in dict.fromkeys(wanted.tags_all)]
    if wanted.tags_any:
        names.append(wanted.tags_any)
    if not names:
        return []
    first, *others = [select(tags.c.batch).where(*scope.condition(tags), is_any_of(tags.c.tag, each)) for each in names]
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

_MERGED_MAX = 50  # projects whose pages are merged; with more, all rows are sorted


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
        self._conditions: list[Condition] = (
            job_conditions(wanted, scope) if isinstance(wanted, JobFilter) else batch_conditions(wanted, scope)
        )

    def page(self, order: BatchOrder | JobOrder, paging: PageRequest) -> ListPage[UUID]:
        """Return the ids of a page in their order, and the total."""
        ids = list(self._connection.execute(self._page(order, paging)).scalars())
        if len(ids) < paging.limit and (ids or not paging.offset):
            return ListPage(ids, paging.offset + len(ids))
        return ListPage(ids, self._total())

    def counts(self) -> dict[str, int]:
        """Return the number of rows by the letter of their status, consistently, with one statement."""
        statement: Select[Any]
        if self._is_coarse:
            statement = select(counters.c.status, func.sum(counters.c.count)).where(*self._of_counters())
        else:
            statement = select(self._table.c.status, func.count()).where(*self._all_conditions())
        rows = self._connection.execute(statement.group_by(statement.selected_columns.status)).all()
        return {row[0]: int(row[1]) for row in rows}

    def _total(self) -> int:
        if self._is_coarse:
            return sum(self.counts().values())
        counted = select(func.count()).select_from(self._table).where(*self._all_conditions())
        return int(self._connection.execute(counted).scalar_one())

    @property
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

    def _all_conditions(self) -> list[Condition]:
        return [*self._scope.condition(self._table), *self._conditions]

    def _page(self, order: BatchOrder | JobOrder, paging: PageRequest) -> Select[Any]:
        several = 1 < len(self._scope.projects) <= _MERGED_MAX
        if several and order.value == BatchOrder.CREATED.value and not self._wanted.names_rows:
            page = self._merged(paging)
        else:
            keys = order_keys(order, paging, self._scope)
            page = select(self._table.c.id).where(*self._all_conditions()).order_by(*keys)
        return page.limit(paging.limit).offset(paging.offset)

    def _merged(self, paging: PageRequest) -> Select[Any]:
        """Merge the first rows of each project by creation time; they are contiguous in the index."""
        table = self._table
        firsts = [
            select(table.c.id, table.c.created_ms)
            .where(table.c.project == no, *self._conditions)
            .order_by(*in_direction(paging, table.c.created_ms, table.c.id))
            .limit(paging.offset + paging.limit)
            .subquery()
            for no in self._scope.projects
        ]
        merged = union_all(*map(select, firsts)).subquery()
        return select(merged.c.id).order_by(*in_direction(paging, merged.c.created_ms, merged.c.id))
