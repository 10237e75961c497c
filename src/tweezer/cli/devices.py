"""Commands on devices and workers: list them, plan maintenance, drain."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import click

from tweezer.cli import show
from tweezer.cli.options import Options, clock, parse_time, pass_options, print_list
from tweezer.cli.status import availability
from tweezer.client import AsyncQueue
from tweezer.model.errors import NotFound
from tweezer.model.windows import Window
from tweezer.store.records import DeviceRecord, WorkerRecord


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@pass_options
def devices(options: Options, *, as_json: bool) -> None:
    """List the devices that workers have announced."""
    now = datetime.now(UTC)
    print_list(
        options.run(lambda queue: queue.devices()),
        ("device", "adapter", "name in its specs", "atoms", "lanes", "pending", "running", "status"),
        lambda it: (it.name, it.adapter, *_limits(it), it.lanes, it.pending, it.running, availability(it, now)),
        none="No worker has announced a device yet; start one with `tweezer worker --device EMU_FREE`.",
        as_json=as_json,
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@pass_options
def workers(options: Options, *, as_json: bool) -> None:
    """List the live workers of all devices."""

    def row(it: WorkerRecord) -> tuple[object, ...]:
        up_s, state = (datetime.now(UTC) - it.started).total_seconds(), "draining" if it.draining else ""
        return it.id, it.device, f"{it.busy}/{it.lanes} busy", it.version, show.duration(up_s), state

    print_list(
        options.run(lambda queue: queue.workers()),
        ("worker", "device", "lanes", "version", "up for", ""),
        row,
        none="No worker lives; start one with `tweezer worker --device EMU_FREE`.",
        as_json=as_json,
    )


def _limits(device: DeviceRecord) -> tuple[str, str]:
    """Return the name that sequences for it carry, and how many atoms they may have."""
    if device.specs_name is None:
        return "none", ""
    return device.specs_name, "any" if device.max_atom_num is None else f"≤ {device.max_atom_num}"


_LOOK_S = 0.5

_pass_device = click.decorators.pass_meta_key("device")


@click.group()
@click.argument("device")
@click.pass_context
def maintenance(context: click.Context, device: str) -> None:
    """Plan when a device is not to be used: nothing is begun then, nor before what would not end in time.

    \b
    tweezer maintenance FRESNEL add --from 2027-01-31T08:00 --to 2027-01-31T12:00 --reason "new lens"
    tweezer maintenance FRESNEL list
    tweezer maintenance FRESNEL remove 5f3a90c1
    """
    context.meta["device"] = device


@maintenance.command()
@click.option(
    "--from", "begins", type=parse_time, required=True, metavar="TIME", help="Such as 2027-01-31T08:00 (your time)."
)
@click.option("--to", "ends", type=parse_time, required=True, metavar="TIME")
@click.option("--reason", required=True, help="It is shown to all who wait.")
@_pass_device
@pass_options
def add(options: Options, device: str, /, *, begins: datetime, ends: datetime, reason: str) -> None:
    """Plan maintenance; prints its id."""
    click.echo(options.run(lambda queue: queue.plan_maintenance(device, begins, ends, reason)).id)


@maintenance.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@_pass_device
@pass_options
def list_windows(options: Options, device: str, /, *, as_json: bool) -> None:
    """List what is planned or under way."""

    async def find(queue: AsyncQueue) -> list[Window]:
        await _device(queue, device)
        return await queue.maintenance(device)

    print_list(
        options.run(find),
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
    """Take planned maintenance back, or end it now."""
    options.run(lambda queue: queue.drop_maintenance(device, window))
    show.echo(f"maintenance {window} of {device} is removed")


@click.command()
@click.argument("device")
@click.option("--reason", default="draining", help="Why, for all who wait.", show_default=True)
@pass_options
def drain(options: Options, *, device: str, reason: str) -> None:
    """Pause a device and wait until nothing runs on it any more. Ctrl-C ends the waiting; the device stays paused."""

    async def wait(queue: AsyncQueue) -> None:
        found = await _device(queue, device)
        if found.paused is None or found.paused_until is not None:  # a pause that ends lets it go on by itself
            await queue.pause_device(device, reason if found.paused is None else found.paused)
        show.echo(f"{device} is paused; waiting until nothing runs", err=True)
        said = None
        while running := (await _device(queue, device)).running:
            if running != said:
                show.echo(f"{running} {'job runs' if running == 1 else 'jobs run'}", err=True)
                said = running
            await asyncio.sleep(_LOOK_S)

    try:
        options.run(wait, patient=True)
    except KeyboardInterrupt:
        show.echo(f"{device} stays paused; `tweezer resume {device}` lets it go on", err=True)
        raise
    show.echo(f"nothing runs on {device}; `tweezer resume {device}` lets it go on")


async def _device(queue: AsyncQueue, name: str) -> DeviceRecord:
    found = await queue.ask(lambda: queue.store.reader.device(name))
    if found is None:
        raise NotFound("device", name)
    return found
