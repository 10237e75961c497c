"""The secrets that sign webhooks: those of projects, and those of registered endpoints.

Each owner has one current HMAC secret and optionally one current ed25519 key. Rotated ones keep signing until they
expire. Functions need a transaction that may write, unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Connection, Row, Select, delete, insert, or_, select, update

from tweezer.ledger.access.vault import SECRETS_FRESH_S, Vault
from tweezer.ledger.database import Database
from tweezer.ledger.schema import as_datetime, endpoints, now_ms, projects, webhook_secrets
from tweezer.model.errors import InvalidInput, NotFound, TweezerError
from tweezer.model.lru import CachedCalls
from tweezer.model.signatures import Algorithm, SigningSecret, new_private_key, new_secret, public_key

OVERLAP_S = 86_400.0
OVERLAP_MAX_S = 30 * 86_400.0
SIGNING_MAX = 5
"""The most secrets of one owner that sign at a time; beyond it the oldest rotated ones stop early."""

_CACHED_MAX = 10_000  # owners whose secrets a courier caches
_LETTERS = {Algorithm.HMAC_SHA256: "H", Algorithm.ED25519: "E"}
_ALGORITHMS = {letter: algorithm for algorithm, letter in _LETTERS.items()}
_table = webhook_secrets.c


class SecretOwner(msgspec.Struct, frozen=True):
    """The owner of secrets: a project, by its number, or one of its endpoints."""

    project_no: int
    endpoint_id: UUID | None = None

    def __str__(self) -> str:
        """Return the text to which the vault binds the secrets of this owner."""
        return f"{self.project_no}/{self.endpoint_id or ''}"

    def conditions(self) -> tuple[Any, Any]:
        """Return the conditions that select the owner's rows."""
        no_endpoint = self.endpoint_id is None
        return _table.project == self.project_no, (
            _table.endpoint.is_(None) if no_endpoint else _table.endpoint == self.endpoint_id
        )


class ShownSecret(msgspec.Struct, frozen=True):
    """The secret with which a receiver verifies. public_key: of the ed25519 key, if there is one. older_until: until
    when rotated secrets keep signing."""

    secret: str
    public_key: str | None
    older_until: datetime | None

    @classmethod
    def choose(cls, signing: Sequence[SigningSecret]) -> ShownSecret:
        """Choose the current secrets from all that sign now."""
        in_use = {it.algorithm: it.text for it in signing if it.expires is None}
        private = in_use.get(Algorithm.ED25519)
        return cls(
            secret=in_use[Algorithm.HMAC_SHA256],
            public_key=None if private is None else public_key(private),
            older_until=max((it.expires for it in signing if it.expires is not None), default=None),
        )

    def __repr__(self) -> str:
        return f"ShownSecret(***, public_key={self.public_key!r}, older_until={self.older_until!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("secret", "***"), ("public_key", self.public_key), ("older_until", self.older_until)]


def read_secrets(connection: Connection, vault: Vault, owner: SecretOwner) -> list[SigningSecret]:
    """Return the secrets as :func:`ensure_secrets` does, or an empty list if the first one does not exist yet.

    A read-only transaction is enough.
    """
    rows = _select_signing(connection, owner)
    return _decrypt(rows, vault, owner) if _has_hmac(rows) else []


def ensure_secrets(connection: Connection, vault: Vault, owner: SecretOwner) -> list[SigningSecret]:
    """Return all secrets that sign now, newest first; create the first HMAC secret if it does not exist.

    Safe to call concurrently. Raises TweezerError if a secret was encrypted with another key, and NotFound if the first
    one is missing and its owner was deleted.
    """
    rows = _select_signing(connection, owner)
    if not _has_hmac(rows):
        _lock(connection, owner.project_no)
        _lock_endpoint(connection, owner.endpoint_id)
        rows = _select_signing(connection, owner)
        if not _has_hmac(rows):  # no other process has created it in the meantime
            _insert(connection, vault, owner, Algorithm.HMAC_SHA256, new_secret())
            rows = _select_signing(connection, owner)
    return _decrypt(rows, vault, owner)


def show_secret(connection: Connection, vault: Vault, owner: SecretOwner) -> ShownSecret:
    """Return the secret with which the owner's receivers verify. Raises as :func:`ensure_secrets`."""
    return ShownSecret.choose(ensure_secrets(connection, vault, owner))


def rotate_secret(
    connection: Connection,
    vault: Vault,
    owner: SecretOwner,
    *,
    overlap_s: float = OVERLAP_S,
    ed25519: bool = False,
) -> ShownSecret:
    """Replace the HMAC secret, or with ``ed25519`` the ed25519 key, which is created if it does not exist.

    The old one keeps signing for ``overlap_s``. With 0, secrets of the owner that the vault cannot decrypt are deleted
    as well: their key is lost, and signing would fail because of them. Wait SECRETS_SURE_S before you show the new one:
    after that time all couriers sign with it.

    Raises InvalidInput("overlap_s", …), and as :func:`ensure_secrets`.
    """
    if not 0 <= overlap_s <= OVERLAP_MAX_S:
        raise InvalidInput(
            "overlap_s", f"must be 0 to {OVERLAP_MAX_S:.0f} seconds, which is 30 days (got {overlap_s:g})"
        )
    algorithm = Algorithm.ED25519 if ed25519 else Algorithm.HMAC_SHA256
    _lock(connection, owner.project_no)
    until = now_ms() + round(overlap_s * 1000)
    in_use = (*owner.conditions(), _table.algorithm == _LETTERS[algorithm], _table.expires_ms.is_(None))
    connection.execute(update(webhook_secrets).where(*in_use).values(expires_ms=until))
    _insert(connection, vault, owner, algorithm, new_private_key() if ed25519 else new_secret())
    rows = _select_signing(connection, owner)
    if not overlap_s:
        sealed = [row.id for row in rows if not _can_decrypt(vault, row)]
        connection.execute(delete(webhook_secrets).where(_table.id.in_(sealed)))
    rotated = [row.id for row in rows if row.expires_ms is not None]
    surplus = rotated[len(rotated) - max(len(rows) - SIGNING_MAX, 0) :]
    if surplus:
        connection.execute(delete(webhook_secrets).where(_table.id.in_(surplus)))
    return show_secret(connection, vault, owner)


def delete_expired_secrets(connection: Connection) -> int:
    """Delete expired secrets of all owners; return how many."""
    return connection.execute(delete(webhook_secrets).where(_table.expires_ms <= now_ms())).rowcount


def count_sealed_secrets(connection: Connection, vault: Vault | None) -> tuple[int, int]:
    """Count the secrets of all owners, and those that the vault cannot decrypt (all of them without a vault)."""
    rows = connection.execute(select(webhook_secrets)).all()
    return len(rows), sum(vault is None or not _can_decrypt(vault, row) for row in rows)


def reencrypt_secrets(connection: Connection, vault: Vault) -> int:
    """Encrypt all secrets with the vault's first key, so that its other keys can be removed.

    Returns the number of changed secrets. Raises TweezerError if none of the keys can decrypt one.
    """
    changed = 0
    for row in connection.execute(select(webhook_secrets).with_for_update()).all():
        if not vault.is_current(row.value):
            owner = str(SecretOwner(row.project, row.endpoint))
            value = vault.encrypt(vault.decrypt(row.value, owner), owner)
            connection.execute(update(webhook_secrets).where(_table.id == row.id).values(value=value))
            changed += 1
    return changed


class SecretCache:
    """A courier's cache of secrets. They are read again every second, so that all couriers sign with a new secret
    before it is shown to anyone."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._secrets = CachedCalls(self._load, _CACHED_MAX, kept_s=SECRETS_FRESH_S)

    async def get(self, owner: SecretOwner) -> list[SigningSecret]:
        """Return the secrets as :func:`ensure_secrets` does. Raises the same errors, and Unavailable."""
        return await self._secrets.get(owner)

    def expect(self, owner: SecretOwner) -> None:
        """Load the secrets unless they are fresh, because they will be needed soon."""
        self._secrets.expect(owner)

    async def _load(self, owner: SecretOwner) -> list[SigningSecret]:
        found = await self._database.run_read(read_secrets, self._vault, owner)
        return found or await self._database.run_write(ensure_secrets, self._vault, owner)


def _insert(connection: Connection, vault: Vault, owner: SecretOwner, algorithm: Algorithm, text: str) -> None:
    row = {
        "project": owner.project_no,
        "endpoint": owner.endpoint_id,
        "algorithm": _LETTERS[algorithm],
        "value": vault.encrypt(text, str(owner)),
        "created_ms": now_ms(),
    }
    connection.execute(insert(webhook_secrets).values(row))


def _select_signing(connection: Connection, owner: SecretOwner) -> Sequence[Row[Any]]:
    statement: Select[Any] = (
        select(webhook_secrets)
        .where(*owner.conditions(), or_(_table.expires_ms.is_(None), _table.expires_ms > now_ms()))
        .order_by(_table.expires_ms.is_(None).desc(), _table.created_ms.desc(), _table.id.desc())
    )
    return connection.execute(statement).all()


def _decrypt(rows: Sequence[Row[Any]], vault: Vault, owner: SecretOwner) -> list[SigningSecret]:
    return [
        SigningSecret(vault.decrypt(row.value, str(owner)), _ALGORITHMS[row.algorithm], as_datetime(row.expires_ms))
        for row in rows
    ]


def _can_decrypt(vault: Vault, row: Row[Any]) -> bool:
    try:
        vault.decrypt(row.value, str(SecretOwner(row.project, row.endpoint)))
    except TweezerError:
        return False
    return True


def _has_hmac(rows: Sequence[Row[Any]]) -> bool:
    return any(row.expires_ms is None and row.algorithm == _LETTERS[Algorithm.HMAC_SHA256] for row in rows)


def _lock(connection: Connection, project_no: int) -> None:
    """Block concurrent changes to secrets of the project, but not inserts of its batches (except on SQLite).

    Raises NotFound.
    """
    locking = select(projects.c.no).where(projects.c.no == project_no).with_for_update(key_share=True)
    if connection.execute(locking).first() is None:
        raise NotFound("project", f"number {project_no}")


def _lock_endpoint(connection: Connection, endpoint_id: UUID | None) -> None:
    """Lock the endpoint against deletion until this transaction ends. Raises NotFound."""
    locking = select(endpoints.c.id).where(endpoints.c.id == endpoint_id).with_for_update(read=True, key_share=True)
    if endpoint_id is not None and connection.execute(locking).first() is None:
        raise NotFound("endpoint", str(endpoint_id))
