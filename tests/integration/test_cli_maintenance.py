"""The commands that take a device out of service, and how other commands show it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import pytest
from click.testing import CliRunner
from tests.support.records import change_record
from tests.support.redis_users import as_user

from tweezer.cli import main
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import BatchDoc, JobSpec, Outcome, OutcomeKind, Result
from tweezer.store.acl import RedisUser
from tweezer.store.connection import Connect, Store
from tweezer.store.keys import Key
from tweezer.store.workers import Grant, Settlement

DEVICE, LEASE_S = "EMU", 60.0

T = TypeVar("T")


class Terminal:
    """A device with one lane, for which the test acts as the worker, and commands on its queue."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, call: Callable[[Store], Awaitable[T]]) -> T:
        async def run() -> T:
            async with Store.open(Connect(url=self.url)) as store:
                return await call(store)

        return asyncio.run(run())

    def announce(self, lanes: int = 1) -> None:
        about = {"adapter": "null", "exclusive": 0, "max_runs": 1000}
        worker = {"lanes": lanes, "started": 1, "host": "here", "version": "0", "record_version": 1}
        self.ask(lambda it: it.tickets.heartbeat("w", DEVICE, ttl_s=600, about_device=about, about_worker=worker))

    def submit(self, jobs: int = 1) -> UUID:
        specs = [JobSpec(runs=10)] * jobs
        doc = BatchDoc(device=DEVICE, sequence="{}")
        return self.ask(lambda it: it.commands.submit(new_batch_id(), "default", doc, specs))

    def take(self) -> Grant:
        (grant,) = self.ask(lambda it: it.tickets.take(DEVICE, ["lane"], lease_s=LEASE_S)).grants
        return grant

    def settle(self, grant: Grant) -> None:
        done = Settlement.of(0, Outcome(OutcomeKind.DONE, result=Result(counter={"0": 1})))
        self.ask(lambda it: it.tickets.settle(grant.ticket, grant.token, [done], want=0, used_s=0.0, lease_s=LEASE_S))

    def note(self, key: Key, owner: object, field: str, value: int) -> None:
        """Return whether the field of a hash has this value now."""
        self.ask(lambda it: it.redis.execute_command("HSET", it.keys(key, owner), field, value))

    def call(self, *arguments: str) -> str:
        ran = CliRunner().invoke(main, ["--redis", as_user(self.url, RedisUser.OPERATOR), *arguments])
        assert ran.exit_code == 0, ran.output
        return ran.stdout.strip()

    def refused(self, *arguments: str) -> str:
        ran = CliRunner().invoke(main, ["--redis", as_user(self.url, RedisUser.OPERATOR), *arguments])
        assert ran.exit_code != 0, ran.output
        return ran.stderr.strip().splitlines()[-1]

    def shown(self) -> str:
        """Return the device's status in the output of `tweezer devices`."""
        return self.call("devices").splitlines()[-1]


@pytest.fixture
def terminal(real_redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Terminal:
    for name in os.environ:
        if name.startswith("TWEEZER_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("COLUMNS", raising=False)  # a table is not wrapped then
    monkeypatch.chdir(tmp_path)
    terminal = Terminal(real_redis_url)
    terminal.announce()
    return terminal


def in_hours(hours: float) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).isoformat()


def test_a_device_is_paused_for_a_while_by_its_name(terminal: Terminal) -> None:
    printed = terminal.call("pause", DEVICE, "--reason", "new lens", "--for", "2h")
    assert re.fullmatch(r"EMU is paused until .*\d\d:\d\d \S+: new lens", printed)
    assert printed.removeprefix("EMU is ") in terminal.shown()
    record = terminal.ask(lambda it: it.reader.device(DEVICE))
    assert record is not None
    assert record.paused_until is not None
    assert (record.paused_until - datetime.now(UTC)).total_seconds() == pytest.approx(7200, abs=60)
    assert terminal.call("pause", DEVICE, "--reason", "lunch") == "EMU is paused: lunch"
    assert terminal.call("resume", DEVICE) == "EMU is resumed"
    assert terminal.shown().endswith("available")
    assert "until" in terminal.refused("pause", DEVICE, "--reason", "why", "--until", "2020-01-01T00:00")
    assert "there is no device NONE" in terminal.refused("pause", "NONE", "--reason", "why")
    assert "no device EMUU (did you mean EMU?)" in terminal.refused("pause", "EMUU", "--reason", "why")
    assert "no device emu (did you mean EMU?)" in terminal.refused("resume", "emu")


def test_maintenance_is_planned_shown_and_removed(terminal: Terminal) -> None:
    assert terminal.call("maintenance", DEVICE, "list") == "No maintenance of EMU is planned."
    add = ("maintenance", DEVICE, "add", "--reason", "new lens")
    later = terminal.call(*add, "--from", in_hours(2), "--to", in_hours(3))
    assert "available; maintenance from " in terminal.shown()
    now = terminal.call(*add, "--from", in_hours(-1), "--to", in_hours(1))
    assert "maintenance until " in terminal.shown()
    assert [it["id"] for it in json.loads(terminal.call("maintenance", DEVICE, "list", "--json"))] == [now, later]
    assert [line.split()[0] for line in terminal.call("maintenance", DEVICE, "list").splitlines()] == ["id", now, later]
    assert "but maintenance until" in terminal.call("resume", DEVICE)
    assert "overlaps" in terminal.refused(*add, "--from", in_hours(0.5), "--to", in_hours(1.5))
    for window in (now, later):
        assert terminal.call("maintenance", DEVICE, "remove", window) == f"Removed maintenance {window} of EMU."
    assert terminal.shown().endswith("available")
    assert f"there is no maintenance {now}" in terminal.refused("maintenance", DEVICE, "remove", now)
    assert "there is no device NONE" in terminal.refused("maintenance", "NONE", "list")


def test_a_batch_shows_what_it_waits_for(terminal: Terminal) -> None:
    batch = terminal.submit(10)

    def waits() -> str | None:
        waits_for: str | None = json.loads(terminal.call("status", str(batch), "--json"))["waits_for"]
        return waits_for

    assert waits() is None
    terminal.call("pause", DEVICE, "--reason", "coffee")
    assert waits() == "EMU: paused: coffee"
    assert "waits for  EMU: paused: coffee" in terminal.call("status", str(batch))
    terminal.call("resume", DEVICE)
    terminal.note(Key.DEVICE, DEVICE, "job_ms", 1_000_000)
    terminal.call("maintenance", DEVICE, "add", "--reason", "new lens", "--from", in_hours(1), "--to", in_hours(2))
    assert re.fullmatch("EMU: the batch would not end before the maintenance from .* to .*: new lens", waits() or "")
    terminal.announce(lanes=100)
    assert waits() is None
    terminal.announce(lanes=0)
    assert waits() == "EMU: no worker"


def test_the_time_for_which_a_batch_held_a_machine_without_work_is_shown(terminal: Terminal) -> None:
    batch = terminal.submit()
    terminal.ask(lambda it: change_record(it, batch, idled=90_000))
    assert "held idle  1 min 30 s on EMU without work" in terminal.call("status", str(batch))
    assert json.loads(terminal.call("status", str(batch), "--json"))["idle_s"] == 90.0


def test_drain_waits_for_running_jobs(terminal: Terminal) -> None:
    terminal.submit()
    grant = terminal.take()
    draining = drain(terminal)
    assert "is paused" in next_line(draining)
    assert "1 job is running" in next_line(draining)
    terminal.settle(grant)
    output, _ = draining.communicate(timeout=30)
    assert draining.returncode == 0
    assert "EMU is drained; `tweezer resume EMU` puts it back to work." in output
    assert "paused: new lens" in terminal.shown()


def test_a_drained_device_does_not_resume_by_itself(terminal: Terminal) -> None:
    terminal.call("pause", DEVICE, "--reason", "coffee", "--for", "2h")
    assert "EMU is drained" in terminal.call("drain", DEVICE)
    assert terminal.shown().endswith("paused: coffee")


def test_ctrl_c_ends_the_wait_and_leaves_the_device_paused(terminal: Terminal) -> None:
    terminal.submit()
    terminal.take()
    draining = drain(terminal)
    assert "is paused" in next_line(draining)
    assert "1 job is running" in next_line(draining)
    draining.send_signal(signal.SIGINT)
    _, errors = draining.communicate(timeout=30)
    assert draining.returncode == 130
    assert "EMU stays paused" in errors
    assert "Traceback" not in errors
    assert "paused: new lens" in terminal.shown()


def drain(terminal: Terminal) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tweezer.cli", "--redis", terminal.url, "drain", DEVICE, "--reason", "new lens"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def next_line(process: subprocess.Popen[str]) -> str:
    """Return the next line of the progress output."""
    assert process.stderr is not None
    return process.stderr.readline()
