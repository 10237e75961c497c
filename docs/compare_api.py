# ruff: noqa: INP001  # beside the scripts that it resembles, not a package
"""Compare the OpenAPI document with that of the last release, and list what would break its clients.

    python docs/compare_api.py              lists the changes that are not accepted, and exits with 1 if there are any
    python docs/compare_api.py --release    keeps the current document as the released one, and forgets accepted changes

A change breaks clients if an operation, a parameter, a field of a body or of a response disappears, if a parameter or a
field becomes required, if unknown fields are refused, if a field of a response may be absent, or if a type, the values
of an enum or a limit changes so that what was valid is not. To accept such a change, write its line into
tests/data/api/openapi-breaks.txt, with the reason, and describe it in the changelog. tests/unit/test_api_changes.py
runs the comparison.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from draw_http_api import load_document

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "api"
RELEASED = FOLDER / "openapi.json"
ACCEPTED = FOLDER / "openapi-breaks.txt"

_METHODS = ("get", "post", "put", "patch", "delete")
_PROSE = ("description", "summary", "title")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")

Schema = Mapping[str, Any]


def find_breaks(released: Schema, current: Schema) -> list[str]:
    """Return a line for each change that breaks clients of the released API."""
    return sorted(set(_Comparison(released, current).run()))


def read_accepted() -> dict[str, str]:
    """Return the accepted changes and their reasons."""
    lines = [line for line in ACCEPTED.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    parts = [line.partition(" # ") for line in lines]
    return {change.strip(): reason.strip() for change, _, reason in parts}


def strip_prose(value: Any) -> Any:
    """Return the document without texts and examples, which do not matter to programs."""
    match value:
        case dict():
            return {
                name: strip_prose(item)
                for name, item in value.items()
                if not (name in _PROSE and isinstance(item, str))
                and not (name == "examples" and isinstance(item, list))
            }
        case list():
            return [strip_prose(item) for item in value]
        case _:
            return value


class _Comparison:
    def __init__(self, released: Schema, current: Schema) -> None:
        self._documents = released, current
        self._compared: set[tuple[str, str, bool]] = set()

    def run(self) -> Iterator[str]:
        released, current = (document["paths"] for document in self._documents)
        for path, operations in released.items():
            for method in _METHODS:
                if method not in operations:
                    continue
                place, now = f"{method.upper()} {path}", current.get(path, {}).get(method)
                if now is None:
                    yield f"{place}: was removed"
                    continue
                yield from self._parameters(operations[method], now, place)
                yield from self._body(operations[method], now, place)
                yield from self._responses(operations[method], now, place)

    def _parameters(self, released: Schema, current: Schema, place: str) -> Iterator[str]:
        before, now = (
            {(it["in"], it["name"]): it for it in operation.get("parameters", ())} for operation in (released, current)
        )
        for key, parameter in now.items():
            if parameter.get("required") and not before.get(key, {}).get("required"):
                yield f"{place}: parameter {key[1]} is required"
        for key, parameter in before.items():
            if key not in now:
                yield f"{place}: parameter {key[1]} was removed"
            else:
                yield from self._schema(
                    parameter["schema"], now[key]["schema"], f"{place}: parameter {key[1]}", is_sent=True
                )

    def _body(self, released: Schema, current: Schema, place: str) -> Iterator[str]:
        before, now = (operation.get("requestBody", {}) for operation in (released, current))
        if now.get("required") and not before.get("required"):
            yield f"{place}: body is required"
        yield from self._content(before, now, f"{place}: body", is_sent=True)

    def _responses(self, released: Schema, current: Schema, place: str) -> Iterator[str]:
        for status, response in released["responses"].items():
            now = current["responses"].get(status)
            if now is not None:
                yield from self._content(response, now, f"{place}: response {status}", is_sent=False)
            elif status.startswith("2"):
                yield f"{place}: response {status} was removed"

    def _content(self, released: Schema, current: Schema, place: str, *, is_sent: bool) -> Iterator[str]:
        for kind, content in released.get("content", {}).items():
            now = current.get("content", {}).get(kind)
            if now is None:
                yield f"{place}: {kind} was removed"
            elif "schema" in content:
                yield from self._schema(content["schema"], now.get("schema", {}), place, is_sent=is_sent)

    def _schema(self, released: Schema, current: Schema, place: str, *, is_sent: bool) -> Iterator[str]:
        """Compare two schemas. A schema that operations share is compared once, and named by its own name."""
        names = [schema.get("$ref", "").rpartition("/")[2] for schema in (released, current)]
        if all(names):
            if (key := (names[0], names[1], is_sent)) in self._compared:
                return
            self._compared.add(key)
            place = names[0]
        before, now = (
            self._alternatives(schema, document)
            for schema, document in zip((released, current), self._documents, strict=True)
        )
        gone = before.keys() - now.keys() if is_sent else now.keys() - before.keys()
        if before and now and gone and not (is_sent and "number" in now and gone == {"integer"}):
            yield f"{place}: {'no longer' if is_sent else 'now also'} {' or '.join(sorted(gone))}"
        for kind in before.keys() & now.keys():
            yield from self._same_type(before[kind], now[kind], place, is_sent=is_sent)

    def _same_type(self, released: Schema, current: Schema, place: str, *, is_sent: bool) -> Iterator[str]:
        if is_sent:
            lost = set(map(str, released.get("enum", ()))) - set(map(str, current.get("enum", ())))
            if lost and "enum" in current:
                yield f"{place}: no longer {' or '.join(sorted(lost))}"
            for names, is_tighter in ((_UPPER, float.__lt__), (_LOWER, float.__gt__)):
                for name in names:
                    if name in current and (
                        name not in released or is_tighter(float(current[name]), float(released[name]))
                    ):
                        yield f"{place}: {name} is {current[name]}, was {released.get(name, 'unlimited')}"
        yield from self._fields(released, current, place, is_sent=is_sent)
        for name, suffix in (("items", "[]"), ("additionalProperties", ".*")):
            before, now = released.get(name), current.get(name)
            if isinstance(before, dict) and isinstance(now, dict):
                yield from self._schema(before, now, f"{place}{suffix}", is_sent=is_sent)

    def _fields(self, released: Schema, current: Schema, place: str, *, is_sent: bool) -> Iterator[str]:
        before, now = released.get("properties", {}), current.get("properties", {})
        required, required_now = set(released.get("required", ())), set(current.get("required", ()))
        for name, field in before.items():
            if name not in now:
                yield f"{place}.{name}: was removed"
            else:
                yield from self._schema(field, now[name], f"{place}.{name}", is_sent=is_sent)
        if is_sent:
            yield from (f"{place}.{name}: is required" for name in required_now - required)
            if current.get("additionalProperties") is False is not released.get("additionalProperties"):
                yield f"{place}: no longer unknown fields"
        else:
            yield from (f"{place}.{name}: may be absent" for name in required - required_now if name in now)

    def _alternatives(self, schema: Schema, document: Schema) -> dict[str, Schema]:
        """Return the types that a schema allows, each with its schema; empty if it allows any."""
        while "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        found: dict[str, Schema] = {}
        for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
            found |= self._alternatives(part, document)
        if "const" in schema:
            schema = {**schema, "enum": [schema["const"]]}
        kinds = schema.get("type") or sorted({_TYPES[type(value)] for value in schema.get("enum", ())})
        return found | dict.fromkeys([kinds] if isinstance(kinds, str) else kinds, schema)


_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def main() -> int:
    current = strip_prose(load_document())
    if "--release" in sys.argv[1:]:
        RELEASED.write_text(f"{json.dumps(current, separators=(',', ':'), sort_keys=True)}\n", encoding="utf-8")
        head = [line for line in ACCEPTED.read_text("utf-8").splitlines() if line.startswith("#")]
        ACCEPTED.write_text("\n".join((*head, "")), encoding="utf-8")
        return 0
    breaks = [it for it in find_breaks(json.loads(RELEASED.read_text("utf-8")), current) if it not in read_accepted()]
    for change in breaks:
        print(change)  # noqa: T201  # its output
    return 1 if breaks else 0


if __name__ == "__main__":
    sys.exit(main())
