"""How quickly the ledger answers over a long history, compared with the least possible work.

Fills SQLite and a private PostgreSQL with the same invented history, and runs the queries of the API's lists on both.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for tests: PostgreSQL, filling

import harness
from filtered_lists import measure_lists, measure_tasks
from harness import Broken, Figure, figure, median, note, percentile, ratio
from questions import Questions
from sqlalchemy import bindparam, select
from tests.support.ledger_filling import Filled, Plan, fill
from tests.support.postgres import PostgresServer

from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.ledger.queries.filters import BatchFilter, BatchOrder, JobFilter, JobOrder
from tweezer.ledger.queries.queries import Queries
from tweezer.ledger.schema import batches, jobs
from tweezer.model.ids import job_id

OPERATOR = Principal("operator", Role.OPERATOR)
PROJECT, DEVICE = "benchmark", "NULL"
JOBS_ASKED = 500
JOBS_LISTED, LISTS_MIN = 150_000, 50
LATENCY_MS = "<= 50"
SHARED_BUFFERS = "1GB"
"""The shared buffers of PostgreSQL: its default is 128 MB, which every serious installation raises."""

Timings = dict[str, list[float]]


# ---------------------------------------------------------------------------------------------------- ledgers


@contextlib.contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database.open(OpenDatabase(url), create=True)
    try:
        yield database
    finally:
        database.close()


def filled(database: Database, plan: Plan) -> Filled:
    """Fill the database, and let PostgreSQL do at once what autovacuum does within a minute."""
    upgrade(database)
    began = time.monotonic()
    made = fill(database, plan, tables=False)
    note(f"  {plan.jobs} jobs in {plan.batches} batches: {time.monotonic() - began:.0f} s")
    if not database.is_sqlite:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    return made


def took_ms(question: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    question(*arguments)
    return (time.perf_counter() - began) * 1000


# ------------------------------------------------------------------------------------------------------ lists


def single_filters(queries: Queries, questions: Questions, times: int) -> Timings:
    """Return the milliseconds of the first page and the total for each filter alone, newest first."""
    took: Timings = defaultdict(list)
    for _ in range(times):
        for name, part in questions.job_parts().items():
            caller, wanted = questions.next_caller(), JobFilter(**part())
            took[f"jobs by {name}"].append(took_ms(queries.jobs, caller, wanted))
        for name, part in questions.batch_parts().items():
            caller, chosen = questions.next_caller(), BatchFilter(**part())
            took[f"batches by {name}"].append(took_ms(queries.batches, caller, chosen))
    return took


def three_filters(queries: Queries, questions: Questions, times: int) -> Timings:
    """Return the same for three filters together, in any order, on any page."""
    took: Timings = defaultdict(list)
    for _ in range(times):
        caller, order, paging = questions.next_caller(), questions.one_of(JobOrder), questions.paging()
        wanted = JobFilter(**questions.some(3, questions.job_parts()))
        took["jobs"].append(took_ms(queries.jobs, caller, wanted, order, paging))
        by, chosen = questions.one_of(BatchOrder), BatchFilter(**questions.some(3, questions.batch_parts()))
        took["batches"].append(took_ms(queries.batches, caller, chosen, by, paging))
    return took


def orders(queries: Queries, questions: Questions, times: int) -> Timings:
    """Return the same for all jobs and batches of a project in each order."""
    took: Timings = defaultdict(list)
    for _ in range(times):
        for order in JobOrder:
            caller, paging = questions.next_caller(), questions.paging()
            took[f"jobs by {order}"].append(took_ms(queries.jobs, caller, JobFilter(), order, paging))
        for by in BatchOrder:
            caller, paging = questions.next_caller(), questions.paging()
            took[f"batches by {by}"].append(took_ms(queries.batches, caller, BatchFilter(), by, paging))
    return took


def of_everything(queries: Queries, times: int) -> Timings:
    """Return the same for an operator's queries about all projects, which counters answer."""
    took: Timings = defaultdict(list)
    for _ in range(times):
        took["counts of jobs"].append(took_ms(queries.job_counts, OPERATOR, JobFilter()))
        took["newest jobs"].append(took_ms(queries.jobs, OPERATOR, JobFilter()))
        took["newest batches"].append(took_ms(queries.batches, OPERATOR, BatchFilter()))
    return took


# ------------------------------------------------------------------------------------------------------ by id


def by_id(database: Database, made: Filled, rounds: int, times: int) -> Timings:
    """Return the microseconds of a get by id and of a bare select by primary key, through the same engine."""
    queries, chance = Queries(database), random.Random(5)
    bare_job = select(jobs.c.spec).where(jobs.c.id == bindparam("id"))
    bare_batch = select(batches.c.record).where(batches.c.id == bindparam("id"))
    took: Timings = defaultdict(list)
    caller = Principal("user", Role.USER, frozenset({made.plan.project(0)}))

    def bare(statement: Any, identity: Any) -> None:
        with database.read() as connection:
            connection.execute(statement, {"id": identity}).one()

    def got(found: object) -> None:
        if found is None:
            raise Broken("a job or batch that exists was not found")

    for _ in range(rounds):
        ids = [batch for batch, size in chance.choices(made.of_project(0), k=times) if size]
        for name, get in (
            ("job", lambda batch: got(queries.job(caller, job_id(batch, 0)))),
            ("bare job", lambda batch: bare(bare_job, job_id(batch, 0))),
            ("batch", lambda batch: got(queries.batch(caller, batch))),
            ("bare batch", lambda batch: bare(bare_batch, batch)),
        ):
            began = time.perf_counter()
            for batch in ids:
                get(batch)
            took[name].append((time.perf_counter() - began) / len(ids) * 1_000_000)
    return took


def measure_ledger(kind: str, database: Database, asked: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """Measure one database."""
    note(f"{kind}: filling")
    made = filled(database, Plan(jobs=asked.jobs, batches=asked.jobs // 50, projects=20, live=asked.jobs // 5000))
    queries, questions = Queries(database), Questions(made)
    single_filters(queries, questions, 2)  # warm up: an installation's usual queries are warm, too
    gc.collect()
    gc.freeze()  # the collector would scan the invented history again and again
    note(f"{kind}: asking")
    single = single_filters(queries, questions, asked.times)
    ordered = orders(queries, questions, asked.times // 2)
    together = three_filters(queries, questions, asked.times * 5)
    everything = of_everything(queries, asked.times)
    ids = by_id(database, made, asked.rounds, asked.times * 10)

    def slowest(took: Timings) -> float:
        return max(percentile(each, 99) for each in took.values())

    figures = [
        figure(f"{kind}: one filter, p99 of the slowest", slowest(single), LATENCY_MS, "ms"),
        figure(f"{kind}: three filters, any order and page, p99", slowest(together), LATENCY_MS, "ms"),
        figure(f"{kind}: any order, p99 of the slowest", slowest(ordered), LATENCY_MS, "ms"),
        figure(f"{kind}: totals and newest of all projects, p99", slowest(everything), LATENCY_MS, "ms"),
        figure(f"{kind}: job by id / bare select", ratio(ids["job"], ids["bare job"]), "<= 3"),
        figure(f"{kind}: batch by id / bare select", ratio(ids["batch"], ids["bare batch"]), "<= 3"),
    ]
    measured: dict[str, Any] = {}
    for took in (single, ordered, together, everything):
        for name, each in took.items():
            measured[f"{kind}: {name}, p50 and p99 ms"] = [median(each), percentile(each, 99)]
    measured |= {f"{kind}: {name} by id, us": each for name, each in ids.items()}
    return figures, measured


async def measure_two_filters(
    kind: str, database: Database, url: str, redis_url: str, asked: argparse.Namespace, projects: int
) -> tuple[list[Figure], dict[str, Any]]:
    """Measure lists by two filters in a history of this number of projects."""
    name = f"{kind}, one project" if projects == 1 else f"{kind}, {projects} projects"
    note(f"{name}: filling")
    jobs = min(asked.jobs, JOBS_LISTED)
    made = filled(database, Plan(jobs=jobs, batches=jobs // 50, projects=projects, live=jobs // 5000))
    note(f"{name}: asking")
    return await measure_lists(name, database, url, made, redis_url=redis_url, times=max(asked.times, LISTS_MIN))


async def measure_all_tasks(
    kind: str, database: Database, url: str, redis_url: str, asked: argparse.Namespace, projects: int
) -> tuple[list[Figure], dict[str, Any]]:
    """Measure the routes of tasks in a history of this number of projects, in which each third batch is archived."""
    name = f"{kind}, one project" if projects == 1 else f"{kind}, {projects} projects"
    note(f"{name}: filling")
    plan = Plan(jobs=asked.jobs, batches=asked.jobs // 50, projects=projects, live=asked.jobs // 5000, archived_each=3)
    made = filled(database, plan)
    note(f"{name}: asking")
    return await measure_tasks(name, database, url, made, redis_url=redis_url, times=max(asked.times, LISTS_MIN))


def main() -> int:
    parser = harness.options(
        __doc__,
        quick="20,000 jobs, asked little: a smoke test",
        rounds="rounds of what is compared (3; 1 with --quick)",
    )
    parser.add_argument("--jobs", type=int, help="jobs in the ledger (1,000,000), in a fiftieth as many batches")
    parser.add_argument("--only", choices=("sqlite", "postgres", "two", "tasks"), help="one part")
    asked = parser.parse_args()
    asked.rounds = asked.rounds or (1 if asked.quick else 3)
    asked.jobs = asked.jobs or (20_000 if asked.quick else 1_000_000)
    asked.times, asked.seconds = (5, 0.5) if asked.quick else (200, 4.0)
    figures: list[Figure] = []
    measured: dict[str, Any] = {}
    with harness.server() as running, contextlib.ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="tweezer-ledger-")))
        setup = harness.setup_of(running, asked.rounds, quick=asked.quick, jobs=asked.jobs, projects=20)
        if asked.only in (None, "sqlite"):
            database = closing.enter_context(opened(f"sqlite:///{folder / 'ledger.db'}"))
            _add(figures, measured, measure_ledger("SQLite", database, asked))
        if asked.only in (None, "postgres"):
            server = closing.enter_context(PostgresServer(shared_buffers=SHARED_BUFFERS))
            database = closing.enter_context(opened(server.url()))
            _add(figures, measured, measure_ledger("PostgreSQL", database, asked))
        if asked.only in (None, "two"):
            server = closing.enter_context(PostgresServer(shared_buffers=SHARED_BUFFERS))
            for projects in (20, 1):
                name = f"lists_of_{projects}"
                for kind, url in (("SQLite", f"sqlite:///{folder / name}.db"), ("PostgreSQL", server.create(name))):
                    with opened(url) as database:
                        lists = measure_two_filters(kind, database, url, running.url, asked, projects)
                        _add(figures, measured, harness.run(lists))
        if asked.only in (None, "tasks"):
            server = closing.enter_context(PostgresServer(shared_buffers=SHARED_BUFFERS))
            for projects in (20, 1):
                name = f"tasks_of_{projects}"
                for kind, url in (("SQLite", f"sqlite:///{folder / name}.db"), ("PostgreSQL", server.create(name))):
                    with opened(url) as database:
                        tasks = measure_all_tasks(kind, database, url, running.url, asked, projects)
                        _add(figures, measured, harness.run(tasks))
    harness.report(figures, setup | {"measured": harness.rounded(measured)}, as_json=asked.json)
    return int(asked.strict and not all(one.met for one in figures))


def _add(figures: list[Figure], measured: dict[str, Any], more: tuple[list[Figure], dict[str, Any]]) -> None:
    figures += more[0]
    measured |= more[1]


if __name__ == "__main__":
    sys.exit(main())
