"""How fast jobs that do nothing pass through the queue, compared with tuned arq and with bare Redis.

Every contestant has one worker process, uvloop and quiet logs, and uses the benchmark's own redis-server. The rounds
of the contestants alternate; a figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import harness
import references
from harness import Broken, Figure, figure, median, note, percentile, ratio
from redis.asyncio import Redis

from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import BatchDoc, JobSpec
from tweezer.model.quotas import QUOTAS
from tweezer.store.connection import Connect, Store
from tweezer.store.keys import Key

DEVICE = "NULL"
PROJECT = "benchmark"


def _jobs(count: int) -> list[JobSpec]:
    return [JobSpec(100, {"omega": 12.5 + index, "delta": -0.001 * index}) for index in range(count)]


async def _submit(store: Store, jobs: list[JobSpec], project: str = PROJECT) -> UUID:
    """Submit with a new id, by which a repeated call would be recognised, as the Python API does."""
    return await store.commands.submit(new_batch_id(), project, BatchDoc(DEVICE), jobs)


@contextlib.asynccontextmanager
async def pool(url: str, lanes: int, *options: str, workers: int = 1) -> AsyncIterator[tuple[Store, harness.Program]]:
    """Yield an empty store, and the first of its workers, which wait for work."""
    async with Store.open(Connect(url=url)) as store, contextlib.AsyncExitStack() as stack:
        await store.redis.flushall()
        command = ("tickets", url, "--lanes", str(lanes), *options)
        programs = [await stack.enter_async_context(harness.program(*command)) for _ in range(workers)]
        await harness.until(lambda: _has_lanes(store, lanes * workers), "the workers are ready")
        await asyncio.sleep(0.1)
        yield store, programs[0]


async def _has_lanes(store: Store, lanes: int) -> bool:
    device = await store.reader.device(DEVICE)
    return device is not None and device.lanes == lanes


async def is_drained(store: Store) -> bool:
    device = await store.reader.device(DEVICE)
    return device is not None and device.pending + device.running == 0


async def check_done(store: Store, batches: list[UUID]) -> None:
    for batch_id in batches:
        batch = await store.reader.batch(batch_id, project=None)
        if batch.status is not BatchStatus.DONE or batch.counts[JobStatus.DONE] != batch.jobs:
            raise Broken(f"batch {batch_id} ended as {batch.status} with {batch.counts}")


async def drain(
    url: str, batches: int, jobs: int, lanes: int, *, workers: int = 1, projects: int = 1
) -> tuple[float, float]:
    """Submit batches while the device is paused, then resume the device.

    Return the seconds of the submits, and those of the drain: by Redis' clock, from the resume to the last event.
    """
    async with pool(url, lanes, workers=workers) as (store, _):
        await store.devices.pause(DEVICE, "benchmark")
        specs = _jobs(jobs)
        owners = [f"{PROJECT}-{number % projects}" for number in range(batches)]
        await store.quotas.set_limits({owner: {quota.name: 0 for quota in QUOTAS} for owner in owners})  # 0: unlimited
        ids: list[UUID] = []
        began = time.perf_counter()
        for first in range(0, batches, 50):
            ids += await asyncio.gather(*(_submit(store, specs, owner) for owner in owners[first : first + 50]))
        submit_s = time.perf_counter() - began
        begin_us = await harness.server_time_us(store.redis)
        await store.devices.resume(DEVICE)
        await harness.until(lambda: is_drained(store), "the workers drained the queue", 2 * harness.WAIT_S)
        ((_, last),) = await store.redis.xrevrange(store.keys(Key.EVENTS), count=1)
        await check_done(store, ids)
        return submit_s, (int(last[b"t"]) - begin_us) / 1e6


async def submit(url: str, jobs: int) -> float:
    """Submit this many jobs in one call and return its seconds."""
    async with pool(url, 1) as (store, _):
        await store.devices.pause(DEVICE, "benchmark")
        await _submit(store, _jobs(1))  # loads the script
        specs = _jobs(jobs)
        gc.collect()
        began = time.perf_counter()
        await _submit(store, specs)
        return time.perf_counter() - began


async def latency(url: str, samples: int) -> list[float]:
    """Return the milliseconds from each call of submit to the start of the job in an idle worker."""
    async with pool(url, 1, "--stamping") as (store, worker):
        specs = _jobs(1)
        return await references.starts(worker, lambda: _submit(store, specs), samples)


async def _key_bytes(client: Redis) -> int:
    total = 0
    async for name in client.scan_iter(count=1000):
        total += await client.memory_usage(name, samples=0) or 0
    return total


async def _used_bytes(client: Redis) -> int:
    """Return used_memory once it is constant: Redis frees the buffers of closed connections gradually."""
    least, since = 1 << 62, time.monotonic()
    while time.monotonic() - since < 2.5:
        used = int((await client.info("memory"))["used_memory"])
        if used < least - 1024:
            least, since = used, time.monotonic()
        await asyncio.sleep(0.1)
    return least


async def memory(url: str, jobs: int) -> tuple[float, float]:
    """Return the bytes of a queued job in Redis: by used_memory, and by the sum of MEMORY USAGE of all keys."""
    async with pool(url, 1) as (store, _):
        await store.devices.pause(DEVICE, "benchmark")
        await _submit(store, _jobs(1))
        await asyncio.sleep(0.5)
        watcher = Redis.from_url(url)
        try:
            used, keys = await _used_bytes(watcher), await _key_bytes(watcher)
            async with Store.open(Connect(url=url)) as producer:
                await _submit(producer, _jobs(jobs))
            return (await _used_bytes(watcher) - used) / jobs, (await _key_bytes(watcher) - keys) / jobs
        finally:
            await watcher.aclose()


async def measure(url: str, asked: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """Run all rounds; return the figures and the setup."""
    count, samples = (500, 20) if asked.quick else (10_000, 200)
    seconds: dict[str, list[float]] = {}
    latencies: dict[str, list[list[float]]] = {"tweezer": [], "arq": [], "echo": []}

    def took(what: str, elapsed_s: float) -> None:
        seconds.setdefault(what, []).append(elapsed_s)
        note(f"  {what}: {elapsed_s:.3f} s")

    async def short(what: str, call: Callable[[], Awaitable[float]]) -> None:
        """Measure a call of a fraction of a second three times, because a single hiccup would dominate it."""
        took(what, median([await call() for _ in range(1 if asked.quick else 3)]))

    async def drain_one_batch() -> float:
        return (await drain(url, 1, count, asked.lanes))[1]

    for number in range(1, asked.rounds + 1):
        note(f"round {number} of {asked.rounds}")
        await short("one batch", drain_one_batch)
        await short("bare loop", lambda: references.pop_and_set(url, count))
        await short("bare loop, variadic", lambda: references.pop_and_set(url, count, references.POP_AND_SET_VARIADIC))
        await short("bare claim and commit", lambda: references.claim_and_commit(url, count))
        enqueue_s, drain_s = await references.arq_round(url, count)
        took("arq enqueue", enqueue_s)
        took("arq drain", drain_s)
        await short("submit", lambda: submit(url, count))
        took("one-job batches", (await drain(url, count, 1, asked.lanes_many))[1])
        latencies["tweezer"].append(await latency(url, samples))
        latencies["echo"].append(await references.echo_latency(url, samples))
        latencies["arq"].append(await references.arq_latency(url, samples))
    used, keys = await memory(url, 1_000 if asked.quick else 10_000)

    mid = {who: [median(one) for one in rounds] for who, rounds in latencies.items()}
    p99 = {who: [percentile(one, 99) for one in rounds] for who, rounds in latencies.items()}

    def faster(ours: str, theirs: str) -> float:
        return ratio(seconds[theirs], seconds[ours])

    figures = [
        figure(f"drain of {count} jobs in one batch / tuned arq's drain", faster("one batch", "arq drain"), ">= 10"),
        figure(f"drain of {count} jobs in one batch / bare Lua loop", faster("one batch", "bare loop"), ">= 0.35"),
        figure(
            f"drain of {count} jobs in one batch / bare claim and commit",
            faster("one batch", "bare claim and commit"),
            ">= 0.35",
        ),
        figure(f"drain of {count} one-job batches / tuned arq's drain", faster("one-job batches", "arq drain"), ">= 2"),
        figure(f"submit of {count} jobs in one call / tuned arq's enqueue", faster("submit", "arq enqueue"), ">= 20"),
        figure("idle latency, median / tuned arq's", ratio(mid["tweezer"], mid["arq"]), "< 1"),
        figure("idle latency, p99 / tuned arq's", ratio(p99["tweezer"], p99["arq"]), "< 1"),
        figure("idle latency, median / bare echo", ratio(mid["tweezer"], mid["echo"]), "<= 3"),
        figure("idle latency, p99 / bare echo", ratio(p99["tweezer"], p99["echo"]), "<= 3"),
        figure("memory in Redis a queued job", max(used, keys), "<= 200", "bytes"),
    ]
    measured: dict[str, Any] = {f"{what}, per second": [count / one for one in s] for what, s in seconds.items()}
    measured |= {f"latency of {who}, median ms": values for who, values in mid.items()}
    measured |= {f"latency of {who}, p99 ms": values for who, values in p99.items()}
    measured |= {"bytes a job by used_memory": used, "bytes a job by MEMORY USAGE": keys}
    return figures, harness.rounded(measured)


def main() -> int:
    parser = harness.options(__doc__, quick="a twentieth of the work: a smoke test, not a measurement")
    parser.add_argument("--lanes", type=int, default=4, help="lanes of the worker for one batch (4)")
    parser.add_argument("--lanes-many", type=int, default=32, help="lanes of the worker for one-job batches (32)")
    asked = parser.parse_args()
    asked.rounds = asked.rounds or (1 if asked.quick else 3)
    with harness.server() as running:
        setup = harness.setup_of(
            running, asked.rounds, quick=asked.quick, lanes=asked.lanes, lanes_for_one_job_batches=asked.lanes_many
        )
        figures, measured = harness.run(measure(running.url, asked))
    harness.report(figures, setup | {"measured": measured}, as_json=asked.json)
    return int(asked.strict and not all(one.met for one in figures))


if __name__ == "__main__":
    sys.exit(main())
