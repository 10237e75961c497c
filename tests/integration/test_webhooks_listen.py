"""The receiver of ``tweezer webhooks listen``, with requests made by hand."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from click.testing import CliRunner, Result
from tests.support.waiting import until

from tweezer.cli import main
from tweezer.cli.listen import Manner, Received, Receiver, format_line, to_json
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.schema import now_ms
from tweezer.model.errors import InvalidInput
from tweezer.model.ids import short_id
from tweezer.model.signatures import new_secret, sign
from tweezer.model.webhooks import envelope
from tweezer.webhooks.deliveries import Deliveries, NewDelivery, delivery_id
from tweezer.webhooks.endpoints import find_endpoint
from tweezer.webhooks.samples import sample

BATCH = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"

SECRET = new_secret()
Start = Callable[..., Any]


class Bench:
    """A receiver, what it received, and a sender."""

    def __init__(self, secrets: Any, http: aiohttp.ClientSession, **options: Any) -> None:
        self.got: list[Received] = []
        self.receiver = Receiver(secrets, self.got.append, **options)
        self._http = http

    async def send(self, identity: str = "e1", *, secret: str = SECRET, body: bytes | None = None, **data: Any) -> int:
        """Post a signed webhook and return the status of the response."""
        content = envelope("job.done", "2026-11-22T10:00:00Z", data) if body is None else body
        sent = int(time.time())
        headers = {
            "Webhook-Id": identity,
            "Webhook-Timestamp": str(sent),
            "Webhook-Signature": sign(secret, identity, sent, content),
        }
        async with self._http.post(self.receiver.url + "hook?x=1", data=content, headers=headers) as answer:
            self.headers, self.text = answer.headers, await answer.text()
            return answer.status


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """A function that starts receivers."""
    benches: list[Bench] = []
    async with aiohttp.ClientSession() as http:

        async def begin(secrets: Any = (SECRET,), **options: Any) -> Bench:
            bench = Bench(secrets, http, **options)
            await bench.receiver.start()
            benches.append(bench)
            return bench

        yield begin
        for bench in benches:
            await bench.receiver.close()


# --- the receiver


async def test_a_genuine_webhook_is_verified_and_accepted(start: Start) -> None:
    bench = await start()
    assert await bench.send(batch_id=BATCH, index=3, status="DONE", sequence=5, previous_sequence=4) == 204
    (got,) = bench.got
    assert got.webhook is not None
    assert (got.id, got.webhook.type, got.webhook.data["sequence"]) == ("e1", "job.done", 5)
    assert (got.problem, got.repeated, got.remarks, got.status) == (None, False, (), 204)
    assert all(
        word in format_line(got)
        for word in ("job.done", f"job {short_id(UUID(BATCH))}/3", "DONE", "#5", "verified, answered 204")
    )
    shown = json.loads(to_json(got))
    assert (shown["verified"], shown["data"]["index"], shown["status"]) == (True, 3, 204)


async def test_a_forged_webhook_is_refused_with_the_reason(start: Start) -> None:
    bench = await start()
    assert await bench.send(secret=new_secret()) == 401
    assert "the signature does not match" in bench.text
    async with aiohttp.ClientSession() as http, http.post(bench.receiver.url, data=b"{}") as answer:
        assert answer.status == 401
    async with aiohttp.ClientSession() as http, http.get(bench.receiver.url) as answer:
        assert answer.status == 405
    wrong, bare = bench.got
    assert (wrong.webhook, bare.webhook) == (None, None)
    assert "NOT VERIFIED: the signature does not match" in format_line(wrong)
    assert "webhook-id is missing" in format_line(bare)
    assert json.loads(to_json(bare))["verified"] is False


async def test_a_foreign_request_cannot_control_the_terminal(start: Start) -> None:
    bench = await start(SECRET)
    assert await bench.send("\x9b31mred", secret=new_secret()) == 401
    assert format_line(bench.got[0]).isprintable()


async def test_repeats_gaps_and_late_webhooks_are_shown(start: Start) -> None:
    bench = await start()
    for identity, number, before in (("e4", 4, 3), ("e7", 7, 6), ("e7", 7, 6), ("e6", 6, 4), ("e9", 9, 7)):
        await bench.send(identity, batch_id=BATCH, sequence=number, previous_sequence=before)
    await bench.send("other", batch_id="another", sequence=2, previous_sequence=1)
    await bench.send("ping", endpoint_id="x")
    remarks = [(it.repeated, it.remarks) for it in bench.got]
    assert remarks == [
        (False, ()),  # events from before the start of the receiver are not a gap
        (False, ("gap: 6 is missing",)),
        (True, ()),
        (False, ("late: fills the gap at 6",)),
        (False, ()),
        (False, ()),
        (False, ()),
    ]
    assert format_line(bench.got[1]).endswith("(gap: 6 is missing)")
    assert format_line(bench.got[2]).endswith("(repeated)")


async def test_it_answers_with_the_requested_status(start: Start) -> None:
    bench = await start(manner=Manner(answers=(200, 500, 429), retry_after_s=7))
    assert [await bench.send(f"e{number}") for number in range(4)] == [200, 500, 429, 200]
    assert "Retry-After" not in bench.headers
    await bench.send("e4")
    assert bench.headers["Retry-After"] == "7"
    assert [it.status for it in bench.got] == [200, 500, 429, 200, 500]


async def test_it_closes_the_connection_on_demand(start: Start) -> None:
    for manner in (Manner(reset=True), Manner(hang_s=0.2)):
        bench, began = await start(manner=manner), time.monotonic()
        with pytest.raises(aiohttp.ClientError):
            await bench.send()
        assert time.monotonic() - began >= (manner.hang_s or 0)
        (got,) = bench.got
        assert (got.status, "no response" in format_line(got)) == (None, True)


async def test_it_is_slow_on_demand(start: Start) -> None:
    bench, began = await start(manner=Manner(slow_s=0.2)), time.monotonic()
    assert await bench.send() == 204
    assert time.monotonic() - began >= 0.2


async def test_it_stops_while_a_request_waits(start: Start) -> None:
    bench = await start(manner=Manner(hang_s=600))
    waiting = asyncio.create_task(bench.send())
    await until(lambda: bool(bench.got))
    await bench.receiver.close()
    with pytest.raises(aiohttp.ClientError):
        await waiting


async def test_secrets_that_are_added_later_are_used(start: Start) -> None:
    known: list[str] = []
    bench = await start(lambda: list(known))
    assert await bench.send() == 401
    assert "no secret was given" in bench.text
    known.append(SECRET)

    async def taken() -> bool:
        return bool(await bench.send("e2") == 204)

    await until(taken)


async def test_a_port_that_is_taken_is_reported(start: Start) -> None:
    bench = await start()
    port = int(bench.receiver.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(InvalidInput) as refused:
        await start(port=port)
    assert refused.value.field == "port"


# --- the commands


class Site:
    """A ledger with an endpoint, and its command line."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.environment = {"TWEEZER_DATABASE_URL": str(database.engine.url), "TWEEZER_DATA_DIR": str(folder)}
        self.call("projects", "create", "Lab", "--id", "default")
        self.endpoint = json.loads(self.call("webhooks", "add", "https://hooks.example.org/", "--json").stdout)

    def call(self, *arguments: str) -> Result:
        return CliRunner(env=self.environment).invoke(main, [*arguments])

    def deliver(self, *types: str) -> None:
        """Write deliveries of samples in one call, as a courier does."""
        endpoint = UUID(self.endpoint["id"])
        with self.database.read() as connection:
            no = find_endpoint(connection, endpoint).project_no
        rows = []
        for type_ in types:
            event = sample(type_)
            body = envelope(event.type, event.timestamp, event.data).decode()
            identity = delivery_id(endpoint, event.id)
            number = event.data["sequence"]
            rows.append(NewDelivery(identity, endpoint, no, None, number, event.id, type_, body, now_ms()))
        Deliveries(self.database, "test").write(rows, None)


@pytest.fixture
def site(sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in os.environ:
        if name.startswith("TWEEZER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    copied = tmp_path / "ledger.db"
    copied.write_bytes(sqlite_template.read_bytes())
    database = Database.open(OpenDatabase(url=f"sqlite:///{copied}"))
    yield Site(database, tmp_path)
    database.close()


@pytest.fixture
async def listening(site: Site) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run ``tweezer webhooks listen`` with the secrets of the ledger; yield its URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tweezer.cli", "webhooks", "listen", "--port", "0", "--json"),
        env={**os.environ, **site.environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
    assert line.startswith("Listening at http://127.0.0.1:"), line
    yield process, line.split()[2]
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def test_stored_deliveries_are_replayed_to_a_listener_signed_anew(
    site: Site, listening: tuple[asyncio.subprocess.Process, str]
) -> None:
    process, url = listening
    site.deliver("batch.created", "job.done", "batch.done")
    result = await asyncio.to_thread(site.call, "webhooks", "replay", url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("HTTP 204") == 3
    assert result.stdout.endswith("3 of 3 were accepted.\n")
    one = await asyncio.to_thread(site.call, "webhooks", "replay", "--type", "job.done", "--json", url)
    assert json.loads(one.stdout)["id"] == sample("job.done").id
    posted = await asyncio.to_thread(site.call, "webhooks", "sample", "ping", "--url", url)
    assert (posted.exit_code, "HTTP 204" in posted.stdout) == (0, True)
    process.send_signal(signal.SIGINT)
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    shown = [json.loads(line) for line in out.splitlines()]
    assert [it["verified"] for it in shown] == [True] * 5
    assert [it["type"] for it in shown] == ["batch.created", "job.done", "batch.done", "job.done", "ping"]
    assert [it["repeated"] for it in shown] == [False, False, False, True, False]


async def test_a_replay_reports_what_was_not_accepted(site: Site, start: Start) -> None:
    site.deliver("job.done", "batch.done")
    bench = await start([site.endpoint["secret"]], manner=Manner(answers=(500, 301)))
    result = await asyncio.to_thread(site.call, "webhooks", "replay", bench.receiver.url)
    assert result.exit_code == 1
    assert all(word in result.stdout for word in ("HTTP 500", "HTTP 301", "0 of 2 were accepted"))
    await bench.receiver.close()
    result = await asyncio.to_thread(site.call, "webhooks", "replay", "--type", "job.done", bench.receiver.url)
    assert (result.exit_code, "0 of 1 were accepted" in result.stdout) == (1, True)
    result = await asyncio.to_thread(site.call, "webhooks", "replay", "--since", "2999-01-01", bench.receiver.url)
    assert (result.exit_code, result.stdout) == (0, "0 of 0 were accepted.\n")
