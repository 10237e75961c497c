"""Dead letters of couriers: entries of which no webhooks can be made, and what waits behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select

from tweezer.ledger import dead_letters
from tweezer.ledger.database import Database
from tweezer.ledger.dead_letters import Behind, Consumer, Letter, NewLetter
from tweezer.ledger.place import DeadLetterBounds
from tweezer.ledger.schema import recorder, transitions
from tweezer.model.errors import NotFound, Unreadable
from tweezer.store.streams.feed import START, Entry, pack_entry, position_id, position_number, unpack_entry


class CourierLetters:
    """Parks and finds them. All methods block, and raise Unavailable."""

    def __init__(self, database: Database, bounds: DeadLetterBounds) -> None:
        self._database = database
        self._bounds = bounds

    def park(self, entries: Sequence[Entry], problem: str) -> None:
        """Parks entries that can be read."""
        self._park([_letter(entry, problem) for entry in entries])

    def park_unreadable(self, entries: Sequence[Entry]) -> None:
        """Parks entries that cannot be read."""
        self._park([_letter(entry, entry.problem or "") for entry in entries])

    def _park(self, letters: Sequence[NewLetter]) -> None:
        with self._database.write() as connection:
            dead_letters.park(connection, Consumer.COURIER, letters, self._bounds)

    def hold_back(self, entries: Iterable[Entry]) -> frozenset[UUID]:
        """The batches that are parked; those among the entries are noted as waiting behind them."""
        with self._database.read() as connection:
            parked = dead_letters.parked_batches(connection, Consumer.COURIER).keys()
        behind: dict[UUID, Behind] = {}
        for entry in entries:
            if entry.batch_id in parked and entry.notice is None:
                before = behind.get(entry.batch_id)
                behind[entry.batch_id] = Behind(1 + (before.entries if before else 0), position_number(entry.id))
        if not behind:
            return frozenset(parked)
        with self._database.write() as connection:
            held = dead_letters.hold_back(connection, Consumer.COURIER, behind)
        return frozenset(parked - behind.keys() | held)

    def due(self) -> list[Letter]:
        """Those that are to be tried again."""
        with self._database.read() as connection:
            return dead_letters.due_letters(connection, Consumer.COURIER)

    def failed_again(self, letter: Letter, error: Exception) -> None:
        """It was tried again, in vain."""
        with self._database.write() as connection:
            dead_letters.failed_again(connection, letter.id, error)

    def entries(self, letter: Letter, namespace: str) -> list[Entry] | None:
        """The entry that was parked, and those behind it; None while the recorder lacks some. Raises Unreadable."""
        if letter.payload is None or not letter.position:
            raise Unreadable("it cannot be tried again: drop it")
        first = unpack_entry(letter.origin, letter.payload)
        if letter.last_position == letter.position:
            return [first]
        found = {letter.position: first}
        with self._database.read() as connection:
            if _recorded(connection, namespace) < letter.last_position:
                return None
            for row in _behind(connection, letter):
                identity = position_id(row.position)
                found.setdefault(row.position, Entry(identity, row.batch, row.sequence_number, row.time_us, row.words))
        return [found[at] for at in sorted(found)]

    def finish(self, letter: Letter) -> Letter | None:
        """Removes a letter that was delivered; the letter as it is now, when more waits behind it by now."""
        with self._database.write() as connection:
            if dead_letters.finish(connection, letter):
                return None
            try:
                return dead_letters.find_letters(connection, [letter.id])[0]
            except NotFound:
                return None


def _recorded(connection: Connection, namespace: str) -> int:
    query = select(recorder.c.position).where(recorder.c.namespace == namespace)
    return position_number(connection.execute(query).scalar() or START)


def _behind(connection: Connection, letter: Letter) -> list[Any]:
    query = select(transitions).where(
        transitions.c.batch == letter.batch,
        transitions.c.position.between(letter.position, letter.last_position),
    )
    return list(connection.execute(query.order_by(transitions.c.position)))


def _letter(entry: Entry, problem: str) -> NewLetter:
    readable = entry.notice is None and entry.problem is None
    batch_id = entry.batch_id if readable else None
    return NewLetter(entry.id, problem, pack_entry(entry), batch_id, None, position_number(entry.id))
