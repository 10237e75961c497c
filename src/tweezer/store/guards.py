"""State of recent requests that API processes share: failed log-ins, stream tickets, and calls without an idempotency
key.

A client without keys repeats a call whose response was lost. If a call took effect and was abandoned, the next equal
one is another attempt at it, and gets its answer. The API decides which calls are abandoned; an attempt whose lease is
not renewed is abandoned, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from tweezer.model.errors import Unavailable
from tweezer.model.lru import CombinedCalls
from tweezer.store.keys import Key
from tweezer.store.scripts import CALL_LEASE_S, Scripts, ask

LOGIN_WINDOW_S = 300


class CountedBy(StrEnum):
    """What failures are counted by."""

    NAME = "name"
    ADDRESS = "address"


FAILURES_MAX = {CountedBy.NAME: 10, CountedBy.ADDRESS: 30}
"""Number of failures after which log-ins are refused until the end of the window. Many users may share an address."""


class LoginSource(NamedTuple):
    """The name or the address of a log-in attempt."""

    by: CountedBy
    value: str


class FailedLogins:
    """Counts failed log-ins in windows, each of which begins with the first failure."""

    def __init__(self, scripts: Scripts) -> None:
        self._redis = scripts.redis
        self._keys = scripts.keys

    async def wait_s(self, *sources: LoginSource) -> float:
        """Return how long the sources must wait until their next attempt, in seconds; 0 if they may try now.

        Raises Unavailable.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for source in sources:
            pipeline.get(self._key(source))
            pipeline.pttl(self._key(source))
        replies = await ask(pipeline.execute())
        counted = zip(sources, replies[::2], replies[1::2], strict=True)
        return max(left / 1000 if int(count or 0) >= FAILURES_MAX[it.by] else 0.0 for it, count, left in counted)

    async def count(self, *sources: LoginSource) -> None:
        """Count a failure of each source. Raises Unavailable, QueueFull."""
        pipeline = self._redis.pipeline(transaction=True)  # a window ending in between would leave a key without expiry
        for source in sources:
            pipeline.set(self._key(source), 0, ex=LOGIN_WINDOW_S, nx=True)
            pipeline.incr(self._key(source))
        await ask(pipeline.execute())

    def _key(self, source: LoginSource) -> str:
        return self._keys(Key.LOGINS, source.by, hashlib.sha256(source.value.encode(errors="replace")).hexdigest())


STREAM_TICKET_S = 60
"""How long a stream ticket is valid."""


class StreamTickets:
    """Tickets that open one stream each, for browsers, whose ``EventSource`` cannot send a key.

    Redis has only their digests.
    """

    def __init__(self, scripts: Scripts) -> None:
        self._redis = scripts.redis
        self._keys = scripts.keys

    async def issue(self, key: str, path: str) -> str:
        """Return a ticket for the stream at this path. key: id of the caller's key. Raises Unavailable, QueueFull."""
        ticket = secrets.token_urlsafe(32)
        await ask(self._redis.set(self._key(ticket), f"{key} {path}", ex=STREAM_TICKET_S))
        return ticket

    async def redeem(self, ticket: str, path: str) -> str | None:
        """Use a ticket up; return the id of its key, or None if it is not valid for this path. Raises Unavailable."""
        found: bytes | None = await ask(self._redis.getdel(self._key(ticket)))
        key, _, stream = (found or b"").decode().partition(" ")
        return key if stream == path else None

    def _key(self, ticket: str) -> str:
        return self._keys(Key.STREAM_TICKET, hashlib.sha256(ticket.encode(errors="replace")).hexdigest())


EXPIRES_S = 10.0
"""After this time the caller of a call gives up and may repeat it, so Redis must not execute it any more."""

_TOGETHER_MAX = 100  # attempts that are marked by one script


class CallState(StrEnum):
    """The state of an attempt. ABANDONED: the response was not sent, or was a server error."""

    RUNNING = "running"
    OVER = "over"
    ABANDONED = "abandoned"


class CallAttempt(msgspec.Struct):
    """An attempt at a call without an idempotency key.

    Attributes:
        equal: Digest of the request: equal requests have the same.
        running: The equal calls that are known to be running.
        id: The id of the attempt, and of the call that it begins.
        call: The id of the call that it begins or repeats; None until it may have taken effect.
    """

    equal: str
    running: Sequence[str] = ()
    id: str = msgspec.field(default_factory=lambda: secrets.token_hex(16))
    call: str | None = None


class RecentCalls:
    """Tracks running and abandoned calls. The script that makes a call begins it, too."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._marks = CombinedCalls(self._mark_all, most=_TOGETHER_MAX)
        self._clock_us = -math.inf  # Redis' clock minus the monotonic one of this process

    def begin(self, attempt: CallAttempt | None) -> dict[str, Any]:
        """Return the arguments of a script that makes a call; None for one with an idempotency key."""
        if attempt is None:
            return {"equal": "", "attempt": "", "expires_us": 0, "running": ()}
        attempt.call = attempt.id
        expires_us = self._expires_us(EXPIRES_S)
        return {"equal": attempt.equal, "attempt": attempt.id, "expires_us": expires_us, "running": attempt.running}

    def set_clock(self, now_us: int) -> None:
        """Note the time by Redis' clock, as a script has just reported it."""
        self._clock_us = now_us - _monotonic_us()

    async def mark(self, attempt: CallAttempt, state: CallState) -> bool:
        """Store the state; return False if there is no such attempt. Raises Unavailable."""
        if attempt.call is None:
            return False
        return await self._marks.get((attempt.equal, attempt.call, attempt.id, state.value)) == b"ok"

    async def _mark_all(self, rows: list[tuple[str, ...]]) -> list[bytes]:
        expires_us = self._expires_us(CALL_LEASE_S)
        try:
            async with asyncio.timeout(CALL_LEASE_S):
                return await self._scripts.call("mark_calls", expires_us=expires_us, attempts=rows)
        except TimeoutError as error:
            raise Unavailable(f"Redis did not reply within {CALL_LEASE_S:g} s") from error

    def _expires_us(self, wait_s: float) -> int:
        """Return the time by Redis' clock after which this process no longer waits."""
        return round(max(_monotonic_us() + self._clock_us + wait_s * 1e6, 0))


def _monotonic_us() -> float:
    return time.monotonic() * 1e6
