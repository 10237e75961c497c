"""Limits on the head of a request, before there is a request: the server itself reads it, however long it is."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tweezer.api.envelope import failure
from tweezer.api.lines import EXTENSION, Line

HEAD_MAX = 65_536
"""The most bytes of a request line and its headers, to within what the network hands over at once."""

HEAD_S = 20.0
"""How long they may take, and how long a connection may wait for its first request."""


class BoundedHead(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with those limits, and with an envelope around its errors. It shows requests their line."""

    _line: Line
    _size = 0
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

    def on_headers_complete(self) -> None:
        self._has_head()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        waited = self._timeout is not None
        super().data_received(data)
        if not waited or self._timeout is None:
            return
        self._size += len(data)
        if self._size > HEAD_MAX and not self.transport.is_closing():
            self._refuse(431, "head_too_large", f"the headers are longer than {HEAD_MAX >> 10} KiB")

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
        answer = failure(status, description, reason, headers={"Connection": "close"})
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        lines += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()
