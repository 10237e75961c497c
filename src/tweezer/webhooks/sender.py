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
"""The addresses of a name; raises OSError when there are none."""

TEXT_MAX = 500

BEFORE_ANSWER_MAX = 65_536
"""Bytes that a receiver may send before its answer has begun: informational answers (1xx), empty lines."""

_LOOKUPS = 32  # at a time: each waits in a thread, for seconds where a name's servers are dead
_LOOKUP_GOOD_S = 10
_KEEPALIVE_S = 4.0  # less than the five seconds after which uvicorn and Node close, so that both do not meet
_RETRY_AFTER_MAX_S = 7 * 86_400.0
_HEADERS = {
    "User-Agent": f"Tweezer/{importlib.metadata.version('tweezer')}",
    "Content-Type": "application/json",
    "Accept": "*/*",
    "Accept-Encoding": "identity",  # nothing is unpacked, so nothing can grow
}

# Whether the host of this task's attempt is one that the operator allows by name.
_trusted: contextvars.ContextVar[bool] = contextvars.ContextVar("trusted", default=False)


class SendResult(msgspec.Struct, frozen=True):
    """The result of one attempt.

    status: None when there was no answer. error: what went wrong, in a sentence that holds neither the URL nor a
    secret; None when there was a whole answer, whatever its status. text: the first characters of the answer's body.
    retry_after_s: how long the receiver asks us to wait. refused: webhooks may not go there; nothing was connected to.
    """

    status: int | None
    milliseconds: int
    error: str | None = None
    text: str = ""
    retry_after_s: float | None = None
    refused: bool = False

    @property
    def is_success(self) -> bool:
        """Whether the receiver has it: 2xx, and the response ended or was cut off by us."""
        return self.error is None and self.status is not None and 200 <= self.status < 300


CONNECTIONS_MAX = 256
"""Attempts of one process at once."""


class Sender:
    """Makes attempts, with connections that are kept for the next; to be made and used on one event loop.

    timeout_s: from the connection to the end of the answer. answer_max: bytes of it that are read. limit: attempts at
    once, others wait. lookup: instead of the system's resolver. ssl_context: instead of the system's authorities.
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
        self._target = functools.lru_cache(maxsize=4096)(self._judged)
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
        connector._factory = cast(Any, factory)  # noqa: SLF001  # aiohttp has no such limit, and no public place for it
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=_HEADERS,
            timeout=aiohttp.ClientTimeout(total=timeout_s, ceil_threshold=math.inf),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> SendResult:
        """Make one attempt. Nothing that a receiver does is raised: it is in the answer."""
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
            "redirects are not followed: give the URL to which it leads" if 300 <= status < 400 else None,
            text,
            None if retry_after is None else _seconds(retry_after),
        )

    async def close(self) -> None:
        """Close the connections. Attempts that are under way end with an error."""
        await self._session.close()
        await self._resolver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _read(self, response: aiohttp.ClientResponse) -> str:
        """Return the first characters of the body, of which no more is read than is allowed."""
        first, size = b"", 0
        while chunk := await response.content.readany():
            size += len(chunk)
            if len(first) < 4 * TEXT_MAX:
                first += chunk[: 4 * TEXT_MAX]
            if size >= self._answer_max:
                response.close()
                break
        if first and "Content-Encoding" in response.headers:
            return "(an answer that is compressed, which was not asked for)"
        return first[: self._answer_max].decode("utf-8", "replace")[:TEXT_MAX]

    def _judged(self, url: str) -> tuple[URL, bool]:
        """Return the URL as it is sent, and whether its host is trusted by name. Raises InvalidInput."""
        target = check_url(url, self._policy)
        return URL(url, encoded=url.isascii()), target.trusted

    def _open_socket(self, info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        """Check the address once more, right before the connection, wherever it came from."""
        family, kind, protocol, _, place = info
        if not _trusted.get():
            _check(str(place[0]), self._policy)
        return socket.socket(family, kind, protocol)

    def _problem(self, error: Exception, status: int | None) -> str:
        match error:
            case TimeoutError():
                what = "no answer came" if status is None else "the answer did not end"
                return f"{what} within {self.timeout_s:g} s"
            case aiohttp.ClientConnectorCertificateError(certificate_error=ssl.SSLCertVerificationError() as cause):
                return f"the receiver's certificate is not valid: {cause.verify_message}"
            case aiohttp.ClientConnectorCertificateError():
                return "the receiver's certificate is not valid"
            case aiohttp.ClientSSLError() | ssl.SSLError():
                return "TLS could not be agreed on with the receiver"
            case aiohttp.ClientConnectorDNSError():
                return "the name of the receiver cannot be resolved"
            case aiohttp.ClientConnectorError():
                return f"no connection to the receiver: {_reason(error.os_error)}"
            case aiohttp.ClientPayloadError():
                return "the answer broke off"
            case _NoAnswer():
                return f"no answer came within {BEFORE_ANSWER_MAX >> 10} KiB"
            case aiohttp.ClientResponseError():
                return "what the receiver answered is no HTTP"
            case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | ConnectionError() | EOFError():
                return "the receiver closed the connection " + ("without an answer" if status is None else "early")
            case OSError():
                return f"the connection failed: {_reason(error)}"
            case _:
                return f"the attempt failed: {type(error).__name__}"


class _NoAnswer(aiohttp.ClientError):
    """A receiver sent a lot, and no answer."""


class _BoundedProtocol(ResponseHandler):
    """aiohttp's connection, which ends when a receiver sends much before its answer."""

    _before = 0  # bytes that came before the answer has begun
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
    """An address that nothing may connect to; an OSError, so that it comes through aiohttp as any failed connection."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Resolver(AbstractResolver):
    """Asks for a name once and hands on its addresses if each of them is fine, so that these are connected to."""

    def __init__(self, policy: WebhookPolicy, lookup: Lookup | None) -> None:
        self._policy = policy
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")
        self._lookup = lookup or self._ask_the_system

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = await self._lookup(host)
        if not addresses:
            raise OSError("there is no address")
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
        # Threads of our own: those of the loop are few, and one name that hangs must not hold up the others.
        find = functools.partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, find)
        return list(dict.fromkeys(_text(place) for *_, place in found))


def _check(address: str, policy: WebhookPolicy) -> None:
    reason = why_refused(address, policy)
    if reason is not None:  # the log says it; whoever named the URL must not learn what names mean in this network
        log.warning("webhook.address_refused", address=address, reason=reason)
        raise _Refused("the receiver's name leads to an address that is not public; the operator may allow it")


def _text(place: tuple[object, ...]) -> str:
    """Return an address of getaddrinfo, with its scope, which is kept apart."""
    scoped = len(place) == 4 and place[3] and "%" not in str(place[0])
    return f"{place[0]}%{place[3]}" if scoped else str(place[0])


def _refusal(error: BaseException | None) -> _Refused | None:
    """Return the refusal behind an error of aiohttp's."""
    while error is not None and not isinstance(error, _Refused):
        error = error.__cause__
    return error


def _reason(error: OSError) -> str:
    return "it failed" if error.errno is None else os.strerror(error.errno).lower()


def _milliseconds(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


def _seconds(retry_after: str) -> float | None:
    """Of the header: a number of seconds, or a date of HTTP; None for anything else."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), _RETRY_AFTER_MAX_S)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max((moment - datetime.now(UTC)).total_seconds(), 0.0), _RETRY_AFTER_MAX_S)
