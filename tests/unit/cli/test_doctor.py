"""The report of the doctor on each finding."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from tweezer import __version__
from tweezer.cli import doctor, ledger_checks
from tweezer.cli.ledger_checks import Finding, Level, check_schedules
from tweezer.ledger.health import LedgerHealth
from tweezer.ledger.schedules.records import ScheduleStatus
from tweezer.ledger.schedules.ticks import ScheduleHealth
from tweezer.model.errors import InvalidInput
from tweezer.model.messages import RECORD_VERSION
from tweezer.settings import load
from tweezer.store.records import DeviceRecord, Lease, WorkerRecord
from tweezer.store.remote import NotDurable, Remote
from tweezer.webhooks.health import ReceiverHealth, SecretHealth, WebhookHealth

MIB = 1 << 20


def worker(version: str = __version__, record_version: int = RECORD_VERSION) -> WorkerRecord:
    return WorkerRecord(
        id="host:1:abc",
        device="EMU_FREE",
        lanes=2,
        busy=0,
        host="host",
        version=version,
        record_version=record_version,
        draining=False,
        started=datetime.now(UTC),
    )


def device(*, lanes: int = 2, pending: int = 0, paused: str | None = None, exclusive: bool = False) -> DeviceRecord:
    return DeviceRecord(
        name="EMU_FREE",
        adapter="qutip",
        exclusive=exclusive,
        checks_sequence=True,
        max_runs=1000,
        lanes=lanes,
        pending=pending,
        running=0,
        paused=paused,
    )


def test_a_worker_that_renews_leases_without_a_heartbeat_is_named() -> None:
    settings = load({"worker.lease_s": 15.0})
    leases = [
        Lease("host:1:abc:0", 14.0),  # of the live worker
        Lease("host:2:def:0", 12.0),
        Lease("host:2:def:1", 9.0),
        Lease("host:3:fed:0", 10.9),  # it died: it sent its last heartbeat at least 4 s after its last renewal
    ]
    assert doctor.find_silent(leases, [worker()], settings) == ["host:2:def"]
    found = doctor.check_silent(["host:2:def"])
    assert (found.level, "host:2:def" in found.says) == (Level.FAIL, True)


def test_a_misspelt_variable_is_reported_with_the_right_name() -> None:
    (found,) = doctor.check_environment(
        ["TWEEZER_REDISURL", "TWEEZER_WORKER_LANES", "TWEEZER_CONFIG", "TWEEZER_SECRETS_KEY_FILE", "PATH"]
    )
    assert found.level is Level.WARN
    assert "TWEEZER_REDISURL" in found.says
    assert found.change == "rename it to TWEEZER_REDIS_URL"


@pytest.mark.parametrize(
    ("info", "level", "said"),
    [
        ({"redis_version": "7.0.15", "role": "master"}, Level.OK, "Redis 7.0.15"),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2", "role": "master"}, Level.OK, "Valkey 9.1.2"),
        ({"redis_version": "6.2.0", "role": "master"}, Level.OK, "6.2.0"),
        ({"redis_version": "6.0.16", "role": "master"}, Level.FAIL, "too old"),
        ({"redis_version": "7.0.15", "role": "slave"}, Level.FAIL, "replica"),
        ({"redis_version": "7.0.15", "role": "master", "cluster_enabled": 1}, Level.FAIL, "cluster mode"),
    ],
)
def test_the_server_must_be_a_single_primary_that_is_new_enough(info: dict[str, Any], level: Level, said: str) -> None:
    found = doctor.check_server(info)
    assert (found.level, said in found.says) == (level, True)
    assert (found.change is None) is (level is Level.OK)


@pytest.mark.parametrize(
    ("info", "appendfsync", "level"),
    [
        ({"aof_enabled": 0}, "everysec", Level.FAIL),
        ({"aof_enabled": 1, "aof_last_write_status": "err"}, "everysec", Level.FAIL),
        ({"aof_enabled": 1}, "no", Level.WARN),
        ({"aof_enabled": 1}, None, Level.WARN),
        ({"aof_enabled": 1}, "everysec", Level.OK),
        ({"aof_enabled": 1}, "always", Level.OK),
    ],
)
def test_persistence_is_the_append_only_file(info: dict[str, Any], appendfsync: str | None, level: Level) -> None:
    found = doctor.check_persistence(info, appendfsync)
    assert found.level is level
    assert (found.change is None) is (level is Level.OK)


def test_only_noeviction_keeps_live_work() -> None:
    assert doctor.check_eviction({"maxmemory_policy": "noeviction"}).level is Level.OK
    found = doctor.check_eviction({"maxmemory_policy": "allkeys-lru"})
    assert found.level is Level.FAIL
    assert found.change is not None
    assert "CONFIG SET maxmemory-policy noeviction" in found.change


@pytest.mark.parametrize(
    ("used", "limit", "level"),
    [(10, 0, Level.WARN), (10, 100, Level.OK), (65, 100, Level.WARN), (80, 100, Level.FAIL)],
)
def test_memory_needs_headroom(used: int, limit: int, level: Level) -> None:
    info = {"used_memory": used * MIB, "maxmemory": limit * MIB, "total_system_memory": 1000 * MIB}
    found = doctor.check_memory(info, 0.8)
    assert found.level is level
    assert (found.change is None) is (level is Level.OK)


def test_workers_of_another_version_are_graded() -> None:
    assert doctor.check_workers([]).level is Level.WARN
    assert doctor.check_workers([worker(), worker()]).level is Level.OK
    assert doctor.check_workers([worker(), worker("0.0.1")]).level is Level.WARN
    assert doctor.check_workers([worker(), worker("9.0", RECORD_VERSION + 1)]).level is Level.FAIL


def test_a_device_that_cannot_continue_is_reported() -> None:
    def level(record: DeviceRecord) -> Level:
        (found,) = doctor.check_devices([record])
        return found.level

    assert level(device()) is Level.OK
    assert level(device(lanes=0)) is Level.WARN
    assert level(device(lanes=0, pending=3)) is Level.FAIL
    assert level(device(paused="maintenance")) is Level.WARN


def test_a_device_without_workers_can_be_started_or_forgotten() -> None:
    stale = msgspec.structs.replace(device(lanes=0), down="warming up")
    for record in (device(lanes=0), stale):
        (found,) = doctor.check_devices([record])
        assert found.says == "no worker serves it, and it has no work"
        assert found.change is not None
        assert "tweezer worker --device EMU_FREE" in found.change
        assert "tweezer devices forget EMU_FREE" in found.change


def test_a_machine_that_does_not_answer_is_reported() -> None:
    silent = msgspec.structs.replace(device(), unsure="connection refused", unsure_since=datetime.now(UTC))
    busy = msgspec.structs.replace(silent, running=1)
    (idle_found, _), (busy_found, _) = (list(doctor.check_devices([record])) for record in (silent, busy))
    assert (idle_found.level, busy_found.level) == (Level.WARN, Level.FAIL)
    assert re.fullmatch(r"its machine has not answered since \d\d:\d\d \S+: connection refused", idle_found.says)
    gone = msgspec.structs.replace(silent, lanes=0)  # no worker asks it any more
    assert [found.says for found in doctor.check_devices([gone])] == ["no worker serves it, and it has no work"]


async def test_a_machine_without_workers_and_work_needs_no_durable_redis() -> None:
    class Lossy:
        async def require_durability(self) -> None:
            raise NotDurable("appendfsync everysec")

    lossy = cast("Remote", Lossy())
    idle, served = device(lanes=0, exclusive=True), device(lanes=1, exclusive=True)
    waiting = device(lanes=0, pending=1, exclusive=True)
    levels = [(await doctor.check_durability(lossy, [it], [])).level for it in (idle, served, waiting)]
    assert levels == [Level.OK, Level.FAIL, Level.FAIL]


def test_a_stopped_scheduler_or_api_is_reported_with_the_command_to_start_it() -> None:
    checks = [
        (ledger_checks.check_scheduler("host:1:a", messages=3), Level.OK),
        (ledger_checks.check_scheduler(None, messages=0), Level.WARN),
        (ledger_checks.check_scheduler(None, messages=3), Level.FAIL),
        (ledger_checks.check_api("host:1:a", has_keys=True), Level.OK),
        (ledger_checks.check_api(None, has_keys=True), Level.WARN),
        (ledger_checks.check_api(None, has_keys=False), Level.OK),
        (ledger_checks.check_unread_recorder(active=True), Level.WARN),
        (ledger_checks.check_unread_recorder(active=False), Level.WARN),
    ]
    for found, level in checks:
        assert found.level is level
        assert (found.change is None) is (level is Level.OK)
    assert ledger_checks.check_scheduler(None, messages=0).change == "start one: tweezer scheduler"
    assert ledger_checks.check_api(None, has_keys=True).change == "start one: tweezer api"


def test_a_set_back_of_a_machine_is_shown_for_a_week() -> None:
    recent, old = (datetime.now(UTC) - timedelta(days=days) for days in (1, 8))
    devices = [msgspec.structs.replace(device(), set_back=when) for when in (recent, old)]
    found = list(doctor.check_devices(devices))
    assert [finding.level for finding in found] == [Level.WARN, Level.OK, Level.OK]
    assert "the machine restarted its job ids" in found[0].says


def test_idle_connections_must_not_be_cut() -> None:
    assert doctor.check_idle_timeout("0").level is Level.OK
    assert doctor.check_idle_timeout(None).level is Level.OK
    assert doctor.check_idle_timeout("300").level is Level.WARN


def test_a_slow_redis_is_reported() -> None:
    assert doctor.check_latency(0.2).level is Level.OK
    assert doctor.check_latency(200).level is Level.WARN


# --- the ledger


SQLITE = {"version": "3.40.1", "journal_mode": "wal"}
POSTGRES = {
    "server_version": "15.8 (Debian)",
    "server_encoding": "UTF8",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
}


def of_ledger(*, unfit: str | None = None, refusal: str | None = None, **settings: str) -> dict[str, Finding]:
    base = POSTGRES if "server_version" in settings or settings.keys() & POSTGRES.keys() else SQLITE
    health = LedgerHealth("somewhere", base is SQLITE, {**base, **settings}, unfit=unfit, refusal=refusal)
    return {found.name: found for found in ledger_checks.check_health(health)}


def test_a_normal_ledger_is_healthy() -> None:
    assert {found.level for found in of_ledger().values()} == {Level.OK}
    found = of_ledger(server_version="15.8 (Debian)")
    assert {it.level for it in found.values()} == {Level.OK}
    assert "PostgreSQL 15.8 at somewhere" in found["ledger"].says


def test_tables_that_do_not_fit_and_writes_that_fail_are_failures() -> None:
    assert of_ledger(unfit="run this")["ledger"] == Finding("ledger", Level.FAIL, "run this")
    found = of_ledger(refusal="disk full")["ledger"]
    assert (found.level, "rejects writes: disk full" in found.says) == (Level.FAIL, True)


@pytest.mark.parametrize(
    ("name", "value", "of", "level"),
    [
        ("journal_mode", "delete", "ledger journal", Level.WARN),
        ("server_version", "13.2", "ledger server", Level.WARN),
        ("server_encoding", "SQL_ASCII", "ledger encoding", Level.FAIL),
        ("fsync", "off", "ledger durability", Level.FAIL),
        ("synchronous_commit", "off", "ledger durability", Level.FAIL),
        ("full_page_writes", "off", "ledger durability", Level.FAIL),
    ],
)
def test_a_database_that_may_lose_or_block_writes_is_reported(name: str, value: str, of: str, level: Level) -> None:
    found = of_ledger(**{name: value})[of]
    assert found.level is level
    assert found.change


def test_a_missing_or_slow_recorder_is_reported() -> None:
    check = ledger_checks.check_recorder
    assert check(active=True, behind_s=None).level is Level.OK
    assert check(active=True, behind_s=2.0).level is Level.OK
    assert check(active=True, behind_s=120.0).level is Level.WARN
    assert check(active=False, behind_s=None).level is Level.WARN
    assert check(active=False, behind_s=2.0).level is Level.FAIL


def test_a_ledger_with_a_shorter_retention_than_redis_is_reported() -> None:
    def found(given: dict[str, object] | None = None) -> Finding:
        return ledger_checks.check_keeping(load(given))

    assert found().says.startswith("ended batches are kept in Redis for 1 d and in the ledger forever")
    assert found({"database.retention_s": 90 * 86_400}).level is Level.OK
    assert found({"database.retention_s": 3600}).level is Level.WARN


def test_a_results_folder_that_others_cannot_read_is_reported(tmp_path: Path) -> None:
    def level(hosts: set[str], **given: object) -> Level:
        return ledger_checks.check_results_folder(load({"data_dir": tmp_path / "new", **given}), hosts).level

    here = socket.gethostname()
    assert level(set()) is level({here}) is Level.OK
    assert level({here, "elsewhere"}) is Level.WARN
    assert level({here, "elsewhere"}, results_dir=tmp_path) is Level.OK


@pytest.mark.parametrize("folder", ["/proc/nope", "/dev/null/results"])
def test_a_results_folder_that_cannot_exist_fails(folder: str) -> None:
    found = ledger_checks.check_results_folder(load({"results_dir": folder}), set())
    assert found.level is Level.FAIL
    assert folder in found.says
    assert "TWEEZER_RESULTS_DIR" in (found.change or "")


def test_a_results_folder_that_is_full_fails_and_nothing_is_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_bytes(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    settings = load({"results_dir": tmp_path})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_bytes)
        found = ledger_checks.check_results_folder(settings, set())
    assert (found.level, f"{tmp_path}: No space left on device" in found.says) == (Level.FAIL, True)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
        found = ledger_checks.check_results_folder(settings, set())
    assert (found.level, "5 MiB" in found.says) == (Level.WARN, True)
    assert ledger_checks.check_results_folder(load({"results_dir": tmp_path / "new"}), set()).level is Level.OK
    assert list(tmp_path.iterdir()) == []


# --- webhooks


def test_a_missing_or_slow_courier_is_reported() -> None:
    def level(idle_s: list[float] | None, behind_s: float | None = None, *, wanted: bool = False) -> Level:
        found = ledger_checks.check_couriers(idle_s, behind_s=behind_s, wanted=wanted)
        assert (found.change is None) is (found.level is Level.OK)
        return found.level

    assert level(None) is Level.WARN
    assert level(None, wanted=True) is Level.FAIL
    assert level([500.0]) is Level.WARN
    assert level([], 10.0) is Level.FAIL
    assert level([0.5, 500.0], 10.0) is Level.OK
    assert level([0.5], 100.0) is Level.WARN


def test_overdue_deliveries_are_reported() -> None:
    health = WebhookHealth("0-0", pending=7, overdue=0, exhausted=2, held=3, disabled=0, failing=0)
    found = ledger_checks.check_deliveries(health)
    assert (found.level, found.says) == (Level.OK, "7 pending, none overdue; 2 given up, 3 held")
    found = ledger_checks.check_deliveries(msgspec.structs.replace(health, overdue=4))
    assert found.level is Level.WARN
    assert found.says.startswith("4 of 7")


def test_failing_or_disabled_receivers_are_reported_with_advice() -> None:
    assert ledger_checks.check_receivers(ReceiverHealth(3, 0, []), disabled=0).level is Level.OK
    found = ledger_checks.check_receivers(ReceiverHealth(3, 2, ["1a of project ours"]), disabled=1)
    assert found.level is Level.WARN
    assert "1a of project ours, …" in found.says
    assert "1 are disabled" in found.says
    assert found.change is not None
    assert "tweezer webhooks enable" in found.change


@pytest.mark.parametrize(
    ("secrets", "level", "said"),
    [
        (SecretHealth(0, 0, "/d/secrets.key", missing=True), Level.OK, "not needed yet"),
        (SecretHealth(2, 0, "/d/secrets.key", missing=False), Level.OK, "keep a backup"),
        (SecretHealth(2, 2, "/d/secrets.key", missing=True), Level.FAIL, "/d/secrets.key does not exist"),
        (SecretHealth(2, 1, "TWEEZER_SECRETS_KEY", missing=False), Level.FAIL, "1 of 2"),
        (
            InvalidInput("TWEEZER_SECRETS_KEY", "contains a key that is not valid base64"),
            Level.FAIL,
            "not valid base64",
        ),
    ],
)
def test_a_key_that_does_not_decrypt_the_secrets_is_reported(
    secrets: SecretHealth | InvalidInput, level: Level, said: str
) -> None:
    found = ledger_checks.check_secrets(secrets)
    assert (found.level, said in found.says) == (level, True)
    assert (found.change is None) is (level is Level.OK)


@pytest.mark.parametrize(
    ("jails", "level", "said"),
    [
        ([], Level.OK, "support on this host: Landlock (ABI 7) and seccomp"),
        (["on", "on"], Level.OK, "complete on 2 of 2 workers"),
        (["on", ""], Level.OK, "complete on 1 of 2 workers"),  # the other one is of a QPU or of an older version
        (["on", "off"], Level.WARN, "incomplete: EMU_FREE on host (off)"),
        (["incomplete: no Landlock in the kernel"], Level.WARN, "EMU_FREE on host (incomplete: no Landlock in the"),
    ],
)
def test_lanes_without_a_complete_jail_are_named(jails: list[str], level: Level, said: str) -> None:
    workers = [msgspec.structs.replace(worker(), jail=jail) for jail in jails]
    found = doctor.check_jails(workers, "Landlock (ABI 7) and seccomp")
    assert (found.level, said in found.says) == (level, True)
    assert (found.change is None) is (level is Level.OK)
    assert "untested" in found.says or level is Level.WARN


@pytest.mark.parametrize(
    ("url", "level", "says"),
    [
        ("redis://tweezer-operator:secret@db:6379/0", "OK", "connected as user tweezer-operator, with a password"),
        ("redis://:secret@db/0", "OK", "connected as user default, with a password"),
        ("redis://127.0.0.1:6379/0", "OK", "every user of its host"),
        ("unix:///run/redis.sock", "OK", "every user of its host"),
        ("redis://db:6379/0", "WARN", "anyone who can reach it has full access"),
        ("redis+sentinel://a:1,b:2/service/0", "WARN", "anyone who can reach it has full access"),
    ],
)
def test_a_redis_without_a_password_is_reported(url: str, level: str, says: str) -> None:
    found = doctor.check_access(url)
    assert found.level == level
    assert says in found.says
    assert "secret" not in found.says


def test_paths_and_commands_in_findings_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    path = f"/var/lib/tweezer-{'results-' * 20}"
    ledger_checks.print_findings(
        [ledger_checks.warn("results folder", f"{path} is full", f"empty {path}")], as_json=False
    )
    assert capsys.readouterr().out.split().count(path) == 2


def test_an_overdue_tick_of_a_schedule_is_a_failure() -> None:
    statuses = dict.fromkeys(ScheduleStatus, 0)
    none = ScheduleHealth(statuses, {}, 0.0, 0.0)
    assert check_schedules(none) is None
    fine = check_schedules(ScheduleHealth(statuses | {ScheduleStatus.ACTIVE: 2}, {}, 0.5, 2.0, ("nightly", "lab")))
    assert fine is not None
    assert (fine.level, fine.says) == (Level.OK, "2 active; no tick is overdue")
    late = check_schedules(ScheduleHealth(statuses | {ScheduleStatus.ACTIVE: 2}, {}, 0.5, 7200.0, ("nightly", "lab")))
    assert late is not None
    assert late.level is Level.FAIL
    assert "the next tick of schedule nightly (project lab) is 2 h" in late.says
    assert "tweezer scheduler" in (late.change or "")
