"""The table of all routes in docs/api.md, beside the routes themselves."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from tests.support.api_rig import ApiRig

from tweezer.ledger.credentials import Role
from tweezer.ledger.database import Database
from tweezer.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
SEEDS = {"001", "002", "client", "ours"}
ROLES = {"none", "any", "any, or a link", "user, operator", "operator, worker", "operator"}
_ROW = re.compile(r"\| (GET|POST|PUT|PATCH|DELETE) \| `(\S+)` \| ([^|]+) \| ([^|]+) \|")


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[ApiRig]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = ApiRig(Settings(requests_per_s=10_000, requests_burst=10_000, longpoll_s=0), ledger)
    yield rig
    await rig.close()


def rows() -> list[tuple[str, str, str, str]]:
    return [(method, path, seed, role) for method, path, seed, role in _ROW.findall(PAGE.read_text())]


async def test_the_page_has_every_route_once(rig: ApiRig) -> None:
    paths = (await rig.http.get("/openapi.json")).json()["paths"]
    routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    told = [(method, path) for method, path, _, _ in rows()]
    assert sorted(told) == sorted({*routes, ("GET", "/openapi.json")})
    assert {seed for _, _, seed, _ in rows()} <= SEEDS


async def test_the_page_has_the_role_of_every_route(rig: ApiRig) -> None:
    keys = {Role.OPERATOR: None, Role.USER: rig.key(), Role.WORKER: rig.key(Role.WORKER, project=None)}
    for method, path, _, told in rows():
        assert told in ROLES
        called = re.sub(r"{\w+}", lambda _: str(uuid4()), path)
        if path.endswith("/stream"):
            called += "?after=nowhere"  # or it would not end
        strangers = await rig.stranger.request(method, called)
        assert (strangers.status_code == 401) == (told != "none"), (method, path)
        for role, key in keys.items():
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            answer = await rig.http.request(method, called, headers=headers)
            may = told in {"none", "any", "any, or a link"} or role.value in told.split(", ")
            assert (answer.status_code != 403) == may, (method, path, role)
