"""Tasks: failed jobs, shots, device time, transitions and archiving of batches, and counters by task status."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"

_Id = sa.LargeBinary(16).with_variant(postgresql.UUID(as_uuid=True), "postgresql")
_PAGE = 10_000  # jobs read at once
_INDEX_BITS = 24
_SHOTS_MAX = 10**12  # of one job
_EXECUTION = 6  # the position of the time on the device in the words of a job's state

_LIST = (
    *("project", "created_ms", "id", "status", "open", "device", "user", "priority", "origin"),
    *("jobs", "started_ms", "ended_ms", "updated_ms"),
)

_COUNT_TASKS = """
    INSERT INTO counters (project, device, kind, status, count)
    SELECT project, device, 'T',
           CASE WHEN status IN ('P', 'S') THEN 'P' WHEN status IN ('R', 'C') THEN status
                WHEN status = 'D' AND failed = 0 THEN 'S' ELSE 'F' END AS coarse,
           count(*)
    FROM batches GROUP BY project, device, coarse
"""


def upgrade() -> None:
    zero: dict[str, Any] = {"nullable": False, "server_default": "0"}
    op.add_column("batches", sa.Column("failed", sa.Integer, **zero))
    for name in ("shots", "device_ms"):
        op.add_column("batches", sa.Column(name, sa.BigInteger, **zero))
    op.add_column("batches", sa.Column("previous", sa.String(1)))
    for name in ("changed_ms", "previous_ms", "keep_ms", "archived_ms"):
        op.add_column("batches", sa.Column(name, sa.BigInteger))
    connection = op.get_bind()
    _fill(connection)
    connection.exec_driver_sql(_COUNT_TASKS)
    op.drop_index("ix_batches_list", "batches")
    op.create_index("ix_batches_list", "batches", [*_LIST, "failed", "archived_ms"])
    where = sa.text("keep_ms IS NOT NULL AND archived_ms IS NULL")
    op.create_index("ix_batches_keep", "batches", ["ended_ms", "keep_ms"], sqlite_where=where, postgresql_where=where)


def _fill(connection: sa.Connection) -> None:
    """Add up the jobs of each batch, a page of jobs at a time: the jobs of a batch are consecutive."""
    identity = sa.column("id", _Id)
    jobs = sa.table("jobs", identity, sa.column("status"), sa.column("runs"), sa.column("state"))
    page = sa.select(jobs).order_by(identity).limit(_PAGE)
    last = None
    while rows := connection.execute(page if last is None else page.where(identity > last)).all():
        last = rows[-1].id
        sums: dict[int, list[int]] = {}
        for job, status, runs, state in rows:
            number = int.from_bytes(job, "big") if isinstance(job, bytes) else job.int
            failed, shots, device_ms = sums.setdefault(number >> _INDEX_BITS << _INDEX_BITS, [0, 0, 0])
            sums[number >> _INDEX_BITS << _INDEX_BITS] = [
                failed + (status == "E"),
                shots + min(runs or 1, _SHOTS_MAX),
                device_ms + _execution(status, state),
            ]
        _add(connection, sums)


def _execution(status: str, state: str | None) -> int:
    """Return the time on the device of a job that has ended, in ms; 0 if the state is damaged or has none."""
    words = (state or "").split()
    known = status in ("D", "E", "C") and len(words) > _EXECUTION and words[_EXECUTION].isdecimal()
    return int(words[_EXECUTION]) if known else 0


def _add(connection: sa.Connection, sums: dict[int, list[int]]) -> None:
    names = ("failed", "shots", "device_ms")
    columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in names]
    batches = sa.table("batches", sa.column("id", _Id), *columns)
    more = {name: batches.c[name] + sa.bindparam(f"more_{name}", type_=sa.BigInteger) for name in names}
    change = sa.update(batches).where(batches.c.id == sa.bindparam("batch", type_=_Id)).values(more)
    is_sqlite = connection.dialect.name == "sqlite"
    connection.execute(
        change,
        [
            {"batch": UUID(int=batch).bytes if is_sqlite else UUID(int=batch)}
            | {f"more_{name}": amount for name, amount in zip(names, amounts, strict=True)}
            for batch, amounts in sums.items()
        ],
    )
