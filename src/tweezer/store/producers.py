"""The producers' side of the store: submit, add, close, cancel, pause, resume. The library, arq messages and the HTTP
API all use it.

A method returns when the change is made. If it raises, nothing has changed, except that the outcome is unknown after
:class:`~tweezer.model.errors.Unavailable`: repeat the call, with the same idempotency key where it takes one.
``project`` None means an operator, who may change the batches of all projects.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any, NoReturn, TypeVar, cast
from uuid import UUID

import msgspec

from tweezer.model.arguments import shown
from tweezer.model.cancels import UNKNOWN, check_by
from tweezer.model.checks import (
    MAX_DEVICE_LENGTH,
    MAX_REASON_LENGTH,
    as_job_spec,
    check_batch,
    check_characters,
    check_jobs,
    check_key,
    check_tags,
    check_text,
    suggest_name,
)
from tweezer.model.configurations import check_older_options, configured_shots
from tweezer.model.errors import Conflict, InvalidInput, NewerRecord, NotFound, QueueFull, Unavailable, Unreadable
from tweezer.model.ids import is_project_id, new_batch_id
from tweezer.model.lifecycle import BATCH_BY_LETTER, JOB_BY_LETTER, BatchStatus, JobStatus, Stage
from tweezer.model.lru import Recent
from tweezer.model.messages import (
    MAX_JOBS_PER_BATCH,
    RECORD_VERSION,
    BatchDoc,
    Fault,
    JobSpec,
    Limits,
    Priority,
    Progress,
    Steps,
    compress,
    decode_fault,
    encode_fault,
    fit_progress,
    pack,
    pack_lasting,
    pack_steps,
    shorten,
)
from tweezer.model.quotas import QuotaExceeded
from tweezer.model.rules import Rules, check_start
from tweezer.model.sequence import SequenceHeader, read_sequence, sequence_text
from tweezer.model.summaries import abridge
from tweezer.model.windows import check_time
from tweezer.store.guards import CallAttempt, RecentCalls
from tweezer.store.keys import Key
from tweezer.store.reader import Reader
from tweezer.store.records import BatchRecord, DeviceRecord, NewBatch, describe_wait, moment, utc_clock
from tweezer.store.scripts import Scripts, translating

T = TypeVar("T")

_EPOCH = datetime.fromtimestamp(0, UTC)
_DEVICE_AGE_S, _DEVICES_MAX = 10.0, 1000
_ENDS_MAX = 100  # that one call applies
_TRIES_MAX = 3  # of a call that Redis executes too late
_NO_DEVICES = "no worker has announced a device yet; start a worker"


class Submission(msgspec.Struct, frozen=True):
    """A batch as its producer submits it, unchecked.

    Attributes:
        sequence: A Pulser ``Sequence`` or its abstract representation; None if each job has its own.
        jobs: ``JobSpec`` objects or dictionaries of its fields.
        device: Name of the device; None for the device in the (first) sequence.
        not_before: An aware time before which no job starts.
        idempotency_key: Submissions with the same key within a day create one batch; '' means no key.
        batch_id: Id of the batch; None for a new one. Submissions with the same id create one batch, too.
        user: Id of the user who submits it, if known.
        parent_id: Id of the batch that this one repeats.
        trace: The context of the trace that the submit belongs to (W3C ``traceparent``).
        rules: The rules of the batch; None without any.
    """

    sequence: Any
    jobs: Sequence[Any]
    device: str | None
    priority: str = Priority.MEDIUM
    open: bool = False
    name: str | None = None
    tags: tuple[str, ...] = ()
    webhook: str | None = None
    backend_configuration: str | None = None
    configuration: dict[str, Any] | None = None
    limits: Limits = Limits()
    not_before: datetime | None = None
    idempotency_key: str = ""
    batch_id: UUID | None = None
    user: str | None = None
    parent_id: str | None = None
    trace: str | None = None
    rules: Rules | None = None

    def __repr__(self) -> str:
        return abridge(self, "Submission", hidden=("sequence", "webhook", "backend_configuration"))

    def doc(self, device: str) -> BatchDoc:
        """Return the part that does not change after the submit. Raises InvalidInput("sequence", …)."""
        kept = {field: getattr(self, field) for field in BatchDoc.__struct_fields__}
        sequence = None if self.sequence is None else sequence_text(self.sequence)
        configuration = self.backend_configuration
        if isinstance(configuration, str):
            configuration = configuration.removeprefix("\ufeff")  # Windows programs begin a file with it
        rules = None if self.rules == Rules() else self.rules
        return BatchDoc(
            **kept | {"device": device, "sequence": sequence, "backend_configuration": configuration, "rules": rules}
        )


class UnknownParents(InvalidInput):
    """Redis has no such batches in the project of a new batch that depends on them.

    batch_ids: their positions in ``depends_on``, by id.
    """

    def __init__(self, batch_ids: Mapping[UUID, int]) -> None:
        first, position = next(iter(batch_ids.items()))
        super().__init__(
            f"depends_on[{position}]",
            f"there is no batch {first} in this project; name one that `tweezer batches` lists",
        )
        self.batch_ids = batch_ids


FindEnds = Callable[[str, Collection[UUID]], Awaitable[Mapping[UUID, str]]]
"""Returns the recorded ends of batches of a project, as in :attr:`~tweezer.store.records.BatchRecord.end`, by id.

Those that the ledger does not have are left out. Raises Unavailable.
"""


class CheckedSubmission(msgspec.Struct, frozen=True):
    """The batch that a submission would make.

    Attributes:
        project: Id of the project.
        device: Name of the device.
        jobs: Number of the jobs.
        priority: Its priority.
        limits: Its limits.
        rules: Its rules; None without any.
        not_before: The earliest time to start; None if it may start at once.
        waits_for: What it would wait for now, for people; None if nothing is known.
        warnings: What may be a mistake or a disappointment, for people.
    """

    project: str
    device: str
    jobs: int
    priority: Priority
    limits: Limits
    rules: Rules | None = None
    not_before: datetime | None = None
    waits_for: str | None = None
    warnings: tuple[str, ...] = ()


class Admission:
    """Checks submissions before they are written. Rejected ones raise InvalidInput that names the field."""

    def __init__(self, commands: Commands, reader: Reader) -> None:
        self._commands = commands
        self._reader = reader
        self._devices: Recent[str, DeviceRecord] = Recent(_DEVICES_MAX, kept_s=_DEVICE_AGE_S)
        self._by_specs: Recent[str, DeviceRecord] = Recent(_DEVICES_MAX, kept_s=_DEVICE_AGE_S)

    async def submit(
        self, submission: Submission, *, project: str, again: bool = False, find_ends: FindEnds | None = None
    ) -> UUID:
        """Check and write a batch as :meth:`write`; return its id."""
        return id_of(await self.write(submission, project=project, again=again, find_ends=find_ends))

    async def write(
        self,
        submission: Submission,
        *,
        project: str,
        again: bool = False,
        attempt: CallAttempt | None = None,
        find_ends: FindEnds | None = None,
    ) -> NewBatch | UUID:
        """Check and write a batch; return it, or the id of the first call's batch if this call repeats that one.

        Of a batch that depends on others, only the id is returned: it may wait, or have been cancelled at once.

        again: whether an earlier call with the same submission failed and may have taken effect. attempt: a call
        without an idempotency key, which may repeat one that was abandoned. find_ends: reads the ledger, for a batch
        that depends on those that only the ledger has; None without a ledger.

        Raises InvalidInput, QueueFull, Conflict, Unavailable.
        """
        doc, specs = await self._examine(submission, project)
        write = partial(
            self._commands.write,
            submission.batch_id or new_batch_id(),
            project,
            doc,
            specs,
            priority=check_priority(submission.priority),
            open=submission.open,
            not_before=submission.not_before,
            again=again,
            idempotency_key=submission.idempotency_key,
            attempt=attempt,
        )
        return await _with_ends(write, project, find_ends)

    async def check(
        self, submission: Submission, *, project: str, find_ends: FindEnds | None = None
    ) -> CheckedSubmission:
        """Check a batch as :meth:`write`, without writing it. Raises InvalidInput, QueueFull, Unavailable."""
        doc, specs = await self._examine(submission, project)
        priority, now = check_priority(submission.priority), datetime.now(UTC)
        waits_for, fault = await _with_ends(partial(self._commands.check, project, doc, specs), project, find_ends)
        device = await self._reader.device(doc.device)
        batch = NewBatch.of(
            submission.batch_id or new_batch_id(),
            project,
            doc,
            specs,
            created_us=str(int(now.timestamp() * 1_000_000)),
            priority=priority,
            open=submission.open,
            not_before=submission.not_before,
            waits_for=waits_for,
        ).batch
        return CheckedSubmission(
            project=project,
            device=doc.device,
            jobs=len(specs),
            priority=priority,
            limits=doc.limits,
            rules=doc.rules,
            not_before=submission.not_before,
            waits_for=describe_wait(batch, device, now),
            warnings=tuple(_warnings(batch, fault, device, now)),
        )

    async def _examine(self, submission: Submission, project: str) -> tuple[BatchDoc, list[JobSpec]]:
        """Return what is stored of a submission. Raises InvalidInput."""
        if not is_project_id(project):
            raise InvalidInput("project", "must be 1 to 64 letters, digits, dots, dashes and underscores")
        specs = [as_job_spec(job, index) for index, job in enumerate(submission.jobs)]
        device = await self._find_device(submission, specs)
        if not specs and not submission.open:
            raise InvalidInput("jobs", "is empty; give at least one job, or open=True to add jobs later")
        if submission.not_before is not None:
            check_time("not_before", submission.not_before)
        doc = submission.doc(device.name)
        header = check_batch(doc, checks_sequence=device.checks_sequence)
        check_start(doc.rules, has_start=submission.not_before is not None)
        if doc.configuration is not None and device.is_emulator and device.checks_sequence and not device.reattaches:
            check_older_options(doc.configuration, device.adapter)
        _check_jobs(specs, header, doc, device)
        return doc, _with_runs_shown(specs, doc)

    async def add_jobs(
        self,
        batch_id: UUID,
        jobs: Sequence[Any],
        *,
        project: str | None,
        idempotency_key: str = "",
        attempt: CallAttempt | None = None,
    ) -> int:
        """Append jobs to an open batch, checked as in a submit; return the index of the first.

        attempt: a call without an idempotency key, which may repeat one that was abandoned.
        """
        try:
            batch = await self._reader.batch(batch_id, project=project)
        except NotFound:
            # The script raises Unavailable if Redis may have lost the batch.
            await self._commands.add_jobs(batch_id, [], project=project)
            batch = await self._reader.batch(batch_id, project=project)
        device = await self.device(batch.device)
        specs = [as_job_spec(job, index) for index, job in enumerate(jobs)]
        if not specs:
            raise InvalidInput("jobs", "is empty; give at least one job")
        reads = device.checks_sequence and batch.doc.sequence is not None
        _check_jobs(specs, read_sequence(batch.doc.sequence or "") if reads else None, batch.doc, device)
        specs = _with_runs_shown(specs, batch.doc)
        return await self._commands.add_jobs(
            batch_id, specs, project=project, idempotency_key=idempotency_key, attempt=attempt
        )

    async def _find_device(self, submission: Submission, jobs: Sequence[JobSpec]) -> DeviceRecord:
        """Return the named device, else the device in the (first) sequence."""
        if submission.device is not None:
            return await self.device(check_text("device", submission.device, MAX_DEVICE_LENGTH))
        field, sequence = "sequence", submission.sequence
        if sequence is None and jobs:
            field, sequence = "jobs[0].sequence", jobs[0].sequence
        if sequence is None:
            raise InvalidInput("device", "is missing; name one, because no sequence is given")
        try:
            name = read_sequence(sequence_text(sequence)).device
        except InvalidInput as error:
            raise InvalidInput(field, error.problem) from error
        return await self._find_device_for(name)

    async def _find_device_for(self, name: str) -> DeviceRecord:
        """Return the device whose specs have this name, or that has it itself. Raises InvalidInput."""
        device = self._by_specs.get(name)
        if device is None:
            devices = await self._reader.devices()
            for it in devices:
                if it.active and it.specs_name is not None:
                    self._by_specs.put(it.specs_name, it)
            device = self._by_specs.get(name) or next((it for it in devices if it.name == name), None)
            if device is None:
                known = (
                    f"the devices are {_listed(devices)}; name one, or build the sequence with its specs"
                    if devices
                    else _NO_DEVICES
                )
                raise InvalidInput("device", f"is missing, and the sequence is for {shown(name)}; {known}")
        return device

    async def device(self, name: str) -> DeviceRecord:
        """Return the device, at most a few seconds old. Raises InvalidInput that lists the existing devices."""
        known = self._devices.get(name)
        if known is not None:
            return known
        device = await self._reader.device(name)
        if device is None:
            names = await self._reader.device_names()
            known_names = f"the devices are {', '.join(names)}" if names else _NO_DEVICES
            raise InvalidInput("device", f"there is no device {shown(name)}{suggest_name(name, names)}; {known_names}")
        self._devices.put(name, device)
        return device


async def _with_ends(call: Callable[..., Awaitable[T]], project: str, find_ends: FindEnds | None) -> T:
    """Call a function with the recorded ends of those batches that it does not find in Redis. Raises UnknownParents."""
    ended: dict[UUID, str] = {}
    while True:
        try:
            return await call(ended=ended)
        except UnknownParents as error:
            found = {} if find_ends is None else await find_ends(project, error.batch_ids)
            if unknown := {it: position for it, position in error.batch_ids.items() if it not in found}:
                raise UnknownParents(unknown) from None
            for batch_id, end in found.items():
                if not end:  # lost with the last second of Redis, and not restored yet
                    raise Unavailable(f"batch {batch_id} is being restored; try again") from None
            ended |= found


def _warnings(batch: BatchRecord, fault: Fault | None, device: DeviceRecord | None, now: datetime) -> Iterator[str]:
    """Yield what may be a mistake or a disappointment in a batch that was checked. fault: why it would be cancelled."""
    if fault is not None:
        yield f"the batch would be cancelled at once: {fault.message}"
    if device is not None and (hold := device.unavailability(now)) is not None:
        yield f"{device.name} is not available now: {hold.describe(utc_clock)}"
    if batch.not_before is not None and batch.not_before <= now:
        yield "start_at is in the past, so the batch may start at once"


def _check_jobs(jobs: Sequence[JobSpec], header: SequenceHeader | None, doc: BatchDoc, device: DeviceRecord) -> None:
    check_jobs(
        jobs,
        header,
        max_runs=device.max_runs,
        needs_runs=device.checks_sequence and doc.backend_configuration is None,
        geometry=device.geometry,
        checks_sequence=device.checks_sequence,
    )


def _with_runs_shown(jobs: list[JobSpec], doc: BatchDoc) -> list[JobSpec]:
    """Add the configuration's number of shots, for clients to show, to the jobs that do not set their own."""
    if doc.backend_configuration is None or all(job.runs or job.runs_shown for job in jobs):
        return jobs
    shots = configured_shots(doc.backend_configuration)
    return [job if job.runs or job.runs_shown else msgspec.structs.replace(job, runs_shown=shots) for job in jobs]


def _listed(devices: Sequence[DeviceRecord]) -> str:
    """List the devices by name, with the name in their specs where it differs."""
    names = [
        it.name if it.specs_name in (None, it.name) else f"{it.name} (in sequences: {it.specs_name})" for it in devices
    ]
    return ", ".join(names)


def check_priority(priority: str) -> Priority:
    try:
        return Priority(priority)
    except ValueError:
        raise InvalidInput("priority", f"must be one of {', '.join(Priority)}, got {shown(priority)}") from None


_QUICK_BYTES = 256 << 10  # compressed in a few milliseconds: not worth a thread

_GLOB = re.compile(r"([*?\[\]\\])")


def id_of(written: NewBatch | UUID) -> UUID:
    """Return the id of the batch that a call wrote or repeated."""
    return written.batch.id if isinstance(written, NewBatch) else written


class CancelAnswer(StrEnum):
    """The effect of a cancel on one job; ``requested``: it is running, and its worker was asked to stop it."""

    CANCELED = "canceled"
    REQUESTED = "requested"
    OVER = "over"
    UNKNOWN = "unknown"


def _digest(parts: Iterable[bytes | str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _packed(field: str, record: BatchDoc | JobSpec) -> bytes:
    """Pack a record. On devices without checks a value may be impossible to encode, such as too large a number."""
    try:
        return pack(record)
    except (OverflowError, TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(field, f"cannot be stored: {error}") from error


def _packed_jobs(jobs: Sequence[JobSpec]) -> list[bytes]:
    return [_packed(f"jobs[{index}]", job) for index, job in enumerate(jobs)]


def _stored_rules(rules: Rules | None) -> str:
    """Return the rules that the scripts enforce as JSON, or ''."""
    stored = None if rules is None else rules.stored()
    return "" if stored is None else msgspec.json.encode(stored).decode()


async def _compressed(packed: Sequence[bytes]) -> list[bytes]:
    """Compress records for Redis; large ones in a thread, so that they do not block the event loop."""
    if sum(map(len, packed)) <= _QUICK_BYTES:
        return list(map(compress, packed))
    return await asyncio.to_thread(lambda: list(map(compress, packed)))


def _parents(doc: BatchDoc, ended: Mapping[UUID, str] | None) -> list[tuple[str, str, str]]:
    """Return the batches that one depends on: the id, how it must end, and how it ended according to the ledger."""
    depends_on = () if doc.rules is None else doc.rules.depends_on
    return [(str(it.batch), it.when.letter, (ended or {}).get(it.batch, "")) for it in depends_on]


async def _stored(doc: BatchDoc, jobs: Sequence[JobSpec], packed_doc: bytes, packed: Sequence[bytes]) -> list[bytes]:
    """Return the doc and the jobs of a batch as they are stored in Redis."""
    return await _compressed([shorten(doc, packed_doc), *map(shorten, jobs, packed)])


def _refuse(script: str, word: bytes, details: Sequence[Any], batch_id: UUID, arguments: Mapping[str, Any]) -> NoReturn:
    """Raise the error for the word with which a script refuses a call with these arguments."""
    match script, word:
        case _, b"unknown":
            raise NotFound("batch", str(batch_id))
        case _, b"newer":
            raise NewerRecord(batch_id, RECORD_VERSION)
        case _, b"damaged":
            raise Unreadable(f"the record of batch {batch_id} cannot be read")
        case "report", b"over":
            raise Conflict(f"job {arguments['index']} of batch {batch_id} has ended", code="terminal")
        case _, b"over":
            raise Conflict(f"batch {batch_id} has ended", code="terminal")
        case _, b"closed":
            raise Conflict(
                f"batch {batch_id} is closed; to add jobs later, submit a batch with open=True", code="closed"
            )
        case _, b"conflict":
            raise Conflict(
                "the idempotency key was already used for a call with other content; use a new key",
                code="idempotency",
            )
        case _, b"full":
            raise QueueFull(f"no new work is accepted for now: {details[0].decode()}")
        case _, b"quota":
            project, quota, *numbers = (text.decode() for text in details)
            raise QuotaExceeded(project, quota, *map(int, numbers))
        case _, b"too_many":
            raise InvalidInput(
                "jobs",
                f"a batch can have at most {MAX_JOBS_PER_BATCH} jobs (this one has {int(details[0])}); "
                "start another batch",
            )
        case _, b"unknown_device":
            raise InvalidInput("device", f"there is no device {details[0].decode()}; `tweezer devices` lists them")
        case _, b"unknown_parents":
            positions = {parent: at for at, (parent, _, _) in enumerate(arguments["parents"])}
            raise UnknownParents({UUID(parent := text.decode()): positions[parent] for text in details})
        case _, b"exists":
            raise Conflict(f"batch {batch_id} already exists in another project", code="exists")
        case "end_batch", b"forbidden":
            has, status = (BATCH_BY_LETTER[it] for it in (details[0].decode(), arguments["to"]))
            raise Conflict(f"batch {batch_id} is {has} and cannot become {status}: only an open batch without work can")
        case "report", b"forbidden":
            has_now = JOB_BY_LETTER[details[0].decode()]
            why = _why_not(has_now, JOB_BY_LETTER.get(arguments["to"]))
            raise Conflict(f"job {arguments['index']} of batch {batch_id} is {has_now}: {why}")
        case _:
            raise AssertionError(f"a script returned {word!r}")


def _why_not(has: JobStatus, status: JobStatus | None) -> str:
    """Return why a status or progress cannot be reported for a job with the status ``has``."""
    match status:
        case JobStatus.RUNNING if has is not JobStatus.RUNNING:
            return "only the worker that holds it can begin it"
        case JobStatus.DONE:
            return "only the worker that holds it can write its result"
        case _:
            return "progress can only be reported for a job that is and stays RUNNING"


class Commands:
    """Changes of batches and jobs that users request."""

    def __init__(self, scripts: Scripts, calls: RecentCalls) -> None:
        self._scripts = scripts
        self._calls = calls

    async def submit(
        self, batch_id: UUID, project: str, doc: BatchDoc, jobs: Sequence[JobSpec], **options: Any
    ) -> UUID:
        """Write a batch as :meth:`write`, which has these options; return its id."""
        return id_of(await self.write(batch_id, project, doc, jobs, **options))

    async def write(
        self,
        batch_id: UUID,
        project: str,
        doc: BatchDoc,
        jobs: Sequence[JobSpec],
        *,
        priority: Priority = Priority.MEDIUM,
        open: bool = False,
        not_before: datetime | None = None,
        again: bool = False,
        idempotency_key: str = "",
        attempt: CallAttempt | None = None,
        ended: Mapping[UUID, str] | None = None,
    ) -> NewBatch | UUID:
        """Write a batch; return it, or the id of the first call's batch if this call repeats that one.

        A call repeats another if it has the same id of a batch, the same idempotency key and content, or is an attempt
        at a call without a key that was abandoned. Of a batch that depends on others, only the id is returned.

        ended: how those of the batches that it depends on ended that only the ledger has, as in
        :attr:`~tweezer.store.records.BatchRecord.end`. Raises UnknownParents.
        """
        check_key(idempotency_key)
        depends_on = doc.rules.depends_on if doc.rules is not None else ()
        for position, dependency in enumerate(depends_on):
            if dependency.batch == batch_id:
                raise InvalidInput(f"depends_on[{position}]", "is the id of the batch itself; name another batch")
        packed_doc, packed = _packed("batch", doc), _packed_jobs(jobs)
        due_ms = 0 if not_before is None else -((_EPOCH - not_before) // timedelta(milliseconds=1))  # not earlier
        head = (doc.device, priority.value, str(int(open)))
        digest = _digest([*head, pack_lasting(doc), str(due_ms), *packed]) if idempotency_key else ""
        stored_doc, *stored = await _stored(doc, jobs, packed_doc, packed)
        identity, created_us = await self._call_once(
            "submit",
            batch_id,
            project,
            attempt,
            device=doc.device,
            priority=priority.value,
            open=int(open),
            doc=stored_doc,
            not_before_ms=due_ms,
            idle_ms=round(doc.limits.open_timeout_s * 1000),
            retries=doc.limits.transient_retries,
            timeout_ms=round(doc.limits.job_timeout_s * 1000),
            rules=_stored_rules(doc.rules),
            again=int(again),
            idempotency_key=idempotency_key,
            digest=digest,
            parents=_parents(doc, ended),
            specs=stored,
        )
        if depends_on and created_us is not None:
            await self._scripts.call("apply_ends", most=_ENDS_MAX)
        if created_us is None or depends_on:
            return UUID(identity)
        made = {"priority": priority, "open": open, "not_before": moment(str(due_ms))}
        return NewBatch.of(batch_id, project, doc, jobs, created_us=created_us, **made)

    async def check(
        self, project: str, doc: BatchDoc, jobs: Sequence[JobSpec], *, ended: Mapping[UUID, str] | None = None
    ) -> tuple[tuple[UUID, ...], Fault | None]:
        """Raise the error that a submit of this batch would raise; nothing is written.

        Return the batches that it would wait for, and the fault if it would be cancelled at once. ended: as in
        :meth:`write`.
        """
        stored = await _stored(doc, jobs, _packed("batch", doc), _packed_jobs(jobs))
        size = {"jobs": len(jobs), "bytes": sum(map(len, stored))}
        call = {"project": project, "device": doc.device, **size, "parents": _parents(doc, ended)}
        word, *details = await self._scripts.call("check_submit", **call)
        if word != b"ok":
            _refuse("check_submit", word, details, UUID(int=0), call)
        fault, *waits_for = details
        return tuple(UUID(parent.decode()[:36]) for parent in waits_for), decode_fault(fault) if fault else None

    async def add_jobs(
        self,
        batch_id: UUID,
        jobs: Sequence[JobSpec],
        *,
        project: str | None,
        idempotency_key: str = "",
        attempt: CallAttempt | None = None,
    ) -> int:
        """Append jobs to an open batch; return the index of the first of them."""
        check_key(idempotency_key)
        packed = _packed_jobs(jobs)
        digest = _digest([str(batch_id), *packed]) if idempotency_key else ""
        stored = await _compressed(list(map(shorten, jobs, packed)))
        first, _ = await self._call_once(
            "add_jobs",
            batch_id,
            project,
            attempt,
            idempotency_key=idempotency_key,
            digest=digest,
            jobs_max=MAX_JOBS_PER_BATCH,
            specs=stored,
        )
        return int(first)

    async def close(self, batch_id: UUID, *, project: str | None) -> None:
        """Close a batch: no more jobs can be added. If it is closed or has ended, nothing changes."""
        await self._command("close", batch_id, project)

    async def cancel(
        self, batch_id: UUID, *, project: str | None, by: str = UNKNOWN, idempotency_key: str = ""
    ) -> None:
        """Cancel a batch: pending jobs at once, running ones when their workers stop them. by: recorded requester."""
        digest = _digest(["cancel", str(batch_id)])
        key = check_key(idempotency_key)
        await self._command("cancel_batch", batch_id, project, idempotency_key=key, digest=digest, by=check_by(by))

    async def pause(self, batch_id: UUID, *, project: str | None, by: str = UNKNOWN, reason: str = "") -> None:
        """Pause a batch: no more of its jobs are handed out; running jobs finish. by: recorded requester."""
        if reason:
            check_text("reason", reason, MAX_REASON_LENGTH)
        await self._command("pause_batch", batch_id, project, by=check_by(by), reason=reason)

    async def resume(self, batch_id: UUID, *, project: str | None) -> None:
        await self._command("resume_batch", batch_id, project)

    async def cancel_jobs(
        self,
        batch_id: UUID,
        indices: Sequence[int],
        *,
        project: str | None,
        by: str = UNKNOWN,
        idempotency_key: str = "",
    ) -> list[CancelAnswer]:
        """Cancel some jobs of a batch; return one answer for each, in the given order. by: recorded requester."""
        digest = _digest(["cancel_jobs", str(batch_id), *map(str, indices)])
        _, answers = await self._command(
            "cancel_jobs",
            batch_id,
            project,
            idempotency_key=idempotency_key,
            digest=digest,
            by=check_by(by),
            indices=indices,
        )
        return [CancelAnswer(word) for word in answers.decode().split()]

    async def set_tags(self, batch_id: UUID, tags: Sequence[str], *, project: str | None) -> None:
        """Replace the tags of a batch, live or ended. Raises InvalidInput("tags…", …)."""
        check_tags(tags)
        await self._command("set_tags", batch_id, project, tags=msgspec.json.encode(tags))

    async def set_priority(self, batch_id: UUID, priority: Priority, *, project: str | None) -> None:
        """Change the priority of a batch that has not ended; its waiting jobs are ranked anew at once."""
        await self._command("set_priority", batch_id, project, priority=check_priority(priority).value)

    async def note_child(self, batch_id: UUID, child: UUID) -> bool:
        """Record that another batch repeats this one; return False if Redis no longer has it."""
        return await self._scripts.call_ok("note_child", batch_id=str(batch_id), child=str(child))

    async def end(
        self, batch_id: UUID, status: BatchStatus, *, project: str | None, fault: Fault | None = None
    ) -> None:
        """End a batch in ERROR with this fault (running jobs finish), or an open batch without work in TIMED_OUT."""
        if fault is not None:
            check_characters("reason", fault.message, lines=True)
        packed = b"" if fault is None else encode_fault(fault)
        await self._command("end_batch", batch_id, project, to=status.letter, fault=packed)

    async def report(
        self,
        batch_id: UUID,
        index: int,
        *,
        status: JobStatus | None = None,
        percent: int | None = None,
        steps: Steps | None = None,
        fault: Fault | None = None,
        project: str | None,
    ) -> None:
        """Report a new status, progress or a fault of a live job on behalf of its holder.

        A job that is ended or made PENDING is taken from its holder. Only the holder can report that a job begins, or
        its result. Raises Conflict.
        """
        if fault is not None:
            check_characters("errors", fault.message, lines=True)
        fits = fit_progress(Progress(Stage.ON_DEVICE, steps=steps))
        numbers, message = pack_steps(fits.steps)
        if percent is None and fits.fraction is not None:
            percent = round(100 * fits.fraction)
        await self._command(
            "report",
            batch_id,
            project,
            index=index,
            to="" if status is None else status.letter,
            percent="" if percent is None else str(percent),
            steps="" if numbers == "-" else numbers,
            message="" if message == "-" else message,
            fault=b"" if fault is None else encode_fault(fault),
        )

    async def discard(self, batch_id: UUID) -> None:
        """Remove a batch in any status, even if it cannot be read.

        Raises Conflict while a lane works on it, and NewerRecord.
        """
        (word,) = await self._scripts.call("discard", batch_id=str(batch_id))
        if word == b"held":
            raise Conflict(f"a worker is running batch {batch_id}; run `tweezer cancel {batch_id}` first", code="live")
        if word == b"version":
            raise NewerRecord(batch_id, RECORD_VERSION)

    async def forget_project(self, project: str) -> None:
        """Remove the remaining keys of a project without batches: counters, limits, idempotency keys, fair shares."""
        redis, keys = self._scripts.redis, self._scripts.keys
        pattern = keys(Key.IDEMPOTENCY, _GLOB.sub(r"\\\1", project), "*")
        with translating():
            for device in await cast(Awaitable[set[bytes]], redis.smembers(keys(Key.DEVICES))):
                await cast(Awaitable[int], redis.hdel(keys(Key.FAIR, device.decode()), f"p:{project}"))
            await redis.delete(keys(Key.PROJECT, project))
            async for name in redis.scan_iter(pattern, count=1000):
                await redis.unlink(name)

    async def _call_once(
        self, script: str, batch_id: UUID, project: str | None, attempt: CallAttempt | None, **arguments: Any
    ) -> tuple[str, str | None]:
        """Call a script that recognises repeated calls, as :meth:`_command`.

        Return its answer, and the time in microseconds since 1970 if it took effect now.
        """
        for _ in range(_TRIES_MAX):
            reply = await self._command(script, batch_id, project, **self._calls.begin(attempt), **arguments)
            word, *details = (part.decode() for part in reply)
            if word == "repeated":
                if attempt is not None and len(details) > 1:
                    attempt.call = details[1]
                return details[0], None
            self._calls.set_clock(int(details[-1]))
            if word == "ok":
                return details[0], details[1]
        raise Unavailable("Redis executed the call too late; try again")

    async def _command(self, script: str, batch_id: UUID, project: str | None, **arguments: Any) -> list[Any]:
        """Call a script and return its reply. Raises as :func:`_refuse` if the script refuses."""
        reply = await self._scripts.call(script, batch_id=str(batch_id), project=project or "", **arguments)
        word, *details = reply
        if word not in (b"ok", b"repeated", b"late") and (script, word) != ("close", b"over"):
            _refuse(script, word, details, batch_id, arguments)
        return reply
