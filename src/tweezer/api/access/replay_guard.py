"""Tells a call that is repeated because its answer was lost from one that is meant a second time.

Pasqal's clients send no idempotency key, and repeat a submit when the server fails or the connection is lost. So a call
without a key gets one of ours, and the next equal call (credentials, path, parameters, unpacked body) the same one, if
the earlier was abandoned: its answer was an error of the server's, or did not arrive, or its process died. A call whose
answer arrived is over, and one that runs on a connection that stands is not abandoned either: who waits for an answer
does not repeat the question. An equal call is then a call of its own.

What arrived is what :mod:`tweezer.api.http.connection` can know of it.
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
from tweezer.api.http.connection import Line, line_of
from tweezer.duties import repeat
from tweezer.ledger.access.credentials import Principal
from tweezer.model.errors import TweezerError
from tweezer.store.replay_guard import LEASE_S, Attempt, Calls, Stand

log = structlog.get_logger(__name__)

PATIENCE_S = 30.0
"""After this time Pasqal's clients wait no longer for an answer; nor do we for its arrival."""

_CALL = "tweezer.call"
_RENEW_S = LEASE_S / 3
_LOOK_MAX_S = 0.5


class Repeats:
    """The calls without a key that this process serves; ``calls`` is what all processes know of them."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._serving: dict[str, set[_Call]] = {}

    async def key(self, request: Request, caller: Principal, project: str) -> str:
        """The idempotency key for a call that brought none, once its body was read. Raises Unavailable, QueueFull."""
        path, query = request.scope["path"], request.scope["query_string"].decode("latin-1")
        parts = (caller.key, path, query, body_digest(request.scope))
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        equal = self._serving.get(name, set())
        for other in [other for other in equal if other.is_cut()]:
            await self._end(other, Stand.ABANDONED)
        running = [other.attempt.key for other in equal if other.attempt is not None]
        attempt = await self._calls.begin(name, project=project, running=running)
        if attempt.again:
            log.info("call.repeated", path=path, key=caller.key)
        call = cast("_Call", request.scope[_CALL])
        call.attempt = attempt
        call.keeping = asyncio.create_task(self._keep(call, attempt))
        self._serving.setdefault(name, set()).add(call)
        return attempt.key

    async def answers(self, call: _Call, status: int) -> None:
        """Notes that an answer is about to be sent: an error says already how the call ends.

        One of the caller's ends a first attempt: nothing was written. That of a later one does not undo the first.
        """
        if call.attempt is not None and status >= 400:
            over = status < 500 and not call.attempt.again
            await self._end(call, Stand.OVER if over else Stand.ABANDONED)

    async def ends(self, call: _Call) -> None:
        """Notes that all was sent that will be."""
        if call.attempt is not None:
            self._serves_no_more(call, call.attempt)
            await self._end(call, Stand.OVER if call.answered and await _has_arrived(call.line) else Stand.ABANDONED)

    async def _keep(self, call: _Call, attempt: Attempt) -> None:
        """Says that the call runs, as long as somebody may be waiting for it."""
        until = time.monotonic() + PATIENCE_S
        await asyncio.sleep(_RENEW_S)
        await repeat(
            "call",
            lambda: self._mark(attempt, Stand.RUNNING),
            every_s=_RENEW_S,
            while_=lambda: time.monotonic() < until and not call.is_cut(),
        )
        self._serves_no_more(call, attempt)

    async def _end(self, call: _Call, stand: Stand) -> None:
        attempt, call.attempt = call.attempt, None
        if attempt is None:
            return
        self._serves_no_more(call, attempt)
        if call.keeping is not None:
            call.keeping.cancel()
        await self._mark(attempt, stand)

    async def _mark(self, attempt: Attempt, stand: Stand) -> None:
        try:
            await self._calls.mark(attempt, stand)
        except TweezerError as error:  # its lease runs out then: the next equal call counts as the same
            log.warning("call.not_marked", stand=stand, error=error.message)

    def _serves_no_more(self, call: _Call, attempt: Attempt) -> None:
        served = self._serving.get(attempt.digest, set())
        served.discard(call)
        if not served:
            self._serving.pop(attempt.digest, None)


async def key_of(request: Request, caller: Principal, project: str) -> str:
    """The same, for routes."""
    return await cast(Repeats, request.app.state.repeats).key(request, caller, project)


class Answers:
    """ASGI middleware, before all others: follows the answers to POSTs to their end."""

    def __init__(self, app: ASGIApp, *, repeats: Repeats) -> None:
        self._app = app
        self._repeats = repeats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        call = scope[_CALL] = _Call(line_of(scope))

        async def send_followed(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._repeats.answers(call, message["status"])
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            cut = last and call.is_cut()
            await send(message)
            call.answered = last and not cut and not call.is_lost()

        try:
            await self._app(scope, receive, send_followed)
        finally:
            await self._repeats.ends(call)


class _Call:
    """A POST: its attempt, if it is one at a call without a key, and whether its answer was sent to the end."""

    def __init__(self, line: Line | None) -> None:
        self.line = line
        self.attempt: Attempt | None = None
        self.keeping: asyncio.Task[None] | None = None
        self.answered = False

    def is_cut(self) -> bool:
        return self.line is not None and self.line.is_cut()

    def is_lost(self) -> bool:
        return self.line is not None and self.line.lost


async def _has_arrived(line: Line | None) -> bool:
    """Whether the other end has the whole answer; the first look is usually the last."""
    until, pause_s = time.monotonic() + PATIENCE_S, 0.0
    while line is not None and time.monotonic() < until:
        await asyncio.sleep(pause_s)
        arrived = line.has_all()
        if arrived is not None:
            return arrived
        pause_s = min(max(0.005, 2 * pause_s), _LOOK_MAX_S)
    return line is None
