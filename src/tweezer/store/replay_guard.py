"""Calls without an idempotency key: one that is repeated because its answer was lost counts once.

A call gets a generated key. If it is abandoned, the next equal call is another attempt with the same key. The API
decides what counts as abandoned; an attempt whose lease was not renewed counts as abandoned, too.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from tweezer.store.scripts import Scripts

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
            "begin_call",
            digest=digest,
            new_id=identity,
            lease_ms=_ms(LEASE_S),
            retry_ms=_ms(RETRY_S),
            running=running,
        )
        return CallAttempt(digest, project, key.decode(), identity, again=word == b"again")

    async def mark(self, attempt: CallAttempt, state: CallState) -> bool:
        """Store the state; return False if another attempt has taken the call over. Raises Unavailable."""
        reply = await self._scripts.call(
            "mark_call",
            digest=attempt.digest,
            call=attempt.key,
            attempt=attempt.id,
            state=state,
            lease_ms=_ms(LEASE_S),
            retry_ms=_ms(RETRY_S),
            project=attempt.project,
        )
        return bool(reply[0] == b"ok")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
