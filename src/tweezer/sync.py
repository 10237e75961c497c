"""The producers' API for code without asyncio: the calls of :mod:`tweezer.client`, run on a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from uuid import UUID

from tweezer.client import AsyncBatch, AsyncQueue, Finished, connect_async
from tweezer.model.events import Event
from tweezer.model.messages import JobSpec, Limits, Priority
from tweezer.model.tasks import end_tasks
from tweezer.model.windows import Window
from tweezer.store.commands import CancelAnswer
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord, WorkerRecord

T = TypeVar("T")


class _Loop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tweezer", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of the coroutine; an interrupt (Ctrl-C) cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        steps: list[asyncio.Task[Any]] = []

        async def step() -> tuple[bool, T | None]:
            steps[:] = [cast(asyncio.Task[Any], asyncio.current_task())]
            try:
                return True, await anext(items)
            except StopAsyncIteration:
                return False, None

        async def end() -> None:
            await end_tasks(*steps)  # one that was interrupted may be on its way out
            await items.aclose()  # type: ignore[attr-defined]

        try:
            while True:
                more, item = self.run(step())
                if not more:
                    return
                yield item  # type: ignore[misc]
        finally:
            self.run(end())

    def end_all(self) -> None:
        """Ends all that runs on the loop."""
        self.run(_end_all_others())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end_all_others() -> None:
    """Ends what was interrupted and is still on its way out."""
    await end_tasks(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))


class Batch:
    """A handle on a batch; see :class:`tweezer.client.AsyncBatch`, whose calls these are."""

    def __init__(self, batch: AsyncBatch, loop: _Loop) -> None:
        self._batch = batch
        self._loop = loop
        self.id = batch.id

    def __repr__(self) -> str:
        return repr(self._batch)

    def record(self) -> BatchRecord:
        """The batch as it stands now. Raises NotFound."""
        return self._loop.run(self._batch.record())

    def add_jobs(self, jobs: Iterable[JobSpec | dict[str, Any]], *, idempotency_key: str | None = None) -> int:
        """Adds jobs to the open batch; returns the index of the first."""
        return self._loop.run(self._batch.add_jobs(jobs, idempotency_key=idempotency_key))

    def close(self) -> None:
        """No more jobs will come."""
        self._loop.run(self._batch.close())

    def cancel(self, *, by: str | None = None) -> None:
        """Cancels what is pending and stops what runs. by: who asks, which is noted (default: ``user@host``)."""
        self._loop.run(self._batch.cancel(by=by))

    def cancel_jobs(self, indices: Sequence[int], *, by: str | None = None) -> list[CancelAnswer]:
        """Cancels some of the jobs; one answer each. by: as of :meth:`cancel`."""
        return self._loop.run(self._batch.cancel_jobs(indices, by=by))

    def pause(self) -> None:
        """Hands out no more jobs; what runs finishes."""
        self._loop.run(self._batch.pause())

    def resume(self) -> None:
        self._loop.run(self._batch.resume())

    def changes(self, timeout_s: float | None = None) -> Iterator[BatchRecord]:
        """The batch now and after each change, until nothing of it is pending or running."""
        return self._loop.iterate(self._batch.changes(timeout_s))

    def wait(self, timeout_s: float | None = None) -> BatchRecord:
        """Waits until no job is pending or running; woken by Redis, it does not poll. Raises WaitTimeout."""
        return self._loop.run(self._batch.wait(timeout_s))

    def jobs(self) -> list[JobRecord]:
        """All jobs as they stand now, in the order of their indices."""
        return self._loop.run(self._batch.jobs())

    def finished(self, timeout_s: float | None = None) -> Iterator[Finished]:
        """Each job as it ends, once."""
        return self._loop.iterate(self._batch.finished(timeout_s))

    def events(
        self, after: Event | str | None = None, *, follow: bool = True, timeout_s: float | None = None
    ) -> Iterator[Event]:
        """All events of the batch in order, each once; see :meth:`tweezer.client.AsyncBatch.events`."""
        return self._loop.iterate(self._batch.events(after, follow=follow, timeout_s=timeout_s))

    def results(self, timeout_s: float | None = None) -> list[Finished]:
        """Waits for all jobs, then gives them in the order of their indices. Raises WaitTimeout."""
        return self._loop.run(self._batch.results(timeout_s))


class Queue:
    """A project's door to the queue; see :class:`tweezer.client.AsyncQueue`, whose calls these are."""

    def __init__(self, queue: AsyncQueue) -> None:
        self._loop = _Loop()
        self._queue = queue
        self.project = queue.project

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._loop.end_all()
        self._loop.run(self._queue.close())
        self._loop.stop()

    def submit(
        self,
        sequence: object,
        jobs: Iterable[JobSpec | dict[str, Any]] = (),
        *,
        device: str = "EMU_FREE",
        priority: Priority | str = Priority.MEDIUM,
        open: bool = False,
        name: str | None = None,
        tags: Iterable[str] = (),
        webhook: str | None = None,
        backend_configuration: str | None = None,
        limits: Limits | None = None,
        not_before: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Submits a batch and returns its handle; :meth:`tweezer.client.AsyncQueue.submit` says what it takes."""
        submitting = self._queue.submit(
            sequence,
            jobs,
            device=device,
            priority=priority,
            open=open,
            name=name,
            tags=tags,
            webhook=webhook,
            backend_configuration=backend_configuration,
            limits=limits,
            not_before=not_before,
            idempotency_key=idempotency_key,
        )
        return Batch(self._loop.run(submitting), self._loop)

    def batch(self, batch_id: UUID | str) -> Batch:
        """A handle on a batch that was submitted before."""
        return Batch(self._queue.batch(batch_id), self._loop)

    def job(self, job_id: UUID | str) -> JobRecord:
        """A job as it stands. Raises NotFound."""
        return self._loop.run(self._queue.job(job_id))

    def result(self, job_id: UUID | str) -> Finished:
        """A job with its result. Raises NotFound."""
        return self._loop.run(self._queue.result(job_id))

    def cancel_many(self, batch_ids: Iterable[UUID | str], *, by: str | None = None) -> dict[UUID, str]:
        """Cancels several batches; the errors of those that could not be, by id. by: who asks, which is noted."""
        return self._loop.run(self._queue.cancel_many(batch_ids, by=by))

    def devices(self) -> list[DeviceRecord]:
        return self._loop.run(self._queue.devices())

    def workers(self) -> list[WorkerRecord]:
        return self._loop.run(self._queue.workers())

    def pause_device(self, name: str, reason: str, *, until: datetime | None = None) -> None:
        """Starts nothing more on the device, for everybody; what runs finishes. At ``until``, an aware time, it goes on
        by itself."""
        self._loop.run(self._queue.pause_device(name, reason, until=until))

    def resume_device(self, name: str) -> None:
        """Ends a pause; maintenance that is under way goes on."""
        self._loop.run(self._queue.resume_device(name))

    def maintenance(self, name: str) -> list[Window]:
        """What maintenance of the device is planned, or under way, in order."""
        return self._loop.run(self._queue.maintenance(name))

    def plan_maintenance(self, name: str, begins: datetime, ends: datetime, reason: str) -> Window:
        """Starts nothing on the device from one aware time to another, and before that no batch that would not end in
        time. Raises InvalidInput, NotFound; Conflict when it overlaps with other maintenance."""
        return self._loop.run(self._queue.plan_maintenance(name, begins, ends, reason))

    def drop_maintenance(self, name: str, window_id: str) -> None:
        """Takes planned maintenance back, or ends it where it is under way. Raises NotFound."""
        self._loop.run(self._queue.drop_maintenance(name, window_id))


def connect(
    url: str | None = None,
    *,
    project: str | None = None,
    namespace: str = "tweezer",
    retry_s: float = 10.0,
    results_dir: str | Path | None = None,
    database_url: str | None = None,
) -> Queue:
    """Opens the queue. ``url`` is Redis' (default: ``TWEEZER_REDIS_URL``, else this machine's).
    ``project``: whose batches (default: ``TWEEZER_PROJECT_ID``, else ``default``).

    ``retry_s``: how long a call is repeated while Redis does not answer, before Unavailable is raised.
    ``results_dir``: the folder that workers write large results to, where it is mounted here (default:
    ``TWEEZER_RESULTS_DIR``); without it reading one raises ResultUnavailable. ``database_url``: the ledger's, to read
    what Redis has forgotten too (default: ``TWEEZER_DATABASE_URL``; needs the extra ``server``).
    """
    return Queue(
        connect_async(
            url,
            project=project,
            namespace=namespace,
            retry_s=retry_s,
            results_dir=results_dir,
            database_url=database_url,
        )
    )
