"""Limits on requests and responses.

Before a request is parsed: the length of its URL, the size of its body, and how slowly the body arrives. Large
responses are sent in pieces, as fast as the client reads them; their total size is limited.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tweezer.api.access.auth import get_caller
from tweezer.api.http.responses import RequestRejected, error_response, failure

_DRAIN_S = 1.0
_DRAIN_BYTES = 65_536
_LINGER_S = 5.0
_LINGER_BYTES = 64 << 20


class ActiveCounts(Counter[str]):
    """Counts by name; names with a count of zero are dropped."""

    def add(self, name: str, count: int = 1) -> None:
        """Add to the count of a name; count may be negative."""
        self[name] += count
        if not self[name]:
            del self[name]

    @contextmanager
    def adding(self, name: str, count: int = 1) -> Iterator[None]:
        """Add to the count of a name for the duration of the block."""
        self.add(name, count)
        try:
            yield
        finally:
            self.add(name, -count)


class RequestLimits(msgspec.Struct, frozen=True):
    """The limits of a request. Sizes in bytes.

    body_max: of a body as sent. small_bodies: the same for paths that need less. A body may take ``patience_s``, plus a
    second for each ``least_rate`` bytes that have arrived.
    """

    body_max: int
    small_bodies: dict[str, int] = {}
    url_max: int = 16_384
    parameters_max: int = 400
    patience_s: float = 20.0
    least_rate: int = 16_384


class RequestLimitsMiddleware:
    """ASGI middleware: reject requests above the limits, by their headers if possible, else while the body arrives."""

    def __init__(self, app: ASGIApp, limits: RequestLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            most = self._limits.small_bodies.get(scope["path"], self._limits.body_max)
            length, chunked, waits = b"", False, False
            for name, value in scope["headers"]:
                if name == b"content-length":
                    length = value
                elif name == b"transfer-encoding":
                    chunked = True
                elif name == b"expect":
                    waits = True  # for 100 Continue, which an early rejection does not send, so no body arrives
            if chunked or length not in (b"", b"0"):
                may_drain = not waits and (chunked or (length.isdigit() and int(length[:15]) <= _DRAIN_BYTES))
                body = _Body(receive, send, most, self._limits, may_drain=may_drain)
                receive, send = body.receive, body.send
            try:
                self._check_url(len(scope["path"]), scope["query_string"])
                _check_length(length or b"0", most)
            except RequestRejected as refusal:
                app = error_response(refusal)
        await app(scope, receive, send)

    def _check_url(self, path_length: int, query: bytes) -> None:
        if path_length + len(query) > self._limits.url_max:
            raise RequestRejected(
                414,
                "url_too_long",
                f"is longer than {self._limits.url_max} characters; use several requests",
                field="url",
            )
        if query.count(b"&") >= self._limits.parameters_max:
            problem = f"has more than {self._limits.parameters_max} parameters; use several requests"
            raise RequestRejected(400, "too_many_parameters", problem, field="url")


def _check_length(text: bytes, most: int) -> None:
    if not text.isdigit():
        raise RequestRejected(400, "bad_length", "is not a valid number of bytes", field="Content-Length")
    if len(text) > 15 or int(text) > most:
        raise _too_large(most)


def _too_large(most: int) -> RequestRejected:
    return RequestRejected(
        413,
        "body_too_large",
        f"is larger than {most >> 10} KiB as sent; send less per request, or compress it (Content-Encoding: gzip)",
        field="body",
    )


class _Body:
    """An arriving body, and the response to its request.

    A response that begins before the whole body was read waits for a short rest of the body. If more is left, it closes
    the connection: otherwise the server would have to read the rest, however slow, before the next request. It lingers
    before it closes, because a client that is still sending does not read yet.
    """

    def __init__(self, receive: Receive, send: Send, most: int, limits: RequestLimits, *, may_drain: bool) -> None:
        self._receive = receive
        self._may_drain = may_drain
        self._send = send
        self._most = most
        self._limits = limits
        self._came = 0
        self._complete = False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        """Return the next part. Raises RequestRejected if the body is too large or too slow."""
        if self._complete:
            return await self._receive()
        if self._deadline is None:
            self._deadline = time.monotonic() + self._limits.patience_s
        left_s = self._deadline + self._came / self._limits.least_rate - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                message = await self._next()
        except TimeoutError:
            raise RequestRejected(
                408, "body_too_slow", "arrived too slowly; send it again over a better connection", field="body"
            ) from None
        if self._came > self._most:
            raise _too_large(self._most)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        if self._complete:
            await self._send(message)
        elif message["type"] == "http.response.start":
            if self._may_drain:  # a short rest, so that the connection can be reused
                await self._discard(_DRAIN_BYTES, within_s=_DRAIN_S)
            if not self._complete:
                MutableHeaders(scope=message)["Connection"] = "close"
            await self._send(message)
        elif message.get("more_body", False):
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            await self._discard(_LINGER_BYTES, within_s=_LINGER_S)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard(self, size: int, *, within_s: float) -> None:
        """Read and discard the rest of the body, or about this many bytes of it."""
        most = self._came + size
        try:
            async with asyncio.timeout(within_s):
                while not self._complete and self._came < most:
                    await self._next()
        except TimeoutError:
            pass

    async def _next(self) -> Message:
        message = await self._receive()
        self._came += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        return message


PIECE = 65_536
"""Bytes of a response that are written at once; a longer response counts as large."""

PER_ACCOUNT_MAX = 64 << 20
"""Bytes of large responses in flight to one user, one project without users, or one address without a key."""

IN_ALL_MAX = 512 << 20
"""Bytes of large responses in flight in the whole process."""

_RETRY_AFTER = {"Retry-After": "1"}


class ResponseLimitsMiddleware:
    """ASGI middleware, inside authentication: limit the large responses in flight.

    Only reads are rejected: a client that wrote something must get the response, or it would write it again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._held = ActiveCounts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message | None = None

        async def send_in_pieces(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message  # held back until the size of the response is known
                return
            began, start = start, None
            body, more = message.get("body", b""), message.get("more_body", False)
            account = _account(scope)
            if began is not None:
                if len(body) > PIECE and scope["method"] == "GET" and (status := self._refusal(account, len(body))):
                    problem = (
                        "too many large responses are still being sent; finish reading them, or request less at once"
                    )
                    await failure(status, problem, "too_many_answers", headers=_RETRY_AFTER)(scope, receive, send)
                    return
                await send(began)
            if len(body) <= PIECE:
                await send(message)
                return
            with self._held.adding(account, len(body)):
                for at in range(0, len(body), PIECE):
                    piece = body[at : at + PIECE]
                    last = at + PIECE >= len(body)
                    await send({"type": "http.response.body", "body": piece, "more_body": more or not last})

        await self._app(scope, receive, send_in_pieces)

    def _refusal(self, account: str, size: int) -> int:
        """Return the status that rejects a response of this size, or 0. A single response is never rejected."""
        if self._held[account] and self._held[account] + size > PER_ACCOUNT_MAX:
            return 429
        return 503 if self._held.total() and self._held.total() + size > IN_ALL_MAX else 0


def _account(scope: Scope) -> str:
    caller = get_caller(scope)
    if caller is not None:
        return caller.account
    client = scope.get("client")
    return f"address {client[0] if client else ''}"
