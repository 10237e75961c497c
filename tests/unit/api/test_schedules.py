"""The routes of schedules."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from tests.support.api_rig import DEVICE, PROJECT, SEQUENCE, ApiRig, bearer

from tweezer.ledger.access.credentials import Role
from tweezer.ledger.database import Database
from tweezer.settings import ApiSettings, Settings

PATH = "/api/v2/schedules"
TEMPLATE = {
    "sequence_builder": SEQUENCE,
    "device_type": DEVICE,
    "jobs": [{"runs": 10, "variables": {"omega": 4.0}, "seed": None, "sequence": None}],
    "tags": ["nightly"],
    "schedule_threshold_s": 600,
    "keep_s": 3600,
}
NIGHTLY = {"name": "nightly", "cron": "30 2 * * *", "time_zone": "Europe/Paris", "template": TEMPLATE}


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[ApiRig]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = ApiRig(Settings(api=ApiSettings(longpoll_s=0)), ledger)
    await rig.announce()
    yield rig
    await rig.close()


async def create(rig: ApiRig, key: str, **changes: Any) -> httpx.Response:
    return await rig.http.post(PATH, json=NIGHTLY | changes, headers=bearer(key))


async def created(rig: ApiRig, key: str, **changes: Any) -> Any:
    answer = await create(rig, key, **changes)
    assert answer.status_code == 201, answer.text
    return answer.json()["data"]


async def test_a_schedule_is_created_read_changed_and_deleted(rig: ApiRig) -> None:
    key = rig.key()
    made = await created(rig, key)
    assert (made["status"], made["project_id"], made["revision"]) == ("active", PROJECT, 1)
    assert made["created_by"].startswith("key ")
    assert {name: made["template"][name] for name in TEMPLATE} == TEMPLATE
    one = f"{PATH}/{made['id']}"
    assert await rig.data(one, key=key) == made
    (listed,) = (await rig.get(PATH, key=key)).json()["data"]
    assert listed == {name: value for name, value in made.items() if name not in ("template", "ticks")}
    changed = await rig.http.patch(one, json={"every_s": 3600, "revision": 1}, headers=bearer(key))
    assert changed.status_code == 200, changed.text
    data = changed.json()["data"]
    assert (data["cron"], data["every_s"], data["revision"]) == (None, 3600, 2)
    assert data["template"] == made["template"]
    paused = await rig.http.post(f"{one}/pause?by=alice&reason=new+lens", headers=bearer(key))
    data = paused.json()["data"]
    assert (data["status"], data["reason"], data["next_at"]) == ("paused", "new lens", None)
    assert data["changed_by"].startswith("alice (key ")
    resumed = (await rig.http.post(f"{one}/resume", headers=bearer(key))).json()["data"]
    assert (resumed["status"], resumed["reason"]) == ("active", None)
    assert resumed["next_at"] is not None
    assert (await rig.http.delete(one, headers=bearer(key))).status_code == 200
    assert (await rig.get(one, key=key)).status_code == 404


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": None}, "cron"),
        ({"every_s": 3600}, "every_s"),
        ({"cron": None, "every_s": 59}, "every_s"),
        ({"cron": None, "every_s": 90.5}, "every_s"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"overlap": "run"}, "overlap"),
        ({"missed": "all"}, "missed"),
        ({"grace_s": 1}, "grace_s"),
        ({"name": ""}, "name"),
        ({"name": str(uuid4())}, "name"),
        ({"template": TEMPLATE | {"jobs": [{"runs": 0}]}}, "template.jobs[0].runs"),
        ({"template": TEMPLATE | {"device_type": "GONE"}}, "template.device_type"),
        ({"template": TEMPLATE | {"start_at": "2030-01-01T00:00:00Z"}}, "template.start_at"),
        ({"template": TEMPLATE | {"not_before": "2030-01-01T00:00:00Z"}}, "template.start_at"),
        ({"template": TEMPLATE | {"project_id": "other"}}, "template.project_id"),
        ({"template": TEMPLATE | {"tags": [str(number) for number in range(49)]}}, "template.tags"),
        ({"template": TEMPLATE | {"runs": 5}}, "template.runs"),
        ({"template": TEMPLATE | {"jobs": 5}}, "template.jobs"),
        ({"crom": "* * * * *"}, "crom"),
    ],
)
async def test_an_error_names_the_field_and_nothing_is_created(
    rig: ApiRig, changes: dict[str, Any], field: str
) -> None:
    key = rig.key()
    answer = await create(rig, key, **changes)
    assert (answer.status_code, answer.json()["data"]["field"]) == (400, field)
    assert (await rig.get(PATH, key=key)).json()["data"] == []


async def test_a_repeated_call_with_the_same_id_creates_one_schedule(rig: ApiRig) -> None:
    key, identity = rig.key(), str(uuid4())
    first = await created(rig, key, id=identity)
    assert (await created(rig, key, id=identity))["id"] == first["id"] == identity
    other = await create(rig, key, id=identity, name="other")
    assert (other.status_code, other.json()["data"]["reason"]) == (409, "exists")


async def test_the_name_of_a_schedule_is_unique_in_its_project(rig: ApiRig) -> None:
    key = rig.key()
    await created(rig, key)
    again = await create(rig, key)
    assert (again.status_code, again.json()["data"]["reason"]) == (409, "exists")
    await created(rig, rig.key(project="other"))


async def test_a_change_of_an_older_revision_is_refused(rig: ApiRig) -> None:
    key = rig.key()
    one = f"{PATH}/{(await created(rig, key))['id']}"
    first, second = [
        await rig.http.patch(one, json={"revision": 1, "name": name}, headers=bearer(key)) for name in ("a", "b")
    ]
    assert (first.status_code, second.status_code) == (200, 409)
    assert second.json()["data"]["reason"] == "changed"
    assert (await rig.data(one, key=key))["name"] == "a"


async def test_other_projects_do_not_see_a_schedule(rig: ApiRig) -> None:
    identity = (await created(rig, rig.key()))["id"]
    foreign = bearer(rig.key(project="other"))
    assert (await rig.http.get(PATH, headers=foreign)).json()["data"] == []
    one = f"{PATH}/{identity}"
    answers = [
        await rig.http.get(one, headers=foreign),
        await rig.http.patch(one, json={"name": "x"}, headers=foreign),
        await rig.http.delete(one, headers=foreign),
        *[await rig.http.post(f"{one}/{verb}", headers=foreign) for verb in ("pause", "resume", "run")],
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert (await rig.data(one))["status"] == "active"
    reader = bearer(rig.key(Role.READ))
    assert (await rig.http.get(one, headers=reader)).status_code == 200
    assert (await rig.http.post(f"{one}/run", headers=reader)).status_code == 403


async def test_a_run_on_request_submits_one_batch_for_each_key(rig: ApiRig) -> None:
    key = rig.key()
    one = f"{PATH}/{(await created(rig, key))['id']}"
    runs = [await rig.http.post(f"{one}/run", headers=bearer(key) | {"Idempotency-Key": it}) for it in ("a", "a", "b")]
    assert [answer.status_code for answer in runs] == [200] * 3
    ids = [answer.json()["data"]["id"] for answer in runs]
    assert ids[0] == ids[1] != ids[2]
    found = await rig.data(one, key=key)
    assert [tick["batch_id"] for tick in found["ticks"]] == [ids[2], ids[0]]
    assert found["last"] == found["ticks"][0]
    assert found["last"]["manual"]


async def test_a_session_creates_schedules_of_its_user(rig: ApiRig) -> None:
    user = rig.add_user("alice", PROJECT)
    made = await created(rig, rig.add_session("alice"))
    assert made["user_id"] == user
    assert made["created_by"].startswith(user)
