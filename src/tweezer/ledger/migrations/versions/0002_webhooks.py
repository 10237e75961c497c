"""Webhooks: endpoints, their secrets and deliveries; and notices, which are events that do not belong to a batch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

_Id = sa.LargeBinary(16).with_variant(postgresql.UUID(), "postgresql")
_Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "notices",
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("id", sa.String(120), nullable=False),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("project", sa.String(64)),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_notices"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "endpoints",
        sa.Column("id", _Id, nullable=False),
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(1), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("types", sa.Text, nullable=False),
        sa.Column("description", sa.String(200), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("failing_ms", sa.BigInteger),
        sa.Column("disabled_ms", sa.BigInteger),
        sa.Column("disabled_why", sa.String(200)),
        sa.PrimaryKeyConstraint("id", name="pk_endpoints"),
        sa.ForeignKeyConstraint(["project"], ["projects.no"], name="fk_endpoints_project", ondelete="CASCADE"),
    )
    op.create_index("ix_endpoints_project", "endpoints", ["project"])
    op.create_index(
        "ix_endpoints_disabled_ms",
        "endpoints",
        ["disabled_ms"],
        sqlite_where=sa.text("disabled_ms IS NOT NULL"),
        postgresql_where=sa.text("disabled_ms IS NOT NULL"),
    )
    op.create_table(
        "webhook_secrets",
        sa.Column("id", _Number, nullable=False),
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("endpoint", _Id),
        sa.Column("algorithm", sa.String(1), nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_secrets"),
        sa.ForeignKeyConstraint(["project"], ["projects.no"], name="fk_webhook_secrets_project", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["endpoint"], ["endpoints.id"], name="fk_webhook_secrets_endpoint", ondelete="CASCADE"),
    )
    op.create_index("ix_webhook_secrets_project_endpoint", "webhook_secrets", ["project", "endpoint"])
    op.drop_table("deliveries")  # of step 0001: nothing ever wrote it
    op.create_table(
        "deliveries",
        sa.Column("id", _Id, nullable=False),
        sa.Column("endpoint", _Id, nullable=False),
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("batch", _Id),
        sa.Column("sequence_number", sa.BigInteger),
        sa.Column("event", sa.String(120), nullable=False),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("status", sa.String(1), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("log", sa.LargeBinary),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("due_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sa.ForeignKeyConstraint(["endpoint"], ["endpoints.id"], name="fk_deliveries_endpoint", ondelete="CASCADE"),
    )
    op.create_index(
        "ix_deliveries_due",
        "deliveries",
        ["endpoint", "due_ms"],
        sqlite_where=sa.text("due_ms IS NOT NULL"),
        postgresql_where=sa.text("due_ms IS NOT NULL"),
    )
    op.create_index("ix_deliveries_batch", "deliveries", ["batch", "endpoint", "sequence_number"])
    op.create_index("ix_deliveries_endpoint", "deliveries", ["endpoint", "created_ms"])
    op.create_index("ix_deliveries_created_ms", "deliveries", ["created_ms"])
    op.create_index(
        "ix_deliveries_given_up",
        "deliveries",
        ["status"],
        sqlite_where=sa.text("status IN ('E', 'H')"),
        postgresql_where=sa.text("status IN ('E', 'H')"),
    )
    op.create_table(
        "couriers",
        sa.Column("namespace", sa.String(32), nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("namespace", name="pk_couriers"),
    )
