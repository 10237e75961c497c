"""Resources of another project are not found: every route, every method, with a foreign key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from tests.support.api_rig import bearer
from tests.support.furnished_api import OURS, FurnishedApi, furnished_api
from tests.support.processes import NULL
from tests.support.waiting import PATIENCE_S

from tweezer.model.ids import job_id, new_batch_id, short_id
from tweezer.store.keys import Key

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
BODIES: tuple[Any, ...] = (None, {}, [], [{"runs": 1}], {"status": "CANCELED"}, ["a"], {"progress": 50}, b"{")
BY_ID = {"batch_id", "job_id", "task_id", "webhook_id", "delivery_id"}


class Stranger:
    """A caller with the key of another project."""

    def __init__(self, api: FurnishedApi, http: httpx.AsyncClient) -> None:
        self.api = api
        self.ours = {"batch_id": api.ids["batch_id"][1], "job_id": api.ids["job_id"][2]}  # of the open batch
        unknown = new_batch_id()
        self.unknown = {"batch_id": str(unknown), "job_id": str(job_id(unknown, 0))}
        self.ours["task_id"], self.unknown["task_id"] = self.ours["batch_id"], str(unknown)
        for name in ("webhook_id", "delivery_id"):
            self.ours[name], self.unknown[name] = api.ids[name][0], str(uuid4())
        self._http = http

    def paths(self) -> list[str]:
        """Return the routes of the document with an id in their path."""
        paths = {str(operation.path) for operation in self.api.operations()}
        return sorted(path for path in paths if any(f"{{{name}}}" in path for name in BY_ID))

    async def ask(self, method: str, path: str, ids: dict[str, str], body: Any = None, **options: Any) -> Any:
        """Return the status and the body of the response, with names in place of ids."""
        for name, identity in ids.items():
            path = path.replace(f"{{{name}}}", identity)
        content = {"content": body} if isinstance(body, bytes) else {} if body is None else {"json": body}
        answer = await self._http.request(method, path, **content, **options)
        text = answer.text
        for name, identity in ids.items():
            text = text.replace(identity, f"<{name}>").replace(identity.split("-")[-1], f"<{name}>")
        return answer.status_code, text

    async def everything(self) -> list[Any]:
        """Return everything that Redis has of our project."""
        redis: Any = self.api.site.store.redis
        key, batch = self.api.site.store.keys, UUID(self.ours["batch_id"])
        return [await redis.hgetall(key(each, batch)) for each in (Key.BATCH, Key.SPEC, Key.STATE, Key.FAULT)]


@pytest.fixture
async def stranger(real_redis_url: str, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Stranger]:
    async with (
        furnished_api(real_redis_url, tmp_path, sqlite_template) as api,
        httpx.AsyncClient(base_url=api.url, headers=bearer(api.keys["theirs"]), timeout=PATIENCE_S) as http,
    ):
        yield Stranger(api, http)


async def test_a_foreign_short_id_has_the_same_response_as_an_unknown_one(stranger: Stranger) -> None:
    ours, unknown = short_id(UUID(stranger.ours["batch_id"])), short_id(new_batch_id())
    for path in (
        "/api/v2/batches/{batch_id}",
        "/api/v1/batches/{batch_id}/status",
        "/api/v2/batches/find?text={batch_id}",
    ):
        foreign = await stranger.ask("GET", path, {"batch_id": ours})
        assert foreign == await stranger.ask("GET", path, {"batch_id": unknown})
        assert foreign[0] == 404


@pytest.mark.slow
async def test_a_foreign_id_has_the_same_response_as_an_unknown_one(stranger: Stranger) -> None:
    paths, before = stranger.paths(), await stranger.everything()
    assert len(paths) > 10
    differing: dict[str, Any] = {}
    for path in paths:
        for method in METHODS:
            for body in BODIES if method not in ("GET", "HEAD") else (None,):
                foreign = await stranger.ask(method, path, stranger.ours, body)
                unknown = await stranger.ask(method, path, stranger.unknown, body)
                if foreign != unknown or foreign[0] not in (403, 404, 405):
                    differing[f"{method} {path} {body!r}"] = foreign
    assert not differing
    assert await stranger.everything() == before


async def test_lists_contain_nothing_of_other_projects(stranger: Stranger) -> None:
    asked = {"id": stranger.ours, "project_id": {"batch_id": OURS, "job_id": OURS}}
    for path in ("/api/v1/batches", "/api/v2/batches", "/api/v2/batches/counts", "/api/v2/batches/newest"):
        for name, ids in asked.items():
            foreign = await stranger.ask("GET", path, {}, params={name: ids["batch_id"]})
            unknown = {"id": stranger.unknown["batch_id"], "project_id": stranger.unknown["batch_id"]}[name]
            assert foreign == await stranger.ask("GET", path, {}, params={name: unknown})
            assert foreign[0] == 200
    for path in ("/api/v1/jobs", "/api/v2/jobs", "/api/v2/jobs/counts"):
        for name, identity, unknown in (
            ("id", stranger.ours["job_id"], stranger.unknown["job_id"]),
            ("batch_id", stranger.ours["batch_id"], stranger.unknown["batch_id"]),
            ("project_id", OURS, stranger.unknown["batch_id"]),
        ):
            foreign = await stranger.ask("GET", path, {}, params={name: identity})
            assert foreign == await stranger.ask("GET", path, {}, params={name: unknown})
            assert foreign[0] == 200


async def test_bulk_calls_do_not_affect_other_projects(stranger: Stranger) -> None:
    before = await stranger.everything()
    for path in ("/api/v1/batches/cancel", "/api/v2/batches/cancel"):
        foreign, unknown = [
            await stranger.ask("PATCH", path, ids, {"batch_ids": [ids["batch_id"]]})
            for ids in (stranger.ours, stranger.unknown)
        ]
        assert foreign == unknown
        assert "<batch_id>" in foreign[1]
    assert await stranger.everything() == before


async def test_tasks_of_other_projects_are_neither_listed_nor_changed(stranger: Stranger) -> None:
    before = await stranger.everything()
    for path in ("/api/tasks", "/api/tasks/summaries", "/api/tasks/counts", "/api/archive"):
        _, text = await stranger.ask("GET", path, stranger.ours)
        assert "<task_id>" not in text
    for path in ("/api/tasks/bulk-delete", "/api/tasks/bulk-archive", "/api/tasks/bulk-cancel"):
        foreign, unknown = [
            await stranger.ask("POST", path, ids, {"task_ids": [ids["task_id"]]})
            for ids in (stranger.ours, stranger.unknown)
        ]
        assert foreign == unknown
        assert '"missing":["<' in foreign[1]
    await stranger.ask("POST", "/api/tasks/archive-expired", {}, params={"hours": 0, "terminal_only": False})
    assert await stranger.everything() == before


async def test_nothing_is_submitted_to_a_foreign_project(stranger: Stranger) -> None:
    body = {"device_type": NULL, "jobs": [{"runs": 1}]}
    for path in ("/api/v1/batches", "/api/v1/third-party-access/ovh/batches"):
        foreign = await stranger.ask("POST", path, {}, {**body, "project_id": OURS})
        assert foreign == await stranger.ask("POST", path, {}, {**body, "project_id": "nobodys"})
        assert foreign[0] == 403
