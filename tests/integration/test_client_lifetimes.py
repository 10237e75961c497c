"""Queues and handles through forks, pickles, garbage collection, closing, and several event loops."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import NULL, QUICK, Process
from tests.support.queues import Reach, store_of
from tests.support.redis_users import as_user
from tests.support.waiting import PATIENCE_S, wait_until

import tweezer
from tweezer import Job, JobStatus
from tweezer.model.errors import TweezerError
from tweezer.store.acl import RedisUser

PROGRAM_S = 60


@pytest.fixture
def worker(real_redis_url: str, tmp_path: Path) -> Iterator[Process]:
    settings = {
        **QUICK,
        "redis_url": as_user(real_redis_url, RedisUser.WORKER),
        "worker_device": NULL,
        "worker_lanes": 2,
    }
    process = Process(["worker"], settings, tmp_path / "worker.log")
    wait_until(lambda: bool(process.logged("worker.started")) or not process.alive)
    yield process
    process.kill()


def run(program: str, reach: Reach, *options: str) -> str:
    """Return the output of a program that connects with ``place``; it must succeed without warnings."""
    text = f"import tweezer\nplace = {reach('ours')!r}\n{textwrap.dedent(program)}"
    command = [sys.executable, *options, "-c", text]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_S, check=False)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    return ran.stdout


# ------------------------------------------------------------------------------------------------------------ forks


FORKED = """
import os, sys
with tweezer.connect(**place) as queue:
    batch = queue.submit(None, [{"runs": 1, "variables": {"sleep_s": 0.2}}] * 3, device="NULL")
    iteration = batch.finished(60)
    next(iteration)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        mine = queue.submit(None, [{"runs": 7}], device="NULL")
        print("child", mine.results(60)[0].counter, batch.wait(60).status, len(queue.devices()))
        try:
            next(iteration)
        except tweezer.TweezerError as error:
            print("child", error.code)
        queue.close()
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
    print("parent", queue.submit(None, [{"runs": 5}], device="NULL").results(60)[0].counter)
    print("parent", len(list(iteration)))
"""


def test_a_queue_works_on_both_sides_of_a_fork(worker: Process, reach: Reach) -> None:
    output = run(FORKED, reach)
    assert output.splitlines() == ["child {'0': 7} DONE 1", "child queue_closed", "parent {'0': 5}", "parent 2"]


POOLED = """
import multiprocessing
from functools import partial

def work(queue, batch, number):
    if number == 3:
        raise tweezer.InvalidInput("number", "is three")
    made = queue.submit(None, [{"runs": number + 1}], device="NULL")
    return made.results(60)[0], batch.record().counts

with tweezer.connect(**place) as queue:
    batch = queue.submit(None, open=True, device="NULL")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        answers = pool.map(partial(work, queue, batch), range(3))
        print([finished.counter for finished, _ in answers])
        try:
            pool.map(partial(work, queue, batch), range(5))
        except tweezer.InvalidInput as error:
            print(error.field, error.problem)
    batch.close()
"""


def test_a_pool_of_processes_takes_handles_and_gives_back_results_and_errors(worker: Process, reach: Reach) -> None:
    output = run(POOLED, reach)
    assert output.splitlines() == ["[{'0': 1}, {'0': 2}, {'0': 3}]", "number is three"]


def test_an_asynchronous_queue_raises_in_a_forked_child(worker: Process, reach: Reach) -> None:
    program = """
    import asyncio, os, sys
    async def ask(queue):
        return len(await queue.devices())
    async def main():
        async with tweezer.connect_async(**place) as queue:
            await ask(queue)
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                try:
                    asyncio.new_event_loop().run_until_complete(ask(queue))
                except tweezer.TweezerError as error:
                    print(error.code, "before the fork" in error.message, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            print(await ask(queue))
    asyncio.run(main())
    """
    assert run(program, reach) == "wrong_loop True\n1\n"


# ---------------------------------------------------------------------------------------------------------- pickles


def test_what_a_queue_returns_survives_pickle_and_copy(worker: Process, reach: Reach) -> None:
    with tweezer.connect(**reach("ours")) as queue:
        batch = queue.submit(None, [Job(runs=3), Job(runs=1, variables={"fail": "too hot"})], device=NULL)
        things: list[Any] = [*batch.results(PATIENCE_S), batch.record(), *batch.jobs(), *queue.devices()]
        things += [*queue.workers(), *batch.events(follow=False)]
        for thing in things:
            assert pickle.loads(pickle.dumps(thing)) == copy.deepcopy(thing) == thing  # noqa: S301


def test_handles_survive_pickle_and_copy(worker: Process, reach: Reach) -> None:
    with tweezer.connect(**reach("ours")) as queue:
        batch = queue.submit(None, [Job(runs=3)], device=NULL)
        assert copy.deepcopy({"batch": batch, "queue": queue}) == {"batch": batch, "queue": queue}
        assert copy.copy(batch) is batch
        assert batch.queue.batch(batch.id).wait(PATIENCE_S).jobs == 1
        before = threading.active_count()
        twins, twin_queue = pickle.loads(pickle.dumps(([batch, batch], queue)))  # noqa: S301
        assert twin_queue.project == "ours"
        assert [twin.results(PATIENCE_S)[0].counter for twin in twins] == [{"0": 3}] * 2
        assert threading.active_count() == before + 1, "the copies share a queue, as the originals do"
        del twins, twin_queue
        wait_until(lambda: threading.active_count() == before)


async def test_asynchronous_handles_survive_pickle_and_copy(worker: Process, reach: Reach) -> None:
    async with tweezer.connect_async(**reach("ours")) as queue:
        batch = await queue.submit(None, [Job(runs=3)], device=NULL)
        assert copy.deepcopy(batch) is batch
        twin = pickle.loads(pickle.dumps(batch))  # noqa: S301
        async with twin.queue:
            assert (await twin.results(PATIENCE_S))[0].counter == {"0": 3}


# ----------------------------------------------------------------------------------------------- garbage collection


COLLECTED = """
import gc, threading
gc.disable()

class Cycle:
    pass

def leave(batch):
    cycle = Cycle()
    cycle.itself, cycle.iteration = cycle, batch.finished(60)
    next(cycle.iteration)

async def collect(queue):
    return gc.collect()

with tweezer.connect(**place) as queue, tweezer.connect(**place) as other:
    batch = queue.submit(None, [{"runs": 1}, {"runs": 1, "variables": {"sleep_s": 600}}], device="NULL")
    leave(batch)
    leave(other.batch(batch.id))
    assert queue._runner.run(collect) > 0  # on the queue's own thread
    print(batch.record().counts["DONE"], len(other.devices()))
    batch.cancel()
"""


def test_an_unfinished_iteration_may_be_collected_on_the_thread_of_the_queue(worker: Process, reach: Reach) -> None:
    assert run(COLLECTED, reach, "-W", "error") == "1 1\n"


def test_a_program_may_end_during_an_iteration(worker: Process, reach: Reach) -> None:
    program = """
    queue = tweezer.connect(**place)
    batch = queue.submit(None, [{"runs": 1}, {"runs": 1, "variables": {"sleep_s": 600}}], device="NULL")
    iteration = batch.finished(60)
    print(next(iteration).index, flush=True)
    batch.cancel()
    """
    assert run(program, reach) == "0\n"


def test_a_finalizer_that_calls_a_queue_on_its_thread_gets_an_error(worker: Process, reach: Reach) -> None:
    with tweezer.connect(**reach("ours")) as queue:

        async def call(_: tweezer.AsyncQueue) -> None:
            queue.devices()

        with pytest.raises(TweezerError, match="finalizer") as raised:
            queue._runner.run(call)
        assert raised.value.code == "own_thread"
        assert len(queue.devices()) == 1


# ----------------------------------------------------------------------------------------------------------- closing


def test_a_queue_that_is_never_closed_warns_and_leaves_no_thread(worker: Process, reach: Reach) -> None:
    before = threading.active_count()
    queue = tweezer.connect(**reach("ours"))
    batch = queue.submit(None, open=True, device=NULL)
    del queue
    gc.collect()
    batch.close()  # a handle keeps its queue open
    held = [batch]
    del batch
    with pytest.warns(ResourceWarning, match="unclosed queue of project 'ours'"):
        held.clear()
    wait_until(lambda: threading.active_count() == before)


@pytest.mark.parametrize("reach", ["redis"], indirect=True)  # it closes the connections to Redis by hand
async def test_an_asynchronous_queue_that_is_never_closed_warns(worker: Process, reach: Reach) -> None:
    queue = tweezer.connect_async(**reach("ours"))
    assert len(await queue.devices()) == 1
    store = store_of(queue)
    held = [queue]
    del queue
    with pytest.warns(ResourceWarning, match="unclosed <queue of project 'ours'>"):
        held.clear()
    await store.close()


def test_a_queue_that_was_never_used_needs_no_close(reach: Reach) -> None:
    before = threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for open_queue in (tweezer.connect, tweezer.connect_async):
            open_queue(**reach("ours"))
        gc.collect()
    assert threading.active_count() == before


def test_a_closed_queue_raises_a_clear_error(worker: Process, reach: Reach) -> None:
    with tweezer.connect(**reach("ours")) as queue:
        batch = queue.submit(None, [Job(runs=1)] * 2, device=NULL)
        iteration = batch.finished(PATIENCE_S)
        next(iteration)
    queue.close()
    for call in (queue.devices, batch.record, lambda: list(batch.changes()), lambda: next(iteration)):
        with pytest.raises(TweezerError, match="is closed") as raised:
            call()
        assert raised.value.code == "queue_closed"


@pytest.mark.parametrize("reach", ["redis"], indirect=True)  # it looks at the subscription
def test_closing_a_queue_ends_the_waits_of_other_threads(worker: Process, reach: Reach) -> None:
    errors: list[TweezerError] = []
    with tweezer.connect(**reach("ours")) as queue:
        batch = queue.submit(None, open=True, device=NULL)
        batch.pause()
        batch.add_jobs([Job(runs=1)])

        def wait() -> None:
            try:
                batch.wait()
            except TweezerError as error:
                errors.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        wait_until(lambda: bool(store_of(queue._runner.queue).news._listeners))
    waiting.join(PATIENCE_S)
    assert [error.code for error in errors] == ["queue_closed"]
    with tweezer.connect(**reach("ours")) as queue:
        queue.batch(batch.id).cancel()


async def test_closing_an_asynchronous_queue_ends_its_waits(worker: Process, reach: Reach) -> None:
    async def read_all(each: Any) -> None:
        async for _ in each:
            pass

    queue = tweezer.connect_async(**reach("ours"))
    batch = await queue.submit(None, [{"runs": 1, "variables": {"sleep_s": PATIENCE_S}}], device=NULL)
    began = time.monotonic()
    each = (batch.wait(), read_all(batch.finished()), read_all(batch.changes()), read_all(batch.events()))
    waits = [asyncio.create_task(wait) for wait in each]
    async for record in batch.changes():
        if record.counts[JobStatus.RUNNING]:
            break
    await queue.close()
    errors = await asyncio.gather(*waits, return_exceptions=True)
    assert [getattr(error, "code", error) for error in errors] == ["queue_closed"] * 4
    assert time.monotonic() - began < PATIENCE_S / 2


async def test_a_closed_asynchronous_queue_raises_a_clear_error(worker: Process, reach: Reach) -> None:
    async with tweezer.connect_async(**reach("ours")) as queue:
        batch = await queue.submit(None, [Job(runs=1)], device=NULL)
        await batch.wait(PATIENCE_S)
    await queue.close()
    for call in (queue.devices, batch.record, batch.results, queue.workers):
        with pytest.raises(TweezerError, match="is closed") as raised:
            await call()
        assert raised.value.code == "queue_closed"


def test_an_asynchronous_queue_belongs_to_one_event_loop(worker: Process, reach: Reach) -> None:
    queue = tweezer.connect_async(**reach("ours"))
    with asyncio.Runner() as runner:
        assert len(runner.run(queue.devices())) == 1
        for call in (queue.devices, queue.close, queue.batch("01a2014a-10da-8070-b687-9a55ac000000").record):
            with pytest.raises(TweezerError, match=r"for each asyncio\.run\(\)") as raised:
                asyncio.run(call())
            assert raised.value.code == "wrong_loop"
        runner.run(queue.close())


def test_a_wait_without_an_end_is_refused_at_once(worker: Process, reach: Reach) -> None:
    with tweezer.connect(**reach("ours")) as queue:
        batch = queue.submit(None, [Job(runs=1, variables={"sleep_s": 60})], device=NULL)
        with pytest.raises(tweezer.InvalidInput, match="timeout_s: expected a finite number of seconds, got nan"):
            batch.wait(float("nan"))
        batch.cancel()
        wait_until(lambda: batch.record().counts[JobStatus.CANCELED] == 1)
