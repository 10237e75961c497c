"""State of recent requests that API processes share: failed log-ins, and calls without an idempotency key.

A call without a key gets a generated one, so that a client which repeats a call because the response was lost does not
execute it twice. If a call is abandoned, the next equal call is another attempt with the same key. The API decides
which calls are abandoned; an attempt whose lease is not renewed is abandoned, too.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

import msgspec

from tweezer.store.keys import Key
from tweezer.store.scripts import Scripts, ask

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


LEASE_S = 0.9
"""A running attempt is abandoned when its lease was not renewed for this time.

Pasqal's clients wait a second before they repeat a call.
"""

RETRY_S = 61.0
"""How long an abandoned call can be repeated: Pasqal's clients wait for 31 s in total, and a request may take 30 s."""


class CallState(StrEnum):
    """The state of an attempt. ABANDONED: the response was not sent, or was a server error."""

    RUNNING = "running"
    OVER = "over"
    ABANDONED = "abandoned"


class CallAttempt(msgspec.Struct, frozen=True):
    """An attempt at a call. key: the idempotency key of the call. again: whether it is not the first attempt."""

    digest: str
    project: str
    key: str
    id: str
    again: bool


class RecentCalls:
    """Tracks running and abandoned calls."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def begin(self, digest: str, *, project: str, running: Iterable[str] = ()) -> CallAttempt:
        """Begin an attempt at the call with this digest. running: keys of calls that are known to be running.

        Raises Unavailable, QueueFull.
        """
        identity = secrets.token_hex(16)
        word, key = await self._scripts.call(
            "begin_call", digest=digest, new_id=identity, lease_ms=_ms(LEASE_S), retry_ms=_ms(RETRY_S), running=running
        )
        return CallAttempt(digest, project, key.decode(), identity, again=word == b"again")

    async def mark(self, attempt: CallAttempt, state: CallState) -> bool:
        """Store the state; return False if another attempt has taken the call over. Raises Unavailable."""
        return await self._scripts.call_ok(
            "mark_call",
            digest=attempt.digest,
            call=attempt.key,
            attempt=attempt.id,
            state=state,
            lease_ms=_ms(LEASE_S),
            retry_ms=_ms(RETRY_S),
            project=attempt.project,
        )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
