"""Projects: who owns batches, keys and webhooks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import uuid4

import msgspec
from sqlalchemy import Connection, Row, Table, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tweezer.ledger.clock import moment_of, now_ms
from tweezer.ledger.schema import projects
from tweezer.model.checks import check_text
from tweezer.model.errors import Conflict, InvalidInput, NotFound
from tweezer.model.ids import is_project_id

NAME_MAX = 200


class Project(msgspec.Struct, frozen=True):
    """A project; ``no`` is its short form in other tables. retention_s: None is the settings', 0 is for ever."""

    no: int
    id: str
    name: str
    created: datetime
    retention_s: int | None = None
    last_activity: datetime | None = None


def project_no(connection: Connection, project_id: str) -> int:
    """The number of the project, which is inserted if it is not there: the library may name any.

    Safe while others do the same; to be called in a transaction that may write.
    """
    known: int | None = connection.execute(select(projects.c.no).where(projects.c.id == project_id)).scalar()
    if known is not None:
        return known
    _insert(connection, project_id, project_id)
    return find_project(connection, project_id).no


def create_project(connection: Connection, name: str, project_id: str | None = None) -> Project:
    """A new project, with a UUID for an id unless one is given. Raises InvalidInput, Conflict."""
    check_text("name", name, NAME_MAX)
    identity = str(uuid4()) if project_id is None else project_id
    if not is_project_id(identity):
        raise InvalidInput("id", "a project's id has 1 to 64 letters, digits, dots, dashes and underscores")
    if not _insert(connection, identity, name):
        raise Conflict(f"there is a project {identity} already")
    return find_project(connection, identity)


def find_project(connection: Connection, project_id: str) -> Project:
    """The project; raises NotFound."""
    row = connection.execute(select(projects).where(projects.c.id == project_id)).one_or_none()
    if row is None:
        raise NotFound("project", project_id)
    return _project(row)


def list_projects(connection: Connection) -> list[Project]:
    """All projects, by name."""
    return [_project(row) for row in connection.execute(select(projects).order_by(projects.c.name, projects.c.id))]


def set_retention(connection: Connection, project_id: str, retention_s: int | None) -> Project:
    """How long the project's finished batches are kept. Raises InvalidInput, NotFound."""
    if retention_s is not None and retention_s < 0:
        raise InvalidInput("retention_s", "is a number of seconds, and 0 for ever")
    connection.execute(update(projects).where(projects.c.id == project_id).values(retention_s=retention_s))
    return find_project(connection, project_id)


def insert_unless_there(connection: Connection, table: Table, values: dict[str, Any]) -> bool:
    """Inserts a row unless one with its key is there, or is being inserted by another; whether it did."""
    insert: Callable[[Table], Any] = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(values).on_conflict_do_nothing().returning(*table.primary_key)
    return connection.execute(statement).first() is not None


def _insert(connection: Connection, identity: str, name: str) -> bool:
    row = {"id": identity, "name": name, "created_ms": now_ms()}
    return insert_unless_there(connection, projects, row)


def _project(row: Row[Any]) -> Project:
    return Project(
        no=row.no,
        id=row.id,
        name=row.name,
        created=moment_of(row.created_ms),
        retention_s=row.retention_s,
        last_activity=moment_of(row.last_activity_ms),
    )
