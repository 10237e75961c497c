"""Commands for who runs the queue: devices, workers, doctor."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.access import Access, pass_access
from tweezer.cli.doctor import examine
from tweezer.cli.findings import tell
from tweezer.cli.waiting import availability
from tweezer.store.records import DeviceRecord, WorkerRecord


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@pass_access
def devices(access: Access, *, as_json: bool) -> None:
    """List the devices that workers have announced."""

    async def run() -> list[DeviceRecord]:
        async with access.queue() as queue:
            return await queue.devices()

    found = asyncio.run(run())
    if as_json:
        click.echo(msgspec.json.encode(found))
    elif not found:
        show.echo("No worker has announced a device yet; start one with `tweezer worker --device EMU_FREE`.")
    else:
        heads = ("device", "adapter", "name in its specs", "atoms", "lanes", "pending", "running", "status")
        now = datetime.now(UTC)
        rows = [
            (it.name, it.adapter, *_limits(it), it.lanes, it.pending, it.running, availability(it, now)) for it in found
        ]
        show.echo("\n".join(show.table(heads, rows)))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@pass_access
def workers(access: Access, *, as_json: bool) -> None:
    """List the live workers of all devices."""

    async def run() -> list[WorkerRecord]:
        async with access.queue() as queue:
            return await queue.workers()

    found = asyncio.run(run())
    if as_json:
        click.echo(msgspec.json.encode(found))
    elif not found:
        show.echo("No worker lives; start one with `tweezer worker --device EMU_FREE`.")
    else:
        now = datetime.now(UTC)
        rows = [
            (
                it.id,
                it.device,
                f"{it.busy}/{it.lanes} busy",
                it.version,
                show.duration((now - it.started).total_seconds()),
                "draining" if it.draining else "",
            )
            for it in found
        ]
        show.echo("\n".join(show.table(("worker", "device", "lanes", "version", "up for", ""), rows)))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@click.pass_context
@pass_access
def doctor(access: Access, context: click.Context, /, *, as_json: bool) -> None:
    """Check Redis, the ledger, the processes and the settings; say what each finding means and what to change.

    The exit code is 1 when something FAILs.
    """
    tell(context, asyncio.run(examine(access)), as_json=as_json)


def _limits(device: DeviceRecord) -> tuple[str, str]:
    """The name that sequences for it carry, and how many atoms they may have."""
    if device.specs_name is None:
        return "none", ""
    return device.specs_name, "any" if device.max_atom_num is None else f"≤ {device.max_atom_num}"
