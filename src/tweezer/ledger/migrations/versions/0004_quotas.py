"""Quotas: the limits that operators set for projects, and the size of each batch's results."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"

_Id = sa.LargeBinary(16).with_variant(postgresql.UUID(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "limits",
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("quota", sa.String(40), nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project", "quota", name="pk_limits"),
        sa.ForeignKeyConstraint(["project"], ["projects.no"], name="fk_limits_project", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "result_sizes",
        sa.Column("batch", _Id, nullable=False),
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("batch", name="pk_result_sizes"),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], name="fk_result_sizes_batch", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
