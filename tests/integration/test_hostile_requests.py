"""Every HTTP route with wrong values for each parameter and field: the response names it, and nothing changes.

Routes and parameters come from the OpenAPI document, so that new ones are tested without being listed here.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode
from uuid import uuid4

import httpx
import pytest
import sqlalchemy
from tests.support.api_rig import HOST, PROJECT, ApiRig, bearer
from tests.support.effort import FULL
from tests.support.hostile_values import LARGE, NUMBERS, TEXTS, TYPES, json_with
from tests.support.waiting import PATIENCE_S

from tweezer.ledger.access.keys import create_session
from tweezer.ledger.access.users import create_user
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.model.ids import job_id
from tweezer.model.messages import BatchDoc, JobSpec
from tweezer.settings import ApiSettings, Settings

LATER, LATEST = "2030-11-01T09:00:00Z", "2030-11-01T19:00:00Z"
VALUES = {**TEXTS, **NUMBERS, **TYPES, **LARGE}
LONG = 2000  # a description with more characters is too long to read
NEVER_ACCEPTED = ("NUL", "ESC", "half a surrogate pair")
FORM = "application/x-www-form-urlencoded"
NOT_SERVED = "/workloads"  # answers 501

QUERIES = {"scope": "MONTH", "project_id": PROJECT, "text": "@last", "all": "true"}
"""Parameters that an operator's request needs."""

NOT_SHOWN = {"jobs[0].sequence", "[0].sequence", "ed25519", "all"}
"""Fields that no response contains."""

LINK_ERRORS = {("signature", "link_expired"), ("expires", "not_found"), ("issued", "not_found")}
"""Parameters of signed links, and the reason in the error: a wrong signature makes the whole link invalid, and
without one the other parameters are not read."""

NAMED_INSTEAD = {
    "device_type": "sequence_builder",  # without a device, the sequence's device is used
    "is_emulator": "specs",  # these specs are invalid, because reading valid ones takes seconds
    "active": "specs",
    "jobs": "project_id",
}
"""Fields whose value is accepted, and the other field, which the error names instead."""


class Place(NamedTuple):
    """The place of a value in a request. ``name`` is the name of the field in errors."""

    kind: str
    name: str
    path: tuple[str | int, ...] = ()
    described: str = ""


class Operation(NamedTuple):
    method: str
    path: str
    described: dict[str, Any]

    @property
    def is_stream(self) -> bool:
        return self.path.endswith("/stream")

    @property
    def content_type(self) -> str:
        return next(iter(self.described.get("requestBody", {}).get("content", {})), "")


class Rig(ApiRig):
    """A rig with a batch, a device and a webhook for use in requests."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings, database)
        self.document = self.app.openapi()
        with database.write() as connection:
            user = create_user(connection, "grace", None).id
            self.session = bearer(create_session(connection, user, session_s=600).text)
        self.ids: dict[str, str] = {}
        self.devices = 0
        self.seen: set[tuple[str, str]] = set()

    async def furnish(self) -> None:
        """Make a new batch, device and webhook."""
        await self.store.redis.flushdb()
        self.devices += 1
        device = f"NULL{self.devices}"
        await self.store.tickets.heartbeat(
            "w",
            device,
            ttl_s=600,
            about_device={"adapter": "null", "exclusive": 0, "max_runs": 1000, "checks_sequence": 0},
            about_worker={"lanes": 1, "started": 1, "host": "here", "version": "0", "record_version": 1},
        )
        batch_id = await self.submit([JobSpec(runs=1)], doc=BatchDoc(device=device, sequence="{}"), open=True)
        if self.ids:
            await self.http.delete(f"/api/v2/webhooks/{self.ids['webhook_id']}")  # a project has 20 at most
            await self.http.delete(f"/api/v2/schedules/{self.ids['schedule_id']}")
        answer = await self.http.post("/api/v2/webhooks", json={"url": "https://a.example.org/", "project_id": PROJECT})
        template = {"jobs": [{"runs": 1}], "device_type": device, "sequence_builder": "{}"}
        schedule = {"name": "hourly", "every_s": 3600, "project_id": PROJECT, "template": template}
        made = await self.http.post("/api/v2/schedules", json=schedule)
        self.ids = {
            "batch_id": str(batch_id),
            "job_id": str(job_id(batch_id, 0)),
            "task_id": str(batch_id),
            "device": device,
            "window": "5f3a90c1",
            "workload_id": str(batch_id),
            "webhook_id": answer.json()["data"]["webhook"]["id"],
            "delivery_id": str(uuid4()),
            "schedule_id": made.json()["data"]["id"],
        }

    def body(self, schema: str) -> Any:
        """Return a valid body."""
        jobs = [{"runs": 1, "variables": {"a": 1.0}}]
        template = {
            "jobs": jobs,
            "device_type": self.ids["device"],
            "sequence_builder": "{}",
            "depends_on": [{"batch": self.ids["batch_id"]}],
        }
        bodies: dict[str, Any] = {
            "BatchBody": {
                "jobs": jobs,
                "device_type": self.ids["device"],
                "project_id": PROJECT,
                "sequence_builder": "{}",
                "configuration": {"dt": 1},
                "depends_on": [{"batch": self.ids["batch_id"]}],
                "retries": {"total": 3},
                "limits": {},
            },
            "PriorityBody": {"queue_priority": "LOW"},
            "NewSchedule": {
                "name": f"a {uuid4()}",
                "cron": "30 2 * * *",
                "project_id": PROJECT,
                "template": template,
            },
            "ScheduleChangeBody": {"name": f"b {uuid4()}", "template": template},
            "JobBody": jobs,
            "IndicesBody": {"indices": [0]},
            "": ["a"],  # tags
            "BatchesBody": {"batch_ids": [str(uuid4())]},
            "TaskIdsBody": {"task_ids": [str(uuid4())]},
            "BatchStatusBody": {"status": "ERROR"},
            "JobStatusBody": {"errors": ["it broke"]},
            "JobErrorsBody": {"errors": ["it broke"]},
            "NewDevice": {"device_type": "NEW", "specs": "{}"},
            "StatusBody": {"status": "DOWN"},
            "StatusesBody": {"device_type_names": [self.ids["device"]], "status": "DOWN"},
            "MaintenanceBody": {"begins_at": LATER, "ends_at": LATEST, "reason": "new lens"},
            "SpecsBody": {"specs": "{}"},
            "NewWebhook": {"url": "https://hooks.example.org/", "project_id": PROJECT},
            "WebhookChange": {},
            "ResendBody": {"since": LATER},
        }
        return bodies[schema]

    def operations(self) -> Iterator[Operation]:
        for path, methods in self.document["paths"].items():
            for method, described in methods.items():
                yield Operation(method.upper(), path, described)

    def places(self, operation: Operation) -> Iterator[Place]:
        for parameter in operation.described.get("parameters", ()):
            yield Place(parameter["in"], parameter["name"], (), json.dumps(parameter))
        for content in operation.described.get("requestBody", {}).get("content", {}).values():
            yield from self._fields(content["schema"], "", ())

    def _fields(self, described: dict[str, Any], name: str, path: tuple[str | int, ...]) -> Iterator[Place]:
        yield Place("body", name or "body", path, json.dumps(described))
        for choice in described.get("anyOf", (described,)):
            schema = choice
            if "$ref" in choice:
                schema = self.document["components"]["schemas"][choice["$ref"].rpartition("/")[2]]
            for field, inner in schema.get("properties", {}).items():
                yield from self._fields(inner, f"{name}.{field}".removeprefix("."), (*path, field))
            if "items" in schema:
                yield from self._fields(schema["items"], f"{name}[0]", (*path, 0))
            if schema.get("type") == "object" and "properties" not in schema:
                yield Place("body", f"{name}.x", (*path, "x"))

    def values(self, operation: Operation, place: Place) -> dict[str, Any]:
        """Return the values for a place. A short run tries only one of them if an earlier route has the same place."""
        values = dict(VALUES)
        if place.kind == "header" or operation.content_type == FORM:
            values = dict(TEXTS)
        elif place.kind != "body":
            values = {name: value for name, value in VALUES.items() if name not in LARGE}
        if place.kind in ("path", "query"):
            del values["a million characters"]  # clients do not send such long URLs, and the server does not read them
        if operation.is_stream:
            return {name: values[name] for name in NEVER_ACCEPTED}  # a stream does not end if the value is accepted
        if FULL:
            return values
        if (place.kind, place.described) in self.seen:
            name = list(values)[len(operation.path) % len(values)]
            return {name: values[name]}
        self.seen.add((place.kind, place.described))
        if not any(word in place.described for word in ("array", "object", "$ref")):
            values.pop("a million elements", None)
        return values

    def request(
        self, operation: Operation, place: Place | None = None, value: Any = None, *, repeated: bool = False
    ) -> httpx.Request:
        named = {"session_id": str(uuid4()), **self.ids}
        given = self.http.headers.copy()
        given.update(self.session if "/sessions" in operation.path else {})
        headers = [(name.encode(), text.encode()) for name, text in given.items()]
        text = value if isinstance(value, str) else json.dumps(value) if place and place.kind != "body" else ""
        content = b""
        query: dict[str, Any] = {
            parameter["name"]: QUERIES[parameter["name"]]
            for parameter in operation.described.get("parameters", ())
            if parameter["name"] in QUERIES and "array" not in json.dumps(parameter)
        }
        if operation.content_type == FORM:
            form = {"grant_type": "password", "username": "ada", "password": "pw"}
            fields = form if place is None else {**form, place.name: text}
            content = urlencode(fields, errors="surrogatepass").encode()
        elif operation.content_type:
            schema = operation.described["requestBody"]["content"][operation.content_type]["schema"]
            body = self.body(schema.get("items", schema).get("$ref", "").rpartition("/")[2])
            content = (
                json_with(body, place.path, value) if place and place.kind == "body" else json.dumps(body).encode()
            )
        if place is not None:
            match place.kind:
                case "path":
                    named[place.name] = text
                case "query":
                    query[place.name] = [text] * (1 + repeated)
                case "header":
                    headers += [(place.name.encode(), text.encode(errors="surrogatepass"))] * (1 + repeated)
        if operation.content_type:
            headers.append((b"content-type", operation.content_type.encode()))
        quoted = {name: quote(part, safe="", errors="surrogatepass") for name, part in named.items()}
        url = HOST + operation.path.format_map(quoted)
        if query:
            url += "?" + urlencode(query, doseq=True, errors="surrogatepass")
        return httpx.Request(operation.method, url, headers=headers, content=content)

    async def send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await asyncio.wait_for(self.http.send(request), PATIENCE_S)
        except TimeoutError:
            raise AssertionError(f"no answer to {request.method} {request.url}"[:500]) from None

    async def everything(self) -> dict[Any, Any]:
        """Return everything in Redis and the ledger, except the responses that are kept for repeated calls."""
        held: dict[Any, Any] = {}
        redis: Any = self.store.redis
        for key in await redis.keys("*"):
            if b":calls:" not in key:
                held[key] = await redis.dump(key)
        with self.database.read() as connection:
            for table in sqlalchemy.inspect(connection).get_table_names():
                held[table] = connection.execute(sqlalchemy.text(f"SELECT * FROM {table}")).fetchall()  # noqa: S608
        return held


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Rig]:
    monkeypatch.chdir(tmp_path)  # so that the developer's tweezer.toml is not read
    database = Database.open(OpenDatabase(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'ledger.db')}"))
    settings = Settings(data_dir=tmp_path, api=ApiSettings(requests_per_s=100_000, longpoll_s=0))
    rig = Rig(settings, database)
    rig.key()
    await rig.furnish()
    yield rig
    await rig.close()
    database.close()


def complaint(operation: Operation, place: Place, name: str, value: Any, answer: httpx.Response) -> str:
    """Describe what is wrong with the response, or return ''."""
    if NOT_SERVED in operation.path and answer.status_code == 501:
        return ""
    if answer.status_code >= 500:
        return "failed"
    if answer.status_code < 400:
        if place.name in ("issued", "expires"):
            return ""  # read only in a link, which has no key
        if name in NEVER_ACCEPTED or (place.kind == "body" and (name in NUMBERS or name in LARGE)):
            return "was accepted"
        shown = place.kind == "body" and place.name not in NOT_SHOWN and value not in (None, "", [], {})
        kept = not shown or _has(answer.json(), value)
        return "" if kept else "was changed"
    error = answer.json()
    if operation.content_type == FORM:  # OAuth's errors, without a field
        return "" if answer.status_code in (413, 429) or error["error_description"] else "has no description"
    assert error["status"] == "fail"
    assert error["code"] == str(answer.status_code)
    field, description = error["data"]["field"], error["data"]["description"]
    if len(description) > LONG:
        return "has a long description"
    if field is not None and description.startswith(f"{field}: "):
        if field.startswith(place.name) or place.name.startswith(field):
            return ""
        if place.name == "body" or field == NAMED_INSTEAD.get(place.name):
            return ""
        if (field == "body" and name in LARGE) or (field == "body" and error["data"]["reason"] == "body_too_large"):
            return ""
        if place.path and isinstance(place.path[0], int) and field.partition("[")[0] in ("jobs", "tags"):
            return ""  # errors in a body that is a list begin with jobs or tags
        if operation.path.endswith("/rebatch") and place.kind == "query" and field == "jobs":
            return ""  # no job of the batch matches the filter
    if answer.status_code == 404 and place.kind in ("path", "query") and name not in ("NUL", "ESC"):
        return ""  # nothing with this name exists
    if answer.status_code == 404 and str(value) in description:
        return ""
    if (place.name, error["data"]["reason"]) in LINK_ERRORS:
        return ""
    if operation.path.endswith("/rebatch") and error["data"]["reason"] == "open":
        return ""  # the parameter is valid, but the batch is still open
    return "does not name the field"


def _has(document: Any, value: Any) -> bool:
    if isinstance(document, dict):
        return document == value or any(_has(item, value) for item in document.values())
    if isinstance(document, list):
        return document == value or any(_has(item, value) for item in document)
    return type(document) is type(value) and bool(document == value)


@pytest.mark.timeout(900 if FULL else 300)
async def test_a_hostile_value_is_stored_unchanged_or_refused_with_its_field(rig: Rig) -> None:
    complaints = []
    requests = 0
    for operation in rig.operations():
        before = {} if operation.method == "GET" else await rig.everything()
        for place in rig.places(operation):
            for name, value in rig.values(operation, place).items():
                answer = await rig.send(rig.request(operation, place, value))
                requests += 1
                if problem := complaint(operation, place, name, value, answer):
                    what = f"{operation.method} {operation.path}: {place.kind} {place.name} = {name} {problem}"
                    complaints.append(f"{what}: {answer.status_code} {answer.text[:300]}")
                if answer.status_code < 400 and operation.method != "GET":
                    await rig.furnish()
                    before = await rig.everything()
        if operation.method != "GET" and operation.content_type != FORM and await rig.everything() != before:
            complaints.append(f"{operation.method} {operation.path} refuses the values, but changes something")
    assert not complaints, "\n".join(complaints)
    assert requests > 1000
    assert (await rig.http.get("/ready")).status_code == 200
    await rig.furnish()


async def test_the_error_for_a_repeated_parameter_or_key_names_it(rig: Rig) -> None:
    wrong = []
    for operation in rig.operations():
        if NOT_SERVED in operation.path:
            continue
        for place in rig.places(operation):
            described = json.loads(place.described or "{}")
            if place.kind in ("query", "header") and "array" not in json.dumps(described["schema"]):
                request = rig.request(operation, place, "1", repeated=True)
            elif place.kind == "body" and len(place.path) == 1 and isinstance(place.path[0], str):
                request = rig.request(operation)
                if operation.content_type == FORM:
                    continue
                twice = f'{{"{place.name}": 1, "{place.name}": 1}}'.encode()
                headers = {**dict(request.headers), "content-length": str(len(twice))}
                request = httpx.Request(request.method, request.url, headers=headers, content=twice)
            else:
                continue
            answer = await rig.send(request)
            found = answer.json().get("data", {})
            if (answer.status_code, found["field"]) not in ((422, place.name), (400, place.name)):
                wrong.append(f"{operation.method} {operation.path}: {place.name}: {answer.text[:300]}")
            assert "twice" in answer.text or "more than once" in answer.text, answer.text
    assert not wrong, "\n".join(wrong)
