"""``tweezer results``, ``export``, ``archive`` and ``delete``: show and write results; archive and delete batches."""

from __future__ import annotations

import contextlib
import csv
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

import click
import msgspec

from tweezer.api.batches.schemas import BatchResponse, JobResponse
from tweezer.cli import show
from tweezer.cli.matching import Matching, Words, matching_options
from tweezer.cli.options import Options, pass_options, print_json, require, split_job
from tweezer.cli.status import check_number, reason_lines
from tweezer.client import AsyncBatch, AsyncQueue, Finished
from tweezer.model.cancels import CancelOutcome
from tweezer.model.errors import InvalidInput, TweezerError
from tweezer.model.ids import short_id
from tweezer.model.lifecycle import TERMINAL_BATCH, BatchStatus, JobStatus
from tweezer.model.summaries import describe_values, format_count, rank
from tweezer.store.records import BatchRecord

_TABLE_FROM = 11  # that many jobs are shown as a table
_TOP_OF_ONE = 10
_TOP_OF_MANY = 5
_PLOTS = 12
_PLOT_ROW = 3


@click.command()
@click.argument("batch", metavar="BATCH[/JOB]")
@click.option("--job", "indices", type=click.IntRange(min=0), multiple=True, help="Number of a job; may be repeated.")
@click.option("--sum", "summed", is_flag=True, help="Add up the shots of all jobs.")
@click.option(
    "--full", is_flag=True, help="Show a histogram of each job, also of many; in CSV, a row for each bitstring."
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    help="Number of bitstrings in a histogram  [default: 5 per job; 10 for one job or a sum].",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with complete counters.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: a row for each job, with its most frequent bitstring.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw a bar chart to a file (.png, .svg, .pdf)."
)
@pass_options
def results(
    options: Options,
    *,
    batch: str,
    indices: tuple[int, ...],
    summed: bool,
    full: bool,
    top: int | None,
    as_json: bool,
    as_csv: bool,
    plot: Path | None,
) -> None:
    """Show the most frequent bitstrings of the jobs that have ended so far.

    More than ten jobs are shown as a table with one line each. For a job that was stopped early, these are the shots
    measured until then.
    """
    if as_csv and (as_json or summed):
        raise click.UsageError("--csv cannot be combined with --json or --sum")
    record, jobs = options.run(lambda queue: _read(queue, batch, indices))
    if not any(job.data for job in jobs) and not (as_json or as_csv):
        raise TweezerError(_why_nothing(record, jobs), code="no_results")
    total = sum((Counter(_counter(job)) for job in jobs), Counter[str]())
    if plot is not None:
        _plot(plot, [("all jobs", total)] if summed else _plottable(jobs), top or _TOP_OF_ONE)
        show.echo(f"Wrote the plot to {plot}.", err=True)
    if as_json:
        print_json(_as_json(record, jobs, total if summed else None))
    elif as_csv:
        _print_csv(jobs, full=full)
    elif plot is None:
        _print(record, jobs, total if summed else None, top, full=full or top is not None)
    if unread := [job.unavailable for job in jobs if job.unavailable is not None]:
        raise TweezerError(f"{len(unread)} of {len(jobs)} results cannot be read: {unread[0].message}", code="partly")


async def _read(queue: AsyncQueue, batch_id: str, indices: tuple[int, ...]) -> tuple[BatchRecord, list[Finished]]:
    named, one = split_job(batch_id)
    batch = await queue.find(named)
    record = await batch.record()
    if one is not None:
        indices = (*indices, one)
    for index in indices:
        check_number(record, index)
    jobs = await batch.results_at(record, sorted(set(indices)) or range(record.jobs))
    return record, [job for job in jobs if job.status.terminal]


def _counter(job: Finished) -> dict[str, int]:
    return (job.data and job.data.counter) or {}


def _why_nothing(record: BatchRecord, jobs: list[Finished]) -> str:
    if record.fault is not None:
        return f"batch {short_id(record.id)} has no results: {record.fault}"
    if jobs:
        return f"no job has a result; {_how_it_ended(jobs[0])}"
    return f"no job has ended yet; follow them with `tweezer watch {short_id(record.id)}`"


def _how_it_ended(job: Finished) -> str:
    if job.error or job.status is not JobStatus.CANCELED:
        return f"job {job.index} is {job.status}" + (f": {job.error}" if job.error else "")
    never_ran = job.record.cancel_outcome in (None, CancelOutcome.PREVENTED)
    return f"job {job.index} was {_canceled(job)}, before it {'started' if never_ran else 'had measured anything'}"


def _canceled(job: Finished) -> str:
    """Return who cancelled the job and when, as far as it was recorded."""
    if not job.record.cancels:
        return "cancelled"
    last = job.record.cancels[-1]
    return f"cancelled by {last.by} at {show.second(last.at)}"


def _print(
    record: BatchRecord, jobs: list[Finished], total: Counter[str] | None, top: int | None, *, full: bool
) -> None:
    columns = show.width()
    if total is not None:
        measured = sum(job.data is not None for job in jobs)
        all_of = (
            f"{measured} of {format_count(len(jobs), 'job')}" if measured < len(jobs) else format_count(measured, "job")
        )
        show.echo(show.style(f"{sum(total.values())} shots of {all_of}", bold=True))
        show.echo("\n".join(show.histogram(total, top=top or _TOP_OF_ONE, columns=columns)))
    elif len(jobs) >= _TABLE_FROM and not full:
        _print_table(jobs)
    else:
        for job in jobs:
            show.echo(show.style(_title(job), bold=True))
            show.echo("\n".join(_body(job, top or (_TOP_OF_ONE if len(jobs) == 1 else _TOP_OF_MANY), columns)))
    left = record.jobs - sum(count for status, count in record.counts.items() if status.terminal)
    if left:
        show.echo(f"{left} of {format_count(record.jobs, 'job')} have not ended yet", err=True)


def _print_table(jobs: Sequence[Finished]) -> None:
    """Print a line for each job with its most frequent bitstring, and why jobs have none."""
    rows, reasons = [], dict[str, list[int]]()
    for job in jobs:
        found: tuple[object, ...] = ("", "", "")
        if counter := _counter(job):
            bits, shots, share = _most_frequent(counter)
            found = (shots, bits, f"{share:6.1%}")
        if note := _note(job) or ("" if counter else "no final bitstrings were measured"):
            reasons.setdefault(note, []).append(job.index)
        rows.append((job.index, describe_values(job.variables), show.status(job.status), *found))
    show.print_table(("job", "variables", "status", "shots", "top", "share"), rows)
    if reasons:
        show.echo()
        show.echo("\n".join(reason_lines(reasons)))
    if sys.stdout.isatty():
        show.echo("For histograms, add --full, or --job N for one job.", err=True)


def _most_frequent(counter: dict[str, int]) -> tuple[str, int, float]:
    """Return the most frequent bitstring, the number of all shots, and the share of the bitstring in them."""
    bits, count = min(counter.items(), key=lambda item: (-item[1], item[0]))
    shots = sum(counter.values())
    return bits, shots, count / shots if shots else 0.0


def _note(job: Finished) -> str:
    if job.status is JobStatus.CANCELED:
        return f"{_canceled(job)}{', partial result' if job.data is not None else ''}"
    return job.error or ""


def _print_csv(jobs: Sequence[Finished], *, full: bool) -> None:
    """Print a row for each job, or for each bitstring of each job, with a column for each variable."""
    names = list(dict.fromkeys(name for job in jobs for name in job.variables))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    measured = ("bitstring", "count") if full else ("shots", "top", "share")
    writer.writerow(["job", *names, "status", *measured, "note"])
    for job in jobs:
        counter = _counter(job)
        found: list[tuple[object, ...]] = [("",) * len(measured)]
        if counter and full:
            found = [*rank(counter)]
        elif counter:
            bits, shots, share = _most_frequent(counter)
            found = [(shots, bits, f"{share:.6g}")]
        values = [_csv_value(job.variables.get(name, "")) for name in names]
        writer.writerows((job.index, *values, job.status.value, *one, show.escaped(_note(job))) for one in found)


def _csv_value(value: object) -> object:
    return msgspec.json.encode(value).decode() if isinstance(value, list | dict) else value


def _title(job: Finished) -> str:
    partly = "  (stopped early: partial result)" if job.data is not None and job.status is JobStatus.CANCELED else ""
    return f"job {job.index}  {describe_values(job.variables)}".rstrip() + partly


def _body(job: Finished, top: int, columns: int) -> list[str]:
    if job.data is None:
        note = _note(job)
        return [f"  {show.status(job.status)}{f': {note}' if note else ''}"]
    if job.data.counter is None:
        return ["  no final bitstrings were measured; see its observables with --json, or results() in Python"]
    return show.histogram(job.data.counter, top=top, columns=columns)


def _as_json(record: BatchRecord, jobs: list[Finished], total: Counter[str] | None) -> dict[str, Any]:
    answer: dict[str, Any] = {"batch": record.id, "status": record.status, "device": record.device}
    if total is not None:
        without = [job.index for job in jobs if job.data is None]
        return answer | {"jobs": len(jobs) - len(without), "without_result": without, "counter": dict(total)}
    return answer | {
        "jobs": [
            {
                "id": job.id,
                "index": job.index,
                "status": job.status,
                "runs": job.record.spec.runs,
                "variables": job.variables,
                "counter": job.data and job.data.counter,
                "serialised_results": job.data and job.data.serialised_results,
                "provenance": job.data and job.data.provenance,
                "error": job.error,
            }
            for job in jobs
        ]
    }


def _plottable(jobs: list[Finished]) -> list[tuple[str, Counter[str]]]:
    found = [(_title(job), Counter(_counter(job))) for job in jobs if _counter(job)]
    if len(found) > _PLOTS:
        show.echo(f"Drawing the first {_PLOTS} of {len(found)} jobs; use --job or --sum to select.", err=True)
    return found[:_PLOTS]


def _plot(path: Path, counters: list[tuple[str, Counter[str]]], top: int) -> None:
    """Draw a bar chart for each counter. Raises InvalidInput for a file type that matplotlib does not support."""
    require("results --plot", "emulators", "matplotlib")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    across = min(len(counters), _PLOT_ROW)
    down = -(-len(counters) // across)
    figure = Figure(figsize=(4.5 * across, 3.2 * down), layout="constrained")
    for place, (title, counter) in enumerate(counters, 1):
        ranked = rank(counter)[:top]
        axes = figure.add_subplot(down, across, place)
        axes.barh([bits for bits, _ in ranked], [count for _, count in ranked], color="tab:green")
        axes.invert_yaxis()
        axes.set_title(title, fontsize="small")
        axes.set_xlabel("shots")
        axes.tick_params(axis="y", labelfontfamily="monospace")
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise InvalidInput("--plot", str(error)) from error


_PAGE = 500  # jobs per read


@click.command()
@click.argument("batches", nargs=-1, required=True, metavar="BATCH…")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="File to create  [default: print to stdout]."
)
@pass_options
def export(options: Options, *, batches: tuple[str, ...], out: Path | None) -> None:
    """Write batches with their sequence, jobs and results as JSON lines, from Redis or the ledger.

    Each line is an object with the fields of the API: `{"type": "batch", …}` or `{"type": "job", …, "result": {…}}`.
    """

    async def write(queue: AsyncQueue, file: BinaryIO) -> int:
        written = 0
        for batch in [await queue.find(text) for text in batches]:
            async for line in _lines(batch):
                written += 1
                file.write(line + b"\n")
        return written

    with contextlib.ExitStack() as stack:
        file = sys.stdout.buffer if out is None else stack.enter_context(out.open("xb"))
        written = options.run(lambda queue: write(queue, file))
    jobs = format_count(written - len(batches), "job")
    show.echo(
        f"Exported {format_count(len(batches), 'batch')} with {jobs}{'' if out is None else f' to {out}'}.", err=True
    )


@click.command()
@click.argument("batches", nargs=-1, metavar="[BATCH…]")
@matching_options([status for status in BatchStatus if status in TERMINAL_BATCH])
def archive(options: Options, *, batches: tuple[str, ...], matching: Matching) -> None:
    """Archive ended batches, so that the list of tasks and its counts leave them out. Nothing else changes.

    The request POST /api/archive/restore/{id} puts a batch back.

    \b
    tweezer archive 5m2q0xw8kd
    tweezer archive --tag sweep --until 7d --dry-run
    """
    if matching.check_given(batches):
        matching.run(options, Words("archive", "archived", "been archived before"), AsyncQueue.archive_matching)
        return
    ids = _find_ids(options, batches)
    _print_handled(ids, options.run(lambda queue: queue.archive_many(ids)), "archived")


@click.command()
@click.argument("batches", nargs=-1, metavar="[BATCH…]")
@matching_options([status for status in BatchStatus if status in TERMINAL_BATCH])
def delete(options: Options, *, batches: tuple[str, ...], matching: Matching) -> None:
    """Delete ended batches permanently, from Redis, the results folder and the ledger.

    \b
    tweezer delete 5m2q0xw8kd
    tweezer delete --tag test --until 30d --dry-run
    """
    if matching.check_given(batches):
        words = Words("permanently delete", "deleted", extent=" with all results")
        matching.run(options, words, AsyncQueue.delete_matching)
        return

    ids = _find_ids(options, batches)
    if not matching.yes:
        show.confirm(f"Permanently delete {format_count(len(ids), 'batch')} with all results?")
    _print_handled(ids, options.run(lambda queue: queue.delete_many(ids)), "deleted")


def _find_ids(options: Options, batches: Sequence[str]) -> list[UUID]:
    """Return the ids of named batches, each once."""

    async def find(queue: AsyncQueue) -> list[UUID]:
        return list(dict.fromkeys([(await queue.find(text)).id for text in batches]))

    return options.run(find)


def _print_handled(ids: Sequence[UUID], errors: Mapping[UUID, str], done: str) -> None:
    """Print the batches that were handled. Raises TweezerError for the others. done: the verb."""
    for batch_id in ids:
        if batch_id not in errors:
            show.echo(f"{done} {short_id(batch_id)}")
    if errors:
        raise TweezerError("\n       ".join(errors.values()), code=f"not_{done}")


async def _lines(batch: AsyncBatch) -> AsyncIterator[bytes]:
    record = await batch.record()
    about = msgspec.to_builtins(BatchResponse.from_records(record, []))
    del about["jobs"]
    yield msgspec.json.encode({"type": "batch", **about})
    for first in range(0, record.jobs, _PAGE):
        for job in await batch.results_at(record, range(first, min(first + _PAGE, record.jobs))):
            if job.unavailable is not None:
                raise job.unavailable  # an export without it would look complete
            line = {"type": "job", **msgspec.to_builtins(JobResponse.from_record(job.record)), "result": job.data}
            yield msgspec.json.encode(line)
