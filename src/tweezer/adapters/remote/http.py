"""What clients of machines and servers have in common: connections that are looked at before the first byte is sent,
and reads that are tried again."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp

from tweezer.duties import Backoff
from tweezer.model.errors import InvalidInput, TweezerError

A = TypeVar("A")
T = TypeVar("T")

FAILURES = (aiohttp.ClientError, TimeoutError, OSError)
"""How a request without an answer ends."""

UNDECIDED = (408, 499)
"""Refusals that say nothing: of proxies that gave up while the request may have been on its way."""

TOO_LARGE = 413
"""A refusal that is about the request itself, whoever answers."""

_RETRIES = Backoff(base_s=0.1, cap_s=2.0)


class LastLook(aiohttp.TCPConnector):
    """A connector for one request, that calls back when the connection stands and nothing has been sent on it.

    What ``look`` raises is raised by the request. passed: whether it raised nothing, so that the request may be sent.
    """

    def __init__(self, look: Callable[[], None] | None, tls: ssl.SSLContext | bool) -> None:
        super().__init__(ssl=tls, force_close=True)
        self._look = look
        self.passed = False

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[aiohttp.tracing.Trace], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        connection = await super().connect(req, traces, timeout)
        try:
            if self._look is not None:
                self._look()
        except BaseException:
            connection.close()
            raise
        self.passed = True
        return connection


async def repeated(
    ask: Callable[[], Awaitable[A]],
    read: Callable[[A], T],
    *,
    retry_s: float,
    unreachable: type[TweezerError],
    told: Callable[[int, str], None],
) -> T:
    """What is answered, asked again for ``retry_s`` while the error says ``unreachable``; told: of each try that was in
    vain but the last, with its number and what was wrong."""
    deadline = time.monotonic() + retry_s
    attempt = 0
    while True:
        attempt += 1
        try:
            return read(await ask())
        except unreachable as error:
            pause_s = _RETRIES.delay_s(attempt)
            if time.monotonic() + pause_s > deadline:
                raise
            told(attempt, error.message)
        await asyncio.sleep(pause_s)


def tls_of(*, verify: bool, ca_file: str | None) -> ssl.SSLContext | bool:
    """How certificates are checked, as aiohttp wants it. Raises InvalidInput naming ``tls_ca_file``."""
    if ca_file is None:
        return verify
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput("tls_ca_file", f"{ca_file} cannot be used: {error}") from error


async def read_at_most(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, unpacked. Raises aiohttp's ClientPayloadError for a longer one."""
    parts = bytearray()
    async for part in response.content.iter_any():
        parts += part
        if len(parts) > most:
            raise aiohttp.ClientPayloadError(f"the answer is longer than {most >> 20} MiB")
    return bytes(parts)


def brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
