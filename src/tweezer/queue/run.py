"""Starts the long-running processes of the queue from the settings. Each call lasts until a signal ends it."""

from __future__ import annotations

import os
import sys
from typing import Any

import structlog
from arq.worker import Worker, func

from tweezer.adapters.lane.jail.libc import hide_process
from tweezer.adapters.lane.lane import LaneOptions
from tweezer.adapters.registry import adapter_of, specs_of
from tweezer.duties import DUTY_BACKOFF, Duties
from tweezer.queue import intake
from tweezer.queue.chores import cron_jobs
from tweezer.queue.policy import Policy
from tweezer.queue.upkeep import SWEEP_S, Sweeper
from tweezer.queue.worker import TicketWorker
from tweezer.runtime import (
    Parker,
    ParkingWorker,
    arq_options,
    done_before,
    require_access,
    run_on_a_loop,
    stopped_by_signals,
    work,
)
from tweezer.settings import Settings
from tweezer.store.connection import Store
from tweezer.store.keys import Key

log = structlog.get_logger(__name__)

_POLL_S = 1.0  # between looks for messages of arq, while none come
_CHORES_POLL_S = 10.0  # the same for the chores, which are hourly


def policy_of(settings: Settings) -> Policy:
    """The numbers of a worker that the settings name."""
    return Policy(
        lease_s=settings.lease_s,
        beat_s=settings.heartbeat_s,
        drain_s=settings.drain_s,
        failures_max=settings.ticket_failures_max,
        max_backlog=settings.max_backlog,
        full_at=settings.full_at,
        store=settings.store_config(),
    )


def make_worker(
    settings: Settings, *, device: str, lanes: int, version: str, burst: bool = False, handle_signals: bool = True
) -> TicketWorker:
    """The worker of a pool. Raises InvalidInput for a device that no adapter serves, or whose specs are none."""
    binding = settings.binding(device)
    options = LaneOptions(
        memory_limit_mb=settings.memory_limit_mb or None,
        soft_cancel_s=settings.soft_cancel_s,
        jail=settings.lane_jail,
        private=(str(settings.data_dir.absolute()), str(settings.results_folder())),
        prepare_timeout_s=settings.prepare_timeout_s,
    )
    adapter = adapter_of(binding, options)
    if adapter.traits.exclusive:
        lanes = 1
    return TicketWorker(
        Store.open(settings.connect()),
        device,
        adapter,
        adapter_name=binding.adapter,
        specs=specs_of(device, binding),
        lanes=lanes,
        policy=policy_of(settings),
        version=version,
        burst=burst,
        handle_signals=handle_signals,
    )


def run_worker(settings: Settings, *, device: str, lanes: int, version: str, burst: bool = False) -> None:
    """Serves a device until SIGTERM or SIGINT, then drains; in burst mode until nothing is ready."""
    if sys.platform == "linux":
        hide_process()  # from lanes, which run as the same user: its environment holds credentials
    run_on_a_loop(lambda: make_worker(settings, device=device, lanes=lanes, version=version, burst=burst))


def run_chores(settings: Settings) -> None:
    """Takes in arq messages and does the chores until SIGTERM or SIGINT."""
    run_on_a_loop(lambda: Chores(settings))


def run_recorder(settings: Settings) -> None:
    """Records the events of the queue in the ledger until SIGTERM or SIGINT; stands by while another does."""
    from tweezer.ledger.recorder import NICENESS

    os.nice(NICENESS)
    run_on_a_loop(lambda: RecorderProcess(settings))


class RecorderProcess:
    """The recorder with a store and a database of its own."""

    def __init__(self, settings: Settings) -> None:
        from tweezer.ledger.database import Database
        from tweezer.ledger.recorder import Recorder

        self._settings = settings
        self._store = Store.open(settings.connect())
        self._database = Database.open(settings.database())
        self._recorder = Recorder(
            self._store,
            self._database,
            namespace=settings.namespace,
            grace_s=settings.grace_s,
            bounds=settings.dead_letters(),
        )

    async def async_run(self) -> None:
        """Ends with a signal. Raises TweezerError when the ledger's tables are not there or not up to date."""
        from tweezer.ledger.upkeep import wait_for_schema

        stopping = stopped_by_signals()
        if not await done_before(stopping, wait_for_schema(self._settings.database())):
            return
        if not await require_access(self._store, stopping, DUTY_BACKOFF):
            return
        log.info("recorder.started")
        async with Duties() as duties:
            duties.watch("recorder", self._recorder.run())
            await stopping.wait()

    async def close(self) -> None:
        await self._store.close()
        self._database.close()
        log.info("recorder.stopped")


class Chores:
    """Intake and chores in one process: two workers of plain arq."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._policy = policy_of(settings)
        self.store = Store.open(settings.connect())

    async def async_run(self) -> None:
        """Ends with a signal."""
        backoff = self._policy.redis_backoff
        stopping = stopped_by_signals()
        if not await require_access(self.store, stopping, backoff):
            return
        log.info("chores.started")
        async with Duties() as duties:
            duties.start("sweep", Sweeper(self.store, self._policy).sweep, every_s=SWEEP_S, backoff=backoff)
            await work(self._workers, stopping, doing="chores", drain_s=self._policy.drain_s, backoff=backoff)

    async def close(self) -> None:
        await self.store.close()
        log.info("chores.stopped")

    async def _workers(self) -> tuple[Worker, Worker]:
        await self.store.tickets.publish_settings(self._policy.store)
        return self._intake_worker(), self._chores_worker()

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

    def _chores_worker(self) -> Worker:
        queue_name = self.store.keys(Key.CHORES)
        return ParkingWorker(
            parker=Parker(self._settings, "scheduler"),
            cron_jobs=cron_jobs(queue_name),
            queue_name=queue_name,
            poll_delay=_CHORES_POLL_S,
            **self._common(),
        )

    def _common(self) -> dict[str, Any]:
        return arq_options(self.store, {"store": self.store, "policy": self._policy, "settings": self._settings})
