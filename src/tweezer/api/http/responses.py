"""Answers: the JSend envelope, and errors in the form that Pasqal's clients read.

A client reads ``code`` and ``data.description`` of an error, and fails on a body that is not JSON, so every error is
JSON: unknown routes, wrong methods and internal errors too.
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
"""When to try again after a 503. Pasqal's clients do not retry it by themselves."""


def doc(description: str, *examples: Any) -> Meta:
    """Describe a field for the OpenAPI document."""
    return Meta(description=description, examples=list(examples) or None)


class Source(NamedTuple):
    """Where a record has what a field of an answer shows; a path of attributes, such as ``doc.name``."""

    path: str


class RecordResponse(msgspec.Struct, frozen=True):
    """An answer that shows a record.

    A field is the record's of the same name, or at the :class:`Source` in its annotation. One with a default and
    without a source keeps its default.
    """

    @classmethod
    def from_record(cls, record: Any, **computed: Any) -> Self:
        """Return the answer for a record. computed: the fields that it does not have as they are shown."""
        names, read = _find_sources(cls, tuple(computed))
        computed.update(zip(names, read(record), strict=True))
        return cls(**computed)


@functools.cache
def _find_sources(
    kind: type[RecordResponse], computed: tuple[str, ...]
) -> tuple[list[str], Callable[[Any], tuple[Any, ...]]]:
    """Return the names of the fields that are read from a record, and what reads all of them."""
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


class FailureData(msgspec.Struct, frozen=True):
    """What went wrong, for people (``description``) and for programs."""

    description: Annotated[str, Meta(examples=["there is no batch 0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"])]
    reason: Annotated[str, doc("A word for programs.", "not_found")]
    field: Annotated[str | None, doc("The part of the request that is wrong.", None)] = None


class Failure(msgspec.Struct, frozen=True):
    """An error: ``fail`` is the caller's, ``error`` is the server's."""

    status: Annotated[Literal["fail", "error"], Meta(examples=["fail"])]
    message: Annotated[str, Meta(examples=["Not Found"])]
    code: Annotated[str, doc("The HTTP status.", "404")]
    data: FailureData


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong with a request."""

    type: Annotated[str, Meta(examples=["uuid_parsing"])]
    loc: Annotated[list[str | int], doc("Where it is.", ["path", "batch_id"])]
    msg: Annotated[str, Meta(examples=["Input should be a valid UUID"])]


class MalformedRequest(Failure, frozen=True):
    """A request that cannot be read: the envelope of an error, and each problem in ``detail``."""

    detail: list[Problem]


class Pagination(msgspec.Struct, frozen=True):
    """Where a page is in its list."""

    total: Annotated[Count, doc("Rows on all pages.", 41)]
    start: Annotated[Count, doc("Index of the first row of the page.", 0)]
    end: Annotated[Count, doc("Index behind the last row: the offset of the next page.", 20)]


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with this content as JSON."""
    return Response(_encoder.encode(content), status, headers, media_type=_JSON)


def success(data: object, **beside: object) -> Response:
    """Return the response of a success with this data, and other members of the envelope."""
    return json_response({"status": "success", "message": "OK.", "code": "200", "data": data, **beside})


def page(rows: Sequence[object], *, offset: int, total: int) -> Response:
    """Return a page of a list: ``end`` is where the next one starts. A header repeats it for older clients."""
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
    detail: list[Problem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the response of an error. With ``detail`` it is a MalformedRequest."""
    content: dict[str, Any] = {
        "status": "fail" if status < 500 else "error",
        "message": HTTPStatus(status).phrase,
        "code": str(status),
        "data": FailureData(description, reason, field),
    }
    if detail is not None:
        content["detail"] = detail
    return json_response(content, status, headers)


def error_response(error: TweezerError) -> Response:
    """Return the response of an error of Tweezer's."""
    match error:
        case RequestRejected():
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
            return failure(503, describe_outage(error), error.code, headers=headers)
        case _:
            log.error("api.failed", error=error.message, code=error.code)
            return failure(500, "the server failed at this request; its log says why", error.code)


def describe_outage(error: TweezerError) -> str:
    """Log why nothing can be done, and return what callers may know of it.

    The part behind a colon is a cause in the words of a library, with names and addresses within the server's network.
    """
    log.warning("api.unavailable", error=error.message)
    return error.message if isinstance(error, QueueFull) else error.message.partition(": ")[0]


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of the application an envelope."""

    @app.exception_handler(TweezerError)
    async def handle_tweezer_error(request: Request, error: TweezerError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def handle_routing_error(request: Request, error: HTTPException) -> Response:
        descriptions = {
            404: "there is no such route; /openapi.json lists those there are",
            405: "this route does not know the method; /openapi.json lists the ones it knows",
        }
        reasons = {404: "no_such_route", 405: "no_such_method"}
        status = error.status_code
        return failure(
            status, descriptions.get(status, str(error.detail)), reasons.get(status, "refused"), headers=error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def handle_validation_error(request: Request, error: RequestValidationError) -> Response:
        # without the input, which may be huge or secret
        problems = [Problem(each["type"], list(each["loc"]), each["msg"]) for each in error.errors()]
        first = problems[0]
        names = [part for part in first.loc if isinstance(part, str)]
        field = names[-1] if names else str(first.loc[-1])
        return failure(422, f"{field}: {first.msg}", "malformed", field=field, detail=problems)

    @app.exception_handler(ClientDisconnect)
    async def handle_disconnect(request: Request, error: ClientDisconnect) -> Response:
        return failure(400, "body: ended before its end", "incomplete", field="body")  # nobody reads it

    @app.exception_handler(Exception)
    async def handle_defect(request: Request, error: Exception) -> Response:
        return failure(500, "the server failed at this request; its log says why", "internal")
