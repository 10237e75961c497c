"""High availability: Sentinels promote the replica, and all processes follow."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio.sentinel import SentinelConnectionPool
from tests.support.queues import store_of
from tests.support.waiting import until

from tweezer import AsyncQueue, BatchStatus, InvalidInput, Job, JobStatus, connect_async
from tweezer.cli.local.owned import free_port
from tweezer.cli.local.redis_server import RedisServer, find_server
from tweezer.processes.worker import make_worker
from tweezer.settings import load
from tweezer.store.connection import SentinelUrl

pytestmark = pytest.mark.redis

SERVICE = "tweezers"


def answers(port: int) -> None:
    """Return once a process listens on the port."""
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"no process listens on port {port}"
            time.sleep(0.02)
        else:
            return


@pytest.fixture
def primary(redis_server: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "primary", kind="redis", options={"repl-diskless-sync-delay": "0"}) as server:
        yield server


@pytest.fixture
def replica(primary: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    options = {"replicaof": f"127.0.0.1 {primary.port}"}
    with RedisServer(tmp_path / "replica", kind="redis", options=options) as server:
        yield server


@pytest.fixture
def sentinel_url(primary: RedisServer, replica: RedisServer, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    settings = tmp_path / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor {SERVICE} 127.0.0.1 {primary.port} 1\n"
        f"sentinel down-after-milliseconds {SERVICE} 500\nsentinel failover-timeout {SERVICE} 2000\n"
    )
    sentinel = subprocess.Popen([find_server("redis"), settings, "--sentinel"], stdout=subprocess.DEVNULL, cwd=tmp_path)
    try:
        answers(port)
        yield f"redis+sentinel://127.0.0.1:{port}/{SERVICE}/0"
    finally:
        sentinel.kill()
        sentinel.wait(10)


async def test_work_continues_at_the_replica_when_the_primary_dies(primary: RedisServer, sentinel_url: str) -> None:
    settings = load({"redis.url": sentinel_url, "worker.drain_s": 1})
    worker = make_worker(settings, device="NULL", lanes=2, version="test", handle_signals=False)
    async with asyncio.timeout(90), connect_async(sentinel_url, retry_s=60) as queue:
        await until(lambda: has_replica(queue), "a replica that Sentinel knows")
        running = asyncio.ensure_future(worker.async_run())
        await until(lambda: has_devices(queue), "the worker")
        batch = await queue.submit(None, [Job(variables={"sleep_s": 0.2})] * 20, device="NULL")
        async for _ in batch.finished():
            break
        assert (
            await store_of(queue).redis.wait(1, 10_000) == 1
        )  # replication is asynchronous: writes that the replica lacks are lost
        primary.kill()
        record = await batch.wait()
        assert record.status is BatchStatus.DONE
        assert record.counts[JobStatus.DONE] == 20
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await worker.close()


async def has_devices(queue: AsyncQueue) -> bool:
    return bool(await queue.devices())


async def has_replica(queue: AsyncQueue) -> bool:
    """Return whether a replica is in step with the primary and Sentinel knows it."""
    replica = (await store_of(queue).redis.info("replication")).get("slave0", {})
    pool = store_of(queue).redis.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    sentinel = pool.sentinel_manager.sentinels[0]
    return replica.get("state") == "online" and len(await sentinel.sentinel_slaves(SERVICE)) > 0


@pytest.mark.parametrize(
    ("url", "hosts", "database", "password"),
    [
        ("redis+sentinel://a:1/s", (("a", 1),), 0, None),
        ("redis+sentinel://a:1,b:2/s/3", (("a", 1), ("b", 2)), 3, None),
        ("redis+sentinel://:p%40w@a:1/s", (("a", 1),), 0, "p@w"),
    ],
)
def test_the_url_names_sentinels_service_and_database(
    url: str, hosts: tuple[tuple[str, int], ...], database: int, password: str | None
) -> None:
    place = SentinelUrl.parse(url)
    assert (place.hosts, place.service, place.database, place.password) == (hosts, "s", database, password)


@pytest.mark.parametrize("url", ["redis+sentinel://a/s", "redis+sentinel://a:1", "redis+sentinel://a:1/s/x"])
def test_the_error_of_an_incomplete_url_names_what_is_missing(url: str) -> None:
    with pytest.raises(InvalidInput, match="expected redis\\+sentinel://"):
        SentinelUrl.parse(url)
