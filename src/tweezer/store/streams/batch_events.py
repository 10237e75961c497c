"""The events of one batch in order, each once, for a producer who follows it.

They are read from the end of the stream backwards, to where the reader has been: what others do costs little. What is
gone from the stream shows as a gap in the numbers, and comes from the ledger, where there is one at hand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import msgspec

from tweezer.model.errors import EventsTrimmed
from tweezer.model.events import Event
from tweezer.store.records import BatchRecord
from tweezer.store.streams.feed import Entry, EventStream, position_id, position_number

_SLACK_MS = 1000  # by which the place of an entry and the time of its events may differ
_PAGE, _PAGE_MAX = 100, 2000

Recorded = Callable[[int], Awaitable[list[Entry]]]
"""Entries of the batch that the ledger has behind a position, oldest first, not all at once."""


class LastEvent(msgspec.Struct, frozen=True):
    """The event that was told last: its number and its time."""

    sequence: int = 0
    time_us: int = 0


class BatchEvents:
    """Where a reader is in the events of a batch."""

    def __init__(
        self,
        stream: EventStream,
        record: Callable[[], Awaitable[BatchRecord]],
        *,
        batch: BatchRecord,
        last: LastEvent,
        recorded: Recorded | None,
    ) -> None:
        """record: reads the batch as it stands. recorded: reads the ledger, where there is one."""
        self._stream = stream
        self._record = record
        self._id = batch.id
        self._recorded = recorded
        self._last = last
        self._expected = last.sequence + 1
        created_ms = round(batch.created.timestamp() * 1000)
        self._read_to = position_id(max(created_ms - _SLACK_MS, 0) << 20)  # of the stream
        self._recorded_to = 0
        self._asks_ledger = False  # it is opened when the stream lacks something, and not before
        self._stuck_at = 0
        self.is_over = False
        """Whether the batch has ended and all of it was told."""

    async def read(self) -> list[Event]:
        """The next events; none when there are no more now.

        Raises EventsTrimmed when some are missing; NotFound, Unavailable. May be called again after any of these.
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
            if record.sequence_number < self._expected - 1:  # Redis lost events that were told, and counts them anew
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
        """What the stream has of the batch and was not told, oldest first; and up to where the stream was read."""
        found: list[Entry] = []
        newest, until, most = self._read_to, "+", _PAGE
        while True:
            page = await self._stream.read_back(until, after=self._read_to, most=most)
            if until == "+" and page:
                newest = page[0].id
            found += [it for it in page if it.batch_id == self._id and it.words and not it.told_before]
            if len(page) < most or (found and found[-1].first <= self._expected):
                return found[::-1], newest
            until, most = f"({page[-1].id}", min(2 * most, _PAGE_MAX)

    def _take(self, entries: Iterable[Entry]) -> list[Event]:
        """The events that come next, up to a gap."""
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
        """The stream does not have what comes next: the ledger may, once. Raises EventsTrimmed."""
        if self._recorded is not None and self._stuck_at != self._expected:
            self._stuck_at, self._asks_ledger = self._expected, True
            return
        advice = (
            "the ledger does not have them either: read on from after='now', or after the id of a later event"
            if self._recorded is not None
            else "name the ledger that has them, database_url=… or TWEEZER_DATABASE_URL, or read on from after='now'"
        )
        raise EventsTrimmed(
            f"events of batch {self._id} from number {self._expected} on (of {until}) are no longer in Redis: {advice}"
        )
