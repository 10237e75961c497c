"""The caller's account: log-ins with name and password, sessions, and the projects of a key."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import parse_qsl

import msgspec
import structlog
from fastapi import APIRouter, Path, Query, Request, Response
from msgspec import UNSET, UnsetType

from tweezer.api.access.auth import Authenticator
from tweezer.api.access.dependencies import Caller, Ledger, Session
from tweezer.api.access.logins import Logins, TooManyAttempts
from tweezer.api.batches.filters import Text
from tweezer.api.http.openapi import Responses, describe_response, describe_route
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
"""The largest form of a log-in, in bytes."""

READ_SCOPE: Literal["read"] = "read"
"""The scope of a session that only reads."""

CURRENT = "current"
"""In place of a session id: the session of the request."""

_FIELDS_MAX = 20
_FORM_TYPE = "application/x-www-form-urlencoded"
_GRANTS = ("password", "http://auth0.com/oauth/grant-type/password-realm")  # the second is Auth0's name for it

_UNKEPT = {"Pragma": "no-cache"}  # in addition to the no-store of all responses: RFC 6749 asks for both

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
                        "grant_type": {
                            "type": "string",
                            "enum": list(_GRANTS),
                            "description": "`password`; the other value is Auth0's name for the same grant.",
                        },
                        "username": {"type": "string", "description": "Name of the user.", "examples": ["ada"]},
                        "password": {"type": "string", "format": "password", "description": "Password of the user."},
                        **{
                            name: {"type": "string", "description": "Ignored."}
                            for name in ("client_id", "realm", "audience")
                        },
                        "scope": {
                            "type": "string",
                            "description": "`read` for a read-only session; any other value is ignored.",
                        },
                    },
                }
            }
        },
    }
}


class TokenResponse(msgspec.Struct, frozen=True):
    """The access token of a new session (RFC 6749, section 5.1)."""

    access_token: Annotated[str, doc("Access token; send it as `Authorization: Bearer …`.", "twz_…")]
    token_type: Annotated[Literal["Bearer"], doc("Always `Bearer`.", "Bearer")]
    expires_in: Annotated[int, doc("How long the token is valid, in seconds.", 86_400)]
    scope: Annotated[Literal["read"] | UnsetType, doc("`read` for a read-only session; absent otherwise.", "read")] = (
        UNSET
    )


class OAuthErrorResponse(msgspec.Struct, frozen=True):
    """A rejected log-in (RFC 6749, section 5.2)."""

    error: Annotated[str, doc("Error code, for programs.", "invalid_grant")]
    error_description: Annotated[
        str, doc("What is wrong, for people.", "the name or the password is wrong, or the user is disabled")
    ]


class AccountSessionResponse(RecordResponse, frozen=True):
    """A valid session."""

    id: Annotated[str, doc("Id of the session: the middle part of its token.", "abcdefgh2345")]
    created_at: Annotated[Moment, Source("created"), doc("When the user logged in.")]
    expires_at: Annotated[Moment, Source("expires"), doc("When the session expires.")]
    last_used_at: Annotated[
        Moment | None, Source("used"), doc("When the session was last used, to within two minutes; null if never.")
    ]
    role: Annotated[Role, doc("`user`, or `read` for a read-only session.", "user")]
    current: Annotated[bool, doc("Whether this request uses the session.", True)]


class AccountProjectResponse(RecordResponse, frozen=True):
    """A project of the caller."""

    id: Annotated[str, doc("Id of the project.", "6e4e6f0c-7e0e-4b4c-9a6f-0d6f2b8f3f11")]
    name: Annotated[str, doc("Name of the project, for people.", "Spin models")]
    status: Annotated[Literal["ACTIVE"], doc("Always `ACTIVE`.", "ACTIVE")]
    created_at: Annotated[Moment, Source("created"), doc("When the project was created.")]


_REFUSALS: Responses = {
    status: describe_response(OAuthErrorResponse, description, status=status)[status]
    for status, description in (
        (400, "The name or the password is wrong, or the form is not valid."),
        (429, "Too many failed log-ins. Try again after the time in `Retry-After`."),
        (
            503,
            "Redis or the database does not respond, or the service is overloaded. Wait for the time in `Retry-After`.",
        ),
    )
}


@router.post(
    "/oauth/token",
    summary="Log in with user name and password",
    responses=describe_response(TokenResponse) | _REFUSALS,
    openapi_extra=_FORM,
)
async def open_session(request: Request) -> Response:
    """Open a session with OAuth 2's password grant (RFC 6749, section 4.3), and return its access token. Send the token
    like an API key; it gives access to all projects of the user.

    Errors have OAuth's format, without the envelope.
    """
    form = await _read_form(request)
    if form is None:
        problem = (
            f"the body is not a form with at most {_FIELDS_MAX} fields; send UTF-8 as application/x-www-form-urlencoded"
        )
        return _oauth_error(400, "invalid_request", problem)
    missing = [name for name in ("grant_type", "username", "password") if not form.get(name)]
    if missing:
        return _oauth_error(
            400, "invalid_request", f"{' and '.join(missing)}: missing from the form, or sent twice; send each once"
        )
    if form["grant_type"] not in _GRANTS:
        return _oauth_error(400, "unsupported_grant_type", "grant_type: must be password")
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
        return _oauth_error(400, "invalid_grant", "the name or the password is wrong, or the user is disabled")
    token = TokenResponse(
        access_token=session.text,
        token_type="Bearer",  # noqa: S106  # not a password
        expires_in=logins.session_s,
        scope=READ_SCOPE if role is Role.READ else UNSET,
    )
    return json_response(token, headers=_UNKEPT)


@router.get(
    "/account/api/v1/projects",
    summary="List the projects of the key",
    **describe_route(list[AccountProjectResponse], 422),
)
async def get_projects(
    caller: Caller,
    ledger: Ledger,
    project_status: Annotated[
        Text | None, Query(description="Only projects with this status. Every project is `ACTIVE`.")
    ] = None,
) -> Response:
    """Return the projects that the key gives access to: its own, or all of them for an operator."""
    if project_status not in (None, "ACTIVE"):
        return success([])
    found = await ledger.run_read(list_projects)
    return success([AccountProjectResponse.from_record(it, status="ACTIVE") for it in found if caller.sees(it.id)])


@router.get(
    "/account/api/v1/sessions", summary="List the sessions of the user", **describe_route(list[AccountSessionResponse])
)
async def get_sessions(caller: Session, ledger: Ledger) -> Response:
    """Return the valid sessions, newest first. The request must use a session, not a key."""
    found = await ledger.run_read(list_sessions, caller.user or "")
    return success([AccountSessionResponse.from_record(it, current=it.id == caller.key) for it in found])


@router.delete("/account/api/v1/sessions/{session_id}", summary="Log out", **describe_route(None, 404, 422))
async def end_session(
    request: Request,
    caller: Session,
    ledger: Ledger,
    session_id: Annotated[
        Text,
        Path(
            description="Id of one of the user's sessions, or `current` for the session of this request.", max_length=40
        ),
    ],
) -> Response:
    """End a session. Within a second, every process rejects its token. The request must use a session, not a key. A
    read-only session can only end itself."""
    identity = caller.key if session_id == CURRENT else session_id
    if caller.role is Role.READ and identity != caller.key:
        problem = "role: read may not end another session; use a session with the role user"
        raise RequestRejected(403, "forbidden", problem)
    await ledger.run_write(end_sessions, caller.user or "", identity)
    log.info("login.ended", user=caller.user, key=identity)
    authenticator: Authenticator = request.app.state.authenticator
    authenticator.forget(identity)
    return success(None)


async def _read_form(request: Request) -> dict[str, str] | None:
    """Return the fields that were sent once; None if the body is not a form."""
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
