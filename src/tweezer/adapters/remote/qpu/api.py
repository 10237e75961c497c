"""The client of Pasqal's on-premises QPU API. Reads are tried again for a while; cancels and submits are sent once."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from tweezer.adapters.remote.errors import (
    RemoteError,
    RemoteRefused,
    RemoteUnreachable,
    SubmitUncertain,
    TooLate,
    UnknownRemoteJob,
)
from tweezer.adapters.remote.http import HttpAnswer, RemoteClient, TokenRequest, check_submit, excerpt
from tweezer.adapters.remote.options import QpuOptions
from tweezer.model.lifecycle import JobStatus

_CANNOT_BE_ABORTED = "3003"

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


def read_data(answer: HttpAnswer, kind: type[T]) -> T:
    """Return what is in the envelope.

    Raises RemoteRefused when the API says no, by the status of HTTP or by the envelope's code, and RemoteUnreachable
    when it says to come back, or for what no such API says.
    """
    envelope, status, is_by_api = _open(answer)
    if status >= 500 or status == 429:
        raise RemoteUnreachable(f"{answer.what}: the QPU's API answers {status}: {answer.excerpt}")
    if status >= 400:
        raise RemoteRefused(
            f"{answer.what}: the QPU's API refuses with {status}: {answer.excerpt}",
            status=status,
            remote_code=_code(envelope) or str(status),
            by_api=is_by_api,
        )
    if not 200 <= status < 300:
        raise _junk(answer.what, answer.body, f"its status is {status}; is base_url right?")
    if envelope is None:
        raise _junk(answer.what, answer.body, "it is no JSend envelope; is base_url right?")
    if envelope.status not in (None, "success"):
        raise _junk(answer.what, answer.body, "its envelope tells of no success")
    try:
        return msgspec.convert(envelope.data, kind)
    except (ValueError, RecursionError) as error:
        raise _junk(answer.what, answer.body, str(error)) from error


def _open(answer: HttpAnswer) -> tuple[_JSend | None, int, bool]:
    """Return the envelope, if there is one, the status, and whether a refusal surely comes from the API, not a proxy.

    The status is that of HTTP, or the envelope's where that says an error within a 200, as some versions answer.
    """
    try:  # by Python's JSON, which takes the Infinity that Pulser may write into specs
        envelope = msgspec.convert(json.loads(answer.body), _JSend)
    except (ValueError, RecursionError):
        return None, answer.status, False
    status, code = answer.status, envelope.code
    if 200 <= status < 300 and isinstance(code, int) and 400 <= code < 600:
        status = code
    return envelope, status, status in _OF_APIS or envelope.status in ("fail", "error")


def _code(envelope: _JSend | None) -> str | None:
    """Return the API's own code: in the data, or in the envelope."""
    if envelope is None:
        return None
    inner = envelope.data.get("code") if isinstance(envelope.data, dict) else None
    return next((str(code) for code in (inner, envelope.code) if isinstance(code, int | str)), None)


def _junk(what: str, body: bytes, problem: str) -> RemoteUnreachable:
    return RemoteUnreachable(f"{what}: the QPU's API answers something else ({problem}): {excerpt(body)}")


class SubmitContext(msgspec.Struct, frozen=True):
    """What a submit carries beside the job; ``pasqman_job_id``, a UUID, is how to find it again."""

    batch_id: str
    pasqman_job_id: str


class _SubmitBody(msgspec.Struct, frozen=True):
    nb_run: int
    pulser_sequence: str
    context: SubmitContext


class QpuApi(RemoteClient):
    """The API of one QPU. Use it as a context manager, or call :meth:`close`."""

    api = "the QPU's API"
    unit = "job"
    max_answer_bytes = 64 << 20  # a job comes with its sequence, up to 8 MiB, and a bitstring for each run

    def __init__(self, options: QpuOptions, *, agent: str = "tweezer") -> None:
        """Raises InvalidInput naming the option that cannot be used. Sends nothing to the QPU yet."""
        options.check()
        super().__init__(options, options.api_url, agent=agent)
        if (keycloak := options.keycloak) is not None:
            form = {
                "grant_type": "client_credentials",
                "client_id": keycloak.client_id,
                "client_secret": keycloak.secret(),
            }
            hint = "realm, client_id and client_secret of the option keycloak"
            self._log_in(TokenRequest(keycloak.token_url, form, f"the client {keycloak.client_id}", hint))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def system(self) -> str:
        """Return the device's specs, Pulser's abstract representation, as text. Raises RemoteError."""
        return json.dumps((await self._get("/system", _System)).specs)

    async def operational(self) -> Operational:
        """Return whether the QPU runs jobs now. Raises RemoteError: then that is unknown, not ``DOWN``."""
        return (await self._get("/system/operational", _OperationalStatus)).operational_status

    async def job(self, uid: int, *, patient: bool = True) -> QpuJob:
        """Return the job's current state. patient: ask again for a while. Raises UnknownRemoteJob and RemoteError."""
        try:
            if not patient:
                return read_data(await self._request("GET", f"/jobs/{uid}"), QpuJob)
            return await self._get(f"/jobs/{uid}", QpuJob)
        except RemoteRefused as error:
            raise _about_a_job(error) from error

    async def cancel(self, uid: int) -> QpuJob:
        """Cancel a job, and return its state then.

        It is sent once: before it is sent again, check that the job of this id is still the same. Raises TooLate when
        its program can no longer be aborted, UnknownRemoteJob and RemoteError.
        """
        try:
            return read_data(await self._request("PUT", f"/jobs/{uid}/cancel"), QpuJob)
        except RemoteRefused as error:
            if _CANNOT_BE_ABORTED in error.remote_code:
                raise TooLate(error.message, status=error.status, remote_code=error.remote_code) from error
            raise _about_a_job(error) from error

    async def submit(
        self,
        *,
        nb_run: int,
        pulser_sequence: str,
        context: SubmitContext,
        before_send: Callable[[], None] | None = None,
    ) -> QpuJob:
        """Submit one job, once. On a real QPU this cancels the job that runs.

        before_send: called when the connection stands, right before the first byte is sent; what it raises is raised
        here, and nothing was sent. Raises SubmitRefused and SubmitDeferred: surely not executed; SubmitUncertain:
        perhaps executed.
        """
        content = msgspec.json.encode(_SubmitBody(nb_run, pulser_sequence, context))
        return _read_submitted(await self._submit("/jobs", content, before_send), context)

    async def _get(self, path: str, kind: type[T]) -> T:
        return await self._read("GET", path, lambda answer: read_data(answer, kind))


def _read_submitted(answer: HttpAnswer, context: SubmitContext) -> QpuJob:
    """Return the job that a submit created. Raises SubmitRefused, SubmitDeferred and SubmitUncertain."""
    _, status, is_by_api = _open(answer)
    check_submit(QpuApi, status, answer.excerpt, is_by_api=is_by_api)
    try:
        job = read_data(answer, QpuJob)
    except RemoteError as error:
        raise SubmitUncertain(f"{error.message}: the job may have been created") from error
    if job.pasqman_job_id not in (None, context.pasqman_job_id):
        raise SubmitUncertain(
            f"the QPU's API answers with another job, {job.pasqman_job_id} instead of {context.pasqman_job_id}: the "
            "job may have been created"
        )
    return job


def _about_a_job(error: RemoteRefused) -> RemoteError:
    """The API answers 400 where it knows no such job, and 404 in other versions; of a proxy's 404 nothing follows."""
    if error.status not in (400, 404):
        return error
    if not error.by_api:
        return RemoteUnreachable(error.message)
    return UnknownRemoteJob(error.message, status=error.status, remote_code=error.remote_code)
