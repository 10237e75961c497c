"""The speed of the recorder, its cost to the queue while it catches up, and what finished work leaves in Redis.

One redis-server, one worker process, uvloop; the ledger is in a private PostgreSQL, or in SQLite with ``--sqlite``. The
transition rates of dispatch and of the recorder are measured in the same round, on the same batches.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # tests.support.postgres, the private cluster

import dispatch
import harness
from harness import Broken, Figure, figure, median, note, ratio
from tests.support.postgres import PostgresServer

from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.ledger.recorder.recorder import Recorder
from tweezer.store.connection import Connect, Store

NAMESPACE = "tweezer"
JOBS = 10_000  # of a batch


@contextlib.contextmanager
def ledger_urls(*, sqlite: bool) -> Iterator[Iterator[str]]:
    """Yield an iterator of new databases."""
    with tempfile.TemporaryDirectory() as folder:
        if sqlite:
            yield (f"sqlite:///{folder}/{number}.db" for number in range(1_000_000))
            return
        # Unlike the server of the tests, this one syncs each commit to the disk.
        with PostgresServer(fsync="on", full_page_writes="on", synchronous_commit="on") as server:
            yield (server.create(f"ledger_{number}") for number in range(1_000_000))


@contextlib.contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database.open(OpenDatabase(url), create=True)
    upgrade(database)
    try:
        yield database
    finally:
        database.close()


async def record(store: Store, url: str) -> tuple[int, float]:
    """Record the whole stream into a new ledger; return the number of events and the seconds."""
    with opened(url) as database:
        recorder = Recorder(store, database, namespace=NAMESPACE)
        await recorder.resume()
        began = time.perf_counter()
        await recorder.catch_up()
        took_s = time.perf_counter() - began
        with database.read() as connection:
            last = connection.exec_driver_sql("SELECT sum(sequence_number) FROM batches").scalar()
            jobs = connection.exec_driver_sql("SELECT count(*) FROM jobs WHERE status = 'D'").scalar()
    if not last or not jobs:
        raise Broken("nothing was recorded")
    return int(last), took_s


async def drain_beside(url: str, batches: int, lanes: int, ledger: str | None) -> float:
    """Return the seconds of a drain; with a ledger, a recorder catches up meanwhile with an equal drain before it."""
    await dispatch.drain(url, batches, JOBS, lanes)
    async with contextlib.AsyncExitStack() as stack:
        if ledger is not None:
            stack.enter_context(opened(ledger))
        store = await stack.enter_async_context(Store.open(Connect(url=url)))
        worker = await stack.enter_async_context(harness.program("tickets", url, "--lanes", str(lanes)))
        del worker
        await store.devices.pause(dispatch.DEVICE, "benchmark")
        specs = dispatch._jobs(JOBS)  # noqa: SLF001  the same work as there
        for _ in range(batches):
            await dispatch._submit(store, specs)  # noqa: SLF001
        if ledger is not None:
            await stack.enter_async_context(harness.program("recorder", url, "--ledger", ledger))
        begin_us = await harness.server_time_us(store.redis)
        await store.devices.resume(dispatch.DEVICE)
        await harness.until(lambda: dispatch.is_drained(store), "the worker drained", 2 * harness.WAIT_S)
        ((_, last),) = await store.redis.xrevrange(store.keys(dispatch.Key.EVENTS), count=1)
        return (int(last[b"t"]) - begin_us) / 1e6


async def dataset(url: str, ledger: str, jobs: int, lanes: int) -> tuple[int, int]:
    """Return the bytes of Redis' dataset before, and after this many jobs were finished, recorded and forgotten."""
    async with Store.open(Connect(url=url)) as store:
        await dispatch.drain(url, 1, 1, lanes)
        with opened(ledger) as database:
            recorder = Recorder(store, database, namespace=NAMESPACE, grace_s=0)
            before = await _forget_all(store, recorder)
            async with harness.program("tickets", url, "--lanes", str(lanes)):
                for _ in range(jobs // JOBS):
                    await dispatch._submit(store, dispatch._jobs(JOBS))  # noqa: SLF001
                await harness.until(lambda: dispatch.is_drained(store), "the worker drained")
            return before, await _forget_all(store, recorder)


async def _forget_all(store: Store, recorder: Recorder) -> int:
    await recorder.resume()
    await recorder.catch_up()
    while await recorder.tidy():
        pass
    async for name in store.redis.scan_iter(match=store.keys(dispatch.Key.IDEMPOTENCY, "*", "*")):
        await store.redis.delete(name)
    names = [name async for name in store.redis.scan_iter()]
    return sum([await store.redis.memory_usage(name, samples=0) or 0 for name in names])


async def measure(url: str, ledgers: Iterator[str], asked: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    rates: dict[str, list[float]] = {"dispatch": [], "recorder": []}
    alone: list[float] = []
    beside: list[float] = []
    for number in range(1, asked.rounds + 1):
        note(f"round {number} of {asked.rounds}")
        _, drain_s = await dispatch.drain(url, asked.batches, JOBS, asked.lanes)
        async with Store.open(Connect(url=url)) as store:
            events, record_s = await record(store, next(ledgers))
        rates["dispatch"].append(events / drain_s)
        rates["recorder"].append(events / record_s)
        note(f"  transitions a second: dispatch {events / drain_s:,.0f}, recorder {events / record_s:,.0f}")
        alone.append(await drain_beside(url, asked.batches, asked.lanes, None))
        beside.append(await drain_beside(url, asked.batches, asked.lanes, next(ledgers)))
        note(f"  a drain alone {alone[-1]:.2f} s, beside a recorder that catches up {beside[-1]:.2f} s")
    before, after = await dataset(url, next(ledgers), asked.forgotten, asked.lanes)
    note(f"  dataset {before} bytes before, {after} after {asked.forgotten} forgotten jobs")
    figures = [
        figure("recorder / dispatch, transitions a second", ratio(rates["recorder"], rates["dispatch"]), ">= 0.5"),
        figure("drain beside a recorder that catches up / alone, seconds", ratio(beside, alone), "<= 1.1"),
        figure("dataset after / before, with all forgotten", after / before, "<= 1.05"),
    ]
    measured: dict[str, Any] = {f"{who}, transitions a second": values for who, values in rates.items()}
    measured |= {"drain alone, s": median(alone), "drain beside, s": median(beside)}
    return figures, harness.rounded(measured)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (3)")
    parser.add_argument("--batches", type=int, default=20, help=f"batches of {JOBS:,} jobs that are drained (20)")
    parser.add_argument("--forgotten", type=int, default=100_000, help="jobs that are forgotten (100,000)")
    parser.add_argument("--sqlite", action="store_true", help="record into SQLite instead of PostgreSQL")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a figure is not met")
    parser.add_argument("--lanes", type=int, default=4, help="lanes of the worker (4)")
    asked = parser.parse_args()
    with harness.server() as running, ledger_urls(sqlite=asked.sqlite) as ledgers:
        setup = harness.setup_of(running, asked.rounds, ledger="sqlite" if asked.sqlite else "postgresql")
        figures, measured = harness.run(measure(running.url, ledgers, asked))
    harness.report(figures, setup | {"measured": measured}, as_json=asked.json)
    return int(asked.strict and not all(one.met for one in figures))


if __name__ == "__main__":
    sys.exit(main())
