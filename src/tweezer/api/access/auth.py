"""Who is asking: the key of a request, looked up in the ledger and remembered for a second.

It stands before everything that reads a body or costs work, so that strangers cost little. Who has no key, an unknown
one, or one that has expired or was revoked, hears the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hmac import compare_digest
from typing import NamedTuple, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tweezer.api.http.rate_limit import Rates
from tweezer.api.http.responses import RequestRefused, error_response
from tweezer.duties import Duties
from tweezer.ledger.access.credentials import Principal, key_digest, key_id
from tweezer.ledger.access.keys import USED_S, KeyLookup, look_up_key, note_used
from tweezer.ledger.database import Database, sharing
from tweezer.model.errors import TweezerError, Unavailable
from tweezer.model.lru import CachedCalls

REMEMBERED_S = 1.0
"""How long a look-up holds: at most so long a revoked key still opens, and a key opens without the database."""

OPEN_PATHS = frozenset({"/health", "/ready", "/openapi.json", "/oauth/token", "/api/v1/devices/public-specs"})
"""Paths that need no key. Beside them: a link to results that is signed, see :mod:`tweezer.api.access.signed_links`."""

_CALLER = "tweezer.caller"
_REMEMBERED_MAX = 10_000
_RESULTS_PATH = ("/api/v1/jobs/", "/results")
_NOBODY = b""  # the digest of no key


def caller_of(scope: Scope) -> Principal | None:
    """Who is behind the request; None for one that came to an open path, or by a signed link."""
    return cast("Principal | None", scope.get(_CALLER))


def unauthorized() -> RequestRefused:
    """The answer to who has no key that is good."""
    problem = (
        "a valid key is needed: send `Authorization: Bearer twz_…`, with a key that `tweezer keys create` made or a "
        "token that /oauth/token gave"
    )
    return RequestRefused(401, "unauthorized", problem, headers={"WWW-Authenticate": 'Bearer realm="tweezer"'})


class Authenticator:
    """Tells whose a key is. Unknown keys are remembered like others, and no more of all than have room."""

    def __init__(self, database: Database, *, remembered_s: float = REMEMBERED_S) -> None:
        self._database = database
        self._known = CachedCalls(self._look_up, _REMEMBERED_MAX, kept_s=remembered_s)
        self._used: set[str] = set()

    async def principal(self, key: str) -> Principal | None:
        """Whose the key is; None when it opens nothing. Raises Unavailable."""
        identity = key_id(key)
        if identity is None:
            return None
        known = await self._known.get(identity)
        if known.until < time.monotonic():
            self._known.forget(identity)
            known = await self._known.get(identity)
        if known.principal is None or not compare_digest(key_digest(key), known.digest):
            return None
        self._used.add(identity)
        return known.principal

    def forget(self, identity: str) -> None:
        """Look the key of this id up again at its next use, because it was revoked."""
        self._known.forget(identity)

    async def still_knows(self, scope: Scope) -> bool:
        """Whether the key of a request that is being answered opens the same as when it came. Raises Unavailable."""
        key = _bearer(scope)
        return key is not None and await self.principal(key) == caller_of(scope)

    async def write_used(self) -> None:
        """Writes which keys were used since it was last called. Raises Unavailable."""
        used, self._used = self._used, set()
        try:
            if used:
                await self._database.run(_write_used, self._database, used)
        except BaseException:
            self._used |= used
            raise

    @asynccontextmanager
    async def writing_used(self, duties: Duties) -> AsyncIterator[None]:
        """Does the same each minute, and at the end."""
        duties.start("keys", self.write_used, every_s=USED_S)
        try:
            yield
        finally:
            with suppress(Unavailable):
                await self.write_used()

    async def _look_up(self, identity: str) -> _Known:
        found = await self._database.run(_look_up, self._database, identity)
        if found is None or found.principal is None:
            return _Known(_NOBODY, None, math.inf)
        return _Known(found.digest, found.principal, time.monotonic() + found.left_s)


class Authentication:
    """ASGI middleware: answers 401 to who may not come in and 429 to who comes too often, and notes for
    :func:`caller_of` who else it is."""

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator, rates: Rates) -> None:
        self._app = app
        self._authenticator = authenticator
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or is_signed(scope):
            await self._app(scope, receive, send)
            return
        try:
            key = _bearer(scope)
            caller = None if key is None else await self._authenticator.principal(key)
            if caller is None:
                raise unauthorized()
            self._rates.spend(caller.account)
        except TweezerError as error:
            await error_response(error)(scope, receive, send)
            return
        scope[_CALLER] = caller
        if scope["method"] == "GET":  # whoever wrote something must be told, or would write it again
            send = self._checked(scope, receive, send)
        with sharing(caller.account):
            await self._app(scope, receive, send)

    def _checked(self, scope: Scope, receive: Receive, send: Send) -> Send:
        """Send the answer only if the key still opens the same: it may have been revoked while the request was held."""
        trusted_until = time.monotonic() + REMEMBERED_S
        refused = False

        async def send_checked(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and time.monotonic() > trusted_until:
                try:
                    if not await self._authenticator.still_knows(scope):
                        raise unauthorized()
                except TweezerError as error:
                    refused = True
                    await error_response(error)(scope, receive, send)
            if not refused:
                await send(message)

        return send_checked


class _Known(NamedTuple):
    """What a look-up found, and until when (monotonic) it holds."""

    digest: bytes
    principal: Principal | None
    until: float


def is_signed(scope: Scope) -> bool:
    """Whether it is a request for results by a link, whose signature the route checks."""
    path: str = scope["path"]
    begin, end = _RESULTS_PATH
    return path.endswith(end) and path.startswith(begin) and b"signature=" in scope["query_string"]


def _bearer(scope: Scope) -> str | None:
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) != 1:
        return None
    scheme, _, key = found[0].partition(b" ")
    return key.strip().decode("latin-1") if scheme.lower() == b"bearer" else None


def _look_up(database: Database, identity: str) -> KeyLookup | None:
    with database.read() as connection:
        return look_up_key(connection, identity)


def _write_used(database: Database, identities: set[str]) -> None:
    with database.write() as connection:
        note_used(connection, identities)
