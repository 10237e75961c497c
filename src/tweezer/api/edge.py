"""What stands before every route: who may ask, what the browser may do with the answer, and a line of log.

There are no credentials yet, so who can reach the port can read everything. Programs of this machine
are trusted; web pages in a browser of this machine are not. They are kept out by these rules: no CORS
headers are sent, the Host header must name the loopback (a name of the attacker's that resolves to
127.0.0.1, DNS rebinding, does not), and answers may not be embedded in or read by other origins.
"""

from __future__ import annotations

import re
import time

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tweezer.api.envelope import failure
from tweezer.model.errors import TweezerError

log = structlog.get_logger(__name__)

_LOOPBACK = re.compile(r"(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?", re.ASCII | re.IGNORECASE)
_PATH_LOGGED = 200

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def own_origin(scope: Scope) -> str | None:
    """``http://host:port`` as the caller reached us; None unless the one Host header names the loopback."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1:
        return None
    host = hosts[0].decode("latin-1")
    return f"{scope['scheme']}://{host.lower()}" if _LOOPBACK.fullmatch(host) else None


class Edge:
    """ASGI middleware: the rules above, and ``api.answered`` in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._app
        if own_origin(scope) is None:
            answer = failure(
                421,
                "the Host header must name this machine: localhost, 127.0.0.1 or [::1]",
                "misdirected",
                headers={"Connection": "close"},
            )
        await answer(scope, receive, send_guarded)
        log.debug(
            "api.answered",
            method=scope["method"],
            path=scope["path"][:_PATH_LOGGED],
            status=status,
            wall_s=round(time.monotonic() - began, 6),
        )


def check_origin(scope: Scope) -> str:
    """The origin of a request that has passed the edge."""
    origin = own_origin(scope)
    if origin is None:
        raise TweezerError("a request reached its route without passing the edge", code="internal")
    return origin
