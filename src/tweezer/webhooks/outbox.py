"""The outbox of one endpoint: send a few deliveries at a time, and pause after failures."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from uuid import UUID

import msgspec
import structlog

from tweezer.ledger.schema import now_ms
from tweezer.model.errors import NotFound, TweezerError
from tweezer.webhooks.attempts import Claim, Deliverer
from tweezer.webhooks.deliveries import (
    DELIVERED,
    EXHAUSTED,
    HELD,
    PENDING,
    Attempt,
    AttemptOutcome,
    ClaimedDelivery,
    read_log,
    write_log,
)
from tweezer.webhooks.endpoints import Endpoint
from tweezer.webhooks.sender import SendResult

log = structlog.get_logger(__name__)

QUEUE_MAX = 2000
"""The most deliveries to one endpoint that a courier holds; more wait in the ledger."""

COOL_MAX_S = 300.0
"""The longest pause before the next attempt at a failing receiver."""

_CLAIM = 500
_GONE = 410
_RETRY_AFTER_MAX_S = 86_400.0
_JITTER = 0.2
_FAILURES = 5  # in a row, after which the circuit breaker opens
_COOL_S = 5.0


class RetrySchedule(msgspec.Struct, frozen=True):
    """The retry schedule of a delivery. delays_s: the delay before each attempt, the first one included."""

    delays_s: Sequence[float]

    def next_s(self, attempts: int, retry_after_s: float | None = None) -> float | None:
        """Return the delay after this number of attempts, or None after the last one.

        The delay is up to a fifth longer than configured, so that deliveries that failed together are not retried
        together. It is never shorter than what the receiver asked for.
        """
        if attempts >= len(self.delays_s):
            return None
        delay_s = self.delays_s[attempts] * random.uniform(1.0, 1.0 + _JITTER)
        return max(delay_s, min(retry_after_s or 0.0, _RETRY_AFTER_MAX_S))


class CircuitBreaker:
    """A pause in sending to an endpoint after some failures in a row; one attempt ends it or extends it.

    now: monotonic time in seconds. The breaker is closed at first.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._open_until = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether there were too few failures in a row to stop."""
        return self._failures < _FAILURES

    def open_s(self, now: float) -> float:
        """Return for how many more seconds nothing may be sent."""
        return max(self._open_until - now, 0.0)

    def note_success(self) -> None:
        self._failures = 0
        self._open_until = 0.0

    def note_failure(self, now: float, retry_after_s: float | None = None) -> None:
        """Note a failed attempt. retry_after_s: the delay that the receiver asked for."""
        if not self.open_s(now):  # otherwise it started before the breaker opened, and shows nothing new
            self._failures += 1
            if self._failures >= _FAILURES:
                cool_s = min(_COOL_S * 2.0 ** (self._failures - _FAILURES), COOL_MAX_S)
                self._open_until = now + cool_s * random.uniform(0.5, 1.0)
        if retry_after_s is not None:
            self._open_until = max(self._open_until, now + min(retry_after_s, COOL_MAX_S))


class QueuedDelivery(msgspec.Struct):
    """A delivery in memory; after ``begin_by`` (monotonic) it is left to other couriers."""

    delivery: ClaimedDelivery
    begin_by: float


class Outbox:
    """The deliveries of one courier to one endpoint. The rows in the ledger decide: a delivery lost here is fetched
    again."""

    def __init__(self, endpoint: Endpoint, deliverer: Deliverer, *, connections: int, schedule: RetrySchedule) -> None:
        self.endpoint = endpoint
        self._deliverer = deliverer
        self._connections = connections
        self._schedule = schedule
        self._queue: deque[QueuedDelivery] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._breaker = CircuitBreaker()
        self._more = False
        self._refilling: asyncio.Task[None] | None = None
        self._last_succeeded = True
        self._gone = False

    @property
    def is_idle(self) -> bool:
        """Whether the outbox may be dropped. Failures are forgotten once the next attempt may be made, because the
        number of dead receivers is unlimited."""
        is_open = self._breaker.open_s(time.monotonic()) > 0
        return not (self._queue or self._senders or self._more or self._is_refilling or is_open)

    @property
    def capacity(self) -> int:
        """How many new deliveries it accepts; write the others as due, and it fetches them by itself."""
        if self._more or self._gone or not self._breaker.is_closed or self._breaker.open_s(time.monotonic()):
            return 0
        return max(QUEUE_MAX - len(self._queue), 0)

    def next_ms(self) -> int:
        """Return when something may be sent next, in milliseconds since 1970; never in the past."""
        return now_ms() + round(self._breaker.open_s(time.monotonic()) * 1000)

    def offer(self, deliveries: Sequence[ClaimedDelivery], claim: Claim) -> None:
        """Accept deliveries that this courier has claimed. Those it does not accept are due again after the claim."""
        if self._gone:
            return
        self._queue.extend(QueuedDelivery(delivery, claim.begin_by) for delivery in deliveries)
        self._send()

    def fetch(self) -> None:
        """Fetch due deliveries from the ledger."""
        self._more = True
        self._refill()

    async def close(self) -> None:
        """Finish running attempts, and release the rest."""
        left = self._clear()
        if self._refilling is not None:
            await asyncio.gather(self._refilling, return_exceptions=True)
            left += self._clear()
        if left:
            await self._deliverer.postpone(self.endpoint.id, left, now_ms())
        await asyncio.gather(*self._senders, return_exceptions=True)

    def _send(self) -> None:
        """Start as many senders as there is work for; only one until an attempt succeeds after failures."""
        most = self._connections if self._breaker.is_closed else 1
        for _ in range(min(most - len(self._senders), len(self._queue))):
            sender = asyncio.create_task(self._send_all())
            self._senders.add(sender)
            sender.add_done_callback(self._end_sender)

    def _end_sender(self, sender: asyncio.Task[None]) -> None:
        self._senders.discard(sender)
        if not sender.cancelled() and (error := sender.exception()) is not None:
            if isinstance(error, NotFound):  # the endpoint was deleted with its rows
                self._queue.clear()
            elif isinstance(error, TweezerError):  # Redis or the ledger is unavailable; the sweep will retry it
                log.warning("delivery.failed", endpoint=str(self.endpoint.id), error=error.message)
            else:
                log.error("delivery.failed", endpoint=str(self.endpoint.id), error=str(error), exc_info=error)
        if not self._senders and self._more:
            self._refill()

    async def _send_all(self) -> None:
        while self._queue:
            now = time.monotonic()
            if self._breaker.open_s(now) or self._queue[0].begin_by <= now:
                await self._give_back()
                return
            queued = self._queue.popleft()
            if not await self._attempt(queued):
                self._queue.appendleft(queued)
                await self._give_back()
                return
            if self._more and len(self._queue) < _CLAIM // 2:
                self._refill()

    async def _give_back(self) -> None:
        """Release all deliveries: nothing may be sent for a while, or their claim has expired."""
        left = self._clear()
        await self._deliverer.postpone(self.endpoint.id, left, self.next_ms())

    def _clear(self) -> list[UUID]:
        left = [queued.delivery.id for queued in self._queue]
        self._queue.clear()
        self._more = False
        return left

    async def _attempt(self, queued: QueuedDelivery) -> bool:
        """Make an attempt; return whether it could start in time."""
        delivery = queued.delivery
        result = await self._deliverer.send(self.endpoint, delivery, queued.begin_by)
        if result is None:
            return False
        began_ms = now_ms() - result.milliseconds
        if result.is_success:
            self._breaker.note_success()
        else:
            self._breaker.note_failure(time.monotonic(), result.retry_after_s)
        self._deliverer.record(self.endpoint.id, self._make_outcome(delivery, result, began_ms))
        if result.status == _GONE:
            self._gone = True  # until the ledger shows that it is enabled again
            self._queue.clear()
            await self._deliverer.give_up(self.endpoint.id, "the receiver responded with 410 Gone")
        elif not result.is_success:
            await self._deliverer.note_failure(self.endpoint.id, began_ms)
        elif self.endpoint.failing is not None or not self._last_succeeded:
            await self._deliverer.note_success(self.endpoint.id)
        self._last_succeeded = result.is_success
        return True

    def _make_outcome(self, delivery: ClaimedDelivery, result: SendResult, began_ms: int) -> AttemptOutcome:
        attempts = delivery.attempts + 1
        over = result.is_success or result.status == _GONE
        next_s = None if over else self._schedule.next_s(attempts, result.retry_after_s)
        next_ms = None if next_s is None else now_ms() + round(next_s * 1000)
        earlier = read_log(delivery.log)
        attempt = Attempt(
            len(earlier) + 1, began_ms, result.status, result.milliseconds, result.error, result.text, next_ms
        )
        status = _choose_status(result, next_ms)
        return AttemptOutcome(delivery.id, status, attempts, write_log([*earlier, attempt]), next_ms)

    def _refill(self) -> None:
        if not self._is_refilling:
            self._refilling = asyncio.create_task(self._claim())

    @property
    def _is_refilling(self) -> bool:
        return self._refilling is not None and not self._refilling.done()

    async def _claim(self) -> None:
        while True:
            self._more = False
            try:
                if self._breaker.open_s(time.monotonic()):
                    await self._deliverer.postpone(self.endpoint.id, (), self.next_ms())
                    return
                most = _CLAIM if self._breaker.is_closed else 1
                claim = self._deliverer.new_claim()
                found = await self._deliverer.claim(self.endpoint.id, most, claim)
            except TweezerError as error:  # the sweep will retry it
                log.warning("courier.not_claimed", endpoint=str(self.endpoint.id), error=error.message)
                return
            except Exception as error:  # unexpected: log the traceback; the sweep will retry it
                log.exception("courier.not_claimed", endpoint=str(self.endpoint.id), error=str(error))
                return
            if found is None:
                return
            self.endpoint, deliveries = found
            self._gone = False
            self._more = self._more or len(deliveries) == most  # or more was written just now
            self.offer(deliveries, claim)
            if self._senders or not self._more:  # the last of the senders refills
                return


def _choose_status(result: SendResult, next_ms: int | None) -> str:
    if result.is_success:
        return DELIVERED
    if result.status == _GONE:
        return HELD
    return EXHAUSTED if next_ms is None else PENDING
