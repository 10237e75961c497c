"""Repeats jobs of a batch in a new batch: for rebatch and for retries."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

import msgspec

from tweezer import tracing
from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.batch_reader import BatchReader
from tweezer.model.arguments import shown
from tweezer.model.errors import Conflict, InvalidInput
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import MAX_JOBS_PER_CALL
from tweezer.model.rules import Rules
from tweezer.store.connection import Store
from tweezer.store.producers import Submission, id_of
from tweezer.store.records import BatchRecord, JobRecord

UNSUCCESSFUL = (JobStatus.ERROR, JobStatus.CANCELED)
"""The statuses of jobs that a retry repeats."""

_PAGE = 500  # jobs per read


def check_unsuccessful(field: str, statuses: Collection[object]) -> tuple[JobStatus, ...]:
    """Return the statuses of the jobs to repeat, given in upper or lower case. Raises InvalidInput."""
    names = [status.upper() if isinstance(status, str) else status for status in statuses]
    for name in names:
        if name not in UNSUCCESSFUL:
            raise InvalidInput(field, f"must be {' or '.join(UNSUCCESSFUL)} (got {shown(name)})")
    if not names:
        raise InvalidInput(field, f"is empty; name {' or '.join(UNSUCCESSFUL)}, or omit it for both")
    return tuple(status for status in UNSUCCESSFUL if status in names)


def nothing_to_retry(batch_id: UUID, statuses: Collection[JobStatus]) -> InvalidInput:
    """Return the error for a batch that has no job with one of the statuses."""
    return InvalidInput("status", f"no job of batch {batch_id} is {' or '.join(statuses)}; there is nothing to retry")


def build_repetition(
    batch: BatchRecord, jobs: Sequence[JobRecord], *, user: str | None, idempotency_key: str
) -> Submission:
    """Return the submission of a batch that repeats these jobs of another batch, and starts as soon as it can."""
    doc, rules = batch.doc, batch.doc.rules
    return Submission(
        sequence=doc.sequence,
        jobs=[msgspec.structs.replace(job.spec, parent_id=str(job.id)) for job in jobs],
        device=batch.device,
        priority=batch.priority,
        name=doc.name,
        tags=doc.tags,
        webhook=doc.webhook,
        backend_configuration=doc.backend_configuration,
        configuration=doc.configuration,
        limits=doc.limits,
        idempotency_key=idempotency_key,
        user=user,
        parent_id=str(batch.id),
        rules=None if rules is None else _without_start(rules),
    )


async def retry_batch(
    store: Store,
    reader: BatchReader,
    caller: Principal,
    batch_id: UUID,
    *,
    statuses: Collection[JobStatus],
    idempotency_key: str,
) -> UUID:
    """Submit the jobs of a closed batch that have one of the statuses in a new batch; return its id.

    Raises NotFound; Conflict for an open batch; InvalidInput if there is no such job, or if there are too many.
    """
    batch = await reader.batch(caller, batch_id)
    if batch.open and not batch.status.terminal:
        raise Conflict(f"batch {batch_id} is open; add the jobs to it, or close it first", code="open")
    jobs = await _find_jobs(reader, batch, statuses)
    if not jobs:
        raise nothing_to_retry(batch_id, statuses)
    submission = build_repetition(batch, jobs, user=caller.user, idempotency_key=idempotency_key)
    submission = msgspec.structs.replace(submission, trace=tracing.current())
    child = id_of(await store.admission.write(submission, project=batch.project))
    await store.commands.note_child(batch_id, child)
    return child


async def _find_jobs(reader: BatchReader, batch: BatchRecord, statuses: Collection[JobStatus]) -> list[JobRecord]:
    found: list[JobRecord] = []
    for first in range(0, batch.jobs, _PAGE):
        page = await reader.jobs(batch, range(first, min(first + _PAGE, batch.jobs)))
        found += [job for job in page if job.status in statuses]
        if len(found) > MAX_JOBS_PER_CALL:
            problem = f"more than {MAX_JOBS_PER_CALL} jobs of batch {batch.id} would be repeated; rebatch some of them"
            raise InvalidInput("jobs", problem)
    return found


def _without_start(rules: Rules) -> Rules:
    """Return the rules that a repeated batch keeps: those that do not concern when the first one started."""
    return msgspec.structs.replace(rules, schedule_threshold_s=None, depends_on=())
