"""The way in: checks what a producer wants, then writes it. Library, arq messages and HTTP all come through here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from tweezer.model.arguments import shown
from tweezer.model.checks import MAX_DEVICE_LENGTH, as_job_spec, check_batch, check_jobs, check_text
from tweezer.model.configurations import check_older_options, configured_shots
from tweezer.model.errors import InvalidInput, NotFound
from tweezer.model.ids import is_project_id, new_batch_id
from tweezer.model.messages import BatchDoc, JobSpec, Limits, Priority
from tweezer.model.sequence import SequenceHeader, read_sequence, sequence_text
from tweezer.model.windows import check_time
from tweezer.store.commands import Commands
from tweezer.store.reader import Reader
from tweezer.store.records import DeviceRecord

_DEVICE_AGE_S = 10.0


class Submission(msgspec.Struct, frozen=True):
    """A batch as its producer wants it, unchecked.

    sequence: a Pulser ``Sequence`` or its abstract representation; None if each job has its own.
    jobs: ``JobSpec`` or dictionaries of its fields. device: None for the one that the (first) sequence is for.
    not_before: an aware time to start at, at the earliest. idempotency_key: submissions with the same key within a day
    make one batch; '' is no key. user: id of who submits it, where that is known. parent_id: the batch that it repeats.
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
    user: str | None = None
    parent_id: str | None = None

    def doc(self, device: str) -> BatchDoc:
        """What is kept of it for good. Raises InvalidInput("sequence", …)."""
        return BatchDoc(
            device=device,
            sequence=None if self.sequence is None else sequence_text(self.sequence),
            name=self.name,
            tags=self.tags,
            webhook=self.webhook,
            backend_configuration=self.backend_configuration,
            configuration=self.configuration,
            limits=self.limits,
            user=self.user,
            parent_id=self.parent_id,
        )


class Admission:
    """Lets in what can run. What it refuses raises InvalidInput, naming the field, and nothing was written."""

    def __init__(self, commands: Commands, reader: Reader) -> None:
        self._commands = commands
        self._reader = reader
        self._devices: dict[str, tuple[float, DeviceRecord]] = {}
        self._by_specs: dict[str, DeviceRecord] = {}
        self._by_specs_since = 0.0

    async def submit(self, submission: Submission, *, project: str) -> UUID:
        """Writes a batch and returns its id. Raises InvalidInput, QueueFull, Conflict, Unavailable."""
        if not is_project_id(project):
            raise InvalidInput("project", "an id has 1 to 64 letters, digits, dots, dashes and underscores")
        specs = [as_job_spec(job, index) for index, job in enumerate(submission.jobs)]
        device = await self._device_of(submission, specs)
        if not specs and not submission.open:
            raise InvalidInput("jobs", "there is none; give at least one job, or open=True to add jobs later")
        if submission.not_before is not None:
            check_time("not_before", submission.not_before)
        doc = submission.doc(device.name)
        header = check_batch(doc, checks_sequence=device.checks_sequence)
        if doc.configuration is not None and device.is_emulator and device.checks_sequence and not device.reattaches:
            check_older_options(doc.configuration, device.adapter)
        _check_jobs(specs, header, doc, device)
        return await self._commands.submit(
            new_batch_id(),
            project,
            doc,
            _with_runs_shown(specs, doc),
            priority=_priority(submission.priority),
            open=submission.open,
            not_before=submission.not_before,
            idempotency_key=submission.idempotency_key,
        )

    async def add_jobs(
        self, batch_id: UUID, jobs: Sequence[Any], *, project: str | None, idempotency_key: str = ""
    ) -> int:
        """Appends jobs to an open batch, checked like those of a submit; returns the index of the first."""
        try:
            batch = await self._reader.batch(batch_id, project=project)
        except NotFound:
            # A script knows whether Redis may have lost the batch, and then raises Unavailable.
            await self._commands.add_jobs(batch_id, [], project=project)
            batch = await self._reader.batch(batch_id, project=project)
        device = await self.device(batch.device)
        specs = [as_job_spec(job, index) for index, job in enumerate(jobs)]
        if not specs:
            raise InvalidInput("jobs", "there is none; give at least one job")
        reads = device.checks_sequence and batch.doc.sequence is not None
        _check_jobs(specs, read_sequence(batch.doc.sequence or "") if reads else None, batch.doc, device)
        specs = _with_runs_shown(specs, batch.doc)
        return await self._commands.add_jobs(batch_id, specs, project=project, idempotency_key=idempotency_key)

    async def _device_of(self, submission: Submission, jobs: Sequence[JobSpec]) -> DeviceRecord:
        """The device that is named, else the one that the (first) sequence is for."""
        if submission.device is not None:
            return await self.device(check_text("device", submission.device, MAX_DEVICE_LENGTH))
        field, sequence = "sequence", submission.sequence
        if sequence is None and jobs:
            field, sequence = "jobs[0].sequence", jobs[0].sequence
        if sequence is None:
            raise InvalidInput("device", "is missing, and there is no sequence that names one")
        try:
            name = read_sequence(sequence_text(sequence)).device
        except InvalidInput as error:
            raise InvalidInput(field, error.problem) from error
        return await self._device_for(name)

    async def _device_for(self, name: str) -> DeviceRecord:
        """The device of the sequences that carry this name: it is in its specs, or its own."""
        device = self._by_specs.get(name)
        if device is None or time.monotonic() - self._by_specs_since > _DEVICE_AGE_S:
            devices = await self._reader.devices()
            self._by_specs = {it.specs_name: it for it in devices if it.active and it.specs_name is not None}
            self._by_specs_since = time.monotonic()
            device = self._by_specs.get(name) or next((it for it in devices if it.name == name), None)
            if device is None:
                raise InvalidInput(
                    "device",
                    f"is missing, and the sequence is for {shown(name)}; there are {_listed(devices)}: name one, or "
                    "build the sequence with its specs",
                )
        return device

    async def device(self, name: str) -> DeviceRecord:
        """The device of this name, as it was a few seconds ago. Raises InvalidInput that names those there are."""
        known = self._devices.get(name)
        if known and time.monotonic() - known[0] < _DEVICE_AGE_S:
            return known[1]
        device = await self._reader.device(name)
        if device is None:
            names = await self._reader.device_names()
            there = f"there are {', '.join(names)}" if names else "no worker has announced one yet; start a worker"
            raise InvalidInput("device", f"there is no device {shown(name)}; {there}")
        self._devices[name] = (time.monotonic(), device)
        return device


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
    """The jobs, with the number of shots that those get which leave it to the configuration: clients want a number."""
    if doc.backend_configuration is None or all(job.runs or job.runs_shown for job in jobs):
        return jobs
    shots = configured_shots(doc.backend_configuration)
    return [job if job.runs or job.runs_shown else msgspec.structs.replace(job, runs_shown=shots) for job in jobs]


def _listed(devices: Sequence[DeviceRecord]) -> str:
    """The devices by name, and by the name in their specs where that is another one."""
    names = [
        it.name if it.specs_name in (None, it.name) else f"{it.name} (in sequences: {it.specs_name})" for it in devices
    ]
    return ", ".join(names) or "none, for no worker has announced one yet"


def _priority(priority: str) -> Priority:
    try:
        return Priority(priority)
    except ValueError:
        raise InvalidInput("priority", f"is {shown(priority)}; it is one of {', '.join(Priority)}") from None
