"""Dead letters: items that a shared consumer cannot process."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

_Id = sa.LargeBinary(16).with_variant(postgresql.UUID(), "postgresql")
_Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("id", _Number, nullable=False),
        sa.Column("consumer", sa.String(16), nullable=False),
        sa.Column("origin", sa.String(200), nullable=False),
        sa.Column("batch", _Id),
        sa.Column("project", sa.String(64)),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("last_position", sa.BigInteger, nullable=False),
        sa.Column("waiting", sa.BigInteger, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("version", sa.String(40), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("retry_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_dead_letters"),
    )
    op.create_index("uq_dead_letters_consumer_origin", "dead_letters", ["consumer", "origin"], unique=True)
    op.create_index("ix_dead_letters_consumer_batch", "dead_letters", ["consumer", "batch"])
    op.create_table(
        "dead_letter_totals",
        sa.Column("consumer", sa.String(16), nullable=False),
        sa.Column("parked", sa.BigInteger, nullable=False),
        sa.Column("evicted", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("consumer", name="pk_dead_letter_totals"),
    )
