"""Users, who log in with name and password, and the projects that they belong to."""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import Any
from uuid import uuid4

import argon2
import msgspec
from argon2 import exceptions
from sqlalchemy import Connection, Row, delete, or_, select, update

from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import SESSIONS_MAX, KeyKind, NewKey, create_session, revoke_keys
from tweezer.ledger.access.projects import find_project, insert_unless_there
from tweezer.ledger.schema import as_datetime, keys, members, now_ms, projects, users
from tweezer.model.errors import Conflict, InvalidInput, NotFound

NAME_MAX = 200


class User(msgspec.Struct, frozen=True):
    """A user. id: referred to by batches and keys. projects: ids of the projects that the user belongs to."""

    id: str
    name: str
    created: datetime
    disabled: datetime | None
    projects: tuple[str, ...]


class Login(msgspec.Struct, frozen=True):
    """The data for checking a password. user: id; None if no user can log in with this name."""

    user: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"Login({self.user!r})"


def is_user_name(name: str) -> bool:
    """Return whether this is a valid user name: up to 200 printable characters without surrounding spaces."""
    return 0 < len(name) <= NAME_MAX and name.isprintable() and name == name.strip()


def create_user(connection: Connection, name: str, password_hash: str | None) -> User:
    """Create a user without projects. Raises InvalidInput, Conflict."""
    if not is_user_name(name):
        raise InvalidInput("name", f"must be 1 to {NAME_MAX} printable characters, without spaces at its ends")
    row = {"id": str(uuid4()), "name": name, "password": password_hash, "created_ms": now_ms()}
    if not insert_unless_there(connection, users, row):
        raise Conflict(f"user {name} already exists")
    return find_user(connection, name)


def find_user(connection: Connection, name: str) -> User:
    """Return the user with this name or id. Raises NotFound."""
    row = connection.execute(select(users).where(or_(users.c.name == name, users.c.id == name))).first()
    if row is None:
        raise NotFound("user", name)
    of_user = select(projects.c.id).join(members, members.c.project == projects.c.no).where(members.c.user == row.id)
    return _user(row, connection.execute(of_user.order_by(projects.c.id)).scalars())


def list_users(connection: Connection) -> list[User]:
    """Return all users, ordered by name."""
    pairs = select(members.c.user, projects.c.id).join(projects, members.c.project == projects.c.no)
    belongs: dict[str, list[str]] = {}
    for user, project in connection.execute(pairs.order_by(projects.c.id)):
        belongs.setdefault(user, []).append(project)
    return [_user(row, belongs.get(row.id, [])) for row in connection.execute(select(users).order_by(users.c.name))]


def set_password(connection: Connection, name: str, password_hash: str) -> User:
    """Change the password, and end the user's sessions. Raises NotFound."""
    user = find_user(connection, name)
    connection.execute(update(users).where(users.c.id == user.id).values(password=password_hash))
    revoke_keys(connection, (keys.c.user == user.id) & (keys.c.kind == KeyKind.SESSION.letter))
    return user


def set_disabled(connection: Connection, name: str, disabled: bool) -> User:
    """Disable or enable the user and the user's keys, and end all sessions. Raises NotFound."""
    user = find_user(connection, name)
    connection.execute(update(users).where(users.c.id == user.id).values(disabled_ms=now_ms() if disabled else None))
    revoke_keys(connection, (keys.c.user == user.id) & (keys.c.kind == KeyKind.SESSION.letter))
    return find_user(connection, user.id)


def add_to_project(connection: Connection, name: str, project_id: str) -> User:
    """Add the user to the project. Raises NotFound."""
    user, project = find_user(connection, name), find_project(connection, project_id)
    insert_unless_there(connection, members, {"user": user.id, "project": project.no})
    return find_user(connection, user.id)


def remove_from_project(connection: Connection, name: str, project_id: str) -> User:
    """Remove the user from the project, and revoke the user's keys for it. Raises NotFound."""
    user, project = find_user(connection, name), find_project(connection, project_id)
    connection.execute(delete(members).where(members.c.user == user.id, members.c.project == project.no))
    revoke_keys(connection, (keys.c.user == user.id) & (keys.c.project == project.no))
    return find_user(connection, user.id)


def find_login(connection: Connection, name: str) -> Login:
    """Return the data for checking a password for this name."""
    if not is_user_name(name):
        return Login()
    row = connection.execute(select(users).where(users.c.name == name, users.c.disabled_ms.is_(None))).one_or_none()
    return Login() if row is None else Login(row.id, row.password)


def open_session(
    connection: Connection,
    login: Login,
    *,
    password: str,
    session_s: float,
    sessions_max: int = SESSIONS_MAX,
    role: Role = Role.USER,
) -> NewKey | None:
    """Create a session for a user whose password was checked; None if the user was changed in the meantime.

    password: the password hash to store from now on.
    """
    if login.user is None or login.password is None:
        return None
    unchanged = (users.c.id == login.user, users.c.password == login.password, users.c.disabled_ms.is_(None))
    changed = connection.execute(update(users).where(*unchanged).values(password=password))
    if not changed.rowcount:
        return None
    return create_session(connection, login.user, session_s=session_s, sessions_max=sessions_max, role=role)


def _user(row: Row[Any], belongs: Any) -> User:
    return User(row.id, row.name, as_datetime(row.created_ms), as_datetime(row.disabled_ms), tuple(belongs))


PASSWORD_LEAST, PASSWORD_MOST = 12, 1024

_hasher = argon2.PasswordHasher.from_parameters(argon2.profiles.RFC_9106_LOW_MEMORY)

# The hash of a random, discarded password. It is checked if there is no user, so that this takes the same time.
_UNKNOWN_USERS_HASH = (
    "$argon2id$v=19$m=65536,t=3,p=4$DiTsytU74vEDbnIEZNxoHw$jbXrtJQpqFFK4V0P4G22kVxzNoSX9IcA+g+Eapm40g0"
)


def check_password(password: str) -> None:
    """Raise InvalidInput("password", …) unless the password is acceptable."""
    if not PASSWORD_LEAST <= len(password) <= PASSWORD_MOST:
        raise InvalidInput("password", f"must be {PASSWORD_LEAST} to {PASSWORD_MOST} characters (got {len(password)})")


def hash_password(password: str) -> str:
    """Hash a password, in the PHC string format; takes about a tenth of a second."""
    return _hasher.hash(_normal(password))


def is_password(password: str, kept: str | None) -> bool:
    """Return whether the password matches the stored hash; None never matches, but takes the same time."""
    try:
        _hasher.verify(_UNKNOWN_USERS_HASH if kept is None else kept, _normal(password))
    except exceptions.VerificationError:
        return False
    return kept is not None


def needs_rehash(kept: str) -> bool:
    """Return whether the hash was made with other parameters than the current ones."""
    return _hasher.check_needs_rehash(kept)


def _normal(password: str) -> bytes:
    """Normalise a password, so that it does not depend on how a keyboard composes characters (RFC 8265)."""
    return unicodedata.normalize("NFC", password).encode(errors="replace")
