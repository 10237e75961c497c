"""The shape of the records in Redis, shared with the scripts, and their typed form for readers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from tweezer.model.cancels import CancelAttempt, CancelOutcome, read_attempts
from tweezer.model.errors import FaultKind, NewerRecord, Unreadable
from tweezer.model.ids import job_id
from tweezer.model.lifecycle import BATCH_BY_LETTER, JOB_BY_LETTER, BatchStatus, JobStatus, Stage
from tweezer.model.messages import (
    RECORD_VERSION,
    BatchDoc,
    Fault,
    JobSpec,
    Priority,
    decode_doc,
    decode_fault,
    decode_spec,
)
from tweezer.model.sequence import ANYWHERE, Geometry
from tweezer.model.windows import DeviceState, Unavailability, UnavailabilityKind, Window, remaining_s

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
    "outcome",  # prevented or stopped (CancelOutcome), of a job that was canceled on request
)
"""The words of a job's state, in order; ``-`` is none. One that an older release wrote has fewer."""

TEXT_FIELDS = ("project", "device", "priority", "status", "fate", "created")
NUMBER_FIELDS = (
    "open",  # 1 while jobs may be added
    "exclusive",  # 1 on a device that one batch holds
    "reattaches",  # 1 on a device whose jobs run on, whatever becomes of the worker
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
    "crashes",  # of these, in a row, those where the lane's process died while it prepared the batch
    "idle",  # ms that it may be open without work
    "retries",  # transient failures that a job may have
    "not_before",  # ms, its tickets wait until then
    "reserved",  # ms, since when it holds its device without work; 0: it does not
    "idled",  # ms that it has held its device without work before
    "warned",  # ms, the deadline before which it was warned last
    "charged",  # pending jobs that its project's counter has of it
    "bytes",  # that its project's counter of queued bytes has of it; 0 once it has ended
    "results",  # bytes of its results
)
"""Fields of the batch record that scripts work with. Beside them stand ``v``, ``doc``, ``updated``, ``timeout``
(ms that a job may take), ``worked`` (ms that its DONE jobs took), ``fault``, ``tags``
(JSON; absent until they are replaced), ``children`` (ids of the batches that repeat it) and ``cancels`` (who asked for
the end of which jobs, a line each; see :mod:`tweezer.model.cancels`)."""


_OF_SPACE = ("max_atom_num", "min_atom_distance", "max_radial_distance")

SPECS_FIELDS = ("specs", "specs_name", "specs_by", "specs_at", "specs_max_runs", *_OF_SPACE)
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


class Lease(msgspec.Struct, frozen=True):
    """The lease of a ticket: the lane that works on it, and for how long it is still good unless it is renewed."""

    lane: str
    left_s: float

    @property
    def worker(self) -> str:
        """Id of the lane's worker."""
        return self.lane.rpartition(":")[0]


class BatchRecord(msgspec.Struct, frozen=True):
    """A batch as it stands. Times are UTC; ``sequence_number`` is that of its last event.

    idle_s: how long it has held a machine without having work for it; while it does so now, until then. job_s: how long
    its DONE jobs took, on average.
    """

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
    idle_s: float = 0.0
    job_s: float | None = None
    cancels: tuple[CancelAttempt, ...] = ()


class JobOwner(msgspec.Struct, frozen=True):
    """As much of a batch as its jobs are made with; a :class:`BatchRecord` does as well."""

    id: UUID
    project: str
    fault: Fault | None = None
    cancels: tuple[CancelAttempt, ...] = ()


class JobRecord(msgspec.Struct, frozen=True):
    """A job as it stands.

    Durations in seconds: ``queue_s`` from its submit to its (last) begin, ``preparation_s`` and
    ``device_s`` as its worker measured them. ``attempt`` is 0 until it begins.

    cancel_requested: when somebody first asked for its end. cancel_requests: how often it was asked to end, also by its
    time limit; cancels: by whom and when, as far as that was noted. cancel_outcome: what came of it, once it has ended.
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
    cancel_outcome: CancelOutcome | None = None
    cancels: tuple[CancelAttempt, ...] = ()

    @property
    def id(self) -> UUID:
        return job_id(self.batch_id, self.index)

    @property
    def updated(self) -> datetime:
        """When it last changed; progress within a stage is no change."""
        changes = (self.created, self.started, self.stage_since, self.cancel_requested, self.ended)
        return max(change for change in changes if change is not None)

    @property
    def may_have_result(self) -> bool:
        """Whether it is DONE, or was stopped while it ran, when what it had measured is kept."""
        stopped = self.status is JobStatus.CANCELED and self.cancel_outcome is not CancelOutcome.PREVENTED
        return self.status is JobStatus.DONE or stopped or self.cancel_outcome is CancelOutcome.STOPPED


class DeviceRecord(msgspec.Struct, frozen=True):
    """A device that a pool of workers has announced, or an operator has created.

    max_runs: the most shots of a job, by its adapter and its specs. lanes: of live workers. pending, running: its jobs.
    paused: the operator's reason, or None; paused_until: when it goes on by itself, if ever. window: the maintenance
    that is under way, or the next one. down: why the machine runs no jobs, or None. unsure: why it is not known how it
    is, and since when. job_s: how long its jobs took lately, on average. specs_name: the name that sequences for it
    carry; None without specs. max_atom_num: None without limit. geometry: what the atoms of a sequence are checked
    against; of an emulator their number alone. active: whether it is more than a name of former days.
    reattaches: whether its jobs run on, whatever becomes of the worker. set_back: when it was last noticed that the job
    ids of its machine began anew.
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
    down: str | None = None
    unsure: str | None = None
    unsure_since: datetime | None = None
    paused_until: datetime | None = None
    window: Window | None = None
    job_s: float | None = None
    is_emulator: bool = True
    specs_name: str | None = None
    max_atom_num: int | None = None
    geometry: Geometry = ANYWHERE
    active: bool = True
    created: datetime | None = None
    reattaches: bool = False
    set_back: datetime | None = None

    def unavailability(self, now: datetime) -> Unavailability | None:
        """Why it begins no jobs, None if it does: what an operator did goes before what happened to it."""
        window = self.window
        if self.paused is not None:
            return Unavailability(UnavailabilityKind.PAUSED, self.paused, self.paused_until)
        if window is not None and window.begins <= now < window.ends:
            return Unavailability(UnavailabilityKind.MAINTENANCE, window.reason, window.ends)
        if self.down is not None:
            return Unavailability(UnavailabilityKind.DOWN, self.down)
        return None if self.lanes else Unavailability(UnavailabilityKind.UNSERVED)

    def waits_for_window(self, batch: BatchRecord, now: datetime) -> Window | None:
        """The maintenance after which alone the batch goes on: it would not end before."""
        if self.window is None or now >= self.window.begins:
            return None
        needs_s = remaining_s(
            pending=batch.counts[JobStatus.PENDING],
            begun=batch.started is not None,
            lanes=1 if self.exclusive else self.lanes,
            job_s=self.job_s,
            batch_job_s=batch.job_s,
            limit_s=batch.doc.limits.job_timeout_s,
        )
        return self.window if now + timedelta(seconds=needs_s) > self.window.begins else None


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
    jail: str = ""
    """``on`` when the processes of its lanes are jailed, else what is missing; empty when they are none, or it does
    not say (an older version)."""


DEVICE_FIELDS = (
    *("adapter", "exclusive", "checks_sequence", "max_runs", "is_emulator", "lanes", "pending", "running", "paused"),
    *("down", "unsure", "unsure_since", "paused_until", "window", "job_ms"),
    *("created", "inactive", "specs_name", "specs_max_runs", *_OF_SPACE, "reattaches", "set_back"),
)
"""What :func:`device_record` reads of a device: all that is short."""


def device_record(name: str, row: Sequence[bytes | None]) -> DeviceRecord | None:
    """The device of the values of DEVICE_FIELDS; None when there is none."""
    text = {field: value.decode() for field, value in zip(DEVICE_FIELDS, row, strict=True) if value is not None}
    if not text:
        return None
    max_runs = int(text.get("max_runs", "0"))
    is_emulator = text.get("is_emulator", "1") == "1"
    max_atoms = int(text["max_atom_num"]) if "max_atom_num" in text else None
    space = () if is_emulator else tuple(_number(text.get(field)) for field in _OF_SPACE[1:])
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
        down=text.get("down"),
        unsure=text.get("unsure"),
        unsure_since=moment(text.get("unsure_since")),
        paused_until=moment(text.get("paused_until")),
        window=None if "window" not in text else window_record(text["window"]),
        job_s=int(text["job_ms"]) / 1000 if "job_ms" in text else None,
        is_emulator=is_emulator,
        specs_name=text.get("specs_name"),
        max_atom_num=max_atoms,
        geometry=Geometry(max_atoms, *space),
        active="inactive" not in text,
        created=moment(text.get("created")),
        reattaches=text.get("reattaches") == "1",
        set_back=None if "set_back" not in text else moment_us(text["set_back"].split()[0]),
    )


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def window_record(text: str) -> Window:
    """The window of its begin, its end, its id, and what is told when it begins."""
    begins, ends, identity, data = text.split(" ", 3)
    about = msgspec.json.decode(data, type=DeviceState)
    return Window(identity, _moment(begins), _moment(ends), about.reason or "")


def _moment(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


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
    return {name: word for name, word in zip(STATE_FIELDS, raw.decode().split(), strict=False) if word != "-"}


DAMAGED = (msgspec.MsgspecError, ValueError, LookupError)
"""What decoding a damaged record raises."""


def check_version(batch_id: UUID, version: bytes) -> None:
    """Raise NewerRecord if the batch, and so its jobs, were written by a newer Tweezer."""
    text = version.decode(errors="replace")
    if text.isdecimal() and int(text) > RECORD_VERSION:
        raise NewerRecord(batch_id, RECORD_VERSION, text)


def batch_record(batch_id: UUID, row: dict[str, bytes]) -> BatchRecord:
    """The batch of a hash as Redis holds it. Raises Unreadable, NewerRecord."""
    check_version(batch_id, row.get("v", b""))
    try:
        return _batch_record(batch_id, row)
    except DAMAGED as error:
        raise Unreadable(f"the record of batch {batch_id} cannot be read: {error}") from error


def _batch_record(batch_id: UUID, row: dict[str, bytes]) -> BatchRecord:
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
        idle_s=number("idled") / 1000,
        job_s=number("worked") / number("done") / 1000 if number("worked") and number("done") else None,
        cancels=read_attempts(text.get("cancels", "")),
    )


def job_record(
    batch: BatchRecord | JobOwner, index: int, spec: bytes, state: bytes | None, fault: bytes | None
) -> JobRecord:
    """The job of what Redis holds of it. Raises Unreadable.

    Without a fault of its own a job in ERROR has its batch's.
    """
    try:
        return _job_record(batch, index, spec, state, fault)
    except DAMAGED as error:
        raise Unreadable(f"the record of job {index} of batch {batch.id} cannot be read: {error}") from error


def _job_record(
    batch: BatchRecord | JobOwner, index: int, spec: bytes, state: bytes | None, fault: bytes | None
) -> JobRecord:
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
    ended, requested = moment(words.get("ended")), moment(words.get("cancel"))
    return JobRecord(
        batch_id=batch.id,
        index=index,
        project=batch.project,
        status=status,
        spec=decode_spec(packed),
        created=submitted,
        started=started,
        ended=ended,
        attempt=int(words.get("attempt", "0")),
        stage=Stage(words["stage"]) if "stage" in words else Stage.QUEUED if status is JobStatus.PENDING else None,
        stage_since=moment(words.get("staged")) or (submitted if status is JobStatus.PENDING else None),
        progress=None if progress is None else float(progress) / 100,
        cancel_requested=requested,
        cancel_requests=int(words.get("cancels", "0")),
        queue_s=None if started is None else max((started - submitted).total_seconds(), 0.0),
        preparation_s=_seconds(words.get("preparation")),
        device_s=_seconds(words.get("execution")),
        faults=faults,
        cancel_outcome=_cancel_outcome(status, words, faults),
        cancels=tuple(attempt for attempt in batch.cancels if attempt.concerns(index, requested, ended)),
    )


_UNSURE = frozenset({"unconfirmed", "unknown"})  # codes of faults that say so


def _cancel_outcome(status: JobStatus, words: dict[str, str], faults: Sequence[Fault]) -> CancelOutcome | None:
    """What the requests to end a job did; None without any, and while it has not ended."""
    if "cancels" not in words or not status.terminal:
        return None
    if status is JobStatus.CANCELED:
        return CancelOutcome(words.get("outcome", CancelOutcome.STOPPED))
    codes = {fault.code for fault in faults} if status is JobStatus.ERROR else set()
    if codes & _UNSURE:
        return CancelOutcome.UNCONFIRMED
    return CancelOutcome.STOPPED if FaultKind.TIMEOUT.value in codes else CancelOutcome.TOO_LATE


def _seconds(milliseconds: str | None) -> float | None:
    return None if milliseconds is None else int(milliseconds) / 1000
