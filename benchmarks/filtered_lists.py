"""What lists cost over HTTP: those by two filters, with the query and the conversion to JSON, and those of tasks."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import psutil
from asking import free_port, serving
from harness import Broken, Figure, figure, median, percentile
from questions import Part, Questions
from tests.support.ledger_filling import DEVICES, TAGS, Filled

from tweezer.api.batches.schemas import JobResponse, ListedBatchResponse
from tweezer.api.http.responses import page
from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.access.keys import create_key
from tweezer.ledger.database import Database
from tweezer.ledger.queries.filters import BatchFilter, JobFilter
from tweezer.ledger.queries.queries import Queries
from tweezer.model.tasks import TaskStatus

LATENCY_MS = "<= 8"
TASKS_MS = "<= 50"

_PARAMETERS = {
    "ids": "id",
    "id_prefix": "id__starts_with",
    "projects": "project_id",
    "users": "user_id",
    "devices": "device_type",
    "priorities": "queue_priority",
    "statuses": "status",
    "batches": "batch_id",
    "failed": "errors",
    "runs_min": "min_runs",
    "runs_max": "max_runs",
    "jobs_min": "min_jobs",
    "jobs_max": "max_jobs",
    "started_from": "start_date",
    "ended_to": "end_date",
    "created_from": "min_created_at",
    "created_to": "max_created_at",
    "tags_any": "tag",
    "tags_all": "all_tags",
}
"""The query parameters whose names differ from those of the filter."""

Asked = tuple[Principal, dict[str, Any]]
Timings = defaultdict[str, list[float]]


def _query(wanted: Mapping[str, Any]) -> str:
    def text(value: object) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return value.isoformat() if isinstance(value, datetime) else str(value)

    values = {name: value if isinstance(value, tuple) else (value,) for name, value in wanted.items()}
    return urlencode({_PARAMETERS.get(name, name): [*map(text, value)] for name, value in values.items()}, doseq=True)


def _two(questions: Questions, parts: Callable[[], dict[str, Part]], times: int) -> list[Asked]:
    found = []
    for _ in range(times):
        caller = questions.next_caller()
        found.append((caller, questions.some(2, {name: part for name, part in parts().items() if name != "nothing"})))
    return found


async def _over_http(url: str, keys: dict[str, str], path: str, lists: list[Asked], process: psutil.Process) -> Timings:
    """Return the milliseconds of each request on one connection, and the average CPU time of the API."""
    targets = [(keys[next(iter(caller.projects))], f"{path}?{_query(wanted)}") for caller, wanted in lists]
    return await _get_all(url, targets, process)


async def _get_all(url: str, targets: list[tuple[str, str]], process: psutil.Process) -> Timings:
    """Do so for requests that are given as a key and a target each."""
    took: Timings = defaultdict(list)
    host, _, port = url.rpartition(":")
    reader, writer = await asyncio.open_connection(host, port)
    try:
        before = sum(process.cpu_times()[:2])
        for key, target in targets:
            line = f"GET {target} HTTP/1.1\r\nHost: {url}\r\nAuthorization: Bearer {key}\r\n\r\n"
            began = time.perf_counter()
            writer.write(line.encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
            took["HTTP"].append((time.perf_counter() - began) * 1000)
            if not head.startswith("http/1.1 200"):
                raise Broken(f"GET {target}: the server answered {head.splitlines()[0]}")
        took["CPU"] = [(sum(process.cpu_times()[:2]) - before) / len(targets) * 1000]
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return took


def _in_parts(query: Callable[..., Any], filter_type: Any, response_type: Any, lists: list[Asked]) -> Timings:
    """Return the milliseconds of each query, and those of the conversion of its page to JSON."""
    took: Timings = defaultdict(list)
    for caller, wanted in lists:
        began = time.perf_counter()
        found = query(caller, filter_type(**wanted))
        queried = time.perf_counter()
        page([response_type.from_record(record) for record in found.rows], offset=0, total=found.total)
        took["query"].append((queried - began) * 1000)
        took["JSON"].append((time.perf_counter() - queried) * 1000)
    return took


def _make_keys(database: Database, made: Filled) -> dict[str, str]:
    """Return a key of each project."""
    with database.write() as connection:
        return {
            project: create_key(connection, name="benchmark", project_id=project).text
            for project in map(made.plan.project, range(made.plan.projects))
        }


def _environment(url: str, redis_url: str, port: int) -> dict[str, str]:
    return {
        "TWEEZER_REDIS_URL": redis_url,
        "TWEEZER_DATABASE_URL": url,
        "TWEEZER_API_PORT": str(port),
        "TWEEZER_API_REQUESTS_PER_S": "1e9",
        "TWEEZER_LOG_LEVEL": "WARNING",
    }


async def measure_tasks(
    name: str, database: Database, url: str, made: Filled, *, redis_url: str, times: int
) -> tuple[list[Figure], dict[str, Any]]:
    """Measure the lists, the counts and the summaries of tasks, for users of one project and for an operator."""
    keys = _make_keys(database, made)
    with database.write() as connection:
        operator = create_key(connection, name="operator", role=Role.OPERATOR).text
    callers = [*keys.values(), operator]
    chance, port = random.Random(11), free_port()
    most = len(made.batches) // made.plan.projects

    def queries() -> dict[str, str]:
        tags = chance.sample(TAGS, 3)
        return {
            "list": "",
            "list, any page": f"offset={chance.randrange(most)}",
            "list by state": f"state={chance.choice(('waiting', 'running', 'complete', 'incomplete', 'archived'))}",
            "list by status and backend": f"status={chance.choice(list(TaskStatus))}&backend={chance.choice(DEVICES)}",
            "list by tags": f"tag={tags[0]}&tag={tags[1]},{tags[2]}",
            "list by a part of the name": f"name__contains={chance.randrange(1000)}",
        }

    targets: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for _ in range(times):
        for kind, query in queries().items():
            for path, what in (("/api/tasks", kind), ("/api/tasks/summaries", kind.replace("list", "summaries"))):
                targets[what].append((chance.choice(callers), f"{path}?{query}"))
        targets["counts"].append((chance.choice(callers), "/api/tasks/counts"))
    took: dict[str, list[float]] = {}
    async with serving("-m", "tweezer.cli", "api", environment=_environment(url, redis_url, port), port=port) as pid:
        process, server = psutil.Process(pid), f"127.0.0.1:{port}"
        for what, each in targets.items():
            await _get_all(server, each[: times // 4], process)  # warm up
            took[what] = (await _get_all(server, each, process))["HTTP"]
    slowest = {what: percentile(each, 99) for what, each in took.items()}
    figures = [
        figure(
            f"{name}: {part} of tasks, p99 of the slowest",
            max(p99 for what, p99 in slowest.items() if what.startswith(part)),
            TASKS_MS,
            "ms",
        )
        for part in ("list", "summaries", "counts")
    ]
    measured = {f"{name}: tasks, {what}, p50 and p99 ms": [median(each), slowest[what]] for what, each in took.items()}
    return figures, measured


async def measure_lists(
    name: str, database: Database, url: str, made: Filled, *, redis_url: str, times: int
) -> tuple[list[Figure], dict[str, Any]]:
    """Measure lists of jobs and of batches by two random filters, for a user of one project."""
    keys = _make_keys(database, made)
    queries, questions, port = Queries(database), Questions(made), free_port()
    environment = _environment(url, redis_url, port)
    figures: list[Figure] = []
    measured: dict[str, Any] = {}
    async with serving("-m", "tweezer.cli", "api", environment=environment, port=port) as pid:
        process = psutil.Process(pid)
        for kind, path, parts, query, types in (
            ("jobs", "/api/v2/jobs", questions.job_parts, queries.jobs, (JobFilter, JobResponse)),
            ("batches", "/api/v2/batches", questions.batch_parts, queries.batches, (BatchFilter, ListedBatchResponse)),
        ):
            lists = _two(questions, parts, times)
            await _over_http(f"127.0.0.1:{port}", keys, path, lists[: times // 4], process)  # warm up
            took = await _over_http(f"127.0.0.1:{port}", keys, path, lists, process)
            took |= _in_parts(query, *types, lists)
            figures.append(
                figure(f"{name}: list of {kind} by two filters, p50", median(took["HTTP"]), LATENCY_MS, "ms")
            )
            figures.append(figure(f"{name}: the same, CPU time of the API", took["CPU"][0], "", "ms"))
            for part in ("HTTP", "query", "JSON"):
                measured[f"{name}: {kind}, {part}, p50 and p99 ms"] = [median(took[part]), percentile(took[part], 99)]
    return figures, measured
