"""Responses: the JSend envelope, and errors in the format of Pasqal's clients.

Those clients read ``code`` and ``data.description`` of an error, and crash on a body that is not JSON. So every error
is JSON, including unknown routes, wrong methods and internal errors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple, Self

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from msgspec import Meta
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

RETRY_AFTER_S = 2
"""``Retry-After`` of a 503, in seconds. Pasqal's clients do not retry a 503 by themselves."""


def doc(description: str, *examples: Any) -> Meta:
    """Describe a field for the OpenAPI document."""
    return Meta(description=description, examples=list(examples) or None)


class Source(NamedTuple):
    """Where a record has the value of a field; a path of attributes, such as ``doc.name``."""

    path: str


class RecordResponse(msgspec.Struct, frozen=True):
    """A response that shows a record.

    Each field has the value of the record's attribute with the same name, or that at the :class:`Source` in its
    annotation. A field with a default and without a source keeps its default.
    """

    @classmethod
    def from_record(cls, record: Any, **computed: Any) -> Self:
        """Return the response for a record. computed: the fields that are not attributes of the record."""
        names, read = _find_sources(cls, tuple(computed))
        computed.update(zip(names, read(record), strict=True))
        return cls(**computed)


@functools.cache
def _find_sources(
    kind: type[RecordResponse], computed: tuple[str, ...]
) -> tuple[list[str], Callable[[Any], tuple[Any, ...]]]:
    """Return the names of the fields that are read from a record, and a function that reads all of them."""
    paths: dict[str, str] = {}
    for field in msgspec.structs.fields(kind):
        source = next((it for it in getattr(field.type, "__metadata__", ()) if isinstance(it, Source)), None)
        if field.name not in computed and (field.required or source is not None):
            paths[field.name] = field.name if source is None else source.path
    return [*paths], attrgetter(*paths.values())


Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
Moment = Annotated[datetime, Meta(tz=True, examples=["2026-11-22T10:00:00.250000Z"])]

_JSON = "application/json"
_encoder = msgspec.json.Encoder()


class RequestRejected(TweezerError):
    """A request that is rejected with a certain HTTP status, because of a limit or a missing permission.

    code: the reason, for programs. field: the part of the request at fault, if there is one.
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


class ExceededQuota(msgspec.Struct, frozen=True):
    """A quota of a project that a request exceeds. Numbers of jobs, or bytes."""

    project: Annotated[str, doc("Id of the project.", "default")]
    name: Annotated[str, doc("Name of the quota.", "queued_jobs")]
    limit: Annotated[int, doc("The limit of the quota.", 1000)]
    used: Annotated[int, doc("How much of it is in use.", 990)]
    asked: Annotated[int, doc("How much the request would add.", 20)]


class FailureData(msgspec.Struct, frozen=True):
    """What went wrong: for people (`description`) and for programs (`reason`, `field`)."""

    description: Annotated[
        str, doc("What is wrong and what to do, for people.", "there is no batch 0199f3a2-7c1e-8b1d-9f04-a1b2c3000000")
    ]
    reason: Annotated[str, doc("Error code, for programs.", "not_found")]
    field: Annotated[
        str | None, doc("The part of the request at fault, or the quota; null if neither applies.", None)
    ] = None
    quota: Annotated[
        ExceededQuota | msgspec.UnsetType, doc("The quota that the request exceeds; absent for other errors.")
    ] = msgspec.UNSET


class Failure(msgspec.Struct, frozen=True):
    """An error response."""

    status: Annotated[
        Literal["fail", "error"],
        doc("`fail` for an error of the client (4xx), `error` for one of the server (5xx).", "fail"),
    ]
    message: Annotated[str, doc("The reason phrase of the HTTP status.", "Not Found")]
    code: Annotated[str, doc("The HTTP status, as a string.", "404")]
    data: Annotated[FailureData, doc("What went wrong.")]


class Problem(msgspec.Struct, frozen=True):
    """One problem of a malformed request."""

    type: Annotated[str, doc("The kind of problem, for programs.", "uuid_parsing")]
    loc: Annotated[
        list[str | int],
        doc("Where the problem is: `path`, `query`, `header` or `body`, then the name.", ["path", "batch_id"]),
    ]
    msg: Annotated[str, doc("What is wrong, for people.", "Input should be a valid UUID")]


class MalformedRequest(Failure, frozen=True):
    """An error response to a malformed request, with a list of its problems."""

    detail: Annotated[list[Problem], doc("All problems that were found.")]


class Pagination(msgspec.Struct, frozen=True):
    """The position of a page in its list."""

    total: Annotated[Count, doc("Number of rows on all pages.", 41)]
    start: Annotated[Count, doc("Index of the first row of the page, from 0.", 0)]
    end: Annotated[Count, doc("Index after the last row of the page. Send it as `offset` to get the next page.", 20)]


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with this content as JSON."""
    return Response(_encoder.encode(content), status, headers, media_type=_JSON)


def success(data: object, **beside: object) -> Response:
    """Return a successful response with this data. beside: additional members of the envelope."""
    return json_response({"status": "success", "message": "OK.", "code": "200", "data": data, **beside})


def created(data: object) -> Response:
    """Return the response to a request that created what the data shows."""
    return json_response({"status": "success", "message": "Created.", "code": "201", "data": data}, 201)


def page(rows: Sequence[object], *, offset: int, total: int) -> Response:
    """Return a page of a list. The header ``Content-Range`` repeats its position for older clients."""
    end = offset + len(rows)
    response = success(rows, pagination=Pagination(total, offset, end))
    response.headers["Content-Range"] = f"{offset}-{end - 1}/{total}" if rows else f"*/{total}"
    response.headers["Access-Control-Expose-Headers"] = "Content-Range"
    return response


def failure(
    status: int,
    description: str,
    reason: str,
    *,
    field: str | None = None,
    quota: ExceededQuota | msgspec.UnsetType = msgspec.UNSET,
    detail: list[Problem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an error response; with ``detail`` it is a MalformedRequest."""
    content: dict[str, Any] = {
        "status": "fail" if status < 500 else "error",
        "message": HTTPStatus(status).phrase,
        "code": str(status),
        "data": FailureData(description, reason, field, quota),
    }
    if detail is not None:
        content["detail"] = detail
    return json_response(content, status, headers)


def error_response(error: TweezerError) -> Response:
    """Return the response to an error of Tweezer."""
    match error:
        case RequestRejected():
            return failure(error.status, error.message, error.code, field=error.field, headers=error.headers)
        case InvalidInput():
            return failure(400, error.message, error.code, field=error.field)
        case NotFound():
            return failure(404, error.message, error.code)
        case Conflict():
            return failure(409, error.message, error.code, field=error.field)
        case NewerRecord():
            return failure(409, error.message, error.code)
        case Unreadable():
            log.error("api.unreadable", error=error.message)
            return failure(
                500, f"{error.message}; an operator can look for it with `tweezer dead-letters list`", error.code
            )
        case QuotaExceeded():
            status, headers = (429, {"Retry-After": str(RETRY_AFTER_S)}) if error.retryable else (413, None)
            about = ExceededQuota(error.project, error.quota, error.limit, error.used, error.asked)
            return failure(status, error.message, error.code, field=error.quota, quota=about, headers=headers)
        case QueueFull() | Unavailable() | TweezerError(code="redis_auth"):
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            return failure(503, describe_outage(error), error.code, headers=headers)
        case _:
            log.error("api.failed", error=error.message, code=error.code)
            return failure(
                500,
                "internal error: this is a bug in Tweezer; report it, with the details in the log of the API server",
                error.code,
            )


def describe_outage(error: TweezerError) -> str:
    """Log the cause of an outage, and return the part of its message that callers may see.

    The part after a colon is the cause in the words of a library, with names and addresses of the server's network.
    """
    log.warning("api.unavailable", error=error.message)
    return error.message if isinstance(error, QueueFull) else error.message.partition(": ")[0]


async def handle_defect(request: Request, error: Exception) -> Response:
    """Return the response to an exception that nothing else handles."""
    return failure(
        500,
        "internal error: this is a bug in Tweezer; report it, with the details in the log of the API server",
        "internal",
    )


def install_error_handlers(app: FastAPI) -> None:
    """Send every error of the application in the envelope."""
    app.add_exception_handler(Exception, handle_defect)

    @app.exception_handler(TweezerError)
    async def handle_tweezer_error(request: Request, error: TweezerError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def handle_routing_error(request: Request, error: HTTPException) -> Response:
        descriptions = {
            404: "no such route; see /docs or /openapi.json for the list",
            405: "this route does not support the method; see /docs or /openapi.json for those it does",
        }
        reasons = {404: "no_such_route", 405: "no_such_method"}
        status = error.status_code
        return failure(
            status, descriptions.get(status, str(error.detail)), reasons.get(status, "refused"), headers=error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def handle_validation_error(request: Request, error: RequestValidationError) -> Response:
        # leaves out the input, which may be huge or secret
        problems = [Problem(each["type"], list(each["loc"]), each["msg"]) for each in error.errors()]
        first = problems[0]
        names = [part for part in first.loc if isinstance(part, str)]
        field = names[-1] if names else str(first.loc[-1])
        return failure(422, f"{field}: {first.msg}", "malformed", field=field, detail=problems)

    @app.exception_handler(ClientDisconnect)
    async def handle_disconnect(request: Request, error: ClientDisconnect) -> Response:
        return failure(400, "body: is incomplete", "incomplete", field="body")  # the client has disconnected
