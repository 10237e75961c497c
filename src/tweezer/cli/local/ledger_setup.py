"""Prepares the ledger of a local installation, in a separate process: ``python -m tweezer.cli.local.ledger_setup``.

SQLAlchemy and Alembic would take 20 MB of the process that imports them, until it ends.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tweezer import logs
from tweezer.cli.local.owned import start_owned
from tweezer.model.errors import Conflict, InvalidInput, TweezerError, describe_os_error
from tweezer.settings import PREFIX, Settings, load, variable_name
from tweezer.store.connection import Store

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tweezer.ledger.database import Database

_OWN = "--own-ledger"  # the argument of the program for a ledger that belongs to the data folder
_KEY_FILE, _KEY_NAME = "api-key", "tweezer up"  # file and name of the API key


class _Prepared(msgspec.Struct, omit_defaults=True):
    """The output of the program: an API key, or the message and code of an error."""

    key: str = ""
    problem: str = ""
    code: str = ""


def prepare_ledger(environment: Mapping[str, str], *, is_own: bool) -> str:
    """Create or upgrade the tables of a SQLite ledger, and return an API key of the settings' project.

    Operators upgrade other databases themselves. environment: contains the settings. is_own: whether the ledger belongs
    to the data folder; if not, a ledger that records another Redis is refused. Raises TweezerError, OSError.
    """
    command = [sys.executable, "-P", "-m", __name__, *([_OWN] if is_own else [])]
    process = start_owned(command, stdout=subprocess.PIPE, env=dict(environment))
    assert process.stdout is not None
    with process.stdout:
        output = process.stdout.read()  # communicate() would close stdin, which may be the pipe that keeps it running
    status = process.wait()
    try:
        prepared = msgspec.json.decode(output, type=_Prepared)
    except msgspec.DecodeError as error:
        problem = f"the ledger could not be prepared: the program ended with status {status}; see above"
        raise TweezerError(problem, code="ledger") from error
    if not prepared.key:
        raise TweezerError(prepared.problem, code=prepared.code)
    return prepared.key


def _prepare(settings: Settings, *, is_own: bool) -> str:
    from tweezer.ledger.database import Database
    from tweezer.ledger.migrate import require_schema, upgrade

    database = Database.open(settings.locate_ledger(), create=True)
    try:
        if database.is_sqlite:
            upgrade(database)
        else:
            require_schema(database)
        asyncio.run(_require_same_installation(settings, database, is_own=is_own))
        return get_or_create_key(settings, database)
    finally:
        database.close()


async def _require_same_installation(settings: Settings, database: Database, *, is_own: bool) -> None:
    from tweezer.ledger.health import read_recorder_position
    from tweezer.ledger.installation import require_same
    from tweezer.ledger.migrate import place

    async with Store.open(settings.connect()) as store:
        await require_same(store, database)
        is_new = await store.recovery.installation() is None
    if is_new and not is_own and read_recorder_position(database, settings.namespace):
        raise TweezerError(
            f"{PREFIX}DATABASE_URL: {place(database)} records another Redis, not the new one in {settings.data_dir}; "
            f"unset it to use the ledger in that folder, or set {PREFIX}DATA_DIR={settings.data_dir} if both belong "
            "together",
            code="installation",
        )


def check_given_key(settings: Settings) -> None:
    """Raise InvalidInput("TWEEZER_API_KEY", …) if the setting is not a valid key."""
    if settings.api.key:
        from tweezer.ledger.access.credentials import check_key

        try:
            check_key(settings.api.key)
        except InvalidInput as error:
            raise InvalidInput(variable_name("api.key"), error.problem) from error


def get_or_create_key(settings: Settings, database: Database) -> str:
    """Return an API key of the settings' project: the configured one, else one from a file in the data folder.

    The file is created if needed, readable only by its owner. Raises Conflict if the configured key has ended or
    belongs to another project.
    """
    from tweezer.ledger.access.keys import adopt_key
    from tweezer.ledger.access.projects import project_no

    with database.write() as connection:
        project_no(connection, settings.project_id)
        if settings.api.key:
            adopt_key(connection, settings.api.key, name=_KEY_NAME, project_id=settings.project_id)
            return settings.api.key
        return _kept_key(connection, settings.data_dir / _KEY_FILE, settings.project_id)


def _kept_key(connection: Connection, file: Path, project_id: str) -> str:
    from tweezer.ledger.access.keys import adopt_key, create_key

    if file.exists():
        kept = file.read_text("ascii", "replace").strip()
        try:
            adopt_key(connection, kept, name=_KEY_NAME, project_id=project_id)
        except (Conflict, InvalidInput):
            pass  # revoked, of another project, or not a valid key: replace it
        else:
            return kept
    made = create_key(connection, name=_KEY_NAME, project_id=project_id)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as output:
        output.write(f"{made.text}\n")
    return made.text


def main() -> None:
    logs.configure("console", "ERROR")
    try:
        settings = load({"api.key": os.environ.get(variable_name("api.key"), "")})  # also if empty, unlike a variable
        prepared = _Prepared(key=_prepare(settings, is_own=_OWN in sys.argv[1:]))
    except TweezerError as error:
        prepared = _Prepared(problem=error.message, code=error.code)
    except OSError as error:
        prepared = _Prepared(problem=describe_os_error(error), code="ledger")
    sys.stdout.buffer.write(msgspec.json.encode(prepared))


if __name__ == "__main__":
    main()
