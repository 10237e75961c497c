"""Links to results, as requests ask for them and come back with them.

A link is not withdrawn when the key with which it was asked for is: it lives for ``link_s``.
"""

from __future__ import annotations

from uuid import UUID

from starlette.requests import Request

from tweezer.api.edge import origin_of
from tweezer.ledger.database import Database
from tweezer.ledger.links import ResultLinks


class Links:
    """Makes links and checks those that come back. public_url: by which clients reach us; empty: as they came."""

    def __init__(self, database: Database, *, public_url: str, link_s: int) -> None:
        self._links = ResultLinks(database, base_url=public_url, link_s=link_s)

    async def results(self, request: Request, job_id: UUID) -> str:
        """The URL of the job's results. Raises InvalidInput("Host", …), Unavailable."""
        signer = await self._links.signer()
        return signer.link(self._links.base_url or origin_of(request.scope), str(job_id)).url

    async def are_good(self, job_id: str, expires: str, signature: str) -> bool:
        """Whether these are of a link of ours to this job that has not expired. Raises Unavailable."""
        return (await self._links.signer()).made(job_id, expires, signature)
