"""Redis with TLS: which certificates are accepted."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from tests.support.certificates import write_certificate

from tweezer.cli.local.owned import free_port
from tweezer.cli.local.redis_server import RedisServer
from tweezer.model.errors import Unavailable
from tweezer.store.connection import Connect, Store

pytestmark = pytest.mark.redis


@pytest.fixture
def serve(redis_server: RedisServer, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start a Redis whose certificate is for these names; return the URL of its TLS port."""
    servers: list[RedisServer] = []

    def start(*names: x509.GeneralName) -> str:
        certificate, key = write_certificate(tmp_path, *names)
        port = free_port()
        options = {
            "tls-port": str(port),
            "tls-cert-file": str(certificate),
            "tls-key-file": str(key),
            "tls-auth-clients": "no",
        }
        servers.append(RedisServer(tmp_path / "data", kind="redis", options=options).start())
        return f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"

    yield start
    for server in servers:
        server.stop()


async def ping(url: str) -> None:
    async with Store.open(Connect(url)) as store:
        await store.reader.ping()


async def test_a_certificate_for_the_host_of_the_url_is_accepted(serve: Callable[..., str]) -> None:
    await ping(serve(x509.IPAddress(ipaddress.ip_address("127.0.0.1"))))


async def test_a_certificate_for_another_host_is_refused_unless_the_url_allows_it(
    serve: Callable[..., str],
) -> None:
    url = serve(x509.DNSName("redis.example.org"))
    with pytest.raises(Unavailable, match=r"certificate is not valid for '127\.0\.0\.1'"):
        await ping(url)
    await ping(f"{url}&ssl_check_hostname=false")
