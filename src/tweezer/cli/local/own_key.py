"""The project and the key with which one uses what ``tweezer up`` has started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tweezer.ledger.access.credentials import check_key
from tweezer.ledger.access.keys import adopt_key, create_key
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.database import Database
from tweezer.model.errors import Conflict, InvalidInput
from tweezer.settings import Settings, variable_name

if TYPE_CHECKING:
    from sqlalchemy import Connection

_FILE = "api-key"
_NAME = "tweezer up"
_VARIABLE = variable_name("api.key")


def check_given_key(settings: Settings) -> None:
    """Raises InvalidInput("TWEEZER_API_KEY", …) unless the key that was given, if one was, can be one."""
    if settings.api.key:
        try:
            check_key(settings.api.key)
        except InvalidInput as error:
            raise InvalidInput(_VARIABLE, error.problem) from error


def own_key(settings: Settings) -> str:
    """A key of the settings' project, which is made if need be: the one that was given, else one that is kept in the
    data folder, in a file that only its owner reads.

    Raises Conflict when the one that was given is over or of another project.
    """
    database = Database.open(settings.locate_ledger())
    try:
        with database.write() as connection:
            project_no(connection, settings.project_id)
            if settings.api.key:
                adopt_key(connection, settings.api.key, name=_NAME, project_id=settings.project_id)
                return settings.api.key
            return _kept_key(connection, settings.data_dir / _FILE, settings.project_id)
    finally:
        database.close()


def _kept_key(connection: Connection, file: Path, project_id: str) -> str:
    if file.exists():
        kept = file.read_text("ascii", "replace").strip()
        try:
            adopt_key(connection, kept, name=_NAME, project_id=project_id)
        except (Conflict, InvalidInput):
            pass  # revoked, of another project, or no key any more: a new one takes its place
        else:
            return kept
    made = create_key(connection, name=_NAME, project_id=project_id)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as output:
        output.write(f"{made.text}\n")
    return made.text
