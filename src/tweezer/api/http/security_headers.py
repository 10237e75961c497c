"""Security headers of every response, a check of the Host header, and a log line per request.

Credentials are bearer tokens. A browser never sends them by itself, so a page of another origin cannot act for the
user. The headers also forbid browsers to embed, sniff or cache responses. CORS headers are sent only to the origins in
``TWEEZER_API_CORS_ORIGINS``, and never allow credentials that a browser would add.
"""

from __future__ import annotations

import re
import time

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tweezer.api.http.responses import failure
from tweezer.model.errors import InvalidInput

log = structlog.get_logger(__name__)

_HOST = re.compile(
    r"(?:[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?", re.ASCII
)
_HOST_MAX = 260
_PATH_LOGGED = 200

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class SecurityHeadersMiddleware:
    """ASGI middleware: add the headers, require one Host header, and log ``api.answered``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._log = log.bind()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._app
        if scope["http_version"] == "1.1" and len(_hosts(scope)) != 1:
            answer = failure(400, "Host: expected exactly one Host header (RFC 9112)", "invalid", field="Host")
        await answer(scope, receive, send_guarded)
        self._log.debug(
            "api.answered",
            method=scope["method"],
            path=scope["path"][:_PATH_LOGGED],
            status=status,
            wall_s=round(time.monotonic() - began, 6),
        )


def get_origin(scope: Scope) -> str:
    """Return ``http://host:port`` of the API as the client reached it. Raises InvalidInput("Host", …)."""
    host = b"".join(_hosts(scope)[:1]).decode("latin-1")
    if len(host) > _HOST_MAX or _HOST.fullmatch(host) is None:
        raise InvalidInput(
            "Host", "is not a valid host name; set TWEEZER_API_PUBLIC_URL so that links do not depend on it"
        )
    return f"{scope['scheme']}://{host.lower()}"


def _hosts(scope: Scope) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == b"host"]
