"""Signs links to results: absolute, expiring, and valid without another credential."""

from __future__ import annotations

import hmac
import secrets as randomness
import time
from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy import Connection, select, update

from tweezer.ledger.access.projects import insert_unless_there
from tweezer.ledger.access.vault import SECRETS_FRESH_S, Vault
from tweezer.ledger.config import LINK_MAX_S
from tweezer.ledger.database import Database
from tweezer.ledger.schema import now_ms, secrets
from tweezer.model.errors import InvalidInput, TweezerError
from tweezer.model.lru import CachedCalls
from tweezer.model.signatures import KeyedHash

NAME = "results_links"
OVERLAP_S = 604_800.0
"""How long links that a rotated key signed are accepted: as long as webhooks' links are valid."""

OVERLAP_MAX_S = float(LINK_MAX_S)
KEYS_MAX = 5
"""Keys that are accepted at a time: with more the oldest of the rotated ones stop early."""

_KEY_BYTES = 32
_value = select(secrets.c.value).where(secrets.c.name == NAME)


class LinkKey(msgspec.Struct, frozen=True):
    """A key. until_ms: when links that it signed stop being accepted, of one that was rotated."""

    secret: bytes
    until_ms: int | None = None

    def __repr__(self) -> str:
        return f"LinkKey(***, until_ms={self.until_ms!r})"


def read_link_keys(connection: Connection, vault: Vault) -> list[LinkKey]:
    """As :func:`ensure_link_keys`, and empty where those write. A transaction that reads is enough."""
    value = connection.execute(_value).scalar()
    return [] if value is None or _is_plain(value) else _accepted(vault, value)


def ensure_link_keys(connection: Connection, vault: Vault) -> list[LinkKey]:
    """Return the keys whose links are accepted, the one that signs first. It is made at its first use.

    To be called in a transaction that may write. Raises TweezerError where they were encrypted with another key.
    """
    insert_unless_there(connection, secrets, {"name": NAME, "value": _sealed(vault, [_new()])})
    value = connection.execute(_value.with_for_update()).scalar_one()
    if _is_plain(value):
        former = LinkKey(bytes(value), now_ms() + round(OVERLAP_S * 1000))
        value = _write(connection, vault, [_new(), former])
    return _accepted(vault, value)


def rotate_link_keys(connection: Connection, vault: Vault, *, overlap_s: float = OVERLAP_S) -> None:
    """Make the key that signs from now on; links of those before are accepted for ``overlap_s`` at most.

    With 0 they are refused at once, and keys that the vault does not open are dropped. Raises InvalidInput("overlap_s",
    …); TweezerError where they were encrypted with another key.
    """
    if not 0 <= overlap_s <= OVERLAP_MAX_S:
        raise InvalidInput("overlap_s", f"must be 0 to {OVERLAP_MAX_S:.0f} seconds (30 days), not {overlap_s:g}")
    if not overlap_s:
        insert_unless_there(connection, secrets, {"name": NAME, "value": b""})
        _write(connection, vault, [_new()])
        return
    until_ms = now_ms() + round(overlap_s * 1000)
    former = [LinkKey(it.secret, min(it.until_ms or until_ms, until_ms)) for it in ensure_link_keys(connection, vault)]
    _write(connection, vault, [_new(), *former[: KEYS_MAX - 1]])


def count_sealed_link_keys(connection: Connection, vault: Vault | None) -> tuple[int, int]:
    """Return how many secrets links have, 0 or 1, and how many of these the vault does not open; without one: all."""
    value = connection.execute(_value).scalar()
    if value is None or _is_plain(value):
        return 0, 0
    if vault is None:
        return 1, 1
    try:
        vault.decrypt(value, NAME)
    except TweezerError:
        return 1, 1
    return 1, 0


def reencrypt_link_keys(connection: Connection, vault: Vault) -> int:
    """Encrypt them with the vault's first key unless they are; return how many secrets were, 0 or 1.

    Raises TweezerError where they were encrypted with none of the keys.
    """
    value = connection.execute(_value.with_for_update()).scalar()
    if value is None or _is_plain(value) or vault.is_current(value):
        return 0
    _write(connection, vault, _opened(vault, value))
    return 1


def _new() -> LinkKey:
    return LinkKey(randomness.token_bytes(_KEY_BYTES))


def _is_plain(value: bytes) -> bool:
    return len(value) == _KEY_BYTES  # what is encrypted is longer


def _write(connection: Connection, vault: Vault, keys: Sequence[LinkKey]) -> bytes:
    value = _sealed(vault, keys)
    connection.execute(update(secrets).where(secrets.c.name == NAME).values(value=value))
    return value


def _sealed(vault: Vault, keys: Sequence[LinkKey]) -> bytes:
    return vault.encrypt(msgspec.json.encode(keys).decode(), NAME)


def _opened(vault: Vault, value: bytes) -> list[LinkKey]:
    return msgspec.json.decode(vault.decrypt(value, NAME), type=list[LinkKey])


def _accepted(vault: Vault, value: bytes) -> list[LinkKey]:
    now = now_ms()
    return [it for it in _opened(vault, value) if it.until_ms is None or it.until_ms > now]


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
        """Return whether these are of a link to this job that has not expired, and is valid for LINK_MAX_S at most.

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
        vault = await self._database.run(self._open_vault)
        keys = await self._database.run_read(read_link_keys, vault)
        if not keys:
            keys = await self._database.run_write(ensure_link_keys, vault)
        return Signer([key.secret for key in keys], self._link_s)


def _message(job_id: str, issued: str, expires: str) -> bytes:
    return " ".join(["results", job_id, *([issued] if issued else []), expires]).encode(errors="replace")
