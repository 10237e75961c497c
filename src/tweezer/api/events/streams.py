"""Follow the feed of events for held requests and for streams.

No events are queued per client. A client only has a position in the feed; a slow one continues from there.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from starlette.types import Receive, Scope

from tweezer.api.access.auth import Authenticator
from tweezer.api.http.limits import ActiveCounts
from tweezer.api.http.longpoll import LongPolls, watching_client
from tweezer.api.http.responses import RequestRejected
from tweezer.duties import Backoff
from tweezer.ledger.positions import Cursor
from tweezer.ledger.queries.feed import EventPage, Feed, Selection
from tweezer.model.errors import NotFound, Unavailable
from tweezer.model.webhooks import EventMessage
from tweezer.store.streams.tail import Tail, TailReader

STREAMS_MAX = 100
"""Concurrent streams of one user, or of one project without users, in one process of the API."""

BEAT_S = 15.0
"""How often a silent stream sends a comment; many proxies close a connection after a minute of silence."""

RETRY_MS = 2000
"""How long clients of a stream should wait before they reconnect."""

_LOOK_S = 5.0  # how often the key of a stream is checked
_REST = 4.0  # after a read without events a request rests this many times as long as the read took
_PAGE = 100

_encoder = msgspec.json.Encoder()


class FollowedEvents(msgspec.Struct, frozen=True):
    """The events to follow. over: they are those of a batch that has ended, so there will be no more."""

    selection: Selection
    over: bool = False


Watch = Callable[[], Awaitable[FollowedEvents]]
"""Returns the current state of what is followed. Raises NotFound, Unavailable."""


class FeedFollowers:
    """The requests and streams that follow the feed in this process."""

    def __init__(self, feed: Feed, tail: Tail, holds: LongPolls, authenticator: Authenticator) -> None:
        self.feed = feed
        self._tail = tail
        self._holds = holds
        self._authenticator = authenticator
        self._streams = ActiveCounts()

    async def page(
        self,
        watched: FollowedEvents,
        cursor: Cursor,
        types: frozenset[str],
        *,
        internal: bool,
        limit: int,
        wait_s: float,
        account: str,
        receive: Receive,
    ) -> EventPage:
        """Return a page as soon as it has events, or after ``wait_s``; at once if no more events can follow.

        types, internal: as for :meth:`Feed.read`.
        account: the caller's account; if it holds too many requests, the page is returned at once.
        receive: of the request, to detect that the client has disconnected; the result is then discarded.
        Raises Unavailable.
        """
        deadline = time.monotonic() + wait_s
        read = functools.partial(self.feed.read, watched.selection, types=types, internal=internal, limit=limit)
        page = await read(cursor)
        cursor = page.next
        if wait_s <= 0 or watched.over or _has_news(page) or not self._holds.may_hold(account):
            return page
        place = watched.selection
        async with (
            self._tail.listen(batch_id=place.batch_id, projects=place.projects) as reader,
            watching_client(receive, reader) as gone,
        ):
            with self._holds.holding(reader, account):
                while True:
                    began = time.monotonic()
                    page = await read(cursor)
                    left_s = deadline - time.monotonic()
                    if _has_news(page) or self._holds.is_ending() or gone.done() or left_s <= 0:
                        return page
                    rest_until = time.monotonic() + _REST * (time.monotonic() - began)
                    cursor = _moved(page.next, await reader.next(left_s))
                    if not self._holds.is_ending():
                        await asyncio.sleep(min(rest_until, deadline) - time.monotonic())

    async def is_over(self, watched: FollowedEvents, cursor: Cursor, types: frozenset[str]) -> bool:
        """Return whether all events were sent and no more can follow. Raises Unavailable."""
        if not watched.over:
            return False
        page = await self.feed.read(watched.selection, cursor, types=types, limit=1)
        return not page.events and not page.more

    def enter(self, account: str) -> None:
        """Count a stream of the account until :meth:`leave`. Raises RequestRejected (429)."""
        if self._streams[account] >= STREAMS_MAX:
            raise RequestRejected(
                429,
                "too_many_streams",
                f"at most {STREAMS_MAX} open streams are allowed for {account}; close one, or follow a whole project "
                "in one stream",
                headers={"Retry-After": str(RETRY_MS // 1000)},
            )
        self._streams.add(account)

    def leave(self, account: str) -> None:
        """Stop counting a stream of the account."""
        self._streams.add(account, -1)

    async def stream(self, watch: Watch, cursor: Cursor, types: frozenset[str], scope: Scope) -> AsyncIterator[bytes]:
        """Yield the frames of a stream of server-sent events.

        The stream ends when the server stops, when the key of the request no longer belongs to the same principal, and
        after the end of the batch that it follows.
        """
        stream = _Stream(self.feed, watch, cursor, types)
        yield f"retry: {RETRY_MS}\nid: {cursor}\n\n".encode()
        backoff, failures = Backoff(), 0
        while not (self._holds.is_ending() or stream.is_over):
            try:
                place = (await watch()).selection
                async with self._tail.listen(batch_id=place.batch_id, projects=place.projects) as reader:
                    with self._holds.holding(reader, None):
                        stream.has_read_all = False  # read what exists before the subscription, then wait
                        while not (self._holds.is_ending() or stream.is_over):
                            if stream.has_read_all:
                                await stream.wait(reader)
                            if not await self._authenticator.still_knows(scope):
                                return
                            if frames := await stream.read():
                                yield frames
                            failures = 0
            except NotFound:  # the batch was deleted
                return
            except Unavailable:
                failures += 1
                yield b": Redis or the ledger does not respond\n\n"
                await asyncio.sleep(backoff.delay_s(failures))


class _Stream:
    """The position of one stream."""

    def __init__(self, feed: Feed, watch: Watch, cursor: Cursor, types: frozenset[str]) -> None:
        self._feed = feed
        self._watch = watch
        self._cursor = cursor
        self._types = types
        self._watched: FollowedEvents | None = None
        self._rest_until = 0.0
        self._last_sent = time.monotonic()
        self.has_read_all = False
        self.is_over = False

    async def wait(self, reader: TailReader) -> None:
        """Wait for something new, for a few seconds at most: the key must be checked regularly."""
        quiet_to = await reader.next(_LOOK_S)
        self._cursor = _moved(self._cursor, quiet_to)
        await asyncio.sleep(self._rest_until - time.monotonic())

    async def read(self) -> bytes:
        """Return the next frames; empty if there is nothing new."""
        began = time.monotonic()
        beats = began - self._last_sent >= BEAT_S
        if self._watched is None or beats:
            self._watched = await self._watch()
        page = await self._feed.read(self._watched.selection, self._cursor, types=self._types, limit=_PAGE)
        self._rest_until = time.monotonic() + _REST * (time.monotonic() - began)
        self._cursor, self.has_read_all = page.next, not page.more
        self.is_over = page.ended or (self._watched.over and not page.more)
        frames = [*map(encode_frame, page.events)]
        if beats and not frames:
            frames.append(f": still here\nid: {self._cursor}\n\n".encode())
        if self.is_over:
            frames.append(b"event: end\ndata: {}\n\n")
        if frames:
            self._last_sent = time.monotonic()
        return b"".join(frames)


def encode_frame(event: EventMessage) -> bytes:
    """Return an event in the format of server-sent events."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event.id.encode(), event.type.encode(), _encoder.encode(event))


def _has_news(page: EventPage) -> bool:
    return bool(page.events) or page.more or page.ended


def _moved(cursor: Cursor, quiet_to: int) -> Cursor:
    """Return the cursor, moved past the part of the feed that is known to have nothing new."""
    return Cursor(quiet_to) if cursor.events_before is None and quiet_to > cursor.position else cursor
