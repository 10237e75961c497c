"""What waits to be sent to one endpoint, and how: a few at a time, and nothing for a while after failures."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from uuid import UUID

import msgspec
import structlog

from tweezer.ledger.clock import now_ms
from tweezer.model.errors import NotFound, TweezerError
from tweezer.webhooks.attempts import Desk, Hold
from tweezer.webhooks.deliveries import DELIVERED, EXHAUSTED, HELD, PENDING, Attempt, Due, Outcome, read_log, write_log
from tweezer.webhooks.endpoints import Endpoint
from tweezer.webhooks.sender import Answer

_RETRY_AFTER_MAX_S = 86_400.0
_JITTER = 0.2


class Schedule(msgspec.Struct, frozen=True):
    """delays_s: before each attempt, the first one's among them."""

    delays_s: Sequence[float]

    def next_s(self, attempts: int, retry_after_s: float | None = None) -> float | None:
        """How long to wait after so many attempts; None: that was the last. Up to a fifth longer than said, so that
        what failed together does not come back together; never sooner than the receiver asked for."""
        if attempts >= len(self.delays_s):
            return None
        delay_s = self.delays_s[attempts] * random.uniform(1.0, 1.0 + _JITTER)
        return max(delay_s, min(retry_after_s or 0.0, _RETRY_AFTER_MAX_S))


_FAILURES = 5
_COOL_S = 5.0
COOL_MAX_S = 300.0
"""The longest that nothing is sent to a receiver without a try."""


class Breaker:
    """``now`` is monotonic time in seconds. Closed at first."""

    def __init__(self) -> None:
        self._failures = 0
        self._open_until = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether the last attempts went well enough: nothing holds back."""
        return self._failures < _FAILURES

    def shut_s(self, now: float) -> float:
        """How long nothing is to be sent yet; 0: now."""
        return max(self._open_until - now, 0.0)

    def worked(self) -> None:
        self._failures = 0
        self._open_until = 0.0

    def failed(self, now: float, retry_after_s: float | None = None) -> None:
        """An attempt failed; the receiver may have said for how long it wants none."""
        if not self.shut_s(now):  # else it was under way when others failed, and says nothing new
            self._failures += 1
            if self._failures >= _FAILURES:
                cool_s = min(_COOL_S * 2.0 ** (self._failures - _FAILURES), COOL_MAX_S)
                self._open_until = now + cool_s * random.uniform(0.5, 1.0)
        if retry_after_s is not None:
            self._open_until = max(self._open_until, now + min(retry_after_s, COOL_MAX_S))


log = structlog.get_logger(__name__)

QUEUE_MAX = 2000
"""Deliveries to one endpoint that a courier holds; more wait in the ledger."""

_CLAIM = 500
_GONE = 410


class Held(msgspec.Struct):
    """A delivery in memory; after ``begin_by`` (monotonic) it is left to others."""

    due: Due
    begin_by: float


class Outbox:
    """Of one endpoint, in one courier. The rows are the truth: what is forgotten here is found again there."""

    def __init__(self, endpoint: Endpoint, desk: Desk, *, connections: int, schedule: Schedule) -> None:
        self.endpoint = endpoint
        self._desk = desk
        self._connections = connections
        self._schedule = schedule
        self._queue: deque[Held] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._breaker = Breaker()
        self._more = False
        self._refilling: asyncio.Task[None] | None = None
        self._was_fine = True
        self._gone = False

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to remember. Failures are forgotten once the next attempt may be made: there is no
        end of receivers that are dead."""
        is_shut = self._breaker.shut_s(time.monotonic()) > 0
        return not (self._queue or self._senders or self._more or self._is_refilling or is_shut)

    @property
    def room(self) -> int:
        """How many new deliveries it takes; the others are to be written as due, and it fetches them by itself."""
        if self._more or self._gone or not self._breaker.is_closed or self._breaker.shut_s(time.monotonic()):
            return 0
        return max(QUEUE_MAX - len(self._queue), 0)

    def shut_ms(self) -> int:
        """When something may be sent again, in milliseconds since 1970; not in the past."""
        return now_ms() + round(self._breaker.shut_s(time.monotonic()) * 1000)

    def offer(self, held: Sequence[Due], hold: Hold) -> None:
        """Takes deliveries that this courier holds from now on. What is not taken is found again when that is over."""
        if self._gone:
            return
        self._queue.extend(Held(due, hold.begin_by) for due in held)
        self._send()

    def fetch(self) -> None:
        """There may be something due in the ledger."""
        self._more = True
        self._refill()

    async def close(self) -> None:
        """Lets what is being sent end, and gives the rest back."""
        left = self._let_go()
        if self._refilling is not None:
            await asyncio.gather(self._refilling, return_exceptions=True)
            left += self._let_go()
        if left:
            await self._desk.postpone_and_arm(self.endpoint.id, left, now_ms())
        await asyncio.gather(*self._senders, return_exceptions=True)

    def _send(self) -> None:
        """Sends with as many connections as there is work for; with one while it is unknown whether it works again."""
        most = self._connections if self._breaker.is_closed else 1
        for _ in range(min(most - len(self._senders), len(self._queue))):
            sender = asyncio.create_task(self._send_all())
            self._senders.add(sender)
            sender.add_done_callback(self._sent)

    def _sent(self, sender: asyncio.Task[None]) -> None:
        self._senders.discard(sender)
        if not sender.cancelled() and (error := sender.exception()) is not None:
            if isinstance(error, NotFound):  # it was removed, and its rows with it
                self._queue.clear()
            elif isinstance(error, TweezerError):  # Redis or the ledger is away: the sweep comes back to it
                log.warning("delivery.failed", endpoint=str(self.endpoint.id), error=error.message)
            else:
                log.error("delivery.failed", endpoint=str(self.endpoint.id), error=str(error), exc_info=error)
        if not self._senders and self._more:
            self._refill()

    async def _send_all(self) -> None:
        while self._queue:
            now = time.monotonic()
            if self._breaker.shut_s(now) or self._queue[0].begin_by <= now:
                await self._give_back()
                return
            held = self._queue.popleft()
            if not await self._attempt(held):
                self._queue.appendleft(held)
                await self._give_back()
                return
            if self._more and len(self._queue) < _CLAIM // 2:
                self._refill()

    async def _give_back(self) -> None:
        """Nothing is to be sent for a while, or it has waited here for too long: fetched again, it is held anew."""
        left = self._let_go()
        await self._desk.postpone_and_arm(self.endpoint.id, left, self.shut_ms())

    def _let_go(self) -> list[UUID]:
        """Empties the queue."""
        left = [held.due.id for held in self._queue]
        self._queue.clear()
        self._more = False
        return left

    async def _attempt(self, held: Held) -> bool:
        """Makes it, and says whether there was time to."""
        due = held.due
        answer = await self._desk.post(self.endpoint, due, held.begin_by)
        if answer is None:
            return False
        began_ms = now_ms() - answer.milliseconds
        if answer.ok:
            self._breaker.worked()
        else:
            self._breaker.failed(time.monotonic(), answer.retry_after_s)
        self._desk.finish(self.endpoint.id, self._outcome(due, answer, began_ms))
        if answer.status == _GONE:
            self._gone = True  # until the ledger says that it is enabled again
            self._queue.clear()
            await self._desk.give_up(self.endpoint.id, "its receiver answered 410 Gone")
        elif not answer.ok:
            await self._desk.failed(self.endpoint.id, began_ms)
        elif self.endpoint.failing is not None or not self._was_fine:
            await self._desk.worked(self.endpoint.id)
        self._was_fine = answer.ok
        return True

    def _outcome(self, due: Due, answer: Answer, began_ms: int) -> Outcome:
        attempts = due.attempts + 1
        over = answer.ok or answer.status == _GONE
        next_s = None if over else self._schedule.next_s(attempts, answer.retry_after_s)
        next_ms = None if next_s is None else now_ms() + round(next_s * 1000)
        earlier = read_log(due.log)
        attempt = Attempt(
            len(earlier) + 1, began_ms, answer.status, answer.milliseconds, answer.error, answer.text, next_ms
        )
        return Outcome(due.id, _status(answer, next_ms), attempts, write_log([*earlier, attempt]), next_ms)

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
                if self._breaker.shut_s(time.monotonic()):
                    await self._desk.postpone_and_arm(self.endpoint.id, (), self.shut_ms())
                    return
                most = _CLAIM if self._breaker.is_closed else 1
                hold = self._desk.hold()
                found = await self._desk.claim(self.endpoint.id, most, hold)
            except TweezerError as error:  # the sweep comes back to it
                log.warning("courier.not_claimed", endpoint=str(self.endpoint.id), error=error.message)
                return
            except Exception as error:  # the same, and somebody must look
                log.exception("courier.not_claimed", endpoint=str(self.endpoint.id), error=str(error))
                return
            if found is None:
                return
            self.endpoint, held = found
            self._gone = False
            self._more = self._more or len(held) == most  # or more was written just now
            self.offer(held, hold)
            if self._senders or not self._more:  # the last of the senders refills
                return


def _status(answer: Answer, next_ms: int | None) -> str:
    if answer.ok:
        return DELIVERED
    if answer.status == _GONE:
        return HELD
    return EXHAUSTED if next_ms is None else PENDING


def unused(outboxes: dict[UUID, Outbox]) -> list[UUID]:
    """The endpoints whose outboxes may be forgotten."""
    return [identity for identity, outbox in outboxes.items() if outbox.is_idle]
