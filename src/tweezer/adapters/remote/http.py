"""The HTTP client of a remote API: tokens, reads that are tried again, and submits that are sent once.

Each way in which a submit can fail says whether the job may have been created.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import aiohttp
import msgspec
import structlog

from tweezer.adapters.remote.errors import (
    RemoteError,
    RemoteRefused,
    RemoteUnreachable,
    SubmitDeferred,
    SubmitRefused,
    SubmitTurnedAway,
    SubmitUncertain,
)
from tweezer.adapters.remote.options import RemoteOptions
from tweezer.duties import Backoff
from tweezer.model.errors import InvalidInput

log = structlog.get_logger(__name__)

T = TypeVar("T")

FAILURES = (aiohttp.ClientError, TimeoutError, OSError)
"""How a request without an answer ends."""

_UNDECIDED = (408, 499)  # refusals of proxies that gave up while the request may have been on its way
_TOO_LARGE = 413  # a refusal that is about the request itself, whoever answers
_RETRIES = Backoff(base_s=0.1, cap_s=2.0)
_EXCERPT = 200
_TOKEN_LEEWAY_S = 60.0
_NO_TOKEN = (400, 401, 403, 404)
_WORD = re.compile(r"[A-Za-z_]{1,40}")


class HttpAnswer(msgspec.Struct, frozen=True):
    """An answer of HTTP, not yet looked into. what: the request, for errors."""

    what: str
    status: int
    body: bytes

    @property
    def excerpt(self) -> str:
        return excerpt(self.body)


class RemoteClient:
    """The client of one remote API, the parent of those that know its paths.

    api and unit: what errors call the API, and what a submit creates. agent: how the client presents itself
    (``User-Agent``), so that the operator of the other side can tell who asked.
    """

    api: str
    unit: str
    max_answer_bytes: int

    def __init__(self, options: RemoteOptions, url: str, *, agent: str, key: str | None = None) -> None:
        """Raises InvalidInput naming the option that cannot be used. Sends nothing yet."""
        self._options = options
        self._url = url
        self._key = key
        self._tls = _load_tls(options)
        self._headers = {"User-Agent": agent, "Accept": "application/json"}
        self._tokens: Tokens | None = None
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _log_in(self, request: TokenRequest) -> None:
        """Use tokens of this log-in."""
        self._tokens = Tokens(request, self._tls, self._timeout(self._options.read_timeout_s))

    # -- reads ----------------------------------------------------------------------------------------

    async def _read(
        self, method: str, path: str, read: Callable[[HttpAnswer], T], query: Mapping[str, str] | None = None
    ) -> T:
        """Return what the API answers, asked again for ``retry_s`` while it does not."""
        return await self._retry(lambda: self._request(method, path, query), read, f"{method} {path}")

    async def _retry(self, ask: Callable[[], Awaitable[HttpAnswer]], read: Callable[[HttpAnswer], T], what: str) -> T:
        deadline = time.monotonic() + self._options.retry_s
        attempt = 0
        while True:
            attempt += 1
            try:
                return read(await ask())
            except RemoteUnreachable as error:
                pause_s = _RETRIES.delay_s(attempt)
                if time.monotonic() + pause_s > deadline:
                    raise
                log.info("remote.asked_again", what=what, attempt=attempt, problem=error.message)
            await asyncio.sleep(pause_s)

    async def _request(self, method: str, path: str, query: Mapping[str, str] | None = None) -> HttpAnswer:
        async def send() -> HttpAnswer:
            return await self._exchange(self._shared_session(), method, path, await self._token(), query=query)

        try:
            return await self._with_new_token(send)
        except FAILURES as error:
            raise RemoteUnreachable(f"{method} {path}: no answer from {self._url} ({brief(error)})") from error

    async def _with_new_token(self, send: Callable[[], Awaitable[HttpAnswer]]) -> HttpAnswer:
        """Send a request once, and a second time, with a new token, when it was answered 401: that was not executed."""
        answer = await send()
        return await send() if answer.status == 401 and self._tokens is not None else answer

    # -- submits --------------------------------------------------------------------------------------

    async def _submit(
        self,
        path: str,
        content: bytes,
        before_send: Callable[[], None] | None,
        headers: Mapping[str, str] | None = None,
    ) -> HttpAnswer:
        """Send a submit once.

        before_send: called when the connection stands, right before the first byte is sent; what it raises is raised
        here, and nothing was sent. Raises SubmitDeferred: nothing was sent; SubmitUncertain: perhaps executed.
        """
        return await self._with_new_token(lambda: self._post(path, content, before_send, headers))

    async def _post(
        self, path: str, content: bytes, before_send: Callable[[], None] | None, headers: Mapping[str, str] | None
    ) -> HttpAnswer:
        """Send on a connection of its own: one that was kept may have been closed by the other side, and then nobody
        could say whether the submit arrived."""
        unsent = f"the {self.unit} was not submitted"
        try:
            token = await self._token()
        except RemoteError as error:
            raise SubmitDeferred(f"{unsent}: {error.message}") from error
        connector = _CheckedConnector(before_send, self._tls)
        try:
            async with self._new_session(connector, self._options.submit_timeout_s) as session:
                return await self._exchange(session, "POST", path, token, content=content, headers=headers)
        except FAILURES as error:
            if connector.has_passed:
                problem = (
                    f"{self.api} did not answer the submit ({brief(error)}): the {self.unit} may have been created"
                )
                raise SubmitUncertain(problem) from error
            raise SubmitDeferred(f"{unsent}: {self.api} at {self._url} cannot be reached ({brief(error)})") from error

    # -- connections ----------------------------------------------------------------------------------

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        token: str | None,
        *,
        query: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HttpAnswer:
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if content is not None:
            sent["Content-Type"] = "application/json"
        async with session.request(
            method, self._url + path, params=query, data=content, headers=sent, allow_redirects=False
        ) as response:
            return await self._receive(f"{method} {path}", response, token)

    async def _receive(self, what: str, response: aiohttp.ClientResponse, token: str | None) -> HttpAnswer:
        """Read the answer. A token that was refused is discarded, and shown in no answer."""
        body = await _read_at_most(response, self.max_answer_bytes)
        if token is not None:
            body = body.replace(token.encode(), b"***")
            if response.status == 401 and self._tokens is not None:
                self._tokens.discard(token)
        return HttpAnswer(what, response.status, body)

    async def _token(self) -> str | None:
        return self._key if self._tokens is None else await self._tokens.current()

    def _shared_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._new_session(
                aiohttp.TCPConnector(ssl=self._tls, limit=0), self._options.read_timeout_s
            )
        return self._session

    def _new_session(self, connector: aiohttp.BaseConnector, timeout_s: float) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=self._timeout(timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def _timeout(self, total_s: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=total_s, connect=self._options.connect_timeout_s)


def check_submit(
    client: type[RemoteClient],
    status: int,
    problem: str,
    *,
    is_by_api: bool,
    is_deferred: bool = False,
    field: str | None = None,
) -> None:
    """Raise for an answer to a submit by which it was surely not executed: SubmitDeferred, SubmitRefused."""
    unsent = f"the {client.unit} was not submitted"
    if status in (401, 429) or is_deferred:
        raise SubmitDeferred(f"{unsent}: {client.api} answers {status}: {problem}")
    if 400 <= status < 500 and status not in _UNDECIDED:
        if status != _TOO_LARGE and not is_by_api:
            raise SubmitTurnedAway(
                f"{unsent}: something other than {client.api} answered {status}, is it a proxy? {problem}"
            )
        raise SubmitRefused(problem, status=status, field=field)


class _CheckedConnector(aiohttp.TCPConnector):
    """A connector for one request, that calls back when the connection stands and nothing has been sent on it.

    What ``before_send`` raises is raised by the request. has_passed: it raised nothing, so the request may be sent.
    """

    def __init__(self, before_send: Callable[[], None] | None, tls: ssl.SSLContext | bool) -> None:
        super().__init__(ssl=tls, force_close=True)
        self._before_send = before_send
        self.has_passed = False

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[aiohttp.tracing.Trace], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        connection = await super().connect(req, traces, timeout)
        try:
            if self._before_send is not None:
                self._before_send()
        except BaseException:
            connection.close()
            raise
        self.has_passed = True
        return connection


def _load_tls(options: RemoteOptions) -> ssl.SSLContext | bool:
    """Return how certificates are checked, as aiohttp wants it. Raises InvalidInput naming ``tls_ca_file``."""
    if options.tls_ca_file is None:
        return options.tls_verify
    try:
        return ssl.create_default_context(cafile=options.tls_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput("tls_ca_file", f"{options.tls_ca_file} cannot be used: {error}") from error


async def _read_at_most(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the body, unpacked. Raises aiohttp's ClientPayloadError for a longer one."""
    parts = bytearray()
    async for part in response.content.iter_any():
        parts += part
        if len(parts) > most:
            raise aiohttp.ClientPayloadError(f"the answer is longer than {most >> 20} MiB")
    return bytes(parts)


def brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def excerpt(body: bytes) -> str:
    """Return the beginning of what was received, fit for a sentence."""
    text = " ".join(body[: 4 * _EXCERPT].decode(errors="replace").split())
    shown = "".join(sign if sign.isprintable() else "�" for sign in text[:_EXCERPT])
    return f"{shown}…" if len(text) > _EXCERPT or len(body) > 4 * _EXCERPT else shown or "(nothing)"


# -- access tokens of OAuth 2: of a Keycloak, and as Pasqal's clients ask for them -------------------------


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
    half its life). What the endpoint answers is never shown: it may echo credentials."""

    def __init__(self, request: TokenRequest, tls: ssl.SSLContext | bool, timeout: aiohttp.ClientTimeout) -> None:
        self._request = request
        self._tls = tls
        self._timeout = timeout
        self._token: str | None = None
        self._fresh_until = 0.0
        self._fetching = asyncio.Lock()

    async def current(self) -> str:
        """Return a token that should do. Raises RemoteUnreachable, and RemoteRefused for wrong credentials."""
        async with self._fetching:
            if self._token is None or time.monotonic() >= self._fresh_until:
                asked_at = time.monotonic()
                token = await self._fetch()
                life_s = token.expires_in
                self._token = token.access_token
                self._fresh_until = asked_at + max(life_s - _TOKEN_LEEWAY_S, life_s / 2)
            return self._token

    def discard(self, token: str) -> None:
        """Fetch a new token next time, because this one was refused."""
        if self._token == token:
            self._token = None

    async def _fetch(self) -> _Token:
        url = self._request.url
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout) as session,
                session.post(url, data=dict(self._request.form), ssl=self._tls, allow_redirects=False) as response,
            ):
                body, status = await _read_at_most(response, 1 << 20), response.status
        except FAILURES as error:
            raise RemoteUnreachable(f"no token from {url}: {type(error).__name__}") from error
        if status in _NO_TOKEN:
            problem = f"no token for {self._request.who} from {url}: {status} {_reason(body)}"
            raise RemoteRefused(f"{problem}; check {self._request.hint}", status=status, by_api=False)
        try:
            if status != 200:
                raise ValueError
            return msgspec.json.decode(body, type=_Token)
        except ValueError as error:
            raise RemoteUnreachable(f"no token from {url}: it answers {status}, and no token") from error


def _reason(body: bytes) -> str:
    """Return the word for the error, if it is one."""
    try:
        word = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return "without a reason"
    return word if isinstance(word, str) and _WORD.fullmatch(word) else "without a reason"
