"""The event types of webhooks and of the feed, and the JSON of each.

The envelope is that of Standard Webhooks 1.0: ``type``, ``timestamp`` (ISO 8601, of the event), ``data``. ``data`` is
small: the batch or job, its status, and a link to the result. Fields may be added to a version; removing or changing
one requires a new version.
"""

from __future__ import annotations

import functools
import time
from bisect import bisect_left
from collections.abc import Collection, Iterator
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from tweezer.model.events import Event, Notice
from tweezer.model.ids import job_id
from tweezer.model.json_schemas import schema_components
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Fault

VERSION = 1
"""Version of the payloads, as in the name of their JSON Schema."""

BODY_MAX_BYTES = 20_000
"""Every body is shorter than this."""

COUNTER_MAX_BYTES = 4096
"""Maximum size, as JSON, of a counter in ``job.done``; a larger one is available through the link only."""

_ENVELOPE_MAX_BYTES = 200  # of the envelope without data, and of a sequence number in place of null
_NAME_MAX, _MESSAGE_MAX, _SHORT_MAX = 255, 2000, 300  # characters

_CHARACTER_BYTES, _COUNT_BYTES = 6, 30  # of an escaped character, and of a number with its quotes and separators

D = TypeVar("D", bound="JobData | BatchData")

Time = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]


class EventType(StrEnum):
    """All types of events."""

    BATCH_CREATED = "batch.created"
    BATCH_RUNNING = "batch.running"
    BATCH_PAUSED = "batch.paused"
    BATCH_RESUMED = "batch.resumed"
    BATCH_IDLE = "batch.idle"
    BATCH_LATE = "batch.late"
    BATCH_DONE = "batch.done"
    BATCH_ERROR = "batch.error"
    BATCH_CANCELED = "batch.canceled"
    BATCH_TIMED_OUT = "batch.timed_out"
    JOB_RUNNING = "job.running"
    JOB_DONE = "job.done"
    JOB_ERROR = "job.error"
    JOB_CANCELED = "job.canceled"
    DEVICE_UP = "device.up"
    DEVICE_DOWN = "device.down"
    DEVICE_PAUSED = "device.paused"
    ENDPOINT_DISABLED = "endpoint.disabled"
    SCHEDULE_FAILED = "schedule.failed"
    SCHEDULE_SKIPPED = "schedule.skipped"
    SCHEDULE_STOPPED = "schedule.stopped"
    PING = "ping"


USUAL_TYPES = frozenset(it for it in EventType if it.startswith("batch.")) | {
    EventType.JOB_DONE,
    EventType.JOB_ERROR,
    EventType.JOB_CANCELED,
    EventType.ENDPOINT_DISABLED,
    EventType.SCHEDULE_FAILED,
    EventType.SCHEDULE_SKIPPED,
    EventType.SCHEDULE_STOPPED,
}
"""The types that are sent to the ``webhook`` of a batch, and to an endpoint that does not name any."""


class ResultLink(msgspec.Struct, frozen=True, omit_defaults=True):
    """A link to the result of a job.

    link: an absolute, signed URL, valid without a credential until ``link_expires_at``. size, sha256: size in bytes
    and digest (hexadecimal) of the response body; if ``content_encoding`` is gzip, of the gzipped body that clients
    which accept gzip receive. counter: shots by bitstring, if it is small.
    """

    link: str
    link_expires_at: Time
    size: int
    sha256: str
    content_encoding: str = "identity"
    counter: dict[str, int] | None = None


class JobData(msgspec.Struct, frozen=True):
    """``data`` of ``job.*``.

    sequence: number of the event within the batch. previous_sequence: number of the batch's previous event that was
    sent to this receiver (null for the first): if it is not the last one received, an event is missing. Statuses and
    times are those of the event; times are ISO 8601 in UTC. tags: of the batch. errors: of a job that has ended.
    result: of a job that is DONE.
    """

    project_id: str
    batch_id: str
    job_id: str
    index: int
    status: JobStatus
    previous_status: JobStatus
    sequence: int
    previous_sequence: int | None
    device: str
    tags: tuple[str, ...]
    runs: int | None
    created_at: Time
    started_at: Time | None
    ended_at: Time | None
    errors: tuple[Fault, ...] = ()
    result: ResultLink | None = None


class BatchData(msgspec.Struct, frozen=True):
    """``data`` of ``batch.*``.

    Statuses and times are those of the event. open, tags and jobs (the number of jobs in each status) are those of
    the moment when the delivery was written, shortly after. sequence, previous_sequence: as in JobData.
    """

    project_id: str
    batch_id: str
    name: str | None
    status: BatchStatus
    previous_status: BatchStatus | None
    sequence: int
    previous_sequence: int | None
    device: str
    tags: tuple[str, ...]
    open: bool
    jobs: dict[JobStatus, int]
    created_at: Time
    started_at: Time | None
    ended_at: Time | None
    errors: tuple[Fault, ...] = ()


class DeviceData(msgspec.Struct, frozen=True):
    """``data`` of ``device.*``. reason: for people. until: ISO 8601, if known."""

    device: str
    status: Literal["up", "down", "paused", "maintenance"]
    reason: str | None = None
    until: Time | None = None


class EndpointData(msgspec.Struct, frozen=True):
    """``data`` of ``endpoint.disabled``. url: without its query. reason: for people."""

    endpoint_id: str
    url: str
    reason: str
    disabled_at: Time


class ScheduleData(msgspec.Struct, frozen=True):
    """``data`` of ``schedule.*``.

    name: of the schedule. code: why, for programs: the code of an error, ``overlap``, ``missed`` or ``stopped``.
    reason: the same for people. tick_at: the time of the tick; null if the schedule stopped. missed: number of earlier
    ticks that were left out with it.
    """

    project_id: str
    schedule_id: str
    name: str
    code: str
    reason: str
    tick_at: Time | None = None
    missed: int = 0


class PingData(msgspec.Struct, frozen=True):
    """``data`` of ``ping``, which is sent on demand."""

    endpoint_id: str


Data = JobData | BatchData | DeviceData | EndpointData | ScheduleData | PingData


class EventMessage(msgspec.Struct, frozen=True):
    """An event in the form that receivers get. id: the same in webhooks, in the feed and in the stream.

    In a webhook the id is the header ``webhook-id``; :func:`envelope` makes the body.
    """

    id: str
    type: str
    timestamp: str
    data: dict[str, Any]


def describe_event(event: Event, project: str) -> EventMessage:
    """Convert a transition for the feed.

    ``data`` has the fields of JobData or BatchData that the event contains, and the worker and lane that held the job.
    For a job that is pending again it also has the reason, and the error of its attempt.
    """
    data: dict[str, Any] = {"project_id": project, "batch_id": str(event.batch_id)}
    if event.index is not None:
        data |= {"job_id": str(job_id(event.batch_id, event.index)), "index": event.index}
    data |= {"status": event.status, "previous_status": event.previous, "sequence": event.sequence}
    if event.worker is not None:
        data |= {"worker": event.worker, "lane": event.lane}
    if event.reason is not None:
        data["reason"] = event.reason
    if event.fault is not None:
        data["error"] = str(event.fault)
    if event.jobs is not None:
        data["jobs"] = dict.fromkeys(JobStatus, 0) | {JobStatus.PENDING: event.jobs}
    return EventMessage(event.id, event.type, timestamp(event.time_us), data)


def describe_notice(notice: Notice) -> EventMessage:
    """Convert a notice for the feed; its ``data`` is the same in a webhook."""
    return EventMessage(notice.id, notice.type, timestamp(notice.time_us), msgspec.json.decode(notice.data))


def timestamp(time_us: int) -> str:
    """Format microseconds since 1970 in ISO 8601: ``2025-10-18T09:41:07.250000Z``."""
    seconds, microseconds = divmod(time_us, 1_000_000)
    return f"{_second(seconds)}.{microseconds:06d}Z"


def format_time(moment: datetime) -> str:
    """Format a UTC time like :func:`timestamp`."""
    return f"{moment.isoformat(timespec='microseconds')[:-6]}Z"


@functools.lru_cache(maxsize=1024)
def _second(seconds: int) -> str:
    """Format whole seconds; cached, because most timestamps fall within a few seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def envelope(type_: str, timestamp: str, data: Data | dict[str, Any] | msgspec.Raw) -> bytes:
    """Return the body of a webhook: ``{"type", "timestamp", "data"}``."""
    return msgspec.json.encode({"type": type_, "timestamp": timestamp, "data": data})


def body(type_: str, timestamp: str, data: JobData | BatchData, previous_sequence: int | None) -> str:
    """Return the body for a receiver that was last sent ``previous_sequence``, as the ledger stores it."""
    return envelope(type_, timestamp, msgspec.structs.replace(data, previous_sequence=previous_sequence)).decode()


def fit(data: D) -> D:
    """Shorten the data until its body has fewer than BODY_MAX_BYTES.

    In this order: drop the counter, shorten the messages of errors, keep the first error only, shorten the name, drop
    tags. Data that fits is returned as it is.
    """
    if _fits(data):
        return data
    if isinstance(data, JobData) and data.result is not None:
        data = msgspec.structs.replace(data, result=msgspec.structs.replace(data.result, counter=None))
    for most in (_MESSAGE_MAX, _SHORT_MAX):
        if not _fits(data):
            data = msgspec.structs.replace(data, errors=tuple(_shortened(fault, most) for fault in data.errors))
    if not _fits(data):
        data = msgspec.structs.replace(data, errors=data.errors[:1])
    if isinstance(data, BatchData) and data.name is not None and not _fits(data):
        data = msgspec.structs.replace(data, name=_cut(data.name, _NAME_MAX))
    if not _fits(data):
        tags = data.tags
        most = bisect_left(range(len(tags)), True, key=lambda last: not _fits(_with_tags(data, tags[: last + 1])))
        data = _with_tags(data, tags[:most])
    return data


def _with_tags(data: D, tags: tuple[str, ...]) -> D:
    return msgspec.structs.replace(data, tags=tags)


def _fits(data: JobData | BatchData) -> bool:
    if not data.errors and not data.tags and _is_small(data):
        return True
    return len(msgspec.json.encode(data)) + _ENVELOPE_MAX_BYTES < BODY_MAX_BYTES


def _is_small(data: JobData | BatchData) -> bool:
    """Return whether data without errors and tags certainly fits, without encoding it."""
    if isinstance(data, BatchData):
        texts: Collection[str] = (data.name or "",)
    else:
        texts = data.result.counter or () if data.result is not None else ()
    return _CHARACTER_BYTES * sum(map(len, texts)) + _COUNT_BYTES * len(texts) < BODY_MAX_BYTES // 2


def _shortened(fault: Fault, most: int) -> Fault:
    field = None if fault.field is None else _cut(fault.field, _SHORT_MAX)
    return Fault(_cut(fault.code, _SHORT_MAX), _cut(fault.message, most), field)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


DATA: dict[str, type[Data]] = {
    "job": JobData,
    "batch": BatchData,
    "device": DeviceData,
    "endpoint": EndpointData,
    "schedule": ScheduleData,
    "ping": PingData,
}


def schema(type_: str) -> dict[str, Any]:
    """Return the JSON Schema of the body of an event type. Raises ValueError for an unknown type."""
    whole = schemas()
    del whole["anyOf"]
    name = str(EventType(type_))
    return {**whole, "$id": f"{whole['$id']}:{name}", "$ref": f"#/$defs/{name}"}


def schemas() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of all bodies, with a definition for each event type and component."""
    references, components = schema_components(DATA.values(), ref_template="#/$defs/{name}")
    of_data = dict(zip(DATA, references, strict=True))
    bodies = {
        str(type_): {
            "type": "object",
            "required": ["type", "timestamp", "data"],
            "properties": {
                "type": {"const": str(type_)},
                "timestamp": {"type": "string", "format": "date-time"},
                "data": of_data[type_.partition(".")[0]],
            },
        }
        for type_ in EventType
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:tweezer:webhooks:v{VERSION}",
        "title": f"Webhooks of Tweezer, version {VERSION}",
        "anyOf": [{"$ref": f"#/$defs/{type_}"} for type_ in bodies],
        "$defs": {**bodies, **dict(_plain(components))},
    }


def _plain(components: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Remove the descriptions, which are written for readers of the code."""
    for name, component in components.items():
        yield name, {key: value for key, value in component.items() if key != "description"}
