"""The table of all routes in docs/reference/http-api/index.md, beside the routes themselves."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from starlette.routing import Route
from tests.support.api_rig import ApiRig, bearer
from tests.support.docs import documented_routes

from tweezer.api.pasqal import THIRD_PARTY
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.database import Database
from tweezer.settings import ApiSettings, Settings

ALSO_IN = {"", "Pasqal's API", "pasqal-cloud", "Pasqal's API, pasqal-cloud", "Tweezer's Python API"}
ROLES = {
    "none",
    "user, read, operator",
    "user, read, operator, or a link",
    "user, read, operator, or a ticket",
    "user, operator",
    "metrics, operator",
    "operator",
    "session",
}


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[ApiRig]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = ApiRig(Settings(api=ApiSettings(requests_per_s=10_000, longpoll_s=0)), ledger)
    yield rig
    await rig.close()


async def test_the_page_has_every_route_of_the_application_once(rig: ApiRig) -> None:
    routes = {
        (method, route.path)
        for route in rig.app.router.routes
        if isinstance(route, Route)
        for method in route.methods or {"GET"}
        if method != "HEAD"
    }
    assert all(isinstance(route, Route) for route in rig.app.router.routes)
    told = [(method, path) for method, path, _, _ in documented_routes()]
    assert sorted(told) == sorted(routes)


def test_the_routes_that_exist_only_for_pasqals_clients_are_marked() -> None:
    marks = {(method, path): also_in for method, path, _, also_in in documented_routes()}
    assert set(marks.values()) == ALSO_IN
    third_parties = {route: also_in for route, also_in in marks.items() if route[1].startswith(THIRD_PARTY)}
    assert set(third_parties.values()) == {"pasqal-cloud"}
    workloads = {also_in for (_, path), also_in in marks.items() if "/workloads" in path}
    assert workloads == {"Pasqal's API", "Pasqal's API, pasqal-cloud"}


async def test_every_route_answers_each_role_as_documented(rig: ApiRig) -> None:
    keys = {role: rig.key(role) for role in Role}
    rig.add_user("ada")
    for method, path, told, _ in documented_routes():
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
    others = ("/oauth/token", "/ticket")  # they change nothing in a project
    writing = {told for method, path, told, _ in documented_routes() if method != "GET" and not path.endswith(others)}
    assert writing == {"user, operator", "operator", "session"}
