"""Redis loses the end of its append-only file while real processes work: what was announced stays as it was."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.support.power_loss import AppendOnlyFile
from tests.support.processes import WITNESS_FILE, WITNESSED, Process, Site
from tests.support.waiting import PATIENCE_S, until

from tweezer import AsyncBatch, BatchStatus, JobStatus
from tweezer.ledger.database import Database
from tweezer.ledger.place import OpenDatabase
from tweezer.ledger.schema import transitions
from tweezer.ledger.upkeep import upgrade
from tweezer.model.events import Event, read_events
from tweezer.store.server import RedisServer

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(180)]


class Plant:
    """An installation whose Redis can lose its end, and the ledger of it."""

    def __init__(self, site: Site, file: AppendOnlyFile, database: Database, witness: Path) -> None:
        self.site = site
        self.file = file
        self._database = database
        self._witness = witness

    def events(self, batch: AsyncBatch) -> list[Event]:
        """The batch's events in the ledger."""
        table = transitions.c
        query = select(table.batch, table.sequence_number, table.time_us, table.words).where(table.batch == batch.id)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(table.sequence_number)).all()
        return [event for row in rows for event in read_events(*row)]

    def has_recorded(self, batch: AsyncBatch, index: int, status: JobStatus) -> bool:
        return any(event.index == index and event.status is status for event in self.events(batch))

    def executions(self) -> Counter[str]:
        """How often each job ran to its end."""
        return Counter(line.split()[0] for line in self._witness.read_text("utf-8").splitlines())

    async def recorder(self) -> Process:
        recorder = self.site.spawn("recorder")
        await self.site.serves(recorder)
        return recorder


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(OpenDatabase(f"sqlite:///{tmp_path / 'ledger.db'}"))
    upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
async def plant(tmp_path: Path, real_redis_url: str, database: Database) -> AsyncIterator[Plant]:
    options = {"auto-aof-rewrite-percentage": "0"}
    folder, witness = tmp_path / "redis", tmp_path / "witness"
    url = str(database.engine.url)
    with RedisServer(folder, kind="redis", appendfsync="always", options=options) as server:
        settings = {"database_url": url, "data_dir": tmp_path, WITNESS_FILE.removeprefix("TWEEZER_").lower(): witness}
        async with Site(server.url, tmp_path, **settings) as site:
            yield Plant(site, AppendOnlyFile(server), database, witness)


async def test_what_a_worker_settles_before_the_ledger_is_back_makes_no_job_run_again(plant: Plant) -> None:
    site = plant.site
    recorder = await plant.recorder()
    (worker,) = await site.workers(1, WITNESSED)
    batch = await site.submit([{"sleep_s": 0.5}, {"sleep_s": 1.0}, {"sleep_s": 0.1}], device=WITNESSED)
    await site.held(batch)
    plant.file.keep()
    await until(lambda: plant.has_recorded(batch, 0, JobStatus.DONE), "the end of the first job in the ledger")
    recorder.kill()
    before = plant.events(batch)
    await asyncio.to_thread(plant.file.restart, losing_s=0.001)

    def waits() -> bool:
        return any("Redis has restarted" in entry["error"] for entry in worker.said("redis.unavailable"))

    await until(waits, "a settle that waits for the gate")
    await plant.recorder()
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    await until(lambda: plant.has_recorded(batch, 2, JobStatus.DONE), "the end of the last job in the ledger")
    first = (await batch.jobs())[0]
    assert plant.executions()[str(first.id)] == 1
    events = plant.events(batch)
    assert events[: len(before)] == before
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert Counter(event.index for event in events if event.status is JobStatus.DONE) == {0: 1, 1: 1, 2: 1}
