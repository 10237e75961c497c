"""What ``tweezer status`` says of cancels: who asked, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tweezer.cli import show
from tweezer.model.cancels import CancelAttempt, CancelOutcome
from tweezer.store.records import BatchRecord, JobRecord

_LISTED = 10


def cancel_lines(record: BatchRecord, jobs: Iterable[JobRecord]) -> list[str]:
    """The last attempts to cancel jobs of the batch, and the sum of their outcomes; none where nobody tried."""
    if not record.cancels:
        return []
    last = record.cancels[-_LISTED:]
    rows = [(f"{it.at.astimezone():%Y-%m-%d %H:%M:%S}", "all" if it.ranges is None else it.jobs, it.by) for it in last]
    lines = show.table(("cancel asked", "jobs", "by"), rows)
    if len(record.cancels) > len(last):
        lines.append(f"and {len(record.cancels) - len(last)} before")
    outcomes = Counter(job.cancel_outcome for job in jobs)
    if came := [f"{outcomes[outcome]} {_words(outcome)}" for outcome in CancelOutcome if outcomes[outcome]]:
        lines.append(f"outcome: {', '.join(came)}")
    return lines


def cancel_note(job: JobRecord) -> str:
    """What the cancel of a job came to, in a few words; empty without one, and before it ended."""
    return "" if job.cancel_outcome is None else f"cancel: {_words(job.cancel_outcome)}"


def was_stopped(job: JobRecord) -> bool:
    """Whether a cancel met more than a job that waited."""
    return job.cancel_outcome not in (None, CancelOutcome.PREVENTED)


def attempt_json(attempt: CancelAttempt) -> dict[str, Any]:
    """The attempt for ``--json``."""
    return {"at": attempt.at, "by": attempt.by, "jobs": attempt.jobs}


def _words(outcome: CancelOutcome) -> str:
    return outcome.value.replace("_", " ")
