"""The routes of devices: who may do what, what they list, and that specs which Pulser cannot read are refused."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.api_rig import DEVICE, ApiRig, bearer

from tweezer.adapters import specs
from tweezer.adapters.specs import make_virtual_specs
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.database import Database
from tweezer.model.ids import device_id
from tweezer.model.specs import read_specs
from tweezer.model.webhooks import format_time
from tweezer.settings import ApiSettings, Settings
from tweezer.store.keys import Key

DEVICES = "/api/v1/devices"
TWIN, NONE = "TWIN", "NONE"
_ask_pulser = functools.cache(specs._ask_pulser)
ABOUT = {"adapter": "qutip", "exclusive": 0, "checks_sequence": 1, "max_runs": 1000}


@pytest.fixture(autouse=True)
def _ask_pulser_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask Pulser once for each text: a process that imports it takes seconds."""
    monkeypatch.setattr(specs, "_ask_pulser", _ask_pulser)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[ApiRig]:
    """EMU_FREE has a worker; TWIN, with 25 atoms, was announced later and has none."""
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = ApiRig(Settings(api=ApiSettings(longpoll_s=0)), ledger)
    await rig.store.devices.announce(DEVICE, ABOUT, make_virtual_specs(DEVICE))
    await rig.announce()
    await rig.store.devices.announce(TWIN, ABOUT, read_specs(specs_text("FRESNEL", max_atom_num=25, max_runs=500)))
    redis: Any = rig.store.redis
    await redis.hset(rig.store.keys(Key.DEVICE, DEVICE), "created", 1_700_000_000_000)
    yield rig
    await rig.close()


def specs_text(name: str, **given: Any) -> str:
    return json.dumps({**json.loads(make_virtual_specs(name).text), **given})


async def listed(rig: ApiRig, path: str = DEVICES, **params: Any) -> list[str]:
    answer = await rig.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return [device["name"] for device in answer.json()["data"]]


async def refused(answer: httpx.Response, status: int, *, field: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    assert answer.json()["data"]["field"] == field
    return str(answer.json()["data"]["description"])


# --- reading


@pytest.mark.parametrize("path", [DEVICES, "/api/v2/devices"])
async def test_devices_are_listed_with_their_properties(rig: ApiRig, path: str) -> None:
    answer = await rig.get(path, key=rig.key())
    twin, emulator = answer.json()["data"]  # the newest first
    assert answer.headers["Content-Range"] == "0-1/2"
    assert answer.json()["pagination"] == {"total": 2, "start": 0, "end": 2}
    assert (emulator["id"], twin["id"]) == (str(device_id(DEVICE)), str(device_id(TWIN)))
    assert (emulator["status"], twin["status"]) == ("UP", "DOWN")
    assert (emulator["max_atom_num"], twin["max_atom_num"]) == (None, 25)
    assert (emulator["max_runs"], twin["max_runs"]) == (1000, 500)
    assert emulator["created_at"] == "2023-11-14T22:13:20Z"
    assert {twin["average_queue_time"], twin["paused_because"]} == {None}


async def test_the_list_is_ordered_and_paginated(rig: ApiRig) -> None:
    assert await listed(rig, order_by="name", order_by_direction="ASC") == [DEVICE, TWIN]
    assert await listed(rig, order_by="max_atom_num") == [
        TWIN,
        DEVICE,
    ]  # a device without one comes last in both directions
    assert await listed(rig, order_by="max_atom_num", order_by_direction="ASC") == [TWIN, DEVICE]
    assert await listed(rig, limit=1, offset=1) == [DEVICE]
    for params in ({"limit": 101}, {"order_by": "id"}, {"offset": -1}):
        assert (await rig.get(DEVICES, params=params)).status_code == 422


async def test_every_caller_can_read_specs(rig: ApiRig) -> None:
    expected = {name: (await rig.data(f"{DEVICES}/{name}/specs"))["specs"] for name in (DEVICE, TWIN)}
    assert await rig.data(f"{DEVICES}/specs", key=rig.key()) == expected
    assert json.loads(expected[TWIN])["name"] == "FRESNEL"
    answer = await rig.stranger.get(f"{DEVICES}/public-specs")
    assert answer.status_code == 200
    assert {each["device_type"]: each["specs"] for each in answer.json()["data"]} == expected
    assert (await rig.stranger.get(f"{DEVICES}/specs")).status_code == 401


async def test_a_device_without_specs_is_not_listed(rig: ApiRig) -> None:
    """Specs that a worker of an older version announced are left out: one bad text breaks every client."""
    redis: Any = rig.store.redis
    await redis.sadd(rig.store.keys(Key.DEVICES), "OLD")
    await redis.hset(rig.store.keys(Key.DEVICE, "OLD"), "adapter", "null")
    assert "OLD" in await listed(rig)
    assert "OLD" not in await rig.data(f"{DEVICES}/specs")
    assert (await rig.get(f"{DEVICES}/OLD/specs")).status_code == 404


@pytest.mark.parametrize("what", ["specs", "queue_size", "average_queue_time"])
async def test_a_device_is_found_by_name_and_by_id(rig: ApiRig, what: str) -> None:
    by_name = await rig.data(f"{DEVICES}/{TWIN}/{what}")
    assert await rig.data(f"{DEVICES}/{device_id(TWIN)}/{what}") == by_name
    assert await refused(await rig.get(f"{DEVICES}/{NONE}/{what}"), 404) == "there is no device NONE"


# --- what operators change


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_an_operator_takes_a_device_down_and_up(rig: ApiRig, method: str) -> None:
    for status, paused in (("DOWN", "set DOWN through the API"), ("UP", None)):
        answer = await rig.http.request(method, f"{DEVICES}/{device_id(DEVICE)}/status", json={"status": status})
        assert answer.status_code == 200, answer.text
        assert (answer.json()["data"]["status"], answer.json()["data"]["paused_because"]) == (status, paused)
        record = await rig.store.reader.device(DEVICE)
        assert record is not None
        assert record.paused == paused


async def test_several_devices_change_their_status_together_or_not_at_all(rig: ApiRig) -> None:
    wanted = {"device_type_names": [DEVICE, NONE], "status": "DOWN"}
    assert "NONE" in await refused(await rig.http.put(f"{DEVICES}/status", json=wanted), 404)
    assert [device["paused_because"] for device in (await rig.get(DEVICES)).json()["data"]] == [None, None]
    answer = await rig.http.put(f"{DEVICES}/status", json={"device_type_names": [DEVICE, TWIN], "status": "DOWN"})
    assert [device["status"] for device in answer.json()["data"]] == ["DOWN", "DOWN"]
    answer = await rig.http.put(f"{DEVICES}/status", json={"device_type_names": [DEVICE, TWIN], "status": "UP"})
    assert [device["status"] for device in answer.json()["data"]] == ["UP", "DOWN"]  # the other one has no worker


async def test_a_device_that_is_down_until_a_time_has_a_reason(rig: ApiRig) -> None:
    path, until = f"{DEVICES}/{DEVICE}/status", (datetime.now(UTC) + timedelta(hours=2)).replace(microsecond=0)
    answer = await rig.http.put(path, json={"status": "DOWN", "reason": "new lens", "until": until.isoformat()})
    found = answer.json()["data"]
    assert (found["status"], found["paused_because"]) == ("DOWN", "new lens")
    assert found["status_reason"] == f"paused until {format_time(until)}: new lens"
    assert datetime.fromisoformat(found["status_until"]) == until
    for given in ("2020-01-01T00:00:00Z", "2099-01-01T00:00:00"):  # in the past, and without a time zone
        await refused(await rig.http.put(path, json={"status": "DOWN", "until": given}), 400, field="until")
    found = (await rig.http.put(path, json={"status": "UP"})).json()["data"]
    assert (found["status"], found["status_reason"], found["status_until"]) == ("UP", None, None)


@pytest.mark.parametrize(
    ("lanes", "state", "status", "reason", "unknown"),
    [
        (1, "up", "UP", None, None),
        (1, "down", "DOWN", "down: no light", None),
        (1, "unknown", "UP", None, "no light"),
        (0, "up", "DOWN", "no worker", None),
    ],
)
async def test_a_device_that_is_down_or_unknown_has_a_reason(
    rig: ApiRig, lanes: int, state: str, status: str, reason: str | None, unknown: str | None
) -> None:
    await rig.announce(lanes)
    await rig.store.devices.set_condition(DEVICE, state, "no light")
    (found,) = [each for each in (await rig.get(DEVICES)).json()["data"] if each["name"] == DEVICE]
    assert (found["status"], found["status_reason"], found["status_unknown"]) == (status, reason, unknown)


async def test_maintenance_is_planned_listed_and_cancelled(rig: ApiRig) -> None:
    path, now = f"{DEVICES}/{device_id(DEVICE)}/maintenance", datetime.now(UTC)
    later = {"begins_at": format_time(now + timedelta(hours=2)), "ends_at": format_time(now + timedelta(hours=3))}
    soon = {"begins_at": format_time(now - timedelta(seconds=1)), "ends_at": format_time(now + timedelta(hours=1))}
    for body in (later, soon):
        answer = await rig.http.post(path, json={**body, "reason": "new lens"})
        assert answer.status_code == 201, answer.text
    listed = await rig.data(path, key=rig.key())
    assert [it["reason"] for it in listed] == ["new lens"] * 2
    ends = [datetime.fromisoformat(it["ends_at"]) for it in listed]
    assert (ends[0] - now).total_seconds() == pytest.approx(3600, abs=0.01)
    assert (ends[1] - now).total_seconds() == pytest.approx(10_800, abs=0.01)
    (found,) = [each for each in (await rig.get(DEVICES)).json()["data"] if each["name"] == DEVICE]
    assert (found["status"], found["maintenance"]) == ("DOWN", listed[0])
    assert found["status_reason"].startswith("maintenance until ")
    assert (await rig.http.delete(f"{path}/{listed[0]['id']}")).status_code == 200
    (found,) = [each for each in (await rig.get(DEVICES)).json()["data"] if each["name"] == DEVICE]
    assert (found["status"], found["maintenance"]) == ("UP", listed[1])
    await refused(await rig.http.delete(f"{path}/{listed[0]['id']}"), 404)


async def test_impossible_maintenance_and_callers_without_the_right_are_refused(rig: ApiRig) -> None:
    path, now = f"{DEVICES}/{DEVICE}/maintenance", datetime.now(UTC)
    begin, end = format_time(now + timedelta(hours=2)), format_time(now + timedelta(hours=3))
    body = {"begins_at": begin, "ends_at": end, "reason": "new lens"}
    user = {"Authorization": f"Bearer {rig.key()}"}
    assert (await rig.http.post(path, json=body, headers=user)).status_code == 403
    for wrong, field in (
        ({"ends_at": begin}, "ends_at"),
        ({"begins_at": "2099-01-01T00:00:00"}, "begins_at"),
        ({"reason": ""}, "reason"),
        ({"begins_at": "2020-01-01T00:00:00Z", "ends_at": "2020-01-02T00:00:00Z"}, "ends_at"),
    ):
        await refused(await rig.http.post(path, json=body | wrong), 400, field=field)
    assert (await rig.http.post(path, json=body)).status_code == 201
    assert "overlaps" in await refused(await rig.http.post(path, json=body), 409)
    await refused(await rig.http.post(f"{DEVICES}/{NONE}/maintenance", json=body), 404)


async def test_an_unknown_status_is_named(rig: ApiRig) -> None:
    answer = await rig.http.put(f"{DEVICES}/{DEVICE}/status", json={"status": "ON"})
    assert "ON" in await refused(answer, 400, field="status")


async def test_an_operator_replaces_the_specs_of_a_device_and_removes_them_again(rig: ApiRig) -> None:
    path, text = f"{DEVICES}/{TWIN}/specs", specs_text("FRESNEL", max_atom_num=7)
    answer = await rig.http.put(path, json={"specs": text})
    assert answer.json()["data"] == {"device_type": TWIN, "specs": text}
    assert (await rig.data(f"{DEVICES}/specs"))[TWIN] == text
    assert (await rig.http.delete(path)).status_code == 200
    assert "nothing to remove" in await refused(await rig.http.delete(path), 409)


@pytest.mark.parametrize(
    ("specs", "problem"),
    [
        ("{}", "specs: is not the abstract representation of a Pulser device"),
        (json.dumps({"name": "FRESNEL"}), "specs: Pulser cannot read these device specs: ValidationError"),
        (specs_text("FRESNEL", rydberg_level=1), "specs: Pulser cannot read these device specs"),
        (specs_text(DEVICE), "specs: the name 'EMU_FREE' is already used by the specs of device EMU_FREE"),
    ],
)
async def test_invalid_specs_are_refused(rig: ApiRig, specs: str, problem: str) -> None:
    before = await rig.data(f"{DEVICES}/specs")
    answer = await rig.http.put(f"{DEVICES}/{TWIN}/specs", json={"specs": specs})
    assert (await refused(answer, 400, field="specs")).startswith(problem)
    created = await rig.http.post(DEVICES, json={"device_type": "NEW", "status": "UP", "specs": specs})
    assert (await refused(created, 400, field="specs")).startswith(problem)
    assert await rig.data(f"{DEVICES}/specs") == before


async def test_a_created_device_waits_for_its_worker(rig: ApiRig) -> None:
    wanted = {
        "status": "UP",
        "device_type": "LATER",
        "specs": specs_text("LATER", max_atom_num=9),
        "is_emulator": False,
        "has_execution_logs": False,
        "allowed_result_types": ["counter"],
        "default_result_types": ["counter"],
    }
    answer = await rig.http.post(DEVICES, json=wanted)
    told = answer.json()["data"]
    assert (told["status"], told["paused_because"], told["max_atom_num"]) == ("DOWN", None, 9)
    record = await rig.store.reader.device("LATER")
    assert record is not None
    assert record.exclusive
    assert record.checks_sequence
    assert "already" in await refused(await rig.http.post(DEVICES, json=wanted), 409)
    answer = await rig.http.post(DEVICES, json={**wanted, "device_type": "A B"})
    await refused(answer, 400, field="device_type")


async def test_inactive_devices_are_listed_on_request(rig: ApiRig) -> None:
    wanted = {"device_type": "GONE", "status": "DOWN", "specs": specs_text("GONE"), "active": False}
    assert (await rig.http.post(DEVICES, json=wanted)).status_code == 200
    assert "GONE" not in await listed(rig)
    assert "GONE" in await listed(rig, include_legacy=True)
    assert "GONE" not in await rig.data(f"{DEVICES}/specs")


@pytest.mark.parametrize("role", [Role.USER, Role.READ, Role.METRICS])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", DEVICES),
        ("PUT", f"{DEVICES}/status"),
        ("PATCH", f"{DEVICES}/{DEVICE}/status"),
        ("PUT", f"{DEVICES}/{DEVICE}/specs"),
        ("DELETE", f"{DEVICES}/{DEVICE}/specs"),
    ],
)
async def test_only_operators_change_devices(rig: ApiRig, role: Role, method: str, path: str) -> None:
    key = rig.key(role)
    answer = await rig.http.request(method, path, headers=bearer(key))
    assert "use a key with the role operator" in await refused(answer, 403)
