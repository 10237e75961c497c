"""A worker in the process of a test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tweezer.worker.worker import TicketWorker


@contextlib.asynccontextmanager
async def running(worker: TicketWorker) -> AsyncIterator[None]:
    """Run a worker within the block, then stop and close it."""
    task = asyncio.create_task(worker.async_run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await worker.close()
