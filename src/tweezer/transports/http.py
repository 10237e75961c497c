"""The transport for callers that have a key: the HTTP API, with long polls in place of notifications by Redis."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from tweezer.duties import Backoff, end_tasks
from tweezer.ledger.bulk_actions import BulkAction, BulkOutcome, BulkRequest
from tweezer.ledger.queries.filters import BatchFilter
from tweezer.ledger.schedules.records import Schedule, ScheduleChange, ScheduleSettings
from tweezer.model.attempts import JobAttempt
from tweezer.model.cancels import as_ranges, show_ranges
from tweezer.model.checks import MAX_REASON_LENGTH, check_text
from tweezer.model.errors import NotFound, ResultUnavailable, TweezerError, Unavailable
from tweezer.model.events import Event, JobNews, Word
from tweezer.model.lifecycle import JobStatus, Stage
from tweezer.model.lru import Recent
from tweezer.model.messages import Priority
from tweezer.model.webhooks import EventMessage
from tweezer.model.windows import Window, check_time
from tweezer.store.job_logs import JobLog
from tweezer.store.producers import CancelAnswer, CheckedSubmission, Submission
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord, WorkerRecord
from tweezer.store.streams.batch_events import LastEvent
from tweezer.transports.http_records import (
    AddedJson,
    AttemptJson,
    BatchJson,
    CheckedJson,
    DeviceJson,
    IdJson,
    JobJson,
    JobLine,
    WindowJson,
    as_word,
    plain,
    read_event,
    read_template,
    write_jobs,
    write_submission,
)
from tweezer.transports.http_session import HttpSession, at, check_api_url, check_secret
from tweezer.transports.protocol import FeedPage, JobWithResult, Place, is_settled

HOLD_S = 20.0
"""The longest time for which the API holds a request."""

_REST_S = 0.2  # between two looks at a batch that changes all the time
_PROGRESS_S = 2.0
_EVENTS_MAX = 1000
_PAGE = 100
_RANGES_LENGTH = 4000  # characters of indices in one URL
_SEQUENCES_BYTES = 64 << 20
_OWN_MAX = 10_000
_BACKOFF = Backoff(base_s=0.2, cap_s=5.0)


class HttpAddress(msgspec.Struct, frozen=True):
    """Where the API is, and the key for it. project: None means all projects of the key."""

    url: str
    key: str
    project: str | None = None
    ca_file: str | None = None

    def __repr__(self) -> str:
        return f"HttpAddress({self.url!r}, project={self.project!r})"

    def open(self) -> HttpTransport:
        """Open the transport, which connects on its first call. Raises InvalidInput for an invalid argument."""
        return HttpTransport(self)


class HttpTransport:
    """Reads and changes the batches of the projects of a key through the HTTP API."""

    def __init__(self, address: HttpAddress) -> None:
        self.address = address
        self.project = address.project
        self._http = HttpSession(check_api_url(address.url), check_secret(address.key), ca_file=address.ca_file)
        self._sequences: Recent[UUID, tuple[str | None]] = Recent(_SEQUENCES_BYTES)
        self._own: Recent[UUID, bool] = Recent(_OWN_MAX)  # batches of this project, which never changes

    @property
    def has_history(self) -> bool:
        return True

    async def close(self) -> None:
        await self._http.close()

    # --- batches

    async def submit(self, submission: Submission, *, again: bool) -> UUID:
        body, key = (
            write_submission(submission, project_id=self.project),
            submission.idempotency_key or str(submission.batch_id),
        )
        created = (await self._http.call(IdJson, "POST", "/api/v1/batches", body=body, key=key)).data
        self._own.put(created.id, True)
        return created.id

    async def check(self, submission: Submission) -> CheckedSubmission:
        path, query = "/api/v1/batches", {"dry_run": "true"}
        return (
            await self._http.call(
                CheckedJson, "POST", path, query=query, body=write_submission(submission, project_id=self.project)
            )
        ).data.record()

    async def batch(self, batch_id: UUID) -> BatchRecord:
        known = self._sequences.get(batch_id)
        query = {"jobs": "false", "sequence": "true" if known is None else "false"}
        answer = await self._http.call(BatchJson, "GET", at("/api/v2/batches/{}", batch_id), query=query)
        if known is None:
            known = (answer.data.sequence_builder,)
            self._sequences.put(batch_id, known, len(known[0] or "") + 1)
        record = answer.data.record(known[0])
        self._require_own(record.project, "batch", batch_id)
        self._own.put(batch_id, True)
        return record

    async def find(self, text: str) -> UUID:
        query = {"text": text} | ({} if self.project is None else {"project_id": self.project})
        return (await self._http.call(IdJson, "GET", "/api/v2/batches/find", query=query)).data.id

    async def batches(self, wanted: BatchFilter, *, without: Collection[UUID], most: int) -> list[BatchRecord]:
        query = self._filter(wanted) | {"limit": most + len(without)}
        found = (await self._http.call(list[BatchJson], "GET", "/api/v2/batches/newest", query=query)).data
        return [batch.record(None) for batch in found if batch.id not in without][:most]

    def _filter(self, wanted: BatchFilter) -> dict[str, str | int | float | Sequence[str]]:
        """Return the criteria that the Python API has as the parameters of lists."""
        query: dict[str, str | int | float | Sequence[str]] = {
            "id": [str(batch_id) for batch_id in wanted.ids],
            "status": [status.value for status in wanted.statuses],
            "device_type": wanted.devices,
            "name": wanted.names,
            "depends_on": [str(parent) for parent in wanted.depends_on],
            "user_id": wanted.users,
            "all_tags": wanted.tags_all,
            "project_id": () if self.project is None else (self.project,),
        }
        if wanted.created_from is not None:
            query["min_created_at"] = wanted.created_from.isoformat()
        if wanted.created_to is not None:
            query["max_created_at"] = wanted.created_to.isoformat()
        return query

    async def settled(self, batch_id: UUID, wait_s: float) -> BatchRecord:
        deadline = time.monotonic() + wait_s
        while True:
            held_s, began = min(max(deadline - time.monotonic(), 0.0), HOLD_S), time.monotonic()
            path = at("/api/v1/batches/{}/status", batch_id)
            await self._http.call(IdJson, "GET", path, query={"wait_s": held_s}, wait_s=held_s)
            record = await self.batch(batch_id)
            if is_settled(record) or time.monotonic() >= deadline:
                return record
            await asyncio.sleep(_REST_S - (time.monotonic() - began))

    async def add_jobs(self, batch_id: UUID, jobs: Sequence[object], *, idempotency_key: str) -> int:
        await self._require_visible(batch_id)
        path, body = at("/api/v2/batches/{}/jobs", batch_id), write_jobs(jobs)
        return (await self._http.call(AddedJson, "POST", path, body=body, key=idempotency_key)).data.first_added

    async def close_batch(self, batch_id: UUID) -> None:
        await self._change(batch_id, "/api/v2/batches/{}/complete")

    async def cancel(self, batch_id: UUID, *, by: str, idempotency_key: str) -> None:
        await self._change(batch_id, "/api/v2/batches/{}/cancel", query={"by": by}, key=idempotency_key)

    async def cancel_jobs(
        self, batch_id: UUID, indices: Sequence[int], *, by: str, idempotency_key: str
    ) -> list[CancelAnswer]:
        await self._require_visible(batch_id)
        answer = await self._http.call(
            list[CancelAnswer],
            "POST",
            at("/api/v2/batches/{}/cancel/jobs", batch_id),
            query={"by": by},
            body={"indices": list(indices)},
            key=idempotency_key,
        )
        return answer.data

    async def retry(self, batch_id: UUID, statuses: Sequence[JobStatus], *, idempotency_key: str) -> UUID:
        await self._require_visible(batch_id)
        path, query = at("/api/v1/batches/{}/rebatch", batch_id), {"status": [status.value for status in statuses]}
        created = (await self._http.call(IdJson, "POST", path, query=query, key=idempotency_key)).data
        self._own.put(created.id, True)
        return created.id

    async def act_on_matching(self, request: BulkRequest) -> BulkOutcome:
        query = self._filter(request.wanted)
        query |= {name: "true" for name, is_set in (("all", request.every), ("dry_run", request.dry_run)) if is_set}
        if request.after:
            query["after"] = request.after
        if request.action is BulkAction.CANCEL:
            query["by"] = request.by
        if request.action is BulkAction.RETRY:
            query["job_status"] = [status.value for status in request.job_statuses]
        path = f"/api/v2/batches/{request.action}-matching"
        return (await self._http.call(BulkOutcome, "POST", path, query=query)).data

    async def pause(self, batch_id: UUID, *, by: str, reason: str) -> None:
        await self._change(batch_id, "/api/v2/batches/{}/pause", query={"by": by, "reason": reason})

    async def resume(self, batch_id: UUID) -> None:
        await self._change(batch_id, "/api/v2/batches/{}/resume")

    async def set_priority(self, batch_id: UUID, priority: Priority) -> None:
        await self._change(batch_id, "/api/v2/batches/{}/priority", body={"queue_priority": priority})

    async def set_tags(self, batch_id: UUID, tags: Sequence[str]) -> None:
        await self._change(batch_id, "/api/v1/batches/{}/tags", body=list(tags))

    async def _change(self, batch_id: UUID, path: str, **options: Any) -> None:
        await self._require_visible(batch_id)
        await self._http.call(IdJson, "PATCH", at(path, batch_id), **options)

    async def _require_visible(self, batch_id: UUID) -> None:
        """Raise NotFound if a project was named, and the batch is in another project of the key."""
        if self.project is not None and not self._own.get(batch_id):
            await self.batch(batch_id)

    def _require_own(self, project: str, kind: str, identity: UUID) -> None:
        if self.project not in (None, project):
            raise NotFound(kind, str(identity))

    # --- jobs

    async def job(self, job_id: UUID) -> JobRecord:
        record = (await self._http.call(JobJson, "GET", at("/api/v2/jobs/{}", job_id))).data.record()
        self._require_own(record.project, "job", job_id)
        return record

    async def jobs(self, batch: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        return [job async for job, _ in self._stream(batch.id, indices, results=False)]

    async def results(self, batch: BatchRecord, indices: Sequence[int]) -> list[JobWithResult]:
        return [found async for found in self._stream(batch.id, indices, results=True)]

    async def result(self, job: JobRecord) -> JobWithResult:
        (found,) = [found async for found in self._stream(job.batch_id, [job.index], results=True)] or [(job, None)]
        return found

    async def _stream(self, batch_id: UUID, indices: Sequence[int], *, results: bool) -> AsyncIterator[JobWithResult]:
        path = at("/api/v2/batches/{}/jobs", batch_id)
        for ranges in _split(indices):
            ended = False
            lines = self._http.lines(JobLine, path, query={"indices": ranges, "results": str(results).lower()})
            async with contextlib.aclosing(lines) as found:  # type: ignore[type-var]
                async for line in found:
                    ended = line.end
                    if line.job is not None:
                        error = line.result_error
                        yield line.job.record(), line.result if error is None else ResultUnavailable(error)
            if not ended:
                raise Unavailable(f"the API at {self._http.url} sent only a part of the jobs; try again")

    async def attempts(self, job_id: UUID) -> list[JobAttempt]:
        path = at("/api/v2/jobs/{}/attempts", job_id)
        return [found.attempt() for found in (await self._http.call(list[AttemptJson], "GET", path)).data]

    async def logs(self, job_id: UUID, after: int) -> JobLog:
        path = at("/api/v2/jobs/{}/logs", job_id)
        return (await self._http.call(JobLog, "GET", path, query={"after": after})).data

    # --- changes

    @contextlib.asynccontextmanager
    async def news(self, batch_id: UUID) -> AsyncIterator[_PolledNews]:
        cursor = (await self.events_page(batch_id, "now", wait_s=0.0)).next
        reader = _PolledNews(self, batch_id, cursor)
        tasks = [asyncio.create_task(reader.follow()), asyncio.create_task(reader.follow_progress())]
        try:
            yield reader
        finally:
            await end_tasks(*tasks)

    @contextlib.asynccontextmanager
    async def events(self, batch_id: UUID, after: Place | None) -> AsyncIterator[_PolledEvents]:
        await self._require_visible(batch_id)
        place = None
        if after == "now":
            place = (await self.events_page(batch_id, "now", wait_s=0.0)).next
        elif isinstance(after, LastEvent):
            place = f"{batch_id}:{after.sequence}:{after.time_us}"
        yield _PolledEvents(self, batch_id, place)

    async def feed(self, after: str | None, wait_s: float) -> FeedPage:
        whose = {} if self.project is None else {"project_id": self.project}
        return await self._page("/api/v2/events", after, wait_s, **whose)

    async def events_page(self, batch_id: UUID, after: str | None, *, wait_s: float) -> FeedPage:
        """Return the next events of a batch."""
        return await self._page(at("/api/v2/batches/{}/events", batch_id), after, wait_s)

    async def _page(self, path: str, after: str | None, wait_s: float, **whose: str) -> FeedPage:
        held_s = min(wait_s, HOLD_S)
        query: dict[str, str | float] = {"wait_s": held_s, "limit": _EVENTS_MAX, "internal": "true", **whose}
        if after is not None:
            query["after"] = after
        answer = await self._http.call(list[EventMessage], "GET", path, query=query, wait_s=held_s)
        return FeedPage(answer.data, answer.next, bool(answer.data) or answer.next != after)

    async def running(self, batch_id: UUID) -> list[JobNews]:
        """Return the progress of running jobs of a batch, of the first hundred."""
        query: dict[str, str | int] = {"batch_id": str(batch_id), "status": "RUNNING", "limit": _PAGE}
        found = (await self._http.call(list[JobJson], "GET", "/api/v2/jobs", query=query)).data
        return [JobNews(it.creation_order, it.stage or Stage.ON_DEVICE, it.progress, it.steps) for it in found]

    # --- devices

    async def devices(self) -> list[DeviceRecord]:
        found: list[DeviceRecord] = []
        while True:
            query: dict[str, str | int] = {"include_legacy": "true", "limit": _PAGE, "offset": len(found)}
            answer = await self._http.call(list[DeviceJson], "GET", "/api/v1/devices", query=query)
            found += [device.record() for device in answer.data]
            if len(answer.data) < _PAGE:
                return sorted(found, key=lambda device: device.name)

    async def device(self, name: str) -> DeviceRecord | None:
        return next((device for device in await self.devices() if device.name == name), None)

    async def workers(self) -> list[WorkerRecord]:
        return (await self._http.call(list[WorkerRecord], "GET", "/api/v2/workers")).data

    async def pause_device(self, name: str, reason: str, *, until: datetime | None) -> None:
        if reason != "":
            check_text("reason", reason, MAX_REASON_LENGTH)
        if until is not None:
            check_time("until", until)
        await self._set_status(name, {"status": "DOWN", "reason": reason, "until": until})

    async def resume_device(self, name: str) -> None:
        await self._set_status(name, {"status": "UP"})

    async def _set_status(self, name: str, body: dict[str, object]) -> None:
        await self._http.call(msgspec.Raw, "PUT", at("/api/v1/devices/{}/status", name), body=plain(body))

    async def windows(self, device: str) -> list[Window]:
        try:
            answer = await self._http.call(list[WindowJson], "GET", at("/api/v1/devices/{}/maintenance", device))
        except NotFound:  # as over Redis: no device, no windows
            return []
        return [window.record() for window in answer.data]

    async def plan(self, device: str, window: Window) -> None:
        body = {"id": window.id, "begins_at": window.begins, "ends_at": window.ends, "reason": window.reason}
        await self._http.call(msgspec.Raw, "POST", at("/api/v1/devices/{}/maintenance", device), body=plain(body))

    async def drop(self, device: str, window_id: str) -> None:
        await self._http.call(msgspec.Raw, "DELETE", at("/api/v1/devices/{}/maintenance/{}", device, window_id))

    # --- schedules

    async def create_schedule(self, identity: UUID, settings: ScheduleSettings, template: Submission) -> Schedule:
        body = msgspec.structs.asdict(settings) | {
            "id": str(identity),
            "project_id": self.project,
            "template": write_submission(template, is_template=True),
        }
        return await self._read_schedule("POST", "/api/v2/schedules", plain(body))

    async def schedules(self, name: str | None = None) -> list[Schedule]:
        found: list[Schedule] = []
        while True:
            query: dict[str, str | int] = {"limit": _PAGE, "offset": len(found)}
            query |= {} if self.project is None else {"project_id": self.project}
            query |= {} if name is None else {"name": name}
            page = (await self._http.call(list[Schedule], "GET", "/api/v2/schedules", query=query)).data
            found += page
            if len(page) < _PAGE:
                return found

    async def schedule(self, identity: UUID) -> Schedule:
        found = await self._read_schedule("GET", at("/api/v2/schedules/{}", identity))
        self._require_own(found.project_id, "schedule", identity)
        return found

    async def change_schedule(self, identity: UUID, change: ScheduleChange, template: Submission | None) -> Schedule:
        await self._require_own_schedule(identity)
        body = msgspec.structs.asdict(change)
        if template is not None:
            body["template"] = write_submission(template, is_template=True)
        return await self._read_schedule("PATCH", at("/api/v2/schedules/{}", identity), plain(body))

    async def pause_schedule(self, identity: UUID, *, by: str, reason: str) -> Schedule:
        return await self._call_schedule(identity, "pause", by=by, reason=reason)

    async def resume_schedule(self, identity: UUID, *, by: str) -> Schedule:
        return await self._call_schedule(identity, "resume", by=by)

    async def run_schedule(self, identity: UUID, *, by: str, idempotency_key: str) -> UUID:
        await self._require_own_schedule(identity)
        path = at("/api/v2/schedules/{}/run", identity)
        return (await self._http.call(IdJson, "POST", path, query={"by": by}, key=idempotency_key)).data.id

    async def delete_schedule(self, identity: UUID) -> None:
        await self._require_own_schedule(identity)
        await self._http.call(msgspec.Raw, "DELETE", at("/api/v2/schedules/{}", identity))

    async def _read_schedule(self, method: str, path: str, body: object = None) -> Schedule:
        """Make a request whose response has the template."""
        found = (await self._http.call(Schedule, method, path, body=body)).data
        return msgspec.structs.replace(found, template=read_template(found.template))

    async def _call_schedule(self, identity: UUID, verb: str, **query: str) -> Schedule:
        await self._require_own_schedule(identity)
        path = at(f"/api/v2/schedules/{{}}/{verb}", identity)
        return (await self._http.call(Schedule, "POST", path, query=query)).data

    async def _require_own_schedule(self, identity: UUID) -> None:
        """Raise NotFound if a project was named, and the schedule is in another project of the key."""
        if self.project is not None:
            await self.schedule(identity)


class _PolledNews:
    """What happens in a batch, from long polls that run beside its reader."""

    def __init__(self, transport: HttpTransport, batch_id: UUID, cursor: str) -> None:
        self._transport = transport
        self._batch_id = batch_id
        self._cursor = cursor
        self._found: list[Word | JobNews] = []
        self._woken = asyncio.Event()
        self._failure: TweezerError | None = None

    async def next(self, timeout_s: float | None) -> list[Word | JobNews]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        if self._failure is not None:
            raise self._failure
        self._woken.clear()
        found, self._found = self._found, []
        return found

    async def follow(self) -> None:
        """Wait for events, without an end. An outage wakes the reader, whose next call then reports it."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                page = await self._transport.events_page(self._batch_id, self._cursor, wait_s=HOLD_S)
            except Unavailable:
                failures += 1
                self._woken.set()
                await asyncio.sleep(_BACKOFF.delay_s(failures))
                continue
            except TweezerError as error:
                self._failure = error
                self._woken.set()
                return
            failures, self._cursor = 0, page.next
            if page.events:
                self._put([as_word(read_event(event)) for event in page.events])
            await asyncio.sleep(_REST_S - (time.monotonic() - began))

    async def follow_progress(self) -> None:
        """Look at the progress of running jobs now and then: it makes no events."""
        while True:
            await asyncio.sleep(_PROGRESS_S)
            with contextlib.suppress(TweezerError):  # the other task reports it
                self._put([news for news in await self._transport.running(self._batch_id) if news.percent is not None])

    def _put(self, news: Sequence[Word | JobNews]) -> None:
        if news:
            self._found += news
            self._woken.set()


class _PolledEvents:
    """The events of a batch, in pages."""

    def __init__(self, transport: HttpTransport, batch_id: UUID, after: str | None) -> None:
        self._transport = transport
        self._batch_id = batch_id
        self._after = after
        self._has_ended = False
        self.is_over = False

    async def read(self, wait_s: float) -> list[Event]:
        while True:
            page = await self._transport.events_page(self._batch_id, self._after, wait_s=wait_s)
            self._after = page.next
            events = [read_event(event) for event in page.events]
            self.is_over = any(event.index is None and event.status.terminal for event in events)
            if events:
                return events
            if self._has_ended:  # before this page was read, so nothing can follow
                self.is_over = True
                return []
            self._has_ended = (await self._transport.batch(self._batch_id)).status.terminal
            if not self._has_ended:
                return []


def _split(indices: Sequence[int]) -> Iterator[str]:
    """Yield the indices as ranges such as ``0-3,7``, in texts that fit into a URL."""
    part: list[str] = []
    length = 0
    for first, last in as_ranges(indices):
        text = show_ranges([(first, last)])
        if length + len(text) > _RANGES_LENGTH:
            yield ",".join(part)
            part, length = [], 0
        part.append(text)
        length += len(text) + 1
    if part:
        yield ",".join(part)
