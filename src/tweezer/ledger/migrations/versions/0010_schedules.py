"""Schedules, their ticks, and how many ticks there ever were."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"

_Id = sa.LargeBinary(16).with_variant(postgresql.UUID(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", _Id, nullable=False),
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("cron", sa.String(200)),
        sa.Column("time_zone", sa.String(64), nullable=False),
        sa.Column("every_s", sa.BigInteger),
        sa.Column("anchor_ms", sa.BigInteger, nullable=False),
        sa.Column("overlap", sa.String(8), nullable=False),
        sa.Column("missed", sa.String(8), nullable=False),
        sa.Column("grace_s", sa.BigInteger, nullable=False),
        sa.Column("template", sa.LargeBinary, nullable=False),
        sa.Column("user", sa.String(64)),
        sa.Column("key", sa.String(16)),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("status", sa.String(8), nullable=False),
        sa.Column("reason", sa.String(500)),
        sa.Column("changed_by", sa.String(200), nullable=False),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("next_ms", sa.BigInteger),
        sa.Column("last_ms", sa.BigInteger),
        sa.Column("told", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_schedules"),
        sa.ForeignKeyConstraint(["project"], ["projects.no"], name="fk_schedules_project", ondelete="CASCADE"),
    )
    op.create_index("uq_schedules_project_name", "schedules", ["project", "name"], unique=True)
    waiting = sa.text("next_ms IS NOT NULL")
    op.create_index("ix_schedules_next_ms", "schedules", ["next_ms"], sqlite_where=waiting, postgresql_where=waiting)
    op.create_table(
        "schedule_ticks",
        sa.Column("schedule", _Id, nullable=False),
        sa.Column("key", sa.String(300), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("manual", sa.Boolean, nullable=False),
        sa.Column("batch", _Id, nullable=False),
        sa.Column("user", sa.String(64)),
        sa.Column("outcome", sa.String(10), nullable=False),
        sa.Column("code", sa.String(40)),
        sa.Column("message", sa.Text),
        sa.Column("missed", sa.BigInteger, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.Column("due_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("schedule", "key", name="pk_schedule_ticks"),
        sa.ForeignKeyConstraint(["schedule"], ["schedules.id"], name="fk_schedule_ticks_schedule", ondelete="CASCADE"),
    )
    op.create_index("ix_schedule_ticks_at_ms", "schedule_ticks", ["schedule", "at_ms"])
    op.create_index("ix_schedule_ticks_batch", "schedule_ticks", ["batch"])
    due = sa.text("due_ms IS NOT NULL")
    op.create_index("ix_schedule_ticks_due_ms", "schedule_ticks", ["due_ms"], sqlite_where=due, postgresql_where=due)
    op.create_table(
        "schedule_totals",
        sa.Column("outcome", sa.String(10), nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("lag_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("outcome", name="pk_schedule_totals"),
    )
