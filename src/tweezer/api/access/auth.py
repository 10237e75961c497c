"""Find the caller by the key of a request, limit the rate of requests, and sign links to results.

Authentication comes before anything that reads a body or costs work, so that unauthenticated requests are cheap. A
request without a key gets the same response as one whose key is unknown, expired or revoked. A look-up is cached for a
second.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from hmac import compare_digest
from typing import NamedTuple, cast
from urllib.parse import parse_qsl
from uuid import UUID

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tweezer.api.http.responses import RequestRejected, error_response
from tweezer.api.http.security_headers import get_origin
from tweezer.duties import Duties
from tweezer.ledger.access.credentials import Principal, key_digest, key_id
from tweezer.ledger.access.keys import USED_S, look_up_key, note_used
from tweezer.ledger.access.links import Linked, ResultLinks
from tweezer.ledger.access.vault import Vault
from tweezer.ledger.database import Database, sharing
from tweezer.model.errors import InvalidInput, TweezerError, Unavailable
from tweezer.model.lru import CachedCalls
from tweezer.store.guards import StreamTickets

REMEMBERED_S = 1.0
"""How long a look-up is cached: a revoked key works for at most this long, and a key works this long without the
database."""

OPEN_PATHS = frozenset(
    {"/", "/docs", "/health", "/ready", "/openapi.json", "/oauth/token", "/api/v1/devices/public-specs"}
)
"""Paths that need no key. Files of the pages and signed links to results need none either: see :func:`_is_open`."""

_CALLER = "tweezer.caller"
_REMEMBERED_MAX = 10_000
_SIGNED = "/api/v1/jobs/"
_SIGNED_ENDS = tuple(f"/{what}" for what in Linked)
_PAGE_FILES = "/docs/"

STREAM_END = "/events/stream"
"""End of the paths of streams, which a ticket can open in place of a key."""
_NO_DIGEST = b""  # matches no key


def get_caller(scope: Scope) -> Principal | None:
    """Return the caller of a request; None for an open path or a signed link."""
    return cast("Principal | None", scope.get(_CALLER))


_NO_KEY = (
    "missing or invalid key; send `Authorization: Bearer twz_…` with a key from `tweezer keys create` or a token from "
    "/oauth/token"
)
_NO_TICKET = (
    "the ticket is not valid: it has expired, was used, or is for another stream; get a new one with "
    "`POST …/events/stream/ticket`"
)


def unauthorized_error(problem: str = _NO_KEY) -> RequestRejected:
    """Return the error for a request without a valid key or ticket."""
    return RequestRejected(401, "unauthorized", problem, headers={"WWW-Authenticate": 'Bearer realm="tweezer"'})


class Authenticator:
    """The look-up of keys, with a bounded cache that also holds unknown keys."""

    def __init__(self, database: Database, *, remembered_s: float = REMEMBERED_S) -> None:
        self._database = database
        self._known = CachedCalls(self._look_up, _REMEMBERED_MAX, kept_s=remembered_s)
        self._used: set[str] = set()

    async def principal(self, key: str) -> Principal | None:
        """Return the principal of a key; None when it is not valid. Raises Unavailable."""
        identity = key_id(key)
        return None if identity is None else await self.holder(identity, key)

    async def holder(self, identity: str, key: str | None = None) -> Principal | None:
        """Return the principal of the key with this id; None when it is not valid. Raises Unavailable.

        key: the whole key, if the caller has sent it.
        """
        known = await self._known.get(identity)
        if known.until < time.monotonic():
            self._known.forget(identity)
            known = await self._known.get(identity)
        if known.principal is None or (key is not None and not compare_digest(key_digest(key), known.digest)):
            return None
        self._used.add(identity)
        return known.principal

    def forget(self, identity: str) -> None:
        """Drop the key with this id from the cache, because it was revoked."""
        self._known.forget(identity)

    async def still_knows(self, scope: Scope) -> bool:
        """Return whether the key of a request still belongs to the same principal. Raises Unavailable."""
        caller = get_caller(scope)
        return caller is not None and await self.holder(caller.key) == caller

    async def write_used(self) -> None:
        """Record which keys were used since the last call. Raises Unavailable."""
        used, self._used = self._used, set()
        try:
            if used:
                await self._database.run_write(note_used, used)
        except BaseException:
            self._used |= used
            raise

    @asynccontextmanager
    async def writing_used(self, duties: Duties) -> AsyncIterator[None]:
        """Record used keys every minute, and at the end of the block."""
        duties.start("keys", self.write_used, every_s=USED_S)
        try:
            yield
        finally:
            with suppress(Unavailable):
                await self.write_used()

    async def _look_up(self, identity: str) -> _Known:
        found = await self._database.run_read(look_up_key, identity)
        if found is None or found.principal is None:
            return _Known(_NO_DIGEST, None, math.inf)
        return _Known(found.digest, found.principal, time.monotonic() + found.left_s)


class AuthenticationMiddleware:
    """ASGI middleware: authenticate the caller for :func:`get_caller`. Respond with 401 without a valid key, and with
    429 above the rate limit."""

    def __init__(
        self, app: ASGIApp, *, authenticator: Authenticator, tickets: StreamTickets, rates: RateLimiter
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._tickets = tickets
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._identify(scope)
            if caller is None:
                raise unauthorized_error()
            self._rates.spend(caller.account)
        except TweezerError as error:
            await error_response(error)(scope, receive, send)
            return
        scope[_CALLER] = caller
        if scope["method"] == "GET":  # a caller that wrote something must get the response, or it would write it again
            send = self._checked(scope, receive, send)
        with sharing(caller.account):
            await self._app(scope, receive, send)

    async def _identify(self, scope: Scope) -> Principal | None:
        key, ticket = _bearer(scope), _stream_ticket(scope)
        if key is not None:
            if ticket is not None:
                raise InvalidInput("ticket", "replaces a key; send either of them")
            return await self._authenticator.principal(key)
        if ticket is None:
            return None
        identity = await self._tickets.redeem(ticket, scope["path"])
        if identity is None:
            raise unauthorized_error(_NO_TICKET)
        return await self._authenticator.holder(identity)

    def _checked(self, scope: Scope, receive: Receive, send: Send) -> Send:
        """Check the key again before the response is sent: it may have been revoked while the request was held."""
        trusted_until = time.monotonic() + REMEMBERED_S
        refused = False

        async def send_checked(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and time.monotonic() > trusted_until:
                try:
                    if not await self._authenticator.still_knows(scope):
                        raise unauthorized_error()
                except TweezerError as error:
                    refused = True
                    await error_response(error)(scope, receive, send)
            if not refused:
                await send(message)

        return send_checked


class _Known(NamedTuple):
    """The result of a look-up. until: when (monotonic) the key expires."""

    digest: bytes
    principal: Principal | None
    until: float


def _is_open(scope: Scope) -> bool:
    """Return whether the request needs no key. The route of results or logs checks the signature of a link."""
    path: str = scope["path"]
    has_signed_path = path.endswith(_SIGNED_ENDS) and path.startswith(_SIGNED)
    is_signed = has_signed_path and b"signature=" in scope["query_string"]
    return is_signed or path in OPEN_PATHS or path.startswith(_PAGE_FILES)


def _bearer(scope: Scope) -> str | None:
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) != 1:
        return None
    scheme, _, key = found[0].partition(b" ")
    return key.strip().decode("latin-1") if scheme.lower() == b"bearer" else None


def _stream_ticket(scope: Scope) -> str | None:
    """Return the ticket in the URL of a stream."""
    if not scope["path"].endswith(STREAM_END) or not scope["query_string"]:
        return None
    found = [value for name, value in parse_qsl(scope["query_string"].decode("latin-1")) if name == "ticket"]
    return found[0] if len(found) == 1 else None


_ACCOUNTS_KEPT = 10_000
_ROUNDING_S = 1e-9


class RateLimiter:
    """A limit of ``per_s`` requests a second for each account (``Principal.account``), with bursts of ``burst``."""

    def __init__(self, per_s: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._full_at: dict[str, float] = {}  # when the bucket will be full again; full ones may be dropped
        self._kept_most = _ACCOUNTS_KEPT

    def spend(self, account: str) -> None:
        """Count a request of the account. Raises RequestRejected (429) above the limit, and counts nothing then."""
        now = self._clock()
        full_at = max(self._full_at.get(account, now), now) + 1 / self._per_s
        wait_s = full_at - now - self._burst / self._per_s
        if wait_s > _ROUNDING_S:
            raise RequestRejected(
                429,
                "too_many_requests",
                f"{account} sent more than {self._per_s:g} requests per second (bursts of {self._burst}), over all its "
                "keys and sessions; wait for the time in Retry-After",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )
        self._full_at[account] = full_at
        if len(self._full_at) > self._kept_most:
            self._full_at = {name: full_at for name, full_at in self._full_at.items() if full_at > now}
            self._kept_most = max(_ACCOUNTS_KEPT, 2 * len(self._full_at))


log = structlog.get_logger(__name__)


class SignedLinks:
    """Signed links to results and logs. public_url: base URL of the links; empty: the host of the request."""

    def __init__(self, database: Database, open_vault: Callable[[], Vault], *, public_url: str, link_s: int) -> None:
        self._links = ResultLinks(database, open_vault, base_url=public_url, link_s=link_s)

    async def link(self, request: Request, job_id: UUID, what: Linked = Linked.RESULTS) -> str:
        """Return the URL of the job's results or logs. Raises InvalidInput("Host", …), Unavailable."""
        signer = await self._links.signer()
        return signer.link(self.find_base(request), str(job_id), what=what).url

    def find_base(self, request: Request) -> str:
        """Return the URL of the API as clients reach it. Raises InvalidInput("Host", …)."""
        return self._links.base_url or get_origin(request.scope)

    async def prepare(self) -> None:
        """Create the key that signs links, or adopt that of an older version; log the reason if that fails."""
        try:
            await self._links.signer()
        except TweezerError as error:
            log.warning("links.not_signed", error=error.message)

    async def are_valid(self, what: Linked, job_id: str, issued: str, expires: str, signature: str) -> bool:
        """Return whether these parameters are those of an unexpired link to this job. Raises Unavailable."""
        return (await self._links.signer()).is_valid(job_id, issued, expires, signature, what=what)
