"""Redis with TLS: which certificates are accepted."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tweezer.cli.local.owned import free_port
from tweezer.cli.local.redis_server import RedisServer
from tweezer.model.errors import Unavailable
from tweezer.store.connection import Connect, Store

pytestmark = pytest.mark.redis


def write_certificate(folder: Path, *names: x509.GeneralName) -> tuple[Path, Path]:
    """Return a self-signed certificate for these names, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Redis of the tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate_file, key_file


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
