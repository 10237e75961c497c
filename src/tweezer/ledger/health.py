"""Health of the ledger's database, for ``tweezer db check`` and ``tweezer doctor``."""

from __future__ import annotations

import sqlite3

import msgspec
from sqlalchemy import Connection, exc, select, text, update

from tweezer.ledger.database import Database
from tweezer.ledger.dead_letters import Consumer, LetterCounts, count_letters, count_newer
from tweezer.ledger.installation import kept_id
from tweezer.ledger.migrate import differences, place, require_schema
from tweezer.ledger.schedules.ticks import ScheduleHealth, read_schedule_health
from tweezer.ledger.schema import keys, recorder
from tweezer.model.errors import TweezerError

_OF_POSTGRES = ("server_version", "server_encoding", "fsync", "synchronous_commit", "full_page_writes")


class LedgerHealth(msgspec.Struct, frozen=True):
    """The state of the ledger's database.

    Attributes:
        place: The database's URL without the password.
        settings: Settings of SQLite (``version``, ``journal_mode``) or PostgreSQL.
        unfit: What is wrong with the tables and what to do; None if they are correct.
        refusal: Why nothing can be written; None if it can.
        positions: The recorder's position by namespace: the id of the last recorded entry of the stream.
        letters: Counts of dead letters by consumer.
        newer: Number of parked batches that a newer Tweezer wrote.
        installation: Id of the installation; None before it is made.
        has_keys: Whether there are keys for the API.
        schedules: Counts of schedules and their ticks; None if they cannot be read.
    """

    place: str
    is_sqlite: bool
    settings: dict[str, str]
    unfit: str | None = None
    refusal: str | None = None
    positions: dict[str, str] = {}
    letters: dict[Consumer, LetterCounts] = {}
    newer: int = 0
    installation: str | None = None
    has_keys: bool = False
    schedules: ScheduleHealth | None = None


def read_health(database: Database) -> LedgerHealth:
    """Read the state of the database; nothing is changed. Raises Unavailable if it does not respond."""
    with database.read() as connection:
        settings = _sqlite(connection) if database.is_sqlite else _postgres(connection)
    health = LedgerHealth(place(database), database.is_sqlite, settings)
    try:
        require_schema(database)
        if lacks := differences(database):
            raise TweezerError(
                f"{'; '.join(lacks)}: the tables were changed manually; undo the change or restore a backup"
            )
    except TweezerError as error:
        return msgspec.structs.replace(health, unfit=error.message)
    with database.read() as connection:
        rows = connection.execute(select(recorder.c.namespace, recorder.c.position))
        positions = {namespace: position for namespace, position in rows}  # noqa: C416  mypy rejects dict(rows)
        letters, newer = count_letters(connection), count_newer(connection)
        schedules = read_schedule_health(connection)
        has_keys = connection.execute(select(keys.c.id).where(keys.c.revoked_ms.is_(None)).limit(1)).first() is not None
    return msgspec.structs.replace(
        health,
        refusal=_refusal(database),
        positions=positions,
        letters=letters,
        newer=newer,
        installation=kept_id(database),
        has_keys=has_keys,
        schedules=schedules,
    )


def read_recorder_position(database: Database, namespace: str) -> str | None:
    """Return the id of the last recorded entry of the stream; None without one. Raises Unavailable."""
    with database.read() as connection:
        position: str | None = connection.execute(
            select(recorder.c.position).where(recorder.c.namespace == namespace)
        ).scalar()
    return position


def _sqlite(connection: Connection) -> dict[str, str]:
    mode = connection.execute(text("PRAGMA journal_mode")).scalar_one()
    return {"version": sqlite3.sqlite_version, "journal_mode": mode}


def _postgres(connection: Connection) -> dict[str, str]:
    return {name: connection.execute(text(f"SHOW {name}")).scalar_one() for name in _OF_POSTGRES}


def _refusal(database: Database) -> str | None:
    try:
        with database.write() as connection:
            connection.execute(update(recorder).where(recorder.c.namespace == "").values(updated_ms=0))
    except TweezerError as error:
        return error.message
    except exc.DBAPIError as error:
        return str(error.orig).splitlines()[0]
    return None
