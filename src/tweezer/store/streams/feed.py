"""Readers of the pub/sub channels of batches and devices, and of the stream of events."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any
from uuid import UUID

import msgspec
import structlog
from redis import exceptions as redis_errors

from tweezer.duties import Duty
from tweezer.model.checks import MAX_INTEGER
from tweezer.model.errors import InvalidInput, NotFound, TweezerError, Unavailable, Unreadable
from tweezer.model.events import Event, Notice, read_events, read_words
from tweezer.model.ids import is_project_id
from tweezer.store.keys import Key
from tweezer.store.scripts import Scripts, ask, split_pages, translating
from tweezer.store.workers import CancelRequest

log = structlog.get_logger(__name__)

COURIERS = "couriers"
"""The group of the couriers, which exists from the first read of the first courier on."""

_TIME_MAX = 253_402_300_799_999_999  # µs: the end of the year 9999
_HOLDER_MAX = 200  # characters, as in the ledger
_FAULTS_MAX = 32_768  # characters; the scripts write fewer
_GONE_MS = 3_600_000  # a reader of a group that was idle for this long is considered dead
_BEYOND = "9223372036854775807-0"  # no entry has a later id
_READ_S = 5.0  # how long the listener waits for a message before it checks its connection


class Waiter:
    """Waits for data that another task reads; it is woken by new data, or when that task fails."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._failure: TweezerError | None = None

    def fail(self, error: TweezerError) -> None:
        """Wake the waiter with an error: no more data will arrive."""
        self._failure = error
        self._woken.set()

    def check(self) -> None:
        """Raise Unavailable if the reading task has failed."""
        if self._failure is not None:
            raise Unavailable(self._failure.message) from self._failure

    async def wait(self, timeout_s: float | None) -> None:
        """Wait until woken, or for the timeout. Raises Unavailable; then listen again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        self.check()
        self._woken.clear()


class ChannelReader(Waiter):
    """Collects the messages of one channel until they are read."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: list[bytes] = []
        self.subscribed = asyncio.Event()

    def put(self, message: bytes | None) -> None:
        """Add a message; None wakes the listener without one, because messages may have been missed."""
        if message is not None:
            self._messages.append(message)
        self._woken.set()

    def fail(self, error: TweezerError) -> None:
        super().fail(error)
        self.subscribed.set()

    async def next(self, timeout_s: float | None) -> list[bytes]:
        """Return messages in order; empty after ``timeout_s``, or if some may be missing: then read the state again.

        Raises Unavailable; then listen again.
        """
        await self.wait(timeout_s)
        messages, self._messages = self._messages, []
        return messages


class News:
    """Pub/sub channels of Redis, over one connection that all listeners of this process share."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._pubsub = scripts.redis.pubsub(ignore_subscribe_messages=False)
        self._listeners: dict[str, set[ChannelReader]] = {}
        self.reader = Duty("news", self._read, is_needed=lambda: bool(self._listeners), ended=self._reader_ended)
        self._subscribing = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def batch(self, batch_id: UUID, *, steps: bool = False) -> AsyncIterator[ChannelReader]:
        """Listen to a batch: words of events, and ``~index stage percent`` for progress.

        Read the state after entering: all later changes are received. steps: also receive progress with its steps and
        message, after the line without them.
        """
        listener = ChannelReader()
        async with contextlib.AsyncExitStack() as channels:
            for key in (Key.NEWS, Key.STEPS)[: 1 + steps]:
                await channels.enter_async_context(self._listen(self._scripts.keys(key, batch_id), listener))
            yield listener

    @contextlib.asynccontextmanager
    async def pool(self, device: str) -> AsyncIterator[ChannelReader]:
        """Listen to the cancels of a device's running jobs, which :func:`read_cancel` parses."""
        listener = ChannelReader()
        async with self._listen(self._scripts.keys(Key.POOL, device), listener):
            yield listener

    async def close(self) -> None:
        """Close the connection, and wake the listeners with Unavailable."""
        await self.reader.stop()
        self._reader_ended(Unavailable("the connection to Redis was closed"))
        self._listeners.clear()
        await self._pubsub.aclose()

    @contextlib.asynccontextmanager
    async def _listen(self, channel: str, listener: ChannelReader) -> AsyncIterator[None]:
        others = self._listeners.setdefault(channel, set())
        others.add(listener)
        try:
            with translating():
                async with self._subscribing:  # two first subscriptions at once would take two connections
                    await self._pubsub.subscribe(channel)
            self.reader.start()
            await listener.subscribed.wait()
            listener.check()
            yield
        finally:
            others.discard(listener)
            if not others and self._listeners.get(channel) is others:
                del self._listeners[channel]
                with contextlib.suppress(redis_errors.RedisError, OSError):
                    await self._pubsub.unsubscribe(channel)

    async def _read(self) -> None:
        message = await ask(self._pubsub.get_message(timeout=_READ_S))
        if message is None:
            return
        for listener in self._listeners.get(message["channel"].decode(), ()):
            if message["type"] == "subscribe":
                listener.subscribed.set()
                listener.put(None)
            elif message["type"] == "message":
                listener.put(message["data"])

    def _reader_ended(self, error: TweezerError) -> None:
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.fail(error)


def read_cancel(message: bytes) -> CancelRequest:
    """Parse a message on a device's channel. Raises InvalidInput, because any client may publish there."""
    try:
        batch, _, indices = message.decode().partition(" ")
        return CancelRequest(UUID(batch), frozenset(map(int, indices.split(","))))
    except ValueError as error:
        raise InvalidInput("message", f"expected a batch id and job indices, got {message[:100]!r}") from error


class Entry(msgspec.Struct, frozen=True):
    """An entry of the stream: the changes that one script call made to one batch, or a notice.

    words: the transitions, see :func:`~tweezer.model.events.read_events`; empty for a change without a transition.
    holder, faults: the lane that held the ticket, and why attempts failed that are repeated; see there.
    notice: for an entry that is a notice; ``batch_id`` is then NO_BATCH.
    """

    id: str
    batch_id: UUID
    first: int
    time_us: int
    words: str
    notice: Notice | None = None
    is_restored: bool = False
    """Whether the entry was lost by Redis and restored from the ledger for the couriers; other readers ignore it."""
    problem: str | None = None
    """Why the entry cannot be read; it then has only ``fields``, as they are in Redis."""
    fields: dict[bytes, bytes] | None = None
    holder: str = ""
    faults: str = ""

    @property
    def events(self) -> list[Event]:
        return list(read_events(self.batch_id, self.first, self.time_us, self.words, self.holder, self.faults))


NO_BATCH = UUID(int=0)

START = "0-0"
"""The position before the first entry."""


class EventStream:
    """Reads the stream of all events from a position on."""

    def __init__(self, scripts: Scripts) -> None:
        self._redis = scripts.redis
        self._name = scripts.keys(Key.EVENTS)
        self._ledger = scripts.keys(Key.LEDGER)

    async def read(self, after: str = START, *, most: int = 100) -> list[Entry]:
        """Return up to ``most`` entries after the given one, oldest first."""
        rows = await ask(self._redis.xrange(self._name, min=f"({after}", max="+", count=most))
        return _read_entries(rows)

    async def read_on(self, after: str, *, most: int) -> tuple[list[Entry], str]:
        """Read as :meth:`read`; also return the id before which entries may have been trimmed, as they are recorded."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xrange(self._name, min=f"({after}", max="+", count=most)
        pipeline.get(self._ledger)  # read second, so that it includes all trimming before the first command
        rows, trimmed = await ask(pipeline.execute())
        return _read_entries(rows), START if trimmed is None else trimmed.decode()

    async def read_back(self, until: str = "+", *, after: str = START, most: int) -> list[Entry]:
        """Return entries up to ``until``, or before it if it begins with a parenthesis, newest first."""
        rows = await ask(self._redis.xrevrange(self._name, max=until, min=f"({after}", count=most))
        return _read_entries(rows)

    async def follow(self, position: str, *, most: int) -> list[Entry] | None:
        """Read as :meth:`read`, for a reader that stores its position elsewhere.

        Returns None if the entry at the position does not exist. Trimming keeps that entry, so Redis has restarted
        without its last writes.
        """
        if position == START:
            return await self.read(most=most)
        rows = await ask(self._redis.xrange(self._name, min=position, max="+", count=most + 1))
        if not rows or rows[0][0].decode() != position:
            return None
        return _read_entries(rows[1:])

    async def tell(self, notice: Notice) -> None:
        """Append a notice."""
        row: dict[Any, Any] = {**_fields(Entry("", NO_BATCH, 0, notice.time_us, "", notice))}
        await ask(self._redis.xadd(self._name, row))

    async def put_back(self, entries: Sequence[Entry]) -> None:
        """Append entries that Redis has lost, for the couriers; see ``is_restored``."""
        pipeline = self._redis.pipeline(transaction=False)
        for entry in entries:
            row: dict[Any, Any] = {**_fields(entry), b"r": b"1"}
            pipeline.xadd(self._name, row)
        await ask(pipeline.execute())

    async def wait(self, position: str, *, timeout_s: float) -> None:
        """Wait until there is an entry after the position, or for ``timeout_s``."""
        await ask(self._redis.xread({self._name: position}, count=1, block=max(round(timeout_s * 1000), 1)))

    async def idle_s(self, group: str) -> list[float] | None:
        """Return how long each reader of the group has been idle, in seconds; None if the group does not exist."""
        with translating():
            try:
                readers = await self._redis.xinfo_consumers(self._name, group)
            except redis_errors.ResponseError as error:
                if "NOGROUP" in str(error) or "no such key" in str(error):
                    return None
                raise
        return [reader["idle"] / 1000 for reader in readers]

    async def last(self, until: str = "+") -> str:
        """Return the id of the newest entry (up to ``until``); START if there is no entry."""
        rows = await ask(self._redis.xrevrange(self._name, max=until, min="-", count=1))
        return rows[0][0].decode() if rows else START


class GroupRead(msgspec.Struct, frozen=True):
    """The result of a read by a group's reader.

    oldest: id of the group's oldest entry that is not acknowledged. endpoints: the count of changes of endpoints at
    the time of the read; None without any. is_shut: whether the gate was shut at that time.
    """

    entries: list[Entry]
    oldest: str | None
    endpoints: bytes | None
    is_shut: bool


class EntryGroup:
    """A consumer group: each entry is delivered to one of its readers, which must acknowledge it.

    Trimming keeps entries that are not acknowledged. A server that restarts without its last writes has forgotten that
    they were delivered; therefore the group remembers which server delivered the entries that its reader read last.
    """

    def __init__(self, scripts: Scripts, name: str, reader: str) -> None:
        self._redis = scripts.redis
        self._stream = scripts.keys(Key.EVENTS)
        self._endpoints = scripts.keys(Key.ENDPOINTS)
        self._gate = scripts.keys(Key.GATE)
        self._server = scripts.keys(Key.SERVER)
        self._read_from: bytes | None = None
        self._name = name
        self._reader = reader

    async def join(self, after: str) -> None:
        """Create the group, starting after that entry, unless it exists; remove readers that are gone."""
        with translating():
            try:
                await self._redis.xgroup_create(self._stream, self._name, id=after, mkstream=True)
            except redis_errors.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
            for reader in await self._redis.xinfo_consumers(self._stream, self._name):
                if reader["pending"] == 0 and reader["idle"] > _GONE_MS:
                    await self._redis.xgroup_delconsumer(self._stream, self._name, reader["name"])

    async def read(self, *, most: int, wait_s: float) -> GroupRead:
        """Return new entries, oldest first; empty if none arrived within ``wait_s``.

        Raises NotFound("group", …) if the group does not exist; then join again.
        """
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.get(self._server)
        block_ms = max(round(wait_s * 1000), 1)
        # Resets this reader's idle time: before Redis 7.2 a read that receives nothing does not. It reads the pending
        # entries after the greatest id, which do not exist.
        pipeline.xreadgroup(self._name, self._reader, {self._stream: _BEYOND}, count=1)
        pipeline.xreadgroup(self._name, self._reader, {self._stream: ">"}, count=most, block=block_ms)
        pipeline.xpending(self._stream, self._name)
        pipeline.get(self._endpoints)
        pipeline.exists(self._gate)
        self._read_from, _, found, pending, endpoints, is_shut = await self._ask(pipeline.execute())
        entries = [entry for _, rows in found or () for entry in _read_entries(rows)]
        return GroupRead(entries, pending["min"].decode() if pending["pending"] else None, endpoints, bool(is_shut))

    async def read_own(self, *, most: int) -> tuple[list[Entry], bool]:
        """Return this reader's unacknowledged entries, oldest first, and whether no other reader has one between them.

        Raises NotFound.
        """
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.get(self._server)
        pipeline.xreadgroup(self._name, self._reader, {self._stream: "0"}, count=most)
        self._read_from, found = await self._ask(pipeline.execute())
        rows = [row for _, rows in found or () for row in rows]
        if not rows:
            return [], True
        span: dict[str, Any] = {"min": rows[0][0], "max": rows[-1][0], "count": len(rows) + 1}
        pending = await self._ask(self._redis.xpending_range(self._stream, self._name, **span))
        if lost := [entry_id.decode() for entry_id, fields in rows if not fields]:  # Redis restarted without them
            await self.acknowledge(lost)
        is_alone = all(row["consumer"] == self._reader.encode() for row in pending)
        return _read_entries(rows), is_alone

    async def claim(self, *, idle_s: float, most: int) -> list[Entry]:
        """Take over entries that were delivered to a reader at least ``idle_s`` ago. Raises NotFound."""
        which: dict[str, Any] = {"min_idle_time": round(idle_s * 1000), "count": most}
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.get(self._server)
        pipeline.xautoclaim(self._stream, self._name, self._reader, **which)
        self._read_from, (_, rows, *_) = await self._ask(pipeline.execute())
        return _read_entries(rows)

    async def claim_one(self, entry_id: str, *, idle_s: float) -> list[Entry]:
        """Take over one entry; empty if it was delivered more recently, or no longer exists. Raises NotFound."""
        which: tuple[Any, ...] = (round(idle_s * 1000), [entry_id])
        return _read_entries(await self._ask(self._redis.xclaim(self._stream, self._name, self._reader, *which)))

    async def oldest_pending(self) -> str | None:
        """Return the id of the group's oldest entry that is not acknowledged.

        Raises NotFound; Unavailable if Redis has restarted since this reader read its entries: an earlier entry may
        then be missing here although no reader has processed it, so the entries must be read again.
        """
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.get(self._server)
        pipeline.xpending(self._stream, self._name)
        server, pending = await self._ask(pipeline.execute())
        if server != self._read_from:
            raise Unavailable("Redis has restarted since these events were read; they are read again")
        return pending["min"].decode() if pending["pending"] else None

    async def acknowledge(self, entry_ids: Sequence[str]) -> None:
        """Acknowledge entries."""
        for page in split_pages(entry_ids, 1000):
            await ask(self._redis.xack(self._stream, self._name, *page))

    async def leave(self) -> None:
        """Remove this reader from the group, unless it has unacknowledged entries, which others can claim."""
        with contextlib.suppress(redis_errors.RedisError, OSError):
            pending = await self._redis.xpending_range(
                self._stream, self._name, min="-", max="+", count=1, consumername=self._reader
            )
            if not pending:
                await self._redis.xgroup_delconsumer(self._stream, self._name, self._reader)

    async def _ask(self, call: Any) -> Any:
        try:
            return await ask(call)
        except TweezerError as error:
            if "NOGROUP" in error.message:
                raise NotFound("group", self._name) from error
            raise


def position_number(entry_id: str) -> int:
    """Convert an entry's id to a 63-bit number with the same order: milliseconds, then the number within them."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds) << 20 | int(number)


def position_id(number: int) -> str:
    """Convert a position's number to the id of the entry."""
    return f"{number >> 20}-{number & 0xFFFFF}"


def read_entry(entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    """Make an entry from its fields. One that cannot be read gets a ``problem``, so that it does not stop a reader."""
    try:
        return _entry(entry_id.decode(), fields)
    except KeyError as error:
        problem = f"the field {error.args[0].decode()!r} is missing"
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        problem = str(error)
    return Entry(entry_id.decode(), NO_BATCH, 0, 0, "", problem=problem, fields=fields)


def _read_entries(rows: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> list[Entry]:
    """Make the entries that still exist: one that was delivered to a group may be gone."""
    return [read_entry(entry_id, fields) for entry_id, fields in rows if fields]


def pack_entry(entry: Entry) -> bytes:
    """Pack the fields of an entry, to store it outside the stream."""
    return msgspec.msgpack.encode(_fields(entry))


def unpack_entry(entry_id: str, packed: bytes) -> Entry:
    """Unpack an entry. Raises Unreadable."""
    entry = read_entry(entry_id.encode(), msgspec.msgpack.decode(packed, type=dict[bytes, bytes]))
    if entry.problem is not None:
        raise Unreadable(entry.problem)
    return entry


def _fields(entry: Entry) -> dict[bytes, bytes]:
    """Return the fields of an entry as they are in Redis."""
    if entry.fields is not None:
        return entry.fields
    row: dict[bytes, object] = {b"t": entry.time_us}
    if (it := entry.notice) is not None:
        row |= {b"n": it.type, b"i": it.id, b"p": it.project or "", b"d": it.data}
    else:
        row |= {b"b": entry.batch_id, b"s": entry.first, b"e": entry.words, b"h": entry.holder}
        if entry.faults:
            row[b"f"] = entry.faults
    return {name: str(value).encode() for name, value in row.items()}


def _entry(entry_id: str, fields: dict[bytes, bytes]) -> Entry:
    time_us = _number("t", fields[b"t"], _TIME_MAX)
    is_restored = b"r" in fields
    if b"n" in fields:
        project = fields[b"p"].decode() or None
        notice = Notice(fields[b"i"].decode(), fields[b"n"].decode(), project, time_us, fields[b"d"].decode())
        _check_notice(notice)
        return Entry(entry_id, NO_BATCH, 0, time_us, "", notice, is_restored)
    words = fields[b"e"].decode()
    read_words(words)  # raises ValueError for invalid words
    batch_id, first = parse_batch_id(fields[b"b"]), _number("s", fields[b"s"], MAX_INTEGER)
    holder, faults = (
        fields.get(name, b"").decode(errors="replace")[:most].replace("\0", "")
        for name, most in ((b"h", _HOLDER_MAX), (b"f", _FAULTS_MAX))
    )
    return Entry(entry_id, batch_id, first, time_us, words, None, is_restored, holder=holder, faults=faults)


def _number(name: str, text: bytes, most: int) -> int:
    number = int(text)
    if not 0 <= number <= most:
        raise ValueError(f"the field {name!r} must be a number from 0 to {most}")
    return number


def _check_notice(notice: Notice) -> None:
    for name, text, most in (("i", notice.id, 120), ("n", notice.type, 40)):
        if not 1 <= len(text) <= most or not text.isprintable():
            raise ValueError(f"the field {name!r} must be 1 to {most} printable characters")
    if notice.project is not None and not is_project_id(notice.project):
        raise ValueError("the field 'p' is not a valid project id")
    msgspec.json.decode(notice.data, type=dict[str, Any])


@functools.lru_cache(maxsize=4096)
def parse_batch_id(text: bytes) -> UUID:
    """Parse the batch id of an entry. Cached, because a batch's entries are close together in the stream."""
    return UUID(text.decode())
