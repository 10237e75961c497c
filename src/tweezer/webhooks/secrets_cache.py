"""The secrets that sign, read again each second: a rotation is in force everywhere before anybody is told of it."""

from __future__ import annotations

from uuid import UUID

from tweezer.ledger.access.vault import SECRETS_FRESH_S, Vault
from tweezer.ledger.database import Database
from tweezer.model.lru import CachedCalls
from tweezer.model.signatures import SigningSecret
from tweezer.webhooks.endpoints import Endpoint
from tweezer.webhooks.secrets import existing_secrets, secrets_of

_KEPT_MAX = 10_000

_Owner = tuple[int, UUID | None]


class Keyring:
    """The secrets of endpoints, and of projects for their batches' webhooks."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._secrets = CachedCalls(self._load, _KEPT_MAX, kept_s=SECRETS_FRESH_S)

    async def of(self, endpoint: Endpoint) -> list[SigningSecret]:
        """Those that sign what goes there, newest first. Raises Unavailable; TweezerError when the key of the vault is
        not theirs."""
        return await self._secrets.get(_owner(endpoint))

    def expect(self, endpoint: Endpoint) -> None:
        """They will be asked for soon: reads them, unless they are fresh."""
        self._secrets.expect(_owner(endpoint))

    async def _load(self, owner: _Owner) -> list[SigningSecret]:
        return await self._database.run(self._read, owner)

    def _read(self, owner: _Owner) -> list[SigningSecret]:
        with self._database.read() as connection:
            found = existing_secrets(connection, self._vault, *owner)
        if found:
            return found
        with self._database.write() as connection:  # nobody has signed for them yet
            return secrets_of(connection, self._vault, *owner)


def _owner(endpoint: Endpoint) -> _Owner:
    return endpoint.project_no, endpoint.id if endpoint.kind == "project" else None
