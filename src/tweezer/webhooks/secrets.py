"""The secrets with which webhooks are signed: a project's own, and those of its endpoints.

One HMAC secret of each owner is in use, and beside it an ed25519 key if somebody wants one; those that were rotated
sign too until they expire. An owner is a project's number and, unless the secret is the project's own, an endpoint.
Where nothing else is said they are to be called in a transaction that may write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Select, delete, insert, or_, select, update

from tweezer.ledger.access.vault import Vault
from tweezer.ledger.clock import moment_of, now_ms
from tweezer.ledger.schema import endpoints, projects, webhook_secrets
from tweezer.model.errors import InvalidInput, NotFound, TweezerError
from tweezer.model.signatures import Algorithm, SigningSecret, new_private_key, new_secret, public_key

OVERLAP_S = 86_400.0
OVERLAP_MAX_S = 30 * 86_400.0
SIGNING_MAX = 5
"""Secrets of one owner that sign at a time: with more the oldest of the rotated ones stop early."""

_LETTERS = {Algorithm.HMAC_SHA256: "H", Algorithm.ED25519: "E"}
_ALGORITHMS = {letter: algorithm for algorithm, letter in _LETTERS.items()}
_table = webhook_secrets.c


def existing_secrets(
    connection: Connection, vault: Vault, project_no: int, endpoint_id: UUID | None
) -> list[SigningSecret]:
    """As :func:`secrets_of`, and empty when the first is not made yet. A transaction that reads is enough."""
    rows = _signing(connection, project_no, endpoint_id)
    return _decrypted(rows, vault, project_no, endpoint_id) if _has_hmac(rows) else []


def secrets_of(connection: Connection, vault: Vault, project_no: int, endpoint_id: UUID | None) -> list[SigningSecret]:
    """All that sign now, the newest first; the first HMAC secret is made when there is none.

    Safe while others do the same. Raises TweezerError where they were encrypted with another key; NotFound where the
    first one is to be made, and its owner is no more.
    """
    rows = _signing(connection, project_no, endpoint_id)
    if not _has_hmac(rows):
        _lock(connection, project_no)
        _lock_endpoint(connection, endpoint_id)
        rows = _signing(connection, project_no, endpoint_id)
        if not _has_hmac(rows):  # nobody made it meanwhile
            _insert(connection, vault, project_no, endpoint_id, Algorithm.HMAC_SHA256, new_secret())
            rows = _signing(connection, project_no, endpoint_id)
    return _decrypted(rows, vault, project_no, endpoint_id)


def rotate(
    connection: Connection, vault: Vault, project_no: int, endpoint_id: UUID | None, overlap_s: float = OVERLAP_S
) -> str:
    """A new HMAC secret, in use from now on; the one before it signs too for ``overlap_s``. With 0 whatever of the
    owner's the vault does not open is dropped as well: its key is lost, and nothing could be signed beside it.

    Raises InvalidInput("overlap_s", …).
    """
    text = new_secret()
    _replace(connection, vault, project_no, endpoint_id, Algorithm.HMAC_SHA256, text, overlap_s)
    return text


def add_ed25519(
    connection: Connection, vault: Vault, project_no: int, endpoint_id: UUID | None, overlap_s: float = OVERLAP_S
) -> str:
    """Signs with ed25519 too from now on; returns the public key (``whpk_…``) for the receiver.

    A key that is there is rotated: it signs too for ``overlap_s``. Raises InvalidInput("overlap_s", …).
    """
    text = new_private_key()
    _replace(connection, vault, project_no, endpoint_id, Algorithm.ED25519, text, overlap_s)
    return public_key(text)


def forget_expired(connection: Connection) -> int:
    """Deletes the secrets that sign no more, of everybody; how many."""
    return connection.execute(delete(webhook_secrets).where(_table.expires_ms <= now_ms())).rowcount


def count_sealed(connection: Connection, vault: Vault | None) -> tuple[int, int]:
    """How many secrets there are, of everybody, and how many of these the vault does not open; without one: all."""
    rows = connection.execute(select(webhook_secrets)).all()
    return len(rows), sum(vault is None or not _opens(vault, row) for row in rows)


def encrypt_anew(connection: Connection, vault: Vault) -> int:
    """Encrypts with the vault's first key what another of its keys encrypted, so that the others can be dropped.

    Returns how many secrets. Raises TweezerError where one was encrypted with none of the keys.
    """
    changed = 0
    for row in connection.execute(select(webhook_secrets).with_for_update()).all():
        if not vault.is_current(row.value):
            owner = _owner(row.project, row.endpoint)
            value = vault.encrypt(vault.decrypt(row.value, owner), owner)
            connection.execute(update(webhook_secrets).where(_table.id == row.id).values(value=value))
            changed += 1
    return changed


def _replace(
    connection: Connection,
    vault: Vault,
    project_no: int,
    endpoint_id: UUID | None,
    algorithm: Algorithm,
    text: str,
    overlap_s: float,
) -> None:
    if not 0 <= overlap_s <= OVERLAP_MAX_S:
        raise InvalidInput("overlap_s", f"is 0 to {OVERLAP_MAX_S:.0f} seconds (30 days), not {overlap_s:g}")
    _lock(connection, project_no)
    until = now_ms() + round(overlap_s * 1000)
    in_use = (*_of(project_no, endpoint_id), _table.algorithm == _LETTERS[algorithm], _table.expires_ms.is_(None))
    connection.execute(update(webhook_secrets).where(*in_use).values(expires_ms=until))
    _insert(connection, vault, project_no, endpoint_id, algorithm, text)
    rows = _signing(connection, project_no, endpoint_id)
    if not overlap_s:
        sealed = [row.id for row in rows if not _opens(vault, row)]
        connection.execute(delete(webhook_secrets).where(_table.id.in_(sealed)))
    rotated = [row.id for row in rows if row.expires_ms is not None]
    surplus = rotated[len(rotated) - max(len(rows) - SIGNING_MAX, 0) :]
    if surplus:
        connection.execute(delete(webhook_secrets).where(_table.id.in_(surplus)))


def _insert(
    connection: Connection, vault: Vault, project_no: int, endpoint_id: UUID | None, algorithm: Algorithm, text: str
) -> None:
    row = {
        "project": project_no,
        "endpoint": endpoint_id,
        "algorithm": _LETTERS[algorithm],
        "value": vault.encrypt(text, _owner(project_no, endpoint_id)),
        "created_ms": now_ms(),
    }
    connection.execute(insert(webhook_secrets).values(row))


def _signing(connection: Connection, project_no: int, endpoint_id: UUID | None) -> Sequence[Row[Any]]:
    statement: Select[Any] = (
        select(webhook_secrets)
        .where(*_of(project_no, endpoint_id), or_(_table.expires_ms.is_(None), _table.expires_ms > now_ms()))
        .order_by(_table.expires_ms.is_(None).desc(), _table.created_ms.desc(), _table.id.desc())
    )
    return connection.execute(statement).all()


def _decrypted(
    rows: Sequence[Row[Any]], vault: Vault, project_no: int, endpoint_id: UUID | None
) -> list[SigningSecret]:
    owner = _owner(project_no, endpoint_id)
    return [
        SigningSecret(vault.decrypt(row.value, owner), _ALGORITHMS[row.algorithm], moment_of(row.expires_ms))
        for row in rows
    ]


def _opens(vault: Vault, row: Row[Any]) -> bool:
    try:
        vault.decrypt(row.value, _owner(row.project, row.endpoint))
    except TweezerError:
        return False
    return True


def _has_hmac(rows: Sequence[Row[Any]]) -> bool:
    return any(row.expires_ms is None and row.algorithm == _LETTERS[Algorithm.HMAC_SHA256] for row in rows)


def _lock(connection: Connection, project_no: int) -> None:
    """Others who change secrets of the project wait; who inserts batches of it does not (SQLite: all writers do).

    Raises NotFound.
    """
    locking = select(projects.c.no).where(projects.c.no == project_no).with_for_update(key_share=True)
    if connection.execute(locking).first() is None:
        raise NotFound("project", f"number {project_no}")


def _lock_endpoint(connection: Connection, endpoint_id: UUID | None) -> None:
    """Nobody removes it before this transaction ends. Raises NotFound."""
    locking = select(endpoints.c.id).where(endpoints.c.id == endpoint_id).with_for_update(read=True, key_share=True)
    if endpoint_id is not None and connection.execute(locking).first() is None:
        raise NotFound("endpoint", str(endpoint_id))


def _of(project_no: int, endpoint_id: UUID | None) -> tuple[Any, Any]:
    return _table.project == project_no, _table.endpoint.is_(None) if endpoint_id is None else (
        _table.endpoint == endpoint_id
    )


def _owner(project_no: int, endpoint_id: UUID | None) -> str:
    return f"{project_no}/{endpoint_id or ''}"
