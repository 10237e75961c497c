"""The request bodies that submit work, their project, and the submission that the queue gets.

The bodies are those of Pasqal's clients, with a few additional fields.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tweezer.api.http.responses import RequestRejected, doc
from tweezer.ledger.access.credentials import Principal
from tweezer.model.errors import InvalidInput
from tweezer.model.ids import is_project_id
from tweezer.model.messages import MAX_JOBS_PER_CALL, JobSpec, Limits, Priority
from tweezer.model.rule_fields import RuleFields, apply_rules
from tweezer.model.sequence import MAX_SEQUENCE_BYTES
from tweezer.store.producers import Submission

_OLD_CLIENT = re.compile(r"PasqalCloudSDK/0\.(\d{1,9})(?:\D|$)", re.ASCII)
_MEANS_RUNS = 23  # 0.23 and later send runs only if the user set them

_FIELD_NAMES = {"sequence": "sequence_builder", "device": "device_type", "priority": "queue_priority"}


class JobBody(msgspec.Struct, frozen=True):
    """A job to submit."""

    runs: Annotated[int | None, doc("Number of shots; null: as in the batch's `backend_configuration`.", 100)] = None
    variables: Annotated[
        dict[str, Any] | None,
        doc(
            "The value of each variable of the sequence: a number, or a list of numbers. For a mappable register also "
            "`qubits`, an object that maps qubit ids to trap ids.",
            {"omega": 6.0},
        ),
    ] = None
    seed: Annotated[
        int | None, doc("Seed of all random numbers of the job, 0 to 2³²−1; null: derived from the job's id.", 7)
    ] = None
    sequence: Annotated[
        str | None,
        doc(
            "The job's own sequence, built and serialised with Pulser's `Sequence.to_abstract_repr()`; excludes "
            "`variables`. Null: the batch's sequence."
        ),
    ] = None


Jobs = Annotated[
    list[JobBody],
    Meta(
        description=f"The jobs, at most {MAX_JOBS_PER_CALL} per request.",
        extra_json_schema={"maxItems": MAX_JOBS_PER_CALL},
    ),
]


class LimitsBody(msgspec.Struct, frozen=True):
    """The limits of a batch to submit."""

    job_timeout_s: Annotated[float, doc("Maximum wall time of one job, in seconds.", 600.0)] = Limits().job_timeout_s
    open_timeout_s: Annotated[
        float, doc("How long an open batch may have no work before it is `TIMED_OUT`, in seconds.", 300.0)
    ] = Limits().open_timeout_s
    transient_retries: Annotated[int, doc("Older name of `retries.per_job`.", 3)] = Limits().transient_retries


class BatchBody(RuleFields, frozen=True, kw_only=True):
    """A batch to submit, with its first jobs."""

    jobs: Jobs = []
    sequence_builder: Annotated[
        str | None,
        doc(
            "The sequence that the jobs share, serialised with Pulser's `Sequence.to_abstract_repr()`; null if each "
            "job has its own sequence."
        ),
    ] = None
    device_type: Annotated[
        str | None,
        doc(
            "Name of the device; null: the device whose specs have the same name as the sequence's device.", "EMU_FREE"
        ),
    ] = None
    emulator: Annotated[
        str | None, Meta(description="Older name of `device_type`.", extra_json_schema={"deprecated": True})
    ] = None
    project_id: Annotated[
        str | None, doc("Id of the project; may be omitted if the key belongs to a single project.")
    ] = None
    open: Annotated[bool | None, doc("Whether more jobs may be added later; null means false.")] = None
    complete: Annotated[
        bool | None,
        Meta(description="The opposite of `open`, for older clients.", extra_json_schema={"deprecated": True}),
    ] = None
    tags: Annotated[list[str] | None, doc("Up to 50 distinct tags.", ["sweep"])] = None
    webhook: Annotated[
        str | None,
        doc(
            "The URL that receives the events of the batch: a public `https://…` URL without credentials, unless the "
            "operator allows others.",
            "https://hooks.example.org/tweezer",
        ),
    ] = None
    backend_configuration: Annotated[
        str | None,
        doc(
            "The configuration of the emulator: the string that Pulser's `EmulationConfig.to_abstract_repr()` returns."
        ),
    ] = None
    configuration: Annotated[
        dict[str, Any] | None,
        doc("Older options of the emulator: `dt`, `precision` and `max_bond_dim` of EMU_MPS."),
    ] = None
    queue_priority: Annotated[str | None, doc("`HIGH`, `MEDIUM` or `LOW`; null means `MEDIUM`.", "MEDIUM")] = None
    limits: Annotated[LimitsBody | None, doc("Time limits; null means the defaults.")] = None
    not_before: Annotated[
        Annotated[datetime, Meta(tz=True)] | None,
        Meta(description="Older name of `start_at`.", extra_json_schema={"deprecated": True}),
    ] = None
    name: Annotated[str | None, doc("Name of the batch, for people.", "antiferromagnet")] = None


def choose_project(caller: Principal, given: str | None) -> str:
    """Return the project of a submit. Raises InvalidInput, and RequestRejected (403) for a project of others."""
    if not given:  # some third-party clients send an empty one
        if len(caller.projects) == 1:
            return next(iter(caller.projects))
        allowed = " or ".join(sorted(caller.projects)) or "an existing project"
        raise InvalidInput("project_id", f"is required, because this key is not limited to one project; use {allowed}")
    if not caller.sees(given):
        raise RequestRejected(
            403, "foreign_project", "is not a project of this key; use a key of the project", field="project_id"
        )
    if not is_project_id(given):
        raise InvalidInput(
            "project_id", "is not a valid project id; expected 1 to 64 letters, digits, dots, dashes and underscores"
        )
    return given


def sends_placeholders(user_agent: str, backend_configuration: str | None) -> bool:
    """Return whether the client sends ``runs: 1`` for each job of such a batch as a placeholder."""
    client = _OLD_CLIENT.match(user_agent)
    return client is not None and int(client[1]) < _MEANS_RUNS and backend_configuration is not None


def build_submission(body: BatchBody, *, user: str | None, idempotency_key: str, user_agent: str = "") -> Submission:
    """Return the submission of a body. Raises InvalidInput and RequestRejected, naming the field of the body."""
    check_jobs_sent(body.jobs)
    _check_length("sequence_builder", body.sequence_builder)
    if body.open is not None and body.open is body.complete:
        raise InvalidInput("complete", "contradicts open; it is the opposite of open, so omit it")
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
        **apply_rules(body, limits=_limits(body.limits), not_before=body.not_before),
    )


def _limits(body: LimitsBody | None) -> Limits:
    return Limits() if body is None else Limits(**msgspec.structs.asdict(body))


def convert_jobs(jobs: Sequence[JobBody], *, placeholders: bool = False) -> list[dict[str, Any] | JobSpec]:
    """Return the jobs in the form of the queue. placeholders: a single run is a placeholder, and is only shown."""
    return [
        JobSpec(variables=job.variables or {}, seed=job.seed, sequence=job.sequence, runs_shown=job.runs)
        if placeholders and job.runs == 1
        else msgspec.structs.asdict(job)
        for job in jobs
    ]


def check_jobs_sent(jobs: Sequence[JobBody]) -> None:
    """Check the limits that do not depend on the device. Raises RequestRejected."""
    if len(jobs) > MAX_JOBS_PER_CALL:
        problem = (
            f"at most {MAX_JOBS_PER_CALL} jobs are allowed per request (got {len(jobs)}); add the rest to an open batch"
        )
        raise RequestRejected(413, "too_many_jobs", problem, field="jobs")
    for index, job in enumerate(jobs):
        _check_length(f"jobs[{index}].sequence", job.sequence)


@contextlib.contextmanager
def renaming_fields() -> Iterator[None]:
    """Name the field of an error as in the body."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(_FIELD_NAMES.get(error.field, error.field), error.problem) from error


def _check_length(field: str, sequence: str | None) -> None:
    if sequence is not None and len(sequence) > MAX_SEQUENCE_BYTES:
        problem = f"must be at most {MAX_SEQUENCE_BYTES >> 20} MiB; shorten the sequence"
        raise RequestRejected(413, "sequence_too_long", problem, field=field)


def _device(body: BatchBody) -> str | None:
    """Return the device of the current or of the older field."""
    if body.device_type is not None and body.emulator not in (None, body.device_type):
        raise InvalidInput("emulator", "contradicts device_type; it is the older name of device_type, so omit it")
    return body.device_type or body.emulator or None
