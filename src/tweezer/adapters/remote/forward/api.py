"""A client of the Pasqal API, as far as forwarding needs it.

Reads and cancels are tried again for a while; each way in which a submit can fail says whether the batch may have been
created.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import aiohttp
import msgspec
import structlog

from tweezer.adapters.remote.forward.answers import (
    Answer,
    RemoteBatch,
    RemoteDevice,
    RemoteJob,
    ResultsLink,
    Standing,
    complaint,
    data_of,
    is_by_api,
    reason,
    result_of,
)
from tweezer.adapters.remote.forward.errors import (
    ServerRefused,
    ServerUnreachable,
    SubmitDeferred,
    SubmitRefused,
    SubmitTurnedAway,
    SubmitUncertain,
    UnknownBatch,
)
from tweezer.adapters.remote.forward.options import ForwardOptions, LoginOptions
from tweezer.adapters.remote.http import FAILURES, TOO_LARGE, UNDECIDED, LastLook, brief, read_at_most, repeated, tls_of
from tweezer.adapters.remote.tokens import TokenRequest, Tokens
from tweezer.model.addresses import check_url, why_refused
from tweezer.model.errors import InvalidInput
from tweezer.model.messages import Result

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_ANSWER_BYTES = 256 << 20
"""How much of an answer is read: results with observables are long."""

_REDIRECTS = (301, 302, 303, 307, 308)
_REDIRECTS_MAX = 5
_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")


class _AddressRefused(OSError):
    """An address that no link may lead to."""


class ForwardApi:
    """The API of one server. agent: how it presents itself (``User-Agent``)."""

    def __init__(self, options: ForwardOptions, *, agent: str = "tweezer") -> None:
        """Raises InvalidInput naming the option that cannot be used. Asks nothing of the server yet."""
        options.check()
        self._options = options
        self._url = options.url
        self._tls = tls_of(verify=options.tls_verify, ca_file=options.tls_ca_file)
        self._headers = {"User-Agent": agent, "Accept": "application/json"}
        self._key = options.key()
        timeout = self._timeout(options.read_timeout_s)
        self._tokens = None if options.login is None else _tokens(options.login, self._tls, timeout)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # -- devices --------------------------------------------------------------------------------------

    async def device(self) -> RemoteDevice | None:
        """How the device is; None when there is none of this name. Raises ServerUnreachable and ServerRefused."""
        devices = await self._data("GET", "/api/v1/devices", list[RemoteDevice])
        return next((device for device in devices if device.device_type == self._options.device), None)

    async def specs(self) -> str:
        """What the device is like: Pulser's abstract representation. Raises ServerUnreachable and ServerRefused."""
        specs = await self._data("GET", "/api/v1/devices/specs", dict[str, str])
        found = specs.get(self._options.device)
        if found is None:
            known = ", ".join(sorted(specs)) or "none"
            problem = f"the server has no specs of {self._options.device}; it has those of {known}"
            raise ServerRefused(problem, status=404, field="device")
        return found

    # -- work -----------------------------------------------------------------------------------------

    async def submit(
        self, body: Mapping[str, Any], *, idempotency_key: str, last_look: Callable[[], None] | None = None
    ) -> str:
        """Submits a batch; its id.

        last_look: called when the connection stands, right before the first byte is sent; what it raises is raised
        here, and nothing was sent. Raises SubmitRefused and SubmitDeferred: surely not executed; SubmitUncertain:
        perhaps executed.
        """
        content = msgspec.json.encode(body)
        answer = await self._post(content, idempotency_key, last_look)
        if answer.status == 401 and self._tokens is not None:
            answer = await self._post(content, idempotency_key, last_look)
        return _submitted(answer)

    async def find(self, tag: str) -> str | None:
        """The id of the batch that was submitted with this tag; None when the lists do not have it, which may be a
        while behind. Raises ServerUnreachable and ServerRefused."""
        asked = {"tag": tag, "limit": "100"}
        if self._options.project_id is not None:
            asked["project_id"] = self._options.project_id
        batches = await self._data("GET", "/api/v1/batches", list[RemoteBatch], asked)
        return next((batch.id for batch in batches if tag in (batch.tags or ()) and batch.parent_id is None), None)

    async def job(self, batch_id: str) -> RemoteJob:
        """The one job of a batch as it stands. Raises UnknownBatch, ServerUnreachable and ServerRefused."""
        jobs = await self._data("GET", "/api/v2/jobs", list[RemoteJob], {"batch_id": batch_id})
        if not jobs:
            raise UnknownBatch(f"the server has no batch {batch_id}", status=404)
        return jobs[0]

    async def status(self, batch_id: str) -> str:
        """The status of a batch. Some servers hold the question until nothing of it runs any more.

        Raises ServerUnreachable and ServerRefused.
        """
        return (await self._data("GET", f"/api/v1/batches/{batch_id}/status", Standing)).status

    async def cancel(self, batch_id: str) -> None:
        """Asks for the end of a batch; may be sent several times. Raises ServerUnreachable, and ServerRefused, as when
        it has ended."""
        await self._data("PATCH", f"/api/v2/batches/{batch_id}/cancel", dict[str, Any])

    async def result(self, job_id: str) -> Result | None:
        """The results of a job; None while there are none. Raises ServerUnreachable and ServerRefused."""
        link = (await self._data("GET", f"/api/v1/jobs/{job_id}/results_link", ResultsLink)).results_link
        if link is None:
            return None
        url = urljoin(f"{self._url}/", link)
        what = "GET results"  # a link opens what it names: it is in no log
        return await self._repeated(lambda: self._open_link(what, url), result_of, what)

    # -- requests -------------------------------------------------------------------------------------

    async def _data(self, method: str, path: str, kind: type[T], query: Mapping[str, str] | None = None) -> T:
        what = f"{method} {path}"
        return await self._repeated(
            lambda: self._authorized(what, method, self._url + path, query), lambda answer: data_of(answer, kind), what
        )

    async def _repeated(self, ask: Callable[[], Awaitable[Answer]], read: Callable[[Answer], T], what: str) -> T:
        """What the server answers, asked again while it does not, for ``retry_s``."""

        def told(attempt: int, problem: str) -> None:
            log.info("forward.asked_again", what=what, attempt=attempt, problem=problem)

        return await repeated(ask, read, retry_s=self._options.retry_s, unreachable=ServerUnreachable, told=told)

    async def _authorized(self, what: str, method: str, url: str, query: Mapping[str, str] | None) -> Answer:
        answer = await self._request(what, method, url, token=await self._token(), query=query)
        if answer.status == 401 and self._tokens is not None:
            answer = await self._request(what, method, url, token=await self._token(), query=query)
        return answer

    async def _request(
        self,
        what: str,
        method: str,
        url: str,
        *,
        token: str | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            async with self._shared().request(
                method, url, headers=headers, params=query, allow_redirects=False
            ) as response:
                return await self._answer(what, response, token)
        except FAILURES as error:
            raise ServerUnreachable(f"{what}: no answer from {self._url} ({type(error).__name__})") from error

    async def _open_link(self, what: str, url: str) -> Answer:
        """Read a link to results, which may lead to the server itself or to public addresses, and so may redirects."""
        for _ in range(_REDIRECTS_MAX):
            guard = self._guard(what, url)
            try:
                async with contextlib.AsyncExitStack() as stack:
                    session = self._shared()
                    if guard is not None:
                        connector = aiohttp.TCPConnector(ssl=self._tls, socket_factory=guard)
                        session = await stack.enter_async_context(self._new_session(connector))
                    response = await stack.enter_async_context(session.get(url, allow_redirects=False))
                    location = response.headers.get("Location")
                    if response.status not in _REDIRECTS or location is None:
                        return await self._answer(what, response, None)
                    url = urljoin(url, location)
            except FAILURES as error:
                if isinstance(error, _AddressRefused) or isinstance(error.__cause__, _AddressRefused):
                    problem = f"{what}: the link leads to an address that is not public; results_allow may allow it"
                    raise ServerRefused(problem, status=403, field="results_link") from error
                raise ServerUnreachable(f"{what}: no answer ({type(error).__name__})") from error
        raise ServerRefused(f"{what}: more than {_REDIRECTS_MAX} redirects", status=310, field="results_link")

    def _guard(self, what: str, url: str) -> Callable[[Any], socket.socket] | None:
        """What opens a socket for a link and judges its address; None where any address will do.

        Raises ServerRefused for a URL that is refused as it is.
        """
        if _origin(url) == _origin(self._url):
            return None
        policy = self._options.results_policy
        try:
            target = check_url(url, policy, "results_link")
        except InvalidInput as error:
            raise ServerRefused(f"{what}: the link {error.problem}", status=403, field="results_link") from error

        def open_socket(info: Any) -> socket.socket:
            family, kind, protocol, _, place = info
            if why_refused(str(place[0]), policy) is not None:
                raise _AddressRefused
            return socket.socket(family, kind, protocol)

        return None if target.trusted else open_socket

    def _shared(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._new_session(aiohttp.TCPConnector(ssl=self._tls, limit=0))
        return self._session

    def _new_session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=self._timeout(self._options.read_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def _post(self, content: bytes, key: str, last_look: Callable[[], None] | None) -> Answer:
        """Sends a submit on a connection of its own: one that was kept may have been closed by the other side, and
        then nobody could say whether the submit arrived."""
        try:
            token = await self._token()
        except (ServerUnreachable, ServerRefused) as error:
            raise SubmitDeferred(f"the batch was not submitted: {error.message}") from error
        headers = self._headers | {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {token}",
            "Idempotency-Key": key,
        }
        what = "POST /api/v1/batches"
        connector = LastLook(last_look, self._tls)
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector, timeout=self._timeout(self._options.submit_timeout_s)
                ) as session,
                session.post(
                    f"{self._url}/api/v1/batches", data=content, headers=headers, allow_redirects=False
                ) as response,
            ):
                return await self._answer(what, response, token)
        except FAILURES as error:
            if connector.passed:
                raise SubmitUncertain(
                    f"{self._url} did not answer the submit ({brief(error)}): the batch may have been created"
                ) from error
            raise SubmitDeferred(
                f"the batch was not submitted: {self._url} cannot be reached ({brief(error)})"
            ) from error

    async def _answer(self, what: str, response: aiohttp.ClientResponse, token: str | None) -> Answer:
        """What came. A token that was refused is discarded, and shown in no answer."""
        body = await read_at_most(response, MAX_ANSWER_BYTES)
        if token is not None and response.status >= 400:
            body = body.replace(token.encode(), b"***")
            if response.status == 401 and self._tokens is not None:
                self._tokens.discard(token)
        return Answer(what, response.status, body)

    async def _token(self) -> str | None:
        return self._key if self._tokens is None else await self._tokens.current()

    def _timeout(self, total_s: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=total_s, connect=self._options.connect_timeout_s)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()


def _submitted(answer: Answer) -> str:
    """The id of the batch that a submit created. Raises SubmitRefused, SubmitDeferred and SubmitUncertain."""
    field, problem = complaint(answer.body) if answer.status >= 400 else (None, "")
    if answer.status in (401, 429) or (answer.status == 503 and reason(answer.body) == "full"):
        raise SubmitDeferred(f"the batch was not submitted: the server answers {answer.status}: {problem}")
    if 400 <= answer.status < 500 and answer.status not in UNDECIDED:
        if answer.status != TOO_LARGE and not is_by_api(answer.body):
            raise SubmitTurnedAway(
                f"the batch was not submitted: something other than the server's API answered {answer.status}, "
                f"is it a proxy? {problem}"
            )
        raise SubmitRefused(problem, status=answer.status, field=field)
    try:
        batch = data_of(answer, RemoteBatch)
    except (ServerUnreachable, ServerRefused) as error:
        raise SubmitUncertain(f"{error.message}: the batch may have been created") from error
    if not _ID.fullmatch(batch.id):
        raise SubmitUncertain("the server answers with an id that is none: the batch may have been created")
    return batch.id


def _tokens(options: LoginOptions, tls: ssl.SSLContext | bool, timeout: aiohttp.ClientTimeout) -> Tokens:
    """Raises InvalidInput when a secret cannot be had."""
    return Tokens(
        TokenRequest(options.token_url, options.form(), options.who, "the option login"),
        tls,
        timeout,
        unreachable=ServerUnreachable,
        refused=lambda problem, status: ServerRefused(problem, status=status),
    )
