"""The caller's account: logging in with name and password, sessions, and the projects of a key."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import parse_qsl

import msgspec
import structlog
from fastapi import APIRouter, Path, Query, Request, Response
from msgspec import UNSET, Meta, UnsetType

from tweezer.api.access.auth import Authenticator
from tweezer.api.access.dependencies import Caller, Ledger, Session
from tweezer.api.access.logins import Logins, TooManyAttempts
from tweezer.api.batches.filters import Text
from tweezer.api.http.openapi import Responses, answers, response_docs
from tweezer.api.http.responses import (
    RETRY_AFTER_S,
    Moment,
    RecordResponse,
    RequestRejected,
    Source,
    describe_outage,
    doc,
    json_response,
    success,
)
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import end_sessions, list_sessions
from tweezer.ledger.access.projects import list_projects
from tweezer.model.errors import QueueFull, Unavailable

log = structlog.get_logger(__name__)

FORM_MAX = 16_384
"""Bytes of a log-in at most."""

READ_SCOPE: Literal["read"] = "read"
"""The scope of a session that only reads."""

CURRENT = "current"
"""In place of the id of a session: the one of the request."""

_FIELDS_MAX = 20
_FORM_TYPE = "application/x-www-form-urlencoded"
_GRANTS = ("password", "http://auth0.com/oauth/grant-type/password-realm")  # the latter is Auth0's word for it

_UNKEPT = {"Pragma": "no-cache"}  # beside the no-store of all answers: RFC 6749 asks for both

router = APIRouter(tags=["account"])

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            _FORM_TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["grant_type", "username", "password"],
                    "properties": {
                        "grant_type": {"type": "string", "enum": list(_GRANTS)},
                        "username": {"type": "string", "examples": ["ada"]},
                        "password": {"type": "string", "format": "password"},
                        **{
                            name: {"type": "string", "description": "Passed over."}
                            for name in ("client_id", "realm", "audience")
                        },
                        "scope": {
                            "type": "string",
                            "description": "`read` for a session that only reads; anything else is passed over.",
                        },
                    },
                }
            }
        },
    }
}


class TokenResponse(msgspec.Struct, frozen=True):
    """A session, as RFC 6749 (5.1) has it."""

    access_token: Annotated[str, doc("To be sent as `Authorization: Bearer …`.", "twz_…")]
    token_type: Annotated[Literal["Bearer"], Meta(examples=["Bearer"])]
    expires_in: Annotated[int, doc("How long it is valid, in seconds.", 86_400)]
    scope: Annotated[Literal["read"] | UnsetType, doc("`read` where it only reads; else absent.", "read")] = UNSET


class OAuthErrorResponse(msgspec.Struct, frozen=True):
    """Why there is no session, as RFC 6749 (5.2) has it."""

    error: Annotated[str, doc("A word for programs.", "invalid_grant")]
    error_description: Annotated[str, Meta(examples=["name or password are wrong, or the user is disabled"])]


class AccountSessionResponse(RecordResponse, frozen=True):
    """A log-in that is still valid."""

    id: Annotated[str, doc("What stands in the middle of its token.", "abcdefgh2345")]
    created_at: Annotated[Moment, Source("created")]
    expires_at: Annotated[Moment, Source("expires")]
    last_used_at: Annotated[Moment | None, Source("used"), doc("To within two minutes.")]
    role: Annotated[Role, doc("`read` where it only reads.", "user")]
    current: Annotated[bool, doc("Whether it is the one of this request.", True)]


class AccountProjectResponse(RecordResponse, frozen=True):
    """A project of the caller's."""

    id: Annotated[str, Meta(examples=["6e4e6f0c-7e0e-4b4c-9a6f-0d6f2b8f3f11"])]
    name: Annotated[str, Meta(examples=["Spin models"])]
    status: Annotated[Literal["ACTIVE"], Meta(examples=["ACTIVE"])]
    created_at: Annotated[Moment, Source("created")]


_REFUSALS: Responses = {
    status: response_docs(OAuthErrorResponse, description, status=status)[status]
    for status, description in (
        (400, "Name or password are wrong, or the form cannot be read."),
        (429, "Too many log-ins have failed; `Retry-After` says when to try again."),
        (503, "Redis or the database do not answer; try again later."),
    )
}


@router.post(
    "/oauth/token",
    summary="A log-in with name and password",
    responses=response_docs(TokenResponse) | _REFUSALS,
    openapi_extra=_FORM,
)
async def open_session(request: Request) -> Response:
    """A token for all projects of a user, as OAuth 2's password grant gives it (RFC 6749, 4.3): it is sent like a key.

    Errors are OAuth's, without the envelope.
    """
    form = await _read_form(request)
    if form is None:
        problem = (
            f"the body is not a form of up to {_FIELDS_MAX} fields; send UTF-8 as application/x-www-form-urlencoded"
        )
        return _oauth_error(400, "invalid_request", problem)
    missing = [name for name in ("grant_type", "username", "password") if not form.get(name)]
    if missing:
        return _oauth_error(400, "invalid_request", f"the form lacks {' and '.join(missing)}, or has it twice")
    if form["grant_type"] not in _GRANTS:
        return _oauth_error(400, "unsupported_grant_type", "grant_type must be password")
    logins: Logins = request.app.state.logins
    role = Role.READ if form.get("scope") == READ_SCOPE else Role.USER
    address = request.client.host if request.client else ""
    try:
        session = await logins.open(form["username"], form["password"], address=address, role=role)
    except TooManyAttempts as error:
        return _oauth_error(429, error.code, error.message, retry_s=error.retry_s)
    except (Unavailable, QueueFull) as error:
        return _oauth_error(503, "temporarily_unavailable", describe_outage(error), retry_s=RETRY_AFTER_S)
    if session is None:
        return _oauth_error(400, "invalid_grant", "name or password are wrong, or the user is disabled")
    token = TokenResponse(
        access_token=session.text,
        token_type="Bearer",  # noqa: S106  # its type
        expires_in=logins.session_s,
        scope=READ_SCOPE if role is Role.READ else UNSET,
    )
    return json_response(token, headers=_UNKEPT)


@router.get("/account/api/v1/projects", summary="The projects of the key", **answers(list[AccountProjectResponse], 422))
async def get_projects(
    caller: Caller,
    ledger: Ledger,
    project_status: Annotated[
        Text | None, Query(description="All projects are `ACTIVE`: no others are asked for.")
    ] = None,
) -> Response:
    """The projects that the key sees: its own, and all of them for an operator."""
    if project_status not in (None, "ACTIVE"):
        return success([])
    found = await ledger.run_read(list_projects)
    return success([AccountProjectResponse.from_record(it, status="ACTIVE") for it in found if caller.sees(it.id)])


@router.get("/account/api/v1/sessions", summary="The sessions of the user", **answers(list[AccountSessionResponse]))
async def get_sessions(caller: Session, ledger: Ledger) -> Response:
    """The log-ins that are still valid, youngest first. Only for a session, not for a key."""
    found = await ledger.run_read(list_sessions, caller.user or "")
    return success([AccountSessionResponse.from_record(it, current=it.id == caller.key) for it in found])


@router.delete("/account/api/v1/sessions/{session_id}", summary="Log out", **answers(None, 404, 422))
async def end_session(
    request: Request,
    caller: Session,
    ledger: Ledger,
    session_id: Annotated[
        Text, Path(description="Id of one of the user's sessions, or `current`: that of this request.", max_length=40)
    ],
) -> Response:
    """End a session: its token opens nothing within a second, in every process. Only for a session, not for a key; one
    that only reads ends no other."""
    identity = caller.key if session_id == CURRENT else session_id
    if caller.role is Role.READ and identity != caller.key:
        problem = "role: read may end no other session; use a session of the role user"
        raise RequestRejected(403, "forbidden", problem)
    await ledger.run_write(end_sessions, caller.user or "", identity)
    log.info("login.ended", user=caller.user, key=identity)
    authenticator: Authenticator = request.app.state.authenticator
    authenticator.forget(identity)
    return success(None)


async def _read_form(request: Request) -> dict[str, str] | None:
    """Return the fields that are given once; None when the body is not a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _FORM_TYPE:
        return None
    try:
        pairs = parse_qsl(
            (await request.body()).decode(), keep_blank_values=True, max_num_fields=_FIELDS_MAX, errors="strict"
        )
    except ValueError:
        return None
    names = [name for name, _ in pairs]
    return {name: value for name, value in pairs if names.count(name) == 1}


def _oauth_error(status: int, error: str, description: str, *, retry_s: int | None = None) -> Response:
    headers = _UNKEPT | ({} if retry_s is None else {"Retry-After": str(retry_s)})
    return json_response(OAuthErrorResponse(error, description), status, headers)
