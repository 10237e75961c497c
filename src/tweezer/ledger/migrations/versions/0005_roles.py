"""Roles of keys: ``worker`` is replaced by ``metrics``; such keys were used by Prometheus to read metrics."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    role = sa.column("role", sa.String)
    keys = sa.table("keys", role)
    op.execute(sa.update(keys).where(role == "worker").values(role="metrics"))
