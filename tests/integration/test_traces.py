"""One trace of a batch across real processes: client, API, worker, recorder and courier."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.support.api_rig import bearer
from tests.support.processes import Site
from tests.support.waiting import PATIENCE_S, until
from tests.support.webhook_receiver import Receiver

from tweezer.ledger.access.keys import create_key
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
GIVEN_ID = GIVEN.split("-")[1]


class Collector:
    """A collector of OTLP over HTTP: spans as (service, name, trace id, attributes)."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, str, dict[str, Any]]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector._read(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _read(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(it.value.string_value for it in resource.resource.attributes if it.key == "service.name")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {it.key: it.value.string_value or it.value.int_value for it in span.attributes}
                    self.spans.append((service, span.name, span.trace_id.hex(), attributes))

    def of_trace(self, trace_id: str) -> set[tuple[str, str]]:
        return {(service, name) for service, name, found, _ in self.spans if found == trace_id}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    yield collector
    collector.close()


@pytest.fixture
async def site(real_redis_url: str, tmp_path: Path, sqlite_template: Path, collector: Collector) -> AsyncIterator[Site]:
    ledger = tmp_path / "ledger.db"
    ledger.write_bytes(sqlite_template.read_bytes())  # noqa: ASYNC240  a small file
    settings = {"database_url": f"sqlite:///{ledger}", "data_dir": tmp_path, "webhook_allow": "127.0.0.0/8"}
    async with Site(real_redis_url, tmp_path, **settings) as site:
        await site.workers(1)
        yield site


def make_key(folder: Path) -> str:
    database = Database.open(OpenDatabase(url=f"sqlite:///{folder / 'ledger.db'}"))
    with database.write() as connection:
        project_no(connection, "ours")
        text = create_key(connection, name="test", project_id="ours").text
    database.close()
    return text


async def test_a_trace_that_a_client_began_goes_through_all_processes(site: Site, collector: Collector) -> None:
    key = make_key(site.folder)
    _, url = await site.api()
    await site.serves(site.spawn("recorder"))
    await site.serves(site.spawn("courier", webhook_processes=1))
    async with Receiver() as receiver, httpx.AsyncClient(base_url=url, headers=bearer(key)) as http:
        body = {"device_type": "NULL", "jobs": [{"runs": 1}], "webhook": receiver.url(), "complete": True}
        answer = await http.post("/api/v1/batches", json=body, headers={"traceparent": GIVEN})
        assert answer.status_code == 200, answer.text
        wanted = {
            ("tweezer-api", "tweezer.submit"),
            *(("tweezer-worker", f"tweezer.{it}") for it in ("ticket", "queue", "prepare", "job", "settle")),
            ("tweezer-courier", "tweezer.webhook"),
        }
        await until(lambda: wanted <= collector.of_trace(GIVEN_ID), "the spans of all processes")
        assert {it.headers["traceparent"].split("-")[1] for it in receiver.received} == {GIVEN_ID}
    batch_id = answer.json()["data"]["id"]
    assert {it[3]["tweezer.batch"] for it in collector.spans if "tweezer.batch" in it[3]} == {batch_id}


async def test_a_batch_without_a_trace_has_the_trace_of_its_id(site: Site, collector: Collector) -> None:
    batch = await site.submit([{}])
    await batch.wait(PATIENCE_S)
    await until(lambda: ("tweezer-worker", "tweezer.settle") in collector.of_trace(batch.id.hex), "the spans")


async def test_the_library_continues_the_trace_of_its_program(
    site: Site, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    with provider.get_tracer("a program").start_as_current_span("a page") as page:
        batch = await site.submit([{}])
        trace_id = f"{page.get_span_context().trace_id:032x}"
    (submit,) = [span for span in exporter.get_finished_spans() if span.name == "tweezer.submit"]
    own = submit.get_span_context()
    assert own is not None
    assert submit.parent is not None
    assert submit.parent.span_id == page.get_span_context().span_id
    record = await batch.record()
    assert record.doc.trace == f"00-{trace_id}-{own.span_id:016x}-{own.trace_flags:02x}"
    assert own.trace_flags.sampled
    await until(lambda: ("tweezer-worker", "tweezer.job") in collector.of_trace(trace_id), "the spans of the worker")


async def test_calls_with_one_idempotency_key_are_equal_in_different_traces(site: Site) -> None:
    key = make_key(site.folder)
    _, url = await site.api()
    async with httpx.AsyncClient(base_url=url, headers=bearer(key) | {"Idempotency-Key": "k"}) as http:
        body = {"device_type": "NULL", "jobs": [{"runs": 1}]}
        first, second = [
            (await http.post("/api/v1/batches", json=body, headers={"traceparent": it})).json()["data"]["id"]
            for it in (GIVEN, GIVEN.replace("4bf9", "aaaa"))
        ]
    assert first == second
