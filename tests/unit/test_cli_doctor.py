"""What the doctor says of each finding."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tweezer import __version__
from tweezer.cli import doctor
from tweezer.cli.doctor import Level
from tweezer.model.messages import RECORD_VERSION
from tweezer.store.records import DeviceRecord, WorkerRecord

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


def test_a_misspelt_variable_is_told_with_its_right_name() -> None:
    (found,) = doctor.check_environment(["TWEEZER_REDISURL", "TWEEZER_LANES", "TWEEZER_CONFIG", "PATH"])
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
    (found,) = doctor.check_persistence(info, appendfsync)
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


def test_workers_of_another_version_are_told_by_how_bad_it_is() -> None:
    assert doctor.check_workers([]).level is Level.WARN
    assert doctor.check_workers([worker(), worker()]).level is Level.OK
    assert doctor.check_workers([worker(), worker("0.0.1")]).level is Level.WARN
    assert doctor.check_workers([worker(), worker("9.0", RECORD_VERSION + 1)]).level is Level.FAIL


def test_a_device_that_cannot_go_on_is_told() -> None:
    def level(record: DeviceRecord) -> Level:
        (found,) = doctor.check_devices([record])
        return found.level

    assert level(device()) is Level.OK
    assert level(device(lanes=0)) is Level.OK
    assert level(device(lanes=0, pending=3)) is Level.FAIL
    assert level(device(paused="maintenance")) is Level.WARN


def test_idle_connections_must_not_be_cut() -> None:
    assert doctor.check_idle_timeout("0").level is Level.OK
    assert doctor.check_idle_timeout(None).level is Level.OK
    assert doctor.check_idle_timeout("300").level is Level.WARN


def test_a_slow_redis_is_told() -> None:
    assert doctor.check_latency(0.2).level is Level.OK
    assert doctor.check_latency(200).level is Level.WARN
