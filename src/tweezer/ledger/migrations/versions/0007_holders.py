"""Transitions: which lane held the ticket; null for those from before. Deliveries: the trace of their batch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("transitions", sa.Column("holder", sa.String(200)))
    op.add_column("deliveries", sa.Column("trace", sa.String(55)))
