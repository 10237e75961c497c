"""The keys that sign links to results: encrypted by the vault, made once, rotated with an overlap.

All are in one row of the table ``secrets``, so that a change of them is one write. Older versions kept one key there in
the clear: it signs nothing any more, and links that it signed are accepted for as long as after a rotation.
"""

from __future__ import annotations

import secrets as randomness
from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, select, update

from tweezer.ledger.access.projects import insert_unless_there
from tweezer.ledger.access.vault import Vault
from tweezer.ledger.clock import now_ms
from tweezer.ledger.place import LINK_MAX_S
from tweezer.ledger.schema import secrets
from tweezer.model.errors import InvalidInput, TweezerError

NAME = "results_links"
OVERLAP_S = 604_800.0
"""How long links that a rotated key signed are accepted: as long as webhooks' links are valid."""

OVERLAP_MAX_S = float(LINK_MAX_S)
KEYS_MAX = 5
"""Keys that are accepted at a time: with more the oldest of the rotated ones stop early."""

_KEY_BYTES = 32
_value = select(secrets.c.value).where(secrets.c.name == NAME)


class LinkKey(msgspec.Struct, frozen=True):
    """A key. until_ms: when links that it signed stop being accepted, of one that was rotated."""

    secret: bytes
    until_ms: int | None = None

    def __repr__(self) -> str:
        return f"LinkKey(***, until_ms={self.until_ms!r})"


def existing_link_keys(connection: Connection, vault: Vault) -> list[LinkKey]:
    """As :func:`link_keys`, and empty where those write. A transaction that reads is enough."""
    value = connection.execute(_value).scalar()
    return [] if value is None or _is_plain(value) else _accepted(vault, value)


def link_keys(connection: Connection, vault: Vault) -> list[LinkKey]:
    """Return the keys whose links are accepted, the one that signs first. It is made at its first use.

    To be called in a transaction that may write. Raises TweezerError where they were encrypted with another key.
    """
    insert_unless_there(connection, secrets, {"name": NAME, "value": _sealed(vault, [_new()])})
    value = connection.execute(_value.with_for_update()).scalar_one()
    if _is_plain(value):
        former = LinkKey(bytes(value), now_ms() + round(OVERLAP_S * 1000))
        value = _write(connection, vault, [_new(), former])
    return _accepted(vault, value)


def rotate_link_keys(connection: Connection, vault: Vault, *, overlap_s: float = OVERLAP_S) -> None:
    """Make the key that signs from now on; links of those before are accepted for ``overlap_s`` at most.

    With 0 they are refused at once, and keys that the vault does not open are dropped. Raises InvalidInput("overlap_s",
    …); TweezerError where they were encrypted with another key.
    """
    if not 0 <= overlap_s <= OVERLAP_MAX_S:
        raise InvalidInput("overlap_s", f"must be 0 to {OVERLAP_MAX_S:.0f} seconds (30 days), not {overlap_s:g}")
    if not overlap_s:
        insert_unless_there(connection, secrets, {"name": NAME, "value": b""})
        _write(connection, vault, [_new()])
        return
    until_ms = now_ms() + round(overlap_s * 1000)
    former = [LinkKey(it.secret, min(it.until_ms or until_ms, until_ms)) for it in link_keys(connection, vault)]
    _write(connection, vault, [_new(), *former[: KEYS_MAX - 1]])


def count_sealed_link_keys(connection: Connection, vault: Vault | None) -> tuple[int, int]:
    """Return how many secrets links have, 0 or 1, and how many of these the vault does not open; without one: all."""
    value = connection.execute(_value).scalar()
    if value is None or _is_plain(value):
        return 0, 0
    if vault is None:
        return 1, 1
    try:
        vault.decrypt(value, NAME)
    except TweezerError:
        return 1, 1
    return 1, 0


def encrypt_link_keys_anew(connection: Connection, vault: Vault) -> int:
    """Encrypt them with the vault's first key unless they are; return how many secrets were, 0 or 1.

    Raises TweezerError where they were encrypted with none of the keys.
    """
    value = connection.execute(_value.with_for_update()).scalar()
    if value is None or _is_plain(value) or vault.is_current(value):
        return 0
    _write(connection, vault, _opened(vault, value))
    return 1


def _new() -> LinkKey:
    return LinkKey(randomness.token_bytes(_KEY_BYTES))


def _is_plain(value: bytes) -> bool:
    return len(value) == _KEY_BYTES  # what is encrypted is longer


def _write(connection: Connection, vault: Vault, keys: Sequence[LinkKey]) -> bytes:
    value = _sealed(vault, keys)
    connection.execute(update(secrets).where(secrets.c.name == NAME).values(value=value))
    return value


def _sealed(vault: Vault, keys: Sequence[LinkKey]) -> bytes:
    return vault.encrypt(msgspec.json.encode(keys).decode(), NAME)


def _opened(vault: Vault, value: bytes) -> list[LinkKey]:
    return msgspec.json.decode(vault.decrypt(value, NAME), type=list[LinkKey])


def _accepted(vault: Vault, value: bytes) -> list[LinkKey]:
    now = now_ms()
    return [it for it in _opened(vault, value) if it.until_ms is None or it.until_ms > now]
