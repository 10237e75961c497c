"""How Tweezer compares with other queues on Redis. The jobs do nothing.

Each queue has one client and one worker process, both from ``contestants.py``, in its own environment, which is made
on the first run and kept. The queues take turns on one redis-server. A round of a queue: its client submits jobs one by
one, its worker starts and drains them, the client submits single jobs to the idle worker, the worker stops, and the
client submits 10,000 jobs at once. For Tweezer these are one batch, which a new worker drains. No peer has batches.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import harness
from contestants import CONTESTANTS
from harness import HERE, Broken, Figure, Program, figure, launch, median, note, percentile, ratio
from redis.asyncio import Redis

OURS = "tweezer"
WARM_UP = 100
CLIENT, LOOP = ("redis==8.1.0", "hiredis==3.5.0"), "uvloop==0.23.0"
PEERS: dict[str, tuple[str, ...]] = {
    "arq": (),  # Tweezer depends on it: it is in this environment
    "saq": ("saq==0.26.4", "typing-extensions==4.16.0", *CLIENT, LOOP),
    "taskiq-redis": ("taskiq-redis==1.2.4", "taskiq==0.13.0", *CLIENT, LOOP),
    "streaq": ("streaq==7.2.0", "coredis==6.9.0", LOOP),
    "dramatiq": ("dramatiq==2.2.1", *CLIENT),
    "celery": ("celery[redis]==5.7.0", *CLIENT),
    "rq": ("rq==3.0.0", *CLIENT),
    "huey": ("huey==3.5.4", *CLIENT),
}
"""The packages of each peer's environment, the queue itself first."""

SUBMIT, DRAIN, MEDIAN, P99 = "submit, jobs/s", "drain, jobs/s", "idle latency, median ms", "idle latency, p99 ms"
BYTES, CPU = "bytes of Redis a queued job", "CPU µs of Redis a job"
SUBMIT_MANY, DRAIN_MANY = "submit at once, jobs/s", "drain of one batch, jobs/s"
BEST = {SUBMIT: max, DRAIN: max, MEDIAN: min, P99: min, BYTES: min, CPU: min, SUBMIT_MANY: max}
COLUMNS = (*BEST, DRAIN_MANY)
Round = Mapping[str, float]


def interpreter(name: str, environments: Path) -> str:
    """Return the Python that runs a queue; make its environment unless one with these packages exists."""
    wanted = PEERS.get(name)
    if not wanted:
        return sys.executable
    place = environments / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python, mark = place / "bin" / "python", place / "packages.txt"
    if mark.exists() and mark.read_text().split() == list(wanted):
        return str(python)
    note(f"installing {wanted[0]} into {place}")
    shutil.rmtree(place, ignore_errors=True)
    if uv := shutil.which("uv"):
        commands = [(uv, "venv", "--quiet", "--python", sys.executable, str(place))]
        commands += [(uv, "pip", "install", "--quiet", "--python", str(python), *wanted)]
    else:
        commands = [(sys.executable, "-m", "venv", str(place))]
        commands += [(str(python), "-m", "pip", "install", "--quiet", *wanted)]
    for command in commands:
        if subprocess.run(command, check=False).returncode != 0:
            raise Broken(f"could not install {name}; --only leaves peers out, --environments names another folder")
    mark.write_text("\n".join(wanted))
    return str(python)


async def usage(redis: Redis) -> tuple[int, float]:
    """Return the bytes that Redis uses, and its CPU time in µs, after 0.3 s."""
    await asyncio.sleep(0.3)  # clients finish their last calls
    info = await redis.info()
    return int(info["used_memory"]), 1e6 * (float(info["used_cpu_sys"]) + float(info["used_cpu_user"]))


async def measure_round(redis: Redis, url: str, name: str, python: str, asked: argparse.Namespace) -> Round:
    """Submit jobs one by one, drain them, measure the latency of single jobs, and submit many at once."""
    jobs, many, samples = (200, 200, 10) if asked.quick else (asked.jobs, 10_000, 200)
    await redis.flushall()
    # -I: a peer must not import what PYTHONPATH or this folder holds.
    program = (python, *(() if python == sys.executable else ("-I",)), str(HERE / "contestants.py"), name)
    limit_s = harness.WAIT_S + jobs / 50
    async with launch(*program, "client", url) as client:

        async def submit(what: str) -> tuple[int, int]:
            client.send(what)
            began, ended = (await client.line(limit_s)).split()
            return int(began), int(ended)

        @asynccontextmanager
        async def drain(count: int) -> AsyncIterator[tuple[Program, float]]:
            """Start a worker and yield it with its jobs a second, once it has drained the queue."""
            async with launch(*program, "worker", url, "--jobs", str(count)) as worker:
                first, last = [int(await worker.line(limit_s)) for _ in range(2)]
                yield worker, count / ((last - first) / 1e9)
                await asyncio.sleep(0.3)  # it ends its last jobs

        await submit(f"{WARM_UP}")  # connects, loads scripts, and lets buffers reach their size
        bytes_before, cpu_before = await usage(redis)
        began, ended = await submit(f"{jobs}")
        bytes_queued, cpu_queued = await usage(redis)
        async with drain(WARM_UP + jobs) as (worker, drained):
            _, cpu_drained = await usage(redis)
            taken: list[float] = []
            for number in range(samples + 5):
                await asyncio.sleep(random.uniform(0.010, 0.020))
                sent, _ = await submit("1")
                started = int(await worker.line())
                if number >= 5:
                    taken.append((started - sent) / 1e6)
        began_many, ended_many = await submit(f"{many} at once")
        result = {
            SUBMIT: jobs / ((ended - began) / 1e9),
            DRAIN: drained,
            MEDIAN: median(taken),
            P99: percentile(taken, 99),
            BYTES: (bytes_queued - bytes_before) / jobs,
            CPU: (cpu_queued - cpu_before) / jobs + (cpu_drained - cpu_queued) / (WARM_UP + jobs),
            SUBMIT_MANY: many / ((ended_many - began_many) / 1e9),
        }
        if name == OURS:
            async with drain(many) as (_, result[DRAIN_MANY]):
                pass
        return result


async def measure(url: str, pythons: Mapping[str, str], asked: argparse.Namespace) -> dict[str, list[Round]]:
    """Run all rounds; each round begins with another queue."""
    names = list(pythons)
    rounds: dict[str, list[Round]] = {name: [] for name in names}
    async with aclosing(Redis.from_url(url)) as redis:
        for number in range(asked.rounds):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                try:
                    took = await measure_round(redis, url, name, pythons[name], asked)
                except Broken as error:
                    raise Broken(f"{name}: {error}") from error
                rounds[name].append(took)
                note(f"round {number + 1}, {name}: " + "; ".join(f"{what} {value:.4g}" for what, value in took.items()))
    return rounds


def column(rounds: Sequence[Round], what: str) -> list[float]:
    """Return the values of the rounds; none where the queue does not have this."""
    return [one[what] for one in rounds if what in one]


def compare(rounds: Mapping[str, list[Round]]) -> list[Figure]:
    """Return the figures: Tweezer against the peers that targets name, and against the best peer in each column."""
    ours = rounds[OURS]
    peers = {name: taken for name, taken in rounds.items() if name != OURS}

    def best(what: str) -> str:
        return BEST[what](peers, key=lambda name: median(column(peers[name], what)))

    def against(name: str, what: str, theirs: str, target: str = "", rank: str = "") -> Figure:
        label = f"{what}: Tweezer / {rank}{name}"
        return figure(label, ratio(column(ours, what), column(peers[name], theirs)), target)

    targets = {DRAIN: ("huey", ">= 2"), SUBMIT: ("saq", ">= 1.2"), MEDIAN: ("huey", "<= 1.3")}
    return [
        *(against(name, what, what, target) for what, (name, target) in targets.items() if name in peers),
        figure(f"{BYTES}: Tweezer", median(column(ours, BYTES)), "<= 450", "bytes"),
        figure(f"{CPU}: Tweezer", median(column(ours, CPU)), "<= 100", "µs"),
        *(against(best(what), what, what, rank="the best peer, ") for what in BEST),
        against(best(DRAIN), DRAIN_MANY, DRAIN, rank="the best peer's drain, "),
    ]


def versions(names: Sequence[str]) -> dict[str, str]:
    return {
        name: PEERS[name][0].partition("==")[2] if PEERS.get(name) else importlib.metadata.version(name)
        for name in names
    }


def cell(values: Sequence[float]) -> str:
    """Return the median, and half of the distance of the extremes."""
    if not values:
        return "–"
    mid = median(values)
    shown = f"{mid:,.0f}" if mid >= 100 else f"{mid:.3g}"
    return f"{shown} ±{50 * (max(values) - min(values)) / mid:.0f} %"


def table(rounds: Mapping[str, list[Round]]) -> str:
    """Return a Markdown table of the medians, for docs/benchmarks.md."""
    shown = versions(list(rounds))
    rows = [
        [f"{name} {shown[name]}", *(cell(column(taken, what)) for what in COLUMNS)] for name, taken in rounds.items()
    ]
    return harness.markdown(["queue", *COLUMNS], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--markdown", action="store_true", help="first print the table of docs/benchmarks.md")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement (5; 1 with --quick)")
    parser.add_argument("--jobs", type=int, default=3000, help="jobs that each queue drains in a round (3000)")
    parser.add_argument("--only", default=",".join(PEERS), metavar="NAME,…", help=f"peers to run ({', '.join(PEERS)})")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tweezer-benchmarks"
    parser.add_argument(
        "--environments", type=Path, default=cache, help="folder of the peers' environments (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="200 jobs in one round: a smoke test, not a measurement")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a figure is not met")
    asked = parser.parse_args()
    asked.rounds = asked.rounds or (1 if asked.quick else 5)
    names = [name for name in CONTESTANTS if name == OURS or name in asked.only.split(",")]
    if len(names) != 1 + len(set(asked.only.split(","))):
        parser.error(f"--only: the peers are {', '.join(PEERS)}")
    pythons = {name: interpreter(name, asked.environments) for name in names}
    with harness.server() as running:
        setup = harness.setup_of(running, asked.rounds, quick=asked.quick, jobs=asked.jobs, queues=versions(names))
        rounds = harness.run(measure(running.url, pythons, asked))
    if asked.markdown:
        print(table(rounds), end="\n\n")
    measured = {f"{name}: {what}": column(taken, what) for name, taken in rounds.items() for what in COLUMNS}
    figures = compare(rounds)
    harness.report(figures, setup | {"measured": harness.rounded(measured)}, as_json=asked.json)
    return int(asked.strict and not all(one.met for one in figures))


if __name__ == "__main__":
    sys.exit(main())
