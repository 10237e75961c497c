"""The runtime of the long-running processes: event loop, signals, arq workers, and a watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import FrameType
from typing import Any, Protocol

import structlog
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from arq.worker import Worker
from redis import exceptions as redis_errors

from tweezer.duties import Backoff, DutyEnded, end_tasks, heeding_cancel, repeat, until_answered
from tweezer.model.errors import TweezerError, Unavailable
from tweezer.model.wire import check_message, deserialize, serialize
from tweezer.settings import Settings
from tweezer.store.connection import Store
from tweezer.store.keys import Key
from tweezer.store.scripts import translate_error, translating

log = structlog.get_logger(__name__)

_BUSY_POLL_S = 0.05
_FILES_MAX = 65_536


_NOT_PARKED_MS = 5_000  # until a message that could not be parked is tried again
_MESSAGE_KEPT_MS = 86_400_000

_problems: ContextVar[list[str]] = ContextVar("problems")  # of the current task's message


class Process(Protocol):
    """A long-running process. ``async_run`` returns when the process should end; ``close`` is always called."""

    async def async_run(self) -> None: ...

    async def close(self) -> None: ...


def run_on_a_loop(make: Callable[[], Process]) -> None:
    """Run and close a process on a new event loop (uvloop if installed), with a raised limit on open files."""
    raise_file_limit()
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        import uvloop

        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_run(make))


def raise_file_limit() -> int:
    """Raise the limit on open files, and so on connections, as far as the system allows; return the new limit.

    systemd starts services with a limit of 1024, even if a higher one is allowed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _FILES_MAX)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _FILES_MAX if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:  # macOS rejects more than its kernel's limit
        log.warning("files.limit_not_raised", limit=soft, wanted=wanted, error=str(error))
        return soft
    return wanted


def arq_options(store: Store, context: dict[str, Any]) -> dict[str, Any]:
    """Return the options of all plain arq workers: the format of messages, and no signal handlers."""
    return {
        "redis_pool": ArqRedis(store.redis.connection_pool, serialize, deserialize),
        "job_serializer": serialize,
        "job_deserializer": deserialize,
        "handle_signals": False,
        "ctx": context,
    }


class Parker:
    """Parks unusable messages in the ledger, which is opened on first use."""

    def __init__(self, settings: Settings, consumer: str) -> None:
        self._settings = settings
        self._consumer = consumer

    async def park(self, message_id: str, payload: bytes, problem: str) -> None:
        """Park a message as a dead letter. Raises TweezerError when that is not possible now."""
        await asyncio.to_thread(self._park, message_id, payload, problem)

    def _park(self, message_id: str, payload: bytes, problem: str) -> None:
        from tweezer.ledger.config import DeadLetterBounds
        from tweezer.ledger.database import Database
        from tweezer.ledger.dead_letters import Consumer, NewLetter, park
        from tweezer.ledger.migrate import require_schema

        with contextlib.closing(Database.open(self._settings.locate_ledger())) as database:
            require_schema(database)
            letters = [NewLetter(message_id, problem, payload)]
            with database.write() as connection:
                park(connection, Consumer(self._consumer), letters, DeadLetterBounds())


class ParkingWorker(Worker):
    """A plain arq worker that parks malformed messages, so that they cannot stop it.

    It polls for messages every ``poll_delay``, and more often while it is busy.
    """

    def __init__(self, *, parker: Parker, **options: Any) -> None:
        super().__init__(**options | {"job_deserializer": partial(_read_message, options["job_deserializer"])})
        self._parker = parker

    async def _poll_iteration(self) -> None:
        await super()._poll_iteration()
        while self.tasks:
            await asyncio.sleep(_BUSY_POLL_S)
            await super()._poll_iteration()

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Start the messages one by one, so that a bad message does not stop the others."""
        for job_id in job_ids:
            started = self.job_counter
            try:
                await super().start_jobs([job_id])
            except Exception as error:
                if not _is_of_message(error):
                    raise
                if self.job_counter > started:  # arq takes a slot before it reads the message
                    self._release_sem_dec_counter_on_complete()
                await self._set_aside(job_id, error)

    async def run_job(self, job_id: str, score: int) -> None:
        """Run a message, or park it."""
        _problems.set([])
        try:
            await super().run_job(job_id, score)
        except Exception as error:
            if not _is_of_message(error):
                raise
            await self._set_aside(job_id.encode(), error)

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:
        """Park an unreadable message before arq drops it. Its sender still receives the error."""
        problems = _problems.get([])
        if not problems or await self._is_parked(job_id.encode(), problems[0]):
            await super().finish_failed_job(job_id, result_data)

    async def _set_aside(self, job_id: bytes, error: Exception) -> None:
        if await self._is_parked(job_id, f"{type(error).__name__}: {error}"):
            prefixes = (job_key_prefix, in_progress_key_prefix, retry_key_prefix)
            await self.pool.delete(*(prefix.encode() + job_id for prefix in prefixes))
            await self.pool.zrem(self.queue_name, job_id)

    async def _is_parked(self, job_id: bytes, problem: str) -> bool:
        """Park a message; if that is not possible now, try again later."""
        try:
            payload = await self.pool.get(job_key_prefix.encode() + job_id)
        except redis_errors.ResponseError as error:
            if not _is_of_message(error):
                raise
            payload = None  # the key has another type
        try:
            await self._parker.park(job_id.decode(errors="backslashreplace"), payload or b"", problem)
        except TweezerError as error:
            log.warning("message.not_parked", message=repr(job_id), error=error.message)
            later_ms = round(time.time() * 1000) + _NOT_PARKED_MS
            await self.pool.zadd(self.queue_name, {job_id: later_ms}, xx=True)
            await self.pool.delete(in_progress_key_prefix.encode() + job_id)
            return False
        return True


def _is_of_message(error: Exception) -> bool:
    """Return whether the message caused the error, not Redis, the network or this process."""
    if isinstance(error, redis_errors.ResponseError):
        return translate_error(error).code in ("unreadable", "redis")
    return not isinstance(error, (TweezerError, redis_errors.RedisError, OSError, RuntimeError, MemoryError))


def _read_message(read: Callable[[bytes], dict[str, Any]], data: bytes) -> dict[str, Any]:
    """Read a message, and record why it cannot be read."""
    try:
        return check_message(read(data))
    except ValueError as error:
        _problems.get([]).append(str(error))
        raise


async def send_again(store: Store, message_id: str, payload: bytes) -> None:
    """Return a parked message to the intake queue. Raises Unavailable."""
    with translating():
        now_ms = round(time.time() * 1000)
        await store.redis.set(job_key_prefix + message_id, payload, px=_MESSAGE_KEPT_MS)
        await store.redis.zadd(store.keys(Key.INTAKE), {message_id: now_ms})


def stopped_by_signals() -> asyncio.Event:
    """Return an event that is set on SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopping.set)
    return stopping


async def done_before(stopping: asyncio.Event, waiting: Awaitable[object]) -> bool:
    """Await something until it is done or ``stopping`` is set; return whether it is done."""
    done, stop = asyncio.ensure_future(waiting), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait([done, stop], return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            await done
            return True
        return False
    finally:
        await end_tasks(done, stop)


async def require_access(store: Store, stopping: asyncio.Event, backoff: Backoff) -> bool:
    """Wait until Redis answers; return False if ``stopping`` is set first.

    Raises TweezerError when Redis refuses the credentials, or the user may not call scripts, as retrying does not help.
    """
    return await done_before(stopping, until_answered(store.reader.ping, backoff, "connecting to Redis"))


async def work(
    make: Callable[[], Awaitable[Sequence[Worker]]],
    stopping: asyncio.Event,
    *,
    doing: str,
    drain_s: float,
    backoff: Backoff,
) -> None:
    """Run plain arq workers until ``stopping``. When one fails or Redis goes away, start new ones after a pause.

    arq runs a message again that the end of the process interrupted. All messages are safe to repeat.
    """

    async def work_once() -> None:
        with translating():
            with heeding_cancel():
                workers = await make()
            await _work_once(workers, stopping, drain_s)

    async def pause(seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stopping.wait()

    await repeat(doing, work_once, backoff=backoff, while_=lambda: not stopping.is_set(), pause=pause)


async def _work_once(workers: Sequence[Worker], stopping: asyncio.Event, drain_s: float) -> None:
    """Run the workers until ``stopping`` is set or one of them fails; then end all."""
    running = [asyncio.ensure_future(worker.async_run()) for worker in workers]
    stop = asyncio.ensure_future(stopping.wait())
    try:
        done, _ = await asyncio.wait([*running, stop], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if stop not in done:
            raise DutyEnded("an arq worker ended by itself")
    finally:
        stop.cancel()
        await _end(workers, running, drain_s)


async def _end(workers: Sequence[Worker], running: Sequence[asyncio.Future[None]], drain_s: float) -> None:
    """End the workers and their messages. arq's ``close`` would raise CancelledError when it interrupts a message, and
    close all connections of the process."""
    for worker in workers:
        worker.handle_sig(signal.SIGUSR1)
    for task in running:
        task.cancel()
    messages = [task for worker in workers for task in worker.tasks.values()]
    ended, _ = await asyncio.wait([*running, *messages], timeout=drain_s)
    await asyncio.gather(*ended, return_exceptions=True)
    for worker in workers:
        with contextlib.suppress(TweezerError), translating():
            await worker.pool.delete(worker.health_check_key)


async def _run(make: Callable[[], Process]) -> None:
    process = make()
    gc.freeze()  # keeps existing objects out of full collections, each of which would block for 50 ms
    try:
        await process.async_run()
    except asyncio.CancelledError:
        log.info("process.stopping")
    except (redis_errors.RedisError, OSError) as error:
        raise Unavailable(f"Redis cannot be reached: {error}") from error
    finally:
        await process.close()


BEAT_S = 1.0
"""Interval of the loop's heartbeat, and of its checks."""

LATE_S = 2.0
"""A loop without a heartbeat for this time is reported."""

_FRAMES = 4  # number of innermost frames in a report


@contextmanager
def watching_loop(*, beat_s: float = BEAT_S, late_s: float = LATE_S) -> Iterator[None]:
    """Watch the event loop of this thread until the end of the block."""
    watchdog = _Watchdog(asyncio.get_running_loop(), beat_s, late_s)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()


class _Watchdog:
    """Checks the loop from a separate thread, which runs even if the loop is blocked."""

    def __init__(self, loop: asyncio.AbstractEventLoop, beat_s: float, late_s: float) -> None:
        self._loop = loop
        self._beat_s = beat_s
        self._late_s = late_s
        self._watched = threading.get_ident()
        self._beaten = time.monotonic()
        self._next: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._next is not None:
            self._next.cancel()
        self._thread.join()

    def _beat(self) -> None:
        self._beaten = time.monotonic()
        self._next = self._loop.call_later(self._beat_s, self._beat)

    def _watch(self) -> None:
        checked, since = time.monotonic(), None
        while not self._stopped.wait(self._beat_s):
            now, beaten = time.monotonic(), self._beaten
            slept = now - checked > self._late_s  # the whole process was stopped, or the machine slept
            checked = now
            if since is not None and beaten > since:
                log.warning("loop.runs_again", blocked_s=round(beaten - since, 1))
                since = None
            elif since is None and now - beaten > self._late_s and not slept:
                since = beaten
                at = _places(sys._current_frames().get(self._watched))  # noqa: SLF001  # documented, despite its name
                log.warning("loop.blocked", for_s=round(now - beaten, 1), at=at)


def _places(frame: FrameType | None) -> list[str]:
    """Return the position of a thread, innermost frame first."""
    found: list[str] = []
    while frame is not None and len(found) < _FRAMES:
        code = frame.f_code
        found.append(f"{code.co_filename}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return found
