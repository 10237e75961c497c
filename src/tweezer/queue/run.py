"""Starts the long-running processes of the queue from the settings. Each call lasts until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import Any

import structlog
from arq.connections import ArqRedis
from arq.worker import Worker, func
from redis import exceptions as redis_errors

from tweezer.adapters.child import LaneOptions
from tweezer.adapters.registry import adapter_of, specs_of
from tweezer.model.errors import Unavailable
from tweezer.queue import intake
from tweezer.queue.chores import cron_jobs
from tweezer.model.wire import deserialize, serialize
from tweezer.queue.policy import Policy
from tweezer.queue.worker import TicketWorker
from tweezer.runtime import run_on_a_loop
from tweezer.settings import Settings
from tweezer.store.connection import Store
from tweezer.store.keys import Key

log = structlog.get_logger(__name__)

_HEALTHY_S = 10.0  # a run that lasted this long starts the backoff anew


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
    options = LaneOptions(memory_limit_mb=settings.memory_limit_mb or None, soft_cancel_s=settings.soft_cancel_s)
    return TicketWorker(
        Store.open(settings.connect()),
        device,
        adapter_of(binding, options),
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
        from tweezer.ledger.upkeep import require_schema

        self._store = Store.open(settings.connect())
        self._database = Database.open(settings.database())
        require_schema(self._database)
        self._recorder = Recorder(self._store, self._database, namespace=settings.namespace, grace_s=settings.grace_s)

    async def async_run(self) -> None:
        """Ends with a signal."""
        recording = asyncio.create_task(self._recorder.run())
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signal_number, recording.cancel)
        log.info("recorder.started")
        with contextlib.suppress(asyncio.CancelledError):
            await recording

    async def close(self) -> None:
        await self._store.close()
        self._database.close()
        log.info("recorder.stopped")


class Chores:
    """Intake and chores in one process: two workers of plain arq, started again when Redis comes back.

    A message or chore that is cut off by the end of the process is run again by arq; all of them may be.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._policy = policy_of(settings)
        self.store = Store.open(settings.connect())
        self._stopping = asyncio.Event()

    async def async_run(self) -> None:
        """Ends with a signal."""
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signal_number, self._stopping.set)
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                await self._work()
            except (Unavailable, redis_errors.RedisError, OSError) as error:
                failures = 1 if time.monotonic() - began > _HEALTHY_S else failures + 1
                log.warning("redis.unavailable", while_doing="chores", tries=failures, error=str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._policy.redis_backoff.delay_s(failures)):
                        await self._stopping.wait()

    async def close(self) -> None:
        await self.store.close()
        log.info("chores.stopped")

    async def _work(self) -> None:
        """Runs both workers until a signal comes or one of them fails; then ends both."""
        await self.store.tickets.publish_settings(self._policy.store)
        workers = (self._intake_worker(), self._chores_worker())
        running = [asyncio.ensure_future(worker.async_run()) for worker in workers]
        stopping = asyncio.ensure_future(self._stopping.wait())
        log.info("chores.started")
        try:
            done, _ = await asyncio.wait([*running, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            stopping.cancel()
            for worker in workers:
                with contextlib.suppress(redis_errors.RedisError, OSError):
                    await worker.close()
            await asyncio.wait(running, timeout=self._policy.drain_s)

    def _intake_worker(self) -> Worker:
        return Worker(
            functions=[
                func(function, max_tries=intake.TRIES)  # type: ignore[arg-type]  # arq's type wants *args
                for function in (intake.submit_batch, intake.add_jobs, intake.cancel_batch)
            ],
            queue_name=self.store.keys(Key.INTAKE),
            job_timeout=60,
            poll_delay=0.1,
            **self._common(),
        )

    def _chores_worker(self) -> Worker:
        queue_name = self.store.keys(Key.CHORES)
        return Worker(cron_jobs=cron_jobs(queue_name), queue_name=queue_name, **self._common())

    def _common(self) -> dict[str, Any]:
        return {
            "redis_pool": ArqRedis(self.store.redis.connection_pool, serialize, deserialize),
            "job_serializer": serialize,
            "job_deserializer": deserialize,
            "handle_signals": False,
            "ctx": {"store": self.store, "policy": self._policy, "settings": self._settings},
        }
