"""Send large answers in pieces, as fast as they are read, and bound what the answers of one caller hold meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tweezer.api.access.auth import caller_of
from tweezer.api.http.responses import failure

PIECE = 65_536
"""Bytes of an answer that are handed to a connection at once; an answer that is longer counts as large."""

PER_ACCOUNT_MAX = 64 << 20
"""Bytes of large answers to one user, one project without users, or one address without a key, that are being sent."""

IN_ALL_MAX = 512 << 20
"""The same of all."""

_RETRY_AFTER = {"Retry-After": "1"}


class Outflow:
    """ASGI middleware, behind authentication.

    Only reads are refused: whoever wrote something must be told, or would write it again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._held: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message | None = None

        async def send_in_pieces(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message  # until the size of the answer is known
                return
            began, start = start, None
            body, more = message.get("body", b""), message.get("more_body", False)
            account = _account(scope)
            if began is not None:
                if len(body) > PIECE and scope["method"] == "GET" and (status := self._refusal(account, len(body))):
                    problem = "large answers are still being sent; read them, or ask for less at once"
                    await failure(status, problem, "too_many_answers", headers=_RETRY_AFTER)(scope, receive, send)
                    return
                await send(began)
            if len(body) <= PIECE:
                await send(message)
                return
            with self._holding(account, len(body)):
                for at in range(0, len(body), PIECE):
                    piece = body[at : at + PIECE]
                    last = at + PIECE >= len(body)
                    await send({"type": "http.response.body", "body": piece, "more_body": more or not last})

        await self._app(scope, receive, send_in_pieces)

    def _refusal(self, account: str, size: int) -> int:
        """The status with which an answer of this size is refused; 0: it is not. One is always sent."""
        if self._held[account] and self._held[account] + size > PER_ACCOUNT_MAX:
            return 429
        return 503 if self._held.total() and self._held.total() + size > IN_ALL_MAX else 0

    @contextmanager
    def _holding(self, account: str, size: int) -> Iterator[None]:
        self._held[account] += size
        try:
            yield
        finally:
            self._held[account] -= size
            if not self._held[account]:
                del self._held[account]


def _account(scope: Scope) -> str:
    caller = caller_of(scope)
    if caller is not None:
        return caller.account
    client = scope.get("client")
    return f"address {client[0] if client else ''}"
