"""The queues that ``peers.py`` compares: a client and a worker of each, in one process of the queue's environment.

    python contestants.py NAME client URL           submit as many jobs as each line on stdin requests
    python contestants.py NAME worker URL --jobs N  run jobs, which do nothing, until it is terminated

Both print ``ready``. The client reads ``N`` (one by one) or ``N at once``, and prints for each line the monotonic clock
before and after its submits, in ns. The worker prints that clock at the start of the first job, of the Nth and of each
later one. The clock is shared by all processes of a machine. A queue's own packages are imported only in its function,
because no environment has all.

Each queue is tuned for jobs that do nothing, on one worker process: it keeps no results (Tweezer does), and polls or
prefetches as fast as its options allow. Other changes are noted at each; values were found by trying several.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import inspect
import itertools
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

_numbers = itertools.count(1)  # next() is atomic, so that threads can share it
_last = 0


def run_nothing() -> None:
    """Print the clock when the first job and the last ones start."""
    if (number := next(_numbers)) == 1 or number >= _last:
        os.write(1, b"%d\n" % time.monotonic_ns())


async def run_nothing_async(*_: object) -> None:
    run_nothing()


@dataclass(frozen=True)
class Contestant:
    """A queue: ``submit`` submits one job, ``work`` runs a worker; both may be coroutine functions.

    client: A context that the client enters before it submits.
    submit_many: Submits this many jobs at once, if the queue has a call for it.
    """

    submit: Callable[[], Any]
    work: Callable[[], Any]
    client: contextlib.AbstractAsyncContextManager[Any] = field(default_factory=contextlib.nullcontext)
    submit_many: Callable[[int], Any] | None = None


def arq(url: str) -> Contestant:
    """Run tuned arq: 100 messages at once, a poll each 5 ms."""
    import references
    import workers
    from arq.connections import ArqRedis
    from redis.asyncio import ConnectionPool

    pool = ArqRedis(ConnectionPool.from_url(url), default_queue_name=references.QUEUE)

    def work() -> None:
        workers.arq_worker(url, run_nothing).run()

    return Contestant(lambda: pool.enqueue_job(references.MESSAGE), work)


def saq(url: str) -> Contestant:
    """Run SAQ: 20 jobs at once (10)."""
    from saq import Queue, Worker

    queue = Queue.from_url(url)

    @contextlib.asynccontextmanager
    async def client() -> AsyncIterator[None]:
        await queue.sweep()  # else the worker, which sweeps when it starts, aborts jobs that it has just taken
        yield

    async def submit() -> None:
        await queue.enqueue("nothing", ttl=-1)

    async def work() -> None:
        await Worker(queue, [("nothing", run_nothing_async)], concurrency=20).start()

    return Contestant(submit, work, client())


def taskiq_redis(url: str) -> Contestant:
    """Run taskiq on a stream, which acknowledges: 100 messages a read and at once, parameters not validated."""
    from taskiq.api import run_receiver_task
    from taskiq_redis import RedisStreamBroker

    broker = RedisStreamBroker(url)
    task = broker.register_task(run_nothing_async, task_name="nothing")

    @contextlib.asynccontextmanager
    async def client() -> AsyncIterator[None]:
        await broker.startup()
        yield
        await broker.shutdown()

    async def work() -> None:
        await run_receiver_task(broker, run_startup=True, validate_params=False, max_prefetch=100)

    return Contestant(task.kiq, work, client())


def streaq(url: str) -> Contestant:
    """Run streaQ: 100 tasks at once (16), as many prefetched."""
    from streaq import Worker

    worker: Any = Worker(redis_url=url, concurrency=100, anyio_kwargs={"use_uvloop": True})

    @worker.task(ttl=0)
    async def nothing() -> None:
        run_nothing()

    async def submit() -> None:
        await nothing.enqueue()

    async def submit_many(count: int) -> None:
        await worker.enqueue_many([nothing.enqueue() for _ in range(count)])

    return Contestant(submit, worker.run_sync, worker, submit_many)


def dramatiq(url: str) -> Contestant:
    """Run dramatiq: one thread, retries as the only middleware, 1,000 messages prefetched, a poll each 5 ms."""
    os.environ["dramatiq_queue_prefetch"] = "1000"  # noqa: SIM112  # the name is dramatiq's
    from dramatiq import Worker, actor
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.middleware import Retries

    broker: Any = RedisBroker(url=url, middleware=[Retries()])

    def work() -> None:
        Worker(broker, worker_threads=1, worker_timeout=5).start()
        signal.pause()

    return Contestant(actor(run_nothing, actor_name="nothing", broker=broker).send, work)


def celery(url: str) -> Contestant:
    """Run Celery: the solo pool, no gossip, heartbeat, events or remote control, and one producer for all submits."""
    from celery import Celery

    app: Any = Celery(broker=url)
    app.conf.update(
        task_ignore_result=True,
        worker_prefetch_multiplier=100,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
    )
    task = app.task(run_nothing, name="nothing")
    producer = app.amqp.Producer(app.connection_for_write())

    def work() -> None:
        quiet = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True, "quiet": True}
        app.Worker(pool="solo", loglevel="ERROR", **quiet).start()

    return Contestant(lambda: task.apply_async(producer=producer), work)


def rq(url: str) -> Contestant:
    """Run RQ: the worker that does not fork, no time limit."""
    from redis import Redis
    from rq import Queue, SimpleWorker

    queue = Queue(connection=Redis.from_url(url))
    sys.modules["contestants"] = sys.modules["__main__"]  # RQ imports a job's function by name, but not from __main__

    options: Any = {"timeout": -1, "result_ttl": 0, "description": "nothing"}

    def submit() -> None:
        queue.enqueue_call("contestants.run_nothing", **options)

    def submit_many(count: int) -> None:
        queue.enqueue_many([Queue.prepare_data("contestants.run_nothing", **options) for _ in range(count)])

    def work() -> None:
        SimpleWorker([queue], log_job_description=False).work(logging_level="ERROR")

    return Contestant(submit, work, submit_many=submit_many)


def huey(url: str) -> Contestant:
    """Run huey: one thread, no periodic tasks."""
    from huey import RedisHuey

    app = RedisHuey(url=url)
    return Contestant(app.task()(run_nothing), app.create_consumer(workers=1, periodic=False).run)


def tweezer(url: str) -> Contestant:
    """Run Tweezer: 32 lanes. Each submit is a batch, of one job or of many, and the results are kept."""
    import workers

    from tweezer import connect_async
    from tweezer.transports.direct import DirectTransport

    workers.quieten_logs()
    queue = connect_async(url)
    job = {"runs": 100, "variables": {"omega": 12.5, "delta": -0.001}}

    @contextlib.asynccontextmanager
    async def client() -> AsyncIterator[None]:
        async with queue:
            assert isinstance(queue.transport, DirectTransport)
            await workers.register(queue.transport.store, "NULL")
            yield

    def work() -> None:
        workers.ticket_worker(url, "NULL", 32, run_nothing).run()

    def submit(count: int = 1) -> Any:
        return queue.submit(None, [job] * count, device="NULL")

    return Contestant(submit, work, client(), submit)


CONTESTANTS: dict[str, Callable[[str], Contestant]] = {
    "tweezer": tweezer,
    "arq": arq,
    "saq": saq,
    "taskiq-redis": taskiq_redis,
    "streaq": streaq,
    "dramatiq": dramatiq,
    "celery": celery,
    "rq": rq,
    "huey": huey,
}


async def finish(submitted: object) -> None:
    """Await what an asynchronous queue returns."""
    if inspect.isawaitable(submitted):
        await submitted


async def submit_each(contestant: Contestant, count: int) -> None:
    for _ in range(count):
        await finish(contestant.submit())


async def submit_at_once(contestant: Contestant, count: int) -> None:
    """Submit many jobs by one call if the queue has one, and else by ten tasks that take turns while they wait."""
    if contestant.submit_many is not None:
        await finish(contestant.submit_many(count))
    else:
        await asyncio.gather(*(submit_each(contestant, count // 10) for _ in range(10)))


async def serve(contestant: Contestant) -> None:
    """Submit as many jobs as each line requests."""
    async with contestant.client:
        os.write(1, b"ready\n")
        for line in sys.stdin:
            count, _, at_once = line.strip().partition(" ")
            began = time.monotonic_ns()
            await (submit_at_once if at_once else submit_each)(contestant, int(count))
            os.write(1, b"%d %d\n" % (began, time.monotonic_ns()))


def main() -> None:
    global _last  # noqa: PLW0603  # jobs have no other way to it: each queue calls them without arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("role", choices=["client", "worker"])
    parser.add_argument("url")
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    _last = asked.jobs
    logging.basicConfig(level=logging.ERROR)
    warnings.simplefilter("ignore")  # Celery's about a worker that runs as root
    with contextlib.suppress(ImportError):  # queues without asyncio do not have it
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    contestant = CONTESTANTS[asked.name](asked.url)
    if asked.role == "client":
        asyncio.run(serve(contestant))
        return
    os.write(1, b"ready\n")
    if inspect.iscoroutinefunction(contestant.work):
        asyncio.run(contestant.work())
    else:
        contestant.work()


if __name__ == "__main__":
    main()
