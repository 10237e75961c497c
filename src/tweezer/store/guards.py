"""What all API processes remember of recent requests: failed log-ins, and calls without an idempotency key.

A call without a key gets a generated one, so that a call that is repeated because its answer was lost counts once. If
it is abandoned, the next equal call is another attempt with the same key. The API decides what counts as abandoned; an
attempt whose lease was not renewed counts as abandoned, too.
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
    """Whose failures are counted."""

    NAME = "name"
    ADDRESS = "address"


FAILURES_MAX = {CountedBy.NAME: 10, CountedBy.ADDRESS: 30}
"""Failures within the window after which log-ins are refused until its end. Many people may share an address."""


class LoginSource(NamedTuple):
    """A name that somebody tries to log in by, or where they do it from."""

    by: CountedBy
    value: str


class FailedLogins:
    """The windows begin with a first failure, and end by themselves."""

    def __init__(self, scripts: Scripts) -> None:
        self._redis = scripts.redis
        self._keys = scripts.keys

    async def wait_s(self, *sources: LoginSource) -> float:
        """How long they must wait for the next try; 0 when they may. Raises Unavailable."""
        pipeline = self._redis.pipeline(transaction=False)
        for source in sources:
            pipeline.get(self._key(source))
            pipeline.pttl(self._key(source))
        replies = await ask(pipeline.execute())
        counted = zip(sources, replies[::2], replies[1::2], strict=True)
        return max(left / 1000 if int(count or 0) >= FAILURES_MAX[it.by] else 0.0 for it, count, left in counted)

    async def count(self, *sources: LoginSource) -> None:
        """They failed. Raises Unavailable, QueueFull."""
        pipeline = self._redis.pipeline(transaction=True)  # a window that ends in between would leave a key for ever
        for source in sources:
            pipeline.set(self._key(source), 0, ex=LOGIN_WINDOW_S, nx=True)
            pipeline.incr(self._key(source))
        await ask(pipeline.execute())

    def _key(self, source: LoginSource) -> str:
        return self._keys(Key.LOGINS, source.by, hashlib.sha256(source.value.encode(errors="replace")).hexdigest())


LEASE_S = 0.9
"""After this time without news, a running attempt is lost. Pasqal's clients wait a second before they repeat a call."""

RETRY_S = 61.0
"""How long an abandoned call may be repeated: Pasqal's clients pause for 31 s in all, and a request may take 30 s."""


class CallState(StrEnum):
    """The state of an attempt. ABANDONED: its answer was not written, or was a server error."""

    RUNNING = "running"
    OVER = "over"
    ABANDONED = "abandoned"


class CallAttempt(msgspec.Struct, frozen=True):
    """An attempt at a call. ``key`` is the idempotency key of the call, ``again`` says that it is not the first."""

    digest: str
    project: str
    key: str
    id: str
    again: bool


class RecentCalls:
    """The calls that run, and those that were abandoned."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def begin(self, digest: str, *, project: str, running: Iterable[str] = ()) -> CallAttempt:
        """Begin an attempt at the call of this digest. running: keys of calls that are certainly not abandoned.

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
