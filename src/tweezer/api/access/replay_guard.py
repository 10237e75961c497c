"""Distinguish a call that repeats a lost one from a second call that is made on purpose.

Pasqal's clients send no idempotency key, and repeat a submit when the server fails or the connection is lost. So the
next equal call without a key (same credentials, path, parameters and decompressed body) gets the answer of the earlier
one if that was abandoned: its response was a server error, its connection was closed before the whole response was
written, or its process died. An equal call is a new one if the response was written, or while the earlier call is still
running on an open connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from typing import cast

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tweezer.api.http.bodies import body_digest
from tweezer.api.http.header_limits import find_connection
from tweezer.duties import repeat
from tweezer.ledger.access.credentials import Principal
from tweezer.model.errors import TweezerError
from tweezer.store.guards import CallAttempt, CallState, RecentCalls
from tweezer.store.scripts import CALL_LEASE_S

log = structlog.get_logger(__name__)

PATIENCE_S = 30.0
"""How long Pasqal's clients wait for a response."""

_CALL = "tweezer.call"
_RENEW_S = CALL_LEASE_S / 3


class ReplayGuard:
    """The calls without a key that this process serves. calls: those of all processes."""

    def __init__(self, calls: RecentCalls) -> None:
        self._calls = calls
        self._serving: dict[str, set[_Call]] = {}

    @contextlib.asynccontextmanager
    async def attempt(self, call: _Call, equal: str) -> AsyncIterator[CallAttempt]:
        """Yield an attempt at a call without a key; make the call in the block. equal: digest of the request."""
        for other in [other for other in self._serving.get(equal, ()) if other.is_cut()]:
            await self._end(other, CallState.ABANDONED)
        served = self._serving.setdefault(equal, set())
        running = [it.call or it.id for other in served if (it := other.attempt)]
        attempt = call.attempt = CallAttempt(equal, running)
        served.add(call)
        call.keeping = asyncio.get_running_loop().call_later(_RENEW_S, self._keep, call, attempt)
        async with call.making:
            yield attempt

    async def before_answer(self, call: _Call, status: int) -> None:
        """End the call before an error is sent. Nothing changes for a call without effect, as it has no entry."""
        if status >= 400:
            await self._end(call, CallState.ABANDONED)

    async def after_answer(self, call: _Call) -> None:
        """End the call after its response."""
        await self._end(call, CallState.OVER if call.is_answered else CallState.ABANDONED)

    def _keep(self, call: _Call, attempt: CallAttempt) -> None:
        call.keeping = asyncio.create_task(self._renew(call, attempt))

    async def _renew(self, call: _Call, attempt: CallAttempt) -> None:
        """Renew the lease of a running call while its client may wait for it.

        A call whose connection was cut stays among those that are served, because a retry must wait until it was made.
        """
        until = time.monotonic() + PATIENCE_S
        await repeat(
            "call",
            lambda: self._mark(attempt, CallState.RUNNING),
            every_s=_RENEW_S,
            while_=lambda: time.monotonic() < until and not call.is_cut(),
        )
        if not call.is_cut():
            self._forget(call, attempt)

    async def _end(self, call: _Call, state: CallState) -> None:
        """Store the state in which the call ends, once it was made, unless that was done."""
        async with call.making:
            attempt = call.attempt
            if attempt is None:
                return
            if call.keeping is not None:
                call.keeping.cancel()
            try:
                await self._mark(attempt, state)
            finally:
                call.attempt = None
                self._forget(call, attempt)

    async def _mark(self, attempt: CallAttempt, state: CallState) -> None:
        try:
            await self._calls.mark(attempt, state)
        except TweezerError as error:  # its lease expires, and the next equal call counts as the same
            log.warning("call.not_marked", state=state, error=error.message)

    def _forget(self, call: _Call, attempt: CallAttempt) -> None:
        served = self._serving.get(attempt.equal, set())
        served.discard(call)
        if not served:
            self._serving.pop(attempt.equal, None)


@contextlib.asynccontextmanager
async def begin_call(request: Request, caller: Principal, idempotency_key: str) -> AsyncIterator[CallAttempt | None]:
    """Yield an attempt at a call without an idempotency key, or None for one with it.

    Read the body before, and make the call in the block.
    """
    if idempotency_key:
        yield None
        return
    guard, call = cast(ReplayGuard, request.app.state.replay_guard), cast("_Call", request.scope[_CALL])
    path, query = request.scope["path"], request.scope["query_string"].decode("latin-1")
    parts = (caller.key, path, query, body_digest(request.scope))
    async with guard.attempt(call, hashlib.sha256("\n".join(parts).encode()).hexdigest()) as attempt:
        yield attempt
    if attempt.call != attempt.id:
        log.info("call.repeated", path=path, key=caller.key)


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
        self.making = asyncio.Lock()
        self.keeping: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self.is_answered = False

    def is_cut(self) -> bool:
        """Return whether the connection was closed before the end of the response."""
        return self._connection is not None and self._connection.is_closing()

    def is_lost(self) -> bool:
        """Return whether the client closed the connection before the response was written."""
        return self._connection is not None and self._connection.is_lost
