"""What the API answers with: Pasqal's field names, and a few of ours beside them.

Which fields the public clients require is stated in the reference of their API; both ``open`` and
``complete``, and every status in the counts, are among them. Times are ISO 8601, UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID

import msgspec
from msgspec import Meta
from pydantic_core import to_jsonable_python

from tweezer.api.http.responses import Count, Moment, RecordResponse, Seconds, Source, doc
from tweezer.model.cancels import CancelOutcome
from tweezer.model.ids import job_id
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import Result
from tweezer.store.records import BatchRecord, JobRecord

JOB_IDS_MAX = 1000
"""A batch of more jobs is shown without their ids: whoever asks for its status again and again would get them too."""

_BATCH_ID = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"
_JOB_ID = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000003"
_US = 1795341602000000
_COUNTS = {"PENDING": 16, "RUNNING": 2, "DONE": 2, "ERROR": 0, "CANCELED": 0}

Percent = Annotated[int, Meta(ge=0, le=100)]
Counts = Annotated[dict[JobStatus, Count], Source("counts"), doc("Every status is there.", _COUNTS)]


def _job_ids(record: BatchRecord) -> list[UUID] | None:
    if record.jobs > JOB_IDS_MAX:
        return None
    return [job_id(record.id, index) for index in range(record.jobs)]


def _readable(values: dict[str, Any] | None) -> dict[str, Any] | None:
    """Convert values to JSON types: producers may send others (NaN, bytes)."""
    if not values:
        return None
    plain: dict[str, Any] = to_jsonable_python(values, bytes_mode="base64", inf_nan_mode="null", fallback=str)
    return plain


class CancelAttemptResponse(msgspec.Struct, frozen=True):
    """A request to end a job."""

    at: Moment
    by: Annotated[
        str,
        doc(
            "Who asked: a user and the id of the key; `user@host` of who used the library, or a name that was "
            "given; `timeout`: the job's own limit.",
            "alice (key k3v9q2m7x4ab)",
        ),
    ]


class EmbeddedJobResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A job within its batch: without its sequence, which ``GET /api/v2/jobs/{job_id}`` has."""

    id: Annotated[UUID, Meta(examples=[_JOB_ID])]
    batch_id: Annotated[UUID, Meta(examples=[_BATCH_ID])]
    parent_id: Annotated[str | None, doc("The job that this one repeats.", None)] = None
    project_id: Annotated[str, Meta(examples=["default"])]
    status: Annotated[JobStatus, Meta(examples=["RUNNING"])]
    runs: Annotated[
        int,
        doc("Number of shots; of a job that was submitted without, those of its batch's backend configuration.", 100),
    ]
    variables: Annotated[
        dict[str, Any] | None, doc("Values of the sequence's variables; null when it was given none.", {"omega": 6.0})
    ]
    creation_order: Annotated[Count, doc("Index of the job in its batch, from 0.", 3)]
    errors: Annotated[list[str], doc("Why it failed, for people; empty otherwise.", [])]
    progress: Annotated[Percent | None, doc("Percent of the execution; null while the emulator does not tell.", 40)]
    created_at: Moment
    updated_at: Annotated[Moment, doc("When it last changed.")]
    start_timestamp: Annotated[Moment | None, doc("When its (last) execution began.")]
    end_timestamp: Annotated[Moment | None, doc("When it ended.", None)]
    stage: Annotated[
        Stage | None, doc("What is being done with it, finer than the status; null when it has ended.", "on_device")
    ]
    stage_since: Annotated[Moment | None, doc("Since when it is in its stage.")]
    attempt: Annotated[Count, doc("How often its execution began.", 1)]
    queue_s: Annotated[Seconds | None, doc("Seconds from its submit to its (last) start.", 1.75)]
    preparation_s: Annotated[Seconds | None, doc("Seconds that its batch took to be prepared for it.", 0.31)]
    device_s: Annotated[Seconds | None, doc("Seconds on the device or emulator.", None)]
    slurm_job_id: Annotated[str | None, doc("Always null here.", None)] = None
    cancel_outcome: Annotated[
        CancelOutcome | None,
        doc(
            "What its cancel did, once it has ended: `prevented` (nothing of it ran), `stopped`, `too_late` "
            "(its end came first) or `unconfirmed` (nobody knows whether it stopped). Null without a cancel.",
            None,
        ),
    ] = None

    @classmethod
    def from_record(cls, record: JobRecord, **more: Any) -> Self:
        """Return the answer for a job; field by field, for a hundred of them are made at once."""
        over = record.status.terminal
        return cls(
            id=record.id,
            batch_id=record.batch_id,
            parent_id=record.spec.parent_id,
            project_id=record.project,
            status=record.status,
            runs=record.spec.runs or record.spec.runs_shown or 1,
            variables=_readable(record.spec.variables),
            creation_order=record.index,
            errors=[str(fault) for fault in record.faults],
            progress=get_percent(record),
            created_at=record.created,
            updated_at=record.updated,
            start_timestamp=record.started,
            end_timestamp=record.ended,
            stage=None if over else record.stage,
            stage_since=None if over else record.stage_since,
            attempt=record.attempt,
            queue_s=record.queue_s,
            preparation_s=record.preparation_s,
            device_s=record.device_s,
            cancel_outcome=record.cancel_outcome,
            **more,
        )


class JobResponse(EmbeddedJobResponse, frozen=True, kw_only=True):
    """A job as it stands."""

    sequence: Annotated[str | None, doc("The job's own serialised sequence; null when it runs its batch's.", None)]
    logs_link: Annotated[str | None, doc("Always null: executions keep no logs.", None)] = None
    cancel_attempts: Annotated[
        list[CancelAttemptResponse], doc("Who asked for its end, the first first; as far as that was noted.")
    ] = []

    @classmethod
    def from_record(cls, record: JobRecord, **more: Any) -> Self:
        attempts = [CancelAttemptResponse(attempt.at, attempt.by) for attempt in record.cancels]
        return super().from_record(record, sequence=record.spec.sequence, cancel_attempts=attempts, **more)


class ListedBatchResponse(RecordResponse, frozen=True, kw_only=True):
    """A batch of a list: without its sequence and its jobs."""

    id: Annotated[UUID, Meta(examples=[_BATCH_ID])]
    parent_id: Annotated[str | None, Source("doc.parent_id"), doc("The batch that this one repeats.", None)]
    project_id: Annotated[str, Source("project"), Meta(examples=["default"])]
    user_id: Annotated[str, doc("Empty while nobody is known to have submitted it.", "")]
    name: Annotated[str | None, Source("doc.name"), Meta(examples=["antiferromagnet"])]
    status: Annotated[BatchStatus, Meta(examples=["RUNNING"])]
    open: Annotated[bool, doc("Whether more jobs may come.", False)]
    complete: Annotated[bool, doc("The opposite of `open`, for older clients.", True)]
    device_type: Annotated[str, Source("device"), doc("Name of the device.", "EMU_FREE")]
    device_status: Annotated[str | None, doc("Always null: `GET /api/v1/devices` has it.", None)] = None
    priority: Annotated[float | None, doc("Always null: see `queue_priority`.", None)] = None
    queue_priority: Annotated[str, Source("priority.value"), Meta(examples=["MEDIUM"])]
    tags: Annotated[list[str], Source("doc.tags"), Meta(examples=[["sweep"]])]
    webhook: Annotated[str | None, Source("doc.webhook"), Meta(examples=[None])]
    configuration: Annotated[dict[str, Any] | None, doc("Options of the emulator, the older way.", None)]
    backend_configuration: Annotated[
        str | None, Source("doc.backend_configuration"), doc("Pulser's `EmulationConfig` as a JSON string.", None)
    ]
    errors: Annotated[list[str], doc("Why the batch could not run; empty otherwise.", [])]
    created_at: Annotated[Moment, Source("created")]
    updated_at: Annotated[Moment, Source("updated")]
    start_datetime: Annotated[Moment | None, Source("started"), doc("When its first job began.")]
    end_datetime: Annotated[Moment | None, Source("ended"), Meta(examples=[None])]
    jobs_count: Annotated[Count, Source("jobs"), Meta(examples=[20])]
    jobs_count_per_status: Counts
    idle_s: Annotated[
        Seconds, doc("Seconds for which it held a QPU without having work for it, as an open batch may.", 0.0)
    ]

    @classmethod
    def from_record(cls, record: BatchRecord, **computed: Any) -> Self:
        return super().from_record(
            record,
            user_id=record.doc.user or "",
            complete=not record.open,
            configuration=_readable(record.doc.configuration),
            errors=[] if record.fault is None else [str(record.fault)],
            **computed,
        )


class BatchResponse(ListedBatchResponse, frozen=True, kw_only=True):
    """A batch as it stands now."""

    _job_type: ClassVar[type[EmbeddedJobResponse]] = EmbeddedJobResponse

    sequence_builder: Annotated[
        str | None,
        Source("doc.sequence"),
        doc("The serialised Pulser sequence; null when each job has its own.", '{"version":"1"}'),
    ]
    jobs: Annotated[
        list[EmbeddedJobResponse],
        doc(
            "All jobs in the order of their creation when there are at most 100; empty when there are more, "
            "which makes clients ask for them separately."
        ),
    ]
    job_ids: Annotated[
        list[UUID] | None,
        doc("Of all jobs in the order of their creation, when there are at most 1,000; else null.", [_JOB_ID]),
    ]
    child_ids: Annotated[list[UUID], Source("children"), doc("The batches that repeat this one.", [])]

    @classmethod
    def from_records(cls, record: BatchRecord, jobs: Sequence[JobRecord]) -> Self:
        """Return the answer for a batch and its jobs."""
        shown = [cls._job_type.from_record(job) for job in jobs]
        return cls.from_record(record, jobs=shown, job_ids=_job_ids(record))


class OlderJobResponse(JobResponse, frozen=True, kw_only=True):
    """A job as version 1 of the API has it."""

    result: Annotated[
        dict[str, int] | None, doc("The counter of its result, by its own route.", {"0101": 61, "1010": 39})
    ] = None
    full_result: Annotated[dict[str, Any] | None, doc("All of its result, by its own route.", None)] = None

    @classmethod
    def with_result(cls, record: JobRecord, result: Result | None) -> Self:
        """Return the answer for a job and its result."""
        return cls.from_record(record, result=None if result is None else result.counter, full_result=result)


class OlderBatchResponse(BatchResponse, frozen=True, kw_only=True):
    """A batch as version 1 of the API has it."""

    _job_type = OlderJobResponse

    jobs: Annotated[  # type: ignore[assignment]  # each is an EmbeddedJobResponse
        list[OlderJobResponse], doc("As in version 2, with fields for results, which are null here.")
    ]


class BatchStateResponse(RecordResponse, frozen=True):
    """The status of a batch, for who waits. A paused batch has the status that it would have were it not
    paused (``PENDING`` until its first job begins, then ``RUNNING``), because Pasqal's clients know no other
    here; ``paused`` tells."""

    id: Annotated[UUID, Meta(examples=[_BATCH_ID])]
    status: Annotated[
        BatchStatus, doc("`PENDING`, `RUNNING`, `DONE`, `ERROR`, `CANCELED` or `TIMED_OUT`; never `PAUSED`.", "RUNNING")
    ]
    paused: Annotated[bool, doc("Whether the batch is paused: no job of it is started.", False)]
    open: Annotated[bool, Meta(examples=[False])]
    updated_at: Annotated[Moment, Source("updated")]
    jobs_count: Annotated[Count, Source("jobs"), Meta(examples=[20])]
    jobs_count_per_status: Counts

    @classmethod
    def from_record(cls, record: BatchRecord, **computed: Any) -> Self:
        paused = record.status is BatchStatus.PAUSED
        unpaused = BatchStatus.PENDING if record.started is None else BatchStatus.RUNNING
        return super().from_record(record, status=unpaused if paused else record.status, paused=paused, **computed)


class JobStateResponse(RecordResponse, frozen=True):
    """The status of a job, for who waits."""

    id: Annotated[UUID, Meta(examples=[_JOB_ID])]
    batch_id: Annotated[UUID, Meta(examples=[_BATCH_ID])]
    status: Annotated[JobStatus, Meta(examples=["DONE"])]
    progress: Annotated[Percent | None, Meta(examples=[100])]
    stage: Annotated[Stage | None, Meta(examples=[None])]
    attempt: Annotated[Count, Meta(examples=[1])]

    @classmethod
    def from_record(cls, record: JobRecord, **computed: Any) -> Self:
        stage = None if record.status.terminal else record.stage
        return super().from_record(record, progress=get_percent(record), stage=stage, **computed)


class ResultsLinkResponse(msgspec.Struct, frozen=True):
    """Where the results of a job are."""

    results_link: Annotated[
        str | None,
        doc(
            "Absolute URL; null while there is no result, and for a job that will never have one.",
            f"http://127.0.0.1:8000/api/v1/jobs/{_JOB_ID}/results",
        ),
    ]


class ResultsLinksOfBatchResponse(msgspec.Struct, frozen=True):
    """Where the results of the jobs of a batch are."""

    results_links: Annotated[
        dict[UUID, str], doc("Absolute URL by job.", {_JOB_ID: f"http://127.0.0.1:8000/api/v1/jobs/{_JOB_ID}/results"})
    ]
    errors: Annotated[dict[UUID, str], doc("Why there is none, by job.", {})]


class CanceledBatchesResponse(msgspec.Struct, frozen=True):
    """What became of the batches that were to be cancelled."""

    batches: Annotated[list[ListedBatchResponse], doc("Those that were, as they stand.")]
    errors: Annotated[dict[UUID, str], doc("Why one was not, by batch.", {_BATCH_ID: f"batch {_BATCH_ID} has ended"})]


class CanceledJobsResponse(msgspec.Struct, frozen=True):
    """What became of the jobs that were to be cancelled."""

    jobs: Annotated[list[EmbeddedJobResponse], doc("Those that were, or are asked to stop, as they stand.")]
    errors: Annotated[dict[UUID, str], doc("Why one was not, by job.", {_JOB_ID: f"job {_JOB_ID} has ended"})]


class JobResultResponse(msgspec.Struct, frozen=True):
    """What a job measured. Sent as it is, without an envelope."""

    counter: Annotated[
        dict[str, int] | None,
        doc(
            "Bitstring → number of shots, bits in the order of the register; null when the configuration "
            "asked for no final bitstrings.",
            {"0101": 61, "1010": 39},
        ),
    ]
    serialised_results: Annotated[
        str | None, doc("Pulser's `Results.to_abstract_repr()`; absent when there is none.", "{}")
    ] = None
    provenance: Annotated[
        dict[str, Any] | None,
        doc(
            "Backend, versions, configuration and seed: what is needed to compute it again.",
            {"backend": "qutip", "versions": {"pulser": "1.9.1"}, "seed": 7},
        ),
    ] = None


class TransitionResponse(RecordResponse, frozen=True):
    """One change of a job's status."""

    event_id: Annotated[str, Source("id"), doc("The same wherever the event is told.", f"{_BATCH_ID}:5:{_US}")]
    sequence_number: Annotated[Count, Source("sequence"), doc("Counts up within the batch.", 5)]
    type: Annotated[str, Meta(examples=["job.running"])]
    previous_status: Annotated[JobStatus, Source("previous"), Meta(examples=["PENDING"])]
    status: Annotated[JobStatus, Meta(examples=["RUNNING"])]
    timestamp: Annotated[Moment, Source("time")]


def get_percent(record: JobRecord) -> int | None:
    """Return the progress of a job in percent, if it is known."""
    match record.status:
        case JobStatus.DONE:
            return 100
        case JobStatus.PENDING:
            return 0
        case _:
            return None if record.progress is None else min(max(round(record.progress * 100), 0), 100)
