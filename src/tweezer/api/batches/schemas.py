"""What the API answers with: Pasqal's field names, and a few of ours beside them.

Which fields the public clients require is stated in the reference of their API; both ``open`` and
``complete``, and every status in the counts, are among them. Times are ISO 8601, UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, Self, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_jsonable_python

from tweezer.api.http.envelope import Envelope
from tweezer.model.cancels import CancelOutcome
from tweezer.model.events import Event
from tweezer.model.ids import job_id
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import Result
from tweezer.store.records import BatchRecord, JobRecord

T = TypeVar("T")

JOB_IDS_MAX = 1000
"""A batch of more jobs is shown without their ids: whoever asks for its status again and again would get them too."""

_BATCH_ID = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"
_JOB_ID = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000003"
_LATER, _SOON, _NOW = "2026-11-22T10:00:04.120000Z", "2026-11-22T10:00:02Z", "2026-11-22T10:00:00.250000Z"
_US = 1795341602000000
_COUNTS = {"PENDING": 16, "RUNNING": 2, "DONE": 2, "ERROR": 0, "CANCELED": 0}

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


def _job_ids(record: BatchRecord) -> list[UUID] | None:
    if record.jobs > JOB_IDS_MAX:
        return None
    return [job_id(record.id, index) for index in range(record.jobs)]


def _readable(values: dict[str, Any] | None) -> dict[str, Any] | None:
    """Values as JSON can say them: producers may send others (NaN, bytes), which are written as they best can."""
    if not values:
        return None
    plain: dict[str, Any] = to_jsonable_python(values, bytes_mode="base64", inf_nan_mode="null", fallback=str)
    return plain


class Schema(BaseModel):
    """The base of all."""

    model_config = ConfigDict(frozen=True)


class CancelAttempt(Schema):
    """A request to end a job."""

    at: datetime = Field(examples=[_LATER])
    by: str = Field(
        description="Who asked: a user and the id of the key; `user@host` of who used the library, or a name that was "
        "given; `timeout`: the job's own limit.",
        examples=["alice (key k3v9q2m7x4ab)"],
    )


class EmbeddedJob(Schema):
    """A job within its batch: without its sequence, which ``GET /api/v2/jobs/{job_id}`` has."""

    id: UUID = Field(examples=[_JOB_ID])
    batch_id: UUID = Field(examples=[_BATCH_ID])
    parent_id: str | None = Field(None, description="The job that this one repeats.", examples=[None])
    project_id: str = Field(examples=["default"])
    status: JobStatus = Field(examples=["RUNNING"])
    runs: int = Field(
        description="Number of shots; of a job that was submitted without, those of its batch's backend configuration.",
        examples=[100],
    )
    variables: dict[str, Any] | None = Field(
        description="Values of the sequence's variables; null when it was given none.", examples=[{"omega": 6.0}]
    )
    creation_order: Count = Field(description="Index of the job in its batch, from 0.", examples=[3])
    errors: list[str] = Field(description="Why it failed, for people; empty otherwise.", examples=[[]])
    progress: Annotated[int, Field(ge=0, le=100)] | None = Field(
        description="Percent of the execution; null while the emulator does not tell.", examples=[40]
    )
    created_at: datetime = Field(examples=[_NOW])
    updated_at: datetime = Field(description="When it last changed.", examples=[_LATER])
    start_timestamp: datetime | None = Field(description="When its (last) execution began.", examples=[_SOON])
    end_timestamp: datetime | None = Field(description="When it ended.", examples=[None])
    stage: Stage | None = Field(
        description="What is being done with it, finer than the status; null when it has ended.", examples=["on_device"]
    )
    stage_since: datetime | None = Field(description="Since when it is in its stage.", examples=[_LATER])
    attempt: Count = Field(description="How often its execution began.", examples=[1])
    queue_s: Seconds | None = Field(description="Seconds from its submit to its (last) start.", examples=[1.75])
    preparation_s: Seconds | None = Field(
        description="Seconds that its batch took to be prepared for it.", examples=[0.31]
    )
    device_s: Seconds | None = Field(description="Seconds on the device or emulator.", examples=[None])
    slurm_job_id: str | None = Field(None, description="Always null here.", examples=[None])
    cancel_outcome: CancelOutcome | None = Field(
        None,
        description="What its cancel did, once it has ended: `prevented` (nothing of it ran), `stopped`, `too_late` "
        "(its end came first) or `unconfirmed` (nobody knows whether it stopped). Null without a cancel.",
        examples=[None],
    )

    @classmethod
    def fields_of(cls, record: JobRecord) -> dict[str, Any]:
        over = record.status.terminal
        return {
            "id": record.id,
            "batch_id": record.batch_id,
            "parent_id": record.spec.parent_id,
            "project_id": record.project,
            "status": record.status,
            "runs": record.spec.runs or record.spec.runs_shown or 1,
            "variables": _readable(record.spec.variables),
            "creation_order": record.index,
            "errors": [str(fault) for fault in record.faults],
            "progress": percent(record),
            "created_at": record.created,
            "updated_at": record.updated,
            "start_timestamp": record.started,
            "end_timestamp": record.ended,
            "stage": None if over else record.stage,
            "stage_since": None if over else record.stage_since,
            "attempt": record.attempt,
            "queue_s": record.queue_s,
            "preparation_s": record.preparation_s,
            "device_s": record.device_s,
            "slurm_job_id": None,
            "cancel_outcome": record.cancel_outcome,
        }

    @classmethod
    def of(cls, record: JobRecord) -> Self:
        return cls(**cls.fields_of(record))


class Job(EmbeddedJob):
    """A job as it stands."""

    sequence: str | None = Field(
        description="The job's own serialised sequence; null when it runs its batch's.", examples=[None]
    )
    logs_link: str | None = Field(None, description="Always null: executions keep no logs.", examples=[None])
    cancel_attempts: list[CancelAttempt] = Field(
        [], description="Who asked for its end, the first first; as far as that was noted."
    )

    @classmethod
    def fields_of(cls, record: JobRecord) -> dict[str, Any]:
        return super().fields_of(record) | {
            "sequence": record.spec.sequence,
            "logs_link": None,
            "cancel_attempts": [{"at": attempt.at, "by": attempt.by} for attempt in record.cancels],
        }


class ListedBatch(Schema):
    """A batch of a list: without its sequence and its jobs."""

    id: UUID = Field(examples=[_BATCH_ID])
    parent_id: str | None = Field(description="The batch that this one repeats.", examples=[None])
    project_id: str = Field(examples=["default"])
    user_id: str = Field(description="Empty while nobody is known to have submitted it.", examples=[""])
    name: str | None = Field(examples=["antiferromagnet"])
    status: BatchStatus = Field(examples=["RUNNING"])
    open: bool = Field(description="Whether more jobs may come.", examples=[False])
    complete: bool = Field(description="The opposite of `open`, for older clients.", examples=[True])
    device_type: str = Field(description="Name of the device.", examples=["EMU_FREE"])
    device_status: str | None = Field(None, description="Always null: `GET /api/v1/devices` has it.", examples=[None])
    priority: float | None = Field(None, description="Always null: see `queue_priority`.", examples=[None])
    queue_priority: str = Field(examples=["MEDIUM"])
    tags: list[str] = Field(examples=[["sweep"]])
    webhook: str | None = Field(examples=[None])
    configuration: dict[str, Any] | None = Field(description="Options of the emulator, the older way.", examples=[None])
    backend_configuration: str | None = Field(
        description="Pulser's `EmulationConfig` as a JSON string.", examples=[None]
    )
    errors: list[str] = Field(description="Why the batch could not run; empty otherwise.", examples=[[]])
    created_at: datetime = Field(examples=[_NOW])
    updated_at: datetime = Field(examples=[_LATER])
    start_datetime: datetime | None = Field(description="When its first job began.", examples=[_SOON])
    end_datetime: datetime | None = Field(examples=[None])
    jobs_count: Count = Field(examples=[20])
    jobs_count_per_status: dict[JobStatus, Count] = Field(description="Every status is there.", examples=[_COUNTS])
    idle_s: Seconds = Field(
        description="Seconds for which it held a QPU without having work for it, as an open batch may.", examples=[0.0]
    )

    @classmethod
    def fields_of(cls, record: BatchRecord) -> dict[str, Any]:
        doc = record.doc
        return {
            "id": record.id,
            "parent_id": doc.parent_id,
            "project_id": record.project,
            "user_id": doc.user or "",
            "name": doc.name,
            "status": record.status,
            "open": record.open,
            "complete": not record.open,
            "device_type": record.device,
            "device_status": None,
            "priority": None,
            "queue_priority": record.priority.value,
            "tags": list(doc.tags),
            "webhook": doc.webhook,
            "configuration": _readable(doc.configuration),
            "backend_configuration": doc.backend_configuration,
            "errors": [] if record.fault is None else [str(record.fault)],
            "created_at": record.created,
            "updated_at": record.updated,
            "start_datetime": record.started,
            "end_datetime": record.ended,
            "jobs_count": record.jobs,
            "jobs_count_per_status": record.counts,
            "idle_s": record.idle_s,
        }


class Batch(ListedBatch):
    """A batch as it stands now."""

    sequence_builder: str | None = Field(
        description="The serialised Pulser sequence; null when each job has its own.", examples=['{"version":"1"}']
    )
    jobs: list[EmbeddedJob] = Field(
        description="All jobs in the order of their creation when there are at most 100; empty when there are more, "
        "which makes clients ask for them separately."
    )
    job_ids: list[UUID] | None = Field(
        description="Of all jobs in the order of their creation, when there are at most 1,000; else null.",
        examples=[[_JOB_ID]],
    )
    child_ids: list[UUID] = Field(description="The batches that repeat this one.", examples=[[]])

    @classmethod
    def of(cls, record: BatchRecord, jobs: Sequence[JobRecord]) -> Batch:
        return cls(**cls.all_fields_of(record, jobs))

    @classmethod
    def all_fields_of(cls, record: BatchRecord, jobs: Sequence[JobRecord]) -> dict[str, Any]:
        return cls.fields_of(record) | {
            "sequence_builder": record.doc.sequence,
            "jobs": [EmbeddedJob.fields_of(job) for job in jobs],
            "job_ids": _job_ids(record),
            "child_ids": record.children,
        }


class OlderJob(Job):
    """A job as version 1 of the API has it."""

    result: dict[str, int] | None = Field(
        None, description="The counter of its result, by its own route.", examples=[{"0101": 61, "1010": 39}]
    )
    full_result: dict[str, Any] | None = Field(
        None, description="All of its result, by its own route.", examples=[None]
    )

    @classmethod
    def fields_of(cls, record: JobRecord) -> dict[str, Any]:
        return super().fields_of(record) | {"result": None, "full_result": None}

    @classmethod
    def fields_with_result(cls, record: JobRecord, result: Result | None) -> dict[str, Any]:
        fields = cls.fields_of(record)
        if result is None:
            return fields
        return fields | {"result": result.counter, "full_result": result}


class OlderBatch(Batch):
    """A batch as version 1 of the API has it."""

    jobs: list[OlderJob] = Field(  # type: ignore[assignment]  # each is an EmbeddedJob
        description="As in version 2, with fields for results, which are null here."
    )

    @classmethod
    def all_fields_of(cls, record: BatchRecord, jobs: Sequence[JobRecord]) -> dict[str, Any]:
        return super().all_fields_of(record, jobs) | {"jobs": [OlderJob.fields_of(job) for job in jobs]}


class BatchState(Schema):
    """The status of a batch, for who waits. A paused batch has the status that it would have were it not
    paused (``PENDING`` until its first job begins, then ``RUNNING``), because Pasqal's clients know no other
    here; ``paused`` tells."""

    id: UUID = Field(examples=[_BATCH_ID])
    status: BatchStatus = Field(
        description="`PENDING`, `RUNNING`, `DONE`, `ERROR`, `CANCELED` or `TIMED_OUT`; never `PAUSED`.",
        examples=["RUNNING"],
    )
    paused: bool = Field(description="Whether the batch is paused: no job of it is started.", examples=[False])
    open: bool = Field(examples=[False])
    updated_at: datetime = Field(examples=[_LATER])
    jobs_count: Count = Field(examples=[20])
    jobs_count_per_status: dict[JobStatus, Count] = Field(description="Every status is there.", examples=[_COUNTS])

    @classmethod
    def of(cls, record: BatchRecord) -> BatchState:
        paused = record.status is BatchStatus.PAUSED
        unpaused = BatchStatus.PENDING if record.started is None else BatchStatus.RUNNING
        return cls(
            id=record.id,
            status=unpaused if paused else record.status,
            paused=paused,
            open=record.open,
            updated_at=record.updated,
            jobs_count=record.jobs,
            jobs_count_per_status=record.counts,
        )


class JobState(Schema):
    """The status of a job, for who waits."""

    id: UUID = Field(examples=[_JOB_ID])
    batch_id: UUID = Field(examples=[_BATCH_ID])
    status: JobStatus = Field(examples=["DONE"])
    progress: Annotated[int, Field(ge=0, le=100)] | None = Field(examples=[100])
    stage: Stage | None = Field(examples=[None])
    attempt: Count = Field(examples=[1])

    @classmethod
    def of(cls, record: JobRecord) -> JobState:
        return cls(
            id=record.id,
            batch_id=record.batch_id,
            status=record.status,
            progress=percent(record),
            stage=None if record.status.terminal else record.stage,
            attempt=record.attempt,
        )


class ResultsLink(Schema):
    """Where the results of a job are."""

    results_link: str | None = Field(
        description="Absolute URL; null while there is no result, and for a job that will never have one.",
        examples=[f"http://127.0.0.1:8000/api/v1/jobs/{_JOB_ID}/results"],
    )


class ResultsLinksOfBatch(Schema):
    """Where the results of the jobs of a batch are."""

    results_links: dict[UUID, str] = Field(
        description="Absolute URL by job.",
        examples=[{_JOB_ID: f"http://127.0.0.1:8000/api/v1/jobs/{_JOB_ID}/results"}],
    )
    errors: dict[UUID, str] = Field(description="Why there is none, by job.", examples=[{}])


class CanceledBatches(Schema):
    """What became of the batches that were to be cancelled."""

    batches: list[ListedBatch] = Field(description="Those that were, as they stand.")
    errors: dict[UUID, str] = Field(
        description="Why one was not, by batch.", examples=[{_BATCH_ID: f"batch {_BATCH_ID} has ended"}]
    )


class CanceledJobs(Schema):
    """What became of the jobs that were to be cancelled."""

    jobs: list[EmbeddedJob] = Field(description="Those that were, or are asked to stop, as they stand.")
    errors: dict[UUID, str] = Field(
        description="Why one was not, by job.", examples=[{_JOB_ID: f"job {_JOB_ID} has ended"}]
    )


class JobResult(Schema):
    """What a job measured. Sent as it is, without an envelope."""

    counter: dict[str, int] | None = Field(
        description="Bitstring → number of shots, bits in the order of the register; null when the configuration "
        "asked for no final bitstrings.",
        examples=[{"0101": 61, "1010": 39}],
    )
    serialised_results: str | None = Field(
        None, description="Pulser's `Results.to_abstract_repr()`; absent when there is none.", examples=["{}"]
    )
    provenance: dict[str, Any] | None = Field(
        None,
        description="Backend, versions, configuration and seed: what is needed to compute it again.",
        examples=[{"backend": "qutip", "versions": {"pulser": "1.9.1"}, "seed": 7}],
    )


class Pagination(Schema):
    """Where a page is in its list."""

    total: Count = Field(description="Rows on all pages.", examples=[41])
    start: Count = Field(description="Index of the first row of the page.", examples=[0])
    end: Count = Field(description="Index behind the last row: the offset of the next page.", examples=[20])


class Page(Envelope[list[T]], Generic[T]):
    """A page of a list."""

    pagination: Pagination


class Transition(Schema):
    """One change of a job's status."""

    event_id: str = Field(description="The same wherever the event is told.", examples=[f"{_BATCH_ID}:5:{_US}"])
    sequence_number: Count = Field(description="Counts up within the batch.", examples=[5])
    type: str = Field(examples=["job.running"])
    previous_status: JobStatus = Field(examples=["PENDING"])
    status: JobStatus = Field(examples=["RUNNING"])
    timestamp: datetime = Field(examples=[_SOON])

    @classmethod
    def of(cls, event: Event) -> Transition:
        assert event.previous is not None
        return cls(
            event_id=event.id,
            sequence_number=event.sequence,
            type=event.type,
            previous_status=JobStatus(event.previous),
            status=JobStatus(event.status),
            timestamp=event.time,
        )


class Health(Schema):
    """How the API itself is."""

    health: str = Field(examples=["ok"])


def percent(record: JobRecord) -> int | None:
    """How far a job is, in percent, if that is known."""
    match record.status:
        case JobStatus.DONE:
            return 100
        case JobStatus.PENDING:
            return 0
        case _:
            return None if record.progress is None else min(max(round(record.progress * 100), 0), 100)
