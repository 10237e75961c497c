"""Reads the events of one batch in order and without duplicates, for a producer that follows the batch.

The stream is read backwards from its end to the reader's last position, so that the events of other batches cost
little. Events that were trimmed from the stream leave a gap in the numbers; they are read from the ledger, if one is
available.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import msgspec

from tweezer.model.errors import EventsTrimmed
from tweezer.model.events import Event
from tweezer.store.records import BatchRecord
from tweezer.store.streams.feed import Entry, EventStream, position_id, position_number

_SLACK_MS = 1000  # maximum difference between the position of an entry and the time of its events
_PAGE, _PAGE_MAX = 100, 2000

Recorded = Callable[[int], Awaitable[list[Entry]]]
"""Returns the batch's next recorded entries after a position, oldest first, one page at a time."""


class LastEvent(msgspec.Struct, frozen=True):
    """The number and the time of the last event that was returned."""

    sequence: int = 0
    time_us: int = 0


class BatchEvents:
    """A reader of a batch's events, with its position."""

    def __init__(
        self,
        stream: EventStream,
        record: Callable[[], Awaitable[BatchRecord]],
        *,
        batch: BatchRecord,
        last: LastEvent,
        recorded: Recorded | None,
    ) -> None:
        """record: reads the batch's current record. recorded: reads the ledger; None without one."""
        self._stream = stream
        self._record = record
        self._id = batch.id
        self._recorded = recorded
        self._last = last
        self._expected = last.sequence + 1
        created_ms = round(batch.created.timestamp() * 1000)
        self._read_to = position_id(max(created_ms - _SLACK_MS, 0) << 20)  # position in the stream
        self._recorded_to = 0
        self._asks_ledger = False  # the ledger is opened only when events are missing from the stream
        self._stuck_at = 0
        self.is_over = False
        """Whether the batch has ended and all of its events were returned."""

    async def read(self) -> list[Event]:
        """Return the next events; empty if there are no more for now.

        Raises EventsTrimmed if some are missing; NotFound, Unavailable. May be called again after any of these.
        """
        while not self.is_over:
            if self._asks_ledger and self._recorded is not None:
                entries = await self._recorded(self._recorded_to)
                events = self._take(entries)
                if not entries:
                    self._asks_ledger = False
                else:
                    self._recorded_to = position_number(entries[-1].id)
                if events:
                    return events
                continue
            record = await self._record()
            if record.sequence_number < self._expected - 1:  # Redis lost events that were returned; numbers repeat
                self._expected = record.sequence_number + 1
            if record.sequence_number < self._expected:
                self.is_over = record.status.terminal
                return []
            entries, newest = await self._back()
            events = self._take(entries)
            if self._expected > record.sequence_number:
                self._read_to = newest
            elif not events:
                self._miss(record.sequence_number)
            if events:
                return events
        return []

    async def _back(self) -> tuple[list[Entry], str]:
        """Return the batch's new entries in the stream, oldest first, and the position up to which it was read."""
        found: list[Entry] = []
        newest, until, most = self._read_to, "+", _PAGE
        while True:
            page = await self._stream.read_back(until, after=self._read_to, most=most)
            if until == "+" and page:
                newest = page[0].id
            found += [it for it in page if it.batch_id == self._id and it.words and not it.is_restored]
            if len(page) < most or (found and found[-1].first <= self._expected):
                return found[::-1], newest
            until, most = f"({page[-1].id}", min(2 * most, _PAGE_MAX)

    def _take(self, entries: Iterable[Entry]) -> list[Event]:
        """Return the next events in order, up to a gap."""
        events: list[Event] = []
        for entry in entries:
            for event in entry.events:
                if event.sequence > self._expected:
                    return events
                if event.sequence < self._expected:
                    continue
                self._expected += 1
                if event.sequence > self._last.sequence or event.time_us > self._last.time_us:
                    events.append(event)
                    self._last = LastEvent(event.sequence, event.time_us)
                    self.is_over = event.index is None and event.status.terminal
        return events

    def _miss(self, until: int) -> None:
        """Switch to the ledger, because the stream lacks the next event. Raises EventsTrimmed if that was tried."""
        if self._recorded is not None and self._stuck_at != self._expected:
            self._stuck_at, self._asks_ledger = self._expected, True
            return
        advice = (
            "the ledger does not have them either; continue with after='now' or with the id of a later event"
            if self._recorded is not None
            else "set database_url=… or TWEEZER_DATABASE_URL to the ledger that has them, or continue with after='now'"
        )
        raise EventsTrimmed(
            f"events of batch {self._id} from number {self._expected} on (of {until}) are no longer in Redis; {advice}"
        )
