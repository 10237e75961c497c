"""Transitions: why attempts of jobs failed that were repeated; null for those from before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("transitions", sa.Column("faults", sa.Text))
