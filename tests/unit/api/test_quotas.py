"""Quotas and limits over HTTP, on the whole application: the status, the text, and whose use counts together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.api_rig import DEVICE, SOON_S, ApiRig, bearer
from tests.support.waiting import until

from tweezer.api.http import longpoll
from tweezer.ledger.access.keys import create_session
from tweezer.ledger.access.projects import create_project
from tweezer.ledger.access.users import create_user
from tweezer.ledger.database import Database
from tweezer.settings import ApiSettings, Settings
from tweezer.store.scripts import StoreConfig


@pytest.fixture
async def rig(ledger: Database, tmp_path: Path) -> AsyncIterator[ApiRig]:
    rig = ApiRig(Settings(data_dir=tmp_path, api=ApiSettings(longpoll_s=0)), ledger)
    await rig.announce()
    yield rig
    await rig.close()


async def submit(rig: ApiRig, key: str, jobs: int, **parts: Any) -> Any:
    body = {"device_type": DEVICE, "jobs": [{"runs": 1}] * jobs, **parts}
    return await rig.http.post("/api/v1/batches", json=body, headers=bearer(key))


def keys_of(rig: ApiRig, *projects: str) -> list[str]:
    with rig.database.write() as connection:
        for project in dict.fromkeys(projects):
            create_project(connection, project, project)
    return [rig.key(project=project) for project in projects]


async def test_a_project_at_its_quota_gets_429_and_others_continue(rig: ApiRig) -> None:
    first, second, other = keys_of(rig, "lab", "lab", "other")
    await rig.store.tickets.publish_settings(StoreConfig(queued_jobs=3))
    assert (await submit(rig, first, 2)).status_code == 200
    refusal = await submit(rig, second, 2)
    assert refusal.status_code == 429
    assert refusal.headers["Retry-After"]
    told = refusal.json()["data"]
    assert (told["reason"], told["field"]) == ("quota", "queued_jobs")
    assert "project lab may have 3 queued jobs; 2 are in use and this call adds 2" in told["description"]
    assert (await submit(rig, other, 3)).status_code == 200


async def test_a_call_that_alone_exceeds_the_quota_gets_413(rig: ApiRig) -> None:
    (key,) = keys_of(rig, "lab")
    await rig.store.tickets.publish_settings(StoreConfig(queued_jobs=3))
    refusal = await submit(rig, key, 4)
    assert (refusal.status_code, refusal.json()["data"]["field"]) == (413, "queued_jobs")


async def test_jobs_beyond_the_quota_are_not_added(rig: ApiRig) -> None:
    (key,) = keys_of(rig, "lab")
    await rig.store.tickets.publish_settings(StoreConfig(queued_jobs=3))
    batch = (await submit(rig, key, 2, open=True)).json()["data"]["id"]
    path = f"/api/v1/batches/{batch}/jobs"
    assert (await rig.http.post(path, json=[{"runs": 1}] * 2, headers=bearer(key))).status_code == 429
    assert (await rig.http.post(path, json=[{"runs": 1}], headers=bearer(key))).status_code == 200


async def test_a_limit_of_the_project_overrides_the_default(rig: ApiRig) -> None:
    (key,) = keys_of(rig, "lab")
    await rig.store.tickets.publish_settings(StoreConfig(queued_jobs=3))
    await rig.store.quotas.set_limits({"lab": {"queued_jobs": 10}})
    assert (await submit(rig, key, 8)).status_code == 200


async def test_all_log_ins_of_a_user_share_one_rate(
    ledger: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tweezer.api.app.BURST_S", 3000)
    rig = ApiRig(Settings(data_dir=tmp_path, api=ApiSettings(requests_per_s=0.001)), ledger)
    with ledger.write() as connection:
        users = [create_user(connection, name, None).id for name in ("ada", "bob")]
        sessions = [create_session(connection, users[0], session_s=60).text for _ in range(4)]
        other = create_session(connection, users[1], session_s=60).text
    statuses = [(await rig.get("/api/v1/batches", key=key)).status_code for key in sessions]
    assert statuses == [200, 200, 200, 429]
    assert (await rig.get("/api/v1/batches", key=other)).status_code == 200
    await rig.close()


async def test_all_keys_of_a_project_share_one_rate(ledger: Database, tmp_path: Path) -> None:
    rig = ApiRig(Settings(data_dir=tmp_path, api=ApiSettings(requests_per_s=0.001)), ledger)
    first, second, other = keys_of(rig, "lab", "lab", "other")
    statuses = [(await rig.get("/api/v1/batches", key=key)).status_code for key in (first, second, other)]
    assert statuses == [200, 429, 200]
    await rig.close()


async def test_requests_beyond_the_limit_of_held_ones_are_answered_at_once(
    rig: ApiRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longpoll, "HOLDS_MAX", 1)
    first, second = keys_of(rig, "lab", "lab")
    batch = (await submit(rig, first, 1)).json()["data"]["id"]
    path = f"/api/v1/batches/{batch}/status"
    holding = asyncio.create_task(rig.get(f"{path}?wait_s=20", key=first))
    await until(lambda: not rig.app.state.holds.may_hold("project lab"))
    for waiting in (path, "/api/v2/events?after=now"):
        wait = "&wait_s=20" if "?" in waiting else "?wait_s=20"
        async with asyncio.timeout(SOON_S):
            assert (await rig.get(f"{waiting}{wait}", key=second)).status_code == 200
    assert not holding.done()
    rig.app.state.holds.end()
    assert (await holding).status_code == 200
