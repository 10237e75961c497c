"""What a server with the Pasqal API answers: envelopes, and what is in them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from tweezer.adapters.remote.forward.errors import ServerRefused, ServerUnreachable
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import Result

_EXCERPT = 200

T = TypeVar("T")


class RemoteBatch(msgspec.Struct, frozen=True):
    """A batch there. parent_id: of one that repeats another, and has its tags."""

    id: str
    status: str = ""
    tags: list[str] | None = None
    parent_id: str | None = None


class RemoteJob(msgspec.Struct, frozen=True):
    """A job there. errors: for people. progress (percent), stage and device_s (seconds): where the server tells.
    start_timestamp: None while it has not begun."""

    id: str
    status: JobStatus
    errors: list[str] | None = None
    progress: float | None = None
    stage: str | None = None
    device_s: float | None = None
    start_timestamp: str | None = None

    def started_s_ago(self) -> float:
        """For how long it has run, by the server's clock and ours; 0 where it does not tell."""
        try:
            began = datetime.fromisoformat(self.start_timestamp or "")
        except ValueError:
            return 0.0
        aware = began if began.tzinfo else began.replace(tzinfo=UTC)
        return max((datetime.now(UTC) - aware).total_seconds(), 0.0)


class RemoteDevice(msgspec.Struct, frozen=True):
    """A device there. status: ``UP``, ``DOWN``."""

    device_type: str
    status: str | None = None


class Standing(msgspec.Struct, frozen=True):
    """How a batch stands, in short."""

    status: str


class ResultsLink(msgspec.Struct, frozen=True):
    """Where the results of a job are; None while there are none."""

    results_link: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """An answer of HTTP, not yet looked into. what: the request, for errors."""

    what: str
    status: int
    body: bytes


class _FailureData(msgspec.Struct):
    description: str | None = None
    reason: str | None = None
    field: str | None = None


class _Failure(msgspec.Struct):
    message: str | None = None
    data: _FailureData | None = None


def data_of(answer: Answer, kind: type[T]) -> T:
    """What is in the envelope.

    Raises ServerRefused when the server says no, ServerUnreachable when it says to come back, or what no such API says.
    """
    check(answer)
    try:
        return msgspec.convert(msgspec.json.decode(answer.body)["data"], kind)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _junk(answer, str(error)) from error


def result_of(answer: Answer) -> Result:
    """The results of a job: counter, Pulser's serialised results, and of a Tweezer where they come from."""
    check(answer)
    try:  # by Python's JSON, which takes the NaN that results may hold
        return msgspec.convert(json.loads(answer.body), Result)
    except (ValueError, RecursionError) as error:
        raise _junk(answer, str(error)) from error


def check(answer: Answer) -> None:
    """Raises as :func:`data_of` for what is no success."""
    if answer.status >= 500 or answer.status in (408, 425, 429):
        raise ServerUnreachable(f"{answer.what}: the server answers {answer.status}: {excerpt(answer.body)}")
    if answer.status >= 400:
        field, problem = complaint(answer.body)
        shown = f"{field}: {problem}" if field else problem
        raise ServerRefused(
            f"{answer.what}: the server refuses with {answer.status}: {shown}", status=answer.status, field=field
        )
    if not 200 <= answer.status < 300:
        raise _junk(answer, f"its status is {answer.status}; is base_url right?")


def complaint(body: bytes) -> tuple[str | None, str]:
    """The part of the request that is wrong, if the server names it, and what is wrong with it."""
    failure = _failure(body)
    data = failure.data if failure is not None else None
    if data is None or not data.description:
        return None, (failure.message if failure is not None else None) or excerpt(body)
    return data.field, data.description.removeprefix(f"{data.field}: ")


def is_by_api(body: bytes) -> bool:
    """Whether a refusal comes from the API, and not from a proxy before it: it is a JSON object."""
    return _failure(body) is not None


def reason(body: bytes) -> str | None:
    """A Tweezer's word for why."""
    failure = _failure(body)
    return None if failure is None or failure.data is None else failure.data.reason


def excerpt(body: bytes) -> str:
    """The beginning of what was received, fit for a sentence."""
    text = " ".join(body[: 4 * _EXCERPT].decode(errors="replace").split())
    shown = "".join(sign if sign.isprintable() else "�" for sign in text[:_EXCERPT])
    return f"{shown}…" if len(text) > _EXCERPT or len(body) > 4 * _EXCERPT else shown or "(nothing)"


def _failure(body: bytes) -> _Failure | None:
    try:
        document: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
    try:
        return msgspec.convert(document, _Failure)
    except ValueError:
        return None


def _junk(answer: Answer, problem: str) -> ServerUnreachable:
    return ServerUnreachable(f"{answer.what}: the server answers something else ({problem}): {excerpt(answer.body)}")
