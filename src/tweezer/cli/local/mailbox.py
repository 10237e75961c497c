"""The demo's receiver of webhooks, on a thread of its own: Ctrl-C interrupts who waits for them, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Coroutine
from types import TracebackType
from typing import Any, Self

from tweezer.cli.listen import Received, Receiver
from tweezer.model.errors import TweezerError
from tweezer.model.signatures import Webhook
from tweezer.settings import Settings

_PATIENCE_S = 30.0
_LOOK = "run it again with TWEEZER_LOG_LEVEL=DEBUG; if no courier can run here, `tweezer up` shows why"


class Mailbox:
    """Receives on the loopback and verifies with the secrets of the settings' project; a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mailbox", daemon=True)
        self._receiver = Receiver(self._secrets, self._put)
        self._came = threading.Condition()
        self._verified: dict[str, Webhook] = {}
        self._problem: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._receiver.start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._run(self._receiver.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._receiver.url

    def wait(self, ids: Collection[str]) -> list[Webhook]:
        """The webhooks of these events, by their numbers, once all have come and were verified.

        Raises TweezerError when none comes for half a minute.
        """
        with self._came:
            while missing := set(ids) - self._verified.keys():
                if not self._came.wait(_PATIENCE_S):
                    raise TweezerError(
                        f"{len(missing)} of {len(ids)} webhooks have not come, and none at all for {_PATIENCE_S:g} s: "
                        + (f"what came last could not be verified: {self._problem}" if self._problem else _LOOK),
                        code="webhooks",
                    )
            return sorted((self._verified[one] for one in ids), key=lambda it: int(it.data["sequence"]))

    def _put(self, received: Received) -> None:
        with self._came:
            if received.webhook is not None:
                self._verified[received.webhook.id] = received.webhook
            self._problem = received.problem
            self._came.notify_all()

    def _secrets(self) -> list[str]:
        from tweezer.ledger.access.projects import find_project
        from tweezer.ledger.access.vault import Vault
        from tweezer.ledger.database import Database
        from tweezer.webhooks.secrets import secrets_of

        vault = Vault.of(self._settings.secrets.key, self._settings.data_dir)
        database = Database.open(self._settings.locate_ledger())
        try:
            with database.write() as connection:
                project = find_project(connection, self._settings.project_id)
                return [secret.text for secret in secrets_of(connection, vault, project.no, None)]
        finally:
            database.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()
