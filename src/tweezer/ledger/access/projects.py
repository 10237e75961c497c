"""Projects, which own batches, keys and webhooks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import uuid4

import msgspec
from sqlalchemy import ColumnElement, Connection, Table, delete, insert, select, true, update

from tweezer.ledger.schema import insert_into, limits, now_ms, projects, read_row
from tweezer.model.checks import check_text
from tweezer.model.errors import Conflict, InvalidInput, NotFound
from tweezer.model.ids import is_project_id
from tweezer.model.quotas import BY_NAME, LIMIT_MAX

NAME_MAX = 200


class Project(msgspec.Struct, frozen=True):
    """A project.

    no: its number, used in other tables. retention_s: None means the default of the settings, 0 for ever. limits: by
    quota, where they are not the defaults; 0 means unlimited.
    """

    no: int
    id: str
    name: str
    created: datetime
    retention_s: int | None = None
    last_activity: datetime | None = None
    limits: dict[str, int] = {}


def project_no(connection: Connection, project_id: str) -> int:
    """Return the number of the project, which is created if it does not exist, because the library accepts any name.

    Safe to call concurrently; needs a write transaction.
    """
    known: int | None = connection.execute(select(projects.c.no).where(projects.c.id == project_id)).scalar()
    if known is not None:
        return known
    _insert(connection, project_id, project_id)
    return find_project(connection, project_id).no


def create_project(connection: Connection, name: str, project_id: str | None = None) -> Project:
    """Create a project; its id is a UUID unless one is given. Raises InvalidInput, Conflict."""
    check_text("name", name, NAME_MAX)
    identity = str(uuid4()) if project_id is None else project_id
    if not is_project_id(identity):
        raise InvalidInput("id", "must be 1 to 64 letters, digits, dots, dashes and underscores")
    if not _insert(connection, identity, name):
        raise Conflict(f"project {identity} already exists")
    return find_project(connection, identity)


def find_project(connection: Connection, project_id: str) -> Project:
    """Return the project. Raises NotFound."""
    row = connection.execute(select(projects).where(projects.c.id == project_id)).one_or_none()
    if row is None:
        raise NotFound("project", project_id)
    return read_row(Project, row, limits=_limits(connection, limits.c.project == row.no).get(row.no, {}))


def list_projects(connection: Connection) -> list[Project]:
    """Return all projects, ordered by name."""
    own = _limits(connection, true())
    rows = connection.execute(select(projects).order_by(projects.c.name, projects.c.id))
    return [read_row(Project, row, limits=own.get(row.no, {})) for row in rows]


def set_retention(connection: Connection, project_id: str, retention_s: int | None) -> Project:
    """Set how long the project's finished batches are kept. Raises InvalidInput, NotFound."""
    if retention_s is not None and retention_s < 0:
        raise InvalidInput("retention_s", "must be a number of seconds, or 0 for ever")
    connection.execute(update(projects).where(projects.c.id == project_id).values(retention_s=retention_s))
    return find_project(connection, project_id)


def set_limits(connection: Connection, project_id: str, changes: Mapping[str, int | None]) -> Project:
    """Set limits of the project by quota: 0 means unlimited, None the default. Raises InvalidInput, NotFound."""
    no = find_project(connection, project_id).no
    for quota, value in changes.items():
        if quota not in BY_NAME:
            raise InvalidInput("quota", f"{quota} is not a quota; the quotas are {', '.join(BY_NAME)}")
        if value is not None and not 0 <= value <= LIMIT_MAX:
            raise InvalidInput(quota, f"must be between 0 (no limit) and {LIMIT_MAX} (got {value})")
        connection.execute(delete(limits).where(limits.c.project == no, limits.c.quota == quota))
        if value is not None:
            connection.execute(insert(limits).values(project=no, quota=quota, value=value))
    return find_project(connection, project_id)


def _limits(connection: Connection, which: ColumnElement[bool]) -> dict[int, dict[str, int]]:
    """Return the limits of projects that are not the defaults, by the project's number."""
    found: dict[int, dict[str, int]] = {}
    for no, quota, value in connection.execute(select(limits).where(which).order_by(limits.c.quota)):
        found.setdefault(no, {})[quota] = value
    return found


def insert_unless_there(connection: Connection, table: Table, values: dict[str, Any]) -> bool:
    """Insert a row unless one with its key exists or is being inserted concurrently; return whether it was inserted."""
    statement = insert_into(connection, table).values(values).on_conflict_do_nothing().returning(*table.primary_key)
    return connection.execute(statement).first() is not None


def _insert(connection: Connection, identity: str, name: str) -> bool:
    row = {"id": identity, "name": name, "created_ms": now_ms()}
    return insert_unless_there(connection, projects, row)
