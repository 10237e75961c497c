"""Writes the recorder's rows and its new position to the ledger, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Connection, delete, insert, select, text, update

from tweezer.ledger.access.projects import insert_unless_there, project_no
from tweezer.ledger.config import DeadLetterBounds
from tweezer.ledger.database import Database, load
from tweezer.ledger.dead_letters import Consumer, add_waiting, park
from tweezer.ledger.recorder.changes import (
    BATCH_COLUMNS,
    JOB_AMOUNTS,
    JOB_COLUMNS,
    NAME_COLUMNS,
    NOTICE_COLUMNS,
    RESULT_COLUMNS,
    SIZE_COLUMNS,
    TRANSITION_COLUMNS,
    Changes,
)
from tweezer.ledger.schema import TIME_BOUNDS_MS, batches, counters, hours, jobs, now_ms, recorder, tags, totals
from tweezer.model.errors import TweezerError
from tweezer.model.ids import last_job_id
from tweezer.model.lifecycle import BATCH_BY_LETTER
from tweezer.model.messages import decode_doc, encode_doc
from tweezer.model.tasks import task_status


class Superseded(TweezerError):
    """Another recorder has continued from this position, so these changes are already in the ledger."""

    code = "superseded"

    def __init__(self) -> None:
        super().__init__("another recorder is active; this one is on standby")


_LIVE = {"jobs": "'P', 'R'", "batches": "'P', 'R', 'S'"}

_ONCE_WRITTEN = {
    "jobs": {"id", "project", "device", "user", "priority", "origin", "runs", "created_ms", "spec"},
    "batches": {
        *("id", "project", "device", "user", "priority", "origin", "created_ms", "parent", "about", "keep_ms"),
        # These change even after the batch has ended, because rows may be newer than the position.
        *("sequence_number", "previous", "changed_ms", "previous_ms"),
    },
}


def _bucket(time_ms: str) -> str:
    """Return an SQL expression for the bucket of a time, null without one: a binary search with four comparisons."""

    def search(first: int, last: int) -> str:
        if first == last:
            return str(first)
        middle = (first + last) // 2
        bound = TIME_BOUNDS_MS[middle]
        return f"CASE WHEN {time_ms} <= {bound} THEN {search(first, middle)} ELSE {search(middle + 1, last)} END"

    return f"CASE WHEN {time_ms} IS NOT NULL THEN {search(0, len(TIME_BOUNDS_MS))} END"


_QUEUE_MS = """CASE WHEN i.started_ms > COALESCE(j.created_ms, i.created_ms)
    THEN i.started_ms - COALESCE(j.created_ms, i.created_ms) WHEN i.started_ms IS NOT NULL THEN 0 END"""

_JOB_CHANGES = f"""
    SELECT i.project, i.device, j.status, i.status, i.created_ms / 3600000, i.ended_ms / 3600000,
           count(*), count(i.started_ms), sum({_QUEUE_MS}), sum(i.device_ms),
           {_bucket(_QUEUE_MS)}, {_bucket("i.device_ms")}
    FROM incoming_jobs i LEFT JOIN jobs j ON j.id = i.id
    WHERE j.id IS NULL OR j.status IN ('P', 'R')
    GROUP BY 1, 2, 3, 4, 5, 6, 11, 12
"""  # noqa: S608  our expressions
_BATCH_CHANGES = """
    SELECT i.project, i.device, b.status, i.status, count(*), b.failed > 0, i.failed > 0, b.archived_ms IS NOT NULL
    FROM incoming_batches i LEFT JOIN batches b ON b.id = i.id
    WHERE b.id IS NULL OR b.status IN ('P', 'R', 'S')
    GROUP BY 1, 2, 3, 4, 6, 7, 8
"""

_RAISE_SEQUENCE_NUMBERS = """
    UPDATE batches SET sequence_number = i.sequence_number,
        previous = CASE WHEN i.changed_ms IS NULL THEN batches.previous ELSE i.previous END,
        previous_ms = CASE WHEN i.changed_ms IS NULL THEN batches.previous_ms
            ELSE COALESCE(i.previous_ms, batches.changed_ms) END,
        changed_ms = COALESCE(i.changed_ms, batches.changed_ms)
    FROM incoming_batches i
    WHERE batches.id = i.id AND batches.sequence_number < i.sequence_number
"""

_BATCH_OF_JOB = {
    "sqlite": "CAST(substr(i.id, 1, 13) || x'000000' AS BLOB)",
    "postgresql": "CAST(substr(CAST(i.id AS text), 1, 30) || '000000' AS uuid)",
}
_ADD_JOBS_TO_BATCHES = """
    UPDATE batches SET shots = batches.shots + a.shots, device_ms = batches.device_ms + a.device_ms
    FROM (
        SELECT {batch} AS batch,
               CAST(SUM(CASE WHEN j.id IS NULL THEN i.shots ELSE 0 END) AS bigint) AS shots,
               CAST(SUM(CASE WHEN i.status IN ('D', 'E', 'C') THEN COALESCE(i.device_ms, 0) ELSE 0 END) AS bigint)
                   AS device_ms
        FROM incoming_jobs i LEFT JOIN jobs j ON j.id = i.id
        WHERE j.id IS NULL OR (j.status IN ('P', 'R') AND i.status IN ('D', 'E', 'C') AND i.device_ms > 0)
        GROUP BY 1
    ) a WHERE batches.id = a.batch
"""


class Writer:
    """The recorder's access to the database. Writes contain the previous position, so only one recorder succeeds."""

    def __init__(self, database: Database, namespace: str, bounds: DeadLetterBounds) -> None:
        self._database = database
        self._namespace = namespace
        self._bounds = bounds
        self._projects: dict[str, int] = {}

    def position(self, start: str) -> str:
        """Return the id of the last recorded entry; ``start`` without one. Raises Unavailable."""
        row = {"namespace": self._namespace, "position": start, "updated_ms": now_ms()}
        with self._database.write() as connection:
            insert_unless_there(connection, recorder, row)
            found = select(recorder.c.position).where(recorder.c.namespace == self._namespace)
            return str(connection.execute(found).scalar_one())

    def move(self, before: str, after: str) -> None:
        """Change the position and nothing else. Raises Superseded, Unavailable."""
        with self._database.write() as connection:
            self._move(connection, before, after)

    def write(self, changes: Changes, before: str, after: str) -> None:
        """Write the changes of the entries after ``before`` up to ``after`` atomically.

        Raises Superseded if the ledger's position is not ``before``; Unavailable.
        """
        try:
            with self._database.write() as connection:
                self._move(connection, before, after)
                self._write(connection, changes)
        except BaseException:
            self._projects.clear()
            raise

    def _move(self, connection: Connection, before: str, after: str) -> None:
        expected = (recorder.c.namespace == self._namespace, recorder.c.position == before)
        moved = connection.execute(update(recorder).where(*expected).values(position=after, updated_ms=now_ms()))
        if moved.rowcount != 1:
            raise Superseded

    def _write(self, connection: Connection, changes: Changes) -> None:
        if connection.dialect.name == "postgresql":
            # There are few new rows and millions of existing ones, so each is looked up by its key.
            for setting in ("enable_hashjoin", "enable_mergejoin", "enable_seqscan", "jit"):
                connection.exec_driver_sql(f"SET LOCAL {setting} = off")
        for row in changes.batches:
            row[1] = self._project(connection, row[1])
        for row in changes.jobs:
            row[1] = self._projects[row[1]]
        for row in changes.transitions:
            row[2] = self._project(connection, row[2])
        if changes.batches:
            self._upsert(connection, "batches", BATCH_COLUMNS, changes.batches)
            connection.exec_driver_sql(_RAISE_SEQUENCE_NUMBERS)
        sizes = [(batch, self._projects[project], size) for batch, project, size in changes.result_sizes]
        _insert(connection, "result_sizes", SIZE_COLUMNS, sizes, "(batch) DO UPDATE SET bytes = excluded.bytes")
        _insert(connection, "sequences", ("id", "sequence"), changes.sequences)
        tags = [(self._projects[project], tag, batch) for project, tag, batch in changes.tags]
        _insert(connection, "tags", ("project", "tag", "batch"), tags)
        names = [(self._projects[project], *row) for project, *row in changes.names]
        _insert(connection, "batch_names", NAME_COLUMNS, names)
        for batch_id, replaced in changes.retagged.items():
            replace_tags(connection, batch_id, replaced)
        for batch_id, priority in changes.priorities.items():
            _change_priority(connection, batch_id, priority)
        if changes.jobs:
            self._upsert(connection, "jobs", JOB_COLUMNS, changes.jobs, JOB_AMOUNTS)
        _insert(connection, "results", RESULT_COLUMNS, changes.results)
        _insert(connection, "transitions", TRANSITION_COLUMNS, changes.transitions)
        _insert(connection, "notices", NOTICE_COLUMNS, changes.notices)
        for project, activity_ms in changes.activity_ms.items():
            connection.execute(
                text("UPDATE projects SET last_activity_ms = :time WHERE no = :no"),
                {"no": self._projects[project], "time": activity_ms},
            )

        add_waiting(connection, Consumer.RECORDER, changes.behind)
        park(connection, Consumer.RECORDER, changes.letters, self._bounds)

    def _project(self, connection: Connection, project: str) -> int:
        if project not in self._projects:
            self._projects[project] = project_no(connection, project)
        return self._projects[project]

    def _upsert(
        self,
        connection: Connection,
        table: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        more: Sequence[str] = (),
    ) -> None:
        """Insert new rows and update live ones; rows that have ended are not changed, so that the first end counts."""
        _stage(connection, table, (*columns, *more), rows, more)
        _update_counters(connection, table)
        names = ", ".join(f'"{column}"' for column in columns)
        changing = [column for column in columns if column not in _ONCE_WRITTEN[table]]
        sets = ", ".join(f'"{column}" = excluded."{column}"' for column in changing)
        connection.exec_driver_sql(
            f"INSERT INTO {table} ({names}) SELECT {names} FROM incoming_{table} WHERE true "  # noqa: S608  our names
            f"ON CONFLICT (id) DO UPDATE SET {sets} WHERE {table}.status IN ({_LIVE[table]})"
        )


def _stage(
    connection: Connection,
    table: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    amounts: Sequence[str] = (),
) -> None:
    """Load rows into a temporary table with the columns of the real one, and with columns for further amounts."""
    staged = f"incoming_{table}"
    more = "".join(f", CAST(0 AS bigint) AS {name}" for name in amounts)
    on_commit = " ON COMMIT DELETE ROWS" if connection.dialect.name == "postgresql" else ""
    # CREATE … AS keeps the types and drops the constraints.
    connection.exec_driver_sql(
        f"CREATE TEMP TABLE IF NOT EXISTS {staged}{on_commit} AS SELECT *{more} FROM {table} WHERE false"  # noqa: S608
    )
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"DELETE FROM {staged}")  # noqa: S608
    load(connection, staged, columns, rows)


def _insert(
    connection: Connection,
    table: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    on_conflict: str = "DO NOTHING",
) -> None:
    """Insert the rows that do not exist yet."""
    if not rows:
        return
    _stage(connection, table, columns, rows)
    names = ", ".join(f'"{column}"' for column in columns)
    connection.exec_driver_sql(
        f"INSERT INTO {table} ({names}) SELECT {names} FROM incoming_{table} WHERE true ON CONFLICT {on_conflict}"  # noqa: S608
    )


def _update_counters(connection: Connection, table: str) -> None:
    """Update the counters, the sums by hour and the totals for the staged rows, before these are applied."""
    changed: dict[tuple[int, str, str, str], int] = {}
    by_hour: dict[tuple[int, str, int], list[int]] = {}
    ever: dict[tuple[str, str, int], list[int]] = {}

    def count(project: int, device: str, status: str, change: int) -> None:
        place = (project, device, table[0].upper(), status)
        changed[place] = changed.get(place, 0) + change

    def add(project: int, device: str, hour: int, at: int, *amounts: int) -> None:
        sums = by_hour.setdefault((project, device, hour), [0] * len(_SUMS))
        for offset, amount in enumerate(amounts):
            sums[at + offset] += amount

    def total(device: str, kind: str, bucket: int | None, rows: int, sum_ms: int | None = 0) -> None:
        if bucket is not None:
            sums = ever.setdefault((device, kind, bucket), [0, 0])
            sums[0] += rows
            sums[1] += int(sum_ms or 0)

    def count_task(project: int, device: str, status: str, has_failures: bool, change: int) -> None:
        task = task_status(BATCH_BY_LETTER[status], has_failures=bool(has_failures))
        place = (project, device, "T", task.letter)
        changed[place] = changed.get(place, 0) + change

    for row in connection.exec_driver_sql(_JOB_CHANGES if table == "jobs" else _BATCH_CHANGES):
        project, device, was, status = row[:4]
        rows = row[6] if table == "jobs" else row[4]
        if table == "batches" and not row[7]:
            if was is not None:
                count_task(project, device, was, row[5], -rows)
            count_task(project, device, status, row[6], rows)
        if was is not None:
            count(project, device, was, -rows)
        count(project, device, status, rows)
        if table == "jobs":
            created, ended, _, begun, queue_ms, device_ms, queue_bucket, run_bucket = row[4:]
            if was is None:
                add(project, device, created, 0, rows)
            if status in _ENDS:
                add(project, device, ended, _ENDS[status], rows)
                add(project, device, ended, 4, begun, int(queue_ms or 0), int(device_ms or 0))
                total(device, status, 0, rows)
                total(device, "Q", queue_bucket, rows, queue_ms)
                total(device, "R", run_bucket, rows, device_ms)
    if table == "jobs":
        batch = _BATCH_OF_JOB[connection.dialect.name]
        connection.exec_driver_sql(_ADD_JOBS_TO_BATCHES.format(batch=batch))
    _add_up(connection, counters.name, ("project", "device", "kind", "status"), ("count",), changed)
    _add_up(connection, hours.name, ("project", "device", "hour"), _SUMS, by_hour)
    _add_up(connection, totals.name, ("device", "kind", "bucket"), ("count", "sum_ms"), ever)


_SUMS = ("created", "done", "error", "canceled", "started", "queue_ms", "device_ms")
_ENDS = {"D": 1, "E": 2, "C": 3}


def _add_up(
    connection: Connection, table: str, key: Sequence[str], sums: Sequence[str], amounts: dict[Any, Any]
) -> None:
    rows = [
        dict(zip((*key, *sums), (*place, *(amount if isinstance(amount, list) else [amount])), strict=True))
        for place, amount in sorted(amounts.items())
    ]
    if rows:
        names, marks = ", ".join((*key, *sums)), ", ".join(f":{name}" for name in (*key, *sums))
        sets = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in sums)
        connection.execute(
            text(f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT ({', '.join(key)}) DO UPDATE SET {sets}"),  # noqa: S608
            rows,
        )


def _change_priority(connection: Connection, batch_id: UUID, priority: str) -> None:
    """Change the priority of a batch and of those of its jobs that the ledger has."""
    connection.execute(update(batches).where(batches.c.id == batch_id).values(priority=priority))
    of_batch = jobs.c.id.between(batch_id, last_job_id(batch_id))
    connection.execute(update(jobs).where(of_batch).values(priority=priority))


def replace_tags(connection: Connection, batch_id: UUID, replaced: Sequence[str]) -> bool:
    """Replace the tags of a batch in any status; return whether the ledger has the batch."""
    row = connection.execute(select(batches.c.project, batches.c.about).where(batches.c.id == batch_id)).one_or_none()
    if row is None:
        return False
    about = encode_doc(msgspec.structs.replace(decode_doc(row.about), tags=tuple(replaced)))
    connection.execute(update(batches).where(batches.c.id == batch_id).values(about=about))
    connection.execute(delete(tags).where(tags.c.batch == batch_id))
    if replaced:
        connection.execute(
            insert(tags), [{"project": row.project, "tag": tag, "batch": batch_id} for tag in dict.fromkeys(replaced)]
        )
    return True
