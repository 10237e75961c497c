"""What a request costs: a submit of one job, and a read of a job or batch, compared with the least possible work."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import harness
import httpx
import psutil
from asking import answers_per_s, asking, free_port, request, serving
from harness import Figure, figure, median, ratio
from redis.asyncio import Redis

from tweezer.ledger.access.keys import create_key
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import BatchDoc, JobSpec
from tweezer.store.connection import Connect, Store

PROJECT, DEVICE = "benchmark", "NULL"
SUBMITTERS, READERS = 16, 50
BATCHES = 500
BODIES = 1000

Timings = defaultdict[str, list[float]]


def bodies() -> list[bytes]:
    """Return different submits of one job each."""
    batch = {"sequence_builder": "{}", "device_type": DEVICE, "project_id": PROJECT, "open": False, "webhook": None}
    variables = ({"omega": 12.5, "delta": -0.001 * number} for number in range(BODIES))
    return [json.dumps(batch | {"jobs": [{"runs": 100, "variables": each}]}).encode() for each in variables]


async def measure_submits(
    redis: Redis, process: int, port: int, requests: list[bytes], seconds: float
) -> tuple[float, ...]:
    """Return the submits per second, and for each the CPU time of the API and of Redis in ms, and the script calls."""
    api = psutil.Process(process)

    async def read() -> list[float]:
        cpu, stats = await redis.info("cpu"), await redis.info("commandstats")
        calls = sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))
        spent = sum(api.cpu_times()[:2]), float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
        return [answered(), time.perf_counter(), *(1000 * each for each in spent), calls]

    async with asking(port, requests, SUBMITTERS) as answered:
        await asyncio.sleep(seconds / 4)
        before = await read()
        await asyncio.sleep(seconds)
        count, took_s, *spent = (after - start for start, after in zip(before, await read(), strict=True))
    return count / took_s, *(each / count for each in spent)


async def measure(redis_url: str, folder: Path, rounds: int, seconds: float) -> tuple[list[Figure], dict[str, Any]]:
    url = f"sqlite:///{folder / 'api.db'}"
    database = Database.open(OpenDatabase(url), create=True)
    upgrade(database)
    with database.write() as connection:
        project_no(connection, PROJECT)
        key = create_key(connection, name="benchmark", project_id=PROJECT).text
    database.close()
    async with Store.open(Connect(url=redis_url)) as store:
        about_device = {"adapter": "null", "exclusive": 0, "max_runs": 1000, "checks_sequence": 0}
        about_worker = {"lanes": 0, "started": 1, "host": "here", "version": "0", "record_version": 1}
        await store.tickets.heartbeat("w", DEVICE, ttl_s=3600, about_device=about_device, about_worker=about_worker)
        specs = [JobSpec(100, {"omega": 12.5, "delta": -0.001})]
        made = [await store.commands.submit(new_batch_id(), PROJECT, BatchDoc(DEVICE), specs) for _ in range(BATCHES)]
    paths = {f"/api/v2/jobs/{job_id(batch, 0)}" for batch in made}, {f"/api/v2/batches/{batch}" for batch in made}
    ours, bare = free_port(), free_port()
    environment = {"TWEEZER_REDIS_URL": redis_url, "TWEEZER_DATABASE_URL": url, "TWEEZER_API_PORT": str(ours)}
    environment |= {"TWEEZER_API_REQUESTS_PER_S": "1e9", "TWEEZER_LOG_LEVEL": "WARNING"}
    answers = folder / "answers"
    answers.mkdir()
    took: Timings = defaultdict(list)
    async with serving("-m", "tweezer.cli", "api", environment=environment, port=ours) as process:
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as client:
            for path in (*paths[0], *paths[1]):
                answer = await client.get(f"http://127.0.0.1:{ours}{path}")
                (answers / Path(path).name).write_bytes(answer.raise_for_status().content)
        bare_api = str(harness.HERE / "bare_api.py")
        async with (
            serving(bare_api, str(bare), url, str(answers), environment={}, port=bare),
            Redis.from_url(redis_url) as redis,
        ):
            for _ in range(rounds):
                for name, port in (("API", ours), ("bare", bare)):
                    jobs, batches = ([request(port, key, path) for path in each] for each in paths)
                    took[f"GET of a job, {name}"].append(await answers_per_s(port, jobs, READERS, seconds))
                    took[f"GET of a batch, {name}"].append(await answers_per_s(port, batches, 1, seconds))
                submits = [request(bare, key, "/api/v1/batches", body) for body in bodies()]
                took["POST, bare"].append(await answers_per_s(bare, submits, SUBMITTERS, seconds))
                submits = [request(ours, key, "/api/v1/batches", body) for body in bodies()]
                found = await measure_submits(redis, process, ours, submits, seconds)
                for name, value in zip(("POST, API", "CPU", "Redis", "calls"), found, strict=True):
                    took[name].append(value)
    figures = [
        figure(
            f"GET of a job from {READERS} connections / bare endpoint",
            ratio(took["GET of a job, API"], took["GET of a job, bare"]),
            ">= 0.5",
        ),
        figure(
            "GET of a batch on one connection / bare endpoint",
            ratio(took["GET of a batch, API"], took["GET of a batch, bare"]),
            ">= 0.6",
        ),
        figure(
            f"POST of one job from {SUBMITTERS} connections / bare echo",
            ratio(took["POST, API"], took["POST, bare"]),
            "",
        ),
        figure("POST of one job", median(took["POST, API"]), "", "1/s"),
        figure("the same, CPU time of the API", median(took["CPU"]), "", "ms"),
        figure("the same, CPU time of Redis", median(took["Redis"]), "", "ms"),
        figure("the same, calls of scripts", median(took["calls"]), "", ""),
    ]
    return figures, {f"{name}, responses a second": each for name, each in took.items() if name[:3] in ("GET", "POS")}


def main() -> int:
    asked = harness.options(__doc__, quick="a fraction of the work: a smoke test, not a measurement").parse_args()
    rounds, seconds = (asked.rounds or 1, 0.5) if asked.quick else (asked.rounds or 3, 4.0)
    with harness.server() as running, tempfile.TemporaryDirectory(prefix="tweezer-http-") as folder:
        setup = harness.setup_of(running, rounds, quick=asked.quick, submitters=SUBMITTERS, readers=READERS)
        figures, measured = harness.run(measure(running.url, Path(folder), rounds, seconds))
    harness.report(figures, setup | {"measured": harness.rounded(measured)}, as_json=asked.json)
    return int(asked.strict and not all(one.met for one in figures))


if __name__ == "__main__":
    sys.exit(main())
