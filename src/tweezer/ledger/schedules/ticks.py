"""The ticks of schedules in the ledger: which are due, who handles them, and what became of them.

A tick has one row, whose key is its time, so it exists once however many schedulers there are and however their clocks
move. ``due_ms`` of the row is when a scheduler handles it next: at once, after a failed try, or at the end of the lease
of the scheduler that handles it now. A tick whose batch is submitted stays due until the ledger has that batch: if
Redis loses it before, it is submitted again, with the same id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID, uuid4

import msgspec
import structlog
from sqlalchemy import Connection, Row, Select, and_, delete, exists, func, or_, select, update

from tweezer.ledger.access.projects import insert_unless_there
from tweezer.ledger.schedules.records import (
    Creator,
    Missed,
    Overlap,
    ScheduleStatus,
    ScheduleTick,
    TickOutcome,
    make_batch_id,
)
from tweezer.ledger.schedules.schedules import find_schedule, read_tick, stop_schedule, timetable_of
from tweezer.ledger.schema import (
    batches,
    insert_into,
    keys,
    members,
    now_ms,
    projects,
    schedule_ticks,
    schedule_totals,
    schedules,
    users,
)
from tweezer.model.errors import InvalidInput
from tweezer.model.lifecycle import TERMINAL_BATCH

log = structlog.get_logger(__name__)

LEASE_MS = 60_000
"""How long a scheduler may handle a tick before another one takes it over."""

KEPT_MS = 7 * 86_400_000
"""How long ticks are kept. The last one of each schedule is always kept."""

_OVER = frozenset(status.letter for status in TERMINAL_BATCH)
_AHEAD_MS = 1000
_REWIND_MAX = 10_000


class ClaimedTick(msgspec.Struct, frozen=True):
    """A tick that this scheduler handles until the end of its lease.

    Attributes:
        lease_ms: The end of the lease.
        recorded: Whether the ledger has its batch.
        superseded: Whether a later tick of the schedule is due, too.
        last_batch: The batch of the last other tick that was submitted.
        last_over: Whether the ledger says that this batch has ended; None if the ledger does not have it.
    """

    schedule: UUID
    key: str
    name: str
    project: str
    at_ms: int
    manual: bool
    batch: UUID
    user: str | None
    outcome: TickOutcome
    code: str | None
    message: str | None
    missed: int
    tries: int
    updated_ms: int
    lease_ms: int
    overlap: Overlap
    policy: Missed
    grace_ms: int
    template: bytes
    recorded: bool = False
    superseded: bool = False
    last_batch: UUID | None = None
    last_over: bool | None = None


class TickChange(msgspec.Struct, frozen=True):
    """What became of a claimed tick. due_ms: when it is handled next; None: nothing is left to do."""

    tick: ClaimedTick
    outcome: TickOutcome
    due_ms: int | None
    code: str | None = None
    message: str | None = None


class StoppedSchedule(msgspec.Struct, frozen=True):
    """A schedule that was stopped, for its event."""

    id: UUID
    name: str
    project: str
    reason: str
    since_ms: int


class ScheduleHealth(msgspec.Struct, frozen=True):
    """Counts of schedules and ticks, for metrics and the doctor.

    Attributes:
        statuses: Number of schedules by status.
        ticks: Number of ticks that ever had an outcome.
        last_lag_s: How late the last tick was submitted, in seconds.
        overdue_s: Age of the oldest tick that no scheduler has handled, in seconds; 0 without one.
        overdue: The name of its schedule, and the id of that schedule's project.
    """

    statuses: dict[ScheduleStatus, int]
    ticks: dict[TickOutcome, int]
    last_lag_s: float
    overdue_s: float
    overdue: tuple[str, str] | None = None


def is_work_due(connection: Connection, now: int) -> bool:
    """Return whether a tick is due."""
    coming = select(schedules.c.id).where(schedules.c.next_ms <= now).limit(1)
    begun = select(schedule_ticks.c.key).where(schedule_ticks.c.due_ms <= now).limit(1)
    return any(connection.execute(query).first() is not None for query in (coming, begun))


def begin_ticks(connection: Connection, now: int, most: int) -> None:
    """Create the ticks that are due, and move their schedules to the next ones.

    A schedule whose creator has lost access is stopped instead. Of several ticks that are due together only the last is
    created; it has the number of the others.
    """
    due = _select_schedules().where(schedules.c.next_ms <= now).order_by(schedules.c.next_ms).limit(most)
    for row in connection.execute(due).all():
        if (reason := _describe_loss(row, now)) is not None:
            _stop(connection, row, reason)
            continue
        try:
            timetable = timetable_of(row)
            last_ms, earlier = timetable.due(row.next_ms, now)
            next_ms = timetable.next_after(now)
        except InvalidInput as error:  # the time zone is unknown on this host, or the expression has no further ticks
            _stop(connection, row, error.message)
            continue
        same = (schedules.c.id == row.id, schedules.c.next_ms == row.next_ms, schedules.c.revision == row.revision)
        moved = connection.execute(update(schedules).where(*same).values(next_ms=next_ms, last_ms=last_ms))
        if moved.rowcount:  # else another scheduler was first
            _insert_tick(connection, row.id, str(last_ms), last_ms, now=now, user=row.user, missed=earlier)
            if earlier:
                _count(connection, TickOutcome.SKIPPED, earlier, lag_ms=0)


def begin_run(
    connection: Connection, schedule: UUID, idempotency_key: str, *, creator: Creator, projects_seen: Any
) -> ScheduleTick | ClaimedTick:
    """Create and claim the tick of a run on request; return it, or what became of it if the call is a repeated one.

    Raises NotFound.
    """
    find_schedule(connection, schedule, projects_seen)
    key, now = f"run {idempotency_key or uuid4()}", now_ms()
    _insert_tick(connection, schedule, key, now, now=now, user=creator.user, manual=True)
    own = (schedule_ticks.c.schedule == schedule, schedule_ticks.c.key == key)
    row = connection.execute(select(schedule_ticks).where(*own)).one()
    if row.outcome != TickOutcome.PENDING or row.due_ms is None or row.due_ms > now:
        return read_tick(row)
    (claimed,) = claim_ticks(connection, now, 1, only=and_(*own))
    return claimed


def claim_ticks(connection: Connection, now: int, most: int, *, only: Any = True) -> list[ClaimedTick]:
    """Claim ticks that are due, so that no other scheduler handles them before the end of the lease."""
    query = (
        select(
            schedule_ticks,
            schedules.c.name,
            schedules.c.overlap,
            schedules.c.missed.label("policy"),
            schedules.c.grace_s,
            schedules.c.template,
            projects.c.id.label("project_id"),
        )
        .join(schedules, schedules.c.id == schedule_ticks.c.schedule)
        .join(projects, projects.c.no == schedules.c.project)
        .where(schedule_ticks.c.due_ms <= now, only)
        .order_by(schedule_ticks.c.due_ms, schedule_ticks.c.at_ms)
        .limit(most)
    )
    claimed = []
    for row in connection.execute(query).all():
        same = (*_is_tick(row), schedule_ticks.c.due_ms == row.due_ms)
        lease = {"due_ms": now + LEASE_MS, "tries": schedule_ticks.c.tries + 1}
        taken = connection.execute(update(schedule_ticks).where(*same).values(lease))
        if taken.rowcount:
            claimed.append(_claimed_tick(connection, row, now))
    return claimed


def write_changes(connection: Connection, changes: Iterable[TickChange], now: int) -> list[TickChange]:
    """Record what became of claimed ticks; return what was recorded.

    A submitted batch is recorded even if the lease has ended, because it exists; everything else is then left to the
    scheduler that has taken over.
    """
    written = []
    for change in changes:
        tick, outcome = change.tick, change.outcome
        own = [schedule_ticks.c.schedule == tick.schedule, schedule_ticks.c.key == tick.key]
        if outcome is not TickOutcome.SUBMITTED:
            own.append(schedule_ticks.c.due_ms == tick.lease_ms)
        values: dict[str, Any] = {"due_ms": change.due_ms}
        is_new = outcome is not tick.outcome
        if is_new:
            values |= {"outcome": outcome.value, "updated_ms": now, "code": change.code, "message": change.message}
        if connection.execute(update(schedule_ticks).where(*own).values(values)).rowcount:
            written.append(change)
            if is_new and outcome is not TickOutcome.PENDING:
                _count(connection, outcome, 1, lag_ms=max(now - tick.at_ms, 0))
    return written


def stop_orphans(connection: Connection, now: int) -> None:
    """Stop the active schedules whose creators have lost access, before their next tick."""
    active = schedules.c.status == ScheduleStatus.ACTIVE.value
    lost = or_(
        and_(schedules.c.key.is_not(None), or_(keys.c.id.is_(None), keys.c.revoked_ms.is_not(None))),
        keys.c.expires_ms <= now,
        and_(schedules.c.user.is_not(None), or_(users.c.id.is_(None), users.c.disabled_ms.is_not(None))),
        and_(schedules.c.user.is_not(None), schedules.c.key.is_(None), ~_IS_MEMBER),
    )
    for row in connection.execute(_select_schedules().where(active, lost)).all():
        if (reason := _describe_loss(row, now)) is not None:
            _stop(connection, row, reason)


def stop_in_project(connection: Connection, project_id: str) -> None:
    """Stop the schedules of a project that is to be deleted."""
    of_project = select(projects.c.no).where(projects.c.id == project_id).scalar_subquery()
    there = (schedules.c.project == of_project, schedules.c.status != ScheduleStatus.STOPPED.value)
    for row in connection.execute(_select_schedules().where(*there)).all():
        _stop(connection, row, "its project is being deleted")


def rewind(connection: Connection, now: int) -> None:
    """Move schedules whose last tick is in the future back: the clock was ahead. Ticks that exist do not run again."""
    ahead = schedules.c.last_ms > now + _AHEAD_MS
    for row in connection.execute(_select_schedules().where(ahead, schedules.c.next_ms.is_not(None))).all():
        timetable = timetable_of(row)
        next_ms = timetable.next_after(now)
        for _ in range(_REWIND_MAX):
            known = (schedule_ticks.c.schedule == row.id, schedule_ticks.c.key == str(next_ms))
            if next_ms >= row.next_ms or connection.execute(select(schedule_ticks.c.key).where(*known)).first() is None:
                break
            next_ms = timetable.next_after(next_ms)
        if next_ms < row.next_ms:
            same = (schedules.c.id == row.id, schedules.c.next_ms == row.next_ms)
            connection.execute(update(schedules).where(*same).values(next_ms=next_ms))


def untold_stops(connection: Connection) -> list[StoppedSchedule]:
    """Return the stopped schedules whose event was not published yet."""
    query = select(schedules, projects.c.id.label("project_id")).join(projects, projects.c.no == schedules.c.project)
    rows = connection.execute(query.where(schedules.c.told.is_(False))).all()
    return [StoppedSchedule(row.id, row.name, row.project_id, row.reason or "", row.since_ms) for row in rows]


def note_told(connection: Connection, stopped: Sequence[StoppedSchedule]) -> None:
    """Record that the events of these stops were published."""
    for it in stopped:
        same = (schedules.c.id == it.id, schedules.c.since_ms == it.since_ms)
        connection.execute(update(schedules).where(*same).values(told=True))


def delete_old_ticks(connection: Connection, now: int) -> int:
    """Delete ticks that ended long ago, except the last one of each schedule; return their number."""
    later = schedule_ticks.alias("later")
    has_later = exists().where(later.c.schedule == schedule_ticks.c.schedule, later.c.at_ms > schedule_ticks.c.at_ms)
    old = (schedule_ticks.c.at_ms < now - KEPT_MS, schedule_ticks.c.due_ms.is_(None), has_later)
    return connection.execute(delete(schedule_ticks).where(*old)).rowcount


def read_schedule_health(connection: Connection) -> ScheduleHealth:
    """Count schedules and ticks."""
    by_status = connection.execute(select(schedules.c.status, func.count()).group_by(schedules.c.status))
    statuses = dict.fromkeys(ScheduleStatus, 0) | {ScheduleStatus(status): count for status, count in by_status}
    counts = dict.fromkeys((it for it in TickOutcome if it is not TickOutcome.PENDING), 0)
    last_lag_ms = 0
    for outcome, count, lag_ms in connection.execute(select(schedule_totals)):
        counts[TickOutcome(outcome)] = count
        last_lag_ms = lag_ms if outcome == TickOutcome.SUBMITTED else last_lag_ms
    first = (
        select(schedules.c.next_ms, schedules.c.name, projects.c.id)
        .join(projects, projects.c.no == schedules.c.project)
        .where(schedules.c.next_ms.is_not(None))
        .order_by(schedules.c.next_ms)
        .limit(1)
    )
    row = connection.execute(first).first()
    overdue_s = 0.0 if row is None else max(now_ms() - row[0], 0) / 1000
    return ScheduleHealth(
        statuses,
        counts,
        last_lag_ms / 1000,
        overdue_s,
        (row[1], row[2]) if row is not None and overdue_s else None,
    )


# -----------------------------------------------------------------------------------------------------------

_IS_MEMBER = exists().where(members.c.user == schedules.c.user, members.c.project == schedules.c.project)


def _select_schedules() -> Select[Any]:
    """Select schedules with what shows whether their creators still have access."""
    return (
        select(
            schedules,
            keys.c.id.label("key_id"),
            keys.c.revoked_ms,
            keys.c.expires_ms,
            users.c.id.label("user_id"),
            users.c.name.label("user_name"),
            users.c.disabled_ms,
            _IS_MEMBER.label("is_member"),
        )
        .join_from(schedules, keys, keys.c.id == schedules.c.key, isouter=True)
        .join(users, users.c.id == schedules.c.user, isouter=True)
    )


def _describe_loss(row: Row[Any], now: int) -> str | None:
    """Return why the creator of a schedule may not submit any more; None if that is possible."""
    if row.user is not None:
        if row.user_id is None:
            return "its creator, a user, was deleted"
        if row.disabled_ms is not None:
            return f"its creator, user {row.user_name}, is disabled"
        if row.key is None and not row.is_member:
            return f"its creator, user {row.user_name}, is no longer in the project"
    if row.key is not None:
        if row.key_id is None:
            return f"the key that created it, {row.key}, was deleted"
        if row.revoked_ms is not None:
            return f"the key that created it, {row.key}, is revoked"
        if row.expires_ms is not None and row.expires_ms <= now:
            return f"the key that created it, {row.key}, has expired"
    return None


def _stop(connection: Connection, row: Row[Any], reason: str) -> None:
    log.warning("schedule.stopped", schedule=str(row.id), name=row.name, reason=reason)
    stop_schedule(connection, row, reason)


def _insert_tick(
    connection: Connection,
    schedule: UUID,
    key: str,
    at_ms: int,
    *,
    now: int,
    user: str | None,
    missed: int = 0,
    manual: bool = False,
) -> None:
    row = {
        "schedule": schedule,
        "key": key,
        "at_ms": at_ms,
        "manual": manual,
        "batch": make_batch_id(schedule, key, at_ms),
        "user": user,
        "outcome": TickOutcome.PENDING.value,
        "missed": missed,
        "tries": 0,
        "updated_ms": now,
        "due_ms": now,
    }
    insert_unless_there(connection, schedule_ticks, row)


def _is_tick(row: Row[Any]) -> tuple[Any, Any]:
    return schedule_ticks.c.schedule == row.schedule, schedule_ticks.c.key == row.key


def _claimed_tick(connection: Connection, row: Row[Any], now: int) -> ClaimedTick:
    tick = ClaimedTick(
        schedule=row.schedule,
        key=row.key,
        name=row.name,
        project=row.project_id,
        at_ms=row.at_ms,
        manual=row.manual,
        batch=row.batch,
        user=row.user,
        outcome=TickOutcome(row.outcome),
        code=row.code,
        message=row.message,
        missed=row.missed,
        tries=row.tries + 1,
        updated_ms=row.updated_ms,
        lease_ms=now + LEASE_MS,
        overlap=Overlap(row.overlap),
        policy=Missed(row.policy),
        grace_ms=row.grace_s * 1000,
        template=row.template,
    )
    if tick.outcome not in (TickOutcome.PENDING, TickOutcome.SUBMITTED):
        return tick
    own = connection.execute(select(batches.c.id).where(batches.c.id == row.batch)).first()
    tick = msgspec.structs.replace(tick, recorded=own is not None)
    if tick.recorded or tick.outcome is TickOutcome.SUBMITTED or tick.manual:
        return tick
    others = schedule_ticks.c.schedule == row.schedule
    is_later = (schedule_ticks.c.at_ms > row.at_ms) & (schedule_ticks.c.at_ms <= now)  # or the clock was set back
    later = (others, schedule_ticks.c.manual.is_(False), is_later)
    superseded = connection.execute(select(schedule_ticks.c.key).where(*later).limit(1)).first() is not None
    last = (
        select(schedule_ticks.c.batch, batches.c.status)
        .join(batches, batches.c.id == schedule_ticks.c.batch, isouter=True)
        .where(others, schedule_ticks.c.outcome == TickOutcome.SUBMITTED.value)
        .order_by(schedule_ticks.c.at_ms.desc())
        .limit(1)
    )
    found = connection.execute(last).first()
    if found is None:
        return msgspec.structs.replace(tick, superseded=superseded)
    over = None if found[1] is None else found[1] in _OVER
    return msgspec.structs.replace(tick, superseded=superseded, last_batch=found[0], last_over=over)


def _count(connection: Connection, outcome: TickOutcome, more: int, *, lag_ms: int) -> None:
    given = insert_into(connection, schedule_totals).values(outcome=outcome.value, count=more, lag_ms=lag_ms)
    counted = {"count": schedule_totals.c.count + more, "lag_ms": lag_ms}
    connection.execute(given.on_conflict_do_update(index_elements=["outcome"], set_=counted))
