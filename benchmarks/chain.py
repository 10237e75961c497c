"""How fast batches start that waited: for each other, in a chain; for one other batch; and for a common start time.

One worker process with null lanes, and the benchmark's own redis-server. The batches are submitted while the device is
paused, so that submits are not measured. Time is by Redis' clock: from the resume to the last event.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import dispatch
import harness
from harness import Figure, figure, median, note

from tweezer.model.ids import new_batch_id
from tweezer.model.messages import BatchDoc, JobSpec
from tweezer.model.rules import Dependency, Rules, When
from tweezer.store.connection import Store
from tweezer.store.keys import Key

PAGE = 50  # concurrent submits
SUBMITS_S = 1000  # that are certainly possible in a second, so that all are done before the start time


async def _submit(store: Store, *parents: UUID, when: When = When.DONE) -> UUID:
    rules = Rules(depends_on=tuple(Dependency(parent, when) for parent in parents)) if parents else None
    doc = BatchDoc(dispatch.DEVICE, rules=rules)
    return await store.commands.submit(new_batch_id(), dispatch.PROJECT, doc, [JobSpec(100)])


async def _chain(store: Store, count: int) -> list[UUID]:
    ids = [await _submit(store)]
    while len(ids) < count:
        ids.append(await _submit(store, ids[-1]))
    return ids


async def _fan(store: Store, count: int) -> list[UUID]:
    first = await _submit(store)
    ids = [first]
    while len(ids) < count:
        ids += await asyncio.gather(*(_submit(store, first) for _ in range(min(PAGE, count - len(ids)))))
    return ids


async def _plain(store: Store, count: int) -> list[UUID]:
    ids: list[UUID] = []
    while len(ids) < count:
        ids += await asyncio.gather(*(_submit(store) for _ in range(min(PAGE, count - len(ids)))))
    return ids


async def run_all(url: str, submit: Callable[[Store, int], Awaitable[list[UUID]]], count: int, lanes: int) -> float:
    """Return the batches a second that the worker runs."""
    async with dispatch.pool(url, lanes) as (store, _):
        await store.devices.pause(dispatch.DEVICE, "benchmark")
        ids = await submit(store, count)
        begin_us = await harness.server_time_us(store.redis)
        await store.devices.resume(dispatch.DEVICE)
        await harness.until(lambda: dispatch.is_drained(store), "the worker ran all batches", 2 * harness.WAIT_S)
        ((_, last),) = await store.redis.xrevrange(store.keys(Key.EVENTS), count=1)
        await dispatch.check_done(store, ids)
        return count / (int(last[b"t"]) - begin_us) * 1e6


async def cancel_all(url: str, count: int) -> float:
    """Cancel the first batch of a chain, and sweep like a process; return the seconds until all are cancelled."""
    async with dispatch.pool(url, 1) as (store, _):
        await store.devices.pause(dispatch.DEVICE, "benchmark")
        first, *_ = await _chain(store, count)
        begin_us = await harness.server_time_us(store.redis)
        await store.commands.cancel(first, project=None)
        await harness.until(lambda: dispatch.is_drained(store), "all batches are cancelled")
        ((_, last),) = await store.redis.xrevrange(store.keys(Key.EVENTS), count=1)
        return (int(last[b"t"]) - begin_us) / 1e6


async def start_together(url: str, count: int, lanes: int) -> float:
    """Return the seconds from the common start time of batches until the last of them has ended."""
    async with dispatch.pool(url, lanes) as (store, _):
        ahead = timedelta(seconds=2 + count / SUBMITS_S)
        begin = datetime.fromtimestamp(await harness.server_time_us(store.redis) / 1e6, UTC) + ahead
        doc, ids = BatchDoc(dispatch.DEVICE), [new_batch_id() for _ in range(count)]
        for first in range(0, count, PAGE):
            page = ids[first : first + PAGE]
            submit = store.commands.submit
            await asyncio.gather(*(submit(it, dispatch.PROJECT, doc, [JobSpec(100)], not_before=begin) for it in page))
        if await harness.server_time_us(store.redis) > begin.timestamp() * 1e6:
            raise harness.Broken("the submits took longer than until the start time")
        await harness.until(lambda: dispatch.is_drained(store), "the worker ran all batches", 3 * harness.WAIT_S)
        ((_, last),) = await store.redis.xrevrange(store.keys(Key.EVENTS), count=1)
        await dispatch.check_done(store, ids)
        return int(last[b"t"]) / 1e6 - begin.timestamp()


async def measure(url: str, asked: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """Run all rounds; return the figures and the measured values."""
    count = 100 if asked.quick else 1000
    measured: dict[str, list[float]] = {}

    def got(what: str, value: float) -> None:
        measured.setdefault(what, []).append(value)
        note(f"  {what}: {value:.4g}")

    for number in range(1, asked.rounds + 1):
        note(f"round {number} of {asked.rounds}")
        got("chain, batches a second", await run_all(url, _chain, count, 1))
        got("fan-out, batches a second", await run_all(url, _fan, count, asked.lanes))
        got("independent, batches a second", await run_all(url, _plain, count, asked.lanes))
        got("cancel of a chain, seconds", await cancel_all(url, count))
        got("common start time, seconds", await start_together(url, 10 * count, asked.lanes))
    chain, fan, plain, cancel, together = (median(values) for values in measured.values())
    figures = [
        figure(f"chain of {count} one-job batches", chain, ">= 200", "per s"),
        figure(f"{count - 1} one-job batches that depend on one / independent ones", fan / plain, ""),
        figure(f"cancel of a chain of {count} batches", cancel, "", "s"),
        figure(f"{10 * count} batches with one start time, until the last has ended", together, "<= 5", "s"),
    ]
    return figures, harness.rounded(measured)


def main() -> int:
    parser = harness.options(__doc__, quick="a tenth of the work: a smoke test, not a measurement")
    parser.add_argument("--lanes", type=int, default=32, help="lanes of the worker, except for the chain (32)")
    asked = parser.parse_args()
    asked.rounds = asked.rounds or (1 if asked.quick else 3)
    with harness.server() as running:
        setup = harness.setup_of(running, asked.rounds, quick=asked.quick, lanes=asked.lanes)
        figures, measured = harness.run(measure(running.url, asked))
    harness.report(figures, setup | {"measured": measured}, as_json=asked.json)
    return int(asked.strict and not all(one.met for one in figures))


if __name__ == "__main__":
    sys.exit(main())
