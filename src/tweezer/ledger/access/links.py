"""Signs links to results: absolute, expiring, and valid without another credential."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence

import msgspec

from tweezer.ledger.access.link_keys import LinkKey, existing_link_keys, link_keys
from tweezer.ledger.access.vault import SECRETS_FRESH_S, Vault
from tweezer.ledger.database import Database
from tweezer.ledger.place import LINK_MAX_S
from tweezer.model.lru import CachedCalls
from tweezer.model.signatures import KeyedHash

RESULTS_PATH = "/api/v1/jobs/{job_id}/results"

SKEW_S = 300
"""How far ahead the clock may be of the host that made a link."""


class SignedLink(msgspec.Struct, frozen=True):
    """A URL that is valid until ``expires``, in seconds since 1970."""

    url: str
    expires: int


class Signer:
    """Makes links with the first of its keys, and recognises those of all. link_s: how long they are valid."""

    def __init__(self, keys: Sequence[bytes], link_s: int) -> None:
        self._hashes = [KeyedHash(key) for key in keys]
        self._link_s = link_s

    def link(self, base_url: str, job_id: str, since_s: int | None = None) -> SignedLink:
        """Return a link to the job's results, valid from now on, or from that time (seconds since 1970).

        base_url: of the API, without a slash at its end.
        """
        issued = int(time.time()) if since_s is None else since_s
        expires = issued + self._link_s
        signature = self._hashes[0].digest(_message(job_id, str(issued), str(expires))).hex()
        query = f"issued={issued}&expires={expires}&signature={signature}"
        return SignedLink(f"{base_url}{RESULTS_PATH.format(job_id=job_id)}?{query}", expires)

    def is_valid(self, job_id: str, issued: str, expires: str, signature: str) -> bool:
        """Whether these are of a link to this job that has not expired, and that is valid for LINK_MAX_S at most.

        issued: empty in links of the versions before 0.1, which then count as issued now.
        """
        message, given = _message(job_id, issued, expires), signature.encode(errors="replace")
        if not any(hmac.compare_digest(it.digest(message).hex().encode(), given) for it in self._hashes):
            return False
        now = time.time()
        try:
            since, until = int(issued) if issued else now, int(expires)
        except ValueError:  # signed by somebody who has the key
            return False
        return since <= now + SKEW_S and now < until <= since + LINK_MAX_S


class ResultLinks:
    """The links of an installation, all processes of which sign with one key, kept in the ledger.

    open_vault: returns what the key is encrypted with; it may make a file. base_url: by which the API is reached, where
    no request says it.
    """

    def __init__(self, database: Database, open_vault: Callable[[], Vault], *, base_url: str = "", link_s: int) -> None:
        self.base_url = base_url.rstrip("/")
        self._database = database
        self._open_vault = open_vault
        self._link_s = link_s
        self._signers = CachedCalls(self._load, 1, kept_s=SECRETS_FRESH_S)

    async def signer(self) -> Signer:
        """Return the signer; its keys are read again each second, so that a rotation is soon in force everywhere.

        Raises Unavailable; TweezerError where the keys were encrypted with another secrets key.
        """
        return await self._signers.get(None)

    async def _load(self, _: None) -> Signer:
        keys = await self._database.run(self._read)
        return Signer([key.secret for key in keys], self._link_s)

    def _read(self) -> list[LinkKey]:
        vault = self._open_vault()
        with self._database.read() as connection:
            found = existing_link_keys(connection, vault)
        if found:
            return found
        with self._database.write() as connection:
            return link_keys(connection, vault)


def _message(job_id: str, issued: str, expires: str) -> bytes:
    return " ".join(["results", job_id, *([issued] if issued else []), expires]).encode(errors="replace")
