"""Each background task of each process is disturbed in turn: it continues, or its process ends with the reason."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.postgres import PostgresServer
from tests.support.processes import FILES_MAX, Process, Site
from tests.support.redis_users import RedisServer
from tests.support.waiting import PATIENCE_S, until

from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.model.lifecycle import BatchStatus
from tweezer.store.keys import Key

pytestmark = pytest.mark.usefixtures("_any_server")

DUTIES = [
    *(("worker", duty) for duty in ("heartbeat", "sweep", "leases", "cancels")),
    ("scheduler", "sweep"),
    ("recorder", "recorder"),
    *(("courier", duty) for duty in ("courier", "outcomes", "sweep")),
    ("api", "keys"),
]


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    """A private server that the test may disturb."""
    async with RedisServer() as server:
        yield server


@pytest.fixture
async def site(real_redis_url: str, sqlite_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with Site(real_redis_url, tmp_path, database_url=sqlite_url, data_dir=tmp_path, api_port=0) as site:
        yield site


@pytest.fixture
async def frail(server: RedisServer, sqlite_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """A site on the private server."""
    async with Site(server.url, tmp_path, database_url=sqlite_url, data_dir=tmp_path, api_port=0) as site:
        yield site


@pytest.mark.parametrize("process", ["worker", "scheduler", "recorder", "courier"])
async def test_a_process_raises_its_limit_on_open_files(site: Site, process: str) -> None:
    started = site.spawn(process, worker_device="NULL", worker_lanes=1)
    await started.wait_logged(f"{process}.started")
    assert psutil.Process(started.pid).rlimit(psutil.RLIMIT_NOFILE) == (min(FILES_MAX, 65_536), FILES_MAX)


@pytest.mark.parametrize(("process", "duty"), DUTIES)
async def test_a_failed_duty_continues(site: Site, process: str, duty: str) -> None:
    harmed = site.spawn(process, test_harm=f"raise:{duty}", worker_device="NULL", worker_lanes=1)
    await harmed.wait_logged("harm.survived")
    (failed, *_) = harmed.logged("duty.failed")
    assert (failed["duty"], failed["error"]) == (duty, "harmed")
    harmed.terminate()
    assert await harmed.ended() == 0


@pytest.mark.parametrize(("process", "duty"), DUTIES)
async def test_a_duty_that_ends_ends_its_process_with_the_reason(site: Site, process: str, duty: str) -> None:
    harmed = site.spawn(process, test_harm=f"cancel:{duty}", worker_device="NULL", worker_lanes=1)
    assert await harmed.ended() == 1
    (ended, *_) = harmed.logged("duty.ended")
    assert (ended["duty"], ended["error"], ended["level"]) == (duty, "it was cancelled", "error")
    assert f"the background task '{duty}' of this process ended: it was cancelled" in harmed.text


@pytest.mark.parametrize("how", ["raise", "cancel"])
async def test_a_worker_whose_reader_of_news_fails_still_receives_cancels(site: Site, how: str) -> None:
    worker = site.spawn("worker", test_harm=f"{how}:news", worker_device="NULL", worker_lanes=1)
    await worker.wait_logged("harm.survived")
    batch = await site.submit([{"sleep_s": 600}])
    await site.held(batch)
    await batch.cancel()
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.CANCELED
    assert worker.alive


async def test_foreign_messages_on_the_channel_of_cancels_are_skipped(site: Site) -> None:
    (worker,) = await site.workers(1)
    redis: Any = site.store.redis
    channel = site.store.keys(Key.POOL, "NULL")

    async def listens() -> bool:
        return bool((await redis.pubsub_numsub(channel))[0][1])

    await until(listens, "a worker that listens")
    for message in (b"", b"hello", b"\xff\xfe", b"01a228a6-940f-8d9f-9918-12b8a5000000", b"x 1,2"):
        await redis.publish(channel, message)
    await until(lambda: len(worker.logged("cancel.unreadable")) == 5, "messages that are skipped")
    batch = await site.submit([{"sleep_s": 600}])
    await site.held(batch)
    await batch.cancel()
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.CANCELED


@pytest.mark.slow
async def test_processes_outlive_cut_connections_failovers_and_a_full_redis(frail: Site) -> None:
    redis: Any = frail.store.redis
    started = [
        frail.spawn(name, worker_device="NULL", worker_lanes=2)
        for name in ("worker", "scheduler", "recorder", "courier")
    ]
    for process in started:
        await frail.serves(process)
    batch = await frail.submit([{"sleep_s": 0.05}] * 100)
    for _ in range(10):
        for kind in ("normal", "pubsub"):
            await redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    for client in await redis.client_list():
        await redis.execute_command("CLIENT", "UNBLOCK", client["id"], "ERROR")
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    await until(lambda: all(refused(process) for process in started[:2]), "writes that a replica refuses")
    await redis.execute_command("REPLICAOF", "NO", "ONE")
    await redis.config_set("maxmemory", 1)
    late = frail.spawn("worker", worker_device="NULL", worker_lanes=2)
    await frail.serves(late)
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    await redis.config_set("maxmemory", 0)
    await until(lambda: all(process.alive for process in (*started, late)))
    assert {worker.id.split(":")[-2] for worker in await frail.queue.workers()} == {
        str(process.pid) for process in (started[0], late)
    }
    for process in (*started, late):
        process.terminate()
        assert await process.ended() == 0


def refused(process: Process) -> bool:
    return any("replica" in line.get("error", "") for line in process.logged("duty.failed"))


@pytest.mark.postgres
@pytest.mark.slow
async def test_processes_that_start_while_the_database_is_down_wait_for_it(real_redis_url: str, tmp_path: Path) -> None:
    with PostgresServer() as database:
        url = database.create("ledger")
        with contextlib.closing(Database.open(OpenDatabase(url=url))) as ledger:
            upgrade(ledger)
        database.stop()
        async with Site(real_redis_url, tmp_path, database_url=url, data_dir=tmp_path, api_port=0) as site:
            started = [site.spawn(name) for name in ("recorder", "courier", "api")]
            for process in started:
                await until(lambda it=process: bool(it.logged("store.unavailable")), "a process that waits")  # type: ignore[misc]
            leaving = site.spawn("recorder")
            await leaving.wait_logged("store.unavailable")
            leaving.terminate()
            assert await leaving.ended() == 0
            database.start()
            for process, event in zip(started, ("recorder.started", "courier.started", "api.listening"), strict=True):
                await until(lambda it=process, event=event: bool(it.logged(event)), event)  # type: ignore[misc]
            for process in started:
                process.terminate()
                assert await process.ended() == 0


async def test_processes_that_start_while_redis_is_down_wait_for_it(frail: Site, server: RedisServer) -> None:
    await asyncio.to_thread(server.kill)
    started = [
        frail.spawn(name, worker_device="NULL", worker_lanes=1)
        for name in ("worker", "scheduler", "recorder", "courier")
    ]
    for process in started:
        await until(lambda it=process: bool(it.logged("store.unavailable") or it.logged("duty.failed")))  # type: ignore[misc]
    await asyncio.to_thread(server.start)
    for process in started:
        await frail.serves(process)
        process.terminate()
        assert await process.ended() == 0
