"""The layout of the records in Redis, which the scripts share, and their typed form."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID

import msgspec

from tweezer.model.cancels import RULE, CancelAttempt, CancelOutcome, read_attempts
from tweezer.model.errors import FaultKind, NewerRecord, Unreadable
from tweezer.model.ids import job_id, short_id
from tweezer.model.lifecycle import BATCH_BY_LETTER, JOB_BY_LETTER, BatchStatus, JobStatus, Stage
from tweezer.model.messages import (
    RECORD_VERSION,
    BatchDoc,
    Fault,
    JobSpec,
    Priority,
    Steps,
    decode_doc,
    decode_fault,
    decode_spec,
    read_steps,
)
from tweezer.model.rules import StoredRules
from tweezer.model.sequence import ANYWHERE, Geometry
from tweezer.model.summaries import cut, describe_counts, describe_job, format_count
from tweezer.model.windows import DeviceState, Unavailability, UnavailabilityKind, Window, remaining_s

STATE_FIELDS = (
    "status",  # letter of JobStatus
    "attempt",  # how often its execution began (drains do not count)
    "token",  # of the ticket that began it last, or that settled it
    "begun",  # ms
    "ended",  # ms
    "preparation",  # ms
    "execution",  # ms on the device
    "stage",  # Stage
    "staged",  # ms, since when it is in its stage
    "progress",  # percent
    "cancel",  # ms of the first request
    "cancels",  # number of requests
    "crashes",  # lanes whose process died while they ran it
    "lost",  # workers that were lost while they ran it
    "transient",  # transient failures
    "outcome",  # prevented or stopped (CancelOutcome), of a job that was canceled on request
    "steps",  # of its progress: done/total
    "message",  # of its progress, see messages.pack_steps
)
"""The words of a job's state, in order; ``-`` means no value. States written by older releases have fewer words."""

USUAL_WORDS = STATE_FIELDS.index("steps")
"""The number of words that each state has. Only a running job has the others, if its progress has steps."""

MADE_FIELDS = (
    "device",
    "priority",
    "created",  # µs
    "exclusive",  # 1 on a device that one batch holds
    "timeout",  # ms, time limit of a job; 0 means none
    "retries",  # transient failures that a job may have
    "idle",  # ms that it may be open without work
    "not_before",  # ms, its tickets wait until then
)
TIME_FIELDS = (
    "updated",  # ms; 0 if nothing has changed since it was created
    "started",  # ms, when its first job began
    "ended",  # ms
    "token",  # the last token that was issued: at least the time of a take, in µs
)
NOW_FIELDS = (
    "status",  # letter of BatchStatus
    "fate",  # letter of the status in which it will end, if that is decided
    "open",  # 1 while jobs may be added
    "jobs",
    "cursor",  # index of the first job that was never handed out
    "pending",
    "running",
    "done",
    "seq",  # number of its last event
    "slots",  # ticket numbers are below this
    "charged",  # its pending jobs that are included in its project's counter
    "bytes",  # its bytes that are included in its project's counter of queued bytes; 0 once it has ended
    "results",  # bytes of its results
    "worked",  # ms, total duration of its DONE jobs
)
RARE_FIELDS = (
    "reattaches",  # 1 on a device whose jobs continue when the worker is lost
    "back",  # length of the list of jobs that came back
    "delayed",  # jobs that wait for a retry
    "error",
    "canceled",
    "failures",  # consecutive failures of its tickets
    "crashes",  # consecutive failures where the lane's process died while it prepared the batch
    "reserved",  # ms, since when it holds its device without work; 0 if it does not
    "idled",  # ms that it held its device without work before that
    "warned",  # ms, the deadline for which it was last warned
)
RECORD: Mapping[str, Sequence[str]] = {"made": MADE_FIELDS, "times": TIME_FIELDS, "now": (*NOW_FIELDS, *RARE_FIELDS)}
"""The record of a batch: fields of its hash, and the values in each of them, as a JSON array without brackets.

Of ``made`` only the priority changes. ``times`` is missing while its values are 0. ``now`` ends before the rare values
if these are 0.
Each field is usually shorter than 64 bytes, so that Redis stores a small hash compactly. New values are appended to
``now``; a record without them has zeros. A process that does not know them sets them to zero, so a value that must not
be lost needs a new version.

The hash also has ``v``, ``project``, ``doc``, a field ``t:<n>`` for each ticket, ``fault``, ``tags`` (JSON, once they
were replaced), ``children`` (ids of the batches that repeat it), ``cancels`` (cancel requests, a line each; see
:mod:`tweezer.model.cancels`), ``paused`` (see :meth:`BatchPause.read`), ``rules`` (JSON, see
:class:`~tweezer.model.rules.StoredRules`) and ``parents`` (the batches that it waits for: an id, a colon and the letter
of :class:`~tweezer.model.rules.When` each). In version 1, each value of the record was a field of the hash."""

NO_TIMES = b",".join(b"0" for _ in TIME_FIELDS)
"""The value of ``times`` where it is missing."""

OLDER = b"1"
"""The version in which each value is a field of the hash. The ledger stores records in this form."""

RECORD_VALUES = tuple(itertools.chain.from_iterable(RECORD.values()))
TEXT_VALUES = frozenset({"device", "priority", "status", "fate"})


def unpack_record(row: dict[str, bytes]) -> dict[str, bytes]:
    """Return the fields of a batch's hash with the values of its record as fields, without zeros, as in version 1.

    The ledger stores them in this form. Raises an error of DAMAGED.
    """
    if row["v"] == OLDER:
        return row
    fields = {name: value for name, value in row.items() if name not in RECORD} | {"v": OLDER}
    row = {"times": NO_TIMES, **row}
    for part, names in RECORD.items():
        values = msgspec.json.decode(b"[%b]" % row[part], type=list[str | int])
        if len(values) < len(names) - (len(RARE_FIELDS) if part == "now" else 0):
            raise ValueError(f"the field {part!r} is too short")
        fields.update((name, str(value).encode()) for name, value in zip(names, values, strict=False) if value)
    fields.setdefault("updated", fields["created"][:-3])
    return fields


_OF_SPACE = ("max_atom_num", "min_atom_distance", "max_radial_distance")

SPECS_FIELDS = ("specs", "specs_name", "specs_by", "specs_at", "specs_max_runs", *_OF_SPACE)
"""Fields of a device that belong to its specs: Pulser's text, the name in it, who set it (worker or operator), when
(ms), and the limits."""


class TicketRef(msgspec.Struct, frozen=True):
    """A ticket's name: its batch and its number within the batch."""

    batch_id: UUID
    number: int

    def __str__(self) -> str:
        return f"{self.batch_id}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> TicketRef:
        batch, _, number = text.rpartition(":")
        return cls(UUID(batch), int(number))


class Lease(msgspec.Struct, frozen=True):
    """The lease of a ticket: the lane that works on it, and the time until it expires unless it is renewed."""

    lane: str
    left_s: float

    @property
    def worker(self) -> str:
        """Id of the lane's worker."""
        return self.lane.rpartition(":")[0]


class BatchPause(msgspec.Struct, frozen=True):
    """Who paused a batch, when, and why; the reason is empty if none was given."""

    at: datetime
    by: str
    reason: str

    @classmethod
    def read(cls, text: str) -> Self:
        """Parse milliseconds and the requester on a line, and the reason on the next one."""
        line, _, reason = text.partition("\n")
        milliseconds, by = line.split(" ", 1)
        return cls(_moment(milliseconds), by, reason)


class BatchRecord(msgspec.Struct, frozen=True):
    """The current state of a batch. Times are UTC.

    Attributes:
        counts: Number of jobs by status.
        sequence_number: Number of its last event.
        doc: The part that does not change after the submit.
        fault: Why it is in ERROR, or was ended by one of its rules.
        children: Ids of the batches that repeat it.
        idle_s: How long it held a machine without work, in seconds; the current such period is not included.
        job_s: Average duration of its DONE jobs, in seconds.
        cancels: The cancel requests, oldest first.
        not_before: The earliest time to start; None if it may start at once.
        pause: Who paused it, when and why; None if it is not paused, or was paused by an older version.
        expires: When its queue timeout ends; None without one. It has no effect once the batch has started.
        retried: Number of retries that count towards its limit; 0 without a limit.
        waits_for: The batches that it depends on and still waits for.
    """

    id: UUID
    project: str
    device: str
    priority: Priority
    status: BatchStatus
    open: bool
    created: datetime
    updated: datetime
    jobs: int
    counts: dict[JobStatus, int]
    sequence_number: int
    doc: BatchDoc
    started: datetime | None = None
    ended: datetime | None = None
    fault: Fault | None = None
    children: tuple[UUID, ...] = ()
    idle_s: float = 0.0
    job_s: float | None = None
    cancels: tuple[CancelAttempt, ...] = ()
    not_before: datetime | None = None
    pause: BatchPause | None = None
    expires: datetime | None = None
    retried: int = 0
    waits_for: tuple[UUID, ...] = ()

    @property
    def may_wait(self) -> bool:
        """Whether it may wait for its device: it has jobs that have not ended."""
        return not self.status.terminal and self.counts[JobStatus.PENDING] + self.counts[JobStatus.RUNNING] > 0

    def starts_later(self, now: datetime) -> bool:
        """Return whether its start time keeps it waiting."""
        may_start = self.may_wait and not self.counts[JobStatus.RUNNING] and self.status is not BatchStatus.PAUSED
        return may_start and self.not_before is not None and now < self.not_before

    @property
    def end(self) -> str:
        """How it ended: the letter of its status, followed by F if a job failed; empty if it is live."""
        if not self.status.terminal:
            return ""
        return self.status.letter + ("F" if self.counts[JobStatus.ERROR] else "")

    def __repr__(self) -> str:
        name = f", {cut(self.doc.name)!r}" if self.doc.name else ""
        fault = f": {cut(str(self.fault))}" if self.fault is not None else ""
        return (
            f"<batch {short_id(self.id)} {self.status} on {self.device}, {describe_counts(self.counts)}{name}{fault}>"
        )

    def _repr_html_(self) -> str:
        from tweezer.display.html import draw_batch

        return draw_batch(self)


class JobOwner(msgspec.Struct, frozen=True):
    """The fields of a batch that are needed to make records of its jobs; a :class:`BatchRecord` has them too."""

    id: UUID
    project: str
    fault: Fault | None = None
    cancels: tuple[CancelAttempt, ...] = ()


class JobRecord(msgspec.Struct, frozen=True):
    """The current state of a job. Times are UTC, durations are in seconds.

    Attributes:
        attempt: The number of its (last) attempt; 0 until it begins.
        stage: What it is doing while PENDING or RUNNING, and ``stage_since`` when that began.
        progress: 0 to 1; None if unknown.
        steps: The finished and all steps, and what it does, while it is RUNNING; None if unknown.
        cancel_requested: When a cancel was first requested.
        cancel_requests: Number of requests to end it, including those because of its time limit.
        queue_s: From its submit to its (last) begin.
        preparation_s: Time of preparation, as measured by its worker.
        device_s: Time on the device, as measured by its worker.
        faults: Why it failed.
        cancel_outcome: The effect of the cancel requests, once it has ended.
        cancels: The cancel requests, as far as they were recorded.
        token: Fencing token of the claim that began or settled it last; None over HTTP.
    """

    batch_id: UUID
    index: int
    project: str
    status: JobStatus
    spec: JobSpec
    created: datetime
    started: datetime | None = None
    ended: datetime | None = None
    attempt: int = 0
    stage: Stage | None = None
    stage_since: datetime | None = None
    progress: float | None = None
    cancel_requested: datetime | None = None
    cancel_requests: int = 0
    queue_s: float | None = None
    preparation_s: float | None = None
    device_s: float | None = None
    faults: tuple[Fault, ...] = ()
    cancel_outcome: CancelOutcome | None = None
    cancels: tuple[CancelAttempt, ...] = ()
    token: str | None = None
    steps: Steps | None = None

    def __repr__(self) -> str:
        runs = self.spec.runs or self.spec.runs_shown
        stage = self.stage.value if self.stage is not None and self.status is JobStatus.RUNNING else ""
        doing = stage if self.progress is None or not stage else f"{stage} {self.progress:.0%}"
        why = cut("; ".join(map(str, self.faults)))
        return describe_job(
            self.index, self.status, self.spec.variables, format_count(runs, "run") if runs else "", doing, why
        )

    def _repr_html_(self) -> str:
        from tweezer.display.html import draw_job

        return draw_job(self)

    @property
    def id(self) -> UUID:
        return job_id(self.batch_id, self.index)

    @property
    def updated(self) -> datetime:
        """When it last changed, not counting progress within a stage."""
        changes = (self.created, self.started, self.stage_since, self.cancel_requested, self.ended)
        return max(change for change in changes if change is not None)

    @property
    def may_have_result(self) -> bool:
        """Whether it may have a result: it is DONE, or was stopped while it ran and kept its measurements."""
        stopped = self.status is JobStatus.CANCELED and self.cancel_outcome is not CancelOutcome.PREVENTED
        return self.status is JobStatus.DONE or stopped or self.cancel_outcome is CancelOutcome.STOPPED


class DeviceRecord(msgspec.Struct, frozen=True):
    """A device that workers have announced or an operator has created.

    Attributes:
        exclusive: Whether one batch has the device to itself.
        checks_sequence: False if it accepts any text as a sequence.
        max_runs: Maximum number of shots of a job, according to its adapter and specs.
        lanes: Lanes of live workers.
        pending: Its pending jobs.
        running: Its running jobs.
        paused: The operator's reason; None if it is not paused.
        down: Why the machine runs no jobs; None if it is up.
        unsure: Why the state of the machine is unknown, and ``unsure_since`` since when; None if it is known.
        paused_until: When the pause ends; None if an operator must resume it.
        window: The current or the next maintenance window.
        job_s: Average duration of its recent jobs, in seconds.
        specs_name: The device's name in sequences; None without specs.
        max_atom_num: None means no limit.
        geometry: The limits that registers are checked against; on an emulator only the number of atoms.
        active: False if only its name and counters are left.
        reattaches: Whether its jobs continue when the worker is lost.
        set_back: When a restart of the machine's job ids was last noticed.
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
        """Return why the device begins no jobs, or None.

        Actions of operators take precedence over other reasons. Without a worker, it is unknown whether the machine
        is still down.
        """
        window = self.window
        if self.paused is not None:
            return Unavailability(UnavailabilityKind.PAUSED, self.paused, self.paused_until)
        if window is not None and window.begins <= now < window.ends:
            return Unavailability(UnavailabilityKind.MAINTENANCE, window.reason, window.ends)
        if not self.lanes:
            return Unavailability(UnavailabilityKind.UNSERVED)
        return None if self.down is None else Unavailability(UnavailabilityKind.DOWN, self.down)

    def waits_for_window(self, batch: BatchRecord, now: datetime) -> Window | None:
        """Return the maintenance window that the batch waits for because it would not end before; None otherwise."""
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


def utc_clock(moment: datetime) -> str:
    """Format a time in UTC, for people whose time zone is not known."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def describe_wait(
    batch: BatchRecord,
    device: DeviceRecord | None,
    now: datetime,
    clock: Callable[[datetime], str] = utc_clock,
    names: Mapping[UUID, str] | None = None,
) -> str | None:
    """Return what a batch waits for: one with pending jobs that runs none, or whose machine does not answer.

    None if nothing is known to keep it waiting. device: its device, as far as it is known. clock: formats times.
    names: those of batches that it waits for, instead of their short ids.
    """
    if not batch.may_wait:
        return None
    if batch.counts[JobStatus.RUNNING]:
        if device is None or device.unsure is None:
            return None
        since = "" if device.unsure_since is None else f" since {clock(device.unsure_since)}"
        return f"{device.name}: no answer{since}: {device.unsure}"
    if batch.status is BatchStatus.PAUSED:
        return "someone to resume it: the batch is paused"
    if batch.waits_for:
        first, *more_parents = batch.waits_for
        more = f" and {format_count(len(more_parents), 'more batch')}" if more_parents else ""
        return f"the end of {(names or {}).get(first, short_id(first))}{more}"
    if batch.not_before is not None and batch.starts_later(now):
        return f"its start time, {clock(batch.not_before)}"
    if device is None:
        return None
    if (hold := device.unavailability(now)) is not None:
        return f"{device.name}: {hold.describe(clock)}"
    if (window := device.waits_for_window(batch, now)) is not None:
        when = f"{clock(window.begins)} to {clock(window.ends)}"
        return f"{device.name}: the batch would not end before the maintenance from {when}: {window.reason}"
    if device.running < device.lanes:
        return None
    others = device.pending - batch.counts[JobStatus.PENDING]
    busy = f"all {device.lanes} lanes are busy" if device.lanes > 1 else "its lane is busy"
    behind = f"; other batches have {others} pending job{'s' if others > 1 else ''}" if others > 0 else ""
    return f"{device.name}: {busy}{behind}"


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
    """``on`` if the processes of its lanes are jailed, else what is missing; empty if it has no such processes, or an
    older version that does not report it."""


DEVICE_FIELDS = (
    *("adapter", "exclusive", "checks_sequence", "max_runs", "is_emulator", "lanes", "pending", "running", "paused"),
    *("down", "unsure", "unsure_since", "paused_until", "window", "job_ms"),
    *("created", "inactive", "specs_name", "specs_max_runs", *_OF_SPACE, "reattaches", "set_back"),
)
"""The fields that :func:`device_record` needs: all short ones."""


def device_record(name: str, row: Sequence[bytes | None]) -> DeviceRecord | None:
    """Make a device's record from the values of DEVICE_FIELDS; None if the device does not exist."""
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
    """Parse a window: its begin, end and id, and the notice that is sent when it begins."""
    begins, ends, identity, data = text.split(" ", 3)
    about = msgspec.json.decode(data, type=DeviceState)
    return Window(identity, _moment(begins), _moment(ends), about.reason or "")


def _moment(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def moment(milliseconds: str | None) -> datetime | None:
    """Convert a record's milliseconds since 1970 to a UTC time; None for no value or 0."""
    return None if milliseconds in (None, "0") else datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def moment_us(microseconds: str) -> datetime:
    """Convert microseconds since 1970 to a UTC time in whole milliseconds, like all times of a record."""
    return datetime.fromtimestamp(int(microseconds) // 1000 / 1000, UTC)


def read_state(raw: bytes | None) -> dict[str, str]:
    """Return the words of a job's state by name, without those that have no value."""
    if raw is None:
        return {"status": JobStatus.PENDING.letter}
    return {name: word for name, word in zip(STATE_FIELDS, raw.decode().split(), strict=False) if word != "-"}


_CANCELS = STATE_FIELDS.index("cancels")


def has_cancels(raw: bytes | None) -> bool:
    """Return whether a job's state has cancel requests."""
    words = (raw or b"").split()
    return len(words) > _CANCELS and words[_CANCELS] != b"-"


DAMAGED = (msgspec.MsgspecError, ValueError, LookupError)
"""The exceptions that decoding a damaged record raises."""


def check_version(batch_id: UUID, version: bytes) -> None:
    """Raise NewerRecord if the batch, and so its jobs, were written by a newer Tweezer."""
    text = version.decode(errors="replace")
    if text.isdecimal() and int(text) > RECORD_VERSION:
        raise NewerRecord(batch_id, RECORD_VERSION, text)


def batch_record(batch_id: UUID, row: dict[str, bytes], doc: BatchDoc | None = None) -> BatchRecord:
    """Make a batch's record from its hash in Redis, or from the hash without the doc and a doc that is known.

    Raises Unreadable, NewerRecord.
    """
    check_version(batch_id, row.get("v", b""))
    try:
        return _batch_record(batch_id, unpack_record(row), doc)
    except DAMAGED as error:
        raise Unreadable(f"the record of batch {batch_id} cannot be read: {error}") from error


def _batch_record(batch_id: UUID, row: dict[str, bytes], doc: BatchDoc | None) -> BatchRecord:
    text = {name: value.decode() for name, value in row.items() if name not in ("doc", "fault")}
    doc = decode_doc(row["doc"]) if doc is None else doc
    if "tags" in row:
        doc = msgspec.structs.replace(doc, tags=msgspec.json.decode(row["tags"], type=tuple[str, ...]))

    def number(name: str) -> int:
        return int(text.get(name, "0"))

    created, is_paused = moment_us(text["created"]), text["status"] == BatchStatus.PAUSED.letter
    rules = msgspec.json.decode(row["rules"], type=StoredRules) if "rules" in row else StoredRules()
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
        not_before=moment(text.get("not_before")),
        pause=BatchPause.read(text["paused"]) if is_paused and "paused" in text else None,
        expires=None if rules.expires is None else _moment(str(round(rules.expires))),
        retried=rules.retried,
        waits_for=tuple(UUID(parent.partition(":")[0]) for parent in text.get("parents", "").split()),
    )


class NewBatch(msgspec.Struct, frozen=True):
    """A batch as it was written, before anything else happened to it."""

    batch: BatchRecord
    specs: Sequence[JobSpec]

    @classmethod
    def of(
        cls, batch_id: UUID, project: str, doc: BatchDoc, specs: Sequence[JobSpec], *, created_us: str, **fields: Any
    ) -> Self:
        """Return the batch. fields: its priority, its start time, and whether it is open."""
        created = moment_us(created_us)
        batch = BatchRecord(
            id=batch_id,
            project=project,
            device=doc.device,
            status=BatchStatus.PENDING,
            created=created,
            updated=created,
            jobs=len(specs),
            counts={status: len(specs) if status is JobStatus.PENDING else 0 for status in JobStatus},
            sequence_number=1,
            doc=doc,
            **fields,
        )
        return cls(batch, specs)

    def jobs(self) -> list[JobRecord]:
        """Return the jobs."""
        batch, created = self.batch, self.batch.created
        return [
            JobRecord(
                batch_id=batch.id,
                index=index,
                project=batch.project,
                status=JobStatus.PENDING,
                spec=spec,
                created=created,
                stage=Stage.QUEUED,
                stage_since=created,
            )
            for index, spec in enumerate(self.specs)
        ]


def job_record(
    batch: BatchRecord | JobOwner, index: int, spec: bytes, state: bytes | None, fault: bytes | None
) -> JobRecord:
    """Make a job's record from its fields in Redis. Raises Unreadable.

    A job in ERROR without a fault gets that of its batch, and so does one that a rule of its batch cancelled.
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
    submitted, started = moment_us(created.decode()), moment(words.get("begun"))
    if status is JobStatus.PENDING:
        started = None
    progress = words.get("progress")
    ended, requested = moment(words.get("ended")), moment(words.get("cancel"))
    cancels = tuple(attempt for attempt in batch.cancels if attempt.concerns(index, requested, ended))
    if not faults and batch.fault is not None and shares_fault(status, cancels):
        faults = (batch.fault,)
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
        cancels=cancels,
        token=words.get("token"),
        steps=read_steps(words.get("steps", "-"), words.get("message", "-")) if status is JobStatus.RUNNING else None,
    )


def shares_fault(status: JobStatus, cancels: Sequence[CancelAttempt]) -> bool:
    """Return whether a job without its own fault has that of its batch. cancels: the requests that apply to the job."""
    by_rule = status is JobStatus.CANCELED and any(attempt.by == RULE for attempt in cancels)
    return status is JobStatus.ERROR or by_rule


_UNSURE = frozenset({"unconfirmed", "unknown"})  # codes of faults


def _cancel_outcome(status: JobStatus, words: dict[str, str], faults: Sequence[Fault]) -> CancelOutcome | None:
    """Return the effect of the cancel requests of a job; None without any, and while the job has not ended."""
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
