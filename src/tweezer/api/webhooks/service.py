"""The operations behind the routes of webhooks: the ledger, the vault of secrets, and alarms for the couriers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

import structlog
from fastapi.exceptions import RequestValidationError

from tweezer.api.access.dependencies import part
from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.access.projects import find_project
from tweezer.ledger.access.vault import SECRETS_SURE_S, Vault
from tweezer.ledger.database import Database
from tweezer.model.addresses import WebhookPolicy, check_url
from tweezer.model.errors import InvalidInput, TweezerError, Unavailable
from tweezer.settings import Settings
from tweezer.store.connection import Store
from tweezer.webhooks.deliveries import Alarms
from tweezer.webhooks.endpoints import Endpoint
from tweezer.webhooks.secrets import SecretOwner, ShownSecret, rotate_secret, show_secret

log = structlog.get_logger(__name__)

T = TypeVar("T")
P = ParamSpec("P")


class WebhookService:
    """The operations on webhooks. policy: where they may be sent.

    Raises InvalidInput("webhook_allow" | "webhook_ports", …).
    """

    def __init__(self, settings: Settings, store: Store, database: Database) -> None:
        self.policy: WebhookPolicy = settings.webhook_policy()
        self._settings = settings
        self._alarms = Alarms(store)
        self._database = database

    @cached_property
    def vault(self) -> Vault:
        """The vault of secrets; its first use may create the key file. Raises TweezerError with the code
        secrets_key."""
        try:
            return self._settings.vault()
        except InvalidInput as error:  # the operator's mistake, not the caller's
            raise TweezerError(error.message, code="secrets_key") from error

    async def change(self, work: Callable[Concatenate[Any, P], T], *arguments: P.args, **options: P.kwargs) -> T:
        """Call a function with a connection to the ledger, in a transaction that may write."""
        done = await self._database.run_write(work, *arguments, **options)
        with contextlib.suppress(Unavailable):  # couriers notice the change within a second anyway
            await self._alarms.note_change()
        return done

    async def read(self, work: Callable[Concatenate[Any, P], T], *arguments: P.args, **options: P.kwargs) -> T:
        """Call a function with a connection to the ledger, in a transaction that reads."""
        return await self._database.run_read(work, *arguments, **options)

    async def arm(self, endpoint: UUID) -> None:
        """Wake a courier for deliveries that are due. If Redis does not respond, a sweep finds them later."""
        try:
            await self._alarms.arm(endpoint, None)
        except Unavailable as error:
            log.warning("alarm.not_armed", endpoint=str(endpoint), error=error.message)

    async def first_secret(self, endpoint: Endpoint, *, ed25519: bool) -> ShownSecret:
        """Return the secret of a new endpoint."""
        if ed25519:
            return await self.change(rotate_secret, self.vault, endpoint.secret_owner, ed25519=True)
        return await self.show(endpoint.secret_owner)

    async def find_owner(self, project: str) -> SecretOwner:
        """Return a project as the owner of its secrets. Raises NotFound."""
        return SecretOwner((await self.read(find_project, project)).no)

    async def show(self, owner: SecretOwner) -> ShownSecret:
        """Return the secrets in use. Raises NotFound."""
        return await self.change(show_secret, self.vault, owner)

    async def rotate(self, owner: SecretOwner, *, overlap_s: float, ed25519: bool) -> ShownSecret:
        """Rotate a secret; return the new one once all couriers sign with it. Raises NotFound."""
        shown = await self.change(rotate_secret, self.vault, owner, overlap_s=overlap_s, ed25519=ed25519)
        await asyncio.sleep(SECRETS_SURE_S)
        return shown


def visible_projects(caller: Principal) -> Collection[str] | None:
    """Return the projects whose webhooks the caller may see; None means all."""
    return None if caller.sees_all else caller.projects


Hooks = Annotated[WebhookService, part("webhooks")]


def check_webhook(url: str | None, policy: WebhookPolicy, field: str = "webhook") -> None:
    """Reject (422) the URL of a field if the couriers would refuse to call it."""
    if url is not None:
        with reject_malformed():
            check_url(url, policy, field)


@contextlib.contextmanager
def reject_malformed(place: str = "body") -> Iterator[None]:
    """Report an invalid value as a malformed request (422). place: the part of the request that has it."""
    try:
        yield
    except InvalidInput as error:
        problem = {"type": "invalid", "loc": (place, error.field), "msg": error.problem}
        raise RequestValidationError([problem]) from error
