"""The transport for callers that reach Redis, and possibly the ledger's database."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import msgspec

from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.batch_reader import BatchReader
from tweezer.ledger.bulk_actions import BulkActions, BulkOutcome, BulkRequest
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.queries.filters import BatchFilter
from tweezer.ledger.repetition import retry_batch
from tweezer.ledger.schedules.records import Creator, Schedule, ScheduleChange, ScheduleSettings
from tweezer.model.attempts import JobAttempt
from tweezer.model.cancels import user_at_host
from tweezer.model.errors import Conflict, NotFound, TweezerError, install_command
from tweezer.model.events import Event, JobNews, Word, read_news
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import Priority
from tweezer.model.windows import Window
from tweezer.store.connection import Connect, Store
from tweezer.store.job_logs import JobLog
from tweezer.store.producers import CancelAnswer, CheckedSubmission, Submission
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord, WorkerRecord
from tweezer.store.streams.batch_events import BatchEvents, LastEvent
from tweezer.store.streams.feed import ChannelReader
from tweezer.store.streams.tail import Tail
from tweezer.transports.http_records import read_template, write_submission
from tweezer.transports.protocol import FeedPage, JobWithResult, Place, is_settled

if TYPE_CHECKING:
    from tweezer.ledger.database import Database
    from tweezer.ledger.queries.queries import Queries

T = TypeVar("T")

_FEED_PAGE = 1000


class DirectAddress(msgspec.Struct, frozen=True):
    """How to reach Redis and the ledger. The URLs contain their passwords."""

    connect: Connect
    project: str
    ledger: OpenDatabase | None = None

    def open(self) -> DirectTransport:
        """Open the transport, which connects on its first call. Raises InvalidInput for a URL that is not valid."""
        return DirectTransport(Store.open(self.connect), self.project, ledger=self.ledger)


class DirectTransport:
    """Reads and changes the batches of a project in Redis, and reads those that only the ledger has.

    Args:
        store: The connection to Redis, which the transport closes.
        project: Id of the project.
        ledger: The ledger's database, opened on first use; None without one.
    """

    def __init__(self, store: Store, project: str, *, ledger: OpenDatabase | None = None) -> None:
        self.store = store
        self.project = project
        self._ledger = ledger
        self._queries: Queries | None = None
        self._tail = Tail(store.scripts)
        self._caller = Principal("", Role.USER, frozenset({project}))

    @property
    def address(self) -> DirectAddress | None:
        connect = self.store.connect
        return None if connect is None else DirectAddress(connect, self.project, self._ledger)

    @property
    def has_history(self) -> bool:
        return self._ledger is not None

    async def close(self) -> None:
        await self._tail.close()
        await self.store.close()
        if self._queries is not None:
            self._queries.close()

    # --- batches

    async def submit(self, submission: Submission, *, again: bool) -> UUID:
        find_ends = self._reader.find_ends
        return await self.store.admission.submit(submission, project=self.project, again=again, find_ends=find_ends)

    async def check(self, submission: Submission) -> CheckedSubmission:
        find_ends = self._reader.find_ends
        return await self.store.admission.check(submission, project=self.project, find_ends=find_ends)

    async def batch(self, batch_id: UUID) -> BatchRecord:
        return await self._reader.batch(self._caller, batch_id)

    async def find(self, text: str) -> UUID:
        return await self._reader.find(self._caller, text)

    async def batches(self, wanted: BatchFilter, *, without: Collection[UUID], most: int) -> list[BatchRecord]:
        return await self._reader.newest_batches(self._caller, wanted, most, without=without)

    async def settled(self, batch_id: UUID, wait_s: float) -> BatchRecord:
        deadline = time.monotonic() + wait_s
        async with self.store.news.batch(batch_id) as channel:
            while True:
                record, left_s = await self.batch(batch_id), deadline - time.monotonic()
                if is_settled(record) or left_s <= 0:
                    return record
                await channel.next(left_s)

    async def add_jobs(self, batch_id: UUID, jobs: Sequence[object], *, idempotency_key: str) -> int:
        added = self.store.admission.add_jobs(batch_id, jobs, project=self.project, idempotency_key=idempotency_key)
        return await self._change(batch_id, added)

    async def close_batch(self, batch_id: UUID) -> None:
        await self._change(batch_id, self.store.commands.close(batch_id, project=self.project))

    async def cancel(self, batch_id: UUID, *, by: str, idempotency_key: str) -> None:
        cancel = self.store.commands.cancel
        await self._change(batch_id, cancel(batch_id, project=self.project, by=by, idempotency_key=idempotency_key))

    async def cancel_jobs(
        self, batch_id: UUID, indices: Sequence[int], *, by: str, idempotency_key: str
    ) -> list[CancelAnswer]:
        cancel = self.store.commands.cancel_jobs
        return await self._change(
            batch_id, cancel(batch_id, indices, project=self.project, by=by, idempotency_key=idempotency_key)
        )

    async def retry(self, batch_id: UUID, statuses: Sequence[JobStatus], *, idempotency_key: str) -> UUID:
        return await retry_batch(
            self.store, self._reader, self._caller, batch_id, statuses=statuses, idempotency_key=idempotency_key
        )

    async def act_on_matching(self, request: BulkRequest) -> BulkOutcome:
        queries = await self._open_ledger()
        database = None if queries is None else queries.database
        return await BulkActions(self.store, self._reader, database, self._caller).run(request)

    async def pause(self, batch_id: UUID, *, by: str, reason: str) -> None:
        pause = self.store.commands.pause
        await self._change(batch_id, pause(batch_id, project=self.project, by=by, reason=reason))

    async def resume(self, batch_id: UUID) -> None:
        await self._change(batch_id, self.store.commands.resume(batch_id, project=self.project))

    async def set_priority(self, batch_id: UUID, priority: Priority) -> None:
        await self._change(batch_id, self.store.commands.set_priority(batch_id, priority, project=self.project))

    async def set_tags(self, batch_id: UUID, tags: Sequence[str]) -> None:
        await self._change(batch_id, self.store.commands.set_tags(batch_id, tags, project=self.project))

    async def _change(self, batch_id: UUID, call: Awaitable[T]) -> T:
        """Return the outcome of a change. A batch that only the ledger has raises Conflict."""
        try:
            return await call
        except NotFound:
            if not await self._reader.is_recorded(self._caller, batch_id):
                raise
            raise Conflict(f"batch {batch_id} has ended", code="terminal") from None

    # --- jobs

    async def job(self, job_id: UUID) -> JobRecord:
        return await self._reader.job(self._caller, job_id)

    async def jobs(self, batch: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        return await self._reader.jobs(batch, indices)

    async def results(self, batch: BatchRecord, indices: Sequence[int]) -> list[JobWithResult]:
        jobs = await self.jobs(batch, indices)
        results = await self._reader.results(batch.id, [job.index for job in jobs if job.may_have_result])
        return [(job, results.get(job.index)) for job in jobs]

    async def result(self, job: JobRecord) -> JobWithResult:
        results = await self._reader.results(job.batch_id, [job.index] if job.may_have_result else [])
        return job, results.get(job.index)

    async def attempts(self, job_id: UUID) -> list[JobAttempt]:
        return await self._reader.attempts(self._caller, job_id)

    async def logs(self, job_id: UUID, after: int) -> JobLog:
        return await self.store.job_logs.read(job_id, after=after)

    # --- changes

    @contextlib.asynccontextmanager
    async def news(self, batch_id: UUID) -> AsyncIterator[_ChannelNews]:
        async with self.store.news.batch(batch_id, steps=True) as channel:
            yield _ChannelNews(channel)

    @contextlib.asynccontextmanager
    async def events(self, batch_id: UUID, after: Place | None) -> AsyncIterator[_StreamEvents]:
        async with self.store.news.batch(batch_id) as channel:
            batch = await self.batch(batch_id)
            last = LastEvent(batch.sequence_number) if after == "now" else after or LastEvent()
            recorded = None if self._ledger is None else partial(self._reader.entries, batch)
            reading = BatchEvents(
                self.store.events, partial(self.batch, batch_id), batch=batch, last=last, recorded=recorded
            )
            yield _StreamEvents(reading, channel)

    async def feed(self, after: str | None, wait_s: float) -> FeedPage:
        queries = await self._open_ledger()
        if queries is None:
            raise TweezerError(
                f"the events of a project are read from the ledger, which {self._describe_lack()}, or name a batch",
                code="no_ledger",
            )
        from tweezer.ledger.queries.feed import Feed, Selection

        feed = Feed(self.store, queries.database, namespace=self.store.keys.namespace)
        selection = Selection(self._caller.projects)
        read = partial(feed.read, selection, internal=True, limit=_FEED_PAGE)
        page = await read(await feed.cursor(after, selection))
        if not page.events and not page.more and wait_s > 0:
            async with self._tail.listen(projects=selection.projects) as channel:
                page = await read(page.next)
                if not page.events and not page.more:
                    await channel.next(wait_s)
                    page = await read(page.next)
        return FeedPage(page.events, str(page.next), page.more)

    # --- devices

    async def devices(self) -> list[DeviceRecord]:
        return await self.store.reader.devices()

    async def device(self, name: str) -> DeviceRecord | None:
        return await self.store.reader.device(name)

    async def workers(self) -> list[WorkerRecord]:
        return await self.store.reader.workers()

    async def pause_device(self, name: str, reason: str, *, until: datetime | None) -> None:
        await self.store.devices.pause(name, reason, until=until)

    async def resume_device(self, name: str) -> None:
        await self.store.devices.resume(name)

    async def windows(self, device: str) -> list[Window]:
        return await self.store.reader.windows(device)

    async def plan(self, device: str, window: Window) -> None:
        await self.store.devices.plan(device, window)

    async def drop(self, device: str, window_id: str) -> None:
        await self.store.devices.drop(device, window_id)

    # --- schedules

    async def create_schedule(self, identity: UUID, settings: ScheduleSettings, template: Submission) -> Schedule:
        database = await self._require_ledger()
        from tweezer.ledger.schedules import schedules

        packed = await self._prepare_template(template)
        creator = Creator(user_at_host())
        await database.run_write(
            schedules.create_schedule, identity, settings, packed, project_id=self.project, creator=creator
        )
        return await self.schedule(identity)

    async def schedules(self, name: str | None = None) -> list[Schedule]:
        database = await self._require_ledger()
        from tweezer.ledger.schedules.schedules import list_schedules

        return await database.run_read(list_schedules, self._caller.projects, name=name)

    async def schedule(self, identity: UUID) -> Schedule:
        database = await self._require_ledger()
        from tweezer.ledger.schedules import schedules

        found = await database.run_read(
            schedules.find_schedule, identity, self._caller.projects, ticks=schedules.TICKS_SHOWN
        )
        submission = await database.run_read(schedules.read_template, identity)
        template = read_template(write_submission(submission, is_template=True))
        return msgspec.structs.replace(found, template=template)

    async def change_schedule(self, identity: UUID, change: ScheduleChange, template: Submission | None) -> Schedule:
        database = await self._require_ledger()
        from tweezer.ledger.schedules import schedules

        packed = None if template is None else await self._prepare_template(template)
        await database.run_write(schedules.change_schedule, identity, change, packed, project_ids=self._caller.projects)
        return await self.schedule(identity)

    async def pause_schedule(self, identity: UUID, *, by: str, reason: str) -> Schedule:
        database = await self._require_ledger()
        from tweezer.ledger.schedules.schedules import pause_schedule

        return await database.run_write(
            pause_schedule, identity, creator=Creator(by), reason=reason, project_ids=self._caller.projects
        )

    async def resume_schedule(self, identity: UUID, *, by: str) -> Schedule:
        database = await self._require_ledger()
        from tweezer.ledger.schedules.schedules import resume_schedule

        return await database.run_write(
            resume_schedule, identity, creator=Creator(by), project_ids=self._caller.projects
        )

    async def run_schedule(self, identity: UUID, *, by: str, idempotency_key: str) -> UUID:
        database = await self._require_ledger()
        from tweezer.ledger.schedules.runner import ScheduleRunner

        return await ScheduleRunner(self.store, database).run_now(
            identity, idempotency_key, creator=Creator(by), project_ids=self._caller.projects
        )

    async def delete_schedule(self, identity: UUID) -> None:
        database = await self._require_ledger()
        from tweezer.ledger.schedules.schedules import delete_schedule

        await database.run_write(delete_schedule, identity, project_ids=self._caller.projects)

    async def _prepare_template(self, template: Submission) -> bytes:
        from tweezer.ledger.schedules.schedules import prepare_template

        find_ends = self._reader.find_ends
        return await prepare_template(self.store.admission, template, project_id=self.project, find_ends=find_ends)

    async def _require_ledger(self) -> Database:
        """Return the ledger's database. Raises TweezerError without one."""
        if (queries := await self._open_ledger()) is None:
            raise TweezerError(f"schedules are in the ledger, which {self._describe_lack()}", code="no_ledger")
        return queries.database

    # --- the ledger

    def _describe_lack(self) -> str:
        """Return why there is no ledger, and what to do."""
        if self._ledger is None:
            return "is not configured here; set TWEEZER_DATABASE_URL"
        return "has no tables yet; run `tweezer db upgrade`"

    @property
    def _reader(self) -> BatchReader:
        """A new reader of batches. Keeping one would make a cycle, and delay the warning about an unclosed queue."""
        return BatchReader(self.store, self._open_ledger)

    async def _open_ledger(self) -> Queries | None:
        """Open the ledger on first use; return None without one. Raises TweezerError."""
        if self._queries is None and self._ledger is not None:
            try:
                from tweezer.ledger.queries.queries import Queries
            except ModuleNotFoundError as error:
                raise TweezerError(
                    f"reading the ledger needs {error.name}; run {install_command('server')}", code="missing_extra"
                ) from error
            self._queries = await asyncio.to_thread(Queries.open, self._ledger)
        return self._queries


class _ChannelNews:
    """The messages on the channel of a batch."""

    def __init__(self, channel: ChannelReader) -> None:
        self._channel = channel

    async def next(self, timeout_s: float | None) -> list[Word | JobNews]:
        found: list[Word | JobNews] = []
        for message in await self._channel.next(timeout_s):
            news = read_news(message)
            found += [news] if isinstance(news, JobNews) else news
        return found


class _StreamEvents:
    """The events of a batch in the stream and in the ledger; the channel reports when there are more."""

    def __init__(self, reading: BatchEvents, channel: ChannelReader) -> None:
        self._reading = reading
        self._channel = channel

    @property
    def is_over(self) -> bool:
        return self._reading.is_over

    async def read(self, wait_s: float) -> list[Event]:
        events = await self._reading.read()
        if not events and not self.is_over and wait_s > 0:
            await self._channel.next(wait_s)
            events = await self._reading.read()
        return events
