"""Who may do what: roles, and the keys that say who is asking.

A key is ``twz_<id>_<secret>``: an id of 12 letters and digits, which may be shown and by which it is recognised, and
a secret of 256 random bits. The ledger keeps the SHA-256 of the whole key. That is enough: nobody can guess a random
secret of that length, so a slow hash, which passwords need, would only slow every request down.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from enum import StrEnum

import msgspec

from tweezer.model.errors import InvalidInput

KEY_PREFIX = "twz_"

_ID_LETTERS, _SECRET_LETTERS = 12, 52  # of base32: 60 bits, and 256 rounded up
_KEY = re.compile(rf"{KEY_PREFIX}([a-z2-7]{{{_ID_LETTERS}}})_[a-z2-7]{{{_SECRET_LETTERS}}}", re.ASCII)
_KEY_ID = re.compile(rf"(?:{KEY_PREFIX})?([a-z2-7]{{{_ID_LETTERS}}})", re.ASCII)


class Role(StrEnum):
    """What a credential is for.

    user: submit to its own projects, and read them. read: read its own projects, write nothing. metrics: read the
    service's metrics, nothing else. operator: see and change everybody's work, and the service itself.
    """

    USER = "user"
    READ = "read"
    METRICS = "metrics"
    OPERATOR = "operator"

    @property
    def of_projects(self) -> bool:
        """Whether it is about projects that a credential belongs to."""
        return self in (Role.USER, Role.READ)


class Principal(msgspec.Struct, frozen=True):
    """Who is behind a request.

    key: id of the key that came with it, which may be shown. projects: ids of the projects that it belongs to; of a
    key of one project, that one. An operator sees all projects whether or not it belongs to any. user: id of the user.
    is_session: whether the user logged in, rather than was given a key.
    """

    key: str
    role: Role
    projects: frozenset[str] = frozenset()
    user: str | None = None
    is_session: bool = False

    @property
    def account(self) -> str:
        """What limits of the API count by, so that more keys or log-ins give no more: the user, else the project."""
        if self.user is not None:
            return f"user {self.user}"
        if self.role.of_projects and len(self.projects) == 1:
            return f"project {next(iter(self.projects))}"
        return f"key {self.key}"

    @property
    def sees_all(self) -> bool:
        return self.role is Role.OPERATOR

    def sees(self, project: str) -> bool:
        """Return whether what belongs to the project exists for this caller."""
        return self.sees_all or project in self.projects


def new_key() -> str:
    """Make a new key."""
    return f"{KEY_PREFIX}{_letters(8)[:_ID_LETTERS]}_{_letters(32)}"


def key_id(key: str) -> str | None:
    """Return the id within the text of a key; None when it has not the form of one."""
    match = _KEY.fullmatch(key)
    return None if match is None else match[1]


def key_digest(key: str) -> bytes:
    """Return what is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


def read_key_id(text: str, *, kind: str = "key") -> str:
    """Return the id in what a user calls a key, or a session, by: the id, with or without its prefix, or the whole key.

    Raises InvalidInput(kind, …), which does not quote the text.
    """
    match = _KEY.fullmatch(text) or _KEY_ID.fullmatch(text)
    if match is None:
        listed = " as `tweezer keys list` shows them" if kind == "key" else ""
        raise InvalidInput(kind, f"is not the id of a {kind}; write its {_ID_LETTERS} letters and digits{listed}")
    return match[1]


def check_key(text: str) -> str:
    """Return the id within the text of a key. Raises InvalidInput("key", …), not quoting the text."""
    found = key_id(text)
    if found is not None:
        return found
    if not text.startswith(KEY_PREFIX):
        problem = f"does not begin with {KEY_PREFIX}"
    elif text.count("_") != KEY_PREFIX.count("_") + 1:
        problem = f"is not of the form {KEY_PREFIX}<id>_<secret>"
    else:
        identity, _, secret = text.removeprefix(KEY_PREFIX).partition("_")
        if len(identity) != _ID_LETTERS:
            problem = f"has an id of {len(identity)} characters instead of {_ID_LETTERS}"
        elif len(secret) != _SECRET_LETTERS:
            problem = f"has a secret of {len(secret)} characters instead of {_SECRET_LETTERS}"
        else:
            problem = "has other characters in its id or secret than a-z and 2-7"
    raise InvalidInput("key", f"{problem}; `tweezer keys create` makes a key")


def _letters(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode().rstrip("=").lower()
