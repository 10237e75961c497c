"""The client of Pasqal's on-premises QPU API.

A read is tried again for a while; a cancel and a submit are sent once, and each way in which a submit can fail says
whether the job may have been created.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec
import structlog

from tweezer.adapters.remote.http import FAILURES, TOO_LARGE, UNDECIDED, LastLook, brief, read_at_most, repeated, tls_of
from tweezer.adapters.remote.qpu.answers import (
    Answer,
    Operational,
    RemoteJob,
    RemoteProgram,
    excerpt,
    is_by_api,
    job_of,
    operational_of,
    program_of,
    specs_of_system,
    status_of,
)
from tweezer.adapters.remote.qpu.errors import (
    QpuError,
    QpuRefused,
    QpuUnreachable,
    SubmitDeferred,
    SubmitRefused,
    SubmitTurnedAway,
    SubmitUncertain,
    TooLate,
    UnknownJob,
)
from tweezer.adapters.remote.qpu.options import ApiOptions, KeycloakOptions
from tweezer.adapters.remote.tokens import TokenRequest, Tokens

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_ANSWER_BYTES = 64 << 20
"""How much of an answer is read: a job comes with its sequence, up to 8 MiB, and a bitstring for each run."""

_CANNOT_BE_ABORTED = "3003"


class Context(msgspec.Struct, frozen=True):
    """What a submit carries beside the job; ``pasqman_job_id``, a UUID, is how to find it again."""

    batch_id: str
    pasqman_job_id: str


class _Submission(msgspec.Struct, frozen=True):
    nb_run: int
    pulser_sequence: str
    context: Context


class QpuApi:
    """The API of one QPU. Use it as a context manager, or call :meth:`close`.

    agent: how it presents itself (``User-Agent``), so that the QPU's operator can tell who asked.
    """

    def __init__(self, options: ApiOptions, *, agent: str = "tweezer") -> None:
        """Raises InvalidInput naming the option that cannot be used. Asks nothing of the QPU yet."""
        options.check()
        self._options = options
        self._url = options.api_url
        self._tls = tls_of(verify=options.tls_verify, ca_file=options.tls_ca_file)
        self._headers = {"User-Agent": agent, "Accept": "application/json"}
        timeout = _timeout(options, options.read_timeout_s)
        self._tokens = None if options.keycloak is None else _tokens(options.keycloak, self._tls, timeout)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def system(self) -> str:
        """The device's specs, Pulser's abstract representation, as text. Raises QpuUnreachable and QpuRefused."""
        return await self._repeated("GET", "/system", specs_of_system)

    async def operational(self) -> Operational:
        """Whether the QPU runs jobs now. Raises QpuUnreachable and QpuRefused: then that is unknown, not ``DOWN``."""
        return await self._repeated("GET", "/system/operational", operational_of)

    async def job(self, uid: int, *, patient: bool = True) -> RemoteJob:
        """How a job stands. patient: asks again for a while. Raises UnknownJob, QpuUnreachable and QpuRefused."""
        try:
            if not patient:
                return job_of(await self._ask("GET", f"/jobs/{uid}"))
            return await self._repeated("GET", f"/jobs/{uid}", job_of)
        except QpuRefused as error:
            raise _about_a_job(error) from error

    async def program(self, program: int | str) -> RemoteProgram:
        """The program behind a job. Raises UnknownJob, QpuUnreachable and QpuRefused."""
        try:
            return await self._repeated("GET", f"/programs/{program}", program_of)
        except QpuRefused as error:
            raise _about_a_job(error) from error

    async def cancel(self, uid: int) -> RemoteJob:
        """Cancel a job, and return it as it stands then.

        It is sent once: before it is sent again, check that the job of this id is still the same. Raises TooLate when
        its program can no longer be aborted, UnknownJob, QpuUnreachable and QpuRefused.
        """
        try:
            return job_of(await self._ask("PUT", f"/jobs/{uid}/cancel"))
        except QpuRefused as error:
            if _CANNOT_BE_ABORTED in error.remote_code:
                raise TooLate(error.message, status=error.status, remote_code=error.remote_code) from error
            raise _about_a_job(error) from error

    async def submit(
        self, *, nb_run: int, pulser_sequence: str, context: Context, last_look: Callable[[], None] | None = None
    ) -> RemoteJob:
        """Submit one job, once. On a real QPU this cancels the job that runs.

        last_look: called when the connection stands, right before the first byte is sent; what it raises is raised
        here, and nothing was sent. Raises SubmitRefused (of which SubmitDeferred may be sent again): surely not
        executed; SubmitUncertain: perhaps executed. Only a submit that was answered 401 is sent a second time, with
        a new token: that was not executed.
        """
        body = msgspec.json.encode(_Submission(nb_run, pulser_sequence, context))
        answer = await self._post(body, last_look)
        if answer.status == 401 and self._tokens is not None:
            answer = await self._post(body, last_look)
        return _submitted(answer, context)

    async def _post(self, body: bytes, last_look: Callable[[], None] | None) -> Answer:
        """Sends a submit on a connection of its own: one that was kept may have been closed by the other side, and
        then nobody could say whether the submit arrived."""
        try:
            token = await self._token()
        except QpuError as error:
            raise SubmitDeferred(f"the job was not submitted: {error.message}") from error
        connector = LastLook(last_look, self._tls)
        try:
            async with self._new_session(connector, self._options.submit_timeout_s) as session:
                return await self._exchange(session, "POST", "/jobs", token, body)
        except FAILURES as error:
            if connector.passed:
                raise SubmitUncertain(
                    f"the QPU's API did not answer the submit ({brief(error)}): the job may have been created"
                ) from error
            raise SubmitDeferred(
                f"the job was not submitted: the QPU's API at {self._url} cannot be reached ({brief(error)})"
            ) from error

    async def _repeated(self, method: str, path: str, read: Callable[[Answer], T]) -> T:
        """What the API answers, asked again while it does not, for ``retry_s``."""

        def told(attempt: int, problem: str) -> None:
            log.info("qpu.asked_again", method=method, path=path, attempt=attempt, problem=problem)

        return await repeated(
            lambda: self._ask(method, path),
            read,
            retry_s=self._options.retry_s,
            unreachable=QpuUnreachable,
            told=told,
        )

    async def _ask(self, method: str, path: str) -> Answer:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._tls)
            self._session = self._new_session(connector, self._options.read_timeout_s)
        try:
            answer = await self._exchange(self._session, method, path, await self._token())
            if answer.status == 401 and self._tokens is not None:
                answer = await self._exchange(self._session, method, path, await self._token())
        except FAILURES as error:
            raise QpuUnreachable(f"{method} {path}: no answer from {self._url} ({brief(error)})") from error
        return answer

    async def _exchange(
        self, session: aiohttp.ClientSession, method: str, path: str, token: str | None, body: bytes | None = None
    ) -> Answer:
        """One request and its answer. A token that was refused is discarded, and shown in no answer."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = session.request(method, self._url + path, data=body, headers=headers, allow_redirects=False)
        async with request as response:
            received = await read_at_most(response, MAX_ANSWER_BYTES)
            if token is not None:
                received = received.replace(token.encode(), b"***")
                if response.status == 401 and self._tokens is not None:
                    self._tokens.discard(token)
            return Answer(f"{method} {path}", response.status, received)

    async def _token(self) -> str | None:
        return None if self._tokens is None else await self._tokens.current()

    def _new_session(self, connector: aiohttp.BaseConnector, timeout_s: float) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector, timeout=_timeout(self._options, timeout_s), headers=self._headers
        )


def _submitted(answer: Answer, context: Context) -> RemoteJob:
    """The job that a submit created. Raises SubmitRefused and SubmitUncertain."""
    status = status_of(answer)
    if status in (401, 429):
        raise SubmitDeferred(f"the job was not submitted: the QPU's API answers {status}: {excerpt(answer.body)}")
    if 400 <= status < 500 and status not in UNDECIDED:
        if status != TOO_LARGE and not is_by_api(answer):
            raise SubmitTurnedAway(
                f"the job was not submitted: something other than the QPU's API answered {status}, "
                f"is it a proxy? {excerpt(answer.body)}"
            )
        raise SubmitRefused(f"the QPU's API refuses the job with {status}: {excerpt(answer.body)}")
    try:
        job = job_of(answer)
    except QpuError as error:
        raise SubmitUncertain(f"{error.message}: the job may have been created") from error
    if job.pasqman_job_id not in (None, context.pasqman_job_id):
        raise SubmitUncertain(
            f"the QPU's API answers with another job, {job.pasqman_job_id} instead of {context.pasqman_job_id}: the "
            "job may have been created"
        )
    return job


def _about_a_job(error: QpuRefused) -> QpuError:
    """The API answers 400 where it knows no such job, and 404 in other versions; of a proxy's 404 nothing follows."""
    if error.status not in (400, 404):
        return error
    if not error.by_api:
        return QpuUnreachable(error.message)
    return UnknownJob(error.message, status=error.status, remote_code=error.remote_code)


def _tokens(options: KeycloakOptions, tls: ssl.SSLContext | bool, timeout: aiohttp.ClientTimeout) -> Tokens:
    """Raises InvalidInput when the client's secret cannot be had."""
    form = {
        "grant_type": "client_credentials",
        "client_id": options.client_id,
        "client_secret": options.secret(),
    }
    hint = "realm, client_id and client_secret of the option keycloak"
    return Tokens(
        TokenRequest(options.token_url, form, f"the client {options.client_id}", hint),
        tls,
        timeout,
        unreachable=QpuUnreachable,
        refused=lambda problem, status: QpuRefused(problem, status=status, remote_code="token", by_api=False),
    )


def _timeout(options: ApiOptions, total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, connect=options.connect_timeout_s)
