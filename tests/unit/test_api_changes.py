"""The HTTP API changes compatibly between releases, except for changes that are accepted explicitly."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from tests.support.docs import load_generator

Document = dict[str, Any]


@pytest.fixture(scope="module")
def comparison() -> ModuleType:
    return load_generator("compare_api")


@pytest.fixture(scope="module")
def current(comparison: ModuleType) -> Document:
    document: Document = comparison.strip_prose(comparison.load_document())
    return document


def test_changes_that_break_clients_are_accepted_with_a_reason(comparison: ModuleType, current: Document) -> None:
    accepted = comparison.read_accepted()
    breaks = comparison.find_breaks(json.loads(comparison.RELEASED.read_text("utf-8")), current)
    assert breaks == sorted(accepted), "see docs/compare_api.py"
    assert all(accepted.values()), "each accepted change has a reason"


def schema(document: Document, name: str) -> Document:
    found: Document = document["components"]["schemas"][name]
    return found


def parameter(document: Document, path: str, name: str) -> Document:
    found: list[Document] = [it for it in document["paths"][path]["get"]["parameters"] if it["name"] == name]
    return found[0]


BREAKS: dict[str, tuple[Callable[[Document], object], str]] = {
    "an operation": (
        lambda it: it["paths"]["/api/v2/jobs/{job_id}"].pop("get"),
        "GET /api/v2/jobs/{job_id}: was removed",
    ),
    "a path": (lambda it: it["paths"].pop("/ready"), "GET /ready: was removed"),
    "a field of a response": (
        lambda it: schema(it, "JobResponse")["properties"].pop("attempt"),
        "JobResponse.attempt: was removed",
    ),
    "a field that may be absent": (
        lambda it: schema(it, "JobResponse")["required"].remove("attempt"),
        "JobResponse.attempt: may be absent",
    ),
    "a type": (
        lambda it: schema(it, "JobResponse")["properties"]["attempt"].update(type="string"),
        "JobResponse.attempt: now also string",
    ),
    "a null": (
        lambda it: schema(it, "JobResponse")["properties"].update(
            attempt={"anyOf": [{"type": "integer"}, {"type": "null"}]}
        ),
        "JobResponse.attempt: now also null",
    ),
    "a required field": (
        lambda it: schema(it, "BatchBody").update(required=["name"]),
        "BatchBody.name: is required",
    ),
    "unknown fields": (
        lambda it: schema(it, "BatchBody").update(additionalProperties=False),
        "BatchBody: no longer unknown fields",
    ),
    "a field of a body": (
        lambda it: schema(it, "BatchBody")["properties"].pop("tags"),
        "BatchBody.tags: was removed",
    ),
    "an enum": (lambda it: schema(it, "Direction")["enum"].remove("ASC"), "Direction: no longer ASC"),
    "a parameter": (
        lambda it: it["paths"]["/api/v2/jobs"]["get"].update(parameters=[]),
        "GET /api/v2/jobs: parameter limit was removed",
    ),
    "a required parameter": (
        lambda it: parameter(it, "/api/v2/jobs", "limit").update(required=True),
        "GET /api/v2/jobs: parameter limit is required",
    ),
    "a limit": (
        lambda it: parameter(it, "/api/v2/jobs", "limit")["schema"].update(maximum=10),
        "GET /api/v2/jobs: parameter limit: maximum is 10, was 100",
    ),
    "a status": (
        lambda it: it["paths"]["/health"]["get"]["responses"].pop("200"),
        "GET /health: response 200 was removed",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_change_that_breaks_clients_is_found(comparison: ModuleType, current: Document, name: str) -> None:
    change, line = BREAKS[name]
    changed = copy.deepcopy(current)
    change(changed)
    assert line in comparison.find_breaks(current, changed)


def test_additions_break_no_client(comparison: ModuleType, current: Document) -> None:
    changed = copy.deepcopy(current)
    changed["paths"]["/api/v2/new"] = changed["paths"]["/health"]
    schema(changed, "JobResponse")["properties"]["new"] = {"type": "string"}
    schema(changed, "BatchBody")["properties"]["new"] = {"type": "string"}
    schema(changed, "Direction")["enum"].append("RANDOM")
    new = {"name": "new", "in": "query", "required": False, "schema": {"type": "string"}}
    changed["paths"]["/api/v2/jobs"]["get"]["parameters"].append(new)
    assert comparison.find_breaks(current, changed) == []
    assert comparison.find_breaks(current, current) == []
