"""The routes that bypass FastAPI give the same responses as with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Match
from starlette.types import Scope
from tests.support.api_rig import ApiRig

from tweezer.api.batches.reads import FastRoute, fast_routes
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.database import Database
from tweezer.model.ids import job_id, new_batch_id
from tweezer.settings import ApiSettings, Settings

ROUTES = ["/api/v2/jobs/{}", "/api/v2/batches/{}"]


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
    answer = FastRoute._answer

    async def noting(self: FastRoute, request: Any) -> Any:
        found.append(self.path)
        return await answer(self, request)

    monkeypatch.setattr(FastRoute, "_answer", noting)
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


def test_only_a_get_of_an_id_takes_the_fast_path() -> None:
    def takes(method: str, path: str, kind: str = "http") -> bool:
        scope: Scope = {"type": kind, "method": method, "path": path, "headers": []}
        return any(route.matches(scope)[0] is Match.FULL for route in fast_routes())

    identity = str(new_batch_id())
    for route in ROUTES:
        assert takes("GET", route.format(identity))
        assert takes("GET", route.format(identity.upper()))
        assert not takes("GET", route.format("counts"))
        assert not takes("GET", route.format(identity) + "/")
        assert not takes("GET", route.format(identity) + "/transitions")
        for method in ("HEAD", "POST", "PATCH", "DELETE", "OPTIONS"):
            assert not takes(method, route.format(identity))
        assert not takes("GET", route.format(identity), "websocket")


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
