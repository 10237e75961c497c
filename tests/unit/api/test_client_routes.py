"""The routes of Tweezer's own client: jobs as a stream, cancels by index, pauses, limits, and what they show."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from tests.support.api_rig import DEVICE, DONE, FAILED, SEQUENCE, ApiRig, bearer

from tweezer.api.batches.commands import describe_caller
from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.database import Database
from tweezer.model.cancels import BY_LENGTH_MAX, check_by
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import JobSpec, Limits
from tweezer.settings import ApiSettings, Settings

UNKNOWN = new_batch_id()


class Routes(ApiRig):
    """The rig with keys of two projects, of a reader and of an operator."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings, database)
        self.keys = {"ours": self.key(project="p"), "theirs": self.key(project="q"), "reader": self.key(Role.READ)}
        self.keys["operator"] = self.key(Role.OPERATOR, project=None)

    async def ask(
        self, method: str, path: str, content: Any = None, *, key: str = "ours", **headers: str
    ) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()} | bearer(self.keys[key])
        return await self.http.request(method, path, json=content, headers=named)

    async def done(self, method: str, path: str, content: Any = None, *, status: int = 200, **options: Any) -> Any:
        response = await self.ask(method, path, content, **options)
        assert response.status_code == status, response.text
        return response.json()["data"]

    async def lines(self, path: str) -> list[Any]:
        response = await self.ask("GET", path)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in response.text.splitlines()]


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[Routes]:
    monkeypatch.chdir(tmp_path)
    rig = Routes(Settings(api=ApiSettings(requests_per_s=10_000)), ledger)
    await rig.announce()
    yield rig
    await rig.close()


# --- jobs as a stream


async def test_jobs_are_streamed_with_their_results(rig: Routes) -> None:
    batch_id = await rig.submit([JobSpec(runs=10, seed=index) for index in range(3)])
    await rig.run(DONE, FAILED)
    path = f"/api/v2/batches/{batch_id}/jobs"
    *jobs, end = await rig.lines(f"{path}?results=true")
    assert end == {"job": None, "result": None, "result_error": None, "end": True}
    assert [line["job"]["creation_order"] for line in jobs] == [0, 1, 2]
    assert [line["result"] and line["result"]["counter"] for line in jobs] == [{"01": 10}, None, None]
    assert jobs[0]["result"]["provenance"] == {"backend": "null", "seed": 7}
    assert jobs[1]["job"]["faults"] == [{"code": "user", "message": "it broke", "field": "variables.omega"}]
    assert [line["job"]["seed"] for line in jobs] == [0, 1, 2]
    assert [line["result"] for line in await rig.lines(path)] == [None] * 4, "results are sent on request"


@pytest.mark.parametrize(
    ("indices", "found"),
    [("", [0, 1, 2, 3]), ("0", [0]), ("2,0", [2, 0]), ("1-2", [1, 2]), ("3-9,77", [3]), ("9-3", []), ("99999", [])],
)
async def test_jobs_are_selected_by_index(rig: Routes, indices: str, found: list[int]) -> None:
    batch_id = await rig.submit(4)
    *jobs, end = await rig.lines(f"/api/v2/batches/{batch_id}/jobs?indices={indices}")
    assert [line["job"]["creation_order"] for line in jobs] == found
    assert end["end"]


@pytest.mark.parametrize("indices", ["-1", "a", "1-", "1--2", "1,,2", ",", "100000", "1 2", "0-9," * 3000])
async def test_indices_that_are_not_valid_are_refused(rig: Routes, indices: str) -> None:
    batch_id = await rig.submit(2)
    answer = await rig.ask("GET", f"/api/v2/batches/{batch_id}/jobs?indices={indices}")
    assert answer.status_code == 422, answer.text
    assert answer.json()["data"]["field"] == "indices"


async def test_a_stream_of_another_project_is_not_found(rig: Routes) -> None:
    batch_id = await rig.submit(1)
    for known in (batch_id, UNKNOWN):
        answer = await rig.ask("GET", f"/api/v2/batches/{known}/jobs", key="theirs")
        assert answer.status_code == 404
    assert (await rig.ask("GET", f"/api/v2/batches/{batch_id}/jobs", key="reader")).status_code == 200


# --- a batch without its jobs and its sequence


async def test_a_batch_is_read_without_what_never_changes(rig: Routes) -> None:
    batch_id = await rig.submit(2)
    path = f"/api/v2/batches/{batch_id}"
    whole = await rig.done("GET", path)
    bare = await rig.done("GET", f"{path}?jobs=false&sequence=false")
    assert {**bare, "jobs": whole["jobs"], "job_ids": whole["job_ids"], "sequence_builder": "{}"} == whole
    assert (bare["jobs"], bare["job_ids"], bare["sequence_builder"]) == ([], None, None)


# --- submit


async def test_limits_and_the_start_time_are_those_of_the_body(rig: Routes) -> None:
    body = {
        "sequence_builder": SEQUENCE,
        "device_type": DEVICE,
        "jobs": [{"runs": 1, "variables": {"omega": 1}}],
        "limits": {"job_timeout_s": 7.5, "transient_retries": 0},
        "not_before": "2999-01-01T00:00:00+01:00",
    }
    created = await rig.done("POST", "/api/v1/batches", body)
    assert created["limits"] == {"job_timeout_s": 7.5, "open_timeout_s": 300.0, "transient_retries": 0}
    record = await rig.store.reader.batch(UUID(created["id"]), project="p")
    assert record.doc.limits == Limits(7.5, 300.0, 0)
    assert (await rig.store.tickets.take(DEVICE, ["lane"], lease_s=15.0)).grants == [], "it starts later"


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("limits", {"job_timeout_s": -1}, "limits.job_timeout_s"),
        ("limits", {"job_timeout_s": "7"}, "limits.job_timeout_s"),
        ("limits", {"transient_retries": 99}, "limits.transient_retries"),
        ("limits", [], "limits"),
        ("not_before", "2999-01-01T00:00:00", "not_before"),
        ("not_before", "tomorrow", "not_before"),
        ("not_before", 7, "not_before"),
    ],
)
async def test_limits_and_start_times_that_are_not_valid_are_refused(
    rig: Routes, field: str, value: Any, named: str
) -> None:
    body = {"sequence_builder": SEQUENCE, "device_type": DEVICE, "jobs": [{"runs": 1, "variables": {"omega": 1}}]}
    answer = await rig.ask("POST", "/api/v1/batches", {**body, field: value})
    assert (answer.status_code, answer.json()["data"]["field"]) == (400, named)


async def test_added_jobs_are_numbered(rig: Routes) -> None:
    batch_id = await rig.submit(2, open=True)
    path = f"/api/v2/batches/{batch_id}/jobs"
    for _ in range(2):
        added = await rig.done("POST", path, [{"runs": 1}] * 3, Idempotency_Key="k")
        assert (added["first_added"], added["jobs_count"]) == (2, 5)


# --- cancel, pause, resume


async def test_jobs_are_cancelled_by_index(rig: Routes) -> None:
    batch_id = await rig.submit(4)
    grant = await rig.take()
    path = f"/api/v2/batches/{batch_id}/cancel/jobs?by=ada@lab"
    indices = {"indices": [grant.jobs[0].index, 3, 3, 9]}
    for _ in range(2):  # a repeated request gets the answers of the first
        answers = await rig.done("POST", path, indices, Idempotency_Key="k")
        assert answers == ["requested", "canceled", "over", "unknown"]
    (attempt,) = (await rig.done("GET", f"/api/v2/batches/{batch_id}"))["cancel_attempts"]
    identity = rig.keys["ours"].split("_")[1]
    assert (attempt["by"], attempt["jobs"]) == (f"ada@lab (key {identity})", "0,3")


@pytest.mark.parametrize("indices", [[], [-1], [100_000], ["a"], [1.5], None, 7])
async def test_indices_to_cancel_that_are_not_valid_are_refused(rig: Routes, indices: Any) -> None:
    batch_id = await rig.submit(1)
    answer = await rig.ask("POST", f"/api/v2/batches/{batch_id}/cancel/jobs", {"indices": indices})
    assert answer.status_code == 400
    assert answer.json()["data"]["field"].startswith("indices")


async def test_a_repeated_cancel_with_a_key_succeeds_after_the_end(rig: Routes) -> None:
    batch_id = await rig.submit(1)
    path = f"/api/v2/batches/{batch_id}/cancel"
    for _ in range(2):
        assert (await rig.done("PATCH", path, Idempotency_Key="k"))["status"] == "CANCELED"
    assert (await rig.ask("PATCH", path)).status_code == 409


async def test_a_pause_records_who_paused_the_batch_and_why(rig: Routes) -> None:
    path = f"/api/v2/batches/{await rig.submit(1)}"
    pause = (await rig.done("PATCH", f"{path}/pause?by=alice&reason=new%20lens"))["pause"]
    assert pause["by"].startswith("alice (key ")
    assert pause["reason"] == "new lens"
    assert (await rig.done("PATCH", f"{path}/pause"))["pause"] == pause
    assert (await rig.done("PATCH", f"{path}/pause?reason=dust"))["pause"]["reason"] == "dust"
    assert (await rig.ask("PATCH", f"{path}/pause?reason={'x' * 501}")).status_code == 422
    assert (await rig.done("PATCH", f"{path}/resume"))["pause"] is None


async def test_a_batch_is_paused_and_resumed(rig: Routes) -> None:
    batch_id = await rig.submit(1)
    path = f"/api/v2/batches/{batch_id}"
    for end, status in (("pause", "PAUSED"), ("pause", "PAUSED"), ("resume", "PENDING"), ("resume", "PENDING")):
        assert (await rig.done("PATCH", f"{path}/{end}"))["status"] == status
    for end in ("pause", "resume", "cancel/jobs"):
        method = "POST" if end == "cancel/jobs" else "PATCH"
        content = {"indices": [0]} if method == "POST" else None
        assert (await rig.ask(method, f"{path}/{end}", content, key="theirs")).status_code == 404
        assert (await rig.ask(method, f"{path}/{end}", content, key="reader")).status_code == 403
        await rig.done("PATCH", f"{path}/cancel", Idempotency_Key="k")
        answer = await rig.ask(method, f"{path}/{end}", content)
        if method == "POST":
            assert answer.json()["data"] == ["over"]
        else:
            assert answer.status_code == 409, end


@pytest.mark.parametrize("user", [None, "ada", "a" * 150])
@pytest.mark.parametrize("by", ["", "  ", "alice@lab", "x" * BY_LENGTH_MAX])
def test_the_key_is_recorded_beside_any_name(by: str, user: str | None) -> None:
    text = describe_caller(Principal("k3v9q2m7x4ab", Role.USER, user=user), by)
    assert check_by(text) == text
    assert "key k3v9q2m7x4ab)" in text or text == "key k3v9q2m7x4ab"
    assert not by.strip() or text.startswith(by[:10])


# --- devices and errors


async def test_only_operators_list_workers(rig: Routes) -> None:
    (worker,) = await rig.done("GET", "/api/v2/workers", key="operator")
    assert (worker["id"], worker["device"], worker["lanes"], worker["host"]) == ("w", DEVICE, 1, "here")
    assert (await rig.ask("GET", "/api/v2/workers")).status_code == 403


async def test_planning_the_same_maintenance_again_changes_nothing(rig: Routes) -> None:
    path = f"/api/v1/devices/{DEVICE}/maintenance"
    window = {
        "begins_at": "2999-01-01T00:00:00Z",
        "ends_at": "2999-01-02T00:00:00Z",
        "reason": "new lens",
        "id": "5f3a90c1",
    }
    for _ in range(2):
        assert (await rig.done("POST", path, window, key="operator", status=201))["id"] == "5f3a90c1"
    assert len(await rig.done("GET", path)) == 1
    answer = await rig.ask("POST", path, window | {"id": "not one"}, key="operator")
    assert (answer.status_code, answer.json()["data"]["field"]) == (400, "id")


async def test_an_exceeded_quota_has_its_numbers(rig: Routes) -> None:
    await rig.store.quotas.set_limits({"p": {"queued_jobs": 3}})
    body = {"sequence_builder": SEQUENCE, "device_type": DEVICE, "jobs": [{"runs": 1, "variables": {"omega": 1}}] * 5}
    answer = await rig.ask("POST", "/api/v1/batches", body)
    quota = {"project": "p", "name": "queued_jobs", "limit": 3, "used": 0, "asked": 5}
    assert answer.json()["data"]["quota"] == quota
    assert "quota" not in (await rig.ask("GET", f"/api/v2/batches/{UNKNOWN}")).json()["data"]


async def test_the_job_of_a_batch_shows_what_was_requested(rig: Routes) -> None:
    batch_id = await rig.submit([JobSpec(runs=None, runs_shown=40), JobSpec(runs=7)])
    shown = [await rig.done("GET", f"/api/v2/jobs/{job_id(batch_id, index)}") for index in range(2)]
    assert [(job["runs"], job["requested_runs"]) for job in shown] == [(40, None), (7, 7)]
