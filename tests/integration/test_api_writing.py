"""The routes that write, in a real process on real sockets: valid and hostile requests."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import json
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.support.processes import FILES_MAX, NULL, Process, Site
from tests.support.waiting import PATIENCE_S, until

from tweezer.api.access.routes import FORM_MAX
from tweezer.api.http import header_limits
from tweezer.api.http.header_limits import HEAD_MAX
from tweezer.api.http.limits import ResponseLimitsMiddleware
from tweezer.ledger.access.keys import create_key
from tweezer.ledger.access.projects import create_project
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.store.keys import Key

MIB = 1 << 20
BODY_MAX_KB = 512


class Setting:
    """A site with an API, and the client of a project."""

    def __init__(self, site: Site, api: Process, url: str, http: httpx.AsyncClient, key: str) -> None:
        self.site = site
        self.api = api
        self.http = http
        self.key = key
        self.address = ("127.0.0.1", httpx.URL(url).port or 0)

    async def data(self, method: str, path: str, content: Any = None) -> Any:
        response = await self.http.request(method, path, json=content)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    async def submit(self, number: int = 1, **parts: Any) -> Any:
        return await self.data("POST", "/api/v1/batches", body(number, **parts))

    async def ended(self, batch_id: str) -> Any:
        async def over() -> bool:
            status = await self.data("GET", f"/api/v1/batches/{batch_id}/status")
            return status["status"] not in ("PENDING", "RUNNING")

        await until(over, "the end of a batch")
        return await self.data("GET", f"/api/v2/batches/{batch_id}")

    def raw(self, *parts: bytes) -> bytes:
        """Send bytes to the API and read until it closes the connection."""
        with socket.create_connection(self.address, timeout=PATIENCE_S) as connection:
            with contextlib.suppress(OSError):  # the API may close it while we send; only the response matters
                for part in parts:
                    connection.sendall(part)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while more := connection.recv(65_536):
                    answer += more
        return answer

    async def refused(self, *parts: bytes) -> tuple[int, str]:
        """Return the status and the reason of the response to these bytes."""
        head, _, content = (await asyncio.to_thread(self.raw, *parts)).partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(content)["data"]["reason"]

    def head(self, *lines: str, path: str = "/api/v1/batches") -> bytes:
        all_lines = (f"POST {path} HTTP/1.1", "Host: h", f"Authorization: Bearer {self.key}", *lines, "", "")
        return "\r\n".join(all_lines).encode()

    async def written(self) -> int:
        """Return the number of entries in the stream of events: each write makes one."""
        redis: Any = self.site.store.redis
        return int(await redis.xlen(self.site.store.keys(Key.EVENTS)))


def body(number: int = 1, **parts: Any) -> dict[str, Any]:
    return {"sequence_builder": None, "device_type": NULL, "jobs": [{"runs": 10}] * number, "open": False} | parts


@pytest.fixture
def database_url(sqlite_template: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'ledger.db')}"


@pytest.fixture
def key(database_url: str) -> Iterator[str]:
    database = Database.open(OpenDatabase(url=database_url))
    with database.write() as connection:
        create_project(connection, "Ours", "ours")
        made = create_key(connection, name="test", project_id="ours").text
    yield made
    database.close()


@pytest.fixture
async def setting(real_redis_url: str, tmp_path: Path, database_url: str, key: str) -> AsyncIterator[Setting]:
    limits = {"api_body_max_kb": BODY_MAX_KB}
    async with Site(real_redis_url, tmp_path, database_url=database_url, data_dir=tmp_path, **limits) as site:
        await site.store.tickets.heartbeat(
            "w",
            NULL,
            ttl_s=600,
            about_device={"adapter": "null", "exclusive": 0, "max_runs": 1000, "checks_sequence": 0},
            about_worker={"lanes": 1, "started": 1, "host": "here", "version": "0", "record_version": 1},
        )
        api, url = await site.api()
        headers = {"Authorization": f"Bearer {key}", "User-Agent": "PasqalCloudSDK/0.24.0"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE_S) as http:
            yield Setting(site, api, url, http, key)
            assert (await http.get("/health")).status_code == 200  # the API survived all requests


async def test_a_batch_can_be_used_entirely_over_http(setting: Setting) -> None:
    await setting.site.workers(1, lanes=2)
    batch = await setting.submit(2, open=True, tags=["sweep"])
    path = f"/api/v2/batches/{batch['id']}"
    assert (await setting.data("POST", f"{path}/jobs", [{"runs": 5}]))["jobs_count"] == 3
    assert (await setting.data("PATCH", f"{path}/complete"))["open"] is False
    ended = await setting.ended(batch["id"])
    assert (ended["status"], [job["status"] for job in ended["jobs"]]) == ("DONE", ["DONE"] * 3)
    assert (await setting.http.patch(f"{path}/cancel")).status_code == 409


async def test_running_jobs_are_cancelled_over_http(setting: Setting) -> None:
    await setting.site.workers(1, lanes=2)
    batch = await setting.submit(jobs=[{"runs": 1, "variables": {"sleep_s": 60}}] * 3)
    await setting.site.running(setting.site.queue.batch(batch["id"]))
    job = await setting.data("PATCH", f"/api/v2/jobs/{batch['jobs'][0]['id']}/cancel")
    assert job["status"] in ("RUNNING", "CANCELED")
    await setting.data("PATCH", f"/api/v2/batches/{batch['id']}/cancel")
    ended = await setting.ended(batch["id"])
    assert (ended["status"], {job["status"] for job in ended["jobs"]}) == ("CANCELED", {"CANCELED"})


async def test_many_clients_at_once_repeat_one_call(setting: Setting) -> None:
    packed = gzip.compress(json.dumps(body(100)).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip", "Idempotency-Key": "once"}
    calls = [setting.http.post("/api/v1/batches", content=packed, headers=headers) for _ in range(40)]
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["data"]["id"] for answer in answers}) == 1


async def test_a_client_that_sends_too_much_gets_the_error_while_sending(setting: Setting) -> None:
    too_much = b" " * (8 * MIB)
    before = await setting.written()
    with_length = setting.head("Content-Type: application/json", f"Content-Length: {len(too_much)}")
    assert await setting.refused(with_length, too_much) == (413, "body_too_large")
    chunked = setting.head("Content-Type: application/json", "Transfer-Encoding: chunked")
    chunks = [b"10000\r\n" + b" " * 65_536 + b"\r\n"] * 128
    assert await setting.refused(chunked, *chunks, b"0\r\n\r\n") == (413, "body_too_large")
    strange = f"Authorization: Bearer {setting.key[:-4]}aaaa"
    head = f"POST /api/v1/batches HTTP/1.1\r\nHost: h\r\n{strange}\r\nContent-Length: 400000\r\n\r\n"
    assert await setting.refused(head.encode(), b" " * 400_000) == (401, "unauthorized")
    assert await setting.written() == before


async def test_a_malformed_request_gets_an_envelope_too(setting: Setting) -> None:
    for sent in (
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,  # TLS
        b"GET /health HTTP/1.1\r\nHost h\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n",
        setting.head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        setting.head("Content-Length: 5", "Content-Length: 6") + b"12345",
        setting.head("Content-Length: -5"),
        setting.head("Transfer-Encoding: chunked") + b"xyz\r\n",
    ):
        assert await setting.refused(sent) == (400, "not_http")


async def test_a_head_without_an_end_is_cut_off(setting: Setting) -> None:
    padding = b"x" * (4 * HEAD_MAX)
    for sent in (
        b"GET /health?" + padding,
        b"GET /health HTTP/1.1\r\nX: " + padding,
        b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * (len(padding) // 6),
    ):
        assert await setting.refused(sent) == (431, "head_too_large")


async def test_trailers_without_an_end_are_cut_off(setting: Setting) -> None:
    padding = b"x" * (4 * HEAD_MAX)
    head = b"POST /oauth/token HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
    form = b"Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    for sent in (
        b"0\r\nX: " + padding,
        b"0\r\n" + b"X: y\r\n" * (len(padding) // 6),
        b"1;" + padding,
    ):
        assert await setting.refused(head + form, b"1\r\nx\r\n", sent) == (431, "head_too_large")


async def test_trailers_do_not_become_headers(setting: Setting) -> None:
    content = json.dumps(body()).encode()
    head = b"POST /api/v1/batches HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(content), content)
    trailer = f"Authorization: Bearer {setting.key}\r\n\r\n".encode()
    assert await setting.refused(head, chunk + trailer) == (401, "unauthorized")


async def test_a_log_in_that_is_too_large_is_refused_before_it_is_read(setting: Setting) -> None:
    form = ("Content-Type: application/x-www-form-urlencoded", f"Content-Length: {16 * MIB}")
    head = "\r\n".join(["POST /oauth/token HTTP/1.1", "Host: h", *form, "", ""]).encode()
    assert await setting.refused(head) == (413, "body_too_large")
    chunked = b"POST /core-fast/oauth/token HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
    chunk = b"%x\r\n%b\r\n" % (FORM_MAX, b"x" * FORM_MAX)
    kind = f"{form[0]}\r\n\r\n".encode()
    assert await setting.refused(chunked + kind, chunk, b"1\r\nx\r\n") == (413, "body_too_large")


async def test_a_body_that_ends_early_writes_nothing(setting: Setting) -> None:
    content = json.dumps(body()).encode()
    before = await setting.written()
    for cut in (0, 1, len(content) - 1):
        head = setting.head("Content-Type: application/json", f"Content-Length: {len(content)}")
        with socket.create_connection(setting.address, timeout=PATIENCE_S) as connection:
            connection.sendall(head + content[:cut])
            connection.shutdown(socket.SHUT_WR)
            assert await asyncio.to_thread(connection.recv, 1) == b""
    assert await setting.written() == before


@pytest.mark.slow
async def test_compression_bombs_do_not_exhaust_memory(setting: Setting) -> None:
    about = psutil.Process(setting.api.pid)
    small = (await setting.http.get("/health"), about.memory_info().rss)[1]
    zeros, nested = gzip.compress(b"0" * (80 * MIB)), gzip.compress(b'{"jobs":' + b"[" * (60 * MIB))
    values = gzip.compress(b'{"jobs":[{"variables":{"x":[' + b"[]," * (20 * MIB) + b"0]}}]}")
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    before, most = await setting.written(), 0
    for bomb in (zeros, nested, values):
        sending = asyncio.gather(
            *(setting.http.post("/api/v1/batches", content=bomb, headers=headers) for _ in range(6))
        )
        while not sending.done():
            most = max(most, about.memory_info().rss)
            await asyncio.sleep(0.01)
        answers = [(answer.status_code, answer.json()["data"]["reason"]) for answer in await sending]
        assert set(answers) <= {
            (413, "unpacked_too_large"),
            (429, "too_many_bodies"),
            (400, "nested_too_deeply"),
            (400, "too_many_values"),
        }
    assert most - small < 700 * MIB
    assert await setting.written() == before
    assert (await setting.submit())["status"] == "PENDING"


@contextlib.asynccontextmanager
async def bare_server(
    app: ASGIApp, connected: header_limits.ConnectionLimits | None = None
) -> AsyncIterator[tuple[str, int]]:
    """Run a server in this process."""
    protocol: Any = functools.partial(header_limits.LimitedProtocol, connected=connected)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app, http=protocol, lifespan="off", log_config=None, access_log=False, timeout_keep_alive=1
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        yield listener.getsockname()
        server.should_exit = True
        await serving


async def test_only_the_head_of_a_request_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_limits, "HEAD_S", 0.2)
    request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(2 * header_limits.HEAD_S)
        await Response("late")(scope, receive, send)

    async with bare_server(late) as address:
        for sent, answers in (
            (b"", 0),
            (b"\r\n", 0),
            (request[:9], 0),
            (request, 1),
            (request * 2 + request[:9], 2),
        ):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(sent)
            received = await asyncio.wait_for(reader.read(), PATIENCE_S)  # until the server closes
            assert received.count(b"200 OK") == answers
            writer.close()


@pytest.mark.parametrize("head", [b"", b"Connection: close\r\n"])
@pytest.mark.parametrize("size", [16 * MIB, 8192])
async def test_a_response_that_is_not_read_is_abandoned(
    monkeypatch: pytest.MonkeyPatch, head: bytes, size: int
) -> None:
    monkeypatch.setattr(header_limits, "WRITE_S", 0.2)
    connected = header_limits.ConnectionLimits()
    held = []

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        held.append(scope[header_limits.CONNECTION].transport)
        held[-1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024)
        await Response(b"x" * size)(scope, receive, send)

    async with bare_server(ResponseLimitsMiddleware(large), connected) as address:
        with socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            silent.connect(address)
            silent.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n" + head + b"\r\n")
            await until(lambda: bool(held))
            most = 0

            def over() -> bool:
                nonlocal most
                most = max(most, 0 if held[0].is_closing() else held[0].get_write_buffer_size())
                return not connected._open

            await until(over)
            assert most <= 2 * 65_536, "the answer was not sent in pieces"


async def test_connections_of_one_address_are_limited_and_others_connect(
    real_redis_url: str, tmp_path: Path, database_url: str, key: str
) -> None:
    settings = {"database_url": database_url, "data_dir": tmp_path, "api_connections_per_address": 5}
    async with Site(real_redis_url, tmp_path, **settings) as site:
        api, url = await site.api()
        assert psutil.Process(api.pid).rlimit(psutil.RLIMIT_NOFILE) == (min(FILES_MAX, 65_536), FILES_MAX)
        address = ("127.0.0.1", httpx.URL(url).port or 0)
        request = b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"

        def ask(source: str) -> bytes:
            with (
                socket.create_connection(address, PATIENCE_S, source_address=(source, 0)) as connection,
                contextlib.suppress(ConnectionError),
            ):
                connection.sendall(request)
                return b"".join(iter(lambda: connection.recv(65_536), b""))
            return b""

        idle = [socket.create_connection(address) for _ in range(5)]
        try:
            refused = await asyncio.to_thread(ask, "127.0.0.1")
            assert refused == b"" or (b" 429 " in refused and b"too_many_connections" in refused)
            assert b" 200 " in await asyncio.to_thread(ask, "127.0.0.2")
            idle.pop().close()

            async def is_served() -> bool:
                return b" 200 " in await asyncio.to_thread(ask, "127.0.0.1")

            await until(is_served)
        finally:
            for connection in idle:
                connection.close()


async def test_a_request_over_the_rate_leaves_the_connection_open(
    real_redis_url: str, tmp_path: Path, database_url: str, key: str
) -> None:
    settings = {"database_url": database_url, "data_dir": tmp_path, "api_requests_per_s": 0.001}
    async with Site(real_redis_url, tmp_path, **settings) as site:
        _, url = await site.api()
        headers = {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE_S, limits=limits) as http:
            answers = [await http.post("/api/v1/batches", json=body()) for _ in range(4)]
            sockets = {answer.extensions["network_stream"].get_extra_info("client_addr") for answer in answers}
        assert [answer.status_code for answer in answers[1:]] == [429] * 3
        assert "connection" not in answers[-1].headers
        assert len(sockets) == 1
