"""Hold requests until their batch or job has ended. Events of the batch wake them, without threads or polling."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Protocol, TypeVar
from uuid import UUID

from starlette.types import Receive

from tweezer.api.http.limits import ActiveCounts
from tweezer.duties import end_tasks
from tweezer.model.errors import Unavailable
from tweezer.model.events import words_of_news
from tweezer.store.connection import Store
from tweezer.store.records import BatchRecord
from tweezer.store.streams.feed import ChannelReader, News

T = TypeVar("T")

_REST = 4.0
"""A held request rests this many times as long as its last read took, so that a busy batch is not read all the time."""

_LOOK_AGAIN_S = 5.0
"""It reads again after this time in any case: news that was published while Redis was unreachable is lost."""


HOLDS_MAX = 1000
"""Requests of one user, or of one project without users, that a process holds; others get a response at once."""


class Wakeable(Protocol):
    """What a held request waits on; None wakes it without news."""

    def put(self, message: None, /) -> None: ...


class LongPolls:
    """The held requests of one process."""

    def __init__(self, store: Store) -> None:
        self._news: News = store.news
        self._held: set[Wakeable] = set()
        self._by_account = ActiveCounts()
        self._ending = False

    def is_ending(self) -> bool:
        """Return whether the server is stopping."""
        return self._ending

    def end(self) -> None:
        """Release all held requests, and hold no more: the server is stopping."""
        self._ending = True
        for reader in self._held:
            reader.put(None)

    def may_hold(self, account: str) -> bool:
        """Return whether one more request of the account may be held."""
        return not self._ending and self._by_account[account] < HOLDS_MAX

    @contextmanager
    def holding(self, reader: Wakeable, account: str | None) -> Iterator[None]:
        """Wake the request when the server stops. It counts towards the limit of the account, if one is given."""
        self._held.add(reader)
        try:
            with nullcontext() if account is None else self._by_account.adding(account):
                yield
        finally:
            self._held.discard(reader)

    async def until(
        self,
        over: Callable[[T], bool],
        read: Callable[[], Awaitable[T]],
        *,
        batch_id: UUID,
        matters: Callable[[list[bytes], T], bool],
        wait_s: float,
        account: str,
        receive: Receive,
    ) -> T:
        """Return what ``read`` returns once it is ``over``, after ``wait_s``, or when the server stops.

        matters: whether news of the batch may mean its end; if not, the batch is not read again.
        account: the caller's account; if it holds too many requests, the current state is returned at once.
        receive: of the request, to detect that the client has disconnected; the result is then discarded.
        Raises what ``read`` raises, and Unavailable if the subscription in Redis fails. An outage that ends while the
        request is held only delays the response.
        """
        state = await read()
        if wait_s <= 0 or over(state) or not self.may_hold(account):
            return state
        deadline = time.monotonic() + wait_s
        try:
            async with asyncio.timeout(wait_s) as entering, self._news.batch(batch_id) as reader:
                entering.reschedule(None)
                with self.holding(reader, account):
                    return await self._follow(state, over, read, reader, matters, deadline, receive)
        except TimeoutError:  # Redis became unreachable before it confirmed the subscription
            return await read()

    async def _follow(
        self,
        state: T,
        over: Callable[[T], bool],
        read: Callable[[], Awaitable[T]],
        reader: ChannelReader,
        matters: Callable[[list[bytes], T], bool],
        deadline: float,
        receive: Receive,
    ) -> T:
        looked = rested = -math.inf  # not since the subscription began: the first wake-up always reads
        async with watching_client(receive, reader) as gone:
            while not over(state) and not gone.done() and (left_s := deadline - time.monotonic()) > 0:
                messages = await reader.next(min(left_s, _LOOK_AGAIN_S))
                fresh = time.monotonic() - looked < _LOOK_AGAIN_S
                if gone.done() or (messages and fresh and not self._ending and not matters(messages, state)):
                    continue
                if not self._ending:
                    await asyncio.sleep(min(rested, deadline) - time.monotonic())
                began = looked = time.monotonic()
                try:
                    state = await read()
                except Unavailable:  # Redis may recover while the client is still waiting
                    if self._ending or time.monotonic() + _LOOK_AGAIN_S > deadline:
                        raise
                    looked = -math.inf  # the next wake-up reads in any case
                rested = time.monotonic() + _REST * (time.monotonic() - began)
                if self._ending:
                    break
            return state


@asynccontextmanager
async def watching_client(receive: Receive, reader: Wakeable) -> AsyncIterator[asyncio.Task[None]]:
    """Wake the request when its client disconnects. The task that is yielded ends at that moment."""

    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass  # ignore the body of a GET

    gone = asyncio.create_task(wait())
    gone.add_done_callback(lambda _: reader.put(None))
    try:
        yield gone
    finally:
        await end_tasks(gone)


def may_end_batch(messages: Iterable[bytes], record: BatchRecord) -> bool:
    """Return whether the batch may have no pending or running jobs after these events.

    A closed batch ends with its last job, in an event about the batch itself. An open one may run out of work with any
    event.
    """
    words = words_of_news(messages)
    if record.open:
        return bool(words)
    return any(event.status.terminal for word in words if not word.jobs for event in word.events(record.id, 0, 0))


def may_change_job(messages: Iterable[bytes], index: int) -> bool:
    """Return whether the events are about the job, a range of jobs, or the batch."""
    return any(not word.jobs or word.count > 1 or index in word.jobs for word in words_of_news(messages))
