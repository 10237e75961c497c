"""The routes that bypass FastAPI give the same responses as with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Match
from starlette.types import Scope
from tests.support.api_rig import SEQUENCE, ApiRig, bearer

from tweezer.api.batches.fast_path import FastRoute, fast_routes
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.database import Database
from tweezer.model.ids import job_id, new_batch_id
from tweezer.settings import ApiSettings, Settings

ROUTES = ["/api/v2/jobs/{}", "/api/v2/batches/{}"]
SUBMIT = "/api/v1/batches"


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[ApiRig]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = ApiRig(Settings(api=ApiSettings(longpoll_s=0)), ledger)
    await rig.announce()
    yield rig
    await rig.close()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which routes of the fast path an application takes that is created later."""
    found: list[str] = []
    handle = FastRoute.handle

    async def noting(self: FastRoute, *args: Any) -> None:
        found.append(self.path)
        await handle(self, *args)

    monkeypatch.setattr(FastRoute, "handle", noting)
    return found


@pytest.mark.parametrize("route", ROUTES)
async def test_the_fast_path_and_the_normal_one_return_the_same(taken: list[str], rig: ApiRig, route: str) -> None:
    identity = job_id(await rig.submit(1), 0) if "jobs" in route else await rig.submit(1)
    for key in (rig.key(), rig.key(Role.READ), rig.key(Role.METRICS, project=None), rig.key(project="other")):
        for name in (identity, new_batch_id()):
            quick = await rig.get(route.format(name), key=key)
            slow = await rig.get(route.format(f"%7B{name}%7D"), key=key)
            assert (quick.status_code, quick.content) == (slow.status_code, slow.content)
            assert quick.headers["content-type"] == slow.headers["content-type"]
    assert len(taken) == 8


def takes(method: str, path: str, *headers: bytes, kind: str = "http", query: bytes = b"") -> bool:
    sent = [(name, b"") for name in headers]
    scope: Scope = {"type": kind, "method": method, "path": path, "headers": sent, "query_string": query}
    return any(route.matches(scope)[0] is Match.FULL for route in fast_routes())


def test_only_a_get_of_an_id_takes_the_fast_path() -> None:
    identity = str(new_batch_id())
    for route in ROUTES:
        assert takes("GET", route.format(identity))
        assert takes("GET", route.format(identity.upper()))
        assert not takes("GET", route.format("counts"))
        assert not takes("GET", route.format(identity) + "/")
        assert not takes("GET", route.format(identity) + "/transitions")
        for method in ("HEAD", "POST", "PATCH", "DELETE", "OPTIONS"):
            assert not takes(method, route.format(identity))
        assert not takes("GET", route.format(identity), kind="websocket")
        assert not takes("GET", route.format(identity), query=b"a=1")


def test_only_a_submit_without_an_idempotency_key_takes_the_fast_path() -> None:
    assert takes("POST", SUBMIT, b"content-type")
    assert not takes("POST", SUBMIT, b"content-type", b"idempotency-key")
    assert not takes("POST", SUBMIT + "/")
    assert not takes("GET", SUBMIT)


async def test_a_submit_on_the_fast_path_returns_the_batch_as_it_can_be_read(taken: list[str], rig: ApiRig) -> None:
    key = rig.key()
    body = {
        "sequence_builder": SEQUENCE,
        "jobs": [{"runs": 5, "variables": {"omega": 3.5}, "seed": 7}, {"runs": 6, "variables": {"omega": [1]}}],
        "open": True,
        "tags": ["a", "b"],
        "queue_priority": "HIGH",
        "name": "n",
        "configuration": {"dt": 10.0},
    }
    for headers in ({}, {"Idempotency-Key": "k"}):
        answer = await rig.http.post(SUBMIT, json=body, headers=bearer(key) | headers)
        assert answer.status_code == 200, answer.text
        batch = answer.json()["data"]
        read = await rig.get(f"/api/v2/batches/{batch['id']}", key=key)
        assert (answer.content, answer.headers["content-type"]) == (read.content, read.headers["content-type"])
    assert taken.count(SUBMIT) == 1


@pytest.mark.parametrize(
    ("role", "body"), [(Role.READ, {}), (Role.USER, {}), (Role.USER, {"jobs": 7}), (Role.USER, {"device_type": "NO"})]
)
async def test_a_submit_is_refused_as_on_the_normal_path(rig: ApiRig, role: Role, body: dict[str, Any]) -> None:
    key = rig.key(role)
    quick = await rig.http.post(SUBMIT, json=body, headers=bearer(key))
    slow = await rig.http.post(SUBMIT, json=body, headers=bearer(key) | {"Idempotency-Key": "k"})
    assert quick.status_code in (400, 403)
    assert (quick.status_code, quick.content) == (slow.status_code, slow.content)


@pytest.mark.parametrize("route", ROUTES)
async def test_the_fast_path_requires_a_key(taken: list[str], rig: ApiRig, route: str) -> None:
    answer = await rig.stranger.get(route.format(new_batch_id()))
    assert answer.status_code == 401
    assert taken == []


@pytest.mark.parametrize("route", ROUTES)
async def test_other_methods_are_refused_as_on_the_normal_path(rig: ApiRig, route: str) -> None:
    answer = await rig.http.request("DELETE", route.format(new_batch_id()))
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"


async def test_responses_of_the_fast_path_are_timed_by_their_route(rig: ApiRig) -> None:
    await rig.get(f"/api/v2/jobs/{new_batch_id()}")
    await rig.get(f"/api/v2/batches/{new_batch_id()}")
    metrics = (await rig.get("/metrics")).text
    assert 'route="/api/v2/jobs/{job_id}"' in metrics
    assert 'route="/api/v2/batches/{batch_id}"' in metrics
