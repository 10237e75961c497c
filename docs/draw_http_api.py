# ruff: noqa: INP001  # a script beside the pages that it fills, not a package
"""Draw the reference of the HTTP API from its OpenAPI document, for docs/reference/http-api.

docs/hooks.py puts a block into the page of each tag when the site is built. The example requests and responses are in
docs/reference/http-api/examples.json, which docs/record_examples.py records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tweezer import __version__
from tweezer.api.app import create_app
from tweezer.settings import Settings

FOLDER = Path(__file__).parent / "reference" / "http-api"
EXAMPLES = FOLDER / "examples.json"

_METHODS = ("get", "post", "put", "patch", "delete")
_ROUTE = re.compile(r"^\| (GET|POST|PUT|PATCH|DELETE) \| `(\S+)` \| ([^|]+) \|", re.MULTILINE)
_ENVELOPE = ("status", "message", "code")
_FORMATS = {"uuid": "UUID", "date-time": "time", "binary": "bytes"}

Schema = Mapping[str, Any]


def load_document() -> dict[str, Any]:
    """Return the OpenAPI document of this version."""
    return create_app(Settings(), version=__version__).openapi()


def draw() -> dict[str, str]:
    """Return the drawn blocks by name: one for each tag."""
    document = load_document()
    examples = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    routes = {(method, path): roles for method, path, roles in _ROUTE.findall((FOLDER / "index.md").read_text("utf-8"))}
    order = list(routes)
    found: dict[str, list[tuple[int, str]]] = {}
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                operation, route = operations[method], (method.upper(), path)
                drawer = _Operation(operation, document["components"]["schemas"])
                example = examples[operation["operationId"]]
                text = "\n\n".join(drawer.draw(*route, routes[route].strip(), example))
                found.setdefault(operation["tags"][0], []).append((order.index(route), text))
    return {f"http {tag}": "\n\n".join(text for _, text in sorted(sections)) for tag, sections in found.items()}


def link_routes(page: str) -> str:
    """Return the page with a link from each route in its table to the description of the route."""
    places = {
        (method.upper(), path): f"{operation['tags'][0].replace(' ', '-')}.md#{operation['operationId']}"
        for path, operations in load_document()["paths"].items()
        for method, operation in operations.items()
        if method in _METHODS
    }

    def link(match: re.Match[str]) -> str:
        code, place = f"`{match[2]}`", places.get((match[1], match[2]))  # not for routes such as /openapi.json
        return match[0].replace(code, f"[{code}]({place})") if place else match[0]

    return _ROUTE.sub(link, page)


class _Operation:
    def __init__(self, operation: Mapping[str, Any], schemas: Mapping[str, Schema]) -> None:
        self._operation = operation
        self._schemas = schemas

    def draw(self, method: str, path: str, roles: str, example: Mapping[str, Any]) -> Iterator[str]:
        operation = self._operation
        summary = operation["summary"].removesuffix(".")
        yield f'## `{method} {path}` {{ #{operation["operationId"]} data-toc-label="{summary}" }}'
        yield f"**{summary}.** {operation.get('description', '')}".strip()
        yield f"*Roles:* {roles}."
        if operation.get("parameters"):
            yield "**Parameters**"
            yield "\n".join(self._parameters())
        for content in operation.get("requestBody", {}).get("content", {}).values():
            yield "**Body**"
            yield self._table(content["schema"])
        for status, response in operation["responses"].items():
            if status.startswith("2"):
                yield from self._success(status, response)
        yield _collapsed("Errors", "\n".join(self._failures()))
        yield "**Example**"
        yield from _show(example)

    def _parameters(self) -> Iterator[str]:
        yield "| name | in | type | default | description |"
        yield "| --- | --- | --- | --- | --- |"
        for parameter in self._operation["parameters"]:
            schema = parameter["schema"]
            default = schema.get("default")
            cells = (
                f"`{parameter['name']}`",
                parameter["in"],
                self._type(schema),
                "required" if parameter.get("required") else f"`{default}`" if default not in (None, "", []) else "",
                parameter.get("description") or self._resolve(schema).get("description", ""),
            )
            yield _row(*cells)

    def _success(self, status: str, response: Mapping[str, Any]) -> Iterator[str]:
        for kind, content in response.get("content", {}).items():
            if kind == "application/json":
                tables = {}
                for schema in reversed(content["schema"].get("anyOf", [content["schema"]])):  # the usual one first
                    if rows := list(self._fields(schema)):
                        head = "| field | type | description |\n| --- | --- | --- |\n"
                        when = f" {schema['description'].strip('.').lower()}" if "description" in schema else ""
                        tables[f"Response {status}{when}"] = head + "\n".join(rows)
                yield from (_collapsed(title, table) for title, table in tables.items())
                if tables:
                    return
            yield f"**Response {status}** (`{kind}`): {response['description']}"
            return
        yield f"**Response {status}**: {response['description']}"

    def _failures(self) -> Iterator[str]:
        yield "| status | meaning |"
        yield "| --- | --- |"
        for status, response in sorted(self._operation["responses"].items()):
            if not status.startswith("2"):
                yield _row(status, response["description"])

    def _table(self, schema: Schema) -> str:
        """Draw the fields of a body."""
        head = "| field | type | default | description |\n| --- | --- | --- | --- |"
        rows = list(self._fields(schema, with_default=True))
        return "\n".join([head, *rows]) if rows else f"A JSON value: {self._type(schema)}."

    def _fields(self, schema: Schema, path: str = "", *, with_default: bool = False) -> Iterator[str]:
        """Return a row for each field of an object, nested ones included: `jobs[].runs`."""
        schema = self._resolve(schema)
        for choice in schema.get("anyOf", ()):
            yield from self._fields(choice, path, with_default=with_default)
        if schema.get("type") == "array":
            yield from self._fields(schema["items"], f"{path}[]", with_default=with_default)
        fields = schema.get("properties", {})
        skipped = _ENVELOPE if not path and "data" in fields else ()
        for name, field in fields.items():
            if name in skipped:
                continue
            full = f"{path}.{name}" if path else name
            cells = [f"`{full}`", self._type(field)]
            if with_default:
                default = field.get("default")
                shown = f"`{json.dumps(default)}`" if default not in (None, "") else ""
                cells.append("required" if name in schema.get("required", ()) else shown)
            text = field.get("description") or self._resolve(field).get("description", "")
            yield _row(*cells, f"*Deprecated.* {text}" if field.get("deprecated") else text)
            yield from self._fields(field, full, with_default=with_default)

    def _type(self, schema: Schema) -> str:
        schema = self._resolve(schema)
        if "anyOf" in schema:
            return " or ".join(dict.fromkeys(map(self._type, schema["anyOf"])))
        if "enum" in schema:
            return ", ".join(f"`{value}`" for value in schema["enum"])
        if "const" in schema:
            return f"`{schema['const']}`"
        match schema.get("type"):
            case "array":
                return f"list of {self._type(schema['items'])}"
            case "object" if isinstance(schema.get("additionalProperties"), dict):
                return f"object of {self._type(schema['additionalProperties'])}"
            case "string":
                return _FORMATS.get(schema.get("format", ""), "string")
            case None:
                return "any"
            case kind:
                return str(kind)

    def _resolve(self, schema: Schema) -> Schema:
        if "$ref" not in schema:
            return schema
        return self._schemas[schema["$ref"].rpartition("/")[2]]


def _show(example: Mapping[str, Any]) -> Iterator[str]:
    request, response = example["request"], example["response"]
    head = [f"{request['method']} {request['path']} HTTP/1.1", *(f"{k}: {v}" for k, v in request["headers"].items())]
    body = request.get("body")
    if body is not None:
        head += ["", body if isinstance(body, str) else json.dumps(body, indent=2, ensure_ascii=False)]
    yield "```http\n{}\n```".format("\n".join(head))
    content = response.get("body")
    if lines := response.get("lines"):
        content = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    if content is None:
        yield f"Response: `{response['status']}`, without a body."
    else:
        yield f"Response: `{response['status']}`"
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
        yield f"```{'text' if isinstance(content, str) else 'json'}\n{text}\n```"


def _row(*cells: str) -> str:
    escaped = (re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _collapsed(title: str, text: str) -> str:
    lines = "\n".join(f"    {line}" if line else "" for line in text.splitlines())
    return f'??? info "{title}"\n\n{lines}'
