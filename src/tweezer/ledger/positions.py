"""Positions in the stream of events: those of its readers, as committed in the ledger, and cursors of clients."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Connection, Row, select

from tweezer.ledger.database import Database
from tweezer.ledger.schema import couriers, notices, recorder, transitions
from tweezer.model.errors import InvalidInput
from tweezer.model.events import count_events
from tweezer.store.connection import Store
from tweezer.store.streams.feed import START, Entry, position_id, position_number


def courier_position(connection: Connection, namespace: str) -> int:
    """Return the position of the last stream entry whose deliveries are all written; 0 without one."""
    query = select(couriers.c.position).where(couriers.c.namespace == namespace)
    return connection.execute(query).scalar() or 0


def recorder_position(connection: Connection, namespace: str) -> int:
    """Return the position of the last recorded stream entry; 0 without one."""
    query = select(recorder.c.position).where(recorder.c.namespace == namespace)
    return position_number(connection.execute(query).scalar() or START)


def recorded_entry(row: Row[Any]) -> Entry:
    """Make the stream's entry from a row of the transitions."""
    about = (row.batch, row.sequence_number, row.time_us, row.words)
    return Entry(position_id(row.position), *about, holder=row.holder or "", faults=row.faults or "")


NOW = ("now", "$")
"""Names of the end of the stream."""

_PLACE = re.compile(r"(\d{1,13})-(\d{1,7})(?:\.(\d{1,9}))?", re.ASCII)
_EVENT = re.compile(r"([0-9a-fA-F-]{32,36}):([1-9]\d{0,14}):(\d{16})", re.ASCII)
_NOTICE = re.compile(r"[A-Za-z0-9_.-]{1,100}:(\d{16})", re.ASCII)  # of a device or an endpoint
_NUMBERS = 1 << 20  # limit of the entries of one millisecond
_MILLISECONDS = 1 << 43
_SLACK_MS = 1000  # maximum difference between the position of an entry and the time of its events
_PAGE = 1000


class Cursor(msgspec.Struct, frozen=True):
    """A place in the stream. position: of an entry. events_before: how many of its events precede it; None for all."""

    position: int = 0
    events_before: int | None = None

    def __str__(self) -> str:
        return position_id(self.position) + ("" if self.events_before is None else f".{self.events_before}")

    @property
    def before(self) -> int:
        """The position after which entries must be read."""
        return self.position if self.events_before is None else self.position - 1


def before_time(time_us: int) -> Cursor:
    """Return a place before all events at this time and later."""
    return Cursor(max(time_us // 1000 - _SLACK_MS, 0) << 20)


class EventName(msgspec.Struct, frozen=True):
    """A parsed event id; ``batch_id`` and ``sequence`` are None for a notice."""

    id: str
    time_us: int
    batch_id: UUID | None = None
    sequence: int | None = None

    def is_in(self, entry: Entry) -> bool:
        if entry.notice is not None:
            return entry.notice.id == self.id
        if entry.batch_id != self.batch_id or entry.time_us != self.time_us or self.sequence is None:
            return False
        return entry.first <= self.sequence < entry.first + count_events(entry.words)


def read_cursor(after: str) -> Cursor | EventName:
    """Parse a cursor or an event id. Raises InvalidInput("after", …)."""
    if match := _PLACE.fullmatch(after):
        milliseconds, number = int(match[1]), int(match[2])
        if milliseconds < _MILLISECONDS and number < _NUMBERS:
            return Cursor(milliseconds << 20 | number, None if match[3] is None else int(match[3]))
    elif match := _EVENT.fullmatch(after):
        batch_id = _uuid(match[1])
        if batch_id is not None and int(match[3]) < _MILLISECONDS * 1000:
            return EventName(after, int(match[3]), batch_id, int(match[2]))
    if (match := _NOTICE.fullmatch(after)) and int(match[1]) < _MILLISECONDS * 1000:
        return EventName(after, int(match[1]))
    raise InvalidInput("after", "must be the id of an event, the `next` of a previous response, or `now`")


class EventFinder:
    """Finds events in the ledger or in the stream."""

    def __init__(self, store: Store, database: Database) -> None:
        self._store = store
        self._database = database

    async def find(self, event: EventName) -> tuple[Cursor, UUID | None]:
        """Return the place after the event (if it is not found, before its time), and its batch.

        Raises Unavailable.
        """
        entry = await self._database.run_read(_find_recorded, event) or await self._in_stream(event)
        if entry is None:
            return before_time(event.time_us), None
        position = position_number(entry.id)
        if event.sequence is None:
            return Cursor(position), None
        told = event.sequence - entry.first + 1
        return Cursor(position, told if told < count_events(entry.words) else None), entry.batch_id

    async def _in_stream(self, event: EventName) -> Entry | None:
        at, until = before_time(event.time_us).position, (event.time_us // 1000 + _SLACK_MS) << 20
        while at < until:
            entries = await self._store.events.read(position_id(at), most=_PAGE)
            for entry in entries:
                if event.is_in(entry) and not entry.is_restored:
                    return entry
            if len(entries) < _PAGE:
                break
            at = position_number(entries[-1].id)
        return None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _find_recorded(connection: Connection, event: EventName) -> Entry | None:
    after = before_time(event.time_us).position
    if event.batch_id is None:
        found = select(notices.c.position).where(notices.c.position > after, notices.c.id == event.id)
        position = connection.execute(found.limit(1)).scalar()
        return None if position is None else Entry(position_id(position), UUID(int=0), 0, event.time_us, "")
    columns = (transitions.c.position, transitions.c.sequence_number, transitions.c.words)
    rows = connection.execute(
        select(*columns)
        .where(transitions.c.batch == event.batch_id, transitions.c.position > after)
        .where(transitions.c.time_us == event.time_us, transitions.c.sequence_number <= event.sequence)
        .order_by(transitions.c.position)
    )
    entries = (Entry(position_id(at), event.batch_id, first, event.time_us, words) for at, first, words in rows)
    return next(filter(event.is_in, entries), None)
