"""``tweezer results``, ``export`` and ``delete``: show, write and delete the results of batches."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import UUID

import click
import msgspec

from tweezer.api.batches.schemas import BatchResponse, JobResponse
from tweezer.cli import show
from tweezer.cli.options import Options, pass_options, print_json, require, split_job, yes_option
from tweezer.cli.status import check_number
from tweezer.client import AsyncBatch, AsyncQueue, Finished
from tweezer.model.cancels import CancelOutcome
from tweezer.model.errors import InvalidInput, TweezerError
from tweezer.model.ids import short_id
from tweezer.model.lifecycle import JobStatus
from tweezer.store.records import BatchRecord

if TYPE_CHECKING:
    from tweezer.ledger.database import Database
    from tweezer.store.connection import Store

_TOP_OF_ONE = 10
_TOP_OF_MANY = 5
_PLOTS = 12
_PLOT_ROW = 3


@click.command()
@click.argument("batch", metavar="BATCH[/JOB]")
@click.option("--job", "indices", type=click.IntRange(min=0), multiple=True, help="Number of a job; may be repeated.")
@click.option("--sum", "summed", is_flag=True, help="Add up the shots of all jobs.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    help="Number of bitstrings to show  [default: 5 per job; 10 for one job or a sum].",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with complete counters.")
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
    top: int | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Show the most frequent bitstrings of the jobs that have ended so far.

    For a job that was stopped early, these are the shots measured until then.
    """
    record, jobs = options.run(lambda queue: _read(queue, batch, indices))
    if not any(job.data for job in jobs) and not as_json:
        raise TweezerError(_why_nothing(record, jobs), code="no_results")
    total = sum((Counter(_counter(job)) for job in jobs), Counter[str]())
    if plot is not None:
        _plot(plot, [("all jobs", total)] if summed else _plottable(jobs), top or _TOP_OF_ONE)
        show.echo(f"Wrote the plot to {plot}.", err=True)
    if as_json:
        print_json(_as_json(record, jobs, total if summed else None))
    elif plot is None:
        _print(record, jobs, total if summed else None, top)
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
    by = f" by {job.record.cancels[-1].by}" if job.record.cancels else ""
    never_ran = job.record.cancel_outcome in (None, CancelOutcome.PREVENTED)
    return f"job {job.index} was cancelled{by} before it {'started' if never_ran else 'had measured anything'}"


def _print(record: BatchRecord, jobs: list[Finished], total: Counter[str] | None, top: int | None) -> None:
    columns = show.width()
    if total is not None:
        measured = sum(job.data is not None for job in jobs)
        all_of = f"{measured} of {len(jobs)} jobs" if measured < len(jobs) else f"{len(jobs)} jobs"
        show.echo(show.style(f"{sum(total.values())} shots of {all_of}", bold=True))
        show.echo("\n".join(show.histogram(total, top=top or _TOP_OF_ONE, columns=columns)))
    else:
        for job in jobs:
            show.echo(show.style(_title(job), bold=True))
            show.echo("\n".join(_body(job, top or (_TOP_OF_ONE if len(jobs) == 1 else _TOP_OF_MANY), columns)))
    left = record.jobs - sum(count for status, count in record.counts.items() if status.terminal)
    if left:
        show.echo(f"{left} of {record.jobs} jobs have not ended yet", err=True)


def _title(job: Finished) -> str:
    partly = "  (stopped early: partial result)" if job.data is not None and job.status is JobStatus.CANCELED else ""
    return f"job {job.index}  {show.values(job.variables)}".rstrip() + partly


def _body(job: Finished, top: int, columns: int) -> list[str]:
    if job.data is None:
        return [f"  {job.status}: {job.error}" if job.error else f"  {job.status}"]
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
        ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:top]
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

    async def write(queue: AsyncQueue, file: BinaryIO) -> None:
        for batch in [await queue.find(text) for text in batches]:
            async for line in _lines(batch):
                file.write(line + b"\n")

    with contextlib.ExitStack() as stack:
        file = sys.stdout.buffer if out is None else stack.enter_context(out.open("xb"))
        options.run(lambda queue: write(queue, file))


@click.command()
@click.argument("batches", nargs=-1, required=True, metavar="BATCH…")
@yes_option
@pass_options
def delete(options: Options, *, batches: tuple[str, ...], yes: bool) -> None:
    """Delete ended batches permanently, from Redis, the results folder and the ledger."""

    async def find(queue: AsyncQueue) -> list[UUID]:
        return [(await queue.find(text)).id for text in batches]

    ids = options.run(find)
    if not yes:
        show.confirm(f"Permanently delete {len(ids)} batch{'es' if len(ids) > 1 else ''} with all results?")

    project = options.settings().project_id

    async def delete_all(store: Store, database: Database) -> list[str]:
        from tweezer.ledger.retention import delete_batch

        failures = []
        for batch_id in ids:
            try:
                await delete_batch(store, database, batch_id, project=project)
            except TweezerError as error:
                failures.append(error.message)
            else:
                show.echo(f"deleted {short_id(batch_id)}")
        return failures

    with options.ledger() as database:
        failures = options.run_store(lambda store: delete_all(store, database))
    if failures:
        raise TweezerError("\n       ".join(failures), code="not_deleted")


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
