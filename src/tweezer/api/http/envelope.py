"""The JSend envelope of every answer, and the errors in it as Pasqal's clients read them.

A client reads ``code`` and ``data.description`` of an error, and fails on a body that is not JSON, so
every error is one: unknown routes, wrong methods and faults of ours too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Generic, Literal, TypeVar

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tweezer.model.errors import (
    Conflict,
    InvalidInput,
    NewerRecord,
    NotFound,
    QueueFull,
    TweezerError,
    Unavailable,
    Unreadable,
)
from tweezer.model.quotas import QuotaExceeded

log = structlog.get_logger(__name__)

T = TypeVar("T")

RETRY_AFTER_S = 2
"""When to try again after a 503. Pasqal's clients do not retry it by themselves."""


class Refused(TweezerError):
    """A request that is refused with an HTTP status of its own, before the queue is asked: by limits and permissions.

    ``code`` is a word for programs, ``field`` the part of the request at fault, where there is one.
    """

    def __init__(
        self,
        status: int,
        code: str,
        problem: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{field}: {problem}" if field else problem, code=code)
        self.status = status
        self.field = field
        self.headers = headers


class Envelope(BaseModel, Generic[T]):
    """A success."""

    status: Literal["success"] = "success"
    message: str = Field("OK.", examples=["OK."])
    code: str = Field("200", examples=["200"])
    data: T


class FailureData(BaseModel):
    """What went wrong, for people (``description``) and for programs."""

    description: str = Field(examples=["there is no batch 0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"])
    reason: str = Field(description="A word for programs.", examples=["not_found"])
    field: str | None = Field(None, description="The part of the request that is wrong.", examples=[None])


class Failure(BaseModel):
    """An error: ``fail`` is the caller's, ``error`` is the server's."""

    status: Literal["fail", "error"] = Field(examples=["fail"])
    message: str = Field(examples=["Not Found"])
    code: str = Field(description="The HTTP status.", examples=["404"])
    data: FailureData


class Problem(BaseModel):
    """One thing that is wrong with a request."""

    type: str = Field(examples=["uuid_parsing"])
    loc: list[str | int] = Field(description="Where it is.", examples=[["path", "batch_id"]])
    msg: str = Field(examples=["Input should be a valid UUID"])


class MalformedRequest(Failure):
    """A request that cannot be read: the envelope of an error, and each problem in ``detail``."""

    detail: list[Problem]


def failure(
    status: int,
    description: str,
    reason: str,
    *,
    field: str | None = None,
    detail: Sequence[Mapping[str, Any]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The response of an error. With ``detail`` it is a MalformedRequest."""
    content: dict[str, Any] = {
        "status": "fail" if status < 500 else "error",
        "message": HTTPStatus(status).phrase,
        "code": str(status),
        "data": {"description": description, "reason": reason, "field": field},
    }
    if detail is not None:
        content["detail"] = detail
    return JSONResponse(content, status, headers)


def failure_of(error: TweezerError) -> JSONResponse:
    """The response of an error of ours."""
    match error:
        case Refused():
            return failure(error.status, error.message, error.code, field=error.field, headers=error.headers)
        case InvalidInput():
            return failure(400, error.message, error.code, field=error.field)
        case NotFound():
            return failure(404, error.message, error.code)
        case Conflict() | NewerRecord():
            return failure(409, error.message, error.code)
        case Unreadable():
            log.error("api.unreadable", error=error.message)
            return failure(500, f"{error.message}; an operator finds it by `tweezer dead-letters list`", error.code)
        case QuotaExceeded(retryable=True):
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            return failure(429, error.message, error.code, field=error.quota, headers=headers)
        case QuotaExceeded():
            return failure(413, error.message, error.code, field=error.quota)
        case QueueFull() | Unavailable() | TweezerError(code="redis_auth"):
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            return failure(503, unavailable(error), error.code, headers=headers)
        case _:
            log.error("api.failed", error=error.message, code=error.code)
            return failure(500, "the server failed at this request; its log says why", error.code)


def unavailable(error: TweezerError) -> str:
    """Log why nothing can be done, and return what callers are told of it.

    What stands behind a colon is a cause in the words of a library, with names and addresses within our network.
    """
    log.warning("api.unavailable", error=error.message)
    return error.message if isinstance(error, QueueFull) else error.message.partition(": ")[0]


def failure_docs(*statuses: int, keyless: bool = False) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for the OpenAPI document. keyless: it asks for no key."""
    docs = {
        400: "The request is wrong; `field` says where. Nothing was written.",
        401: "No key came with the request, or one that is unknown, expired or revoked.",
        403: "The role of the key does not allow this, or the project is another's.",
        404: "There is no such thing.",
        408: "The body came too slowly.",
        409: "It is there, but its state forbids this.",
        413: "The body is too large, or more than a quota of the project allows; `field` names the quota.",
        415: "The body is in a form that is not read here.",
        422: "The request cannot be read.",
        429: "Too much at once, or `field` names a quota that is used up; `Retry-After` says when to try again.",
        503: "Redis or the database does not answer; try again later.",
    }
    return {
        status: {"model": MalformedRequest if status == 422 else Failure, "description": docs[status]}
        for status in (*statuses, *(() if keyless else (401, 403, 429, 503)))
    }


def install_failures(app: FastAPI) -> None:
    """Makes every error of the application an envelope."""

    @app.exception_handler(TweezerError)
    async def ours(request: Request, error: TweezerError) -> JSONResponse:
        return failure_of(error)

    @app.exception_handler(HTTPException)
    async def of_routing(request: Request, error: HTTPException) -> JSONResponse:
        descriptions = {
            404: "there is no such route; /openapi.json lists those there are",
            405: "this route does not know the method; /openapi.json lists the ones it knows",
        }
        reasons = {404: "no_such_route", 405: "no_such_method"}
        status = error.status_code
        return failure(
            status,
            descriptions.get(status, str(error.detail)),
            reasons.get(status, "refused"),
            headers=error.headers,
        )

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [Problem(type=each["type"], loc=list(each["loc"]), msg=each["msg"]) for each in error.errors()]
        first = problems[0]
        names = [part for part in first.loc if isinstance(part, str)]
        field = names[-1] if names else str(first.loc[-1])
        return failure(
            422,
            f"{field}: {first.msg}",
            "malformed",
            field=field,
            detail=[problem.model_dump() for problem in problems],  # without the input, which may be huge or secret
        )

    @app.exception_handler(ClientDisconnect)
    async def of_the_caller(request: Request, error: ClientDisconnect) -> JSONResponse:
        return failure(400, "body: ended before its end", "incomplete", field="body")  # nobody hears it

    @app.exception_handler(Exception)
    async def of_ours(request: Request, error: Exception) -> JSONResponse:
        return failure(500, "the server failed at this request; its log says why", "internal")
