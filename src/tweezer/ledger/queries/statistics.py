"""Statistics of devices and projects from the ledger. All functions block and raise Unavailable."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import Connection, Integer, Select, func, literal_column, select

from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.database import Database
from tweezer.ledger.queries.lists import Scope, last_job_in
from tweezer.ledger.schema import TIME_BOUNDS_MS, as_datetime, batches, hours, jobs, projects, totals
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import Priority

_EPOCH, _HOUR, _DAY_H = datetime.fromtimestamp(0, UTC), timedelta(hours=1), 24


class QueueSize(msgspec.Struct, frozen=True):
    """The work of one priority that waits for a device. shots: sum of the ``runs`` of its jobs, where they are set."""

    batches: int = 0
    jobs: int = 0
    shots: int = 0


class QueueTime(msgspec.Struct, frozen=True):
    """The average time between submit and begin. jobs: number of jobs. seconds: None without jobs."""

    jobs: int = 0
    seconds: float | None = None


class Span(StrEnum):
    """The time span of a count, in UTC."""

    HOUR = "HOUR"
    DAY = "DAY"
    MONTH = "MONTH"

    def start(self, time: datetime) -> datetime:
        """Return the beginning of the span that contains the time."""
        match self:
            case Span.HOUR:
                return time.replace(minute=0, second=0, microsecond=0)
            case Span.DAY:
                return time.replace(hour=0, minute=0, second=0, microsecond=0)
            case Span.MONTH:
                return time.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


class SpanCount(msgspec.Struct, frozen=True):
    """The number of jobs that were submitted in the span that begins at this time, by device."""

    start: datetime
    devices: dict[str, int]


class LastActivity(msgspec.Struct, frozen=True):
    """The time of the last change in a project; None without changes."""

    project: str
    time: datetime | None


def queue_sizes(database: Database, device: str) -> dict[Priority, QueueSize]:
    """Return the work that waits for the device, of all projects: batches with pending jobs, and these jobs."""
    pending = (jobs.c.status == JobStatus.PENDING.letter) & jobs.c.id.between(batches.c.id, last_job_in(batches.c.id))
    waiting: Select[Any] = select(
        batches.c.priority,
        select(func.count()).select_from(jobs).where(pending).scalar_subquery(),
        select(func.coalesce(func.sum(jobs.c.runs), 0)).where(pending).scalar_subquery(),
    ).where(batches.c.device == device, batches.c.ended_ms.is_(None))
    found = {priority[0]: QueueSize() for priority in Priority}
    with database.read() as connection:
        for letter, count, shots in connection.execute(waiting):
            if count:
                size = found[letter]
                found[letter] = QueueSize(size.batches + 1, size.jobs + count, size.shots + int(shots))
    return {priority: found[priority[0]] for priority in Priority}


def queue_times(database: Database, since: datetime) -> dict[str, QueueTime]:
    """Return queue times by device, of jobs of all projects that have begun and ended since then (to the hour)."""
    sums: Select[Any] = (
        select(hours.c.device, func.sum(hours.c.started), func.sum(hours.c.queue_ms))
        .select_from(projects.join(hours, hours.c.project == projects.c.no))
        .where(hours.c.hour >= _hour(since), hours.c.started > 0)
        .group_by(hours.c.device)
    )
    with database.read() as connection:
        rows = connection.execute(sums).all()
    return {device: QueueTime(int(jobs), int(waited_ms) / int(jobs) / 1000) for device, jobs, waited_ms in rows}


def job_counts(
    database: Database, caller: Principal, wanted: tuple[str, ...], span: Span, since: datetime, until: datetime
) -> list[SpanCount]:
    """Count the jobs that were submitted to the caller's projects, or the wanted ones of these, by span and device.

    The period is from the beginning of the span with ``since`` to the end of the hour with ``until``. Spans without
    jobs are omitted.
    """
    step = literal_column("1" if span is Span.HOUR else str(_DAY_H), Integer)
    period = (hours.c.hour // step).label("period")
    with database.read() as connection:
        scope = Scope.read(connection, caller, wanted)
        sums: Select[Any] = (
            select(period, hours.c.device, func.sum(hours.c.created))
            .where(
                *scope.condition(hours),
                hours.c.hour.between(_hour(span.start(since)), _hour(until)),
                hours.c.created > 0,
            )
            .group_by(period, hours.c.device)
        )
        rows = connection.execute(sums).all()
    found: dict[datetime, Counter[str]] = {}
    for at, device, count in rows:
        start = span.start(_EPOCH + _HOUR * at * (1 if span is Span.HOUR else _DAY_H))
        found.setdefault(start, Counter())[device] += int(count)
    return [SpanCount(start, dict(found[start])) for start in sorted(found)]


def last_activity(database: Database, caller: Principal, wanted: tuple[str, ...] = ()) -> list[LastActivity]:
    """Return the last change in each of the caller's projects, or the wanted ones of these, ordered by id."""
    with database.read() as connection:
        scope = Scope.read(connection, caller, wanted)
        times: Select[Any] = select(projects.c.id, projects.c.last_activity_ms).where(projects.c.no.in_(scope.projects))
        rows = connection.execute(times.order_by(projects.c.id)).all()
    return [LastActivity(row.id, as_datetime(row.last_activity_ms)) for row in rows]


def _hour(time: datetime) -> int:
    return (time - _EPOCH) // _HOUR


class JobTimes(msgspec.Struct, frozen=True):
    """Times of jobs of a device: their number in each bucket of ``TIME_BOUNDS_MS`` and beyond, and their sum."""

    counts: list[int]
    sum_s: float


class DeviceTotals(msgspec.Struct, frozen=True):
    """The jobs of a device that have ever ended, of all projects, also those that were deleted.

    ended: their number by status. queued: times from submit to begin, of jobs that had begun. ran: their times on the
    device.
    """

    ended: dict[JobStatus, int]
    queued: JobTimes
    ran: JobTimes


def device_totals(connection: Connection) -> dict[str, DeviceTotals]:
    """Return the totals of each device with jobs that have ended."""
    found: dict[str, dict[str, dict[int, tuple[int, int]]]] = {}
    for device, kind, bucket, count, sum_ms in connection.execute(select(totals).order_by(totals.c.device)):
        found.setdefault(device, {}).setdefault(kind, {})[bucket] = (int(count), int(sum_ms))

    def times(rows: dict[int, tuple[int, int]]) -> JobTimes:
        counts = [rows.get(bucket, (0, 0))[0] for bucket in range(len(TIME_BOUNDS_MS) + 1)]
        return JobTimes(counts, sum(sum_ms for _, sum_ms in rows.values()) / 1000)

    return {
        device: DeviceTotals(
            {status: kinds.get(status.letter, {}).get(0, (0, 0))[0] for status in JobStatus if status.terminal},
            times(kinds.get("Q", {})),
            times(kinds.get("R", {})),
        )
        for device, kinds in found.items()
    }
