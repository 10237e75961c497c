"""The routes of webhooks: endpoints and their secrets, the log of deliveries, and valid webhooks of batches."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import fakeredis
import pytest
from tests.support.api_rig import DEVICE, PROJECT, ApiRig, bearer

from tweezer.api.app import create_app
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import create_session
from tweezer.ledger.access.projects import find_project
from tweezer.ledger.access.users import add_to_project, create_user
from tweezer.ledger.access.vault import SECRETS_FRESH_S
from tweezer.ledger.database import Database
from tweezer.ledger.schema import now_ms
from tweezer.model.errors import InvalidInput
from tweezer.model.signatures import sign, verify_webhook
from tweezer.model.webhooks import USUAL_TYPES
from tweezer.settings import Settings, WebhookSettings
from tweezer.store.connection import Store
from tweezer.webhooks.deliveries import (
    DELIVERED,
    EXHAUSTED,
    Attempt,
    AttemptOutcome,
    Deliveries,
    NewDelivery,
    delivery_id,
    write_log,
)
from tweezer.webhooks.endpoints import ensure_batch_endpoints

HOOKS, DELIVERIES = "/api/v2/webhooks", "/api/v2/deliveries"
URL = "https://hooks.example.org/tweezer?key=1"
OTHER = "q"


class Hooked(ApiRig):
    """A rig with the keys of users of two projects."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings, database)
        self.ours, self.theirs = self.key(), self.key(project=OTHER)

    async def ask(self, method: str, path: str, json: Any = None, *, key: str | None = None, **params: Any) -> Any:
        """Return the data of a successful response."""
        options: dict[str, Any] = {"headers": bearer(key or self.ours), "params": params}
        answer = await self.http.request(method, path, **options | ({} if json is None else {"json": json}))
        assert answer.status_code == (201 if (method, path) == ("POST", HOOKS) else 200), answer.text
        return answer.json()["data"]

    async def refusal(
        self, method: str, path: str, json: Any = None, *, key: str | None = None, **params: Any
    ) -> tuple[int, str | None, str]:
        """Return the status, field and description of a refusal."""
        options: dict[str, Any] = {"headers": bearer(key or self.ours), "params": params}
        answer = await self.http.request(method, path, **options | ({} if json is None else {"json": json}))
        assert answer.status_code >= 400, answer.text
        data = answer.json()["data"]
        return answer.status_code, data["field"], data["description"]

    async def made(self, **given: Any) -> dict[str, Any]:
        made: dict[str, Any] = (await self.ask("POST", HOOKS, {"url": URL, **given}))["webhook"]
        return made

    def deliver(self, webhook: dict[str, Any], event: str, status: str | None = None) -> UUID:
        """Write a delivery as a courier does; with a status also one attempt."""
        endpoint = UUID(webhook["id"])
        with self.database.read() as connection:
            no = find_project(connection, webhook["project_id"]).no
        identity = delivery_id(endpoint, event)
        row = NewDelivery(identity, endpoint, no, None, None, event, "job.done", '{"type":"job.done"}', now_ms())
        rows = Deliveries(self.database, "tweezer")
        rows.write([row], None)
        if status is not None:
            attempt = Attempt(1, now_ms(), 503, 40, None, "busy", now_ms() + 5000)
            rows.record([AttemptOutcome(identity, status, 1, write_log([attempt]), None)])
        return identity

    async def alarms(self) -> int:
        found: int = await self.store.redis.zcard("tweezer:courier")
        return found


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[Hooked]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = Hooked(Settings(data_dir=tmp_path, webhook=WebhookSettings(allow="10.0.0.0/8,*.lab")), ledger)
    await rig.announce()
    yield rig
    await rig.close()


def signed_by(secret: str) -> Any:
    body, sent = b'{"type":"ping","timestamp":"2026-11-22T10:00:00Z","data":{}}', int(time.time())
    headers = {"webhook-id": "1", "webhook-timestamp": str(sent), "webhook-signature": sign(secret, "1", sent, body)}
    return verify_webhook(body, headers, secret)


# --- endpoints


async def test_an_endpoint_is_made_with_a_secret_that_lists_do_not_show(rig: Hooked) -> None:
    made = await rig.ask("POST", HOOKS, {"url": URL, "types": ["job.done"], "description": "the lab's"})
    webhook, secret = made["webhook"], made["secret"]
    assert signed_by(secret["secret"]).id == "1"
    assert (secret["public_key"], secret["older_until"]) == (None, None)
    assert (webhook["project_id"], webhook["url"], webhook["kind"]) == (PROJECT, URL, "project")
    assert (webhook["types"], webhook["description"]) == (["job.done"], "the lab's")
    assert {webhook[name] for name in ("failing_since", "disabled_at", "disabled_because")} == {None}
    listed = await rig.http.get(HOOKS, headers=bearer(rig.ours))
    assert listed.json()["data"] == [webhook]
    assert listed.json()["pagination"] == {"total": 1, "start": 0, "end": 1}
    assert "whsec" not in listed.text
    assert await rig.ask("GET", f"{HOOKS}/{webhook['id']}") == webhook
    assert (await rig.ask("GET", f"{HOOKS}/{webhook['id']}/secret")) == secret


async def test_an_endpoint_may_be_signed_with_a_private_key_too(rig: Hooked) -> None:
    made = await rig.ask("POST", HOOKS, {"url": URL, "ed25519": True})
    assert made["secret"]["public_key"].startswith("whpk_")
    assert made["webhook"]["types"] == sorted(USUAL_TYPES)


@pytest.mark.parametrize(
    ("status", "field", "given"),
    [
        (422, "url", {"url": "http://hooks.example.org/"}),
        (422, "url", {"url": "https://127.0.0.1/"}),
        (422, "types", {"url": URL, "types": ["job.finished"]}),
        (422, "description", {"url": URL, "description": "a" * 201}),
        (400, "url", {}),
        (400, "types", {"url": URL, "types": "job.done"}),
        (400, "ed25519", {"url": URL, "ed25519": "yes"}),
        (403, "project_id", {"url": URL, "project_id": OTHER}),
    ],
)
async def test_a_wrong_field_of_an_endpoint_is_named(
    rig: Hooked, status: int, field: str, given: dict[str, Any]
) -> None:
    assert (await rig.refusal("POST", HOOKS, given))[:2] == (status, field)
    assert await rig.ask("GET", HOOKS) == []


async def test_an_update_of_an_endpoint_changes_only_the_given_fields(rig: Hooked) -> None:
    made = await rig.made(types=["job.done"])
    path = f"{HOOKS}/{made['id']}"
    changed = await rig.ask("PATCH", path, {"url": "http://10.1.2.3:8080/"})
    assert changed == made | {"url": "http://10.1.2.3:8080/"}  # the operator allows it
    assert (await rig.ask("PATCH", path, {"types": [], "description": "x"}))["types"] == sorted(USUAL_TYPES)
    assert (await rig.refusal("PATCH", path, {"url": "https://[::1]/"}))[:2] == (422, "url")


async def test_endpoints_of_other_projects_are_not_found(rig: Hooked) -> None:
    webhook = await rig.made()
    delivery = rig.deliver(webhook, "e1")
    calls: list[tuple[str, str, Any]] = [
        ("GET", f"{HOOKS}/{webhook['id']}", None),
        ("PATCH", f"{HOOKS}/{webhook['id']}", {"description": "mine"}),
        ("DELETE", f"{HOOKS}/{webhook['id']}", None),
        *[("POST", f"{HOOKS}/{webhook['id']}/{word}", None) for word in ("enable", "disable", "ping", "rotate_secret")],
        ("GET", f"{HOOKS}/{webhook['id']}/secret", None),
        ("GET", f"{HOOKS}/{webhook['id']}/deliveries", None),
        ("POST", f"{HOOKS}/{webhook['id']}/resend", {"since": "2026-01-01T00:00:00Z"}),
        ("GET", f"{DELIVERIES}/{delivery}", None),
        ("POST", f"{DELIVERIES}/{delivery}/resend", None),
    ]
    for method, path, json in calls:
        status, _, description = await rig.refusal(method, path, json, key=rig.theirs)
        nobodys = path.replace(webhook["id"], str(uuid4())).replace(str(delivery), str(uuid4()))
        missing = await rig.refusal(method, nobodys, json)
        assert status == missing[0] == 404, (method, path)
        assert description[:12] == missing[2][:12]
    assert await rig.ask("GET", HOOKS, key=rig.theirs) == []
    assert (await rig.ask("GET", DELIVERIES, key=rig.theirs))["deliveries"] == []
    assert await rig.ask("GET", HOOKS, key=rig.theirs, project_id=PROJECT) == []
    assert await rig.ask("GET", f"{HOOKS}/{webhook['id']}") == webhook  # it is unchanged


async def test_an_operator_sees_all_endpoints_and_names_the_project_of_a_new_one(rig: Hooked) -> None:
    operator = rig.key(Role.OPERATOR, project=None)
    ours = await rig.made()
    theirs = (await rig.ask("POST", HOOKS, {"url": URL, "project_id": OTHER}, key=operator))["webhook"]
    assert {it["id"] for it in await rig.ask("GET", HOOKS, key=operator)} == {ours["id"], theirs["id"]}
    assert await rig.ask("GET", HOOKS, key=operator, project_id=OTHER) == [theirs]
    assert (await rig.refusal("POST", HOOKS, {"url": URL}, key=operator))[:2] == (400, "project_id")
    unknown = await rig.refusal("POST", HOOKS, {"url": URL, "project_id": "nobody"}, key=operator)
    assert unknown[0] == 404


async def test_a_key_that_only_reads_sees_endpoints_and_deliveries_but_no_secret(rig: Hooked) -> None:
    reader, made = rig.key(Role.READ), await rig.made()
    assert await rig.ask("GET", HOOKS, key=reader) == [made]
    assert await rig.ask("GET", f"{HOOKS}/{made['id']}", key=reader) == made
    assert await rig.ask("GET", f"{HOOKS}/{made['id']}/deliveries", key=reader) == {"deliveries": [], "after": None}
    for path in (f"{HOOKS}/secret", f"{HOOKS}/{made['id']}/secret"):
        assert (await rig.refusal("GET", path, key=reader))[0] == 403


async def test_the_webhooks_of_batches_are_listed_separately_and_cannot_be_changed(rig: Hooked) -> None:
    made = await rig.made()
    with rig.database.write() as connection:
        no = find_project(connection, PROJECT).no
        (found,) = ensure_batch_endpoints(connection, [(no, URL)]).values()
    assert [it["id"] for it in await rig.ask("GET", HOOKS)] == [made["id"], str(found.id)]
    assert [it["kind"] for it in await rig.ask("GET", HOOKS, kind="batch")] == ["batch"]
    assert [it["id"] for it in await rig.ask("GET", HOOKS, limit=1, offset=1)] == [str(found.id)]
    assert (await rig.refusal("PATCH", f"{HOOKS}/{found.id}", {"description": "x"}))[0] == 409
    of_batch = await rig.ask("GET", f"{HOOKS}/{found.id}/secret")
    assert of_batch == await rig.ask("GET", f"{HOOKS}/secret")
    assert (await rig.refusal("GET", HOOKS, kind="other"))[:2] == (422, "kind")


async def test_an_endpoint_is_disabled_enabled_and_removed(rig: Hooked) -> None:
    made = await rig.made()
    path = f"{HOOKS}/{made['id']}"
    for _ in range(2):
        disabled = await rig.ask("POST", f"{path}/disable")
        assert (disabled["disabled_because"], disabled["disabled_at"] is None) == ("disabled by hand", False)
    for call in (("POST", f"{path}/ping", None), ("POST", f"{path}/resend", {"since": "2026-01-01"})):
        assert (await rig.refusal(*call))[0] in (400, 409)
    status, _, description = await rig.refusal("POST", f"{path}/ping")
    assert (status, "enable it first" in description) == (409, True)
    assert await rig.ask("POST", f"{path}/enable") == made
    assert await rig.ask("DELETE", path) is None
    assert (await rig.refusal("GET", path))[0] == 404


# --- secrets


async def test_a_secret_that_is_rotated_is_shown_once_everything_is_signed_with_it(rig: Hooked) -> None:
    made = await rig.ask("POST", HOOKS, {"url": URL})
    path, before = f"{HOOKS}/{made['webhook']['id']}", made["secret"]["secret"]
    began = time.monotonic()
    after = await rig.ask("POST", f"{path}/rotate_secret", overlap_s=60)
    assert time.monotonic() - began > SECRETS_FRESH_S
    assert after["secret"] != before
    assert 0 < (datetime.fromisoformat(after["older_until"]) - datetime.now(UTC)).total_seconds() < 61
    assert await rig.ask("GET", f"{path}/secret") == after
    with_key = await rig.ask("POST", f"{path}/rotate_secret", ed25519=True)
    assert (with_key["secret"], with_key["public_key"][:5]) == (after["secret"], "whpk_")
    assert (await rig.refusal("POST", f"{path}/rotate_secret", overlap_s=-1))[:2] == (422, "overlap_s")


async def test_each_project_has_its_own_secret_and_can_rotate_it(rig: Hooked) -> None:
    ours, theirs = await rig.ask("GET", f"{HOOKS}/secret"), await rig.ask("GET", f"{HOOKS}/secret", key=rig.theirs)
    assert ours["secret"] != theirs["secret"]
    assert await rig.ask("GET", f"{HOOKS}/secret") == ours
    after = await rig.ask("POST", f"{HOOKS}/rotate_secret")
    assert await rig.ask("GET", f"{HOOKS}/secret") == after != ours
    assert (await rig.refusal("GET", f"{HOOKS}/secret", project_id=OTHER))[:2] == (403, "project_id")


async def test_a_session_of_several_projects_must_name_one(rig: Hooked) -> None:
    with rig.database.write() as connection:
        user = create_user(connection, "ada", None)
        for project in (PROJECT, OTHER):
            add_to_project(connection, "ada", project)
        key = create_session(connection, user.id, session_s=60).text
    assert (await rig.refusal("GET", f"{HOOKS}/secret", key=key))[:2] == (400, "project_id")
    theirs = await rig.ask("GET", f"{HOOKS}/secret", key=rig.theirs)
    assert await rig.ask("GET", f"{HOOKS}/secret", key=key, project_id=OTHER) == theirs


def all_of_the_ledger(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.glob("ledger.db*"))


async def test_secrets_are_encrypted_in_the_ledger(rig: Hooked, tmp_path: Path) -> None:
    made = await rig.ask("POST", HOOKS, {"url": URL})
    secret: str = made["secret"]["secret"]
    kept = all_of_the_ledger(tmp_path)
    assert URL.encode() in kept
    assert secret.removeprefix("whsec_").encode() not in kept
    assert (tmp_path / "secrets.key").exists()


# --- deliveries


async def test_deliveries_are_shown_with_every_attempt(rig: Hooked) -> None:
    webhook = await rig.made()
    identity = rig.deliver(webhook, "e1", EXHAUSTED)
    page = await rig.ask("GET", f"{HOOKS}/{webhook['id']}/deliveries")
    (listed,) = page["deliveries"]
    assert page["after"] is None
    assert (listed["id"], listed["event_id"], listed["status"]) == (str(identity), "e1", "exhausted")
    (attempt,) = listed["log"]
    assert (attempt["number"], attempt["status"], attempt["milliseconds"], attempt["answer"]) == (1, 503, 40, "busy")
    assert attempt["next_at"] > attempt["at"]
    assert "body" not in listed
    assert await rig.ask("GET", f"{DELIVERIES}/{identity}") == listed | {"body": '{"type":"job.done"}'}


async def test_deliveries_are_filtered_and_paginated(rig: Hooked) -> None:
    webhook, other = await rig.made(), await rig.made()
    ids = {str(rig.deliver(webhook, f"e{number}", DELIVERED)) for number in range(5)}
    waiting = rig.deliver(other, "e0")
    found: set[str] = set()
    after: str | None = ""
    for _ in range(3):
        page = await rig.ask("GET", DELIVERIES, limit=2, after=after, status="delivered")
        found |= {it["id"] for it in page["deliveries"]}
        after = page["after"]
    assert after is None
    assert found == ids
    pending = await rig.ask("GET", DELIVERIES, status="pending")
    assert [it["id"] for it in pending["deliveries"]] == [str(waiting)]
    for params in ({"type": "job.error"}, {"batch_id": str(uuid4())}, {"since": "2999-01-01"}):
        assert (await rig.ask("GET", DELIVERIES, **params))["deliveries"] == []
    for wrong in ({"after": "x"}, {"status": "lost"}, {"type": "x"}, {"limit": 101}, {"since": "x"}):
        assert (await rig.refusal("GET", DELIVERIES, **wrong))[:2] == (422, next(iter(wrong)))


async def test_one_delivery_or_all_since_a_time_are_sent_again(rig: Hooked) -> None:
    webhook = await rig.made()
    delivered, exhausted = rig.deliver(webhook, "e1", DELIVERED), rig.deliver(webhook, "e2", EXHAUSTED)
    again = await rig.ask("POST", f"{DELIVERIES}/{delivered}/resend")
    assert (again["status"], again["attempts"], len(again["log"])) == ("pending", 0, 1)
    assert await rig.alarms() == 1
    path = f"{HOOKS}/{webhook['id']}/resend"
    since = {"since": "2026-01-01T00:00:00+01:00"}
    assert await rig.ask("POST", path, since) == {"count": 2}  # the pending one is due now, too
    assert (await rig.ask("GET", f"{DELIVERIES}/{exhausted}"))["status"] == "pending"
    assert await rig.ask("POST", path, since | {"all": True}) == {"count": 2}
    assert await rig.ask("POST", path, {"since": "2999-01-01T00:00:00"}) == {"count": 0}
    assert (await rig.refusal("POST", path, {"since": "yesterday"}))[:2] == (400, "since")
    assert (await rig.refusal("POST", path, {}))[:2] == (400, "since")


async def test_a_ping_is_a_delivery_and_wakes_a_courier(rig: Hooked) -> None:
    webhook = await rig.made(types=["batch.done"])
    pinged = await rig.ask("POST", f"{HOOKS}/{webhook['id']}/ping")
    assert (pinged["type"], pinged["status"], pinged["endpoint_id"]) == ("ping", "pending", webhook["id"])
    assert (await rig.ask("GET", f"{DELIVERIES}/{pinged['id']}"))["id"] == pinged["id"]
    assert await rig.alarms() == 1


async def test_a_ping_waits_in_the_ledger_while_redis_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database
) -> None:
    monkeypatch.chdir(tmp_path)
    rig = Hooked(Settings(data_dir=tmp_path), ledger)
    webhook = await rig.made()
    rig.server.connected = False
    assert (await rig.ask("POST", f"{HOOKS}/{webhook['id']}/ping"))["status"] == "pending"
    rig.server.connected = True
    await rig.close()


# --- the webhook of a batch


@pytest.mark.parametrize(
    "webhook",
    [
        *("http://hooks.example.org/", "https://127.0.0.1/", "https://192.168.1.1/", "https://[::1]/"),
        *("https://user:pass@hooks.example.org/", "https://hooks.example.org:22/", "https://localhost/", "ftp://h", ""),
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/batches", "/api/v1/third-party-access/ovh/batches"])
async def test_a_batch_with_a_forbidden_webhook_is_refused(rig: Hooked, path: str, webhook: str) -> None:
    body = {"device_type": DEVICE, "sequence_builder": "{}", "jobs": [{"runs": 1}], "webhook": webhook}
    status, field, description = await rig.refusal("POST", path, body)
    assert (status, field) == (422, "webhook")
    assert description.startswith("webhook: ")
    assert await rig.store.events.read() == []


@pytest.mark.parametrize("webhook", ["https://hooks.example.org/x?y=1", "http://10.0.0.1:8080/", "http://hooks.lab/"])
async def test_a_batch_may_have_a_webhook_that_the_policy_allows(rig: Hooked, webhook: str) -> None:
    body = {"device_type": DEVICE, "sequence_builder": "{}", "jobs": [{"runs": 1}], "webhook": webhook}
    assert (await rig.ask("POST", "/api/v1/batches", body))["webhook"] == webhook


async def test_an_invalid_policy_is_reported_at_the_start(ledger: Database, tmp_path: Path) -> None:
    store = Store(fakeredis.FakeAsyncRedis())
    with pytest.raises(InvalidInput, match="webhook_ports"):
        create_app(Settings(data_dir=tmp_path, webhook=WebhookSettings(ports="http")), store, ledger)
    await store.close()
