"""The command that is a QPU, as far as its API shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tweezer import logs
from tweezer.cli import show
from tweezer.cli.access import Access, pass_access, require
from tweezer.qpu_sim.misbehaviours import Misbehaviours, read_window

_FILE = click.Path(dir_okay=False, path_type=Path)
_PROBABILITY = click.FloatRange(0, 1)
_AT_LEAST_0 = click.FloatRange(min=0)


def _habit(name: str, help: str, **given: Any) -> Callable[[Any], Any]:
    """An option for a habit; left out, it is as :class:`Misbehaviours` has it."""
    return click.option(f"--{name}", default=None, help=help, **given)


@click.command(name="qpu-sim")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=4300, show_default=True, help="0 takes any free one.")
@click.option("--device-specs", type=_FILE, help="Specs of the device  [default: like Pulser's AnalogDevice].")
@click.option("--fake", "--instant", is_flag=True, help="Make counters up at once instead of emulating.")
@click.option("--journal", type=_FILE, help="File that counts submits and cancels, and keeps jobs over a restart.")
@click.option("--token-auth", metavar="ID:SECRET", help="Ask for tokens; they come from this address, realm qpu.")
@click.option(
    "--token-seconds", type=_AT_LEAST_0, default=60.0, show_default=True, help="How long one of these tokens is good."
)
@click.option("--tls-cert", type=_FILE, help="Certificate for https, a PEM file; with --tls-key.")
@click.option("--tls-key", type=_FILE, help="Its private key.")
@_habit("seed", "Of all that is random.", type=int)
@_habit("job-seconds", "How long a job runs: 2, 0.5:3 (uniform) or exp:1.5 (its mean)  [default: 0].")
@_habit("shot-seconds", "Added for each run  [default: 0].", type=_AT_LEAST_0)
@_habit("time-scale", "Factor on both  [default: 1].", type=_AT_LEAST_0)
@_habit("answer-seconds", "How long an answer takes, after what was asked is done  [default: 0].")
@click.option("--down", multiple=True, metavar="FROM:TO", help="DOWN between these seconds after the start; several.")
@_habit("fail", "Share of jobs that end in ERROR.", type=_PROBABILITY)
@_habit("hang", "Share of jobs that run until they are cancelled.", type=_PROBABILITY)
@_habit("lose-replies", "Share of submits and cancels that are done, but not answered.", type=_PROBABILITY)
@_habit("submit-errors", "Share of submits and cancels that are answered 500 and not done.", type=_PROBABILITY)
@_habit("turn-away", "Share of submits and cancels that get a proxy's 404 and are not done.", type=_PROBABILITY)
@_habit("read-errors", "Share of reads that are answered 500.", type=_PROBABILITY)
@_habit("late-cancels", "Share of jobs that can no longer be cancelled (3003).", type=_PROBABILITY)
@pass_access
def qpu_sim(
    access: Access,
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
    **habits: Any,
) -> None:
    """Serve Pasqal's on-premises QPU API in front of an emulator, with the habits of a real machine.

    One job runs at a time; a new submit cancels the one that runs. Nothing of it is for production: whoever reaches
    it may run jobs, and change it through /sim.
    """
    if (tls_cert is None) is not (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    require("qpu-sim", "server", "aiohttp")
    if not fake:
        require("qpu-sim", "emulators", "pulser", "pulser_simulation")
    settings = access.settings()
    from tweezer.qpu_sim.app import TokenClient
    from tweezer.qpu_sim.serve import QpuSimOptions, run_qpu_sim

    logs.configure(settings.log.format, settings.log.level)
    given = {name: value for name, value in habits.items() if value is not None}
    options = QpuSimOptions(
        host=host,
        port=port,
        specs=device_specs,
        fake=fake,
        journal=journal,
        client=None if token_auth is None else TokenClient.read(token_auth, token_seconds),
        tls=None if tls_cert is None or tls_key is None else (tls_cert, tls_key),
        memory_limit_mb=settings.worker.memory_limit_mb or None,
        habits=Misbehaviours(down=tuple(read_window(each) for each in down), **given),
    )
    run_qpu_sim(options, lambda url: show.echo(f"a QPU, simulated, is at {url}"))
