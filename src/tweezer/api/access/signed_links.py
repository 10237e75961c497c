"""Links to results, as requests ask for them and come back with them.

A link outlives the key with which it was asked for: it is valid for ``link_s``, or until the key that signs links is
rotated.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import structlog
from starlette.requests import Request

from tweezer.api.http.security_headers import origin_of
from tweezer.ledger.access.links import ResultLinks
from tweezer.ledger.access.vault import Vault
from tweezer.ledger.database import Database
from tweezer.model.errors import TweezerError

log = structlog.get_logger(__name__)


class Links:
    """Makes links and checks those that come back. public_url: by which clients reach us; empty: as they came."""

    def __init__(self, database: Database, open_vault: Callable[[], Vault], *, public_url: str, link_s: int) -> None:
        self._links = ResultLinks(database, open_vault, base_url=public_url, link_s=link_s)

    async def results(self, request: Request, job_id: UUID) -> str:
        """The URL of the job's results. Raises InvalidInput("Host", …), Unavailable."""
        signer = await self._links.signer()
        return signer.link(self._links.base_url or origin_of(request.scope), str(job_id)).url

    async def prepare(self) -> None:
        """Make the key that signs links, or take over that of an older version; log the reason where it cannot be."""
        try:
            await self._links.signer()
        except TweezerError as error:
            log.warning("links.not_signed", error=error.message)

    async def are_valid(self, job_id: str, issued: str, expires: str, signature: str) -> bool:
        """Whether these are of a link to this job that has not expired. Raises Unavailable."""
        return (await self._links.signer()).is_valid(job_id, issued, expires, signature)
