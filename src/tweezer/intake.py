"""The intake for applications that use arq: plain messages submit batches, with the same checks as all others.

The intake queue has the functions ``submit_batch``, ``add_jobs`` and ``cancel_batch``. arq may deliver a message twice.
The id of the message is the idempotency key, so a second delivery has no effect.
"""

from __future__ import annotations

import contextlib
import pickle  # only for writing, to senders who can read nothing else
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import msgspec
import structlog
from arq import Retry
from arq.jobs import DeserializationError

from tweezer.duties import Backoff
from tweezer.model.arguments import conversion_error
from tweezer.model.errors import Conflict, InvalidInput, TweezerError
from tweezer.model.ids import DEFAULT_PROJECT
from tweezer.model.messages import Limits, Priority
from tweezer.model.rule_fields import RULE_FIELDS, RuleFields, apply_rules
from tweezer.model.wire import deserialize, serialize
from tweezer.store.connection import Store
from tweezer.store.producers import Submission

log = structlog.get_logger(__name__)

T = TypeVar("T")

TRIES = 20
_BACKOFF = Backoff(base_s=1.0, cap_s=60.0)


class IntakeJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job in a message."""

    runs: int | float | None = None  # the checks of all submits convert a float without a fraction
    variables: dict[str, Any] = {}
    seed: int | float | None = None
    sequence: str | None = None


class IntakeLimits(Limits, frozen=True, array_like=False, forbid_unknown_fields=True):
    """The limits in a message, as an object instead of an array."""


class SubmitBatch(RuleFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The argument of ``submit_batch``. not_before: older name of ``start_at``."""

    jobs: list[IntakeJob]
    sequence: str | None = None
    device: str | None = None
    project: str = DEFAULT_PROJECT
    priority: Priority = Priority.MEDIUM
    open: bool = False
    name: str | None = None
    tags: tuple[str, ...] = ()
    webhook: str | None = None
    backend_configuration: str | None = None
    limits: IntakeLimits = IntakeLimits()
    not_before: datetime | None = None
    idempotency_key: str | None = None


class AddJobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The argument of ``add_jobs``."""

    batch_id: UUID
    jobs: list[IntakeJob]
    project: str = DEFAULT_PROJECT


class CancelBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The argument of ``cancel_batch``. by: name to record as the one who cancelled."""

    batch_id: UUID
    project: str = DEFAULT_PROJECT
    by: str = "arq message"


def _read(message: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(message, kind)
    except msgspec.ValidationError as error:
        raise conversion_error(error, kind.__name__) from error


def _store(context: dict[Any, Any]) -> Store:
    store: Store = context["store"]
    return store


def _key(context: dict[Any, Any]) -> str:
    return f"arq:{context['job_id']}"


def _plain(jobs: list[IntakeJob]) -> list[dict[str, Any]]:
    return [msgspec.structs.asdict(job) for job in jobs]


@contextlib.contextmanager
def _retrying(context: dict[Any, Any]) -> Iterator[None]:
    """Retry the message after temporary errors. All other errors are the sender's fault and final."""
    try:
        yield
    except TweezerError as error:
        if error.retryable:
            raise Retry(defer=_BACKOFF.delay_s(context["job_try"])) from error
        log.warning("intake.refused", message=context["job_id"], error=error.message)
        raise


async def submit_batch(context: dict[Any, Any], message: Any) -> str:
    """Submit a batch; the result of the message is the batch's id."""
    with _retrying(context):
        wanted = _read(message, SubmitBatch)
        fields = {name: it for name, it in msgspec.structs.asdict(wanted).items() if name not in RULE_FIELDS}
        project = fields.pop("project")
        limits, key = Limits(**msgspec.structs.asdict(wanted.limits)), wanted.idempotency_key or _key(context)
        fields |= apply_rules(wanted, limits=limits, not_before=wanted.not_before)
        submission = Submission(**fields | {"jobs": _plain(wanted.jobs), "idempotency_key": key})
        admission, find_ends = _store(context).admission, context["find_ends"]
        return str(await admission.submit(submission, project=project, find_ends=find_ends))


async def add_jobs(context: dict[Any, Any], message: Any) -> int:
    """Add jobs to an open batch; the result of the message is the index of the first new job."""
    with _retrying(context):
        wanted = _read(message, AddJobs)
        return await _store(context).admission.add_jobs(
            wanted.batch_id, _plain(wanted.jobs), project=wanted.project, idempotency_key=_key(context)
        )


async def cancel_batch(context: dict[Any, Any], message: Any) -> None:
    """Cancel a batch; has no effect if it has already ended."""
    with _retrying(context):
        wanted = _read(message, CancelBatch)
        try:
            await _store(context).commands.cancel(
                wanted.batch_id, project=wanted.project, by=wanted.by, idempotency_key=_key(context)
            )
        except Conflict as error:
            if error.code != "terminal":
                raise


_REFUSE = "refuse"
_PICKLE, _PLAIN, _UNKNOWN = "pickle", "MessagePack without a version", "unknown"
_ADVICE = (
    "call arq.create_pool with job_serializer=tweezer.model.wire.serialize and "
    "job_deserializer=tweezer.model.wire.deserialize"
)


def read_message(data: bytes) -> dict[str, Any]:
    """Unpack a message for arq; one in another known format becomes a call of :func:`refuse`.

    Raises ValueError for an unknown format; the message is then parked.
    """
    try:
        return deserialize(data)
    except ValueError as error:
        kind = _guess_kind(data)
        if kind == _UNKNOWN:  # the sender could not read an answer
            raise ValueError(f"the message is {error}; {_ADVICE}") from error
        return {"t": None, "f": _REFUSE, "a": (kind, f"the message is encoded as {kind}; {_ADVICE}"), "k": {}, "et": 0}


def write_answer(message: dict[str, Any]) -> bytes:
    """Pack a result; for a refused message, in the format of its sender."""
    if message.get("f") != _REFUSE or len(message["a"]) != 2:
        return serialize(message)
    kind, sentence = message["a"]
    answer = {**message, "a": ()}
    if kind == _PICKLE:
        return pickle.dumps({**answer, "r": DeserializationError(sentence)})
    if kind == _PLAIN:
        return msgspec.msgpack.encode({**answer, "r": sentence})
    return serialize(answer)


async def refuse(context: dict[Any, Any], kind: str, sentence: str) -> NoReturn:
    """Fail a message that cannot be read, with an error that explains what its sender must change."""
    log.warning("intake.unreadable", message=context["job_id"], written_as=kind)
    raise InvalidInput("message", sentence)


def _guess_kind(data: bytes) -> str:
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _PICKLE
    try:
        return _PLAIN if isinstance(msgspec.msgpack.decode(data), dict) else _UNKNOWN
    except (msgspec.DecodeError, RecursionError):
        return _UNKNOWN
