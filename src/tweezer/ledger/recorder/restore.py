"""Restores from the ledger what Redis has lost (rule 24: the ledger wins)."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import msgspec
import structlog
from sqlalchemy import Connection, or_, select

from tweezer.ledger.database import Database
from tweezer.ledger.positions import courier_position, recorded_entry
from tweezer.ledger.queries.queries import read_ends
from tweezer.ledger.schema import batches, jobs, notices, now_ms, results, sequences, transitions
from tweezer.model.events import Notice
from tweezer.model.ids import job_id, last_job_id, split_job_id
from tweezer.model.lifecycle import BATCH_BY_LETTER
from tweezer.model.messages import decode_doc, encode_doc
from tweezer.store.connection import Store
from tweezer.store.recovery import RestoredBatch, RestoredJob
from tweezer.store.streams.feed import NO_BATCH, START, Entry, position_id, position_number

log = structlog.get_logger(__name__)

_PAGE = 500  # jobs per call


async def restore(store: Store, database: Database, *, after: str, ended_within_ms: int | None = None) -> int:
    """Restore all batches with recorded events after that entry; return their number. May be repeated.

    Jobs that ended in the ledger end in Redis, with their results. Missing batches and jobs are created. What the
    ledger does not have either is lost: up to two seconds of work, if Redis writes its file each second.

    ended_within_ms: restore ended batches only if they ended within this time; None restores all. Raises Unavailable.
    """
    touched = await database.run_read(_read_touched, after, ended_within_ms)
    for batch_id in touched:
        pages = await database.run_read(_read_batch, batch_id)
        for batch, page in pages:
            await store.recovery.restore(batch, page)
        log.info("recorder.restored_batch", batch=str(batch_id))
    return len(touched)


async def append_lost_events(store: Store, database: Database, *, namespace: str, after: str, recorded: str) -> int:
    """Append the recorded events that Redis lost after an entry to the stream again, for the couriers.

    Events for which deliveries were already written are omitted. If the couriers' position is after the last recorded
    entry, they may have continued since the loss; then all events are appended, because each delivery is made only
    once. Returns the number of entries. May be repeated. Raises Unavailable.
    """
    total = 0
    done = await database.run_read(courier_position, namespace)
    if not done:  # no courier has ever joined
        return 0
    position = position_number(after)
    if done <= position_number(recorded) or after == START:
        position = max(position, done)
    while page := await database.run_read(_read_lost, position):
        await store.events.put_back(page)
        total += len(page)
        position = position_number(page[-1].id)
    return total


def _read_lost(connection: Connection, after: int) -> list[Entry]:
    """Return the next recorded entries after a position."""
    recorded, noticed = (
        connection.execute(select(table).where(table.c.position > after).order_by(table.c.position).limit(_PAGE))
        for table in (transitions, notices)
    )
    entries = list(map(recorded_entry, recorded))
    for row in noticed:
        notice = Notice(row.id, row.type, row.project, row.time_us, row.data)
        entries.append(Entry(position_id(row.position), NO_BATCH, 0, row.time_us, "", notice))
    entries.sort(key=lambda entry: position_number(entry.id))
    return entries[:_PAGE]


def _read_touched(connection: Connection, after: str, ended_within_ms: int | None) -> list[UUID]:
    """Return the batches to restore in the order of their creation: those that others depend on come first."""
    query = select(transitions.c.batch).where(transitions.c.position > position_number(after)).distinct()
    if ended_within_ms is not None:
        recent = or_(batches.c.ended_ms.is_(None), batches.c.ended_ms >= now_ms() - ended_within_ms)
        query = query.join(batches, batches.c.id == transitions.c.batch).where(recent)
    return [row[0] for row in connection.execute(query.order_by(transitions.c.batch))]


def _read_batch(connection: Connection, batch_id: UUID) -> list[tuple[RestoredBatch, list[RestoredJob]]]:
    row = connection.execute(
        select(batches, sequences.c.sequence)
        .join(sequences, sequences.c.id == batches.c.id, isouter=True)
        .where(batches.c.id == batch_id)
    ).one_or_none()
    if row is None:
        return []
    fields: dict[str, bytes] = msgspec.msgpack.decode(row.record, type=dict[str, bytes])
    doc = msgspec.structs.replace(decode_doc(row.about), sequence=row.sequence)
    fields["doc"], fields["tags"] = encode_doc(doc), msgspec.json.encode(doc.tags)
    parents = [UUID(parent.partition(":")[0]) for parent in fields.get("parents", b"").decode().split()]
    ended = {parent: end for parent, end in read_ends(connection, parents).items() if end}
    batch = RestoredBatch(batch_id, row.sequence_number, BATCH_BY_LETTER[row.status], fields, ended)
    return [(batch, page) for page in _read_jobs(connection, batch_id)]


def _read_jobs(connection: Connection, batch_id: UUID) -> Iterator[list[RestoredJob]]:
    first = batch_id
    while True:
        rows = connection.execute(
            select(jobs.c.id, jobs.c.spec, jobs.c.state, results.c.result, results.c.fault)
            .join(results, results.c.id == jobs.c.id, isouter=True)
            .where(jobs.c.id.between(first, last_job_id(batch_id)))
            .order_by(jobs.c.id)
            .limit(_PAGE)
        ).all()
        if rows or first == batch_id:
            yield [RestoredJob(split_job_id(row[0])[1], row[1], row[2], row[3], row[4]) for row in rows]
        if len(rows) < _PAGE:
            return
        first = job_id(batch_id, split_job_id(rows[-1][0])[1] + 1)
