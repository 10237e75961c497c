"""A proxy before the API that misbehaves on request, and records what reaches it."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

Forward = Callable[[], Awaitable[web.StreamResponse]]
Behaviour = Callable[[web.Request, Forward], Awaitable[web.StreamResponse]]

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "date"})


class Front:
    """A proxy on a loopback port.

    upstream: URL of the API. prefix: the path under which the proxy serves it. behave: what it does with a request
    instead of forwarding it. tls: its certificate; None serves plain HTTP.
    """

    def __init__(
        self,
        upstream: str = "",
        *,
        prefix: str = "",
        behave: Behaviour | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._upstream = upstream
        self._prefix = prefix
        self._behave = behave
        self._tls = tls
        self.requests: list[web.Request] = []
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http{'s' if self._tls else ''}://{host}:{port}{self._prefix}"
        self._client = aiohttp.ClientSession(auto_decompress=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        content = await request.read()

        async def forward() -> web.StreamResponse:
            assert request.path.startswith(self._prefix)
            target = self._upstream + request.raw_path.removeprefix(self._prefix)
            headers = {
                name: value
                for name, value in request.headers.items()
                if name.lower() not in ("host", "content-length", "content-encoding")
            }
            async with self._client.request(
                request.method, target, data=content or None, headers=headers, allow_redirects=False
            ) as answer:
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)

        return await forward() if self._behave is None else await self._behave(request, forward)


def cut(request: web.Request) -> web.StreamResponse:
    """Close the connection of a request without a response."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
