"""Distinguish a call that repeats a lost one from a second call that is made on purpose.

Pasqal's clients send no idempotency key, and repeat a submit when the server fails or the connection is lost. So a call
without a key gets a generated one. The next equal call (same credentials, path, parameters and decompressed body) gets
the same key if the earlier call was abandoned: its response was a server error, its connection was closed before the
whole response was written, or its process died. An equal call is a new one if the response was written, or while the
earlier call is still running on an open connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import cast

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tweezer.api.http.bodies import body_digest
from tweezer.api.http.header_limits import find_connection
from tweezer.duties import repeat
from tweezer.ledger.access.credentials import Principal
from tweezer.model.errors import TweezerError
from tweezer.store.guards import LEASE_S, CallAttempt, CallState, RecentCalls

log = structlog.get_logger(__name__)

PATIENCE_S = 30.0
"""How long Pasqal's clients wait for a response."""

_CALL = "tweezer.call"
_RENEW_S = LEASE_S / 3


class ReplayGuard:
    """The calls without a key that this process serves. calls: those of all processes."""

    def __init__(self, calls: RecentCalls) -> None:
        self._calls = calls
        self._serving: dict[str, set[_Call]] = {}

    async def key(self, request: Request, caller: Principal, project: str) -> str:
        """Return the idempotency key for a call without one; read its body first. Raises Unavailable, QueueFull."""
        path, query = request.scope["path"], request.scope["query_string"].decode("latin-1")
        parts = (caller.key, path, query, body_digest(request.scope))
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        equal = self._serving.get(name, set())
        for other in [other for other in equal if other.is_cut()]:
            await self._end(other, CallState.ABANDONED)
        running = [other.attempt.key for other in equal if other.attempt is not None]
        attempt = await self._calls.begin(name, project=project, running=running)
        if attempt.again:
            log.info("call.repeated", path=path, key=caller.key)
        call = cast("_Call", request.scope[_CALL])
        call.attempt = attempt
        call.keeping = asyncio.create_task(self._keep(call, attempt))
        self._serving.setdefault(name, set()).add(call)
        return attempt.key

    async def before_answer(self, call: _Call, status: int) -> None:
        """End the call before an error is sent.

        A client error ends the call if it is the first attempt, because nothing was written. On a later attempt it does
        not undo the first.
        """
        if status >= 400:
            is_over = status < 500 and call.attempt is not None and not call.attempt.again
            await self._end(call, CallState.OVER if is_over else CallState.ABANDONED)

    async def after_answer(self, call: _Call) -> None:
        """End the call after its response."""
        await self._end(call, CallState.OVER if call.is_answered else CallState.ABANDONED)

    async def _keep(self, call: _Call, attempt: CallAttempt) -> None:
        """Renew the lease of a running call while its client may wait for it."""
        until = time.monotonic() + PATIENCE_S
        await asyncio.sleep(_RENEW_S)
        await repeat(
            "call",
            lambda: self._mark(attempt, CallState.RUNNING),
            every_s=_RENEW_S,
            while_=lambda: time.monotonic() < until and not call.is_cut(),
        )
        self._forget(call, attempt)

    async def _end(self, call: _Call, state: CallState) -> None:
        attempt, call.attempt = call.attempt, None
        if attempt is None:
            return
        self._forget(call, attempt)
        if call.keeping is not None:
            call.keeping.cancel()
        await self._mark(attempt, state)

    async def _mark(self, attempt: CallAttempt, state: CallState) -> None:
        try:
            await self._calls.mark(attempt, state)
        except TweezerError as error:  # its lease will expire, and the next equal call will count as the same
            log.warning("call.not_marked", state=state, error=error.message)

    def _forget(self, call: _Call, attempt: CallAttempt) -> None:
        served = self._serving.get(attempt.digest, set())
        served.discard(call)
        if not served:
            self._serving.pop(attempt.digest, None)


async def get_call_key(request: Request, caller: Principal, project: str) -> str:
    """Return the idempotency key for a call without one. Raises Unavailable, QueueFull."""
    return await cast(ReplayGuard, request.app.state.replay_guard).key(request, caller, project)


class ReplayGuardMiddleware:
    """ASGI middleware, the second from outside: follow the response to each POST to its end."""

    def __init__(self, app: ASGIApp, *, guard: ReplayGuard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        call = scope[_CALL] = _Call(scope)

        async def send_followed(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._guard.before_answer(call, message["status"])
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            is_cut = last and call.is_cut()
            await send(message)
            call.is_answered = last and not is_cut and not call.is_lost()

        try:
            await self._app(scope, receive, send_followed)
        finally:
            await self._guard.after_answer(call)


class _Call:
    """A POST: its attempt, if it is a call without a key, and whether its response was written completely."""

    def __init__(self, scope: Scope) -> None:
        self._connection = find_connection(scope)
        self.attempt: CallAttempt | None = None
        self.keeping: asyncio.Task[None] | None = None
        self.is_answered = False

    def is_cut(self) -> bool:
        """Return whether the connection was closed before the end of the response."""
        return self._connection is not None and self._connection.is_closing()

    def is_lost(self) -> bool:
        """Return whether the client closed the connection before the response was written."""
        return self._connection is not None and self._connection.is_lost
