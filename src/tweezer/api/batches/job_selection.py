"""The jobs of a batch that a filter means."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from tweezer.api.http.responses import RequestRefused
from tweezer.api.read_model import ReadModel
from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.queries.filters import JobFilter
from tweezer.model.ids import split_job_id
from tweezer.model.messages import MAX_JOBS_PER_CALL
from tweezer.store.records import BatchRecord, JobRecord


async def chosen_jobs(live: ReadModel, caller: Principal, batch: BatchRecord, wanted: JobFilter) -> list[JobRecord]:
    """Return the current jobs in creation order. Raises RequestRefused when there are more than a call may touch."""
    if not wanted.takes_from(batch):
        return []
    found: list[JobRecord] = []
    async with contextlib.aclosing(live.pages(caller, batch, _named(batch, wanted))) as pages:
        async for jobs in pages:
            found += filter(wanted.takes, jobs)
            if len(found) > MAX_JOBS_PER_CALL:
                problem = (
                    f"more than {MAX_JOBS_PER_CALL} jobs are meant, the most of one call; name them by id or status"
                )
                raise RequestRefused(413, "too_many_jobs", problem, field="id")
    return found


def _named(batch: BatchRecord, wanted: JobFilter) -> Sequence[int]:
    """The indices that the ids of the filter name, or all of the batch."""
    if not wanted.ids:
        return range(batch.jobs)
    named = (split_job_id(identity) for identity in wanted.ids)
    return sorted({index for batch_id, index in named if batch_id == batch.id and index < batch.jobs})
