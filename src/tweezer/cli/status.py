"""``tweezer status`` and ``watch``: the state of a batch, why it waits, and its progress."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.options import Options, clock, pass_options, print_json, split_job
from tweezer.client import AsyncQueue
from tweezer.model.cancels import CancelAttempt, CancelOutcome
from tweezer.model.errors import NotFound, TweezerError
from tweezer.model.events import JobNews, Word
from tweezer.model.ids import short_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.webhooks import format_time
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord, describe_wait
from tweezer.transports.protocol import is_settled

_LISTED = 10  # jobs, and attempts to cancel some


def availability(device: DeviceRecord, now: datetime) -> str:
    """Return ``available`` or the reason why not, followed by unknown states and planned maintenance."""
    hold, window = device.unavailability(now), device.window
    parts = ["available" if hold is None else hold.describe(clock)]
    if device.unsure is not None:
        since = "" if device.unsure_since is None else f" since {clock(device.unsure_since)}"
        parts.append(f"status unknown{since}: {device.unsure}")
    if window is not None and now < window.begins:
        parts.append(f"maintenance from {clock(window.begins)} to {clock(window.ends)}: {window.reason}")
    return "; ".join(parts)


def cancel_lines(record: BatchRecord, jobs: Iterable[JobRecord]) -> list[str]:
    """Describe the last requests to cancel jobs of the batch and their outcomes, if there were any."""
    if not record.cancels:
        return []
    last = record.cancels[-_LISTED:]
    rows = [(f"{it.at.astimezone():%Y-%m-%d %H:%M:%S}", "all" if it.ranges is None else it.jobs, it.by) for it in last]
    lines = show.table(("cancelled at", "jobs", "by"), rows)
    if len(record.cancels) > len(last):
        lines.append(f"and {len(record.cancels) - len(last)} earlier")
    outcomes = Counter(job.cancel_outcome for job in jobs)
    if came := [f"{outcomes[outcome]} {_words(outcome)}" for outcome in CancelOutcome if outcomes[outcome]]:
        lines.append(f"outcome: {', '.join(came)}")
    return lines


def _was_stopped(job: JobRecord) -> bool:
    """Return whether a cancel reached the job after it had started."""
    return job.cancel_outcome not in (None, CancelOutcome.PREVENTED)


def _words(outcome: CancelOutcome) -> str:
    return outcome.value.replace("_", " ")


_LOOK_AGAIN_S = 2.0
_STALLED_S = 2.0
_WINDOW_S = 15.0
_BAR = 20
_FEW = 4


class View(msgspec.Struct, frozen=True):
    """The content of a progress line.

    progress: job index → fraction, for running jobs that report it. rate: jobs that ended per second.
    hint: why no job ends.
    """

    record: BatchRecord
    progress: dict[int, float]
    rate: float | None = None
    hint: str | None = None


def progress_line(view: View, columns: int) -> str:
    """Format a progress line, leaving out the parts that do not fit."""
    record, counts = view.record, view.record.counts
    ended = sum(count for status, count in counts.items() if status.terminal)
    share = (ended + sum(view.progress.values())) / record.jobs if record.jobs else 0.0
    filled = show.bar(share, _BAR)
    parts = [f"{ended}/{record.jobs} jobs"]
    if counts[JobStatus.ERROR]:
        parts.append(f"{counts[JobStatus.ERROR]} failed")
    if counts[JobStatus.CANCELED]:
        parts.append(f"{counts[JobStatus.CANCELED]} canceled")
    if record.status is BatchStatus.PAUSED:
        parts.append("paused")
    if counts[JobStatus.RUNNING]:
        parts.append(f"{counts[JobStatus.RUNNING]} running{_percentages(view.progress)}")
    if view.hint:
        parts.append(view.hint)
    if counts[JobStatus.PENDING]:
        parts.append(f"{counts[JobStatus.PENDING]} pending")
    if record.status.terminal:
        parts.append(record.status.value)
    elif view.rate:
        left = counts[JobStatus.PENDING] + counts[JobStatus.RUNNING]
        parts += [f"{view.rate:.{1 if view.rate < 100 else 0}f}/s", f"{show.duration(left / view.rate)} left"]
    line = f"{filled}{'░' * (_BAR - len(filled))}  {parts[0]}"
    for part in parts[1:]:
        if len(line) + len(part) + 3 < columns:
            line += f" · {part}"
    return line


def _percentages(progress: dict[int, float]) -> str:
    fractions = [fraction for _, fraction in sorted(progress.items())]
    if not fractions:
        return ""
    if len(fractions) > _FEW:
        return f" ({sum(fractions) / len(fractions):.0%} on average)"
    return f" ({', '.join(f'{fraction:.0%}' for fraction in fractions)})"


class Meter:
    """Shows progress: as one updating line on a terminal, elsewhere as a new line now and then."""

    def __init__(self, *, err: bool) -> None:
        self._err = err
        self._live = (sys.stderr if err else sys.stdout).isatty()
        self.interval_s = 0.1 if self._live else 0.5
        self._shown = ""
        self._shown_at = 0.0

    def show(self, view: View) -> None:
        line = progress_line(view, show.width() if self._live else show.MAX_WIDTH + 20)
        if self._live:
            click.echo("\r\x1b[K", err=self._err, nl=False)
            show.echo(f"{show.style(line[:_BAR], fg='green')}{line[_BAR:]}", err=self._err, nl=False)
        elif self._is_news(view, line):
            show.echo(line, err=self._err)
        else:
            return
        self._shown, self._shown_at = line, time.monotonic()

    def end(self) -> None:
        """Keep the last line on the screen."""
        if self._live and self._shown:
            show.echo(err=self._err)

    def _is_news(self, view: View, line: str) -> bool:
        return line != self._shown and (is_settled(view.record) or time.monotonic() - self._shown_at >= _LOOK_AGAIN_S)


class _Rate:
    """The number of jobs that ended per second, over a sliding window."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def now(self, ended: int) -> float | None:
        now = time.monotonic()
        if not self._seen or self._seen[-1][1] != ended:
            self._seen.append((now, ended))
        while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()
        (began, before), (_, latest) = self._seen[0], self._seen[-1]
        return (latest - before) / (now - began) if latest > before and now > began else None

    @property
    def still_for_s(self) -> float:
        return time.monotonic() - self._seen[-1][0] if self._seen else 0.0


async def follow(queue: AsyncQueue, batch_id: UUID, meter: Meter) -> BatchRecord:
    """Show the batch until none of its jobs is pending or running, and return it. Raises NotFound."""
    batch = queue.batch(batch_id)
    rate, progress = _Rate(), dict[int, float]()
    await batch.record()
    try:
        async with batch.news() as news:
            record, looked = await batch.record(), time.monotonic()
            while True:
                ended = sum(count for status, count in record.counts.items() if status.terminal)
                per_s = rate.now(ended)
                hint = None
                if rate.still_for_s > _STALLED_S:
                    hint = describe_wait(record, await queue.device(record.device), datetime.now(UTC), clock)
                if record.counts[JobStatus.RUNNING] == 0:
                    progress.clear()
                meter.show(View(record, dict(progress), per_s, hint))
                if is_settled(record):
                    return record
                changes = await news.next(meter.interval_s)
                read_progress(changes, progress)
                if changes or time.monotonic() - looked >= _LOOK_AGAIN_S:
                    record, looked = await batch.record(), time.monotonic()
                    await asyncio.sleep(0 if is_settled(record) else meter.interval_s)  # news may come by the thousand
    finally:
        meter.end()


def read_progress(changes: Iterable[Word | JobNews], progress: dict[int, float]) -> None:
    """Update the fractions of running jobs from news of the batch."""
    for news in changes:
        if isinstance(news, JobNews):
            if news.percent is not None:
                progress[news.index] = news.percent / 100
        elif news.letters[1] != JobStatus.RUNNING.letter:
            for index in news.jobs:
                progress.pop(index, None)


@click.command()
@click.argument("batch", metavar="BATCH[/JOB]")
@click.option("--jobs", "all_jobs", is_flag=True, help="List all jobs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with all jobs.")
@pass_options
def status(options: Options, *, batch: str, all_jobs: bool, as_json: bool) -> None:
    """Show the state of a batch, and with a job's number that of the job."""
    named, index = split_job(batch)

    async def read(queue: AsyncQueue) -> tuple[BatchRecord, list[JobRecord], DeviceRecord | None]:
        handle = await queue.find(named)
        record = await handle.record()
        counts = record.counts
        needs_jobs = as_json or all_jobs or counts[JobStatus.RUNNING] or counts[JobStatus.ERROR] or record.cancels
        if index is not None:
            check_number(record, index)
            jobs = await handle.jobs_at(record, [index])
        else:
            jobs = await handle.jobs() if needs_jobs else []
        return record, jobs, await queue.device(record.device) if record.is_waiting else None

    record, jobs, device = options.run(read)
    if as_json:
        print_json({**batch_as_json(record, device), "jobs": list(map(job_as_json, jobs))})
        return
    show.echo("\n".join(_description(record, describe_wait(record, device, datetime.now(UTC), clock))))
    if cancels := cancel_lines(record, jobs):
        show.echo()
        show.echo("\n".join(cancels))
    listed = jobs if all_jobs or index is not None else _interesting(jobs)
    if listed:
        show.echo()
        show.echo("\n".join(_job_table(listed)))


@click.command()
@click.argument("batch")
@pass_options
def watch(options: Options, *, batch: str) -> None:
    """Follow a batch live until its jobs have ended. The exit code is 1 unless all of them are DONE."""

    async def run(queue: AsyncQueue) -> BatchRecord:
        return await follow(queue, (await queue.find(batch)).id, Meter(err=False))

    record = options.run(run, patient=True)
    if record.open:
        show.echo(f"The batch is open for more jobs; close it with `tweezer close {short_id(record.id)}`.", err=True)
    must_be_done(record)


def check_number(record: BatchRecord, index: int) -> None:
    """Raise NotFound unless the batch has a job with this number."""
    if index >= record.jobs:
        raise NotFound("job", f"{index} in batch {short_id(record.id)}, which has {record.jobs}")


def must_be_done(record: BatchRecord) -> None:
    """Raise TweezerError with the reason unless every job of the batch is DONE."""
    counts = record.counts
    if record.fault is not None:
        raise TweezerError(f"batch {short_id(record.id)} ended in {record.status}: {record.fault}", code="not_done")
    if record.status.terminal and record.status is not BatchStatus.DONE:
        raise TweezerError(f"batch {short_id(record.id)} ended in {record.status}", code="not_done")
    missed = [f"{counts[bad]} {bad}" for bad in (JobStatus.ERROR, JobStatus.CANCELED) if counts[bad]]
    if missed:
        raise TweezerError(
            f"not all jobs of batch {short_id(record.id)} are DONE: {' and '.join(missed)} of {record.jobs}; "
            f"see `tweezer status {short_id(record.id)}`",
            code="not_done",
        )


def _description(record: BatchRecord, why: str | None) -> list[str]:
    counts = ", ".join(f"{count} {status.value}" for status, count in record.counts.items() if count)
    rows = [
        ("batch", short_id(record.id)),
        ("id", str(record.id)),
        ("name", record.doc.name),
        ("tags", ", ".join(record.doc.tags)),
        ("status", f"{record.status.value}{', open for more jobs' if record.open else ''}"),
        ("error", record.fault and str(record.fault)),
        ("device", record.device),
        ("waits for", why),
        ("held idle", record.idle_s and f"{show.duration(record.idle_s)} on {record.device} without work"),
        ("priority", record.priority.value),
        ("jobs", f"{record.jobs}{f': {counts}' if counts else ''}"),
        ("submitted", _since(record.created)),
        ("starts", record.not_before and f"not before {record.not_before.astimezone():%Y-%m-%d %H:%M:%S}"),
        ("started", record.started and _since(record.started)),
        ("ended", record.ended and _since(record.ended)),
    ]
    return [f"{show.style(f'{name:<9}', dim=True)}  {value}" for name, value in rows if value]


def _since(moment: datetime) -> str:
    ago_s = max((datetime.now(UTC) - moment).total_seconds(), 0.0)
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S} ({show.duration(ago_s)} ago)"


def _interesting(jobs: list[JobRecord]) -> list[JobRecord]:
    """Return the jobs that are running, failed, or were cancelled after they started, up to a limit."""
    chosen = [job for job in jobs if job.status in (JobStatus.RUNNING, JobStatus.ERROR) or _was_stopped(job)]
    return chosen[:_LISTED]


def _job_table(jobs: list[JobRecord]) -> list[str]:
    rows = [(job.index, *job_cells(job)) for job in jobs]
    return show.table(("job", "status", "runs", "variables", "took", "note"), rows)


def job_cells(job: JobRecord) -> tuple[object, ...]:
    """Return the cells of a job in a table: its status, runs, variables, time on the device, and a note."""
    doing = job.stage.value if job.stage is not None and job.status is JobStatus.RUNNING else ""
    if doing and job.progress is not None:
        doing += f" {job.progress:.0%}"
    cancel = "" if job.cancel_outcome is None else f"cancel: {_words(job.cancel_outcome)}"
    note = doing or "; ".join(filter(None, (cancel, *map(str, job.faults))))
    took = "" if job.device_s is None else show.duration(job.device_s)
    runs = "" if job.spec.runs is None else job.spec.runs
    return job.status.value, runs, show.values(job.spec.variables), took, note


def batch_as_json(record: BatchRecord, device: DeviceRecord | None) -> dict[str, Any]:
    """Return a batch, without its jobs, for output as JSON. device: its device, if it may wait for it."""
    return {
        "batch": record.id,
        **_fields(record, "status", "open", "project", "device", "priority"),
        **_fields(record.doc, "name", "tags", "user"),
        "counts": {status.value: count for status, count in record.counts.items()},
        **_fields(record, "created", "not_before", "updated", "started", "ended", "idle_s"),
        "waits_for": describe_wait(record, device, datetime.now(UTC), format_time),
        "error": record.fault and str(record.fault),
        "cancels": _cancels_as_json(record.cancels),
    }


def job_as_json(job: JobRecord) -> dict[str, Any]:
    """Return a job for output as JSON."""
    return {
        **_fields(job, "id", "index", "status", "stage", "progress"),
        **_fields(job.spec, "runs", "variables", "seed"),
        **_fields(job, "attempt", "created", "started", "ended", "cancel_requested", "cancel_outcome"),
        "cancel_attempts": _cancels_as_json(job.cancels),
        **_fields(job, "queue_s", "preparation_s", "device_s"),
        "errors": [str(fault) for fault in job.faults],
    }


def _cancels_as_json(cancels: Iterable[CancelAttempt]) -> list[dict[str, Any]]:
    return [_fields(attempt, "at", "by", "jobs") for attempt in cancels]


def _fields(of: object, *names: str) -> dict[str, Any]:
    return {name: getattr(of, name) for name in names}
