"""The OpenAPI document: FastAPI's, with the bodies of requests and names that generators make good classes of."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI

from tweezer.api.http.bodies import BODY_SCHEMAS

_REFERENCE = "#/components/schemas/"
_GENERIC = re.compile(r"(Envelope|Page)_(list|dict)?_?(\w+?)_+")


class DescribedAPI(FastAPI):
    """A FastAPI application with such a document."""

    def openapi(self) -> dict[str, Any]:
        """Return the document, which is made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _described(super().openapi())
        return self.openapi_schema


def _described(document: dict[str, Any]) -> dict[str, Any]:
    schemas: dict[str, Any] = document["components"]["schemas"]
    for operations in document["paths"].values():
        for operation in operations.values():
            for name, schema in operation.pop(BODY_SCHEMAS, {}).items():
                known = schemas.setdefault(name, schema)
                if known != schema and set(known.get("enum", ())) != set(schema.get("enum", name)):
                    raise RuntimeError(f"two schemas of the OpenAPI document are called {name}")
    names = {_REFERENCE + name: _REFERENCE + _plain(name) for name in schemas}
    if len(set(names.values())) < len(names):
        raise RuntimeError("two schemas of the OpenAPI document would have the same name")
    document["components"]["schemas"] = {_plain(name): schema for name, schema in schemas.items()}
    renamed: dict[str, Any] = _renamed(document, names)
    return renamed


def _plain(name: str) -> str:
    """``BatchEnvelope`` for ``Envelope_Batch_``, ``DeviceListEnvelope`` for ``Envelope_list_Device__``."""
    match = _GENERIC.fullmatch(name)
    if match is None:
        return name
    kind, collection, parts = match.groups()
    words = "".join(part[:1].upper() + part[1:] for part in parts.split("_"))
    return f"{words}{'' if collection is None else {'list': 'List', 'dict': 'Map'}[collection]}{kind}"


def _renamed(part: Any, names: dict[str, str]) -> Any:
    match part:
        case dict():
            return {
                name: names.get(value, value) if name == "$ref" else _renamed(value, names)
                for name, value in part.items()
            }
        case list():
            return [_renamed(item, names) for item in part]
        case _:
            return part
