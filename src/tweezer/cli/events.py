"""``tweezer events``: the events of a batch or of a project, one per line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.options import Options, pass_options
from tweezer.client import AsyncQueue
from tweezer.model.webhooks import EventMessage, EventType, describe_event
from tweezer.store.streams.tail import Tail

if TYPE_CHECKING:
    from tweezer.ledger.queries.feed import Feed


@click.command()
@click.argument("batch", required=False)
@click.option("--after", metavar="ID", help="Start after this event, or at `now`  [default: from the beginning].")
@click.option("--follow", is_flag=True, help="Wait for new events; with BATCH, until the batch ends.")
@click.option(
    "--type",
    "types",
    multiple=True,
    type=click.Choice([it.value for it in EventType]),
    metavar="TYPE",
    help="Show only events of this type, such as job.done; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, as in the API.")
@pass_options
def events(
    options: Options, *, batch: str | None, after: str | None, follow: bool, types: tuple[str, ...], as_json: bool
) -> None:
    """Show the events of BATCH; without BATCH, those of the project (requires the ledger)."""
    wanted = frozenset(types or EventType)

    async def print_all(found: AsyncIterator[EventMessage]) -> None:
        async with aclosing(found) as each:  # type: ignore[type-var]
            async for event in each:
                if event.type in wanted:
                    show.echo(msgspec.json.encode(event).decode() if as_json else _line(event))

    async def run() -> None:
        if batch is not None:
            async with options.queue(patient=follow) as queue:
                await print_all(_batch_events(queue, batch, after, follow=follow))
            return
        with options.ledger() as database:
            from tweezer.ledger.queries.feed import Feed

            async with options.queue(patient=follow) as queue:
                feed = Feed(queue.store, database, namespace=options.settings().namespace)
                await print_all(_project_events(queue, feed, after, follow=follow))

    asyncio.run(run())


async def _batch_events(
    queue: AsyncQueue, batch: str, after: str | None, *, follow: bool
) -> AsyncIterator[EventMessage]:
    async with aclosing(queue.batch(batch).events(after, follow=follow)) as found:  # type: ignore[type-var]
        async for event in found:
            yield describe_event(event, queue.project)


async def _project_events(
    queue: AsyncQueue, feed: Feed, after: str | None, *, follow: bool
) -> AsyncIterator[EventMessage]:
    from tweezer.ledger.queries.feed import Selection

    tail = Tail(queue.store.scripts)
    selection = Selection(frozenset({queue.project}))
    cursor = await queue.ask(lambda: feed.cursor(after, selection))
    try:
        async with tail.listen(projects=selection.projects) as channel:
            while True:
                place = cursor
                page = await queue.ask(lambda: feed.read(selection, place, limit=1000))  # noqa: B023  awaited at once
                for event in page.events:
                    yield event
                cursor = page.next
                if not page.more:
                    if not follow:
                        return
                    await channel.next(None)
    finally:
        await tail.close()


def _line(event: EventMessage) -> str:
    """Format an event: ``2026-11-22 10:00:02.120  job.done  0199f3a2-… job 3  RUNNING -> DONE``."""
    moment = datetime.fromisoformat(event.timestamp).astimezone()
    data = event.data
    words = [f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03}", f"{event.type:<17}"]
    if "batch_id" not in data:
        return "  ".join([*words, " ".join(f"{name}={value}" for name, value in data.items() if value is not None)])
    words.append(f"{data['batch_id']}" + (f" job {data['index']}" if "index" in data else ""))
    before = data["previous_status"]
    words.append(f"{data['status']}" if before is None else f"{before} -> {data['status']}")
    return "  ".join(words)
