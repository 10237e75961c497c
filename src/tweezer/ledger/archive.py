"""Archives batches: the list of tasks and its counts leave them out, everything else stays as it is.

A batch is archived on request, or by itself ``keep_s`` after its end (a rule of the batch). Archiving changes neither
the batch nor its retention: an archived batch is deleted with its project's retention time, counted from its end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

import msgspec
import structlog
from sqlalchemy import ColumnElement, Connection, Select, func, select, update

from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.database import Database
from tweezer.ledger.queries.lists import Scope
from tweezer.ledger.schema import batches, counters, insert_into, now_ms, recorder
from tweezer.model.lifecycle import BATCH_BY_LETTER, TERMINAL_BATCH
from tweezer.model.tasks import task_status

log = structlog.get_logger(__name__)

_PAGE = 500  # batches per transaction
_AT_ONCE_MAX = 10_000
_OVER = [status.letter for status in TERMINAL_BATCH]


class Archived(msgspec.Struct, frozen=True):
    """Batches to archive: those that are archived now, and those that are not, because they have not ended."""

    done: list[UUID] = []
    live: list[UUID] = []

    def __add__(self, other: Archived) -> Archived:
        return Archived(self.done + other.done, self.live + other.live)


def archive(connection: Connection, caller: Principal, batch_ids: Sequence[UUID]) -> Archived:
    """Archive those of the batches that have ended; archived ones stay as they are.

    Batches that the caller may not see are left out of the result.
    """
    projects = Scope.read(connection, caller).projects
    hold_counters(connection)
    columns = (batches.c.id, batches.c.status, batches.c.archived_ms)
    mine = (batches.c.id.in_(batch_ids), batches.c.project.in_(projects))
    rows = connection.execute(select(*columns).where(*mine)).all()
    over = [row.id for row in rows if row.status in _OVER or row.archived_ms is not None]
    _archive(connection, [row.id for row in rows if row.id in set(over) and row.archived_ms is None])
    return Archived(over, [row.id for row in rows if row.id not in set(over)])


def find_archived(connection: Connection, batch_ids: Sequence[UUID]) -> set[UUID]:
    """Return those of the batches that are archived."""
    which = (batches.c.id.in_(batch_ids), batches.c.archived_ms.is_not(None))
    return set(connection.scalars(select(batches.c.id).where(*which)))


def restore_archived(connection: Connection, caller: Principal, batch_id: UUID) -> bool:
    """Put an archived batch back into the list of tasks, where it stays: its ``keep_s`` no longer applies.

    Return whether it was archived, and the caller may see it.
    """
    projects = Scope.read(connection, caller).projects
    hold_counters(connection)
    is_meant = (batches.c.id == batch_id, batches.c.project.in_(projects), batches.c.archived_ms.is_not(None))
    restored = connection.execute(update(batches).where(*is_meant).values(archived_ms=None, keep_ms=None))
    if restored.rowcount:
        count_tasks(connection, batches.c.id == batch_id, 1)
    return bool(restored.rowcount)


async def archive_older(database: Database, caller: Principal, *, hours: float, ended_only: bool) -> Archived:
    """Archive the caller's tasks whose last change is that long ago, at most 10,000 of them, oldest first.

    ended_only: leave out those that have not ended, and return them as live. Raises Unavailable.
    """
    before = now_ms() - round(hours * 3_600_000)
    scope = await database.run_read(Scope.read, caller)
    projects = scope.projects
    old: list[ColumnElement[bool]] = [batches.c.project.in_(projects), batches.c.updated_ms < before]
    found = Archived()
    if ended_only:
        found = Archived([], await database.run_read(_find_old, [*old, batches.c.status.not_in(_OVER)], _AT_ONCE_MAX))
        old.append(batches.c.status.in_(_OVER))
    while len(found.done) < _AT_ONCE_MAX and (page := await database.run_write(_archive_old, projects, old)):
        found += Archived(page)
    return found


async def archive_due(database: Database) -> int:
    """Archive the batches whose ``keep_s`` has passed since their end; return their number. Raises Unavailable."""
    total = 0
    while page := await database.run_write(_archive_due):
        total += page
    if total:
        log.info("retention.archived", batches=total)
    return total


def _find_old(connection: Connection, old: Sequence[ColumnElement[bool]], most: int) -> list[UUID]:
    query = select(batches.c.id).where(*old, batches.c.archived_ms.is_(None))
    return [row[0] for row in connection.execute(query.order_by(batches.c.created_ms, batches.c.id).limit(most))]


def _archive_old(connection: Connection, projects: Collection[int], old: Sequence[ColumnElement[bool]]) -> list[UUID]:
    hold_counters(connection)
    page = _find_old(connection, old, _PAGE)
    _archive(connection, page)
    return page


def _archive_due(connection: Connection) -> int:
    due = (
        batches.c.keep_ms.is_not(None),
        batches.c.archived_ms.is_(None),
        batches.c.ended_ms <= now_ms() - batches.c.keep_ms,
    )
    query = select(batches.c.id, batches.c.project).where(*due).order_by(batches.c.ended_ms).limit(_PAGE)
    rows = connection.execute(query).all()
    hold_counters(connection)
    still = select(batches.c.id).where(batches.c.id.in_([row.id for row in rows]), batches.c.archived_ms.is_(None))
    _archive(connection, [row[0] for row in connection.execute(still)])
    return len(rows)


def _archive(connection: Connection, batch_ids: Sequence[UUID]) -> None:
    if batch_ids:
        which = batches.c.id.in_(batch_ids)
        count_tasks(connection, which, -1)
        connection.execute(update(batches).where(which).values(archived_ms=now_ms()))


def hold_counters(connection: Connection) -> None:
    """Make the recorder and others that change counters of tasks wait until the end of this transaction."""
    if connection.dialect.name == "postgresql":  # in SQLite there is only one writer
        connection.execute(select(recorder.c.position).order_by(recorder.c.namespace).with_for_update())


def count_tasks(connection: Connection, which: ColumnElement[bool], sign: int) -> None:
    """Add the number of these batches that are not archived to the counters of tasks, or subtract it (sign: -1)."""
    has_failures = batches.c.failed > 0
    columns = (batches.c.project, batches.c.device, batches.c.status, has_failures)
    query: Select[Any] = select(*columns, func.count()).where(which, batches.c.archived_ms.is_(None)).group_by(*columns)
    for project, device, status, failed, count in connection.execute(query).all():
        letter = task_status(BATCH_BY_LETTER[status], has_failures=bool(failed)).letter
        row = {"project": project, "device": device, "kind": "T", "status": letter, "count": sign * count}
        change = insert_into(connection, counters).values(row)
        total = counters.c.count + change.excluded.count
        connection.execute(change.on_conflict_do_update(index_elements=counters.primary_key, set_={"count": total}))
