"""The connection of a request: whether the other end has gone, and whether it has all that was sent to it.

The kernel knows what the other end's kernel has acknowledged. It does not know whether a program read it there, nor
what a proxy did with it. Where a system does not tell even that (it is Linux that does), what the kernel took counts.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from typing import cast

from starlette.types import Scope

EXTENSION = "tweezer.line"

_TOLD = sys.platform == "linux"
_ESTABLISHED, _CLOSED = 1, 7  # tcpi_state, the first byte of struct tcp_info
_INT = struct.Struct("i")


class Line:
    """A connection, from the end of the server."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.lost = False
        self._transport = transport
        self._said_end = False
        self._waited = False
        self._had_all = False

    def end(self) -> None:
        """The other end will say no more."""
        self._said_end = True

    def lose(self, error: Exception | None) -> None:
        """The connection is about to be closed; ``error`` if it was broken.

        If it is we who close it, directly after an answer, there is no more to know than that all was sent.
        """
        self._had_all = error is None and (not (self._said_end or self._waited) or not self._unacknowledged())
        self.lost = True

    def is_cut(self) -> bool:
        """Whether the other end has gone, or will say no more: asked before the end of an answer."""
        return self.lost or self._transport.is_closing() or self._state() != _ESTABLISHED

    def has_all(self) -> bool | None:
        """Whether the other end has all that was sent; None while that may change."""
        if self.lost:
            return self._had_all
        if self._state() == _CLOSED:
            return False
        if self._transport.get_write_buffer_size() + self._unacknowledged() == 0:
            return True
        self._waited = not self._transport.is_closing()
        return None

    def _state(self) -> int:
        if not _TOLD:
            return _ESTABLISHED
        looked = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=self._number())
        try:
            return looked.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        finally:
            looked.detach()

    def _unacknowledged(self) -> int:
        if not _TOLD:
            return 0
        return cast(int, _INT.unpack(fcntl.ioctl(self._number(), termios.TIOCOUTQ, bytes(_INT.size)))[0])

    def _number(self) -> int:
        return cast(int, self._transport.get_extra_info("socket").fileno())


def line_of(scope: Scope) -> Line | None:
    """The connection of a request; None where the server does not show it."""
    return cast("Line | None", scope.get("extensions", {}).get(EXTENSION, {}).get("line"))
