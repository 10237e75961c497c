"""Listens: to the news of a batch, to cancels of a pool, and to the stream of events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

import msgspec
import structlog
from redis import exceptions as redis_errors

from tweezer.model.backoff import Backoff
from tweezer.model.events import Event, read_events
from tweezer.model.tasks import is_cancelled
from tweezer.store.keys import Key
from tweezer.store.scripts import Scripts, translated, translating
from tweezer.store.tickets import CancelRequest

log = structlog.get_logger(__name__)

_READ_S = 5.0  # how long the listener waits for a message before it looks whether it is still connected


class Heard:
    """What came on one channel since it was last asked."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self._woken = asyncio.Event()
        self.subscribed = asyncio.Event()

    def put(self, message: bytes | None) -> None:
        """Adds a message; None wakes the listener without one: something may have been missed."""
        if message is not None:
            self._messages.append(message)
        self._woken.set()

    async def next(self, timeout_s: float | None) -> list[bytes]:
        """Messages, in order. Empty after ``timeout_s``, or when some may have been missed: read the state again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        self._woken.clear()
        messages, self._messages = self._messages, []
        return messages


class News:
    """Channels of Redis, over one connection that all listeners of this process share."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._pubsub = scripts.redis.pubsub(ignore_subscribe_messages=False)
        self._listeners: dict[str, set[Heard]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._subscribing = asyncio.Lock()
        self._backoff = Backoff()

    @contextlib.asynccontextmanager
    async def batch(self, batch_id: UUID) -> AsyncIterator[Heard]:
        """Listens to a batch: words of events, and ``~index stage percent`` for progress. Read the state
        after entering: what happens from then on is heard."""
        async with self._listen(self._scripts.keys(Key.NEWS, batch_id)) as heard:
            yield heard

    @contextlib.asynccontextmanager
    async def pool(self, device: str) -> AsyncIterator[Heard]:
        """Listens to the cancels of a device's running jobs; :func:`read_cancel` reads them."""
        async with self._listen(self._scripts.keys(Key.POOL, device)) as heard:
            yield heard

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None
        await self._pubsub.aclose()

    @contextlib.asynccontextmanager
    async def _listen(self, channel: str) -> AsyncIterator[Heard]:
        heard = Heard()
        others = self._listeners.setdefault(channel, set())
        others.add(heard)
        try:
            try:
                async with self._subscribing:  # two first subscriptions at once would take two connections
                    await self._pubsub.subscribe(channel)
            except redis_errors.RedisError as error:
                raise translated(error) from error
            if self._reader is None or self._reader.done():
                self._reader = asyncio.create_task(self._read())
            await heard.subscribed.wait()
            yield heard
        finally:
            others.discard(heard)
            if not others and self._listeners.get(channel) is others:
                del self._listeners[channel]
                with contextlib.suppress(redis_errors.RedisError, OSError):
                    await self._pubsub.unsubscribe(channel)

    async def _read(self) -> None:
        failures = 0
        while not is_cancelled():
            try:
                message = await self._pubsub.get_message(timeout=_READ_S)
                failures = 0
            except (redis_errors.RedisError, OSError) as error:
                failures += 1
                log.warning("news.lost_connection", error=str(error), failures=failures)
                await asyncio.sleep(self._backoff.delay_s(failures))
                continue
            if message is None:
                continue
            for heard in self._listeners.get(message["channel"].decode(), ()):
                if message["type"] == "subscribe":
                    heard.subscribed.set()
                    heard.put(None)
                elif message["type"] == "message":
                    heard.put(message["data"])


def read_cancel(message: bytes) -> CancelRequest:
    """The cancel of a message on a pool's channel."""
    batch, _, indices = message.decode().partition(" ")
    return CancelRequest(UUID(batch), frozenset(map(int, indices.split(","))))


class Entry(msgspec.Struct, frozen=True):
    """An entry of the stream: what one call of a script did to one batch, as the script wrote it.

    words: those that :func:`~tweezer.model.events.read_events` reads; none for a change that is no transition.
    """

    id: str
    batch_id: UUID
    first: int
    time_us: int
    words: str

    @property
    def events(self) -> list[Event]:
        return list(read_events(self.batch_id, self.first, self.time_us, self.words))


START = "0-0"
"""The position before the first entry."""


class EventStream:
    """Reads the stream of all events from a position on."""

    def __init__(self, scripts: Scripts) -> None:
        self._redis = scripts.redis
        self._name = scripts.keys(Key.EVENTS)

    async def read(self, after: str = START, *, most: int = 100) -> list[Entry]:
        """Up to ``most`` entries after the given one, oldest first."""
        with translating():
            rows = await self._redis.xrange(self._name, min=f"({after}", max="+", count=most)
        return [_entry(entry_id, fields) for entry_id, fields in rows]

    async def follow(self, position: str, *, most: int) -> list[Entry] | None:
        """As :meth:`read`, for a reader whose position is kept elsewhere; None when the entry at that position is
        gone: Redis came back without the end of its file, since trimming leaves that entry."""
        if position == START:
            return await self.read(most=most)
        with translating():
            rows = await self._redis.xrange(self._name, min=position, max="+", count=most + 1)
        if not rows or rows[0][0].decode() != position:
            return None
        return [_entry(entry_id, fields) for entry_id, fields in rows[1:]]

    async def wait(self, position: str, *, timeout_s: float) -> None:
        """Returns when there is an entry after the position, or after ``timeout_s``."""
        with translating():
            await self._redis.xread({self._name: position}, count=1, block=max(round(timeout_s * 1000), 1))

    async def last(self, until: str = "+") -> str:
        """Id of the newest entry, or of the newest at or before ``until``; START when there is none."""
        with translating():
            rows = await self._redis.xrevrange(self._name, max=until, min="-", count=1)
        return rows[0][0].decode() if rows else START


def position_number(entry_id: str) -> int:
    """The id of an entry as one number of 63 bits, in the same order: milliseconds, then the number among those."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds) << 20 | int(number)


def position_id(number: int) -> str:
    """The id of an entry of its number."""
    return f"{number >> 20}-{number & 0xFFFFF}"


def _entry(entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    return Entry(
        entry_id.decode(),
        UUID(fields[b"b"].decode()),
        int(fields[b"s"]),
        int(fields[b"t"]),
        fields[b"e"].decode(),
    )
