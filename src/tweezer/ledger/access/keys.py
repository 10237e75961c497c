"""Creates, lists, rotates and revokes keys and sessions, and looks up the key of a request."""

from __future__ import annotations

import math
from collections.abc import Collection
from datetime import datetime
from hmac import compare_digest
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Select, delete, or_, select, update

from tweezer.ledger.access.credentials import Principal, Role, check_key, key_digest, new_key
from tweezer.ledger.access.projects import find_project, insert_unless_there
from tweezer.ledger.schema import Lettered, keys, members, now_ms, projects, read_row, schedules, users
from tweezer.model.checks import check_text
from tweezer.model.errors import Conflict, InvalidInput, NotFound

OVERLAP_S = 86_400
"""How long a rotated key remains valid by default."""

USED_S = 60
"""How often the use of a key is recorded."""

SESSIONS_MAX = 100
"""Default maximum number of sessions of a user."""

_NAME_MAX = 200
_SESSIONS_KEPT_MS = 86_400_000  # after their end, for operators


class KeyKind(Lettered):
    """Key: made by an operator. Session: created when a user logs in with name and password."""

    KEY = "key"
    SESSION = "session"


class ApiKey(msgspec.Struct, frozen=True):
    """The public properties of a key. project: None if the key is not limited to one. used: approximate last use."""

    id: str
    kind: KeyKind
    role: Role
    project: str | None
    user: str | None
    name: str
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    used: datetime | None


class NewKey(msgspec.Struct, frozen=True):
    """A new key with its text, which cannot be retrieved later."""

    about: ApiKey
    text: str

    def __repr__(self) -> str:
        return f"NewKey({self.about!r})"


class KeyLookup(msgspec.Struct, frozen=True):
    """The result of a look-up. principal: None if the key is not valid. left_s: seconds until it expires, or inf."""

    digest: bytes
    principal: Principal | None
    left_s: float


def create_key(
    connection: Connection,
    *,
    name: str,
    role: Role = Role.USER,
    project_id: str | None = None,
    user_id: str | None = None,
    expires_s: float | None = None,
    text: str | None = None,
) -> NewKey:
    """Create a key; ``text`` is a key that was made elsewhere. Raises InvalidInput, NotFound, Conflict."""
    check_text("name", name, _NAME_MAX)
    if role.of_projects and project_id is None:
        raise InvalidInput("project", f"is required for a key with the role {role}")
    if expires_s is not None and expires_s <= 0:
        raise InvalidInput("expires", "must be in the future")
    now = now_ms()
    return _insert(
        connection,
        new_key() if text is None else text,
        kind=KeyKind.KEY.letter,
        role=role,
        project=None if project_id is None else find_project(connection, project_id).no,
        user=user_id,
        name=name,
        created_ms=now,
        expires_ms=None if expires_s is None else now + round(expires_s * 1000),
    )


def adopt_key(connection: Connection, text: str, *, name: str, project_id: str) -> ApiKey:
    """Register a key that was made elsewhere for a project, unless the project already has it.

    Raises InvalidInput("key", …) if the text is not a valid key, NotFound for the project, and Conflict if the key is
    revoked, expired or belongs to another project.
    """
    identity = check_key(text)
    row = connection.execute(_select_keys().where(keys.c.id == identity)).one_or_none()
    if row is None:
        return create_key(connection, name=name, project_id=project_id, text=text).about
    if not compare_digest(row.digest, key_digest(text)):
        raise Conflict(f"another key with the id {identity} already exists; make a new key")
    if not _is_good(row, now_ms()):
        raise Conflict(f"key {identity} is revoked or expired; make a new key")
    if row.project_id != project_id:
        raise Conflict(f"key {identity} belongs to project {row.project_id}, not to {project_id}")
    return _key(row)


def create_session(
    connection: Connection,
    user_id: str,
    *,
    session_s: float,
    sessions_max: int = SESSIONS_MAX,
    role: Role = Role.USER,
) -> NewKey:
    """Create a session for a user who has logged in, and remove sessions that ended long ago.

    With more than ``sessions_max`` sessions the oldest ones are ended: refusing the log-in would lock out users who
    have lost their other sessions.
    """
    now = now_ms()
    over = (keys.c.kind == KeyKind.SESSION.letter) & (keys.c.expires_ms < now - _SESSIONS_KEPT_MS)
    connection.execute(delete(keys).where(over))
    surplus = [session.id for session in list_sessions(connection, user_id)[sessions_max - 1 :]]
    revoke_keys(connection, keys.c.id.in_(surplus))
    return _insert(
        connection,
        new_key(),
        kind=KeyKind.SESSION.letter,
        role=role,
        user=user_id,
        name="log-in",
        created_ms=now,
        expires_ms=now + round(session_s * 1000),
    )


def list_keys(connection: Connection, *, project_id: str | None = None, sessions: bool = False) -> list[ApiKey]:
    """Return the keys of one project or of all, newest first, with or without sessions."""
    statement = _select_keys().order_by(keys.c.created_ms.desc(), keys.c.id)
    if project_id is not None:
        statement = statement.where(projects.c.id == find_project(connection, project_id).id)
    if not sessions:
        statement = statement.where(keys.c.kind == KeyKind.KEY.letter)
    return [_key(row) for row in connection.execute(statement)]


def list_sessions(connection: Connection, user_id: str) -> list[ApiKey]:
    """Return the current sessions of a user, newest first."""
    own = (keys.c.kind == KeyKind.SESSION.letter, keys.c.user == user_id)
    live = (keys.c.revoked_ms.is_(None), keys.c.expires_ms > now_ms())
    statement = _select_keys().where(*own, *live).order_by(keys.c.created_ms.desc(), keys.c.id)
    return [_key(row) for row in connection.execute(statement)]


def end_sessions(connection: Connection, user_id: str, identity: str | None = None) -> list[ApiKey]:
    """End the user's session with this id, or all sessions; return those that were ended. Raises NotFound."""
    found = [it for it in list_sessions(connection, user_id) if identity in (None, it.id)]
    if identity is not None and not found:
        raise NotFound("session", identity)
    revoke_keys(connection, keys.c.id.in_([it.id for it in found]))
    return found


def find_key(connection: Connection, identity: str) -> ApiKey:
    """Return the key with this id. Raises NotFound."""
    row = connection.execute(_select_keys().where(keys.c.id == identity)).one_or_none()
    if row is None:
        raise NotFound("key", identity)
    return _key(row)


def revoke_key(connection: Connection, identity: str) -> ApiKey:
    """Revoke the key, unless it is already revoked, and return it. Raises NotFound."""
    revoke_keys(connection, keys.c.id == identity)
    return find_key(connection, identity)


def revoke_keys(connection: Connection, which: ColumnElement[bool]) -> None:
    """Revoke all keys that match the condition."""
    connection.execute(update(keys).where(which, keys.c.revoked_ms.is_(None)).values(revoked_ms=now_ms()))


def rotate_key(connection: Connection, identity: str, *, overlap_s: float = OVERLAP_S) -> NewKey:
    """Create a successor with the same rights and period of validity; the old key expires after the overlap.

    Raises NotFound, and Conflict if the key is revoked or expired.
    """
    now = now_ms()
    statement = select(keys).where(keys.c.id == identity, keys.c.kind == KeyKind.KEY.letter).with_for_update()
    old = connection.execute(statement).one_or_none()
    if old is None:
        raise NotFound("key", identity)
    if not _is_good(old, now):
        raise Conflict(f"key {identity} is revoked or expired; make a new one with `tweezer keys create`")
    end = now + round(overlap_s * 1000)
    connection.execute(
        update(keys)
        .where(keys.c.id == identity, or_(keys.c.expires_ms.is_(None), keys.c.expires_ms > end))
        .values(expires_ms=end)
    )
    made = _insert(
        connection,
        new_key(),
        kind=KeyKind.KEY.letter,
        role=old.role,
        project=old.project,
        user=old.user,
        name=old.name,
        created_ms=now,
        expires_ms=None if old.expires_ms is None else now + (old.expires_ms - old.created_ms),
    )
    connection.execute(update(schedules).where(schedules.c.key == identity).values(key=made.about.id))
    return made


def look_up_key(connection: Connection, identity: str) -> KeyLookup | None:
    """Look up the caller with this key; None if the key does not exist."""
    statement = (
        select(keys, projects.c.id.label("project_id"), users.c.disabled_ms)
        .join_from(keys, projects, keys.c.project == projects.c.no, isouter=True)
        .join(users, keys.c.user == users.c.id, isouter=True)
        .where(keys.c.id == identity)
    )
    row = connection.execute(statement).one_or_none()
    if row is None:
        return None
    now = now_ms()
    good = _is_good(row, now) and row.disabled_ms is None
    left_s = math.inf if row.expires_ms is None else (row.expires_ms - now) / 1000
    return KeyLookup(row.digest, _principal(connection, row) if good else None, left_s)


def note_used(connection: Connection, identities: Collection[str]) -> None:
    """Record that the keys were used now, unless a recent use is recorded."""
    now = now_ms()
    before = or_(keys.c.used_ms.is_(None), keys.c.used_ms <= now - USED_S * 1000)
    connection.execute(update(keys).where(keys.c.id.in_(sorted(identities)), before).values(used_ms=now))


def _principal(connection: Connection, row: Row[Any]) -> Principal:
    if row.kind == KeyKind.KEY.letter:
        own = frozenset() if row.project_id is None else frozenset({row.project_id})
    else:
        statement = select(projects.c.id).join(members, members.c.project == projects.c.no)
        own = frozenset(connection.execute(statement.where(members.c.user == row.user)).scalars())
    return Principal(row.id, Role(row.role), own, row.user, is_session=row.kind == KeyKind.SESSION.letter)


def _is_good(row: Row[Any], now: int) -> bool:
    return row.revoked_ms is None and (row.expires_ms is None or row.expires_ms > now)


def _insert(connection: Connection, text: str, **values: Any) -> NewKey:
    identity = check_key(text)
    row = {"id": identity, "digest": key_digest(text), **values}
    if not insert_unless_there(connection, keys, row):
        raise Conflict(f"key {identity} already exists")
    return NewKey(find_key(connection, identity), text)


def _select_keys() -> Select[Any]:
    return select(keys, projects.c.id.label("project_id")).join(projects, keys.c.project == projects.c.no, isouter=True)


def _key(row: Row[Any]) -> ApiKey:
    return read_row(ApiKey, row, kind=KeyKind.from_letter(row.kind), role=Role(row.role), project=row.project_id)
