"""A client of Pasqal's on-premises QPU API. Reads are retried for a while; cancels and submits are sent once.

Formats: the public middleware for HPC centres, https://github.com/pasqal-io/warden.
"""

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
from tweezer.adapters.remote.http import HttpAnswer, RemoteClient, TokenRequest, check_submit, make_excerpt
from tweezer.adapters.remote.options import QpuOptions
from tweezer.model.lifecycle import JobStatus, Stage
from tweezer.model.messages import Progress, Steps

_CANNOT_BE_ABORTED = "3003"

_OF_APIS = (400, 422)  # proxies do not return these with JSON
_BITS = frozenset("01")

T = TypeVar("T")


class Operational(StrEnum):
    """Whether the QPU runs jobs now."""

    UP = "UP"
    DOWN = "DOWN"


class QpuJob(msgspec.Struct, frozen=True):
    """A job as the QPU reports it, with its dates and times unchanged.

    result: JSON, see :meth:`counter`. A stopped job has a partial result. context: The context that its client sent.
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
        """The id that its client gave it."""
        found = (self.context or {}).get("pasqman_job_id")
        return found if isinstance(found, str) else None

    def read_progress(self) -> Progress:
        """Return the job's progress, as far as the machine reports it as a number of runs or in percent."""
        match self.progress:
            case {"completed_runs": int(done), "total_runs": int(total)} if total > 0:
                done = min(max(done, 0), total)
                return Progress(Stage.ON_DEVICE, done / total, Steps(done, total, f"{done} of {total} runs"))
            case int(percent) | float(percent) if 0 <= percent <= 100:
                return Progress(Stage.ON_DEVICE, percent / 100)
            case _:
                return Progress(Stage.ON_DEVICE)

    def counter(self) -> dict[str, int] | None:
        """Return bitstring → number of shots; None without a result. Raises RemoteUnreachable if it is not valid."""
        if self.result is None:
            return None
        what, text = f"the result of job {self.uid}", self.result.encode(errors="replace")
        try:
            counter = msgspec.convert(json.loads(self.result), _Measured).counter
        except (ValueError, RecursionError) as error:
            raise _invalid_answer(what, text, str(error)) from error
        if any(count < 0 or not _BITS.issuperset(bits) for bits, count in counter.items()):
            raise _invalid_answer(what, text, "it is not a counter of bitstrings")
        if len({len(bits) for bits in counter}) > 1:
            raise _invalid_answer(what, text, "its bitstrings differ in length")
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
    """Return the data of the envelope.

    Raises RemoteRefused for a refusal, by the HTTP status or the envelope's code, and RemoteUnreachable for a temporary
    error or an invalid answer.
    """
    envelope, status, is_by_api = _open(answer)
    if status >= 500 or status == 429:
        raise RemoteUnreachable(f"{answer.what}: the QPU's API returned {status}: {answer.excerpt}")
    if status >= 400:
        raise RemoteRefused(
            f"{answer.what}: the QPU's API refused with {status}: {answer.excerpt}",
            status=status,
            remote_code=_read_code(envelope) or str(status),
            by_api=is_by_api,
        )
    if not 200 <= status < 300:
        raise _invalid_answer(answer.what, answer.body, f"its status is {status}; check base_url")
    if envelope is None:
        raise _invalid_answer(answer.what, answer.body, "it is not a JSend envelope; check base_url")
    if envelope.status not in (None, "success"):
        raise _invalid_answer(answer.what, answer.body, "the status in its envelope is not success")
    try:
        return msgspec.convert(envelope.data, kind)
    except (ValueError, RecursionError) as error:
        raise _invalid_answer(answer.what, answer.body, str(error)) from error


def _open(answer: HttpAnswer) -> tuple[_JSend | None, int, bool]:
    """Return the envelope, if there is one, the status, and whether a refusal definitely comes from the API itself.

    The status is that of HTTP, or the envelope's error code within a 200, which some versions send.
    """
    try:  # Python's json accepts the Infinity that Pulser may write into specs
        envelope = msgspec.convert(json.loads(answer.body), _JSend)
    except (ValueError, RecursionError):
        return None, answer.status, False
    status, code = answer.status, envelope.code
    if 200 <= status < 300 and isinstance(code, int) and 400 <= code < 600:
        status = code
    return envelope, status, status in _OF_APIS or envelope.status in ("fail", "error")


def _read_code(envelope: _JSend | None) -> str | None:
    """Return the API's own code, from the data or from the envelope."""
    if envelope is None:
        return None
    inner = envelope.data.get("code") if isinstance(envelope.data, dict) else None
    return next((str(code) for code in (inner, envelope.code) if isinstance(code, int | str)), None)


def _invalid_answer(what: str, body: bytes, problem: str) -> RemoteUnreachable:
    return RemoteUnreachable(f"{what}: the answer of the QPU's API is not valid ({problem}): {make_excerpt(body)}")


class SubmitContext(msgspec.Struct, frozen=True):
    """The context of a submit. By its ``pasqman_job_id``, a UUID, the job can be found again."""

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
    max_answer_bytes = 64 << 20  # a job contains its sequence, up to 8 MiB, and a bitstring for each run

    def __init__(self, options: QpuOptions, *, agent: str = "tweezer") -> None:
        """Raises InvalidInput naming the invalid option. Sends nothing to the QPU yet."""
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

    async def get_specs(self) -> str:
        """Return the device's specs, in Pulser's abstract representation. Raises RemoteError."""
        return json.dumps((await self._get("/system", _System)).specs)

    async def get_status(self) -> Operational:
        """Return whether the QPU runs jobs now. Raises RemoteError if that is unknown, which does not mean ``DOWN``."""
        return (await self._get("/system/operational", _OperationalStatus)).operational_status

    async def get_job(self, uid: int, *, patient: bool = True) -> QpuJob:
        """Return the job's current state. Raises UnknownRemoteJob and RemoteError.

        patient: Whether to retry for a while.
        """
        try:
            if not patient:
                return read_data(await self._request("GET", f"/jobs/{uid}"), QpuJob)
            return await self._get(f"/jobs/{uid}", QpuJob)
        except RemoteRefused as error:
            raise _to_job_error(error) from error

    async def cancel(self, uid: int) -> QpuJob:
        """Cancel a job and return its new state.

        The request is sent once. Before sending it again, check that the id still denotes the same job. Raises TooLate
        if the job's program can no longer be aborted, UnknownRemoteJob and RemoteError.
        """
        try:
            return read_data(await self._request("PUT", f"/jobs/{uid}/cancel"), QpuJob)
        except RemoteRefused as error:
            if _CANNOT_BE_ABORTED in error.remote_code:
                raise TooLate(error.message, status=error.status, remote_code=error.remote_code) from error
            raise _to_job_error(error) from error

    async def submit(
        self,
        *,
        nb_run: int,
        pulser_sequence: str,
        context: SubmitContext,
        before_send: Callable[[], None] | None = None,
    ) -> QpuJob:
        """Submit a job, once. On a real QPU this cancels the running job.

        before_send: Called on the open connection, right before the first byte is sent. If it raises, nothing is sent
        and the exception is passed on. Raises SubmitRefused and SubmitDeferred (not executed), SubmitUncertain (perhaps
        executed).
        """
        content = msgspec.json.encode(_SubmitBody(nb_run, pulser_sequence, context))
        return _read_submitted(await self._submit("/jobs", content, before_send), context)

    async def _get(self, path: str, kind: type[T]) -> T:
        return await self._read("GET", path, lambda answer: read_data(answer, kind))


def _read_submitted(answer: HttpAnswer, context: SubmitContext) -> QpuJob:
    """Return the created job. Raises SubmitRefused, SubmitDeferred or SubmitUncertain."""
    _, status, is_by_api = _open(answer)
    check_submit(QpuApi, status, answer.excerpt, is_by_api=is_by_api)
    try:
        job = read_data(answer, QpuJob)
    except RemoteError as error:
        raise SubmitUncertain(f"{error.message}: the job may have been created") from error
    if job.pasqman_job_id not in (None, context.pasqman_job_id):
        raise SubmitUncertain(
            f"the QPU's API returned another job, {job.pasqman_job_id} instead of {context.pasqman_job_id}: the job "
            "may have been created"
        )
    return job


def _to_job_error(error: RemoteRefused) -> RemoteError:
    """Translate a refusal. For an unknown job the API returns 400, or 404 in some versions; a proxy's is ignored."""
    if error.status not in (400, 404):
        return error
    if not error.by_api:
        return RemoteUnreachable(error.message)
    return UnknownRemoteJob(error.message, status=error.status, remote_code=error.remote_code)
