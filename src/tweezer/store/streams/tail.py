"""Follows the end of the stream of events for all listeners of a process.

Regardless of the number of listeners, only one call waits in Redis. A listener to a batch or a project is woken only by
events of that batch or project.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any
from uuid import UUID

from tweezer.duties import Duty
from tweezer.model.errors import TweezerError
from tweezer.store.keys import Key
from tweezer.store.reader import Owners
from tweezer.store.scripts import Scripts, ask
from tweezer.store.streams.feed import EventStream, Waiter, parse_batch_id, position_id, position_number, read_entry

_PAGE = 1000  # entries of one read
_BLOCK_MS = 5000  # how long one read waits, and so how long it may outlast the last listener


class TailReader(Waiter):
    """Waits for events of a batch, of some projects, or of all."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self._tail = tail
        self._first: int | None = None
        self._sure = True

    def put(self, position: int | None) -> None:
        """Wake the listener for a new event at this position; None if there may be events at an unknown position."""
        if position is None:
            self._sure = False
        elif self._first is None:
            self._first = position
        self._woken.set()

    async def next(self, timeout_s: float | None) -> int:
        """Wait until there is a new event, for at most ``timeout_s``.

        Returns a position up to which there are no new events for a listener that has read everything since the last
        call (or since it was created); 0 if that is unknown. Raises Unavailable; then listen again.
        """
        await self.wait(timeout_s)
        first, sure = self._first, self._sure
        self._first, self._sure = None, True
        if not sure:
            return 0
        return self._tail.position if first is None else first - 1


class Tail:
    """Follows the end of the stream while there are listeners; if Redis is unavailable, it waits."""

    def __init__(self, scripts: Scripts) -> None:
        self._redis: Any = scripts.redis
        self._name = scripts.keys(Key.EVENTS)
        self._stream = EventStream(scripts)
        self._owners = Owners(scripts)
        self._of_batch: dict[bytes, set[TailReader]] = {}
        self._of_project: dict[str, set[TailReader]] = {}
        self._of_all: set[TailReader] = set()
        self._count = 0
        self._starting = asyncio.Lock()
        self._is_sure = True
        self.reader = Duty("tail", self._read, is_needed=lambda: self._count > 0, ended=self._reader_ended)
        self.position = 0
        """The position up to which it has read; see :func:`~tweezer.store.streams.feed.position_number`."""

    @contextlib.asynccontextmanager
    async def listen(
        self, *, batch_id: UUID | None = None, projects: Iterable[str] | None = None
    ) -> AsyncIterator[TailReader]:
        """Listen to a batch, else to these projects and the notices for all, else to everything. Raises Unavailable.

        Read the existing events after entering: all later ones wake the listener.
        """
        listener = TailReader(self)
        self._count += 1
        try:
            await self._start()
            with contextlib.ExitStack() as places:
                if batch_id is not None:
                    places.enter_context(_among(self._of_batch, str(batch_id).encode(), listener))
                elif projects is None:
                    self._of_all.add(listener)
                    places.callback(self._of_all.discard, listener)
                else:
                    for project in projects:
                        places.enter_context(_among(self._of_project, project, listener))
                yield listener
        finally:
            self._count -= 1

    async def close(self) -> None:
        await self.reader.stop()

    async def _start(self) -> None:
        async with self._starting:
            if not self.reader.is_running:
                self.position = position_number(await self._stream.last())
                self.reader.start()

    async def _read(self) -> None:
        if not self._is_sure:  # Redis may have restarted without its last writes
            self.position = min(self.position, position_number(await self._stream.last()))
            self._wake_all()
        self._is_sure = False
        found = await ask(self._redis.xread({self._name: position_id(self.position)}, count=_PAGE, block=_BLOCK_MS))
        for _, rows in found or ():
            await self._tell(rows)
        self._is_sure = True

    async def _tell(self, rows: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        fresh = [
            (entry_id, fields)
            for entry_id, fields in rows
            if b"r" not in fields and read_entry(entry_id, fields).problem is None  # restored ones are not new
        ]
        owners: dict[UUID, str] = {}
        if self._of_project:
            owners = await self._owners.projects(parse_batch_id(it[b"b"]) for _, it in fresh if it.get(b"e"))
        for entry_id, fields in fresh:
            if b"n" not in fields and not fields[b"e"]:
                continue  # no event
            position = position_number(entry_id.decode())
            for listener in self._concerned(fields, owners):
                listener.put(position)
        self.position = position_number(rows[-1][0].decode())

    def _concerned(self, fields: dict[bytes, bytes], owners: dict[UUID, str]) -> Iterable[TailReader]:
        yield from self._of_all
        project: str | None
        if b"n" in fields:
            project = fields[b"p"].decode() or None
        else:
            yield from self._of_batch.get(fields[b"b"], ())
            project = owners.get(parse_batch_id(fields[b"b"])) if self._of_project else None
        if project is not None:
            yield from self._of_project.get(project, ())
        else:  # for all projects; or of a batch that Redis has already forgotten: its readers use the ledger
            for listeners in self._of_project.values():
                yield from listeners

    def _wake_all(self) -> None:
        for listener in self._listeners():
            listener.put(None)

    def _reader_ended(self, error: TweezerError) -> None:
        for listener in self._listeners():
            listener.fail(error)

    def _listeners(self) -> Iterator[TailReader]:
        for listeners in (self._of_all, *self._of_batch.values(), *self._of_project.values()):
            yield from listeners


@contextlib.contextmanager
def _among(places: dict[Any, set[TailReader]], place: object, listener: TailReader) -> Any:
    places.setdefault(place, set()).add(listener)
    try:
        yield
    finally:
        places[place].discard(listener)
        if not places[place]:
            del places[place]
