"""The OpenAPI document: FastAPI's, with the msgspec types of bodies and answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from fastapi import FastAPI
from fastapi.routing import APIRoute
from msgspec import Meta

from tweezer.api.http.responses import Failure, MalformedRequest, Pagination
from tweezer.model.json_schemas import schema_components

Responses = dict[int | str, dict[str, Any]]
"""The answers of a route by status, as FastAPI takes them."""

_REFERENCE = "#/components/schemas/{name}"
_named: dict[str, dict[str, Any]] = {}
"""All schemas that routes refer to, by name."""

_DESCRIPTIONS = {
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


class DescribedAPI(FastAPI):
    """A FastAPI application with such a document."""

    def openapi(self) -> dict[str, Any]:
        """Return the document, which is made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in _named.items():
                known = schemas.setdefault(name, schema)  # an enum of parameters
                if known != schema and set(known.get("enum", ())) != set(schema.get("enum", name)):
                    raise RuntimeError(f"two schemas of the OpenAPI document are called {name}")
            self.openapi_schema = document
        return self.openapi_schema


class CollectionRoute(APIRoute):
    """A route below ``/api/v1/batches`` or ``/api/v1/jobs``, in any version, with the name of that as its tag."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.tags = [path.split("/")[3]]


def response_docs(kind: Any, description: str = "Successful response.", *, status: int = 200) -> Responses:
    """Describe an answer that is not in an envelope."""
    return {status: {"description": description, "content": _json(_describe(kind))}}


def answers(kind: Any, *failures: int, body: Any = None, keyless: bool = False, **beside: Any) -> dict[str, Any]:
    """Describe a route, as keyword arguments of its decorator.

    Args:
        kind: The type of the data of a success.
        failures: The statuses of its errors, without those that all have.
        body: The type of its body, if it has one; the errors of bodies are added.
        keyless: Whether it needs no key.
        beside: The types of other members of the envelope.
    """
    return _route(_envelope(f"{_name(kind)}Envelope", kind, **beside), failures, body, keyless)


def pages(kind: Any, *failures: int) -> dict[str, Any]:
    """Describe a route of a list, page by page."""
    described = _route(_envelope(f"{_name(kind)}Page", list[kind], pagination=Pagination), failures)
    content_range = {
        "description": "`first-last/total`, from 0; `*/total` for an empty page.",
        "schema": {"type": "string", "examples": ["0-19/41"]},
    }
    described["responses"][200] |= {"description": "A page.", "headers": {"Content-Range": content_range}}
    return described


def failure_docs(*statuses: int, keyless: bool = False) -> Responses:
    """Describe the errors of a route. keyless: it needs no key."""
    docs: Responses = {}
    for status in (*statuses, *(() if keyless else (401, 403, 429, 503))):
        docs |= response_docs(MalformedRequest if status == 422 else Failure, _DESCRIPTIONS[status], status=status)
    return docs


def _route(
    success: dict[str, Any], failures: tuple[int, ...], body: Any = None, keyless: bool = False
) -> dict[str, Any]:
    responses: Responses = {200: {"description": "Successful response.", "content": _json(success)}}
    if body is None:
        return {"responses": responses | failure_docs(*failures, keyless=keyless)}
    return {
        "responses": responses | failure_docs(*failures, 400, 408, 413, 415, keyless=keyless),
        "openapi_extra": {"requestBody": {"required": True, "content": _json(_describe(body))}},
    }


def _envelope(name: str, kind: Any, **beside: Any) -> dict[str, Any]:
    if name not in _named:
        fields: list[Any] = [
            ("status", Literal["success"], "success"),
            ("message", Annotated[str, Meta(examples=["OK."])], "OK."),
            ("code", Annotated[str, Meta(examples=["200"])], "200"),
            ("data", kind),
            *beside.items(),
        ]
        _describe(msgspec.defstruct(name, fields, kw_only=True, namespace={"__doc__": "A success."}))
    return {"$ref": _REFERENCE.format(name=name)}


def _describe(kind: Any) -> dict[str, Any]:
    """Return the schema of a type, and keep those that it refers to for the document."""
    (schema,), named = schema_components([kind], ref_template=_REFERENCE)
    for name, each in named.items():
        if _named.setdefault(name, each) != each:
            raise RuntimeError(f"two schemas of the OpenAPI document are called {name}")
    return schema


def _name(kind: Any) -> str:
    """``Batch`` for ``BatchResponse``, ``DeviceList`` for ``list[DeviceResponse]``, ``StrStrMap`` for a mapping."""
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
