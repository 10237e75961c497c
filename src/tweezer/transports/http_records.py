"""The JSON of the HTTP API, and the records that it describes. Fields that no record has are ignored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from tweezer.model.attempts import JobAttempt, JobAttemptOutcome
from tweezer.model.cancels import CancelAttempt, CancelOutcome, read_ranges
from tweezer.model.checks import MAX_INTEGER, as_job_spec, check_batch, check_jobs
from tweezer.model.events import RETURNS, Event, Word
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import BatchDoc, Fault, JobSpec, Limits, Priority, Result, Steps
from tweezer.model.rules import Dependency, OnFailures, Rules, When, check_start
from tweezer.model.sequence import Geometry
from tweezer.model.webhooks import EventMessage, EventType
from tweezer.model.windows import Window
from tweezer.store.producers import CheckedSubmission, Submission, check_priority
from tweezer.store.records import BatchPause, BatchRecord, DeviceRecord, JobRecord


class _LimitsJson(msgspec.Struct, frozen=True):
    job_timeout_s: float
    open_timeout_s: float
    transient_retries: int


class _CancelJson(msgspec.Struct, frozen=True):
    at: datetime
    by: str
    jobs: str

    def attempt(self) -> CancelAttempt:
        return CancelAttempt(self.at, self.by, read_ranges(self.jobs))


class _PauseJson(msgspec.Struct, frozen=True):
    at: datetime
    by: str
    reason: str


class _DependencyJson(msgspec.Struct, frozen=True):
    batch: UUID
    when: When

    def dependency(self) -> Dependency:
        return Dependency(self.batch, self.when)


class _RetriesJson(msgspec.Struct, frozen=True):
    total: int | None = None


class _RulesJson(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of a batch, which older servers do not have."""

    schedule_threshold_s: float | None = None
    queue_timeout_s: float | None = None
    failure_threshold: int | None = None
    on_failures: OnFailures | None = None
    retries: _RetriesJson = _RetriesJson()
    depends_on: tuple[_DependencyJson, ...] = ()
    keep_s: float | None = None

    def rules(self) -> Rules | None:
        rules = Rules(
            schedule_threshold_s=self.schedule_threshold_s,
            queue_timeout_s=self.queue_timeout_s,
            failure_threshold=self.failure_threshold,
            on_failures=self.on_failures or OnFailures.PAUSE,
            total_retries=self.retries.total,
            keep_s=self.keep_s,
            depends_on=tuple(it.dependency() for it in self.depends_on),
        )
        return None if rules == Rules() else rules


class CheckedJson(_RulesJson, frozen=True, kw_only=True):
    """A submission that was checked."""

    project_id: str
    device_type: str
    jobs_count: int
    queue_priority: Priority
    limits: _LimitsJson
    start_at: datetime | None
    waits_for: str | None
    warnings: tuple[str, ...]

    def record(self) -> CheckedSubmission:
        return CheckedSubmission(
            project=self.project_id,
            device=self.device_type,
            jobs=self.jobs_count,
            priority=self.queue_priority,
            limits=Limits(**msgspec.structs.asdict(self.limits)),
            rules=self.rules(),
            not_before=self.start_at,
            waits_for=self.waits_for,
            warnings=self.warnings,
        )


class BatchJson(_RulesJson, frozen=True):
    """A batch, with or without its sequence."""

    id: UUID
    parent_id: str | None
    project_id: str
    user_id: str
    name: str | None
    status: BatchStatus
    open: bool
    device_type: str
    queue_priority: Priority
    tags: tuple[str, ...]
    webhook: str | None
    configuration: dict[str, Any] | None
    backend_configuration: str | None
    limits: _LimitsJson
    fault: Fault | None
    created_at: datetime
    updated_at: datetime
    start_datetime: datetime | None
    end_datetime: datetime | None
    jobs_count: int
    jobs_count_per_status: dict[JobStatus, int]
    sequence_number: int
    idle_s: float
    job_s: float | None
    cancel_attempts: tuple[_CancelJson, ...]
    not_before: datetime | None = None
    waits_for_batches: tuple[UUID, ...] = ()
    expires_at: datetime | None = None
    retried: int = 0
    pause: _PauseJson | None = None
    child_ids: tuple[UUID, ...] = ()
    sequence_builder: str | None = None

    def record(self, sequence: str | None) -> BatchRecord:
        """Return the record. sequence: the sequence of the batch, which the JSON may lack."""
        doc = BatchDoc(
            device=self.device_type,
            sequence=sequence,
            name=self.name,
            tags=self.tags,
            webhook=self.webhook,
            backend_configuration=self.backend_configuration,
            configuration=self.configuration,
            limits=Limits(**msgspec.structs.asdict(self.limits)),
            user=self.user_id or None,
            parent_id=self.parent_id,
            rules=self.rules(),
        )
        return BatchRecord(
            id=self.id,
            project=self.project_id,
            device=self.device_type,
            priority=self.queue_priority,
            status=self.status,
            open=self.open,
            created=self.created_at,
            updated=self.updated_at,
            jobs=self.jobs_count,
            counts=self.jobs_count_per_status,
            sequence_number=self.sequence_number,
            doc=doc,
            started=self.start_datetime,
            ended=self.end_datetime,
            fault=self.fault,
            children=self.child_ids,
            idle_s=self.idle_s,
            job_s=self.job_s,
            cancels=tuple(attempt.attempt() for attempt in self.cancel_attempts),
            not_before=self.not_before,
            waits_for=self.waits_for_batches,
            expires=self.expires_at,
            retried=self.retried,
            pause=None if self.pause is None else BatchPause(self.pause.at, self.pause.by, self.pause.reason),
        )


class IdJson(msgspec.Struct, frozen=True):
    """A batch of which only the id matters."""

    id: UUID


class AddedJson(msgspec.Struct, frozen=True):
    """A batch to which jobs were added. first_added: index of the first of them."""

    first_added: int


class JobJson(msgspec.Struct, frozen=True):
    """A job."""

    batch_id: UUID
    creation_order: int
    project_id: str
    parent_id: str | None
    status: JobStatus
    runs: int
    requested_runs: int | None
    variables: dict[str, Any] | None
    seed: int | None
    sequence: str | None
    created_at: datetime
    start_timestamp: datetime | None
    end_timestamp: datetime | None
    attempt: int
    stage: Stage | None
    stage_since: datetime | None
    progress: int | None
    cancel_requested_at: datetime | None
    cancel_requests: int
    queue_s: float | None
    preparation_s: float | None
    device_s: float | None
    faults: tuple[Fault, ...]
    cancel_outcome: CancelOutcome | None
    cancel_attempts: tuple[_CancelJson, ...]
    steps: Steps | None = None

    def record(self) -> JobRecord:
        spec = JobSpec(
            runs=self.requested_runs,
            variables=self.variables or {},
            seed=self.seed,
            sequence=self.sequence,
            parent_id=self.parent_id,
            runs_shown=self.runs if self.requested_runs is None and self.runs > 1 else None,
        )
        is_running = self.status is JobStatus.RUNNING
        return JobRecord(
            batch_id=self.batch_id,
            index=self.creation_order,
            project=self.project_id,
            status=self.status,
            spec=spec,
            created=self.created_at,
            started=self.start_timestamp,
            ended=self.end_timestamp,
            attempt=self.attempt,
            stage=self.stage,
            stage_since=self.stage_since,
            progress=self.progress / 100 if is_running and self.progress is not None else None,
            cancel_requested=self.cancel_requested_at,
            cancel_requests=self.cancel_requests,
            queue_s=self.queue_s,
            preparation_s=self.preparation_s,
            device_s=self.device_s,
            faults=self.faults,
            cancel_outcome=self.cancel_outcome,
            cancels=tuple(attempt.attempt() for attempt in self.cancel_attempts),
            steps=self.steps,
        )


class AttemptJson(msgspec.Struct, frozen=True):
    """An attempt of a job."""

    number: int
    worker: str | None
    lane: int | None
    start_timestamp: datetime | None
    end_timestamp: datetime | None
    outcome: str | None
    fault: Fault | None

    def attempt(self) -> JobAttempt:
        return JobAttempt(
            number=self.number,
            worker=self.worker,
            lane=self.lane,
            started=self.start_timestamp,
            ended=self.end_timestamp,
            outcome=None if self.outcome is None else JobAttemptOutcome(self.outcome),
            fault=self.fault,
        )


class JobLine(msgspec.Struct, frozen=True):
    """A line of a stream of jobs. end: it is the last line."""

    job: JobJson | None = None
    result: Result | None = None
    result_error: str | None = None
    end: bool = False


class WindowJson(msgspec.Struct, frozen=True):
    """A maintenance window."""

    id: str
    begins_at: datetime
    ends_at: datetime
    reason: str

    def record(self) -> Window:
        return Window(self.id, self.begins_at, self.ends_at, self.reason)


class DeviceJson(msgspec.Struct, frozen=True):
    """A device."""

    name: str
    adapter: str
    exclusive: bool
    checks_sequence: bool
    max_runs: int | None
    lanes: int
    pending: int
    running: int
    paused_because: str | None
    paused_until: datetime | None
    down_because: str | None
    status_unknown: str | None
    status_unknown_since: datetime | None
    maintenance: WindowJson | None
    job_s: float | None
    is_emulator: bool
    specs_name: str | None
    max_atom_num: int | None
    geometry: Geometry
    active: bool
    created_at: datetime | None
    reattaches: bool
    set_back_at: datetime | None

    def record(self) -> DeviceRecord:
        return DeviceRecord(
            name=self.name,
            adapter=self.adapter,
            exclusive=self.exclusive,
            checks_sequence=self.checks_sequence,
            max_runs=self.max_runs or 0,
            lanes=self.lanes,
            pending=self.pending,
            running=self.running,
            paused=self.paused_because,
            down=self.down_because,
            unsure=self.status_unknown,
            unsure_since=self.status_unknown_since,
            paused_until=self.paused_until,
            window=None if self.maintenance is None else self.maintenance.record(),
            job_s=self.job_s,
            is_emulator=self.is_emulator,
            specs_name=self.specs_name,
            max_atom_num=self.max_atom_num,
            geometry=self.geometry,
            active=self.active,
            created=self.created_at,
            reattaches=self.reattaches,
            set_back=self.set_back_at,
        )


_RETURNS = {reason: why for why, reason in RETURNS.items()}


def read_event(message: EventMessage) -> Event:
    """Return the transition that an event of the feed describes. Raises ValueError for one of a device."""
    match = re.fullmatch(r"([0-9a-f-]{36}):(\d+):(\d+)", message.id, re.ASCII)
    if match is None:
        raise ValueError("the event is not about a batch")
    data = message.data
    index, submitted, previous = data.get("index"), data.get("jobs"), data["previous_status"]
    kind = BatchStatus if index is None else JobStatus
    return Event(
        batch_id=UUID(match[1]),
        sequence=int(match[2]),
        time_us=int(match[3]),
        status=kind(data["status"]),
        previous=None if previous is None else kind(previous),
        index=index,
        jobs=None if submitted is None else submitted[JobStatus.PENDING],
        worker=data.get("worker"),
        lane=data.get("lane"),
        why=_RETURNS.get(data.get("reason", "")),
        is_late=message.type == EventType.BATCH_LATE,
    )


def as_word(event: Event) -> Word:
    """Return the event as a word of a stream entry."""
    if event.index is not None and event.previous is not None:
        return Word(event.previous.letter + event.status.letter, range(event.index, event.index + 1))
    before = "N" if event.previous is None else event.previous.letter
    unmoved = "L" if event.is_late else "I"
    after = unmoved if event.previous is event.status else event.status.letter
    return Word(before + after, submitted=event.jobs)


def write_submission(
    submission: Submission, *, project_id: str | None = None, is_template: bool = False
) -> dict[str, Any]:
    """Return a submission as JSON. Raises InvalidInput for what is wrong without knowledge of the device.

    is_template: it is that of a schedule, whose batches get their start time later.
    """
    it = submission
    doc = it.doc("any" if it.device is None else it.device)
    check_batch(doc, checks_sequence=False)
    check_start(doc.rules, has_start=is_template or it.not_before is not None)
    return plain(
        {
            "sequence_builder": doc.sequence,
            "jobs": write_jobs(it.jobs),
            "device_type": it.device,
            "queue_priority": check_priority(it.priority),
            "open": it.open,
            "name": it.name,
            "tags": it.tags,
            "webhook": it.webhook,
            "backend_configuration": it.backend_configuration,
            "limits": msgspec.structs.asdict(it.limits),
            "not_before": it.not_before,  # the name that older servers know, too
            "project_id": project_id,
            **_rules(doc.rules or Rules()),
        }
    )


def _rules(rules: Rules) -> dict[str, Any]:
    """Return the rules of a batch as JSON; None where there is no such rule."""
    return {
        "schedule_threshold_s": rules.schedule_threshold_s,
        "queue_timeout_s": rules.queue_timeout_s,
        "failure_threshold": rules.failure_threshold,
        "on_failures": None if rules.failure_threshold is None else rules.on_failures,
        "retries": None if rules.total_retries is None else {"total": rules.total_retries},
        "depends_on": [{"batch": str(it.batch), "when": it.when} for it in rules.depends_on] or None,
        "keep_s": rules.keep_s,
    }


def write_jobs(jobs: Sequence[object]) -> list[dict[str, object]]:
    """Return jobs as JSON. Raises InvalidInput for what is wrong without knowledge of the device."""
    specs = [as_job_spec(job, index) for index, job in enumerate(jobs)]
    check_jobs(specs, None, max_runs=MAX_INTEGER, needs_runs=False, checks_sequence=False)
    return [{"runs": it.runs, "variables": it.variables, "seed": it.seed, "sequence": it.sequence} for it in specs]


def plain(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body with times as text, and without members that are None."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in body.items()
        if value is not None
    }


def read_template(body: object) -> Any:
    """Return the template of a schedule as plain JSON, without members that are null."""
    return _without_nulls(msgspec.json.decode(msgspec.json.encode(body)))


def _without_nulls(value: Any) -> Any:
    match value:
        case dict():
            return {name: _without_nulls(part) for name, part in value.items() if part is not None}
        case list():
            return [_without_nulls(part) for part in value]
        case _:
            return value
