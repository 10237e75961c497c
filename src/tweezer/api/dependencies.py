"""What routes are given: who is asking, the live store, the holds, and the parameters that several of them take."""

from __future__ import annotations

from typing import Annotated, cast
from uuid import UUID

from fastapi import Depends, Path, Query, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from pydantic import Field

from tweezer.api.auth import caller_of, unauthorized
from tweezer.api.envelope import Refused
from tweezer.api.links import Links
from tweezer.api.live import Live
from tweezer.api.longpoll import Holds
from tweezer.ledger.credentials import Principal, Role
from tweezer.ledger.database import Database

WAIT_MAX_S = 20.0
"""The longest hold: Pasqal's clients give a request up after 30 s."""

_LINK = Principal("link", Role.OPERATOR)  # a link says which job may be read, whoever's it is


_KEY_MODEL = HTTPBearer(description="A key (`twz_…`) that an operator made, or a token of /oauth/token.")
_KEY_SCHEME = "key"


class _BearerKey(SecurityBase):
    """Gives the caller, who must have one of the roles, and tells the OpenAPI document that a key is needed."""

    def __init__(self, *roles: Role) -> None:
        self.model = _KEY_MODEL
        self.scheme_name = _KEY_SCHEME
        self._roles = roles or tuple(Role)

    async def __call__(self, request: Request) -> Principal:
        caller = _known_caller(request)
        if caller.role not in self._roles:
            problem = f"this needs a key of the role {' or '.join(self._roles)}, not {caller.role}"
            raise Refused(403, "forbidden", problem)
        return caller


def _known_caller(request: Request) -> Principal:
    caller = caller_of(request.scope)
    if caller is None:  # not to be: the middleware lets nobody through
        raise unauthorized()
    return caller


async def _live(request: Request) -> Live:
    return cast(Live, request.app.state.live)


async def _holds(request: Request) -> Holds:
    return cast(Holds, request.app.state.holds)


async def _ledger(request: Request) -> Database:
    return cast(Database, request.app.state.database)


async def _links(request: Request) -> Links:
    return cast(Links, request.app.state.links)


async def _wait_s(
    request: Request,
    wait_s: Annotated[
        Annotated[float, Field(ge=0, le=WAIT_MAX_S, allow_inf_nan=False)] | None,
        Query(description="How long to hold the request, in seconds; 0 answers at once. Default: the server's."),
    ] = None,
) -> float:
    return cast(float, request.app.state.longpoll_s) if wait_s is None else wait_s


Caller = Annotated[Principal, Depends(_BearerKey())]
Submitter = Annotated[Principal, Depends(_BearerKey(Role.USER, Role.OPERATOR))]
Servant = Annotated[Principal, Depends(_BearerKey(Role.OPERATOR, Role.WORKER))]
Operator = Annotated[Principal, Depends(_BearerKey(Role.OPERATOR))]
LiveStore = Annotated[Live, Depends(_live)]
HeldRequests = Annotated[Holds, Depends(_holds)]
Ledger = Annotated[Database, Depends(_ledger)]
ResultsLinks = Annotated[Links, Depends(_links)]
WaitSeconds = Annotated[float, Depends(_wait_s)]
BatchId = Annotated[UUID, Path(description="Id of a batch.", examples=["0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"])]
JobId = Annotated[UUID, Path(description="Id of a job.", examples=["0199f3a2-7c1e-8b1d-9f04-a1b2c3000003"])]


class _LinkOrKey(SecurityBase):
    """Gives the caller of a request for results, or who a signed link stands for."""

    def __init__(self) -> None:
        self.model = _KEY_MODEL
        self.scheme_name = _KEY_SCHEME

    async def __call__(
        self,
        request: Request,
        links: ResultsLinks,
        expires: Annotated[str, Query(description="Of a link: until when it is good, in seconds since 1970.")] = "",
        signature: Annotated[str | None, Query(description="Of a link: what makes it good without a key.")] = None,
    ) -> Principal:
        if signature is None:
            return _known_caller(request)
        job_id: str = request.path_params["job_id"]  # the route checks it
        if not await links.are_good(job_id, expires, signature):
            problem = "this link has expired or was changed: ask /api/v1/jobs/{job_id}/results_link for a new one"
            raise Refused(403, "link_expired", problem)
        return _LINK


ResultsReader = Annotated[Principal, Depends(_LinkOrKey())]
