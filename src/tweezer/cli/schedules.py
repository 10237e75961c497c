"""``tweezer schedules``: create and control schedules, which submit a batch at certain times."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO

import click

from tweezer.cli import show
from tweezer.cli.batches import naming_options, read_batch, read_text, submit
from tweezer.cli.options import (
    Options,
    clock,
    json_option,
    parse_duration,
    pass_options,
    print_json,
    print_list,
    print_result,
    yes_option,
)
from tweezer.client import AsyncQueue
from tweezer.ledger.schedules.records import (
    GRACE_S,
    Missed,
    Overlap,
    Schedule,
    ScheduleStatus,
    ScheduleTick,
    TickOutcome,
)
from tweezer.model.ids import short_id
from tweezer.model.summaries import format_count

_OF_ONE_BATCH = frozenset({"name", "start_at", "not_before", "idempotency_key", "dry_run", "wait"})
"""Options of `tweezer submit` that a schedule does not have."""

_schedule = click.argument("schedule", metavar="SCHEDULE")
_by = click.option("--by", metavar="NAME", help="Name to record  [default: user@host].")


@click.group()
def schedules() -> None:
    """Submit a batch at certain times, such as every night.

    SCHEDULE is the name or the id of a schedule. `tweezer scheduler` must run; it submits the batches.
    """


@schedules.command(name="create")
@click.argument("name")
@click.option("--cron", metavar="EXPRESSION", help="Minute, hour, day of month, month, day of week: '30 2 * * *'.")
@click.option("--time-zone", default="UTC", show_default=True, metavar="ZONE", help="Time zone of --cron.")
@click.option("--every", "every_s", type=parse_duration, metavar="DURATION", help="Interval instead of --cron: 6h.")
@click.option(
    "--overlap",
    type=click.Choice([it.value for it in Overlap]),
    default=Overlap.SKIP.value,
    show_default=True,
    help="While the last batch has not ended: skip the tick, or queue another batch.",
)
@click.option(
    "--missed",
    type=click.Choice([it.value for it in Missed]),
    default=Missed.RUN_ONCE.value,
    show_default=True,
    help="After a time without a scheduler: run one batch for the last tick, or skip it.",
)
@click.option(
    "--grace",
    "grace_s",
    type=parse_duration,
    default=f"{GRACE_S}s",
    show_default=True,
    metavar="DURATION",
    help="How late a tick may be before --missed=skip skips it.",
)
@json_option
@pass_options
def create(
    options: Options,
    *,
    name: str,
    sequence_file: BinaryIO,
    cron: str | None,
    time_zone: str,
    every_s: int | None,
    overlap: str,
    missed: str,
    grace_s: int,
    stays_open: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Create the schedule NAME, which submits the same batch at each of its ticks.

    The other options describe the batch, as those of `tweezer submit`.

    \b
    tweezer schedules create nightly ring.json --runs 500 \\
        --cron "30 2 * * *" --time-zone Europe/Paris
    tweezer schedules create probe ring.json --runs 100 --every 6h
    """
    sequence = read_text(sequence_file)
    jobs, batch = read_batch(chosen)
    batch |= {"name": name, "open": stays_open}

    async def run(queue: AsyncQueue) -> Schedule:
        with naming_options():
            return await queue.create_schedule(
                name,
                sequence,
                jobs,
                cron=cron,
                time_zone=time_zone,
                every_s=every_s,
                overlap=overlap,
                missed=missed,
                grace_s=grace_s,
                batch=batch,
            )

    found = options.run(run)
    print_result(found, f"Created {found.name} ({found.id}). {_describe_next(found)}", as_json=as_json)


create.params += [it for it in submit.params if it.name not in _OF_ONE_BATCH]


@schedules.command(name="list")
@json_option
@pass_options
def list_(options: Options, *, as_json: bool) -> None:
    """List the schedules of the project by name."""
    found = options.run(lambda queue: queue.schedules())
    print_list(
        found,
        ("name", "runs", "status", "next", "last"),
        _row,
        none="No schedules; create one with `tweezer schedules create`.",
        as_json=as_json,
    )


@schedules.command(name="show")
@_schedule
@json_option
@pass_options
def show_(options: Options, *, schedule: str, as_json: bool) -> None:
    """Show a schedule and its last ticks."""
    found = options.run(lambda queue: queue.schedule(schedule))
    if as_json:
        print_json(found)
        return
    template = found.template or {}
    device = template.get("device_type") or "the device of its sequence"
    rows: list[tuple[str, object]] = [
        ("id", found.id),
        ("project", found.project_id),
        ("runs", found.describe_timing()),
        ("status", f"{found.status.value} since {clock(found.status_since)}, by {found.changed_by}"),
        ("reason", found.reason),
        ("next", found.next_at and clock(found.next_at)),
        ("overlap", found.overlap.value),
        ("missed", f"{found.missed.value}, grace {found.grace_s} s"),
        (
            "batch",
            f"{format_count(len(template.get('jobs', ())), 'job')} on {device}",
        ),
        ("created", f"{clock(found.created_at)} by {found.created_by}"),
    ]
    show.echo(f"Schedule {found.name}")
    for line in show.fields(rows):
        show.echo(line)
    if found.ticks:
        show.print_table(("tick", "outcome", "batch", ""), [_tick_row(tick) for tick in found.ticks])
    else:
        show.echo("No ticks yet.")


@schedules.command(name="pause")
@_schedule
@click.option("--reason", default="", help="Why, for people.")
@_by
@json_option
@pass_options
def pause(options: Options, *, schedule: str, reason: str, by: str | None, as_json: bool) -> None:
    """Pause a schedule: it submits no batches until it is resumed."""
    _change(options, lambda queue: queue.pause_schedule(schedule, reason, by=by), as_json=as_json)


@schedules.command(name="resume")
@_schedule
@_by
@json_option
@pass_options
def resume(options: Options, *, schedule: str, by: str | None, as_json: bool) -> None:
    """Resume a paused or stopped schedule with its next tick."""
    _change(options, lambda queue: queue.resume_schedule(schedule, by=by), as_json=as_json)


@schedules.command(name="run")
@_schedule
@click.option("--idempotency-key", metavar="KEY", help="Calls with the same key submit one batch.")
@_by
@pass_options
def run(options: Options, *, schedule: str, idempotency_key: str | None, by: str | None) -> None:
    """Submit the batch of a schedule now, and print its id. Its ticks do not change."""

    async def act(queue: AsyncQueue) -> str:
        return str((await queue.run_schedule(schedule, idempotency_key=idempotency_key, by=by)).id)

    click.echo(options.run(act))


@schedules.command(name="delete")
@_schedule
@yes_option
@pass_options
def delete(options: Options, *, schedule: str, yes: bool) -> None:
    """Permanently delete a schedule. Its batches stay."""
    found = options.run(lambda queue: queue.schedule(schedule))
    if not yes:
        show.confirm(f"Permanently delete the schedule {found.name} ({found.id})?")
    options.run(lambda queue: queue.delete_schedule(found.id))
    show.echo(f"Deleted {found.name}.")


def _change(options: Options, act: Callable[[AsyncQueue], Awaitable[Schedule]], *, as_json: bool) -> None:
    found = options.run(act)
    print_result(found, f"{found.name} is {found.status.value}. {_describe_next(found)}", as_json=as_json)


def _describe_next(schedule: Schedule) -> str:
    if schedule.next_at is not None:
        return f"Next tick: {clock(schedule.next_at)}."
    if schedule.status is ScheduleStatus.STOPPED:
        return f"It was stopped: {schedule.reason}."
    return "It has no ticks until `tweezer schedules resume`."


def _row(schedule: Schedule) -> tuple[object, ...]:
    last = "" if schedule.last is None else f"{schedule.last.outcome.value} {clock(schedule.last.tick_at)}"
    next_tick = "" if schedule.next_at is None else clock(schedule.next_at)
    return schedule.name, schedule.describe_timing(), schedule.status.value, next_tick, last


def _tick_row(tick: ScheduleTick) -> tuple[object, ...]:
    notes = [
        "on request" if tick.manual else "",
        f"{tick.missed} earlier ticks missed" if tick.missed else "",
        tick.message or "" if tick.outcome is not TickOutcome.SUBMITTED else "",
    ]
    batch = "" if tick.batch_id is None else short_id(tick.batch_id)
    return clock(tick.tick_at), tick.outcome.value, batch, "; ".join(filter(None, notes))
