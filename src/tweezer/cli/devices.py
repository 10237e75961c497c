"""Commands on devices and workers: list them, plan maintenance, drain."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import click

from tweezer.cli import show
from tweezer.cli.group import INTERRUPTED
from tweezer.cli.options import Options, clock, parse_time, pass_options, print_list
from tweezer.cli.status import availability
from tweezer.client import AsyncQueue
from tweezer.model.checks import MAX_DEVICE_LENGTH, check_text, suggest_name
from tweezer.model.errors import NotFound
from tweezer.model.summaries import format_duration
from tweezer.store.records import DeviceRecord, WorkerRecord

if TYPE_CHECKING:
    from tweezer.store.connection import Store

T = TypeVar("T")


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@click.pass_context
@pass_options
def devices(options: Options, context: click.Context, *, as_json: bool) -> None:
    """List the devices that workers have announced."""
    if context.invoked_subcommand is not None:
        return
    now = datetime.now(UTC)
    found = options.run(lambda queue: queue.devices())
    named = any(it.specs_name not in (None, it.name) for it in found)  # sequences name it in another way

    def row(it: DeviceRecord) -> tuple[object, ...]:
        atoms = "" if it.specs_name is None else "any" if it.max_atom_num is None else f"≤ {it.max_atom_num}"
        other = (it.specs_name or "",) if named else ()
        return it.name, *other, it.adapter, atoms, it.lanes, it.pending, it.running, availability(it, now)

    print_list(
        found,
        ("device", *(("in sequences",) if named else ()), "adapter", "atoms", "lanes", "pending", "running", "status"),
        row,
        none="No worker has announced a device yet; start one with `tweezer worker --device EMU_FREE`.",
        as_json=as_json,
    )


@devices.command()
@click.argument("device")
@pass_options
def forget(options: Options, *, device: str) -> None:
    """Remove a device that no worker serves and that has no work.

    Its specs, its planned maintenance and its counters are deleted. A worker that starts later announces it again.
    """

    async def run(store: Store) -> None:
        try:
            await store.devices.forget(device)
        except NotFound:
            known = [it.name for it in await store.reader.devices()]
            raise NotFound("device", f"{device}{suggest_name(device, known)}") from None

    options.run_store(run)
    show.echo(f"Forgot {device}.")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@pass_options
def workers(options: Options, *, as_json: bool) -> None:
    """List the live workers of all devices."""

    def row(it: WorkerRecord) -> tuple[object, ...]:
        up_s, state = (datetime.now(UTC) - it.started).total_seconds(), "draining" if it.draining else ""
        return it.id, it.device, f"{it.busy}/{it.lanes} busy", it.version, format_duration(up_s), state

    print_list(
        options.run(lambda queue: queue.workers()),
        ("worker", "device", "lanes", "version", "up for", ""),
        row,
        none="No worker is running; start one with `tweezer worker --device EMU_FREE`.",
        as_json=as_json,
    )


_LOOK_S = 0.5

_pass_device = click.decorators.pass_meta_key("device")


@click.group()
@click.argument("device")
@click.pass_context
def maintenance(context: click.Context, device: str) -> None:
    """Plan maintenance of a device.

    The device starts no jobs during a maintenance window. Before the window, it starts no batch that would not end in
    time.

    \b
    tweezer maintenance FRESNEL add --from 2027-01-31T08:00 \\
        --to 2027-01-31T12:00 --reason "new lens"
    tweezer maintenance FRESNEL list
    tweezer maintenance FRESNEL remove 5f3a90c1
    """
    context.meta["device"] = device


@maintenance.command()
@click.option(
    "--from",
    "begins",
    type=parse_time,
    required=True,
    metavar="TIME",
    help="Start, such as 2027-01-31T08:00 (your time zone).",
)
@click.option("--to", "ends", type=parse_time, required=True, metavar="TIME", help="End, in the future.")
@click.option("--reason", required=True, help="Reason, shown to users whose jobs are waiting.")
@_pass_device
@pass_options
def add(options: Options, device: str, /, *, begins: datetime, ends: datetime, reason: str) -> None:
    """Plan a maintenance window and print its id."""
    window = options.run(on_device(device, lambda queue: queue.plan_maintenance(device, begins, ends, reason)))
    click.echo(window.id)
    if sys.stdout.isatty():
        show.echo(f"Planned maintenance of {device} from {clock(window.begins)} to {clock(window.ends)}.", err=True)


@maintenance.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@_pass_device
@pass_options
def list_windows(options: Options, device: str, /, *, as_json: bool) -> None:
    """List the current and planned maintenance windows."""

    print_list(
        options.run(on_device(device, lambda queue: queue.maintenance(device))),
        ("id", "from", "to", "reason"),
        lambda it: (it.id, clock(it.begins), clock(it.ends), it.reason),
        none=f"No maintenance of {device} is planned.",
        as_json=as_json,
    )


@maintenance.command()
@click.argument("window", metavar="ID")
@_pass_device
@pass_options
def remove(options: Options, device: str, /, *, window: str) -> None:
    """Remove a planned maintenance window, or end a current one now."""
    options.run(on_device(device, lambda queue: queue.drop_maintenance(device, window)))
    show.echo(f"Removed maintenance {window} of {device}.")


@click.command()
@click.argument("device")
@click.option("--reason", default="draining", help="Reason, shown to users whose jobs are waiting.", show_default=True)
@pass_options
def drain(options: Options, *, device: str, reason: str) -> None:
    """Pause a device and wait until its jobs have ended.

    Ctrl-C stops waiting, but the device stays paused.
    """

    async def wait(queue: AsyncQueue) -> None:
        found = await find_device(queue, device)
        if found.paused is None or found.paused_until is not None:  # a pause with an end would resume by itself
            await queue.pause_device(device, reason if found.paused is None else found.paused)
        show.echo(f"{device} is paused; waiting for its running jobs to end", err=True)
        shown = None
        while running := (await find_device(queue, device)).running:
            if running != shown:
                show.echo(f"{running} {'job is' if running == 1 else 'jobs are'} running", err=True)
                shown = running
            await asyncio.sleep(_LOOK_S)

    try:
        options.run(wait, patient=True)
    except KeyboardInterrupt:
        show.echo(f"{device} stays paused; `tweezer resume {device}` puts it back to work.", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    show.echo(f"{device} is drained; `tweezer resume {device}` puts it back to work.")


async def find_device(queue: AsyncQueue, name: str) -> DeviceRecord:
    """Return the device. Raises NotFound, with the name that may have been meant."""
    found = await queue.device(check_text("device", name, MAX_DEVICE_LENGTH))
    if found is None:
        raise NotFound("device", f"{name}{suggest_name(name, [it.name for it in await queue.devices()])}")
    return found


def on_device(name: str, act: Callable[[AsyncQueue], Awaitable[T]]) -> Callable[[AsyncQueue], Awaitable[T]]:
    """Return the action, preceded by :func:`find_device`."""

    async def checked(queue: AsyncQueue) -> T:
        await find_device(queue, name)
        return await act(queue)

    return checked
