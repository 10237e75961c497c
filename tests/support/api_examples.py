"""Examples of every operation of the HTTP API, recorded from the assembled application for the reference."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import httpx
from tests.support.api_rig import DEVICE, DONE, FAILED, SEQUENCE, SOON_S, ApiRig, bearer
from tests.support.waiting import until

from tweezer.adapters.specs import make_virtual_specs
from tweezer.api.http.openapi import LINES
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.projects import create_project
from tweezer.ledger.access.users import add_to_project, create_user, hash_password
from tweezer.ledger.database import Database
from tweezer.ledger.recorder.recorder import Recorder
from tweezer.model.ids import DEFAULT_PROJECT, job_id
from tweezer.model.messages import BatchDoc, JobSpec
from tweezer.settings import ApiSettings, Settings
from tweezer.store.job_logs import OutputBuffer

Example = dict[str, Any]

_PASSWORD = "correct horse battery staple"  # made up
_HOOK = "https://hooks.example.org/tweezer"
_FORM = "application/x-www-form-urlencoded"
_METRICS = re.compile(r"(?:# (?:HELP|TYPE) )?tweezer_(?:ledger_up|redis_up|recorder_active)")

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_SUBSTITUTES = (
    (re.compile(r"twz_[\w-]+"), "twz_…"),
    (re.compile(r"\b(wh[a-z]+_)[\w+/=]+"), r"\1…"),
    (re.compile(r"\bkey [a-z2-7]{12}\b"), "key k3v9q2m7x4ab"),
    (re.compile(r"\bissued=\d+&expires=\d+&signature=[\w=%-]+"), "issued=1795341602&expires=1795345202&signature=…"),
    (re.compile(r"(?<=/maintenance/)[0-9a-f]{8}"), "5f3a90c1"),
    (re.compile(r"(?<=\?ticket=)[\w-]{43}"), "R4nd0m…"),
    (re.compile(r"\b1\d{15}\b"), "1795341602000000"),
    (re.compile(r"\b1\d{12}-\d+\b"), "1795341602000-0"),
)
_WHOLE = (
    (re.compile(r"[a-z2-7]{12}"), "k3v9q2m7x4ab"),
    (re.compile(r"[0-9a-f]{8}"), "5f3a90c1"),
    (re.compile(r"[\w-]{43}"), "R4nd0m…"),
)
_OFFSETS_S = {"start": 1, "running": 1, "updated": 3, "end": 3, "ends": 7200, "until": 7200, "expires": 86_400}
_DURATIONS = {
    "execution_time": 4.5,
    "wall_time": 5.25,
    "queue_s": 1.0,
    "idle_s": 0.0,
    "average_queue_time": 1,
    "preparation_s": 0.5,
    "device_s": 1.5,
}
_WHOLE_SECONDS = ("begins_at", "ends_at", "since", "datetime")
_BEGAN = datetime(2026, 11, 22, 10, tzinfo=UTC)


class Examples:
    """Calls operations, and keeps the first request and response of each by its operation id."""

    def __init__(self, rig: ApiRig, key: str) -> None:
        self.rig = rig
        self.key = key
        self.found: dict[str, Example] = {}
        self._ids = {
            (method.upper(), path): operation["operationId"]
            for path, operations in rig.app.openapi()["paths"].items()
            for method, operation in operations.items()
        }

    async def call(
        self,
        route: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        key: str | None = "",
        status: int = 200,
        **path: Any,
    ) -> Any:
        """Call an operation such as `GET /api/v2/batches/{batch_id}`; return its data. key: None sends none."""
        method, template = route.split()
        target = template.format_map(path) + (f"?{urlencode(query, doseq=True)}" if query else "")
        headers: dict[str, str] = {} if key is None else bearer(key or self.key)
        content = None
        if body is not None:
            is_form = isinstance(body, str)
            headers["Content-Type"] = _FORM if is_form else "application/json"
            content = body.encode() if is_form else json.dumps(body).encode()
        answer = await self.rig.stranger.request(method, target, content=content, headers=headers)
        assert answer.status_code == status, answer.text
        response = _read_body(answer)
        self._keep(method, template, target, headers, body, status, response)
        return response.get("data") if isinstance(response, dict) else None

    async def stream(self, route: str, then: Awaitable[Any], **path: Any) -> None:
        """Follow a stream from now until the event that `then` causes."""
        method, template = route.split()
        target, params = template.format_map(path), "after=now"
        headers = {"Host": "127.0.0.1:8000", "Accept": "text/event-stream", **bearer(self.key)}
        gone, chunks = asyncio.Event(), list[str]()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                chunks.append(message["body"].decode())

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": target,
            "raw_path": target.encode(),
            "query_string": params.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50_000),
        }
        task = asyncio.create_task(self.rig.app(scope, receive, send))
        await until(lambda: bool(chunks), within_s=SOON_S)
        await then
        await until(lambda: "data: " in "".join(chunks), within_s=SOON_S)
        gone.set()
        await task
        blocks = [block for block in "".join(chunks).split("\n\n") if "data: " in block]
        self._keep(method, template, f"{target}?{params}", headers, None, 200, blocks[0] + "\n\n")

    def missing(self) -> set[str]:
        """Return the operations without an example."""
        return set(self._ids.values()) - set(self.found)

    def _keep(
        self, method: str, template: str, target: str, headers: dict[str, str], body: Any, status: int, content: Any
    ) -> None:
        request: Example = {"method": method, "path": target, "headers": {"Host": "127.0.0.1:8000", **headers}}
        if body is not None:
            request["body"] = body
        response: Example = {"status": status}
        if content is not None:
            response["lines" if isinstance(content, list) else "body"] = content
        self.found.setdefault(self._ids[method, template], {"request": request, "response": response})


def _read_body(answer: httpx.Response) -> Any:
    if not answer.content:
        return None
    if answer.headers["Content-Type"].startswith("application/json"):
        return answer.json()
    if answer.headers["Content-Type"] == LINES:
        return [json.loads(line) for line in answer.text.splitlines()]
    return "\n".join(line for line in answer.text.splitlines() if _METRICS.match(line))


async def record(database: Database) -> dict[str, Example]:
    """Return an example of each operation, with fixed ids, times and secrets. database: an empty ledger."""
    rig = ApiRig(Settings(api=ApiSettings(requests_per_s=10_000, longpoll_s=0)), database)
    try:
        examples = await _call_all(rig)
    finally:
        await rig.close()
    missing = examples.missing()
    if missing:
        raise ValueError(f"operations without an example: {', '.join(sorted(missing))}; call them in {__file__}")
    fix = _Fixer()
    return {name: fix(examples.found[name]) for name in examples.found}


async def _call_all(rig: ApiRig) -> Examples:
    with rig.database.write() as connection:
        create_project(connection, "Spin models", DEFAULT_PROJECT)
        create_user(connection, "ada", hash_password(_PASSWORD))
        add_to_project(connection, "ada", DEFAULT_PROJECT)
    examples = Examples(rig, rig.key(project=DEFAULT_PROJECT))
    operator = rig.key(Role.OPERATOR, project=None)
    await rig.announce()
    await _call_service(examples, operator)
    await _call_account(examples)
    await _call_batches(examples, operator)
    await _call_devices(examples, operator)
    await _call_events(examples)
    await _call_webhooks(examples)
    await _call_schedules(examples)
    await _call_workloads(examples)
    return examples


async def _call_service(examples: Examples, operator: str) -> None:
    await examples.call("GET /health", key=None)
    await examples.call("GET /ready", key=None)
    await examples.call("GET /metrics", key=operator)


async def _call_account(examples: Examples) -> None:
    form = {"grant_type": "password", "username": "ada", "password": _PASSWORD}
    await examples.call("POST /oauth/token", urlencode(form), key=None)
    session = examples.rig.add_session("ada")
    await examples.call("GET /account/api/v1/projects")
    await examples.call("GET /account/api/v1/sessions", key=session)
    await examples.call("DELETE /account/api/v1/sessions/{session_id}", key=session, session_id="current")


async def _call_batches(examples: Examples, operator: str) -> None:
    rig, call = examples.rig, examples.call
    jobs = [{"runs": 100, "variables": {"omega": omega}} for omega in (4.0, 6.0)]
    body = {"sequence_builder": SEQUENCE, "device_type": DEVICE, "jobs": jobs, "tags": ["sweep"], "open": True}
    created = await call("POST /api/v1/batches", body)
    batch_id = created["id"]
    await call("POST /api/v2/batches/{batch_id}/jobs", [{"runs": 100, "variables": {"omega": 8.0}}], batch_id=batch_id)
    await call("PATCH /api/v2/batches/{batch_id}/complete", batch_id=batch_id)
    await call("GET /api/v1/batches/{batch_id}/status", batch_id=batch_id)
    await rig.run(DONE, FAILED, DONE)
    await _record(rig)
    done = created["jobs"][0]["id"]
    for route in ("GET /api/v1/batches/{batch_id}", "GET /api/v2/batches/{batch_id}"):
        await call(route, batch_id=batch_id)
    await call("GET /api/v2/batches/{batch_id}/jobs", query={"indices": "0-1", "results": "true"}, batch_id=batch_id)
    await call("GET /api/v1/batches/{batch_id}/results_link", batch_id=batch_id)
    await call("PATCH /api/v1/batches/{batch_id}/tags", ["sweep", "published"], batch_id=batch_id)
    await call("GET /api/v1/batches", query={"status": "DONE", "limit": 20})
    await call("GET /api/v2/batches", query={"tag": "sweep", "limit": 20})
    await call("GET /api/v2/batches/counts", query={"tag": "sweep"})
    await call("GET /api/v2/batches/newest", query={"name": "antiferromagnet", "limit": 20})
    await call("GET /api/v2/batches/find", query={"text": "@last"})
    await call("GET /api/v1/batches/last_activity")
    await call("GET /api/v1/jobs", query={"batch_id": batch_id, "status": "DONE", "limit": 1})
    await call("GET /api/v2/jobs", query={"batch_id": batch_id, "status": "ERROR"})
    await call("GET /api/v2/jobs/counts", query={"batch_id": batch_id})
    for end in ("v1/jobs/{job_id}", "v2/jobs/{job_id}", "v2/jobs/{job_id}/transitions", "v2/jobs/{job_id}/attempts"):
        await call(f"GET /api/{end}", job_id=done)
    output = OutputBuffer()
    output.add(b"10.0%. Run time:   0.50s. Est. time left: 00:00:00:04\n")
    await rig.store.job_logs.write(UUID(done), output.content)
    await call("GET /api/v2/jobs/{job_id}/logs", job_id=done)
    for end in ("status", "results_link", "results", "logs_link", "logs"):
        await call(f"GET /api/v1/jobs/{{job_id}}/{end}", job_id=done)
    for end in (
        "jobs/{job_id}/status",
        "jobs/{job_id}/results_link",
        "batches/{batch_id}",
        "batches/{batch_id}/status",
    ):
        await call(f"GET /api/v1/third-party-access/ovh/{end}", job_id=done, batch_id=batch_id)
    await call("GET /api/v1/third-party-access/ovh/jobs", query={"batch_id": batch_id, "status": "DONE", "limit": 1})
    await _call_tasks(examples, UUID(batch_id))
    await call("POST /api/v1/third-party-access/ovh/batches", body)
    await call("POST /api/v2/batches/retry-matching", query={"tag": "sweep", "dry_run": "true"})
    await call("POST /api/v1/batches/{batch_id}/rebatch", query={"status": "ERROR"}, batch_id=batch_id)
    await _call_changes(examples)
    await _call_service_side(examples, operator)


async def _call_tasks(examples: Examples, task_id: UUID) -> None:
    """Call the operations of tasks, on a task with a failed job, and on new ones that are archived and deleted."""
    rig, call = examples.rig, examples.call
    others = []
    for _ in range(4):
        others.append(await _submit(examples))
        await rig.run(DONE)
    await _record(rig)
    await call("GET /api/tasks", query={"backend": DEVICE, "tag": "sweep,published", "limit": 2})
    await call("GET /api/tasks/counts")
    await call("GET /api/tasks/summaries", query={"state": "complete", "limit": 1})
    for end in ("", "/shards", "/snapshot"):
        await call(f"GET /api/tasks/{{task_id}}{end}", task_id=task_id)
    await call("POST /api/tasks/{task_id}/archive", task_id=others[0])
    await call("GET /api/archive")
    await call("GET /api/archive/{task_id}", task_id=others[0])
    await call("POST /api/archive/restore/{task_id}", task_id=others[0])
    await call("POST /api/tasks/bulk-archive", {"task_ids": [str(it) for it in others[:2]]})
    await call("DELETE /api/archive/{task_id}", task_id=others[0])
    await call("POST /api/tasks/archive-expired", query={"hours": 72, "terminal_only": "true"})
    await call("POST /api/tasks/bulk-delete", {"task_ids": [str(others[1]), str(UUID(int=8 << 76))]})
    await call("DELETE /api/tasks/{task_id}", task_id=others[2])
    await call("POST /api/tasks/bulk-cancel", {"task_ids": [str(await _submit(examples)), str(task_id)]})
    await call("POST /api/tasks/{task_id}/restart", query={"status": "ERROR"}, task_id=task_id)


async def _call_changes(examples: Examples) -> None:
    """Call the operations that close and cancel, each on a new batch."""
    call = examples.call
    await call("POST /api/v1/batches/{batch_id}/jobs", [{"runs": 100}], batch_id=await _submit(examples, open=True))
    for route in ("PATCH /api/v1/batches/{batch_id}/complete", "PUT /api/v1/batches/{batch_id}/complete"):
        await call(route, batch_id=await _submit(examples, open=True))
    for route in ("PATCH /api/v2", "PATCH /api/v1", "PUT /api/v1"):
        await call(f"{route}/batches/{{batch_id}}/cancel", batch_id=await _submit(examples))
        await call(f"{route}/jobs/{{job_id}}/cancel", job_id=job_id(await _submit(examples), 0))
    for version in ("v1", "v2"):
        await call(f"PATCH /api/{version}/batches/cancel", {"batch_ids": [str(await _submit(examples))]})
        route, chosen = f"PATCH /api/{version}/batches/{{batch_id}}/cancel/jobs", {"status": "PENDING"}
        await call(route, query=chosen, batch_id=await _submit(examples))
    chosen = {"by": "ada@lab"}
    await call(
        "POST /api/v2/batches/{batch_id}/cancel/jobs", {"indices": [0]}, query=chosen, batch_id=await _submit(examples)
    )
    await call("POST /api/v2/batches/cancel-matching", query={"id": await _submit(examples), "by": "ada@lab"})
    await call("POST /api/v2/batches/archive-matching", query={"tag": "sweep", "dry_run": "true"})
    await call("POST /api/v2/batches/delete-matching", query={"id": await _submit(examples)})
    paused = await _submit(examples)
    for end in ("pause", "resume"):
        await call(f"PATCH /api/v2/batches/{{batch_id}}/{end}", batch_id=paused)
    await call("PATCH /api/v2/batches/{batch_id}/priority", {"queue_priority": "HIGH"}, batch_id=paused)


async def _call_service_side(examples: Examples, operator: str) -> None:
    reason = "the laser is out of lock"
    for method in ("PUT", "PATCH"):
        body = {"status": "ERROR", "reason": reason}
        route = f"{method} /api/v1/batches/{{batch_id}}/status"
        await examples.call(route, body, key=operator, batch_id=await _submit(examples))
        identity = job_id(await _submit(examples), 0)
        failed = {"status": "ERROR", "errors": [reason]}
        await examples.call(f"{method} /api/v1/jobs/{{job_id}}/status", failed, key=operator, job_id=identity)
    identity = job_id(await _submit(examples), 0)
    await examples.call("PATCH /api/v1/jobs/{job_id}", {"status": "CANCELED"}, key=operator, job_id=identity)
    identity = job_id(await _submit(examples), 0)
    await examples.call("POST /api/v1/jobs/{job_id}/errors", {"errors": [reason]}, key=operator, job_id=identity)


async def _call_devices(examples: Examples, operator: str) -> None:
    call = examples.call
    specs = make_virtual_specs("FRESNEL").text
    new = {"device_type": "FRESNEL", "specs": specs, "status": "UP", "is_emulator": False}
    await call("POST /api/v1/devices", new, key=operator)
    for version in ("v1", "v2"):
        await call(f"GET /api/{version}/devices", query={"limit": 1})
    await call("GET /api/v2/workers", key=operator)
    await call("GET /api/v1/devices/specs")
    await call("GET /api/v1/devices/public-specs", key=None)
    await call("GET /api/v1/devices/job_counts", query={"scope": "MONTH"})
    down, named = {"status": "DOWN", "reason": "new lens"}, {"device_type_names": ["FRESNEL"]}
    for method, body in (("PUT", down), ("PATCH", {"status": "UP"})):
        await call(f"{method} /api/v1/devices/{{device}}/status", body, key=operator, device="FRESNEL")
        await call(f"{method} /api/v1/devices/status", named | body, key=operator)
    for end in ("queue_size", "average_queue_time", "specs"):
        await call(f"GET /api/v1/devices/{{device}}/{end}", device="FRESNEL" if end == "specs" else DEVICE)
    await call("PUT /api/v1/devices/{device}/specs", {"specs": specs}, key=operator, device="FRESNEL")
    await call("DELETE /api/v1/devices/{device}/specs", key=operator, device="FRESNEL")
    begins = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    window = {
        "begins_at": f"{begins:%Y-%m-%dT%H:%M:%SZ}",
        "ends_at": f"{begins + timedelta(hours=2):%Y-%m-%dT%H:%M:%SZ}",
        "reason": "new lens",
    }
    route = "POST /api/v1/devices/{device}/maintenance"
    planned = await call(route, window, key=operator, device="FRESNEL", status=201)
    await call("GET /api/v1/devices/{device}/maintenance", device="FRESNEL")
    route = "DELETE /api/v1/devices/{device}/maintenance/{window}"
    await call(route, key=operator, device="FRESNEL", window=planned["id"])


async def _call_events(examples: Examples) -> None:
    batch_id = await _submit(examples)
    await examples.call("GET /api/v2/batches/{batch_id}/events", query={"wait_s": 0}, batch_id=batch_id)
    await examples.call("GET /api/v2/events", query={"type": "batch.error", "limit": 1, "wait_s": 0})
    await examples.call("POST /api/v2/events/stream/ticket", status=201)
    await examples.call("POST /api/v2/batches/{batch_id}/events/stream/ticket", status=201, batch_id=batch_id)
    await examples.stream("GET /api/v2/events/stream", _submit(examples))
    cancel = examples.call("PATCH /api/v2/batches/{batch_id}/cancel", batch_id=batch_id)
    await examples.stream("GET /api/v2/batches/{batch_id}/events/stream", cancel, batch_id=batch_id)


async def _call_webhooks(examples: Examples) -> None:
    call = examples.call
    new = {"url": _HOOK, "types": ["job.done", "job.error"], "description": "the lab's receiver"}
    webhook_id = (await call("POST /api/v2/webhooks", new, status=201))["webhook"]["id"]
    await call("GET /api/v2/webhooks", query={"kind": "project"})
    await call("GET /api/v2/webhooks/{webhook_id}", webhook_id=webhook_id)
    await call("PATCH /api/v2/webhooks/{webhook_id}", {"types": ["batch.done"]}, webhook_id=webhook_id)
    delivery = await call("POST /api/v2/webhooks/{webhook_id}/ping", webhook_id=webhook_id)
    await call("GET /api/v2/webhooks/{webhook_id}/deliveries", query={"type": "ping"}, webhook_id=webhook_id)
    await call("GET /api/v2/deliveries", query={"limit": 10})
    await call("GET /api/v2/deliveries/{delivery_id}", delivery_id=delivery["id"])
    await call("POST /api/v2/deliveries/{delivery_id}/resend", delivery_id=delivery["id"])
    since = {"since": f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}", "all": False}
    await call("POST /api/v2/webhooks/{webhook_id}/resend", since, webhook_id=webhook_id)
    for end in ("disable", "enable", "rotate_secret"):
        await call(f"POST /api/v2/webhooks/{{webhook_id}}/{end}", webhook_id=webhook_id)
    await call("GET /api/v2/webhooks/{webhook_id}/secret", webhook_id=webhook_id)
    await call("POST /api/v2/webhooks/rotate_secret")
    await call("GET /api/v2/webhooks/secret")
    await call("DELETE /api/v2/webhooks/{webhook_id}", webhook_id=webhook_id)


async def _call_schedules(examples: Examples) -> None:
    call, one = examples.call, "/api/v2/schedules/{schedule_id}"
    template = {
        "sequence_builder": SEQUENCE,
        "device_type": DEVICE,
        "jobs": [{"runs": 100, "variables": {"omega": 6.0}}],
    }
    new = {"name": "nightly", "cron": "30 2 * * *", "time_zone": "Europe/Paris", "template": template}
    schedule_id = (await call("POST /api/v2/schedules", new, status=201))["id"]
    await call(f"POST {one}/run", schedule_id=schedule_id)
    await call("GET /api/v2/schedules", query={"status": "active"})
    await call(f"GET {one}", schedule_id=schedule_id)
    await call(f"PATCH {one}", {"revision": 1, "cron": "0 3 * * *"}, schedule_id=schedule_id)
    await call(f"POST {one}/pause", query={"reason": "new lens"}, schedule_id=schedule_id)
    await call(f"POST {one}/resume", schedule_id=schedule_id)
    await call(f"DELETE {one}", schedule_id=schedule_id)


async def _call_workloads(examples: Examples) -> None:
    for path, operations in examples.rig.app.openapi()["paths"].items():
        if "/workloads" in path:
            for method in operations:
                await examples.call(f"{method.upper()} {path}", status=501, workload_id=UUID(int=7))


async def _submit(examples: Examples, **options: Any) -> UUID:
    jobs = [JobSpec(runs=100, variables={"omega": 6.0})]
    doc = BatchDoc(device=DEVICE, sequence=SEQUENCE, tags=("sweep",))
    return await examples.rig.submit(jobs, doc=doc, project=DEFAULT_PROJECT, **options)


async def _record(rig: ApiRig) -> None:
    recorder = Recorder(rig.store, rig.database, namespace="tweezer")
    await recorder.resume()
    await recorder.catch_up()


class _Fixer:
    """Replaces what differs between two recordings: ids, times, durations, cursors and secrets."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}
        self._numbers: Counter[str] = Counter()

    def __call__(self, value: Any, key: str = "") -> Any:
        match value:
            case dict():
                return {self._fix_text(str(name), ""): self(item, name) for name, item in value.items()}
            case list():
                return [self(item, key) for item in value]
            case str() if key in ("sequence_builder", "sequence") and len(value) > 2:
                return '{"version": "1", …}'
            case str() if key == "shortname":
                return "5m2q0xw8kd"
            case str() if key == "specs" or value.startswith('{"name"'):
                return f'{{"name": "{json.loads(value)["name"]}", …}}'
            case str():
                return self._fix_text(value, key)
            case int() | float() if key in _DURATIONS and not isinstance(value, bool):
                return _DURATIONS[key]
            case _:
                return value

    def _fix_text(self, text: str, key: str) -> str:
        for pattern, substitute in _WHOLE:
            if pattern.fullmatch(text):
                return substitute
        text = _UUID.sub(lambda match: self._fix_id(match[0]), text)
        text = _TIME.sub(lambda match: _fix_time(key), text)
        for pattern, replacement in _SUBSTITUTES:
            text = pattern.sub(replacement, text)
        return text

    def _fix_id(self, identity: str) -> str:
        """Number the ids in the order in which they appear; jobs of a batch keep their index at the end."""
        if identity[14] != "8":
            if identity not in self._ids:
                self._numbers["other"] += 1
                self._ids[identity] = f"5f0c6b0e-3f1a-4c1e-9a41-0f6b5d7e{self._numbers['other']:04x}"
            return self._ids[identity]
        batch, index = identity[:-6], identity[-6:]
        if batch not in self._ids:
            self._numbers["batch"] += 1
            self._ids[batch] = f"0199f3a2-7c1e-8b1d-9f04-a1b2{self._numbers['batch']:02x}"
        return self._ids[batch] + index


def _fix_time(key: str) -> str:
    offset = next((seconds for word, seconds in _OFFSETS_S.items() if key.startswith(word)), 0)
    fraction = "" if key in _WHOLE_SECONDS else ".250000"
    return f"{_BEGAN + timedelta(seconds=offset):%Y-%m-%dT%H:%M:%S}{fraction}Z"
