"""Dependencies of the routes: the caller, parts of the application, and parameters that several routes share."""

from __future__ import annotations

import re
from typing import Annotated, Any, cast
from uuid import UUID

from fastapi import Depends, Path, Query, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from pydantic import Field, ValidatorFunctionWrapHandler, WithJsonSchema, WrapValidator

from tweezer.api.access.auth import SignedLinks, get_caller, unauthorized_error
from tweezer.api.http.bodies import BodyReader
from tweezer.api.http.longpoll import LongPolls
from tweezer.api.http.responses import RequestRejected
from tweezer.api.read_model import ReadModel
from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.access.links import Linked
from tweezer.ledger.batch_reader import LAST_PATTERN
from tweezer.ledger.database import Database
from tweezer.model.ids import SHORT_ID_PATTERN
from tweezer.store.connection import Store

WAIT_MAX_S = 20.0
"""The longest time for which a request is held: Pasqal's clients time out after 30 s."""

READERS = frozenset({Role.USER, Role.READ, Role.OPERATOR})
"""Roles that read results, batches and devices."""

WRITERS = frozenset({Role.USER, Role.OPERATOR})
"""Roles that submit batches, and change them."""

_SCRAPERS = frozenset({Role.METRICS, Role.OPERATOR})
_SHORT = re.compile(rf"^({SHORT_ID_PATTERN}|{LAST_PATTERN})$")
_LINK = Principal("link", Role.OPERATOR)  # a link names the job that may be read, in any project


class _NeedsKey(SecurityBase):
    """The note in the OpenAPI document that a key is needed."""

    model = HTTPBearer(
        description="An API key (`twz_…`) from an operator, or an access token from `/oauth/token`. The role of a key "
        "decides what it may do: `user` submits and reads, `read` only reads, `metrics` only reads `/metrics`, "
        "and `operator` may do everything."
    )
    scheme_name = "key"


class _BearerKey(_NeedsKey):
    """The dependency on a caller with one of the roles."""

    def __init__(self, roles: frozenset[Role]) -> None:
        self._roles = roles

    async def __call__(self, request: Request) -> Principal:
        return require_role(request, self._roles)


def require_role(request: Request, roles: frozenset[Role]) -> Principal:
    """Return the caller. Raises RequestRejected: 401 without a key, 403 if its role is not one of these."""
    caller = get_caller(request.scope)
    if caller is None:  # cannot happen: the middleware has rejected such requests
        raise unauthorized_error()
    if caller.role not in roles:
        allowed = " or ".join(role for role in Role if role in roles)
        raise RequestRejected(
            403, "forbidden", f"role: {caller.role} may not do this; use a key with the role {allowed}"
        )
    return caller


def part(name: str) -> Any:
    """Return the dependency on a part of the application, by its name in the state."""

    async def find(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(find)


async def _wait_s(
    request: Request,
    wait_s: Annotated[
        Annotated[float, Field(ge=0, le=WAIT_MAX_S, allow_inf_nan=False)] | None,
        Query(
            description="The longest time for which the server holds the request (long polling), in seconds: "
            f"0 to {WAIT_MAX_S:g}; 0 means that it responds at once. Default: `TWEEZER_API_LONGPOLL_S` of the server."
        ),
    ] = None,
) -> float:
    return cast(float, request.app.state.longpoll_s) if wait_s is None else wait_s


Caller = Annotated[Principal, Depends(_BearerKey(READERS))]
Submitter = Annotated[Principal, Depends(_BearerKey(WRITERS))]
Scraper = Annotated[Principal, Depends(_BearerKey(_SCRAPERS))]
Operator = Annotated[Principal, Depends(_BearerKey(frozenset({Role.OPERATOR})))]


async def _session(caller: Annotated[Principal, Depends(_BearerKey(frozenset(Role)))]) -> Principal:
    if not caller.is_session:
        problem = "this route needs a session, not a key; log in at /oauth/token with name and password"
        raise RequestRejected(403, "not_a_session", problem)
    return caller


Session = Annotated[Principal, Depends(_session)]
LiveStore = Annotated[ReadModel, part("live")]
HeldRequests = Annotated[LongPolls, part("holds")]
Ledger = Annotated[Database, part("database")]
Queue = Annotated[Store, part("store")]
ReadBodies = Annotated[BodyReader, part("bodies")]
ResultsLinks = Annotated[SignedLinks, part("links")]
WaitSeconds = Annotated[float, Depends(_wait_s)]


def _read_batch_id(text: str, as_uuid: ValidatorFunctionWrapHandler) -> UUID | str:
    found: UUID | str = text if _SHORT.fullmatch(text) else as_uuid(text)
    return found


_NamedBatch = Annotated[
    UUID,
    WrapValidator(_read_batch_id),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "uuid"}, {"type": "string", "pattern": _SHORT.pattern}]}),
]
_EXAMPLES = ["0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"]


async def _find_batch(
    batch_id: Annotated[
        _NamedBatch,
        Path(
            description="Id of a batch, or its short id, or `@last` for the last batch that the caller submitted.",
            examples=_EXAMPLES,
        ),
    ],
    request: Request,
    live: LiveStore,
) -> UUID:
    named: UUID | str = batch_id
    return named if isinstance(named, UUID) else await live.find(require_role(request, READERS), named)


async def _find_task(
    task_id: Annotated[
        _NamedBatch,
        Path(
            description="Id of a task, which is the id of its batch; or its short id, or `@last` for the last one that "
            "the caller submitted.",
            examples=_EXAMPLES,
        ),
    ],
    request: Request,
    live: LiveStore,
) -> UUID:
    return await _find_batch(task_id, request, live)


BatchId = Annotated[UUID, Depends(_find_batch)]
TaskId = Annotated[UUID, Depends(_find_task)]
JobId = Annotated[UUID, Path(description="Id of a job.", examples=["0199f3a2-7c1e-8b1d-9f04-a1b2c3000003"])]


class _LinkOrKey(_NeedsKey):
    """The dependency on the caller of a request for results or logs, or on the principal of a signed link."""

    async def __call__(
        self,
        request: Request,
        links: ResultsLinks,
        issued: Annotated[
            str, Query(description="Part of a signed link: when it was issued, in seconds since 1970.")
        ] = "",
        expires: Annotated[
            str, Query(description="Part of a signed link: when it expires, in seconds since 1970.")
        ] = "",
        signature: Annotated[
            str | None, Query(description="Part of a signed link: the signature, which replaces a key.")
        ] = None,
    ) -> Principal:
        if signature is None:
            return require_role(request, READERS)
        job_id: str = request.path_params["job_id"]  # the route checks it
        what = Linked(request.url.path.rpartition("/")[2])
        if not await links.are_valid(what, job_id, issued, expires, signature):
            problem = (
                "this link is not valid: it has expired, was changed, or its signing key was rotated; get a new one "
                f"from /api/v1/jobs/{{job_id}}/{what}_link"
            )
            raise RequestRejected(403, "link_expired", problem)
        return _LINK


ResultsReader = Annotated[Principal, Depends(_LinkOrKey())]


class _TicketOrKey(_NeedsKey):
    """The dependency on the caller of a stream, who may have sent a ticket."""

    async def __call__(
        self,
        request: Request,
        ticket: Annotated[
            str | None,
            Query(
                max_length=200,
                description="A ticket from the route of the same path with `/ticket`, which replaces a key in "
                "browsers. It is valid for 60 seconds and opens one stream.",
            ),
        ] = None,
    ) -> Principal:
        return require_role(request, READERS)


StreamReader = Annotated[Principal, Depends(_TicketOrKey())]
