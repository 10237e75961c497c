"""Stores what a lane writes while a job runs, while it runs and at its end."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from tweezer.model.errors import ResultUnavailable
from tweezer.model.messages import JobWork
from tweezer.store.job_logs import KEPT_BYTES, JobLog, JobLogs, OutputBuffer

log = structlog.get_logger(__name__)

_PAUSE_S = 1.0  # between two writes while the job runs, so that a reader can follow it


class JobOutput:
    """The output of one attempt at a job. Jobs that write nothing cost nothing."""

    def __init__(self, logs: JobLogs, job: JobWork) -> None:
        self._logs = logs
        self._job = job
        self._added = bytearray()
        self._skipped = 0
        self._buffer: OutputBuffer | None = None
        self._writing: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    def add(self, chunk: bytes) -> None:
        """Add what the lane wrote."""
        self._added += chunk
        if len(self._added) > 4 * KEPT_BYTES:
            self._skipped += len(self._added) - KEPT_BYTES
            del self._added[:-KEPT_BYTES]
        if self._writing is None:
            self._writing = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Store the rest. A failure is logged, because the job's outcome does not depend on it."""
        if self._writing is None:
            return
        self._over.set()
        await asyncio.wait([self._writing])
        if (error := self._writing.exception()) is not None:
            self._note_failure(f"{type(error).__name__}: {error}")

    async def _follow(self) -> None:
        while not self._over.is_set():
            await self._store()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    await self._over.wait()
        await self._store()

    async def _store(self) -> None:
        """Write what was added. Output of an earlier attempt stays in front of it."""
        added, self._added = bytes(self._added), bytearray()
        skipped, self._skipped = self._skipped, 0
        if not added:
            return
        try:
            if self._buffer is None:
                self._buffer = await self._continue_log()
            if skipped:
                self._buffer.skip(skipped)
            self._buffer.add(added)
            await self._logs.write(self._job.job_id, self._buffer.content)
        except ResultUnavailable as error:
            self._note_failure(error.message)

    async def _continue_log(self) -> OutputBuffer:
        """Return a buffer with what earlier attempts wrote. If that cannot be read, this attempt replaces it."""
        before = JobLog()
        if self._job.attempt > 1:
            try:
                before = await self._logs.read(self._job.job_id)
            except ResultUnavailable as error:
                self._note_failure(error.message)
        buffer = OutputBuffer(before)
        if before.text:
            buffer.add_line(f"--- attempt {self._job.attempt} ---")
        return buffer

    def _note_failure(self, problem: str) -> None:
        log.warning("output.not_stored", jobs=str(self._job.index), error=problem)
