"""The bounded cache: which entries it keeps, and for how long."""

from __future__ import annotations

import asyncio
import time

from tweezer.model.lru import CachedCalls, Recent


def test_recent_drops_the_least_recently_used_entry() -> None:
    recent: Recent[str, int] = Recent(budget=10)
    recent.put("a", 1, weight=4)
    recent.put("b", 2, weight=4)
    assert recent.get("a") == 1
    recent.put("c", 3, weight=4)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)


def test_recent_does_not_keep_an_entry_that_exceeds_its_budget() -> None:
    recent: Recent[str, int] = Recent(budget=10)
    recent.put("small", 1, weight=9)
    recent.put("large", 2, weight=11)
    assert (recent.get("small"), recent.get("large")) == (1, None)
    recent.put("small", 3, weight=11)
    assert len(recent) == 0


def test_recent_returns_no_expired_entry() -> None:
    recent: Recent[str, int] = Recent(budget=10, kept_s=1000)
    recent.put("old", 1, since=time.monotonic() - 1001)
    recent.put("new", 2)
    assert (recent.get("old"), recent.get("new"), len(recent)) == (None, 2, 1)


def test_a_dropped_entry_of_recent_frees_its_room() -> None:
    recent: Recent[str, int] = Recent(budget=10)
    recent.put("a", 1, weight=9)
    assert (recent.pop("a"), recent.pop("a"), recent.get("a")) == (1, None, None)
    recent.put("b", 2, weight=9)
    recent.put("c", 3, weight=1)
    assert (recent.get("b"), recent.get("c")) == (2, 3)
    recent.clear()
    recent.put("d", 4, weight=10)
    assert (len(recent), recent.get("d")) == (1, 4)


class Source:
    """A call by key that is counted and returns when the test allows it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, key: str) -> int:
        self.calls.append(key)
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return len(self.calls)


async def test_concurrent_callers_share_one_call() -> None:
    source = Source()
    cached = CachedCalls(source, 10, kept_s=1000)
    asking = [asyncio.create_task(cached.get("a")) for _ in range(3)]
    cached.expect("a")
    await asyncio.sleep(0)
    asking[0].cancel()
    source.may_answer.set()
    assert await asyncio.gather(*asking[1:]) == [1, 1]
    assert (await cached.get("a"), source.calls, len(cached)) == (1, ["a"], 1)
    assert asking[0].cancelled()


async def test_every_caller_gets_the_error_and_it_is_not_cached() -> None:
    source = Source()
    cached = CachedCalls(source, 10, kept_s=1000)
    source.error = OSError("away")
    source.may_answer.set()
    found = await asyncio.gather(cached.get("a"), cached.get("a"), return_exceptions=True)
    assert [str(error) for error in found] == ["away", "away"]
    source.error = None
    assert (await cached.get("a"), source.calls) == (2, ["a", "a"])


async def test_a_call_that_began_long_ago_is_not_joined() -> None:
    source = Source()
    cached = CachedCalls(source, 10, kept_s=0)
    asking = [asyncio.create_task(cached.get("a")) for _ in range(2)]
    await asyncio.sleep(0)
    source.may_answer.set()
    await asyncio.gather(*asking)
    assert source.calls == ["a", "a"]


async def test_an_entry_that_is_dropped_during_its_call_is_fetched_again() -> None:
    source = Source()
    cached = CachedCalls(source, 10, kept_s=1000)
    early = asyncio.create_task(cached.get("a"))
    await asyncio.sleep(0)
    cached.forget("a")
    source.may_answer.set()
    assert await early == 1
    assert (await cached.get("a"), await cached.get("a"), source.calls) == (2, 2, ["a", "a"])
