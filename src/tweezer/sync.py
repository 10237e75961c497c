"""The producers' API for code without asyncio: the calls of :mod:`tweezer.client`, run on a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sys
import threading
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from uuid import UUID
from weakref import WeakSet

from tweezer.client import AsyncBatch, AsyncQueue, Finished, connect_async
from tweezer.duties import end_tasks
from tweezer.model.errors import TweezerError
from tweezer.model.events import Event
from tweezer.model.messages import JobSpec, Limits, Priority
from tweezer.model.windows import Window
from tweezer.store.commands import CancelAnswer
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord, WorkerRecord

T = TypeVar("T")

_thread = threading.local()


class _Loop:
    """An event loop on a thread of its own, which ends with it. Nothing on the thread refers to the queue."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._keeps: set[asyncio.Task[Any]] = set()
        self.iterations: set[AsyncGenerator[Any, None]] = set()  # else asyncio would end what is collected here, too
        self._thread = threading.Thread(target=self._serve, name="tweezer", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        _thread.serves_a_queue = True
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()

    def start_soon(self, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run a coroutine without waiting for it; from any thread, also from one that collects garbage."""
        if sys.is_finalizing():  # the thread does not run any more
            return
        with contextlib.suppress(RuntimeError):  # it has ended
            self.loop.call_soon_threadsafe(self._start, make)

    def _start(self, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        task = self.loop.create_task(make())
        self._keeps.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._keeps.discard(task)
        if not task.cancelled():
            task.exception()  # of a clean-up: whoever it was for has gone

    async def end(self, last: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """End all that runs on the loop, then the loop."""
        try:
            await end_tasks(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))
            for items in list(self.iterations):  # half-read ones, which may still need the connections
                await items.aclose()
            await last()
        finally:
            self.loop.stop()

    def join(self) -> None:
        self._thread.join()


class _Runner:
    """Runs the calls of an asynchronous queue on a thread, which begins with the first of them.

    A fork has only the thread that forked: in the child the queue is opened anew. What is collected as garbage is ended
    without waiting, for the thread that collects it may be the one that would be waited for.
    """

    def __init__(self, queue: AsyncQueue, *, warns: bool = True) -> None:
        self.queue = queue
        self._warns = warns
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        self._closed = False
        _runners.add(self)

    def __reduce__(self) -> tuple[Callable[..., _Runner], tuple[AsyncQueue]]:
        return _unpickled, (self.queue,)

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        loop = getattr(self, "_loop", None)
        if loop is None or self._closed:
            return
        if self._warns:
            _warn(f"unclosed queue of project {self.queue.project!r}", ResourceWarning, source=self)
        close = self.queue.close
        loop.start_soon(lambda: loop.end(close))

    def run(self, call: Callable[[AsyncQueue], Coroutine[Any, Any, T]]) -> T:
        """The outcome of the call; an interrupt (Ctrl-C) cancels it."""
        with self._lock:
            loop = self._opened()
            future = asyncio.run_coroutine_threadsafe(call(self.queue), loop.loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise self._is_closed() from None
        except BaseException:
            future.cancel()
            raise

    def iterate(self, call: Callable[[AsyncQueue], AsyncIterator[T]]) -> Iterator[T]:
        """The items of the call, each as it comes."""
        with self._lock:
            loop = self._opened()
        items = cast(AsyncGenerator[T, None], call(self.queue))
        steps: list[asyncio.Task[Any]] = []

        async def step(queue: AsyncQueue) -> tuple[bool, T | None]:
            steps[:] = [cast(asyncio.Task[Any], asyncio.current_task())]
            try:
                return True, await anext(items)
            except StopAsyncIteration:
                return False, None

        async def end() -> None:
            await end_tasks(*steps)  # one that was interrupted may be on its way out
            await items.aclose()
            loop.iterations.discard(items)

        loop.iterations.add(items)
        try:
            while self._loop is loop:
                more, item = self.run(step)
                if not more:
                    return
                yield item  # type: ignore[misc]
            raise TweezerError(
                "the iteration was begun before the queue was closed, or this process was forked; begin it anew",
                code="queue_closed",
            )
        finally:
            if self._loop is loop:
                loop.start_soon(end)

    def close(self) -> None:
        """End all calls, the connections and the thread. Closing it again changes nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            loop = self._loop
            _runners.discard(self)
        if loop is None:
            return
        future = asyncio.run_coroutine_threadsafe(loop.end(self.queue.close), loop.loop)
        if not _serves_a_queue():
            try:
                future.result()
            finally:
                loop.join()

    def forked(self) -> None:
        """Leave the parent's thread and connections alone: what ended them here would end them there."""
        _leak((self.queue, self._loop))
        self._lock, self._loop = threading.Lock(), None
        with contextlib.suppress(TypeError):  # one that cannot be opened anew says so when it is used
            self.queue = self.queue.anew()

    def _opened(self) -> _Loop:
        if self._closed:
            raise self._is_closed()
        if _serves_a_queue():
            raise TweezerError(
                "a queue was called from the thread of a queue, which would wait for itself: a finalizer must not "
                "call one",
                code="own_thread",
            )
        if self._loop is None:
            self._loop = _Loop()
        return self._loop

    def _is_closed(self) -> TweezerError:
        return TweezerError("the queue is closed; open another one with connect()", code="queue_closed")


_runners: WeakSet[_Runner] = WeakSet()


def _unpickled(queue: AsyncQueue) -> _Runner:
    """One that nobody is there to close: it ends with the last handle, without a warning."""
    return _Runner(queue, warns=False)


def _serves_a_queue() -> bool:
    return getattr(_thread, "serves_a_queue", False)


def _leak(kept: object) -> None:
    """Keep objects to the very end of the process, and beyond its clean-up.

    A child shares the kernel's side of the parent's event loop: were its objects finalized here, the parent would no
    longer learn what its sockets receive.
    """
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


def _after_fork() -> None:
    for runner in list(_runners):
        runner.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Batch:
    """A handle on a batch; see :class:`tweezer.client.AsyncBatch`, whose calls these are."""

    def __init__(self, runner: _Runner, batch_id: UUID) -> None:
        self._runner = runner
        self.id = batch_id

    @property
    def queue(self) -> Queue:
        """The queue that the handle asks."""
        return Queue(self._runner)

    def __repr__(self) -> str:
        return f"<batch {self.id}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Batch], tuple[_Runner, UUID]]:
        return Batch, (self._runner, self.id)

    def _run(self, call: Callable[[AsyncBatch], Coroutine[Any, Any, T]]) -> T:
        return self._runner.run(lambda queue: call(AsyncBatch(queue, self.id)))

    def _iterate(self, call: Callable[[AsyncBatch], AsyncIterator[T]]) -> Iterator[T]:
        return self._runner.iterate(lambda queue: call(AsyncBatch(queue, self.id)))

    def record(self) -> BatchRecord:
        """The batch as it stands now. Raises NotFound."""
        return self._run(lambda batch: batch.record())

    def add_jobs(self, jobs: Iterable[JobSpec | dict[str, Any]], *, idempotency_key: str | None = None) -> int:
        """Adds jobs to the open batch; returns the index of the first."""
        return self._run(lambda batch: batch.add_jobs(jobs, idempotency_key=idempotency_key))

    def close(self) -> None:
        """No more jobs will come."""
        self._run(lambda batch: batch.close())

    def cancel(self, *, by: str | None = None) -> None:
        """Cancels what is pending and stops what runs. by: who asks, which is noted (default: ``user@host``)."""
        self._run(lambda batch: batch.cancel(by=by))

    def cancel_jobs(self, indices: Sequence[int], *, by: str | None = None) -> list[CancelAnswer]:
        """Cancels some of the jobs; one answer each. by: as of :meth:`cancel`."""
        return self._run(lambda batch: batch.cancel_jobs(indices, by=by))

    def pause(self) -> None:
        """Hands out no more jobs; what runs finishes."""
        self._run(lambda batch: batch.pause())

    def resume(self) -> None:
        self._run(lambda batch: batch.resume())

    def changes(self, timeout_s: float | None = None) -> Iterator[BatchRecord]:
        """The batch now and after each change, until nothing of it is pending or running."""
        return self._iterate(lambda batch: batch.changes(timeout_s))

    def wait(self, timeout_s: float | None = None) -> BatchRecord:
        """Waits until no job is pending or running; woken by Redis, it does not poll. Raises WaitTimeout."""
        return self._run(lambda batch: batch.wait(timeout_s))

    def jobs(self) -> list[JobRecord]:
        """All jobs as they stand now, in the order of their indices."""
        return self._run(lambda batch: batch.jobs())

    def finished(self, timeout_s: float | None = None) -> Iterator[Finished]:
        """Each job as it ends, once."""
        return self._iterate(lambda batch: batch.finished(timeout_s))

    def events(
        self, after: Event | str | None = None, *, follow: bool = True, timeout_s: float | None = None
    ) -> Iterator[Event]:
        """All events of the batch in order, each once; see :meth:`tweezer.client.AsyncBatch.events`."""
        return self._iterate(lambda batch: batch.events(after, follow=follow, timeout_s=timeout_s))

    def results(self, timeout_s: float | None = None) -> list[Finished]:
        """Waits for all jobs, then gives them in the order of their indices. Raises WaitTimeout."""
        return self._run(lambda batch: batch.results(timeout_s))


class Queue:
    """A project's door to the queue; see :class:`tweezer.client.AsyncQueue`, whose calls these are."""

    def __init__(self, runner: _Runner) -> None:
        self._runner = runner
        self.project = runner.queue.project

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Queue], tuple[_Runner]]:
        """Pickle as a queue that is opened anew: with the same URL, and the password in it."""
        return Queue, (self._runner,)

    def close(self) -> None:
        """Close the connections; a closed queue answers no more calls. Closing it again changes nothing."""
        self._runner.close()

    def submit(
        self,
        sequence: object,
        jobs: Iterable[JobSpec | dict[str, Any]] = (),
        *,
        device: str | None = None,
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
        batch = self._runner.run(
            lambda queue: queue.submit(
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
        )
        return Batch(self._runner, batch.id)

    def batch(self, batch_id: UUID | str) -> Batch:
        """A handle on a batch that was submitted before."""
        return Batch(self._runner, self._runner.queue.batch(batch_id).id)

    def job(self, job_id: UUID | str) -> JobRecord:
        """A job as it stands. Raises NotFound."""
        return self._runner.run(lambda queue: queue.job(job_id))

    def result(self, job_id: UUID | str) -> Finished:
        """A job with its result. Raises NotFound."""
        return self._runner.run(lambda queue: queue.result(job_id))

    def cancel_many(self, batch_ids: Iterable[UUID | str], *, by: str | None = None) -> dict[UUID, str]:
        """Cancels several batches; the errors of those that could not be, by id. by: who asks, which is noted."""
        return self._runner.run(lambda queue: queue.cancel_many(batch_ids, by=by))

    def devices(self) -> list[DeviceRecord]:
        return self._runner.run(lambda queue: queue.devices())

    def workers(self) -> list[WorkerRecord]:
        return self._runner.run(lambda queue: queue.workers())

    def pause_device(self, name: str, reason: str, *, until: datetime | None = None) -> None:
        """Starts nothing more on the device, for everybody; what runs finishes. At ``until``, an aware time, it goes on
        by itself."""
        self._runner.run(lambda queue: queue.pause_device(name, reason, until=until))

    def resume_device(self, name: str) -> None:
        """Ends a pause; maintenance that is under way goes on."""
        self._runner.run(lambda queue: queue.resume_device(name))

    def maintenance(self, name: str) -> list[Window]:
        """What maintenance of the device is planned, or under way, in order."""
        return self._runner.run(lambda queue: queue.maintenance(name))

    def plan_maintenance(self, name: str, begins: datetime, ends: datetime, reason: str) -> Window:
        """Starts nothing on the device from one aware time to another, and before that no batch that would not end in
        time. Raises InvalidInput, NotFound; Conflict when it overlaps with other maintenance."""
        return self._runner.run(lambda queue: queue.plan_maintenance(name, begins, ends, reason))

    def drop_maintenance(self, name: str, window_id: str) -> None:
        """Takes planned maintenance back, or ends it where it is under way. Raises NotFound."""
        self._runner.run(lambda queue: queue.drop_maintenance(name, window_id))


def connect(
    url: str | None = None,
    *,
    project: str | None = None,
    namespace: str | None = None,
    retry_s: float = 10.0,
    results_dir: str | Path | None = None,
    database_url: str | None = None,
) -> Queue:
    """Opens the queue. ``url`` is Redis' (default: ``TWEEZER_REDIS_URL``, else that of a running
    ``tweezer up``, else this machine's). ``project``: whose batches (default: ``TWEEZER_PROJECT_ID``, else
    ``default``). ``namespace``: first part of all keys (default: ``TWEEZER_NAMESPACE``, else ``tweezer``).

    ``retry_s``: how long a call is repeated while Redis does not answer, before Unavailable is raised.
    ``results_dir``: the folder that workers write large results to, where it is mounted here (default:
    ``TWEEZER_RESULTS_DIR``, else ``results`` in ``TWEEZER_DATA_DIR``); without it reading one raises
    ResultUnavailable. ``database_url``: the ledger's, to read what Redis has forgotten too (default:
    ``TWEEZER_DATABASE_URL``; needs the extra ``server``). Raises InvalidInput, naming the argument.

    Where neither ``url`` nor ``TWEEZER_REDIS_URL`` names a Redis, a ``tweezer up`` that runs in the data folder
    (``TWEEZER_DATA_DIR``, else the default one) gives what no argument and no variable does.
    """
    queue = connect_async(
        url,
        project=project,
        namespace=namespace,
        retry_s=retry_s,
        results_dir=results_dir,
        database_url=database_url,
    )
    return Queue(_Runner(queue))
