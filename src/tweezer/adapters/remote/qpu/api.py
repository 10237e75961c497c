"""The client of Pasqal's on-premises QPU API. Reads are tried again for a while; cancels and submits are sent once."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from tweezer.adapters.remote.errors import (
    RemoteError,
    RemoteRefused,
    RemoteUnreachable,
    SubmitUncertain,
    TooLate,
    UnknownRemoteJob,
)
from tweezer.adapters.remote.http import HttpAnswer, RemoteClient, TokenRequest, check_submit
from tweezer.adapters.remote.options import QpuOptions
from tweezer.adapters.remote.qpu.answers import (
    Operational,
    QpuJob,
    QpuProgram,
    is_by_api,
    read_job,
    read_operational,
    read_program,
    read_status,
    read_system,
)

_CANNOT_BE_ABORTED = "3003"


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
        return await self._read("GET", "/system", read_system)

    async def operational(self) -> Operational:
        """Return whether the QPU runs jobs now. Raises RemoteError: then that is unknown, not ``DOWN``."""
        return await self._read("GET", "/system/operational", read_operational)

    async def job(self, uid: int, *, patient: bool = True) -> QpuJob:
        """Return the job's current state. patient: ask again for a while. Raises UnknownRemoteJob and RemoteError."""
        try:
            if not patient:
                return read_job(await self._request("GET", f"/jobs/{uid}"))
            return await self._read("GET", f"/jobs/{uid}", read_job)
        except RemoteRefused as error:
            raise _about_a_job(error) from error

    async def program(self, program: int | str) -> QpuProgram:
        """Return the program behind a job. Raises UnknownRemoteJob and RemoteError."""
        try:
            return await self._read("GET", f"/programs/{program}", read_program)
        except RemoteRefused as error:
            raise _about_a_job(error) from error

    async def cancel(self, uid: int) -> QpuJob:
        """Cancel a job, and return its state then.

        It is sent once: before it is sent again, check that the job of this id is still the same. Raises TooLate when
        its program can no longer be aborted, UnknownRemoteJob and RemoteError.
        """
        try:
            return read_job(await self._request("PUT", f"/jobs/{uid}/cancel"))
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


def _read_submitted(answer: HttpAnswer, context: SubmitContext) -> QpuJob:
    """Return the job that a submit created. Raises SubmitRefused, SubmitDeferred and SubmitUncertain."""
    check_submit(QpuApi, read_status(answer), answer.excerpt, is_by_api=is_by_api(answer))
    try:
        job = read_job(answer)
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
