"""How the long-running processes run: on a loop of their own, until a signal or an error ends them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

import structlog
from redis import exceptions as redis_errors

from tweezer.model.errors import Unavailable

log = structlog.get_logger(__name__)


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


async def _run(make: Callable[[], Process]) -> None:
    worker = make()
    try:
        await worker.async_run()
    except asyncio.CancelledError:
        log.info("process.stopping")
    except (redis_errors.RedisError, OSError) as error:
        raise Unavailable(f"Redis cannot be reached: {error}") from error
    finally:
        await worker.close()
