"""Schedules that are due at once: how long after their tick their batches are submitted, with two schedulers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from harness import WAIT_S, Broken, figure, median, note, options, report, run, server, setup_of
from sqlalchemy import func, select, update

from tweezer.ledger.config import OpenDatabase, sqlite_url
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.ledger.schedules.records import Creator, Overlap, ScheduleSettings, TickOutcome
from tweezer.ledger.schedules.schedules import create_schedule, pack_template
from tweezer.ledger.schema import now_ms, schedule_ticks, schedules
from tweezer.settings import to_environment
from tweezer.store.connection import Connect, Store
from tweezer.store.producers import Submission

DEVICE = "NULL"
AHEAD_S = 5.0
"""How far in the future the common tick is, so that the schedulers are idle before it."""


async def announce(url: str) -> None:
    """Make the device known, without a worker."""
    async with Store.open(Connect(url=url)) as store:
        await store.tickets.heartbeat(
            "nobody",
            DEVICE,
            ttl_s=600,
            about_device={"adapter": "null", "exclusive": 0, "checks_sequence": 0, "max_runs": 1000},
            about_worker={"lanes": 1, "started": 1, "host": "here", "version": "0", "record_version": 1},
        )


def create_schedules(database: Database, count: int) -> None:
    template = pack_template(Submission(sequence="{}", jobs=[{"runs": 1}] * 10, device=DEVICE))
    for number in range(count):
        settings = ScheduleSettings(f"s-{number}", every_s=3600, overlap=Overlap.QUEUE)
        with database.write() as connection:
            project, creator = f"p-{number // 100}", Creator("benchmark")
            create_schedule(connection, None, settings, template, project_id=project, creator=creator)


@contextlib.contextmanager
def schedulers(count: int, url: str, ledger: str, folder: Path) -> Iterator[None]:
    """Run schedulers until the block ends."""
    settings = {"redis.url": url, "database.url": ledger, "data_dir": str(folder)}
    environment = os.environ | to_environment(settings)
    command = [sys.executable, "-m", "tweezer.cli", "scheduler"]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(WAIT_S)


def measure(database: Database, count: int) -> list[float]:
    """Let all schedules have a tick at the same time; return how late each batch was submitted, in seconds."""
    tick_ms = now_ms() + round(AHEAD_S * 1000)
    with database.write() as connection:
        connection.execute(update(schedules).values(next_ms=tick_ms, anchor_ms=tick_ms - 3_600_000))
    submitted = schedule_ticks.c.outcome == TickOutcome.SUBMITTED.value
    mine = (schedule_ticks.c.at_ms == tick_ms, submitted)
    deadline = time.monotonic() + WAIT_S
    while True:
        with database.read() as connection:
            if connection.execute(select(func.count()).where(*mine)).scalar_one() == count:
                times = connection.execute(select(schedule_ticks.c.updated_ms).where(*mine)).scalars()
                return [(at - tick_ms) / 1000 for at in times]
        if time.monotonic() > deadline:
            raise Broken(f"the batches of {count} schedules were not submitted within {WAIT_S:g} s")
        time.sleep(0.1)


def main() -> None:
    parser = options(__doc__, quick="a smoke test: one round of 10 schedules")
    parser.add_argument("--schedules", type=int, default=100, help="how many are due at once (100)")
    chosen = parser.parse_args()
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    count = 10 if chosen.quick else chosen.schedules
    with server() as redis, tempfile.TemporaryDirectory(prefix="tweezer-schedules-") as name:
        folder = Path(name)
        ledger = sqlite_url(folder / "ledger.db")
        with closing(Database.open(OpenDatabase(ledger), create=True)) as database:
            upgrade(database)
            run(announce(redis.url))
            create_schedules(database, count)
            late: list[list[float]] = []
            with schedulers(2, redis.url, ledger, folder):
                for number in range(rounds):
                    note(f"round {number + 1} of {rounds}: {count} schedules")
                    late.append(measure(database, count))
        last, middle = median([max(it) for it in late]), median([median(it) for it in late])
        figures = [
            figure(f"{count} schedules at once: the last batch after its tick", last, "<= 10", "s"),
            figure("the median batch after its tick", middle, "", "s"),
        ]
        report(figures, setup_of(redis, rounds, schedules=count, schedulers=2), as_json=chosen.json)
    if chosen.strict and not all(one.met for one in figures):
        sys.exit(1)


if __name__ == "__main__":
    main()
