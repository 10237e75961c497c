"""Signs links to results: absolute, expiring, and good without another credential."""

from __future__ import annotations

import hmac
import time

import msgspec

from tweezer.ledger.database import Database
from tweezer.ledger.signing import signing_secret
from tweezer.model.digests import KeyedHash

RESULTS_PATH = "/api/v1/jobs/{job_id}/results"

_SECRET = "results_links"  # noqa: S105  # its name in the ledger


class SignedLink(msgspec.Struct, frozen=True):
    """A URL that is good until ``expires``, in seconds since 1970."""

    url: str
    expires: int


class Signer:
    """Makes links, and tells those of ours. link_s: how long they are good."""

    def __init__(self, secret: bytes, link_s: int) -> None:
        self._hash = KeyedHash(secret)
        self._link_s = link_s

    def link(self, base_url: str, job_id: str, since_s: int | None = None) -> SignedLink:
        """A link to the job's results, good from now on, or from that time (seconds since 1970). base_url: of the API,
        without a slash at its end."""
        expires = (int(time.time()) if since_s is None else since_s) + self._link_s
        query = f"expires={expires}&signature={self._signature(job_id, str(expires))}"
        return SignedLink(f"{base_url}{RESULTS_PATH.format(job_id=job_id)}?{query}", expires)

    def made(self, job_id: str, expires: str, signature: str) -> bool:
        """Whether these are of a link of ours to this job that has not expired."""
        if not hmac.compare_digest(self._signature(job_id, expires).encode(), signature.encode(errors="replace")):
            return False
        return int(expires) > time.time()  # signed by us, so a number

    def _signature(self, job_id: str, expires: str) -> str:
        return self._hash.digest(f"results {job_id} {expires}".encode(errors="replace")).hex()


class ResultLinks:
    """The links of an installation, all processes of which sign with one secret, kept in the ledger.

    base_url: by which the API is reached, where no request says it.
    """

    def __init__(self, database: Database, *, base_url: str = "", link_s: int) -> None:
        self.base_url = base_url.rstrip("/")
        self._database = database
        self._link_s = link_s
        self._signer: Signer | None = None

    async def signer(self) -> Signer:
        """What signs; the secret is read once. Raises Unavailable."""
        if self._signer is None:
            self._signer = Signer(await self._database.run(_load_secret, self._database), self._link_s)
        return self._signer


def _load_secret(database: Database) -> bytes:
    with database.write() as connection:
        return signing_secret(connection, _SECRET)
