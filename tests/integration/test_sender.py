"""One delivery attempt: all kinds of real receivers, and no connection to a forbidden address."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import email.utils
import gzip
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tweezer import __version__
from tweezer.model.addresses import PUBLIC_ONLY, Target, WebhookPolicy
from tweezer.webhooks import sender as sender_module
from tweezer.webhooks.sender import Sender, SendResult

FAR = f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"
BODY = b'{"type":"ping","timestamp":"2026-05-01T10:00:00Z","data":{}}'
HOST = "hooks.example.org"
HERE = WebhookPolicy.parse("127.0.0.1", "443")
LAB = WebhookPolicy.parse(HOST, "443")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Receiver:
    """A local server that keeps its requests."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []

    def url(self, path: str = "/", *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


@contextlib.asynccontextmanager
async def receiving(
    handle: Handler | None = None, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, port: int = 0
) -> AsyncIterator[Receiver]:
    """A receiver that answers 204, or with ``handle``."""
    receiver = Receiver()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request, web.BaseRequest)
        receiver.requests.append(request)  # type: ignore[arg-type]
        receiver.bodies.append(await request.read())
        return web.Response(status=204) if handle is None else await handle(request)  # type: ignore[arg-type]

    runner = web.ServerRunner(web.Server(answer, access_log=None), handle_signals=False, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=tls)
    await site.start()
    receiver.port = runner.addresses[0][1]
    yield receiver
    await runner.cleanup()


@contextlib.asynccontextmanager
async def listening(
    speak: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Receiver]:
    """A server that calls ``speak`` once it has read a request."""
    receiver = Receiver()
    served: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(BODY))
            await speak(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    yield receiver
    await asyncio.gather(*served)
    server.close()
    await server.wait_closed()


@contextlib.asynccontextmanager
async def never_called(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """The port of a listener that must get no connection."""
    seen: list[object] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(serve, host, port)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    assert not seen


async def once(url: str, policy: WebhookPolicy = HERE, *, timeout_s: float = 20, **options: object) -> SendResult:
    async with Sender(policy, timeout_s=timeout_s, **options) as sender:  # type: ignore[arg-type]
        return await sender.post(url, BODY, {"webhook-id": "evt_1"})


def resolver(*answers: list[str]) -> Callable[[str], Awaitable[list[str]]]:
    """A resolver that returns one answer after the other, and then always the last one."""
    left = list(answers)

    async def lookup(name: str) -> list[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return lookup


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the TLS contexts of a receiver named HOST, and of a client that trusts its authority."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "receiver.pem"
    file.write_bytes(private + pem)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cadata=pem.decode())


# Responses of receivers.


async def test_a_webhook_arrives_unchanged() -> None:
    async with receiving() as receiver:
        answer = await once(receiver.url("/a%2Fb?token=%2Fx+y&z"))
        (request,) = receiver.requests
        assert answer == SendResult(204, answer.milliseconds)
        assert answer.is_success
        assert request.method == "POST"
        assert request.raw_path == "/a%2Fb?token=%2Fx+y&z"
        assert receiver.bodies == [BODY]
        assert request.headers["webhook-id"] == "evt_1"
        assert request.headers["User-Agent"] == f"Tweezer/{__version__}"
        assert request.headers["Content-Type"] == "application/json"
        assert request.headers["Host"] == f"127.0.0.1:{receiver.port}"


@pytest.mark.parametrize("status", [200, 202, 299, 400, 404, 410, 500, 503])
async def test_the_status_of_a_response_decides(status: int) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=status, text="text ä")

    async with receiving(handle) as receiver:
        answer = await once(receiver.url())
    assert (answer.status, answer.is_success, answer.error, answer.text) == (status, status < 300, None, "text ä")


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        (email.utils.format_datetime(dt.datetime(1999, 1, 1, tzinfo=dt.UTC), usegmt=True), 0, 0),
        ("9" * 50, 604_800, 604_800),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 604_800, 604_800),
    ],
)
async def test_retry_after_of_a_receiver_is_read(header: str, least: float, most: float) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": header})

    async with receiving(handle) as receiver:
        answer = await once(receiver.url())
    assert answer.retry_after_s is not None
    assert least <= answer.retry_after_s <= most
    assert not answer.is_success


async def test_retry_after_may_be_a_date() -> None:
    async def handle(request: web.Request) -> web.Response:
        later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=100)
        return web.Response(status=503, headers={"Retry-After": email.utils.format_datetime(later, usegmt=True)})

    async with receiving(handle) as receiver:
        answer = await once(receiver.url())
    assert answer.retry_after_s is not None
    assert 50 < answer.retry_after_s <= 100


@pytest.mark.parametrize("header", ["soon", "-5", "1.5", "٣", "Fri, 99 Foo 2020", "", FAR])
async def test_an_invalid_retry_after_is_ignored(header: str) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": header})

    async with receiving(handle) as receiver:
        assert (await once(receiver.url())).retry_after_s is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_not_followed(status: int) -> None:
    async with never_called() as port:

        async def handle(request: web.Request) -> web.Response:
            return web.Response(status=status, headers={"Location": f"http://127.0.0.1:{port}/admin"})

        async with receiving(handle) as receiver:
            answer = await once(receiver.url())
    assert answer.status == status
    assert not answer.is_success
    assert answer.error is not None
    assert "redirects are not followed" in answer.error


async def test_no_cookie_is_kept() -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(headers={"Set-Cookie": "session=x; Path=/"})

    async with receiving(handle) as receiver, Sender(HERE) as sender:
        for _ in range(2):
            await sender.post(receiver.url(), BODY, {})
        assert all("Cookie" not in request.headers for request in receiver.requests)


async def test_a_connection_is_reused() -> None:
    async with receiving() as receiver, Sender(HERE) as sender:
        for _ in range(3):
            assert (await sender.post(receiver.url(), BODY, {})).is_success
        assert len({id(request.transport) for request in receiver.requests}) == 1


async def test_no_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with never_called() as port:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        async with receiving() as receiver:
            assert (await once(receiver.url())).is_success


# Receivers that do not respond properly.


async def test_a_receiver_that_hangs_times_out() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(speak) as receiver:
        answer = await once(receiver.url(), timeout_s=0.2)
    assert (answer.status, answer.error) == (None, "no response within 0.2 s")
    assert answer.milliseconds >= 190


async def test_an_endless_slow_response_times_out() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")
        await reader.read()

    async with listening(speak) as receiver:
        answer = await once(receiver.url(), timeout_s=0.2)
    assert (answer.status, answer.is_success, answer.error) == (200, False, "no complete response within 0.2 s")


@pytest.mark.parametrize(
    "response", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun"]
)
async def test_a_receiver_that_resets_the_connection_has_failed(response: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response)
        await writer.drain()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with listening(speak) as receiver:
        answer = await once(receiver.url())
    assert not answer.is_success
    assert answer.error in ("the receiver closed the connection without a response", "the response was cut off")


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\njunk",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"\0" * 1000,
    ],
)
async def test_an_invalid_response_is_reported_in_a_sentence(response: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response)
        await writer.drain()

    async with listening(speak) as receiver:
        answer = await once(receiver.url())
    assert not answer.is_success or answer.text.startswith("(")
    assert answer.error is None or len(answer.error) < 100


@pytest.mark.parametrize(
    "response", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", b"\r\n"]
)
async def test_a_receiver_that_never_begins_to_answer_is_cut(response: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(response * 1000)
            await writer.drain()

    async with listening(speak) as receiver:
        answer = await once(receiver.url(), timeout_s=120)
    assert (answer.status, answer.error) == (None, "no response within the first 64 KiB from the receiver")


async def test_informational_responses_are_skipped_and_bounded() -> None:
    async def handle(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 1000)  # 40 KB
        return web.Response(status=204)

    async with receiving(handle) as receiver, Sender(HERE, limit=1) as sender:
        answers = [await sender.post(receiver.url(), BODY, {}) for _ in range(3)]
    assert [answer.status for answer in answers] == [204] * 3


async def test_a_response_that_never_ends_is_cut_off() -> None:
    sent = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"x" * 65_536)
                sent += 65_536
        return response

    async with receiving(handle) as receiver:
        answer = await once(receiver.url(), answer_max=10_000)
    assert answer.is_success
    assert answer.text == "x" * 500
    assert sent < 16 << 20  # the kernel's buffers between both


async def test_a_compression_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(b"\0" * (64 << 20))

    async def handle(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    async with receiving(handle) as receiver:
        answer = await once(receiver.url())
    assert answer.is_success
    assert answer.text == "(a compressed response, although the request does not accept compression)"


async def test_a_refused_connection_is_reported() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answer = await once(f"http://127.0.0.1:{port}/?token=T0P")
    assert answer == SendResult(None, answer.milliseconds, "cannot connect to the receiver: connection refused")


async def test_a_name_without_an_address_is_reported() -> None:
    async def lookup(name: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    answer = await once(f"https://{HOST}/", lookup=lookup)
    assert answer == SendResult(None, answer.milliseconds, "the host name of the receiver cannot be resolved")
    empty = await once(f"https://{HOST}/", lookup=resolver([]))
    assert empty.error == answer.error


async def test_the_systems_resolver_finds_this_machine() -> None:
    async with receiving() as receiver:
        policy = WebhookPolicy.parse("localhost", "443")
        assert (await once(receiver.url(host="localhost"), policy)).is_success
        assert "the local machine" in ((await once(receiver.url(host="localhost"))).error or "")


async def test_closing_ends_attempts_with_an_error() -> None:
    reached = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await reader.read()

    async with listening(speak) as receiver:
        sender = Sender(HERE)
        attempt = asyncio.create_task(sender.post(receiver.url(), BODY, {}))
        await reached.wait()
        await sender.close()
        assert not (await attempt).is_success


# TLS.

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


async def test_the_checked_address_is_called_by_its_name(authority: Contexts) -> None:
    server, client = authority
    names: list[str | None] = []
    server.sni_callback = lambda _, name, __: names.append(name)
    async with receiving(tls=server) as receiver:
        answer = await once(
            receiver.url(host=HOST, scheme="https"), LAB, lookup=resolver(["127.0.0.1"]), ssl_context=client
        )
        assert answer.is_success, answer
        assert names == [HOST]
        assert receiver.requests[0].headers["Host"] == f"{HOST}:{receiver.port}"


async def test_an_untrusted_certificate_is_refused(authority: Contexts) -> None:
    async with receiving(tls=authority[0]) as receiver:
        answer = await once(receiver.url(host=HOST, scheme="https"), LAB, lookup=resolver(["127.0.0.1"]))
        assert not receiver.requests
    assert answer.error is not None
    assert answer.error.startswith("the receiver's certificate is not valid: self")


async def test_a_certificate_of_another_name_is_refused(authority: Contexts) -> None:
    async with receiving(tls=authority[0]) as receiver:
        answer = await once(receiver.url(scheme="https"), ssl_context=authority[1])
        assert not receiver.requests
    assert answer.error is not None
    assert "certificate is not valid" in answer.error


async def test_a_receiver_without_tls_is_reported() -> None:
    async with receiving() as receiver:
        answer = await once(receiver.url(scheme="https"))
    assert answer.error == "the TLS handshake with the receiver failed"


# Forbidden addresses.


@pytest.mark.parametrize("url", ["http://127.0.0.1:{}/", "https://127.0.0.1:{}/", "https://[::ffff:7f00:1]:{}/"])
async def test_a_refused_address_is_not_connected_to(url: str) -> None:
    async with never_called() as port:
        policy = WebhookPolicy.parse("", f"443,{port}")
        answer = await once(url.format(port) + "?token=T0P", policy)
    assert answer.refused
    assert not answer.is_success
    assert answer.error
    assert "T0P" not in answer.error


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["2606:4700::1111", "::1"],
        ["::ffff:127.0.0.1"],
        ["127.0.0.1%1"],
        ["2130706433"],
        ["localhost"],
    ],
)
async def test_a_name_is_refused_unless_every_address_is_allowed(addresses: list[str]) -> None:
    async with never_called() as port:
        policy = WebhookPolicy.parse("", str(port))
        answer = await once(f"https://{HOST}:{port}/", policy, lookup=resolver(addresses))
    assert answer.refused
    assert answer.error is not None
    assert "resolves to an address that is not public" in answer.error
    assert not any(address in answer.error for address in addresses), "names within a network must not be revealed"


async def test_a_rebound_name_is_connected_at_the_checked_address(authority: Contexts) -> None:
    """127.0.0.2 represents a public address, 127.0.0.1 one that must not be reached."""
    server, client = authority
    async with receiving(host="127.0.0.2", tls=server) as receiver, never_called(port=receiver.port):
        policy = WebhookPolicy.parse("127.0.0.2", str(receiver.port))
        url = receiver.url(host=HOST, scheme="https")
        lookup = resolver(["127.0.0.2"], ["127.0.0.1"])
        async with Sender(policy, lookup=lookup, ssl_context=client) as sender:
            assert (await sender.post(url, BODY, {})).is_success
            assert (await sender.post(url, BODY, {})).is_success  # on the existing connection
            connector = sender._session.connector
            assert isinstance(connector, aiohttp.TCPConnector)
            connector.clear_dns_cache()
            receiver.requests[-1].transport.abort()  # type: ignore[union-attr]
            answers = [await sender.post(url, BODY, {}) for _ in range(2)]
            assert answers[-1].refused, answers
        assert len(receiver.requests) == 2


async def test_concurrent_lookups_of_a_forbidden_name_are_all_refused() -> None:
    asked = 0

    async def lookup(name: str) -> list[str]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return ["10.0.0.1"]

    async with Sender(PUBLIC_ONLY, lookup=lookup) as sender:
        answers = await asyncio.gather(*(sender.post(f"https://{HOST}/", BODY, {}) for _ in range(8)))
    assert all(answer.refused for answer in answers)
    assert asked < 8


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{}/", "http://2130706433:{}/", "http://0x7f.1:{}/", "http://[::ffff:7f00:1]:{}/"]
)
async def test_an_address_that_passes_the_first_check_is_stopped_before_the_connection(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(url: str, policy: WebhookPolicy) -> Target:
        return Target("", 0, trusted=False)

    monkeypatch.setattr(sender_module, "check_url", blind)
    async with never_called() as port:
        answer = await once(url.format(port), PUBLIC_ONLY)
    assert not answer.is_success
    assert answer.status is None


async def test_a_trusted_name_does_not_open_its_address_to_others() -> None:
    async with never_called() as port:
        policy = WebhookPolicy.parse("hooks.lab", str(port))
        async with Sender(policy, lookup=resolver(["127.0.0.1"])) as sender:
            await sender.post(f"https://hooks.lab:{port - 1}/", BODY, {})
            assert (await sender.post(f"https://{HOST}:{port}/", BODY, {})).refused
            assert (await sender.post(f"https://127.0.0.1:{port}/", BODY, {})).refused


async def test_nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with receiving() as receiver:
        await once(receiver.url("/path?token=T0P"))
        await once(receiver.url("/path?token=T0P"), PUBLIC_ONLY)
    assert "T0P" not in caplog.text
    assert '"data"' not in caplog.text
