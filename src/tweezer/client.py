"""The producers' API: submit batches, follow them, read results.

``connect_async`` (here) is for asyncio; :mod:`tweezer.sync` has the same calls for everybody else. A producer
talks to Redis directly and is trusted with it; whoever is not goes through the HTTP API.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import UUID

import msgspec

from tweezer.data_folder import DATA_DIR, REDIS_URL, running_environment
from tweezer.duties import Backoff, heeding_cancel
from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.batch_reader import BatchReader
from tweezer.ledger.config import OpenDatabase
from tweezer.model.arguments import check_flag, check_indices, check_list, check_path, check_seconds, shown
from tweezer.model.cancels import check_by, user_at_host
from tweezer.model.checks import MAX_DEVICE_LENGTH, MAX_KEY_LENGTH, MAX_NAME_LENGTH, check_text
from tweezer.model.errors import Conflict, InvalidInput, NotFound, ResultUnavailable, TweezerError, Unavailable
from tweezer.model.events import Event, words_of_news
from tweezer.model.ids import DEFAULT_PROJECT, is_namespace, is_project_id, new_batch_id, split_job_id
from tweezer.model.lifecycle import JOB_BY_LETTER, JobStatus
from tweezer.model.messages import MAX_JOBS_PER_BATCH, JobSpec, Limits, Priority, Result
from tweezer.model.windows import Window, check_time
from tweezer.store.connection import Connect, Store
from tweezer.store.devices import new_window
from tweezer.store.producers import CancelAnswer, Submission
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord, WorkerRecord
from tweezer.store.streams.batch_events import BatchEvents, LastEvent
from tweezer.store.streams.feed import ChannelReader

if TYPE_CHECKING:
    from pulser.backend.results import Results

    from tweezer.ledger.queries.queries import Queries

T = TypeVar("T")

_LOOK_AGAIN_S = 30.0  # a wait reads the state again this often, whatever it heard
_MAX_URL_LENGTH = 4096
RETRY_S = 10.0
"""How long a call is repeated while Redis does not answer, unless another time is given."""

_RETRY = Backoff(base_s=0.1, cap_s=2.0)


class WaitTimeout(TweezerError):
    """What was waited for did not come in time; waiting again is fine."""

    code = "wait_timeout"
    retryable = True


class JobFailed(TweezerError):
    """The result of a job was asked for, and it has none."""

    code = "job_failed"


class Finished(msgspec.Struct, frozen=True):
    """A job that has ended, with its result if it has one; ``unavailable`` says why that cannot be read."""

    record: JobRecord
    data: Result | None
    unavailable: ResultUnavailable | None = None

    @classmethod
    def of(cls, record: JobRecord, found: Result | ResultUnavailable | None) -> Self:
        """Return the job with what was found of its result."""
        if isinstance(found, ResultUnavailable):
            return cls(record, None, found)
        return cls(record, found)

    @property
    def id(self) -> UUID:
        return self.record.id

    @property
    def index(self) -> int:
        return self.record.index

    @property
    def status(self) -> JobStatus:
        return self.record.status

    @property
    def variables(self) -> dict[str, Any]:
        return self.record.spec.variables

    @property
    def error(self) -> str | None:
        """Why it failed, or why its result cannot be read, for people."""
        if self.unavailable is not None:
            return self.unavailable.message
        return "; ".join(map(str, self.record.faults)) or None

    @property
    def result(self) -> Result:
        """What it measured; of a job that is CANCELED what a machine had measured before it was stopped, fewer shots
        than asked for. Raises JobFailed, with the reason, when the job has no result; ResultUnavailable when it has one
        that cannot be read."""
        if self.unavailable is not None:
            raise self.unavailable
        if self.data is None:
            why = self.error or f"it is {self.status.value}"
            raise JobFailed(f"job {self.id} (number {self.index} of its batch) has no result: {why}")
        return self.data

    @property
    def counter(self) -> dict[str, int]:
        """Bitstring → number of shots. Raises JobFailed, ResultUnavailable."""
        counter = self.result.counter
        if counter is None:
            raise JobFailed(f"job {self.id} measured no bitstrings at its end; read its results()")
        return counter

    def results(self) -> Results:
        """Return the results as Pulser's ``Results``, with all observables. Needs pulser. Raises as ``result``."""
        text = self.result.serialised_results
        if text is None:
            raise JobFailed(f"job {self.id} has a counter, but no serialised results")
        from pulser.backend.results import Results

        return Results.from_abstract_repr(text)


class Handle:
    """Refers to connections: a copy is the object itself."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class AsyncBatch(Handle):
    """A handle on a batch. Making one asks nothing of Redis."""

    def __init__(self, queue: AsyncQueue, batch_id: UUID) -> None:
        self.queue = queue
        self._store = queue.store
        self.id = batch_id

    def __repr__(self) -> str:
        return f"<batch {self.id}>"

    def __reduce__(self) -> tuple[type[AsyncBatch], tuple[AsyncQueue, UUID]]:
        return AsyncBatch, (self.queue, self.id)

    async def record(self) -> BatchRecord:
        """Return the batch as it stands now. Raises NotFound."""
        return await self.queue.reader.batch(self.queue.caller, self.id)

    async def add_jobs(self, jobs: Iterable[JobSpec | dict[str, Any]], *, idempotency_key: str | None = None) -> int:
        """Add jobs to the open batch; return the index of the first. Checked like those of a submit."""
        added, key = check_list("jobs", jobs, "jobs"), _checked_key(idempotency_key)
        return await self._command(
            lambda: self._store.admission.add_jobs(self.id, added, project=self.queue.project, idempotency_key=key)
        )

    async def close(self) -> None:
        """No more jobs will come: the batch is DONE when its jobs are."""
        await self._command(lambda: self._store.commands.close(self.id, project=self.queue.project))

    async def cancel(self, *, by: str | None = None) -> None:
        """Cancel what is pending and stop what runs. by: who asks, which is noted (default: ``user@host``)."""
        commands, key = self._store.commands, secrets.token_hex(16)
        who = _checked_by(by)
        await self._command(lambda: commands.cancel(self.id, project=self.queue.project, by=who, idempotency_key=key))

    async def cancel_jobs(self, indices: Sequence[int], *, by: str | None = None) -> list[CancelAnswer]:
        """Cancel some of the jobs; return one answer each. by: as of :meth:`cancel`."""
        commands, key = self._store.commands, secrets.token_hex(16)
        who, chosen = _checked_by(by), check_indices("indices", indices, MAX_JOBS_PER_BATCH)
        if not chosen:
            return []
        return await self._command(
            lambda: commands.cancel_jobs(self.id, chosen, project=self.queue.project, by=who, idempotency_key=key)
        )

    async def pause(self) -> None:
        """Hand out no more jobs; what runs finishes."""
        await self._command(lambda: self._store.commands.pause(self.id, project=self.queue.project))

    async def resume(self) -> None:
        """Hand out jobs again."""
        await self._command(lambda: self._store.commands.resume(self.id, project=self.queue.project))

    async def changes(self, timeout_s: float | None = None) -> AsyncIterator[BatchRecord]:
        """Return the batch now and after each change, until nothing of it is pending or running. Raises WaitTimeout."""
        deadline = _deadline(timeout_s)
        async with self._news() as heard:
            while True:
                record = await self.record()
                yield record
                if is_settled(record):
                    return
                await heard.next(self._patience(deadline))

    async def wait(self, timeout_s: float | None = None) -> BatchRecord:
        """Wait until no job is pending or running; woken by Redis, it does not poll. Raises WaitTimeout."""
        _deadline(timeout_s)
        record = await self.record()
        if not is_settled(record):
            async for record in self.changes(timeout_s):  # noqa: B007  the last one is the answer
                pass
        return record

    async def jobs(self) -> list[JobRecord]:
        """Return all jobs as they stand now, in the order of their indices."""
        record = await self.record()
        return await self.jobs_at(record, range(record.jobs))

    async def jobs_at(self, record: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        """Return some jobs of the batch as they stand now, in the order of their indices."""
        return await self.queue.reader.jobs(record, indices)

    async def results_at(self, indices: Sequence[int]) -> dict[int, Result | ResultUnavailable]:
        """Return the results that jobs have, by index, or why one cannot be read. Find the batch first: that it is the
        project's."""
        return await self.queue.reader.results(self.id, indices)

    async def finished(self, timeout_s: float | None = None) -> AsyncIterator[Finished]:
        """Each job as it ends, once; the ones that have ended come first. Raises WaitTimeout."""
        deadline = _deadline(timeout_s)
        told: set[int] = set()
        async with self._news() as heard:
            words: list[bytes] = []
            while True:
                record = await self.record()
                last = is_settled(record)
                candidates = self._ended_in(words) if words and not last else range(record.jobs)
                for job in await self._finished(record, [index for index in candidates if index not in told]):
                    told.add(job.index)
                    yield job
                if last:
                    return
                words = await heard.next(self._patience(deadline))

    async def events(
        self, after: Event | str | None = None, *, follow: bool = True, timeout_s: float | None = None
    ) -> AsyncIterator[Event]:
        """Return all events of the batch in order, each once, until the one that ends the batch; woken by Redis.

        after: an event, or its id, to go on behind; ``"now"`` tells only what comes. follow: False gives what there is
        now and ends. Events that Redis has let go come from the ledger, where the queue was told of it.

        Raises EventsTrimmed where it was not, rather than leave any out; WaitTimeout after ``timeout_s``; NotFound;
        InvalidInput("after", …).
        """
        deadline = _deadline(timeout_s)
        check_flag("follow", follow)
        async with self._news() as heard:
            batch = await self.record()
            reading = BatchEvents(
                self._store.events,
                self.record,
                batch=batch,
                last=_place(batch, after),
                recorded=partial(self.queue.reader.entries, batch) if self.queue.has_ledger else None,
            )
            while True:
                while events := await self.queue.ask(reading.read):
                    for event in events:
                        yield event
                if reading.is_over or not follow:
                    return
                await heard.next(self._patience(deadline))

    async def results(self, timeout_s: float | None = None) -> list[Finished]:
        """Wait for all jobs, then return them in the order of their indices. Raises WaitTimeout."""
        record = await self.wait(timeout_s)
        return await self._finished(record, range(record.jobs))

    @contextlib.asynccontextmanager
    async def _news(self) -> AsyncIterator[ChannelReader]:
        async with contextlib.AsyncExitStack() as stack:
            yield await self.queue.ask(lambda: stack.enter_async_context(self._store.news.batch(self.id)))

    def _ended_in(self, messages: list[bytes]) -> list[int]:
        return [
            index
            for word in words_of_news(messages)
            if word.jobs and JOB_BY_LETTER[word.letters[1]].terminal
            for index in word.jobs
        ]

    async def _finished(self, record: BatchRecord, indices: Sequence[int]) -> list[Finished]:
        ended = [job for job in await self.jobs_at(record, indices) if job.status.terminal]
        results = await self.results_at([job.index for job in ended if job.may_have_result])
        return [Finished.of(job, results.get(job.index)) for job in ended]

    async def _command(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self.queue.ask(call)
        except NotFound:
            if not await self.queue.reader.is_recorded(self.queue.caller, self.id):
                raise
            raise Conflict(f"batch {self.id} has ended", code="terminal") from None

    def _patience(self, deadline: float | None) -> float:
        if deadline is None:
            return _LOOK_AGAIN_S
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeout(f"batch {self.id} still has jobs to run; wait longer, or look at `tweezer devices`")
        return min(left, _LOOK_AGAIN_S)


def is_settled(record: BatchRecord) -> bool:
    """Return whether nothing of the batch is pending or running: it has ended, or is open and without work."""
    return record.counts[JobStatus.PENDING] + record.counts[JobStatus.RUNNING] == 0 and (
        record.status.terminal or record.open
    )


def _place(batch: BatchRecord, after: Event | str | None) -> LastEvent:
    """Behind which event of the batch to begin. Raises InvalidInput("after", …)."""
    if after is None:
        return LastEvent()
    if after == "now":
        return LastEvent(batch.sequence_number)
    identity = after.id if isinstance(after, Event) else after
    if not isinstance(identity, str):
        raise InvalidInput("after", f"expects an event, the id of one, or 'now', got {shown(after)}")
    batch_id, _, rest = identity.partition(":")
    match = re.fullmatch(r"(\d{1,15}):(\d{1,18})", rest, re.ASCII)
    if match is None or batch_id.lower() != str(batch.id):
        raise InvalidInput(
            "after", f"{shown(after)} is neither an event of batch {batch.id}, nor the id of one, nor 'now'"
        )
    return LastEvent(int(match[1]), int(match[2]))


def _deadline(timeout_s: float | None) -> float | None:
    """Return when a wait ends, on the monotonic clock. Raises InvalidInput("timeout_s", …)."""
    return None if timeout_s is None else time.monotonic() + check_seconds("timeout_s", timeout_s)


def _checked_by(by: str | None) -> str:
    return user_at_host() if by is None else check_by(by)


def _checked_key(idempotency_key: str | None) -> str:
    """Return the idempotency key of a call; one is made up if none is given."""
    if idempotency_key is None:
        return secrets.token_hex(16)
    return check_text("idempotency_key", idempotency_key, MAX_KEY_LENGTH)


class AsyncQueue(Handle):
    """A project's door to the queue, for asyncio. Use it as an async context manager, or ``close`` it."""

    def __init__(
        self, store: Store, project: str, *, retry_s: float = RETRY_S, ledger: OpenDatabase | None = None
    ) -> None:
        """``retry_s``: how long calls are repeated while Redis does not answer, before Unavailable is raised.
        ``ledger``: where to look for batches that Redis has forgotten; it is opened when it is needed."""
        self.store = store
        self.project = project
        self._retry_s = retry_s
        self._ledger = ledger
        self._queries: Queries | None = None
        self.caller = Principal("", Role.USER, frozenset({project}))
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None  # process and event loop of its connections
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __reduce__(self) -> tuple[Callable[..., AsyncQueue], tuple[Any, ...]]:
        """Pickle as a queue that is opened anew: with the same URL, and the password in it."""
        if self.store.connect is None:
            raise TypeError("only a queue that connect or connect_async opened can be pickled")
        return _reopen, (self.store.connect, self.project, self._retry_s, self._ledger)

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        home = getattr(self, "_home", None)
        if home is not None and home[0] == os.getpid() and not self._closed:
            _warn(f"unclosed {self!r}", ResourceWarning, source=self)

    def anew(self) -> AsyncQueue:
        """Return a queue like this one, with connections of its own."""
        reopen, arguments = self.__reduce__()
        return reopen(*arguments)

    async def close(self) -> None:
        """Close the connections; a closed queue answers no more calls. Closing it again changes nothing."""
        if self._closed:
            return
        self._require_home()
        self._closed = True
        await self.store.close()
        if self._queries is not None:
            self._queries.close()

    @property
    def has_ledger(self) -> bool:
        """Whether there is a ledger to look into for what Redis has forgotten."""
        return self._ledger is not None

    @property
    def reader(self) -> BatchReader:
        """What reads batches; made anew, since one that is kept would keep a queue alive that nobody closed."""
        return BatchReader(self.store, self._open_ledger, ask=self.ask)

    async def _open_ledger(self) -> Queries | None:
        """Open the ledger at its first use; None where no ledger was named. Raises TweezerError."""
        self._require_home()
        if self._queries is None and self._ledger is not None:
            try:
                from tweezer.ledger.queries.queries import Queries
            except ModuleNotFoundError as error:
                raise TweezerError(
                    f"reading the ledger needs {error.name}: pip install 'tweezer[server]'", code="missing_extra"
                ) from error
            self._queries = await asyncio.to_thread(Queries.open, self._ledger)
        return self._queries

    async def submit(
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
    ) -> AsyncBatch:
        """Submit a batch and return its handle; when it returns, Redis has it.

        sequence: a Pulser ``Sequence`` or its abstract representation; None if each job has its own.
        jobs: ``Job(runs, variables, …)`` or dictionaries of the same; at most 10,000.
        device: name of one that a worker has announced; by default the one that the (first) sequence was built for.
        open: more jobs may be added until ``close``. not_before: an aware time to start at, at the earliest.
        idempotency_key: calls with the same key within a day make one batch; one is made up if none is given.

        Raises InvalidInput, naming the field, before anything is written; QueueFull; Conflict; Unavailable.
        """
        submission = Submission(
            sequence=sequence,
            jobs=check_list("jobs", jobs, "jobs"),
            device=device,
            priority=priority,
            open=check_flag("open", open),
            name=name,
            tags=tuple(check_list("tags", tags, "texts")),
            webhook=webhook,
            backend_configuration=backend_configuration,
            limits=Limits() if limits is None else limits,
            not_before=not_before,
            idempotency_key=_checked_key(idempotency_key),
        )
        return AsyncBatch(self, await self.ask(lambda: self.store.admission.submit(submission, project=self.project)))

    def batch(self, batch_id: UUID | str) -> AsyncBatch:
        """Return a handle on a batch that was submitted before, here or elsewhere."""
        return AsyncBatch(self, as_uuid("batch", batch_id))

    async def job(self, job_id: UUID | str) -> JobRecord:
        """Return a job as it stands. Raises NotFound."""
        return await self.reader.job(self.caller, as_uuid("job", job_id))

    async def result(self, job_id: UUID | str) -> Finished:
        """Return a job that has ended, with its result. Raises NotFound; Conflict when it has not ended."""
        record = await self.job(job_id)
        if not record.status.terminal:
            raise Conflict(f"job {record.id} is {record.status.value}; wait for it first", code="not_ended")
        batch_id, index = split_job_id(record.id)
        results = await self.reader.results(batch_id, [index] if record.may_have_result else [])
        return Finished.of(record, results.get(index))

    async def cancel_many(self, batch_ids: Iterable[UUID | str], *, by: str | None = None) -> dict[UUID, str]:
        """Cancel several batches; return the errors of those that could not be, by id. by: who asks, which is noted."""
        errors, who = {}, _checked_by(by)
        for batch in [self.batch(batch_id) for batch_id in check_list("batch_ids", batch_ids, "ids of batches")]:
            try:
                await batch.cancel(by=who)
            except TweezerError as error:
                errors[batch.id] = error.message
        return errors

    async def devices(self) -> list[DeviceRecord]:
        """Return all devices, by name."""
        return await self.ask(self.store.reader.devices)

    async def workers(self) -> list[WorkerRecord]:
        """Return all live workers."""
        return await self.ask(self.store.reader.workers)

    async def pause_device(self, name: str, reason: str, *, until: datetime | None = None) -> None:
        """Start nothing more on the device, for everybody; what runs finishes. At ``until``, an aware time, it goes on
        by itself."""
        check_text("name", name, MAX_DEVICE_LENGTH)
        await self.ask(lambda: self.store.devices.pause(name, reason, until=until))

    async def resume_device(self, name: str) -> None:
        """End a pause; maintenance that is under way goes on."""
        check_text("name", name, MAX_DEVICE_LENGTH)
        await self.ask(lambda: self.store.devices.resume(name))

    async def maintenance(self, name: str) -> list[Window]:
        """Return what maintenance of the device is planned, or under way, in order."""
        check_text("name", name, MAX_DEVICE_LENGTH)
        return await self.ask(lambda: self.store.reader.windows(name))

    async def plan_maintenance(self, name: str, begins: datetime, ends: datetime, reason: str) -> Window:
        """Start nothing on the device from one aware time to another, and before that no batch that would not end in
        time. Raises InvalidInput, NotFound; Conflict when it overlaps with other maintenance."""
        check_text("name", name, MAX_DEVICE_LENGTH)
        check_time("begins", begins)
        check_time("ends", ends)
        window = new_window(begins, ends, reason)
        await self.ask(lambda: self.store.devices.plan(name, window))
        return window

    async def drop_maintenance(self, name: str, window_id: str) -> None:
        """Take planned maintenance back, or end it where it is under way. Raises NotFound."""
        check_text("name", name, MAX_DEVICE_LENGTH)
        check_text("window_id", window_id, MAX_NAME_LENGTH)
        await self.ask(lambda: self.store.devices.drop(name, window_id))

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call of the store while Redis does not answer; every call of ours may be repeated.

        Raises TweezerError when the queue is closed, or belongs to another event loop.
        """
        self._require_home()
        deadline, tries = time.monotonic() + self._retry_s, 0
        while True:
            try:
                with heeding_cancel():
                    return await call()
            except Unavailable:
                tries += 1
                delay_s = _RETRY.delay_s(tries)
                if time.monotonic() + delay_s > deadline:
                    raise
                await asyncio.sleep(delay_s)

    def _require_home(self) -> None:
        """Raises TweezerError unless this is the process and the event loop of the first call."""
        if self._closed:
            raise TweezerError("the queue is closed; open another one with connect_async()", code="queue_closed")
        process, loop = os.getpid(), asyncio.get_running_loop()
        if self._home is None:
            self._home = process, loop
        if self._home[0] != process:
            raise TweezerError(
                "the queue was opened before this process was forked; open one in each process with connect_async()",
                code="wrong_loop",
            )
        if self._home[1] is not loop:
            raise TweezerError(
                "the queue was used in another event loop before, and its connections belong to that; open one for "
                "each asyncio.run() with connect_async()",
                code="wrong_loop",
            )


def _reopen(connect: Connect, project: str, retry_s: float, ledger: OpenDatabase | None) -> AsyncQueue:
    return AsyncQueue(Store.open(connect), project, retry_s=retry_s, ledger=ledger)


def as_uuid(kind: str, text: UUID | str) -> UUID:
    """Return the id of a text. Raises InvalidInput."""
    try:
        return text if isinstance(text, UUID) else UUID(text)
    except (ValueError, AttributeError, TypeError):
        raise InvalidInput(f"{kind}_id", f"{shown(text)} is not an id; it looks like {new_batch_id()}") from None


def connect_async(
    url: str | None = None,
    *,
    project: str | None = None,
    namespace: str | None = None,
    retry_s: float = RETRY_S,
    results_dir: str | Path | None = None,
    database_url: str | None = None,
) -> AsyncQueue:
    """Open the queue. ``url`` is Redis' (default: ``TWEEZER_REDIS_URL``, else that of a running
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
    variables = _variables(url)
    whose = project if project is not None else variables.get("TWEEZER_PROJECT_ID") or DEFAULT_PROJECT
    if not is_project_id(whose):
        raise InvalidInput(
            "project", f"expects 1 to 64 letters, digits, dots, dashes and underscores, got {shown(whose)}"
        )
    if database_url is not None:
        check_text("database_url", database_url, _MAX_URL_LENGTH)
    ledger = database_url or variables.get("TWEEZER_DATABASE_URL")
    if url is not None:
        check_text("url", url, _MAX_URL_LENGTH)
    namespace = variables.get("TWEEZER_NAMESPACE", Connect().namespace) if namespace is None else namespace
    if not is_namespace(namespace):
        raise InvalidInput(
            "namespace", f"expects 1 to 32 letters, digits, dots, dashes and underscores, got {shown(namespace)}"
        )
    connect = Connect(
        url=url or variables.get(REDIS_URL) or Connect().url,
        namespace=namespace,
        results_dir=_results_folder(results_dir, variables),
    )
    return AsyncQueue(
        Store.open(connect),
        whose,
        retry_s=check_seconds("retry_s", retry_s),
        ledger=OpenDatabase(ledger, connections_max=2) if ledger else None,
    )


def _variables(url: str | None) -> Mapping[str, str]:
    """Return the environment, completed by that of a running ``tweezer up`` where nothing names a Redis."""
    given = {name: value for name, value in os.environ.items() if value}
    return given if url or given.get(REDIS_URL) else running_environment() | given


def _results_folder(given: str | Path | None, variables: Mapping[str, str]) -> Path | None:
    """Return the folder of large results, as given, else as the environment says."""
    if given is not None:
        return Path(check_path("results_dir", given)).absolute()
    if named := variables.get("TWEEZER_RESULTS_DIR"):
        return Path(named).absolute()
    data = variables.get(DATA_DIR)
    return Path(data).absolute() / "results" if data else None
