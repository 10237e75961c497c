"""The HTTP interface of the simulated QPU: the real API below ``/api/v1``, a Keycloak, and ``/sim`` for tests.

Formats: the public middleware for HPC centres, https://github.com/pasqal-io/warden.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from tweezer.adapters.remote.qpu.api import Operational
from tweezer.model.errors import InvalidInput
from tweezer.qpu_sim.journal import JournalEvent
from tweezer.qpu_sim.machine import (
    NotAccepted,
    NotCancellable,
    SimulatedJob,
    SimulatedQpu,
    SubmitRequest,
    get_program_status,
    to_wire,
)
from tweezer.qpu_sim.misbehaviours import Misbehaviours

REALM = "qpu"
API = "/api/v1"
TOKEN_PATH = f"/realms/{REALM}/protocol/openid-connect/token"
MAX_BODY_BYTES = 32 << 20
_CANNOT_BE_ABORTED = "3003"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TokenClient(msgspec.Struct, frozen=True):
    """The client that may get tokens.

    token_s: The lifetime of a token in seconds.
    """

    client_id: str
    client_secret: str
    token_s: float = 60.0

    def __repr__(self) -> str:
        return f"TokenClient(client_id={self.client_id!r}, token_s={self.token_s!r})"

    @classmethod
    def read(cls, text: str, token_s: float) -> TokenClient:
        """Parse ``ID:SECRET``. Raises InvalidInput."""
        client_id, _, client_secret = text.partition(":")
        if not client_id or not client_secret:
            raise InvalidInput("token_auth", "must be ID:SECRET, the credentials of the client that may get tokens")
        return cls(client_id, client_secret, token_s)


class TokenIssuer:
    """Issues and checks access tokens.

    client: The client that may get tokens; None: no token is needed.
    """

    def __init__(self, client: TokenClient | None) -> None:
        self._client = client
        self._valid_until: dict[str, float] = {}

    def issue(self, grant_type: str, client_id: str, client_secret: str) -> str | None:
        """Return a new token; None if the credentials are wrong."""
        client = self._client
        if client is None or grant_type != "client_credentials" or client_id != client.client_id:
            return None
        if not hmac.compare_digest(client_secret.encode(), client.client_secret.encode()):
            return None
        token, moment_s = secrets.token_urlsafe(24), time.monotonic()
        self._valid_until = {known: until for known, until in self._valid_until.items() if until > moment_s}
        self._valid_until[token] = moment_s + client.token_s
        return token

    def admits(self, authorization: str) -> bool:
        """Return whether a request with this ``Authorization`` header is allowed."""
        if self._client is None:
            return True
        kind, _, token = authorization.partition(" ")
        return kind == "Bearer" and self._valid_until.get(token, 0.0) > time.monotonic()

    def revoke_all(self) -> None:
        """Revoke all tokens issued so far."""
        self._valid_until.clear()

    @property
    def token_s(self) -> float:
        return 0.0 if self._client is None else self._client.token_s


class _Status(msgspec.Struct, forbid_unknown_fields=True):
    operational_status: Operational | None


class Api:
    """The routes of one machine."""

    def __init__(self, machine: SimulatedQpu, tokens: TokenIssuer) -> None:
        self._machine = machine
        self._tokens = tokens
        self._requests = 0
        specs = json.loads(machine.specs.text)
        self._system = json.dumps(_wrap({"specs": specs})).encode()  # Python's json can write Infinity

    def application(self) -> web.Application:
        """Return the application. When it ends it closes the machine."""
        app = web.Application(middlewares=[self._misbehave, _answer_refusals], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get(f"{API}/system", self.system),
                web.get(f"{API}/system/operational", self.operational),
                web.post(f"{API}/jobs", self.submit),
                web.get(f"{API}/jobs/{{uid}}", self.job),
                web.put(f"{API}/jobs/{{uid}}/cancel", self.cancel),
                web.get(f"{API}/programs/{{uid}}", self.program),
                web.post(TOKEN_PATH, self.token),
                web.get("/sim/counts", self.counts),
                web.put("/sim/status", self.force),
                web.get("/sim/habits", self.misbehaviours),
                web.patch("/sim/habits", self.change_misbehaviours),
                web.post("/sim/revoke", self.revoke),
                web.post("/sim/reset", self.reset),
            ]
        )
        app.on_cleanup.append(lambda _: self._machine.close())
        return app

    async def system(self, request: web.Request) -> web.Response:
        return _json(self._system)

    async def operational(self, request: web.Request) -> web.Response:
        return _json(_success({"operational_status": self._machine.operational.value}))

    async def submit(self, request: web.Request) -> web.StreamResponse:
        asked = msgspec.json.decode(await request.read(), type=SubmitRequest)
        return self._unless_lost(request, self._machine.submit(asked, _identify(request)))

    async def job(self, request: web.Request) -> web.Response:
        return _json(_success(to_wire(self._find_job(request))))

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        job = self._find_job(request)
        self._machine.cancel(job, _identify(request))
        return self._unless_lost(request, job)

    async def program(self, request: web.Request) -> web.Response:
        job = self._find_job(request)
        return _json(_success({"uid": job.uid, "status": get_program_status(job)}))

    async def token(self, request: web.Request) -> web.Response:
        form = {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
        given = (form.get(name, "") for name in ("grant_type", "client_id", "client_secret"))
        token = self._tokens.issue(*given)
        if token is None:
            return _json(msgspec.json.encode({"error": "unauthorized_client"}), 401)
        issued = {"access_token": token, "expires_in": self._tokens.token_s, "token_type": "Bearer"}
        return _json(msgspec.json.encode(issued))

    async def counts(self, request: web.Request) -> web.Response:
        """Return ``{"jobs": {pasqman_job_id: tally}}``, see :class:`tweezer.qpu_sim.journal.Tally`."""
        return _json(msgspec.json.encode({"jobs": self._machine.journal.tallies}))

    async def force(self, request: web.Request) -> web.Response:
        """Set the status, ``{"operational_status": "UP" | "DOWN"}``; with null the ``down`` windows decide again."""
        self._machine.forced = msgspec.json.decode(await request.read(), type=_Status).operational_status
        return await self.operational(request)

    async def misbehaviours(self, request: web.Request) -> web.Response:
        return _json(msgspec.json.encode(self._machine.misbehaviours))

    async def change_misbehaviours(self, request: web.Request) -> web.Response:
        """Change some of the fields of :class:`tweezer.qpu_sim.misbehaviours.Misbehaviours`."""
        changes = msgspec.json.decode(await request.read(), type=dict[str, Any])
        current = msgspec.to_builtins(self._machine.misbehaviours)
        self._machine.misbehaviours = msgspec.convert({**current, **changes}, Misbehaviours)
        return await self.misbehaviours(request)

    async def revoke(self, request: web.Request) -> web.Response:
        """Revoke all tokens."""
        self._tokens.revoke_all()
        return _json(_success(None))

    async def reset(self, request: web.Request) -> web.Response:
        """Delete all jobs and counts."""
        await self._machine.reset()
        return _json(_success(None))

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Apply the misbehaviours of requests: refuse a request, or delay its answer."""
        if not request.path.startswith(API):
            return await handler(request)
        self._requests += 1
        number, misbehaviours = self._requests, self._machine.misbehaviours
        if not self._tokens.admits(request.headers.get("Authorization", "")):
            return _failure(401, "a valid access token is required")
        reads = request.method == "GET"
        if misbehaviours.happens(misbehaviours.read_errors if reads else misbehaviours.submit_errors, "error", number):
            return _failure(500, "temporary failure of the control system (simulated)")
        if not reads and misbehaviours.happens(misbehaviours.turn_away, "turn_away", number):
            return web.Response(status=404, text="<html><h1>404 Not Found</h1></html>", content_type="text/html")
        answer = await handler(request)
        if wait_s := misbehaviours.answers_in_s(number):
            await asyncio.sleep(wait_s)
        return answer

    def _unless_lost(self, request: web.Request, job: SimulatedJob) -> web.StreamResponse:
        """Return the job, or cut the connection before the answer."""
        misbehaviours = self._machine.misbehaviours
        if not misbehaviours.happens(misbehaviours.lose_replies, "lose", self._requests):
            return _json(_success(to_wire(job)))
        self._machine.journal.write(JournalEvent.CUT, uid=job.uid, job=job.asked.job)
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)  # the connection is closed, so no client receives it

    def _find_job(self, request: web.Request) -> SimulatedJob:
        """Return the job in the path. Raises NotAccepted if it does not exist."""
        uid = request.match_info["uid"]
        job = self._machine.find(int(uid)) if uid.isascii() and uid.isdigit() and len(uid) < 16 else None
        if job is None:
            raise NotAccepted("Bad request")
        return job


@web.middleware
async def _answer_refusals(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (msgspec.DecodeError, NotAccepted, InvalidInput) as error:
        return _failure(400, str(error))
    except NotCancellable as error:
        problem = "the program cannot be aborted"
        return _failure(400, problem, code=_CANNOT_BE_ABORTED, data={"status": str(error)})


def _wrap(data: object) -> dict[str, object]:
    """Return data in a JSend envelope."""
    return {"status": "success", "code": 200, "message": "OK.", "data": data}


def _success(data: object) -> bytes:
    return msgspec.json.encode(_wrap(data))


def _failure(status: int, message: str, *, code: str | None = None, data: object = None) -> web.Response:
    envelope = {"status": "fail", "code": code or str(status), "message": message, "data": data}
    return _json(msgspec.json.encode(envelope), status)


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


def _identify(request: web.Request) -> str:
    """Return the client's ``User-Agent``, or its address."""
    return request.headers.get("User-Agent") or request.remote or ""
