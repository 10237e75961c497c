"""Counts failed log-ins, for all API processes together."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import NamedTuple

from tweezer.store.keys import Key
from tweezer.store.scripts import Scripts, translating

WINDOW_S = 300


class By(StrEnum):
    """Whose failures are counted."""

    NAME = "name"
    ADDRESS = "address"


FAILURES_MAX = {By.NAME: 10, By.ADDRESS: 30}
"""Failures within the window after which log-ins are refused until its end. Many people may share an address."""


class Suspect(NamedTuple):
    """A name that somebody tries to log in by, or where they do it from."""

    by: By
    value: str


class Attempts:
    """The windows begin with a first failure, and end by themselves."""

    def __init__(self, scripts: Scripts) -> None:
        self._redis = scripts.redis
        self._keys = scripts.keys

    async def wait_s(self, *suspects: Suspect) -> float:
        """How long they must wait for the next try; 0 when they may. Raises Unavailable."""
        pipeline = self._redis.pipeline(transaction=False)
        for suspect in suspects:
            pipeline.get(self._key(suspect))
            pipeline.pttl(self._key(suspect))
        with translating():
            replies = await pipeline.execute()
        counted = zip(suspects, replies[::2], replies[1::2], strict=True)
        return max(left / 1000 if int(count or 0) >= FAILURES_MAX[it.by] else 0.0 for it, count, left in counted)

    async def count(self, *suspects: Suspect) -> None:
        """They failed. Raises Unavailable, QueueFull."""
        pipeline = self._redis.pipeline(transaction=True)  # a window that ends in between would leave a key for ever
        for suspect in suspects:
            pipeline.set(self._key(suspect), 0, ex=WINDOW_S, nx=True)
            pipeline.incr(self._key(suspect))
        with translating():
            await pipeline.execute()

    def _key(self, suspect: Suspect) -> str:
        return self._keys(Key.LOGINS, suspect.by, hashlib.sha256(suspect.value.encode(errors="replace")).hexdigest())
