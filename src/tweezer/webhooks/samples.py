"""A sample event of every type, for the documentation and for testing receivers.

The samples are about one batch of three jobs: the first is done, the second failed, the third was cancelled. The end of
the batch has a sample for each possible final status.
"""

from __future__ import annotations

import hashlib
from uuid import UUID

import msgspec

from tweezer.model.ids import job_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Fault, Result, result_json
from tweezer.model.webhooks import (
    BatchData,
    Data,
    DeviceData,
    EndpointData,
    EventMessage,
    EventType,
    JobData,
    PingData,
    ResultLink,
    ScheduleData,
    timestamp,
)

_BATCH = UUID("0199f6bd-2f7e-8b1d-9f04-a1b2c3000000")
_ENDPOINT = "5b0e6a4e-3c0f-4a57-9d0c-6f7d2f1c8e11"
_SCHEDULE = "c2b7d9f0-51c4-4f0e-8a86-2f6e0d3b9a17"
_SUBMITTED_MS = 1_760_780_467_230
_BEGUN_MS = 250  # after the submission
_TAGS = ("calibration", "week 42")


def sample(type_: str) -> EventMessage:
    """Return the sample of this type. Raises ValueError for an unknown type."""
    after_ms, data = _SAMPLES[EventType(type_)]
    time_us = (_SUBMITTED_MS + after_ms) * 1000
    return EventMessage(f"{_subject(data)}:{time_us}", type_, timestamp(time_us), msgspec.to_builtins(data))


def _subject(data: Data) -> str:
    match data:
        case JobData() | BatchData():
            return f"{data.batch_id}:{data.sequence}"
        case DeviceData():
            return data.device
        case ScheduleData():
            return f"{data.schedule_id}.{_SUBMITTED_MS // 1000}"
        case EndpointData() | PingData():
            return data.endpoint_id


def _schedule(code: str, reason: str, *, tick_at: str | None = None, missed: int = 0) -> tuple[int, Data]:
    return 0, ScheduleData("default", _SCHEDULE, "nightly calibration", code, reason, tick_at, missed)


def _at(after_ms: int) -> str:
    return timestamp((_SUBMITTED_MS + after_ms) * 1000)


def _batch(
    sequence: int,
    after_ms: int,
    status: BatchStatus,
    previous: BatchStatus | None,
    jobs: tuple[int, int, int, int, int],
    *errors: Fault,
    open: bool = True,
    is_started: bool = True,
) -> tuple[int, Data]:
    data = BatchData(
        project_id="default",
        batch_id=str(_BATCH),
        name="rabi scan",
        status=status,
        previous_status=previous,
        sequence=sequence,
        previous_sequence=sequence - 1 or None,
        device="EMU_FREE",
        tags=_TAGS,
        open=open and not status.terminal,
        jobs=dict(zip(JobStatus, jobs, strict=True)),
        created_at=_at(0),
        started_at=_at(_BEGUN_MS) if is_started and after_ms >= _BEGUN_MS else None,
        ended_at=_at(after_ms) if status.terminal else None,
        errors=errors,
    )
    return after_ms, data


def _job(
    index: int,
    sequence: int,
    after_ms: int,
    status: JobStatus,
    *errors: Fault,
    begun_ms: int | None = None,
    result: ResultLink | None = None,
) -> tuple[int, Data]:
    data = JobData(
        project_id="default",
        batch_id=str(_BATCH),
        job_id=str(job_id(_BATCH, index)),
        index=index,
        status=status,
        previous_status=JobStatus.PENDING if begun_ms in (None, after_ms) else JobStatus.RUNNING,
        sequence=sequence,
        previous_sequence=sequence - 1,
        device="EMU_FREE",
        tags=_TAGS,
        runs=100,
        created_at=_at(0),
        started_at=None if begun_ms is None else _at(begun_ms),
        ended_at=_at(after_ms) if status.terminal else None,
        errors=errors,
        result=result,
    )
    return after_ms, data


_COUNTER = {"00": 4, "01": 47, "10": 49}
_BODY = result_json(Result(_COUNTER))
_RESULT = ResultLink(
    link=f"https://tweezer.example.org/api/v1/jobs/{_BATCH}/results?issued=1760780468&expires=1761385268"
    "&signature=4c2b8f7a0d1e93b65f08c7d2a94e61b3507fda2c8e16b94d03a75ce8f1296b4d",
    link_expires_at=timestamp(1_761_385_268_000_000),
    size=len(_BODY),
    sha256=hashlib.sha256(_BODY).hexdigest(),
    counter=_COUNTER,
)
_OF_JOB = Fault("user", "the amplitude exceeds the maximum of channel rydberg_global", "variables.omega")
_OF_BATCH = Fault("user", "the register has two atoms at the same place", "sequence")
_PENDING, _RUNNING, _PAUSED = BatchStatus.PENDING, BatchStatus.RUNNING, BatchStatus.PAUSED
_OVER = (0, 0, 1, 1, 1)

_SAMPLES: dict[EventType, tuple[int, Data]] = {
    EventType.BATCH_CREATED: _batch(1, 0, _PENDING, None, (3, 0, 0, 0, 0)),
    EventType.BATCH_RUNNING: _batch(3, _BEGUN_MS, _RUNNING, _PENDING, (2, 1, 0, 0, 0)),
    EventType.BATCH_PAUSED: _batch(7, 2000, _PAUSED, _RUNNING, (1, 0, 1, 1, 0)),
    EventType.BATCH_RESUMED: _batch(8, 62_000, _RUNNING, _PAUSED, (1, 0, 1, 1, 0)),
    EventType.BATCH_IDLE: _batch(10, 310_000, _RUNNING, _RUNNING, _OVER),
    EventType.BATCH_LATE: _batch(2, 60_000, _PENDING, _PENDING, (3, 0, 0, 0, 0), is_started=False),
    EventType.BATCH_DONE: _batch(11, 330_000, BatchStatus.DONE, _RUNNING, _OVER),
    EventType.BATCH_ERROR: _batch(5, 180, BatchStatus.ERROR, _PENDING, (0, 0, 0, 3, 0), _OF_BATCH),
    EventType.BATCH_CANCELED: _batch(11, 330_000, BatchStatus.CANCELED, _RUNNING, _OVER),
    EventType.BATCH_TIMED_OUT: _batch(11, 370_000, BatchStatus.TIMED_OUT, _RUNNING, _OVER),
    EventType.JOB_RUNNING: _job(0, 2, _BEGUN_MS, JobStatus.RUNNING, begun_ms=_BEGUN_MS),
    EventType.JOB_DONE: _job(0, 4, 900, JobStatus.DONE, begun_ms=_BEGUN_MS, result=_RESULT),
    EventType.JOB_ERROR: _job(1, 6, 1600, JobStatus.ERROR, _OF_JOB, begun_ms=905),
    EventType.JOB_CANCELED: _job(2, 9, 70_000, JobStatus.CANCELED),
    EventType.DEVICE_UP: (0, DeviceData("FRESNEL", "up")),
    EventType.DEVICE_DOWN: (0, DeviceData("FRESNEL", "down", "the QPU reports that it is not operational")),
    EventType.DEVICE_PAUSED: (0, DeviceData("FRESNEL", "paused", "calibration", _at(7_200_000))),
    EventType.ENDPOINT_DISABLED: (
        0,
        EndpointData(_ENDPOINT, "https://hooks.example.org/tweezer", "the receiver responded with 410 Gone", _at(0)),
    ),
    EventType.SCHEDULE_FAILED: _schedule(
        "invalid", "device: there is no device 'FRESNEL'; the devices are EMU_FREE", tick_at=_at(0)
    ),
    EventType.SCHEDULE_SKIPPED: _schedule(
        "overlap", f"batch {_BATCH} of the last tick has not ended", tick_at=_at(0), missed=0
    ),
    EventType.SCHEDULE_STOPPED: _schedule("stopped", "its creator, user alice, is disabled"),
    EventType.PING: (0, PingData(_ENDPOINT)),
}
