"""Limits on the parts of a request that the server itself reads: the head, and what surrounds the parts of a body."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tweezer.api.envelope import failure
from tweezer.api.lines import EXTENSION, Line

HEAD_MAX = 65_536
"""The most bytes of a request line and its headers, to within what the network hands over at once; and of what stands
between two parts of a chunked body, or behind the last one: the extensions of chunks, and trailers."""

HEAD_S = 20.0
"""How long they may take, and how long a connection may wait for its first request."""


class BoundedHead(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with those limits, and with an envelope around its errors. It shows requests their line.

    Trailers are dropped: uvicorn would add them to the headers of a request that is being answered already.
    """

    _line: Line
    _size = 0  # bytes since the last that were neither of a head nor of a trailer
    _in_body = False
    _timeout: asyncio.TimerHandle | None = None  # while a head is on its way

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._line = Line(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_head()
        self._line.lose(exc)
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self._line.end()
        super().eof_received()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"line": self._line}}
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
