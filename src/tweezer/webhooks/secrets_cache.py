"""The secrets that sign, read again each second: a rotation is in force everywhere before anybody is told of it."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

from tweezer.ledger.access.vault import SECRETS_FRESH_S, Vault
from tweezer.ledger.database import Database
from tweezer.model.lru import Recent
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
        self._kept: Recent[_Owner, list[SigningSecret]] = Recent(_KEPT_MAX, kept_s=SECRETS_FRESH_S)
        self._loading: dict[_Owner, asyncio.Task[list[SigningSecret]]] = {}

    async def of(self, endpoint: Endpoint) -> list[SigningSecret]:
        """Those that sign what goes there, newest first. Raises Unavailable; TweezerError when the key of the vault is
        not theirs."""
        found = self._find(endpoint)
        return await asyncio.shield(found) if isinstance(found, asyncio.Task) else found

    def expect(self, endpoint: Endpoint) -> None:
        """They will be asked for soon: reads them, unless they are fresh."""
        found = self._find(endpoint)
        if isinstance(found, asyncio.Task):
            found.add_done_callback(lambda done: done.cancelled() or done.exception())  # who asks is told

    def _find(self, endpoint: Endpoint) -> list[SigningSecret] | asyncio.Task[list[SigningSecret]]:
        owner = (endpoint.project_no, endpoint.id if endpoint.kind == "project" else None)
        kept = self._kept.get(owner)
        if kept is not None:
            return kept
        if owner not in self._loading:
            self._loading[owner] = asyncio.create_task(self._load(owner))
        return self._loading[owner]

    async def _load(self, owner: _Owner) -> list[SigningSecret]:
        try:
            began = time.monotonic()
            found = await self._database.run(self._read, owner)
            self._kept.put(owner, found, since=began)
            return found
        finally:
            del self._loading[owner]

    def _read(self, owner: _Owner) -> list[SigningSecret]:
        with self._database.read() as connection:
            found = existing_secrets(connection, self._vault, *owner)
        if found:
            return found
        with self._database.write() as connection:  # nobody has signed for them yet
            return secrets_of(connection, self._vault, *owner)
