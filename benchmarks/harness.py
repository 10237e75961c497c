"""The common parts of the benchmarks: a private Redis, worker processes, medians, and the report of figures."""

from __future__ import annotations

import argparse
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
"""The longest single wait of a benchmark, unless it passes another limit."""
POLL_S = 0.02


class Broken(Exception):
    """The benchmark could not measure, because something that it ran failed."""


@dataclass(frozen=True)
class Figure:
    """A measured figure. ``target`` is like ``">= 10"``, ``"<= 3"`` or ``"< 1"``; empty if there is no target."""

    name: str
    value: float
    unit: str
    target: str
    met: bool


def figure(name: str, value: float, target: str, unit: str = "x") -> Figure:
    """Return a figure, compared with its target if there is one."""
    if not target:
        return Figure(name, round(value, 4), unit, target, met=True)
    relation, _, limit = target.partition(" ")
    met = {">=": value >= float(limit), "<=": value <= float(limit), "<": value < float(limit)}[relation]
    return Figure(name, round(value, 4), unit, target, met)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, round(percent / 100 * len(ranked)))]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' ratios: in a round, the contestants run right after one another."""
    return median([one / other for one, other in zip(ours, theirs, strict=True)])


async def until(condition: Callable[[], Awaitable[bool]], what: str, limit_s: float = WAIT_S) -> None:
    """Poll a condition until it holds."""
    deadline = time.monotonic() + limit_s
    while not await condition():
        if time.monotonic() > deadline:
            raise Broken(f"{what}: not within {limit_s:g} s")
        await asyncio.sleep(POLL_S)


def rounded(measured: dict[str, Any]) -> dict[str, Any]:
    """Round to four significant digits, which is more than the machine can reproduce."""
    return {
        name: [float(f"{one:.4g}") for one in value] if isinstance(value, list) else float(f"{value:.4g}")
        for name, value in measured.items()
    }


@contextlib.contextmanager
def server() -> Iterator[RedisServer]:
    """Run a redis-server with an append-only file that is synced each second and is not rewritten meanwhile."""
    with RedisServer(kind="redis", appendfsync="everysec", options={"auto-aof-rewrite-percentage": "0"}) as running:
        yield running


def setup_of(running: RedisServer, rounds: int, **more: Any) -> dict[str, Any]:
    """Describe what the figures depend on."""
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


def options(
    description: str | None, *, quick: str, rounds: str = "rounds of each measurement (3; 1 with --quick)"
) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks. quick, rounds: their help."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, help=rounds)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a figure is not met")
    return parser


def report(figures: Sequence[Figure], setup: dict[str, Any], *, as_json: bool) -> None:
    """Print the figures as a table and, with as_json, one JSON object as the last line."""
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


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def note(text: str) -> None:
    """Print to stderr what is being measured."""
    print(text, file=sys.stderr, flush=True)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run the benchmark on uvloop, as all contestants run."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


class Program:
    """A process that is ready."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def line(self, timeout_s: float = WAIT_S) -> str:
        """Return the next line that the process prints."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise Broken(f"a worker process printed nothing for {timeout_s:g} s") from error
        if not line:
            raise Broken(f"a worker process ended with status {await self._process.wait()}")
        return line.decode().strip()

    def send(self, line: str) -> None:
        """Write a line that the process waits for."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

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
async def launch(*command: str) -> AsyncIterator[Program]:
    """Run a command that prints ``ready``, until the block ends."""
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    ran = Program(process)
    try:
        line = await ran.line()
        if line != "ready":
            raise Broken(f"{' '.join(command)} printed {line!r} instead of 'ready'")
        yield ran
    finally:
        await ran.stop()


def program(what: str, url: str, *arguments: str) -> contextlib.AbstractAsyncContextManager[Program]:
    """Run ``workers.py what url …`` in a separate process until the block ends."""
    return launch(sys.executable, str(HERE / "workers.py"), what, url, *arguments)


async def server_time_us(client: Redis) -> int:
    """Return the time of Redis' clock, which the scripts use."""
    seconds, microseconds = await client.time()
    return int(seconds) * 1_000_000 + int(microseconds)
