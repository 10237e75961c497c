"""The examples of the reference of the HTTP API: one for each operation, as the application answers, and as its
document describes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tests.support.api_examples import record

from tweezer.api.app import create_app
from tweezer.ledger.database import Database
from tweezer.settings import Settings

EXAMPLES = json.loads((Path(__file__).parents[3] / "docs/reference/http-api/examples.json").read_text())


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {operation["operationId"]: operation for path in document["paths"].values() for operation in path.values()}


async def test_the_examples_are_what_the_application_answers(
    ledger: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer
    assert await record(ledger) == EXAMPLES, "run `python docs/record_examples.py`"


def test_every_operation_has_an_example(document: dict[str, Any]) -> None:
    assert set(EXAMPLES) == set(operations(document))


def test_every_operation_documents_the_internal_error(document: dict[str, Any]) -> None:
    described = [operation["responses"]["500"] for operation in operations(document).values()]
    assert all(each == described[0] for each in described)
    assert described[0]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Failure"}


def test_bodies_of_examples_fit_the_document(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        example = EXAMPLES[name]
        described = operation["responses"][str(example["response"]["status"])].get("content", {})
        assert_fits(example["response"].get("body"), described, document, name)
        if "body" in example["request"]:
            assert_fits(example["request"]["body"], operation["requestBody"]["content"], document, name)


def assert_fits(body: Any, described: dict[str, Any], document: dict[str, Any], name: str) -> None:
    if "application/json" in described:
        schema = {**described["application/json"]["schema"], "components": document["components"]}
        assert not [error.message for error in Draft202012Validator(schema).iter_errors(body)], name
