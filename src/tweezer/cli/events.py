"""``tweezer events`` and ``attempts``: the events of a batch or of a project, and the executions of a job."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from functools import partial
from uuid import UUID

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.options import Options, pass_options, print_json, split_job
from tweezer.cli.status import check_number
from tweezer.client import AsyncBatch, AsyncQueue
from tweezer.model.attempts import JobAttempt
from tweezer.model.ids import short_id
from tweezer.model.summaries import format_duration
from tweezer.model.webhooks import EventMessage, EventType, describe_event

_HOLD_S = 20.0
_PENDING = "job.pending"  # a running job that became pending again; no receiver gets it
_TYPES = (*(it.value for it in EventType), _PENDING)


@click.command()
@click.argument("of", required=False, metavar="[BATCH[/JOB]]")
@click.option("--after", metavar="ID", help="Start after this event, or at `now`  [default: from the beginning].")
@click.option("--follow", is_flag=True, help="Wait for new events; with BATCH, until the batch ends.")
@click.option(
    "--type",
    "types",
    multiple=True,
    type=click.Choice(_TYPES),
    metavar="TYPE",
    help="Show only events of this type, such as job.done; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, as in the API.")
@pass_options
def events(
    options: Options, *, of: str | None, after: str | None, follow: bool, types: tuple[str, ...], as_json: bool
) -> None:
    """Show the events of a batch or a job; without BATCH, those of the project (requires the ledger).

    The events of a job name the worker and lane of each attempt, and why it had to wait again (job.pending).
    """
    wanted = frozenset(types or _TYPES)

    async def print_all(found: AsyncIterator[EventMessage], index: int | None = None) -> None:
        async with aclosing(found) as each:  # type: ignore[type-var]
            async for event in each:
                if event.type in wanted and (index is None or event.data.get("index") == index):
                    text = msgspec.json.encode(event).decode() if as_json else _line(event, names_job=index is None)
                    show.echo(text)

    async def run(queue: AsyncQueue) -> None:
        if of is None:
            await print_all(_project_events(queue, after, follow=follow))
            return
        named, index = split_job(of)
        batch = await queue.find(named)
        record = await batch.record()
        if index is not None:
            check_number(record, index)
        await print_all(_batch_events(batch, record.project, after, follow=follow), index)

    options.run(run, patient=follow)


async def _batch_events(
    batch: AsyncBatch, project: str, after: str | None, *, follow: bool
) -> AsyncIterator[EventMessage]:
    async with aclosing(batch.events(after, follow=follow)) as found:  # type: ignore[type-var]
        async for event in found:
            yield describe_event(event, project)


async def _project_events(queue: AsyncQueue, after: str | None, *, follow: bool) -> AsyncIterator[EventMessage]:
    while True:
        page = await queue.ask(partial(queue.transport.feed, after, _HOLD_S if follow else 0.0))
        for event in page.events:
            yield event
        if not (page.more or follow):
            return
        after = page.next


def _line(event: EventMessage, *, names_job: bool) -> str:
    """Format an event: ``2026-11-22 11:00:02.120 CET  job.done  5m2q0xw8kd/3  RUNNING -> DONE``."""
    moment = datetime.fromisoformat(event.timestamp).astimezone()
    data = event.data
    clock = f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03} {moment:%Z}"
    words = [clock, f"{event.type:<{17 if names_job else 12}}"]
    if "batch_id" not in data:
        return "  ".join([*words, " ".join(f"{name}={value}" for name, value in data.items() if value is not None)])
    if names_job:
        words.append(short_id(UUID(data["batch_id"])) + (f"/{data['index']}" if "index" in data else ""))
    before = data["previous_status"]
    words.append(f"{data['status']}" if before is None else f"{before} -> {data['status']}")
    if event.type in (EventType.JOB_RUNNING, _PENDING) and "worker" in data:
        held_by = f"{data['worker']}, lane {data['lane']}"
        words.append(f"on {held_by}" if event.type == EventType.JOB_RUNNING else f"back from {held_by}")
    if "reason" in data:
        words[-1] += f": {data['reason']}"
    if "error" in data:
        words[-1] += f" ({data['error']})"
    return "  ".join(words)


@click.command()
@click.argument("job", metavar="BATCH[/JOB]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@pass_options
def attempts(options: Options, *, job: str, as_json: bool) -> None:
    """Show each execution of a job: where it ran, from when to when, and how it ended.

    Without a number it is job 0 of the batch. A job on a QPU or on another server that another worker continued is one
    attempt.
    """
    named, index = split_job(job)

    async def run(queue: AsyncQueue) -> None:
        batch = await queue.find(named)
        found = await queue.attempts(f"{batch.id}/{index or 0}")
        if as_json:
            print_json([_as_json(attempt) for attempt in found])
        elif found:
            show.print_table(("attempt", "began", "ran", "worker", "lane", "outcome"), list(map(_cells, found)))
        else:
            show.echo("The job has not begun.", err=True)

    options.run(run)


def _cells(attempt: JobAttempt) -> tuple[object, ...]:
    """Return the cells of an attempt."""
    outcome = attempt.outcome or "running"
    why = "; ".join(filter(None, (attempt.reason, str(attempt.fault or ""))))
    return (
        attempt.number,
        "" if attempt.started is None else show.second(attempt.started),
        "" if attempt.duration_s is None else format_duration(attempt.duration_s),
        attempt.worker or "",
        "" if attempt.lane is None else attempt.lane,
        f"{outcome}: {why}" if why else str(outcome),
    )


def _as_json(attempt: JobAttempt) -> dict[str, object]:
    return msgspec.structs.asdict(attempt) | {"reason": attempt.reason, "duration_s": attempt.duration_s}
