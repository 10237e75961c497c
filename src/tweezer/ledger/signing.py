"""The secret with which links are signed."""

from __future__ import annotations

import secrets as randomness

from sqlalchemy import Connection, select

from tweezer.ledger.projects import insert_unless_there
from tweezer.ledger.schema import secrets

_SIZE = 32


def signing_secret(connection: Connection, name: str) -> bytes:
    """The secret of this name, the same for all processes; made at its first use."""
    kept = select(secrets.c.value).where(secrets.c.name == name)
    found: bytes | None = connection.execute(kept).scalar()
    if found is None:
        insert_unless_there(connection, secrets, {"name": name, "value": randomness.token_bytes(_SIZE)})
        found = connection.execute(kept).scalar_one()
    return found
