"""Filters and orders of lists.

A filter applies to rows of the ledger, where it becomes SQL, and to records that were read from Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

from tweezer.model.ids import short_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Priority
from tweezer.model.rules import RULE_FAULTS
from tweezer.store.records import BatchRecord, JobRecord

LIMIT_MAX = 100
"""Maximum number of rows on a page."""


_OF_BATCHES = ("batches", "projects", "users", "devices", "priorities", "origins", "tags_any", "tags_all")


class Origin(StrEnum):
    """The origin of a batch. In Tweezer it is always CLIENT."""

    CLIENT = "CLIENT"
    AZURE = "AZURE"
    UNKNOWN = "UNKNOWN"


class BatchOrder(StrEnum):
    """The fields that batches can be ordered by, with Pasqal's names. Statuses are ordered by their letters."""

    CREATED = "created_at"
    UPDATED = "updated_at"
    STARTED = "start_datetime"
    ENDED = "end_datetime"
    STATUS = "status"
    OPEN = "open"
    JOBS = "jobs_count"
    DEVICE = "device_type"
    USER = "user_id"
    PRIORITY = "queue_priority"
    ORIGIN = "origin"
    ID = "id"


class JobOrder(StrEnum):
    """The fields that jobs can be ordered by. CREATION orders by the batches' ids and, within a batch, by index."""

    CREATED = "created_at"
    UPDATED = "updated_at"
    STARTED = "start_timestamp"
    ENDED = "end_timestamp"
    STATUS = "status"
    RUNS = "runs"
    ERRORS = "errors"
    DEVICE = "device_type"
    USER = "user_id"
    PRIORITY = "queue_priority"
    ORIGIN = "origin"
    BATCH = "batch_id"
    CREATION = "creation_order"
    ID = "id"


class PageRequest(msgspec.Struct, frozen=True):
    """A page of a list. Rows with equal values are ordered by id in the same direction; those without one are last."""

    descending: bool = True
    limit: int = LIMIT_MAX
    offset: int = 0
    counted: bool = True
    """Whether the total is needed; else that of the page is only the number of rows so far."""


class _Filter(msgspec.Struct, frozen=True, kw_only=True):
    ids: tuple[UUID, ...] = ()
    id_prefix: str = ""
    projects: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    priorities: tuple[Priority, ...] = ()
    origins: tuple[Origin, ...] = ()
    started_from: datetime | None = None
    ended_to: datetime | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None
    tags_any: tuple[str, ...] = ()
    tags_all: tuple[str, ...] = ()

    @property
    def names_rows(self) -> bool:
        """Whether the filter restricts the ids, and so matches few rows."""
        return bool(self.ids or self.id_prefix)

    def _takes_batch(self, batch: BatchRecord) -> bool:
        """Return whether the batch meets the criteria that it shares with its jobs."""
        tags = set(batch.doc.tags)
        return (
            _among(batch.project, self.projects)
            and _among(batch.doc.user, self.users)
            and _among(batch.device, self.devices)
            and _among(batch.priority, self.priorities)
            and _among(Origin.CLIENT, self.origins)
            and (not self.tags_any or not tags.isdisjoint(self.tags_any))
            and tags.issuperset(self.tags_all)
        )

    def _takes_row(self, row: BatchRecord | JobRecord) -> bool:
        """Return whether a batch or a job meets the criteria that concern itself."""
        return (
            self.takes_id(row.id)
            and _within(row.started, self.started_from, None)
            and _within(row.ended, None, self.ended_to)
            and _within(row.created, self.created_from, self.created_to)
        )

    def takes_id(self, identity: UUID) -> bool:
        """Return whether a batch or job with this id may match."""
        return _among(identity, self.ids) and identity.hex.startswith(self.id_prefix)

    def id_range(self) -> tuple[UUID, UUID]:
        """Return the first and last id with the prefix."""
        return UUID(self.id_prefix.ljust(32, "0")), UUID(self.id_prefix.ljust(32, "f"))


class BatchFilter(_Filter, frozen=True, kw_only=True):
    """A filter for batches, which must match all given criteria. Empty and None criteria are ignored.

    Bounds and times are inclusive. depends_on: ids of batches, of which it depends on at least one. id_prefix:
    hexadecimal digits. ``started_from`` matches only batches that have started, ``ended_to`` only those that have
    ended. with_live: also match batches that have not ended in the ledger but may have changed since, if they meet the
    criteria that never change.
    """

    short_id: str = ""
    names: tuple[str, ...] = ()
    depends_on: tuple[UUID, ...] = ()
    statuses: tuple[BatchStatus, ...] = ()
    open: bool | None = None
    jobs_min: int | None = None
    jobs_max: int | None = None
    with_live: bool = False

    @property
    def names_rows(self) -> bool:
        return super().names_rows or bool(self.short_id or self.names or self.depends_on)

    def takes_id(self, identity: UUID) -> bool:
        return super().takes_id(identity) and self.short_id in ("", short_id(identity))

    def takes(self, batch: BatchRecord) -> bool:
        """Return whether the batch matches."""
        return (
            self._takes_batch(batch)
            and self._takes_row(batch)
            and _among(batch.doc.name, self.names)
            and (not self.depends_on or not _parents(batch).isdisjoint(self.depends_on))
            and _among(batch.status, self.statuses)
            and self.open in (None, batch.open)
            and _within(batch.jobs, self.jobs_min, self.jobs_max)
        )


class JobFilter(_Filter, frozen=True, kw_only=True):
    """A filter for jobs, like :class:`BatchFilter`.

    Users, devices, priorities, origins and tags are those of the job's batch. failed: whether the job has an error.
    """

    batches: tuple[UUID, ...] = ()
    statuses: tuple[JobStatus, ...] = ()
    runs_min: int | None = None
    runs_max: int | None = None
    failed: bool | None = None

    def takes_from(self, batch: BatchRecord) -> bool:
        """Return whether jobs of this batch may match."""
        return _among(batch.id, self.batches) and self._takes_batch(batch)

    @property
    def takes_whole_batches(self) -> bool:
        """Whether all jobs of a matching batch match."""
        same = dict.fromkeys(_OF_BATCHES, ())
        return msgspec.structs.replace(self, **same) == JobFilter()

    def takes(self, job: JobRecord) -> bool:
        """Return whether a job of a matching batch matches."""
        return (
            self._takes_row(job)
            and _among(job.status, self.statuses)
            and _within(job.spec.runs, self.runs_min, self.runs_max)
            and self.failed in (None, _has_failed(job))
        )


def job_key(order: JobOrder) -> Callable[[JobRecord], Any] | None:
    """Return the sort key for jobs of one batch; None to order by index, or if all have the same value."""
    return _JOB_KEYS.get(order)


def _parents(batch: BatchRecord) -> set[UUID]:
    """Return the batches that a batch depends on."""
    return set() if batch.doc.rules is None else {it.batch for it in batch.doc.rules.depends_on}


def _has_failed(job: JobRecord) -> bool:
    """Return whether the job has a fault, as in the ledger's column: a job that a rule cancelled has not failed."""
    return job.status is JobStatus.ERROR or any(fault.code not in RULE_FAULTS for fault in job.faults)


def _among(value: object, wanted: Collection[object]) -> bool:
    return not wanted or value in wanted


def _within(value: Any, least: Any, most: Any) -> bool:
    if least is None and most is None:
        return True
    return value is not None and (least is None or value >= least) and (most is None or value <= most)


_JOB_KEYS: dict[JobOrder, Callable[[JobRecord], Any]] = {
    JobOrder.CREATED: lambda job: job.created,
    JobOrder.UPDATED: lambda job: job.updated,
    JobOrder.STARTED: lambda job: job.started,
    JobOrder.ENDED: lambda job: job.ended,
    JobOrder.STATUS: lambda job: job.status.letter,
    JobOrder.RUNS: lambda job: job.spec.runs,
    JobOrder.ERRORS: _has_failed,
}
