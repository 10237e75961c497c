"""What a server with the Pasqal API answers: envelopes, and what is in them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from tweezer.adapters.remote.errors import RemoteRefused, RemoteUnreachable
from tweezer.adapters.remote.http import HttpAnswer, excerpt
from tweezer.model.lifecycle import JobStatus, Stage
from tweezer.model.messages import Progress, Result

_STAGES = {stage.value: stage for stage in Stage}

T = TypeVar("T")


class ServerBatch(msgspec.Struct, frozen=True):
    """A batch there. parent_id: of one that repeats another, and has its tags."""

    id: str
    status: str = ""
    tags: list[str] | None = None
    parent_id: str | None = None


class ServerJob(msgspec.Struct, frozen=True):
    """A job there. errors: for people. progress (percent), stage and device_s (seconds): where the server reports them.
    start_timestamp: None while it has not begun."""

    id: str
    status: JobStatus
    errors: list[str] | None = None
    progress: float | None = None
    stage: str | None = None
    device_s: float | None = None
    start_timestamp: str | None = None

    def started_s_ago(self) -> float:
        """Return for how long it has run, by the server's clock and ours; 0 where the server does not report it."""
        try:
            began = datetime.fromisoformat(self.start_timestamp or "")
        except ValueError:
            return 0.0
        aware = began if began.tzinfo else began.replace(tzinfo=UTC)
        return max((datetime.now(UTC) - aware).total_seconds(), 0.0)

    def reported(self) -> Progress:
        """Return how far it is: by the server's own stage where it reports one."""
        waits = self.status is JobStatus.PENDING
        stage = _STAGES.get(self.stage or "", Stage.QUEUED if waits else Stage.ON_DEVICE)
        return Progress(stage, None if self.progress is None else min(max(self.progress / 100, 0.0), 1.0))


class ServerDevice(msgspec.Struct, frozen=True):
    """A device there. status: ``UP``, ``DOWN``."""

    device_type: str
    status: str | None = None


class ServerBatchStatus(msgspec.Struct, frozen=True):
    """The status of a batch, without the rest of it."""

    status: str


class ServerResultsLink(msgspec.Struct, frozen=True):
    """Where the results of a job are; None while there are none."""

    results_link: str | None = None


class _FailureData(msgspec.Struct):
    description: str | None = None
    reason: str | None = None
    field: str | None = None


class _Failure(msgspec.Struct):
    message: str | None = None
    data: _FailureData | None = None


def read_data(answer: HttpAnswer, kind: type[T]) -> T:
    """Return what is in the envelope.

    Raises RemoteRefused when the server says no, and RemoteUnreachable when it says to come back, or for what no such
    API says.
    """
    _check(answer)
    try:
        return msgspec.convert(msgspec.json.decode(answer.body)["data"], kind)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _junk(answer, str(error)) from error


def read_result(answer: HttpAnswer) -> Result:
    """Return the results of a job: counter, Pulser's serialised results, and of a Tweezer where they come from."""
    _check(answer)
    try:  # by Python's JSON, which takes the NaN that results may hold
        return msgspec.convert(json.loads(answer.body), Result)
    except (ValueError, RecursionError) as error:
        raise _junk(answer, str(error)) from error


def _check(answer: HttpAnswer) -> None:
    """Raise as :func:`read_data` for what is no success."""
    if answer.status >= 500 or answer.status in (408, 425, 429):
        raise RemoteUnreachable(f"{answer.what}: the server answers {answer.status}: {answer.excerpt}")
    if answer.status >= 400:
        field, problem = read_complaint(answer.body)
        shown = f"{field}: {problem}" if field else problem
        raise RemoteRefused(
            f"{answer.what}: the server refuses with {answer.status}: {shown}", status=answer.status, field=field
        )
    if not 200 <= answer.status < 300:
        raise _junk(answer, f"its status is {answer.status}; is base_url right?")


def read_complaint(body: bytes) -> tuple[str | None, str]:
    """Return the part of the request that is wrong, if the server names it, and what is wrong with it."""
    failure = _failure(body)
    data = failure.data if failure is not None else None
    if data is None or not data.description:
        return None, (failure.message if failure is not None else None) or excerpt(body)
    return data.field, data.description.removeprefix(f"{data.field}: ")


def is_by_api(body: bytes) -> bool:
    """Whether a refusal comes from the API, and not from a proxy before it: it is a JSON object."""
    return _failure(body) is not None


def read_reason(body: bytes) -> str | None:
    """Return a Tweezer's word for why."""
    failure = _failure(body)
    return None if failure is None or failure.data is None else failure.data.reason


def _failure(body: bytes) -> _Failure | None:
    try:
        document: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
    try:
        return msgspec.convert(document, _Failure)
    except ValueError:
        return None


def _junk(answer: HttpAnswer, problem: str) -> RemoteUnreachable:
    return RemoteUnreachable(f"{answer.what}: the server answers something else ({problem}): {answer.excerpt}")
