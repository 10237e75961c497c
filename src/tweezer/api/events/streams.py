"""Follows the feed of events for requests: held until there is something to tell, or as a stream that does not end.

No events are queued for anybody: a place in the feed is all that is kept, and whoever reads slowly reads on from there.
"""

from __future__ import annotations

import asyncio
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
"""Streams of one user, or of one project without users, in one process of the API."""

BEAT_S = 15.0
"""How often a stream says that it is still there; proxies close what is silent for a minute."""

RETRY_MS = 2000
"""How long a client of a stream is asked to wait before it connects again."""

_LOOK_S = 5.0  # how often the key of a stream is looked at
_REST = 4.0  # after a read that found nothing a request rests so many times as long as that took
_PAGE = 100

_encoder = msgspec.json.Encoder()


class FollowedEvents(msgspec.Struct, frozen=True):
    """Which events are followed. over: they are those of a batch that has ended, so no more can follow."""

    selection: Selection
    over: bool = False


Watch = Callable[[], Awaitable[FollowedEvents]]
"""Reads what is followed as it stands; raises NotFound, Unavailable."""


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
        limit: int,
        wait_s: float,
        account: str,
        receive: Receive,
    ) -> EventPage:
        """Return a page: at once if it has events or no more can follow, else once it has, or after ``wait_s``.

        account: whose request it is; with too many held it is answered at once.
        receive: of the request, which tells when the client has gone; what is returned then is of no use.
        Raises Unavailable.
        """
        deadline = time.monotonic() + wait_s
        page = await self.feed.read(watched.selection, cursor, types=types, limit=limit)
        cursor = page.next
        if wait_s <= 0 or watched.over or _has_news(page) or not self._holds.may_hold(account):
            return page
        place = watched.selection
        async with (
            self._tail.listen(batch_id=place.batch_id, projects=place.projects) as heard,
            watching_client(receive, heard) as gone,
        ):
            with self._holds.holding(heard, account):
                while True:
                    began = time.monotonic()
                    page = await self.feed.read(watched.selection, cursor, types=types, limit=limit)
                    left_s = deadline - time.monotonic()
                    if _has_news(page) or self._holds.is_ending() or gone.done() or left_s <= 0:
                        return page
                    rest_until = time.monotonic() + _REST * (time.monotonic() - began)
                    cursor = _moved(page.next, await heard.next(left_s))
                    if not self._holds.is_ending():
                        await asyncio.sleep(min(rest_until, deadline) - time.monotonic())

    async def is_over(self, watched: FollowedEvents, cursor: Cursor, types: frozenset[str]) -> bool:
        """Return whether all events were sent and no more can follow. Raises Unavailable."""
        if not watched.over:
            return False
        page = await self.feed.read(watched.selection, cursor, types=types, limit=1)
        return not page.events and not page.more

    def enter(self, account: str) -> None:
        """Count a stream of the account, until :meth:`leave`. Raises RequestRejected, a 429."""
        if self._streams[account] >= STREAMS_MAX:
            raise RequestRejected(
                429,
                "too_many_streams",
                f"{account} has {STREAMS_MAX} streams open; close one, or follow all of a project in one stream",
                headers={"Retry-After": str(RETRY_MS // 1000)},
            )
        self._streams.add(account)

    def leave(self, account: str) -> None:
        """Count a stream of the account no more."""
        self._streams.add(account, -1)

    async def stream(self, watch: Watch, cursor: Cursor, types: frozenset[str], scope: Scope) -> AsyncIterator[bytes]:
        """Yield the frames of a stream of server-sent events.

        It ends when the server stops, when the key of the request no longer stands for the same principal, and after
        the end of the batch that is followed.
        """
        stream = _Stream(self.feed, watch, cursor, types)
        yield f"retry: {RETRY_MS}\nid: {cursor}\n\n".encode()
        backoff, failures = Backoff(), 0
        while not (self._holds.is_ending() or stream.is_over):
            try:
                place = (await watch()).selection
                async with self._tail.listen(batch_id=place.batch_id, projects=place.projects) as heard:
                    with self._holds.holding(heard, None):
                        stream.has_read_all = False  # who begins to listen reads what there is, and then waits
                        while not (self._holds.is_ending() or stream.is_over):
                            if stream.has_read_all:
                                await stream.wait(heard)
                            if not await self._authenticator.still_knows(scope):
                                return
                            if frames := await stream.read():
                                yield frames
                            failures = 0
            except NotFound:  # it was deleted
                return
            except Unavailable:
                failures += 1
                yield b": Redis or the ledger does not answer\n\n"
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
        self._said = time.monotonic()
        self.has_read_all = False
        self.is_over = False

    async def wait(self, heard: TailReader) -> None:
        """Wait for something new, but not for long: the key must be checked now and then."""
        quiet_to = await heard.next(_LOOK_S)
        self._cursor = _moved(self._cursor, quiet_to)
        await asyncio.sleep(self._rest_until - time.monotonic())

    async def read(self) -> bytes:
        """Return the next frames; none when there is nothing new."""
        began = time.monotonic()
        beats = began - self._said >= BEAT_S
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
            self._said = time.monotonic()
        return b"".join(frames)


def encode_frame(event: EventMessage) -> bytes:
    """Return an event in the format of server-sent events."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event.id.encode(), event.type.encode(), _encoder.encode(event))


def _has_news(page: EventPage) -> bool:
    return bool(page.events) or page.more or page.ended


def _moved(cursor: Cursor, quiet_to: int) -> Cursor:
    """Return the cursor, moved forward to where nothing new is known to be."""
    return Cursor(quiet_to) if cursor.told is None and quiet_to > cursor.position else cursor
