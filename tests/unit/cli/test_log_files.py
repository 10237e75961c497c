"""The logs of what `tweezer up` starts: files of limited size, whose warnings are shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tweezer import logs
from tweezer.cli.local import children
from tweezer.cli.local.children import LogFile

INFO = "2026-11-30T13:00:00.123456Z [info     ] worker.started                 [tweezer.worker.worker] device=NULL\n"
WARNING = (
    "2026-11-30T13:00:01.123456Z [warning  ] device.down                    [tweezer.worker.worker] reason='a lens'\n"
)
ERROR = "2026-11-30T13:00:02.123456Z [error    ] Task exception was never retrieved [asyncio]\nTraceback …\n"
JSON = '{"reason": "a lens", "event": "device.down", "level": "warning", "timestamp": "2026-11-30T13:00:03Z"}\n'


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "worker.log")


def write(log: LogFile, text: str) -> None:
    descriptor = log.open()
    os.write(descriptor, text.encode())
    os.close(descriptor)


def test_warnings_and_errors_are_shown_once_and_without_time_and_logger(log: LogFile) -> None:
    assert log.new_warnings() == []
    write(log, INFO + WARNING + ERROR + JSON)
    assert log.new_warnings() == ["device.down reason='a lens'", "Task exception was never retrieved", JSON.strip()]
    assert log.new_warnings() == []


def test_a_line_that_is_still_being_written_is_read_when_it_is_complete(log: LogFile) -> None:
    write(log, WARNING[:50])
    assert log.new_warnings() == []
    write(log, WARNING[50:])
    assert log.new_warnings() == ["device.down reason='a lens'"]


def test_what_was_written_before_is_not_shown_again(log: LogFile) -> None:
    write(log, WARNING)
    assert LogFile(log.path).new_warnings() == []


def test_many_warnings_are_counted(log: LogFile) -> None:
    write(log, WARNING * 8)
    assert log.new_warnings() == ["device.down reason='a lens'"] * 5 + ["3 more warnings"]


def test_a_log_is_kept_small_while_a_process_writes_to_it(log: LogFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_LOG_BYTES", 1000)
    descriptor = log.open()
    for number in range(100):
        os.write(descriptor, INFO.replace("NULL", f"D{number}").encode())
        log.new_warnings()
    os.write(descriptor, WARNING.encode())
    assert log.new_warnings() == ["device.down reason='a lens'"]
    os.close(descriptor)
    older = log.path.with_name("worker.log.1")
    assert log.path.stat().st_size < 1500
    assert older.stat().st_size < 1500
    assert "D99" in (older.read_text() + log.path.read_text())
    assert {path.stat().st_mode & 0o077 for path in (log.path, older)} == {0}


def test_the_real_format_of_logs_is_understood(log: LogFile) -> None:
    import structlog

    formats: tuple[logs.LogFormat, ...] = ("console", "json")
    for format_ in formats:
        with log.path.open("a") as stream:
            logs.configure(format_, "INFO", stream=stream)
            structlog.get_logger("tweezer.x").info("all.well", a=1)
            structlog.get_logger("tweezer.x").warning("lens.lost", reason="it fell")
        found = log.new_warnings()
        assert len(found) == 1
        assert "lens.lost" in found[0]
        assert "it fell" in found[0]
    logs.configure("console", "ERROR")
