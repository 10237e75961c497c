"""The HTTP client of a remote API: access tokens, reads that are retried, and submits that are sent once.

Each error of a submit states whether the job may have been created.
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
"""The errors of a request that got no answer."""

_UNDECIDED = (408, 499)  # sent by a proxy that gave up although the request may have been forwarded
_TOO_LARGE = 413  # refuses the request itself, whether the API or a proxy answers
_RETRIES = Backoff(base_s=0.1, cap_s=2.0)
_EXCERPT = 200
_TOKEN_LEEWAY_S = 60.0
_NO_TOKEN = (400, 401, 403, 404)
_WORD = re.compile(r"[A-Za-z_]{1,40}")


class HttpAnswer(msgspec.Struct, frozen=True):
    """An HTTP answer, not yet parsed.

    Attributes:
        what: The request, for error messages.
        status: The HTTP status.
        body: The body, unpacked.
    """

    what: str
    status: int
    body: bytes

    @property
    def excerpt(self) -> str:
        return make_excerpt(self.body)


class RemoteClient:
    """The base class of the client of a remote API.

    Args:
        options: How the API is reached.
        url: The URL at which its paths begin.
        agent: The ``User-Agent``, by which the API's operator recognises the client.
        key: The key that is sent as bearer token; None without a key, or if :meth:`_log_in` gets tokens.

    Attributes:
        api: The name of the API in error messages.
        unit: The name of what a submit creates in error messages.
        max_answer_bytes: The largest answer that is read, in bytes.

    Raises:
        tweezer.model.errors.InvalidInput: An option is invalid; the error names it.
    """

    api: str
    unit: str
    max_answer_bytes: int

    def __init__(self, options: RemoteOptions, url: str, *, agent: str, key: str | None = None) -> None:
        self._options = options
        self._url = url
        self._key = key
        self._tls = _load_tls(options)
        self._headers = {"User-Agent": agent, "Accept": "application/json"}
        self._tokens: Tokens | None = None
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _log_in(self, request: TokenRequest) -> None:
        """Use access tokens from this endpoint."""
        self._tokens = Tokens(request, self._tls, self._timeout(self._options.read_timeout_s))

    # -- reads ----------------------------------------------------------------------------------------

    async def _read(
        self, method: str, path: str, read: Callable[[HttpAnswer], T], query: Mapping[str, str] | None = None
    ) -> T:
        """Send a read and parse its answer with ``read``. Retry for ``retry_s`` until there is a usable answer."""
        return await self._retry(lambda: self._request(method, path, query), read, f"{method} {path}")

    async def _retry(self, send: Callable[[], Awaitable[HttpAnswer]], read: Callable[[HttpAnswer], T], what: str) -> T:
        deadline = time.monotonic() + self._options.retry_s
        attempt = 0
        while True:
            attempt += 1
            try:
                return read(await send())
            except RemoteUnreachable as error:
                pause_s = _RETRIES.delay_s(attempt)
                if time.monotonic() + pause_s > deadline:
                    raise
                log.info("remote.read_retried", what=what, attempt=attempt, problem=error.message)
            await asyncio.sleep(pause_s)

    async def _request(self, method: str, path: str, query: Mapping[str, str] | None = None) -> HttpAnswer:
        async def send() -> HttpAnswer:
            return await self._exchange(self._shared_session(), method, path, await self._token(), query=query)

        try:
            return await self._with_new_token(send)
        except FAILURES as error:
            raise RemoteUnreachable(f"{method} {path}: no answer from {self._url} ({_describe(error)})") from error

    async def _with_new_token(self, send: Callable[[], Awaitable[HttpAnswer]]) -> HttpAnswer:
        """Send a request. If it is answered 401, and so was not executed, send it again with a new token."""
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

        Args:
            path: The path below the client's URL.
            content: The body, JSON.
            before_send: Called on the open connection, right before the first byte is sent. If it raises, nothing is
                sent and the exception is passed on.
            headers: Further headers.

        Returns:
            The answer, with any status.

        Raises:
            SubmitDeferred: Nothing was sent.
            SubmitUncertain: The submit may have been executed.
        """
        return await self._with_new_token(lambda: self._post(path, content, before_send, headers))

    async def _post(
        self, path: str, content: bytes, before_send: Callable[[], None] | None, headers: Mapping[str, str] | None
    ) -> HttpAnswer:
        """Send a submit on a new connection. A kept one may already be closed by the other side, and then it would be
        unknown whether the submit arrived."""
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
                    f"{self.api} did not answer the submit ({_describe(error)}): the {self.unit} may have been created"
                )
                raise SubmitUncertain(problem) from error
            raise SubmitDeferred(
                f"{unsent}: {self.api} at {self._url} cannot be reached ({_describe(error)})"
            ) from error

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
        """Read the answer. Remove the token from it, and discard the token if it was refused."""
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
    """Raise SubmitDeferred or SubmitRefused if the answer to a submit shows that it was not executed.

    Args:
        client: The client, for its names of the API and the unit.
        status: The HTTP status.
        problem: The API's message.
        is_by_api: Whether the API itself answered, and not a proxy.
        is_deferred: Whether the API asks to send the submit again later.
        field: The part of the request at fault, if the API names it.
    """
    unsent = f"the {client.unit} was not submitted"
    if status in (401, 429) or is_deferred:
        raise SubmitDeferred(f"{unsent}: {client.api} returned {status}: {problem}")
    if 400 <= status < 500 and status not in _UNDECIDED:
        if status != _TOO_LARGE and not is_by_api:
            raise SubmitTurnedAway(
                f"{unsent}: a proxy in front of {client.api} seems to have returned {status}; check it: {problem}"
            )
        raise SubmitRefused(problem, status=status, field=field)


class _CheckedConnector(aiohttp.TCPConnector):
    """A connector for one request that calls ``before_send`` on the open connection before anything is sent.

    If ``before_send`` raises, the request raises the same. has_passed: It did not raise, so the request may be sent.
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
    """Return aiohttp's setting for the check of certificates. Raises InvalidInput naming ``tls_ca_file``."""
    if options.tls_ca_file is None:
        return options.tls_verify
    try:
        return ssl.create_default_context(cafile=options.tls_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput("tls_ca_file", f"{options.tls_ca_file} cannot be used: {error}") from error


async def _read_at_most(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the body, unpacked. Raises aiohttp's ClientPayloadError if it is longer than ``most`` bytes."""
    parts = bytearray()
    async for part in response.content.iter_any():
        parts += part
        if len(parts) > most:
            raise aiohttp.ClientPayloadError(f"the answer is longer than {most >> 20} MiB")
    return bytes(parts)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def make_excerpt(body: bytes) -> str:
    """Return the beginning of a body, on one line and printable, for a message."""
    text = " ".join(body[: 4 * _EXCERPT].decode(errors="replace").split())
    shown = "".join(sign if sign.isprintable() else "�" for sign in text[:_EXCERPT])
    return f"{shown}…" if len(text) > _EXCERPT or len(body) > 4 * _EXCERPT else shown or "(empty)"


# -- access tokens of OAuth 2: of a Keycloak, and in the way of Pasqal's clients ---------------------------


class _Token(msgspec.Struct):
    access_token: str
    expires_in: float = 0.0


class TokenRequest(msgspec.Struct, frozen=True):
    """A request for an access token.

    Attributes:
        url: The token endpoint.
        form: The fields to post.
        who: The user or client, for error messages.
        hint: The options to check, for error messages.
    """

    url: str
    form: Mapping[str, str]
    who: str
    hint: str

    def __repr__(self) -> str:
        return f"TokenRequest(url={self.url!r}, who={self.who!r})"


class Tokens:
    """The cached access token of one log-in.

    A new one is fetched a minute before it expires, or after half the life of a short-lived one. The endpoint's answer
    is never shown, because it may contain credentials.
    """

    def __init__(self, request: TokenRequest, tls: ssl.SSLContext | bool, timeout: aiohttp.ClientTimeout) -> None:
        self._request = request
        self._tls = tls
        self._timeout = timeout
        self._token: str | None = None
        self._fresh_until = 0.0
        self._fetching = asyncio.Lock()

    async def current(self) -> str:
        """Return a token that should be valid. Raises RemoteUnreachable, or RemoteRefused for wrong credentials."""
        async with self._fetching:
            if self._token is None or time.monotonic() >= self._fresh_until:
                requested_at = time.monotonic()
                token = await self._fetch()
                life_s = token.expires_in
                self._token = token.access_token
                self._fresh_until = requested_at + max(life_s - _TOKEN_LEEWAY_S, life_s / 2)
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
            problem = f"no token for {self._request.who} from {url}: {status} {_read_reason(body)}"
            raise RemoteRefused(f"{problem}; check {self._request.hint}", status=status, by_api=False)
        try:
            if status != 200:
                raise ValueError
            return msgspec.json.decode(body, type=_Token)
        except ValueError as error:
            raise RemoteUnreachable(f"no token from {url}: it returned {status} without a valid token") from error


def _read_reason(body: bytes) -> str:
    """Return the error's name from a token endpoint's answer, if it is a plain word."""
    try:
        word = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return "without a reason"
    return word if isinstance(word, str) and _WORD.fullmatch(word) else "without a reason"
