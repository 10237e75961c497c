"""Create, read and change schedules."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Select, delete, func, insert, select, update

from tweezer.ledger.access.projects import project_no
from tweezer.ledger.schedules.records import (
    SCHEDULES_MAX,
    Creator,
    Missed,
    Overlap,
    Schedule,
    ScheduleChange,
    ScheduleSettings,
    ScheduleStatus,
    ScheduleTick,
    TickOutcome,
    check_settings,
    check_template_tags,
)
from tweezer.ledger.schedules.timetable import Timetable, make_timetable
from tweezer.ledger.schema import as_datetime, now_ms, projects, schedule_ticks, schedules
from tweezer.model.checks import MAX_REASON_LENGTH, as_job_spec, check_text
from tweezer.model.errors import Conflict, InvalidInput, NotFound, QueueFull
from tweezer.model.messages import JobSpec
from tweezer.model.quotas import QuotaExceeded
from tweezer.model.sequence import sequence_text
from tweezer.store.producers import Admission, FindEnds, Submission

TICKS_SHOWN = 20
"""How many ticks the record of a single schedule has."""

_BY_MAX = 200
_TEMPLATE_MAX = 8 << 20
_SETTINGS = ("name", "cron", "time_zone", "every_s", "overlap", "missed", "grace_s")
_TIMING = ("cron", "time_zone", "every_s")


def pack_template(submission: Submission) -> bytes:
    """Pack the batch that a schedule submits. Raises InvalidInput."""
    jobs = [as_job_spec(job, index) for index, job in enumerate(submission.jobs)]
    sequence = None if submission.sequence is None else sequence_text(submission.sequence)
    kept = msgspec.structs.replace(
        submission, sequence=sequence, jobs=jobs, idempotency_key="", batch_id=None, user=None, trace=None
    )
    return zlib.compress(msgspec.json.encode(kept))


async def prepare_template(
    admission: Admission, submission: Submission, *, project_id: str, find_ends: FindEnds
) -> bytes:
    """Check the batch that a schedule submits as in a submit, and pack it.

    The queue may be full now, and have room at the next tick. Raises InvalidInput, Unavailable.
    """
    if submission.not_before is not None:
        raise InvalidInput("start_at", "is not possible in a schedule, which decides when its batches start; omit it")
    check_template_tags(submission.tags)
    started = msgspec.structs.replace(submission, not_before=datetime.now(UTC))
    try:
        await admission.check(started, project=project_id, find_ends=find_ends)
    except (QueueFull, QuotaExceeded) as error:
        if not error.retryable:
            raise
    packed = pack_template(submission)
    if len(packed) > _TEMPLATE_MAX:
        problem = f"must be at most {_TEMPLATE_MAX >> 20} MiB when compressed; use fewer jobs, or shorter sequences"
        raise InvalidInput("jobs", problem)
    return packed


def unpack_template(packed: bytes) -> Submission:
    found = msgspec.json.decode(zlib.decompress(packed), type=Submission)
    return msgspec.structs.replace(found, jobs=msgspec.convert(found.jobs, list[JobSpec]))


def create_schedule(
    connection: Connection,
    identity: UUID | None,
    settings: ScheduleSettings,
    template: bytes,
    *,
    project_id: str,
    creator: Creator,
) -> UUID:
    """Create a schedule and return its id. A repeated call with the same id and content changes nothing.

    Raises InvalidInput, and Conflict for a name or an id that exists, or if the project has too many schedules.
    """
    checked, now = check_settings(settings), now_ms()
    timetable = _make_timetable(checked, now)
    no = project_no(connection, project_id)
    alone = select(projects.c.no).where(projects.c.no == no).with_for_update(key_share=True)
    connection.execute(alone)  # otherwise two concurrent calls would get the same count
    identity = identity or uuid4()
    existing = connection.execute(select(schedules).where(schedules.c.id == identity)).one_or_none()
    values = {name: getattr(checked, name) for name in _SETTINGS}
    if existing is not None:
        same = values | {"template": template, "project": no}
        if any(getattr(existing, name) != value for name, value in same.items()):
            raise Conflict(f"schedule {identity} already exists; use another id", code="exists")
        return identity
    in_project = schedules.c.project == no
    if connection.execute(select(func.count()).where(in_project)).scalar_one() >= SCHEDULES_MAX:
        problem = f"schedules: at most {SCHEDULES_MAX} are allowed in project {project_id}; delete one first"
        raise Conflict(problem, code="too_many_schedules")
    _require_free_name(connection, no, checked.name)
    row = values | {
        "id": identity,
        "project": no,
        "anchor_ms": now,
        "template": template,
        "user": creator.user,
        "key": creator.key,
        "created_by": creator.by[:_BY_MAX],
        "status": ScheduleStatus.ACTIVE.value,
        "changed_by": creator.by[:_BY_MAX],
        "since_ms": now,
        "created_ms": now,
        "updated_ms": now,
        "revision": 1,
        "next_ms": timetable.next_after(now),
        "told": True,
    }
    connection.execute(insert(schedules).values(row))
    return identity


def change_schedule(
    connection: Connection,
    identity: UUID,
    change: ScheduleChange,
    template: bytes | None = None,
    *,
    project_ids: Collection[str] | None,
) -> Schedule:
    """Change the given settings. A new cron expression replaces an interval, and the reverse.

    Raises InvalidInput, NotFound, and Conflict for a name that exists, or another revision.
    """
    row = _lock(connection, identity, project_ids)
    if change.revision not in (None, row.revision):
        problem = f"schedule {row.name} has been changed in the meantime (revision {row.revision}); read it again"
        raise Conflict(problem, code="changed", field="revision")
    given = {name: value for name in _SETTINGS if (value := getattr(change, name)) is not None}
    current = {name: getattr(row, name) for name in _SETTINGS}
    if "cron" in given and "every_s" not in given:
        current["every_s"] = None
    if "every_s" in given and "cron" not in given:
        current["cron"] = None
    checked = check_settings(ScheduleSettings(**current | given))
    if checked.name != row.name:
        _require_free_name(connection, row.project, checked.name)
    values: dict[str, Any] = {name: getattr(checked, name) for name in _SETTINGS}
    if any(getattr(row, name) != values[name] for name in _TIMING):
        now = now_ms()
        timetable = _make_timetable(checked, now)
        values["anchor_ms"] = now
        if row.status == ScheduleStatus.ACTIVE:
            values["next_ms"] = timetable.next_after(now)
    if template is not None:
        values["template"] = template
    _write(connection, row, values)
    return find_schedule(connection, identity, project_ids)


def pause_schedule(
    connection: Connection, identity: UUID, *, creator: Creator, reason: str = "", project_ids: Collection[str] | None
) -> Schedule:
    """Pause a schedule: it has no ticks until it is resumed. A stopped one stays stopped. Raises NotFound."""
    if reason:
        check_text("reason", reason, MAX_REASON_LENGTH)
    row = _lock(connection, identity, project_ids)
    if row.status == ScheduleStatus.ACTIVE:
        _set_status(connection, row, ScheduleStatus.PAUSED, by=creator.by, reason=reason or None, next_ms=None)
    return find_schedule(connection, identity, project_ids)


def resume_schedule(
    connection: Connection, identity: UUID, *, creator: Creator, project_ids: Collection[str] | None
) -> Schedule:
    """Resume a paused or stopped schedule from now on. A stopped one gets the caller as its creator."""
    row = _lock(connection, identity, project_ids)
    if row.status != ScheduleStatus.ACTIVE:
        owner: dict[str, Any] = {}
        if row.status == ScheduleStatus.STOPPED:
            owner = {"user": creator.user, "key": creator.key, "created_by": creator.by[:_BY_MAX]}
        next_ms = timetable_of(row).next_after(now_ms())
        _set_status(connection, row, ScheduleStatus.ACTIVE, by=creator.by, reason=None, next_ms=next_ms, **owner)
    return find_schedule(connection, identity, project_ids)


def stop_schedule(connection: Connection, row: Row[Any], reason: str) -> None:
    """Stop a schedule whose creator has lost access. Its event is published later."""
    _set_status(
        connection,
        row,
        ScheduleStatus.STOPPED,
        by="tweezer",
        reason=reason[:MAX_REASON_LENGTH],
        next_ms=None,
        told=False,
    )


def delete_schedule(connection: Connection, identity: UUID, *, project_ids: Collection[str] | None) -> None:
    """Delete a schedule and its ticks. Its batches stay. Raises NotFound."""
    _lock(connection, identity, project_ids)
    connection.execute(delete(schedules).where(schedules.c.id == identity))  # also deletes its ticks


def find_schedule(
    connection: Connection, identity: UUID, project_ids: Collection[str] | None, *, ticks: int = 1
) -> Schedule:
    """Return a schedule with its last ticks. Raises NotFound."""
    row = connection.execute(_select(project_ids).where(schedules.c.id == identity)).one_or_none()
    if row is None:
        raise NotFound("schedule", str(identity))
    return _schedule(row, list_ticks(connection, identity, ticks), shows_ticks=ticks > 1)


def read_template(connection: Connection, identity: UUID) -> Submission:
    """Return the batch that the schedule submits. Raises NotFound."""
    packed = connection.execute(select(schedules.c.template).where(schedules.c.id == identity)).scalar()
    if packed is None:
        raise NotFound("schedule", str(identity))
    return unpack_template(packed)


def list_schedules(
    connection: Connection,
    project_ids: Collection[str] | None,
    *,
    name: str | None = None,
    status: ScheduleStatus | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[Schedule]:
    """Return the schedules of these projects, or of all, by name."""
    statement = _filtered(project_ids, name, status).order_by(schedules.c.name, schedules.c.id)
    rows = connection.execute(statement.limit(limit).offset(offset or None)).all()
    return [_schedule(row, list_ticks(connection, row.id, 1)) for row in rows]


def count_schedules(
    connection: Connection,
    project_ids: Collection[str] | None,
    *,
    name: str | None = None,
    status: ScheduleStatus | None = None,
) -> int:
    """Return the number of schedules that :func:`list_schedules` returns without a limit."""
    matching = _filtered(project_ids, name, status).with_only_columns(schedules.c.id).subquery()
    return connection.execute(select(func.count()).select_from(matching)).scalar_one()


def list_ticks(connection: Connection, identity: UUID, most: int) -> list[ScheduleTick]:
    """Return the last ticks of a schedule, newest first."""
    query = select(schedule_ticks).where(schedule_ticks.c.schedule == identity)
    order = (schedule_ticks.c.at_ms.desc(), schedule_ticks.c.key)
    return [read_tick(row) for row in connection.execute(query.order_by(*order).limit(most))]


def read_tick(row: Row[Any]) -> ScheduleTick:
    outcome = TickOutcome(row.outcome)
    return ScheduleTick(
        tick_at=as_datetime(row.at_ms),
        manual=row.manual,
        outcome=outcome,
        batch_id=row.batch if outcome is TickOutcome.SUBMITTED else None,
        code=row.code,
        message=row.message,
        missed=row.missed,
        updated_at=as_datetime(row.updated_ms),
    )


def timetable_of(row: Row[Any]) -> Timetable:
    """Return the timetable of a schedule. Raises InvalidInput if its time zone is unknown here."""
    return make_timetable(row.cron, row.time_zone, row.every_s, row.anchor_ms)


def _make_timetable(checked: ScheduleSettings, now: int) -> Timetable:
    every_s = None if checked.every_s is None else int(checked.every_s)
    return make_timetable(checked.cron, checked.time_zone, every_s, now)


def _require_free_name(connection: Connection, project: int, name: str) -> None:
    taken = select(schedules.c.id).where(schedules.c.project == project, schedules.c.name == name)
    if connection.execute(taken).first() is not None:
        problem = f"the project already has a schedule with the name {name}; choose another one"
        raise Conflict(problem, code="exists", field="name")


def _lock(connection: Connection, identity: UUID, project_ids: Collection[str] | None) -> Row[Any]:
    statement = _select(project_ids).where(schedules.c.id == identity).with_for_update(of=schedules)
    row = connection.execute(statement).one_or_none()
    if row is None:
        raise NotFound("schedule", str(identity))
    return row


def _set_status(
    connection: Connection, row: Row[Any], status: ScheduleStatus, *, by: str, reason: str | None, **values: Any
) -> None:
    changed = {"status": status.value, "changed_by": by[:_BY_MAX], "reason": reason, "since_ms": now_ms()}
    _write(connection, row, {"told": True} | changed | values)


def _write(connection: Connection, row: Row[Any], values: dict[str, Any]) -> None:
    values |= {"updated_ms": now_ms(), "revision": row.revision + 1}
    same = (schedules.c.id == row.id, schedules.c.revision == row.revision)  # schedulers do not lock the row
    connection.execute(update(schedules).where(*same).values(values))


def _filtered(project_ids: Collection[str] | None, name: str | None, status: ScheduleStatus | None) -> Select[Any]:
    conditions: list[ColumnElement[bool]] = []
    if name is not None:
        conditions.append(schedules.c.name == name)
    if status is not None:
        conditions.append(schedules.c.status == status.value)
    return _select(project_ids).where(*conditions)


def _select(project_ids: Collection[str] | None) -> Select[Any]:
    columns: Sequence[Any] = [it for it in schedules.c if it is not schedules.c.template]
    named = select(*columns, projects.c.id.label("project_id"))
    joined = named.join_from(schedules, projects, schedules.c.project == projects.c.no)
    return joined if project_ids is None else joined.where(projects.c.id.in_(sorted(project_ids)))


def _schedule(row: Row[Any], ticks: Sequence[ScheduleTick], *, shows_ticks: bool = False) -> Schedule:
    return Schedule(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        cron=row.cron,
        time_zone=row.time_zone,
        every_s=row.every_s,
        overlap=Overlap(row.overlap),
        missed=Missed(row.missed),
        grace_s=row.grace_s,
        status=ScheduleStatus(row.status),
        reason=row.reason,
        changed_by=row.changed_by,
        status_since=as_datetime(row.since_ms),
        created_by=row.created_by,
        user_id=row.user,
        created_at=as_datetime(row.created_ms),
        updated_at=as_datetime(row.updated_ms),
        revision=row.revision,
        next_at=as_datetime(row.next_ms),
        last=ticks[0] if ticks else None,
        ticks=tuple(ticks) if shows_ticks else (),
    )
