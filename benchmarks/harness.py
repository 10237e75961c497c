"""What the benchmarks share: a server of their own, worker processes, medians, and how figures are told."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import redis
import uvloop
from redis.asyncio import Redis

from tweezer.cli.local.redis_server import RedisServer

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
WAIT_S = 60.0
"""No single wait of a benchmark is longer, except where it says so."""
POLL_S = 0.02


class Broken(Exception):
    """The benchmark could not measure: what it ran did not do its work."""


@dataclass(frozen=True)
class Figure:
    """One measured figure; ``target`` is ``">= 10"`` or ``"<= 3"`` or ``"< 1"``, or empty: told, not judged."""

    name: str
    value: float
    unit: str
    target: str
    met: bool


def figure(name: str, value: float, target: str, unit: str = "x") -> Figure:
    """A figure, judged if it has a target."""
    if not target:
        return Figure(name, round(value, 4), unit, target, met=True)
    relation, _, limit = target.partition(" ")
    met = {">=": value >= float(limit), "<=": value <= float(limit), "<": value < float(limit)}[relation]
    return Figure(name, round(value, 4), unit, target, met)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, round(percent / 100 * len(ranked)))]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios: what is compared in a round ran right after one another."""
    return median([one / other for one, other in zip(ours, theirs, strict=True)])


async def until(condition: Callable[[], Awaitable[bool]], what: str, limit_s: float = WAIT_S) -> None:
    """Waits for a condition that only asking can tell."""
    deadline = time.monotonic() + limit_s
    while not await condition():
        if time.monotonic() > deadline:
            raise Broken(f"{what}: not after {limit_s:g} s")
        await asyncio.sleep(POLL_S)


def rounded(measured: dict[str, Any]) -> dict[str, Any]:
    """Four significant digits are more than the machine is good for."""
    return {
        name: [float(f"{one:.4g}") for one in value] if isinstance(value, list) else float(f"{value:.4g}")
        for name, value in measured.items()
    }


@contextlib.contextmanager
def server() -> Iterator[RedisServer]:
    """A redis-server with an append-only file, synced each second; it does not rewrite the file meanwhile."""
    with RedisServer(kind="redis", appendfsync="everysec", options={"auto-aof-rewrite-percentage": "0"}) as running:
        yield running


def setup_of(running: RedisServer, rounds: int, **more: Any) -> dict[str, Any]:
    """What a figure depends on."""
    with contextlib.closing(redis.Redis.from_url(running.url)) as client:
        redis_version = cast("dict[str, Any]", client.info("server"))["redis_version"]
    packages = ("arq", "redis", "hiredis", "msgspec", "uvloop", "pulser-core", "pulser-simulation", "qutip")
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "redis": redis_version,
        "appendfsync": "everysec",
        "versions": versions,
        "rounds": rounds,
        **more,
    }


def report(figures: Sequence[Figure], setup: dict[str, Any], *, as_json: bool) -> None:
    """Tells the figures: a table, or as the last line one JSON object."""
    width = max(len(one.name) for one in figures)
    for one in figures:
        verdict = ("met" if one.met else "NOT MET") if one.target else ""
        print(f"{one.name:<{width}}  {one.value:>10.3f} {one.unit:<6} {one.target:>8}  {verdict}", flush=True)
    if as_json:
        print(json.dumps({"figures": [asdict(one) for one in figures], "setup": setup}), flush=True)
        return
    print()
    for name, value in setup.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for inner, one in value.items():
                print(f"  {inner:<36} {one}")
        else:
            print(f"{name}: {value}")


def note(text: str) -> None:
    """Says on stderr what is being measured."""
    print(text, file=sys.stderr, flush=True)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs the benchmark on uvloop, which is what everything that is compared runs on."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


class Program:
    """A process of ``workers.py``, started and ready."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def line(self, timeout_s: float = WAIT_S) -> str:
        """The next line that the process says."""
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout_s):
            said = await self._process.stdout.readline()
        if not said:
            raise Broken(f"a worker process ended with status {await self._process.wait()}")
        return said.decode().strip()

    def go(self) -> None:
        """Lets a process that waits for it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    async def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def program(what: str, url: str, *arguments: str) -> AsyncIterator[Program]:
    """Runs ``workers.py what url …`` in a process of its own, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "workers.py"), what, url, *arguments,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    running = Program(process)
    try:
        said = await running.line()
        if said != "ready":
            raise Broken(f"{what} said {said!r} instead of being ready")
        yield running
    finally:
        await running.stop()


async def server_time_us(client: Redis) -> int:
    """The clock of the scripts."""
    seconds, microseconds = await client.time()
    return int(seconds) * 1_000_000 + int(microseconds)
