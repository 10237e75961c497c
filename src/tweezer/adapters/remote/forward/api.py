"""A client of the Pasqal API, as far as forwarding needs it. Reads and cancels are retried for a while."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import aiohttp
import msgspec

from tweezer.adapters.remote.errors import (
    RemoteRefused,
    RemoteUnreachable,
    SubmitUncertain,
    UnknownRemoteJob,
)
from tweezer.adapters.remote.http import FAILURES, HttpAnswer, RemoteClient, TokenRequest, check_submit, make_excerpt
from tweezer.adapters.remote.options import ForwardOptions
from tweezer.model.addresses import check_url, why_refused
from tweezer.model.errors import InvalidInput
from tweezer.model.lifecycle import JobStatus, Stage
from tweezer.model.messages import Progress, Result, Steps

_REDIRECTS = (301, 302, 303, 307, 308)
_REDIRECTS_MAX = 5
_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")

_STAGES = {stage.value: stage for stage in Stage}

T = TypeVar("T")


class ServerBatch(msgspec.Struct, frozen=True):
    """A batch on the server.

    parent_id: The batch that this one repeats, and whose tags it has.
    """

    id: str
    status: str = ""
    tags: list[str] | None = None
    parent_id: str | None = None


class ServerJob(msgspec.Struct, frozen=True):
    """A job on the server.

    errors: Messages for people. progress (percent), stage, device_s (seconds), steps: None if the server does not
    report them.
    start_timestamp: None before the job has begun.
    """

    id: str
    status: JobStatus
    errors: list[str] | None = None
    progress: float | None = None
    stage: str | None = None
    device_s: float | None = None
    start_timestamp: str | None = None
    steps: Any = None

    def started_s_ago(self) -> float:
        """Return for how many seconds it has run, by both clocks; 0 if the server does not report its start."""
        try:
            began = datetime.fromisoformat(self.start_timestamp or "")
        except ValueError:
            return 0.0
        aware = began if began.tzinfo else began.replace(tzinfo=UTC)
        return max((datetime.now(UTC) - aware).total_seconds(), 0.0)

    def read_progress(self) -> Progress:
        """Return the job's progress, with the server's stage if it reports one."""
        waits = self.status is JobStatus.PENDING
        stage = _STAGES.get(self.stage or "", Stage.QUEUED if waits else Stage.ON_DEVICE)
        fraction = None if self.progress is None else min(max(self.progress / 100, 0.0), 1.0)
        steps = None
        with contextlib.suppress(msgspec.ValidationError):  # it need not be a Tweezer
            steps = msgspec.convert(self.steps, Steps | None)
        return Progress(stage, fraction, None if waits else steps)


class ServerDevice(msgspec.Struct, frozen=True):
    """A device on the server.

    status: ``UP`` or ``DOWN``.
    """

    device_type: str
    status: str | None = None


class ServerBatchStatus(msgspec.Struct, frozen=True):
    """The status of a batch."""

    status: str


class ServerResultsLink(msgspec.Struct, frozen=True):
    """The link to a job's results; None while it has no results."""

    results_link: str | None = None


class _ServerErrorData(msgspec.Struct):
    description: str | None = None
    reason: str | None = None
    field: str | None = None


class _ServerError(msgspec.Struct):
    message: str | None = None
    data: _ServerErrorData | None = None


def read_data(answer: HttpAnswer, kind: type[T]) -> T:
    """Return the data of the envelope.

    Raises RemoteRefused for a refusal, and RemoteUnreachable for a temporary error or an invalid answer.
    """
    _check(answer)
    try:
        return msgspec.convert(msgspec.json.decode(answer.body)["data"], kind)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _invalid_answer(answer, str(error)) from error


def read_result(answer: HttpAnswer) -> Result:
    """Return the results of a job: counter, Pulser's serialised results, and a Tweezer's provenance."""
    _check(answer)
    try:  # Python's json accepts the NaN that results may contain
        return msgspec.convert(json.loads(answer.body), Result)
    except (ValueError, RecursionError) as error:
        raise _invalid_answer(answer, str(error)) from error


def _check(answer: HttpAnswer) -> None:
    """Raise as :func:`read_data` unless the answer is a success."""
    if answer.status >= 500 or answer.status in (408, 425, 429):
        raise RemoteUnreachable(f"{answer.what}: the server returned {answer.status}: {answer.excerpt}")
    if answer.status >= 400:
        field, problem = read_problem(answer.body)
        shown = f"{field}: {problem}" if field else problem
        raise RemoteRefused(
            f"{answer.what}: the server refused with {answer.status}: {shown}", status=answer.status, field=field
        )
    if not 200 <= answer.status < 300:
        raise _invalid_answer(answer, f"its status is {answer.status}; check base_url")


def read_problem(body: bytes) -> tuple[str | None, str]:
    """Return the part of the request at fault, if the server names it, and the problem."""
    failure = _read_failure(body)
    data = failure.data if failure is not None else None
    if data is None or not data.description:
        return None, (failure.message if failure is not None else None) or make_excerpt(body)
    return data.field, data.description.removeprefix(f"{data.field}: ")


def _read_failure(body: bytes) -> _ServerError | None:
    """Return the API's description of a failure; None if a proxy in front of it answered."""
    try:
        return msgspec.json.decode(body, type=_ServerError)
    except (ValueError, RecursionError):
        return None


def _invalid_answer(answer: HttpAnswer, problem: str) -> RemoteUnreachable:
    return RemoteUnreachable(f"{answer.what}: the server's answer is not valid ({problem}): {answer.excerpt}")


class _AddressRefused(OSError):
    """An address to which no link may lead."""


class ForwardApi(RemoteClient):
    """The API of one server."""

    api = "the server's API"
    unit = "batch"
    _options: ForwardOptions
    max_answer_bytes = 256 << 20  # results with observables are large

    def __init__(self, options: ForwardOptions, *, agent: str = "tweezer") -> None:
        """Raises InvalidInput naming the invalid option. Sends nothing to the server yet."""
        options.check()
        super().__init__(options, options.url, agent=agent, key=options.key())
        if (login := options.login) is not None:
            self._log_in(TokenRequest(login.token_url, login.form(), login.who, "the option login"))

    # -- devices --------------------------------------------------------------------------------------

    async def get_device(self) -> ServerDevice | None:
        """Return the device's state; None if the server has no such device. Raises RemoteError."""
        devices = await self._data("GET", "/api/v1/devices", list[ServerDevice])
        return next((device for device in devices if device.device_type == self._options.device), None)

    async def get_specs(self) -> str:
        """Return the device's specs, in Pulser's abstract representation. Raises RemoteError."""
        specs = await self._data("GET", "/api/v1/devices/specs", dict[str, str])
        found = specs.get(self._options.device)
        if found is None:
            known = ", ".join(sorted(specs)) or "no device"
            problem = f"the server has no specs of {self._options.device}; it has specs of {known}"
            raise RemoteRefused(problem, status=404, field="device")
        return found

    # -- work -----------------------------------------------------------------------------------------

    async def submit(
        self, body: Mapping[str, Any], *, idempotency_key: str, before_send: Callable[[], None] | None = None
    ) -> str:
        """Submit a batch and return its id.

        before_send: Called on the open connection, right before the first byte is sent. If it raises, nothing is sent
        and the exception is passed on. Raises SubmitRefused and SubmitDeferred (not executed), SubmitUncertain (perhaps
        executed).
        """
        headers = {"Idempotency-Key": idempotency_key}
        return _read_submitted(await self._submit("/api/v1/batches", msgspec.json.encode(body), before_send, headers))

    async def find_batch(self, tag: str) -> str | None:
        """Return the id of the batch with this tag; None if the server's lists, which may be outdated, do not have it.

        Raises RemoteError.
        """
        query = {"tag": tag, "limit": "100"}
        if self._options.project_id is not None:
            query["project_id"] = self._options.project_id
        batches = await self._data("GET", "/api/v1/batches", list[ServerBatch], query)
        return next((batch.id for batch in batches if tag in (batch.tags or ()) and batch.parent_id is None), None)

    async def get_job(self, batch_id: str) -> ServerJob:
        """Return the one job of a batch. Raises UnknownRemoteJob and RemoteError."""
        jobs = await self._data("GET", "/api/v2/jobs", list[ServerJob], {"batch_id": batch_id})
        if not jobs:
            raise UnknownRemoteJob(f"the server has no batch {batch_id}", status=404)
        return jobs[0]

    async def get_batch_status(self, batch_id: str) -> str:
        """Return the status of a batch. Some servers delay the answer until the batch has ended. Raises RemoteError."""
        return (await self._data("GET", f"/api/v1/batches/{batch_id}/status", ServerBatchStatus)).status

    async def cancel(self, batch_id: str) -> None:
        """Cancel a batch; may be sent several times. Raises RemoteUnreachable, or RemoteRefused if it has ended."""
        await self._data("PATCH", f"/api/v2/batches/{batch_id}/cancel", dict[str, Any])

    async def get_result(self, job_id: str) -> Result | None:
        """Return the results of a job; None while it has none. Raises RemoteError."""
        link = (await self._data("GET", f"/api/v1/jobs/{job_id}/results_link", ServerResultsLink)).results_link
        if link is None:
            return None
        url = urljoin(f"{self._url}/", link)
        what = "GET results"  # the link grants access to the results, so it is never logged
        return await self._retry(lambda: self._open_link(what, url), read_result, what)

    async def _data(self, method: str, path: str, kind: type[T], query: Mapping[str, str] | None = None) -> T:
        return await self._read(method, path, lambda answer: read_data(answer, kind), query)

    # -- links to results -----------------------------------------------------------------------------

    async def _open_link(self, what: str, url: str) -> HttpAnswer:
        """Read a link to results. The link and redirects may lead to the server itself and to public addresses."""
        for _ in range(_REDIRECTS_MAX):
            guard = self._guard(what, url)
            try:
                async with contextlib.AsyncExitStack() as stack:
                    session = self._shared_session()
                    if guard is not None:
                        connector = aiohttp.TCPConnector(ssl=self._tls, socket_factory=guard)
                        session = self._new_session(connector, self._options.read_timeout_s)
                        await stack.enter_async_context(session)
                    response = await stack.enter_async_context(session.get(url, allow_redirects=False))
                    location = response.headers.get("Location")
                    if response.status not in _REDIRECTS or location is None:
                        return await self._receive(what, response, None)
                    url = urljoin(url, location)
            except FAILURES as error:
                if isinstance(error, _AddressRefused) or isinstance(error.__cause__, _AddressRefused):
                    problem = f"{what}: the link leads to an address that is not public; add it to results_allow"
                    raise RemoteRefused(problem, status=403, field="results_link") from error
                raise RemoteUnreachable(f"{what}: no answer ({type(error).__name__})") from error
        raise RemoteRefused(f"{what}: more than {_REDIRECTS_MAX} redirects", status=310, field="results_link")

    def _guard(self, what: str, url: str) -> Callable[[Any], socket.socket] | None:
        """Return a factory of sockets that checks their addresses; None if any address is allowed.

        Raises RemoteRefused for a URL that is not allowed.
        """
        if _get_origin(url) == _get_origin(self._url):
            return None
        policy = self._options.results_policy
        try:
            target = check_url(url, policy, "results_link")
        except InvalidInput as error:
            raise RemoteRefused(f"{what}: the link {error.problem}", status=403, field="results_link") from error

        def open_socket(info: Any) -> socket.socket:
            family, kind, protocol, _, place = info
            if why_refused(str(place[0]), policy) is not None:
                raise _AddressRefused
            return socket.socket(family, kind, protocol)

        return None if target.trusted else open_socket


def _get_origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()


def _read_submitted(answer: HttpAnswer) -> str:
    """Return the id of the created batch. Raises SubmitRefused, SubmitDeferred or SubmitUncertain."""
    field, problem = read_problem(answer.body) if answer.status >= 400 else (None, "")
    failure = _read_failure(answer.body)
    reason = None if failure is None or failure.data is None else failure.data.reason
    is_full = answer.status == 503 and reason == "full"
    is_by_api = failure is not None
    check_submit(ForwardApi, answer.status, problem, is_by_api=is_by_api, is_deferred=is_full, field=field)
    try:
        batch = read_data(answer, ServerBatch)
    except (RemoteUnreachable, RemoteRefused) as error:
        raise SubmitUncertain(f"{error.message}: the batch may have been created") from error
    if not _ID.fullmatch(batch.id):
        raise SubmitUncertain("the server returned an invalid batch id: the batch may have been created")
    return batch.id
