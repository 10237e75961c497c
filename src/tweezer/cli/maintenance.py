"""Commands for taking a device out of use: planned maintenance, and draining it."""

from __future__ import annotations

import asyncio
from datetime import datetime

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.access import Access, pass_access
from tweezer.cli.times import clock, time
from tweezer.client import AsyncQueue
from tweezer.model.errors import NotFound
from tweezer.model.windows import Window
from tweezer.store.records import DeviceRecord

_LOOK_S = 0.5


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
    "--from", "begins", type=time, required=True, metavar="TIME", help="Such as 2027-01-31T08:00 (your time)."
)
@click.option("--to", "ends", type=time, required=True, metavar="TIME")
@click.option("--reason", required=True, help="It is shown to all who wait.")
@click.pass_context
@pass_access
def add(access: Access, context: click.Context, /, *, begins: datetime, ends: datetime, reason: str) -> None:
    """Plan maintenance; prints its id."""
    device = context.meta["device"]

    async def run() -> Window:
        async with access.queue() as queue:
            return await queue.plan_maintenance(device, begins, ends, reason)

    click.echo(asyncio.run(run()).id)


@maintenance.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@click.pass_context
@pass_access
def list_windows(access: Access, context: click.Context, /, *, as_json: bool) -> None:
    """List what is planned or under way."""
    device = context.meta["device"]

    async def run() -> list[Window]:
        async with access.queue() as queue:
            await _device(queue, device)
            return await queue.maintenance(device)

    found = asyncio.run(run())
    if as_json:
        click.echo(msgspec.json.encode(found))
    elif not found:
        show.echo(f"No maintenance of {device} is planned.")
    else:
        rows = [(it.id, clock(it.begins), clock(it.ends), it.reason) for it in found]
        show.echo("\n".join(show.table(("id", "from", "to", "reason"), rows)))


@maintenance.command()
@click.argument("window", metavar="ID")
@click.pass_context
@pass_access
def remove(access: Access, context: click.Context, /, *, window: str) -> None:
    """Take planned maintenance back, or end it now."""
    device = context.meta["device"]

    async def run() -> None:
        async with access.queue() as queue:
            await queue.drop_maintenance(device, window)

    asyncio.run(run())
    show.echo(f"maintenance {window} of {device} is removed")


@click.command()
@click.argument("device")
@click.option("--reason", default="draining", help="Why, for all who wait.", show_default=True)
@pass_access
def drain(access: Access, *, device: str, reason: str) -> None:
    """Pause a device and wait until nothing runs on it any more. Ctrl-C ends the waiting; the device stays paused."""

    async def run() -> None:
        async with access.queue(patient=True) as queue:
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
        asyncio.run(run())
    except KeyboardInterrupt:
        show.echo(f"{device} stays paused; `tweezer resume {device}` lets it go on", err=True)
        raise
    show.echo(f"nothing runs on {device}; `tweezer resume {device}` lets it go on")


async def _device(queue: AsyncQueue, name: str) -> DeviceRecord:
    found = await queue.ask(lambda: queue.store.reader.device(name))
    if found is None:
        raise NotFound("device", name)
    return found
