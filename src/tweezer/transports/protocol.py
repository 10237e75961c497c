"""What the Python client needs of a queue, in terms of records.

:class:`Transport` has one implementation for Redis and the ledger (:mod:`tweezer.transports.direct`), and one for the
HTTP API (:mod:`tweezer.transports.http`). A transport makes each call once; the client repeats it after Unavailable, so
every call is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID

import msgspec

from tweezer.ledger.bulk_actions import BulkOutcome, BulkRequest
from tweezer.ledger.queries.filters import BatchFilter
from tweezer.ledger.schedules.records import Schedule, ScheduleChange, ScheduleSettings
from tweezer.model.attempts import JobAttempt
from tweezer.model.errors import ResultUnavailable
from tweezer.model.events import Event, JobNews, Word
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import Priority, Result
from tweezer.model.webhooks import EventMessage
from tweezer.model.windows import Window
from tweezer.store.job_logs import JobLog
from tweezer.store.producers import CancelAnswer, CheckedSubmission, Submission
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord, WorkerRecord
from tweezer.store.streams.batch_events import LastEvent

JobWithResult = tuple[JobRecord, Result | ResultUnavailable | None]
"""A job with its result, None without one, or the error from reading it."""

Place = LastEvent | Literal["now"]
"""Where to continue to read events: after this one, or with the next that happens."""


class FeedPage(msgspec.Struct, frozen=True):
    """Some events of a project. next: where to continue. more: whether there may be more events now."""

    events: list[EventMessage]
    next: str
    more: bool


class Address(Protocol):
    """The arguments of a transport, which can be pickled."""

    def open(self) -> Transport: ...


class NewsReader(Protocol):
    """A subscription to the changes of a batch."""

    async def next(self, timeout_s: float | None) -> Sequence[Word | JobNews]:
        """Return what has changed; empty after ``timeout_s``, or if something may be missing: then read the state.

        Raises Unavailable; then subscribe again.
        """
        ...


class EventReader(Protocol):
    """A reader of the events of a batch, with its position."""

    @property
    def is_over(self) -> bool:
        """Whether the batch has ended and all of its events were returned."""
        ...

    async def read(self, wait_s: float) -> list[Event]:
        """Return the next events; empty if nothing happens within ``wait_s``."""
        ...


class Transport(Protocol):
    """Access to the batches of a project, and to all devices.

    Every method raises Unavailable. Batches of other projects are treated as if they did not exist.
    """

    @property
    def project(self) -> str | None:
        """Id of the project; None if it is left to the key."""
        ...

    @property
    def address(self) -> Address | None:
        """How to open another transport like this one; None if that is not possible."""
        ...

    @property
    def has_history(self) -> bool:
        """Whether batches that Redis has forgotten are found, too."""
        ...

    async def close(self) -> None: ...

    # --- batches

    async def submit(self, submission: Submission, *, again: bool) -> UUID:
        """Write a batch and return its id. again: whether an earlier, equal call may have taken effect."""
        ...

    async def check(self, submission: Submission) -> CheckedSubmission:
        """Check a submission without writing it."""
        ...

    async def batch(self, batch_id: UUID) -> BatchRecord: ...

    async def find(self, text: str) -> UUID:
        """Return the id of the batch that a short id, ``@last`` or a name means. Raises NotFound, Conflict."""
        ...

    async def batches(self, wanted: BatchFilter, *, without: Collection[UUID], most: int) -> list[BatchRecord]:
        """Return the newest batches that match, newest first, except some; without their sequences."""
        ...

    async def settled(self, batch_id: UUID, wait_s: float) -> BatchRecord:
        """Return the batch once none of its jobs is pending or running, or after ``wait_s`` at the latest."""
        ...

    async def add_jobs(self, batch_id: UUID, jobs: Sequence[object], *, idempotency_key: str) -> int:
        """Add jobs; return the index of the first of them."""
        ...

    async def close_batch(self, batch_id: UUID) -> None: ...

    async def cancel(self, batch_id: UUID, *, by: str, idempotency_key: str) -> None: ...

    async def cancel_jobs(
        self, batch_id: UUID, indices: Sequence[int], *, by: str, idempotency_key: str
    ) -> list[CancelAnswer]: ...

    async def retry(self, batch_id: UUID, statuses: Sequence[JobStatus], *, idempotency_key: str) -> UUID:
        """Submit the jobs with these statuses in a new batch; return its id."""
        ...

    async def act_on_matching(self, request: BulkRequest) -> BulkOutcome:
        """Cancel, retry or delete the next batches that match."""
        ...

    async def pause(self, batch_id: UUID, *, by: str, reason: str) -> None: ...

    async def resume(self, batch_id: UUID) -> None: ...

    async def set_priority(self, batch_id: UUID, priority: Priority) -> None: ...

    async def set_tags(self, batch_id: UUID, tags: Sequence[str]) -> None: ...

    # --- jobs

    async def job(self, job_id: UUID) -> JobRecord: ...

    async def jobs(self, batch: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        """Return jobs in the order of the indices; fewer if some were deleted."""
        ...

    async def results(self, batch: BatchRecord, indices: Sequence[int]) -> list[JobWithResult]:
        """Return the same jobs with their results."""
        ...

    async def result(self, job: JobRecord) -> JobWithResult:
        """Return a job that was read before, with its result."""
        ...

    async def attempts(self, job_id: UUID) -> list[JobAttempt]: ...

    async def logs(self, job_id: UUID, after: int) -> JobLog:
        """Return what the emulator wrote after this position; the caller has read the job before."""
        ...

    # --- changes

    def news(self, batch_id: UUID) -> AbstractAsyncContextManager[NewsReader]:
        """Subscribe to a batch. Read the state after entering: all later changes are reported."""
        ...

    def events(self, batch_id: UUID, after: Place | None) -> AbstractAsyncContextManager[EventReader]:
        """Read the events of a batch; None: from the first one."""
        ...

    async def feed(self, after: str | None, wait_s: float) -> FeedPage:
        """Return the next events of the project and of the devices, as soon as there are some within ``wait_s``.

        after: ``next`` of the last page, the id of an event, ``now``, or None for all events.
        """
        ...

    # --- devices

    async def devices(self) -> list[DeviceRecord]:
        """Return all devices, ordered by name."""
        ...

    async def device(self, name: str) -> DeviceRecord | None: ...

    async def workers(self) -> list[WorkerRecord]: ...

    async def pause_device(self, name: str, reason: str, *, until: datetime | None) -> None: ...

    async def resume_device(self, name: str) -> None: ...

    async def windows(self, device: str) -> list[Window]: ...

    async def plan(self, device: str, window: Window) -> None: ...

    async def drop(self, device: str, window_id: str) -> None: ...

    # --- schedules

    async def create_schedule(self, identity: UUID, settings: ScheduleSettings, template: Submission) -> Schedule: ...

    async def schedules(self, name: str | None = None) -> list[Schedule]:
        """Return all schedules, or those with this name, ordered by name."""
        ...

    async def schedule(self, identity: UUID) -> Schedule:
        """Return a schedule with its template and its last ticks."""
        ...

    async def change_schedule(
        self, identity: UUID, change: ScheduleChange, template: Submission | None
    ) -> Schedule: ...

    async def pause_schedule(self, identity: UUID, *, by: str, reason: str) -> Schedule: ...

    async def resume_schedule(self, identity: UUID, *, by: str) -> Schedule: ...

    async def run_schedule(self, identity: UUID, *, by: str, idempotency_key: str) -> UUID:
        """Submit the batch of a schedule now; return its id."""
        ...

    async def delete_schedule(self, identity: UUID) -> None: ...


def is_settled(record: BatchRecord) -> bool:
    """Return whether none of the batch's jobs is pending or running: it has ended, or is open and out of work."""
    return record.counts[JobStatus.PENDING] + record.counts[JobStatus.RUNNING] == 0 and (
        record.status.terminal or record.open
    )
