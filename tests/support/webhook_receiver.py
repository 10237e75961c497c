"""A receiver of webhooks for tests. It stores and verifies requests, and responds as the test specifies."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web
from standardwebhooks import Webhook

Answer = Callable[["Received"], "int | web.StreamResponse | None"]
"""The answer to a request: a status or a response; None never answers."""


class Received(msgspec.Struct, frozen=True):
    """A request. ``at`` is its monotonic time."""

    path: str
    id: str
    type: str
    data: dict[str, Any]
    headers: dict[str, str]
    body: bytes
    at: float

    def verify(self, secret: str) -> None:
        """Verify with the public library, and raise its error."""
        Webhook(secret).verify(self.body, self.headers)


class Receiver:
    """A receiver that listens on a free port of the loopback interface."""

    def __init__(self, answer: Answer = lambda _: 204) -> None:
        self.answer = answer
        self.received: list[Received] = []
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._released = asyncio.Event()

    @property
    def ids(self) -> Counter[str]:
        return Counter(it.id for it in self.received)

    @property
    def types(self) -> Counter[str]:
        return Counter(it.type for it in self.received)

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self._port}{path}"

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        message = msgspec.json.decode(body)
        headers = {name.lower(): value for name, value in request.headers.items()}
        it = Received(
            request.path, headers["webhook-id"], message["type"], message["data"], headers, body, time.monotonic()
        )
        self.received.append(it)
        answer = self.answer(it)
        if answer is None:
            await self._released.wait()
            return web.Response(status=503)
        return web.Response(status=answer) if isinstance(answer, int) else answer
