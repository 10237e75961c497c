"""The parts of arq 0.28 that the ticket worker uses, private names included, behave as it assumes."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from arq import func
from arq.connections import ArqRedis
from arq.worker import Worker
from redis.asyncio import Redis
from tests.support.processes import QUICK, Site, statuses
from tests.support.redis_users import as_user
from tests.support.waiting import PATIENCE_S, until

from tweezer import BatchStatus, JobStatus
from tweezer.processes.worker import make_worker
from tweezer.settings import load
from tweezer.store.acl import RedisUser
from tweezer.store.keys import Key
from tweezer.worker.worker import TicketWorker

DONE = JobStatus.DONE


# ------------------------------------------------------------------------------------------------ arq's own worker


async def nothing(ctx: dict[Any, Any]) -> None:
    """Do nothing: arq requires a function."""


class Idle(Worker):
    """arq's worker with a main that waits, like that of the ticket worker."""

    async def main(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture
async def pool(real_redis_url: str) -> AsyncIterator[ArqRedis]:
    redis = Redis.from_url(real_redis_url)
    yield ArqRedis(redis.connection_pool)
    await redis.aclose(close_connection_pool=True)


def idle(pool: ArqRedis, **options: Any) -> Idle:
    options = {"handle_signals": False, **options}
    return Idle(functions=[func(nothing, name="nothing")], queue_name="q", redis_pool=pool, **options)


def test_arq_is_the_release_on_which_the_worker_relies() -> None:
    assert importlib.metadata.version("arq").startswith("0.28.")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("main", ["self"]),
        ("async_run", ["self"]),
        ("_poll_iteration", ["self"]),
        ("heart_beat", ["self"]),
        ("close", ["self"]),
        ("handle_sig", ["self", "signum"]),
        ("handle_sig_wait_for_completion", ["self", "signum"]),
        ("_sleep_until_tasks_complete", ["self"]),
        ("_add_signal_handler", ["self", "signum", "handler"]),
    ],
)
def test_every_method_of_arq_that_is_called_or_overridden_exists(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(Worker, name)).parameters) == parameters
    overridden = name in ("main", "_poll_iteration", "close")
    assert (getattr(TicketWorker, name) is not getattr(Worker, name)) is overridden


async def test_a_fresh_worker_has_the_attributes_that_are_used(pool: ArqRedis) -> None:
    worker = idle(pool, burst=True, job_completion_wait=7)
    assert worker.pool is pool
    assert worker.allow_pick_jobs is True
    assert worker.tasks == {}
    assert worker.jobs_complete == 0
    assert worker.main_task is None
    assert worker.burst is True
    assert worker.queue_name == "q"
    assert worker.health_check_key == "q:health-check"
    assert worker._job_completion_wait == 7
    assert worker._handle_signals is False
    assert worker.loop is asyncio.get_running_loop()
    assert worker.ctx == {}


@pytest.mark.parametrize(("wait_s", "handler"), [(0, "handle_sig"), (1, "handle_sig_wait_for_completion")])
async def test_signals_call_the_waiting_handler_if_tasks_are_running(
    pool: ArqRedis, monkeypatch: pytest.MonkeyPatch, wait_s: int, handler: str
) -> None:
    handlers: dict[int, str] = {}
    monkeypatch.setattr(Worker, "_add_signal_handler", lambda _, number, call: handlers.update({number: call.__name__}))
    idle(pool, handle_signals=True, job_completion_wait=wait_s)
    assert handlers == {signal.SIGINT: handler, signal.SIGTERM: handler}


async def test_async_run_is_main_as_a_task(pool: ArqRedis) -> None:
    worker = idle(pool)
    running = asyncio.create_task(worker.async_run())
    await until(lambda: worker.main_task is not None)
    assert worker.main_task is not None
    worker.main_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_drain_stops_picking_and_ends_main_after_the_last_task(pool: ArqRedis) -> None:
    """The code that adds a task must also remove it: the drain ends when the dictionary is empty."""
    worker = idle(pool, job_completion_wait=20)
    running = asyncio.create_task(worker.async_run())
    finish = asyncio.Event()
    task = worker.tasks["a"] = asyncio.create_task(finish.wait())
    task.add_done_callback(lambda _: worker.tasks.pop("a"))
    await until(lambda: worker.main_task is not None)
    worker.handle_sig_wait_for_completion(signal.SIGTERM)
    assert worker.allow_pick_jobs is False
    await asyncio.sleep(0)
    assert not running.done()
    finish.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 5)
    assert not task.cancelled()


async def test_a_drain_that_takes_too_long_cancels_the_tasks_and_main(pool: ArqRedis) -> None:
    worker = idle(pool, job_completion_wait=1)
    running = asyncio.create_task(worker.async_run())
    task = worker.tasks["a"] = asyncio.create_task(asyncio.Event().wait())
    await until(lambda: worker.main_task is not None)
    worker.handle_sig_wait_for_completion(signal.SIGTERM)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 10)
    assert task.cancelled()


async def test_handle_sig_cancels_the_tasks_and_main_at_once(pool: ArqRedis) -> None:
    worker = idle(pool)
    running = asyncio.create_task(worker.async_run())
    task = worker.tasks["a"] = asyncio.create_task(asyncio.Event().wait())
    await until(lambda: worker.main_task is not None)
    worker.handle_sig(signal.SIGUSR1)
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_heart_beat_writes_a_health_key_that_expires(pool: ArqRedis) -> None:
    worker = idle(pool)
    await worker.heart_beat()
    assert await pool.pttl("q:health-check") > 0
    assert b"j_complete=0" in (await pool.get("q:health-check") or b"")


# -------------------------------------------------------------------------------------------------- the ticket worker


@pytest.fixture
async def site(real_redis_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with Site(real_redis_url, tmp_path) as site:
        yield site
        await site.idle()


def our_worker(site: Site, *, lanes: int = 2, burst: bool = False, **settings: object) -> TicketWorker:
    """Return a worker in this process that ignores signals."""
    given = {**QUICK, "redis.url": as_user(site.url, RedisUser.WORKER), **settings}
    return make_worker(load(given), device="NULL", lanes=lanes, version="test", burst=burst, handle_signals=False)


async def run_until_cancelled(worker: TicketWorker) -> None:
    try:
        await worker.async_run()
    except asyncio.CancelledError:
        pass  # arq's main ends this way
    finally:
        await worker.close()


async def stop(worker: TicketWorker, running: asyncio.Task[None]) -> None:
    worker.handle_sig(signal.SIGTERM)
    await asyncio.wait_for(running, PATIENCE_S)


async def announced(site: Site) -> None:
    async def device_is_known() -> bool:
        return await site.store.reader.device("NULL") is not None

    await until(device_is_known)


async def test_burst_mode_runs_all_waiting_work_and_ends(site: Site) -> None:
    first = our_worker(site, burst=True)
    await asyncio.wait_for(run_until_cancelled(first), PATIENCE_S)  # there is no work yet, but now a device
    batches = [await site.submit([{}] * 50), await site.submit([{"sleep_s": 0.1}] * 4)]
    worker = our_worker(site, burst=True)
    await asyncio.wait_for(run_until_cancelled(worker), PATIENCE_S)
    for batch in batches:
        assert {job.status for job in await site.audit(batch)} == {DONE}
    assert worker.tasks == {}
    assert worker.jobs_complete >= 2


async def test_a_burst_worker_is_a_process_that_exits_by_itself(site: Site) -> None:
    assert await site.worker(burst=True).ended() == 0
    batch = await site.submit([{"sleep_s": 0.01}] * 20)
    assert await site.worker(burst=True, lanes=3).ended() == 0
    assert statuses(await site.audit(batch)) == [DONE] * 20


async def test_tasks_are_the_current_tickets_and_are_counted_when_they_end(site: Site) -> None:
    worker = our_worker(site)
    running = asyncio.create_task(run_until_cancelled(worker))
    await announced(site)
    batches = [await site.submit([{"sleep_s": 0.3}]) for _ in range(2)]
    await until(lambda: len(worker.tasks) == 2)
    for batch in batches:
        await batch.wait(PATIENCE_S)
        await site.audit(batch)
    await until(lambda: not worker.tasks)
    assert worker.jobs_complete == 2
    await stop(worker, running)


async def test_a_submit_wakes_an_idle_worker(site: Site) -> None:
    """It wakes in much less than the second after which it would poll by itself."""
    worker = our_worker(site)
    running = asyncio.create_task(run_until_cancelled(worker))
    await announced(site)
    took_us = []
    for _ in range(20):
        batch = await site.submit([{}])
        await batch.wait(PATIENCE_S)
        created, *_ = await site.events(batch)
        took_us.append((await site.starts(batch))[0] - created.time_us)
    assert sorted(took_us)[10] < 100_000
    await stop(worker, running)


async def test_a_worker_stopped_while_it_waits_leaves_work_and_bell_to_others(site: Site) -> None:
    """A ticket in a reply that a stopping worker does not read is given back, and rings the bell."""
    await asyncio.wait_for(run_until_cancelled(our_worker(site, burst=True)), PATIENCE_S)  # announces the device
    redis: Any = site.store.redis

    async def waits() -> bool:
        return int((await redis.info("clients"))["blocked_clients"]) == 1

    for turn in range(20):
        worker = our_worker(site)
        worker._config = msgspec.structs.replace(worker._config, bell_s=60)  # so that it remains in its wait
        running = asyncio.create_task(run_until_cancelled(worker))
        await until(waits)
        submitting = asyncio.create_task(site.submit([{"sleep_s": 60}]))
        for _ in range(turn):  # each time a little later
            await asyncio.sleep(0)
        await stop(worker, running)
        batch = await submitting
        (job,) = await batch.jobs()
        assert (job.status, job.attempt) == (JobStatus.PENDING, 0)
        assert await redis.llen(site.store.keys(Key.BELL, "NULL")) == 1
        await batch.cancel()
        await site.audit(batch)
        await redis.delete(site.store.keys(Key.BELL, "NULL"))


async def test_a_submit_at_the_moment_of_a_stop_is_taken_by_another_worker(site: Site) -> None:
    staying = our_worker(site)
    running = asyncio.create_task(run_until_cancelled(staying))
    await announced(site)
    for _ in range(10):
        leaving = our_worker(site)
        gone = asyncio.create_task(run_until_cancelled(leaving))
        await until(lambda leaving=leaving: bool(leaving.duties.tasks))  # type: ignore[misc]
        leaving.handle_sig(signal.SIGTERM)
        batch = await site.submit([{}] * 3)
        assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
        await asyncio.wait_for(gone, PATIENCE_S)
        jobs = await site.audit(batch)
        assert [job.attempt for job in jobs] == [1, 1, 1]
    await stop(staying, running)


async def test_a_worker_started_and_stopped_thirty_times_never_hangs(site: Site) -> None:
    """The stop comes at different moments of its start, its wait and its work."""
    await asyncio.wait_for(run_until_cancelled(our_worker(site, burst=True)), PATIENCE_S)
    batch = await site.submit([{"sleep_s": 0.004}] * 200)
    tasks_before = len(asyncio.all_tasks())
    for turn in range(30):
        worker = our_worker(site)
        running = asyncio.create_task(run_until_cancelled(worker))
        for _ in range(turn * 7):  # each time a little later
            await asyncio.sleep(0)
        await until(lambda worker=worker: worker.main_task is not None)  # type: ignore[misc]
        await stop(worker, running)
    assert len(asyncio.all_tasks()) == tasks_before
    assert await site.queue.workers() == []
    await asyncio.wait_for(run_until_cancelled(our_worker(site, burst=True)), PATIENCE_S)  # everything was given back
    jobs = await site.audit(batch)
    assert {job.status for job in jobs} == {DONE}
    assert {job.attempt for job in jobs} == {1}
