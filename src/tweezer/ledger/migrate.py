"""Upgrades and checks the ledger's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, column, inspect, select, table, text

from tweezer.duties import DUTY_BACKOFF, until_answered
from tweezer.ledger.config import OpenDatabase, sqlite_url
from tweezer.ledger.database import Database
from tweezer.ledger.migrations import HEAD
from tweezer.ledger.schema import metadata
from tweezer.model.errors import TweezerError

VERSION_TABLE = "alembic_version"
_STEPS = Path(__file__).with_name("migrations")
_UPGRADE_LOCK = 8_391_005_118  # an arbitrary key for an advisory lock


def place(database: Database) -> str:
    """Return the database's URL without its password."""
    url = database.engine.url
    if database.is_sqlite:
        return sqlite_url(Path(url.database or ""))
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True).replace("%2F", "/")


def schema_version(database: Database) -> str | None:
    """Return the version of the tables; None if they do not exist yet. Raises Unavailable."""
    with database.read() as connection:
        return _version(connection)


def exists(database: Database) -> bool:
    """Return whether the file of a SQLite database exists; other databases report it when they are connected."""
    return not database.is_sqlite or Path(database.engine.url.database or "").exists()


def require_schema(database: Database) -> None:
    """Raise TweezerError ("schema"), with what to do, unless the tables are those that this version needs."""
    found = schema_version(database) if exists(database) else None
    if found is None:
        raise _unfit(f"the ledger ({place(database)}) has no tables yet; run `tweezer db upgrade`")
    _refuse_newer(found)
    if found != HEAD:
        raise _unfit(f"the ledger's tables are at step {found}, but {HEAD} is required; run `tweezer db upgrade`")


async def wait_for_schema(given: OpenDatabase) -> None:
    """Wait until the database is available, and check its tables.

    Raises InvalidInput("database_url", …) and, as :func:`require_schema`, TweezerError ("schema").
    """
    database = Database.open(given)
    try:
        await until_answered(
            lambda: database.run(require_schema, database), DUTY_BACKOFF, "checking the ledger's tables"
        )
    finally:
        database.close()


def upgrade(database: Database) -> str | None:
    """Upgrade the tables atomically, one process at a time; return their previous version.

    Raises TweezerError ("schema") if the tables are newer, or other tables have their names.
    """
    from alembic import command
    from alembic.config import Config

    with database.write() as connection:
        if not database.is_sqlite:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _UPGRADE_LOCK})
        found = _version(connection)
        _refuse_newer(found or "")
        if found == HEAD:
            return found
        if found is None and (strange := sorted(set(inspect(connection).get_table_names()) & set(metadata.tables))):
            raise _unfit(
                f"the database has tables that Tweezer did not create ({', '.join(strange)}); set "
                "TWEEZER_DATABASE_URL to an empty database"
            )
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(_STEPS).replace("%", "%%"))
        command.upgrade(config, HEAD)
        return found


def differences(database: Database) -> list[str]:
    """Describe differences of the tables from those that this version needs. Raises Unavailable."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    with database.read() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
    return list(filter(None, map(_in_words, found)))


def _refuse_newer(found: str) -> None:
    if found > HEAD:
        raise _unfit(
            f"the ledger's tables are at step {found}, which is newer than the last one that this version of Tweezer "
            f"supports ({HEAD}); upgrade Tweezer"
        )


def _unfit(message: str) -> TweezerError:
    return TweezerError(message, code="schema")


def _in_words(difference: Any) -> str | None:
    """Describe a difference; None for something additional, which is harmless."""
    match difference:
        case ("add_table", table_):
            return f"table {table_.name} is missing"
        case ("add_column", _, table_name, column_):
            return f"column {table_name}.{column_.name} is missing"
        case ("add_index", index):
            return f"index {index.name} is missing or different"
        case ("add_constraint" | "add_fk", constraint):
            return f"constraint {constraint.name} is missing or different"
        case [(kind, _, table_name, column_name, *_), *_]:
            return f"column {table_name}.{column_name} is different ({kind.removeprefix('modify_')})"
        case _:
            return None


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    version: str | None = connection.execute(select(column("version_num")).select_from(table(VERSION_TABLE))).scalar()
    return version
