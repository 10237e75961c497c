"""The tables of the first ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_Id = sa.LargeBinary(16).with_variant(postgresql.UUID(), "postgresql")
_Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _create_batches()
    _create_jobs()
    _create_sums()
    _create_credentials()


def _create_batches() -> None:
    op.create_table(
        "projects",
        sa.Column("no", _Number, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("retention_s", sa.BigInteger),
        sa.Column("last_activity_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("no", name="pk_projects"),
        sa.UniqueConstraint("id", name="uq_projects_id"),
    )
    op.create_table(
        "batches",
        sa.Column("id", _Id, nullable=False),
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("user", sa.String(200)),
        sa.Column("priority", sa.String(1), nullable=False),
        sa.Column("origin", sa.String(1), nullable=False),
        sa.Column("status", sa.String(1), nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
        sa.Column("jobs", sa.Integer, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("started_ms", sa.BigInteger),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.Column("parent", _Id),
        sa.Column("sequence_number", sa.BigInteger, nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.Column("about", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
        sa.ForeignKeyConstraint(["project"], ["projects.no"], name="fk_batches_project"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_batches_list",
        "batches",
        [
            *("project", "created_ms", "id", "status", "open", "device", "user", "priority", "origin"),
            *("jobs", "started_ms", "ended_ms", "updated_ms"),
        ],
    )
    op.create_index("ix_batches_ended_ms", "batches", ["ended_ms"])
    op.create_index("ix_batches_parent", "batches", ["parent"])
    op.create_table(
        "sequences",
        sa.Column("id", _Id, nullable=False),
        sa.Column("sequence", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sequences"),
        sa.ForeignKeyConstraint(["id"], ["batches.id"], name="fk_sequences_id", ondelete="CASCADE"),
    )
    op.create_table(
        "tags",
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("tag", sa.String(200), nullable=False),
        sa.Column("batch", _Id, nullable=False),
        sa.PrimaryKeyConstraint("project", "tag", "batch", name="pk_tags"),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], name="fk_tags_batch", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_tags_batch", "tags", ["batch"])


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", _Id, nullable=False),
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("user", sa.String(200)),
        sa.Column("priority", sa.String(1), nullable=False),
        sa.Column("origin", sa.String(1), nullable=False),
        sa.Column("status", sa.String(1), nullable=False),
        sa.Column("runs", sa.BigInteger),
        sa.Column("failed", sa.Boolean, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("started_ms", sa.BigInteger),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.Column("spec", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.String(400)),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_jobs_list",
        "jobs",
        [
            *("project", "created_ms", "id", "status", "runs", "failed", "device", "user", "priority", "origin"),
            *("started_ms", "ended_ms", "updated_ms"),
        ],
    )
    op.create_table(
        "results",
        sa.Column("id", _Id, nullable=False),
        sa.Column("result", sa.LargeBinary),
        sa.Column("fault", sa.LargeBinary),
        sa.PrimaryKeyConstraint("id", name="pk_results"),
    )
    op.create_table(
        "transitions",
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("batch", _Id, nullable=False),
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("sequence_number", sa.BigInteger, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("words", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_transitions"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_transitions_batch", "transitions", ["batch", "position"])
    op.create_index("ix_transitions_project", "transitions", ["project", "position"])
    op.create_table(
        "deliveries",
        sa.Column("id", _Id, nullable=False),
        sa.Column("batch", _Id),
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("event", sa.String(100), nullable=False),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("status", sa.String(1), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("due_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
    )
    op.create_index("ix_deliveries_due_ms", "deliveries", ["due_ms"])
    op.create_index("ix_deliveries_batch", "deliveries", ["batch"])
    op.create_index("ix_deliveries_project_created_ms", "deliveries", ["project", "created_ms"])


def _create_sums() -> None:
    op.create_table(
        "counters",
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(1), nullable=False),
        sa.Column("status", sa.String(1), nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project", "device", "kind", "status", name="pk_counters"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "hours",
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("hour", sa.BigInteger, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("done", sa.BigInteger, nullable=False),
        sa.Column("error", sa.BigInteger, nullable=False),
        sa.Column("canceled", sa.BigInteger, nullable=False),
        sa.Column("started", sa.BigInteger, nullable=False),
        sa.Column("queue_ms", sa.BigInteger, nullable=False),
        sa.Column("device_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project", "device", "hour", name="pk_hours"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "recorder",
        sa.Column("namespace", sa.String(32), nullable=False),
        sa.Column("position", sa.String(40), nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("namespace", name="pk_recorder"),
    )


def _create_credentials() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("password", sa.Text),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("disabled_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("name", name="uq_users_name"),
    )
    op.create_table(
        "members",
        sa.Column("user", sa.String(64), nullable=False),
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user", "project", name="pk_members"),
        sa.ForeignKeyConstraint(["user"], ["users.id"], name="fk_members_user", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["project"], ["projects.no"], name="fk_members_project", ondelete="CASCADE"),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("kind", sa.String(1), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("project", sa.BigInteger),
        sa.Column("user", sa.String(64)),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger),
        sa.Column("revoked_ms", sa.BigInteger),
        sa.Column("used_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.ForeignKeyConstraint(["project"], ["projects.no"], name="fk_keys_project", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user"], ["users.id"], name="fk_keys_user", ondelete="CASCADE"),
    )
    op.create_index("ix_keys_project", "keys", ["project"])
    op.create_index("ix_keys_user", "keys", ["user"])
    op.create_index("ix_keys_expires_ms", "keys", ["expires_ms"])
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_secrets"),
    )
