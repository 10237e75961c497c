"""The API matches its OpenAPI document for any request: by schemathesis, with keys of two projects."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
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
from tests.support.api_rig import bearer
from tests.support.effort import effort
from tests.support.furnished_api import FurnishedApi, furnished_api
from tests.support.processes import NULL
from tests.support.waiting import PATIENCE_S

EXAMPLES = effort(short=1, full=4)  # for each operation and key, valid and invalid
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
KEYLESS = {"/health", "/ready", "/oauth/token", "/api/v1/devices/public-specs"}
NOT_THERE = "/workloads"  # these routes return 501

Call = tuple[int, str]


@pytest.fixture
async def api(real_redis_url: str, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[FurnishedApi]:
    async with furnished_api(real_redis_url, tmp_path, sqlite_template) as api:
        yield api


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_request_breaks_the_server_or_its_document(api: FurnishedApi) -> None:
    drifts: dict[str, str] = {}
    for operation in api.operations():
        name = f"{operation.method.upper()} {operation.path}"
        if operation.path.endswith("/stream"):
            continue  # does not end
        for who in api.keys:
            try:
                for mode in GenerationMode:
                    _fuzz(api, operation, api.keys[who], mode)
            except (BaseExceptionGroup, AssertionError, schemathesis.errors.SchemathesisError) as drift:
                drifts[f"{name} by {who}"] = "".join(format_exception_only(drift))
    assert not drifts, "\n\n".join(f"{name}: {drift}" for name, drift in drifts.items())


def _fuzz(api: FurnishedApi, operation: APIOperation[Any, Any, Any, Any], key: str, mode: GenerationMode) -> None:

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
        problem = response.json().get("data", {}) if response.status_code in (400, 414) else {}
        if problem.get("field") == "url" or problem.get("reason") == "not_http":  # such as a URL that is too long
            excluded = [checks.status_code_conformance]  # the request did not reach its route
        case.validate_response(response, checks=CHECKS, excluded_checks=excluded)

    with contextlib.suppress(Unsatisfiable):  # an operation without input has no invalid input
        ask()


def test_every_route_but_the_open_ones_requires_a_key(api: FurnishedApi) -> None:
    named = {
        "batch_id": api.ids["batch_id"][0],
        "job_id": api.ids["job_id"][0],
        "task_id": api.ids["task_id"][0],
        "device": NULL,
    }
    found: dict[str, Call] = {}
    with httpx.Client(base_url=api.url, timeout=PATIENCE_S) as http:
        names = ("workload_id", "webhook_id", "delivery_id", "schedule_id", "window", "session_id")
        more = dict.fromkeys(names, named["job_id"])
        for operation in api.operations():
            path = operation.path.format_map({**named, **more})
            for headers in ({}, {"Authorization": "Bearer twz_aaaaaaaaaaaa_b"}, {"Cookie": f"key={api.keys['ours']}"}):
                answer = http.request(operation.method, path, headers=headers)
                if operation.path in KEYLESS:
                    assert answer.status_code != 401, path
                else:
                    found[f"{operation.method} {path}"] = (answer.status_code, answer.json()["data"]["reason"])
    assert set(found.values()) == {(401, "unauthorized")}, found
