"""Serve an application until a signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import ipaddress
import resource
import signal
import socket
from types import FrameType
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from tweezer.api.http.header_limits import ConnectionLimits, LimitedProtocol
from tweezer.api.http.longpoll import LongPolls
from tweezer.duties import Duties
from tweezer.model.errors import InvalidInput
from tweezer.processes.runtime import watching_loop

log = structlog.get_logger(__name__)

_GRACE_S = 3
"""How long running requests may take once the server stops; honcho kills it after 5 s."""

_BACKLOG = 2048
_TICK_S = 1.0  # between checks for a failed duty; signals take effect at once
_TICKS = 10  # uvicorn's ticks of 0.1 s in that time


def serve(
    app: FastAPI,
    holds: LongPolls,
    duties: Duties,
    *,
    host: str,
    port: int,
    proxies: str,
    connections_per_address: int,
) -> None:
    """Serve until SIGINT or SIGTERM, then answer held requests and return. Call it in the main thread.

    proxies: comma-separated addresses and networks whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are trusted.
    connections_per_address: the limit for all other addresses; at most half of the files that the process may open.
    Raises InvalidInput if the address cannot be listened on, and DutyEnded if one of ``duties`` ended.
    """
    with listen(host, port) as listener:
        if not is_loopback(listener) and not proxies:
            log.warning("api.unencrypted", advice="keys are sent unencrypted: put a TLS proxy in front of the API")
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = connections_per_address if files < 0 else min(connections_per_address, max(files // 2, 1))
        protocol: Any = functools.partial(LimitedProtocol, connected=ConnectionLimits(most, proxies))
        config = uvicorn.Config(
            app,
            log_config=None,  # tweezer.logs has been configured
            access_log=False,  # SecurityHeadersMiddleware logs requests
            server_header=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
            http=protocol,
            ws="none",
            timeout_graceful_shutdown=_GRACE_S,
        )
        gc.collect()
        gc.freeze()  # keeps start-up objects out of full collections, each of which would block for 50 ms
        try:
            _Server(config, holds, duties, _url(listener)).run(sockets=[listener])
        except SystemExit:  # uvicorn exits if the application cannot start; a failed duty may be the cause
            if duties.failure is None:
                raise
    if duties.failure is not None:
        raise duties.failure


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 picks a free one. Raises InvalidInput("api_host" | "api_port", …)."""
    family, address = _resolve(host)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InvalidInput(
                "api_host", f"{host} is not an address of this machine; use one that is, or 0.0.0.0 for all of them"
            ) from error
        raise InvalidInput("api_port", f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    """Return the family and address of a host, IPv4 first."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            "api_host",
            f"{host[:100]!r} is not an IP address or a known host name; use an address of this machine",
        ) from error
    family, *_, place = min(found, key=lambda entry: entry[0] is not socket.AF_INET)
    return family, str(place[0])


def _url(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's server, which also releases held requests when it stops, and returns instead of dying by the signal."""

    def __init__(self, config: uvicorn.Config, holds: LongPolls, duties: Duties, url: str) -> None:
        super().__init__(config)
        self._holds = holds
        self._duties = duties
        self._url = url
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exit_requested = asyncio.Event()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with watching_loop():
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("api.listening", url=self._url)

    async def main_loop(self) -> None:
        """Run until exit; unlike uvicorn's loop, which polls ten times a second, this one is woken."""
        self._loop = asyncio.get_running_loop()
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += _TICKS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._exit_requested.wait()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._duties.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._holds.end()
        await super().shutdown(sockets)
        log.info("api.stopped")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._exit_requested.set)
