"""A bounded cache with optional expiry, and helpers that share asynchronous calls between concurrent callers."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

from tweezer.model.errors import Unavailable

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Request = TypeVar("Request")


class _Entry(NamedTuple, Generic[Value]):
    value: Value
    weight: int
    since: float


class Recent(Generic[Key, Value]):
    """A least-recently-used cache, limited by the total weight of its values.

    budget: the maximum total weight. kept_s: the maximum age of a value in seconds; None for no limit.
    """

    def __init__(self, budget: int, *, kept_s: float | None = None) -> None:
        self._budget = budget
        self._kept_s = kept_s
        self._spent = 0
        self._entries: OrderedDict[Key, _Entry[Value]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._kept_s is not None and time.monotonic() - entry.since >= self._kept_s:
            self.pop(key)
            return None
        self._entries.move_to_end(key)
        return entry.value

    def put(self, key: Key, value: Value, weight: int = 1, *, since: float | None = None) -> None:
        """Store a value, unless it exceeds the budget on its own.

        since: the ``time.monotonic()`` from which its age counts, such as the start of the call that read it; None
        means now.
        """
        self.pop(key)
        if weight > self._budget:
            return
        self._entries[key] = _Entry(value, weight, time.monotonic() if since is None else since)
        self._spent += weight
        while self._spent > self._budget:
            _, gone = self._entries.popitem(last=False)
            self._spent -= gone.weight

    def pop(self, key: Key) -> Value | None:
        """Remove a key; return its value, even if it has expired, or None."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._spent -= entry.weight
        return entry.value

    def clear(self) -> None:
        self._entries.clear()
        self._spent = 0


class CachedCalls(Generic[Key, Value]):
    """A cache of the results of an asynchronous call, by key; a result expires ``kept_s`` after its call began.

    Concurrent callers share one call, unless it began longer than ``kept_s`` ago. Cancelling a caller does not stop
    the call. An error is raised to all callers that wait for the call, and is not cached.
    """

    def __init__(self, call: Callable[[Key], Awaitable[Value]], budget: int, *, kept_s: float) -> None:
        self._call = call
        self._kept_s = kept_s
        self._results: Recent[Key, Value] = Recent(budget, kept_s=kept_s)
        self._calls: dict[Key, tuple[float, asyncio.Task[Value]]] = {}

    def __len__(self) -> int:
        return len(self._results) + len(self._calls)

    async def get(self, key: Key) -> Value:
        result = self._results.get(key)
        return await asyncio.shield(self._begin(key)) if result is None else result

    def expect(self, key: Key) -> None:
        """Start the call in advance, unless its result is cached or the call is in progress."""
        if self._results.get(key) is None:
            self._begin(key)

    def forget(self, key: Key) -> None:
        """Drop the result, so that the next ``get`` makes a new call."""
        self._results.pop(key)
        self._calls.pop(key, None)

    def _begin(self, key: Key) -> asyncio.Task[Value]:
        began, call = self._calls.get(key, (0.0, None))
        if call is None or time.monotonic() - began >= self._kept_s:
            call = asyncio.create_task(self._make(key))
            self._calls[key] = time.monotonic(), call
            call.add_done_callback(lambda done: done.cancelled() or done.exception())  # the callers get the exception
        return call

    async def _make(self, key: Key) -> Value:
        own, began = asyncio.current_task(), time.monotonic()
        try:
            result = await self._call(key)
        finally:
            is_newest = self._calls.get(key, (0.0, None))[1] is own
            if is_newest:
                del self._calls[key]
        if is_newest:
            self._results.put(key, result, since=began)
        return result


class CombinedCalls(Generic[Request, Value]):
    """Combines concurrent requests into one call. Requests that arrive during a call share the next one.

    Args:
        call: Returns an answer to each request, in the order of the requests. Its error is raised to all of their
            callers.
        most: Maximum number of requests in a call.
        budget: Maximum total size of the requests in a call with more than one.
        at_a_time: Maximum number of concurrent calls.
    """

    def __init__(
        self, call: Callable[[list[Request]], Awaitable[list[Value]]], *, most: int, budget: int = 0, at_a_time: int = 1
    ) -> None:
        self._call = call
        self._most, self._budget, self._at_a_time = most, budget, at_a_time
        self._waiting: list[tuple[Request, int, asyncio.Future[Value]]] = []
        self._calling: set[asyncio.Task[None]] = set()

    async def get(self, request: Request, *, size: int = 0) -> Value:
        answer: asyncio.Future[Value] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, size, answer))
        if len(self._calling) < self._at_a_time:
            self._calling.add(asyncio.create_task(self._answer_all()))
        return await answer

    async def _answer_all(self) -> None:
        own = asyncio.current_task()
        assert own is not None
        try:
            while self._waiting:
                together = self._next()
                answers = [answer for _, _, answer in together]
                try:
                    values = await self._call([request for request, _, _ in together])
                except BaseException as error:
                    for answer in answers:
                        if not answer.done():
                            answer.set_exception(error if isinstance(error, Exception) else Unavailable("interrupted"))
                    if not isinstance(error, Exception):
                        raise
                else:
                    for answer, value in zip(answers, values, strict=True):
                        if not answer.done():  # the caller may have been cancelled
                            answer.set_result(value)
        finally:
            self._calling.discard(own)

    def _next(self) -> list[tuple[Request, int, asyncio.Future[Value]]]:
        spent = count = 0
        for _, size, _ in self._waiting[: self._most]:
            spent += size
            if count and spent > self._budget:
                break
            count += 1
        together, self._waiting = self._waiting[:count], self._waiting[count:]
        return together
