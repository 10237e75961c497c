"""The names by which people find batches: short ids, and the names that they were submitted with."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from tweezer.model.ids import short_id
from tweezer.model.messages import decode_doc
from tweezer.store.records import DAMAGED

revision = "0006"
down_revision = "0005"

_Id = sa.LargeBinary(16).with_variant(postgresql.UUID(), "postgresql")
_PAGE = 1000
_NAME_MAX = 255


def upgrade() -> None:
    op.create_table(
        "batch_names",
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(1), nullable=False),
        sa.Column("name", sa.String(_NAME_MAX), nullable=False),
        sa.Column("batch", _Id, nullable=False),
        sa.PrimaryKeyConstraint("project", "kind", "name", "batch", name="pk_batch_names"),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], name="fk_batch_names_batch", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    _fill(op.get_bind())
    op.create_index("ix_batch_names_batch", "batch_names", ["batch"])


def _fill(connection: sa.Connection) -> None:
    identity = sa.column("id", _Id)
    batches = sa.table("batches", identity, sa.column("project"), sa.column("about", sa.LargeBinary))
    others: list[sa.ColumnClause[object]] = [sa.column("project"), sa.column("kind"), sa.column("name")]
    names = sa.table("batch_names", *others, sa.column("batch", _Id))
    page = sa.select(batches).order_by(identity).limit(_PAGE)
    last = None
    while rows := connection.execute(page if last is None else page.where(identity > last)).all():
        last = rows[-1].id
        found = []
        for batch, project, about in rows:
            short = short_id(UUID(bytes=batch) if isinstance(batch, bytes) else batch)
            found.append({"project": project, "kind": "S", "name": short, "batch": batch})
            if name := _read_name(about):
                found.append({"project": project, "kind": "N", "name": name, "batch": batch})
        connection.execute(sa.insert(names), found)


def _read_name(about: bytes) -> str:
    """Return the name of a batch; empty if it has none, or if its row is damaged, which must not stop an upgrade."""
    try:
        return (decode_doc(about).name or "").replace("\0", "")[:_NAME_MAX]
    except DAMAGED:
        return ""
