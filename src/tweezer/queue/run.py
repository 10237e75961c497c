"""Starts the long-running processes of the queue from the settings. Each call lasts until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import structlog
from arq.connections import RedisSettings
from arq.worker import Worker, func
from redis import exceptions as redis_errors

from tweezer.adapters.child import LaneOptions
from tweezer.adapters.registry import DEVICE_KINDS, adapter_for
from tweezer.model.errors import Unavailable
from tweezer.queue import intake
from tweezer.queue.chores import cron_jobs
from tweezer.queue.policy import Policy
from tweezer.queue.wire import deserialize, serialize
from tweezer.queue.worker import TicketWorker
from tweezer.settings import Settings
from tweezer.store.connection import Connect, Store
from tweezer.store.keys import Key
from tweezer.store.scripts import StoreConfig

log = structlog.get_logger(__name__)


def open_store(settings: Settings) -> Store:
    """The store that the settings name."""
    return Store.open(
        Connect(
            url=settings.redis_url,
            namespace=settings.namespace,
            connect_s=settings.connect_timeout_s,
            command_s=settings.command_timeout_s,
        ),
        StoreConfig(
            retention_s=settings.retention_s,
            idempotency_s=settings.idempotency_s,
            events_kept=settings.events_kept,
            quantum_s=settings.quantum_s,
        ),
    )


def policy_of(settings: Settings) -> Policy:
    """The numbers of a worker that the settings name."""
    return Policy(
        lease_s=settings.lease_s,
        beat_s=settings.heartbeat_s,
        drain_s=settings.drain_s,
        failures_max=settings.ticket_failures_max,
        max_backlog=settings.max_backlog,
        full_at=settings.full_at,
    )


def make_worker(
    settings: Settings, *, device: str, lanes: int, version: str, burst: bool = False, handle_signals: bool = True
) -> TicketWorker:
    """The worker of a pool. Raises InvalidInput for a device that no adapter serves."""
    options = LaneOptions(memory_limit_mb=settings.memory_limit_mb, soft_cancel_s=settings.soft_cancel_s)
    return TicketWorker(
        open_store(settings),
        RedisSettings.from_dsn(settings.redis_url),
        device,
        adapter_for(device, options),
        adapter_name=DEVICE_KINDS[device],
        lanes=lanes,
        policy=policy_of(settings),
        version=version,
        burst=burst,
        handle_signals=handle_signals,
    )


def run_worker(settings: Settings, *, device: str, lanes: int, version: str, burst: bool = False) -> None:
    """Serves a device until SIGTERM or SIGINT, then drains; in burst mode until nothing is ready."""
    _on_a_loop(lambda: make_worker(settings, device=device, lanes=lanes, version=version, burst=burst))


def make_chores(settings: Settings, store: Store, *, handle_signals: bool = True) -> tuple[Worker, Worker]:
    """The two workers of plain arq: the intake of messages, and the chores."""
    context: dict[Any, Any] = {"store": store, "policy": policy_of(settings)}
    redis_settings = RedisSettings.from_dsn(settings.redis_url)
    intake_worker = Worker(
        functions=[
            func(function, max_tries=intake.TRIES)  # type: ignore[arg-type]
            for function in (intake.submit_batch, intake.add_jobs, intake.cancel_batch)
        ],
        queue_name=store.keys(Key.INTAKE),
        redis_settings=redis_settings,
        job_serializer=serialize,
        job_deserializer=deserialize,
        handle_signals=handle_signals,
        job_completion_wait=max(1, round(settings.drain_s)),
        poll_delay=0.1,
        job_timeout=60,
        ctx=dict(context),
    )
    chores_worker = Worker(
        cron_jobs=cron_jobs(),
        queue_name=store.keys(Key.CHORES),
        redis_settings=redis_settings,
        job_serializer=serialize,
        job_deserializer=deserialize,
        handle_signals=False,
        ctx=context,
    )
    return intake_worker, chores_worker


def run_chores(settings: Settings) -> None:
    """Takes in arq messages and does the chores until SIGTERM or SIGINT."""
    _on_a_loop(lambda: Chores(settings))


class Chores:
    """Intake and chores in one process, with the face of an arq worker."""

    def __init__(self, settings: Settings) -> None:
        self.store = open_store(settings)
        self._intake, self._chores = make_chores(settings, self.store)

    async def async_run(self) -> None:
        """Ends when a signal ended the intake, or when one of the two failed."""
        running = [asyncio.ensure_future(worker.async_run()) for worker in (self._intake, self._chores)]
        try:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def close(self) -> None:
        for worker in (self._intake, self._chores):
            await worker.close()
        await self.store.close()


class _Process(Protocol):
    async def async_run(self) -> None: ...

    async def close(self) -> None: ...


def _on_a_loop(make: Callable[[], _Process]) -> None:
    """Runs a worker on a loop of its own, faster where uvloop is installed, and closes it."""
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        import uvloop

        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_run(make))


async def _run(make: Callable[[], _Process]) -> None:
    worker = make()
    try:
        await worker.async_run()
    except asyncio.CancelledError:
        log.info("process.stopping")
    except (redis_errors.RedisError, OSError) as error:
        raise Unavailable(f"Redis cannot be reached: {error}") from error
    finally:
        await worker.close()
