"""The worker process of each contestant, run by ``harness.program``.

It prints ``ready``; arq's worker then waits for a line on its standard input. A process that measures latency prints
the monotonic clock (ns, shared by all processes of the machine) at each start of a job.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import references
import structlog
import uvloop
from arq import func
from arq.connections import RedisSettings
from arq.worker import Worker
from redis.asyncio import Redis

from tweezer import __version__
from tweezer.adapters.null import NullAdapter, NullLane
from tweezer.adapters.protocol import Adapter, Report
from tweezer.adapters.registry import default_binding, make_adapter
from tweezer.model.messages import JobWork, Outcome
from tweezer.store.connection import Connect, Store
from tweezer.worker.config import WorkerConfig
from tweezer.worker.heartbeat import Presence
from tweezer.worker.worker import TicketWorker


def _stamp() -> None:
    os.write(1, b"%d\n" % time.monotonic_ns())


def _print_ready() -> None:
    os.write(1, b"ready\n")


class StartingLane(NullLane):
    """A null lane that reports when a job starts."""

    def __init__(self, started: Callable[[], None]) -> None:
        super().__init__()
        self._started = started

    async def run(self, job: JobWork, report: Report) -> Outcome:
        self._started()
        return await super().run(job, report)


class StartingAdapter(NullAdapter):
    """A null adapter whose lanes report when a job starts."""

    def __init__(self, started: Callable[[], None]) -> None:
        super().__init__()
        self._started = started

    async def open_lane(self) -> StartingLane:
        return StartingLane(self._started)


def quieten_logs() -> None:
    """Log warnings only, to stderr."""
    logging.basicConfig(level=logging.WARNING)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


async def register(store: Store, device: str) -> None:
    """Register a device as a worker does when it starts, so that clients can submit to it before one runs."""
    about = NullAdapter().capabilities
    presence = Presence(store, "benchmark", device, "benchmark", about, None, WorkerConfig(), __version__)
    await presence.beat(lanes=1, busy=0, draining=False, jail="")
    await presence.leave()


def ticket_worker(url: str, device: str, lanes: int, started: Callable[[], None] | None = None) -> TicketWorker:
    """Make Tweezer's worker; started is called at each start of a job."""
    binding = default_binding(device)
    assert binding is not None, device
    adapter: Adapter = make_adapter(binding) if started is None else StartingAdapter(started)
    worker = TicketWorker(
        Store.open(Connect(url=url)),
        device,
        adapter,
        adapter_name="benchmark",
        lanes=lanes,
        config=WorkerConfig(),
        version=__version__,
    )
    gc.freeze()  # as a worker process does
    return worker


def arq_worker(url: str, started: Callable[[], None] | None = None) -> Worker:
    """Make tuned arq's worker; started is called at each start of a job."""

    async def run(context: dict[Any, Any]) -> None:
        if started is not None:
            started()

    return Worker(
        functions=[func(run, name=references.MESSAGE)],  # type: ignore[arg-type]
        redis_settings=RedisSettings.from_dsn(url),
        queue_name=references.QUEUE,
        max_jobs=100,
        poll_delay=0.005,
        keep_result=0,
    )


async def _echo(url: str) -> None:
    client = Redis.from_url(url)
    await client.ping()
    _print_ready()
    while True:
        if await client.blpop([references.ECHO], timeout=5):
            _stamp()


def recorder(url: str, ledger: str) -> None:
    """Run the recorder as its process does."""
    from tweezer.ledger.config import OpenDatabase
    from tweezer.ledger.database import Database
    from tweezer.ledger.recorder.recorder import NICENESS, Recorder

    os.nice(NICENESS)
    store, database = Store.open(Connect(url=url)), Database.open(OpenDatabase(ledger))
    _print_ready()
    asyncio.run(Recorder(store, database, namespace="tweezer").run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["tickets", "arq", "echo", "recorder"])
    parser.add_argument("url")
    parser.add_argument("--device", default="NULL")
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--stamping", action="store_true")
    parser.add_argument("--ledger", default="")
    asked = parser.parse_args()

    quieten_logs()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.set_event_loop(asyncio.new_event_loop())
    started = _stamp if asked.stamping else None
    match asked.what:
        case "tickets":
            worker = ticket_worker(asked.url, asked.device, asked.lanes, started)
            _print_ready()  # it is ready, with warm lanes, when its heartbeat is in Redis
            worker.run()
        case "arq":
            arq = arq_worker(asked.url, started)
            _print_ready()
            sys.stdin.readline()  # so that a drain can be timed from a full queue
            arq.run()
        case "recorder":
            recorder(asked.url, asked.ledger)
        case _:
            asyncio.run(_echo(asked.url))


if __name__ == "__main__":
    main()
