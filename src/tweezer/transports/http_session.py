"""Requests to the HTTP API: where it is, the key, TLS, time limits, and errors.

The key is sent to the given host only. Redirects are never followed, because they would send it elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import json
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Generic, NoReturn, TypeVar, cast
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
from yarl import URL

from tweezer import tracing
from tweezer.model.errors import (
    Conflict,
    InvalidInput,
    NewerRecord,
    NotFound,
    QueueFull,
    TweezerError,
    Unavailable,
    Unreadable,
)
from tweezer.model.quotas import QuotaExceeded

T = TypeVar("T")

CONNECT_S = 10.0
"""Time limit of an attempt to connect, TLS included."""

ANSWER_S = 30.0
"""Time limit of a response, beyond the time for which the server may hold the request; of a stream: between parts."""

_KEEPALIVE_S = 4.0  # below the 5 s of uvicorn, so that both ends do not close and send at the same time
_CONNECTIONS_MAX = 256  # each wait of a program holds one
_ANSWER_MAX = 256 << 20
_LEAST_RATE = 16 << 10  # bytes of a body that are sent in a second, as the API requires
_COMPRESS_ABOVE = 16 << 10
_QUICK = 1 << 20  # compressed in about ten milliseconds: not worth a thread
_RETRY_AFTER_MAX_S = 3600.0
_PROXY_STATUSES = frozenset({408, 425, 429, 502, 503, 504, *range(520, 528)})  # those above 504 are Cloudflare's

_FIELDS = {"sequence_builder": "sequence", "device_type": "device", "queue_priority": "priority"}
"""Names of fields in requests whose name in the Python API is different."""

Query = Mapping[str, str | int | float | Sequence[str]]


def _texts(value: str | float | Sequence[str]) -> Sequence[str]:
    """Return the values of a query parameter."""
    return [str(value)] if isinstance(value, str | int | float) else value


class _Problem(msgspec.Struct, frozen=True):
    """What the API reports about a failure."""

    description: str
    reason: str
    field: str | None = None
    quota: _Quota | None = None


class _Quota(msgspec.Struct, frozen=True):
    """The quota that a call exceeds."""

    project: str
    name: str
    limit: int
    used: int
    asked: int


class _Failure(msgspec.Struct, frozen=True):
    data: _Problem


class Envelope(msgspec.Struct, Generic[T], frozen=True):
    """A response of the API. next: the cursor in a page of events."""

    data: T
    next: str = ""


def check_api_url(url: str) -> str:
    """Return the base URL of the API without a slash at its end. Raises InvalidInput("url", …), without quoting it."""
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InvalidInput("url", "is not a valid URL; expected, for example, https://tweezer.example.org") from None
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("url", "must not contain a user name or a password; pass the API key as key")
    if not host or " " in host:
        raise InvalidInput("url", "has no valid host; expected, for example, https://tweezer.example.org")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise InvalidInput("url", "must not have a query or a fragment; give the address under which the API is served")
    if parts.scheme == "http" and not _is_loopback(host):
        raise InvalidInput("url", f"plain http would send the key to {host} unencrypted; use https://{host}")
    return parts.geturl().rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_secret(key: object) -> str:
    """Return the API key if it can be sent. Raises InvalidInput("key", …), which does not quote it."""
    if not isinstance(key, str) or not 1 <= len(key) <= 500 or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidInput("key", "is not a valid API key; it looks like twz_…, without spaces or line ends")
    return key


class HttpSession:
    """Connections to one API, opened on the first request. Use it on one event loop."""

    def __init__(self, url: str, key: str, *, ca_file: str | None = None) -> None:
        """Raises InvalidInput("ca_file", …)."""
        self.url = url
        self._key = key
        self._tls = _load_tls(ca_file) if url.startswith("https:") else None
        self._client: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def call(
        self,
        kind: type[T],
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: object = None,
        key: str = "",
        wait_s: float = 0.0,
    ) -> Envelope[T]:
        """Make a request and return its response.

        Args:
            kind: The type of ``data`` in the response.
            method: The HTTP method.
            path: The path below the URL of the API; :func:`at` makes one with names in it.
            query: Query parameters.
            body: Sent as JSON; None sends no body.
            key: An idempotency key.
            wait_s: How long the server may hold the request.

        Raises:
            TweezerError: As :func:`_raise_failure`.
        """
        content, headers = (None, {}) if body is None else await _pack(body)
        sent_s = len(content or b"") / _LEAST_RATE
        limit = aiohttp.ClientTimeout(total=CONNECT_S + sent_s + wait_s + ANSWER_S, sock_connect=CONNECT_S)
        if key:
            headers["Idempotency-Key"] = key
        async with self._answer(method, path, query, content, headers, limit) as answer:
            if answer.status not in (200, 201):
                await self._raise_failure(answer)
            text = await _read(answer, _ANSWER_MAX)
        try:
            found: Envelope[T] = _decoder(cast(Any, kind)).decode(text)
            return found
        except msgspec.MsgspecError as error:
            raise self._foreign(f"its response is not understood ({error})") from error

    async def lines(self, kind: type[T], path: str, *, query: Query) -> AsyncIterator[T]:
        """Yield the lines of a streamed response. Raises TweezerError as :meth:`call`."""
        limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=ANSWER_S)
        decoder = msgspec.json.Decoder(kind)
        async with self._answer("GET", path, query, None, {}, limit) as answer:
            if answer.status != 200:
                await self._raise_failure(answer)
            rest: list[bytes] = []
            async for chunk in answer.content.iter_any():
                *ended, last = chunk.split(b"\n")
                for line in ended:
                    whole, rest = b"".join([*rest, line]), []
                    try:
                        yield decoder.decode(whole)
                    except msgspec.MsgspecError as error:
                        raise self._foreign(f"its response is not understood ({error})") from error
                rest.append(last)

    @contextlib.asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        query: Query | None,
        content: bytes | None,
        headers: dict[str, str],
        limit: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers |= {"Authorization": f"Bearer {self._key}"}
        if (trace := tracing.current()) is not None:
            headers["traceparent"] = trace
        try:
            async with self._opened().request(
                method,
                URL(self.url + path, encoded=True),
                params=[(name, text) for name, value in (query or {}).items() for text in _texts(value)] or None,
                data=content,
                headers=headers,
                timeout=limit,
                allow_redirects=False,
            ) as answer:
                yield answer
        except aiohttp.ClientConnectorCertificateError as error:
            raise TweezerError(
                f"the certificate of {self.url} is not trusted: {error.certificate_error}; if it is from your own "
                "authority, give that with ca_file or TWEEZER_API_CA_FILE",
                code="certificate",
            ) from error
        except aiohttp.ClientConnectorSSLError as error:
            raise TweezerError(
                f"cannot make a TLS connection to {self.url}: {error.os_error}; check that the port is one for https",
                code="tls",
            ) from error
        except TimeoutError as error:
            raise Unavailable(f"the API at {self.url} does not respond in time; try again") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"cannot reach the API at {self.url}: {_describe(error)}") from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._client is not None and self._client.closed:
            raise Unavailable(f"the connections to {self.url} were closed during the call")
        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=self._tls or True, limit=_CONNECTIONS_MAX, keepalive_timeout=_KEEPALIVE_S
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "Tweezer"},
                trust_env=False,  # it would also send credentials from ~/.netrc
            )
        return self._client

    async def _raise_failure(self, answer: aiohttp.ClientResponse) -> NoReturn:
        """Raise the error that the same call raises over Redis, with its code and fields."""
        status, text = answer.status, await _read(answer, _ANSWER_MAX)
        if 300 <= status < 400:
            place = urlsplit(answer.headers.get("Location", ""))
            target = f"{place.scheme}://{place.hostname}" if place.hostname else "another path"
            raise TweezerError(
                f"the API at {self.url} redirects to {target}, and the key is not sent there; if you trust it, use its "
                "URL instead",
                code="redirected",
            )
        retry_after_s = _retry_after_s(answer.headers)
        try:
            problem = msgspec.json.decode(text, type=_Failure).data
        except msgspec.MsgspecError:
            if status in _PROXY_STATUSES:
                raise _unavailable(f"the API at {self.url} is unavailable (status {status})", retry_after_s) from None
            if status == 413:
                raise TweezerError(
                    f"a proxy of {self.url} refuses a body of this size; send fewer jobs per call, or ask the operator "
                    "to raise the limit of the proxy",
                    code="too_large",
                ) from None
            raise self._foreign(f"it responds with status {status}") from None
        raise _as_error(status, problem, retry_after_s, self.url)

    def _foreign(self, problem: str) -> TweezerError:
        return TweezerError(
            f"{self.url} is not a compatible Tweezer API: {problem}; check the URL, and the version of the server",
            code="not_tweezer",
        )


def at(template: str, *names: object) -> str:
    """Return a path with these names in the place of each ``{}``, percent-encoded."""
    return template.format(*(quote(str(name), safe="") for name in names))


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(Envelope[kind])


def _load_tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise InvalidInput("ca_file", f"{ca_file} cannot be loaded as PEM certificates: {problem}") from error


async def _pack(body: object) -> tuple[bytes, dict[str, str]]:
    """Encode a body, and compress a large one. Raises InvalidInput."""
    content = _encode(body)
    headers = {"Content-Type": "application/json"}
    if len(content) <= _COMPRESS_ABOVE:
        return content, headers
    packed = _gzip(content) if len(content) <= _QUICK else await asyncio.to_thread(_gzip, content)
    return packed, headers | {"Content-Encoding": "gzip"}


def _encode(body: object) -> bytes:
    try:
        return json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput("body", f"cannot be sent as JSON: {error}") from error


def _gzip(content: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    return packer.compress(content) + packer.flush()


async def _read(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the body of a response. Raises TweezerError if it is larger than ``most`` bytes."""
    parts, size = [], 0
    async for chunk in answer.content.iter_any():
        parts.append(chunk)
        size += len(chunk)
        if size > most:
            raise TweezerError(f"the response is larger than {most >> 20} MiB; ask for less", code="too_large")
    return b"".join(parts)


def _retry_after_s(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "").strip()
    return min(float(text), _RETRY_AFTER_MAX_S) if text.isdecimal() and len(text) < 10 else 0.0


def _unavailable(message: str, retry_after_s: float) -> Unavailable:
    error = Unavailable(message)
    error.retry_after_s = retry_after_s
    return error


def _as_error(status: int, problem: _Problem, retry_after_s: float, url: str) -> TweezerError:
    """Return the error of the Python API for a failure that the HTTP API reports."""
    message, reason, field = problem.description, problem.reason, problem.field
    match status:
        case 401:
            return TweezerError(
                f"the API at {url} does not accept the key: it is unknown, expired or revoked; check key or "
                "TWEEZER_API_KEY, or ask the operator for a new key",
                code="unauthorized",
            )
        case _ if problem.quota is not None:
            quota = problem.quota
            return QuotaExceeded(quota.project, quota.name, quota.limit, quota.used, quota.asked)
        case 400 | 413 | 422 if field is not None:
            named = field.removeprefix("template.")  # of a schedule
            named = _FIELDS.get(named, named)
            return InvalidInput(named, message.removeprefix(f"{field}: "))
        case 404 if reason == NotFound.code:
            return _rebuild(NotFound, message, reason)
        case 404:
            return TweezerError(
                f"the API at {url} lacks a route that this version needs: {message}; check the URL, and upgrade the "
                "server",
                code="no_such_route",
            )
        case 409 if reason == NewerRecord.code:
            return _rebuild(NewerRecord, message, reason)
        case 409:
            return Conflict(message if field is None else message.removeprefix(f"{field}: "), code=reason, field=field)
        case 500 if reason == Unreadable.code:
            return Unreadable(message)
        case 503 if reason == QueueFull.code:
            return QueueFull(message)
        case 408 | 429 | 502 | 503 | 504:
            return _unavailable(message, retry_after_s)
        case _:
            return TweezerError(message, code=reason)


def _rebuild(kind: type[TweezerError], message: str, code: str) -> TweezerError:
    """Make an error from its message: its class may take other arguments."""
    error = kind.__new__(kind, message)
    TweezerError.__init__(error, message, code=code)
    return error


def _describe(error: Exception) -> str:
    """Return the cause of a lost or failed connection."""
    match error:
        case aiohttp.ClientConnectorError(os_error=ConnectionRefusedError()):
            return "no server listens there; check the URL, and whether the API runs"
        case aiohttp.ClientConnectorError():
            return error.os_error.strerror or str(error.os_error)
        case aiohttp.ServerDisconnectedError():
            return "the connection was closed before the response"
        case _:
            return str(error) or type(error).__name__
