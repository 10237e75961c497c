"""What the QPU's API answers: JSend envelopes, and what is in them. The facts are in docs/qpu.md."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from tweezer.adapters.remote.errors import RemoteRefused, RemoteUnreachable
from tweezer.adapters.remote.http import HttpAnswer, excerpt
from tweezer.model.lifecycle import JobStatus

_OF_APIS = (400, 422)  # no proxy answers these with JSON
_BITS = frozenset("01")

T = TypeVar("T")


class Operational(StrEnum):
    """Whether the QPU runs jobs now."""

    UP = "UP"
    DOWN = "DOWN"


class QpuJob(msgspec.Struct, frozen=True):
    """A job as the QPU reports it. Dates and times are as it wrote them.

    result: JSON, see :meth:`counter`; also of a job that was stopped, as far as it was measured. context: what its
    submitter sent along.
    """

    uid: int
    status: JobStatus
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

    def fraction(self) -> float | None:
        """Return how far the job is, where the machine reports it: runs of how many, or a number of percent."""
        match self.progress:
            case {"completed_runs": int(done), "total_runs": int(total)} if total > 0:
                return min(max(done / total, 0.0), 1.0)
            case int(percent) | float(percent) if 0 <= percent <= 100:
                return percent / 100
            case _:
                return None

    def counter(self) -> dict[str, int] | None:
        """Bitstring → how often it was measured; None without a result. Raises RemoteUnreachable for junk."""
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


class QpuProgram(msgspec.Struct, frozen=True):
    """The program behind a job. status: ``CREATED``, ``RUNNING``, ``DONE``, ``CANCELED``."""

    uid: int | str
    status: str


class _Measured(msgspec.Struct):
    counter: dict[str, int]


class _JSend(msgspec.Struct):
    data: Any = None
    status: Any = None
    code: Any = None


class _System(msgspec.Struct):
    specs: dict[str, Any]


class _OperationalStatus(msgspec.Struct):
    operational_status: Operational


def read_job(answer: HttpAnswer) -> QpuJob:
    """Return the job that was asked for. Raises as :func:`read_data`."""
    return _read(answer, QpuJob)


def read_program(answer: HttpAnswer) -> QpuProgram:
    return _read(answer, QpuProgram)


def read_operational(answer: HttpAnswer) -> Operational:
    return _read(answer, _OperationalStatus).operational_status


def read_system(answer: HttpAnswer) -> str:
    """Return the device's specs as text: Pulser's abstract representation of it."""
    return json.dumps(_read(answer, _System).specs)


def read_data(answer: HttpAnswer) -> Any:
    """Return what is in the envelope.

    Raises RemoteRefused when the API says no, by the status of HTTP or by the envelope's code, and RemoteUnreachable
    when it says to come back, or for what no such API says.
    """
    envelope = _envelope(answer.body)
    status = read_status(answer)
    if status >= 500 or status == 429:
        raise RemoteUnreachable(f"{answer.what}: the QPU's API answers {status}: {answer.excerpt}")
    if status >= 400:
        raise RemoteRefused(
            f"{answer.what}: the QPU's API refuses with {status}: {answer.excerpt}",
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


def read_status(answer: HttpAnswer) -> int:
    """Return the status of HTTP, or the envelope's where that says an error within a 200, as some versions answer."""
    envelope = _envelope(answer.body)
    code = None if envelope is None else envelope.code
    within = 200 <= answer.status < 300 and isinstance(code, int) and 400 <= code < 600
    return int(code) if within and code is not None else answer.status


def is_by_api(answer: HttpAnswer) -> bool:
    """Whether a refusal surely comes from the API, and not from a proxy before it: it is in the API's envelope."""
    envelope = _envelope(answer.body)
    return envelope is not None and (read_status(answer) in _OF_APIS or envelope.status in ("fail", "error"))


def _envelope(body: bytes) -> _JSend | None:
    try:  # by Python's JSON, which takes the Infinity that Pulser may write into specs
        return msgspec.convert(json.loads(body), _JSend)
    except (ValueError, RecursionError):
        return None


def _code(envelope: _JSend | None) -> str | None:
    """The API's own code: in the data, or in the envelope."""
    if envelope is None:
        return None
    inner = envelope.data.get("code") if isinstance(envelope.data, dict) else None
    return next((str(code) for code in (inner, envelope.code) if isinstance(code, int | str)), None)


def _read(answer: HttpAnswer, kind: type[T]) -> T:
    data = read_data(answer)
    try:
        return msgspec.convert(data, kind)
    except (ValueError, RecursionError) as error:
        raise _junk(answer.what, answer.body, str(error)) from error


def _junk(what: str, body: bytes, problem: str) -> RemoteUnreachable:
    return RemoteUnreachable(f"{what}: the QPU's API answers something else ({problem}): {excerpt(body)}")
