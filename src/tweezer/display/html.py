"""Batches, jobs and results as HTML for notebooks and pages, readable on light and dark backgrounds.

Styles are attributes, because notebooks remove style sheets from what they do not trust. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, cast

from tweezer.display.svg import BAR_COLOUR, draw_histogram
from tweezer.model.ids import short_id, short_job_id
from tweezer.model.lifecycle import JobStatus
from tweezer.model.summaries import (
    cut,
    cut_middle,
    describe_counts,
    describe_values,
    format_count,
    format_duration,
    rank,
)

if TYPE_CHECKING:
    from tweezer.client import Finished
    from tweezer.model.messages import Result
    from tweezer.store.records import BatchRecord, JobRecord

STATUS_COLOURS = {
    "PENDING": "#888888",
    "PAUSED": "#888888",
    "RUNNING": BAR_COLOUR,
    "DONE": "#0a8f68",
    "ERROR": "#d55e00",
    "CANCELED": "#b8649a",
    "TIMED_OUT": "#a07400",
}
"""The colour of the dot or bar of a status, of at least 3:1 on white and on black. The word is always beside it."""

MAX_ROWS = 20
_TOP = 3
_NOTE = 120
_CELL = "text-align:left;padding:2px 12px 2px 0;vertical-align:top"
_BAR_ROW = "display:flex;align-items:center;gap:6px;white-space:nowrap"
_BAR = f"background:{BAR_COLOUR};flex:none;height:8px;border-radius:2px"
_BOX = '<div style="font-size:13px;line-height:1.5;max-width:960px">'


def draw_status(status: str) -> str:
    """Return the word of a status after a dot in its colour."""
    return f'<span style="color:{STATUS_COLOURS[status]}">●</span>&nbsp;{escape(status)}'


def draw_counts(counts: Mapping[JobStatus, int]) -> str:
    """Return a bar of the jobs by status: what is done first, then what failed, was cancelled, runs and waits."""
    order = (JobStatus.DONE, JobStatus.ERROR, JobStatus.CANCELED, JobStatus.RUNNING)
    total = sum(counts.values()) or 1
    parts = "".join(
        f'<div style="width:{100 * counts[status] / total:.2f}%;background:{STATUS_COLOURS[status]}"></div>'
        for status in order
        if counts.get(status)
    )
    return (
        f'<div role="img" aria-label="{escape(describe_counts(counts))}" style="display:flex;height:8px;width:320px;'
        f'max-width:100%;margin:4px 0;border-radius:4px;overflow:hidden;background:#88888844">{parts}</div>'
    )


def draw_batch(record: BatchRecord, jobs: Sequence[JobRecord | Finished] = (), *, note: str = "") -> str:
    """Return a batch: a line about it, a bar of its jobs by status, and a table of the given jobs."""
    name = f" “{escape(cut(record.doc.name))}”" if record.doc.name else ""
    about = [draw_status(record.status), escape(record.device), escape(describe_counts(record.counts))]
    if record.open:
        about.append("open for more jobs")
    if record.waits_for and not record.status.terminal:
        about.append(f"waits for the end of {format_count(len(record.waits_for), 'batch')}")
    elif record.starts_later(datetime.now(UTC)) and record.not_before is not None:
        about.append(f"starts at {record.not_before.astimezone():%Y-%m-%d %H:%M %Z}")
    head = f"<div><b>batch</b> <code>{short_id(record.id)}</code>{name}<br>{' · '.join(about)}</div>"
    fault = _error(str(record.fault)) if record.fault is not None else ""
    table = draw_table(jobs, of=record.jobs) if jobs else ""
    return f"{_BOX}{head}{draw_counts(record.counts)}{fault}{_small(note)}{table}</div>"


def draw_job(job: JobRecord | Finished) -> str:
    """Return a job: a line about it, the histogram of its shots, and the reason if it failed."""
    record, result, error = read_parts(job)
    values = describe_values(record.spec.variables)
    about = [f"<b>job</b> <code>{short_job_id(record.id)}</code>", draw_status(record.status)]
    if values:
        about.append(f"<code>{escape(values)}</code>")
    if record.device_s is not None:
        about.append(f"took {format_duration(record.device_s)}")
    drawn = draw_histogram(result.counter) if result is not None and result.counter is not None else ""
    return f"{_BOX}<div>{' · '.join(about)}</div>{_error(error) if error else ''}{drawn}</div>"


def draw_jobs(jobs: Sequence[JobRecord | Finished]) -> str:
    """Return jobs as a table."""
    return f"{_BOX}{draw_table(jobs, of=len(jobs)) if jobs else 'no jobs'}</div>"


def draw_table(jobs: Sequence[JobRecord | Finished], *, of: int) -> str:
    """Return a table of the first jobs, and a line about how many more there are."""
    shown = jobs[:MAX_ROWS]
    header = ("job", "status", "variables", "shots", "most frequent", "took", "note")
    head = "".join(f'<th style="{_CELL};font-weight:bold">{name}</th>' for name in header)
    rows = "".join(f"<tr>{''.join(_cell(cell) for cell in _cells(job))}</tr>" for job in shown)
    more = (
        _small(f"and {format_count(of - len(shown), 'more job')}; to_dataframe() has them all")
        if of > len(shown)
        else ""
    )
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<table style="border-collapse:collapse;margin:4px 0;font-size:inherit">{body}</table>{more}'


def read_parts(job: JobRecord | Finished) -> tuple[JobRecord, Result | None, str | None]:
    """Return the record of a job, its result, and why it failed or its result cannot be read."""
    record = cast("JobRecord", getattr(job, "record", job))
    error: str | None = getattr(job, "error", None) or "; ".join(map(str, record.faults)) or None
    return record, getattr(job, "data", None), error


def _cells(job: JobRecord | Finished) -> tuple[str, ...]:
    record, result, error = read_parts(job)
    counter = None if result is None else result.counter
    runs = sum(counter.values()) if counter is not None else record.spec.runs or record.spec.runs_shown
    doing = record.stage if record.status is JobStatus.RUNNING else None
    note = error or ("" if doing is None else doing.value)
    if doing is not None and error is None:
        note += "" if record.progress is None else f" {record.progress:.0%}"
        note += "" if record.steps is None else f" ({record.steps})"
    return (
        f"<code>{short_job_id(record.id)}</code>",
        draw_status(record.status),
        escape(describe_values(record.spec.variables)),
        "" if runs is None else str(runs),
        _most_frequent(counter or {}),
        "" if record.device_s is None else format_duration(record.device_s).replace(" ", "&nbsp;"),
        escape(cut(note, _NOTE)),
    )


def _most_frequent(counter: Mapping[str, int]) -> str:
    shots = sum(counter.values())
    rows = (
        f'<div style="{_BAR_ROW}"><code>{escape(cut_middle(bits, 24))}</code>'
        f'<span style="{_BAR};width:{80 * count / shots:.0f}px"></span>{count / shots:.0%}</div>'
        for bits, count in rank(counter)[:_TOP]
        if count
    )
    return "".join(rows)


def _cell(content: str) -> str:
    return f'<td style="{_CELL}">{content}</td>'


def _error(text: str) -> str:
    return f'<div><span style="color:{STATUS_COLOURS["ERROR"]}">▲</span>&nbsp;{escape(cut(text, 500))}</div>'


def _small(text: str) -> str:
    return f'<div style="opacity:0.75">{escape(text)}</div>' if text else ""
