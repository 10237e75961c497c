"""Make one delivery attempt to an allowed address and return its result."""

from __future__ import annotations

import asyncio
import contextvars
import email.utils
import functools
import importlib.metadata
import math
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Self, cast

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader
from structlog import get_logger
from yarl import URL

from tweezer.model.addresses import WebhookPolicy, check_url, why_refused
from tweezer.model.errors import InvalidInput
from tweezer.settings import WebhookSettings

log = get_logger(__name__)

Lookup = Callable[[str], Awaitable[list[str]]]
"""Returns the addresses of a host name. Raises OSError if it has no address."""

TEXT_MAX = 500

BEFORE_ANSWER_MAX = 65_536
"""Bytes that a receiver may send before its final response begins: informational responses (1xx), empty lines."""

_LOOKUPS = 32  # concurrent DNS look-ups: each blocks a thread, for seconds if its name servers are down
_LOOKUP_GOOD_S = 10
_KEEPALIVE_S = 4.0  # below the 5 s of uvicorn and Node, so that both ends do not close and send at the same time
_RETRY_AFTER_MAX_S = 7 * 86_400.0
_HEADERS = {
    "User-Agent": f"Tweezer/{importlib.metadata.version('tweezer')}",
    "Content-Type": "application/json",
    "Accept": "*/*",
    "Accept-Encoding": "identity",  # responses are not decompressed, so they cannot grow
}

# Whether the operator allows the host of this task's attempt by name.
_trusted: contextvars.ContextVar[bool] = contextvars.ContextVar("trusted", default=False)


class SendResult(msgspec.Struct, frozen=True):
    """The result of one attempt.

    status: of the HTTP response, None without one. error: what went wrong, without the URL or secrets; None if the
    response was complete, except for redirects. text: the first characters of the response body. retry_after_s: the
    delay that the receiver asked for. refused: the address is not allowed, and no connection was made.
    """

    status: int | None
    milliseconds: int
    error: str | None = None
    text: str = ""
    retry_after_s: float | None = None
    refused: bool = False

    @property
    def is_success(self) -> bool:
        """Whether the receiver accepted it: 2xx, with a response that ended or reached answer_max."""
        return self.error is None and self.status is not None and 200 <= self.status < 300


CONNECTIONS_MAX = 256
"""The most concurrent attempts of one process."""


class Sender:
    """A client that makes attempts over reusable connections. Create and use it on one event loop.

    timeout_s: from the connection to the end of the response. answer_max: bytes of a response that are read. limit:
    concurrent attempts; others wait. lookup: replaces the system's resolver. ssl_context: replaces the system's
    certificate authorities.
    """

    def __init__(
        self,
        policy: WebhookPolicy,
        *,
        timeout_s: float = WebhookSettings().timeout_s,
        answer_max: int = 65_536,
        limit: int = CONNECTIONS_MAX,
        lookup: Lookup | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self.timeout_s = timeout_s
        self._answer_max = answer_max
        self._target = functools.lru_cache(maxsize=4096)(self._check_target)
        self._resolver = _Resolver(policy, lookup)
        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            ttl_dns_cache=_LOOKUP_GOOD_S,
            socket_factory=self._open_socket,
            limit=limit,
            keepalive_timeout=_KEEPALIVE_S,
            ssl=True if ssl_context is None else ssl_context,
        )
        factory: Callable[[], ResponseHandler] = functools.partial(_BoundedProtocol, loop=asyncio.get_running_loop())
        connector._factory = cast(Any, factory)  # noqa: SLF001  # aiohttp has neither such a limit nor a public hook for it
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=_HEADERS,
            timeout=aiohttp.ClientTimeout(total=timeout_s, ceil_threshold=math.inf),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> SendResult:
        """Make one attempt. Failures of the receiver are not raised; they are in the result."""
        began = time.monotonic()
        status: int | None = None
        try:
            target, trusted = self._target(url)
            _trusted.set(trusted)
            async with self._session.post(target, data=body, headers=headers, allow_redirects=False) as response:
                status = response.status
                retry_after = response.headers.get("Retry-After")
                text = await self._read(response)
        except InvalidInput as error:
            return SendResult(None, _milliseconds(began), f"the URL {error.problem}", refused=True)
        except (aiohttp.ClientError, OSError, ValueError, EOFError, RuntimeError) as error:  # uvloop's may be the last
            refusal = _refusal(error)
            problem = self._problem(error, status) if refusal is None else refusal.reason
            return SendResult(status, _milliseconds(began), problem, refused=refusal is not None)
        return SendResult(
            status,
            _milliseconds(began),
            "redirects are not followed; use the URL that the redirect leads to" if 300 <= status < 400 else None,
            text,
            None if retry_after is None else _seconds(retry_after),
        )

    async def close(self) -> None:
        """Close the connections. Running attempts end with an error."""
        await self._session.close()
        await self._resolver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _read(self, response: aiohttp.ClientResponse) -> str:
        """Return the first characters of the body. At most answer_max bytes are read."""
        first, size = b"", 0
        while chunk := await response.content.readany():
            size += len(chunk)
            if len(first) < 4 * TEXT_MAX:
                first += chunk[: 4 * TEXT_MAX]
            if size >= self._answer_max:
                response.close()
                break
        if first and "Content-Encoding" in response.headers:
            return "(a compressed response, although the request does not accept compression)"
        return first[: self._answer_max].decode("utf-8", "replace")[:TEXT_MAX]

    def _check_target(self, url: str) -> tuple[URL, bool]:
        """Return the URL as sent, and whether its host is trusted by name. Raises InvalidInput."""
        target = check_url(url, self._policy)
        return URL(url, encoded=url.isascii()), target.trusted

    def _open_socket(self, info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        """Check the address once more, right before the connection."""
        family, kind, protocol, _, place = info
        if not _trusted.get():
            _check(str(place[0]), self._policy)
        return socket.socket(family, kind, protocol)

    def _problem(self, error: Exception, status: int | None) -> str:
        match error:
            case TimeoutError():
                what = "no response" if status is None else "no complete response"
                return f"{what} within {self.timeout_s:g} s"
            case aiohttp.ClientConnectorCertificateError(certificate_error=ssl.SSLCertVerificationError() as cause):
                return f"the receiver's certificate is not valid: {cause.verify_message}"
            case aiohttp.ClientConnectorCertificateError():
                return "the receiver's certificate is not valid"
            case aiohttp.ClientSSLError() | ssl.SSLError():
                return "the TLS handshake with the receiver failed"
            case aiohttp.ClientConnectorDNSError():
                return "the host name of the receiver cannot be resolved"
            case aiohttp.ClientConnectorError():
                return f"cannot connect to the receiver: {_reason(error.os_error)}"
            case aiohttp.ClientPayloadError():
                return "the response was cut off"
            case _NoAnswer():
                return f"no response within the first {BEFORE_ANSWER_MAX >> 10} KiB from the receiver"
            case aiohttp.ClientResponseError():
                return "the receiver's response is not valid HTTP"
            case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | ConnectionError() | EOFError():
                return "the receiver closed the connection " + ("without a response" if status is None else "early")
            case OSError():
                return f"the connection failed: {_reason(error)}"
            case _:
                return f"the attempt failed: {type(error).__name__}"


class _NoAnswer(aiohttp.ClientError):
    """A receiver sent too much data before its response."""


class _BoundedProtocol(ResponseHandler):
    """aiohttp's connection, closed if a receiver sends too much before its response."""

    _before = 0  # bytes received before the final response
    _answers = False

    def set_response_params(self, **options: Any) -> None:
        self._before, self._answers = 0, False  # the next response on this connection
        super().set_response_params(**options)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        self._answers = self._answers or data[0].code >= 200
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._answers:
            return
        self._before += len(data)
        if self._before > BEFORE_ANSWER_MAX and self.transport is not None:
            self.set_exception(_NoAnswer())
            self.transport.close()


class _Refused(OSError):
    """An address that is not allowed; an OSError, so that aiohttp treats it as a failed connection."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Resolver(AbstractResolver):
    """A resolver that returns the addresses of a name only if all are allowed, so that aiohttp connects to no other."""

    def __init__(self, policy: WebhookPolicy, lookup: Lookup | None) -> None:
        self._policy = policy
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")
        self._lookup = lookup or self._ask_the_system

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = await self._lookup(host)
        if not addresses:
            raise OSError("the name has no address")
        if not self._policy.trusts_name(host):
            for address in addresses:
                _check(address, self._policy)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask_the_system(self, host: str) -> list[str]:
        # Separate threads: those of the loop are few, and a name that hangs must not delay others.
        find = functools.partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, find)
        return list(dict.fromkeys(_text(place) for *_, place in found))


def _check(address: str, policy: WebhookPolicy) -> None:
    reason = why_refused(address, policy)
    if reason is not None:  # only the log has the address: the owner of the URL must not learn about this network
        log.warning("webhook.address_refused", address=address, reason=reason)
        raise _Refused(
            "the receiver's name resolves to an address that is not public; the operator may allow it with "
            "TWEEZER_WEBHOOK_ALLOW"
        )


def _text(place: tuple[object, ...]) -> str:
    """Return an address from getaddrinfo as text, with its scope id."""
    scoped = len(place) == 4 and place[3] and "%" not in str(place[0])
    return f"{place[0]}%{place[3]}" if scoped else str(place[0])


def _refusal(error: BaseException | None) -> _Refused | None:
    """Return the refusal that caused an error of aiohttp; None if another error did."""
    while error is not None and not isinstance(error, _Refused):
        error = error.__cause__
    return error


def _reason(error: OSError) -> str:
    return "unknown error" if error.errno is None else os.strerror(error.errno).lower()


def _milliseconds(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


def _seconds(retry_after: str) -> float | None:
    """Parse Retry-After: a number of seconds, or an HTTP date; None for anything else."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), _RETRY_AFTER_MAX_S)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max((moment - datetime.now(UTC)).total_seconds(), 0.0), _RETRY_AFTER_MAX_S)
