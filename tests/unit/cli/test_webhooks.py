"""``tweezer webhooks``: endpoints, secrets, the log, and commands for authors of receivers."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import click
import jsonschema
import pytest
from click.testing import CliRunner, Result
from tests.support.waiting import PATIENCE_S

from tweezer.cli import main
from tweezer.cli.deliveries import moment
from tweezer.ledger.access.projects import find_project
from tweezer.ledger.access.vault import KEY_FILE
from tweezer.ledger.database import Database
from tweezer.ledger.schema import now_ms
from tweezer.model.errors import install_command
from tweezer.model.signatures import check_secret
from tweezer.model.webhooks import EventType
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
from tweezer.webhooks.endpoints import ensure_batch_endpoints, find_endpoint

NOWHERE = "redis://127.0.0.1:1/0"
URL = "https://hooks.example.org/tweezer?key=1"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("TWEEZER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


class Line:
    """The command line on a ledger, as project ``lab``, without Redis, which these commands do not need."""

    def __init__(self, ledger: Database, folder: Path) -> None:
        self.database = ledger
        self._environment = {"TWEEZER_DATABASE_URL": str(ledger.engine.url), "TWEEZER_DATA_DIR": str(folder)}

    def call(self, *arguments: str, project: str = "lab", input: str | None = None) -> Result:
        call = ["--redis", NOWHERE, "--project", project, "webhooks", *arguments]
        return CliRunner(env=self._environment).invoke(main, call, input=input)

    def output(self, *arguments: str, **options: Any) -> str:
        result = self.call(*arguments, **options)
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self.output(*arguments, "--json", **options))

    def refused(self, *arguments: str, code: int = 1) -> str:
        """Return the last line of stderr."""
        result = self.call(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        return result.stderr.strip().splitlines()[-1]

    def deliver(self, endpoint_id: str, event: str, status: str | None = None, code: int = 503) -> UUID:
        """Write a delivery as a courier does; with a status also one attempt."""
        endpoint, rows = UUID(endpoint_id), Deliveries(self.database, "tweezer")
        with self.database.read() as connection:
            no = find_endpoint(connection, endpoint).project_no
        identity = delivery_id(endpoint, event)
        rows.write([NewDelivery(identity, endpoint, no, None, None, event, "job.done", '{"a":1}', now_ms())], None)
        if status is not None:
            attempt = Attempt(1, now_ms(), code, 40, None, "busy\x1b[2J", None)
            rows.record([AttemptOutcome(identity, status, 1, write_log([attempt]), None)])
        return identity


@pytest.fixture
def line(ledger: Database, tmp_path: Path) -> Line:
    line = Line(ledger, tmp_path)
    CliRunner(env=line._environment).invoke(main, ["projects", "create", "Lab", "--id", "lab"])
    return line


# -- endpoints ------------------------------------------------------------------------------------------


def test_an_endpoint_is_added_with_a_secret_and_listed_without(line: Line) -> None:
    result = line.call("add", URL, "--type", "job.done", "--type", "batch.done", "--description", "the lab's")
    identity, secret = result.stdout.split()
    check_secret(secret)
    assert f"tweezer webhooks test {identity}" in result.stderr
    table = line.output("list")
    assert all(word in table for word in (identity, "https://hooks.example.org/tweezer?…", "batch.done job.done"))
    assert "key=1" not in table
    (listed,) = line.json("list")
    assert (listed["id"], listed["url"], listed["types"]) == (identity, URL, ["batch.done", "job.done"])
    assert (listed["project"], listed["kind"], listed["disabled"]) == ("lab", "project", None)
    assert secret not in table + line.output("list", "--json") + line.output("show", identity)


def test_an_endpoint_may_have_an_ed25519_key_too(line: Line) -> None:
    _, secret, public = line.output("add", URL, "--ed25519").split()
    assert (secret[:6], public[:5]) == ("whsec_", "whpk_")
    made = line.json("add", URL, "--ed25519")
    assert line.output("secret", made["id"]).split() == [made["secret"], made["public_key"]]


def test_an_invalid_endpoint_is_reported(line: Line) -> None:
    assert "url: " in line.refused("add", "https://127.0.0.1/")
    assert "TWEEZER_WEBHOOK_ALLOW" in line.refused("add", "http://hooks.example.org/")
    assert "job.finished" in line.refused("add", URL, "--type", "job.finished", code=2)
    assert "there is no endpoint" in line.refused("show", str(uuid4()))
    assert "is not a valid UUID" in line.refused("show", "x", code=2)
    assert line.json("list") == []
    assert "tweezer webhooks add" in line.output("list")


def test_endpoints_of_other_projects_and_of_batches_are_listed_when_asked_for(line: Line) -> None:
    identity = line.json("add", URL)["id"]
    with line.database.write() as connection:
        no = find_project(connection, "lab").no
        (of_batch,) = ensure_batch_endpoints(connection, [(no, URL)]).values()
    assert line.json("list", project="other") == []
    assert [it["id"] for it in line.json("list", "--all-projects", project="other")] == [identity]
    assert [it["id"] for it in line.json("list", "--batches")] == [identity, str(of_batch.id)]
    assert "webhook of batches" in line.output("show", str(of_batch.id))
    assert line.output("secret", str(of_batch.id)) == line.output("secret")


def test_an_endpoint_is_disabled_enabled_and_removed(line: Line) -> None:
    identity = line.json("add", URL)["id"]
    line.deliver(identity, "e1")
    assert "is disabled: its events are held." in line.output("disable", identity, "--reason", "it is being moved")
    assert "it is being moved" in line.output("list")
    assert "enable it first" in line.refused("test", identity)
    result = line.call("enable", identity)
    assert "is enabled: new events are sent to it." in result.stdout
    assert "Earlier events are held" in result.stderr
    assert line.json("enable", identity)["disabled"] is None
    asked = line.call("remove", identity, input="n\n")
    assert (asked.exit_code, "hooks.example.org" in asked.output) == (130, True)
    assert "Removed" in line.output("remove", identity, "--yes")
    assert line.json("list") == []


# -- secrets --------------------------------------------------------------------------------------------


def test_secrets_are_shown_and_rotated(line: Line) -> None:
    made = line.json("add", URL)
    of_project = line.output("secret")
    assert line.output("secret", made["id"]) == made["secret"] != of_project
    rotated = line.call("rotate", made["id"], "--overlap", "2h")
    assert rotated.stdout.strip() == line.output("secret", made["id"]) != made["secret"]
    assert "The old secret also signs until" in rotated.stderr
    assert "The old secret" not in line.call("rotate", "--overlap", "0").stderr
    after = line.json("rotate")
    assert after["secret"] == line.output("secret") != of_project
    assert after["older_until"] > datetime.now(UTC).isoformat()
    assert line.json("rotate", "--ed25519")["public_key"].startswith("whpk_")


# -- test -----------------------------------------------------------------------------------------------


def test_secrets_are_encrypted_with_another_key(line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = line.output("secret")
    former, new = (tmp_path / KEY_FILE).read_text().strip(), base64.b64encode(bytes(32)).decode()
    monkeypatch.setenv("TWEEZER_SECRETS_KEY", f"{new},{former}")
    assert line.output("reseal").startswith("Encrypted 1 secrets again")
    assert line.output("reseal").startswith("Encrypted 0 secrets")
    monkeypatch.setenv("TWEEZER_SECRETS_KEY", new)
    assert line.output("secret") == secret


@contextmanager
def couriers(line: Line, status: str, code: int) -> Iterator[None]:
    """Attempt due deliveries until the block ends."""
    over = threading.Event()
    rows = Deliveries(line.database, "tweezer")

    def work() -> None:
        while not over.wait(0.02):
            for endpoint in rows.overdue(now_ms() + 1):
                for due in rows.claim(endpoint, most=10, until_ms=now_ms() + 60_000):
                    attempt = Attempt(1, now_ms(), code, 7, None, "", None)
                    rows.record([AttemptOutcome(due.id, status, 1, write_log([attempt]), None)])

    worker = threading.Thread(target=work)
    worker.start()
    yield
    over.set()
    worker.join()


@pytest.mark.parametrize(("status", "code", "exit_code"), [(DELIVERED, 204, 0), (EXHAUSTED, 500, 1)])
def test_a_test_sends_a_ping_and_shows_its_outcome(line: Line, status: str, code: int, exit_code: int) -> None:
    identity = line.json("add", URL, "--type", "batch.done")["id"]
    with couriers(line, status, code):
        result = line.call("test", identity)
    assert result.exit_code == exit_code
    assert "ping" in result.stdout
    assert f"HTTP {code} after 7 ms" in result.stdout
    assert "The couriers could not be notified" in result.stderr  # Redis is away


def test_a_test_without_a_courier_reports_that(line: Line) -> None:
    identity = line.json("add", URL)["id"]
    result = line.call("test", identity, "--wait", "0")
    assert (result.exit_code, "Check that `tweezer courier` is running" in result.stdout) == (1, True)
    assert line.json("deliveries", "--endpoint", identity)[0]["type"] == "ping"


# -- deliveries -----------------------------------------------------------------------------------------


def test_deliveries_are_listed_and_shown_with_every_attempt(line: Line) -> None:
    identity = line.json("add", URL)["id"]
    delivered, exhausted = line.deliver(identity, "e1", DELIVERED, 204), line.deliver(identity, "e2", EXHAUSTED)
    table = line.output("deliveries")
    assert all(word in table for word in (str(delivered), str(exhausted), "delivered", "HTTP 503 after 40 ms"))
    assert [it["id"] for it in line.json("deliveries", "--status", "exhausted")] == [str(exhausted)]
    assert [it["log"][0]["status"] for it in line.json("deliveries", "--status", "delivered")] == [204]
    assert len(line.json("deliveries", "--limit", "1")) == 1
    for none in (
        ("--type", "batch.done"),
        ("--batch", str(uuid4())),
        ("--since", "2999-01-01"),
        ("--endpoint", str(uuid4())),
    ):
        assert line.json("deliveries", *none) == []
    assert line.json("deliveries", project="other") == []
    assert len(line.json("deliveries", "--all-projects", project="other")) == 2
    shown = line.output("deliveries", str(exhausted))
    assert all(word in shown for word in ("webhook-id e2", "1. ", "HTTP 503", "busy", '{"a":1}'))
    assert "\x1b" not in shown  # responses of other servers must not control the terminal
    assert line.json("deliveries", str(exhausted))["body"] == '{"a":1}'
    assert str(exhausted) in line.output("show", identity)


def test_more_deliveries_than_a_page_has_are_listed(line: Line) -> None:
    identity = line.json("add", URL)["id"]
    ids = {str(line.deliver(identity, f"e{number}")) for number in range(130)}
    assert {it["id"] for it in line.json("deliveries", "--limit", "1000")} == ids


def test_one_delivery_or_all_since_a_time_are_sent_again(line: Line) -> None:
    identity = line.json("add", URL)["id"]
    delivered, exhausted = line.deliver(identity, "e1", DELIVERED), line.deliver(identity, "e2", EXHAUSTED)
    result = line.call("resend", str(delivered))
    assert result.stdout == "Resending 1 delivery.\n"
    assert "will notice the change later" in result.stderr
    assert line.json("deliveries", str(delivered))["status"] == "pending"
    assert line.json("resend", "--endpoint", identity, "--since", "1h") == {"count": 2}
    assert line.json("deliveries", str(exhausted))["status"] == "pending"
    assert line.output("resend", "--endpoint", identity, "--since", "2999-01-01T00:00") == "Resending 0 deliveries."
    for wrong in ((), (str(delivered), "--endpoint", identity, "--since", "1h"), ("--endpoint", identity)):
        assert "--since TIME" in line.refused("resend", *wrong, code=2)
    assert "no endpoint" in line.refused("resend", "--endpoint", str(uuid4()), "--since", "1h")
    assert "no delivery" in line.refused("resend", str(uuid4()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22", datetime(2026, 11, 22, tzinfo=UTC)),
        ("2026-11-22T10:00:00+01:00", datetime(2026, 11, 22, 9, tzinfo=UTC)),
        ("2026-11-22T10:00:00Z", datetime(2026, 11, 22, 10, tzinfo=UTC)),
    ],
)
def test_times_are_read(text: str, expected: datetime) -> None:
    assert moment(text) == expected


def test_times_may_be_given_relative_to_now() -> None:
    assert abs((datetime.now(UTC) - moment("2h")) - timedelta(hours=2)) < timedelta(seconds=10)
    with pytest.raises(click.BadParameter, match="2h"):
        moment("yesterday")


# -- for authors of receivers ---------------------------------------------------------------------------


@pytest.mark.parametrize("type_", [it.value for it in EventType])
def test_every_type_has_a_sample_that_matches_its_schema(line: Line, type_: str) -> None:
    document = json.loads(line.output("schema"))
    sample = json.loads(line.output("sample", type_))
    assert sample["type"] == type_
    assert document["$defs"][type_]["properties"]["type"]["const"] == type_
    jsonschema.Draft202012Validator(document).validate(sample)


def test_the_default_sample_is_of_a_finished_job(line: Line) -> None:
    assert json.loads(line.output("sample"))["type"] == "job.done"
    assert "'job.finished' is not one of" in line.refused("sample", "job.finished", code=2)


@pytest.mark.parametrize("command", ["replay", "sample"])
def test_nothing_is_sent_to_an_invalid_url(line: Line, command: str) -> None:
    given = ("--url", "ftp://host/") if command == "sample" else ("file:///etc/passwd",)
    assert "http://127.0.0.1:8808/" in line.refused(command, *given)


def test_a_receiver_without_a_ledger_needs_a_secret(tmp_path: Path) -> None:
    environment = {"TWEEZER_DATABASE_URL": f"sqlite:///{tmp_path / 'none.db'}", "TWEEZER_DATA_DIR": str(tmp_path)}
    result = CliRunner(env=environment).invoke(main, ["webhooks", "listen", "--port", "0"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.rstrip().endswith("or give the secret with --secret")
    for wrong in ("99", "200,", "x", "200,,500"):
        result = CliRunner(env=environment).invoke(main, ["webhooks", "listen", "--answer", wrong])
        assert (result.exit_code, "is not a list of HTTP statuses" in result.stderr) == (2, True)


def test_the_base_install_reports_which_extra_to_install() -> None:
    program = "import sys; sys.modules['sqlalchemy'] = None; from tweezer.cli import main; main(['webhooks', 'list'])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"Error: `tweezer webhooks` needs sqlalchemy; run {install_command('server')}\n"


def test_a_rotation_waits_no_longer_than_necessary(line: Line) -> None:
    line.output("secret")
    began = time.monotonic()
    line.output("rotate")
    assert 1.5 <= time.monotonic() - began < PATIENCE_S
