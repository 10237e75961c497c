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
import yaml
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert, update
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
from tweezer.ledger.schema import endpoints, recorder, totals
from tweezer.model.addresses import WebhookPolicy
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import BatchDoc, JobSpec, Outcome, OutcomeKind
from tweezer.model.specs import read_specs
from tweezer.settings import ApiSettings, Settings
from tweezer.store.connection import Store
from tweezer.store.measures import ProcessKind
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


async def test_a_device_is_up_while_it_starts_jobs(rig: MeasuredApi) -> None:
    for name in ("EMU", "PAUSED", "QPU", "DOWN", "SILENT"):
        await rig.announce(name)
    for name in ("QPU", "DOWN", "SILENT"):
        await rig.store.tickets.heartbeat(
            f"w-{name}", name, ttl_s=60, about_device={"exclusive": 1}, about_worker={"started": 1, "lanes": 1}
        )
    await rig.store.devices.pause("PAUSED", "for a test")
    await rig.store.devices.set_condition("DOWN", "down", "warming up")
    await rig.store.devices.set_condition("SILENT", "unknown", "connection refused")
    await rig.store.devices.create("UNSERVED", {}, read_specs('{"name": "UNSERVED"}'))
    found = await rig.scrape()
    up = {name: of(found, "device_up", device=name) for name in ("EMU", "PAUSED", "QPU", "DOWN", "SILENT", "UNSERVED")}
    assert up == {"EMU": 1, "PAUSED": 0, "QPU": 1, "DOWN": 0, "SILENT": 1, "UNSERVED": 0}
    answers = {dict(labels)["device"]: value for (name, labels), value in found.items() if "answers" in name}
    assert answers == {"QPU": 1, "DOWN": 1, "SILENT": 0}


async def test_ended_jobs_and_their_times_are_counted_by_device(rig: MeasuredApi) -> None:
    with rig.database.write() as connection:
        rows = [("EMU", "D", 0, 5, 0), ("EMU", "E", 0, 2, 0), ("EMU", "Q", 0, 4, 20), ("EMU", "Q", 13, 3, 400_000_000)]
        rows += [("EMU", "R", 4, 7, 6500), ("OLD", "C", 0, 1, 0)]
        names = ("device", "kind", "bucket", "count", "sum_ms")
        connection.execute(insert(totals), [dict(zip(names, row, strict=True)) for row in rows])
    found = await rig.scrape()
    ended = {
        status: of(found, "jobs_ended_total", device="EMU", status=status) for status in ("done", "error", "canceled")
    }
    assert ended == {"done": 5, "error": 2, "canceled": 0}
    assert of(found, "jobs_ended_total", device="OLD", status="canceled") == 1
    waits = [of(found, "job_queue_seconds_bucket", device="EMU", le=le) for le in ("0.01", "86400.0", "+Inf")]
    assert waits == [4, 4, 7]
    assert of(found, "job_queue_seconds_count", device="EMU") == 7
    assert of(found, "job_queue_seconds_sum", device="EMU") == pytest.approx(400_000.02)
    assert [of(found, "job_run_seconds_bucket", device="EMU", le=le) for le in ("0.5", "1.0")] == [0, 7]


async def test_a_running_scheduler_is_measured(rig: MeasuredApi) -> None:
    assert of(await rig.scrape(), "scheduler_active") == 0
    await rig.store.processes.report(ProcessKind.SCHEDULER, "lab1:812:3fa901")
    assert of(await rig.scrape(), "scheduler_active") == 1


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
    assert of(found, "endpoints_failing") == 0
    with rig.database.write() as connection:
        connection.execute(update(endpoints).values(failing_ms=1, disabled_ms=None))
    assert of(await rig.scrape(), "endpoints_failing") == 1


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


async def test_the_alert_rules_use_metrics_and_labels_that_exist(
    rig: MeasuredApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def info() -> dict[str, int]:
        return {}

    monkeypatch.setattr(rig.store.reader, "server_info", info)
    await rig.announce()
    await rig.store.tickets.heartbeat("w", "QPU", ttl_s=60, about_device={"exclusive": 1}, about_worker={"started": 1})
    with rig.database.write() as connection:
        names = ("device", "kind", "bucket", "count", "sum_ms")
        connection.execute(insert(totals), dict(zip(names, ("EMU", "Q", 0, 1, 5), strict=True)))
    await rig.get("/health", None)
    labels: dict[str, set[str]] = {"up": {"job", "instance"}}
    values: dict[str, set[str]] = {}
    for name, pairs in await rig.scrape():
        labels.setdefault(name, set()).update(label for label, _ in pairs)
        for label, value in pairs:
            values.setdefault(f"{name}.{label}", set()).add(value)
    rules = alert_rules()
    assert len(rules) > 15
    for rule in rules:
        used = Expression(rule["expr"])
        for metric, matchers in used.metrics.items():
            assert metric in labels, f"{rule['alert']} uses {metric}, which the API does not export"
            assert set(matchers) <= labels[metric], f"{rule['alert']} uses unknown labels of {metric}"
            for label, value in matchers.items():
                if metric != "up" and not value.startswith("~"):
                    assert value in values[f"{metric}.{label}"], f"{rule['alert']}: {metric} never has {label}={value}"
        known = set.union(*(labels[metric] for metric in used.metrics))
        assert used.groups <= known, f"{rule['alert']} groups by unknown labels"
        shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert shown <= (used.groups if used.aggregates else known), f"{rule['alert']} shows unknown labels"


def test_each_alert_has_what_is_wrong_and_what_to_do() -> None:
    rules = alert_rules()
    for rule in rules:
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
    named = [rule["alert"] for rule in rules]
    assert len(named) == len(set(named))
    page = (DOCS / "operations/monitoring.md").read_text()
    assert set(re.findall(r"`(Tweezer\w+)`", page)) == set(named)


@pytest.mark.parametrize(
    "wrong",
    [
        "tweezer_jobs >",
        "sum(tweezer_jobs",
        "tweezer_jobs) > 0",
        'tweezer_jobs{status="x" > 0',
        "foo(tweezer_jobs)",
        "a b",
    ],
)
def test_a_wrong_expression_is_found(wrong: str) -> None:
    with pytest.raises(ValueError, match="expression"):
        Expression(wrong)


def alert_rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DOCS.parent / "deploy/alerts.yml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


_PART = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<name>[a-zA-Z_]\w*)|(?P<text>"[^"]*")|(?P<range>\[\d+[smhd]\])
        |(?P<operator>==|!=|>=|<=|=~|!~|[-+*/<>=(),{}]))""",
    re.VERBOSE,
)
_FUNCTIONS = {"rate", "increase", "histogram_quantile", "sum", "max", "min"}
_AGGREGATIONS = {"sum", "max", "min"}
_BINARY = {"==", "!=", ">", "<", ">=", "<=", "+", "-", "*", "/", "and", "or", "unless"}


class Expression:
    """The part of PromQL that the rules use, parsed. Raises ValueError for a wrong expression.

    metrics: the metrics with their matchers. groups: labels of ``by`` and ``on``.
    """

    def __init__(self, text: str) -> None:
        self.metrics: dict[str, dict[str, str]] = {}
        self.groups: set[str] = set()
        self.aggregates = False
        self._parts: list[str] = []
        at, text = 0, text.rstrip()
        while at < len(text):
            match = _PART.match(text, at)
            if match is None:
                raise ValueError(f"the expression has an unknown part: {text[at:]}")
            self._parts.append(match[0].strip())
            at = match.end()
        self._binary()
        if self._parts:
            raise ValueError(f"the expression does not end where it should: {self._parts}")

    def _next(self, *wanted: str) -> str:
        if not self._parts or (wanted and self._parts[0] not in wanted):
            raise ValueError(f"the expression needs one of {wanted} before {self._parts}")
        return self._parts.pop(0)

    def _is(self, *parts: str) -> bool:
        return bool(self._parts) and self._parts[0] in parts

    def _binary(self) -> None:
        self._operand()
        while self._is(*_BINARY):
            self._next()
            if self._is("on", "ignoring"):
                self._next()
                self._labels()
            self._operand()

    def _labels(self) -> None:
        self._next("(")
        self.groups.add(self._next())
        while self._is(","):
            self._next()
            self.groups.add(self._next())
        self._next(")")

    def _operand(self) -> None:
        part = self._next()
        if part == "(":
            self._binary()
            self._next(")")
        elif self._is("(", "by"):
            self._call(part)
        elif re.fullmatch(r"[a-z_]\w*", part):
            self._selector(part)
        elif not re.fullmatch(r"\d+(\.\d+)?", part):
            raise ValueError(f"the expression has {part!r} in place of a value")

    def _call(self, function: str) -> None:
        if function not in _FUNCTIONS:
            raise ValueError(f"the expression calls the unknown function {function}")
        self.aggregates |= function in _AGGREGATIONS
        if self._is("by"):
            self._next()
            self._labels()
        self._next("(")
        self._binary()
        while self._is(","):
            self._next()
            self._binary()
        self._next(")")

    def _selector(self, metric: str) -> None:
        matchers = self.metrics.setdefault(metric, {})
        if self._is("{"):
            self._next()
            while not self._is("}"):
                label, operator = self._next(), self._next("=", "!=", "=~", "!~")
                matchers[label] = ("~" if "~" in operator else "") + self._next().strip('"')
                if self._is(","):
                    self._next()
            self._next("}")
        if self._parts and self._parts[0].startswith("["):
            self._next()


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
