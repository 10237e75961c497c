"""What clients of machines and servers have in common: connections that are looked at before the first byte is sent."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import aiohttp

from tweezer.model.errors import InvalidInput

FAILURES = (aiohttp.ClientError, TimeoutError, OSError)
"""How a request without an answer ends."""


class LastLook(aiohttp.TCPConnector):
    """A connector for one request, that calls back when the connection stands and nothing has been sent on it.

    What ``look`` raises is raised by the request.
    """

    def __init__(self, look: Callable[[], None], tls: ssl.SSLContext | bool) -> None:
        super().__init__(ssl=tls, force_close=True)
        self._look = look

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[aiohttp.tracing.Trace], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        connection = await super().connect(req, traces, timeout)
        try:
            self._look()
        except BaseException:
            connection.close()
            raise
        return connection


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
