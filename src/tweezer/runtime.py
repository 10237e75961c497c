"""How the long-running processes run: on a loop of their own, until a signal or an error ends them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import structlog
from arq.connections import ArqRedis
from arq.worker import Worker
from redis import exceptions as redis_errors

from tweezer.model.backoff import Backoff
from tweezer.model.errors import Unavailable
from tweezer.model.wire import deserialize, serialize
from tweezer.store.connection import Store

log = structlog.get_logger(__name__)

_HEALTHY_S = 10.0  # a run that lasted this long starts the backoff anew


class Process(Protocol):
    """What runs: ``async_run`` lasts until it is to end, ``close`` is called whatever ended it."""

    async def async_run(self) -> None: ...

    async def close(self) -> None: ...


def run_on_a_loop(make: Callable[[], Process]) -> None:
    """Runs a process on a loop of its own, faster where uvloop is installed, and closes it."""
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        import uvloop

        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_run(make))


def arq_options(store: Store, context: dict[str, Any]) -> dict[str, Any]:
    """What every worker of plain arq is given: our way of writing messages, and no signals of its own."""
    return {
        "redis_pool": ArqRedis(store.redis.connection_pool, serialize, deserialize),
        "job_serializer": serialize,
        "job_deserializer": deserialize,
        "handle_signals": False,
        "ctx": context,
    }


def on_signals(end: Callable[[], object]) -> None:
    """Calls this when the process is told to stop."""
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, end)


async def work(
    make: Callable[[], Awaitable[Sequence[Worker]]],
    stopping: asyncio.Event,
    *,
    doing: str,
    drain_s: float,
    backoff: Backoff,
) -> None:
    """Runs workers of plain arq until ``stopping``; when Redis went away, new ones once it is back.

    A message that is cut off by the end of the process is run again by arq; all of ours may be.
    """
    failures = 0
    while not stopping.is_set():
        began = time.monotonic()
        try:
            await _work_once(await make(), stopping, drain_s)
        except (Unavailable, redis_errors.RedisError, OSError) as error:
            failures = 1 if time.monotonic() - began > _HEALTHY_S else failures + 1
            log.warning("redis.unavailable", while_doing=doing, tries=failures, error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.delay_s(failures)):
                    await stopping.wait()


async def _work_once(workers: Sequence[Worker], stopping: asyncio.Event, drain_s: float) -> None:
    """Runs the workers until it is time to stop or one of them fails; then ends all."""
    running = [asyncio.ensure_future(worker.async_run()) for worker in workers]
    stop = asyncio.ensure_future(stopping.wait())
    try:
        done, _ = await asyncio.wait([*running, stop], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        stop.cancel()
        for worker in workers:
            with contextlib.suppress(redis_errors.RedisError, OSError):
                await worker.close()
        ended, _ = await asyncio.wait(running, timeout=drain_s)
        # How one ends that was closed while it was starting is of no interest.
        await asyncio.gather(*ended, return_exceptions=True)


async def _run(make: Callable[[], Process]) -> None:
    process = make()
    try:
        await process.async_run()
    except asyncio.CancelledError:
        log.info("process.stopping")
    except (redis_errors.RedisError, OSError) as error:
        raise Unavailable(f"Redis cannot be reached: {error}") from error
    finally:
        await process.close()
