"""What clients send to submit work: the bodies, whose project they are for, and what the queue is asked with them.

The bodies are those of Pasqal's clients, and a few fields of ours. Fields that are not here are passed over: clients
send more than they used to, and less than they will.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tweezer.api.http.responses import RequestRejected, doc
from tweezer.ledger.access.credentials import Principal
from tweezer.model.errors import InvalidInput
from tweezer.model.ids import is_project_id
from tweezer.model.messages import MAX_JOBS_PER_CALL, JobSpec, Priority
from tweezer.model.sequence import MAX_SEQUENCE_BYTES
from tweezer.store.producers import Submission
from tweezer.store.records import BatchRecord, JobRecord

_OLD_CLIENT = re.compile(r"PasqalCloudSDK/0\.(\d{1,9})(?:\D|$)", re.ASCII)
_MEANS_RUNS = 23  # 0.23 and later send runs only where the user gave them

_OURS = {"sequence": "sequence_builder", "device": "device_type", "priority": "queue_priority"}


class JobBody(msgspec.Struct, frozen=True):
    """A job."""

    runs: Annotated[int | None, doc("Number of shots; null leaves it to the batch's `backend_configuration`.")] = None
    variables: Annotated[
        dict[str, Any] | None,
        doc(
            "A number, or a list of numbers, for each variable of the sequence, and `qubits` (qubit id → "
            "trap id) where the register is mappable.",
            {"omega": 6.0},
        ),
    ] = None
    seed: Annotated[
        int | None, doc("Of all random numbers of the job, 0 to 2³²−1; null derives it from the job's id.")
    ] = None
    sequence: Annotated[str | None, doc("A built sequence of the job's own, serialised; excludes `variables`.")] = None


Jobs = Annotated[
    list[JobBody],
    Meta(description=f"At most {MAX_JOBS_PER_CALL} a call.", extra_json_schema={"maxItems": MAX_JOBS_PER_CALL}),
]


class BatchBody(msgspec.Struct, frozen=True):
    """A batch and its first jobs."""

    jobs: Jobs = []
    sequence_builder: Annotated[
        str | None, doc("Pulser's `Sequence.to_abstract_repr()`; null when each job has a sequence of its own.")
    ] = None
    device_type: Annotated[
        str | None,
        doc("Name of the device; null takes the one whose specs have the name that the sequence carries.", "EMU_FREE"),
    ] = None
    emulator: Annotated[
        str | None, Meta(description="The older name of `device_type`.", extra_json_schema={"deprecated": True})
    ] = None
    project_id: Annotated[
        str | None, doc("A project of the caller's; needless with a key that belongs to one project.")
    ] = None
    open: Annotated[bool | None, doc("Whether more jobs may come; null is false.")] = None
    complete: Annotated[
        bool | None, Meta(description="The opposite of `open`.", extra_json_schema={"deprecated": True})
    ] = None
    tags: Annotated[list[str] | None, doc("Up to 50, none twice.", ["sweep"])] = None
    webhook: Annotated[
        str | None, doc("A complete URL without credentials: `https://…`, public, unless the operator allows more.")
    ] = None
    backend_configuration: Annotated[str | None, doc("Pulser's `EmulationConfig.to_abstract_repr()`, as a string.")] = (
        None
    )
    configuration: Annotated[
        dict[str, Any] | None,
        doc("Options of the emulator, the older way: `dt`, `precision` and `max_bond_dim` of EMU_MPS."),
    ] = None
    queue_priority: Annotated[str | None, doc("`HIGH`, `MEDIUM` or `LOW`; null is `MEDIUM`.")] = None
    name: Annotated[str | None, doc("For people.", "antiferromagnet")] = None


def choose_project(caller: Principal, given: str | None) -> str:
    """Return the project that a submit is for. Raises InvalidInput, and RequestRejected (403) for a foreign project."""
    if not given:  # some clients of third parties send an empty one
        if len(caller.projects) == 1:
            return next(iter(caller.projects))
        mine = ", ".join(sorted(caller.projects)) or "none of their own"
        raise InvalidInput("project_id", f"is missing: these credentials are not for one project, but for {mine}")
    if not caller.sees(given):
        raise RequestRejected(403, "foreign_project", "is not a project of these credentials", field="project_id")
    if not is_project_id(given):
        raise InvalidInput("project_id", "is no id of a project: 1 to 64 letters, digits, dots, dashes and underscores")
    return given


def sends_placeholders(user_agent: str, backend_configuration: str | None) -> bool:
    """Return whether the client is one that sends ``runs: 1`` for each job of such a batch without meaning it."""
    client = _OLD_CLIENT.match(user_agent)
    return client is not None and int(client[1]) < _MEANS_RUNS and backend_configuration is not None


def build_submission(body: BatchBody, *, user: str | None, idempotency_key: str, user_agent: str = "") -> Submission:
    """Return the submission of a body. Raises InvalidInput and RequestRejected, naming the field of the body."""
    check_jobs_sent(body.jobs)
    _check_length("sequence_builder", body.sequence_builder)
    if body.open is not None and body.open is body.complete:
        raise InvalidInput("complete", "contradicts open, whose opposite it is; leave it out")
    return Submission(
        sequence=body.sequence_builder,
        jobs=convert_jobs(body.jobs, placeholders=sends_placeholders(user_agent, body.backend_configuration)),
        device=_device(body),
        priority=Priority.MEDIUM if body.queue_priority is None else body.queue_priority,
        open=body.open or body.complete is False,
        name=body.name,
        tags=tuple(body.tags or ()),
        webhook=body.webhook,
        backend_configuration=body.backend_configuration,
        configuration=body.configuration,
        idempotency_key=idempotency_key,
        user=user,
    )


def convert_jobs(jobs: Sequence[JobBody], *, placeholders: bool = False) -> list[dict[str, Any] | JobSpec]:
    """Return the jobs as the queue takes them. placeholders: a single run was not asked for, and is only shown."""
    return [
        JobSpec(variables=job.variables or {}, seed=job.seed, sequence=job.sequence, runs_shown=job.runs)
        if placeholders and job.runs == 1
        else msgspec.structs.asdict(job)
        for job in jobs
    ]


def build_repetition(
    batch: BatchRecord, jobs: Sequence[JobRecord], *, user: str | None, idempotency_key: str
) -> Submission:
    """Return the submission of a batch that repeats these jobs of another one."""
    doc = batch.doc
    return Submission(
        sequence=doc.sequence,
        jobs=[msgspec.structs.replace(job.spec, parent_id=str(job.id)) for job in jobs],
        device=batch.device,
        priority=batch.priority,
        name=doc.name,
        tags=doc.tags,
        webhook=doc.webhook,
        backend_configuration=doc.backend_configuration,
        configuration=doc.configuration,
        limits=doc.limits,
        idempotency_key=idempotency_key,
        user=user,
        parent_id=str(batch.id),
    )


def check_jobs_sent(jobs: Sequence[JobBody]) -> None:
    """Check the limits that do not depend on the device. Raises RequestRejected."""
    if len(jobs) > MAX_JOBS_PER_CALL:
        problem = f"has {len(jobs)} jobs, and a call at most {MAX_JOBS_PER_CALL}; add the rest to an open batch"
        raise RequestRejected(413, "too_many_jobs", problem, field="jobs")
    for index, job in enumerate(jobs):
        _check_length(f"jobs[{index}].sequence", job.sequence)


def rename_field(error: InvalidInput) -> InvalidInput:
    """Return the error with the name that its field has in the body."""
    return InvalidInput(_OURS.get(error.field, error.field), error.problem)


def _check_length(field: str, sequence: str | None) -> None:
    if sequence is not None and len(sequence) > MAX_SEQUENCE_BYTES:
        problem = f"is longer than {MAX_SEQUENCE_BYTES >> 20} MiB, the most that is accepted"
        raise RequestRejected(413, "sequence_too_long", problem, field=field)


def _device(body: BatchBody) -> str | None:
    """Return the device that is named by the current or the older field."""
    if body.device_type is not None and body.emulator not in (None, body.device_type):
        raise InvalidInput("emulator", "contradicts device_type, whose older name it is; leave it out")
    return body.device_type or body.emulator or None
