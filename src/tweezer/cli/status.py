"""``tweezer status`` and ``watch``: the state of a batch, why it waits, and its progress."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.group import INTERRUPTED
from tweezer.cli.options import Options, clock, pass_options, print_json, split_job
from tweezer.client import AsyncBatch, AsyncQueue
from tweezer.model.cancels import CancelAttempt, CancelOutcome
from tweezer.model.errors import NotFound, TweezerError
from tweezer.model.events import JobNews, Word
from tweezer.model.ids import short_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Limits, Steps
from tweezer.model.rules import Rules
from tweezer.model.summaries import describe_values, format_count, format_duration
from tweezer.store.records import BatchPause, BatchRecord, DeviceRecord, JobRecord, describe_wait
from tweezer.transports.protocol import is_settled

_LISTED = 10  # jobs, reasons, and attempts to cancel some
_EXAMINED = 100  # jobs, to find one that runs


def availability(device: DeviceRecord, now: datetime) -> str:
    """Return ``available`` or the reason why not, followed by unknown states and planned maintenance, with a colour."""
    hold, window = device.unavailability(now), device.window
    parts = ["available" if hold is None else hold.describe(clock)]
    if device.unsure is not None:
        since = "" if device.unsure_since is None else f" since {clock(device.unsure_since)}"
        parts.append(f"status unknown{since}: {device.unsure}")
    if window is not None and now < window.begins:
        parts.append(f"maintenance from {clock(window.begins)} to {clock(window.ends)}: {window.reason}")
    return show.style("; ".join(parts), fg="green" if len(parts) == 1 and hold is None else "yellow")


def cancel_lines(record: BatchRecord, jobs: Iterable[JobRecord]) -> list[str]:
    """Describe the last requests to cancel jobs of the batch and their outcomes, if there were any."""
    if not record.cancels:
        return []
    last = record.cancels[-_LISTED:]
    rows = [(show.second(it.at), "all" if it.ranges is None else it.jobs, it.by) for it in last]
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

    progress: job index → fraction, for running jobs that report it. rate: jobs that ended per second. hint: why no job
    ends. steps: those of the only running job.
    """

    record: BatchRecord
    progress: dict[int, float]
    rate: float | None = None
    hint: str | None = None
    steps: Steps | None = None


def progress_line(view: View, columns: int) -> str:
    """Format a progress line, leaving out the parts that do not fit."""
    record, counts = view.record, view.record.counts
    ended = sum(count for status, count in counts.items() if status.terminal)
    parts: list[tuple[str, str | None]] = [(f"{ended}/{record.jobs} jobs", None)]
    if counts[JobStatus.ERROR]:
        parts.append((f"{counts[JobStatus.ERROR]} failed", "red"))
    if counts[JobStatus.CANCELED]:
        parts.append((f"{counts[JobStatus.CANCELED]} canceled", "yellow"))
    if record.status is BatchStatus.PAUSED:
        parts.append(("paused", "yellow"))
    if counts[JobStatus.RUNNING]:
        parts.append((f"{counts[JobStatus.RUNNING]} running{_percentages(view.progress)}", None))
        if view.steps is not None:
            parts.append((str(view.steps), None))
    if view.hint:
        parts.append((view.hint, "yellow"))
    if counts[JobStatus.PENDING]:
        parts.append((f"{counts[JobStatus.PENDING]} pending", None))
    if record.status.terminal:
        parts.append((record.status.value, show.STATUS_COLOURS[record.status]))
    elif view.rate:
        left = counts[JobStatus.PENDING] + counts[JobStatus.RUNNING]
        parts.append((f"{view.rate:.{1 if view.rate < 100 else 0}f}/s", None))
        parts.append((f"{format_duration(left / view.rate)} left", None))
    line, room = f"{_progress_bar(view)}  {parts[0][0]}", columns - _BAR - 2 - len(parts[0][0])
    for text, colour in parts[1:]:
        if len(text) + 3 < room:
            line += f" · {show.style(text, fg=colour)}"
            room -= len(text) + 3
    return line


def _progress_bar(view: View) -> str:
    """Draw what has ended and the progress of running jobs; the share of failed jobs is red."""
    record, counts = view.record, view.record.counts
    if not record.jobs:
        return "░" * _BAR
    ended = sum(count for status, count in counts.items() if status.terminal)
    filled = show.bar((ended + sum(view.progress.values())) / record.jobs, _BAR)
    failed = min(math.ceil(counts[JobStatus.ERROR] / record.jobs * _BAR), len(filled))
    good = len(filled) - failed
    return show.style(filled[:good], fg="green") + show.style(filled[good:], fg="red") + "░" * (_BAR - len(filled))


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
        if line == self._shown:
            return
        if self._live:
            self._overwrite(line)
        elif is_settled(view.record) or time.monotonic() - self._shown_at >= _LOOK_AGAIN_S:
            show.echo(line, err=self._err)
        else:
            return
        self._shown, self._shown_at = line, time.monotonic()

    def note(self, text: str) -> None:
        """Print a line that stays, above the line of progress."""
        if self._live:
            self._overwrite("")
            click.echo("\r", err=self._err, nl=False)
        show.echo(text, err=self._err)
        self._shown = ""

    def end(self) -> None:
        """Keep the last line on the screen."""
        if self._live and self._shown:
            show.echo(err=self._err)
            self._shown = ""

    def _overwrite(self, line: str) -> None:
        """Replace the line on the terminal; spaces work without control sequences, which NO_COLOR removes."""
        rest = len(show.unstyle(self._shown)) - len(show.unstyle(line))
        click.echo("\r", err=self._err, nl=False)
        show.echo(line + " " * rest, err=self._err, nl=False)


class Failures:
    """Why jobs of a batch failed: the indices of the jobs by reason."""

    def __init__(self, batch: AsyncBatch) -> None:
        self._batch = batch
        self._known: set[int] = set()
        self.reasons: dict[str, list[int]] = {}

    async def read(self, record: BatchRecord, indices: Iterable[int]) -> list[str]:
        """Read those of the jobs that failed, and return a line for each reason that is new."""
        missing = [index for index in indices if index not in self._known]
        new = []
        for job in await self._batch.jobs_at(record, missing) if missing else ():
            if job.status is JobStatus.ERROR:
                self._known.add(job.index)
                reason = _why_failed(job)
                if reason not in self.reasons:
                    new.append(show.style(f"job {job.index} failed: {reason}", fg="red"))
                self.reasons.setdefault(reason, []).append(job.index)
        return new

    def is_complete(self, record: BatchRecord) -> bool:
        return len(self._known) >= record.counts[JobStatus.ERROR]

    def repeated(self) -> list[str]:
        """Return a table of the reasons for which several jobs failed."""
        return reason_lines({reason: sorted(jobs) for reason, jobs in self.reasons.items() if len(jobs) > 1})


def reason_lines(reasons: Mapping[str, Sequence[int]]) -> list[str]:
    """Return a table of reasons, the most frequent first: the number of jobs that have no result for it, and which."""
    ranked = sorted(reasons.items(), key=lambda it: (-len(it[1]), it[1]))
    rows = [(len(jobs), show.ranges(jobs), show.style(reason, fg="red")) for reason, jobs in ranked[:_LISTED]]
    lines = show.table(("count", "jobs", "reason"), rows) if rows else []
    return [*lines, f"and {len(ranked) - _LISTED} other reasons"] if len(ranked) > _LISTED else lines


def _why_failed(job: JobRecord) -> str:
    return "; ".join(map(str, job.faults)) or "no reason was recorded"


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


async def follow(queue: AsyncQueue, batch_id: UUID, meter: Meter, *, until_closed: bool = False) -> BatchRecord:
    """Show the batch and why jobs fail until none is pending or running, and return it. Raises NotFound.

    until_closed: while the batch is open, wait for more jobs.
    """
    batch = queue.batch(batch_id)
    rate, progress, failures = _Rate(), dict[int, float](), Failures(batch)
    steps: dict[int, Steps] = {}
    hint: str | None = None
    explained: BatchRecord | None = None
    await batch.record()
    try:
        async with batch.news() as news:
            record, looked = await batch.record(), time.monotonic()
            failed: Iterable[int] = range(record.jobs)
            while True:
                ended = sum(count for status, count in record.counts.items() if status.terminal)
                per_s = rate.now(ended)
                if rate.still_for_s <= _STALLED_S or record.status is BatchStatus.PAUSED:
                    hint = None
                elif record is not explained:
                    hint, explained = await explain_standstill(batch, record, progress), record
                if record.counts[JobStatus.RUNNING] == 0:
                    progress.clear()
                    steps.clear()
                is_over = is_settled(record) and not (until_closed and record.open)
                if record.fault is None and not failures.is_complete(record):
                    for line in await failures.read(record, range(record.jobs) if is_over else failed):
                        meter.note(line)
                only = next(iter(steps.values())) if len(steps) == record.counts[JobStatus.RUNNING] == 1 else None
                meter.show(View(record, dict(progress), per_s, hint, only))
                if is_over:
                    meter.end()
                    for line in failures.repeated():
                        meter.note(line)
                    return record
                changes = await news.next(meter.interval_s)
                failed = read_progress(changes, progress, steps)
                if changes or time.monotonic() - looked >= _LOOK_AGAIN_S:
                    record, looked = await batch.record(), time.monotonic()
                    await asyncio.sleep(0 if is_settled(record) else meter.interval_s)  # news may come by the thousand
    finally:
        meter.end()


async def explain_standstill(batch: AsyncBatch, record: BatchRecord, progress: Mapping[int, float]) -> str | None:
    """Return why no job ends: what the batch waits for, or what a running job does that reports no progress."""
    device, names = await batch.queue.device(record.device), await read_names(batch.queue, record)
    why = describe_wait(record, device, datetime.now(UTC), clock, names)
    if why is not None or progress or not record.counts[JobStatus.RUNNING]:
        return why
    jobs = await batch.jobs_at(record, range(min(record.jobs, _EXAMINED)))
    return next((_note(job, reasons=False) for job in jobs if job.status is JobStatus.RUNNING), None)


def read_progress(changes: Iterable[Word | JobNews], progress: dict[int, float], steps: dict[int, Steps]) -> list[int]:
    """Update the fractions and steps of running jobs from news of the batch; return the jobs that failed."""
    failed: list[int] = []
    for news in changes:
        if isinstance(news, JobNews):
            if news.percent is not None:
                progress[news.index] = news.percent / 100
            if news.steps is not None:
                steps[news.index] = news.steps
            continue
        if news.letters[1] != JobStatus.RUNNING.letter:
            for index in news.jobs:
                progress.pop(index, None)
                steps.pop(index, None)
        if news.letters[1] == JobStatus.ERROR.letter:
            failed += news.jobs
    return failed


@contextlib.contextmanager
def explaining_interrupts(batches: Sequence[UUID]) -> Iterator[None]:
    """On Ctrl-C, report that the batch continues without this command. batches: the batch, once it is known."""
    try:
        yield
    except KeyboardInterrupt:
        for batch in map(short_id, batches):
            show.echo(
                f"The batch continues. To follow it again: tweezer watch {batch}; to stop it: tweezer cancel {batch}",
                err=True,
            )
            raise click.exceptions.Exit(INTERRUPTED) from None
        raise


@click.command()
@click.argument("batch", metavar="BATCH[/JOB]")
@click.option("--jobs", "all_jobs", is_flag=True, help="List all jobs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with all jobs.")
@pass_options
def status(options: Options, *, batch: str, all_jobs: bool, as_json: bool) -> None:
    """Show the state of a batch, and with a job's number that of the job."""
    named, index = split_job(batch)

    async def read(queue: AsyncQueue) -> tuple[BatchRecord, list[JobRecord], DeviceRecord | None, dict[UUID, str]]:
        handle = await queue.find(named)
        record = await handle.record()
        counts = record.counts
        needs_jobs = as_json or all_jobs or counts[JobStatus.RUNNING] or counts[JobStatus.ERROR] or record.cancels
        if index is not None:
            check_number(record, index)
            jobs = await handle.jobs_at(record, [index])
        else:
            jobs = await handle.jobs() if needs_jobs else []
        device = await queue.device(record.device) if record.may_wait else None
        return record, jobs, device, await read_names(queue, record)

    record, jobs, device, names = options.run(read)
    if as_json:
        print_json({**batch_as_json(record, device), "jobs": list(map(job_as_json, jobs))})
        return
    blocks = (
        _description(record, device, names),
        _failures(record, jobs) if index is None else [],
        cancel_lines(record, jobs),
        job_table(jobs if index is not None or all_jobs else _interesting(jobs), reasons=index is not None or all_jobs),
    )
    show.echo("\n\n".join("\n".join(block) for block in blocks if block))


@click.command()
@click.argument("batch")
@click.option("--follow", "until_closed", is_flag=True, help="While the batch is open, wait for more jobs.")
@pass_options
def watch(options: Options, *, batch: str, until_closed: bool) -> None:
    """Follow a batch live until its jobs have ended. The exit code is 1 unless all of them are DONE.

    Ctrl-C ends the command, not the batch.
    """
    found: list[UUID] = []

    async def run(queue: AsyncQueue) -> BatchRecord:
        found.append((await queue.find(batch)).id)
        return await follow(queue, found[0], Meter(err=False), until_closed=until_closed)

    with explaining_interrupts(found):
        record = options.run(run, patient=True)
    if record.open:
        show.echo(
            f"The batch is open for more jobs; close it with `tweezer close {short_id(record.id)}`, or wait for more "
            "with `tweezer watch --follow`.",
            err=True,
        )
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


async def read_names(queue: AsyncQueue, record: BatchRecord) -> dict[UUID, str]:
    """Return the name of the first batch that a batch waits for, by its id; nothing if it has none."""
    found = {}
    with contextlib.suppress(NotFound):
        for parent in record.waits_for[:1]:
            if name := (await queue.batch(parent).record()).doc.name:
                found[parent] = f"{name} ({short_id(parent)})"
    return found


def _description(
    record: BatchRecord, device: DeviceRecord | None, names: Mapping[UUID, str] | None = None
) -> list[str]:
    now = datetime.now(UTC)
    why = describe_wait(record, device, now, clock, names)
    start = None if record.starts_later(now) else record.not_before  # else `why` has it
    counts = ", ".join(f"{number} {show.status(status)}" for status, number in record.counts.items() if number)
    rows = [
        ("batch", short_id(record.id)),
        ("id", record.id),
        ("name", record.doc.name),
        ("tags", ", ".join(record.doc.tags)),
        ("status", f"{show.status(record.status)}{', open for more jobs' if record.open else ''}"),
        ("paused", record.pause and _paused(record.pause)),
        ("error", record.fault and show.style(str(record.fault), fg="red")),
        ("device", record.device),
        ("waits for", why and show.style(why, fg="yellow")),
        ("held idle", record.idle_s and f"{format_duration(record.idle_s)} on {record.device} without work"),
        ("priority", record.priority.value),
        *describe_rules(record.doc.limits, record.doc.rules or Rules()),
        ("jobs", f"{record.jobs}{f': {counts}' if counts else ''}"),
        ("submitted", f"{show.second(record.created)} ({_lasted(record.created)} ago)"),
        ("starts", start and f"not before {show.second(start)}"),
        ("expires", _expiry(record)),
        ("retried", record.retried and format_count(record.retried, "time")),
        ("started", record.started and _began(record, record.started)),
        ("ended", record.ended and _ended(record, record.ended)),
    ]
    return show.fields(rows)


def describe_rules(limits: Limits, rules: Rules) -> list[tuple[str, object]]:
    """Return rows about the rules of a batch, as far as they differ from the defaults."""
    retries = [] if limits.transient_retries == Limits().transient_retries else [f"{limits.transient_retries} per job"]
    retries += [] if rules.total_retries is None else [f"{rules.total_retries} in all"]
    threshold, late = rules.failure_threshold, rules.schedule_threshold_s
    depends_on = (f"{short_id(it.batch)} ({it.when})" for it in rules.depends_on)
    return [
        ("depends on", ", ".join(depends_on)),
        ("late after", late and format_duration(late)),
        ("queue timeout", rules.queue_timeout_s and format_duration(rules.queue_timeout_s)),
        ("on failures", threshold and f"{rules.on_failures} after {format_count(threshold, 'failed job')}"),
        ("retries", retries and f"at most {' and '.join(retries)}"),
        ("archived", None if rules.keep_s is None else f"{format_duration(rules.keep_s)} after its end"),
    ]


def _expiry(record: BatchRecord) -> str | None:
    """Return when a batch that has not started would time out."""
    if record.expires is None or record.started is not None or record.status.terminal:
        return None
    return f"unless it starts by {show.second(record.expires)}"


def _paused(pause: BatchPause) -> str:
    return f"by {pause.by} at {show.second(pause.at)}{f': {pause.reason}' if pause.reason else ''}"


def _began(record: BatchRecord, started: datetime) -> str:
    going_on = f" ({_lasted(started)} ago)" if record.ended is None else ""
    return f"{show.second(started)}{going_on}, queued for {_lasted(record.created, started)}"


def _ended(record: BatchRecord, ended: datetime) -> str:
    ran = f", ran for {_lasted(record.started, ended)}" if record.started is not None else ", never started"
    return f"{show.second(ended)}{ran}"


def _lasted(begin: datetime, end: datetime | None = None) -> str:
    return format_duration(max(((end or datetime.now(UTC)) - begin).total_seconds(), 0.0))


def _failures(record: BatchRecord, jobs: Iterable[JobRecord]) -> list[str]:
    """Return why jobs failed, unless it is the error of the whole batch."""
    reasons: dict[str, list[int]] = {}
    for job in jobs:
        if job.status is JobStatus.ERROR and record.fault is None:
            reasons.setdefault(_why_failed(job), []).append(job.index)
    return reason_lines(reasons)


def _interesting(jobs: list[JobRecord]) -> list[JobRecord]:
    """Return the jobs that are running, failed, or were cancelled after they started, up to a limit."""
    chosen = [job for job in jobs if job.status in (JobStatus.RUNNING, JobStatus.ERROR) or _was_stopped(job)]
    return chosen[:_LISTED]


def job_table(
    jobs: Iterable[JobRecord], *, reasons: bool, name: Callable[[JobRecord], object] = lambda job: job.index
) -> list[str]:
    """Return a table of jobs; no lines without any. reasons: show why they failed. name: the first cell of a job."""
    rows = []
    for job in jobs:
        queued, ran = ("" if it is None else format_duration(it) for it in (job.queue_s, job.device_s))
        runs = "" if job.spec.runs is None else job.spec.runs
        values, note = describe_values(job.spec.variables), _note(job, reasons=reasons)
        rows.append((name(job), show.status(job.status), runs, values, queued, ran, note))
    return show.table(("job", "status", "runs", "variables", "queued", "ran", "note"), rows) if rows else []


def _note(job: JobRecord, *, reasons: bool) -> str:
    """Return what a running job does, else how it ended, and the number of a repeated attempt."""
    if job.status is JobStatus.RUNNING and job.stage is not None:
        progress = "" if job.progress is None else f" {job.progress:.0%}"
        since = "" if job.stage_since is None else f" for {_lasted(job.stage_since)}"
        steps = "" if job.steps is None else f" ({job.steps})"
        notes = [f"{job.stage.value}{progress}{since}{steps}"]
    else:
        cancel = "" if job.cancel_outcome is None else f"cancel: {_words(job.cancel_outcome)}"
        notes = [cancel, *(map(str, job.faults) if reasons else ())]
    return "; ".join(filter(None, [f"attempt {job.attempt}" if job.attempt > 1 else "", *notes]))


def batch_as_json(record: BatchRecord, device: DeviceRecord | None) -> dict[str, Any]:
    """Return a batch, without its jobs, for output as JSON. device: its device, if it may wait for it."""
    return {
        "batch": record.id,
        **_fields(record, "status", "open", "project", "device", "priority"),
        **_fields(record.doc, "name", "tags", "user"),
        "counts": {status.value: count for status, count in record.counts.items()},
        **_rules_as_json(record),
        **_fields(record, "created", "not_before", "updated", "started", "ended", "idle_s", "pause"),
        "waits_for": describe_wait(record, device, datetime.now(UTC)),
        "error": record.fault and str(record.fault),
        "cancels": _cancels_as_json(record.cancels),
    }


def _rules_as_json(record: BatchRecord) -> dict[str, Any]:
    """Return the rules of a batch, with the names of a submit."""
    rules = record.doc.rules or Rules()
    return {
        "start_at": record.not_before,
        **_fields(rules, "schedule_threshold_s", "queue_timeout_s", "failure_threshold"),
        "on_failures": None if rules.failure_threshold is None else rules.on_failures,
        "retries": {"per_job": record.doc.limits.transient_retries, "total": rules.total_retries},
        "depends_on": [_fields(it, "batch", "when") for it in rules.depends_on],
        "waits_for_batches": record.waits_for,
        "expires": record.expires,
        "retried": record.retried,
        "keep_s": rules.keep_s,
    }


def job_as_json(job: JobRecord) -> dict[str, Any]:
    """Return a job for output as JSON."""
    return {
        **_fields(job, "id", "index", "status", "stage", "progress", "steps"),
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
