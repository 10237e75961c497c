"""The API as a real process, with a real Redis and a worker with the null adapter."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from redis.asyncio import Redis
from tests.support.redis_users import RedisServer, as_user
from tests.support.ticket_workers import running
from tests.support.waiting import until

from tweezer.adapters.registry import Binding, make_adapter
from tweezer.client import AsyncBatch, AsyncQueue, connect_async
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import create_key
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.model.ids import job_id
from tweezer.model.messages import JobSpec
from tweezer.store.acl import RedisUser
from tweezer.store.connection import Connect, Store
from tweezer.worker.config import WorkerConfig
from tweezer.worker.worker import TicketWorker

DEVICE = "NULL"
DEADLINE_S = (
    20.0  # the deadline for what should happen at once; shorter than a hold, so that no hold can be mistaken for it
)
HOLD_S = 20.0

SERVE = """
from tweezer import logs
from tweezer.api.app import run_api
from tweezer.settings import load

logs.configure("json", "DEBUG")
run_api(load())
"""


class Server:
    """An API process, the key of an operator, and what it has logged."""

    def __init__(self, process: Process, key: str) -> None:
        self.process = process
        self.headers = {"Authorization": f"Bearer {key}"}
        self.lines: list[dict[str, Any]] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            with contextlib.suppress(ValueError):
                self.lines.append(json.loads(line))

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    async def url(self) -> str:
        async def listening() -> bool:
            assert self.process.returncode is None, self.lines
            return bool(self.logged("api.listening"))

        await until(listening, within_s=DEADLINE_S)
        return str(self.logged("api.listening")[0]["url"])

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading


@contextlib.asynccontextmanager
async def serving(redis_url: str, folder: Path) -> AsyncIterator[Server]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TWEEZER_")}
    database = Database.open(OpenDatabase(url=f"sqlite:///{folder / 'ledger.db'}"), create=True)
    upgrade(database)
    with database.write() as connection:
        key = create_key(connection, name="test", role=Role.OPERATOR)
    database.close()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVE,
        env={
            **environment,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TWEEZER_REDIS_URL": as_user(redis_url, RedisUser.API),
            "TWEEZER_DATA_DIR": str(folder),
            "TWEEZER_API_PORT": "0",
            "TWEEZER_API_LONGPOLL_S": str(HOLD_S),
        },
        cwd=folder,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
    )
    server = Server(process, key.text)
    try:
        yield server
    finally:
        await server.end()


@contextlib.asynccontextmanager
async def working(redis_url: str) -> AsyncIterator[None]:
    worker = TicketWorker(
        Store.open(Connect(url=as_user(redis_url, RedisUser.WORKER))),
        DEVICE,
        make_adapter(Binding("null")),
        adapter_name="null",
        lanes=2,
        config=WorkerConfig(),
        version="0",
        handle_signals=False,
    )
    async with running(worker):
        yield


class Setting:
    """An API process with its Redis, worker and client."""

    def __init__(self, redis_url: str, server: Server, http: httpx.AsyncClient, queue: AsyncQueue) -> None:
        self.redis_url = redis_url
        self.server = server
        self.http = http
        self.queue = queue

    async def submit(self, *sleeps_s: float) -> AsyncBatch:
        jobs = [JobSpec(runs=10, variables={"sleep_s": sleep_s} if sleep_s else {}) for sleep_s in sleeps_s]
        return await self.queue.submit(None, jobs, device=DEVICE)

    async def subscribers(self, batch: AsyncBatch) -> int:
        channel = f"tweezer:news:{batch.id}"
        async with Redis.from_url(self.redis_url) as redis:
            ((_, number),) = await redis.pubsub_numsub(channel)
        return int(number)

    async def held(self, path: str, batch: AsyncBatch) -> asyncio.Task[httpx.Response]:
        """Send a request and wait until the API holds it, which it does once it has subscribed to the batch."""
        request = asyncio.create_task(self.http.get(path))

        async def listening() -> bool:
            assert not request.done()
            return await self.subscribers(batch) == 1

        await until(listening, within_s=DEADLINE_S)
        return request


@pytest.fixture
async def setting(real_redis_url: str, tmp_path: Path) -> AsyncIterator[Setting]:
    async with (
        serving(real_redis_url, tmp_path) as server,
        working(real_redis_url),
        connect_async(as_user(real_redis_url, RedisUser.PRODUCER)) as queue,
        httpx.AsyncClient(base_url=await server.url(), headers=server.headers, timeout=HOLD_S + 10) as http,
    ):

        async def announced() -> bool:
            return bool(await queue.devices())

        await until(announced, within_s=DEADLINE_S)
        yield Setting(real_redis_url, server, http, queue)


async def test_one_request_waits_for_the_end_of_a_batch(setting: Setting) -> None:
    batch = await setting.submit(0, 0.3, 0.5)
    answer = await asyncio.wait_for(setting.http.get(f"/api/v1/batches/{batch.id}/status"), DEADLINE_S - 5)
    state = answer.json()["data"]
    assert (state["status"], state["jobs_count_per_status"]["DONE"]) == ("DONE", 3)


async def test_one_request_waits_for_the_end_of_a_job(setting: Setting) -> None:
    batch = await setting.submit(0.3, 60)
    first = job_id(batch.id, 0)
    answer = await asyncio.wait_for(setting.http.get(f"/api/v1/jobs/{first}/status"), DEADLINE_S - 5)
    assert answer.json()["data"]["status"] == "DONE"
    link = (await setting.http.get(f"/api/v1/jobs/{first}/results_link")).json()["data"]["results_link"]
    assert link.startswith(str(setting.http.base_url))
    assert (await setting.http.get(link)).json()["counter"] == {"0": 10}
    await batch.cancel()


async def test_many_requests_for_one_batch_are_held_on_one_connection(setting: Setting) -> None:
    batch = await setting.submit(60)
    path = f"/api/v1/batches/{batch.id}/status"
    limits = httpx.Limits(max_connections=None)
    headers = setting.server.headers
    async with httpx.AsyncClient(
        base_url=setting.http.base_url, headers=headers, timeout=HOLD_S + 10, limits=limits
    ) as http:
        answering = asyncio.gather(*(http.get(path) for _ in range(200)))

        async def listening() -> bool:
            return await setting.subscribers(batch) > 0

        await until(listening, within_s=DEADLINE_S)
        assert await setting.subscribers(batch) == 1
        await batch.cancel()
        answers = await asyncio.wait_for(answering, DEADLINE_S - 5)
    assert {answer.json()["data"]["status"] for answer in answers} == {"CANCELED"}


async def test_a_held_request_ends_when_its_client_disconnects(setting: Setting) -> None:
    batch = await setting.submit(60)
    request = await setting.held(f"/api/v1/batches/{batch.id}/status", batch)
    request.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await request

    async def forgotten() -> bool:
        return await setting.subscribers(batch) == 0

    await until(forgotten, within_s=DEADLINE_S)
    await batch.cancel()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_that_stops_answers_held_requests(setting: Setting, how: signal.Signals) -> None:
    batch = await setting.submit(60)
    request = await setting.held(f"/api/v1/batches/{batch.id}/status", batch)
    setting.server.process.send_signal(how)
    answer = await asyncio.wait_for(request, DEADLINE_S - 5)
    assert (answer.status_code, answer.json()["data"]["status"]) == (200, "RUNNING")
    assert await asyncio.wait_for(setting.server.process.wait(), DEADLINE_S) == 0
    await setting.server.end()
    assert setting.server.logged("api.stopped")
    assert not [line for line in setting.server.lines if line["level"] in ("error", "critical")]
    await batch.cancel()


async def test_a_hold_survives_a_restart_of_redis(tmp_path: Path) -> None:
    with RedisServer() as redis:
        async with (
            serving(redis.url, tmp_path) as server,
            working(redis.url),
            connect_async(as_user(redis.url, RedisUser.PRODUCER)) as queue,
            httpx.AsyncClient(base_url=await server.url(), headers=server.headers, timeout=HOLD_S + 10) as http,
        ):
            setting = Setting(redis.url, server, http, queue)

            async def announced() -> bool:
                return bool(await queue.devices())

            await until(announced, within_s=DEADLINE_S)
            batch = await setting.submit(2.5)
            request = await setting.held(f"/api/v1/batches/{batch.id}/status", batch)
            await asyncio.to_thread(redis.restart)
            answer = await asyncio.wait_for(request, DEADLINE_S - 2)
            assert answer.status_code == 200, answer.text
            assert answer.json()["data"]["status"] == "DONE"


async def test_without_redis_every_route_reports_it_in_json_until_it_is_back(tmp_path: Path) -> None:
    with RedisServer() as redis:
        async with (
            serving(redis.url, tmp_path) as server,
            httpx.AsyncClient(base_url=await server.url(), headers=server.headers, timeout=HOLD_S + 10) as http,
        ):
            assert (await http.get("/ready")).status_code == 200
            redis.kill()
            identity = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"
            for path in (
                "/ready",
                "/api/v1/devices",
                f"/api/v2/batches/{identity}",
                f"/api/v2/jobs/{identity}",
                f"/api/v1/batches/{identity}/status",
                f"/api/v1/jobs/{identity}/status",
                f"/api/v1/jobs/{identity}/results_link",
                f"/api/v1/jobs/{identity}/results",
            ):
                answer = await http.get(path)
                assert (answer.status_code, answer.json()["code"]) == (503, "503"), path
                assert answer.headers["retry-after"]
            assert (await http.get("/health")).json()["data"] == {"health": "ok"}
            redis.start()
            assert (await http.get("/ready")).status_code == 200
            assert (await http.get(f"/api/v2/batches/{identity}")).status_code == 404


def _exchange(port: int, request: bytes, *, hang_up: bool) -> bytes:
    """Return everything that the server sends. With ``hang_up``, shut down our side after sending."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        connection.sendall(request)
        if hang_up:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # the server did not read the whole request
            while data := connection.recv(65536):
                answer += data
        return answer


HOSTILE = [
    (b"GET /health HTTP/1.1", b"Host: localhost", 200),
    (b"GET /health HTTP/1.0", b"Host: localhost", 200),
    (b"GET /health HTTP/1.1", b"Host: evil.example", 200),
    (b"GET /api/v1/devices HTTP/1.1", b"Host: localhost\r\nAuthorization: Bearer evil", 401),
    (b"GET /health HTTP/1.1", b"Host: localhost\r\nX-Forwarded-Host: evil.example", 200),
    (b"GET /" + b"a" * 30_000 + b" HTTP/1.1", b"Host: localhost", 414),
    (b"GET /api/v2/batches/" + b"9" * 30_000 + b" HTTP/1.1", b"Host: localhost", 414),
    (b"GET /api/v2/batches/%00%ff%0d%0a HTTP/1.1", b"Host: localhost", 422),
    (b"GET /health?" + b"&" * 30_000 + b" HTTP/1.1", b"Host: localhost", 414),
    (b"HEAD /health HTTP/1.1", b"Host: localhost", 405),
    (b"POST /health HTTP/1.1", b"Host: localhost\r\nContent-Length: 5", 405),
    (b"GET /health HTTP/1.1", b"Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade", 200),
]


async def test_hostile_requests_are_answered_in_json(real_redis_url: str, tmp_path: Path) -> None:
    async with serving(real_redis_url, tmp_path) as server:
        port = urlsplit(await server.url()).port
        assert port is not None
        for line, headers, status in HOSTILE:
            key = b"" if b"Bearer" in headers else f"\r\nAuthorization: {server.headers['Authorization']}".encode()
            end = b"" if b"Upgrade" in headers else b"\r\nConnection: close"
            request = line + b"\r\n" + headers + key + end + b"\r\n\r\n"
            answer = await asyncio.to_thread(_exchange, port, request, hang_up=not end)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert int(head.split(b" ")[1]) == status, (line[:80], headers)
            assert b"content-type: application/json" in head.lower()
            assert b"evil" not in answer
            if body:
                assert json.loads(body)["code"] == str(status)


NOT_HTTP = [
    b"\x16\x03\x01",
    b"GET\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    b"GET http://evil.example/api/v2/batches/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x00" * 9999,
]


async def test_bytes_that_are_not_http_are_refused_and_the_server_continues(
    real_redis_url: str, tmp_path: Path
) -> None:
    """Depending on uvicorn's parser, the parser, the header limits or the routes refuse them."""
    async with serving(real_redis_url, tmp_path) as server, httpx.AsyncClient(base_url=await server.url()) as http:
        port = http.base_url.port
        assert port is not None
        for junk in NOT_HTTP:
            answer = await asyncio.to_thread(_exchange, port, junk, hang_up=True)
            assert answer == b"" or answer.split(b" ")[1][:1] == b"4", junk[:80]
            assert b"evil" not in answer
            assert (await http.get("/health")).status_code == 200
