"""Metrics for Prometheus: their values, who may read them, and which are omitted when a server is unavailable."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fakeredis
import httpx
import msgspec
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert
from tests.support.docs import DOCS

from tweezer.api.app import create_app
from tweezer.api.metrics import AnswerTimes, Metrics
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import create_key
from tweezer.ledger.access.projects import create_project
from tweezer.ledger.config import DeadLetterBounds, OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.dead_letters import Consumer, NewLetter, park
from tweezer.ledger.migrate import upgrade
from tweezer.ledger.schema import recorder
from tweezer.model.addresses import WebhookPolicy
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import BatchDoc, JobSpec, Outcome, OutcomeKind
from tweezer.settings import ApiSettings, Settings
from tweezer.store.connection import Store
from tweezer.store.streams.feed import position_number
from tweezer.store.workers import Grant, Settlement
from tweezer.webhooks.deliveries import Deliveries, NewDelivery, delivery_id
from tweezer.webhooks.endpoints import create_endpoint, disable_endpoint

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

ANSWERS = "tweezer_api_answer_seconds"


class MeasuredApi:
    """An application over a queue in memory and a ledger in a file."""

    def __init__(self, folder: Path) -> None:
        self.server = fakeredis.FakeServer()
        self.store = Store(fakeredis.FakeAsyncRedis(server=self.server))
        url = f"sqlite:///{folder / 'ledger.db'}"
        self.database = Database.open(OpenDatabase(url=url), create=True)
        upgrade(self.database)
        with self.database.write() as connection:
            create_project(connection, "ours", "ours")
            self.keys = {
                role: create_key(connection, role=role, project_id="ours" if role.of_projects else None, name="k").text
                for role in Role
            }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tweezer.api.app.BURST_S", 40_000)
            self.app: FastAPI = create_app(Settings(api=ApiSettings(requests_per_s=0.001)), self.store, self.database)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app, raise_app_exceptions=False), base_url="http://127.0.0.1"
        )

    async def close(self) -> None:
        await self.http.aclose()
        await self.store.close()
        self.database.close()

    async def get(self, path: str, role: Role | None = Role.METRICS) -> httpx.Response:
        headers = {} if role is None else {"Authorization": f"Bearer {self.keys[role]}"}
        return await self.http.get(path, headers=headers)

    async def scrape(self) -> Samples:
        response = await self.get("/metrics")
        assert response.status_code == 200, response.text
        return samples(response.text)

    async def announce(self, device: str = "EMU", **about: Any) -> None:
        await self.store.tickets.heartbeat(
            f"w-{device}",
            device,
            ttl_s=60,
            about_device={"exclusive": 0},
            about_worker={"started": 1, "lanes": 3, "busy": 1, **about},
        )

    async def submit(self, jobs: int = 1, device: str = "EMU") -> None:
        doc = BatchDoc(device=device, sequence="{}")
        await self.store.commands.submit(new_batch_id(), "ours", doc, [JobSpec(runs=1)] * jobs)

    async def take(self) -> Grant:
        (grant,) = (await self.store.tickets.take("EMU", ["lane"], lease_s=15)).grants
        return grant

    async def settle(self, grant: Grant) -> None:
        done = [Settlement.of(0, Outcome(OutcomeKind.CANCELED))]
        await self.store.tickets.settle(grant.ticket, grant.token, done, want=1, used_s=0, lease_s=15)

    def record(self, position: str) -> None:
        with self.database.write() as connection:
            connection.execute(insert(recorder).values(namespace="tweezer", position=position, updated_ms=1))


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = (sample.name, tuple(sorted(sample.labels.items())))
            assert name not in found, f"{name} is there twice"
            found[name] = sample.value
    return found


def of(found: Samples, name: str, **labels: str) -> float:
    return found[f"tweezer_{name}", tuple(sorted(labels.items()))]


def names(found: Samples) -> set[str]:
    return {name for name, _ in found}


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[MeasuredApi]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = MeasuredApi(tmp_path)
    yield rig
    await rig.close()


async def test_the_queue_of_each_device_is_measured(rig: MeasuredApi) -> None:
    await rig.announce()
    await rig.announce("OTHER", lanes=2, busy=0, draining=1)
    await rig.store.devices.pause("OTHER", "for a test")
    await rig.submit(3)
    grant = await rig.take()
    await rig.submit(1)
    await rig.settle(msgspec.structs.replace(grant, token="1"))
    found = await rig.scrape()
    assert [of(found, "jobs", device="EMU", status=status) for status in ("pending", "running")] == [3, 1]
    assert [of(found, "tickets", device="EMU", state=state) for state in ("ready", "due", "leased")] == [3, 0, 1]
    assert [of(found, "lanes", device="EMU", state=state) for state in ("busy", "free", "draining")] == [1, 2, 0]
    assert [of(found, "lanes", device="OTHER", state=state) for state in ("busy", "free", "draining")] == [0, 0, 2]
    assert [of(found, "device_paused", device=device) for device in ("EMU", "OTHER")] == [0, 1]
    assert of(found, "workers", device="EMU") == 1
    assert of(found, "settles_stale_total", device="EMU") == 1
    assert of(found, "leases_lost_total", device="EMU") == 0
    assert 0 <= of(found, "longest_wait_seconds", device="EMU") < 60
    assert of(found, "longest_wait_seconds", device="OTHER") == 0
    assert of(found, "redis_up") == of(found, "ledger_up") == 1


async def test_the_lag_of_the_recorder_is_measured(rig: MeasuredApi) -> None:
    await rig.announce()
    await rig.submit(1)
    await rig.submit(1)
    found = await rig.scrape()
    assert of(found, "stream_entries") == of(found, "recorder_lag_entries") == 2
    assert 0 <= of(found, "recorder_lag_seconds") < 60
    rig.record((await rig.store.events.read(most=10))[-1].id)
    found = await rig.scrape()
    assert (of(found, "recorder_lag_entries"), of(found, "recorder_lag_seconds")) == (0, 0)
    assert of(found, "recorder_active") == 0
    await rig.submit(1)
    assert of(await rig.scrape(), "recorder_lag_entries") == 1


async def test_the_lag_of_the_couriers_is_measured(rig: MeasuredApi) -> None:
    await rig.announce()
    await rig.submit(1)
    await rig.submit(1)
    found = await rig.scrape()
    assert of(found, "courier_lag_entries") == 2
    assert 0 <= of(found, "courier_lag_seconds") < 60
    last = (await rig.store.events.read(most=10))[-1].id
    await rig.database.run(Deliveries(rig.database, "tweezer").write, [], position_number(last))
    found = await rig.scrape()
    assert (of(found, "courier_lag_entries"), of(found, "courier_lag_seconds")) == (0, 0)


async def test_webhooks_are_counted_by_their_next_step(rig: MeasuredApi) -> None:
    with rig.database.write() as connection:
        url = "https://hooks.example.org/"
        endpoint = create_endpoint(connection, WebhookPolicy(), project_id="ours", url=url)
        disable_endpoint(connection, endpoint.id, "for a test")
    identity = delivery_id(endpoint.id, "e")
    row = NewDelivery(identity, endpoint.id, endpoint.project_no, None, None, "e", "ping", "{}", 1)
    await rig.database.run(Deliveries(rig.database, "tweezer").write, [row], None)
    found = await rig.scrape()
    assert [of(found, "deliveries", status=it) for it in ("pending", "exhausted", "held")] == [1, 0, 0]
    assert of(found, "deliveries_overdue") == of(found, "endpoints_disabled") == 1


async def test_dead_letters_are_counted_by_consumer(rig: MeasuredApi) -> None:
    with rig.database.write() as connection:
        letters = [NewLetter(f"{number}-0", "broken", b"") for number in range(3)]
        park(connection, Consumer.RECORDER, letters, DeadLetterBounds(count=2))
    found = await rig.scrape()
    assert [of(found, "dead_letters", consumer=it) for it in ("recorder", "courier", "intake")] == [2, 0, 0]
    assert of(found, "dead_letters_parked_total", consumer="recorder") == 3
    assert of(found, "dead_letters_evicted_total", consumer="recorder") == 1


async def test_the_memory_of_redis_and_its_limit_are_measured(
    rig: MeasuredApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def info() -> dict[str, Any]:
        return {"used_memory": 123, "maxmemory": 456, "role": "master"}

    monkeypatch.setattr(rig.store.reader, "server_info", info)
    found = await rig.scrape()
    assert (of(found, "redis_memory_bytes"), of(found, "redis_memory_limit_bytes")) == (123, 456)


async def test_only_operators_and_metrics_keys_may_read(rig: MeasuredApi) -> None:
    statuses = {role: (await rig.get("/metrics", role)).status_code for role in (*Role, None)}
    assert statuses == {Role.USER: 403, Role.READ: 403, Role.METRICS: 200, Role.OPERATOR: 200, None: 401}


async def test_the_text_is_declared_as_prometheus_expects_it(rig: MeasuredApi) -> None:
    response = await rig.get("/metrics")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE tweezer_leases_lost_total counter" in response.text
    assert "# TYPE tweezer_jobs gauge" in response.text
    assert f"# TYPE {ANSWERS} histogram" in response.text


async def test_the_monitoring_page_has_exactly_the_metrics_of_the_code(
    rig: MeasuredApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def info() -> dict[str, int]:
        return {}

    monkeypatch.setattr(rig.store.reader, "server_info", info)  # fakeredis has no INFO
    exported = set(re.findall(r"^# TYPE (\w+)", (await rig.get("/metrics")).text, re.MULTILINE))
    assert len(exported) > 20
    page = (DOCS / "operations/monitoring.md").read_text()
    rows = re.findall(r"^\| ((?:`tweezer_\w+`(?:, )?)+) \| (?:`\w+`(?:, )?)* ?\|", page, re.MULTILINE)
    assert sorted(re.findall(r"tweezer_\w+", " ".join(rows))) == sorted(exported)
    assert {name.removesuffix("_count") for name in re.findall(r"\btweezer_\w+", page)} == exported


async def test_responses_are_counted_by_route_and_not_by_path(rig: MeasuredApi) -> None:
    for _ in range(3):
        await rig.get(f"/api/v2/jobs/{new_batch_id()}", Role.READ)
    await rig.get("/no/such/route")
    await rig.get("/health", None)
    await rig.get("/api/v2/jobs/x", None)
    await rig.http.request("BREW", "/health", headers={"Authorization": f"Bearer {rig.keys[Role.USER]}"})
    found = await rig.scrape()

    def count(route: str, method: str, status: int) -> float:
        return of(found, "api_answer_seconds_count", route=route, method=method, status=str(status))

    assert count("/api/v2/jobs/{job_id}", "GET", 404) == 3
    assert count("none", "GET", 404) == 1
    assert count("none", "GET", 401) == 1
    assert count("/health", "GET", 200) == 1
    assert [labels for name, labels in found if name.endswith("_count") and ("method", "other") in labels]
    assert not [labels for _, labels in found if ("method", "BREW") in labels]


async def test_requests_refused_by_limits_are_counted(rig: MeasuredApi) -> None:
    statuses = [(await rig.get("/no/such/route", Role.OPERATOR)).status_code for _ in range(50)]
    assert statuses == [404] * 40 + [429] * 10
    found = await rig.scrape()
    assert of(found, "api_answer_seconds_count", route="none", method="GET", status="429") == 10


def test_times_are_counted_in_cumulative_buckets() -> None:
    times = AnswerTimes()
    for took_s in (0.0005, 0.001, 0.003, 0.2, 24.0, 60.0):
        times.note("/r", "GET", 200, took_s)
    (family,) = times.families()
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert (buckets["0.001"], buckets["0.0025"], buckets["0.005"]) == (2, 2, 3)
    assert (buckets["0.1"], buckets["0.25"], buckets["10.0"], buckets["25.0"], buckets["+Inf"]) == (3, 4, 4, 5, 6)
    (total,) = [s.value for s in family.samples if s.name.endswith("_sum")]
    assert total == pytest.approx(84.2045)


async def test_a_caller_that_leaves_unanswered_is_counted_once(
    rig: MeasuredApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def leave(*_: Any, **__: Any) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(Metrics, "text", leave)
    with pytest.raises(asyncio.CancelledError):
        await rig.get("/metrics")
    monkeypatch.undo()
    found = await rig.scrape()
    assert of(found, "api_answer_seconds_count", route="/metrics", method="GET", status="0") == 1


async def test_two_applications_count_separately(rig: MeasuredApi) -> None:
    other = create_app(Settings(), rig.store, rig.database)
    await rig.get("/health", None)
    found = samples((await other.state.metrics.text()).decode())
    assert f"{ANSWERS}_count" not in names(found)


async def test_without_redis_the_other_metrics_are_there(rig: MeasuredApi) -> None:
    await rig.announce()
    await rig.get("/health", None)
    rig.server.connected = False
    found = await rig.scrape()
    assert (of(found, "redis_up"), of(found, "ledger_up")) == (0, 1)
    assert "tweezer_jobs" not in names(found)
    assert f"{ANSWERS}_count" in names(found)
    rig.server.connected = True
    assert of(await rig.scrape(), "redis_up") == 1


async def test_without_the_ledger_the_metrics_of_the_queue_are_there(rig: MeasuredApi) -> None:
    await rig.announce()
    elsewhere = Database.open(OpenDatabase(url="postgresql://nobody@127.0.0.1:1/nothing"))
    metrics = Metrics(rig.store, elsewhere, namespace="tweezer", times=AnswerTimes())
    found = samples((await metrics.text()).decode())
    elsewhere.close()
    assert (of(found, "redis_up"), of(found, "ledger_up")) == (1, 0)
    assert of(found, "workers", device="EMU") == 1
    assert not [name for name in names(found) if "lag" in name]


async def test_a_redis_that_hangs_is_abandoned(rig: MeasuredApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tweezer.api.metrics._PATIENCE_S", 0.05)

    async def hang(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(rig.store.scripts, "call", hang)
    assert of(await rig.scrape(), "redis_up") == 0


async def test_a_scrape_makes_two_round_trips_to_redis_for_any_queue(
    rig: MeasuredApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        await rig.announce(f"D{number}")
        await rig.submit(3, f"D{number}")
    asked: list[str] = []
    execute: Any = type(rig.store.redis).execute_command

    async def counting(self: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(str(arguments[0]))
        return await execute(self, *arguments, **options)

    await rig.scrape()
    monkeypatch.setattr(type(rig.store.redis), "execute_command", counting)
    await rig.scrape()
    assert asked == ["EVALSHA", "INFO"]
