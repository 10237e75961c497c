"""``tweezer batches`` and ``tweezer jobs``: lists of the batches of a project, and of the jobs of a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from tweezer.cli import show
from tweezer.cli.options import Options, parse_duration, parse_time, pass_options, print_json
from tweezer.cli.status import batch_as_json, job_as_json, job_table
from tweezer.client import AsyncQueue
from tweezer.ledger.queries.filters import JobFilter
from tweezer.model.ids import short_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.summaries import cut
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord
from tweezer.transports.protocol import Transport

_BATCHES, _JOBS = 20, 100
_PAGE = 500  # jobs per read


def parse_moment(text: str) -> datetime:
    """Parse a time, or a duration such as ``2h`` before now."""
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except click.BadParameter:
        pass
    try:
        return parse_time(text)
    except click.BadParameter as error:
        raise click.BadParameter(f"{error.message}, or a duration before now such as 2h") from None


_since = click.option(
    "--since", type=parse_moment, metavar="TIME", help="Submitted then or later: a time, or a duration ago such as 2h."
)
_until = click.option("--until", type=parse_moment, metavar="TIME", help="Submitted then or earlier.")
_json = click.option("--json", "as_json", is_flag=True, help="Print a JSON list, with full ids.")


def _limit(most: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--limit", type=click.IntRange(min=1), default=most, show_default=True, help="The most rows to show."
    )


def filter_options(statuses: Sequence[BatchStatus]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the options that select batches. statuses: those that may be named."""
    options = (
        click.option(
            "--status",
            type=click.Choice(statuses, case_sensitive=False),
            multiple=True,
            help="Status of the batch; may be repeated, for any of them.",
        ),
        click.option("--device", multiple=True, help="Device of the batch; may be repeated, for any of them."),
        click.option("--tag", multiple=True, help="Tag of the batch; may be repeated, for all of them."),
        click.option("--name", multiple=True, help="Name of the batch; may be repeated, for any of them."),
        click.option("--user", multiple=True, help="User whose key submitted it; may be repeated."),
        _since,
        _until,
    )
    return lambda command: functools.reduce(lambda found, option: option(found), reversed(options), command)


@click.command()
@filter_options(list(BatchStatus))
@click.option("--depends-on", multiple=True, metavar="BATCH", help="Batch that it depends on; may be repeated.")
@_limit(_BATCHES)
@_json
@pass_options
def batches(options: Options, /, *, limit: int, as_json: bool, **wanted: Any) -> None:
    """List the batches of the project, newest first.

    Every command takes the short ids in the list, and also the name of a batch and @last.

    \b
    tweezer batches --status running --status pending
    tweezer batches --tag sweep --since 2h
    """

    async def read(queue: AsyncQueue) -> tuple[list[BatchRecord], dict[str, DeviceRecord], Transport]:
        found: list[BatchRecord] = []
        async with aclosing(queue.batches(**wanted)) as listed:  # type: ignore[type-var]
            async for _, record in listed:
                found.append(record)
                if len(found) > limit:
                    break
        may_any_wait = as_json and any(record.may_wait for record in found)
        devices = {device.name: device for device in await queue.devices()} if may_any_wait else {}
        return found, devices, queue.transport

    found, devices, transport = options.run(read)
    if as_json:
        print_json([batch_as_json(record, devices.get(record.device)) for record in found[:limit]])
    elif found:
        show.echo("\n".join(batch_table(found[:limit], datetime.now(UTC))))
    else:
        project = " ".join(filter(None, ("project", transport.project)))
        show.echo("no batch matches" if any(wanted.values()) else f"{project} has no batches yet")
    if len(found) > limit:
        show.echo(f"There are more: these are the newest {limit}; see --limit.", err=True)
    if not transport.has_history:
        show.echo("Only batches that Redis still has are listed: no ledger is configured here.", err=True)


@click.command()
@click.argument("batch")
@click.option(
    "--status",
    type=click.Choice(list(JobStatus), case_sensitive=False),
    multiple=True,
    help="Status of the job; may be repeated, for any of them.",
)
@_since
@_until
@_limit(_JOBS)
@_json
@pass_options
def jobs(
    options: Options,
    *,
    batch: str,
    status: tuple[JobStatus, ...],
    since: datetime | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the jobs of a batch, in the order of their numbers."""
    wanted = JobFilter(statuses=tuple(map(JobStatus, status)), created_from=since, created_to=until)

    async def read(queue: AsyncQueue) -> list[JobRecord]:
        handle, found = await queue.find(batch), list[JobRecord]()
        record = await handle.record()
        for first in range(0, record.jobs, _PAGE):
            page = range(first, min(first + _PAGE, record.jobs))
            found += filter(wanted.takes, await handle.jobs_at(record, page))
            if len(found) > limit:
                break
        return found

    found = options.run(read)
    if as_json:
        print_json([job_as_json(job) for job in found[:limit]])
    elif found:
        table = job_table(found[:limit], reasons=True, name=lambda job: f"{short_id(job.batch_id)}/{job.index}")
        show.echo("\n".join(table))
    else:
        show.echo("no job matches" if wanted != JobFilter() else "the batch has no jobs yet")
    if len(found) > limit:
        show.echo(f"There are more: these are the first {limit}; see --limit.", err=True)


_NAME_MIN = 8
_RECENT = timedelta(days=300)


def batch_table(found: list[BatchRecord], now: datetime) -> list[str]:
    """Return a table of batches; with a column for start times, if any are in the future."""
    starts = any(_starts(record, now) for record in found)
    header = ["batch", "status", "jobs", "device", "submitted", *(["starts"] if starts else []), "name"]
    rows = []
    for record in found:
        ended = sum(count for status, count in record.counts.items() if status.terminal)
        row = [short_id(record.id), show.status(record.status), f"{ended}/{record.jobs}", record.device]
        rows.append([*row, _when(record.created, now), *([_starts(record, now)] if starts else [])])
    room = show.width() - len(show.unstyle(show.table(header, [[*row, ""] for row in rows])[0]))
    room = max(room + len(header[-1]), _NAME_MIN)
    names = [cut(record.doc.name or "", room) for record in found]
    return show.table(header, [[*row, name] for row, name in zip(rows, names, strict=True)])


def _starts(record: BatchRecord, now: datetime) -> str:
    if record.waits_for and not record.status.terminal:
        first, *others = record.waits_for
        return f"after {len(record.waits_for)} batches" if others else f"after {short_id(first)}"
    waits = record.started is None and not record.status.terminal
    return _when(record.not_before, now) if waits and record.not_before is not None and record.not_before > now else ""


def _when(moment: datetime, now: datetime) -> str:
    """Format a time in the local time zone in at most 11 characters: ``14:02``, ``11-22 14:02``, ``2025-11-22``."""
    here = moment.astimezone()
    if here.date() == now.astimezone().date():
        return f"{here:%H:%M}"
    return f"{here:%m-%d %H:%M}" if abs(now - moment) < _RECENT else f"{here:%Y-%m-%d}"
