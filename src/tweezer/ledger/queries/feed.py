"""The feed of events: pages that are read from the ledger and, after its end, from the stream.

Rows of the ledger and entries of the stream have the same positions. Recorded events are read first, then the stream
after them. If the stream was trimmed in between, the ledger is read again, because trimmed entries are recorded. So
each event is returned once and in order, regardless of concurrent recording and trimming.

The database selects the rows of the requested types, from a limited number of rows at a time. A page is limited by rows
and by time; if it reaches a limit, it contains where to continue and that there may be more.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, literal, or_, select, union_all

from tweezer.ledger.database import Database
from tweezer.ledger.positions import NOW, Cursor, EventFinder, before_time, read_cursor, recorder_position
from tweezer.ledger.schema import batches, notices, projects, transitions
from tweezer.model.events import Notice, read_words
from tweezer.model.lifecycle import BATCH_BY_LETTER, JOB_BY_LETTER, TERMINAL_BATCH
from tweezer.model.webhooks import EventMessage, EventType, describe_event, describe_notice
from tweezer.store.connection import Store
from tweezer.store.reader import Owners
from tweezer.store.streams.feed import Entry, position_id, position_number

LIMIT_MAX = 1000
PAGE_LIMIT = 100
"""Default number of events on a page."""

SCANNED_MAX = 20_000
"""Approximate number of rows or entries that are scanned for one page, which limits the cost of selective filters."""

PAGE_S = 0.5
"""Time after which a page is returned as it is, in seconds."""

_STEP = 1000  # rows or entries per read
_MERGED_MAX = 50  # projects whose rows are merged; with more, all rows are scanned
_SHOWN = frozenset(EventType)


class Selection(msgspec.Struct, frozen=True):
    """The events of a batch, else those of these projects and the notices for all, else (None) all events.

    since_us: for a batch, when it was created. ``projects`` then contains only the batch's project.
    """

    projects: frozenset[str] | None = None
    batch_id: UUID | None = None
    since_us: int = 0

    @property
    def project(self) -> str:
        """The project of the batch."""
        (project,) = self.projects or ("",)
        return project

    def has(self, project: str | None) -> bool:
        return self.projects is None or project is None or project in self.projects


class EventPage(msgspec.Struct, frozen=True):
    """A page of events, and the place after the scanned rows.

    more: whether there may be more events now. ended: whether the end of the selected batch was scanned.
    """

    events: list[EventMessage]
    next: Cursor
    more: bool
    ended: bool


class _Item(NamedTuple):
    """An entry of the stream or a row of the ledger; ``project`` is None for a notice."""

    position: int
    project: str | None
    batch_id: UUID
    first: int
    time_us: int
    words: str
    notice: Notice | None = None
    holder: str = ""
    faults: str = ""


class _Stretch(NamedTuple):
    """All items after a place, up to and including ``end``. is_last: there were no more. scanned: rows and entries."""

    items: list[_Item]
    end: int
    is_last: bool
    scanned: int


class _Rows(NamedTuple):
    """The ledger's items after a place, up to and including ``end``; None: up to its end.

    recorded: position up to which the stream is recorded.
    """

    items: list[_Item]
    end: int | None
    scanned: int
    recorded: int


class Feed:
    """Reads the feed; all methods raise Unavailable."""

    def __init__(self, store: Store, database: Database, *, namespace: str) -> None:
        self._store = store
        self._database = database
        self._namespace = namespace
        self._owners = Owners(store.scripts)
        self._finder = EventFinder(store, database)

    async def cursor(self, after: str | None, selection: Selection) -> Cursor:
        """Return the place after ``after``: an event's id, the ``next`` of a page, or ``now``.

        None means the beginning. The id of an event that is not found means its time, so some events may be repeated.
        Raises InvalidInput("after", …).
        """
        if after is None:
            return before_time(selection.since_us)
        if after in NOW:
            recorded = await self._database.run_read(recorder_position, self._namespace)
            return Cursor(max(recorded, position_number(await self._store.events.last())))
        place = read_cursor(after)
        if isinstance(place, Cursor):
            return place
        found, batch_id = await self._finder.find(place)
        if batch_id is None or batch_id == selection.batch_id or selection.has(await self._owner(batch_id)):
            return found
        return before_time(place.time_us)  # another project's event is treated as not found

    async def read(
        self,
        selection: Selection,
        cursor: Cursor,
        *,
        types: Collection[str] = (),
        internal: bool = False,
        limit: int = PAGE_LIMIT,
    ) -> EventPage:
        """Return the events after the place, oldest first; only of these types, if any are given.

        internal: without types, also return the events that no receiver gets.
        """
        wanted = frozenset(types)
        builder = _PageBuilder(wanted or (None if internal else _SHOWN), limit, selection.batch_id)
        scanned, deadline = 0, time.monotonic() + PAGE_S
        while True:
            stretch = await self._stretch(selection, cursor.before, wanted)
            for item in stretch.items:
                skipped = cursor.events_before or 0 if item.position == cursor.position else 0
                left_at = builder.add(item, skipped)
                cursor = Cursor(item.position, left_at)
                if left_at is not None or builder.is_full:
                    return EventPage(builder.events, cursor, True, builder.ended)
            if stretch.end > cursor.position:
                cursor = Cursor(stretch.end)
            scanned += stretch.scanned + 1
            if stretch.is_last or scanned >= SCANNED_MAX or time.monotonic() > deadline:
                return EventPage(builder.events, cursor, not stretch.is_last, builder.ended)

    async def _stretch(self, selection: Selection, after: int, types: frozenset[str]) -> _Stretch:
        rows = await self._database.run_read(self._read_rows, selection, after, types)
        if rows.end is not None:
            return _Stretch(rows.items, rows.end, False, rows.scanned)
        start = max(after, rows.recorded)
        entries, trimmed = await self._store.events.read_on(position_id(start), most=_STEP)
        if position_number(trimmed) > start:
            rows = await self._database.run_read(self._read_rows, selection, after, types)
            if rows.end is not None:
                return _Stretch(rows.items, rows.end, False, rows.scanned)
        found = {item.position: item for item in rows.items}
        for item in await self._of_stream(selection, entries):
            found.setdefault(item.position, item)
        end, is_last = max([start, *found]), len(entries) < _STEP
        if entries:
            last = position_number(entries[-1].id)
            end = max(end, last) if is_last else last
        items = [found[at] for at in sorted(found) if at <= end]
        return _Stretch(items, end, is_last, rows.scanned + len(entries))

    # -- the stream -------------------------------------------------------------------------------------

    async def _of_stream(self, selection: Selection, entries: Iterable[Entry]) -> list[_Item]:
        fresh = [entry for entry in entries if not entry.is_restored and (entry.words or entry.notice)]
        if selection.batch_id is not None:
            return [_item(it, selection.project) for it in fresh if it.batch_id == selection.batch_id]
        owners = await self._owners.projects(it.batch_id for it in fresh if it.notice is None)
        if gone := {it.batch_id for it in fresh if it.notice is None and it.batch_id not in owners}:
            owners |= await self._database.run_read(_read_owners, gone)
        items = []
        for entry in fresh:
            if entry.notice is not None:
                if selection.has(entry.notice.project):
                    items.append(_item(entry, None))
            elif (owner := owners.get(entry.batch_id)) is not None and selection.has(owner):  # None: it was deleted
                items.append(_item(entry, owner))
        return items

    async def _owner(self, batch_id: UUID) -> str:
        owners = await self._owners.projects([batch_id]) or await self._database.run_read(_read_owners, {batch_id})
        return owners.get(batch_id, "")

    # -- the ledger -------------------------------------------------------------------------------------

    def _read_rows(self, connection: Connection, selection: Selection, after: int, types: frozenset[str]) -> _Rows:
        """Return the first rows after the position; of these types, if any are given, and possibly others."""
        items: list[_Item] = []
        ends: list[int] = []
        scanned = 0
        recorded = recorder_position(connection, self._namespace)
        for read in (_read_transitions, _read_notices):
            part, end = read(connection, selection, after, types)
            items += part
            scanned += SCANNED_MAX if end is not None and len(part) < _STEP else len(part)
            if end is not None:
                ends.append(end)
        items.sort(key=lambda item: item.position)
        if not ends:
            return _Rows(items, None, scanned, recorded)
        end = min(ends)
        return _Rows([item for item in items if item.position <= end], end, scanned, recorded)


class _PageBuilder:
    """Collects events of some types (None: of all), up to a limit."""

    def __init__(self, types: frozenset[str] | None, limit: int, batch_id: UUID | None) -> None:
        self._types = types
        self._batch_id = batch_id
        self._limit = limit
        self.events: list[EventMessage] = []
        self.ended = False

    @property
    def is_full(self) -> bool:
        return len(self.events) >= self._limit

    def add(self, item: _Item, skipped: int) -> int | None:
        """Add the events of an item after the first ``skipped``; return how many are processed, None for all."""
        if item.notice is not None:
            if self._types is None or item.notice.type in self._types:
                self.events.append(describe_notice(item.notice))
            return None
        assert item.project is not None
        done = 0
        for word in read_words(item.words):
            if done + word.count <= skipped:
                done += word.count
                continue
            rest, done = word.skip(skipped - done), max(done, skipped)
            found = (item.batch_id, item.first + done, item.time_us, item.holder, item.faults)
            head = next(rest.events(*found))
            if self._types is None or head.type in self._types:  # all events of a word have the same type
                for event in rest.events(*found):
                    if self.is_full:
                        return done
                    self.events.append(describe_event(event, item.project))
                    done += 1
            else:
                done += rest.count
            if head.index is None and head.status.terminal and head.batch_id == self._batch_id:
                self.ended = True
        return None


def _read_owners(connection: Connection, batch_ids: set[UUID]) -> dict[UUID, str]:
    found = select(batches.c.id, projects.c.id).join(projects, projects.c.no == batches.c.project)
    return {row[0]: row[1] for row in connection.execute(found.where(batches.c.id.in_(batch_ids)))}


def _item(entry: Entry, project: str | None) -> _Item:
    position = position_number(entry.id)
    about = (entry.batch_id, entry.first, entry.time_us, entry.words, entry.notice, entry.holder, entry.faults)
    return _Item(position, project, *about)


def _read_transitions(
    connection: Connection, selection: Selection, after: int, types: frozenset[str]
) -> tuple[list[_Item], int | None]:
    """Return the next transitions that may be of these types, and the position up to which they are complete.

    None means up to the end.
    """
    table = transitions.c
    pairs = _pairs(types, ends=selection.batch_id is not None)
    if types and not pairs:
        return [], None
    whose, is_mixed = _whose(connection, selection)
    if not whose:
        return [], None
    conditions: list[ColumnElement[bool]] = [table.position > after]
    until = None
    if types or is_mixed:
        until = _window(connection, [conditions if is_mixed else [*conditions, *part] for part in whose])
    if until is not None:
        conditions.append(table.position <= until)
    if types:
        conditions.append(_has_words(connection, pairs))
    columns = (table.position, table.batch, table.sequence_number, table.time_us, table.words)
    more = (table.holder, table.faults, projects.c.id)
    named: Select[Any] = select(*columns, *more).join(projects, projects.c.no == table.project)
    firsts = [named.where(*part, *conditions).order_by(table.position).limit(_STEP) for part in whose]
    query = firsts[0]
    if len(firsts) > 1:  # each project's rows are contiguous in the index
        merged = union_all(*(select(first.subquery()) for first in firsts)).subquery()
        query = select(merged).order_by(merged.c.position).limit(_STEP)
    items = [
        _Item(at, project, batch, first, time_us, words, holder=holder or "", faults=faults or "")
        for at, batch, first, time_us, words, holder, faults, project in connection.execute(query)
    ]
    return items, items[-1].position if len(items) == _STEP else until


def _read_notices(
    connection: Connection, selection: Selection, after: int, types: frozenset[str]
) -> tuple[list[_Item], int | None]:
    """Return the next notices of exactly these types, as :func:`_read_transitions`."""
    table = notices.c
    named = {it for it in types if not it.startswith(("batch.", "job."))}
    if selection.batch_id is not None or (types and not named):
        return [], None
    conditions: list[ColumnElement[bool]] = [table.position > after]
    until = None
    if types:
        until = _last_of_window(connection, select(table.position).where(*conditions), table.position, SCANNED_MAX)
        conditions.append(table.type.in_(sorted(named)))
    if until is not None:
        conditions.append(table.position <= until)
    if selection.projects is not None:
        conditions.append(or_(table.project.is_(None), table.project.in_(sorted(selection.projects))))
    query = select(table.position, table.id, table.type, table.project, table.time_us, table.data)
    rows = list(connection.execute(query.where(*conditions).order_by(table.position).limit(_STEP)))
    items = [_Item(row.position, None, UUID(int=0), 0, row.time_us, "", Notice(*row[1:])) for row in rows]
    return items, items[-1].position if len(items) == _STEP else until


def _whose(connection: Connection, selection: Selection) -> tuple[list[list[ColumnElement[bool]]], bool]:
    """Return the conditions on transitions for each part of the selection that is read with a separate index scan.

    Also return whether a part's rows are interleaved with those of other projects.
    """
    table = transitions.c
    if selection.batch_id is not None:
        return [[table.batch == selection.batch_id]], False
    if selection.projects is None:
        return [[]], False
    found = select(projects.c.no).where(projects.c.id.in_(sorted(selection.projects)))
    numbers = list(connection.execute(found).scalars())
    if len(numbers) > _MERGED_MAX:
        return [[table.project.in_(numbers)]], True
    return [[table.project == no] for no in numbers], False


def _window(connection: Connection, parts: Sequence[Sequence[ColumnElement[bool]]]) -> int | None:
    """Return the position up to which transitions may be scanned at once; None means up to the end."""
    table = transitions.c
    ends = [
        _last_of_window(connection, select(table.position).where(*part), table.position, SCANNED_MAX // len(parts))
        for part in parts
    ]
    return min((end for end in ends if end is not None), default=None)


def _last_of_window(
    connection: Connection, positions: Select[Any], column: ColumnElement[int], rows: int
) -> int | None:
    """Return the position of the row with this number; None if there are fewer. It uses only an index."""
    found: int | None = connection.execute(positions.order_by(column).offset(rows - 1).limit(1)).scalar()
    return found


# --- patterns of event types in words: two letters, the status before and after, following a job's index or a space

_PAIRS = {
    **{f"job.{status.lower()}": f"[0-9][A-Z]{letter}" for letter, status in JOB_BY_LETTER.items()},
    **{f"batch.{status.lower()}": f" [A-Z]{letter}" for letter, status in BATCH_BY_LETTER.items()},
    EventType.BATCH_CREATED: " N[A-Z]",
    EventType.BATCH_IDLE: " [A-Z]I",
    EventType.BATCH_LATE: " [A-Z]L",
    EventType.BATCH_RESUMED: " S[A-Z]",
}


def _pairs(types: frozenset[str], *, ends: bool) -> list[str]:
    """Return the patterns of these types in words with a space before them. ends: also those of ends of batches."""
    if ends and types:
        types |= {f"batch.{status.lower()}" for status in TERMINAL_BATCH}
    return [_PAIRS[it] for it in sorted(types) if it in _PAIRS]


def _has_words(connection: Connection, pairs: Iterable[str]) -> ColumnElement[bool]:
    words = transitions.c.words
    if connection.dialect.name == "sqlite":
        spaced = literal(" ") + words
        return or_(*(spaced.op("GLOB", is_comparison=True)(f"*{pair}*") for pair in pairs))
    return (literal(" ") + words).regexp_match("|".join(pairs))
