"""The API over a store in memory and a ledger in a file, with shortcuts for the actions of producers and workers."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import fakeredis
import httpx
from fastapi import FastAPI
from tests.support.waiting import until

from tweezer.api.app import create_app
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import create_key, create_session
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.access.users import add_to_project, create_user, find_user
from tweezer.ledger.database import Database
from tweezer.model.errors import FaultKind
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import BatchDoc, Fault, JobSpec, Outcome, OutcomeKind, Provenance, Result
from tweezer.settings import SecretsSettings, Settings
from tweezer.store.connection import Store
from tweezer.store.workers import Grant, Settlement

DEVICE = "EMU_FREE"
PROJECT = "p"
LEASE_S = 15.0
SOON_S = 10.0  # the deadline for things that should happen at once
HOST = "http://127.0.0.1:8000"
SECRETS_KEY = base64.b64encode(bytes(32)).decode()

SEQUENCE = json.dumps(
    {
        "version": "1",
        "name": "pulser-exported",
        "register": [{"name": "q0", "x": 0.0, "y": 0.0}, {"name": "q1", "x": 8.0, "y": 0.0}],
        "channels": {"ising": "rydberg_global"},
        "variables": {"omega": {"type": "float", "value": [0.0]}},
        "operations": [{"op": "pulse", "amplitude": {"expression": "index", "lhs": {"variable": "omega"}, "rhs": 0}}],
        "measurement": None,
        "device": {"name": DEVICE},
    }
)

DONE = Outcome(
    OutcomeKind.DONE,
    result=Result(
        counter={"01": 10},
        serialised_results='{"a": 1}',
        provenance=Provenance(backend="null", seed=7),
    ),
    preparation_s=0.5,
    device_s=1.5,
)
FAILED = Outcome(OutcomeKind.ERROR, fault=Fault("user", "it broke", "variables.omega"), cause=FaultKind.USER)


class ApiRig:
    """An application and its client, which has an operator's key unless a request has another one."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.server = fakeredis.FakeServer()
        self._folder = tempfile.TemporaryDirectory()
        self.store = Store(fakeredis.FakeAsyncRedis(server=self.server), results_dir=Path(self._folder.name))
        self.database = database
        if not {"secrets", "data_dir"} & settings.model_fields_set:
            settings = settings.model_copy(update={"secrets": SecretsSettings(key=SECRETS_KEY)})
        self.app: FastAPI = create_app(settings, self.store, database)
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        operator = bearer(self.key(Role.OPERATOR, project=None))
        self.http = httpx.AsyncClient(transport=transport, base_url=HOST, headers=operator)
        self.stranger = httpx.AsyncClient(transport=transport, base_url=HOST)

    async def close(self) -> None:
        await self.http.aclose()
        await self.stranger.aclose()
        await self.store.close()
        self._folder.cleanup()

    def key(self, role: Role = Role.USER, *, project: str | None = PROJECT, **options: Any) -> str:
        """Make a key and return its text."""
        with self.database.write() as connection:
            if project is not None:
                project_no(connection, project)
            return create_key(connection, name="test", role=role, project_id=project, **options).text

    def add_user(self, name: str, *projects: str) -> str:
        """Make a user who belongs to these projects, and return its id."""
        with self.database.write() as connection:
            user = create_user(connection, name, "no hash")
            for project in projects:
                project_no(connection, project)
                add_to_project(connection, name, project)
        return user.id

    def add_session(self, name: str) -> str:
        """Make a session of the user and return its token."""
        with self.database.write() as connection:
            return create_session(connection, find_user(connection, name).id, session_s=1000).text

    async def get(self, path: str, *, key: str | None = None, **options: Any) -> httpx.Response:
        if key is not None:
            options["headers"] = {**options.get("headers", {}), **bearer(key)}
        return await self.http.get(path, **options)

    async def data(self, path: str, **options: Any) -> Any:
        """Return the data of a successful response."""
        response = await self.get(path, **options)
        assert response.status_code == 200, response.text
        body = response.json()
        assert {**body, "data": None} == {"status": "success", "message": "OK.", "code": "200", "data": None}
        return body["data"]

    async def announce(self, lanes: int = 1) -> None:
        await self.store.tickets.heartbeat(
            "w",
            DEVICE,
            ttl_s=60,
            about_device={"adapter": "null", "exclusive": 0, "max_runs": 1000},
            about_worker={"lanes": lanes, "started": 1, "host": "here", "version": "0", "record_version": 1},
        )

    async def submit(
        self, jobs: int | Sequence[JobSpec] = 1, *, doc: BatchDoc | None = None, project: str = PROJECT, **options: Any
    ) -> UUID:
        specs = [JobSpec(runs=10)] * jobs if isinstance(jobs, int) else jobs
        doc = doc or BatchDoc(device=DEVICE, sequence="{}")
        return await self.store.commands.submit(new_batch_id(), project, doc, specs, **options)

    async def take(self) -> Grant:
        (grant,) = (await self.store.tickets.take(DEVICE, ["lane:0"], lease_s=LEASE_S)).grants
        return grant

    async def run(self, *outcomes: Outcome) -> None:
        """Take the only ticket and settle its jobs, one after the other, with these outcomes."""
        grant = await self.take()
        jobs = grant.jobs
        for outcome in outcomes or (DONE,):
            settlements = [Settlement.of(jobs[0].index, outcome)]
            turn = await self.store.tickets.settle(
                grant.ticket, grant.token, settlements, want=1, used_s=0.1, lease_s=LEASE_S
            )
            jobs = turn.jobs

    def holding(self) -> int:
        return len(self.app.state.holds._held)

    async def held(self, path: str) -> asyncio.Task[httpx.Response]:
        """Send a request and return its task once the server holds it."""
        before = self.holding()
        task = asyncio.create_task(self.get(path))
        await until(lambda: self.holding() > before)
        return task


async def within(task: asyncio.Task[httpx.Response]) -> httpx.Response:
    """Return the response to a held request, which must arrive long before the hold would end."""
    return await asyncio.wait_for(task, SOON_S)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
