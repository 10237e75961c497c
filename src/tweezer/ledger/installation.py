"""The id of an installation, stored in its ledger and its Redis, so that the two cannot be mixed up with others.

The ledger generates the id, and the recorder writes it into Redis. A Redis without an id (it is new, lost everything,
or was filled by an older version) becomes part of the installation of its recorder.
"""

from __future__ import annotations

import contextlib
import secrets as randomness

from sqlalchemy import select

from tweezer.ledger.access.projects import insert_unless_there
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import wait_for_schema
from tweezer.ledger.schema import secrets
from tweezer.model.errors import TweezerError, Unavailable
from tweezer.store.connection import Connect, Store

_NAME = "installation"
_KEPT = select(secrets.c.value).where(secrets.c.name == _NAME)
_SIZE = 8


def installation_id(database: Database) -> str:
    """Return the ledger's installation id, which is generated on first use. Raises Unavailable."""
    if (found := kept_id(database)) is not None:
        return found
    with database.write() as connection:
        insert_unless_there(connection, secrets, {"name": _NAME, "value": randomness.token_bytes(_SIZE)})
        return bytes(connection.execute(_KEPT).scalar_one()).hex()


def kept_id(database: Database) -> str | None:
    """Return the ledger's installation id; None before its first use. Raises Unavailable."""
    with database.read() as connection:
        found: bytes | None = connection.execute(_KEPT).scalar()
    return None if found is None else bytes(found).hex()


async def join(store: Store, database: Database, *, force: bool = False) -> None:
    """Write the installation id into Redis. force: even if Redis belongs to another installation.

    Raises TweezerError ("installation") if Redis belongs to another installation; Unavailable.
    """
    ours = await database.run(installation_id, database)
    if (other := await store.recovery.join_ledger(ours, force=force)) is not None:
        raise _do_not_belong_together(ours, other)


async def require_same(store: Store, database: Database) -> None:
    """Raise TweezerError ("installation") if Redis belongs to another installation; Unavailable."""
    other = await store.recovery.installation()
    if other is not None and other != (ours := await database.run(installation_id, database)):
        raise _do_not_belong_together(ours, other)


async def wait_for_ledger(ledger: OpenDatabase, redis: Connect) -> None:
    """Wait until the ledger is available and up to date; an unavailable Redis is not waited for.

    Raises InvalidInput("database_url", …); TweezerError ("schema") if the tables are not those that this version
    needs, ("installation") if Redis belongs to another installation.
    """
    await wait_for_schema(ledger)
    database = Database.open(ledger)
    try:
        async with Store.open(redis) as store:
            with contextlib.suppress(Unavailable):
                await require_same(store, database)
    finally:
        database.close()


def _do_not_belong_together(ours: str, other: str) -> TweezerError:
    return TweezerError(
        f"Redis belongs to the installation {other}, but the ledger to {ours}, so the batches of one would be mixed "
        "into the other; correct TWEEZER_REDIS_URL, TWEEZER_NAMESPACE or TWEEZER_DATABASE_URL, or join them "
        "deliberately with `tweezer db join`",
        code="installation",
    )
