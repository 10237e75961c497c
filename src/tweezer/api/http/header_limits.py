"""Limits of each connection, before and after the application: accept it, read headers, and write responses.

The limits on headers also apply to the framing of a chunked body.
"""

from __future__ import annotations

import asyncio
import ipaddress
from http import HTTPStatus
from typing import Any, Protocol, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tweezer.api.access.logins import get_network
from tweezer.api.http.limits import ActiveCounts
from tweezer.api.http.responses import failure

HEAD_MAX = 65_536
"""The largest request line with its headers, in bytes, to within what one read of the socket returns. Also the largest
chunk extensions between two parts of a chunked body, and the largest trailers."""

HEAD_S = 20.0
"""How long the headers may take to arrive, and how long a connection may be open without a request."""


WRITE_S = 20.0
"""How long a client may take without reading any of a pending response."""

CONNECTION = "tweezer.connection"
"""Key of the :class:`Connection` in the ASGI scope of a request."""

_WRITE_BUFFER = 16_384
_MOST = 1000


class Connection(Protocol):
    """The connection of a request."""

    is_lost: bool

    def is_closing(self) -> bool:
        """Return whether either end has closed the connection."""


def find_connection(scope: Scope) -> Connection | None:
    """Return the connection of a request; None if the server does not expose it."""
    return cast("Connection | None", scope.get(CONNECTION))


class ConnectionLimits:
    """The numbers of connections by address. most: per address; trusted proxies have no limit.

    proxies: comma-separated addresses and networks of trusted proxies; ``*`` means all.
    """

    def __init__(self, most: int = _MOST, proxies: str = "") -> None:
        self._most = most
        self._all_trusted = "*" in proxies
        self._trusted = [network for network in map(_network, proxies.split(",")) if network is not None]
        self._open = ActiveCounts()

    def enter(self, address: str | None) -> str | None:
        """Count a connection; return the argument for :meth:`leave`, or None if there are too many already."""
        if address is None or self._all_trusted or any(_is_in(address, network) for network in self._trusted):
            return ""
        place = get_network(address)
        if self._open[place] >= self._most:
            return None
        self._open.add(place)
        return place

    def leave(self, place: str) -> None:
        if place:
            self._open.add(place, -1)


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with these limits; its errors are sent in the envelope.

    Trailers are dropped: uvicorn would add them to the headers of the request that it is already serving.
    """

    is_lost = False
    _size = 0  # bytes of headers, chunk framing or trailers since the last byte of a body
    _in_body = False
    _timeout: asyncio.TimerHandle | None = None  # while headers are arriving
    _writing: asyncio.TimerHandle | None = None  # while the client has not read what exceeds the write buffer
    _place: str | None = None

    def __init__(self, *args: Any, connected: ConnectionLimits | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._connected = connected or ConnectionLimits()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(_WRITE_BUFFER, 0)
        self._place = self._connected.enter(self.client[0] if self.client else None)
        if self._place is None:
            self._refuse(429, "too_many_connections", "too many connections from this address; close some of them")
            self._wait_for_reader()
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_head()
        self._has_reader()
        if self._place is not None:
            self._connected.leave(self._place)
        self.is_lost = True
        super().connection_lost(exc)

    def is_closing(self) -> bool:
        """Return whether either end has closed the connection."""
        return self.is_lost or self.transport.is_closing()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[CONNECTION] = self
        self._wait_for_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._has_head()
        super().on_headers_complete()
        self._size, self._in_body = 0, True

    def on_body(self, body: bytes) -> None:
        self._size = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._size, self._in_body = 0, False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        reading = self._timeout is not None or self._in_body
        size, self._size = self._size, -1  # a parser callback sets it to 0 where headers or a chunk end
        super().data_received(data)
        if self._size < 0:
            self._size = size + len(data) if reading else 0
        if self._size > HEAD_MAX and not self.transport.is_closing():
            what = "trailers" if self._in_body else "headers"
            self._refuse(431, "head_too_large", f"the {what} are larger than {HEAD_MAX >> 10} KiB; send less")
        elif self._timeout is None and not self._in_body and getattr(self.cycle, "response_complete", True):
            self._wait_for_head()  # after empty lines, uvicorn no longer times out an idle connection

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        self._has_reader()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._wait_for_reader()  # the connection stays open until the client has read the rest

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._wait_for_reader()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "not_http", "not a valid HTTP/1.1 request")

    def _wait_for_head(self) -> None:
        if self._timeout is None:
            self._size = 0
            self._timeout = self.loop.call_later(HEAD_S, self._give_up)

    def _has_head(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    def _give_up(self) -> None:
        self._timeout = None
        if not getattr(self.cycle, "response_complete", True):  # there is no cycle before the first request
            self._wait_for_head()  # nothing is read while earlier requests are being served
        elif not self.transport.is_closing():
            self.transport.close()

    def _wait_for_reader(self) -> None:
        if self._writing is None:
            self._writing = self.loop.call_later(WRITE_S, self._abort)

    def _has_reader(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _abort(self) -> None:
        self._writing = None
        self.transport.abort()

    def _refuse(self, status: int, reason: str, description: str) -> None:
        """Respond in place of the application, unless it is responding already, and close the connection."""
        answering = not getattr(self.cycle, "response_complete", True)
        if self.pipeline or (answering and (self.cycle.response_started or not self._in_body)):
            self.transport.close()
            return
        answer = failure(status, description, reason, headers={"Connection": "close"})
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        lines += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:  # uvicorn accepts names, too
        return None


def _is_in(address: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(address) in network
    except ValueError:
        return False
