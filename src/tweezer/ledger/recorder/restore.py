"""Puts back into Redis what it lost and the ledger has (rule 24: the ledger wins)."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import msgspec
import structlog
from sqlalchemy import Connection, or_, select

from tweezer.ledger.database import Database
from tweezer.ledger.positions import courier_position
from tweezer.ledger.schema import batches, jobs, notices, now_ms, results, sequences, transitions
from tweezer.model.events import Notice
from tweezer.model.ids import job_id, last_job_id, split_job_id
from tweezer.model.lifecycle import BATCH_BY_LETTER
from tweezer.model.messages import decode_doc, encode_doc
from tweezer.store.connection import Store
from tweezer.store.recovery import RestoredBatch, RestoredJob
from tweezer.store.streams.feed import NO_BATCH, START, Entry, position_id, position_number

log = structlog.get_logger(__name__)

_PAGE = 500  # jobs of one call


async def restore(store: Store, database: Database, *, after: str, ended_within_ms: int | None = None) -> int:
    """Put back all batches that the ledger has events of after that entry; return how many. May be repeated.

    ended_within_ms: of those that have ended, only if that was so recently.

    A job that ended there ends here, with its result; a batch or job that Redis has never heard of is there again;
    what the ledger does not have either, up to two seconds of work where Redis writes its file each second, is lost.
    Raises Unavailable.
    """
    touched = await database.run_read(_read_touched, after, ended_within_ms)
    for batch_id in touched:
        pages = await database.run_read(_read_batch, batch_id)
        for batch, page in pages:
            await store.recovery.restore(batch, page)
        log.info("recorder.restored_batch", batch=str(batch_id))
    return len(touched)


async def tell_again(store: Store, database: Database, *, namespace: str, after: str, recorded: str) -> int:
    """Append the events again that Redis lost after one entry, up to the last recorded one, for the couriers.

    Those that couriers had made deliveries of before the loss are left out. Couriers whose position is behind the last
    recorded entry may have read on since the loss: then all are appended, since a delivery is made once. Returns the
    number of entries. May be repeated. Raises Unavailable.
    """
    total = 0
    done = await database.run_read(courier_position, namespace)
    if not done:  # there is no courier, or it has only just begun
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
    """Return the next entries that the ledger has."""
    recorded, noticed = (
        connection.execute(select(table).where(table.c.position > after).order_by(table.c.position).limit(_PAGE))
        for table in (transitions, notices)
    )
    entries = [Entry(position_id(it.position), it.batch, it.sequence_number, it.time_us, it.words) for it in recorded]
    for row in noticed:
        notice = Notice(row.id, row.type, row.project, row.time_us, row.data)
        entries.append(Entry(position_id(row.position), NO_BATCH, 0, row.time_us, "", notice))
    entries.sort(key=lambda entry: position_number(entry.id))
    return entries[:_PAGE]


def _read_touched(connection: Connection, after: str, ended_within_ms: int | None) -> list[UUID]:
    query = select(transitions.c.batch).where(transitions.c.position > position_number(after)).distinct()
    if ended_within_ms is not None:
        recent = or_(batches.c.ended_ms.is_(None), batches.c.ended_ms >= now_ms() - ended_within_ms)
        query = query.join(batches, batches.c.id == transitions.c.batch).where(recent)
    return [row[0] for row in connection.execute(query)]


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
    batch = RestoredBatch(batch_id, row.sequence_number, BATCH_BY_LETTER[row.status], fields)
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
