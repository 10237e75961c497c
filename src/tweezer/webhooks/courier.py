"""The courier: turn events into deliveries, and send them. Several couriers share the work.

Each entry of the stream is assigned to one courier. All couriers together write the rows of deliveries in the order of
the stream, so that the previous event of the same batch is always known; a courier with later entries waits for its
turn. A row that exists is not written again. New deliveries are sent at once, from a separate outbox for each endpoint.
A failed delivery is due again later; the courier that is then woken fetches it from the ledger.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby, islice
from operator import attrgetter
from uuid import UUID

import msgspec
import structlog

from tweezer.duties import end_tasks, heeding_cancel, repeat, run_to_end
from tweezer.ledger.config import DeadLetterBounds
from tweezer.ledger.database import Database
from tweezer.ledger.dead_letters import Consumer, DeadLetterQueue, Letter, describe_error, is_unusable, pack_letter
from tweezer.ledger.installation import require_same
from tweezer.ledger.positions import recorder_position
from tweezer.ledger.schema import now_ms
from tweezer.model.errors import NotFound, TweezerError
from tweezer.model.events import Event, Notice
from tweezer.model.webhooks import BatchData, EventType, JobData, body, envelope, timestamp
from tweezer.store.connection import Store
from tweezer.store.recovery import Gate
from tweezer.store.streams.feed import COURIERS, START, Entry, EntryGroup, position_id, position_number
from tweezer.webhooks.attempts import CLAIM_S, Deliverer
from tweezer.webhooks.deliveries import ClaimedDelivery, Deliveries, NewDelivery, delivery_id
from tweezer.webhooks.endpoints import Endpoint
from tweezer.webhooks.outbox import Outbox, RetrySchedule
from tweezer.webhooks.payloads import BatchFacts, Payloads
from tweezer.webhooks.subscriptions import Subscribers, Subscriptions

log = structlog.get_logger(__name__)

_EVENTS = 2000  # the approximate number written in one transaction
_OUTBOXES_KEPT = 1000
_LAST_KEPT = 50_000
_CLOSE_S = 5.0  # for the entries that it holds when it stops
_LOOK_S = 0.005  # between checks whether it is this courier's turn


class CourierTuning(msgspec.Struct, frozen=True):
    """The tuning parameters of a courier.

    entries: how many to read at once. wait_s: how long to wait for new ones. abandoned_s: how long a courier must be
    silent before others take over its entries. late_s: how overdue a delivery may be before the sweep fetches it.
    claim_s: how long a delivery may wait in this courier before others claim it. rest_s: the pause for each delivery of
    events younger than fresh_s, before the next read. gate_s: the time between checks of a shut gate.
    """

    entries: int = 1000
    wait_s: float = 3.0
    abandoned_s: float = 15.0
    late_s: float = 5.0
    claim_s: float = CLAIM_S
    rest_s: float = 0.0005
    fresh_s: float = 1.0
    gate_s: float = 0.1


class _EventMessage(msgspec.Struct, frozen=True):
    """An event or notice for one endpoint. text: the body."""

    endpoint: Endpoint
    event: str
    type: str
    text: str
    batch: UUID | None = None
    sequence: int | None = None
    trace: str | None = None


class _Part(msgspec.Struct, frozen=True):
    """Some events and notices, with their receivers and data.

    selected: the events that have receivers, with their types and endpoints. described: the data of each of these.
    pairs: each batch with each endpoint that receives its events. traces: the trace of each batch that has one.
    """

    events: list[Event]
    selected: list[tuple[Event, str, list[Endpoint]]]
    described: list[JobData | BatchData | None]
    pairs: set[tuple[UUID, UUID]]
    traces: dict[UUID, str]
    notices: list[_EventMessage]


class _Plan(msgspec.Struct):
    """The work on some entries. Only the first part is described yet. parked: batches that are skipped."""

    parked: frozenset[UUID]
    facts: dict[UUID, BatchFacts]
    subscribers: Subscribers
    parts: Iterator[list[Event | Notice]]
    first: _Part


class Courier:
    """A courier: see the module. reader: its name among the couriers."""

    def __init__(
        self,
        store: Store,
        database: Database,
        payloads: Payloads,
        deliverer: Deliverer,
        *,
        namespace: str,
        reader: str,
        schedule: RetrySchedule,
        connections: int,
        tuning: CourierTuning | None = None,
        bounds: DeadLetterBounds | None = None,
    ) -> None:
        self._store = store
        self._database = database
        self._namespace = namespace
        self._deliveries = Deliveries(database, namespace)
        self._dead_letters = DeadLetterQueue(database, Consumer.COURIER, bounds or DeadLetterBounds())
        self._parked: frozenset[UUID] = frozenset()
        """Batches that were parked at the last check; they are skipped."""
        self._payloads = payloads
        self._subscriptions = Subscriptions(database, payloads)
        self._deliverer = deliverer
        self._schedule = schedule
        self._connections = connections
        self._tuning = tuning or CourierTuning()
        self._group = EntryGroup(store.scripts, COURIERS, reader)
        self._joined = False
        self._may_hold = False
        self._claim_at = 0.0
        self._outboxes: dict[UUID, Outbox] = {}
        self._last: dict[UUID, int] = {}
        """The number of the last event of each batch that this courier has seen."""
        self._last_sent: dict[UUID, dict[UUID, int]] = {}
        """The number of the last event of each batch for each endpoint; valid while the courier has missed none."""

    async def run(self) -> None:
        """Work until cancelled. Failures are logged, and the work is retried."""
        await repeat("courier", self._take_turn)

    async def _take_turn(self) -> None:
        try:
            if not self._joined:
                await self.join()
                self._joined = True
            await self.step()
        except NotFound:
            self._joined = False  # Redis lost the group

    async def join(self) -> None:
        """Join the group of couriers.

        The first courier ever starts at the beginning of the stream, and stores this place in the ledger. If Redis has
        lost the group, it starts after the last entry whose deliveries are written, if the stream still has that entry.
        If Redis has lost everything, the courier waits until the recorder has restored it from the ledger, because
        those events come first.

        Raises TweezerError("installation") if Redis belongs to another ledger.
        """
        await require_same(self._store, self._database)
        position = await self._database.run(self._deliveries.position)
        is_lost = bool(position) and await self._store.events.idle_s(COURIERS) is None
        if is_lost and not (await self._store.recovery.gate()).has_ledger:
            log.warning(
                "courier.waits_for_recorder", reason="Redis has lost its data; start `tweezer recorder` to restore it"
            )
            await self._wait_for_gate(lambda gate: gate.has_ledger)
        await self._group.join(position_id(position) if position else START)
        if not position:
            await self._store_start()

    async def _store_start(self) -> None:
        """Store the place before the oldest entry in the ledger: the recorder restores only lost events after it.

        Without it, events that Redis loses before any delivery is written would have no webhooks.
        """
        if oldest := await self._store.events.read(most=1):
            start = position_number(oldest[0].id) - 1
        else:
            start = await self._database.run_read(recorder_position, self._namespace)
        await self._database.run(self._deliveries.write, [], max(start, 1))

    async def step(self) -> int:
        """Process some entries, if there are any; return how many.

        After a failure, entries that were assigned before come first: the reply with them may have been lost, and all
        other couriers wait for their turn.
        """
        await self._wait_for_gate()
        if self._may_hold and (taken_up := await self._take_up()):
            return taken_up
        self._may_hold = True
        served = await self._serve_next()
        self._may_hold = False
        return served

    async def _take_up(self) -> int:
        """Process entries that were assigned to this courier and not acknowledged; return how many."""
        entries, is_alone = await self._group.read_own(most=self._tuning.entries)
        await self._wait_for_gate()  # after the read: Redis may have restarted in between
        for part in [entries] if is_alone and entries else [[entry] for entry in entries]:
            await self._serve(part)
        return len(entries)

    async def _serve_next(self) -> int:
        claimed = await self._claim_abandoned()
        for entry in claimed:  # one by one, because other couriers may hold the entries in between
            await self._serve([entry])
        if claimed:
            return len(claimed)
        given = await self._group.read(most=self._tuning.entries, wait_s=self._tuning.wait_s)
        entries = given.entries
        self._subscriptions.changes = given.endpoints
        if given.is_shut:
            await self._wait_for_gate()
        if entries:
            deliveries = await self._serve(entries, is_turn=given.oldest == entries[0].id)
            await self._rest(entries, deliveries)
        return len(entries)

    async def _wait_for_gate(self, is_open: Callable[[Gate], bool] = lambda gate: not gate.is_shut) -> None:
        """After a restart of Redis, wait until the recorder has restored it: the restored events come first."""
        while True:
            if is_open(await self._store.recovery.gate()):
                return
            await asyncio.sleep(self._tuning.gate_s)

    async def _claim_abandoned(self) -> list[Entry]:
        """Claim entries of silent couriers from time to time, and again at once if there were some."""
        now = time.monotonic()
        if now < self._claim_at:
            return []
        claimed = await self._group.claim(idle_s=self._tuning.abandoned_s, most=self._tuning.entries)
        self._claim_at = now if claimed else now + self._tuning.abandoned_s / 5
        return claimed

    async def _rest(self, entries: Sequence[Entry], deliveries: int) -> None:
        """Rest for each delivery, unless the events are late already.

        In a burst this leaves CPU time for workers and Redis, which a nice value alone does not, and delays webhooks a
        little.
        """
        late_s = time.time() - entries[0].time_us / 1e6
        if abs(late_s) < self._tuning.fresh_s:  # a negative age means that the clocks differ
            await asyncio.sleep(min(deliveries * self._tuning.rest_s, self._tuning.fresh_s - late_s))

    async def process(self, entries: Sequence[Entry]) -> None:
        """Write the deliveries of the entries, acknowledge the entries, and start to send. May be repeated."""
        await self._process(entries, await self._prepare(entries))

    async def _serve(self, entries: Sequence[Entry], *, is_turn: bool = False) -> int:
        """Process entries, when it is their turn; return the number of deliveries.

        No other courier may hold an entry between them. Entries that cannot be delivered are parked.
        """
        try:
            return await self._serve_all(entries, is_turn=is_turn)
        except Exception as error:
            if not is_unusable(error):
                raise
            log.warning("courier.bisecting", error=describe_error(error))
        await self._serve_apart(entries)
        return 0

    async def _serve_apart(self, entries: Sequence[Entry]) -> None:
        """Process entries of which some cannot be delivered; halve them until these are isolated and parked."""
        try:
            await self._wait_for_turn(entries)
            self._parked = await self._database.run(
                self._dead_letters.hold_back, ()
            )  # other couriers may have parked some
            await self.process(entries)
        except Exception as error:
            if not is_unusable(error):
                raise
            if len(entries) > 1:
                half = len(entries) // 2
                await self._serve_apart(entries[:half])
                await self._serve_apart(entries[half:])
            else:
                await self._park(entries, describe_error(error))

    async def _park(self, entries: Sequence[Entry], problem: str) -> None:
        await self._database.run(self._dead_letters.park, [pack_letter(entry, problem) for entry in entries])
        self._parked = await self._database.run(self._dead_letters.hold_back, ())
        await self._database.run(self._deliveries.write, [], position_number(entries[-1].id))
        await self._group.acknowledge([entry.id for entry in entries])

    async def _serve_all(self, entries: Sequence[Entry], *, is_turn: bool) -> int:
        preparing = asyncio.create_task(self._prepare(entries))
        try:
            if not is_turn:
                await self._wait_for_turn(entries)
            plan = await preparing
        finally:
            await end_tasks(preparing)
        return await self._process(entries, plan)

    async def _prepare(self, entries: Sequence[Entry]) -> _Plan:
        """Prepare entries before it is their turn: read their batches and subscribers, and describe the first part."""
        parked = self._parked
        wanted = [it for it in entries if it.problem is None and it.batch_id not in parked]
        facts, subscribers = await self._subscriptions.find(wanted)
        parts = _parts(wanted)
        return _Plan(parked, facts, subscribers, parts, await self._describe(next(parts, []), facts, subscribers))

    async def _process(self, entries: Sequence[Entry], plan: _Plan) -> int:
        count = 0
        if unreadable := [entry for entry in entries if entry.problem is not None]:
            unread = [pack_letter(entry, entry.problem or "") for entry in unreadable]
            await self._database.run(self._dead_letters.park, unread)
        self._parked = await self._database.run(self._dead_letters.hold_back, entries)
        if self._parked != plan.parked:  # other couriers have parked something, or resolved it, in the meantime
            plan = await self._prepare(entries)
        try:
            part: _Part | None = plan.first
            while part is not None:
                following = next(plan.parts, None)
                letters = [*part.notices, *await self._make_messages(part)]
                position = position_number(entries[-1].id) if following is None else None
                await self._write(letters, position)
                count += len(letters)
                part = None if following is None else await self._describe(following, plan.facts, plan.subscribers)
        except BaseException:
            self._last.clear()
            self._last_sent.clear()
            raise
        await self._disable(entries)
        await self._group.acknowledge([entry.id for entry in entries])
        return count

    async def _disable(self, entries: Sequence[Entry]) -> None:
        """Disable the endpoints for which the entries have a notice that disables them."""
        for entry in entries:
            if entry.notice is not None and entry.notice.type == EventType.ENDPOINT_DISABLED:
                await self._deliverer.disable(entry.notice)

    async def fetch(self, endpoint_id: UUID) -> None:
        """Fetch what is due for an endpoint."""
        endpoint = await self._deliverer.find_endpoint(endpoint_id)
        if endpoint is not None:
            self._outbox(endpoint).fetch()

    async def sweep(self) -> None:
        """Fetch overdue deliveries, whose alarm or courier was lost; and retry dead letters."""
        await self.retry_letters()
        late = await self._database.run(self._deliveries.overdue, now_ms() - round(self._tuning.late_s * 1000))
        for endpoint_id in late:
            await self.fetch(endpoint_id)

    async def retry_letters(self) -> None:
        """Retry the dead letters that operators have marked for a retry."""
        _, due = await self._database.run(self._dead_letters.read)
        for letter in due:
            try:
                await self._redeliver(letter)
            except Exception as error:
                if not is_unusable(error):
                    raise
                await self._database.run(self._dead_letters.note_failure, letter, error)
                log.warning("dead_letter.failed_again", letter=letter.id, error=describe_error(error))

    async def _redeliver(self, letter: Letter) -> None:
        """Deliver a parked entry, and the events of its batch that wait behind it, in order."""
        while True:
            entries = await self._database.run(self._dead_letters.read_entries, letter, self._namespace)
            if entries is None:  # the recorder has not recorded all of them yet
                return
            facts, subscribers = await self._subscriptions.find(entries)
            for part in _parts(entries):
                described = await self._describe(part, facts, subscribers)
                letters = [*described.notices, *await self._make_messages(described)]
                await self._write(letters, None)
            await self._disable(entries)
            left = await self._database.run(self._dead_letters.resolve, letter)
            if left is None:
                log.info("dead_letter.delivered", letter=letter.id)
                return
            letter = left

    async def close(self) -> None:
        """Process the entries that it holds, finish running attempts, and release the rest."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                while self._may_hold and await self._take_up():
                    pass
        except (TweezerError, TimeoutError) as error:  # other couriers take them over
            log.warning("courier.left_entries", error=str(error))
        await asyncio.gather(*(outbox.close() for outbox in self._outboxes.values()), return_exceptions=True)
        await self._deliverer.close()
        await self._group.leave()

    async def _wait_for_turn(self, entries: Sequence[Entry]) -> None:
        """Wait until all earlier entries are processed. Take over those of a courier that has disappeared."""
        first = position_number(entries[0].id)
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while (oldest := await self._group.oldest_pending()) is not None and position_number(oldest) < first:
            await asyncio.sleep(_LOOK_S)
            if loop.time() - looked > self._tuning.abandoned_s / 3:
                looked = loop.time()
                if claimed := await self._group.claim_one(oldest, idle_s=self._tuning.abandoned_s):
                    looked = 0.0  # there may be more of the same courier
                    await self.process(claimed)

    async def _describe(
        self, part: Sequence[Event | Notice], facts: dict[UUID, BatchFacts], subscribers: Subscribers
    ) -> _Part:
        """Find the receivers of events and notices, and describe the events without the previous sequence numbers."""
        events = [it for it in part if isinstance(it, Event)]
        selected: list[tuple[Event, str, list[Endpoint]]] = []
        pairs: set[tuple[UUID, UUID]] = set()
        traces: dict[UUID, str] = {}
        for batch_id, group in _by_batch(events):
            about = facts.get(batch_id)
            receivers = [] if about is None else subscribers.for_batch(about.project, about.webhook)
            if about is None or not receivers:
                continue
            if about.trace is not None:
                traces[batch_id] = about.trace
            to: dict[str, list[Endpoint]] = {}
            for event in group:
                type_ = event.type
                if type_ not in to:
                    to[type_] = [endpoint for endpoint in receivers if type_ in endpoint.subscribed]
                if to[type_]:
                    selected.append((event, type_, to[type_]))
            pairs.update((batch_id, endpoint.id) for endpoints in to.values() for endpoint in endpoints)
        notices = _notices([it for it in part if isinstance(it, Notice)], subscribers)
        described = await self._payloads.describe([event for event, _, _ in selected])
        return _Part(events, selected, described, pairs, traces, notices)

    async def _make_messages(self, part: _Part) -> list[_EventMessage]:
        """Make the messages of a part's events. Call it in the order of the stream."""
        await self._recall(part.events, part.pairs)
        letters = []
        for (event, type_, endpoints), data in zip(part.selected, part.described, strict=True):
            if data is None:  # the batch was deleted in the meantime
                continue
            identity, when = event.id, timestamp(event.time_us)
            sent = self._last_sent.setdefault(event.batch_id, {})
            for endpoint in endpoints:
                before = sent.get(endpoint.id)
                if before is not None and before >= event.sequence:
                    pair = (event.batch_id, endpoint.id)
                    before = await self._database.run(self._deliveries.previous_before, *pair, event.sequence)
                else:
                    sent[endpoint.id] = event.sequence
                text = body(type_, when, data, before)
                about = (event.batch_id, event.sequence, part.traces.get(event.batch_id))
                letters.append(_EventMessage(endpoint, identity, type_, text, *about))
        return letters

    async def _recall(self, events: Sequence[Event], pairs: Collection[tuple[UUID, UUID]]) -> None:
        """Look up the last event of each endpoint if it is not known, or if other couriers may have delivered more."""
        if len(self._last) + len(self._last_sent) > _LAST_KEPT:
            self._last.clear()
            self._last_sent.clear()
        new = set()
        for batch_id, group in _by_batch(events):
            last = self._last.get(batch_id, 0)
            for event in group:
                if event.sequence == 1:
                    new.add(batch_id)
                if last != event.sequence - 1:
                    self._last_sent.pop(batch_id, None)
                last = max(last, event.sequence)
            self._last[batch_id] = last
        unknown = {(batch, it) for batch, it in pairs if batch not in new and it not in self._last_sent.get(batch, ())}
        if unknown:
            found = await self._database.run(self._deliveries.previous, unknown)
            for (batch, endpoint), number in found.items():
                self._last_sent.setdefault(batch, {})[endpoint] = number

    async def _write(self, letters: Sequence[_EventMessage], position: int | None) -> None:
        """Write the rows and the position, and hand new rows to the outboxes, as far as these have room.

        Nothing is sent before its row is written: a courier that takes over then sends the same body, not a new one of
        a batch that has changed. Written rows are handed over even if this courier is stopped in the meantime: a closed
        outbox releases them, while otherwise they would wait until their claim expires.
        """
        claim = self._deliverer.new_claim()
        rows: list[NewDelivery] = []
        held: list[tuple[Endpoint, list[NewDelivery]]] = []
        waiting: list[Endpoint] = []
        for endpoint, theirs in _by_endpoint(letters):
            if endpoint.disabled is not None:
                rows += _rows(theirs, None)
                continue
            outbox = self._outbox(endpoint)
            room = outbox.capacity
            if taken := _rows(theirs[:room], claim.until_ms):
                rows += taken
                held.append((endpoint, taken))
            if room < len(theirs):
                rows += _rows(theirs[room:], outbox.next_ms())
                waiting.append(endpoint)
        with heeding_cancel():
            existing = await run_to_end(self._database.run(self._deliveries.write, rows, position))
            for endpoint, taken in held:
                self._outbox(endpoint).offer([_due(row) for row in taken if row.id not in existing], claim)
            for endpoint in waiting:
                self._outbox(endpoint).fetch()

    def _outbox(self, endpoint: Endpoint) -> Outbox:
        """Return the outbox of an endpoint. Do not keep it: an idle outbox may be dropped to make room."""
        outbox = self._outboxes.get(endpoint.id)
        if outbox is None:
            if len(self._outboxes) >= _OUTBOXES_KEPT:
                self._outboxes = {identity: it for identity, it in self._outboxes.items() if not it.is_idle}
            outbox = Outbox(endpoint, self._deliverer, connections=self._connections, schedule=self._schedule)
            self._outboxes[endpoint.id] = outbox
        outbox.endpoint = endpoint
        return outbox


def _notices(notices: Sequence[Notice], subscribers: Subscribers) -> list[_EventMessage]:
    return [
        _EventMessage(
            endpoint, it.id, it.type, envelope(it.type, timestamp(it.time_us), msgspec.Raw(it.data.encode())).decode()
        )
        for it in notices
        for endpoint in subscribers.for_notice(it.project)
        if it.type in endpoint.subscribed
        and not it.id.startswith(str(endpoint.id))  # an endpoint does not receive the notice that disables it
    ]


def _by_endpoint(letters: Sequence[_EventMessage]) -> Iterator[tuple[Endpoint, list[_EventMessage]]]:
    to: dict[UUID, tuple[Endpoint, list[_EventMessage]]] = {}
    for letter in letters:
        endpoint = letter.endpoint
        to.setdefault(endpoint.id, (endpoint, []))[1].append(letter)
    yield from to.values()


def _rows(letters: Sequence[_EventMessage], due_ms: int | None) -> list[NewDelivery]:
    return [
        NewDelivery(
            delivery_id(it.endpoint.id, it.event),
            it.endpoint.id,
            it.endpoint.project_no,
            it.batch,
            it.sequence,
            it.event,
            it.type,
            it.text,
            due_ms,
            it.trace,
        )
        for it in letters
    ]


def _due(row: NewDelivery) -> ClaimedDelivery:
    return ClaimedDelivery(row.id, row.event, row.type, row.body, row.trace)


def _by_batch(events: Sequence[Event]) -> Iterator[tuple[UUID, list[Event]]]:
    """Yield consecutive events of the same batch; a batch may be yielded again."""
    for batch_id, group in groupby(events, key=attrgetter("batch_id")):
        yield batch_id, list(group)


def _parts(entries: Sequence[Entry]) -> Iterator[list[Event | Notice]]:
    """Yield the events and notices of the entries, in parts of a limited size."""
    everything = (it for entry in entries for it in ((entry.notice,) if entry.notice is not None else entry.events))
    while part := list(islice(everything, _EVENTS)):
        yield part
