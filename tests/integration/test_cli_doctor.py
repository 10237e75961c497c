"""The doctor on real servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from click.testing import CliRunner, Result
from tests.support.redis_users import RedisServer, as_user

from tweezer.cli import main
from tweezer.cli.local.redis_server import ServerKind
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.installation import join
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import BatchDoc, JobSpec
from tweezer.store.acl import RedisUser
from tweezer.store.connection import Connect, Store
from tweezer.store.keys import Key
from tweezer.store.measures import ProcessKind
from tweezer.store.streams.feed import START, EntryGroup


@pytest.fixture(autouse=True)
def ledger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sqlite_template: Path) -> Path:
    """Make an empty ledger in the data folder, and unset all settings."""
    for name in os.environ:
        if name.startswith("TWEEZER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWEEZER_DATA_DIR", str(tmp_path))
    return Path(shutil.copy(sqlite_template, tmp_path / "ledger.db"))


def doctor(url: str, *arguments: str) -> Result:
    """Run the doctor as the operator, unless the URL names another user."""
    if "@" not in url:
        url = as_user(url, RedisUser.OPERATOR)
    return CliRunner().invoke(main, ["--redis", url, "doctor", *arguments])


def findings(url: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(doctor(url, "--json").stdout)}


@pytest.mark.parametrize(
    "kind", [pytest.param("redis", marks=pytest.mark.redis), pytest.param("valkey", marks=pytest.mark.valkey)]
)
def test_a_normal_server_is_healthy(kind: ServerKind, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{kind}_server")  # it skips or fails if the binary is missing
    with RedisServer(kind=kind, options={"maxmemory": "256mb"}) as server:
        result = doctor(server.url)
        found = findings(server.url)
    assert result.exit_code == 0
    assert {name for name, one in found.items() if one["level"] != "OK"} == {
        "workers",
        "recorder",
        "courier",
        "scheduler",
    }
    assert {found[name]["level"] for name in ("workers", "recorder", "courier", "scheduler")} == {"WARN"}
    assert ("Valkey" if kind == "valkey" else "Redis ") in found["server"]["says"]
    assert "OK    persistence: append-only file with appendfsync=everysec" in result.stdout


@pytest.mark.parametrize("key", ["intake", "scheduler", "courier", "devices", "events"])
def test_a_key_of_another_type_is_named_with_advice(real_redis_url: str, key: str) -> None:
    """The processes that read the key wait until it is removed, and report it only in their logs."""
    client = redis.Redis.from_url(real_redis_url)
    client.set(f"tweezer:{key}", "junk")
    found = findings(real_redis_url)
    client.close()
    assert found["keys"]["level"] == "FAIL"
    assert f"tweezer:{key} is a string instead of a " in found["keys"]["says"]
    assert f"RENAME tweezer:{key} foreign" in found["keys"]["change"]
    assert "start it" not in str(found.get("Redis"))


@pytest.mark.valkey
def test_a_server_that_supports_waitaof_is_durable_enough_for_a_machine(valkey_server: RedisServer) -> None:
    assert "WAITAOF" in findings(valkey_server.url)["durability"]["says"]


@pytest.mark.redis
async def test_a_machine_needs_a_redis_that_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisServer(kind="redis", options={"appendonly": "no"}) as server:
        assert (await asyncio.to_thread(findings, server.url))["durability"]["level"] == "OK"
        async with Store.open(Connect(url=server.url)) as store:
            for name, trait in (("QPU", "exclusive"), ("FAR", "reattaches")):
                await store.tickets.heartbeat(
                    name, name, ttl_s=60, about_device={trait: 1}, about_worker={"started": 1, "lanes": 1}
                )
        to_come = {"adapter": "qpu", "options": {"base_url": "http://qpu"}}
        monkeypatch.setenv("TWEEZER_DEVICES", json.dumps({"TO_COME": to_come, "EMU": {"adapter": "null"}}))
        found = (await asyncio.to_thread(findings, server.url))["durability"]
    assert found["level"] == "FAIL"
    assert "appendonly yes" in found["says"]
    assert "workers of FAR, QPU, TO_COME cannot start" in found["says"]


@pytest.mark.usefixtures("_any_server")
def test_a_server_that_evicts_and_loses_writes_fails() -> None:
    options = {"maxmemory-policy": "allkeys-lru", "appendonly": "no", "timeout": "30"}
    with RedisServer(options={"maxmemory": "256mb", **options}) as server:
        result = doctor(server.url)
        found = findings(server.url)
    assert result.exit_code == 1
    assert {name: one["level"] for name, one in found.items() if one["level"] != "OK"} == {
        "persistence": "FAIL",
        "maxmemory-policy": "FAIL",
        "timeout": "WARN",
        "workers": "WARN",
        "recorder": "WARN",
        "courier": "WARN",
        "scheduler": "WARN",
    }
    assert "FAIL  maxmemory-policy: allkeys-lru" in result.stdout
    assert "CONFIG SET appendonly yes" in result.stdout


def test_a_replica_fails(real_redis_url: str) -> None:
    with RedisServer(options={"replicaof": f"127.0.0.1 {urlsplit(real_redis_url).port}"}) as replica:
        found = findings(replica.url)
    assert found["server"]["level"] == "FAIL"
    assert "replica" in found["server"]["says"]


@pytest.mark.usefixtures("_any_server")
def test_a_user_who_may_not_read_the_configuration_gets_a_warning() -> None:
    with RedisServer(options={"maxmemory": "256mb"}) as server:
        with redis.Redis(port=server.port) as client:
            client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-config")
        result = doctor(server.url.replace("127.0.0.1", "app:pw@127.0.0.1"))
        found = findings(server.url.replace("127.0.0.1", "app:pw@127.0.0.1"))
    assert result.exit_code == 0, result.output
    assert found["persistence"]["level"] == "WARN"
    assert "lacks +config|get" in found["persistence"]["says"]


def test_a_server_that_is_down_fails() -> None:
    result = doctor("redis://127.0.0.1:1/0")
    assert result.exit_code == 1
    assert "FAIL  Redis: Redis cannot be reached" in result.stdout


@pytest.mark.usefixtures("_any_server")
def test_a_wrong_password_fails() -> None:
    with RedisServer() as server:
        with redis.Redis(port=server.port) as client:
            client.config_set("requirepass", "right")
        without = CliRunner().invoke(main, ["--redis", server.url, "doctor"])
        result = doctor(server.url.replace("127.0.0.1", ":wrong@127.0.0.1"))
    assert "FAIL  Redis: Redis requires a password\n      → give its URL with the user and" in without.stdout
    assert result.exit_code == 1
    assert "rejects the credentials" in result.stdout
    assert "wrong@" not in result.stdout


def test_misspelt_and_wrong_settings_are_findings(real_redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWEEZER_LANE", "3")
    assert findings(real_redis_url)["environment"]["change"] == "rename it to TWEEZER_WORKER_LANES"
    monkeypatch.setenv("TWEEZER_WORKER_LANES", "none")
    result = doctor(real_redis_url)
    assert result.exit_code == 1
    assert "FAIL  settings: TWEEZER_WORKER_LANES" in result.stdout


# --- the ledger


def test_a_missing_ledger_fails_without_being_created(real_redis_url: str, ledger: Path) -> None:
    ledger.unlink()
    result = doctor(real_redis_url)
    assert result.exit_code == 1
    assert re.search(r"FAIL  ledger: the file\s[^→]+\sdoes\s+not\s+exist", result.stdout)
    assert "→ run `tweezer db upgrade`" in result.stdout
    assert not ledger.exists()


def test_a_ledger_of_another_schema_step_fails(real_redis_url: str, ledger: Path) -> None:
    with sqlite3.connect(ledger) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    connection.close()
    found = findings(real_redis_url)["ledger"]
    assert found["level"] == "FAIL"
    assert "run `tweezer db upgrade`" in found["says"]


def test_a_database_server_that_is_down_fails(real_redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWEEZER_DATABASE_URL", "postgresql://user:hush@127.0.0.1:1/ledger")
    result = doctor(real_redis_url)
    assert result.exit_code == 1
    assert "FAIL  ledger: the ledger's database cannot be used" in result.stdout
    assert "hush" not in result.output


def test_the_ledger_is_checked_even_if_redis_is_down() -> None:
    assert findings("redis://127.0.0.1:1/0")["ledger"]["level"] == "OK"


async def test_the_recorder_is_checked(real_redis_url: str, ledger: Path) -> None:
    async def recorder() -> tuple[str, str]:
        found = await asyncio.to_thread(findings, real_redis_url)
        return found["recorder"]["level"], found["recorder"]["says"]

    assert await recorder() == ("WARN", "no recorder is active; all events so far are recorded")
    async with Store.open(Connect(url=real_redis_url)) as store:
        about = {"adapter": "null", "exclusive": 0, "max_runs": 1000}
        worker = {"lanes": 1, "started": 1, "host": "elsewhere", "version": "0", "record_version": 1}
        await store.tickets.heartbeat("elsewhere:1:a", "NULL", ttl_s=60, about_device=about, about_worker=worker)
        await store.commands.submit(new_batch_id(), "ours", BatchDoc(device="NULL"), [JobSpec(runs=1)])
        level, says = await recorder()
        assert level == "FAIL"
        assert says.startswith("no recorder is active: ")
        assert await store.recovery.claim_recorder("somebody", 60)
        assert await recorder() == ("OK", "active and up to date")
        with sqlite3.connect(ledger) as connection:
            position = (await store.events.last(),)
            connection.execute("INSERT INTO recorder VALUES ('tweezer', ?, 0)", position)
        connection.close()
        assert await recorder() == ("OK", "active and up to date")


async def test_a_redis_of_another_installation_is_reported(real_redis_url: str, ledger: Path) -> None:
    async with Store.open(Connect(url=real_redis_url)) as store:
        assert "installation" not in await asyncio.to_thread(findings, real_redis_url)
        await store.recovery.join_ledger("0123456789abcdef")
        found = (await asyncio.to_thread(findings, real_redis_url))["installation"]
        assert (found["level"], "0123456789abcdef" in found["says"]) == ("FAIL", True)
        database = Database.open(OpenDatabase(f"sqlite:///{ledger}"))
        await join(store, database, force=True)
        database.close()
        assert (await asyncio.to_thread(findings, real_redis_url))["installation"]["level"] == "OK"


async def test_a_worker_that_works_without_a_heartbeat_is_named(real_redis_url: str) -> None:
    about, worker = {"adapter": "null", "exclusive": 0, "max_runs": 1000}, {"lanes": 1, "started": 1}
    async with Store.open(Connect(url=real_redis_url)) as store:
        await store.tickets.heartbeat("here:1:a", "NULL", ttl_s=60, about_device=about, about_worker=worker)
        await store.commands.submit(new_batch_id(), "ours", BatchDoc(device="NULL"), [JobSpec(runs=1)])
        assert (await store.tickets.take("NULL", ["here:1:a:0"], lease_s=15.0)).grants
        assert "heartbeats" not in await asyncio.to_thread(findings, real_redis_url)
        await store.tickets.heartbeat("here:1:a", "NULL", ttl_s=0, about_device={}, about_worker={})
        found = await asyncio.to_thread(findings, real_redis_url)
        assert (found["heartbeats"]["level"], "here:1:a" in found["heartbeats"]["says"]) == ("FAIL", True)
        assert "workers" not in found, "the doctor also reports that no worker is running"


async def test_the_couriers_are_checked(real_redis_url: str, ledger: Path) -> None:
    async def courier() -> tuple[str, str]:
        found = await asyncio.to_thread(findings, real_redis_url)
        return found["courier"]["level"], found["courier"]["says"]

    async with Store.open(Connect(url=real_redis_url)) as store:
        assert await courier() == ("WARN", "no courier has ever run here, so no webhook is sent")
        group = EntryGroup(store.scripts, "couriers", "somebody")
        await group.join(START)
        assert await courier() == ("WARN", "no courier is running; all webhooks so far were processed")
        about, worker = {"adapter": "null", "exclusive": 0, "max_runs": 1000}, {"lanes": 1, "started": 1}
        await store.tickets.heartbeat("elsewhere:1:a", "NULL", ttl_s=60, about_device=about, about_worker=worker)
        await store.commands.submit(new_batch_id(), "ours", BatchDoc(device="NULL"), [JobSpec(runs=1)])
        assert (await courier())[0] == "FAIL"
        assert (await group.read(most=1, wait_s=0.01)).entries
        assert await courier() == ("OK", "1 running, up to date")


async def test_a_courier_is_not_behind_because_a_restored_ledger_lacks_old_events(
    real_redis_url: str, ledger: Path
) -> None:
    async with Store.open(Connect(url=real_redis_url)) as store:
        group = EntryGroup(store.scripts, "couriers", "somebody")
        await group.join(START)
        seconds, _ = await store.redis.time()
        old: dict[Any, Any] = {"b": new_batch_id().hex, "s": 1, "t": seconds * 10**6, "e": ""}
        await store.redis.xadd(store.keys(Key.EVENTS), old, id=f"{(seconds - 500) * 1000}-0")
        entries = (await group.read(most=1, wait_s=0.01)).entries

        async def courier() -> str:
            return str((await asyncio.to_thread(findings, real_redis_url))["courier"]["says"])

        assert (await courier()).endswith(" behind")
        await group.acknowledge([entry.id for entry in entries])
        assert await courier() == "1 running, up to date"


async def test_couriers_that_wait_on_a_quiet_stream_count_as_running(real_redis_url: str) -> None:
    async with Store.open(Connect(url=real_redis_url)) as store:
        first, second = (EntryGroup(store.scripts, "couriers", name) for name in ("1", "2"))
        await first.join(START)
        for group in (first, second, first):
            assert not (await group.read(most=1, wait_s=0.01)).entries
        idle_s = await store.events.idle_s("couriers")
        assert idle_s is not None
        assert idle_s[0] < idle_s[1]
    assert (await asyncio.to_thread(findings, real_redis_url))["courier"]["says"] == "2 running, up to date"


async def test_a_stopped_scheduler_and_a_stopped_api_are_found(real_redis_url: str, ledger: Path) -> None:
    async with Store.open(Connect(url=real_redis_url)) as store:
        found = await asyncio.to_thread(findings, real_redis_url)
        assert (found["scheduler"]["level"], found["API"]["level"]) == ("WARN", "OK")
        await store.redis.zadd(store.keys(Key.INTAKE), {"message": 1})
        assert "1 arq message in the queue" in (await asyncio.to_thread(findings, real_redis_url))["scheduler"]["says"]
        for kind in ProcessKind:
            await store.processes.report(kind, "lab1:812:3fa901")
        found = await asyncio.to_thread(findings, real_redis_url)
        assert found["scheduler"]["says"] == found["API"]["says"] == "running (lab1:812:3fa901)"


def test_recorder_and_courier_are_checked_while_the_ledger_is_away(real_redis_url: str, ledger: Path) -> None:
    ledger.unlink()
    found = findings(real_redis_url)
    assert found["ledger"]["level"] == "FAIL"
    assert found["recorder"]["says"] == "no recorder is active"
    assert found["courier"]["level"] == "WARN"
    assert not ledger.exists()


async def test_a_device_is_forgotten_unless_it_is_served_or_has_work(real_redis_url: str) -> None:
    url = as_user(real_redis_url, RedisUser.OPERATOR)

    def forget(name: str) -> Result:
        return CliRunner().invoke(main, ["--redis", url, "devices", "forget", name])

    about, worker = {"adapter": "null", "exclusive": 0, "max_runs": 1000}, {"lanes": 1, "started": 1}
    async with Store.open(Connect(url=real_redis_url)) as store:
        assert (await asyncio.to_thread(forget, "NULL")).exit_code == 1
        await store.tickets.heartbeat("here:1:a", "NULL", ttl_s=60, about_device=about, about_worker=worker)
        refused = await asyncio.to_thread(forget, "NULL")
        assert (refused.exit_code, "NULL is served by 1 worker;" in refused.stderr) == (1, True)
        await store.tickets.heartbeat("here:1:a", "NULL", ttl_s=0, about_device={}, about_worker={})
        advice = (await asyncio.to_thread(findings, real_redis_url))["device NULL"]["change"]
        assert "tweezer devices forget NULL" in advice
        done = await asyncio.to_thread(forget, "NULL")
        assert (done.exit_code, done.stdout) == (0, "Forgot NULL.\n")
        assert await store.reader.devices() == []
