"""The Python client for code without asyncio: the methods of :mod:`tweezer.client`, run on a background thread.

Each method takes the same arguments, returns the same values and raises the same errors as the asynchronous method of
the same name, from which its docstring is derived.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import os
import re
import sys
import threading
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast
from uuid import UUID
from weakref import WeakSet

from tweezer.client import AsyncBatch, AsyncQueue, Handle, ListedBatch, connect_async, describe_queue, queue_closed
from tweezer.duties import end_tasks
from tweezer.model.arguments import check_flag
from tweezer.model.errors import Conflict, TweezerError
from tweezer.model.ids import short_id
from tweezer.store.records import BatchRecord

P = ParamSpec("P")
T = TypeVar("T")

_thread = threading.local()

_ASYNC_WORDS = re.compile(r"\b(async (?=with|for)|await )|\bAsync(?=Batch|Queue)|(?<=connect)_async|, for asyncio\b")


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle an error that no caller waits for; an unclosed queue has its own warning."""
    if not str(context.get("message")).startswith("Unclosed "):
        loop.default_exception_handler(context)


class _Loop:
    """An event loop and the thread that runs it. Nothing on the thread refers to the queue."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(_report)
        self._keeps: set[asyncio.Task[Any]] = set()
        self.iterations: set[AsyncGenerator[Any, None]] = set()  # referenced, or asyncio would end them on collection
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
        """Run a coroutine without waiting for it. Any thread may call this, even during garbage collection."""
        if sys.is_finalizing():  # the thread no longer runs
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self._start, make)

    def _start(self, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        task = self.loop.create_task(make())
        self._keeps.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._keeps.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved and dropped: only clean-up runs here, and no caller waits for it

    async def end(self, last: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """End all tasks of the loop, then the loop."""
        try:
            await end_tasks(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))
            for items in list(self.iterations):  # unfinished ones, which may still need the connections
                await items.aclose()
            await last()
        finally:
            self.loop.stop()

    def join(self) -> None:
        self._thread.join()


class _Runner:
    """Runs the calls of an asynchronous queue on a thread, which starts with the first call.

    A forked child has only the forking thread, so it opens the queue again. A runner that is garbage-collected is ended
    without waiting, because the collecting thread may be the very thread to wait for.
    """

    def __init__(self, queue: AsyncQueue, *, warns: bool = True) -> None:
        self.queue = queue
        self._warns = warns
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        self.is_closed = False
        _runners.add(self)

    def __reduce__(self) -> tuple[Callable[..., _Runner], tuple[AsyncQueue]]:
        return _unpickled, (self.queue,)

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        loop = getattr(self, "_loop", None)
        if loop is None or self.is_closed:
            return
        if self._warns:
            _warn(f"unclosed {describe_queue(self.queue.project)}", ResourceWarning, source=self)
        close = self.queue.close
        loop.start_soon(lambda: loop.end(close))

    def run(self, call: Callable[[AsyncQueue], Coroutine[Any, Any, T]]) -> T:
        """Return the result of the call. An interrupt (Ctrl-C) cancels it."""
        with self._lock:
            loop = self._opened()
            future = asyncio.run_coroutine_threadsafe(call(self.queue), loop.loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise queue_closed("connect") from None
        except BaseException:
            future.cancel()
            raise

    def iterate(self, call: Callable[[AsyncQueue], AsyncIterator[T]]) -> Iterator[T]:
        """Yield the items of the call as they arrive."""
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
            await end_tasks(*steps)  # an interrupted step may still be ending
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
                "the queue was closed, or the process forked, after this iteration began; start a new iteration",
                code="queue_closed",
            )
        finally:
            if self._loop is loop:
                loop.start_soon(end)

    def close(self) -> None:
        """End all calls, the connections and the thread. Closing again has no effect."""
        with self._lock:
            if self.is_closed:
                return
            self.is_closed = True
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
        """Leave the parent's thread and connections alone: ending them here would end them in the parent, too."""
        _leak((self.queue, self._loop))
        self._lock, self._loop = threading.Lock(), None
        with contextlib.suppress(TypeError):  # a queue that cannot be opened again raises when it is used
            self.queue = self.queue.anew()

    def _opened(self) -> _Loop:
        if self.is_closed:
            raise queue_closed("connect")
        if _serves_a_queue():
            raise TweezerError(
                "a queue was called on its own background thread, probably by a finalizer, and would wait for itself; "
                "do not call queues in finalizers",
                code="own_thread",
            )
        if self._loop is None:
            self._loop = _Loop()
        return self._loop


_runners: WeakSet[_Runner] = WeakSet()


def _unpickled(queue: AsyncQueue) -> _Runner:
    """Return a runner that has no owner to close it: it ends with its last handle, without a warning."""
    return _Runner(queue, warns=False)


def _serves_a_queue() -> bool:
    return getattr(_thread, "serves_a_queue", False)


def _leak(kept: object) -> None:
    """Keep objects until the process has ended, without finalizing them.

    A child shares the parent's selector in the kernel. Finalizing the event loop here would stop the parent from being
    notified about its sockets.
    """
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


def _after_fork() -> None:
    for runner in list(_runners):
        runner.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Handle(Handle):
    """An object that runs the methods of an asynchronous object and waits for their results."""

    def __init__(self, runner: _Runner) -> None:
        self._runner = runner

    def _caller(self, queue: AsyncQueue) -> Any:
        """Return the asynchronous object whose methods are run."""
        return queue


def _present(function: Any, asynchronous: Callable[..., Any]) -> None:
    """Derive the signature and the docstring of a blocking function from the asynchronous one."""
    signature = inspect.signature(asynchronous)
    returned = str(signature.return_annotation).replace("Async", "")
    function.__signature__ = signature.replace(return_annotation=returned)
    if function.__doc__ is not None:
        function.__doc__ = _ASYNC_WORDS.sub("", function.__doc__)


def _blocking(call: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """Return the blocking form of an asynchronous method."""

    @functools.wraps(call)
    def run(self: _Handle, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._runner.run(lambda queue: call(self._caller(queue), *args, **kwargs))

    _present(run, call)
    return run


def _iterating(call: Callable[Concatenate[Any, P], AsyncIterator[T]]) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """Return the blocking form of an asynchronous iterator."""

    @functools.wraps(call)
    def iterate(self: _Handle, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._runner.iterate(lambda queue: call(self._caller(queue), *args, **kwargs))

    _present(iterate, call)
    return iterate


def _waiting(
    call: Callable[Concatenate[Any, P], Coroutine[Any, Any, BatchRecord]],
) -> Callable[Concatenate[Any, P], BatchRecord]:
    """Return the blocking form of ``wait``. It shows its progress on the thread of the caller, who can interrupt it."""
    run = _blocking(call)

    @functools.wraps(call)
    def wait(
        self: Batch, timeout_s: float | None = None, *, progress: bool = False, cancel_on_interrupt: bool = False
    ) -> BatchRecord:
        if not check_flag("progress", progress) | check_flag("cancel_on_interrupt", cancel_on_interrupt):
            return cast(Callable[..., BatchRecord], run)(self, timeout_s)
        from tweezer.display.progress import ProgressBar

        record = self.record()
        try:
            with ProgressBar(self.id, is_shown=progress, cancels=cancel_on_interrupt) as shown:
                for record in self.changes(timeout_s):
                    shown.show(record)
        except KeyboardInterrupt:
            if cancel_on_interrupt:
                with contextlib.suppress(Conflict):
                    self.cancel()
            raise
        return record

    _present(wait, call)
    return cast(Callable[Concatenate[Any, P], BatchRecord], wait)


def _returning_batch(
    call: Callable[Concatenate[Any, P], Coroutine[Any, Any, AsyncBatch]],
) -> Callable[Concatenate[Any, P], Batch]:
    run = _blocking(call)

    @functools.wraps(call)
    def run_for_handle(self: _Handle, /, *args: P.args, **kwargs: P.kwargs) -> Batch:
        return Batch(self._runner, run(self, *args, **kwargs).id)

    _present(run_for_handle, call)
    return run_for_handle


class Batch(_Handle):
    """A handle on a batch, with the methods of :class:`tweezer.client.AsyncBatch` without ``await``.

    Creating a handle does not contact the queue.

    Example:
        ```python
        batch = queue.submit(sequence, [{"runs": 200}, {"runs": 400}])
        for job in batch.finished():
            print(job.index, job.status, job.counter if job.data else job.error)
        ```

    Attributes:
        id: The batch's UUID.
    """

    def __init__(self, runner: _Runner, batch_id: UUID) -> None:
        super().__init__(runner)
        self.id = batch_id

    @property
    def queue(self) -> Queue:
        """The queue that the handle uses."""
        return Queue(self._runner)

    def __repr__(self) -> str:
        return f"<batch {short_id(self.id)}>"

    def _repr_html_(self) -> str | None:
        """Return the batch as it is now, with its first jobs; None if it cannot be read, so that ``repr`` is shown."""
        from tweezer.display.html import MAX_ROWS, draw_batch

        try:
            record = self.record()
            return draw_batch(record, self._mixed_at(record, range(min(record.jobs, MAX_ROWS))))
        except TweezerError:
            return None

    def __reduce__(self) -> tuple[type[Batch], tuple[_Runner, UUID]]:
        return Batch, (self._runner, self.id)

    def _caller(self, queue: AsyncQueue) -> AsyncBatch:
        return AsyncBatch(queue, self.id)

    record = _blocking(AsyncBatch.record)
    waits_for = _blocking(AsyncBatch.waits_for)
    add_jobs = _blocking(AsyncBatch.add_jobs)
    close = _blocking(AsyncBatch.close)
    cancel = _blocking(AsyncBatch.cancel)
    cancel_jobs = _blocking(AsyncBatch.cancel_jobs)
    retry = _returning_batch(AsyncBatch.retry)
    pause = _blocking(AsyncBatch.pause)
    resume = _blocking(AsyncBatch.resume)
    set_priority = _blocking(AsyncBatch.set_priority)
    set_tags = _blocking(AsyncBatch.set_tags)
    wait = _waiting(AsyncBatch.wait)
    jobs = _blocking(AsyncBatch.jobs)
    to_dataframe = _blocking(AsyncBatch.to_dataframe)
    results = _blocking(AsyncBatch.results)
    _mixed_at = _blocking(AsyncBatch.mixed_at)
    changes = _iterating(AsyncBatch.changes)
    finished = _iterating(AsyncBatch.finished)
    events = _iterating(AsyncBatch.events)


def _listing_batches(
    call: Callable[Concatenate[AsyncQueue, P], AsyncIterator[ListedBatch[AsyncBatch]]],
) -> Callable[Concatenate[Queue, P], Iterator[ListedBatch[Batch]]]:
    iterate = _iterating(call)

    @functools.wraps(call)
    def list_handles(self: Queue, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[ListedBatch[Batch]]:
        for batch, record in iterate(self, *args, **kwargs):
            yield ListedBatch(Batch(self._runner, batch.id), record)

    _present(list_handles, call)
    return list_handles


class Queue(_Handle):
    """The queue of a project, with the methods of :class:`tweezer.client.AsyncQueue` without ``await``.

    Open it with :func:`connect`. Use it as a context manager, or call :meth:`close`. Threads may share it, and it
    survives a fork. Pickling it stores the URL of Redis with its password, or the key for the API.

    Example:
        ```python
        with connect() as queue:
            batch = queue.submit(sequence, [{"runs": 200}])
            print(batch.results()[0].counter)
        ```

    Attributes:
        project: Id of the project whose batches the queue submits and reads; None if it is left to the key.
    """

    def __init__(self, runner: _Runner) -> None:
        super().__init__(runner)
        self.project = runner.queue.project

    def __repr__(self) -> str:
        return f"<{'closed ' if self._runner.is_closed else ''}{describe_queue(self.project)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Queue], tuple[_Runner]]:
        """Pickle the arguments of the queue, including its password or key; unpickling opens a new one."""
        return Queue, (self._runner,)

    def close(self) -> None:
        """Close the connections. Later calls raise TweezerError; closing again has no effect."""
        self._runner.close()

    def batch(self, batch_id: UUID | str) -> Batch:
        """Return a handle on an existing batch, without checking that it exists.

        Args:
            batch_id: The full id. :meth:`find` takes a short id, a name or ``@last``, too.

        Raises:
            InvalidInput: ``batch_id`` is not a UUID.
        """
        return Batch(self._runner, self._runner.queue.batch(batch_id).id)

    find = _returning_batch(AsyncQueue.find)
    batches = _listing_batches(AsyncQueue.batches)
    submit = _returning_batch(AsyncQueue.submit)
    check = _blocking(AsyncQueue.check)
    job = _blocking(AsyncQueue.job)
    attempts = _blocking(AsyncQueue.attempts)
    logs = _blocking(AsyncQueue.logs)
    result = _blocking(AsyncQueue.result)
    cancel_many = _blocking(AsyncQueue.cancel_many)
    cancel_matching = _blocking(AsyncQueue.cancel_matching)
    retry_matching = _blocking(AsyncQueue.retry_matching)
    archive_many = _blocking(AsyncQueue.archive_many)
    archive_matching = _blocking(AsyncQueue.archive_matching)
    delete_many = _blocking(AsyncQueue.delete_many)
    delete_matching = _blocking(AsyncQueue.delete_matching)
    devices = _blocking(AsyncQueue.devices)
    device = _blocking(AsyncQueue.device)
    workers = _blocking(AsyncQueue.workers)
    pause_device = _blocking(AsyncQueue.pause_device)
    resume_device = _blocking(AsyncQueue.resume_device)
    maintenance = _blocking(AsyncQueue.maintenance)
    plan_maintenance = _blocking(AsyncQueue.plan_maintenance)
    drop_maintenance = _blocking(AsyncQueue.drop_maintenance)
    create_schedule = _blocking(AsyncQueue.create_schedule)
    schedules = _blocking(AsyncQueue.schedules)
    schedule = _blocking(AsyncQueue.schedule)
    change_schedule = _blocking(AsyncQueue.change_schedule)
    pause_schedule = _blocking(AsyncQueue.pause_schedule)
    resume_schedule = _blocking(AsyncQueue.resume_schedule)
    run_schedule = _returning_batch(AsyncQueue.run_schedule)
    delete_schedule = _blocking(AsyncQueue.delete_schedule)


def _opening(open_async: Callable[P, AsyncQueue]) -> Callable[P, Queue]:
    @functools.wraps(open_async, assigned=("__doc__",))
    def connect(*args: P.args, **kwargs: P.kwargs) -> Queue:
        return Queue(_Runner(open_async(*args, **kwargs)))

    connect.__qualname__ = "connect"  # so that it can be pickled
    _present(connect, open_async)
    return connect


connect = _opening(connect_async)
