"""An API process with batches of two projects, and keys of both and of an operator."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from tests.support.api_rig import bearer
from tests.support.processes import NULL, Site
from tests.support.waiting import PATIENCE_S

from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import create_key
from tweezer.ledger.access.projects import create_project
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.recorder.recorder import Recorder

OURS, THEIRS = "6f1c2b3a-0d4e-4f5a-8b6c-7d8e9f0a1b2c", "8b3e4d5c-2f6a-4b7c-8d8e-9f0a1b2c3d4e"


class FurnishedApi:
    """The URL and the keys of the API. ``ids`` has values for each parameter of a path, first those of project OURS."""

    def __init__(self, site: Site, url: str, keys: dict[str, str], ids: dict[str, list[str]]) -> None:
        self.site = site
        self.url = url
        self.keys = keys
        self.ids = ids
        self.schema = schemathesis.openapi.from_url(f"{url}/openapi.json")

    def operations(self) -> Iterator[APIOperation[Any, Any, Any, Any]]:
        for found in self.schema.get_all_operations():
            assert isinstance(found, Ok)
            yield found.ok()


@asynccontextmanager
async def furnished_api(
    redis_url: str, folder: Path, ledger_template: Path, **settings: object
) -> AsyncIterator[FurnishedApi]:
    """Run the API, with a worker of the null device, until the block ends."""
    database_url = f"sqlite:///{shutil.copy(ledger_template, folder / 'ledger.db')}"
    database = Database.open(OpenDatabase(url=database_url))
    with database.write() as connection:
        for project in (OURS, THEIRS):
            create_project(connection, "One of two", project)
        keys = {
            "ours": create_key(connection, name="ours", project_id=OURS).text,
            "theirs": create_key(connection, name="theirs", project_id=THEIRS).text,
            "operator": create_key(connection, name="operator", role=Role.OPERATOR).text,
        }
    rates = {"api_requests_per_s": 10_000, "api_longpoll_s": 0}
    async with Site(redis_url, folder, database_url=database_url, data_dir=folder, **rates) as site:
        await site.workers(1)
        _, url = await site.api(**settings)
        batches, webhooks, pings, schedules = [], [], [], []
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
            for key, more in itertools.product(("ours", "theirs"), (False, True)):
                body = {"device_type": NULL, "jobs": [{"runs": 1}] * 2, "open": more}
                answer = await http.post("/api/v1/batches", json=body, headers=bearer(keys[key]))
                batches.append(answer.json()["data"])
            for key in ("ours", "theirs"):
                body = {"url": "https://hooks.example.org/"}
                answer = await http.post("/api/v2/webhooks", json=body, headers=bearer(keys[key]))
                webhooks.append(answer.json()["data"]["webhook"]["id"])
                answer = await http.post(f"/api/v2/webhooks/{webhooks[-1]}/ping", headers=bearer(keys[key]))
                pings.append(answer.json()["data"]["id"])
                template = {"device_type": NULL, "jobs": [{"runs": 1}]}
                body = {"name": "hourly", "every_s": 3600, "template": template}
                answer = await http.post("/api/v2/schedules", json=body, headers=bearer(keys[key]))
                schedules.append(answer.json()["data"]["id"])
        recorder = Recorder(site.store, database, namespace="tweezer")
        await recorder.resume()
        await recorder.catch_up()
        database.close()
        ids = {
            "batch_id": [batch["id"] for batch in batches],
            "job_id": [job["id"] for batch in batches for job in batch["jobs"]],
            "task_id": [batch["id"] for batch in batches],
            "device": [NULL],
            "workload_id": [batches[0]["id"]],
            "webhook_id": webhooks,
            "window": ["5f3a90c1"],  # no window has this id
            "delivery_id": pings,
            "schedule_id": schedules,
            "session_id": ["current"],
        }
        yield FurnishedApi(site, url, keys, ids)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
            assert (await http.get("/ready")).status_code == 200  # it survived every request
