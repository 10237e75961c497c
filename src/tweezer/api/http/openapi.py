"""The OpenAPI document: FastAPI's, with the msgspec types of request and response bodies."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from fastapi import FastAPI
from fastapi.routing import APIRoute

from tweezer.api.http.responses import Failure, FailureData, MalformedRequest, Pagination, doc, failure
from tweezer.model.json_schemas import schema_components

LINES = "application/x-ndjson"
"""The media type of JSON values, one on each line."""

Responses = dict[int | str, dict[str, Any]]
"""The responses of a route by status, in FastAPI's format."""

_REFERENCE = "#/components/schemas/{name}"
_PAGINATION = Annotated[Pagination, doc("The position of the page in the list.")]
_named: dict[str, dict[str, Any]] = {}
"""All schemas that routes refer to, by name."""

_DESCRIPTIONS = {
    400: "The request is not valid: `data.field` names the part at fault. Nothing was written.",
    401: "The API key or access token is missing, unknown, expired or revoked.",
    403: "The role of the key does not allow this request, or the key gives no access to the project.",
    404: "Not found, or in another project.",
    408: "The body arrived too slowly.",
    409: "The current state does not allow this request; for example, the batch has ended.",
    413: "The body is too large, the request is about too many jobs, or it exceeds a quota of the project: "
    "`data.field` names what is at fault.",
    415: "The content type or encoding of the body is not supported.",
    422: "A parameter or the body is malformed: `detail` lists the problems.",
    429: "Too many requests, or a quota of the project is used up: `data.field` names the quota. Wait for the time in "
    "`Retry-After`.",
    500: "A bug in Tweezer, or a damaged record. The server's log has the details.",
    503: "Redis or the database does not respond, or the service is overloaded. Try again after the time in "
    "`Retry-After`.",
}
_EXAMPLES: dict[int, FailureData] = {
    400: FailureData("jobs[0].runs: expected a whole number from 1 to 1000, got 0", "invalid", "jobs[0].runs"),
    401: FailureData("missing or invalid key; send `Authorization: Bearer twz_…`", "unauthorized"),
    403: FailureData("role: read may not do this; use a key with the role user or operator", "forbidden"),
    404: FailureData("there is no batch 0199f3a2-7c1e-8b1d-9f04-a1b2c3000000", "not_found"),
    408: FailureData("body: arrived too slowly; send it again over a better connection", "body_too_slow", "body"),
    409: FailureData("batch 0199f3a2-7c1e-8b1d-9f04-a1b2c3000000 has ended", "terminal"),
    413: FailureData("jobs: at most 10000 jobs are allowed per request (got 20000)", "too_many_jobs", "jobs"),
    415: FailureData("Content-Type: must be application/json; send a JSON body", "content_type", "Content-Type"),
    422: FailureData("limt: is not a parameter of this route (did you mean limit?)", "malformed", "limt"),
    429: FailureData("project lab sent more than 200 requests per second", "too_many_requests"),
    500: FailureData("internal error: this is a bug in Tweezer", "internal"),
    503: FailureData("Redis cannot be reached", "unavailable"),
}


TAGS = [
    {"name": "batches", "description": "Submit, list, follow, change, cancel and repeat batches."},
    {"name": "jobs", "description": "List, follow and cancel jobs, and download their results."},
    {"name": "tasks", "description": "List, restart, archive and delete tasks: batches seen as one unit."},
    {"name": "devices", "description": "List devices, and read or change their specs, status and maintenance."},
    {"name": "events", "description": "Read events, in pages or as a stream."},
    {
        "name": "webhooks",
        "description": "Register endpoints for webhooks, manage their secrets, and inspect or resend deliveries.",
    },
    {"name": "schedules", "description": "Submit batches at certain times: create, change, pause and run schedules."},
    {"name": "account", "description": "Log in, manage sessions, and list the projects of a key."},
    {"name": "service", "description": "Check health and readiness, and read metrics."},
    {"name": "service side", "description": "For operators: set statuses, progress and errors of batches and jobs."},
    {"name": "workloads", "description": "Not supported; these routes of Pasqal's API return 501."},
]


class DescribedAPI(FastAPI):
    """A FastAPI application whose OpenAPI document has the msgspec schemas."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document; it is generated once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation["responses"] |= _INTERNAL
                    if "security" in operation:
                        operation["responses"].setdefault("422", _MALFORMED)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in _named.items():
                known = schemas.setdefault(name, schema)  # an enum that parameters use
                if known != schema and set(known.get("enum", ())) != set(schema.get("enum", name)):
                    raise RuntimeError(f"two schemas of the OpenAPI document have the name {name}")
            self.openapi_schema = document
        return self.openapi_schema


class CollectionRoute(APIRoute):
    """A route below ``/api/v1/batches`` or ``/api/v1/jobs``, in any version; its tag is that third part of its path."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.tags = [path.split("/")[3]]


def describe_response(kind: Any, description: str = "Success.", *, status: int = 200) -> Responses:
    """Describe a response without the envelope."""
    return {status: {"description": description, "content": _json(_describe(kind))}}


def describe_stream(kind: Any) -> Responses:
    """Describe a response of lines, each of which is a value of this type as JSON."""
    return {200: {"description": "JSON values, one on each line.", "content": {LINES: {"schema": _describe(kind)}}}}


def describe_route(
    kind: Any,
    *failures: int,
    body: Any = None,
    example: Any = None,
    keyless: bool = False,
    creates: bool = False,
    dry_run: Any = None,
    **beside: Any,
) -> dict[str, Any]:
    """Describe a route, as keyword arguments of its decorator.

    Args:
        kind: The type of ``data`` in a successful response.
        failures: The statuses of its errors, without those that all routes share.
        body: The type of the request body, if there is one; the errors about bodies are added.
        example: A body that shows the usual fields; by default, one is made of the examples of all fields.
        keyless: Whether the route needs no key.
        creates: Whether the route creates what it returns: its status is 201.
        dry_run: The type of ``data`` in the response to a dry run, if the route has one.
        beside: The types of additional members of the envelope.
    """
    status = HTTPStatus.CREATED if creates else HTTPStatus.OK
    success = _envelope(f"{_name(kind)}Envelope", kind, status, **beside)
    if dry_run is not None:
        checked = _envelope(f"{_name(dry_run)}Envelope", dry_run, status)
        success = {"anyOf": [checked | {"description": "With `dry_run=true`."}, success]}
    described = _add_failures(success, failures, body, keyless, status=status)
    if example is not None:
        described["openapi_extra"]["requestBody"]["content"]["application/json"]["example"] = example
    return described | ({"status_code": status.value} if creates else {})


def describe_bare(kind: Any, *failures: int, body: Any = None) -> dict[str, Any]:
    """Describe a route like :func:`describe_route` whose successful response has no envelope."""
    return _add_failures(_describe(kind), failures, body)


def describe_list(kind: Any, *failures: int) -> dict[str, Any]:
    """Describe a route that returns a list in pages."""
    described = _add_failures(_envelope(f"{_name(kind)}Page", list[kind], pagination=_PAGINATION), failures)
    content_range = {
        "description": "Rows of this page, `first-last/total`, counted from 0; `*/total` for an empty page.",
        "schema": {"type": "string", "examples": ["0-19/41"]},
    }
    described["responses"][200] |= {"description": "A page of the list.", "headers": {"Content-Range": content_range}}
    return described


def describe_failures(*statuses: int, keyless: bool = False) -> Responses:
    """Describe the errors of a route. keyless: whether it needs no key."""
    docs: Responses = {}
    for status in (*statuses, *(() if keyless else (401, 403, 429, 503))):
        docs |= _describe_failure(status)
    return docs


@functools.cache
def _describe_failure(status: int) -> Responses:
    kind, data = MalformedRequest if status == 422 else Failure, _EXAMPLES[status]
    described = describe_response(kind, _DESCRIPTIONS[status], status=status)
    body = json.loads(bytes(failure(status, data.description, data.reason, field=data.field).body))
    if status == 422:
        problem = data.description.partition(": ")[2]
        body["detail"] = [{"type": "value_error", "loc": ["query", data.field], "msg": problem}]
    described[status]["content"]["application/json"]["example"] = body
    return described


def _add_failures(
    success: dict[str, Any], failures: tuple[int, ...], body: Any = None, keyless: bool = False, *, status: int = 200
) -> dict[str, Any]:
    responses: Responses = {status: {"description": "Success.", "content": _json(success)}}
    if body is None:
        return {"responses": responses | describe_failures(*failures, keyless=keyless)}
    return {
        "responses": responses | describe_failures(*failures, 400, 408, 413, 415, keyless=keyless),
        "openapi_extra": {"requestBody": {"required": True, "content": _json(_describe(body))}},
    }


def _envelope(name: str, kind: Any, status: HTTPStatus = HTTPStatus.OK, **beside: Any) -> dict[str, Any]:
    if name not in _named:
        fields: list[Any] = [
            ("status", Annotated[Literal["success"], doc("Always `success`.", "success")], "success"),
            ("message", Annotated[str, doc(f"Always `{status.phrase}.`.", f"{status.phrase}.")], f"{status.phrase}."),
            ("code", Annotated[str, doc("The HTTP status, as a string.", str(status.value))], str(status.value)),
            ("data", Annotated[kind, doc("The content of the response.")]),
            *beside.items(),
        ]
        _describe(msgspec.defstruct(name, fields, kw_only=True, namespace={"__doc__": "A successful response."}))
    return {"$ref": _REFERENCE.format(name=name)}


def _describe(kind: Any) -> dict[str, Any]:
    """Return the schema of a type, and store the schemas that it refers to for the document."""
    (schema,), named = schema_components([kind], ref_template=_REFERENCE)
    for name, each in named.items():
        if _named.setdefault(name, each) != each:
            raise RuntimeError(f"two schemas of the OpenAPI document have the name {name}")
    return schema


def _name(kind: Any) -> str:
    """Name a type: ``Batch`` for ``BatchResponse``, ``DeviceList`` for ``list[DeviceResponse]``, ``StrStrMap`` for a
    dict."""
    if kind is None:
        return "Empty"
    parts = "".join(_name(part) for part in get_args(kind))
    match get_origin(kind):
        case None:
            name: str = kind.__name__.removesuffix("Response")
            return name[0].upper() + name[1:]
        case origin:
            return parts + ("Map" if origin is dict else "List")


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


_MALFORMED = _describe_failure(422)[422]
"""The error that every operation with a key can return: a query parameter that it does not have."""

_INTERNAL = {"500": _describe_failure(500)[500]}
"""The error that every operation can return."""
