"""Signed links to results and logs of jobs: absolute URLs that expire and need no other credential."""

from __future__ import annotations

import hmac
import secrets as randomness
import time
from collections.abc import Callable, Sequence
from enum import StrEnum

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
"""How long links signed with a rotated key are accepted by default: as long as the links in webhooks are valid."""

OVERLAP_MAX_S = float(LINK_MAX_S)
KEYS_MAX = 5
"""Maximum number of accepted keys; with more, the oldest rotated ones expire early."""

_KEY_BYTES = 32
_value = select(secrets.c.value).where(secrets.c.name == NAME)


class LinkKey(msgspec.Struct, frozen=True):
    """A key for signing links. until_ms: of a rotated key, until when its links are accepted."""

    secret: bytes
    until_ms: int | None = None

    def __repr__(self) -> str:
        return f"LinkKey(***, until_ms={self.until_ms!r})"


def read_link_keys(connection: Connection, vault: Vault) -> list[LinkKey]:
    """Return the same as :func:`ensure_link_keys`, or empty if that would write. A read transaction is sufficient."""
    value = connection.execute(_value).scalar()
    return [] if value is None or _is_plain(value) else _accepted(vault, value)


def ensure_link_keys(connection: Connection, vault: Vault) -> list[LinkKey]:
    """Return the accepted keys, the signing key first; it is created on first use.

    Needs a write transaction. Raises TweezerError if they were encrypted with another key.
    """
    insert_unless_there(connection, secrets, {"name": NAME, "value": _sealed(vault, [_new()])})
    value = connection.execute(_value.with_for_update()).scalar_one()
    if _is_plain(value):
        former = LinkKey(bytes(value), now_ms() + round(OVERLAP_S * 1000))
        value = _write(connection, vault, [_new(), former])
    return _accepted(vault, value)


def rotate_link_keys(connection: Connection, vault: Vault, *, overlap_s: float = OVERLAP_S) -> None:
    """Create a new signing key; links signed with the previous keys are accepted for at most ``overlap_s``.

    With 0 they are rejected at once, and keys that the vault cannot decrypt are dropped. Raises
    InvalidInput("overlap_s", …); TweezerError if the keys were encrypted with another key.
    """
    if not 0 <= overlap_s <= OVERLAP_MAX_S:
        raise InvalidInput("overlap_s", f"must be 0 to {OVERLAP_MAX_S:.0f} seconds (30 days), got {overlap_s:g}")
    if not overlap_s:
        insert_unless_there(connection, secrets, {"name": NAME, "value": b""})
        _write(connection, vault, [_new()])
        return
    until_ms = now_ms() + round(overlap_s * 1000)
    former = [LinkKey(it.secret, min(it.until_ms or until_ms, until_ms)) for it in ensure_link_keys(connection, vault)]
    _write(connection, vault, [_new(), *former[: KEYS_MAX - 1]])


def count_sealed_link_keys(connection: Connection, vault: Vault | None) -> tuple[int, int]:
    """Return the number of encrypted secrets (0 or 1), and of those that the vault cannot decrypt (all without one)."""
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
    """Encrypt the keys with the vault's first key; return how many secrets were changed, 0 or 1.

    Raises TweezerError if none of the vault's keys can decrypt them.
    """
    value = connection.execute(_value.with_for_update()).scalar()
    if value is None or _is_plain(value) or vault.is_current(value):
        return 0
    _write(connection, vault, _opened(vault, value))
    return 1


def _new() -> LinkKey:
    return LinkKey(randomness.token_bytes(_KEY_BYTES))


def _is_plain(value: bytes) -> bool:
    return len(value) == _KEY_BYTES  # encrypted values are longer


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


class Linked(StrEnum):
    """What a signed link leads to: the last part of its path."""

    RESULTS = "results"
    LOGS = "logs"


_PATH = "/api/v1/jobs/{job_id}/{what}"

SKEW_S = 300
"""Tolerance for the clock of the host that made a link, in seconds."""


class SignedLink(msgspec.Struct, frozen=True):
    """A URL that is valid until ``expires``, in seconds since 1970."""

    url: str
    expires: int


class Signer:
    """Signs links with the first of its keys, and accepts those of all. link_s: how long links are valid."""

    def __init__(self, keys: Sequence[bytes], link_s: int) -> None:
        self._hashes = [KeyedHash(key) for key in keys]
        self._link_s = link_s

    def link(
        self, base_url: str, job_id: str, since_s: int | None = None, *, what: Linked = Linked.RESULTS
    ) -> SignedLink:
        """Return a link to the job's results, or to its logs.

        base_url: URL of the API, without a trailing slash. since_s: when the link becomes valid, in seconds since
        1970; None means now.
        """
        issued = int(time.time()) if since_s is None else since_s
        expires = issued + self._link_s
        signature = self._hashes[0].digest(_message(what, job_id, str(issued), str(expires))).hex()
        query = f"issued={issued}&expires={expires}&signature={signature}"
        return SignedLink(f"{base_url}{_PATH.format(job_id=job_id, what=what)}?{query}", expires)

    def is_valid(
        self, job_id: str, issued: str, expires: str, signature: str, *, what: Linked = Linked.RESULTS
    ) -> bool:
        """Return whether these parameters are of a link to this job that has not expired.

        A link that is valid for longer than LINK_MAX_S is refused. issued: empty in links of versions before 0.1,
        which count as issued now.
        """
        message, given = _message(what, job_id, issued, expires), signature.encode(errors="replace")
        if not any(hmac.compare_digest(it.digest(message).hex().encode(), given) for it in self._hashes):
            return False
        now = time.time()
        try:
            since, until = int(issued) if issued else now, int(expires)
        except ValueError:  # signed with the key, but not by Tweezer
            return False
        return since <= now + SKEW_S and now < until <= since + LINK_MAX_S


class ResultLinks:
    """The links of an installation. All of its processes sign with the same key, which is stored in the ledger.

    open_vault: returns the vault for the key; it may create a file. base_url: public URL of the API, where no request
    determines it.
    """

    def __init__(self, database: Database, open_vault: Callable[[], Vault], *, base_url: str = "", link_s: int) -> None:
        self.base_url = base_url.rstrip("/")
        self._database = database
        self._open_vault = open_vault
        self._link_s = link_s
        self._signers = CachedCalls(self._load, 1, kept_s=SECRETS_FRESH_S)

    async def signer(self) -> Signer:
        """Return the signer; its keys are read again each second, so that a rotation soon applies everywhere.

        Raises Unavailable; TweezerError if the keys were encrypted with another secrets key.
        """
        return await self._signers.get(None)

    async def _load(self, _: None) -> Signer:
        vault = await self._database.run(self._open_vault)
        keys = await self._database.run_read(read_link_keys, vault)
        if not keys:
            keys = await self._database.run_write(ensure_link_keys, vault)
        return Signer([key.secret for key in keys], self._link_s)


def _message(what: Linked, job_id: str, issued: str, expires: str) -> bytes:
    return " ".join([what, job_id, *([issued] if issued else []), expires]).encode(errors="replace")
