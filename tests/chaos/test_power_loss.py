"""Redis loses the end of its append-only file while processes work: recorded events and sent webhooks remain valid."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.support.power_loss import AppendOnlyFile
from tests.support.processes import NULL, WITNESS_FILE, WITNESSED, Process, Site, hold_file
from tests.support.redis_users import RedisServer
from tests.support.waiting import PATIENCE_S, until
from tests.support.webhook_receiver import Receiver

from tweezer import AsyncBatch, BatchStatus, JobStatus
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.ledger.schema import transitions
from tweezer.model.addresses import WebhookPolicy
from tweezer.model.events import Event, read_events
from tweezer.webhooks.endpoints import create_endpoint

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(180)]


class Installation:
    """An installation whose Redis can lose its last writes, with its ledger."""

    def __init__(self, site: Site, file: AppendOnlyFile, database: Database, witness: Path) -> None:
        self.site = site
        self.file = file
        self.database = database
        self.witness = witness

    def events(self, batch: AsyncBatch) -> list[Event]:
        """Return the batch's events from the ledger."""
        table = transitions.c
        query = select(table.batch, table.sequence_number, table.time_us, table.words).where(table.batch == batch.id)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(table.sequence_number)).all()
        return [event for row in rows for event in read_events(*row)]

    def has_recorded(self, batch: AsyncBatch, index: int, status: JobStatus) -> bool:
        return any(event.index == index and event.status is status for event in self.events(batch))

    def executions(self) -> Counter[str]:
        """Return the number of complete executions of each job."""
        return Counter(line.split()[0] for line in self.witness.read_text("utf-8").splitlines())

    async def start(self, process: str) -> Process:
        started = self.site.spawn(process)
        await self.site.serves(started)
        return started

    def register(self, url: str) -> None:
        """Register an endpoint for all events of the project."""
        with self.database.write() as connection:
            project_no(connection, "ours")
            create_endpoint(connection, WebhookPolicy.parse("127.0.0.0/8", "443"), project_id="ours", url=url, types=())


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(OpenDatabase(f"sqlite:///{tmp_path / 'ledger.db'}"), create=True)
    upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
async def installation(tmp_path: Path, real_redis_url: str, database: Database) -> AsyncIterator[Installation]:
    options = {"auto-aof-rewrite-percentage": "0"}
    folder, witness = tmp_path / "redis", tmp_path / "witness"
    url = str(database.engine.url)
    with RedisServer(folder, kind="redis", appendfsync="always", options=options) as server:
        settings = {
            "database_url": url,
            "data_dir": tmp_path,
            "webhook_allow": "127.0.0.0/8",
            WITNESS_FILE.removeprefix("TWEEZER_").lower(): witness,
        }
        async with Site(server.url, tmp_path, **settings) as site:
            yield Installation(site, AppendOnlyFile(server), database, witness)


async def test_a_settle_before_the_restore_from_the_ledger_repeats_no_job(installation: Installation) -> None:
    site = installation.site
    recorder = await installation.start("recorder")
    (worker,) = await site.workers(
        1, WITNESSED, worker_lease_s=PATIENCE_S
    )  # the lease must outlast a slow start of Redis
    hold = hold_file(installation.witness)
    hold.write_text("0")
    batch = await site.submit([{"sleep_s": 0.5}] * 3, device=WITNESSED)
    await site.held(batch)
    await recorder.wait_logged(
        "recorder.active"
    )  # the kept file then records that there is a ledger, so the gate can shut
    installation.file.keep()
    hold.write_text("1")
    await until(lambda: installation.has_recorded(batch, 0, JobStatus.DONE), "the end of the first job in the ledger")
    recorder.kill()
    before = installation.events(batch)
    await asyncio.to_thread(installation.file.restart, losing_s=0.001)

    hold.unlink()

    def waits() -> bool:
        return any("Redis has restarted" in entry["error"] for entry in worker.logged("store.unavailable"))

    await until(waits, "a settle that waits for the gate")
    await installation.start("recorder")
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    await until(lambda: installation.has_recorded(batch, 2, JobStatus.DONE), "the end of the last job in the ledger")
    assert set(installation.executions().values()) == {1}
    events = installation.events(batch)
    assert events[: len(before)] == before
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert Counter(event.index for event in events if event.status is JobStatus.DONE) == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("wait_s", [30.0, 0.0], ids=["gate", "no gate"])
async def test_webhooks_of_events_that_redis_lost_are_sent_by_couriers_that_were_behind(
    installation: Installation, wait_s: float
) -> None:
    site = installation.site
    async with Receiver() as receiver:
        installation.register(receiver.url("/"))
        recorder, courier = await installation.start("recorder"), await installation.start("courier")
        await site.workers(1, NULL, redis_restore_wait_s=wait_s)

        def webhook_ids(batch: AsyncBatch) -> set[str]:
            about = [it for it in receiver.received if it.data.get("batch_id") == str(batch.id)]
            return {it.id for it in about if it.type in ("job.done", "batch.done")}

        first = await site.submit([{}])
        await until(lambda: len(webhook_ids(first)) == 2, "the webhooks of the first batch")
        await recorder.wait_logged("recorder.active")
        installation.file.keep()
        courier.freeze()
        lost = await site.submit([{}, {}])
        assert (await lost.wait(PATIENCE_S)).status is BatchStatus.DONE
        await until(
            lambda: any(event.status is BatchStatus.DONE for event in installation.events(lost)),
            "the end of the lost batch in the ledger",
        )
        recorder.kill()
        await asyncio.to_thread(installation.file.restart, losing_s=0.001)
        courier.thaw()
        later = await site.submit([{}])
        if not wait_s:
            await until(lambda: len(webhook_ids(later)) == 2, "the webhooks of a batch after the loss")
        await installation.start("recorder")
        await until(lambda: len(webhook_ids(later)) == 2, "the webhooks of a batch after the loss")
        await until(lambda: len(webhook_ids(lost)) == 3, "the webhooks of the lost batch")
        ids = [(it.id, it.body) for it in receiver.received]
        assert len({identity for identity, _ in ids}) == len(set(ids)), "a webhook id has more than one body"
