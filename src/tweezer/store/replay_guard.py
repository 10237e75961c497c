"""Calls that carry no idempotency key, so that one which is repeated because its answer was lost counts once.

A call gets a key of ours, and may have several attempts with it: the next equal one, if the last was abandoned. What
counts as abandoned is for the API to say; one that nobody speaks of for a lease was, too.
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


class Stand(StrEnum):
    """How an attempt stands: its answer arrived (``over``), or did not, or was an error of the server's."""

    RUNNING = "running"
    OVER = "over"
    ABANDONED = "abandoned"


class Attempt(msgspec.Struct, frozen=True):
    """An attempt at a call. ``key`` is the idempotency key of the call, ``again`` says that it is not the first."""

    digest: str
    project: str
    key: str
    id: str
    again: bool


class Calls:
    """The calls that run, and those that were abandoned."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def begin(self, digest: str, *, project: str, running: Iterable[str] = ()) -> Attempt:
        """An attempt at the call of this digest. running: keys of calls that are not abandoned, whatever Redis knows.

        Raises Unavailable, QueueFull.
        """
        identity = secrets.token_hex(16)
        word, key = await self._scripts.call("begin_call", digest, identity, _ms(LEASE_S), _ms(RETRY_S), *running)
        return Attempt(digest, project, key.decode(), identity, again=word == b"again")

    async def mark(self, attempt: Attempt, stand: Stand) -> bool:
        """Whether that is noted; not if another attempt has taken the call over. Raises Unavailable."""
        named = (attempt.digest, attempt.key, attempt.id)
        reply = await self._scripts.call("mark_call", *named, stand, _ms(LEASE_S), _ms(RETRY_S), attempt.project)
        return bool(reply[0] == b"ok")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
