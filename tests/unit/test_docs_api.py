"""The table of all routes in docs/reference/http-api/index.md, beside the routes themselves."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from starlette.routing import Route
from tests.support.api_rig import ApiRig, bearer

from tweezer.ledger.access.credentials import Role
from tweezer.ledger.database import Database
from tweezer.settings import ApiSettings, Settings

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "http-api" / "index.md"
SEEDS = {"001", "002", "client", "ours"}
ROLES = {
    "none",
    "user, read, operator",
    "user, read, operator, or a link",
    "user, operator",
    "metrics, operator",
    "operator",
    "session",
}
_ROW = re.compile(r"\| (GET|POST|PUT|PATCH|DELETE) \| `(\S+)` \| ([^|]+) \| ([^|]+) \|")


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[ApiRig]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = ApiRig(Settings(api=ApiSettings(requests_per_s=10_000, longpoll_s=0)), ledger)
    yield rig
    await rig.close()


def rows() -> list[tuple[str, str, str, str]]:
    return [(method, path, seed, role) for method, path, seed, role in _ROW.findall(PAGE.read_text())]


async def test_the_page_has_every_route_of_the_application_once(rig: ApiRig) -> None:
    routes = {
        (method, route.path)
        for route in rig.app.router.routes
        if isinstance(route, Route)
        for method in route.methods or {"GET"}
        if method != "HEAD"
    }
    assert all(isinstance(route, Route) for route in rig.app.router.routes)
    told = [(method, path) for method, path, _, _ in rows()]
    assert sorted(told) == sorted(routes)
    assert {seed for _, _, seed, _ in rows()} <= SEEDS


async def test_every_route_answers_each_role_as_documented(rig: ApiRig) -> None:
    keys = {role: rig.key(role) for role in Role}
    rig.add_user("ada")
    for method, path, _, told in rows():
        assert told in ROLES
        called = re.sub(r"{\w+}", lambda _: str(uuid4()), path)
        if path.endswith("/stream"):
            called += "?after=nowhere"  # otherwise the stream would not end
        strangers = await rig.stranger.request(method, called)
        assert (strangers.status_code == 401) == (told != "none"), (method, path)
        for role, key in keys.items():
            answer = await rig.stranger.request(method, called, headers=bearer(key))
            may = told == "none" or role.value in told.split(", ")
            assert (answer.status_code != 403) == may, (method, path, role)
            if not may:
                why = "needs a session, not a key" if told == "session" else f"role: {role} may not"
                assert why in answer.json()["data"]["description"], (method, path, role)
        answer = await rig.stranger.request(method, called, headers=bearer(rig.add_session("ada")))
        may = told in ("none", "session") or Role.USER in told.split(", ")
        assert (answer.status_code != 403) == may, (method, path)


def test_only_the_roles_user_and_operator_write() -> None:
    writing = {told for method, path, _, told in rows() if method != "GET" and path != "/oauth/token"}
    assert writing == {"user, operator", "operator", "session"}
