"""The Python client for asyncio: submit batches, follow them and read their results.

:func:`connect_async` opens a queue. :mod:`tweezer.sync` offers the same calls without ``await``. The client works
through the HTTP API with a key, or directly in Redis, whose credentials it then needs (:mod:`tweezer.transports`).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import os
import re
import secrets
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypedDict, TypeVar, Unpack, cast
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import msgspec

from tweezer import tracing
from tweezer.data_folder import API_CA_FILE, API_KEY, API_URL, DATA_DIR, REDIS_URL, running_environment
from tweezer.display.data import JobList, to_arrays
from tweezer.duties import Backoff, heeding_cancel
from tweezer.ledger.bulk_actions import BulkAction, BulkOutcome, BulkRequest
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.queries.filters import BatchFilter
from tweezer.ledger.repetition import UNSUCCESSFUL, check_unsuccessful, nothing_to_retry
from tweezer.ledger.schedules.records import (
    GRACE_S,
    Missed,
    Overlap,
    Schedule,
    ScheduleChange,
    ScheduleSettings,
    check_change,
    check_settings,
)
from tweezer.model.arguments import (
    check_flag,
    check_indices,
    check_list,
    check_path,
    check_seconds,
    quote_name,
    read_secret,
    shown,
)
from tweezer.model.attempts import JobAttempt
from tweezer.model.cancels import check_by, user_at_host
from tweezer.model.checks import (
    MAX_DEVICE_LENGTH,
    MAX_INTEGER,
    MAX_KEY_LENGTH,
    MAX_NAME_LENGTH,
    MAX_REASON_LENGTH,
    MAX_TAG_LENGTH,
    as_limits,
    check_tags,
    check_text,
    list_jobs,
    suggest_name,
)
from tweezer.model.errors import Conflict, InvalidInput, NotFound, ResultUnavailable, TweezerError, Unavailable
from tweezer.model.events import Event, JobNews, Word
from tweezer.model.ids import DEFAULT_PROJECT, is_namespace, is_project_id, new_batch_id, short_id, short_job_id
from tweezer.model.ids import job_id as make_job_id
from tweezer.model.lifecycle import JOB_BY_LETTER, BatchStatus, JobStatus
from tweezer.model.messages import MAX_JOBS_PER_BATCH, JobSpec, Limits, Priority, Result
from tweezer.model.rule_fields import RULE_FIELDS, Retries, RuleFields, apply_rules, as_retries
from tweezer.model.rules import MAX_DEPENDENCIES, Dependency, When
from tweezer.model.summaries import cut, describe_counter, describe_job
from tweezer.model.windows import Window, check_time
from tweezer.store.connection import Connect
from tweezer.store.devices import new_window
from tweezer.store.job_logs import JobLog
from tweezer.store.producers import CancelAnswer, CheckedSubmission, Submission, check_priority
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord, WorkerRecord, describe_wait
from tweezer.store.scripts import split_pages
from tweezer.store.streams.batch_events import LastEvent
from tweezer.transports.direct import DirectAddress
from tweezer.transports.protocol import Address, NewsReader, Place, Transport, is_settled

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from pulser.backend.results import Results

T = TypeVar("T")

_LOOK_AGAIN_S = 30.0  # a wait reads the state again this often, even without a notification
_MAX_URL_LENGTH = 4096
_BATCHES_PAGE = 100  # records per read of a list
_JOB = re.compile(r"(.+)/(\d{1,8})", re.ASCII)
RETRY_S = 10.0
"""Default for how long a call is repeated while Redis or the API does not answer, in seconds."""

_RETRY = Backoff(base_s=0.1, cap_s=2.0)


class WaitTimeout(TweezerError):
    """A wait reached its timeout. The batch is unaffected, and the caller may wait again."""

    code = "wait_timeout"
    retryable = True


class JobFailed(TweezerError):
    """The job has no result, for example because it failed."""

    code = "job_failed"


class Finished(msgspec.Struct, frozen=True):
    """A job that has ended, with its result if it has one.

    Attributes:
        record: The job's record: status, times, attempt and errors.
        data: The result, or None if the job has none or it cannot be read.
        unavailable: Why an existing result cannot be read, else None.
    """

    record: JobRecord
    data: Result | None
    unavailable: ResultUnavailable | None = None

    @classmethod
    def of(cls, record: JobRecord, found: Result | ResultUnavailable | None) -> Self:
        """Combine a job's record with its result, or with the error from reading that."""
        if isinstance(found, ResultUnavailable):
            return cls(record, None, found)
        return cls(record, found)

    def __repr__(self) -> str:
        counter = None if self.data is None else self.data.counter
        result = "" if self.data is None else "no bitstrings" if counter is None else describe_counter(counter)
        return describe_job(self.index, self.status, self.variables, result, cut(self.error or ""))

    def _repr_html_(self) -> str:
        from tweezer.display.html import draw_job

        return draw_job(self)

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
        """The reason for the failure, or for the result being unreadable, as a sentence; None if neither applies."""
        if self.unavailable is not None:
            return self.unavailable.message
        return "; ".join(map(str, self.record.faults)) or None

    @property
    def result(self) -> Result:
        """The result of the job.

        A CANCELED job may have a partial result with fewer shots than requested: what the device had measured before
        it stopped.

        Raises:
            JobFailed: The job has no result; the message states the reason.
            ResultUnavailable: The job has a result, but it cannot be read here.
        """
        if self.unavailable is not None:
            raise self.unavailable
        if self.data is None:
            why = self.error or f"its status is {self.status.value}"
            raise JobFailed(f"job {short_job_id(self.id)} has no result: {why}")
        return self.data

    @property
    def counter(self) -> dict[str, int]:
        """The final measurement: number of shots by bitstring.

        The characters of a bitstring follow the order of the qubits in the register.

        Raises:
            JobFailed: The job has no result, or its configuration requested no final bitstrings.
            ResultUnavailable: The job has a result, but it cannot be read here.
        """
        counter = self.result.counter
        if counter is None:
            raise JobFailed(
                f"job {short_job_id(self.id)} did not measure final bitstrings; see its observables with results()"
            )
        return counter

    def to_arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the final measurement as arrays of numpy, the most frequent bitstring first.

        ``numpy.repeat(bits, shots, axis=0)`` has a row for each shot. The order of the measurements is not known.

        Returns:
            Two arrays. The first has the bits, 0 or 1, with the shape (bitstrings, atoms) and the type uint8; the atoms
            are in the order of the register. The second has the number of shots of each bitstring, with the shape
            (bitstrings,) and the type int64.

        Raises:
            JobFailed: The job has no result, or its configuration requested no final bitstrings.
            ResultUnavailable: The job has a result, but it cannot be read here.
            TweezerError: numpy is not installed.

        Example:
            ```python
            bits, shots = job.to_arrays()
            print(shots @ bits / shots.sum())  # how often each atom was excited
            ```
        """
        return to_arrays(self.counter)

    def results(self) -> Results:
        """Return the result as ``pulser.backend.results.Results``, with all its observables.

        Pulser must be installed.

        Raises:
            JobFailed: The job has no result, or one without serialised results (only a counter).
            ResultUnavailable: The job has a result, but it cannot be read here.
        """
        text = self.result.serialised_results
        if text is None:
            raise JobFailed(f"job {short_job_id(self.id)} has no serialised results; use its `counter` instead")
        from pulser.backend.results import Results

        return Results.from_abstract_repr(text)


class Handle:
    """An object that refers to connections, so copying it returns the object itself."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class AsyncBatch(Handle):
    """A handle on a batch, for asyncio.

    Creating a handle does not contact the queue. Iterators such as :meth:`finished` and :meth:`changes` are notified
    of changes; they do not poll.

    Example:
        ```python
        batch = await queue.submit(sequence, [{"runs": 200}, {"runs": 400}])
        async for job in batch.finished():
            print(job.index, job.status, job.counter if job.data else job.error)
        ```

    Attributes:
        id: The batch's UUID.
        queue: The queue that the handle uses.
    """

    def __init__(self, queue: AsyncQueue, batch_id: UUID) -> None:
        self.queue = queue
        self.id = batch_id

    def __repr__(self) -> str:
        return f"<batch {short_id(self.id)}>"

    def __reduce__(self) -> tuple[type[AsyncBatch], tuple[AsyncQueue, UUID]]:
        return AsyncBatch, (self.queue, self.id)

    @property
    def _transport(self) -> Transport:
        return self.queue.transport

    async def record(self) -> BatchRecord:
        """Return the current state of the batch.

        Raises:
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        return await self.queue.ask(lambda: self._transport.batch(self.id))

    async def waits_for(self) -> str | None:
        """Return what the batch waits for, for people: its start time, its device, to be resumed.

        None if nothing is known to keep it waiting. While one of its jobs is running, it waits only for a machine that
        does not answer. Times in the text are in UTC.

        Raises:
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        record = await self.record()
        device = await self.queue.device(record.device) if record.may_wait else None
        return describe_wait(record, device, datetime.now(UTC))

    async def add_jobs(self, jobs: Iterable[JobSpec | dict[str, Any]], *, idempotency_key: str | None = None) -> int:
        """Add jobs to an open batch.

        Args:
            jobs: :class:`Job` objects or dictionaries of the same fields, checked as in :meth:`AsyncQueue.submit`; at
                most 10,000 per call and 100,000 per batch.
            idempotency_key: Calls with the same key within a day add the jobs once. By default each call has a new key.

        Returns:
            The index in the batch of the first job that was added.

        Raises:
            InvalidInput: A job is not valid; the message names the field, and nothing was added.
            Conflict: The batch is closed or has ended.
            QueueFull: The queue or a quota of the project is full.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        added, key = list_jobs(jobs), _checked_key(idempotency_key)
        return await self.queue.ask(lambda: self._transport.add_jobs(self.id, added, idempotency_key=key))

    async def close(self) -> None:
        """Close an open batch: no more jobs can be added, and it ends when its jobs have ended.

        Closing a closed batch has no effect.

        Raises:
            Conflict: The batch has ended, and Redis no longer holds it.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        await self.queue.ask(lambda: self._transport.close_batch(self.id))

    async def cancel(self, *, by: str | None = None) -> None:
        """Cancel the batch: cancel its pending jobs and stop its running ones.

        Args:
            by: Name to record as the one who cancelled (default: ``user@host``).

        Raises:
            Conflict: The batch has already ended.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        who, key = _checked_by(by), secrets.token_hex(16)
        await self.queue.ask(lambda: self._transport.cancel(self.id, by=who, idempotency_key=key))

    async def cancel_jobs(self, indices: Sequence[int], *, by: str | None = None) -> list[CancelAnswer]:
        """Cancel some jobs of the batch.

        Args:
            indices: Indices of the jobs in the batch.
            by: Name to record as the one who cancelled (default: ``user@host``).

        Returns:
            One answer per index, in the same order: ``canceled``, ``requested`` (the job is running; its worker stops
            it), ``over`` (the job had already ended) or ``unknown`` (the batch has no such job).

        Raises:
            InvalidInput: An index is not valid.
            Conflict: The batch has ended, and Redis no longer holds it.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        who, key = _checked_by(by), secrets.token_hex(16)
        chosen = check_indices("indices", indices, MAX_JOBS_PER_BATCH)
        if not chosen:
            return []
        return await self.queue.ask(lambda: self._transport.cancel_jobs(self.id, chosen, by=who, idempotency_key=key))

    async def retry(
        self,
        *,
        status: JobStatus | str | Iterable[JobStatus | str] = UNSUCCESSFUL,
        idempotency_key: str | None = None,
    ) -> AsyncBatch:
        """Submit the jobs that did not succeed in a new batch, and return its handle.

        The new batch has the sequence, device, name, tags and limits of this one, whose id is its ``doc.parent_id``.
        It starts as soon as it can: it has neither a start time nor dependencies.

        Args:
            status: ``ERROR``, ``CANCELED``, or both.
            idempotency_key: Calls with the same key within a day create one batch. By default each call creates one.

        Raises:
            InvalidInput: The batch has no such job, or more than 10,000, or an argument is not valid.
            Conflict: The batch is open.
            QueueFull: The queue is full; try again later.
            QuotaExceeded: A quota of the project is used up.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        statuses, key = check_unsuccessful("status", _one_or_more("status", status)), _checked_key(idempotency_key)
        record = await self.record()
        if not any(record.counts[each] for each in statuses):
            raise nothing_to_retry(self.id, statuses)
        retry = self._transport.retry
        return AsyncBatch(self.queue, await self.queue.ask(lambda: retry(self.id, statuses, idempotency_key=key)))

    async def pause(self, reason: str = "", *, by: str | None = None) -> None:
        """Pause the batch: its running jobs finish, and no further ones start.

        Pausing a paused batch with a reason changes its reason.

        Args:
            reason: Why it is paused, for people.
            by: Name to record as the one who paused it (default: ``user@host``).

        Raises:
            InvalidInput: The reason or the name is not valid.
            Conflict: The batch has already ended.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        who, why = _checked_by(by), reason if reason == "" else check_text("reason", reason, MAX_REASON_LENGTH)
        await self.queue.ask(lambda: self._transport.pause(self.id, by=who, reason=why))

    async def resume(self) -> None:
        """Resume a paused batch.

        Raises:
            Conflict: The batch has already ended.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        await self.queue.ask(lambda: self._transport.resume(self.id))

    async def set_priority(self, priority: Priority | str) -> None:
        """Change the priority of the batch while it waits. Jobs that are running are not affected.

        Args:
            priority: ``LOW``, ``MEDIUM`` or ``HIGH``, in upper or lower case.

        Raises:
            InvalidInput: The priority is not valid.
            Conflict: The batch has already ended.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        wanted = check_priority(priority)
        await self.queue.ask(lambda: self._transport.set_priority(self.id, wanted))

    async def set_tags(self, tags: Iterable[str]) -> None:
        """Replace the tags of the batch, even if it has ended.

        Args:
            tags: All of its new tags, as in :meth:`AsyncQueue.submit`; an empty list removes them.

        Raises:
            InvalidInput: A tag is not valid.
            Conflict: The batch has ended, and Redis no longer holds it. Over HTTP it is changed in the ledger.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        wanted = check_list("tags", tags, "texts")
        check_tags(wanted)
        await self.queue.ask(lambda: self._transport.set_tags(self.id, wanted))

    async def changes(self, timeout_s: float | None = None) -> AsyncIterator[BatchRecord]:
        """Yield the batch now and after each change, until none of its jobs is pending or running.

        Args:
            timeout_s: Seconds to wait in all; None waits without limit.

        Yields:
            The state of the batch. Changes in quick succession may be combined.

        Raises:
            WaitTimeout: The timeout has expired.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        deadline = _deadline(timeout_s)
        async with self.news() as news:
            while True:
                record = await self.record()
                yield record
                if is_settled(record):
                    return
                await self._next(news, deadline)

    async def wait(
        self, timeout_s: float | None = None, *, progress: bool = False, cancel_on_interrupt: bool = False
    ) -> BatchRecord:
        """Wait until none of the jobs is pending or running.

        An interrupt (Ctrl-C, the stop button of a notebook, a cancelled task) ends the wait, and the batch continues.

        Args:
            timeout_s: Seconds to wait; None waits without limit.
            progress: Show a bar: in a notebook below the cell, elsewhere on stderr.
            cancel_on_interrupt: An interrupt cancels the batch, too.

        Returns:
            The final state of the batch. A batch that is still open is returned when it runs out of work.

        Raises:
            WaitTimeout: The timeout has expired.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        deadline = _deadline(timeout_s)
        if check_flag("progress", progress) | check_flag("cancel_on_interrupt", cancel_on_interrupt):
            return await self._wait_visibly(timeout_s, progress=progress, cancels=cancel_on_interrupt)
        record = await self.record()
        while not is_settled(record):
            wait_s = self._patience(deadline)
            record = await self.queue.ask(partial(self._transport.settled, self.id, wait_s))
        return record

    async def _wait_visibly(self, timeout_s: float | None, *, progress: bool, cancels: bool) -> BatchRecord:
        from tweezer.display.progress import ProgressBar

        record = await self.record()
        try:
            with ProgressBar(self.id, is_shown=progress, cancels=cancels) as shown:
                async for record in self.changes(timeout_s):
                    shown.show(record)
        except asyncio.CancelledError:
            if cancels:
                with contextlib.suppress(Conflict):
                    await self.cancel()
            raise
        return record

    async def jobs(self) -> JobList[JobRecord]:
        """Return the current state of all jobs, ordered by index.

        Raises:
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        record = await self.record()
        return JobList(await self.jobs_at(record, range(record.jobs)))

    async def jobs_at(self, record: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        """Return the current state of some jobs of the batch, ordered by index."""
        return await self.queue.ask(lambda: self._transport.jobs(record, indices))

    async def results_at(self, record: BatchRecord, indices: Sequence[int]) -> list[Finished]:
        """Return some jobs of the batch, ordered by index, with the results of those that have one."""
        found = await self.queue.ask(lambda: self._transport.results(record, indices))
        return [Finished.of(job, result) for job, result in found]

    async def mixed_at(self, record: BatchRecord, indices: Sequence[int]) -> JobList[JobRecord | Finished]:
        """Return the current state of some jobs, with the results of those that have ended, ordered by index."""
        jobs = await self.results_at(record, indices)
        return JobList(job if job.status.terminal else job.record for job in jobs)

    async def to_dataframe(self) -> pd.DataFrame:
        """Return all jobs as they are now as a data frame of pandas, one row per job, with the results so far.

        :meth:`JobList.to_dataframe` describes the columns.

        Raises:
            TweezerError: pandas is not installed.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        record = await self.record()
        return (await self.mixed_at(record, range(record.jobs))).to_dataframe()

    async def finished(self, timeout_s: float | None = None) -> AsyncIterator[Finished]:
        """Yield each job once, as it ends. Jobs that have already ended come first.

        Args:
            timeout_s: Seconds to wait in all; None waits without limit.

        Yields:
            Each job with its result, including failed and cancelled ones.

        Raises:
            WaitTimeout: The timeout has expired.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        deadline = _deadline(timeout_s)
        seen: set[int] = set()
        async with self.news() as news:
            changes: Sequence[Word | JobNews] = ()
            while True:
                record = await self.record()
                last = is_settled(record)
                candidates: Sequence[int] = _ended_in(changes) if changes and not last else range(record.jobs)
                if sum(count for status, count in record.counts.items() if status.terminal) == len(seen):
                    candidates = ()  # no further job has ended
                for job in await self._finished(record, [index for index in candidates if index not in seen]):
                    seen.add(job.index)
                    yield job
                if last:
                    return
                changes = await self._next(news, deadline)

    async def events(
        self, after: Event | str | None = None, *, follow: bool = True, timeout_s: float | None = None
    ) -> AsyncIterator[Event]:
        """Yield the events of the batch in order, each once, up to the event that ends the batch.

        Events that Redis has already trimmed are read from the ledger, if the queue was opened with one.

        Args:
            after: Continue after this event, given as an :class:`Event` or its id. ``"now"`` yields only new events;
                None yields all of them.
            follow: Wait for further events. False yields the existing ones and returns.
            timeout_s: Seconds to wait in all; None waits without limit.

        Raises:
            EventsTrimmed: Some events are no longer in Redis, and the queue has no ledger to read them from.
            InvalidInput: ``after`` is not an event of this batch.
            WaitTimeout: The timeout has expired.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.
        """
        deadline = _deadline(timeout_s)
        check_flag("follow", follow)
        place = _place(self.id, after)
        async with self._entered(lambda: self._transport.events(self.id, place)) as reading:
            while True:
                left_s = _LOOK_AGAIN_S if deadline is None else deadline - time.monotonic()
                wait_s = min(max(left_s, 0.0), _LOOK_AGAIN_S) if follow else 0.0
                events = await self.queue.ask(partial(reading.read, wait_s))
                for event in events:
                    yield event
                if reading.is_over or not (follow or events):
                    return
                if not events:
                    self._patience(deadline)

    async def results(self, timeout_s: float | None = None) -> JobList[Finished]:
        """Wait for all jobs, then return them with their results, ordered by index.

        Args:
            timeout_s: Seconds to wait; None waits without limit.

        Returns:
            One entry per job, including failed and cancelled ones; their ``result`` and ``counter`` raise JobFailed.

        Raises:
            WaitTimeout: The timeout has expired.
            NotFound: The project has no such batch.
            Unavailable: Redis or the API did not answer.

        Example:
            ```python
            for job in await batch.results(timeout_s=60):
                print(job.variables, job.counter if job.data else job.error)
            ```
        """
        record = await self.wait(timeout_s)
        return JobList(await self._finished(record, range(record.jobs)))

    def news(self) -> AbstractAsyncContextManager[NewsReader]:
        """Subscribe to what happens in the batch, progress of its jobs included."""
        return self._entered(lambda: self._transport.news(self.id))

    @contextlib.asynccontextmanager
    async def _entered(self, make: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
        """Enter a context of the transport, again while it is unavailable."""
        async with contextlib.AsyncExitStack() as stack:
            yield await self.queue.ask(lambda: stack.enter_async_context(make()))

    async def _finished(self, record: BatchRecord, indices: Sequence[int]) -> list[Finished]:
        if not indices:
            return []
        return [job for job in await self.results_at(record, indices) if job.status.terminal]

    async def _next(self, news: NewsReader, deadline: float | None) -> Sequence[Word | JobNews]:
        try:
            return await news.next(self._patience(deadline))
        except Unavailable:
            self.queue.require_home()  # it may have been closed
            raise

    def _patience(self, deadline: float | None) -> float:
        if deadline is None:
            return _LOOK_AGAIN_S
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeout(
                f"batch {short_id(self.id)} still has jobs to run; wait longer, or check `tweezer devices`"
            )
        return min(left, _LOOK_AGAIN_S)


def _ended_in(changes: Iterable[Word | JobNews]) -> list[int]:
    """Return the indices of the jobs that have ended according to the news of a batch."""
    return [
        index
        for word in changes
        if isinstance(word, Word) and word.jobs and JOB_BY_LETTER[word.letters[1]].terminal
        for index in word.jobs
    ]


def describe_queue(project: str | None) -> str:
    """Return a short description of a queue, without its URL, which may have a password."""
    return f"queue of {'the projects of a key' if project is None else f'project {project!r}'}"


def queue_closed(connect: str) -> TweezerError:
    """Return the error for a call on a closed queue. connect: the function that opens another one."""
    return TweezerError(
        f'the queue is closed; open another one with {connect}(), and find a batch again with queue.find("ID")',
        code="queue_closed",
    )


def _place(batch_id: UUID, after: Event | str | None) -> Place | None:
    """Return the event after which to begin. Raises InvalidInput("after", …)."""
    if after is None or after == "now":
        return cast("Place | None", after)
    identity = after.id if isinstance(after, Event) else after
    if not isinstance(identity, str):
        raise InvalidInput("after", f"expected an event, an event id or 'now', got {shown(after)}")
    batch, _, rest = identity.partition(":")
    match = re.fullmatch(r"(\d{1,15}):(\d{1,18})", rest, re.ASCII)
    if match is None or batch.lower() != str(batch_id):
        raise InvalidInput(
            "after", f"{shown(after)} is not an event of batch {batch_id}; expected an event, an event id or 'now'"
        )
    return LastEvent(int(match[1]), int(match[2]))


def _check_position(after: object) -> None:
    if not isinstance(after, int) or isinstance(after, bool) or not 0 <= after <= MAX_INTEGER:
        raise InvalidInput("after", f"must be 0 or the `next` of an earlier log (got {shown(after)})")


def _deadline(timeout_s: float | None) -> float | None:
    """Return the end of a wait on the monotonic clock. Raises InvalidInput("timeout_s", …)."""
    return None if timeout_s is None else time.monotonic() + check_seconds("timeout_s", timeout_s)


def _checked_by(by: str | None) -> str:
    return user_at_host() if by is None else check_by(by)


def _checked_key(idempotency_key: str | None) -> str:
    """Return the idempotency key of a call, generating one if needed."""
    if idempotency_key is None:
        return secrets.token_hex(16)
    return check_text("idempotency_key", idempotency_key, MAX_KEY_LENGTH)


class SubmitOptions(TypedDict, total=False):
    """The options of :meth:`AsyncQueue.submit`, which describes them."""

    device: str | None
    priority: Priority | str
    open: bool
    name: str | None
    tags: Iterable[str]
    webhook: str | None
    backend_configuration: str | None
    limits: Limits | dict[str, Any] | None
    start_at: datetime | None
    schedule_threshold_s: float | None
    queue_timeout_s: float | None
    failure_threshold: int | None
    on_failures: str | None
    retries: Retries | dict[str, int] | None
    depends_on: Iterable[Any]
    keep_s: float | None
    not_before: datetime | None
    idempotency_key: str | None


H = TypeVar("H")


class ListedBatch(NamedTuple, Generic[H]):
    """A batch in a list: a handle on it, and its record when it was read, without the sequence."""

    batch: H
    record: BatchRecord


class AsyncQueue(Handle):
    """The queue of a project, for asyncio. Open it with :func:`connect_async`.

    Use it as an async context manager, or call :meth:`close`. A queue belongs to the process and the event loop that
    used it first. Pickling it stores the URL of Redis with its password, or the key for the API.

    Example:
        ```python
        async with connect_async() as queue:
            batch = await queue.submit(sequence, [{"runs": 200}])
            print((await batch.results())[0].counter)
        ```

    Attributes:
        project: Id of the project whose batches the queue submits and reads; None if it is left to the key.
    """

    def __init__(self, transport: Transport, *, retry_s: float = RETRY_S) -> None:
        """Use :func:`connect_async` instead.

        Args:
            transport: The connection to Redis or to the API, which the queue closes.
            retry_s: Seconds during which calls are repeated while the transport is unavailable.
        """
        self.transport = transport
        self.project = transport.project
        self._retry_s = retry_s
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None  # process and event loop of its connections
        self._closed = False

    def __repr__(self) -> str:
        return f"<{'closed ' if self._closed else ''}{describe_queue(self.project)}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __reduce__(self) -> tuple[Callable[..., AsyncQueue], tuple[Any, ...]]:
        """Pickle the arguments of the queue, including its password or key; unpickling opens a new one."""
        if self.transport.address is None:
            raise TypeError("only a queue that connect or connect_async opened can be pickled")
        return _reopen, (self.transport.address, self._retry_s)

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        home = getattr(self, "_home", None)
        if home is not None and home[0] == os.getpid() and not self._closed:
            _warn(f"unclosed {self!r}", ResourceWarning, source=self)

    def anew(self) -> AsyncQueue:
        """Return a queue like this one, with new connections."""
        reopen, arguments = self.__reduce__()
        return reopen(*arguments)

    async def close(self) -> None:
        """Close the connections. Later calls raise TweezerError; closing again has no effect."""
        if self._closed:
            return
        self.require_home()
        self._closed = True
        await self.transport.close()

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
        limits: Limits | dict[str, Any] | None = None,
        start_at: datetime | None = None,
        schedule_threshold_s: float | None = None,
        queue_timeout_s: float | None = None,
        failure_threshold: int | None = None,
        on_failures: str | None = None,
        retries: Retries | dict[str, int] | None = None,
        depends_on: Iterable[Any] = (),
        keep_s: float | None = None,
        not_before: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncBatch:
        """Submit a batch and return its handle. The batch is stored when the call returns.

        Args:
            sequence: A Pulser ``Sequence``, or its abstract representation as text (``Sequence.to_abstract_repr()``);
                None if each job has its own.
            jobs: :class:`Job` objects or dictionaries of the same fields: ``runs`` (number of shots), ``variables``
                (values of the sequence's variables by name), ``seed`` and ``sequence``. At most 10,000; add more with
                :meth:`AsyncBatch.add_jobs`.
            device: Name of a device that a worker serves (default: the one that the first sequence was built for).
            priority: ``LOW``, ``MEDIUM`` or ``HIGH``, in upper or lower case.
            open: Keep the batch open, so that jobs can be added until it is closed.
            name: A name for people, at most 255 characters.
            tags: At most 50 texts of at most 100 characters each, to find the batch by.
            webhook: URL that receives the batch's events.
            backend_configuration: Pulser's ``EmulationConfig`` or another backend configuration, as abstract
                representation.
            limits: Time limits of jobs, as :class:`Limits` or a dictionary of its fields (default: ``Limits()``).
            start_at: The earliest time to start, as an aware datetime.
            schedule_threshold_s: Report the batch as late if it has not started so many seconds after ``start_at``. It
                still runs.
            queue_timeout_s: Seconds in which the batch must start; otherwise it ends in ``TIMED_OUT``. They are counted
                from when it may start: from its submit, ``start_at`` and the end of what it depends on, whichever is
                the latest.
            failure_threshold: Number of failed jobs at which ``on_failures`` applies.
            on_failures: ``pause`` (the default) or ``cancel`` the batch then.
            retries: Limits of retries, as a dictionary: ``per_job`` after transient failures, and ``total`` for all
                jobs of the batch.
            depends_on: Batches of the same project that must end before this one starts: a handle, or an id, a short id
                or a name as in :meth:`find`. An entry alone means that the batch must end in ``DONE``;
                ``(batch, "ENDED")`` accepts any end, and ``(batch, "ERROR")`` requires a failure. If a batch can no
                longer end as required, this one ends in ``CANCELED``. At most 50.
            keep_s: Seconds after its end at which the batch is archived.
            not_before: Older name of ``start_at``.
            idempotency_key: Calls with the same key within a day create one batch. By default each call creates one.

        Raises:
            InvalidInput: An argument is not valid; ``field`` names it, and nothing was written.
            QueueFull: The queue is full; try again later.
            QuotaExceeded: A quota of the project is used up.
            Conflict: The idempotency key was used for another batch.
            Unavailable: Redis or the API did not answer. With an idempotency key the call can be repeated safely.

        Example:
            ```python
            jobs = [{"runs": 200, "variables": {"omega": omega}} for omega in (1.0, 2.0, 3.0)]
            batch = await queue.submit(sequence, jobs, device="EMU_FREE", tags=["sweep"])
            ```
        """
        submission = await self._prepare(
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
            start_at=start_at,
            schedule_threshold_s=schedule_threshold_s,
            queue_timeout_s=queue_timeout_s,
            failure_threshold=failure_threshold,
            on_failures=on_failures,
            retries=retries,
            depends_on=depends_on,
            keep_s=keep_s,
            not_before=not_before,
            idempotency_key=idempotency_key,
        )
        tries = itertools.count()
        with tracing.span("tweezer.submit"):
            traced = msgspec.structs.replace(submission, trace=tracing.current()) if tracing.is_on() else submission
            submitted = self.ask(lambda: self.transport.submit(traced, again=next(tries) > 0))
            return AsyncBatch(self, await submitted)

    async def check(
        self, sequence: object, jobs: Iterable[JobSpec | dict[str, Any]] = (), **options: Unpack[SubmitOptions]
    ) -> CheckedSubmission:
        """Check a batch as :meth:`submit` does, without submitting it.

        Args:
            sequence: As in :meth:`submit`.
            jobs: As in :meth:`submit`.
            **options: As in :meth:`submit`.

        Returns:
            The device, the number of jobs and the rules that the batch would have, what it would wait for, and
            warnings.

        Raises:
            InvalidInput: An argument is not valid; ``field`` names it.
            QueueFull: The queue is full; try again later.
            QuotaExceeded: A quota of the project is used up.
            Unavailable: Redis or the API did not answer.

        Example:
            ```python
            checked = await queue.check(sequence, jobs, device="EMU_FREE", queue_timeout_s=3600)
            print(checked.device, checked.jobs, checked.warnings)
            ```
        """
        submission = await self._prepare(sequence, jobs, **options)
        return await self.ask(lambda: self.transport.check(submission))

    check.__signature__ = inspect.signature(submit).replace(  # type: ignore[attr-defined]
        return_annotation=CheckedSubmission.__name__
    )

    async def _prepare(
        self, sequence: object, jobs: Iterable[JobSpec | dict[str, Any]], **options: Unpack[SubmitOptions]
    ) -> Submission:
        """Return the submission of these arguments. Raises InvalidInput."""
        if unknown := options.keys() - SubmitOptions.__annotations__.keys():
            raise TypeError(f"check() got an unexpected keyword argument {min(unknown)!r}")
        key = options.get("idempotency_key")
        listed = list_jobs(jobs)
        rules: dict[str, Any] = {name: options.get(name) for name in RULE_FIELDS}
        rules["retries"] = as_retries(options.get("retries"))
        rules["depends_on"] = await self._find_dependencies(options.get("depends_on", ()))
        return Submission(
            sequence=sequence,
            jobs=listed,
            device=options.get("device"),
            priority=options.get("priority", Priority.MEDIUM),
            open=check_flag("open", options.get("open", False)),
            name=options.get("name"),
            tags=tuple(check_list("tags", options.get("tags", ()), "texts")),
            webhook=options.get("webhook"),
            backend_configuration=options.get("backend_configuration"),
            idempotency_key="" if key is None else _checked_key(key),
            batch_id=new_batch_id() if key is None else None,  # a repeated call finds the batch by its id
            **apply_rules(
                RuleFields(**rules), limits=as_limits(options.get("limits")), not_before=options.get("not_before")
            ),
        )

    async def _find_dependencies(self, given: object) -> list[Dependency]:
        """Return the batches that a batch shall wait for. Raises InvalidInput."""
        listed = check_list("depends_on", given, "batches")
        if len(listed) > MAX_DEPENDENCIES:  # before each of them is looked up
            raise InvalidInput("depends_on", f"at most {MAX_DEPENDENCIES} batches are allowed (got {len(listed)})")
        found = []
        for position, item in enumerate(listed):
            field = f"depends_on[{position}]"
            batch, when = _split_dependency(field, item)
            found.append(Dependency(await self._find_parent(field, batch), _check_when(field, when)))
        return found

    async def _find_parent(self, field: str, item: object) -> UUID:
        identity = getattr(item.batch if isinstance(item, ListedBatch) else item, "id", item)  # of a handle or a record
        if not isinstance(identity, UUID | str):
            raise InvalidInput(field, f"expected a batch, its id or its name, got {shown(item)}")
        try:
            return (await self._find(field, identity)).id
        except NotFound:
            problem = f"there is no batch {shown(identity)} in this project; submit it first, or correct the name"
            raise InvalidInput(field, problem) from None
        except Conflict as error:
            raise InvalidInput(field, error.message) from error

    def batch(self, batch_id: UUID | str) -> AsyncBatch:
        """Return a handle on an existing batch, without checking that it exists.

        Args:
            batch_id: The full id. :meth:`find` takes a short id, a name or ``@last``, too.

        Raises:
            InvalidInput: ``batch_id`` is not a UUID.
        """
        return AsyncBatch(self, as_uuid("batch", batch_id))

    async def find(self, batch: UUID | str) -> AsyncBatch:
        """Return a handle on the batch that is meant by an id or a name.

        Args:
            batch: A short id such as ``5m2q0xw8kd``; ``@last``, the last batch of the project (over HTTP with the key
                of a user: the last one that this user submitted), or ``@last~1``, the one before it; the name of a
                batch, if only one has it; or a full id, for which the existence of the batch is not checked.

        Raises:
            InvalidInput: ``batch`` is not a text.
            NotFound: The project has no such batch.
            Conflict: Several batches match; the message lists them.
            Unavailable: Redis or the API did not answer.
        """
        return await self._find("batch", batch)

    async def _find(self, field: str, batch: UUID | str) -> AsyncBatch:
        if isinstance(batch, UUID):
            return AsyncBatch(self, batch)
        text = check_text(field, batch, MAX_NAME_LENGTH)
        with contextlib.suppress(ValueError):
            return AsyncBatch(self, UUID(text))
        return AsyncBatch(self, await self.ask(lambda: self.transport.find(text)))

    async def batches(
        self,
        *,
        status: BatchStatus | str | Iterable[BatchStatus | str] = (),
        device: str | Iterable[str] = (),
        tag: str | Iterable[str] = (),
        name: str | Iterable[str] = (),
        user: str | Iterable[str] = (),
        depends_on: Any = (),
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> AsyncIterator[ListedBatch[AsyncBatch]]:
        """Yield batches of the project, newest first, from Redis and the ledger.

        They are read in pages as the iteration needs them. Without a ledger only the batches that Redis still has are
        found. An argument with several values matches each of them, but a batch must have all of the tags.

        Args:
            status: ``PENDING``, ``RUNNING``, ``PAUSED``, ``DONE``, ``ERROR``, ``CANCELED`` or ``TIMED_OUT``.
            device: Name of the device.
            tag: A tag of the batch.
            name: Name of the batch.
            user: Name of the user who submitted it, if known.
            depends_on: A batch that it depends on, as in :meth:`submit`.
            since: Only batches that were submitted at this aware time or later.
            until: Only batches that were submitted at this aware time or earlier.

        Yields:
            A handle on the batch, and its record without the sequence.

        Raises:
            InvalidInput: An argument is not valid; ``field`` names it.
            Unavailable: Redis or the API did not answer.

        Example:
            ```python
            async for batch, record in queue.batches(status="ERROR", tag="sweep"):
                print(batch.id, record.doc.name, record.fault)
            ```
        """
        wanted = _build_filter(status, device, tag, name, user, since, until)
        parents = [await self._find_parent("depends_on", it) for it in _batches(depends_on)]
        wanted = msgspec.structs.replace(wanted, depends_on=tuple(parents))
        at_last: set[UUID] = set()  # those yielded that were submitted at the time of the last one
        while True:
            read = partial(self.transport.batches, wanted, without=frozenset(at_last), most=_BATCHES_PAGE)
            records = await self.ask(read)
            for record in records:
                yield ListedBatch(AsyncBatch(self, record.id), record)
            if len(records) < _BATCHES_PAGE:
                return
            last, before = records[-1].created, wanted.created_to
            at_last = {it.id for it in records if it.created == last} | (at_last if last == before else set())
            wanted = msgspec.structs.replace(wanted, created_to=last)

    async def job(self, job_id: UUID | str) -> JobRecord:
        """Return the current state of a job.

        Args:
            job_id: The full id, or ``BATCH/INDEX`` with a batch as in :meth:`find`, such as ``5m2q0xw8kd/3``.

        Raises:
            InvalidInput: ``job_id`` is not the id of a job.
            NotFound: The project has no such job.
            Unavailable: Redis or the API did not answer.
        """
        identity = await self._find_job(job_id)
        return await self.ask(lambda: self.transport.job(identity))

    async def attempts(self, job_id: UUID | str) -> list[JobAttempt]:
        """Return each execution of a job, oldest first: where it ran, from when to when, and how it ended.

        Args:
            job_id: As in :meth:`job`.

        Returns:
            The attempts; empty if the job has never begun. The last one has no end while the job is RUNNING.

        Raises:
            EventsTrimmed: Some are no longer in Redis, and the queue has no ledger to read them from.
            InvalidInput: ``job_id`` is not the id of a job.
            NotFound: The project has no such job.
            Unavailable: Redis or the API did not answer.

        Example:
            ```python
            for attempt in await queue.attempts("5m2q0xw8kd/3"):
                print(attempt.number, attempt.worker, attempt.outcome, attempt.fault)
            ```
        """
        identity = await self._find_job(job_id)
        return await self.ask(lambda: self.transport.attempts(identity))

    async def logs(self, job_id: UUID | str, *, after: int = 0) -> JobLog:
        """Return what the emulator wrote while a job ran; of more than 64 KiB, the end.

        Args:
            job_id: As in :meth:`job`.
            after: Return what was written after this position: the ``next`` of an earlier :class:`JobLog`.

        Raises:
            InvalidInput: ``job_id`` is not the id of a job, or ``after`` is not a position.
            NotFound: The project has no such job.
            ResultUnavailable: The workers' results folder is not mounted here, or on the host of the API.
            Unavailable: Redis or the API did not answer.
        """
        _check_position(after)
        job = await self.job(job_id)
        return await self.ask(lambda: self.transport.logs(job.id, after))

    async def result(self, job_id: UUID | str) -> Finished:
        """Return a job that has ended, with its result.

        Args:
            job_id: As in :meth:`job`.

        Raises:
            InvalidInput: ``job_id`` is not the id of a job.
            NotFound: The project has no such job.
            Conflict: The job has not ended.
            Unavailable: Redis or the API did not answer.
        """
        record = await self.job(job_id)
        if not record.status.terminal:
            raise Conflict(
                f"job {short_job_id(record.id)} is {record.status.value}; wait for it first", code="not_ended"
            )
        return Finished.of(*await self.ask(lambda: self.transport.result(record)))

    async def cancel_many(self, batch_ids: Iterable[UUID | str], *, by: str | None = None) -> dict[UUID, str]:
        """Cancel several batches.

        Args:
            batch_ids: Ids of the batches, as in :meth:`find`.
            by: Name to record as the one who cancelled (default: ``user@host``).

        Returns:
            An error message for each batch that could not be cancelled, by id; empty if all were.

        Raises:
            InvalidInput: An id is not a text; nothing was cancelled.
            NotFound: A short id or name is unknown; nothing was cancelled.
            Conflict: A short id or name means several batches; nothing was cancelled.
        """
        self.require_home()
        errors, who = {}, _checked_by(by)
        texts = check_list("batch_ids", batch_ids, "ids of batches")
        for batch in [await self._find("batch_ids", text) for text in texts]:
            try:
                await batch.cancel(by=who)
            except TweezerError as error:
                errors[batch.id] = error.message
        return errors

    async def cancel_matching(
        self,
        *,
        status: BatchStatus | str | Iterable[BatchStatus | str] = (),
        device: str | Iterable[str] = (),
        tag: str | Iterable[str] = (),
        name: str | Iterable[str] = (),
        user: str | Iterable[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        all: bool = False,
        dry_run: bool = False,
        by: str | None = None,
    ) -> BulkOutcome:
        """Cancel all batches that match and have not ended.

        Batches that are submitted after the call began are left alone.

        Args:
            status: ``PENDING``, ``RUNNING`` or ``PAUSED`` (default: all of them).
            device: Name of the device.
            tag: A tag of the batch.
            name: Name of the batch.
            user: Name of the user who submitted it, if known.
            since: Only batches that were submitted at this aware time or later.
            until: Only batches that were submitted at this aware time or earlier.
            all: Act on every batch of the project, if no filter is given.
            dry_run: Change nothing, and return what would be done.
            by: Name to record as the one who cancelled (default: ``user@host``).

        Raises:
            InvalidInput: An argument is not valid, or there is no filter; nothing was changed.
            Unavailable: Redis or the API did not answer. Some batches may have been handled; the call can be repeated.

        Example:
            ```python
            outcome = await queue.cancel_matching(tag="sweep", status="PENDING")
            print(outcome.count, outcome.failed)
            ```
        """
        wanted = _build_filter(status, device, tag, name, user, since, until)
        return await self._act(BulkAction.CANCEL, wanted, all=all, dry_run=dry_run, by=_checked_by(by))

    async def retry_matching(
        self,
        *,
        status: BatchStatus | str | Iterable[BatchStatus | str] = (),
        device: str | Iterable[str] = (),
        tag: str | Iterable[str] = (),
        name: str | Iterable[str] = (),
        user: str | Iterable[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        job_status: JobStatus | str | Iterable[JobStatus | str] = UNSUCCESSFUL,
        all: bool = False,
        dry_run: bool = False,
    ) -> BulkOutcome:
        """Retry the jobs that did not succeed of all batches that match and have ended.

        Each batch is retried as with :meth:`AsyncBatch.retry`, unless another batch repeats it already. ``retries`` of
        the outcome has the new batches.

        Args:
            status: ``DONE``, ``ERROR``, ``CANCELED`` or ``TIMED_OUT`` (default: all of them).
            device: Name of the device.
            tag: A tag of the batch.
            name: Name of the batch.
            user: Name of the user who submitted it, if known.
            since: Only batches that were submitted at this aware time or later.
            until: Only batches that were submitted at this aware time or earlier.
            job_status: The jobs to repeat: ``ERROR``, ``CANCELED``, or both.
            all: Act on every batch of the project, if no filter is given.
            dry_run: Change nothing, and return what would be done.

        Raises:
            InvalidInput: An argument is not valid, or there is no filter; nothing was changed.
            Unavailable: Redis or the API did not answer. Some batches may have been handled; the call can be repeated.
        """
        statuses = check_unsuccessful("job_status", _one_or_more("job_status", job_status))
        wanted = _build_filter(status, device, tag, name, user, since, until)
        return await self._act(BulkAction.RETRY, wanted, all=all, dry_run=dry_run, job_statuses=statuses)

    async def archive_matching(
        self,
        *,
        status: BatchStatus | str | Iterable[BatchStatus | str] = (),
        device: str | Iterable[str] = (),
        tag: str | Iterable[str] = (),
        name: str | Iterable[str] = (),
        user: str | Iterable[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        all: bool = False,
        dry_run: bool = False,
    ) -> BulkOutcome:
        """Archive all batches that match and have ended: the list of tasks and its counts leave them out.

        Nothing else changes: the batches keep their jobs and results, and are listed here as before. Batches that have
        not ended are left alone, and listed in ``live`` of the outcome; ``already`` has those that were archived
        before. Over Redis, the queue needs ``database_url``.

        Args:
            status: ``DONE``, ``ERROR``, ``CANCELED`` or ``TIMED_OUT`` (default: all of them).
            device: Name of the device.
            tag: A tag of the batch.
            name: Name of the batch.
            user: Name of the user who submitted it, if known.
            since: Only batches that were submitted at this aware time or later.
            until: Only batches that were submitted at this aware time or earlier.
            all: Act on every batch of the project, if no filter is given.
            dry_run: Change nothing, and return what would be done.

        Raises:
            InvalidInput: An argument is not valid, or there is no filter; nothing was changed.
            Unavailable: Redis or the API did not answer. Some batches may have been handled; the call can be repeated.
            TweezerError: The queue has no ledger.
        """
        wanted = _build_filter(status, device, tag, name, user, since, until)
        return await self._act(BulkAction.ARCHIVE, wanted, all=all, dry_run=dry_run)

    async def delete_matching(
        self,
        *,
        status: BatchStatus | str | Iterable[BatchStatus | str] = (),
        device: str | Iterable[str] = (),
        tag: str | Iterable[str] = (),
        name: str | Iterable[str] = (),
        user: str | Iterable[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        all: bool = False,
        dry_run: bool = False,
    ) -> BulkOutcome:
        """Permanently delete all batches that match and have ended, with their results.

        Batches that have not ended are kept, and listed in ``live`` of the outcome. Over Redis, the queue needs
        ``database_url``, and ``results_dir`` if workers write large results.

        Args:
            status: ``DONE``, ``ERROR``, ``CANCELED`` or ``TIMED_OUT`` (default: all of them).
            device: Name of the device.
            tag: A tag of the batch.
            name: Name of the batch.
            user: Name of the user who submitted it, if known.
            since: Only batches that were submitted at this aware time or later.
            until: Only batches that were submitted at this aware time or earlier.
            all: Act on every batch of the project, if no filter is given.
            dry_run: Change nothing, and return what would be done.

        Raises:
            InvalidInput: An argument is not valid, or there is no filter; nothing was changed.
            Unavailable: Redis or the API did not answer. Some batches may have been handled; the call can be repeated.
            TweezerError: The queue has no ledger.
        """
        wanted = _build_filter(status, device, tag, name, user, since, until)
        return await self._act(BulkAction.DELETE, wanted, all=all, dry_run=dry_run)

    async def archive_many(self, batch_ids: Iterable[UUID | str]) -> dict[UUID, str]:
        """Archive several batches that have ended, as :meth:`archive_matching` does.

        Batches that were archived before stay archived. Over Redis, the queue needs ``database_url``.

        Args:
            batch_ids: Ids of the batches, as in :meth:`find`.

        Returns:
            An error message for each batch that was not archived, by id; empty if all were.

        Raises:
            InvalidInput: An id is not a text; nothing was archived.
            NotFound: A short id or name is unknown; nothing was archived.
            Conflict: A short id or name means several batches; nothing was archived.
            Unavailable: Redis or the API did not answer. Some batches may have been archived; the call can be repeated.
            TweezerError: The queue has no ledger.
        """
        return await self._act_on_ids(BulkAction.ARCHIVE, batch_ids)

    async def delete_many(self, batch_ids: Iterable[UUID | str]) -> dict[UUID, str]:
        """Permanently delete several batches that have ended, with their results.

        Over Redis, the queue needs ``database_url``, and ``results_dir`` if workers write large results.

        Args:
            batch_ids: Ids of the batches, as in :meth:`find`.

        Returns:
            An error message for each batch that was not deleted, by id; empty if all were.

        Raises:
            InvalidInput: An id is not a text; nothing was deleted.
            NotFound: A short id or name is unknown; nothing was deleted.
            Conflict: A short id or name means several batches; nothing was deleted.
            Unavailable: Redis or the API did not answer. Some batches may have been deleted; the call can be repeated.
            TweezerError: The queue has no ledger.
        """
        return await self._act_on_ids(BulkAction.DELETE, batch_ids)

    async def _act_on_ids(self, action: BulkAction, batch_ids: Iterable[UUID | str]) -> dict[UUID, str]:
        """Act on ended batches by id; return an error message for each on which it did not act."""
        self.require_home()
        texts = check_list("batch_ids", batch_ids, "ids of batches")
        ids = list(dict.fromkeys([(await self._find("batch_ids", text)).id for text in texts]))
        errors: dict[UUID, str] = {}
        for page in split_pages(ids, _BATCHES_PAGE):
            outcome = await self._act(action, BatchFilter(ids=tuple(page)), all=False, dry_run=False)
            found = {batch_id: f"batch {batch_id} has not ended; cancel it first" for batch_id in outcome.live}
            found |= outcome.failed
            missing = set(page).difference(outcome.ids, outcome.already, found)
            found |= {batch_id: NotFound("batch", str(batch_id)).message for batch_id in missing}
            errors |= {batch_id: found[batch_id] for batch_id in page if batch_id in found}
        return errors

    async def _act(
        self, action: BulkAction, wanted: BatchFilter, *, all: bool, dry_run: bool, **options: Any
    ) -> BulkOutcome:
        """Act on all batches that match, step by step."""
        check_flag("all", all), check_flag("dry_run", dry_run)
        request = BulkRequest(action=action, wanted=wanted, every=all, dry_run=dry_run, **options)
        outcome: BulkOutcome | None = None
        while outcome is None or outcome.next is not None:
            step = msgspec.structs.replace(request, after=(outcome and outcome.next) or "")
            found = await self.ask(partial(self.transport.act_on_matching, step))
            outcome = found if outcome is None else outcome.joined(found, dry_run=dry_run)
        return outcome

    async def _find_job(self, job: UUID | str) -> UUID:
        if isinstance(job, str) and (match := _JOB.fullmatch(job)):
            batch, index = await self.find(match[1]), int(match[2])
            if index >= MAX_JOBS_PER_BATCH:
                raise NotFound("job", job)
            return make_job_id(batch.id, index)
        return as_uuid("job", job)

    async def devices(self) -> list[DeviceRecord]:
        """Return all devices, ordered by name."""
        return await self.ask(self.transport.devices)

    async def device(self, name: str) -> DeviceRecord | None:
        """Return a device, or None if no worker has announced it and no operator has created it."""
        check_text("name", name, MAX_DEVICE_LENGTH)
        return await self.ask(lambda: self.transport.device(name))

    async def workers(self) -> list[WorkerRecord]:
        """Return all live workers."""
        return await self.ask(self.transport.workers)

    async def pause_device(self, name: str, reason: str, *, until: datetime | None = None) -> None:
        """Pause a device for all projects: running jobs finish, and no further ones start.

        Args:
            name: The device.
            reason: Shown to users whose jobs wait.
            until: When the device resumes automatically, as an aware datetime; None pauses until
                :meth:`resume_device`.

        Raises:
            InvalidInput: An argument is not valid.
            NotFound: There is no such device.
            Unavailable: Redis or the API did not answer.
        """
        check_text("name", name, MAX_DEVICE_LENGTH)
        await self.ask(lambda: self.transport.pause_device(name, reason, until=until))

    async def resume_device(self, name: str) -> None:
        """Resume a paused device. Maintenance that is under way continues.

        Raises:
            NotFound: There is no such device.
            Unavailable: Redis or the API did not answer.
        """
        check_text("name", name, MAX_DEVICE_LENGTH)
        await self.ask(lambda: self.transport.resume_device(name))

    async def maintenance(self, name: str) -> list[Window]:
        """Return the device's current and planned maintenance windows, in order."""
        check_text("name", name, MAX_DEVICE_LENGTH)
        return await self.ask(lambda: self.transport.windows(name))

    async def plan_maintenance(self, name: str, begins: datetime, ends: datetime, reason: str) -> Window:
        """Plan maintenance of a device.

        The device starts no jobs during the window, and beforehand no batch that would not finish in time.

        Args:
            name: The device.
            begins: Start of the window, as an aware datetime.
            ends: End of the window, as an aware datetime in the future.
            reason: Shown to users whose jobs wait.

        Raises:
            InvalidInput: An argument is not valid.
            NotFound: There is no such device.
            Conflict: The window overlaps another one of the device.
            Unavailable: Redis or the API did not answer.
        """
        check_text("name", name, MAX_DEVICE_LENGTH)
        check_time("begins", begins)
        check_time("ends", ends)
        window = new_window(begins, ends, reason)
        await self.ask(lambda: self.transport.plan(name, window))
        return window

    async def drop_maintenance(self, name: str, window_id: str) -> None:
        """Remove a planned maintenance window, or end one that is under way.

        Raises:
            NotFound: There is no such device or window.
            Unavailable: Redis or the API did not answer.
        """
        check_text("name", name, MAX_DEVICE_LENGTH)
        check_text("window_id", window_id, MAX_NAME_LENGTH)
        await self.ask(lambda: self.transport.drop(name, window_id))

    async def create_schedule(
        self,
        name: str,
        sequence: object,
        jobs: Iterable[JobSpec | dict[str, Any]] = (),
        *,
        cron: str | None = None,
        time_zone: str = "UTC",
        every_s: float | None = None,
        overlap: Overlap | str = Overlap.SKIP,
        missed: Missed | str = Missed.RUN_ONCE,
        grace_s: float = GRACE_S,
        batch: SubmitOptions | None = None,
    ) -> Schedule:
        """Create a schedule, which submits a batch at each of its ticks. The batch is checked as in a submit.

        Each batch has the tags ``schedule:<id>`` and ``tick:<time>``. Over HTTP the schedule stops when the key that
        created it is revoked or expires, or when its user is disabled. Over Redis this needs a ledger.

        Args:
            name: A name that no other schedule of the project has.
            sequence: As in :meth:`submit`.
            jobs: As in :meth:`submit`.
            cron: Cron expression: minute, hour, day of month, month and day of week. Give either this or ``every_s``.
            time_zone: Time zone of the cron expression, such as ``Europe/Paris``.
            every_s: Interval in seconds, at least 60, counted from now.
            overlap: ``skip`` a tick while the batch of the last one has not ended, or ``queue`` the batch.
            missed: After a time without a scheduler, ``run_once`` for the last tick, or ``skip`` it if it is later than
                ``grace_s``.
            grace_s: How late a tick may be submitted before it counts as missed, in seconds.
            batch: Options of :meth:`submit` for each batch, as a dictionary, without ``start_at`` and
                ``idempotency_key``.

        Raises:
            InvalidInput: An argument is not valid; ``field`` names it, and nothing was written.
            Conflict: The project has a schedule with this name, or as many schedules as it may have.
            TweezerError: There is no ledger (code ``no_ledger``).
            Unavailable: Redis, the ledger or the API did not answer.

        Example:
            ```python
            schedule = await queue.create_schedule(
                "nightly", sequence, [{"runs": 500}], cron="30 2 * * *", time_zone="Europe/Paris"
            )
            ```
        """
        settings = ScheduleSettings(name, cron, time_zone, every_s, overlap, missed, grace_s)
        checked, identity = check_settings(settings), uuid4()  # a repeated call finds the schedule by its id
        template = await self._prepare_template(sequence, jobs, batch)
        return await self.ask(lambda: self.transport.create_schedule(identity, checked, template))

    async def schedules(self) -> list[Schedule]:
        """Return all schedules of the project, ordered by name, without their templates."""
        return await self.ask(self.transport.schedules)

    async def schedule(self, schedule: UUID | str) -> Schedule:
        """Return a schedule with its template and its last ticks.

        Args:
            schedule: Its id or its name.

        Raises:
            NotFound: The project has no such schedule.
            Conflict: Several projects of the key have a schedule with this name.
            Unavailable: Redis, the ledger or the API did not answer.
        """
        identity = await self._find_schedule(schedule)
        return await self.ask(lambda: self.transport.schedule(identity))

    async def change_schedule(
        self,
        schedule: UUID | str,
        *,
        name: str | None = None,
        cron: str | None = None,
        time_zone: str | None = None,
        every_s: float | None = None,
        overlap: Overlap | str | None = None,
        missed: Missed | str | None = None,
        grace_s: float | None = None,
        sequence: object = None,
        jobs: Iterable[JobSpec | dict[str, Any]] | None = None,
        batch: SubmitOptions | None = None,
        revision: int | None = None,
    ) -> Schedule:
        """Change a schedule from its next tick on. Arguments that are None leave it as it is.

        Args:
            schedule: Its id or its name.
            name: As in :meth:`create_schedule`, like the following ones.
            cron: Replaces an interval, too.
            time_zone: Time zone of the cron expression.
            every_s: Replaces a cron expression, too.
            overlap: ``skip`` or ``queue``.
            missed: ``run_once`` or ``skip``.
            grace_s: In seconds.
            sequence: With ``jobs`` and ``batch``, replaces the whole batch.
            jobs: The jobs of the new batch.
            batch: The options of the new batch.
            revision: The revision that you have read: a schedule that was changed since then is not changed.

        Returns:
            The schedule as it is now.

        Raises:
            InvalidInput: An argument is not valid; ``field`` names it, and nothing was changed.
            NotFound: The project has no such schedule.
            Conflict: Another schedule has this name, or the schedule has another revision.
            Unavailable: Redis, the ledger or the API did not answer.
        """
        change = check_change(ScheduleChange(revision, name, cron, time_zone, every_s, overlap, missed, grace_s))
        identity, template = await self._find_schedule(schedule), None
        if sequence is not None or jobs is not None or batch is not None:
            template = await self._prepare_template(sequence, jobs or (), batch)
        return await self.ask(lambda: self.transport.change_schedule(identity, change, template))

    async def pause_schedule(self, schedule: UUID | str, reason: str = "", *, by: str | None = None) -> Schedule:
        """Pause a schedule: it submits no batches until it is resumed.

        Args:
            schedule: Its id or its name.
            reason: Why, for people.
            by: Name to record as the one who paused it (default: ``user@host``).

        Raises:
            NotFound: The project has no such schedule.
            Unavailable: Redis, the ledger or the API did not answer.
        """
        who, why = _checked_by(by), reason if reason == "" else check_text("reason", reason, MAX_REASON_LENGTH)
        identity = await self._find_schedule(schedule)
        return await self.ask(lambda: self.transport.pause_schedule(identity, by=who, reason=why))

    async def resume_schedule(self, schedule: UUID | str, *, by: str | None = None) -> Schedule:
        """Resume a paused or stopped schedule. Ticks since it was paused do not count as missed.

        Args:
            schedule: Its id or its name.
            by: Name to record as the one who resumed it (default: ``user@host``).

        Raises:
            NotFound: The project has no such schedule.
            Unavailable: Redis, the ledger or the API did not answer.
        """
        who, identity = _checked_by(by), await self._find_schedule(schedule)
        return await self.ask(lambda: self.transport.resume_schedule(identity, by=who))

    async def run_schedule(
        self, schedule: UUID | str, *, idempotency_key: str | None = None, by: str | None = None
    ) -> AsyncBatch:
        """Submit the batch of a schedule now, even if it is paused, and return its handle.

        Args:
            schedule: Its id or its name.
            idempotency_key: Calls with the same key submit one batch. By default each call submits one.
            by: Name to record as the requester (default: ``user@host``).

        Raises:
            InvalidInput: The batch is not valid any more; ``field`` names the part at fault.
            QuotaExceeded: A quota of the project is used up.
            Conflict: An earlier call with the same key failed.
            NotFound: The project has no such schedule.
            Unavailable: Redis, the ledger or the API did not answer.
        """
        who, key, identity = _checked_by(by), _checked_key(idempotency_key), await self._find_schedule(schedule)
        run = self.transport.run_schedule
        return AsyncBatch(self, await self.ask(lambda: run(identity, by=who, idempotency_key=key)))

    async def delete_schedule(self, schedule: UUID | str) -> None:
        """Delete a schedule permanently. Its batches stay.

        Args:
            schedule: Its id or its name.

        Raises:
            NotFound: The project has no such schedule.
            Unavailable: Redis, the ledger or the API did not answer.
        """
        identity = await self._find_schedule(schedule)
        tries = itertools.count()

        async def delete() -> None:
            again = next(tries) > 0
            try:
                await self.transport.delete_schedule(identity)
            except NotFound:
                if not again:  # else an earlier call that failed has deleted it
                    raise

        await self.ask(delete)

    async def _find_schedule(self, schedule: UUID | str) -> UUID:
        if isinstance(schedule, UUID):
            return schedule
        text = check_text("schedule", schedule, MAX_NAME_LENGTH)
        with contextlib.suppress(ValueError):
            return UUID(text)
        match await self.ask(lambda: self.transport.schedules(text)):
            case [found]:
                return found.id
            case []:
                raise NotFound("schedule", text)
            case found:
                listed = ", ".join(f"{it.id} (project {it.project_id})" for it in found)
                raise Conflict(f"{text!r} is not unique; use an id: {listed}", code="ambiguous")

    async def _prepare_template(
        self, sequence: object, jobs: Iterable[JobSpec | dict[str, Any]], batch: SubmitOptions | None
    ) -> Submission:
        """Return the batch that a schedule submits. Raises InvalidInput."""
        options = SubmitOptions() if batch is None else batch
        if not isinstance(options, dict):
            raise InvalidInput("batch", f"expected a dictionary of options of submit(), got {shown(batch)}")
        known = SubmitOptions.__annotations__
        for option in options:
            if option not in known:
                hint = f"{suggest_name(option, known)}; the options are {', '.join(known)}"
                raise InvalidInput(f"batch.{quote_name(option)}", f"is not an option of submit(){hint}")
        if options.get("idempotency_key") is not None:
            raise InvalidInput("idempotency_key", "is not possible in a schedule, which submits many batches; omit it")
        submission = await self._prepare(sequence, jobs, **options)
        if submission.not_before is not None:
            problem = "is not possible in a schedule, which decides when its batches start; omit it"
            raise InvalidInput("start_at", problem)
        return msgspec.structs.replace(submission, batch_id=None)

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call the transport, and repeat the call while it is unavailable. All calls are safe to repeat.

        Raises TweezerError when the queue is closed, or belongs to another event loop.
        """
        self.require_home()
        tries, gives_up_at = 0, 0.0
        while True:
            try:
                with heeding_cancel():
                    return await call()
            except Unavailable as error:
                self.require_home()  # it may have been closed during the call
                if not tries:
                    gives_up_at = time.monotonic() + self._retry_s  # the call may have waited for long before it failed
                tries += 1
                delay_s = max(_RETRY.delay_s(tries), error.retry_after_s)
                if time.monotonic() + delay_s > gives_up_at:
                    raise
                await asyncio.sleep(delay_s)

    def require_home(self) -> None:
        """Raise TweezerError unless this is the process and the event loop of the first call."""
        if self._closed:
            raise queue_closed("connect_async")
        process, loop = os.getpid(), asyncio.get_running_loop()
        if self._home is None:
            self._home = process, loop
        if self._home[0] != process:
            raise TweezerError(
                "the queue was opened in the parent process, before the fork; open one in each process with "
                "connect_async()",
                code="wrong_loop",
            )
        if self._home[1] is not loop:
            raise TweezerError(
                "the queue was first used in another event loop, which owns its connections; open a queue for each "
                "asyncio.run() with connect_async()",
                code="wrong_loop",
            )


def _reopen(address: Address, retry_s: float) -> AsyncQueue:
    return AsyncQueue(address.open(), retry_s=retry_s)


def _batch_status(status: BatchStatus | str) -> BatchStatus:
    """Return the status with this name, in upper or lower case. Raises InvalidInput."""
    try:
        return BatchStatus(status.upper())
    except (ValueError, AttributeError):
        problem = f"{shown(status)} is not the status of a batch; use one of {', '.join(BatchStatus)}"
        raise InvalidInput("status", problem) from None


def _split_dependency(field: str, item: object) -> tuple[object, object]:
    """Return the batch of a dependency, and how it must end. Raises InvalidInput."""
    match item:
        case Dependency():
            return item.batch, item.when
        case ListedBatch():
            return item.record, When.DONE
        case (batch, when):
            return batch, when
        case {"batch": batch, **rest} if rest.keys() <= {"when"}:
            return batch, rest.get("when", When.DONE)
        case tuple() | list() | Mapping():
            problem = 'expected a batch, or a batch and how it must end: (batch, "ENDED")'
            raise InvalidInput(field, f"{problem}, got {shown(item)}")
        case _:
            return item, When.DONE


def _check_when(field: str, when: object) -> When:
    """Return how a batch must end, named in upper or lower case. Raises InvalidInput."""
    try:
        return When(when.upper() if isinstance(when, str) else cast(str, when))
    except ValueError:
        raise InvalidInput(f"{field}.when", f"must be one of {', '.join(When)}, got {shown(when)}") from None


def _build_filter(
    status: BatchStatus | str | Iterable[BatchStatus | str],
    device: str | Iterable[str],
    tag: str | Iterable[str],
    name: str | Iterable[str],
    user: str | Iterable[str],
    since: datetime | None,
    until: datetime | None,
) -> BatchFilter:
    """Return the filter of these arguments. Raises InvalidInput that names the argument."""
    for field, at in (("since", since), ("until", until)):
        if at is not None:
            check_time(field, at)
    return BatchFilter(
        statuses=tuple(map(_batch_status, _one_or_more("status", status))),
        devices=_texts("device", device, MAX_DEVICE_LENGTH),
        tags_all=_texts("tag", tag, MAX_TAG_LENGTH),
        names=_texts("name", name, MAX_NAME_LENGTH),
        users=_texts("user", user, MAX_NAME_LENGTH),
        created_from=since,
        created_to=until,
    )


def _one_or_more(field: str, value: object) -> list[Any]:
    return [value] if isinstance(value, str) else check_list(field, value, "texts")


def _batches(value: object) -> list[object]:
    """Return a batch as a list, or the batches of a list. Raises InvalidInput."""
    is_one = isinstance(value, str | UUID | ListedBatch) or hasattr(value, "id")
    return [value] if is_one else check_list("depends_on", value, "batches")


def _texts(field: str, value: object, most: int) -> tuple[str, ...]:
    return tuple(check_text(field, it, most) for it in _one_or_more(field, value))


def as_uuid(kind: str, text: UUID | str) -> UUID:
    """Parse the id of a batch or a job. Raises InvalidInput."""
    try:
        return text if isinstance(text, UUID) else UUID(text)
    except (ValueError, AttributeError, TypeError):
        identity = new_batch_id()
        others = f"or like {short_job_id(identity)}" if kind == "job" else "find() also takes short ids and names"
        problem = f"{shown(text)} is not a valid {kind} id; ids look like {identity}; {others}"
        raise InvalidInput(f"{kind}_id", problem) from None


def connect_async(
    url: str | None = None,
    *,
    key: str | None = None,
    project: str | None = None,
    namespace: str | None = None,
    retry_s: float = RETRY_S,
    results_dir: str | Path | None = None,
    database_url: str | None = None,
    ca_file: str | Path | None = None,
) -> AsyncQueue:
    """Open a queue, for asyncio: through the HTTP API with a key, or directly in Redis.

    It connects on the first call. The URL decides: ``https://…`` is the API, ``redis://…`` is Redis. Without ``url``,
    it is that of ``TWEEZER_REDIS_URL``, else of ``TWEEZER_API_URL``, else that of a ``tweezer up`` that is running in
    the data folder (``TWEEZER_DATA_DIR``, else the default one), else the Redis on this machine. A running
    ``tweezer up`` also supplies every other value that no argument and no variable sets.

    Args:
        url: URL of the API, such as ``https://tweezer.lab``, possibly with a path; or URL of Redis. Plain ``http`` is
            allowed to this machine only.
        key: Key for the API (default: ``TWEEZER_API_KEY``, else the content of the file ``TWEEZER_API_KEY_FILE``).
        project: Id of the project whose batches are submitted and read. Default: ``TWEEZER_PROJECT_ID``, else with a
            key its own projects, else ``default``.
        namespace: Prefix of all keys in Redis (default: ``TWEEZER_NAMESPACE``, else ``tweezer``).
        retry_s: Seconds during which a call is repeated while Redis or the API does not answer, before it raises
            Unavailable.
        results_dir: Folder to which workers write large results, if it is mounted on this machine (default:
            ``TWEEZER_RESULTS_DIR``, else ``results`` in ``TWEEZER_DATA_DIR``). Without it, reading a large result from
            Redis raises ResultUnavailable.
        database_url: URL of the ledger's database, to also read batches that Redis no longer holds (default:
            ``TWEEZER_DATABASE_URL``). Requires the extra ``server``.
        ca_file: PEM file with the certificates of the authorities to trust for the API (default:
            ``TWEEZER_API_CA_FILE``, else those of the system).

    Raises:
        InvalidInput: An argument is not valid, or belongs to the other kind of URL; ``field`` names it.

    Example:
        ```python
        async with connect_async("https://tweezer.lab", key=key) as queue:
            print([device.name for device in await queue.devices()])
        ```
    """
    retry_s = check_seconds("retry_s", retry_s)
    if url is not None:
        check_text("url", url, _MAX_URL_LENGTH)
    variables = _variables(url)
    place = url or variables.get(REDIS_URL) or variables.get(API_URL) or Connect().url
    is_api = place.lower().startswith(("http://", "https://"))
    foreign = (
        {"namespace": namespace, "results_dir": results_dir, "database_url": database_url}
        if is_api
        else {"key": key, "ca_file": ca_file}
    )
    for name, value in foreign.items():
        if value is not None:
            kinds = ("the URL of Redis", "the URL of an API")
            raise InvalidInput(name, f"applies only to {kinds[not is_api]}; omit it with {kinds[is_api]}")
    whose = project if project is not None else variables.get("TWEEZER_PROJECT_ID")
    if whose is not None and not is_project_id(whose):
        raise InvalidInput(
            "project", f"must be 1 to 64 letters, digits, dots, dashes and underscores (got {shown(whose)})"
        )
    address: Address
    if is_api:
        address = locate_api(place, variables, key=key, project=whose, ca_file=ca_file)
    else:
        address = _locate_redis(place, variables, whose or DEFAULT_PROJECT, namespace, results_dir, database_url)
    return AsyncQueue(address.open(), retry_s=retry_s)


def locate_api(
    url: str,
    variables: Mapping[str, str],
    *,
    key: str | None = None,
    project: str | None = None,
    ca_file: str | Path | None = None,
) -> Address:
    """Return the address of an API. variables: the environment, for the values that are not given.

    Raises InvalidInput("key", …) if the only key in the environment is for the API at another URL.
    """
    from tweezer.transports.http import HttpAddress
    from tweezer.transports.http_session import check_api_url

    check_api_url(url)
    if key is None:
        known = variables.get(API_URL)
        if known and urlsplit(check_api_url(known))[:2] != urlsplit(url)[:2]:
            raise InvalidInput(
                "key", f"is missing; TWEEZER_API_KEY is for the host of TWEEZER_API_URL, which is not that of {url}"
            )
        key = variables.get(API_KEY)
        if key is None and (file := variables.get(f"{API_KEY}_FILE")):
            key = read_secret(f"{API_KEY}_FILE", Path(file))
    if key is None:
        raise InvalidInput(
            "key", "is missing; pass the API key that an operator gave you, or set TWEEZER_API_KEY (or …_FILE) to it"
        )
    authority = variables.get(API_CA_FILE) if ca_file is None else check_path("ca_file", ca_file)
    return HttpAddress(url, key, project, authority)


def _locate_redis(
    url: str,
    variables: Mapping[str, str],
    project: str,
    namespace: str | None,
    results_dir: str | Path | None,
    database_url: str | None,
) -> Address:
    if database_url is not None:
        check_text("database_url", database_url, _MAX_URL_LENGTH)
    ledger = database_url or variables.get("TWEEZER_DATABASE_URL")
    namespace = variables.get("TWEEZER_NAMESPACE", Connect().namespace) if namespace is None else namespace
    if not is_namespace(namespace):
        raise InvalidInput(
            "namespace", f"must be 1 to 32 letters, digits, dots, dashes and underscores (got {shown(namespace)})"
        )
    connect = Connect(url=url, namespace=namespace, results_dir=_results_folder(results_dir, variables))
    return DirectAddress(connect, project, OpenDatabase(ledger, connections_max=2) if ledger else None)


def _variables(url: str | None) -> Mapping[str, str]:
    """Return the environment, completed by that of a running ``tweezer up`` if it does not specify the queue."""
    given = {name: value for name, value in os.environ.items() if value}
    if url or given.get(REDIS_URL) or given.get(API_URL):
        return given
    return running_environment() | given


def _results_folder(given: str | Path | None, variables: Mapping[str, str]) -> Path | None:
    """Return the folder of large results from the argument, else from the environment."""
    if given is not None:
        return Path(check_path("results_dir", given)).absolute()
    if named := variables.get("TWEEZER_RESULTS_DIR"):
        return Path(named).absolute()
    data = variables.get(DATA_DIR)
    return Path(data).absolute() / "results" if data else None
