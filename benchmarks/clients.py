"""The overhead that Pasqal's clients see: one user who waits for a small job, and fifty who submit without a pause.

The one is the unmodified client in its own environment, compared with a bare emulation of the job. The fifty send the
client's requests over bare connections, compared with as many tasks that do the same with the Python API.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import harness
from bare_pool import BarePool, Item, sequence_text
from harness import Broken, Figure, figure, median, note, percentile, ratio
from installation import PROJECT, Installation
from speaking import Speaker, Timings, route

from tweezer.client import AsyncQueue, connect_async

CLIENTS, JOBS, LANES = 50, 10, 32
QUBITS, RUNS = 4, 500
LIMIT_S = 60.0
NULL_JOBS: list[dict[str, Any]] = [
    {"runs": RUNS, "variables": {"omega": 12.5, "delta": -0.001 * index}} for index in range(JOBS)
]


class Client:
    """``pasqal_client.py`` in the client's interpreter."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._program = harness.Program(process)

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, python: str, **start: object) -> AsyncIterator[Client]:
        process = await asyncio.create_subprocess_exec(
            python, "-W", "ignore", str(harness.HERE / "pasqal_client.py"),
            env={name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TWEEZER_"))},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        client = cls(process)
        try:
            client._write(start)
            await client._program.line()
            yield client
        finally:
            await client._program.stop()

    async def ask(self, act: str, variables: dict[str, float]) -> dict[str, Any]:
        self._write({"act": act, "variables": variables})
        answer: dict[str, Any] = json.loads(await self._program.line())
        return answer

    def _write(self, message: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")


# ------------------------------------------------------------------------------------------- one user who waits


async def measure_one(at: Installation, python: str, repeats: int) -> tuple[list[Figure], dict[str, Any]]:
    """Run what is compared one after another; each repeat has other variables, because evolutions are cached."""
    text, draw = sequence_text(QUBITS), random.Random(7)
    start = {"base": f"http://127.0.0.1:{at.port}", "project": PROJECT, "key": at.keys[0]}
    seconds: dict[str, list[float]] = defaultdict(list)
    requests: dict[str, list[float]] = defaultdict(list)

    def item() -> Item:
        return Item(RUNS, {"omega": draw.uniform(8, 10), "detuning": draw.uniform(15, 25)})

    async with at.serves("EMU_FREE", 1), Client.running(python, sequence=text, runs=RUNS, **start) as client:
        with BarePool(text, 1) as bare:
            for number in range(-1, repeats):
                took, compared = {}, item()
                took["bare emulation"] = await asyncio.to_thread(bare.emulate, [compared], LIMIT_S)
                took["five bare round trips"] = (await client.ask("ping", {}))["s"]
                for act, one in (("client", compared), ("backend", item())):
                    answer = await client.ask(act, one.variables)
                    if answer["shots"] != RUNS:
                        raise Broken(f"the {act} got {answer['shots']} shots")
                    took[act] = answer["s"]
                    if act == "client":
                        took["emulation by the job's record"] = answer["emulation_s"]
                    for place, request in enumerate(answer["requests"] if number >= 0 else ()):
                        called = f"{act}, request {place + 1}: {route(request['method'], request['path'])}"
                        requests[called].append(request["s"])
                if number >= 0:  # the first repeat is a warm-up
                    for name, taken in took.items():
                        seconds[name].append(taken)
    least = [sum(pair) for pair in zip(seconds["bare emulation"], seconds["five bare round trips"], strict=True)]
    figures = [
        figure(
            f"submit, wait, results of a {QUBITS}-qubit job / bare emulation and five round trips",
            ratio(seconds["client"], least),
            "<= 1.5",
        ),
        figure("the same by Pulser's remote backend", ratio(seconds["backend"], least), ""),
    ]
    measured = {f"{name}, median ms": median(each) * 1000 for name, each in {**seconds, **requests}.items()}
    return figures, measured


# --------------------------------------------------------------------------------------- fifty who keep at it


async def batches_per_s(users: list[Callable[[], Awaitable[int]]], seconds: float) -> float:
    """Return batches per second of users who each submit one as soon as they have the results of the last one."""
    began = time.perf_counter()

    async def keep_at_it(batch: Callable[[], Awaitable[int]]) -> int:
        made = 0
        while time.perf_counter() - began < seconds:
            if (shots := await batch()) != JOBS * RUNS:
                raise Broken(f"a batch has {shots} shots instead of {JOBS * RUNS}")
            made += 1
        return made

    made = sum(await asyncio.gather(*(keep_at_it(user) for user in users)))
    return made / (time.perf_counter() - began)


async def over_http(at: Installation, seconds: float, timings: Timings) -> float:
    async with contextlib.AsyncExitStack() as stack:
        speakers = [await stack.enter_async_context(Speaker(at.port, key, PROJECT, timings)) for key in at.keys]

        def user(speaker: Speaker) -> Callable[[], Awaitable[int]]:
            async def batch() -> int:
                return sum(sum(result["counter"].values()) for result in await speaker.batch(NULL_JOBS))

            return batch

        return await batches_per_s([user(speaker) for speaker in speakers], seconds)


async def through_the_store(queue: AsyncQueue, seconds: float) -> float:
    async def batch() -> int:
        submitted = await queue.submit(None, NULL_JOBS, device="NULL")
        return sum(sum(job.counter.values()) for job in await submitted.results(LIMIT_S))

    return await batches_per_s([batch] * CLIENTS, seconds)


async def measure_many(at: Installation, rounds: int, seconds: float) -> tuple[list[Figure], dict[str, Any]]:
    rates: dict[str, list[float]] = {"API": [], "store": []}
    timings: Timings = defaultdict(list)
    async with at.serves("NULL", LANES), connect_async(at.redis_url, project=PROJECT) as queue:
        await over_http(at, seconds / 4, defaultdict(list))
        await through_the_store(queue, seconds / 4)
        for number in range(1, rounds + 1):
            await at.recorded()
            rates["API"].append(await over_http(at, seconds, timings))
            await at.recorded()
            rates["store"].append(await through_the_store(queue, seconds))
            note(f"  round {number}: " + ", ".join(f"{who} {rate[-1]:.0f} batches/s" for who, rate in rates.items()))
    figures = [
        figure(f"batches of {JOBS} jobs, {CLIENTS} clients of the API", median(rates["API"]), "", "1/s"),
        figure(f"batches of {JOBS} jobs, {CLIENTS} tasks at the store", median(rates["store"]), "", "1/s"),
        figure("API / store", ratio(rates["API"], rates["store"]), ""),
    ]
    figures += [figure(f"p99 of {name}", percentile(each, 99) * 1000, "", "ms") for name, each in timings.items()]
    measured: dict[str, Any] = {f"{who}, batches a second": each for who, each in rates.items()}
    return figures, measured | {f"{name}, p50 ms": median(each) * 1000 for name, each in timings.items()}


async def measure(redis_url: str, asked: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    figures: list[Figure] = []
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tweezer-clients-") as folder:
        async with Installation.running(redis_url, Path(folder), CLIENTS) as at:
            if asked.only != "many":
                note("one user")
                figures, measured = await measure_one(at, asked.client, asked.rounds * asked.repeats)
            if asked.only != "one":
                note("fifty users")
                more, about = await measure_many(at, asked.rounds, asked.seconds)
                figures, measured = figures + more, measured | about
    return figures, harness.rounded(measured)


def main() -> int:
    parser = harness.options(__doc__, quick="a fraction of the work: a smoke test, not a measurement")
    parser.add_argument("--client", default=os.environ.get("TWEEZER_COMPAT_A"), help="Python with pasqal-cloud 0.24")
    parser.add_argument("--only", choices=("one", "many"), help="one part")
    asked = parser.parse_args()
    if asked.client is None and asked.only != "many":
        parser.error("--client, or TWEEZER_COMPAT_A, must name a Python of an environment with pasqal-cloud 0.24")
    asked.rounds = asked.rounds or (1 if asked.quick else 3)
    asked.repeats, asked.seconds = (3, 1.0) if asked.quick else (20, 5.0)
    with harness.server() as running:
        setup = harness.setup_of(running, asked.rounds, quick=asked.quick, clients=CLIENTS, jobs=JOBS, lanes=LANES)
        figures, measured = harness.run(measure(running.url, asked))
    harness.report(figures, setup | {"measured": measured}, as_json=asked.json)
    return int(asked.strict and not all(one.met for one in figures))


if __name__ == "__main__":
    sys.exit(main())
