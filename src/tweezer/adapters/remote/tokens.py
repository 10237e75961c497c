"""Access tokens of OAuth 2: of a Keycloak, and as Pasqal's clients ask for them."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Callable, Mapping

import aiohttp
import msgspec

from tweezer.adapters.remote.http import FAILURES, read_at_most

_LEEWAY_S = 60.0
_FINAL = (400, 401, 403, 404)
_WORD = re.compile(r"[A-Za-z_]{1,40}")


class _Token(msgspec.Struct):
    access_token: str
    expires_in: float = 0.0


class TokenRequest(msgspec.Struct, frozen=True):
    """What is posted where for a token. who: whom it is for, and hint: what to check, for errors."""

    url: str
    form: Mapping[str, str]
    who: str
    hint: str

    def __repr__(self) -> str:
        return f"TokenRequest(url={self.url!r}, who={self.who!r})"


class Tokens:
    """The access token of one log-in: cached, and fetched anew a minute before it expires (of a short-lived one, after
    half its life). What the endpoint answers is never shown: it may echo credentials.

    unreachable, refused: make the errors of who asks, of a sentence, and of a sentence and HTTP's status.
    """

    def __init__(
        self,
        request: TokenRequest,
        tls: ssl.SSLContext | bool,
        timeout: aiohttp.ClientTimeout,
        *,
        unreachable: Callable[[str], Exception],
        refused: Callable[[str, int], Exception],
    ) -> None:
        self._request = request
        self._unreachable = unreachable
        self._refused = refused
        self._tls = tls
        self._timeout = timeout
        self._token: str | None = None
        self._fresh_until = 0.0
        self._fetching = asyncio.Lock()

    async def current(self) -> str:
        """A token that should do. Raises ``unreachable``, and ``refused`` when the credentials are wrong."""
        async with self._fetching:
            if self._token is None or time.monotonic() >= self._fresh_until:
                asked_at = time.monotonic()
                token = await self._fetch()
                life_s = token.expires_in
                self._token, self._fresh_until = token.access_token, asked_at + max(life_s - _LEEWAY_S, life_s / 2)
            return self._token

    def discard(self, token: str) -> None:
        """This one was refused: the next is a new one."""
        if self._token == token:
            self._token = None

    async def _fetch(self) -> _Token:
        url = self._request.url
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout) as session,
                session.post(url, data=dict(self._request.form), ssl=self._tls, allow_redirects=False) as response,
            ):
                body, status = await read_at_most(response, 1 << 20), response.status
        except FAILURES as error:
            raise self._unreachable(f"no token from {url}: {type(error).__name__}") from error
        if status in _FINAL:
            asked = f"no token for {self._request.who} from {url}"
            raise self._refused(f"{asked}: {status} {_reason(body)}; check {self._request.hint}", status)
        try:
            if status != 200:
                raise ValueError
            return msgspec.json.decode(body, type=_Token)
        except ValueError as error:
            raise self._unreachable(f"no token from {url}: it answers {status}, and no token") from error


def _reason(body: bytes) -> str:
    """The word for the error, if it is one."""
    try:
        word = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return "without a reason"
    return word if isinstance(word, str) and _WORD.fullmatch(word) else "without a reason"
