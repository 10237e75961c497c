"""The scheduler process: handles plain arq messages, sweeps, submits the batches of schedules, runs hourly jobs."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Collection
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog
from arq.cron import CronJob, cron
from arq.worker import Worker, func

from tweezer import intake
from tweezer.duties import Duties
from tweezer.model.ids import new_worker_id
from tweezer.processes.runtime import (
    Parker,
    ParkingWorker,
    arq_options,
    require_access,
    run_on_a_loop,
    stopped_by_signals,
    work,
)
from tweezer.processes.worker import worker_config
from tweezer.settings import Settings
from tweezer.store.connection import Store
from tweezer.store.keys import Key
from tweezer.store.measures import REPORT_S, ProcessKind
from tweezer.worker.heartbeat import SWEEP_S, Sweeper

if TYPE_CHECKING:
    from tweezer.ledger.database import Database
    from tweezer.ledger.schedules.runner import ScheduleRunner

log = structlog.get_logger(__name__)

_POLL_S = 1.0  # between checks for arq messages when idle
_INDEX_S = 3600.0
_HOURLY_POLL_S = 10.0  # between checks for hourly jobs
_SCHEDULES_S = 1.0  # between checks for batches that schedules submit


def run_scheduler(settings: Settings) -> None:
    """Handle arq messages, sweep, and run the hourly jobs until SIGTERM or SIGINT."""
    run_on_a_loop(lambda: Scheduler(settings))


class Scheduler:
    """Two plain arq workers, for messages and for the hourly jobs, and the sweep, in one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._config = worker_config(settings)
        self._id = new_worker_id()
        self.store = Store.open(settings.connect())
        self._database: Database | None = None
        self._runner: ScheduleRunner | None = None

    async def async_run(self) -> None:
        """Run until a signal."""
        backoff = self._config.redis_backoff
        stopping = stopped_by_signals()
        if not await require_access(self.store, stopping, backoff):
            return
        log.info("scheduler.started")
        async with Duties() as duties:
            duties.start("presence", self._report, every_s=REPORT_S, backoff=backoff)
            duties.start("index", self._index, every_s=_INDEX_S, backoff=backoff)
            duties.start("sweep", Sweeper(self.store, self._config).sweep, every_s=SWEEP_S, backoff=backoff)
            if importlib.util.find_spec("sqlalchemy") is not None:  # else this host has no ledger
                duties.start("schedules", self._run_schedules, every_s=_SCHEDULES_S, backoff=backoff)
            await work(self._workers, stopping, doing="scheduler", drain_s=self._config.drain_s, backoff=backoff)

    async def _report(self) -> None:
        await self.store.processes.report(ProcessKind.SCHEDULER, self._id)

    async def _index(self) -> None:
        """Add batches of older producers, which may still run during an upgrade, to the index."""
        await self.store.index.add(self.store.snapshots.batch_ids())

    async def _run_schedules(self) -> None:
        """Submit the batches of schedules whose time has come, once there is a ledger."""
        if self._runner is None:
            from tweezer.ledger.database import Database
            from tweezer.ledger.migrate import exists, require_schema
            from tweezer.ledger.schedules.runner import ScheduleRunner

            if self._database is None:
                self._database = Database.open(self._settings.locate_ledger())
            if not exists(self._database):
                return
            await self._database.run(require_schema, self._database)
            self._runner = ScheduleRunner(self.store, self._database)
        await self._runner.look()

    async def close(self) -> None:
        await self.store.close()
        if self._database is not None:
            self._database.close()
        log.info("scheduler.stopped")

    async def _workers(self) -> tuple[Worker, Worker]:
        await self.store.tickets.publish_settings(self._config.store)
        return self._intake_worker(), self._hourly_worker()

    def _intake_worker(self) -> Worker:
        return ParkingWorker(
            parker=Parker(self._settings, "intake"),
            functions=[
                func(function, max_tries=intake.TRIES)  # type: ignore[arg-type]  # arq's type wants *args
                for function in (intake.submit_batch, intake.add_jobs, intake.cancel_batch, intake.refuse)
            ],
            queue_name=self.store.keys(Key.INTAKE),
            job_timeout=60,
            poll_delay=_POLL_S,
            **self._common() | {"job_serializer": intake.write_answer, "job_deserializer": intake.read_message},
        )

    def _hourly_worker(self) -> Worker:
        queue_name = self.store.keys(Key.SCHEDULER)
        return ParkingWorker(
            parker=Parker(self._settings, "scheduler"),
            cron_jobs=cron_jobs(queue_name),
            queue_name=queue_name,
            poll_delay=_HOURLY_POLL_S,
            **self._common(),
        )

    def _common(self) -> dict[str, Any]:
        context = {"store": self.store, "policy": self._config, "settings": self._settings}
        return arq_options(self.store, context | {"find_ends": self._find_ends})

    async def _find_ends(self, project: str, batch_ids: Collection[UUID]) -> dict[UUID, str]:
        """Look up batches that only the ledger has, for a new one that depends on them."""
        from tweezer.ledger.queries.queries import Queries

        queries = await asyncio.to_thread(Queries.open, self._settings.locate_ledger())
        if queries is None:
            return {}
        with closing(queries):
            return await queries.ask(queries.ends, project, batch_ids)


async def delete_expired(context: dict[Any, Any]) -> None:
    """Archive batches that are due, and delete those past their retention, old deliveries and dead letters, and
    expired secrets."""
    from tweezer.ledger.archive import archive_due
    from tweezer.ledger.database import Database
    from tweezer.ledger.retention import expire
    from tweezer.webhooks.deliveries import delete_old_deliveries

    settings: Settings = context["settings"]
    with closing(Database.open(settings.locate_ledger())) as database:
        await archive_due(database)
        await expire(context["store"], database, retention_s=settings.database.retention_s)
        await database.run(partial(delete_old_deliveries, database, kept_s=settings.webhook.kept_s))
        await database.run(_forget_expired, database)


def _forget_expired(database: Database) -> None:
    from tweezer.ledger.config import DeadLetterBounds
    from tweezer.ledger.dead_letters import expire_letters
    from tweezer.ledger.schedules.ticks import delete_old_ticks
    from tweezer.ledger.schema import now_ms
    from tweezer.webhooks.secrets import delete_expired_secrets

    with database.write() as connection:
        delete_expired_secrets(connection)
        delete_old_ticks(connection, now_ms())
        expire_letters(connection, DeadLetterBounds())


def cron_jobs(queue_name: str) -> list[CronJob]:
    """Return the hourly jobs.

    arq keeps the jobs of all queues in one place, so their names include the queue's, to separate installations.
    """
    return [
        cron(
            delete_expired,  # type: ignore[arg-type]
            name=f"{queue_name}:retention",
            minute=17,
            timeout=3000,
            keep_result=0,
            max_tries=1,
        )
    ]
