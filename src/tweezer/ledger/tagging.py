"""Replaces the tags of a batch: what lists filter by, and what is kept about it."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from tweezer.ledger.database import Database
from tweezer.ledger.schema import batches, tags
from tweezer.model.messages import decode_doc, encode_doc


def replace_tags(connection: Connection, batch_id: UUID, replaced: Sequence[str]) -> bool:
    """Whether the ledger has the batch; it has these tags then and no others, whatever its status."""
    row = connection.execute(select(batches.c.project, batches.c.about).where(batches.c.id == batch_id)).one_or_none()
    if row is None:
        return False
    about = encode_doc(msgspec.structs.replace(decode_doc(row.about), tags=tuple(replaced)))
    connection.execute(update(batches).where(batches.c.id == batch_id).values(about=about))
    connection.execute(delete(tags).where(tags.c.batch == batch_id))
    if replaced:
        connection.execute(
            insert(tags), [{"project": row.project, "tag": tag, "batch": batch_id} for tag in dict.fromkeys(replaced)]
        )
    return True


def record_tags(database: Database, batch_id: UUID, replaced: Sequence[str]) -> bool:
    """The same, in a transaction of its own: for a batch that Redis has forgotten. Raises Unavailable."""
    with database.write() as connection:
        return replace_tags(connection, batch_id, replaced)
