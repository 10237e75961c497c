"""JSON Schema of msgspec types, the same from every version of msgspec."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec


def schema_components(types: Iterable[Any], *, ref_template: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the schema of each type, and the named schemas that they refer to.

    Versions of msgspec differ in two ways. 0.23 adds ``propertyNames`` to mappings whose keys are an enum; it is
    omitted here. The order of the parts of a union differs; null comes last here.

    Args:
        types: The types to describe.
        ref_template: How to refer to a named schema, such as ``#/$defs/{name}``.
    """
    schemas, named = msgspec.json.schema_components(types, ref_template=ref_template)
    return [_portable(schema) for schema in schemas], {name: _portable(schema) for name, schema in named.items()}


def _portable(schema: Any) -> Any:
    match schema:
        case dict():
            portable = {name: _portable(value) for name, value in schema.items() if name != "propertyNames"}
            if isinstance(parts := portable.get("anyOf"), list):
                portable["anyOf"] = sorted(parts, key=lambda part: part == {"type": "null"})
            return portable
        case list():
            return [_portable(item) for item in schema]
        case _:
            return schema
