"""What the QPU's API answers: JSend envelopes, and what is in them. The facts are in docs/qpu.md."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from tweezer.adapters.remote.qpu.errors import QpuRefused, QpuUnreachable

_EXCERPT = 200
_OF_APIS = (400, 422)  # no proxy answers these with JSON
_BITS = frozenset("01")

T = TypeVar("T")


class RemoteStatus(StrEnum):
    """Where a job of the QPU stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    ERROR = "ERROR"
    CANCELED = "CANCELED"
    DONE = "DONE"

    @property
    def terminal(self) -> bool:
        return self not in (RemoteStatus.PENDING, RemoteStatus.RUNNING)


class Operational(StrEnum):
    """Whether the QPU runs jobs now."""

    UP = "UP"
    DOWN = "DOWN"


class RemoteJob(msgspec.Struct, frozen=True):
    """A job as the QPU tells of it. Dates and times are as it wrote them.

    result: JSON, see :meth:`counter`; also of a job that was stopped, as far as it was measured. context: what its
    submitter sent along.
    """

    uid: int
    status: RemoteStatus
    batch_id: str | None = None
    nb_run: int | None = None
    program_id: int | str | None = None
    result: str | None = None
    created_datetime: str | None = None
    start_datetime: str | None = None
    end_datetime: str | None = None
    progress: Any = None
    context: dict[str, Any] | None = None

    @property
    def pasqman_job_id(self) -> str | None:
        """The id that its submitter gave it."""
        found = (self.context or {}).get("pasqman_job_id")
        return found if isinstance(found, str) else None

    def counter(self) -> dict[str, int] | None:
        """Bitstring → how often it was measured; None without a result. Raises QpuUnreachable for junk."""
        if self.result is None:
            return None
        what, text = f"the result of job {self.uid}", self.result.encode(errors="replace")
        try:
            counter = msgspec.convert(json.loads(self.result), _Measured).counter
        except (ValueError, RecursionError) as error:
            raise _junk(what, text, str(error)) from error
        if any(count < 0 or not _BITS.issuperset(bits) for bits, count in counter.items()):
            raise _junk(what, text, "it is no counter of bitstrings")
        if len({len(bits) for bits in counter}) > 1:
            raise _junk(what, text, "its bitstrings differ in length")
        return counter


class RemoteProgram(msgspec.Struct, frozen=True):
    """The program behind a job. status: ``CREATED``, ``RUNNING``, ``DONE``, ``CANCELED``."""

    uid: int | str
    status: str


class Answer(msgspec.Struct, frozen=True):
    """An answer of HTTP, not yet looked into. what: the request, for errors."""

    what: str
    status: int
    body: bytes


class _Measured(msgspec.Struct):
    counter: dict[str, int]


class _Envelope(msgspec.Struct):
    data: Any = None
    status: Any = None
    code: Any = None


class _System(msgspec.Struct):
    specs: dict[str, Any]


class _OperationalStatus(msgspec.Struct):
    operational_status: Operational


def job_of(answer: Answer) -> RemoteJob:
    """The job that was asked for. Raises as :func:`data_of`."""
    return _typed(answer, RemoteJob)


def program_of(answer: Answer) -> RemoteProgram:
    return _typed(answer, RemoteProgram)


def operational_of(answer: Answer) -> Operational:
    return _typed(answer, _OperationalStatus).operational_status


def specs_of_system(answer: Answer) -> str:
    """The device's specs as text: Pulser's abstract representation of it."""
    return json.dumps(_typed(answer, _System).specs)


def data_of(answer: Answer) -> Any:
    """What is in the envelope.

    Raises QpuRefused when the API says no, by the status of HTTP or by the envelope's code, and QpuUnreachable when it
    says to come back, or what no such API says.
    """
    envelope = _envelope(answer.body)
    status = status_of(answer)
    if status >= 500 or status == 429:
        raise QpuUnreachable(f"{answer.what}: the QPU's API answers {status}: {excerpt(answer.body)}")
    if status >= 400:
        raise QpuRefused(
            f"{answer.what}: the QPU's API refuses with {status}: {excerpt(answer.body)}",
            status=status,
            remote_code=_code(envelope) or str(status),
            by_api=is_by_api(answer),
        )
    if not 200 <= status < 300:
        raise _junk(answer.what, answer.body, f"its status is {status}; is base_url right?")
    if envelope is None:
        raise _junk(answer.what, answer.body, "it is no JSend envelope; is base_url right?")
    if envelope.status not in (None, "success"):
        raise _junk(answer.what, answer.body, "its envelope tells of no success")
    return envelope.data


def status_of(answer: Answer) -> int:
    """The status of HTTP, or the envelope's where that says an error within a 200, as some versions answer."""
    envelope = _envelope(answer.body)
    code = None if envelope is None else envelope.code
    within = 200 <= answer.status < 300 and isinstance(code, int) and 400 <= code < 600
    return int(code) if within and code is not None else answer.status


def is_by_api(answer: Answer) -> bool:
    """Whether a refusal surely comes from the API, and not from a proxy before it: it is in the API's envelope."""
    envelope = _envelope(answer.body)
    return envelope is not None and (status_of(answer) in _OF_APIS or envelope.status in ("fail", "error"))


def excerpt(body: bytes) -> str:
    """The beginning of what was received, fit for a sentence."""
    text = " ".join(body[: 4 * _EXCERPT].decode(errors="replace").split())
    shown = "".join(sign if sign.isprintable() else "�" for sign in text[:_EXCERPT])
    return f"{shown}…" if len(text) > _EXCERPT or len(body) > 4 * _EXCERPT else shown or "(nothing)"


def _envelope(body: bytes) -> _Envelope | None:
    try:  # by Python's JSON, which takes the Infinity that Pulser may write into specs
        return msgspec.convert(json.loads(body), _Envelope)
    except (ValueError, RecursionError):
        return None


def _code(envelope: _Envelope | None) -> str | None:
    """The API's own code: in the data, or in the envelope."""
    if envelope is None:
        return None
    inner = envelope.data.get("code") if isinstance(envelope.data, dict) else None
    return next((str(code) for code in (inner, envelope.code) if isinstance(code, int | str)), None)


def _typed(answer: Answer, kind: type[T]) -> T:
    data = data_of(answer)
    try:
        return msgspec.convert(data, kind)
    except (ValueError, RecursionError) as error:
        raise _junk(answer.what, answer.body, str(error)) from error


def _junk(what: str, body: bytes, problem: str) -> QpuUnreachable:
    return QpuUnreachable(f"{what}: the QPU's API answers something else ({problem}): {excerpt(body)}")
