"""Pages of batches and jobs by filter, with exact totals, and how many there are by status.

Lists walk the index that begins with the project, which has all columns to filter and order by: what a page costs is
bounded by the size of the projects it is taken from, whatever is asked.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec
from sqlalchemy import Connection, Select, Table, func, select, union_all

from tweezer.ledger.queries.conditions import (
    Condition,
    Scope,
    batch_conditions,
    in_any,
    in_direction,
    job_conditions,
    keys_of,
)
from tweezer.ledger.queries.filters import BatchFilter, BatchOrder, JobFilter, JobOrder, Window
from tweezer.ledger.schema import batches, counters, jobs

T = TypeVar("T")

_MERGED_MAX = 50  # projects whose pages are merged; of more, all rows are sorted


class Found(msgspec.Struct, Generic[T], frozen=True):
    """A page, and how many rows there are on all pages."""

    rows: list[T]
    total: int


class Listing:
    """What a filter finds in a scope."""

    def __init__(self, connection: Connection, scope: Scope, wanted: BatchFilter | JobFilter) -> None:
        self._connection = connection
        self._scope = scope
        self._wanted = wanted
        self._table: Table = jobs if isinstance(wanted, JobFilter) else batches
        self._conditions: list[Condition] = (
            job_conditions(wanted, scope) if isinstance(wanted, JobFilter) else batch_conditions(wanted, scope)
        )

    def page(self, order: BatchOrder | JobOrder, window: Window) -> Found[UUID]:
        """The ids of a page in their order, and the total."""
        ids = list(self._connection.execute(self._page(order, window)).scalars())
        if len(ids) < window.limit and (ids or not window.offset):
            return Found(ids, window.offset + len(ids))
        return Found(ids, self._total())

    def counts(self) -> dict[str, int]:
        """Rows by the letter of their status: one statement, so of one state."""
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
        """Whether the recorder's counters have the answer."""
        return msgspec.structs.replace(self._wanted, projects=(), devices=(), statuses=()) == type(self._wanted)()

    def _of_counters(self) -> list[Condition]:
        found = [counters.c.kind == self._table.name[0].upper(), *self._scope.condition(counters)]
        if self._wanted.devices:
            found.append(in_any(counters.c.device, self._wanted.devices))
        if self._wanted.statuses:
            found.append(in_any(counters.c.status, [status.letter for status in self._wanted.statuses]))
        return found

    def _all_conditions(self) -> list[Condition]:
        return [*self._scope.condition(self._table), *self._conditions]

    def _page(self, order: BatchOrder | JobOrder, window: Window) -> Select[Any]:
        several = 1 < len(self._scope.projects) <= _MERGED_MAX
        if several and order.value == BatchOrder.CREATED.value and not self._wanted.names_rows:
            page = self._merged(window)
        else:
            keys = keys_of(order, window, self._scope)
            page = select(self._table.c.id).where(*self._all_conditions()).order_by(*keys)
        return page.limit(window.limit).offset(window.offset)

    def _merged(self, window: Window) -> Select[Any]:
        """Rows in the order of their creation: each project's first ones stand together in the index."""
        table = self._table
        firsts = [
            select(table.c.id, table.c.created_ms)
            .where(table.c.project == no, *self._conditions)
            .order_by(*in_direction(window, table.c.created_ms, table.c.id))
            .limit(window.offset + window.limit)
            .subquery()
            for no in self._scope.projects
        ]
        merged = union_all(*map(select, firsts)).subquery()
        return select(merged.c.id).order_by(*in_direction(window, merged.c.created_ms, merged.c.id))
