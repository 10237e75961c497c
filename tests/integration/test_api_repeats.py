"""Repeated POSTs to real API processes, over connections that are cut at every stage."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import shutil
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.support.processes import NULL, Process, Site
from tests.support.waiting import PATIENCE_S, until

from tweezer.ledger.access.keys import create_key
from tweezer.ledger.access.projects import create_project
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.store.keys import Key

PATH = "/api/v1/batches"
LARGE = {"sequence_builder": " " * 4_000_000}  # the response contains it


def body(**parts: Any) -> dict[str, Any]:
    return {"sequence_builder": None, "device_type": NULL, "jobs": [{"runs": 10}], "open": True} | parts


class Service:
    """Two API processes with one Redis, and a key."""

    def __init__(self, site: Site, apis: list[tuple[Process, str]], key: str) -> None:
        self.site = site
        self.processes = [process for process, _ in apis]
        self.urls = [url for _, url in apis]
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    async def post(self, content: Any = None, *, at: int = 0, path: str = PATH) -> Any:
        """Return the data of a successful response; each call has its own connection."""
        async with httpx.AsyncClient(base_url=self.urls[at], headers=self.headers, timeout=PATIENCE_S) as http:
            response = await http.post(path, json=body() if content is None else content)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    async def written(self) -> int:
        """Return how many batches were submitted: each makes one entry in the stream of events."""
        redis: Any = self.site.store.redis
        return int(await redis.xlen(self.site.store.keys(Key.EVENTS)))

    async def settled(self) -> None:
        """Wait until every process has recorded the ends of its calls."""
        redis: Any = self.site.store.redis

        async def recorded() -> bool:
            seconds, micros = await redis.time()
            now = 1000 * int(seconds) + int(micros) // 1000
            found = [value for name in await redis.keys("tweezer:calls:*") for value in await redis.hvals(name)]
            return all(int(value.split()[0]) <= now for value in found)

        await until(recorded, "the record of all calls")

    @contextlib.asynccontextmanager
    async def redis_waiting(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Delay all writes to Redis until the block ends; yield a function that waits until a script is delayed."""
        redis: Any = self.site.store.redis
        await redis.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")

        async def waits() -> bool:
            return any("b" in it["flags"] and it["cmd"] == "evalsha" for it in await redis.client_list())

        yield lambda: until(waits, "a script")
        await redis.execute_command("CLIENT", "UNPAUSE")

    @contextlib.contextmanager
    def sending(
        self, content: Any = None, *, part: float = 1.0, at: int = 0, packed: bool = False
    ) -> Iterator[socket.socket]:
        """Open a connection and send a submit or a part of it, without reading the response."""
        data = json.dumps(body() if content is None else content, separators=(",", ":")).encode()
        data = gzip.compress(data) if packed else data
        headers = {"Host": "h", "Content-Length": str(len(data)), **self.headers}
        if packed:
            headers["Content-Encoding"] = "gzip"
        lines = "\r\n".join((f"POST {PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())))
        message = f"{lines}\r\n\r\n".encode() + data
        url = httpx.URL(self.urls[at])
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(PATIENCE_S)
            connection.connect((url.host, url.port))
            connection.sendall(message[: int(part * len(message))])
            yield connection


@pytest.fixture
async def service(real_redis_url: str, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Service]:
    url = f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'ledger.db')}"
    database = Database.open(OpenDatabase(url=url))
    with database.write() as connection:
        create_project(connection, "Ours", "ours")
        key = create_key(connection, name="test", project_id="ours").text
    database.close()
    async with Site(real_redis_url, tmp_path, database_url=url, data_dir=tmp_path, api_requests_per_s=2000) as site:
        await site.store.tickets.heartbeat(
            "w",
            NULL,
            ttl_s=600,
            about_device={"adapter": "null", "exclusive": 0, "max_runs": 1000, "checks_sequence": 0},
            about_worker={"lanes": 1, "started": 1, "host": "here", "version": "0", "record_version": 1},
        )
        yield Service(site, [await site.api(), await site.api()], key)


def close(connection: socket.socket) -> None:
    connection.close()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def shut_down(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


CUTS: list[Callable[[socket.socket], None]] = [close, reset, shut_down]


async def test_equal_submits_in_a_loop_make_one_batch_each(service: Service) -> None:
    async with httpx.AsyncClient(headers=service.headers, timeout=PATIENCE_S) as http:
        for url in service.urls * 20:
            assert (await http.post(url + PATH, json=body())).status_code == 200
    assert await service.written() == 40
    calls = [service.post(at=number % 2) for number in range(40)]
    assert len({batch["id"] for batch in await asyncio.gather(*calls)}) == 40
    await service.settled()
    assert await service.site.store.redis.keys("tweezer:calls:*") == []
    assert await service.site.store.redis.keys("tweezer:idempotency:*") == []


async def test_a_request_that_is_cut_before_its_end_writes_nothing(service: Service) -> None:
    for number, (cut, part) in enumerate(itertools.product(CUTS, (0.1, 0.9))):
        with service.sending(part=part) as connection:
            cut(connection)
        await service.post()
        assert await service.written() == number + 1


async def test_a_submit_whose_connection_is_cut_before_the_response_counts_once(service: Service) -> None:
    for number, (cut, at) in enumerate(itertools.product(CUTS, (0, 1))):
        async with service.redis_waiting() as reached:
            with service.sending(packed=True) as connection:
                await reached()
                cut(connection)
        await service.settled()
        again = await service.post(at=at)
        assert await service.written() == 2 * number + 1
        await until(lambda: sum(len(process.logged("call.repeated")) for process in service.processes) == number + 1)  # noqa: B023
        assert (await service.post(at=at))["id"] != again["id"]


async def test_a_submit_whose_connection_is_cut_during_the_response_counts_once(service: Service) -> None:
    for number, (cut, at) in enumerate(itertools.product(CUTS, (0, 1))):
        with service.sending(body(**LARGE)) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            cut(connection)
        await service.settled()
        again = await service.post(body(**LARGE), at=at)
        assert await service.written() == 2 * number + 1
        assert (await service.post(body(**LARGE), at=at))["id"] != again["id"]


@pytest.mark.slow  # waits until a command to Redis times out
async def test_repetitions_during_a_stall_of_redis_are_one_batch(service: Service) -> None:
    redis: Any = service.site.store.redis
    for at in (0, 1):
        await service.post(body(name="before"), at=at)
    server = psutil.Process((await redis.info("server"))["process_id"])
    server.suspend()
    try:
        async with httpx.AsyncClient(headers=service.headers, timeout=PATIENCE_S) as http:
            attempts = [await http.post(url + PATH, json=body()) for url in service.urls]
        retry = asyncio.create_task(service.post())
        await asyncio.sleep(0.1)  # it waits for Redis, which cannot report that
    finally:
        server.resume()
    await retry
    assert [attempt.status_code for attempt in attempts] == [503, 503]
    assert await service.written() == 3


async def test_a_response_that_was_read_slowly_counts_as_received(service: Service) -> None:
    with service.sending(body(**LARGE)) as connection:
        head = b""
        while not head.endswith(b"}}"):
            head = head[-2:] + connection.recv(65_536)
    await service.settled()
    await service.post(body(**LARGE))
    assert await service.written() == 2


async def test_a_submit_counts_once_if_its_process_dies_while_it_responds(service: Service) -> None:
    large = body(**LARGE)
    with service.sending(large):

        async def written() -> bool:
            return await service.written() == 1

        await until(written)
        service.processes[0].kill()
    await service.settled()
    await service.post(large, at=1)
    assert await service.written() == 1
    await service.post(large, at=1)
    assert await service.written() == 2
