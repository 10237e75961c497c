"""Serves an application: on the loopback only, until it is told to stop."""

from __future__ import annotations

import ipaddress
import signal
import socket
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from tweezer.api.longpoll import Holds
from tweezer.model.errors import InvalidInput

log = structlog.get_logger(__name__)

_GRACE_S = 3
"""How long answers may take once the server stops; honcho kills after 5 s."""

_BACKLOG = 2048


def serve(app: FastAPI, holds: Holds, *, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM, then answers what is held and returns. Call it in the main thread.

    Raises InvalidInput when the address is not the loopback's, or not to be had.
    """
    with listen(host, port) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,  # tweezer.logs has been configured
            access_log=False,  # the edge has its own
            server_header=False,
            proxy_headers=False,  # whoever is asked for by another name is not us
            ws="none",
            timeout_graceful_shutdown=_GRACE_S,
        )
        _Server(config, holds, _url(listener)).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on the loopback; port 0 is a free one. Raises InvalidInput("api_host" | "api_port", …)."""
    family, address = loopback_address(host)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidInput("api_port", f"{host} port {port} cannot be listened on: {error.strerror}") from error
    return listener


def loopback_address(host: str) -> tuple[socket.AddressFamily, str]:
    """The family and address of a loopback host: an address in 127.0.0.0/8, ``::1``, or ``localhost``.

    Raises InvalidInput("api_host", …) for every other host, and when ``localhost`` leads elsewhere.
    """
    try:
        addresses = [host] if host.lower() != "localhost" else _resolve(host)
        found = [ipaddress.ip_address(address) for address in addresses]
    except (OSError, ValueError):
        found = []
    if not found or not all(_is_loopback(address) for address in found):
        raise InvalidInput(
            "api_host",
            f"{host!r} is not this machine's loopback; until the API asks for credentials it listens on "
            "127.0.0.1, ::1 or localhost only (from elsewhere: ssh -L 8000:127.0.0.1:8000 …)",
        )
    chosen = min(found, key=lambda address: address.version)
    return (socket.AF_INET if chosen.version == 4 else socket.AF_INET6), str(chosen)


def _resolve(name: str) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]


def _is_loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address in ipaddress.ip_network("127.0.0.0/8") or address == ipaddress.IPv6Address("::1")


def _url(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's, which also answers what is held when it stops, and returns instead of dying of the signal."""

    def __init__(self, config: uvicorn.Config, holds: Holds, url: str) -> None:
        super().__init__(config)
        self._holds = holds
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("api.listening", url=self._url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._holds.end()
        await super().shutdown(sockets)
        log.info("api.stopped")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
