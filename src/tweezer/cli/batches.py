"""The commands that submit and control batches."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, TextIO, cast
from uuid import UUID

import click

from tweezer.cli import show
from tweezer.cli.devices import on_device
from tweezer.cli.jobs import job_options, read_jobs
from tweezer.cli.matching import Matching, Words, matching_options
from tweezer.cli.options import Options, clock, parse_duration, parse_overlap, parse_time, pass_options, split_job
from tweezer.cli.status import Meter, describe_rules, explaining_interrupts, follow, must_be_done
from tweezer.client import AsyncBatch, AsyncQueue, SubmitOptions
from tweezer.ledger.repetition import UNSUCCESSFUL
from tweezer.model.checks import MAX_DEVICE_LENGTH, check_text
from tweezer.model.errors import InvalidInput, TweezerError
from tweezer.model.ids import read_short_id, short_id
from tweezer.model.lifecycle import TERMINAL_BATCH, BatchStatus
from tweezer.model.messages import Limits, Priority
from tweezer.model.rule_fields import Retries
from tweezer.model.rules import OnFailures, Rules, When
from tweezer.model.sequence import decode_text
from tweezer.model.summaries import format_count
from tweezer.model.windows import Unavailability, UnavailabilityKind
from tweezer.store.producers import CancelAnswer, CheckedSubmission

_ANSWERS = {
    CancelAnswer.CANCELED: "canceled",
    CancelAnswer.REQUESTED: "is being stopped",
    CancelAnswer.OVER: "had already ended",
    CancelAnswer.UNKNOWN: "is not in the batch",
}


@click.command()
@click.argument("sequence_file", type=click.File("rb"))
@job_options
@click.option("--device", help="Device to run on  [default: the one that the sequence was built for].")
@click.option(
    "--priority",
    type=click.Choice(list(Priority), case_sensitive=False),
    default=Priority.MEDIUM.value,
    help="Priority among the batches of all projects  [default: medium].",
)
@click.option("--tag", "tags", multiple=True, help="Tag to find the batch by; may be repeated.")
@click.option("--name", help="Name of the batch, for people.")
@click.option("--open", "stays_open", is_flag=True, help="Keep the batch open for `tweezer add`, until `close`.")
@click.option("--webhook", metavar="URL", help="URL that receives the events of the batch.")
@click.option(
    "--backend-configuration",
    type=click.File("rb"),
    metavar="FILE",
    help="File with Pulser's EmulationConfig.to_abstract_repr().",
)
@click.option(
    "--job-timeout-s", type=float, help=f"Seconds that one job may run  [default: {Limits().job_timeout_s:g}]."
)
@click.option(
    "--start-at",
    type=parse_time,
    metavar="TIME",
    help="Earliest start, such as 2027-01-31T08:00 (your time zone) or …+00:00.",
)
@click.option("--not-before", type=parse_time, metavar="TIME", hidden=True, help="Older name of --start-at.")
@click.option(
    "--schedule-threshold",
    "schedule_threshold_s",
    type=parse_duration,
    metavar="DURATION",
    help="Report the batch as late if it has not started so long after --start-at; it still runs.",
)
@click.option(
    "--queue-timeout",
    "queue_timeout_s",
    type=parse_duration,
    metavar="DURATION",
    help="End the batch in TIMED_OUT if it does not start in this time, such as 30min or 2h.",
)
@click.option(
    "--failure-threshold", type=int, metavar="N", help="Pause or cancel the batch when so many jobs have failed."
)
@click.option(
    "--on-failures",
    type=click.Choice([it.value for it in OnFailures], case_sensitive=False),
    help="What happens at --failure-threshold  [default: pause].",
)
@click.option(
    "--retries-per-job",
    type=int,
    metavar="N",
    help=f"Retries of one job after transient failures  [default: {Limits().transient_retries}].",
)
@click.option("--retries-total", type=int, metavar="N", help="Retries of all jobs together  [default: no limit].")
@click.option(
    "--depends-on",
    multiple=True,
    metavar="BATCH[:WHEN]",
    help="Wait until this batch is DONE; :ENDED accepts any end, :ERROR requires a failure. May be repeated.",
)
@click.option(
    "--keep",
    "keep_s",
    type=parse_overlap,
    metavar="DURATION",
    help="Archive the batch this long after its end, such as 12h or 0.",
)
@click.option("--idempotency-key", metavar="KEY", help="Calls with the same key within a day create one batch.")
@click.option("--dry-run", is_flag=True, help="Check everything, submit nothing, and show what the batch would be.")
@click.option("--wait", is_flag=True, help="Follow the batch to its end; exit code 1 unless all jobs are DONE.")
@pass_options
def submit(
    options: Options,
    /,
    *,
    sequence_file: BinaryIO,
    stays_open: bool,
    idempotency_key: str | None,
    dry_run: bool,
    wait: bool,
    **chosen: Any,
) -> None:
    """Submit a batch (a serialised Pulser sequence and jobs) and print its id on stdout.

    SEQUENCE_FILE holds the output of Sequence.to_abstract_repr(); - reads stdin.

    \b
    tweezer submit ring.json --runs 500 --var delta_final=20
    tweezer submit ring.json --job runs=500,delta_final=10 \\
        --job runs=100,delta_final=20
    tweezer submit ring.json --runs 500 --jobs sweep.jsonl --wait
    tweezer submit ring.json --runs 500 --depends-on calibration
    """
    if dry_run and wait:
        raise click.UsageError("give either --dry-run or --wait")
    sequence = read_text(sequence_file)
    jobs, given = read_batch(chosen)
    if not jobs and not stays_open:
        raise click.UsageError("no jobs given; use --runs and --var, --job or --jobs (or --open to add jobs later)")
    given |= {"open": stays_open, "idempotency_key": idempotency_key}

    async def run(queue: AsyncQueue) -> None:
        if dry_run:
            with naming_options():
                checked = await queue.check(sequence, jobs, **given)
            show.echo("\n".join(_describe_checked(checked)))
            return
        with naming_options():
            batch = await queue.submit(sequence, jobs, **given)
        submitted.append(batch.id)
        click.echo(short_id(batch.id) if sys.stdout.isatty() else str(batch.id))
        if wait:
            must_be_done(await follow(queue, batch.id, Meter(err=True)))
        elif sys.stdout.isatty():
            show.echo(
                f"Submitted {format_count(len(jobs), 'job')}. To follow them: tweezer watch {short_id(batch.id)}",
                err=True,
            )

    submitted: list[UUID] = []
    with explaining_interrupts(submitted):
        options.run(run, patient=wait)


def read_batch(chosen: dict[str, Any]) -> tuple[list[dict[str, Any]], SubmitOptions]:
    """Return the jobs and the options of a batch from the options of the command. Raises as :func:`read_jobs`."""
    jobs = read_jobs(*(chosen.pop(name) for name in ("flags", "runs", "variables", "lines")))
    configuration, job_timeout_s = chosen.pop("backend_configuration"), chosen.pop("job_timeout_s")
    given: dict[str, Any] = {
        "priority": Priority(chosen.pop("priority").upper()),
        "backend_configuration": None if configuration is None else read_text(configuration),
        "limits": None if job_timeout_s is None else Limits(job_timeout_s=job_timeout_s),
        "retries": Retries(chosen.pop("retries_per_job"), chosen.pop("retries_total")),
        "depends_on": [_split_dependency(text) for text in chosen.pop("depends_on")],
    }
    return jobs, cast(SubmitOptions, chosen | given)


_OPTION_NAMES = {
    "start_at": "--start-at",
    "not_before": "--not-before",
    "schedule_threshold_s": "--schedule-threshold",
    "queue_timeout_s": "--queue-timeout",
    "failure_threshold": "--failure-threshold",
    "on_failures": "--on-failures",
    "retries.per_job": "--retries-per-job",
    "retries.total": "--retries-total",
    "keep_s": "--keep",
}
_DEPENDENCY = re.compile(r"depends_on(\[\d+\])?(\.when)?")


@contextlib.contextmanager
def naming_options() -> Iterator[None]:
    """Name the option in an error about a field of the submit."""
    try:
        yield
    except InvalidInput as error:
        name = "--depends-on" if _DEPENDENCY.fullmatch(error.field) else _OPTION_NAMES.get(error.field, error.field)
        problem = re.sub(r"\b(start_at|failure_threshold)\b", lambda found: _OPTION_NAMES[found[0]], error.problem)
        raise InvalidInput(name, problem) from error


def _split_dependency(text: str) -> str | tuple[str, str]:
    """Split ``BATCH:ENDED``. A name may have a colon: only the words for the end of a batch are split off."""
    batch, colon, when = text.rpartition(":")
    return (batch, when) if colon and when.upper() in When.__members__ else text


def _describe_checked(checked: CheckedSubmission) -> list[str]:
    """Return lines about a batch that was checked and not submitted."""
    rules = checked.rules or Rules()
    rows = [
        ("device", checked.device),
        ("jobs", checked.jobs),
        ("priority", checked.priority.value),
        ("starts", checked.not_before and f"not before {show.second(checked.not_before)}"),
        *describe_rules(checked.limits, rules),
        ("waits for", checked.waits_for),
    ]
    warnings = [show.style(f"Warning: {text}", fg="yellow") for text in checked.warnings]
    return [*show.fields(rows), *warnings, "Nothing was submitted: this was a dry run."]


@click.command()
@click.argument("batch")
@job_options
@click.option("--idempotency-key", metavar="KEY", help="Calls with the same key within a day add the jobs once.")
@pass_options
def add(
    options: Options,
    *,
    batch: str,
    flags: tuple[str, ...],
    runs: int | None,
    variables: tuple[str, ...],
    lines: TextIO | None,
    idempotency_key: str | None,
) -> None:
    """Add jobs to a batch that was submitted with --open, and print the number of the first new job."""
    jobs = read_jobs(flags, runs, variables, lines)
    if not jobs:
        raise click.UsageError("no jobs given; use --runs and --var, --job or --jobs")

    async def run(queue: AsyncQueue) -> int:
        return await (await queue.find(batch)).add_jobs(jobs, idempotency_key=idempotency_key)

    first = options.run(run)
    click.echo(first)
    if sys.stdout.isatty():
        show.echo(f"Added {format_count(len(jobs), 'job')}, from job {first} on.", err=True)


@click.command()
@click.argument("batch")
@pass_options
def close(options: Options, *, batch: str) -> None:
    """Close an open batch: no more jobs can be added, and it ends when its jobs have ended."""
    _each(options, (batch,), AsyncBatch.close, "closed")


@click.command()
@click.argument("batches", nargs=-1, required=True, metavar="BATCH…")
@click.option(
    "--priority", type=click.Choice(list(Priority), case_sensitive=False), help="New priority of batches that wait."
)
@click.option("--tag", "tags", multiple=True, help="Replace all tags by this one; may be repeated, for several tags.")
@click.option("--no-tags", is_flag=True, help="Remove all tags.")
@pass_options
def change(
    options: Options, *, batches: tuple[str, ...], priority: str | None, tags: tuple[str, ...], no_tags: bool
) -> None:
    """Change the priority or the tags of batches. Running jobs are not affected.

    \b
    tweezer change 5m2q0xw8kd --priority high
    tweezer change 5m2q0xw8kd --tag sweep --tag paper
    """
    if tags and no_tags:
        raise click.UsageError("give either --tag or --no-tags")
    if priority is None and not tags and not no_tags:
        raise click.UsageError("nothing to change; give --priority, --tag or --no-tags")

    async def act(batch: AsyncBatch) -> None:
        if priority is not None:
            await batch.set_priority(priority)
        if tags or no_tags:
            await batch.set_tags(tags)

    _each(options, batches, act, "changed")


@click.command()
@click.argument("batches", nargs=-1, metavar="[BATCH[/JOB]…]")
@click.option("--job", "indices", type=click.IntRange(min=0), multiple=True, help="Number of a job; may be repeated.")
@click.option("--by", metavar="NAME", help="Name to record as the one who cancelled  [default: user@host].")
@matching_options([status for status in BatchStatus if status not in TERMINAL_BATCH])
def cancel(
    options: Options, *, batches: tuple[str, ...], indices: tuple[int, ...], by: str | None, matching: Matching
) -> None:
    """Cancel batches, or some jobs of a batch: with --job, or as BATCH/3; or all batches that options select.

    Pending jobs are cancelled at once, running jobs as soon as their worker stops them. `tweezer status` shows who
    cancelled, and the outcome.

    \b
    tweezer cancel 5m2q0xw8kd/3
    tweezer cancel --tag sweep --status pending --dry-run
    """
    if matching.check_given(batches):
        if indices:
            raise click.UsageError("--job selects jobs of one batch; name the batch")
        words = Words("cancel", "cancelled", "already ended")
        matching.run(options, words, functools.partial(AsyncQueue.cancel_matching, by=by))
        return
    targets = [split_job(text) for text in batches]
    chosen = [*indices, *(index for _, index in targets if index is not None)]
    if not chosen:
        _each(options, batches, lambda batch: batch.cancel(by=by), "canceled")
        return
    named = {batch for batch, _ in targets}
    if len(named) > 1 or not (indices or all(index is not None for _, index in targets)):
        raise click.UsageError("jobs can be cancelled of exactly one batch at a time")
    (batch,) = named

    async def run(queue: AsyncQueue) -> list[CancelAnswer]:
        return await (await queue.find(batch)).cancel_jobs(chosen, by=by)

    answers = options.run(run)
    for index, answer in zip(chosen, answers, strict=True):
        show.echo(f"job {index} {_ANSWERS[answer]}")
    if CancelAnswer.UNKNOWN in answers:
        raise TweezerError(f"batch {batch} does not have all of these jobs", code="not_found")


@click.command()
@click.argument("batches", nargs=-1, metavar="[BATCH…]")
@click.option(
    "--job-status",
    "statuses",
    type=click.Choice(UNSUCCESSFUL, case_sensitive=False),
    multiple=True,
    help="Status of the jobs to repeat; may be repeated  [default: both].",
)
@matching_options([status for status in BatchStatus if status in TERMINAL_BATCH])
def retry(options: Options, *, batches: tuple[str, ...], statuses: tuple[str, ...], matching: Matching) -> None:
    """Submit the failed and cancelled jobs of batches again, each in a new batch, and print the new ids.

    Options such as --tag select batches that have ended. One that was retried before is then left out.

    \b
    tweezer retry 5m2q0xw8kd --job-status error
    tweezer retry --tag sweep --since 1d --dry-run
    """
    chosen = statuses or UNSUCCESSFUL
    if matching.check_given(batches):
        words = Words("retry", "retried", "been retried before")
        matching.run(options, words, functools.partial(AsyncQueue.retry_matching, job_status=chosen))
        return

    async def submit_again(batch: AsyncBatch) -> None:
        new = (await batch.retry(status=chosen)).id
        click.echo(short_id(new) if sys.stdout.isatty() else str(new))

    _each(options, batches, submit_again, "retried", prints_ids=True)


@click.command()
@click.argument("batches", nargs=-1, metavar="[BATCH…|DEVICE]")
@click.option("--device", help="Name of the device, if it could be confused with a batch id.")
@click.option("--reason", help="Why the batches or the device are paused; for a device shown to all users.")
@click.option("--until", type=parse_time, metavar="TIME", help="Resume the device at this time: 2027-01-31T08:00.")
@click.option(
    "--for", "for_s", type=parse_duration, metavar="DURATION", help="Resume the device after this time: 30min, 2h."
)
@pass_options
def pause(
    options: Options,
    *,
    batches: tuple[str, ...],
    device: str | None,
    reason: str | None,
    until: datetime | None,
    for_s: int | None,
) -> None:
    """Pause batches, or a device for all projects: running jobs finish, and no further ones start.

    Pausing a paused device changes its reason and its end.

    \b
    tweezer pause 5m2q0xw8kd --reason "check the first results"
    tweezer pause FRESNEL --reason "new lens" --for 2h
    """
    name = _find_device(batches, device)
    if name is None:
        if until is not None or for_s is not None:
            raise click.UsageError("--until and --for apply only to a device")
        _each(options, batches, lambda batch: batch.pause(reason or ""), "paused")
        return
    if not reason:
        raise click.UsageError(f"give the reason for pausing the device {name} with --reason; it is shown to all users")
    if until is not None and for_s is not None:
        raise click.UsageError("give either --until or --for")
    ends = until if for_s is None else datetime.now(UTC) + timedelta(seconds=for_s)
    options.run(on_device(name, lambda queue: queue.pause_device(name, reason, until=ends)))
    show.echo(f"{name} is {Unavailability(UnavailabilityKind.PAUSED, reason, ends).describe(clock)}")


@click.command()
@click.argument("batches", nargs=-1, metavar="[BATCH…|DEVICE]")
@click.option("--device", help="Name of the device, if it could be confused with a batch id.")
@pass_options
def resume(options: Options, *, batches: tuple[str, ...], device: str | None) -> None:
    """Resume paused batches, or a paused device."""
    name = _find_device(batches, device)
    if name is None:
        _each(options, batches, AsyncBatch.resume, "resumed")
        return

    async def run(queue: AsyncQueue) -> Unavailability | None:
        await queue.resume_device(name)
        found = await queue.device(name)
        return None if found is None else found.unavailability(datetime.now(UTC))

    hold = options.run(on_device(name, run))
    show.echo(f"{name} is resumed{'' if hold is None else f', but {hold.describe(clock)}'}")


def _each(
    options: Options,
    batches: tuple[str, ...],
    act: Callable[[AsyncBatch], Awaitable[None]],
    done: str,
    *,
    prints_ids: bool = False,
) -> None:
    """Apply ``act`` to each batch, continuing after errors; raise at the end if there were any.

    prints_ids: ``act`` prints what programs read on stdout.
    """

    async def run(queue: AsyncQueue) -> int:
        failed = 0
        handles = [await queue.find(text) for text in batches]
        for batch in handles:
            try:
                await act(batch)
                if not prints_ids:
                    show.echo(f"{short_id(batch.id)} {done}")
                elif sys.stdout.isatty():
                    show.echo(f"{short_id(batch.id)} {done}", err=True)
            except TweezerError as error:
                if len(handles) == 1:
                    raise
                failed += 1
                show.echo(f"{short_id(batch.id)}: {error.message}", err=True)
        return failed

    failed = options.run(run)
    if failed:
        raise TweezerError(f"{failed} of {len(batches)} batches could not be {done}", code="partly")


def _find_device(targets: tuple[str, ...], device: str | None) -> str | None:
    """Return the device that is meant, or None for batches. A target that does not look like a batch is a device."""
    if bool(targets) is (device is not None):
        raise click.UsageError("give either batches or a device")
    names = [target for target in targets if not _is_id(target)]
    if device is None and names and len(targets) > 1:
        raise click.UsageError(f"{names[0]!r} is not a batch id; give either batches or one device")
    name = next(iter(names), None) if device is None else device
    return None if name is None else check_text("device", name, MAX_DEVICE_LENGTH)


def _is_id(text: str) -> bool:
    """Return whether the text is an id, a short id as commands print it, or ``@last``."""
    try:
        return text.startswith("@") or text == read_short_id(text) or bool(UUID(text))
    except ValueError:
        return False


def read_text(file: BinaryIO) -> str:
    name = getattr(file, "name", "<stdin>")
    text = decode_text(name, file.read())
    if not text.strip():
        raise InvalidInput(name, "is empty")
    return text
