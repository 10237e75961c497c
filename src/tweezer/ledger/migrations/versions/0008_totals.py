"""Metrics: how many jobs ever ended by device and status, and how long they waited and ran."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "totals",
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(1), nullable=False),
        sa.Column("bucket", sa.Integer, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("sum_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("device", "kind", "bucket", name="pk_totals"),
        sqlite_with_rowid=False,
    )
    failing = sa.text("failing_ms IS NOT NULL")
    op.create_index(
        "ix_endpoints_failing_ms", "endpoints", ["failing_ms"], sqlite_where=failing, postgresql_where=failing
    )
