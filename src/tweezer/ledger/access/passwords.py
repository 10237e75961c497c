"""Passwords: hashed with Argon2id, the low-memory profile of RFC 9106 (64 MiB, three passes, four lanes)."""

from __future__ import annotations

import unicodedata

import argon2
from argon2 import exceptions

from tweezer.model.errors import InvalidInput

PASSWORD_LEAST, PASSWORD_MOST = 12, 1024

_hasher = argon2.PasswordHasher.from_parameters(argon2.profiles.RFC_9106_LOW_MEMORY)

# Of a random password that nobody knows: what is compared where there is no user, so that it takes as long.
_NOBODYS = "$argon2id$v=19$m=65536,t=3,p=4$DiTsytU74vEDbnIEZNxoHw$jbXrtJQpqFFK4V0P4G22kVxzNoSX9IcA+g+Eapm40g0"


def check_password(password: str) -> None:
    """Raises InvalidInput("password", …) unless it may be chosen."""
    if not PASSWORD_LEAST <= len(password) <= PASSWORD_MOST:
        raise InvalidInput("password", f"has {PASSWORD_LEAST} to {PASSWORD_MOST} characters, not {len(password)}")


def hash_password(password: str) -> str:
    """What is kept of a password, in PHC's format; takes about a tenth of a second."""
    return _hasher.hash(_normal(password))


def is_password(password: str, kept: str | None) -> bool:
    """Whether it is the password of which this was kept. None is nobody's: it takes as long, and is never right."""
    try:
        _hasher.verify(_NOBODYS if kept is None else kept, _normal(password))
    except exceptions.VerificationError:
        return False
    return kept is not None


def needs_rehash(kept: str) -> bool:
    """Whether it was hashed in another way than passwords are now."""
    return _hasher.check_needs_rehash(kept)


def _normal(password: str) -> bytes:
    """The same for however a keyboard composes its characters (RFC 8265)."""
    return unicodedata.normalize("NFC", password).encode(errors="replace")
