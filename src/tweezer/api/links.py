"""Links to results: absolute, signed, expiring, and good without another credential.

A link is not withdrawn when the key with which it was asked for is: it lives for ``link_s``.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from urllib.parse import urlencode
from uuid import UUID

from starlette.requests import Request

from tweezer.api.edge import origin_of
from tweezer.ledger.database import Database
from tweezer.ledger.signing import signing_secret

RESULTS_PATH = "/api/v1/jobs/{job_id}/results"

_SECRET = "results_links"  # noqa: S105  # its name in the ledger


class Links:
    """Makes links and checks those that come back. public_url: by which clients reach us; empty: as they came."""

    def __init__(self, database: Database, *, public_url: str, link_s: int) -> None:
        self._database = database
        self._public_url = public_url.rstrip("/")
        self._link_s = link_s
        self._secret: bytes | None = None

    async def results(self, request: Request, job_id: UUID) -> str:
        """The URL of the job's results. Raises InvalidInput("Host", …), Unavailable."""
        expires = str(int(time.time()) + self._link_s)
        signature = _signature(await self._key(), str(job_id), expires)
        base = self._public_url or origin_of(request.scope)
        query = urlencode({"expires": expires, "signature": signature})
        return f"{base}{RESULTS_PATH.format(job_id=job_id)}?{query}"

    async def are_good(self, job_id: str, expires: str, signature: str) -> bool:
        """Whether these are of a link of ours to this job that has not expired. Raises Unavailable."""
        wanted = _signature(await self._key(), job_id, expires)
        if not hmac.compare_digest(wanted.encode(), signature.encode(errors="replace")):
            return False
        return int(expires) > time.time()  # signed by us, so a number

    async def _key(self) -> bytes:
        if self._secret is None:
            self._secret = await self._database.run(_load_secret, self._database)
        return self._secret


def _signature(secret: bytes, job_id: str, expires: str) -> str:
    return hmac.new(secret, f"results {job_id} {expires}".encode(errors="replace"), hashlib.sha256).hexdigest()


def _load_secret(database: Database) -> bytes:
    with database.write() as connection:
        return signing_secret(connection, _SECRET)
