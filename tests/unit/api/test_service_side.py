"""The service's routes: reports of operators on batches and jobs, and what the lifecycle forbids."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.api_rig import DONE, FAILED, LEASE_S, ApiRig, bearer

from tweezer.ledger.access.credentials import Role
from tweezer.ledger.database import Database
from tweezer.model.ids import job_id, new_batch_id
from tweezer.settings import ApiSettings, Settings
from tweezer.store.workers import NextStep, Settlement

REASON = "the laser is out of lock"


class Service(ApiRig):
    """The rig with keys of each role."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings, database)
        self.keys = {role.value: self.key(role, project=None) for role in (Role.OPERATOR, Role.METRICS)}
        self.keys["user"] = self.key(project="p")

    async def ask(self, method: str, path: str, content: Any, *, key: str = "operator") -> Any:
        headers = {"Content-Type": "application/json"} | bearer(self.keys[key])
        return await self.http.request(method, path, content=json.dumps(content).encode(), headers=headers)

    async def set(self, path: str, status: str, *, method: str = "PATCH", **more: Any) -> Any:
        """Set the status; return the data, or the HTTP status and the reason of the refusal."""
        response = await self.ask(method, f"{path}/status", {"status": status, **more})
        data = response.json()["data"]
        return data if response.status_code == 200 else (response.status_code, data["reason"])


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[Service]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = Service(Settings(api=ApiSettings(requests_per_s=10_000)), ledger)
    await rig.announce()
    yield rig
    await rig.close()


async def test_a_batch_is_paused_and_resumed(rig: Service) -> None:
    path = f"/api/v1/batches/{await rig.submit(2)}"
    assert (await rig.set(path, "PAUSED"))["status"] == "PAUSED"
    assert (await rig.set(path, "PAUSED"))["status"] == "PAUSED"
    assert (await rig.set(path, "PENDING", method="PUT"))["status"] == "PENDING"
    await rig.take()
    await rig.set(path, "PAUSED")
    assert (await rig.set(path, "RUNNING"))["status"] == "RUNNING"


async def test_a_batch_is_cancelled_closed_timed_out_or_ended_in_error(rig: Service) -> None:
    path = f"/api/v1/batches/{await rig.submit(1)}"
    assert (await rig.set(path, "CANCELED"))["status"] == "CANCELED"
    path = f"/api/v1/batches/{await rig.submit(1, open=True)}"
    assert (await rig.set(path, "DONE"))["open"] is False
    path = f"/api/v1/batches/{await rig.submit(0, open=True)}"
    assert (await rig.set(path, "TIMED_OUT"))["status"] == "TIMED_OUT"
    path = f"/api/v1/batches/{await rig.submit(2, open=True)}"
    told = await rig.set(path, "ERROR", reason=REASON, device_id="x", end_datetime="2026-01-01T00:00:00Z")
    assert (told["status"], told["errors"]) == ("ERROR", [REASON])
    assert [job["errors"] for job in told["jobs"]] == [[REASON]] * 2


async def test_a_report_on_a_batch_that_the_lifecycle_forbids_is_a_conflict(rig: Service) -> None:
    pending = f"/api/v1/batches/{await rig.submit(1)}"
    for status in ("RUNNING", "DONE", "TIMED_OUT"):
        assert await rig.set(pending, status) == (409, "conflict")
    running = f"/api/v1/batches/{await rig.submit(1, open=True)}"
    for _ in range(2):
        await rig.run(DONE)
    assert await rig.set(running, "PENDING") == (409, "conflict")
    for status in ("PENDING", "RUNNING", "PAUSED", "ERROR", "CANCELED", "TIMED_OUT"):
        assert await rig.set(pending, status) == (409, "terminal")
    assert (await rig.set(pending, "DONE"))["status"] == "DONE"


async def test_a_running_job_is_taken_from_its_holder(rig: Service) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    told = await rig.set(f"/api/v1/jobs/{job_id(batch_id, 0)}", "ERROR", errors=[REASON, "second"])
    assert (told["status"], told["errors"]) == ("ERROR", [f"{REASON}\nsecond"])
    turn = await rig.store.tickets.settle(
        grant.ticket, grant.token, [Settlement.of(0, DONE)], want=1, used_s=0.1, lease_s=LEASE_S
    )
    assert turn.next is NextStep.STALE
    await rig.run(DONE)
    assert (await rig.data(f"/api/v2/batches/{batch_id}"))["jobs_count_per_status"]["DONE"] == 1


async def test_the_progress_of_a_running_job_is_set_in_steps(rig: Service) -> None:
    batch_id = await rig.submit(2)
    await rig.take()
    path = f"/api/v1/jobs/{job_id(batch_id, 0)}"
    steps = {"done": 2, "total": 5, "message": "trajectory 3 of 5"}
    told = (await rig.ask("PATCH", path, {"status": "RUNNING", "steps": steps})).json()["data"]
    assert (told["progress"], told["steps"]) == (40, steps)
    told = (await rig.ask("PATCH", path, {"progress": 50, "steps": {"message": "still warm"}})).json()["data"]
    assert (told["progress"], told["steps"]) == (50, steps | {"message": "still warm"})
    pending = f"/api/v1/jobs/{job_id(batch_id, 1)}"
    assert (await rig.ask("PATCH", pending, {"steps": steps})).status_code == 409


@pytest.mark.parametrize(
    ("steps", "field"),
    [
        ({"done": 6, "total": 5}, "steps.done"),
        ({"done": 1}, "steps.total"),
        ({"total": 5}, "steps.done"),
        ({"done": -1, "total": 5}, "steps.done"),
        ({"done": 0, "total": 0}, "steps.total"),
        ({"done": 1, "total": 10**15}, "steps.total"),
        ({"done": 0.5, "total": 5}, "steps.done"),
        ({"message": "x" * 201}, "steps.message"),
        ({"message": "\x1b[2J"}, "steps.message"),
        ({"message": "two\nlines"}, "steps.message"),
        ({"message": ""}, "steps.message"),
    ],
)
async def test_steps_that_cannot_be_are_rejected_by_field(rig: Service, steps: dict[str, Any], field: str) -> None:
    batch_id = await rig.submit(1)
    await rig.take()
    path = f"/api/v1/jobs/{job_id(batch_id, 0)}"
    answer = await rig.ask("PATCH", path, {"steps": steps})
    assert answer.status_code == 400
    assert field in answer.text
    assert (await rig.data(f"/api/v2/jobs/{job_id(batch_id, 0)}"))["steps"] is None


async def test_a_report_makes_a_job_wait_again_or_end_or_sets_its_progress(rig: Service) -> None:
    batch_id = await rig.submit(2)
    await rig.take()
    first, second = (f"/api/v1/jobs/{job_id(batch_id, index)}" for index in range(2))
    told = (await rig.ask("PATCH", first, {"status": "RUNNING", "progress": 40})).json()["data"]
    assert (told["status"], told["progress"]) == ("RUNNING", 40)
    assert (await rig.ask("PATCH", first, {"progress": 60})).json()["data"]["progress"] == 60
    assert (await rig.set(first, "PENDING", method="PUT"))["status"] == "PENDING"
    assert (await rig.set(second, "CANCELED"))["status"] == "CANCELED"
    told = await rig.set(first, "ERROR")
    assert told["errors"] == ["an operator ended the job without giving a reason"]


async def test_errors_are_posted_to_a_live_job_and_stay_with_it(rig: Service) -> None:
    path = f"/api/v1/jobs/{job_id(await rig.submit(1), 0)}"
    told = await rig.ask("POST", f"{path}/errors", {"errors": [REASON]})
    assert (told.status_code, told.json()["data"]["errors"]) == (200, [REASON])
    assert (await rig.set(path, "ERROR"))["errors"] == [REASON]
    told = await rig.ask("POST", f"{path}/errors", {"errors": [REASON]})
    assert (told.status_code, told.json()["data"]["reason"]) == (409, "terminal")


async def test_a_report_on_a_job_that_the_lifecycle_forbids_is_a_conflict(rig: Service) -> None:
    batch_id = await rig.submit(4)
    await rig.run(DONE, FAILED)
    done, failed, running, pending = (f"/api/v1/jobs/{job_id(batch_id, index)}" for index in range(4))
    for path, status in ((done, "ERROR"), (failed, "DONE"), (done, "PENDING")):
        assert await rig.set(path, status) == (409, "terminal")
    assert (await rig.set(done, "DONE"))["status"] == "DONE"
    for path, status in ((pending, "RUNNING"), (pending, "DONE"), (running, "DONE")):
        assert await rig.set(path, status) == (409, "conflict")
    assert (await rig.ask("PATCH", pending, {"progress": 1})).status_code == 409


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PATCH", "/api/v1/batches/{batch}/status"),
        ("PUT", "/api/v1/batches/{batch}/status"),
        ("PATCH", "/api/v1/jobs/{job}/status"),
        ("PUT", "/api/v1/jobs/{job}/status"),
        ("PATCH", "/api/v1/jobs/{job}"),
        ("POST", "/api/v1/jobs/{job}/errors"),
    ],
)
async def test_reports_need_an_operator_and_errors_name_the_field(rig: Service, method: str, path: str) -> None:
    batch_id, unknown = await rig.submit(1), new_batch_id()
    here = path.format(batch=batch_id, job=job_id(batch_id, 0))
    refused = await rig.ask(method, here, {"status": "CANCELED", "errors": [REASON]}, key="user")
    assert (refused.status_code, refused.json()["data"]["reason"]) == (403, "forbidden")
    nowhere = path.format(batch=unknown, job=job_id(unknown, 0))
    assert (await rig.ask(method, nowhere, "junk")).status_code == 404
    wrongs: list[Any] = [{"status": "LOST", "errors": 1}, {"status": 1, "errors": []}, [], "junk"]
    for wrong in wrongs:
        response = await rig.ask(method, here, wrong)
        assert (response.status_code, response.json()["data"]["reason"]) == (400, "invalid")
    assert (await rig.ask(method, here, {"status": "CANCELED", "errors": [REASON]}, key="operator")).status_code == 200
