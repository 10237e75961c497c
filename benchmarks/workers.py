"""The worker process of each contestant, run by ``harness.program``.

It prints ``ready``; arq's worker then waits for a line on its standard input. A process that measures latency prints
the monotonic clock (ns, shared by all processes of the machine) at each start of a job.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from typing import Any

import peers
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
from tweezer.worker.worker import TicketWorker


def _stamp() -> None:
    os.write(1, b"%d\n" % time.monotonic_ns())


def _print_ready() -> None:
    os.write(1, b"ready\n")


class StampLane(NullLane):
    """A null lane that prints when a job starts."""

    async def run(self, job: JobWork, report: Report) -> Outcome:
        _stamp()
        return await super().run(job, report)


class StampAdapter(NullAdapter):
    """A null adapter whose lanes print when a job starts."""

    async def open_lane(self) -> StampLane:
        return StampLane()


def tickets(url: str, device: str, lanes: int, *, stamping: bool) -> None:
    """Run Tweezer's worker. It is ready, with warm lanes, when its heartbeat is in Redis."""
    binding = default_binding(device)
    assert binding is not None, device
    adapter: Adapter = StampAdapter() if stamping else make_adapter(binding)
    worker = TicketWorker(
        Store.open(Connect(url=url)),
        device,
        adapter,
        adapter_name="benchmark",
        lanes=lanes,
        config=WorkerConfig(),
        version=__version__,
    )
    _print_ready()
    worker.run()


async def _nothing(context: dict[Any, Any]) -> None:
    pass


async def _stamp_job(context: dict[Any, Any]) -> None:
    _stamp()


def arq(url: str, *, stamping: bool) -> None:
    """Run tuned arq's worker. It waits for a line on stdin, so that a drain can be timed from a full queue."""
    worker = Worker(
        functions=[func(_stamp_job if stamping else _nothing, name=peers.MESSAGE)],  # type: ignore[arg-type]
        redis_settings=RedisSettings.from_dsn(url),
        queue_name=peers.QUEUE,
        max_jobs=100,
        poll_delay=0.005,
        keep_result=0,
    )
    _print_ready()
    sys.stdin.readline()
    worker.run()


async def _echo(url: str) -> None:
    client = Redis.from_url(url)
    await client.ping()
    _print_ready()
    while True:
        if await client.blpop([peers.ECHO], timeout=5):
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

    logging.basicConfig(level=logging.WARNING)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.set_event_loop(asyncio.new_event_loop())
    match asked.what:
        case "tickets":
            tickets(asked.url, asked.device, asked.lanes, stamping=asked.stamping)
        case "arq":
            arq(asked.url, stamping=asked.stamping)
        case "recorder":
            recorder(asked.url, asked.ledger)
        case _:
            asyncio.run(_echo(asked.url))


if __name__ == "__main__":
    main()
