"""The caller's account: logging in with name and password, sessions, and the projects of a key."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

import structlog
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse

from tweezer.api.access.auth import Authenticator
from tweezer.api.access.dependencies import Caller, Ledger, Session
from tweezer.api.access.logins import Logins, TooManyAttempts
from tweezer.api.access.schemas import AccountProject, AccountSession, OAuthError, Token
from tweezer.api.batches.filters import Text
from tweezer.api.http.envelope import RETRY_AFTER_S, Envelope, Refused, failure_docs, unavailable
from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.access.keys import ApiKey, end_sessions, list_sessions
from tweezer.ledger.access.projects import Project, list_projects
from tweezer.ledger.database import Database
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
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": OAuthError, "description": "Name or password are wrong, or the form cannot be read."},
    429: {"model": OAuthError, "description": "Too many log-ins have failed; `Retry-After` says when to try again."},
    503: {"model": OAuthError, "description": "Redis or the database do not answer; try again later."},
}


@router.post(
    "/oauth/token",
    summary="A log-in with name and password",
    response_model=Token,
    responses=_REFUSALS,
    openapi_extra=_FORM,
)
async def open_session(request: Request) -> JSONResponse:
    """A token for all projects of a user, as OAuth 2's password grant gives it (RFC 6749, 4.3): it is sent like a key.

    Errors are OAuth's, without the envelope.
    """
    form = await _form(request)
    if form is None:
        problem = (
            f"the body is not a form of up to {_FIELDS_MAX} fields; send UTF-8 as application/x-www-form-urlencoded"
        )
        return _refusal(400, "invalid_request", problem)
    missing = [name for name in ("grant_type", "username", "password") if not form.get(name)]
    if missing:
        return _refusal(400, "invalid_request", f"the form lacks {' and '.join(missing)}, or has it twice")
    if form["grant_type"] not in _GRANTS:
        return _refusal(400, "unsupported_grant_type", "grant_type must be password")
    logins: Logins = request.app.state.logins
    role = Role.READ if form.get("scope") == READ_SCOPE else Role.USER
    address = request.client.host if request.client else ""
    try:
        session = await logins.open(form["username"], form["password"], address=address, role=role)
    except TooManyAttempts as error:
        return _refusal(429, error.code, error.message, retry_s=error.retry_s)
    except (Unavailable, QueueFull) as error:
        return _refusal(503, "temporarily_unavailable", unavailable(error), retry_s=RETRY_AFTER_S)
    if session is None:
        return _refusal(400, "invalid_grant", "name or password are wrong, or the user is disabled")
    token = Token(
        access_token=session.text,
        token_type="Bearer",  # noqa: S106  # its type
        expires_in=logins.session_s,
        scope=READ_SCOPE if role is Role.READ else None,
    )
    return JSONResponse(token.model_dump(exclude_none=True), headers=_UNKEPT)


@router.get("/account/api/v1/projects", summary="The projects of the key", responses=failure_docs(422))
async def get_projects(
    caller: Caller,
    ledger: Ledger,
    project_status: Annotated[
        Text | None, Query(description="All projects are `ACTIVE`: no others are asked for.")
    ] = None,
) -> Envelope[list[AccountProject]]:
    """The projects that the key sees: its own, and all of them for an operator."""
    if project_status not in (None, "ACTIVE"):
        return Envelope(data=[])
    found = await ledger.run(_projects_of, ledger, caller)
    return Envelope(data=[AccountProject.of(project) for project in found])


@router.get("/account/api/v1/sessions", summary="The sessions of the user", responses=failure_docs(403))
async def get_sessions(caller: Session, ledger: Ledger) -> Envelope[list[AccountSession]]:
    """The log-ins that are still valid, youngest first. Only for a session, not for a key."""
    found = await ledger.run(_sessions_of, ledger, caller)
    return Envelope(data=[AccountSession.of(session, caller.key) for session in found])


@router.delete("/account/api/v1/sessions/{session_id}", summary="Log out", responses=failure_docs(403, 404, 422))
async def end_session(
    request: Request,
    caller: Session,
    ledger: Ledger,
    session_id: Annotated[
        Text, Path(description="Id of one of the user's sessions, or `current`: that of this request.", max_length=40)
    ],
) -> Envelope[None]:
    """End a session: its token opens nothing within a second, in every process. Only for a session, not for a key; one
    that only reads ends no other."""
    identity = caller.key if session_id == CURRENT else session_id
    if caller.role is Role.READ and identity != caller.key:
        problem = "role: read may end no other session; use a session of the role user"
        raise Refused(403, "forbidden", problem)
    await ledger.run(_end_session, ledger, caller, identity)
    authenticator: Authenticator = request.app.state.authenticator
    authenticator.forget(identity)
    return Envelope(data=None)


async def _form(request: Request) -> dict[str, str] | None:
    """The fields that are there once; None when the body is no form."""
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


def _refusal(status: int, error: str, description: str, *, retry_s: int | None = None) -> JSONResponse:
    headers = _UNKEPT | ({} if retry_s is None else {"Retry-After": str(retry_s)})
    return JSONResponse({"error": error, "error_description": description}, status, headers)


def _sessions_of(database: Database, caller: Principal) -> list[ApiKey]:
    with database.read() as connection:
        return list_sessions(connection, caller.user or "")


def _end_session(database: Database, caller: Principal, identity: str) -> None:
    with database.write() as connection:
        end_sessions(connection, caller.user or "", identity)
    log.info("login.ended", user=caller.user, key=identity)


def _projects_of(database: Database, caller: Principal) -> list[Project]:
    with database.read() as connection:
        return [project for project in list_projects(connection) if caller.sees(project.id)]
