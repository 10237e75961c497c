"""Response schemas of tasks, sent without the envelope, and the redaction of values that look like credentials."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Self
from uuid import UUID

import msgspec

from tweezer.api.batches.schemas import LimitsResponse, readable
from tweezer.api.http.responses import Count, Moment, Seconds, doc
from tweezer.ledger.queries.tasks import TaskRecord
from tweezer.model.ids import short_id
from tweezer.model.lifecycle import JobStatus, Stage
from tweezer.model.messages import Result
from tweezer.model.tasks import STATES, TaskState, TaskStatus
from tweezer.store.records import JobRecord

_TASK_ID = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"
_JOB_ID = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000003"

REDACTED = "[redacted]"
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORDS = frozenset({"auth", "authorization", "bearer", "cookie", "pwd", "passphrase"})
_SECRET_END = re.compile(
    r"(token|secret|password|passwd|credential|apikey|accesskey|privatekey|secretkey|signingkey)s?$"
)


def is_credential(name: str) -> bool:
    """Return whether the value of a key with this name looks like a credential."""
    words = [word.lower() for word in _WORDS.findall(name)]
    return not _SECRET_WORDS.isdisjoint(words) or _SECRET_END.search("".join(words)) is not None


def redact(value: Any) -> Any:
    """Return the value with the text ``[redacted]`` in place of what looks like a credential.

    Texts that are JSON objects are redacted, too.
    """
    match value:
        case dict():
            return {
                name: REDACTED if inner is not None and isinstance(name, str) and is_credential(name) else redact(inner)
                for name, inner in value.items()
            }
        case list() | tuple():
            return [redact(inner) for inner in value]
        case str() if value.lstrip().startswith(("{", "[")):
            return _redact_json(value)
        case _:
            return value


def _redact_json(text: str) -> str:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    redacted = redact(document)
    return text if redacted == document else json.dumps(redacted)


class TaskMetadata(msgspec.Struct, frozen=True):
    """What was submitted with a task, without its sequence."""

    name: Annotated[str | None, doc("Name of the task, for people; null if none.", "antiferromagnet")]
    project_id: Annotated[str, doc("Id of its project.", "default")]
    user_id: Annotated[str | None, doc("Name of the user who submitted it; null if unknown.", None)]
    priority: Annotated[str, doc("`HIGH`, `MEDIUM` or `LOW`.", "MEDIUM")]
    tags: Annotated[list[str], doc("Its tags.", ["sweep"])]
    parent_id: Annotated[str | None, doc("Id of the task that it repeats; null if none.", None)]
    configuration: Annotated[dict[str, Any] | None, doc("Older options of the emulator; null if none.", None)]
    backend_configuration: Annotated[
        str | None, doc("Pulser's `EmulationConfig`, as a JSON string; null if none.", None)
    ]

    @classmethod
    def of(cls, task: TaskRecord) -> Self:
        """Return the redacted metadata of a task."""
        submitted = task.batch.doc
        return cls(
            name=submitted.name,
            project_id=task.batch.project,
            user_id=submitted.user,
            priority=task.batch.priority.value,
            tags=list(submitted.tags),
            parent_id=submitted.parent_id,
            configuration=redact(readable(submitted.configuration)),
            backend_configuration=redact(submitted.backend_configuration),
        )


class TaskProgress(msgspec.Struct, frozen=True):
    """How far a task is, in jobs."""

    done: Annotated[Count, doc("Number of its jobs that have ended.", 7)]
    total: Annotated[Count, doc("Number of its jobs.", 20)]
    stage: Annotated[Stage | None, doc("Stage of a running job; null in lists, and if no job is running.", "on_device")]
    message: Annotated[str | None, doc("What a running job reports, for people; null if nothing.", None)]

    @classmethod
    def of(cls, task: TaskRecord) -> Self:
        """Return the progress of a task."""
        running = next((job for job in task.jobs if job.status is JobStatus.RUNNING), None)
        steps = None if running is None else running.steps
        stage = None if running is None else running.stage
        return cls(task.ended_jobs, task.batch.jobs, stage, None if steps is None else steps.message)


class TaskRowResponse(msgspec.Struct, frozen=True):
    """A task in a list."""

    task_id: Annotated[UUID, doc("Id of the task, which is the id of its batch.", _TASK_ID)]
    backend: Annotated[str, doc("Name of the device.", "EMU_FREE")]
    status: Annotated[
        TaskStatus,
        doc("Coarse status. `success`: it is done, and no job failed. `pending` includes suspended tasks.", "running"),
    ]
    shots: Annotated[Count | None, doc("Number of shots of all jobs; null in the first moment.", 2000)]
    submit_time: Annotated[Moment, doc("When it was submitted.")]
    update_time: Annotated[Moment, doc("When it last changed.")]
    has_result: Annotated[bool, doc("Whether any of its jobs has a result.", True)]
    metadata: Annotated[TaskMetadata, doc("What was submitted; values that look like credentials are redacted.")]
    error_message: Annotated[str | None, doc("Why it failed, for people; null otherwise.", None)]
    archived_at: Annotated[Moment | None, doc("When it was archived; null if it is not archived.", None)]

    @classmethod
    def of(cls, task: TaskRecord) -> Self:
        """Return the row of a task."""
        return cls(**_row(task))


class TaskSummaryResponse(msgspec.Struct, frozen=True):
    """A task in the list of summaries: its states and times, without results."""

    task_id: Annotated[UUID, doc("Id of the task, which is the id of its batch.", _TASK_ID)]
    name: Annotated[str | None, doc("Name of the task, for people; null if none.", "antiferromagnet")]
    shortname: Annotated[str, doc("Its short id, which people see.", "5m2q0xw8kd")]
    backend: Annotated[str, doc("Name of the device.", "EMU_FREE")]
    status: Annotated[TaskStatus, doc("Coarse status, as in the list.", "running")]
    state: Annotated[TaskState, doc("Exact state.", "running")]
    previous_state: Annotated[TaskState | None, doc("State before the last transition; null if none.", "waiting")]
    state_transition_time: Annotated[Moment, doc("When it came into its state.")]
    previous_state_transition_time: Annotated[
        Moment | None, doc("When it came into its previous state; null if none.", None)
    ]
    progress: Annotated[TaskProgress, doc("How far it is.")]
    running_instance_count: Annotated[Count, doc("Number of its jobs that are running.", 2)]
    instance_count: Annotated[Count, doc("Number of its jobs.", 20)]
    max_retries_per_instance: Annotated[Count, doc("How often a job is retried after a transient failure.", 3)]
    execution_time: Annotated[Seconds, doc("Time on the device of its ended jobs, in seconds, added up.", 38.5)]
    wall_time: Annotated[Seconds, doc("Seconds from its submit to its end, or until now.", 239.0)]
    cancel_attempts: Annotated[Count, doc("How often a cancel of it, or of some of its jobs, was requested.", 0)]
    scheduled_time: Annotated[Moment | None, doc("The earliest time to start; null if it may start at once.", None)]
    start_time: Annotated[Moment | None, doc("When its first job started; null if none has started.")]
    finish_time: Annotated[Moment | None, doc("When it ended; null if it has not ended.", None)]
    creation_date: Annotated[Moment, doc("When it was submitted.")]
    last_modified: Annotated[Moment, doc("When it last changed.")]
    end_date: Annotated[Moment | None, doc("When it ended; null if it has not ended.", None)]
    tags: Annotated[list[str], doc("Its tags.", ["sweep"])]

    @classmethod
    def of(cls, task: TaskRecord) -> Self:
        """Return the summary of a task."""
        return cls(task_id=task.batch.id, backend=task.batch.device, status=task.status, **_summary(task))


class InstanceResultResponse(msgspec.Struct, frozen=True):
    """The result of one job of a task."""

    job_id: Annotated[UUID, doc("Id of the job.", _JOB_ID)]
    index: Annotated[Count, doc("Index of the job in the task, from 0.", 3)]
    counter: Annotated[
        dict[str, int] | None,
        doc("Number of shots by bitstring; null if the configuration requested no final bitstrings.", {"01": 100}),
    ]
    serialised_results: Annotated[
        str | None, doc("Pulser's `Results.to_abstract_repr()`, as a string; null without any.", None)
    ]
    provenance: Annotated[
        dict[str, Any] | None, doc("What is needed to reproduce the result.", {"backend": "qutip", "seed": 7})
    ]

    @classmethod
    def of(cls, job: JobRecord, result: Result) -> Self:
        """Return the redacted result of a job."""
        return cls(
            job_id=job.id,
            index=job.index,
            counter=result.counter,
            serialised_results=redact(result.serialised_results),
            provenance=None if result.provenance is None else redact(msgspec.to_builtins(result.provenance)),
        )


class TaskResponse(TaskSummaryResponse, frozen=True, kw_only=True):
    """Everything about a task: its row in the list, its summary, its error and its results."""

    shots: Annotated[Count | None, doc("Number of shots of all jobs; null in the first moment.", 2000)]
    submit_time: Annotated[Moment, doc("When it was submitted.")]
    update_time: Annotated[Moment, doc("When it last changed.")]
    has_result: Annotated[bool, doc("Whether any of its jobs has a result.", True)]
    metadata: Annotated[TaskMetadata, doc("What was submitted; values that look like credentials are redacted.")]
    error_message: Annotated[str | None, doc("Why it failed, for people; null otherwise.", None)]
    archived_at: Annotated[Moment | None, doc("When it was archived; null if it is not archived.", None)]
    limits: Annotated[LimitsResponse, doc("Its limits.")]
    exception: Annotated[
        str | None, doc("The error of the task, or of its first failed job, for users; null otherwise.", None)
    ]
    traceback: Annotated[
        str | None,
        doc(
            "For the role operator: the end of the traceback in the log of its first failed job, at most 16 KiB; null "
            "otherwise.",
            None,
        ),
    ]
    result: Annotated[
        list[InstanceResultResponse] | None,
        doc(
            "The results of its jobs in their order, redacted; null without any, and for more than 1,000 jobs. "
            "Results that are stored in files are left out: see `GET /api/v1/jobs/{job_id}/results_link`."
        ),
    ]

    @classmethod
    def build(cls, task: TaskRecord, *, traceback: str | None, result: list[InstanceResultResponse] | None) -> Self:
        """Return everything about a task."""
        failed = task.first_failed
        faults = () if failed is None else failed.faults
        exception = f"job {failed.index}: {faults[0]}" if failed is not None and faults else task.error
        if task.batch.fault is not None:
            exception = str(task.batch.fault)
        return cls(
            **_row(task),
            **_summary(task),
            limits=LimitsResponse.from_record(task.batch.doc.limits),
            exception=exception,
            traceback=traceback,
            result=result,
        )


def _row(task: TaskRecord) -> dict[str, Any]:
    return {
        "task_id": task.batch.id,
        "backend": task.batch.device,
        "status": task.status,
        "shots": task.shots,
        "submit_time": task.batch.created,
        "update_time": task.batch.updated,
        "has_result": task.has_result,
        "metadata": TaskMetadata.of(task),
        "error_message": task.error,
        "archived_at": task.archived,
    }


def _summary(task: TaskRecord) -> dict[str, Any]:
    batch = task.batch
    previous, changed, previously = task.transitions()
    until = batch.ended or datetime.now(UTC)
    return {
        "name": batch.doc.name,
        "shortname": short_id(batch.id),
        "state": task.state,
        "previous_state": None if previous is None else STATES[previous],
        "state_transition_time": changed,
        "previous_state_transition_time": previously,
        "progress": TaskProgress.of(task),
        "running_instance_count": batch.counts[JobStatus.RUNNING],
        "instance_count": batch.jobs,
        "max_retries_per_instance": batch.doc.limits.transient_retries,
        "execution_time": task.device_s,
        "wall_time": max((until - batch.created).total_seconds(), 0.0),
        "cancel_attempts": len(batch.cancels),
        "scheduled_time": batch.not_before,
        "start_time": batch.started,
        "finish_time": batch.ended,
        "creation_date": batch.created,
        "last_modified": batch.updated,
        "end_date": batch.ended,
        "tags": list(batch.doc.tags),
    }


class _PageResponse(msgspec.Struct, frozen=True, kw_only=True):
    total: Annotated[Count, doc("Number of tasks on all pages.", 41)]
    limit: Annotated[Count, doc("The largest number of tasks on the page.", 100)]
    offset: Annotated[Count, doc("Number of tasks before the page.", 0)]
    is_cut: Annotated[
        bool | msgspec.UnsetType,
        doc("Only with `name__contains`: whether there are older tasks whose names were not searched.", False),
    ] = msgspec.UNSET


class TasksResponse(_PageResponse, frozen=True, kw_only=True):
    """A page of tasks, newest first."""

    tasks: Annotated[list[TaskRowResponse], doc("The tasks on the page.")]


class TaskSummariesResponse(_PageResponse, frozen=True, kw_only=True):
    """A page of summaries of tasks, newest first."""

    tasks: Annotated[list[TaskSummaryResponse], doc("The summaries of the tasks on the page.")]


class TaskCountsResponse(msgspec.Struct, frozen=True):
    """The number of tasks by status, without archived ones. They add up to the total."""

    pending: Annotated[Count, doc("Tasks that wait, or are suspended.", 3)]
    running: Annotated[Count, doc("Tasks of which a job has started.", 2)]
    success: Annotated[Count, doc("Tasks that are done, without a failed job.", 30)]
    failed: Annotated[Count, doc("Tasks that failed, timed out, or have a failed job.", 5)]
    cancelled: Annotated[Count, doc("Cancelled tasks.", 1)]
    total: Annotated[Count, doc("All of these tasks.", 41)]


class ShardResponse(msgspec.Struct, frozen=True):
    """A shard: the jobs that one claim of a lane on the task began or settled."""

    uniqc_task_id: Annotated[UUID, doc("Id of the task.", _TASK_ID)]
    shard_index: Annotated[Count, doc("Number of the shard, from 0, in the order of the claims.", 0)]
    platform_task_id: Annotated[
        str | None, doc("The machine's own id of its (first) job, on QPUs and forwards; null otherwise.", None)
    ]
    backend: Annotated[str, doc("Name of the device.", "EMU_FREE")]
    circuit_count: Annotated[Count, doc("Number of its jobs.", 8)]
    sub_index_offset: Annotated[Count, doc("Index of its first job in the task, from 0.", 0)]
    status: Annotated[TaskStatus, doc("`running` while one of its jobs runs; `failed` if one failed.", "success")]
    error_message: Annotated[str | None, doc("The error of its first failed job; null otherwise.", None)]
    submit_time: Annotated[Moment, doc("When its first job started.")]
    update_time: Annotated[Moment, doc("When one of its jobs last changed.")]

    @classmethod
    def of(cls, task_id: UUID, number: int, backend: str, jobs: Sequence[JobRecord], machine_id: str | None) -> Self:
        """Return the shard of these jobs, which are in their order."""
        failed = next((job for job in jobs if job.status is JobStatus.ERROR), None)
        statuses = {job.status for job in jobs}
        if JobStatus.RUNNING in statuses:
            status = TaskStatus.RUNNING
        elif failed is not None:
            status = TaskStatus.FAILED
        else:
            status = TaskStatus.CANCELLED if statuses == {JobStatus.CANCELED} else TaskStatus.SUCCESS
        return cls(
            uniqc_task_id=task_id,
            shard_index=number,
            platform_task_id=machine_id,
            backend=backend,
            circuit_count=len(jobs),
            sub_index_offset=jobs[0].index,
            status=status,
            error_message=None if failed is None or not failed.faults else str(failed.faults[0]),
            submit_time=min(job.started or job.created for job in jobs),
            update_time=max(job.updated for job in jobs),
        )


class ShardsResponse(msgspec.Struct, frozen=True):
    """The shards of a task, without results. Jobs that no lane has claimed belong to no shard."""

    task_id: Annotated[UUID, doc("Id of the task.", _TASK_ID)]
    shard_count: Annotated[Count, doc("Number of its shards.", 1)]
    shards: Annotated[list[ShardResponse], doc("The shards in the order of their numbers.")]


class DeletedTaskResponse(msgspec.Struct, frozen=True):
    """The task that was deleted."""

    deleted: Annotated[UUID, doc("Id of the task.", _TASK_ID)]


class ArchivedTaskResponse(msgspec.Struct, frozen=True):
    """The task that was archived."""

    archived: Annotated[UUID, doc("Id of the task.", _TASK_ID)]


class RestoredTaskResponse(msgspec.Struct, frozen=True):
    """The task that was put back into the list."""

    restored: Annotated[UUID, doc("Id of the task.", _TASK_ID)]


_Ids = list[UUID]


class DeletedTasksResponse(msgspec.Struct, frozen=True):
    """The outcome of a request to delete tasks."""

    deleted: Annotated[_Ids, doc("Tasks that were deleted.", [_TASK_ID])]
    missing: Annotated[_Ids, doc("Ids of no task of the caller's projects.", [])]
    live: Annotated[_Ids, doc("Tasks that were kept, because they have not ended, or are still being recorded.", [])]
    count: Annotated[Count, doc("Number of tasks that were deleted.", 1)]


class ArchivedTasksResponse(msgspec.Struct, frozen=True):
    """The outcome of a request to archive tasks."""

    archived: Annotated[_Ids, doc("Tasks that are archived now.", [_TASK_ID])]
    missing: Annotated[_Ids, doc("Ids of no task of the caller's projects.", [])]
    live: Annotated[
        _Ids, doc("Tasks that were not archived, because they have not ended, or are still being recorded.", [])
    ]
    count: Annotated[Count, doc("Number of tasks that are archived now.", 1)]


class CanceledTasksResponse(msgspec.Struct, frozen=True):
    """The outcome of a request to cancel tasks."""

    canceled: Annotated[_Ids, doc("Tasks that were cancelled, or whose running jobs were asked to stop.", [_TASK_ID])]
    missing: Annotated[_Ids, doc("Ids of no task of the caller's projects.", [])]
    live: Annotated[_Ids, doc("Those of the cancelled tasks whose running jobs have not stopped yet.", [])]
    ended: Annotated[_Ids, doc("Tasks that had ended before, and so were not changed.", [])]
    count: Annotated[Count, doc("Number of tasks that were cancelled.", 1)]


class ArchivedOlderResponse(msgspec.Struct, frozen=True):
    """The old tasks that were archived."""

    archived: Annotated[_Ids, doc("Tasks that were archived, oldest first, at most 10,000 per request.", [_TASK_ID])]
    count: Annotated[Count, doc("Number of these tasks.", 1)]
    hours: Annotated[float, doc("The age that was asked for.", 72.0)]
    terminal_only: Annotated[bool, doc("Whether only tasks that have ended were archived.", True)]
    skipped_running: Annotated[
        Count, doc("Number of tasks of this age that were skipped because they have not ended.", 0)
    ]
