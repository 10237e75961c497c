"""The speed of webhooks and their cost to the queue: rate, slow-down of dispatch, latency when nothing else happens,
receivers that misbehave, connections that are cut, couriers that are replaced.

One redis-server, one courier process (``tweezer courier`` with default settings, loopback allowed), and a receiver in a
separate process that answers at once; the ledger is in SQLite, or in a private PostgreSQL with ``--postgres``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import dispatch
import harness
import msgspec
import receiving
from harness import Broken, Figure, figure, median, note, percentile, ratio
from receiving import Receipt
from recording import ledger_urls, opened

from tweezer.ledger.access.projects import project_no
from tweezer.model.addresses import WebhookPolicy
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import BatchDoc
from tweezer.settings import SETTINGS
from tweezer.store.connection import Connect, Store
from tweezer.store.keys import Key
from tweezer.store.streams.feed import COURIERS
from tweezer.webhooks.endpoints import create_endpoint

JOBS, LANES = 10, 32
OF_A_BATCH = 3 + JOBS  # created, running, done, and the end of each job
CONNECTIONS: int = SETTINGS["webhook.endpoint_connections"].field.default * SETTINGS["webhook.processes"].field.default
WARM_UPS, QUIET_S = 5, 0.03  # single events that are not counted, and the pause between them
CUT_EVERY, TOGETHER = 5, 20  # events between two cuts, and while one cuts
BEATS_PER_S, WELL, OTHERS = 4, 3, len(receiving.MISBEHAVING)


class Receiver:
    """``receiving.py receiver``."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._program = harness.Program(process)
        self._file = folder / "receipts"
        self._port = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[Receiver]:
        process = await _start(str(harness.HERE / "receiving.py"), "receiver")
        receiver = cls(process, folder)
        try:
            receiver._port = int(await receiver._program.line())
            yield receiver
        finally:
            await receiver._program.stop()

    def url(self, path: str = "well") -> str:
        return f"http://127.0.0.1:{self._port}/{path}"

    async def has(self, count: int, limit_s: float = harness.WAIT_S) -> None:
        """Wait until this many requests have arrived since the last ``take``."""
        try:
            await self._ask(f"has {count}", limit_s)
        except TimeoutError:
            raise Broken(f"{count} receipts: not after {limit_s:g} s") from None

    async def take(self) -> list[Receipt]:
        """Return the requests that arrived since the last call."""
        await self._ask(f"save {self._file}")
        return receiving.saved(str(self._file))

    async def post_again(self, receipts: list[Receipt], connections: int, gap_s: float = 0.0) -> list[float]:
        """Let a bare loop post the same bodies and headers; return when each began. Call ``take`` afterwards."""
        receiving.save(str(self._file), receipts)
        options = (self.url(), str(self._file), str(connections), str(gap_s))
        poster = await _start(str(harness.HERE / "receiving.py"), "poster", *options)
        return msgspec.json.decode(await harness.Program(poster).line(), type=list[float])

    async def _ask(self, what: str, limit_s: float = harness.WAIT_S) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n".encode())
        await self._program.line(limit_s)


async def _start(*command: str, **settings: str) -> asyncio.subprocess.Process:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TWEEZER_")}
    environment |= {f"TWEEZER_{name.upper()}": value for name, value in settings.items()}
    return await asyncio.create_subprocess_exec(
        sys.executable, *command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 24
    )


class Bench:
    """A Redis, ledgers, a receiver, and couriers that run for the time of a block."""

    def __init__(self, url: str, ledgers: Iterator[str], receiver: Receiver, folder: Path) -> None:
        self.url = url
        self.receiver = receiver
        self._ledgers = ledgers
        self._folder = folder

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        """Yield an empty store with a device that was announced and has no worker."""
        async with dispatch.pool(self.url, 1) as (store, _):
            pass
        async with Store.open(Connect(url=self.url)) as store:
            await store.devices.pause(dispatch.DEVICE, "benchmark")
            yield store

    @contextlib.asynccontextmanager
    async def courier(self, endpoints: Collection[str] = ()) -> AsyncIterator[None]:
        """Run a courier on a new ledger, with endpoints at these URLs for the default types of a batch's webhook."""
        process = await self.start_courier(self.new_ledger(endpoints))
        try:
            yield
        finally:
            await harness.Program(process).stop()

    def new_ledger(self, endpoints: Collection[str] = ()) -> str:
        """Make a database with a project and its endpoints, and return its URL."""
        ledger = next(self._ledgers)
        with opened(ledger) as database, database.write() as connection:
            project_no(connection, dispatch.PROJECT)
            for url in endpoints:
                policy = WebhookPolicy.parse("127.0.0.0/8", "443")
                create_endpoint(connection, policy, project_id=dispatch.PROJECT, url=url)
        return ledger

    async def start_courier(self, ledger: str, processes: int | None = None) -> asyncio.subprocess.Process:
        """Start ``tweezer courier`` on this ledger."""
        settings = {"redis_url": self.url, "database_url": ledger, "data_dir": str(self._folder)}
        if processes is not None:
            settings["webhook_processes"] = str(processes)
        return await _start(
            *("-m", "tweezer.cli", "courier"), **settings, webhook_allow="127.0.0.0/8", log_level="WARNING"
        )

    @contextlib.asynccontextmanager
    async def two_couriers(self, store: Store) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
        """Run two couriers of one process each; yield a function that replaces one, as a rolling restart does."""
        ledger = self.new_ledger()
        running = [await self.start_courier(ledger, 1) for _ in range(2)]

        async def are_up() -> bool:
            found = await store.redis.xinfo_groups(store.keys(Key.EVENTS))
            return any(it["name"] == COURIERS.encode() and it["consumers"] == len(running) for it in found)

        async def replace(number: int) -> None:
            await harness.Program(running[number]).stop()
            running[number] = await self.start_courier(ledger, 1)
            await harness.until(are_up, "the courier is replaced")

        try:
            await harness.until(are_up, "two couriers are up")
            yield replace
        finally:
            for process in running:
                await harness.Program(process).stop()


async def submit(store: Store, batches: int, webhook: str | None) -> list[UUID]:
    doc, specs = BatchDoc(dispatch.DEVICE, webhook=webhook), dispatch._jobs(JOBS)  # noqa: SLF001  the same work
    ids: list[UUID] = []
    for first in range(0, batches, 50):
        some = (
            store.commands.submit(new_batch_id(), dispatch.PROJECT, doc, specs)
            for _ in range(first, min(first + 50, batches))
        )
        ids += await asyncio.gather(*some)
    return ids


async def drain(store: Store) -> float:
    """Return the seconds from the resume to the last event, by Redis' clock."""
    begin_us = await harness.server_time_us(store.redis)
    await store.devices.resume(dispatch.DEVICE)
    await harness.until(lambda: dispatch.is_drained(store), "the worker drained the queue")
    ((_, last),) = await store.redis.xrevrange(store.keys(Key.EVENTS), count=1)
    return (int(last[b"t"]) - begin_us) / 1e6


def working(url: str) -> contextlib.AbstractAsyncContextManager[harness.Program]:
    return harness.program("tickets", url, "--lanes", str(LANES))


# ------------------------------------------------------------------------------------------------------ rate


async def rates(bench: Bench, batches: int) -> tuple[float, float]:
    """Return the deliveries per second of a courier that starts with a backlog, and those of a bare loop."""
    count = batches * OF_A_BATCH
    async with bench.store() as store, working(bench.url):
        await submit(store, batches, bench.receiver.url())
        await drain(store)
    async with bench.courier():
        await bench.receiver.has(count, 2 * harness.WAIT_S)
    receipts = await bench.receiver.take()
    twice = [identity for identity, times in Counter(it.id for it in receipts).items() if times > 1]
    if twice or len(receipts) != count:
        raise Broken(f"{len(receipts)} receipts of {count} events, {len(twice)} of them more than once")
    await bench.receiver.post_again(receipts, CONNECTIONS)
    again = await bench.receiver.take()
    if len(again) != count:
        raise Broken(f"the bare loop posted {len(again)} of {count}")
    return _rate(receipts), _rate(again)


def _rate(receipts: list[Receipt]) -> float:
    times = [it.at for it in receipts]
    return (len(times) - 1) / (max(times) - min(times))


# -------------------------------------------------------------------------------------------------- dispatch


async def drain_beside(bench: Bench, batches: int, *, webhooks: bool) -> float:
    """Return the seconds of a drain beside a courier that sends webhooks for it, or none."""
    url = bench.receiver.url() if webhooks else None
    async with bench.store() as store, working(bench.url), bench.courier():
        await submit(store, 1, bench.receiver.url())
        await bench.receiver.has(1)  # the courier is up
        await submit(store, batches, url)
        took_s = await drain(store)
        await bench.receiver.has((batches + 1 if webhooks else 1) * OF_A_BATCH, 2 * harness.WAIT_S)
    await bench.receiver.take()
    return took_s


# --------------------------------------------------------------------------------------------------- latency


async def latencies(bench: Bench, samples: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds from transition to receipt of single events, and those of bare posts of the same."""
    async with bench.store() as store, bench.courier():
        for number in range(1, samples + WARM_UPS + 1):
            await submit(store, 1, bench.receiver.url())
            await bench.receiver.has(number)
            await asyncio.sleep(QUIET_S)
        receipts = await bench.receiver.take()
    began = await bench.receiver.post_again(receipts, 1, QUIET_S)
    again = await bench.receiver.take()
    bare = [1000 * (it.at - begin) for it, begin in zip(again, began, strict=True)]
    return [_latency_ms(it) for it in receipts][WARM_UPS:], bare[WARM_UPS:]


def _latency_ms(receipt: Receipt) -> float:
    """Return the milliseconds since the time at the end of the event's id."""
    return 1000 * (receipt.at - int(receipt.id.rpartition(":")[2]) / 1e6)


# ----------------------------------------------------------------------------------- connections, restarts


async def after_cuts(bench: Bench, cuts: int, *, cutting: bool) -> list[float]:
    """Return the seconds from transition to receipt of events during and after a cut of the courier's connection."""
    async with bench.store() as store, bench.two_couriers(store):
        await submit(store, WARM_UPS, bench.receiver.url())
        await bench.receiver.has(WARM_UPS)
        await bench.receiver.take()
        for number in range(cuts):
            url = bench.receiver.url(f"well/{number}")
            cut = [_cut(store)] if cutting else []
            await asyncio.gather(*(submit(store, 1, url) for _ in range(TOGETHER)), *cut)
            for _ in range(CUT_EVERY):
                await submit(store, 1, url)
                await asyncio.sleep(QUIET_S)
            await bench.receiver.has((number + 1) * (TOGETHER + CUT_EVERY))  # not too often: couriers back off
        return await _delays(bench, cuts * (TOGETHER + CUT_EVERY))


async def _cut(store: Store) -> None:
    """Cut the connection on which a courier waits for entries."""

    async def is_cut() -> bool:
        waiting = [it["id"] for it in await store.redis.client_list() if it["cmd"] == "xreadgroup"]
        return any([await store.redis.client_kill_filter(_id=client) for client in waiting[:1]])

    await harness.until(is_cut, "a courier waits for entries")


async def over_restarts(bench: Bench) -> list[float]:
    """Return the seconds from transition to receipt of events while two couriers are replaced in turn."""
    async with bench.store() as store, bench.two_couriers(store) as replace:
        await submit(store, WARM_UPS, bench.receiver.url())
        await bench.receiver.has(WARM_UPS)
        await bench.receiver.take()

        async def replace_both() -> None:
            for number in range(2):
                await replace(number)

        replacing = asyncio.create_task(replace_both())
        count = 0
        while not replacing.done():
            await submit(store, 1, bench.receiver.url())
            count += 1
            await asyncio.sleep(QUIET_S)
        await replacing
        return await _delays(bench, count)


async def _delays(bench: Bench, count: int) -> list[float]:
    """Return the seconds to the first receipt of each of this many events."""
    first: dict[str, float] = {}

    async def are_here() -> bool:
        for receipt in await bench.receiver.take():
            first.setdefault(receipt.id, _latency_ms(receipt) / 1000)
        return len(first) == count

    await harness.until(are_here, f"{count} events are received")
    return list(first.values())


# ---------------------------------------------------------------------------------------------- neighbours


async def beside(bench: Bench, others: Collection[str], seconds: float) -> float:
    """Return the p99 of the milliseconds to healthy receivers, with others of the same project beside them."""
    paths = {f"/well/{number}" for number in range(WELL)}
    well = [bench.receiver.url(path.strip("/")) for path in sorted(paths)]
    receipts: list[Receipt] = []

    async def wait_for(batches: int) -> None:
        async def are_here() -> bool:
            receipts.extend(it for it in await bench.receiver.take() if it.path in paths)
            return len({(it.path, it.id) for it in receipts}) == batches * OF_A_BATCH * WELL

        await harness.until(are_here, "the healthy receivers have all events")

    async with bench.store() as store, working(bench.url), bench.courier([*well, *map(bench.receiver.url, others)]):
        await store.devices.resume(dispatch.DEVICE)
        await submit(store, 1, None)
        await wait_for(1)  # the courier is up
        receipts.clear()
        began = time.monotonic()
        batches = 0
        while (elapsed_s := time.monotonic() - began) < seconds:
            if elapsed_s * BEATS_PER_S >= batches:
                await submit(store, 1, None)
                batches += 1
            await asyncio.sleep(harness.POLL_S)
        await wait_for(batches)
    await bench.receiver.take()
    return percentile([_latency_ms(it) for it in receipts], 99)


async def measure(bench: Bench, asked: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    seen: dict[str, list[float]] = {}

    def saw(what: str, value: float) -> None:
        seen.setdefault(what, []).append(value)
        note(f"  {what}: {value:,.3f}")

    parts: dict[str, Callable[[], Awaitable[None]]] = {}

    async def rate() -> None:
        ours, bare = await rates(bench, asked.batches)
        saw("courier, deliveries a second", ours)
        saw("bare loop, posts a second", bare)

    async def dispatched() -> None:
        saw("drain without webhooks, s", await drain_beside(bench, asked.batches, webhooks=False))
        saw("drain with webhooks, s", await drain_beside(bench, asked.batches, webhooks=True))

    async def latency() -> None:
        ours, bare = await latencies(bench, asked.samples)
        saw("transition to receipt, median ms", median(ours))
        saw("transition to receipt, p99 ms", percentile(ours, 99))
        saw("bare post, median ms", median(bare))

    async def neighbours() -> None:
        quiet = [f"well/others/{number}" for number in range(OTHERS)]
        saw("p99 beside receivers that are well, ms", await beside(bench, quiet, asked.seconds))
        saw("p99 beside receivers that are not, ms", await beside(bench, receiving.MISBEHAVING, asked.seconds))

    async def cut() -> None:
        saw(
            "no connection is cut: transition to receipt, median s",
            median(await after_cuts(bench, asked.cuts, cutting=False)),
        )
        delays = await after_cuts(bench, asked.cuts, cutting=True)
        saw("a connection is cut: transition to receipt, median s", median(delays))
        saw("a connection is cut: transition to receipt, latest s", max(delays))

    async def restart() -> None:
        saw("rolling restart: transition to receipt, latest s", max(await over_restarts(bench)))

    parts = {
        "rate": rate,
        "dispatch": dispatched,
        "latency": latency,
        "neighbours": neighbours,
        "cut": cut,
        "restart": restart,
    }
    wanted = asked.only or list(parts)
    for number in range(1, asked.rounds + 1):
        note(f"round {number} of {asked.rounds}")
        for name in wanted:
            await parts[name]()

    compared = {
        "rate": (
            "courier, deliveries a second",
            "bare loop, posts a second",
            "courier / bare loop, deliveries a second",
            ">= 0.5",
        ),
        "dispatch": (
            "drain with webhooks, s",
            "drain without webhooks, s",
            "drain with webhooks / without, seconds",
            "<= 1.1",
        ),
        "latency": (
            "transition to receipt, median ms",
            "bare post, median ms",
            "transition to receipt / bare post, median",
            "<= 5",
        ),
        "neighbours": (
            "p99 beside receivers that are not, ms",
            "p99 beside receivers that are well, ms",
            "p99 of healthy receivers beside five that are not / beside healthy ones",
            "<= 2",
        ),
    }
    figures = [
        figure(name_of_ratio, ratio(seen[one], seen[other]), target)
        for name, (one, other, name_of_ratio, target) in compared.items()
        if name in wanted
    ]
    for what, target in (
        ("no connection is cut: transition to receipt, median s", ""),
        ("a connection is cut: transition to receipt, median s", "< 0.5"),
        ("a connection is cut: transition to receipt, latest s", ""),
        ("rolling restart: transition to receipt, latest s", "<= 1"),
    ):
        if what in seen:
            figures.append(figure(what.removesuffix(" s"), median(seen[what]), target, "s"))
    return figures, harness.rounded(dict(seen))


async def run(url: str, ledgers: Iterator[str], asked: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        async with Receiver.running(Path(name)) as receiver:
            return await measure(Bench(url, ledgers, receiver, Path(name)), asked)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (5)")
    names = ["rate", "dispatch", "latency", "neighbours", "cut", "restart"]
    parser.add_argument("--only", action="append", choices=names)
    parser.add_argument("--batches", type=int, default=1000, help=f"batches of {JOBS} jobs (1,000)")
    parser.add_argument("--samples", type=int, default=200, help="single events (200)")
    parser.add_argument("--cuts", type=int, default=20, help="of couriers' connections (20)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long neighbours are watched (10)")
    parser.add_argument("--postgres", action="store_true", help="a ledger on PostgreSQL instead of SQLite")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a figure is not met")
    asked = parser.parse_args()
    with harness.server() as running, ledger_urls(sqlite=not asked.postgres) as ledgers:
        setup = harness.setup_of(running, asked.rounds, ledger="postgresql" if asked.postgres else "sqlite")
        figures, measured = harness.run(run(running.url, ledgers, asked))
    harness.report(figures, setup | {"measured": measured}, as_json=asked.json)
    return int(asked.strict and not all(one.met for one in figures))


if __name__ == "__main__":
    sys.exit(main())
