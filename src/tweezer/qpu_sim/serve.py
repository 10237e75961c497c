"""The process of a simulated QPU: a server that runs until SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import msgspec
import structlog
from aiohttp import web

from tweezer.adapters.lane.lane import LaneOptions
from tweezer.model.errors import InvalidInput
from tweezer.model.specs import DeviceSpecs, read_specs
from tweezer.qpu_sim.app import Api, TokenClient, TokenIssuer
from tweezer.qpu_sim.counters import Counters, Emulated, MadeUp
from tweezer.qpu_sim.journal import Journal
from tweezer.qpu_sim.machine import SimulatedQpu
from tweezer.qpu_sim.misbehaviours import Misbehaviours

log = structlog.get_logger(__name__)

_BACKLOG = 1024
_GRACE_S = 1.0


class QpuSimOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a simulated QPU.

    specs: The device's specs; None: a device like Pulser's ``AnalogDevice``. fake: Counters are random instead of
    emulated.
    journal: The file; None: jobs end with the process. client: The client that needs tokens; None: no token is needed.
    tls: Certificate and key, PEM files.
    """

    host: str = "127.0.0.1"
    port: int = 4300
    specs: Path | None = None
    fake: bool = False
    journal: Path | None = None
    client: TokenClient | None = None
    tls: tuple[Path, Path] | None = None
    memory_limit_mb: int | None = None
    misbehaviours: Misbehaviours = Misbehaviours()


def run_qpu_sim(options: QpuSimOptions, show: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. Must be called in the main thread. ``show`` is called with the URL at the start.

    Raises InvalidInput for an invalid option, TweezerError for a file that is not a journal.
    """
    specs = load_device_specs(options.specs)
    tls = _load_certificate(options.tls)
    with _listen(options.host, options.port) as listener:
        journal = Journal(options.journal)
        host, port = listener.getsockname()[:2]
        url = f"{'http' if tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"

        async def make() -> web.Application:
            seed, lanes = options.misbehaviours.seed, LaneOptions(memory_limit_mb=options.memory_limit_mb)
            counters: Counters = MadeUp(seed) if options.fake else Emulated(seed, lanes)
            machine = SimulatedQpu(specs, counters, journal, options.misbehaviours)
            log.info("qpu_sim.listening", url=url, device=specs.name)
            show(url)
            return Api(machine, TokenIssuer(options.client)).application()

        web.run_app(
            make(),
            sock=listener,
            ssl_context=tls,
            loop=_new_loop(),
            print=None,
            access_log=None,
            shutdown_timeout=_GRACE_S,
        )


def load_device_specs(path: Path | None) -> DeviceSpecs:
    """Return the specs in a file, or the built-in ones. Raises InvalidInput."""
    try:
        file = resources.files("tweezer.qpu_sim") / "device.json" if path is None else path
        return read_specs(file.read_text(encoding="utf-8-sig"), field="device_specs")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("device_specs", f"{path} cannot be read: {error}") from error


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise InvalidInput("port", f"cannot listen on {host} port {port}: {error.strerror}") from error


def _load_certificate(files: tuple[Path, Path] | None) -> ssl.SSLContext | None:
    if files is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(*files)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(
            "tls_cert", f"{files[0]} and {files[1]} are not a usable certificate and key: {error}"
        ) from error
    return context


def _new_loop() -> asyncio.AbstractEventLoop:
    with contextlib.suppress(ImportError):
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    return asyncio.new_event_loop()
