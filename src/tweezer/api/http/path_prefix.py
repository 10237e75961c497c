"""A prefix that clients may put before all paths: those of Pasqal's documentation have one."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

CORE_PREFIX = "/core-fast"


class Unprefixed:
    """ASGI middleware: a path below the prefix is the path without it, for all that comes after."""

    def __init__(self, app: ASGIApp, *, prefix: str = CORE_PREFIX) -> None:
        self._app = app
        self._prefix = f"{prefix}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._prefix):
            size = len(self._prefix) - 1
            scope = {**scope, "path": scope["path"][size:]}
            raw: bytes | None = scope.get("raw_path")
            if raw is not None:
                scope["raw_path"] = raw.removeprefix(self._prefix[:-1].encode())
        await self._app(scope, receive, send)
