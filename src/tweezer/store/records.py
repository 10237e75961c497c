"""The shape of the records in Redis, shared with the scripts, and their typed form for readers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from tweezer.model.ids import job_id
from tweezer.model.lifecycle import BATCH_BY_LETTER, JOB_BY_LETTER, BatchStatus, JobStatus, Stage
from tweezer.model.messages import BatchDoc, Fault, JobSpec, Priority, decode_doc, decode_fault, decode_spec

STATE_FIELDS = (
    "status",  # letter of JobStatus
    "attempt",  # how often its execution began (drains excepted)
    "token",  # of the ticket that began it last; of the one that settled it
    "begun",  # ms
    "ended",  # ms
    "preparation",  # ms
    "execution",  # ms on the device
    "stage",  # Stage
    "staged",  # ms, since when it is in its stage
    "progress",  # percent
    "cancel",  # ms of the first request
    "cancels",  # number of requests
    "crashes",  # lanes that died under it
    "lost",  # workers that were lost under it
    "transient",  # transient failures
)
"""The words of a job's state, in order; ``-`` is none."""

TEXT_FIELDS = ("project", "device", "priority", "status", "fate", "created")
NUMBER_FIELDS = (
    "open",  # 1 while jobs may be added
    "exclusive",  # 1 on a device that one batch holds
    "started",  # ms, when its first job began
    "ended",  # ms
    "jobs",
    "cursor",  # index of the first job that was never handed out
    "back",  # length of the list of what came back
    "delayed",  # jobs that wait for a retry
    "pending",
    "running",
    "done",
    "error",
    "canceled",
    "seq",  # number of its last event
    "token",  # last token given
    "slots",  # tickets are numbered below this
    "failures",  # of its tickets, in a row
    "idle",  # ms that it may be open without work
    "retries",  # transient failures that a job may have
    "not_before",  # ms, its tickets wait until then
)
"""Fields of the batch record that scripts work with. Beside them stand ``v``, ``doc``, ``updated``, ``fault``, ``tags``
(JSON; absent until they are replaced) and ``children`` (ids of the batches that repeat it)."""


SPECS_FIELDS = ("specs", "specs_name", "specs_by", "specs_at", "specs_max_runs", "max_atom_num")
"""Fields of a device that come with its specs: Pulser's text, the name in it, whose it is (worker, operator), since
when (ms), and its limits."""


class TicketRef(msgspec.Struct, frozen=True):
    """Names a ticket: the batch, and the number of the ticket within it."""

    batch_id: UUID
    number: int

    def __str__(self) -> str:
        return f"{self.batch_id}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> TicketRef:
        batch, _, number = text.rpartition(":")
        return cls(UUID(batch), int(number))


class BatchRecord(msgspec.Struct, frozen=True):
    """A batch as it stands. Times are UTC; ``sequence_number`` is that of its last event."""

    id: UUID
    project: str
    device: str
    priority: Priority
    status: BatchStatus
    open: bool
    created: datetime
    updated: datetime
    started: datetime | None
    ended: datetime | None
    jobs: int
    counts: dict[JobStatus, int]
    sequence_number: int
    doc: BatchDoc
    fault: Fault | None
    children: tuple[UUID, ...] = ()


class JobOwner(msgspec.Struct, frozen=True):
    """As much of a batch as its jobs are made with; a :class:`BatchRecord` does as well."""

    id: UUID
    project: str
    fault: Fault | None = None


class JobRecord(msgspec.Struct, frozen=True):
    """A job as it stands.

    Durations in seconds: ``queue_s`` from its submit to its (last) begin, ``preparation_s`` and
    ``device_s`` as its worker measured them. ``attempt`` is 0 until it begins.
    """

    batch_id: UUID
    index: int
    project: str
    status: JobStatus
    spec: JobSpec
    created: datetime
    started: datetime | None
    ended: datetime | None
    attempt: int
    stage: Stage | None
    stage_since: datetime | None
    progress: float | None
    cancel_requested: datetime | None
    cancel_requests: int
    queue_s: float | None
    preparation_s: float | None
    device_s: float | None
    faults: tuple[Fault, ...]

    @property
    def id(self) -> UUID:
        return job_id(self.batch_id, self.index)

    @property
    def updated(self) -> datetime:
        """When it last changed; progress within a stage is no change."""
        changes = (self.created, self.started, self.stage_since, self.cancel_requested, self.ended)
        return max(change for change in changes if change is not None)


class DeviceRecord(msgspec.Struct, frozen=True):
    """A device that a pool of workers has announced, or an operator has created.

    max_runs: the most shots of a job, by its adapter and its specs. lanes: of live workers. pending, running: its jobs.
    paused: the reason, or None. specs_name: the name that sequences for it carry; None without specs.
    max_atom_num: None without limit. active: whether it is more than a name of former days.
    """

    name: str
    adapter: str
    exclusive: bool
    checks_sequence: bool
    max_runs: int
    lanes: int
    pending: int
    running: int
    paused: str | None
    is_emulator: bool = True
    specs_name: str | None = None
    max_atom_num: int | None = None
    active: bool = True
    created: datetime | None = None


class WorkerRecord(msgspec.Struct, frozen=True):
    """A live worker as its last heartbeat described it."""

    id: str
    device: str
    lanes: int
    busy: int
    host: str
    version: str
    record_version: int
    draining: bool
    started: datetime


DEVICE_FIELDS = (
    *("adapter", "exclusive", "checks_sequence", "max_runs", "is_emulator", "lanes", "pending", "running", "paused"),
    *("created", "inactive", "specs_name", "specs_max_runs", "max_atom_num"),
)
"""What :func:`device_record` reads of a device: all that is short."""


def device_record(name: str, row: Sequence[bytes | None]) -> DeviceRecord | None:
    """The device of the values of DEVICE_FIELDS; None when there is none."""
    text = {field: value.decode() for field, value in zip(DEVICE_FIELDS, row, strict=True) if value is not None}
    if not text:
        return None
    max_runs = int(text.get("max_runs", "0"))
    return DeviceRecord(
        name=name,
        adapter=text.get("adapter", ""),
        exclusive=text.get("exclusive") == "1",
        checks_sequence=text.get("checks_sequence") == "1",
        max_runs=min(max_runs, int(text.get("specs_max_runs", max_runs))),
        lanes=int(text.get("lanes", "0")),
        pending=int(text.get("pending", "0")),
        running=int(text.get("running", "0")),
        paused=text.get("paused"),
        is_emulator=text.get("is_emulator", "1") == "1",
        specs_name=text.get("specs_name"),
        max_atom_num=int(text["max_atom_num"]) if "max_atom_num" in text else None,
        active="inactive" not in text,
        created=moment(text.get("created")),
    )


def moment(milliseconds: str | None) -> datetime | None:
    """A UTC time from milliseconds since 1970 as a record holds them."""
    return None if milliseconds in (None, "0") else datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def moment_us(microseconds: str) -> datetime:
    """A UTC time from microseconds since 1970, to the millisecond, as all times of a record."""
    return datetime.fromtimestamp(int(microseconds) // 1000 / 1000, UTC)


def read_state(raw: bytes | None) -> dict[str, str]:
    """The words of a job's state by name, without those that are none."""
    if raw is None:
        return {"status": JobStatus.PENDING.letter}
    return {name: word for name, word in zip(STATE_FIELDS, raw.decode().split(), strict=True) if word != "-"}


def batch_record(batch_id: UUID, row: dict[str, bytes]) -> BatchRecord:
    """The batch of a hash as Redis holds it."""
    text = {name: value.decode() for name, value in row.items() if name not in ("doc", "fault")}
    doc = decode_doc(row["doc"])
    if "tags" in row:
        doc = msgspec.structs.replace(doc, tags=msgspec.json.decode(row["tags"], type=tuple[str, ...]))

    def number(name: str) -> int:
        return int(text.get(name, "0"))

    created = moment_us(text["created"])
    return BatchRecord(
        id=batch_id,
        project=text["project"],
        device=text["device"],
        priority=Priority(text["priority"]),
        status=BATCH_BY_LETTER[text["status"]],
        open=number("open") == 1,
        created=created,
        updated=moment(text.get("updated")) or created,
        started=moment(text.get("started")),
        ended=moment(text.get("ended")),
        jobs=number("jobs"),
        counts={status: number(status.value.lower()) for status in JobStatus},
        sequence_number=number("seq"),
        doc=doc,
        fault=decode_fault(row["fault"]) if "fault" in row else None,
        children=tuple(map(UUID, text.get("children", "").split())),
    )


def job_record(
    batch: BatchRecord | JobOwner, index: int, spec: bytes, state: bytes | None, fault: bytes | None
) -> JobRecord:
    """The job of what Redis holds of it. Without a fault of its own a job in ERROR has its batch's."""
    created, _, packed = spec.partition(b" ")
    words = read_state(state)
    status = JOB_BY_LETTER[words["status"]]
    faults = (decode_fault(fault),) if fault is not None else ()
    if not faults and status is JobStatus.ERROR and batch.fault is not None:
        faults = (batch.fault,)
    submitted, started = moment_us(created.decode()), moment(words.get("begun"))
    if status is JobStatus.PENDING:
        started = None
    progress = words.get("progress")
    return JobRecord(
        batch_id=batch.id,
        index=index,
        project=batch.project,
        status=status,
        spec=decode_spec(packed),
        created=submitted,
        started=started,
        ended=moment(words.get("ended")),
        attempt=int(words.get("attempt", "0")),
        stage=Stage(words["stage"]) if "stage" in words else Stage.QUEUED if status is JobStatus.PENDING else None,
        stage_since=moment(words.get("staged")) or (submitted if status is JobStatus.PENDING else None),
        progress=None if progress is None else float(progress) / 100,
        cancel_requested=moment(words.get("cancel")),
        cancel_requests=int(words.get("cancels", "0")),
        queue_s=None if started is None else max((started - submitted).total_seconds(), 0.0),
        preparation_s=_seconds(words.get("preparation")),
        device_s=_seconds(words.get("execution")),
        faults=faults,
    )


def _seconds(milliseconds: str | None) -> float | None:
    return None if milliseconds is None else int(milliseconds) / 1000
