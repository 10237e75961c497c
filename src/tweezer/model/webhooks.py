"""What webhooks and the feed of events say: the types of events and the JSON of each.

The envelope is that of Standard Webhooks 1.0: ``type``, ``timestamp`` (ISO 8601, of the event), ``data``. ``data`` is
thin: which batch or job, its status, and where the rest is to be had. Fields may be added to a version, never taken
away or changed; a change of that kind is a new version.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Fault

VERSION = 1
"""Of the payloads, as in the name of their JSON Schema."""

BODY_MAX_BYTES = 20_000


class EventType(StrEnum):
    """All types of events."""

    BATCH_CREATED = "batch.created"
    BATCH_RUNNING = "batch.running"
    BATCH_PAUSED = "batch.paused"
    BATCH_RESUMED = "batch.resumed"
    BATCH_IDLE = "batch.idle"
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
    PING = "ping"


USUAL_TYPES = frozenset(it for it in EventType if it.startswith("batch.")) | {
    EventType.JOB_DONE,
    EventType.JOB_ERROR,
    EventType.JOB_CANCELED,
}
"""What is sent to the ``webhook`` of a batch, and to an endpoint that names no types."""


class ResultLink(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the result of a job is.

    link: absolute, signed, good without a credential until ``link_expires_at``. size, sha256: of the body that the
    link answers with, in bytes and hexadecimal; with ``content_encoding`` gzip, of the body as it is sent to who
    accepts gzip. counter: bitstring to shots, where it is small.
    """

    link: str
    link_expires_at: str
    size: int
    sha256: str
    content_encoding: str = "identity"
    counter: dict[str, int] | None = None


class JobData(msgspec.Struct, frozen=True):
    """``data`` of ``job.*``.

    sequence counts the events of the batch; previous_sequence is that of the event of this batch before it that this
    receiver was sent (null: none): if another was seen last, one is missing. Times are ISO 8601, UTC.
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
    created_at: str
    started_at: str | None
    ended_at: str | None
    errors: tuple[Fault, ...] = ()
    result: ResultLink | None = None


class BatchData(msgspec.Struct, frozen=True):
    """``data`` of ``batch.*``. jobs: how many there are in each status, at the time it was written down."""

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
    created_at: str
    started_at: str | None
    ended_at: str | None
    errors: tuple[Fault, ...] = ()


class DeviceData(msgspec.Struct, frozen=True):
    """``data`` of ``device.*``. reason: for people. until: ISO 8601, if it is known."""

    device: str
    status: str
    reason: str | None = None
    until: str | None = None


class EndpointData(msgspec.Struct, frozen=True):
    """``data`` of ``endpoint.disabled``. url: without its query. reason: for people."""

    endpoint_id: str
    url: str
    reason: str
    disabled_at: str


class PingData(msgspec.Struct, frozen=True):
    """``data`` of ``ping``, which is sent on demand."""

    endpoint_id: str


Data = JobData | BatchData | DeviceData | EndpointData | PingData


class Told(msgspec.Struct, frozen=True):
    """An event as receivers are told it. id: the same in webhooks, in the feed and in the stream.

    As a webhook the id is the header ``webhook-id``; :func:`envelope` makes the body.
    """

    id: str
    type: str
    timestamp: str
    data: dict[str, Any]


def envelope(type_: str, timestamp: str, data: Data | dict[str, Any] | msgspec.Raw) -> bytes:
    """The body of a webhook: ``{"type", "timestamp", "data"}``."""
    return msgspec.json.encode({"type": type_, "timestamp": timestamp, "data": data})


def data_type(type_: str) -> type[Data]:
    """The struct of ``data`` of events of a type. Raises KeyError for a type that there is not."""
    return _DATA[type_.partition(".")[0]]


_DATA: dict[str, type[Data]] = {
    "job": JobData,
    "batch": BatchData,
    "device": DeviceData,
    "endpoint": EndpointData,
    "ping": PingData,
}
