"""What the queue costs when jobs are real: EMU_FREE through the queue on two lanes, against a bare pool of two
processes; and what it saves when jobs are equal.

All processes are warm, and every round has variables of its own, so that nothing is remembered from an earlier one.
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


def distinct(jobs: int, seed: int) -> list[Item]:
    """Jobs that have nothing in common but the sequence."""
    draw = random.Random(seed)
    return [Item(500, {"omega": draw.uniform(8, 10), "detuning": draw.uniform(15, 25)}) for _ in range(jobs)]


def equal(jobs: int, seed: int) -> list[Item]:
    """Jobs that differ in the number of shots alone."""
    variables = distinct(1, seed)[0].variables
    return [Item(100 + number, variables) for number in range(jobs)]


@contextlib.asynccontextmanager
async def pool_of_lanes(url: str) -> AsyncIterator[Store]:
    """The store, and a worker whose lanes have the emulator imported."""
    async with Store.open(Connect(url=url)) as store:
        await store.redis.flushall()
        async with harness.program("tickets", url, "--device", DEVICE, "--lanes", str(LANES)):
            await harness.until(lambda: _is_warm(store), "the lanes are warm", 2 * harness.WAIT_S)
            yield store


async def _is_warm(store: Store) -> bool:
    device = await store.reader.device(DEVICE)
    return device is not None and device.lanes == LANES


async def through_the_queue(store: Store, text: str, items: list[Item]) -> float:
    """Seconds from the call of submit to the last event, by Redis' clock."""
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


async def measure(url: str, jobs: int, rounds: int) -> tuple[list[Figure], dict[str, Any]]:
    text = sequence_text()
    seconds: dict[str, list[float]] = {"queue": [], "pool": [], "equal": []}
    async with pool_of_lanes(url) as store:
        with BarePool(text, LANES) as bare:
            note("warming up")
            warming = distinct(4 * LANES, 0)
            await through_the_queue(store, text, warming)
            await asyncio.to_thread(bare.emulate, warming, LIMIT_S)
            for number in range(1, rounds + 1):
                note(f"round {number} of {rounds}")
                items = distinct(jobs, number)
                seconds["queue"].append(await through_the_queue(store, text, items))
                seconds["pool"].append(await asyncio.to_thread(bare.emulate, items, LIMIT_S))
                seconds["equal"].append(await through_the_queue(store, text, equal(jobs, -number)))
                note("  " + ", ".join(f"{what} {values[-1]:.2f} s" for what, values in seconds.items()))
    figures = [
        figure(
            f"{jobs} jobs of {QUBITS} qubits through the queue / bare pool",
            ratio(seconds["queue"], seconds["pool"]),
            "<= 1.1",
        ),
        figure(f"{jobs} equal jobs through the queue / bare pool", ratio(seconds["equal"], seconds["pool"]), "<= 0.1"),
    ]
    return figures, harness.rounded({f"{what}, s": values for what, values in seconds.items()})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement (3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="20 jobs: a smoke test, not a measurement")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a figure is not met")
    asked = parser.parse_args()
    rounds = asked.rounds or (1 if asked.quick else 3)
    with harness.server() as running:
        setup = harness.setup_of(running, rounds, quick=asked.quick, lanes=LANES, qubits=QUBITS)
        figures, measured = harness.run(measure(running.url, 20 if asked.quick else 200, rounds))
    harness.report(figures, setup | {"measured": measured}, as_json=asked.json)
    return int(asked.strict and not all(one.met for one in figures))


if __name__ == "__main__":
    sys.exit(main())
