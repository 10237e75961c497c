"""Limits on what the server does by itself for each connection: accept it, read heads, and write answers.

Beside heads it reads what surrounds the parts of a chunked body.
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
"""The most bytes of a request line and its headers, to within what the network hands over at once; and of what stands
between two parts of a chunked body, or behind the last one: the extensions of chunks, and trailers."""

HEAD_S = 20.0
"""How long they may take, and how long a connection may wait for its first request."""


WRITE_S = 20.0
"""How long a client may read nothing of an answer that waits for it."""

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
    """Return the connection of a request; None where the server does not expose it."""
    return cast("Connection | None", scope.get(CONNECTION))


class ConnectionLimits:
    """Counts the connections from each address. most: of one address; trusted proxies have no limit.

    proxies: their addresses and networks, with commas between; ``*`` is all.
    """

    def __init__(self, most: int = _MOST, proxies: str = "") -> None:
        self._most = most
        self._all_trusted = "*" in proxies
        self._trusted = [network for network in map(_network, proxies.split(",")) if network is not None]
        self._open = ActiveCounts()

    def enter(self, address: str | None) -> str | None:
        """Count a connection; return the argument for :meth:`leave`, or None when there are too many already."""
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
    """uvicorn's HTTP/1.1, with those limits, and with an envelope around its errors.

    Trailers are dropped: uvicorn would add them to the headers of a request that is being answered already.
    """

    is_lost = False
    _size = 0  # bytes since the last that were neither of a head nor of a trailer
    _in_body = False
    _timeout: asyncio.TimerHandle | None = None  # while a head is on its way
    _writing: asyncio.TimerHandle | None = None  # while more waits to be read by the client than the buffer has room
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
        size, self._size = self._size, -1  # a callback of the parser that makes it 0 has found the end of something
        super().data_received(data)
        if self._size < 0:
            self._size = size + len(data) if reading else 0
        if self._size > HEAD_MAX and not self.transport.is_closing():
            what = "trailers" if self._in_body else "headers"
            self._refuse(431, "head_too_large", f"the {what} are longer than {HEAD_MAX >> 10} KiB")
        elif self._timeout is None and not self._in_body and getattr(self.cycle, "response_complete", True):
            self._wait_for_head()  # empty lines: uvicorn no longer waits for the end of an idle connection

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        self._has_reader()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._wait_for_reader()  # it stays open until the client has read the rest

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._wait_for_reader()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "not_http", "this is no HTTP request that can be read here")

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
        if not getattr(self.cycle, "response_complete", True):  # before the first request there is no cycle
            self._wait_for_head()  # nothing is read while requests before this one are being answered
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
        """Answer in place of the application, unless it is answering, and close the connection."""
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
    except ValueError:  # uvicorn takes names, too
        return None


def _is_in(address: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(address) in network
    except ValueError:
        return False
