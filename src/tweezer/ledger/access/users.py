"""Users: people who log in with name and password, and the projects that they belong to."""

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
    """A user. id: what batches and keys name. projects: ids of those that it belongs to."""

    id: str
    name: str
    created: datetime
    disabled: datetime | None
    projects: tuple[str, ...]


class Login(msgspec.Struct, frozen=True):
    """What is needed to check a password. user: id; None when nobody may log in by this name."""

    user: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"Login({self.user!r})"


def is_user_name(name: str) -> bool:
    """Return whether a user may have this name: up to 200 characters that can be seen."""
    return 0 < len(name) <= NAME_MAX and name.isprintable() and name == name.strip()


def create_user(connection: Connection, name: str, password_hash: str | None) -> User:
    """Create a user, of no project. Raises InvalidInput, Conflict."""
    if not is_user_name(name):
        raise InvalidInput("name", f"a user's name has 1 to {NAME_MAX} printable characters, and no space at its ends")
    row = {"id": str(uuid4()), "name": name, "password": password_hash, "created_ms": now_ms()}
    if not insert_unless_there(connection, users, row):
        raise Conflict(f"there is a user {name} already")
    return find_user(connection, name)


def find_user(connection: Connection, name: str) -> User:
    """Return the user of this name or id. Raises NotFound."""
    row = connection.execute(select(users).where(or_(users.c.name == name, users.c.id == name))).first()
    if row is None:
        raise NotFound("user", name)
    of_user = select(projects.c.id).join(members, members.c.project == projects.c.no).where(members.c.user == row.id)
    return _user(row, connection.execute(of_user.order_by(projects.c.id)).scalars())


def list_users(connection: Connection) -> list[User]:
    """Return all users, by name."""
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
    """Let the user and its keys in no more, or again; its sessions end. Raises NotFound."""
    user = find_user(connection, name)
    connection.execute(update(users).where(users.c.id == user.id).values(disabled_ms=now_ms() if disabled else None))
    revoke_keys(connection, (keys.c.user == user.id) & (keys.c.kind == KeyKind.SESSION.letter))
    return find_user(connection, user.id)


def add_to_project(connection: Connection, name: str, project_id: str) -> User:
    """Make the user belong to the project. Raises NotFound."""
    user, project = find_user(connection, name), find_project(connection, project_id)
    insert_unless_there(connection, members, {"user": user.id, "project": project.no})
    return find_user(connection, user.id)


def remove_from_project(connection: Connection, name: str, project_id: str) -> User:
    """Remove the user from the project, and end its keys of that project. Raises NotFound."""
    user, project = find_user(connection, name), find_project(connection, project_id)
    connection.execute(delete(members).where(members.c.user == user.id, members.c.project == project.no))
    revoke_keys(connection, (keys.c.user == user.id) & (keys.c.project == project.no))
    return find_user(connection, user.id)


def find_login(connection: Connection, name: str) -> Login:
    """Return what a password for this name must match."""
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
    """Return a session for who has shown the password; None when the user was changed meanwhile.

    password: the hash to keep from now on.
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

# Of a random password that nobody knows: what is compared where there is no user, so that it takes as long.
_NOBODYS = "$argon2id$v=19$m=65536,t=3,p=4$DiTsytU74vEDbnIEZNxoHw$jbXrtJQpqFFK4V0P4G22kVxzNoSX9IcA+g+Eapm40g0"


def check_password(password: str) -> None:
    """Raises InvalidInput("password", …) unless it may be chosen."""
    if not PASSWORD_LEAST <= len(password) <= PASSWORD_MOST:
        raise InvalidInput("password", f"has {PASSWORD_LEAST} to {PASSWORD_MOST} characters, not {len(password)}")


def hash_password(password: str) -> str:
    """Return what is kept of a password, in PHC's format; takes about a tenth of a second."""
    return _hasher.hash(_normal(password))


def is_password(password: str, kept: str | None) -> bool:
    """Return whether it is the password of which this was kept; never for None, which takes as long."""
    try:
        _hasher.verify(_NOBODYS if kept is None else kept, _normal(password))
    except exceptions.VerificationError:
        return False
    return kept is not None


def needs_rehash(kept: str) -> bool:
    """Return whether it was hashed in another way than passwords are now."""
    return _hasher.check_needs_rehash(kept)


def _normal(password: str) -> bytes:
    """Return the same for however a keyboard composes its characters (RFC 8265)."""
    return unicodedata.normalize("NFC", password).encode(errors="replace")
