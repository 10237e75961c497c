"""Deletes batches: from Redis once they are recorded (rule 25), and everywhere after their retention time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

import msgspec
import structlog
from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update

from tweezer.ledger.access.projects import find_project, list_projects
from tweezer.ledger.archive import count_tasks, hold_counters
from tweezer.ledger.database import Database
from tweezer.ledger.schedules.runner import stop_project
from tweezer.ledger.schema import (
    batch_names,
    batches,
    counters,
    deliveries,
    hours,
    jobs,
    now_ms,
    projects,
    result_sizes,
    results,
    schedule_ticks,
    sequences,
    tags,
    transitions,
)
from tweezer.model.errors import Conflict, NotFound
from tweezer.model.ids import last_job_id
from tweezer.model.lifecycle import TERMINAL_BATCH
from tweezer.store.connection import Store
from tweezer.store.scripts import split_pages

log = structlog.get_logger(__name__)

_PAGE = 50  # batches per transaction
_FORGOTTEN_AT_ONCE = 200
_REPEATED_S = 30.0  # how long a submit may be repeated; its batch in Redis shows that
_OVER = [status.letter for status in TERMINAL_BATCH]


async def expire(store: Store, database: Database, *, retention_s: int) -> int:
    """Delete batches whose retention time has passed; return their number. Raises Unavailable.

    retention_s: retention time of projects without their own; 0 means for ever.
    """
    total = 0
    while found := await database.run_read(_find_expired, retention_s):
        deleted = await delete_batches(store, database, found)
        if not deleted:
            break  # the remaining batches are not fully recorded yet
        total += len(deleted)
    if total:
        log.info("retention.deleted", batches=total)
    return total


async def delete_batches(store: Store, database: Database, recorded: dict[UUID, int]) -> list[UUID]:
    """Delete batches that have ended from Redis, the results folder and the ledger, in this order.

    recorded: by batch, the number of the last recorded event. A batch that is live in Redis, or has events that are
    not recorded yet, is kept. Returns the deleted batches. May be repeated. Raises Unavailable.
    """
    gone = await store.recovery.forget(recorded, least_age_s=0)
    for batch_id in gone:
        await store.results.delete_batch(batch_id)
    for page in split_pages(gone, _PAGE):
        dropped = await database.run_write(_delete, page)
        await store.quotas.drop_kept(dropped)
    return gone


async def delete_batch(store: Store, database: Database, batch_id: UUID, *, project: str | None) -> None:
    """Delete one batch. Raises NotFound; Conflict if it has not ended or is not fully recorded yet; Unavailable."""
    recorded = await database.run_read(_find_ended, batch_id, project)
    if not await delete_batches(store, database, recorded):
        raise Conflict(f"batch {batch_id} has just ended and is being recorded; try again in a moment", code="live")


async def delete_ended(store: Store, database: Database, batch_ids: Sequence[UUID]) -> list[UUID]:
    """Delete those of the batches that have ended and are fully recorded; return them. Raises Unavailable."""
    return await delete_batches(store, database, await database.run_read(find_ended, batch_ids))


async def discard_batch(store: Store, database: Database, batch_id: UUID) -> None:
    """Delete a batch that cannot be recorded, in any status. Raises Conflict while a lane works on it."""
    await store.commands.discard(batch_id)
    await store.results.delete_batch(batch_id)
    await database.run_write(_delete, [batch_id])
    log.warning("retention.discarded", batch=str(batch_id))


async def delete_project(store: Store, database: Database, project_id: str) -> int:
    """Delete a project with its keys, batches, results and statistics; return the number of its batches.

    Raises NotFound; Conflict while one of its batches has not ended; Unavailable. If a deletion is interrupted,
    another call completes it.
    """
    total = 0
    await database.run_read(_find_in_project, project_id)
    await stop_project(store, database, project_id)  # so that no batch is submitted while its batches are deleted
    while found := await database.run_read(_find_in_project, project_id):
        deleted = await delete_batches(store, database, found)
        if not deleted:
            raise Conflict(f"project {project_id} has batches that are being recorded; try again in a moment")
        total += len(deleted)
    await database.run_write(_delete_project, project_id)
    await store.commands.forget_project(project_id)
    log.info("retention.deleted_project", project=project_id, batches=total)
    return total


def _find_expired(connection: Connection, retention_s: int) -> dict[UUID, int]:
    kept = {it.no: retention_s if it.retention_s is None else it.retention_s for it in list_projects(connection)}
    now = now_ms()
    query = (
        select(batches.c.id, batches.c.sequence_number)
        .where(
            or_(
                *(
                    and_(batches.c.project == no, batches.c.ended_ms < now - seconds * 1000)
                    for no, seconds in kept.items()
                    if seconds
                )
            )
        )
        .order_by(batches.c.ended_ms)
        .limit(_PAGE)
    )
    return _pairs(connection, query) if any(kept.values()) else {}


def _find_ended(connection: Connection, batch_id: UUID, project: str | None) -> dict[UUID, int]:
    query = select(batches.c.status, batches.c.sequence_number, projects.c.id).join(projects)
    row = connection.execute(query.where(batches.c.id == batch_id)).one_or_none()
    if row is None or project not in (None, row[2]):
        raise NotFound("batch", str(batch_id))
    if row[0] not in _OVER:
        raise Conflict(f"batch {batch_id} has not ended; cancel it first", code="live")
    return {batch_id: row[1]}


def find_ended(connection: Connection, batch_ids: Collection[UUID]) -> dict[UUID, int]:
    """Return those of the batches that have ended in the ledger, with the number of the last recorded event."""
    query = select(batches.c.id, batches.c.sequence_number)
    return _pairs(connection, query.where(batches.c.id.in_(batch_ids), batches.c.status.in_(_OVER)))


def _find_in_project(connection: Connection, project_id: str) -> dict[UUID, int]:
    no = find_project(connection, project_id).no
    live = select(func.count()).where(batches.c.project == no, batches.c.status.not_in(_OVER))
    count = connection.execute(live).scalar_one()
    if count:
        raise Conflict(f"project {project_id} has {count} batches that have not ended; cancel them first")
    return _pairs(
        connection,
        select(batches.c.id, batches.c.sequence_number).where(batches.c.project == no).limit(_PAGE),
    )


def _pairs(connection: Connection, query: Any) -> dict[UUID, int]:
    return {row[0]: row[1] for row in connection.execute(query)}


def _delete(connection: Connection, batch_ids: Sequence[UUID]) -> dict[str, int]:
    """Delete rows of batches; return the bytes of deleted results by project."""
    hold_counters(connection)
    query = select(projects.c.id, func.sum(result_sizes.c.bytes)).join_from(
        projects, result_sizes, result_sizes.c.project == projects.c.no
    )
    rows = connection.execute(query.where(result_sizes.c.batch.in_(batch_ids)).group_by(projects.c.id))
    dropped = {project: int(size) for project, size in rows}
    submitted = schedule_ticks.c.batch.in_(batch_ids)  # by schedules, which would submit missing batches again
    connection.execute(update(schedule_ticks).where(submitted).values(due_ms=None))
    for batch_id in batch_ids:
        of_batch = (batch_id, last_job_id(batch_id))
        _count_down(connection, jobs, "J", jobs.c.id.between(*of_batch))
        _count_down(connection, batches, "B", batches.c.id == batch_id)
        count_tasks(connection, batches.c.id == batch_id, -1)
        connection.execute(delete(results).where(results.c.id.between(*of_batch)))
        connection.execute(delete(jobs).where(jobs.c.id.between(*of_batch)))
        for table in (transitions, deliveries, tags, batch_names, result_sizes):
            connection.execute(delete(table).where(table.c.batch == batch_id))
        connection.execute(delete(sequences).where(sequences.c.id == batch_id))
        connection.execute(delete(batches).where(batches.c.id == batch_id))
    return dropped


def _count_down(connection: Connection, table: Any, kind: str, which: ColumnElement[bool]) -> None:
    columns = (table.c.project, table.c.device, table.c.status)
    for project, device, status, count in connection.execute(
        select(*columns, func.count()).where(which).group_by(*columns)
    ).all():
        place = (counters.c.project == project, counters.c.device == device)
        connection.execute(
            update(counters)
            .where(*place, counters.c.kind == kind, counters.c.status == status)
            .values(count=counters.c.count - count)
        )


def _delete_project(connection: Connection, project_id: str) -> None:
    no = find_project(connection, project_id).no
    for table in (counters, hours, deliveries):
        connection.execute(delete(table).where(table.c.project == no))
    connection.execute(delete(projects).where(projects.c.no == no))  # also deletes its keys and members


class ForgottenBatches(msgspec.Struct, frozen=True):
    """Batches that Redis has forgotten, and those that it has not because they are not fully recorded."""

    gone: list[UUID]
    unrecorded: list[UUID]


class Forgetter:
    """Makes Redis forget recorded batches ``grace_s`` after their end, or soon if Redis is nearly full."""

    def __init__(self, store: Store, database: Database, *, grace_s: float) -> None:
        self._store = store
        self._database = database
        self._grace_s = grace_s

    async def forget(self, kept: Collection[UUID] = ()) -> ForgottenBatches:
        """Forget some batches, oldest first, except those in ``kept``. Raises Unavailable."""
        least_age_s = min(self._grace_s, _REPEATED_S) if await self._store.tickets.is_full() else self._grace_s
        ended = await self._store.recovery.ended(least_age_s=least_age_s, most=_FORGOTTEN_AT_ONCE + len(kept))
        found = [batch_id for batch_id in ended if batch_id not in kept][:_FORGOTTEN_AT_ONCE]
        if not found:
            return ForgottenBatches([], [])
        recorded = await self._database.run_read(_read_recorded, found)
        gone = await self._store.recovery.forget(recorded, least_age_s=least_age_s)
        return ForgottenBatches(gone, [batch_id for batch_id in found if batch_id not in gone])


def _read_recorded(connection: Connection, batch_ids: Sequence[UUID]) -> dict[UUID, int]:
    return _pairs(connection, select(batches.c.id, batches.c.sequence_number).where(batches.c.id.in_(batch_ids)))
