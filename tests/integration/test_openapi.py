"""The API is as its OpenAPI document says, whatever is sent: by schemathesis, with keys of two projects."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from traceback import format_exception_only
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from schemathesis.schemas import APIOperation
from tests.processes import NULL, PATIENCE_S, Site

from tweezer.ledger.credentials import Role
from tweezer.ledger.database import Database
from tweezer.ledger.keys import create_key
from tweezer.ledger.place import OpenDatabase
from tweezer.ledger.projects import create_project
from tweezer.ledger.recorder import Recorder

EXAMPLES = 4  # of each operation, with each key, as described and not as described
OURS, THEIRS = "6f1c2b3a-0d4e-4f5a-8b6c-7d8e9f0a1b2c", "8b3e4d5c-2f6a-4b7c-8d8e-9f0a1b2c3d4e"
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
KEYLESS = {"/health", "/ready", "/oauth/token", "/api/v1/devices/public-specs"}
NOT_THERE = "/workloads"  # is answered, with 501

Call = tuple[int, str]


class Fuzzed:
    """An API with something in it. ids: what may stand for a parameter of a path."""

    def __init__(self, url: str, keys: dict[str, str], ids: dict[str, list[str]]) -> None:
        self.url = url
        self.keys = keys
        self.ids = ids
        self.schema = schemathesis.openapi.from_url(f"{url}/openapi.json")

    def operations(self) -> Iterator[APIOperation]:
        for found in self.schema.get_all_operations():
            yield found.ok()


@pytest.fixture
async def api(real_redis_url: str, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Fuzzed]:
    database_url = f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'ledger.db')}"
    database = Database.open(OpenDatabase(url=database_url))
    with database.write() as connection:
        for project in (OURS, THEIRS):
            create_project(connection, "One of two", project)
        keys = {
            "ours": create_key(connection, name="ours", project_id=OURS).text,
            "theirs": create_key(connection, name="theirs", project_id=THEIRS).text,
            "operator": create_key(connection, name="operator", role=Role.OPERATOR).text,
        }
    rates = {"requests_per_s": 10_000, "requests_burst": 10_000, "longpoll_s": 0}
    async with Site(real_redis_url, tmp_path, database_url=database_url, data_dir=tmp_path, **rates) as site:
        await site.workers(1)
        _, url = await site.api()
        batches = []
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
            for key, more in itertools.product(("ours", "theirs"), (False, True)):
                body = {"device_type": NULL, "jobs": [{"runs": 1}] * 2, "open": more}
                answer = await http.post("/api/v1/batches", json=body, headers=bearer(keys[key]))
                batches.append(answer.json()["data"])
        recorder = Recorder(site.store, database, namespace="tweezer")
        await recorder.resume()
        await recorder.catch_up()
        database.close()
        ids = {
            "batch_id": [batch["id"] for batch in batches],
            "job_id": [job["id"] for batch in batches for job in batch["jobs"]],
            "device": [NULL],
            "workload_id": [batches[0]["id"]],
        }
        yield Fuzzed(url, keys, ids)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
            assert (await http.get("/ready")).status_code == 200  # whatever was done to it, it lives


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_request_breaks_the_server_or_its_document(api: Fuzzed) -> None:
    drifts: dict[str, str] = {}
    for operation in api.operations():
        name = f"{operation.method.upper()} {operation.path}"
        for who in api.keys:
            try:
                for mode in GenerationMode:
                    _fuzz(api, operation, api.keys[who], mode)
            except (BaseExceptionGroup, AssertionError, schemathesis.errors.SchemathesisError) as drift:
                drifts[f"{name} by {who}"] = "".join(format_exception_only(drift))
    assert not drifts, "\n\n".join(f"{name}: {drift}" for name, drift in drifts.items())


def _fuzz(api: Fuzzed, operation: APIOperation, key: str, mode: GenerationMode) -> None:

    @hypothesis_settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    def ask(case: Any, data: Any) -> None:
        for name in case.path_parameters or {}:
            if data.draw(st.booleans(), label=f"a known {name}"):
                case.path_parameters[name] = data.draw(st.sampled_from(api.ids[name]))
        response = case.call(base_url=api.url, headers=bearer(key))
        excluded = []
        if NOT_THERE in operation.path and response.status_code == 501:
            excluded = [checks.not_a_server_error]
        if response.status_code in (400, 414) and response.json().get("data", {}).get("field") == "url":
            excluded = [checks.status_code_conformance]  # it never came to its route
        case.validate_response(response, checks=CHECKS, excluded_checks=excluded)

    with contextlib.suppress(Unsatisfiable):  # where there is nothing to send, nothing of it can be wrong
        ask()


def test_every_route_asks_for_a_key_but_those_meant_so(api: Fuzzed) -> None:
    named = {"batch_id": api.ids["batch_id"][0], "job_id": api.ids["job_id"][0], "device": NULL}
    found: dict[str, Call] = {}
    with httpx.Client(base_url=api.url, timeout=PATIENCE_S) as http:
        for operation in api.operations():
            path = operation.path.format_map({**named, "workload_id": named["job_id"]})
            for headers in ({}, {"Authorization": "Bearer twz_aaaaaaaaaaaa_b"}, {"Cookie": f"key={api.keys['ours']}"}):
                answer = http.request(operation.method, path, headers=headers)
                if operation.path in KEYLESS:
                    assert answer.status_code != 401, path
                else:
                    found[f"{operation.method} {path}"] = (answer.status_code, answer.json()["data"]["reason"])
    assert set(found.values()) == {(401, "unauthorized")}, found
