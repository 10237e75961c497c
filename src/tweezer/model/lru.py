"""The one bounded cache: values that were used lately, within a budget and, if wanted, up to an age. And calls that are
shared: by those who ask for the same, and by those who ask at the same time."""

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
    """A mapping that forgets what was used longest ago once the weights of its values exceed ``budget``.

    kept_s: how long a value is returned, in seconds; None while there is room for it.
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
        """Keep a value; one that alone exceeds the budget is not kept.

        since: the ``time.monotonic()`` from which its age counts, such as when the call began that read it; None: now.
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
        """Forget a key; return its value, however old, or None."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._spent -= entry.weight
        return entry.value

    def clear(self) -> None:
        self._entries.clear()
        self._spent = 0


class CachedCalls(Generic[Key, Value]):
    """The results of an asynchronous call by key, each kept for ``kept_s`` from the begin of its call.

    Callers that ask while a call is under way share it, unless it began that long ago. A caller that is cancelled stops
    nothing. An error is raised to everyone who waits for the call, and is not kept.
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
        """Begin the call, unless its result is there or it is under way: the result will be asked for soon."""
        if self._results.get(key) is None:
            self._begin(key)

    def forget(self, key: Key) -> None:
        """Make the call again when the key is asked for next."""
        self._results.pop(key)
        self._calls.pop(key, None)

    def _begin(self, key: Key) -> asyncio.Task[Value]:
        began, call = self._calls.get(key, (0.0, None))
        if call is None or time.monotonic() - began >= self._kept_s:
            call = asyncio.create_task(self._make(key))
            self._calls[key] = time.monotonic(), call
            call.add_done_callback(lambda done: done.cancelled() or done.exception())  # the callers get it
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
    """Answers requests that come together by one call; those that come meanwhile share the next one.

    call: returns an answer to each request, in their order; an error is raised to all of their callers. most: requests
    of a call. budget: sum of the sizes of these, unless there is only one. at_a_time: calls under way.
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
                            answer.set_exception(error if isinstance(error, Exception) else Unavailable("cut off"))
                    if not isinstance(error, Exception):
                        raise
                else:
                    for answer, value in zip(answers, values, strict=True):
                        if not answer.done():  # the caller may be gone
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
