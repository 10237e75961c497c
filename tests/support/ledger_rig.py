"""A store with one device, and a ledger that records it, for tests of the recorder and the queries."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from tests.support.store_rig import StoreRig

from tweezer.client import AsyncQueue
from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.queries.queries import Queries
from tweezer.ledger.recorder.recorder import Recorder, RecorderTuning
from tweezer.ledger.schema import batches
from tweezer.model.lifecycle import JobStatus
from tweezer.store.records import BatchRecord, JobRecord
from tweezer.transports.direct import DirectTransport

NAMESPACE = "test"
OPERATOR = Principal("test", Role.OPERATOR)
GRACE_S = 100.0


class LedgerRig:
    """A rig, the ledger that records it, and checks of both."""

    def __init__(self, rig: StoreRig, database: Database) -> None:
        self.rig = rig
        self.database = database
        self.queries = Queries(database)
        self.recorder = self.another_recorder()

    def another_recorder(self, **tuning: Any) -> Recorder:
        return Recorder(
            self.rig.store,
            self.database,
            namespace=NAMESPACE,
            grace_s=GRACE_S,
            tuning=RecorderTuning(**tuning) if tuning else None,
        )

    def queue(self, project: str = "a", *, ledger: bool = True) -> AsyncQueue:
        """Return a queue of the Python API, which closes the rig's store."""
        url = self.database.engine.url.render_as_string(hide_password=False)
        return AsyncQueue(DirectTransport(self.rig.store, project, ledger=OpenDatabase(url) if ledger else None))

    async def record(self) -> None:
        """Record everything, like a recorder that has just become active."""
        await self.recorder.resume()
        await self.recorder.catch_up()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.database.read() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def batch(self, batch_id: UUID) -> BatchRecord | None:
        return self.queries.batch(OPERATOR, batch_id)

    def jobs(self, batch_id: UUID) -> list[JobRecord]:
        batch = self.batch(batch_id)
        return [] if batch is None else self.queries.batch_jobs(batch, range(batch.jobs))

    async def agree(self, batch_id: UUID) -> None:
        """Check that the ledger and Redis agree on the batch and its jobs."""
        live = await self.rig.reader.batch(batch_id, project=None)
        assert self.batch(batch_id) == live
        assert self.jobs(batch_id) == await self.rig.reader.jobs(live, range(live.jobs))
        self.amounts_add_up(batch_id)

    def counts_add_up(self) -> None:
        """Check that the counters equal the numbers of rows."""
        for kind, table in (("B", "batches"), ("J", "jobs")):
            place = "project, device, status"
            counted = self.rows(f"SELECT {place}, count(*) FROM {table} GROUP BY 1, 2, 3")  # noqa: S608
            found = self.rows(f"SELECT {place}, count FROM counters WHERE kind = '{kind}' AND count <> 0")  # noqa: S608
            assert sorted(found) == sorted(counted)
        coarse = """CASE WHEN status IN ('P', 'S') THEN 'P' WHEN status IN ('R', 'C') THEN status
            WHEN status = 'D' AND failed = 0 THEN 'S' ELSE 'F' END"""
        counted = self.rows(
            f"SELECT project, device, {coarse}, count(*) FROM batches WHERE archived_ms IS NULL GROUP BY 1, 2, 3"  # noqa: S608
        )
        found = self.rows("SELECT project, device, status, count FROM counters WHERE kind = 'T' AND count <> 0")
        assert sorted(found) == sorted(counted)

    def amounts_add_up(self, batch_id: UUID) -> None:
        """Check that the amounts of a batch equal the sums over its jobs."""
        jobs = self.jobs(batch_id)
        with self.database.read() as connection:
            columns = (batches.c.failed, batches.c.shots, batches.c.device_ms)
            row = connection.execute(select(*columns).where(batches.c.id == batch_id)).one()
        assert tuple(row) == (
            sum(job.status is JobStatus.ERROR for job in jobs),
            sum(job.spec.runs or job.spec.runs_shown or 1 for job in jobs),
            sum(round((job.device_s or 0) * 1000) for job in jobs if job.status.terminal),
        )
