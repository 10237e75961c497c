"""The routes of the API over a store in memory: fields, envelopes, errors, and requests that are held."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from structlog.testing import capture_logs
from tests.support.api_rig import DEVICE, DONE, FAILED, SOON_S, ApiRig, within
from tests.support.waiting import until

from tweezer.api.access.auth import OPEN_PATHS
from tweezer.api.batches.reads import EMBEDDED_JOBS_MAX
from tweezer.api.read_model import ReadModel
from tweezer.ledger.database import Database
from tweezer.model.errors import TweezerError, Unavailable
from tweezer.model.ids import job_id
from tweezer.model.messages import (
    BatchDoc,
    JobSpec,
    Limits,
    Outcome,
    OutcomeKind,
    Priority,
    Result,
)
from tweezer.settings import ApiSettings, Settings


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[ApiRig]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = ApiRig(Settings(api=ApiSettings(longpoll_s=20)), ledger)
    await rig.announce()
    yield rig
    await rig.close()


# -- batches and jobs -----------------------------------------------------------------------------------


async def test_a_batch_has_the_fields_that_pasqals_clients_require(rig: ApiRig) -> None:
    doc = BatchDoc(device=DEVICE, sequence='{"version":"1"}', name="n", tags=("a", "b"), webhook="http://h/x")
    batch_id = await rig.submit(
        [JobSpec(runs=5, variables={"omega": [1.0, 2]}), JobSpec(runs=6)], doc=doc, priority=Priority.HIGH, open=True
    )
    batch = await rig.data(f"/api/v2/batches/{batch_id}")
    counts = {"PENDING": 2, "RUNNING": 0, "DONE": 0, "ERROR": 0, "CANCELED": 0}
    wanted = {
        "id": str(batch_id),
        "open": True,
        "complete": False,
        "status": "PENDING",
        "device_type": DEVICE,
        "project_id": "p",
        "user_id": "",
        "jobs_count": 2,
        "jobs_count_per_status": counts,
        "sequence_builder": '{"version":"1"}',
        "tags": ["a", "b"],
        "webhook": "http://h/x",
        "queue_priority": "HIGH",
        "start_datetime": None,
        "end_datetime": None,
        "parent_id": None,
        "configuration": None,
        "backend_configuration": None,
        "name": "n",
        "errors": [],
    }
    assert {name: batch[name] for name in wanted} == wanted
    assert batch["created_at"].endswith("Z")
    assert batch["updated_at"].endswith("Z")
    assert [job["runs"] for job in batch["jobs"]] == [5, 6]
    assert [job["variables"] for job in batch["jobs"]] == [{"omega": [1.0, 2]}, None]
    assert [job["creation_order"] for job in batch["jobs"]] == [0, 1]


async def test_a_job_has_the_fields_that_pasqals_clients_require(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    job = await rig.data(f"/api/v2/jobs/{job_id(batch_id, 0)}")
    wanted = {
        "id": str(job_id(batch_id, 0)),
        "batch_id": str(batch_id),
        "project_id": "p",
        "status": "PENDING",
        "runs": 10,
        "variables": None,
        "errors": [],
        "sequence": None,
        "start_timestamp": None,
        "end_timestamp": None,
        "parent_id": None,
        "progress": 0,
        "stage": "queued",
        "attempt": 0,
        "queue_s": None,
        "preparation_s": None,
        "device_s": None,
    }
    assert {name: job[name] for name in wanted} == wanted
    assert job["updated_at"] == job["created_at"] == job["stage_since"]


async def test_a_job_that_is_done_has_its_durations_and_no_stage(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    await rig.run()
    job = await rig.data(f"/api/v2/jobs/{job_id(batch_id, 0)}")
    assert (job["status"], job["progress"], job["stage"], job["attempt"]) == ("DONE", 100, None, 1)
    assert (job["preparation_s"], job["device_s"]) == (0.5, 1.5)
    assert job["queue_s"] >= 0
    assert job["updated_at"] == job["end_timestamp"] is not None


async def test_a_failed_job_has_a_readable_reason(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    await rig.run(FAILED)
    job = await rig.data(f"/api/v2/jobs/{job_id(batch_id, 0)}")
    assert (job["status"], job["errors"]) == ("ERROR", ["variables.omega: it broke"])


async def test_a_job_shows_its_own_sequence_only_when_asked_for_itself(rig: ApiRig) -> None:
    batch_id = await rig.submit([JobSpec(runs=1, sequence='{"own":1}')], doc=BatchDoc(device=DEVICE))
    batch = await rig.data(f"/api/v2/batches/{batch_id}")
    assert batch["sequence_builder"] is None
    assert (
        "sequence" not in batch["jobs"][0]
    )  # to a client a null means "there is no sequence", and a missing key "read it separately"
    assert (await rig.data(f"/api/v2/jobs/{job_id(batch_id, 0)}"))["sequence"] == '{"own":1}'


@pytest.mark.parametrize(("jobs", "shown"), [(EMBEDDED_JOBS_MAX, EMBEDDED_JOBS_MAX), (EMBEDDED_JOBS_MAX + 1, 0)])
async def test_a_batch_is_shown_with_all_of_its_jobs_or_with_none(rig: ApiRig, jobs: int, shown: int) -> None:
    batch = await rig.data(f"/api/v2/batches/{await rig.submit(jobs)}")
    assert (batch["jobs_count"], len(batch["jobs"])) == (jobs, shown)


async def test_variables_without_a_json_form_are_not_an_error(rig: ApiRig) -> None:
    odd = {"a": math.nan, "b": [math.inf], "c": b"\xff", "d": {"q": 1}}
    batch_id = await rig.submit([JobSpec(runs=1, variables=odd)])
    job = await rig.data(f"/api/v2/jobs/{job_id(batch_id, 0)}")
    assert job["variables"] == {"a": None, "b": [None], "c": "_w==", "d": {"q": 1}}


async def test_an_operator_sees_all_projects(rig: ApiRig) -> None:
    for project in ("one", "two"):
        batch_id = await rig.submit(project=project)
        assert (await rig.data(f"/api/v2/batches/{batch_id}"))["project_id"] == project


async def test_devices_have_a_status(rig: ApiRig) -> None:
    await rig.submit(3)
    await rig.take()
    (device,) = (await rig.get("/api/v1/devices")).json()["data"]
    assert (device["status"], device["paused_because"]) == ("UP", None)
    assert (device["lanes"], device["pending"], device["running"]) == (1, 2, 1)
    await rig.store.devices.pause(DEVICE, "lasers")
    (device,) = (await rig.get("/api/v1/devices")).json()["data"]
    assert (device["status"], device["paused_because"]) == ("DOWN", "lasers")


# -- results --------------------------------------------------------------------------------------------


async def test_the_results_link_is_null_until_there_is_a_result(rig: ApiRig) -> None:
    job = job_id(await rig.submit(1), 0)
    assert await rig.data(f"/api/v1/jobs/{job}/results_link") == {"results_link": None}
    await rig.run()
    link = (await rig.data(f"/api/v1/jobs/{job}/results_link"))["results_link"]
    assert link.startswith(f"http://127.0.0.1:8000/api/v1/jobs/{job}/results?")
    answer = await rig.stranger.get(link)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "counter": {"01": 10},
        "serialised_results": '{"a": 1}',
        "provenance": {"backend": "null", "seed": 7},
    }


async def test_a_result_without_bitstrings_has_a_counter_that_is_null(rig: ApiRig) -> None:
    job = job_id(await rig.submit(1), 0)
    await rig.run(Outcome(OutcomeKind.DONE, result=Result(serialised_results="{}")))
    assert (await rig.get(f"/api/v1/jobs/{job}/results")).json() == {"counter": None, "serialised_results": "{}"}


@pytest.mark.parametrize("outcome", [None, FAILED])
async def test_a_job_without_a_result_has_no_download(rig: ApiRig, outcome: Outcome | None) -> None:
    job = job_id(await rig.submit(1), 0)
    if outcome is not None:
        await rig.run(outcome)
    assert await rig.data(f"/api/v1/jobs/{job}/results_link") == {"results_link": None}
    answer = await rig.get(f"/api/v1/jobs/{job}/results")
    assert (answer.status_code, answer.json()["data"]["reason"]) == (404, "not_found")


# -- status ---------------------------------------------------------------------------------------------


async def test_a_paused_batch_has_a_status_that_clients_know(rig: ApiRig) -> None:
    batch_id = await rig.submit(2)
    path = f"/api/v1/batches/{batch_id}/status?wait_s=0"
    await rig.store.commands.pause(batch_id, project=None)
    state = await rig.data(path)
    assert (state["status"], state["paused"]) == ("PENDING", True)
    assert (await rig.data(f"/api/v2/batches/{batch_id}"))["status"] == "PAUSED"
    await rig.store.commands.resume(batch_id, project=None)
    await rig.run()
    await rig.store.commands.pause(batch_id, project=None)
    state = await rig.data(path)
    assert (state["status"], state["paused"]) == ("RUNNING", True)


async def test_a_request_for_an_ended_batch_is_answered_at_once(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    await rig.run()
    job = job_id(batch_id, 0)
    batch = await within(asyncio.create_task(rig.get(f"/api/v1/batches/{batch_id}/status")))
    assert batch.json()["data"]["status"] == "DONE"
    assert batch.json()["data"]["jobs_count_per_status"]["DONE"] == 1
    state = await within(asyncio.create_task(rig.get(f"/api/v1/jobs/{job}/status")))
    assert (state.json()["data"]["status"], state.json()["data"]["progress"]) == ("DONE", 100)


async def test_an_open_batch_without_work_is_answered_at_once(rig: ApiRig) -> None:
    batch_id = await rig.submit(0, open=True)
    answer = await within(asyncio.create_task(rig.get(f"/api/v1/batches/{batch_id}/status")))
    assert (answer.json()["data"]["status"], answer.json()["data"]["open"]) == ("PENDING", True)


@pytest.mark.parametrize("open", [False, True])
async def test_a_held_request_is_answered_when_the_batch_is_without_work(rig: ApiRig, open: bool) -> None:
    batch_id = await rig.submit(2, open=open)
    request = await rig.held(f"/api/v1/batches/{batch_id}/status")
    await rig.run(DONE, FAILED)
    state = (await within(request)).json()["data"]
    assert state["status"] == ("RUNNING" if open else "DONE")
    assert state["jobs_count_per_status"] == {"PENDING": 0, "RUNNING": 0, "DONE": 1, "ERROR": 1, "CANCELED": 0}
    assert rig.holding() == 0


async def test_a_held_request_for_a_job_does_not_wait_for_its_batch(rig: ApiRig) -> None:
    batch_id = await rig.submit(3)
    request = await rig.held(f"/api/v1/jobs/{job_id(batch_id, 1)}/status")
    await rig.run(DONE, DONE)
    assert (await within(request)).json()["data"]["status"] == "DONE"
    assert (await rig.store.reader.batch(batch_id, project=None)).status.value == "RUNNING"


async def test_a_cancel_of_the_batch_answers_a_held_request_for_a_job(rig: ApiRig) -> None:
    batch_id = await rig.submit(3)
    request = await rig.held(f"/api/v1/jobs/{job_id(batch_id, 1)}/status")
    await rig.store.commands.cancel(batch_id, project=None)
    assert (await within(request)).json()["data"]["status"] == "CANCELED"


async def test_a_hold_ends_after_its_time_with_the_current_status(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    for path in (f"/api/v1/batches/{batch_id}/status", f"/api/v1/jobs/{job_id(batch_id, 0)}/status"):
        assert (await rig.data(path, params={"wait_s": "0.05"}))["status"] == "PENDING"


async def test_a_request_whose_client_left_is_not_held(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/api/v1/batches/{batch_id}/status",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"authorization", rig.http.headers["authorization"].encode())],
        "scheme": "http",
        "http_version": "1.1",
    }
    request = asyncio.create_task(rig.app(scope, receive, send))
    await until(lambda: rig.holding() == 1)
    gone.set()
    await asyncio.wait_for(request, SOON_S)
    assert rig.holding() == 0


async def test_a_stopping_server_answers_all_held_requests(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    requests = [
        await rig.held(f"/api/v1/batches/{batch_id}/status"),
        await rig.held(f"/api/v1/jobs/{job_id(batch_id, 0)}/status"),
    ]
    rig.app.state.holds.end()
    for request in requests:
        assert (await within(request)).json()["data"]["status"] == "PENDING"
    late = await within(asyncio.create_task(rig.get(f"/api/v1/batches/{batch_id}/status")))
    assert late.status_code == 200


async def test_more_requests_than_redis_has_connections_are_all_answered(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    requests = [asyncio.create_task(rig.get(f"/api/v1/batches/{batch_id}/status")) for _ in range(150)]
    await until(lambda: rig.holding() == len(requests))
    await rig.run()
    answers = await asyncio.wait_for(asyncio.gather(*requests), SOON_S)
    assert {answer.json()["data"]["status"] for answer in answers} == {"DONE"}


# -- errors ---------------------------------------------------------------------------------------------

ID = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"
ID_ROUTES = (
    "/api/v2/batches/{}",
    "/api/v2/jobs/{}",
    "/api/v1/batches/{}/status",
    "/api/v1/jobs/{}/status",
    "/api/v1/jobs/{}/results_link",
    "/api/v1/jobs/{}/results",
)
STORE_ROUTES = (*(route.format(ID) for route in ID_ROUTES), "/ready", "/api/v1/devices")


def assert_failure(answer: httpx.Response, status: int) -> None:
    """Check that the response is an error that Pasqal's clients can read."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["code"] == str(status)
    assert body["status"] == ("fail" if status < 500 else "error")
    assert body["message"]
    assert isinstance(body["data"]["description"], str)
    assert len(answer.content) < 2000


@pytest.mark.parametrize("route", ID_ROUTES)
async def test_an_unknown_id_is_not_found(rig: ApiRig, route: str) -> None:
    answer = await rig.get(route.format(ID))
    assert_failure(answer, 404)
    assert ID in answer.json()["data"]["description"]


@pytest.mark.parametrize("index", [1, 2**24 - 1])
async def test_a_job_beyond_its_batch_is_not_found(rig: ApiRig, index: int) -> None:
    batch_id = await rig.submit(1)
    assert_failure(await rig.get(f"/api/v2/jobs/{job_id(batch_id, index)}"), 404)
    assert_failure(await rig.get(f"/api/v2/batches/{job_id(batch_id, index)}"), 404)


@pytest.mark.parametrize(
    "bad", ["x", "0", "-1", "None", "%00", "%ff%fe", "%F0%9F%92%A5", "a" * 5000, "9" * 5000, ID + "0", "..%2f..", "{x}"]
)
@pytest.mark.parametrize("route", ID_ROUTES)
async def test_a_bad_id_is_refused_and_not_repeated(rig: ApiRig, route: str, bad: str) -> None:
    answer = await rig.get(route.format(bad))
    if answer.status_code == 404:  # an encoded slash makes another path of it
        assert_failure(answer, 404)
        return
    assert_failure(answer, 422)
    (problem,) = answer.json()["detail"]
    assert set(problem) == {"type", "loc", "msg"}
    assert problem["loc"][0] == "path"


@pytest.mark.parametrize("wait_s", ["-1", "20.1", "nan", "inf", "x", "", "1e400", "9" * 3000])
async def test_a_bad_wait_is_refused(rig: ApiRig, wait_s: str) -> None:
    batch_id = await rig.submit(1)
    answer = await rig.get(f"/api/v1/batches/{batch_id}/status", params={"wait_s": wait_s})
    assert_failure(answer, 422)
    assert answer.json()["data"]["field"] == "wait_s"


@pytest.mark.parametrize(
    ("target", "field", "problem"),
    [
        ("/api/v2/jobs?limt=2", "limt", "is not a parameter of this route (did you mean limit?)"),
        ("/api/v1/batches?tag=a&id[]=1", "id[]", "is not a parameter of this route (did you mean id?)"),
        ("/api/v2/batches/{id}/events?kind=x", "kind", "; its parameters are after, internal, limit, type, wait_s"),
        ("/api/v2/batches/{id}?with_jobs=1", "with_jobs", "is not a parameter of this route (did you mean jobs?)"),
        ("/api/v2/jobs/counts?Status=DONE", "Status", "(did you mean status?)"),
        ("/api/v1/devices?%00=1", "'\\x00'", "is not a parameter of this route; its parameters are "),
        ("/metrics?x", "x", "is not a parameter of this route; it has none"),
        ("/api/v1/workloads?limit=2", "limit", "is not a parameter of this route; it has none"),
    ],
)
async def test_an_unknown_query_parameter_is_refused_with_the_nearest_name(
    rig: ApiRig, target: str, field: str, problem: str
) -> None:
    answer = await rig.get(target.replace("{id}", str(await rig.submit(1))))
    assert_failure(answer, 422)
    assert answer.json()["data"]["field"] == field
    assert problem in answer.json()["data"]["description"]


async def test_a_long_unknown_parameter_is_not_repeated_and_empty_ones_are_ignored(rig: ApiRig) -> None:
    path = f"/api/v2/batches/{await rig.submit(1)}"
    assert_failure(await rig.get(f"{path}?{'b' * 3000}"), 422)
    assert_failure(await rig.get(f"{path}?a=%ff"), 422)
    assert (await rig.get(f"{path}?&&=&")).status_code == 200


async def test_reads_of_pasqals_clients_may_have_unknown_parameters(rig: ApiRig) -> None:
    batch_id, pasqals = await rig.submit(1), {"User-Agent": "PasqalCloudSDK/0.31.0"}
    for path in ("/api/v2/jobs", f"/api/v2/batches/{batch_id}", "/api/v1/devices"):
        assert (await rig.get(path, params={"new": 1}, headers=pasqals)).status_code == 200
        assert (await rig.get(path, params={"new": 1}, headers={"User-Agent": "httpx"})).status_code == 422


async def test_an_unknown_parameter_never_widens_a_change(rig: ApiRig) -> None:
    batch_id = await rig.submit(2)
    for agent in ("PasqalCloudSDK/0.31.0", "httpx"):
        path = f"/api/v2/batches/{batch_id}/cancel/jobs"
        answer = await rig.http.patch(path, params={"statuses": "ERROR"}, headers={"User-Agent": agent})
        assert_failure(answer, 422)
    assert (await rig.data(f"/api/v2/batches/{batch_id}"))["jobs_count_per_status"]["PENDING"] == 2


async def test_probes_and_public_routes_may_have_unknown_parameters(rig: ApiRig) -> None:
    for path in ("/health", "/ready", "/api/v1/devices/public-specs"):
        assert (await rig.stranger.get(path, params={"probe": "lb-1"})).status_code == 200


@pytest.mark.parametrize("path", ["/api", "/api/v3/batches", f"/api/v2/batches/{ID}/", "/docs/no", "//", "/%ff"])
async def test_an_unknown_route_is_not_found(rig: ApiRig, path: str) -> None:
    assert_failure(await rig.get(f"http://127.0.0.1:8000{path}"), 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
async def test_another_method_is_refused(rig: ApiRig, method: str) -> None:
    answer = await rig.http.request(method, f"/api/v2/batches/{ID}", content=b"{" * 1000)
    assert_failure(answer, 405)
    assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize("path", STORE_ROUTES)
async def test_without_redis_every_route_is_unavailable(rig: ApiRig, path: str) -> None:
    rig.server.connected = False
    answer = await rig.get(path)
    assert_failure(answer, 503)
    assert int(answer.headers["retry-after"]) > 0
    rig.server.connected = True


async def test_without_redis_the_process_is_still_healthy(rig: ApiRig) -> None:
    assert (await rig.data("/ready")) == {"health": "ok"}
    rig.server.connected = False
    assert (await rig.data("/health")) == {"health": "ok"}
    assert (await rig.get("/openapi.json")).status_code == 200
    rig.server.connected = True


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("secret"), 500),
        (TweezerError("secret", code="redis"), 500),
        (TweezerError("wrong password", code="redis_auth"), 503),
    ],
)
async def test_an_internal_error_is_json_too(
    rig: ApiRig, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ReadModel, "batch_with_jobs", fail)
    answer = await rig.get(f"/api/v2/batches/{ID}")
    assert_failure(answer, status)
    assert "secret" not in answer.text


# -- web pages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/nowhere", f"/api/v2/batches/{ID}"])
async def test_other_origins_get_no_permission_to_read(rig: ApiRig, path: str) -> None:
    for method in ("GET", "OPTIONS"):
        headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "GET"}
        answer = await rig.http.request(method, path, headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


async def test_without_a_key_a_caller_learns_nothing_of_the_network(
    rig: ApiRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise Unavailable("Redis cannot be reached: Error 111 connecting to 10.9.8.7:6379")

    monkeypatch.setattr(rig.store.reader, "ping", fail)
    with capture_logs() as logged:
        answer = await rig.stranger.get("/ready")
    assert (answer.status_code, answer.json()["data"]["description"]) == (503, "Redis cannot be reached")
    assert any("10.9.8.7:6379" in str(entry) for entry in logged)


# -- the document ---------------------------------------------------------------------------------------


async def test_the_document_describes_every_route(rig: ApiRig) -> None:
    document = (await rig.get("/openapi.json")).json()
    operations = {(path, method): it for path, its in document["paths"].items() for method, it in its.items()}
    assert {path for path, _ in operations} >= {route.format("{batch_id}") for route in ID_ROUTES if "batches" in route}
    for (path, method), route in operations.items():
        assert route["summary"]
        assert route["description"]
        assert all(parameter["description"] for parameter in route.get("parameters", ())), f"{method} {path}"
        answers = route["responses"]
        wanted = set() if path in OPEN_PATHS else {"401", "429"}
        assert wanted <= set(answers), f"{method} {path}"
        assert ("503" in answers) == (path != "/health"), f"{method} {path}"
        assert {"404", "422"} <= set(answers) or "{" not in path or "501" in answers, f"{method} {path}"
    described = {tag["name"] for tag in document["tags"] if tag["description"]}
    assert described == {tag for route in operations.values() for tag in route["tags"]}
    for name, schema in document["components"]["schemas"].items():
        assert all(about.get("description") for about in schema.get("properties", {}).values()), name
        if not name.endswith("Response"):
            continue
        for field, about in schema["properties"].items():
            parts = [about, *about.get("anyOf", ())]
            assert any("examples" in it or "$ref" in it or "$ref" in it.get("items", {}) for it in parts), (name, field)


async def test_the_document_is_valid_and_its_schemas_have_plain_names(rig: ApiRig) -> None:
    document = (await rig.get("/openapi.json")).json()
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    operations = [operation for its in document["paths"].values() for operation in its.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    names = set(document["components"]["schemas"])
    assert {name for name in names if re.fullmatch("[A-Z][A-Za-z0-9]+", name) is None} == set()
    assert {"BatchBody", "JobBody", "BatchEnvelope", "DeviceListEnvelope", "JobPage", "NewWebhook"} <= names


async def test_the_document_names_the_public_url_of_the_server(rig: ApiRig, ledger: Database) -> None:
    assert "servers" not in rig.app.openapi()
    public = ApiRig(Settings(api=ApiSettings(public_url="https://tweezer.example.org/lab/")), ledger)
    assert public.app.openapi()["servers"] == [{"url": "https://tweezer.example.org/lab"}]
    await public.close()


async def test_responses_match_the_document(rig: ApiRig) -> None:
    batch_id = await rig.submit(1, doc=BatchDoc(device=DEVICE, sequence="{}", limits=Limits()))
    document = (await rig.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for path, name in (
        (f"/api/v2/batches/{batch_id}", "BatchResponse"),
        (f"/api/v2/jobs/{job_id(batch_id, 0)}", "JobResponse"),
    ):
        assert set(await rig.data(path)) == set(schemas[name]["properties"])
