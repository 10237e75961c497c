"""A proxy that cuts connections at chosen moments, between a real client and a real server."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections import deque
from enum import StrEnum, auto
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_PATIENCE_S = 30.0
_MORE = getattr(socket, "MSG_MORE", 0)  # Linux
_BAD_GATEWAY = b'{"status": "error", "message": "Bad Gateway", "code": "502"}'


class Fault(StrEnum):
    """What goes wrong with a POST."""

    IN_THE_BODY = auto()
    """The proxy forwards half of the body, then cuts both connections."""
    BEFORE_THE_ANSWER = auto()
    """The proxy forwards the whole request, and cuts both connections before there is a response."""
    AT_THE_GATEWAY = auto()
    """As BEFORE_THE_ANSWER, but the client gets a 502, after which it retries by itself."""


class Proxy:
    """A proxy that forwards everything, except that each of the next POSTs gets one of the ``faults``.

    ``posts`` is the number of POSTs so far.
    """

    def __init__(self, base: str) -> None:
        self.faults: deque[Fault] = deque()
        self.posts = 0
        parts = urlsplit(base)
        self._server = _Server(("127.0.0.1", 0), _Exchange)
        self._server.proxy = self
        self._server.upstream = (parts.hostname or "", parts.port or 80)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.base = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    proxy: Proxy
    upstream: tuple[str, int]


class _Exchange(socketserver.StreamRequestHandler):
    """Forward one request and its response, then close the connection."""

    timeout = _PATIENCE_S
    server: _Server

    def handle(self) -> None:
        lines = [self.rfile.readline()]
        while lines[-1] not in (b"\r\n", b""):
            lines.append(self.rfile.readline())
        if not lines[0]:
            return  # a connection without a request
        named = [line.partition(b":") for line in lines[1:-1]]
        headers = {name.lower(): value.strip() for name, _, value in named}
        body = self.rfile.read(int(headers.get(b"content-length", 0)))
        kept = [line for line in lines[1:-1] if not line.lower().startswith(b"connection:")]
        head = b"".join([lines[0], *kept, b"Connection: close\r\n\r\n"])
        with contextlib.suppress(ConnectionError):
            self._forward(head, body, fault=self._fault(lines[0]))

    def _fault(self, line: bytes) -> Fault | None:
        proxy = self.server.proxy
        if not line.startswith(b"POST"):
            return None
        proxy.posts += 1
        return proxy.faults.popleft() if proxy.faults else None

    def _forward(self, head: bytes, body: bytes, *, fault: Fault | None) -> None:
        with socket.create_connection(self.server.upstream, timeout=_PATIENCE_S) as upstream:
            if fault is not None:
                # MSG_MORE: the kernel sends the rest together with the end of the connection, before any response
                upstream.sendall(head + (body[: len(body) // 2] if fault is Fault.IN_THE_BODY else body), _MORE)
            else:
                upstream.sendall(head + body)
                while more := upstream.recv(65_536):
                    self.wfile.write(more)
        if fault is Fault.AT_THE_GATEWAY:
            length = b"Content-Length: %d\r\n" % len(_BAD_GATEWAY)
            self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n" + length + b"\r\n" + _BAD_GATEWAY)
