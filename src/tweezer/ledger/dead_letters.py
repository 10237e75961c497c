"""Dead letters: stream entries and messages that a shared consumer could not process, kept for operators.

A consumer that cannot process an item parks it here with the error, and continues with others. Later entries of the
same batch wait behind it, so that the order within the batch is preserved. A letter is kept until a retry succeeds, an
operator drops it, or newer letters need its space.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from importlib import metadata
from typing import Any
from uuid import UUID

import msgspec
import structlog
from sqlalchemy import ColumnElement, Connection, Row, delete, exc, func, insert, select, update

from tweezer.ledger.config import DeadLetterBounds
from tweezer.ledger.database import Database
from tweezer.ledger.positions import recorded_entry, recorder_position
from tweezer.ledger.schema import (
    as_datetime,
    dead_letter_totals,
    dead_letters,
    insert_into,
    now_ms,
    read_row,
    transitions,
)
from tweezer.model.errors import NotFound, TweezerError, Unreadable
from tweezer.store.streams.feed import Entry, pack_entry, position_number, unpack_entry

log = structlog.get_logger(__name__)

_VERSION = metadata.version("tweezer")

PAYLOAD_MAX = 1 << 20
"""Maximum size of a stored entry or message, in bytes; the content of a larger one is not stored."""

_ERROR_MAX = 1000
_ORIGIN_MAX = 200
_RETRIED_AT_ONCE = 100


class Consumer(StrEnum):
    """The consumer that parked a letter. intake: messages from applications. scheduler: its own periodic messages."""

    RECORDER = "recorder"
    COURIER = "courier"
    INTAKE = "intake"
    SCHEDULER = "scheduler"


class NewLetter(msgspec.Struct, frozen=True):
    """A letter to be parked.

    origin: id of the entry or message, or another name; parking the same origin again replaces the error. project:
    None if unknown. position: number of the entry; 0 for a message.
    """

    origin: str
    error: str
    payload: bytes
    batch: UUID | None = None
    project: str | None = None
    position: int = 0


class Letter(msgspec.Struct, frozen=True):
    """A parked letter, and the number of entries that wait behind it. payload: None if it was too large to store."""

    id: int
    consumer: Consumer
    origin: str
    batch: UUID | None
    project: str | None
    position: int
    last_position: int
    waiting: int
    error: str
    payload: bytes | None
    size: int
    version: str
    created: datetime
    retry: datetime | None


class WaitingEntries(msgspec.Struct, frozen=True):
    """Entries of a batch that wait behind a letter: their number, and the position of the last one."""

    entries: int
    last: int

    @classmethod
    def append(cls, before: WaitingEntries | None, entry: Entry) -> WaitingEntries:
        """Return ``before`` with one more entry."""
        return cls(1 + (before.entries if before else 0), position_number(entry.id))


class LetterCounts(msgspec.Struct, frozen=True):
    """Counts of a consumer's letters: current ones, the oldest, and totals of parked and evicted ones."""

    letters: int = 0
    oldest: datetime | None = None
    total: int = 0
    evicted: int = 0


def is_unusable(error: Exception) -> bool:
    """Return whether an error is caused by the data, not by Redis, the database or this process."""
    match error:
        case Unreadable() | RecursionError():
            return True
        case TweezerError() | OSError() | MemoryError() | RuntimeError() | exc.ProgrammingError():
            return False
        case _:
            return True


def describe_error(error: Exception) -> str:
    """Format an error for a letter."""
    text = error.message if isinstance(error, TweezerError) else f"{type(error).__name__}: {error}"
    return _plain(text, _ERROR_MAX)


def pack_letter(entry: Entry, error: str, project: str | None = None) -> NewLetter:
    """Make the letter of a stream entry, with its batch if that can be read."""
    batch_id = entry.batch_id if entry.notice is None and entry.problem is None else None
    return NewLetter(entry.id, error, pack_entry(entry), batch_id, project, position_number(entry.id))


def unpack_letter(letter: Letter) -> Entry:
    """Return the entry that was parked. Raises Unreadable."""
    if letter.payload is None or not letter.position:
        raise Unreadable("the entry was too large to store and cannot be retried; drop it")
    return unpack_entry(letter.origin, letter.payload)


def park(connection: Connection, consumer: Consumer, letters: Sequence[NewLetter], bounds: DeadLetterBounds) -> None:
    """Store letters, and evict the oldest ones if there are too many."""
    if not letters:
        return
    now = now_ms()
    for letter in letters:
        payload = letter.payload if len(letter.payload) <= PAYLOAD_MAX else None
        row = msgspec.structs.asdict(letter) | {
            "consumer": consumer.value,
            "origin": _plain(letter.origin, _ORIGIN_MAX),
            "last_position": letter.position,
            "waiting": 0,
            "error": _plain(letter.error, _ERROR_MAX),
            "payload": payload,
            "size": 0 if payload is None else len(payload),
            "version": _VERSION,
            "created_ms": now,
        }
        again = {name: row[name] for name in ("error", "payload", "size", "version", "created_ms")} | {"retry_ms": None}
        statement = insert_into(connection, dead_letters).values(row)
        connection.execute(statement.on_conflict_do_update(index_elements=["consumer", "origin"], set_=again))
        log.error(
            "dead_letter.parked",
            consumer=consumer.value,
            origin=row["origin"],
            batch=None if letter.batch is None else str(letter.batch),
            error=row["error"],
        )
    _count(connection, consumer, parked=len(letters))
    _evict(connection, bounds)


def add_waiting(connection: Connection, consumer: Consumer, entries: Mapping[UUID, WaitingEntries]) -> set[UUID]:
    """Record entries as waiting behind the letter of their batch; return the batches that are still parked."""
    parked = set()
    for batch_id, behind in entries.items():
        first = select(func.min(dead_letters.c.id)).where(_of(consumer), dead_letters.c.batch == batch_id)
        statement = (
            update(dead_letters)
            .where(dead_letters.c.id == first.scalar_subquery())
            .values(waiting=dead_letters.c.waiting + behind.entries, last_position=behind.last)
        )
        if connection.execute(statement).rowcount:
            parked.add(batch_id)
    return parked


class DeadLetterQueue:
    """The dead letters of one consumer. All methods block, and raise Unavailable."""

    def __init__(self, database: Database, consumer: Consumer, bounds: DeadLetterBounds) -> None:
        self._database = database
        self._consumer = consumer
        self._bounds = bounds

    def park(self, letters: Sequence[NewLetter]) -> None:
        """Store letters, and evict the oldest ones if there are too many."""
        with self._database.write() as connection:
            park(connection, self._consumer, letters, self._bounds)

    def hold_back(self, entries: Iterable[Entry]) -> frozenset[UUID]:
        """Return the parked batches, and record entries of these as waiting behind their letters."""
        with self._database.read() as connection:
            parked = self._read_parked(connection).keys()
        behind: dict[UUID, WaitingEntries] = {}
        for entry in entries:
            if entry.batch_id in parked and entry.notice is None:
                behind[entry.batch_id] = WaitingEntries.append(behind.get(entry.batch_id), entry)
        if not behind:
            return frozenset(parked)
        with self._database.write() as connection:
            still_parked = add_waiting(connection, self._consumer, behind)
        return frozenset(parked - behind.keys() | still_parked)

    def read(self, *, retry_others: bool = False) -> tuple[dict[UUID, str | None], list[Letter]]:
        """Return the parked batches with their projects, and the letters that are due for a retry.

        retry_others: first request a retry of all letters that another version of Tweezer parked.
        """
        with self._database.write() if retry_others else self._database.read() as connection:
            if retry_others:
                others = (_of(self._consumer), dead_letters.c.version != _VERSION)
                retried = update(dead_letters).where(*others).values(retry_ms=now_ms(), version=_VERSION)
                connection.execute(retried)
            due = select(dead_letters).where(_of(self._consumer), dead_letters.c.retry_ms.is_not(None))
            letters = connection.execute(due.order_by(dead_letters.c.id).limit(_RETRIED_AT_ONCE))
            return self._read_parked(connection), [_letter(row) for row in letters]

    def _read_parked(self, connection: Connection) -> dict[UUID, str | None]:
        columns = (dead_letters.c.batch, dead_letters.c.project)
        query = select(*columns).where(_of(self._consumer), dead_letters.c.batch.is_not(None))
        found: dict[UUID, str | None] = {}
        for batch_id, project in connection.execute(query):
            found[batch_id] = found.get(batch_id) or project
        return found

    def read_entries(self, letter: Letter, namespace: str) -> list[Entry] | None:
        """Return the parked entry and those behind it; None while some of these are not recorded yet.

        Raises Unreadable.
        """
        first = unpack_letter(letter)
        if letter.last_position == letter.position:
            return [first]
        found = {letter.position: first}
        behind = select(transitions).where(
            transitions.c.batch == letter.batch,
            transitions.c.position.between(letter.position, letter.last_position),
        )
        with self._database.read() as connection:
            if recorder_position(connection, namespace) < letter.last_position:
                return None
            for row in connection.execute(behind.order_by(transitions.c.position)):
                found.setdefault(row.position, recorded_entry(row))
        return [found[at] for at in sorted(found)]

    def note_failure(self, letter: Letter, error: Exception) -> None:
        """Record that a retry of the letter failed."""
        values = {"error": describe_error(error), "retry_ms": None, "version": _VERSION}
        with self._database.write() as connection:
            connection.execute(update(dead_letters).where(dead_letters.c.id == letter.id).values(**values))

    def resolve(self, letter: Letter) -> Letter | None:
        """Remove a letter whose retry succeeded; if more entries wait behind it by now, keep and return it."""
        unchanged = (dead_letters.c.id == letter.id, dead_letters.c.last_position == letter.last_position)
        with self._database.write() as connection:
            connection.execute(delete(dead_letters).where(*unchanged))
            row = connection.execute(select(dead_letters).where(dead_letters.c.id == letter.id)).one_or_none()
        return None if row is None else _letter(row)


# -- for operators ------------------------------------------------------------------------------------------


def list_letters(
    connection: Connection,
    *,
    consumer: Consumer | None = None,
    batch: UUID | None = None,
    limit: int | None = None,
) -> list[Letter]:
    """Return the letters, oldest first."""
    which: list[ColumnElement[bool]] = []
    if consumer is not None:
        which.append(_of(consumer))
    if batch is not None:
        which.append(dead_letters.c.batch == batch)
    query = select(dead_letters).where(*which).order_by(dead_letters.c.id).limit(limit)
    return [_letter(row) for row in connection.execute(query)]


def find_letters(connection: Connection, ids: Collection[int]) -> list[Letter]:
    """Return the letters with these ids, oldest first. Raises NotFound."""
    query = select(dead_letters).where(dead_letters.c.id.in_(sorted(ids))).order_by(dead_letters.c.id)
    found = [_letter(row) for row in connection.execute(query)]
    for identity in sorted(set(ids) - {letter.id for letter in found}):
        raise NotFound("dead letter", str(identity))
    return found


def request_retry(connection: Connection, ids: Iterable[int]) -> None:
    """Make the consumers retry these letters."""
    which = dead_letters.c.id.in_(sorted(ids))
    connection.execute(update(dead_letters).where(which).values(retry_ms=now_ms()))


def drop_letters(connection: Connection, ids: Iterable[int]) -> None:
    """Delete the letters."""
    connection.execute(delete(dead_letters).where(dead_letters.c.id.in_(sorted(ids))))


def count_letters(connection: Connection) -> dict[Consumer, LetterCounts]:
    """Count the letters by consumer."""
    columns = (dead_letters.c.consumer, func.count(), func.min(dead_letters.c.created_ms))
    now = {row[0]: (row[1], row[2]) for row in connection.execute(select(*columns).group_by(dead_letters.c.consumer))}
    ever = {row.consumer: (row.parked, row.evicted) for row in connection.execute(select(dead_letter_totals))}
    return {
        it: LetterCounts(now.get(it, (0,))[0], as_datetime(now[it][1]) if it in now else None, *ever.get(it, (0, 0)))
        for it in Consumer
    }


def count_newer(connection: Connection) -> int:
    """Return the number of batches that are parked because a newer Tweezer wrote them."""
    newer = dead_letters.c.error.like("batch % was written by a newer Tweezer%")
    return connection.execute(select(func.count(dead_letters.c.batch.distinct())).where(newer)).scalar_one()


def expire_letters(connection: Connection, bounds: DeadLetterBounds) -> None:
    """Delete letters that have exceeded their retention time."""
    _drop_for_room(connection, dead_letters.c.created_ms < now_ms() - bounds.kept_s * 1000)


def _evict(connection: Connection, bounds: DeadLetterBounds) -> None:
    """Delete the oldest letters that exceed the bounds."""
    count, size = connection.execute(select(func.count(), func.sum(dead_letters.c.size))).one()
    if count <= bounds.count and (size or 0) <= bounds.size:
        return
    oldest: list[int] = []
    for identity, its_size in connection.execute(
        select(dead_letters.c.id, dead_letters.c.size).order_by(dead_letters.c.id)
    ):
        if count <= bounds.count and size <= bounds.size:
            break
        oldest.append(identity)
        count, size = count - 1, size - its_size
    _drop_for_room(connection, dead_letters.c.id <= oldest[-1])


def _drop_for_room(connection: Connection, which: ColumnElement[bool]) -> None:
    columns = (dead_letters.c.consumer, func.count(), func.min(dead_letters.c.id), func.max(dead_letters.c.id))
    rows = connection.execute(select(*columns).where(which).group_by(dead_letters.c.consumer)).all()
    for consumer, count, first, last in rows:
        log.error("dead_letter.evicted", consumer=consumer, letters=count, first=first, last=last)
        _count(connection, Consumer(consumer), evicted=count)
    if rows:
        connection.execute(delete(dead_letters).where(which))


def _count(connection: Connection, consumer: Consumer, *, parked: int = 0, evicted: int = 0) -> None:
    table = dead_letter_totals
    values = {"parked": table.c.parked + parked, "evicted": table.c.evicted + evicted}
    if not connection.execute(update(table).where(table.c.consumer == consumer).values(**values)).rowcount:
        connection.execute(insert(table).values(consumer=consumer.value, parked=parked, evicted=evicted))


def _of(consumer: Consumer) -> ColumnElement[bool]:
    return dead_letters.c.consumer == consumer.value


def _plain(text: str, most: int) -> str:
    """Escape characters that some databases do not accept, and shorten the text."""
    shown = "".join(it if it.isprintable() else it.encode("unicode_escape").decode() for it in text[:most])
    return shown[:most]


def _letter(row: Row[Any]) -> Letter:
    return read_row(Letter, row, consumer=Consumer(row.consumer))
