"""Serves an application until it is told to stop."""

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
"""How long answers may take once the server stops; honcho kills after 5 s."""

_BACKLOG = 2048
_TICK_S = 1.0  # between looks whether a duty failed; signals do not wait for it
_TICKS = 10  # of uvicorn's, each of 0.1 s, in that time


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
    """Serve until SIGINT or SIGTERM, answer held requests and return. Call it in the main thread.

    proxies: addresses and networks, with commas between, that are believed for whom they ask and by which scheme.
    connections_per_address: of others than those, at once; at most half of the files that the process may open.
    Raises InvalidInput when the address is not to be had, and DutyEnded when one of ``duties`` ended.
    """
    with listen(host, port) as listener:
        if not is_loopback(listener) and not proxies:
            log.warning("api.unencrypted", advice="keys pass in the clear: put a proxy with TLS before it")
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = connections_per_address if files < 0 else min(connections_per_address, max(files // 2, 1))
        protocol: Any = functools.partial(LimitedProtocol, connected=ConnectionLimits(most, proxies))
        config = uvicorn.Config(
            app,
            log_config=None,  # tweezer.logs has been configured
            access_log=False,  # the edge has its own
            server_header=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
            http=protocol,
            ws="none",
            timeout_graceful_shutdown=_GRACE_S,
        )
        gc.collect()
        gc.freeze()  # what is there now stays: to look through it again and again holds all answers up, 50 ms each time
        try:
            _Server(config, holds, duties, _url(listener)).run(sockets=[listener])
        except SystemExit:  # uvicorn exits when the application cannot start, for which a duty may be the reason
            if duties.failure is None:
                raise
    if duties.failure is not None:
        raise duties.failure


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 is a free one. Raises InvalidInput("api_host" | "api_port", …)."""
    family, address = _resolve(host)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InvalidInput("api_host", f"{host} is no address of this machine") from error
        raise InvalidInput("api_port", f"{host} port {port} cannot be listened on: {error.strerror}") from error
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    """Return the family and address of a host, IPv4 first."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:
        raise InvalidInput("api_host", f"{host[:100]!r} is neither an address nor a name that is known") from error
    family, *_, place = min(found, key=lambda entry: entry[0] is not socket.AF_INET)
    return family, str(place[0])


def _url(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's, which also answers what is held when it stops, and returns instead of dying of the signal."""

    def __init__(self, config: uvicorn.Config, holds: LongPolls, duties: Duties, url: str) -> None:
        super().__init__(config)
        self._holds = holds
        self._duties = duties
        self._url = url
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told_to_exit = asyncio.Event()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with watching_loop():
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("api.listening", url=self._url)

    async def main_loop(self) -> None:
        """As uvicorn's, which wakes ten times a second to see whether it should exit: this one is woken."""
        self._loop = asyncio.get_running_loop()
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += _TICKS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._told_to_exit.wait()

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
            self._loop.call_soon_threadsafe(self._told_to_exit.set)
