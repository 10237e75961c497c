"""Response schemas of batches and jobs: Pasqal's field names, and some additional ones.

The reference of Pasqal's API states which fields the public clients require; both ``open`` and ``complete``, and every
status in the counts, are among them. Times are ISO 8601 in UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID

import msgspec
from msgspec import Meta
from pydantic_core import to_jsonable_python

from tweezer.api.http.responses import Count, Moment, RecordResponse, Seconds, Source, doc
from tweezer.model.attempts import JobAttempt, JobAttemptOutcome
from tweezer.model.cancels import CancelOutcome
from tweezer.model.ids import job_id
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import Limits, Priority, Result
from tweezer.model.rules import Dependency, OnFailures, Rules, When
from tweezer.store.producers import CheckedSubmission
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord, describe_wait

JOB_IDS_MAX = 1000
"""A batch with more jobs is shown without their ids, which would be sent again with every poll."""

_BATCH_ID = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"
_JOB_ID = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000003"
_US = 1795341602000000
_COUNTS = {"PENDING": 16, "RUNNING": 2, "DONE": 2, "ERROR": 0, "CANCELED": 0}

Percent = Annotated[int, Meta(ge=0, le=100)]
Counts = Annotated[
    dict[JobStatus, Count], Source("counts"), doc("Number of jobs by status; every status is present.", _COUNTS)
]


def _job_ids(record: BatchRecord) -> list[UUID] | None:
    if record.jobs > JOB_IDS_MAX:
        return None
    return [job_id(record.id, index) for index in range(record.jobs)]


def readable(values: dict[str, Any] | None) -> dict[str, Any] | None:
    """Convert values to JSON types: producers may send others (NaN, bytes)."""
    if not values:
        return None
    plain: dict[str, Any] = to_jsonable_python(values, bytes_mode="base64", inf_nan_mode="null", fallback=str)
    return plain


class CancelAttemptResponse(RecordResponse, frozen=True):
    """A request to cancel a batch or some of its jobs."""

    at: Annotated[Moment, doc("When the request was made.")]
    by: Annotated[
        str,
        doc(
            "Who made the request. Through this API: the user, if any, and the id of the key. From the Python library "
            "or the command line: `user@host`, or a chosen name. At the job's time limit: `timeout`.",
            "alice (key k3v9q2m7x4ab)",
        ),
    ]
    jobs: Annotated[
        str, doc("Indices of the jobs, as in `0-3,7`; `*` for all jobs of the batch that had not ended.", "*")
    ]


class PauseResponse(RecordResponse, frozen=True):
    """Who paused a batch, when, and why."""

    at: Annotated[Moment, doc("When the batch was paused.")]
    by: Annotated[str, doc("Who paused it, as in `cancel_attempts`.", "alice (key k3v9q2m7x4ab)")]
    reason: Annotated[str, doc("Why, for people; empty if no reason was given.", "wait for the calibration")]


class FaultResponse(RecordResponse, frozen=True):
    """Why a job or a batch failed."""

    code: Annotated[str, doc("A stable identifier of the error, for programs.", "user")]
    message: Annotated[str, doc("What is wrong and what to do, for people.", "expected 3 values, got 2")]
    field: Annotated[
        str | None, doc("The input that caused the failure; null if it is not one field.", "jobs[0].variables.omega")
    ]


class StepsResponse(RecordResponse, frozen=True):
    """The progress of a running job in steps. What a step is depends on the emulator or the machine."""

    done: Annotated[int | None, doc("Number of finished steps; null if unknown.", 1200)]
    total: Annotated[int | None, doc("Number of all steps; null if unknown.", 3000)]
    message: Annotated[
        str | None, doc("What the job does, for people, on one line; null if unknown.", "1200 of 3000 ns")
    ]


class LimitsResponse(RecordResponse, frozen=True):
    """The limits of a batch."""

    job_timeout_s: Annotated[Seconds, doc("Maximum wall time of one job, in seconds.", 3600.0)]
    open_timeout_s: Annotated[
        Seconds, doc("How long the open batch may have no work before it is `TIMED_OUT`, in seconds.", 300.0)
    ]
    transient_retries: Annotated[Count, doc("Older name of `retries.per_job`.", 3)]


class RetriesResponse(msgspec.Struct, frozen=True):
    """The limits of the retries of a batch."""

    per_job: Annotated[Count, doc("How often a job is retried after a transient failure.", 3)]
    total: Annotated[
        Count | None,
        doc("Limit of all retries of the batch after transient failures and crashes; null without such a limit.", None),
    ] = None


class DependencyResponse(RecordResponse, frozen=True):
    """A batch that another one waits for, and how it must end."""

    batch: Annotated[UUID, doc("Id of the batch.", _BATCH_ID)]
    when: Annotated[When, doc("How it must end.", "DONE")]


class RulesResponse(RecordResponse, frozen=True, kw_only=True):
    """The rules of a batch, with the names of a submit."""

    start_at: Annotated[
        Moment | None, Source("not_before"), doc("The earliest time to start; null if it may start at once.", None)
    ]
    schedule_threshold_s: Annotated[
        Seconds | None, doc("Seconds after `start_at` at which the batch is late if it has not started.", None)
    ] = None
    queue_timeout_s: Annotated[
        Seconds | None, doc("Seconds in which the batch must start; null without a limit.", None)
    ] = None
    failure_threshold: Annotated[
        Count | None, doc("Number of failed jobs at which `on_failures` applies; null: never.", None)
    ] = None
    on_failures: Annotated[OnFailures | None, doc("What happens at `failure_threshold`; null without that.", None)] = (
        None
    )
    retries: Annotated[RetriesResponse, doc("The limits of retries.")]
    depends_on: Annotated[list[DependencyResponse], doc("The batches that it depends on.", [])] = []
    keep_s: Annotated[
        Seconds | None, doc("Seconds after its end at which the batch is archived; null: never by itself.", None)
    ] = None


def show_rules(limits: Limits, rules: Rules | None) -> dict[str, Any]:
    """Return the fields of a RulesResponse that do not have their defaults, except the start time."""
    if rules is None:
        return {"retries": RetriesResponse(limits.transient_retries)}
    return {
        "schedule_threshold_s": rules.schedule_threshold_s,
        "queue_timeout_s": rules.queue_timeout_s,
        "failure_threshold": rules.failure_threshold,
        "on_failures": None if rules.failure_threshold is None else rules.on_failures,
        "retries": RetriesResponse(limits.transient_retries, rules.total_retries),
        "depends_on": show_dependencies(rules.depends_on),
        "keep_s": rules.keep_s,
    }


def show_dependencies(dependencies: Sequence[Dependency]) -> list[DependencyResponse]:
    """Return the dependencies for a response."""
    return [DependencyResponse.from_record(it) for it in dependencies]


class CheckedBatchResponse(RulesResponse, frozen=True, kw_only=True):
    """The batch that a submit would make, which was checked and not written."""

    dry_run: Annotated[bool, doc("Always true.", True)] = True
    project_id: Annotated[str, Source("project"), doc("Id of its project.", "default")]
    device_type: Annotated[str, Source("device"), doc("Name of its device.", "EMU_FREE")]
    jobs_count: Annotated[Count, Source("jobs"), doc("Number of its jobs.", 20)]
    queue_priority: Annotated[Priority, Source("priority"), doc("`HIGH`, `MEDIUM` or `LOW`.", "MEDIUM")]
    limits: Annotated[LimitsResponse, doc("Its limits.")]
    waits_for: Annotated[
        str | None, doc("What it would wait for now, for people; null if nothing is known to keep it waiting.", None)
    ]
    warnings: Annotated[list[str], doc("What may be a mistake or a disappointment, for people.", [])]

    @classmethod
    def from_record(cls, record: CheckedSubmission, **computed: Any) -> Self:
        """Return the response for a checked submission."""
        rules = show_rules(record.limits, record.rules)
        return super().from_record(record, limits=LimitsResponse.from_record(record.limits), **rules, **computed)


class EmbeddedJobResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A job within its batch, without its sequence. `GET /api/v2/jobs/{job_id}` includes the sequence."""

    id: Annotated[UUID, doc("Id of the job.", _JOB_ID)]
    batch_id: Annotated[UUID, doc("Id of its batch.", _BATCH_ID)]
    parent_id: Annotated[str | None, doc("Id of the job that this one repeats; null if none.", None)] = None
    project_id: Annotated[str, doc("Id of its project.", "default")]
    status: Annotated[JobStatus, doc("Status of the job.", "RUNNING")]
    runs: Annotated[
        int, doc("Number of shots; that of the batch's backend configuration if the job specifies none.", 100)
    ]
    variables: Annotated[
        dict[str, Any] | None, doc("Values of the sequence's variables; null without variables.", {"omega": 6.0})
    ]
    creation_order: Annotated[Count, doc("Index of the job in its batch, from 0.", 3)]
    errors: Annotated[list[str], doc("Why the job failed, for people; empty otherwise.", [])]
    progress: Annotated[
        Percent | None, doc("Progress of the execution in percent; null if the emulator does not report it.", 40)
    ]
    steps: Annotated[
        StepsResponse | None,
        doc("The same progress in steps; null if the job does not run, or does not report any.", None),
    ] = None
    created_at: Annotated[Moment, doc("When the job was submitted.")]
    updated_at: Annotated[Moment, doc("When the job last changed.")]
    start_timestamp: Annotated[Moment | None, doc("When its (last) execution started; null if it has not started.")]
    end_timestamp: Annotated[Moment | None, doc("When the job ended; null if it has not ended.", None)]
    stage: Annotated[
        Stage | None, doc("Current stage, in more detail than the status; null once the job has ended.", "on_device")
    ]
    stage_since: Annotated[Moment | None, doc("When the current stage began; null once the job has ended.")]
    attempt: Annotated[Count, doc("Number of executions that have started.", 1)]
    queue_s: Annotated[
        Seconds | None, doc("Seconds from submission to the (last) start; null if it has not started.", 1.75)
    ]
    preparation_s: Annotated[
        Seconds | None, doc("Seconds that it took to prepare the batch for this execution; null if unknown.", 0.31)
    ]
    device_s: Annotated[Seconds | None, doc("Seconds on the device or emulator; null if unknown.", None)]
    slurm_job_id: Annotated[str | None, doc("Always null.", None)] = None
    cancel_outcome: Annotated[
        CancelOutcome | None,
        doc(
            "Outcome of a cancel, once the job has ended: `prevented` (the job never ran), `stopped`, `too_late` (the "
            "job had ended before) or `unconfirmed` (it is not known whether the job stopped). Null without a cancel.",
            None,
        ),
    ] = None

    @classmethod
    def from_record(cls, record: JobRecord, **more: Any) -> Self:
        """Return the response for a job; written out field by field for speed, since a batch shows up to a hundred."""
        over = record.status.terminal
        return cls(
            id=record.id,
            batch_id=record.batch_id,
            parent_id=record.spec.parent_id,
            project_id=record.project,
            status=record.status,
            runs=record.spec.runs or record.spec.runs_shown or 1,
            variables=readable(record.spec.variables),
            creation_order=record.index,
            errors=[str(fault) for fault in record.faults],
            progress=get_percent(record),
            steps=None if record.steps is None else StepsResponse.from_record(record.steps),
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
    """The current state of a job."""

    sequence: Annotated[str | None, doc("The job's own serialised sequence; null if it uses its batch's.", None)]
    requested_runs: Annotated[
        int | None,
        doc("Number of shots that the job itself specifies; null if `runs` is that of the configuration.", 100),
    ]
    seed: Annotated[int | None, doc("Seed of the job's random numbers; null: derived from its id.", None)]
    faults: Annotated[list[FaultResponse], doc("Why the job failed, with codes; empty otherwise.", [])]
    cancel_requested_at: Annotated[Moment | None, doc("When a cancel was first requested; null if never.", None)]
    cancel_requests: Annotated[
        Count, doc("Number of requests to end the job, including those because of its time limit.", 0)
    ]
    logs_link: Annotated[str | None, doc("Always null: see `GET /api/v1/jobs/{job_id}/logs_link`.", None)] = None
    cancel_attempts: Annotated[
        list[CancelAttemptResponse], doc("Recorded requests to cancel the job, oldest first.")
    ] = []

    @classmethod
    def from_record(cls, record: JobRecord, **more: Any) -> Self:
        return super().from_record(
            record,
            sequence=record.spec.sequence,
            requested_runs=record.spec.runs,
            seed=record.spec.seed,
            faults=[FaultResponse.from_record(fault) for fault in record.faults],
            cancel_requested_at=record.cancel_requested,
            cancel_requests=record.cancel_requests,
            cancel_attempts=[CancelAttemptResponse.from_record(attempt) for attempt in record.cancels],
            **more,
        )


class ListedBatchResponse(RulesResponse, frozen=True, kw_only=True):
    """A batch in a list, without its sequence and jobs."""

    id: Annotated[UUID, doc("Id of the batch.", _BATCH_ID)]
    parent_id: Annotated[
        str | None, Source("doc.parent_id"), doc("Id of the batch that this one repeats; null if none.", None)
    ]
    project_id: Annotated[str, Source("project"), doc("Id of its project.", "default")]
    user_id: Annotated[str, doc("Name of the user who submitted the batch; empty if unknown.", "")]
    name: Annotated[
        str | None, Source("doc.name"), doc("Name of the batch, for people; null if none.", "antiferromagnet")
    ]
    status: Annotated[BatchStatus, doc("Status of the batch.", "RUNNING")]
    open: Annotated[bool, doc("Whether more jobs can be added.", False)]
    complete: Annotated[bool, doc("The opposite of `open`, for older clients.", True)]
    device_type: Annotated[str, Source("device"), doc("Name of the device.", "EMU_FREE")]
    device_status: Annotated[str | None, doc("Always null: see `GET /api/v1/devices`.", None)] = None
    priority: Annotated[float | None, doc("Always null: see `queue_priority`.", None)] = None
    queue_priority: Annotated[str, Source("priority.value"), doc("`HIGH`, `MEDIUM` or `LOW`.", "MEDIUM")]
    tags: Annotated[list[str], Source("doc.tags"), doc("Tags of the batch.", ["sweep"])]
    webhook: Annotated[
        str | None, Source("doc.webhook"), doc("The URL that receives the events of the batch; null if none.", None)
    ]
    configuration: Annotated[
        dict[str, Any] | None, doc("Older options of the emulator, as submitted; null if none.", None)
    ]
    backend_configuration: Annotated[
        str | None,
        Source("doc.backend_configuration"),
        doc("Pulser's `EmulationConfig`, as a JSON string; null if none.", None),
    ]
    errors: Annotated[list[str], doc("Why the batch could not run; empty otherwise.", [])]
    created_at: Annotated[Moment, Source("created"), doc("When the batch was submitted.")]
    not_before: Annotated[
        Moment | None, Meta(description="Older name of `start_at`.", extra_json_schema={"deprecated": True})
    ]
    waits_for: Annotated[
        str | None,
        doc(
            "What the batch waits for, for people; null if nothing is known to keep it waiting. While one of its jobs "
            "is running, it waits only for a machine that does not answer.",
            None,
        ),
    ]
    waits_for_batches: Annotated[
        list[UUID], Source("waits_for"), doc("The batches of `depends_on` that it still waits for.", [])
    ]
    expires_at: Annotated[
        Moment | None,
        Source("expires"),
        doc("When its queue timeout ends; null without one. It has no effect once the batch has started.", None),
    ]
    retried: Annotated[Count, doc("Number of retries that count towards `retries.total`; 0 without that.", 0)]
    updated_at: Annotated[Moment, Source("updated"), doc("When the batch last changed.")]
    start_datetime: Annotated[
        Moment | None, Source("started"), doc("When its first job started; null if none has started.")
    ]
    end_datetime: Annotated[
        Moment | None, Source("ended"), doc("When the batch ended; null if it has not ended.", None)
    ]
    jobs_count: Annotated[Count, Source("jobs"), doc("Number of its jobs.", 20)]
    jobs_count_per_status: Counts
    pause: Annotated[PauseResponse | None, doc("Who paused the batch, when and why; null if it is not paused.", None)]
    idle_s: Annotated[Seconds, doc("Seconds for which the open batch reserved a QPU without giving it work.", 0.0)]
    limits: Annotated[LimitsResponse, doc("The limits of the batch.")]
    fault: Annotated[FaultResponse | None, doc("Why the batch could not run, with a code; null otherwise.", None)]
    sequence_number: Annotated[Count, doc("Number of its last event.", 5)]
    job_s: Annotated[
        Seconds | None, doc("Average duration of its jobs that are `DONE`, in seconds; null if none is.", 0.42)
    ]
    cancel_attempts: Annotated[
        list[CancelAttemptResponse], doc("Recorded requests to cancel the batch or some of its jobs, oldest first.", [])
    ]

    @classmethod
    def from_record(cls, record: BatchRecord, device: DeviceRecord | None = None, **computed: Any) -> Self:
        """Return the response for a batch. device: its device, if the batch may wait for it."""
        return super().from_record(
            record,
            waits_for=describe_wait(record, device, datetime.now(UTC)),
            user_id=record.doc.user or "",
            complete=not record.open,
            configuration=readable(record.doc.configuration),
            errors=[] if record.fault is None else [str(record.fault)],
            limits=LimitsResponse.from_record(record.doc.limits),
            **show_rules(record.doc.limits, record.doc.rules),
            fault=None if record.fault is None else FaultResponse.from_record(record.fault),
            cancel_attempts=[CancelAttemptResponse.from_record(attempt) for attempt in record.cancels],
            pause=None if record.pause is None else PauseResponse.from_record(record.pause),
            **computed,
        )


class FoundBatchResponse(msgspec.Struct, frozen=True):
    """The batch that a text means."""

    id: Annotated[UUID, doc("Id of the batch.", _BATCH_ID)]


class BatchResponse(ListedBatchResponse, frozen=True, kw_only=True):
    """The current state of a batch."""

    _job_type: ClassVar[type[EmbeddedJobResponse]] = EmbeddedJobResponse

    sequence_builder: Annotated[
        str | None,
        Source("doc.sequence"),
        doc(
            "The serialised Pulser sequence; null if each job has its own, or if it was not requested.",
            '{"version":"1"}',
        ),
    ]
    jobs: Annotated[
        list[EmbeddedJobResponse],
        doc(
            "All jobs in creation order, if there are at most 100. Empty if there are more: request them with "
            "`GET /api/v2/batches/{batch_id}/jobs`."
        ),
    ]
    job_ids: Annotated[
        list[UUID] | None,
        doc("Ids of all jobs in creation order, if there are at most 1,000; else null.", [_JOB_ID]),
    ]
    child_ids: Annotated[list[UUID], Source("children"), doc("Ids of the batches that repeat this one.", [])]

    @classmethod
    def from_records(
        cls, record: BatchRecord, jobs: Sequence[JobRecord], device: DeviceRecord | None = None, **more: Any
    ) -> Self:
        """Return the response for a batch and its jobs. device: its device, if the batch may wait for it."""
        return cls.from_record(
            record,
            device,
            jobs=[cls._job_type.from_record(job) for job in jobs],
            **({"job_ids": _job_ids(record)} | more),
        )


class ExtendedBatchResponse(BatchResponse, frozen=True, kw_only=True):
    """The current state of a batch to which jobs were added."""

    first_added: Annotated[Count, doc("Index of the first job that this request added.", 20)]


class OlderJobResponse(JobResponse, frozen=True, kw_only=True):
    """A job in version 1 of the API."""

    result: Annotated[
        dict[str, int] | None,
        doc("Number of shots by bitstring; only in `GET /api/v1/jobs/{job_id}`, else null.", {"0101": 61, "1010": 39}),
    ] = None
    full_result: Annotated[
        dict[str, Any] | None, doc("The complete result; only in `GET /api/v1/jobs/{job_id}`, else null.", None)
    ] = None

    @classmethod
    def with_result(cls, record: JobRecord, result: Result | None) -> Self:
        """Return the response for a job and its result."""
        return cls.from_record(record, result=None if result is None else result.counter, full_result=result)


class OlderBatchResponse(BatchResponse, frozen=True, kw_only=True):
    """A batch in version 1 of the API."""

    _job_type = OlderJobResponse

    jobs: Annotated[  # type: ignore[assignment]  # each is an EmbeddedJobResponse
        list[OlderJobResponse], doc("As in version 2, with fields for results that are null here.")
    ]


class BatchStateResponse(RecordResponse, frozen=True):
    """The status of a batch. While a batch is paused, `paused` is true and `status` is the one that it would have
    otherwise (`PENDING` until its first job starts, then `RUNNING`), because Pasqal's clients do not accept `PAUSED`
    here."""

    id: Annotated[UUID, doc("Id of the batch.", _BATCH_ID)]
    status: Annotated[
        BatchStatus, doc("`PENDING`, `RUNNING`, `DONE`, `ERROR`, `CANCELED` or `TIMED_OUT`; never `PAUSED`.", "RUNNING")
    ]
    paused: Annotated[bool, doc("Whether the batch is paused, so that no more of its jobs start.", False)]
    open: Annotated[bool, doc("Whether more jobs can be added.", False)]
    updated_at: Annotated[Moment, Source("updated"), doc("When the batch last changed.")]
    jobs_count: Annotated[Count, Source("jobs"), doc("Number of its jobs.", 20)]
    jobs_count_per_status: Counts

    @classmethod
    def from_record(cls, record: BatchRecord, **computed: Any) -> Self:
        paused = record.status is BatchStatus.PAUSED
        unpaused = BatchStatus.PENDING if record.started is None else BatchStatus.RUNNING
        return super().from_record(record, status=unpaused if paused else record.status, paused=paused, **computed)


class JobStateResponse(RecordResponse, frozen=True):
    """The status of a job."""

    id: Annotated[UUID, doc("Id of the job.", _JOB_ID)]
    batch_id: Annotated[UUID, doc("Id of its batch.", _BATCH_ID)]
    status: Annotated[JobStatus, doc("Status of the job.", "DONE")]
    progress: Annotated[
        Percent | None, doc("Progress of the execution in percent; null if the emulator does not report it.", 100)
    ]
    steps: Annotated[
        StepsResponse | None,
        doc("The same progress in steps; null if the job does not run, or does not report any.", None),
    ]
    stage: Annotated[
        Stage | None, doc("Current stage, in more detail than the status; null once the job has ended.", None)
    ]
    attempt: Annotated[Count, doc("Number of executions that have started.", 1)]

    @classmethod
    def from_record(cls, record: JobRecord, **computed: Any) -> Self:
        stage = None if record.status.terminal else record.stage
        steps = None if record.steps is None else StepsResponse.from_record(record.steps)
        return super().from_record(record, progress=get_percent(record), steps=steps, stage=stage, **computed)


class ResultsLinkResponse(msgspec.Struct, frozen=True):
    """A link to the results of a job."""

    results_link: Annotated[
        str | None,
        doc(
            "Absolute, signed URL of the results; null while there is no result, or if the job ended without one.",
            f"http://127.0.0.1:8000/api/v1/jobs/{_JOB_ID}/results",
        ),
    ]


class LogsLinkResponse(msgspec.Struct, frozen=True):
    """A link to the logs of a job."""

    logs_link: Annotated[
        str | None,
        doc(
            "Absolute, signed URL of the logs; null while the job has written nothing.",
            f"http://127.0.0.1:8000/api/v1/jobs/{_JOB_ID}/logs",
        ),
    ]


class LogsResponse(msgspec.Struct, frozen=True):
    """A part of the logs of a job."""

    text: Annotated[str, doc("What was written. Control characters are shown as escapes.", "10.0%. Run time: 0.5s.\n")]
    next: Annotated[Count, doc("The position after the text: send it as `after`.", 24)]
    cut: Annotated[Count, doc("Number of bytes between `after` and the text that were not kept.", 0)]
    ended: Annotated[bool, doc("Whether the job has ended, so that nothing more will be written.", True)]


class ResultsLinksOfBatchResponse(msgspec.Struct, frozen=True):
    """Links to the results of the jobs of a batch."""

    results_links: Annotated[
        dict[UUID, str],
        doc(
            "Absolute, signed URL of the results, by job id.",
            {_JOB_ID: f"http://127.0.0.1:8000/api/v1/jobs/{_JOB_ID}/results"},
        ),
    ]
    errors: Annotated[dict[UUID, str], doc("Why a job has no link, by job id.", {})]


class CanceledBatchesResponse(msgspec.Struct, frozen=True):
    """The outcome of a request to cancel batches."""

    batches: Annotated[list[ListedBatchResponse], doc("Current state of the batches that were cancelled.")]
    errors: Annotated[
        dict[UUID, str], doc("Why a batch was not cancelled, by batch id.", {_BATCH_ID: f"batch {_BATCH_ID} has ended"})
    ]


class CanceledJobsResponse(msgspec.Struct, frozen=True):
    """The outcome of a request to cancel jobs."""

    jobs: Annotated[
        list[EmbeddedJobResponse], doc("Current state of the jobs that were cancelled or were asked to stop.")
    ]
    errors: Annotated[
        dict[UUID, str], doc("Why a job was not cancelled, by job id.", {_JOB_ID: f"job {_JOB_ID} has ended"})
    ]


class BulkOutcomeResponse(msgspec.Struct, frozen=True):
    """What a request did to the batches that match its parameters, or in a dry run what it would do."""

    count: Annotated[Count, doc("Number of batches on which it acted.", 1)]
    ids: Annotated[list[UUID], doc("Their ids, newest first; in a dry run at most 1,000.", [_BATCH_ID])]
    already: Annotated[
        list[UUID], doc("Batches for which nothing was left to do: they had ended, or had been retried before.", [])
    ]
    live: Annotated[list[UUID], doc("Batches that have not ended, and so were not deleted.", [])]
    failed: Annotated[dict[UUID, str], doc("Why it failed, by batch id.", {})]
    retries: Annotated[dict[UUID, UUID], doc("Id of the new batch, by the id of the batch that was retried.", {})]
    until: Annotated[Moment, doc("Batches that were submitted later are left alone.")]
    next: Annotated[
        str | None,
        doc("Where to continue: send it as `after`. Null if there are no further matches.", None),
    ]


class JobResultResponse(msgspec.Struct, frozen=True):
    """The result of a job. Sent without the envelope."""

    counter: Annotated[
        dict[str, int] | None,
        doc(
            "Number of shots by bitstring; the bits are in the order of the atoms in the register. Null if the "
            "configuration did not request final bitstrings.",
            {"0101": 61, "1010": 39},
        ),
    ]
    serialised_results: Annotated[
        str | None,
        doc("Pulser's `Results.to_abstract_repr()`, as a string; absent if the backend returned none.", "{}"),
    ] = None
    provenance: Annotated[
        dict[str, Any] | None,
        doc(
            "What is needed to reproduce the result: backend, versions, configuration and seed.",
            {"backend": "qutip", "versions": {"pulser": "1.9.1"}, "seed": 7},
        ),
    ] = None


class JobLineResponse(msgspec.Struct, frozen=True):
    """A line of a stream of jobs."""

    job: Annotated[JobResponse | None, doc("The job; null on the last line.")] = None
    result: Annotated[
        JobResultResponse | None, doc("The result of the job; null without one, or if results were not requested.")
    ] = None
    result_error: Annotated[
        str | None, doc("Why the result of the job cannot be read, for people; null otherwise.", None)
    ] = None
    end: Annotated[bool, doc("Whether this is the last line. A stream without it was cut.", False)] = False


class TransitionResponse(RecordResponse, frozen=True):
    """One change of a job's status."""

    event_id: Annotated[
        str,
        Source("id"),
        doc("Id of the event; the same in the feed, in streams and in webhooks.", f"{_BATCH_ID}:5:{_US}"),
    ]
    sequence_number: Annotated[Count, Source("sequence"), doc("Number of the event in its batch, from 1.", 5)]
    type: Annotated[str, doc("Type of the event.", "job.running")]
    previous_status: Annotated[JobStatus, Source("previous"), doc("Status before the change.", "PENDING")]
    status: Annotated[JobStatus, doc("Status after the change.", "RUNNING")]
    timestamp: Annotated[Moment, Source("time"), doc("When the change happened.")]
    worker: Annotated[str | None, doc("Id of the worker that held the job; null if none did.", "lab1:812:3fa901")]
    lane: Annotated[int | None, doc("Number of the worker's lane.", 0)]
    reason: Annotated[str | None, doc("Why a running job is pending again.", "its worker stopped renewing its lease")]


class JobAttemptResponse(RecordResponse, frozen=True):
    """One execution of a job."""

    number: Annotated[
        Count,
        doc(
            "Number of the attempt, from 1. It counts every execution, also one that a drain ended, which `attempt` of "
            "the job does not count.",
            1,
        ),
    ]
    worker: Annotated[
        str | None, doc("Id of the worker that held the job last; null if it was not recorded.", "lab1:812:3fa901")
    ]
    lane: Annotated[int | None, doc("Number of the worker's lane.", 0)]
    start_timestamp: Annotated[
        Moment | None, Source("started"), doc("When the attempt began; null if it was not recorded.")
    ]
    end_timestamp: Annotated[
        Moment | None, Source("ended"), doc("When it ended; null while it runs, and if it was not recorded.")
    ]
    outcome: Annotated[
        JobAttemptOutcome | None,
        doc(
            "How it ended: `done`, `error` or `canceled`; or why the job was queued again, in a word; `unknown` if it "
            "was not recorded. Null while it runs.",
            "lost",
        ),
    ]
    reason: Annotated[
        str | None,
        doc("Why the job was queued again, for people; null if it was not.", "its worker stopped renewing its lease"),
    ]
    fault: Annotated[FaultResponse | None, doc("Why the attempt failed; null if it did not.", None)]

    @classmethod
    def from_record(cls, record: JobAttempt, **computed: Any) -> Self:
        fault = None if record.fault is None else FaultResponse.from_record(record.fault)
        return super().from_record(record, fault=fault, **computed)


def get_percent(record: JobRecord) -> int | None:
    """Return the progress of a job in percent; None if it is not known."""
    match record.status:
        case JobStatus.DONE:
            return 100
        case JobStatus.PENDING:
            return 0
        case _:
            return None if record.progress is None else min(max(round(record.progress * 100), 0), 100)
