"""Secrets of webhooks for who owns them: the one that is in use, and how long older ones sign beside it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Connection

from tweezer.ledger.access.vault import Vault
from tweezer.model.signatures import Algorithm, SigningSecret, public_key
from tweezer.webhooks.endpoints import Endpoint
from tweezer.webhooks.secrets import OVERLAP_S, add_ed25519, rotate, secrets_of


class ShownSecret(msgspec.Struct, frozen=True):
    """With what a receiver verifies. public_key: where there is an ed25519 key. older_until: until when rotated ones
    sign, too."""

    secret: str
    public_key: str | None
    older_until: datetime | None

    @classmethod
    def of(cls, signing: Sequence[SigningSecret]) -> ShownSecret:
        """Of all that sign now, of which one HMAC secret is in use."""
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


def secret_of(connection: Connection, vault: Vault, endpoint: Endpoint) -> ShownSecret:
    """What signs for this endpoint; of one that batches bring, the project's own."""
    return secret_of_owner(connection, vault, endpoint.project_no, endpoint.secrets_owner)


def secret_of_owner(connection: Connection, vault: Vault, project_no: int, endpoint_id: UUID | None) -> ShownSecret:
    """The same for an endpoint, or (None) for a project. It is made at its first use: in a transaction that writes."""
    return ShownSecret.of(secrets_of(connection, vault, project_no, endpoint_id))


def rotate_secret(
    connection: Connection,
    vault: Vault,
    project_no: int,
    endpoint_id: UUID | None,
    *,
    overlap_s: float = OVERLAP_S,
    ed25519: bool = False,
) -> ShownSecret:
    """A new secret, or with ``ed25519`` a new key of that kind (also the first one); those before sign too for a while.

    Show it after SECRETS_SURE_S: then all couriers sign with it. Raises InvalidInput("overlap_s", …).
    """
    renew = add_ed25519 if ed25519 else rotate
    renew(connection, vault, project_no, endpoint_id, overlap_s)
    return secret_of_owner(connection, vault, project_no, endpoint_id)
