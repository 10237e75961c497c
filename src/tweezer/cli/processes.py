"""The long-running commands: each process, ``tweezer up``, which starts all of them, and a simulated QPU."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from tweezer import __version__, logs, tracing
from tweezer.cli import show
from tweezer.cli.local.children import Interrupts, keep_several
from tweezer.cli.local.ledger_setup import check_given_key
from tweezer.cli.local.owned import is_free
from tweezer.cli.local.stack import Stack
from tweezer.cli.options import Options, pass_options, require
from tweezer.data_folder import DATA_DIR
from tweezer.ledger.config import sqlite_file
from tweezer.qpu_sim.misbehaviours import Misbehaviours, read_window
from tweezer.settings import Settings, find_variable

USUAL_REDIS_PORT = 6379
_PORT = click.IntRange(0, 65_535)


@click.command()
@click.option("--device", help="Device to serve  [default: TWEEZER_WORKER_DEVICE, else EMU_FREE].")
@click.option(
    "--lanes",
    type=int,
    help="Number of jobs at once, each in a separate process  [default: TWEEZER_WORKER_LANES, else 2].",
)
@click.option("--burst", is_flag=True, help="Exit when no work is left.")
@pass_options
def worker(options: Options, *, device: str | None, lanes: int | None, burst: bool) -> None:
    """Run a worker, which serves a device, until SIGTERM or Ctrl-C.

    Running jobs then have TWEEZER_WORKER_DRAIN_S to finish.
    """
    settings = options.settings({"worker.device": device, "worker.lanes": lanes})
    require_emulator("worker", settings.binding(settings.worker.device).adapter)
    _configure(settings)
    from tweezer.processes.worker import run_worker

    tracing.configure("worker")
    run_worker(settings, device=settings.worker.device, lanes=settings.worker.lanes, version=__version__, burst=burst)


@click.command()
@pass_options
def scheduler(options: Options) -> None:
    """Run the scheduler until SIGTERM or Ctrl-C: accept plain arq messages, sweep, and clean up every hour."""
    settings = options.settings()
    _configure(settings)
    from tweezer.processes.scheduler import run_scheduler

    run_scheduler(settings)


@click.command()
@pass_options
def recorder(options: Options) -> None:
    """Run a recorder, which writes events to the ledger, until SIGTERM or Ctrl-C.

    If several run, one is active and the others are on standby.
    """
    settings = options.settings()
    require("recorder", "server", "sqlalchemy", "psycopg")
    _configure(settings)
    from tweezer.processes.recorder import run_recorder

    run_recorder(settings)


@click.command()
@click.option("--processes", type=int, help="Number of processes  [default: TWEEZER_WEBHOOK_PROCESSES, else 2].")
@pass_options
def courier(options: Options, *, processes: int | None) -> None:
    """Run a courier, which delivers webhooks, until SIGTERM or Ctrl-C.

    Several couriers share the work, on one host or on many.
    """
    settings = options.settings({"webhook.processes": processes})
    require("courier", "server", "sqlalchemy", "psycopg", "aiohttp", "cryptography")
    _configure(settings)
    from tweezer.processes.courier import run_courier

    if settings.webhook.processes == 1:
        tracing.configure("courier")
        run_courier(settings)
    else:
        keep_several(["courier", "--processes", "1"], settings, settings.webhook.processes, report=report)


@click.command()
@click.option(
    "--host", help="Address to listen on; 0.0.0.0 for all addresses  [default: TWEEZER_API_HOST, else 127.0.0.1]."
)
@click.option("--port", type=_PORT, help="Port; 0 picks a free one  [default: TWEEZER_API_PORT, else 8000].")
@pass_options
def api(options: Options, *, host: str | None, port: int | None) -> None:
    """Serve the HTTP API until SIGTERM or Ctrl-C."""
    settings = options.settings({"api.host": host, "api.port": port})
    require_server("api")
    _configure(settings)
    from tweezer.api.app import run_api

    tracing.configure("api")
    run_api(settings, version=__version__)


@click.command()
@click.option("--port", type=_PORT, help="Port of the API; 0 picks a free one  [default: TWEEZER_API_PORT, else 8000].")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Data folder  [default: TWEEZER_DATA_DIR].",
)
@click.option("--redis-port", type=_PORT, help="Port of Redis; 0 picks a free one  [default: 6379 if free, else any].")
@click.option("--device", help="Device to serve  [default: TWEEZER_WORKER_DEVICE, else EMU_FREE].")
@click.option("--lanes", type=int, help="Number of jobs at once  [default: TWEEZER_WORKER_LANES, else 2].")
@pass_options
def up(
    options: Options,
    *,
    port: int | None,
    data: Path | None,
    redis_port: int | None,
    device: str | None,
    lanes: int | None,
) -> None:
    """Start everything on this machine, for development: Redis, ledger, worker, scheduler, recorder, courier and API.

    The logs are files in the data folder; only warnings are shown. Ctrl-C stops everything. Queued work stays in the
    data folder and continues at the next start.
    """
    given = {"api.port": port, "data_dir": data, "worker.device": device, "worker.lanes": lanes}
    settings = options.settings(given | _instead_of_anothers_variables(data))
    require_server("up")
    require_emulator("up", settings.binding(settings.worker.device).adapter)
    check_given_key(settings)
    if redis_port is None:
        redis_port = USUAL_REDIS_PORT if is_free(USUAL_REDIS_PORT) else 0
    stack = Stack(
        settings,
        redis_port=redis_port,
        has_own_ledger=_has_own_ledger(settings, data),
        report=report,
        shows_warnings=True,
    )
    with Interrupts() as interrupts:
        try:
            stack.check()
            show.echo("Starting Redis, ledger, API, worker, scheduler, courier and recorder …", err=True)
            stack.start()
            stack.wait_ready(interrupts.came)
            if interrupts.came.is_set():
                raise click.exceptions.Exit(interrupts.exit_code)
            show.echo("\n".join(_welcome(settings, stack)))
            stack.watch(interrupts.came)
            report("stopping; press Ctrl-C again to stop without waiting for running jobs")
        finally:
            stack.stop(hurry=lambda: interrupts.count > 1)
    report(f"stopped; queued work is kept in {settings.data_dir}")


_OF_THE_INSTALLATION = ("database.url", "results_dir", "api.key", "secrets.key")
"""Settings that belong to the installation in one data folder, never to another one."""


def _instead_of_anothers_variables(data: Path | None) -> dict[str, object]:
    """Return replacements for variables in this shell that belong to another `tweezer up`.

    They do if TWEEZER_DATA_DIR names another folder. Using them would record the batches of one installation in the
    ledger of the other.
    """
    others = os.environ.get(DATA_DIR)
    if data is None or not others or Path(others).resolve() == data.resolve():
        return {}
    given = {key: find_variable(key) for key in _OF_THE_INSTALLATION}
    set_aside = {key: variable for key, variable in given.items() if variable}
    if set_aside:
        variables = ", ".join(set_aside.values())
        report(f"ignoring {variables} of this shell: they belong to the installation in {others}, not to {data}")
    return {key: data.absolute() / "results" if key == "results_dir" else "" for key in set_aside}


def _has_own_ledger(settings: Settings, data: Path | None) -> bool:
    """Return whether the ledger is in the data folder, or the environment or the settings file sets both."""
    file = sqlite_file(settings.locate_ledger().url)
    if file is not None and file.resolve().parent == settings.data_dir.resolve():
        return True
    return bool(os.environ.get(DATA_DIR)) or (data is None and "data_dir" in settings.model_fields_set)


def require_server(command: str) -> None:
    """Raise TweezerError unless the packages for the API are installed."""
    require(
        command, "server", "fastapi", "uvicorn", "sqlalchemy", "alembic", "psycopg", "argon2", "aiohttp", "cryptography"
    )


_NEEDS: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "qutip": (("emulators", ("pulser", "pulser_simulation")),),
    "machine": (("emulators", ("pulser", "pulser_simulation")),),
    "emu-sv": (("torch", ("pulser", "emu_sv")),),
    "emu-mps": (("torch", ("pulser", "emu_mps")),),
    "qpu": (("server", ("aiohttp",)), ("emulators", ("pulser",))),
    "forward": (("server", ("aiohttp",)),),
}
"""Kind of adapter → the extras that it needs, each with the modules that identify it."""


def require_emulator(command: str, adapter: str) -> None:
    """Raise TweezerError unless the packages for this kind of adapter are installed."""
    for extra, modules in _NEEDS.get(adapter, ()):
        require(command, extra, *modules)


def _configure(settings: Settings) -> None:
    """Configure the logs of a process, and let SIGTERM during its start be a clean stop, too."""
    logs.configure(settings.log.format, settings.log.level)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))


def report(text: str) -> None:
    """Print a message to stderr, marked to distinguish it from the output of the processes."""
    show.echo(show.style(f"tweezer: {text}", bold=True), err=True)


CURL = (
    '  curl -H "Authorization: Bearer $TWEEZER_API_KEY" \\',
    '    "$TWEEZER_API_URL/api/v1/devices"',
)


def usage(stack: Stack) -> list[str]:
    """Publish the environment of the processes; return instructions for another terminal."""
    return [
        f"  Redis  {stack.redis_place}",
        f"  API    {stack.api_url}",
        f"  docs   {stack.api_url}/docs  (the API, to read and to try)",
        f"  logs   {stack.logs}",
        "",
        "In another terminal:",
        f"  . {shlex.quote(str(stack.publish()))}",
    ]


def _welcome(settings: Settings, stack: Stack) -> list[str]:
    lanes = f"{settings.worker.lanes} lane{'s' if settings.worker.lanes > 1 else ''}"
    return [
        "",
        show.style(f"Tweezer is up: {settings.worker.device} with {lanes}, data in {settings.data_dir}", bold=True),
        *usage(stack),
        "  tweezer devices",
        f"  tweezer submit sequence.json --device {settings.worker.device} --runs 500 --wait",
        *CURL,
        "",
        "Ctrl-C stops it all; queued work stays in the data folder.",
        "",
    ]


_FILE = click.Path(dir_okay=False, path_type=Path)
_PROBABILITY = click.FloatRange(0, 1)
_AT_LEAST_0 = click.FloatRange(min=0)


def _misbehaviour(name: str, help: str, **given: Any) -> Callable[[Any], Any]:
    """Return an option for a misbehaviour, with the default of :class:`Misbehaviours`."""
    return click.option(f"--{name}", default=None, help=help, **given)


@click.command(name="qpu-sim")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=4300, show_default=True, help="Port; 0 picks a free one."
)
@click.option("--device-specs", type=_FILE, help="File with the device's specs  [default: like Pulser's AnalogDevice].")
@click.option("--fake", "--instant", is_flag=True, help="Make up counters instead of emulating.")
@click.option("--journal", type=_FILE, help="File that counts submits and cancels, and keeps jobs across restarts.")
@click.option("--token-auth", metavar="ID:SECRET", help="Require access tokens; this address issues them in realm qpu.")
@click.option(
    "--token-seconds", type=_AT_LEAST_0, default=60.0, show_default=True, help="How long an access token is valid."
)
@click.option("--tls-cert", type=_FILE, help="PEM file with the certificate for https; requires --tls-key.")
@click.option("--tls-key", type=_FILE, help="PEM file with the certificate's private key.")
@_misbehaviour("seed", "Seed of all random numbers.", type=int)
@_misbehaviour("job-seconds", "Duration of a job: 2, 0.5:3 (uniform) or exp:1.5 (mean)  [default: 0].")
@_misbehaviour("shot-seconds", "Duration to add for each run  [default: 0].", type=_AT_LEAST_0)
@_misbehaviour("time-scale", "Multiply both durations by this factor  [default: 1].", type=_AT_LEAST_0)
@_misbehaviour("answer-seconds", "Delay of each response, after the request was carried out  [default: 0].")
@click.option(
    "--down",
    multiple=True,
    metavar="FROM:TO",
    help="Report DOWN between these seconds after the start; may be repeated.",
)
@_misbehaviour("fail", "Share of jobs that end in ERROR.", type=_PROBABILITY)
@_misbehaviour("hang", "Share of jobs that run until they are cancelled.", type=_PROBABILITY)
@_misbehaviour("lose-replies", "Share of submits and cancels carried out without a response.", type=_PROBABILITY)
@_misbehaviour("submit-errors", "Share of submits and cancels rejected with 500.", type=_PROBABILITY)
@_misbehaviour("turn-away", "Share of submits and cancels rejected with a proxy's 404.", type=_PROBABILITY)
@_misbehaviour("read-errors", "Share of reads answered with 500.", type=_PROBABILITY)
@_misbehaviour("late-cancels", "Share of jobs that can no longer be cancelled (3003).", type=_PROBABILITY)
@pass_options
def qpu_sim(
    options: Options,
    /,
    *,
    host: str,
    port: int,
    device_specs: Path | None,
    fake: bool,
    journal: Path | None,
    token_auth: str | None,
    token_seconds: float,
    tls_cert: Path | None,
    tls_key: Path | None,
    down: tuple[str, ...],
    **misbehaviours: Any,
) -> None:
    """Simulate a QPU: serve Pasqal's on-premises QPU API, backed by an emulator, with the quirks of a real machine.

    One job runs at a time, and a new submit cancels the running job. Not for production: anyone who can reach it may
    run jobs, and change it through /sim.
    """
    if (tls_cert is None) is not (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key must be given together")
    require("qpu-sim", "server", "aiohttp")
    if not fake:
        require("qpu-sim", "emulators", "pulser", "pulser_simulation")
    settings = options.settings()
    from tweezer.qpu_sim.app import TokenClient
    from tweezer.qpu_sim.serve import QpuSimOptions, run_qpu_sim

    _configure(settings)
    given = {name: value for name, value in misbehaviours.items() if value is not None}
    sim_options = QpuSimOptions(
        host=host,
        port=port,
        specs=device_specs,
        fake=fake,
        journal=journal,
        client=None if token_auth is None else TokenClient.read(token_auth, token_seconds),
        tls=None if tls_cert is None or tls_key is None else (tls_cert, tls_key),
        memory_limit_mb=settings.worker.memory_limit_mb or None,
        misbehaviours=Misbehaviours(down=tuple(read_window(each) for each in down), **given),
    )
    run_qpu_sim(sim_options, lambda url: show.echo(f"Simulated QPU listening at {url}"))
