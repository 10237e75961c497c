"""The overhead of the queue for real jobs: EMU_FREE through the queue on two lanes, compared with a bare pool of two
processes, for small and larger registers; and what the queue saves when jobs are equal.

All processes are warm, and every round has other variables, so that nothing is cached from an earlier round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator
from typing import Any

import harness
import psutil
from bare_pool import QUBITS, BarePool, Item, sequence_text
from harness import Broken, Figure, figure, note, ratio

from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import TERMINAL_BATCH, BatchStatus
from tweezer.model.messages import BatchDoc, JobSpec
from tweezer.store.connection import Connect, Store
from tweezer.store.keys import Key

DEVICE = "EMU_FREE"
PROJECT = "benchmark"
LANES = 2
LIMIT_S = 550.0
JOBS = {4: 200, 8: 200, 12: 20}
"""The number of jobs for each number of qubits: one with 12 qubits takes seconds."""
TARGETS = {8: "<= 0.9"}


def distinct(jobs: int, seed: int) -> list[Item]:
    """Return jobs that share only the sequence."""
    draw = random.Random(seed)
    return [Item(500, {"omega": draw.uniform(8, 10), "detuning": draw.uniform(15, 25)}) for _ in range(jobs)]


def equal(jobs: int, seed: int) -> list[Item]:
    """Return jobs that differ only in their number of shots."""
    variables = distinct(1, seed)[0].variables
    return [Item(100 + number, variables) for number in range(jobs)]


class Spent:
    """The seconds that emulating all jobs took, and the CPU seconds of the processes that did it."""

    def __init__(self) -> None:
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def add(self, wall_s: float, cpu_s: float) -> None:
        self.wall_s.append(wall_s)
        self.cpu_s.append(cpu_s)


def cpu_s(*pids: int) -> float:
    """Return the CPU seconds that these processes and their children have used."""
    roots = [psutil.Process(pid) for pid in pids]
    times = [it.cpu_times() for root in roots for it in (root, *root.children(recursive=True))]
    return float(sum(it.user + it.system for it in times))


@contextlib.asynccontextmanager
async def pool_of_lanes(url: str) -> AsyncIterator[tuple[Store, int]]:
    """Yield a store, and the id of a worker's process whose lanes have imported the emulator."""
    async with Store.open(Connect(url=url)) as store:
        await store.redis.flushall()
        async with harness.program("tickets", url, "--device", DEVICE, "--lanes", str(LANES)) as worker:
            await harness.until(lambda: _is_warm(store), "the lanes are warm", 2 * harness.WAIT_S)
            yield store, worker.pid


async def _is_warm(store: Store) -> bool:
    device = await store.reader.device(DEVICE)
    return device is not None and device.lanes == LANES


async def through_the_queue(store: Store, text: str, items: list[Item]) -> float:
    """Return the seconds from the call of submit to the last event, by Redis' clock."""
    batch_id = new_batch_id()
    jobs = [JobSpec(item.runs, dict(item.variables)) for item in items]
    begin_us = await harness.server_time_us(store.redis)
    await store.commands.submit(batch_id, PROJECT, BatchDoc(DEVICE, text), jobs, idempotency_key=str(batch_id))

    async def is_over() -> bool:
        return (await store.reader.batch(batch_id, project=PROJECT)).status in TERMINAL_BATCH

    await harness.until(is_over, "the batch has ended", LIMIT_S)
    batch = await store.reader.batch(batch_id, project=PROJECT)
    results = await store.reader.results(batch_id, range(len(items)))
    if batch.status is not BatchStatus.DONE or len(results) != len(items):
        raise Broken(f"the batch ended as {batch.status} with {batch.counts}: {batch.fault}")
    ((_, last),) = await store.redis.xrevrange(store.keys(Key.EVENTS), count=1)
    return (int(last[b"t"]) - begin_us) / 1e6


async def compare(
    store: Store, pids: tuple[int, ...], qubits: int, jobs: int, rounds: int
) -> tuple[Spent, Spent, list[float]]:
    """Return the time that the jobs took through the queue and in a bare pool, and the seconds of equal jobs."""
    text, queue, pool, equals = sequence_text(qubits), Spent(), Spent(), []
    with BarePool(text, LANES) as bare:
        warming = distinct(2 * LANES, 0)
        await through_the_queue(store, text, warming)
        await asyncio.to_thread(bare.emulate, warming, LIMIT_S)
        for number in range(1, rounds + 1):
            items = distinct(jobs, number)
            before = cpu_s(*pids)
            wall_s = await through_the_queue(store, text, items)
            queue.add(wall_s, cpu_s(*pids) - before)
            before = cpu_s(*bare.pids)
            wall_s = await asyncio.to_thread(bare.emulate, items, LIMIT_S)
            pool.add(wall_s, cpu_s(*bare.pids) - before)
            if qubits == QUBITS:
                equals.append(await through_the_queue(store, text, equal(jobs, -number)))
            took = f"{queue.wall_s[-1]:.2f} s, bare {pool.wall_s[-1]:.2f} s"
            note(f"{qubits} qubits, round {number} of {rounds}: {took}")
    return queue, pool, equals


async def measure(url: str, server_pid: int, sizes: dict[int, int], rounds: int) -> tuple[list[Figure], dict[str, Any]]:
    figures: list[Figure] = []
    seen: dict[str, list[float]] = {}
    async with pool_of_lanes(url) as (store, worker_pid):
        for qubits, jobs in sizes.items():
            queue, pool, equals = await compare(store, (worker_pid, server_pid), qubits, jobs, rounds)
            what = f"{jobs} jobs of {qubits} qubits through the queue / bare pool"
            figures += [
                figure(what, ratio(queue.wall_s, pool.wall_s), TARGETS.get(qubits, "")),
                figure(f"{what}, CPU time", ratio(queue.cpu_s, pool.cpu_s), ""),
            ]
            seen |= {
                f"queue, {qubits} qubits, s": queue.wall_s,
                f"pool, {qubits} qubits, s": pool.wall_s,
                f"queue, {qubits} qubits, CPU s": queue.cpu_s,
                f"pool, {qubits} qubits, CPU s": pool.cpu_s,
            }
            if equals:
                seen["equal, s"] = equals
                figures.append(
                    figure(f"{jobs} equal jobs through the queue / bare pool", ratio(equals, pool.wall_s), "<= 0.1")
                )
    return figures, harness.rounded(seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement (3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs: a smoke test, not a measurement")
    parser.add_argument("--qubits", type=int, action="append", choices=JOBS, help="only these sizes (4, 8, 12)")
    parser.add_argument("--jobs", type=int, help="jobs of each size and round (200; of 12 qubits 20)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a figure is not met")
    asked = parser.parse_args()
    rounds = asked.rounds or (1 if asked.quick else 3)
    with harness.server() as running:
        fewer = 10 if asked.quick else 1
        sizes = {qubits: asked.jobs or JOBS[qubits] // fewer for qubits in asked.qubits or JOBS}
        setup = harness.setup_of(running, rounds, quick=asked.quick, lanes=LANES)
        figures, measured = harness.run(measure(running.url, running.pid, sizes, rounds))
    harness.report(figures, setup | {"measured": measured}, as_json=asked.json)
    return int(asked.strict and not all(one.met for one in figures))


if __name__ == "__main__":
    sys.exit(main())
