"""Outages of Redis: workers wait for it, nothing is lost, and each job ends once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.processes import LEASE_S, MISBEHAVING, Site, runs, statuses
from tests.support.redis_users import RedisServer
from tests.support.waiting import PATIENCE_S, until

from tweezer import BatchStatus, JobStatus, Limits

DONE = JobStatus.DONE
OUTAGE_S = LEASE_S + 0.5


@pytest.fixture
def server(tmp_path: Path, real_redis_url: str) -> Iterator[RedisServer]:
    """A server that the test may kill. The fixture of the shared one skips the test if none is installed."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def site(server: RedisServer, tmp_path: Path) -> AsyncIterator[Site]:
    async with Site(server.url, tmp_path) as site:
        yield site
        await site.idle()


async def test_redis_restarted_under_load_loses_nothing(site: Site, server: RedisServer) -> None:
    await site.workers(2, lanes=2)
    batches = [await site.submit([{"sleep_s": 0.02}] * 100) for _ in range(3)]

    async def half_done() -> bool:
        return (await batches[0].record()).counts[DONE] >= 30

    for _ in range(2):
        await until(half_done)
        await asyncio.to_thread(server.restart)
    for batch in batches:
        assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
        assert statuses(await site.audit(batch)) == [DONE] * 100
    assert all(process.alive for process in site.processes)


async def test_redis_killed_under_load_loses_nothing_that_it_acknowledged(site: Site, server: RedisServer) -> None:
    await site.workers(2, lanes=2)
    batches = [await site.submit([{"sleep_s": 0.02}] * 60) for _ in range(3)]
    await site.running(batches[0])
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    batches.append(await site.submit([{}] * 10))
    for batch in batches:
        assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
        await site.audit(batch)


async def test_work_continues_while_redis_is_down_for_longer_than_the_lease(site: Site, server: RedisServer) -> None:
    """A holder that cannot reach Redis keeps its job, and settles it later unless another lane has taken it."""
    (worker,) = await site.workers(1)
    batch = await site.submit([{"sleep_s": 1.0}, {}])
    await site.held(batch)
    await asyncio.to_thread(server.kill)
    await wait_out(OUTAGE_S)
    await asyncio.to_thread(server.start)
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    jobs = await site.audit(batch)
    assert statuses(jobs) == [DONE, DONE]
    assert [job.attempt for job in jobs] == [1, 1]
    assert len(await site.starts(batch)) == 1
    assert await worker.wait_logged("store.unavailable")
    assert not worker.logged("lease.lost")
    assert not worker.logged("settle.refused")


async def test_after_a_long_outage_of_redis_each_job_has_one_outcome(site: Site, server: RedisServer) -> None:
    """Another worker may take an expired ticket before its holder returns: one of the two is then refused."""
    await site.workers(3)
    batches = [await site.submit([{"sleep_s": 1.0}, {"sleep_s": 0.1}]) for _ in range(2)]
    await site.held(*batches)
    await asyncio.to_thread(server.kill)
    await wait_out(OUTAGE_S)
    await asyncio.to_thread(server.start)
    for batch in batches:
        assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
        jobs = await site.audit(batch)
        assert statuses(jobs) == [DONE, DONE]
        assert all(job.attempt <= 2 for job in jobs)
    assert all(process.alive for process in site.processes)


async def test_a_cancel_is_received_after_a_restart_of_redis(site: Site, server: RedisServer) -> None:
    (worker,) = await site.workers(1, worker_lease_s=30)  # so long that no renewal can bring the news in time
    await asyncio.to_thread(server.restart)
    batch = await site.submit([{"sleep_s": 60}])
    await site.running(batch)
    await batch.cancel()
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.CANCELED
    assert worker.alive
    await site.audit(batch)


@pytest.mark.parametrize("device", ["NULL", MISBEHAVING])
async def test_a_worker_stopped_while_redis_is_down_ends(site: Site, server: RedisServer, device: str) -> None:
    (worker,) = await site.workers(1, device)
    job = {"sleep_s": 60, "act": "ignore cancels"}
    batch = await site.submit([job], device=device)
    await site.running(batch)
    lanes = worker.lanes()
    await asyncio.to_thread(server.kill)
    await until(lambda: bool(worker.logged("lease.not_renewed") or worker.logged("store.unavailable")))
    worker.terminate()
    assert await worker.ended(15) == 0
    assert "Traceback" not in worker.text
    await until(lambda: not any(map(runs, lanes)), "the end of the lanes")
    await asyncio.to_thread(server.start)
    await batch.cancel()
    await site.workers(1, device)
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.CANCELED
    await site.audit(batch)


async def test_the_scheduler_survives_a_restart_of_redis(site: Site, server: RedisServer) -> None:
    """Without workers, only the schedulers can end an open batch that has waited too long for jobs."""
    scheduler = site.spawn("scheduler")
    await site.workers(1)
    await site.serves(scheduler)
    await asyncio.to_thread(server.kill)
    await scheduler.wait_logged("duty.failed")
    await asyncio.to_thread(server.start)
    batch = await site.queue.submit(None, device="NULL", open=True, limits=Limits(open_timeout_s=0.5))
    for worker in site.processes[1:]:
        worker.kill()
    assert (await batch.wait(0.1)).open  # it has nothing to wait for

    async def timed_out() -> bool:
        return (await batch.record()).status is BatchStatus.TIMED_OUT

    await until(timed_out)
    assert scheduler.alive
    await site.audit(batch)


async def test_a_server_with_the_same_data_has_all_batches(site: Site, server: RedisServer) -> None:
    (worker,) = await site.workers(1)
    batch = await site.submit([{"sleep_s": 0.01}] * 30)
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    before = [(job.data, job.record) for job in await batch.results()]
    worker.kill()
    await asyncio.to_thread(server.restart)
    assert [(job.data, job.record) for job in await batch.results()] == before
    await site.audit(batch)


async def wait_out(seconds: float) -> None:
    """Let time pass without Redis: its outage is the condition, not a wait for something."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()
