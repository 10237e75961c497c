"""Roles, and the format of keys.

A key is ``twz_<id>_<secret>``. The id has 12 letters and digits; it identifies the key and may be shown. The secret has
256 random bits. The ledger stores the SHA-256 of the whole key. A random secret of that length cannot be guessed, so a
slow hash, which passwords need, would only slow down every request.
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
    """The permissions of a credential.

    user: submit to and read its own projects. read: read its own projects, write nothing. metrics: read the service's
    metrics and nothing else. operator: see and change the work of all projects, and the service itself.
    """

    USER = "user"
    READ = "read"
    METRICS = "metrics"
    OPERATOR = "operator"

    @property
    def of_projects(self) -> bool:
        """Whether the role applies to the projects that a credential belongs to."""
        return self in (Role.USER, Role.READ)


class Principal(msgspec.Struct, frozen=True):
    """The caller of a request.

    key: id of the key in the request, which may be shown. projects: ids of the projects that the caller belongs to;
    for a key of one project, that one. An operator sees all projects, regardless of these. user: id of the user.
    is_session: whether the user logged in, rather than using a key.
    """

    key: str
    role: Role
    projects: frozenset[str] = frozenset()
    user: str | None = None
    is_session: bool = False

    @property
    def account(self) -> str:
        """What the API's limits are counted by: the user, else the project. More keys or log-ins do not raise them."""
        if self.user is not None:
            return f"user {self.user}"
        if self.role.of_projects and len(self.projects) == 1:
            return f"project {next(iter(self.projects))}"
        return f"key {self.key}"

    @property
    def sees_all(self) -> bool:
        return self.role is Role.OPERATOR

    def sees(self, project: str) -> bool:
        """Return whether the caller can see the project."""
        return self.sees_all or project in self.projects


def new_key() -> str:
    """Generate a key."""
    return f"{KEY_PREFIX}{_letters(8)[:_ID_LETTERS]}_{_letters(32)}"


def key_id(key: str) -> str | None:
    """Return the id in a key; None if the text does not have the form of a key."""
    match = _KEY.fullmatch(key)
    return None if match is None else match[1]


def key_digest(key: str) -> bytes:
    """Return the digest of a key, which the ledger stores."""
    return hashlib.sha256(key.encode()).digest()


def read_key_id(text: str, *, kind: str = "key") -> str:
    """Return the id of a key or session, given as the id, with or without prefix, or as the whole key.

    Raises InvalidInput(kind, …), which does not quote the text.
    """
    match = _KEY.fullmatch(text) or _KEY_ID.fullmatch(text)
    if match is None:
        listed = " shown by `tweezer keys list`" if kind == "key" else ""
        raise InvalidInput(kind, f"is not a {kind} id; use the {_ID_LETTERS}-character id{listed}")
    return match[1]


def check_key(text: str) -> str:
    """Return the id in a key. Raises InvalidInput("key", …), which does not quote the text."""
    found = key_id(text)
    if found is not None:
        return found
    if not text.startswith(KEY_PREFIX):
        problem = f"must begin with {KEY_PREFIX}"
    elif text.count("_") != KEY_PREFIX.count("_") + 1:
        problem = f"must have the form {KEY_PREFIX}<id>_<secret>"
    else:
        identity, _, secret = text.removeprefix(KEY_PREFIX).partition("_")
        if len(identity) != _ID_LETTERS:
            problem = f"its id must have {_ID_LETTERS} characters (got {len(identity)})"
        elif len(secret) != _SECRET_LETTERS:
            problem = f"its secret must have {_SECRET_LETTERS} characters (got {len(secret)})"
        else:
            problem = "its id and secret must only contain a-z and 2-7"
    raise InvalidInput("key", f"{problem}; make a key with `tweezer keys create`")


def _letters(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode().rstrip("=").lower()
