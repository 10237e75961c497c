"""Lists of batches in the terminal, and what a batch waits for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click
import msgspec
import pytest
from tests.support.records import make_batch

from tweezer.cli import show
from tweezer.cli.lists import batch_table, parse_moment
from tweezer.model.ids import new_batch_id, short_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import BatchDoc
from tweezer.model.windows import Window
from tweezer.store.records import BatchRecord, DeviceRecord, describe_wait

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=2)


def batch(status: BatchStatus = BatchStatus.PENDING, name: str | None = None, **more: Any) -> BatchRecord:
    about = {"created": NOW, "updated": NOW, "doc": BatchDoc("EMU_FREE", name=name), "id": new_batch_id()}
    return make_batch(more.pop("counts", {JobStatus.PENDING: 3}), status=status, **about | more)


DEVICE = DeviceRecord("EMU_FREE", "qutip", False, True, 1000, lanes=2, pending=13, running=2, paused=None)


def plain(lines: list[str]) -> list[str]:
    return [show.unstyle(line) for line in lines]


@pytest.mark.parametrize("columns", [80, 100])
def test_a_table_of_batches_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    records = [
        batch(name="a name for people that is longer than what a line of a terminal has room for, by far"),
        batch(not_before=LATER, jobs=100_000, open=True),
        batch(BatchStatus.TIMED_OUT, ended=NOW, counts={JobStatus.DONE: 7}),
    ]
    lines = plain(batch_table(records, NOW))
    assert max(map(len, lines)) <= columns
    assert [line.split()[0] for line in lines] == ["batch", *(short_id(record.id) for record in records)]
    assert lines[0].split()[-2:] == ["starts", "name"]
    assert lines[1].endswith("…")
    assert " 7/7 " in lines[3]


def test_start_times_have_a_column_only_while_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    records = [
        batch(not_before=NOW),
        batch(BatchStatus.CANCELED, not_before=LATER),
        batch(started=NOW, not_before=LATER),
    ]
    assert plain(batch_table(records, NOW))[0].split() == ["batch", "status", "jobs", "device", "submitted", "name"]


def test_a_moment_is_a_time_or_a_duration_ago() -> None:
    assert parse_moment("2026-11-22T12:00+00:00") == NOW
    assert timedelta(minutes=119) < datetime.now(UTC) - parse_moment("2h") < timedelta(minutes=121)
    with pytest.raises(click.BadParameter, match=r"is not a valid time; .* or a duration before now such as 2h"):
        parse_moment("yesterday")


def wait(record: BatchRecord, device: DeviceRecord | None = DEVICE, **changes: Any) -> str | None:
    device = device and msgspec.structs.replace(device, **changes)
    return describe_wait(record, device, NOW, lambda time: f"{time:%H:%M}")


def test_a_batch_waits_for_its_start_time_first() -> None:
    assert wait(batch(not_before=LATER), paused="new lens") == "its start time, 14:00"
    assert wait(batch(not_before=LATER), None) == "its start time, 14:00"
    assert wait(batch(not_before=NOW), running=0) is None


def test_a_paused_batch_waits_for_a_person() -> None:
    assert wait(batch(BatchStatus.PAUSED)) == "someone to resume it: the batch is paused"


def test_a_batch_waits_for_its_device() -> None:
    assert wait(batch(), paused="new lens") == "EMU_FREE: paused: new lens"
    assert wait(batch(), lanes=0) == "EMU_FREE: no worker"
    window = Window("w", LATER, LATER + timedelta(hours=1), "new atoms")
    problem = "EMU_FREE: the batch would not end before the maintenance from 14:00 to 15:00: new atoms"
    assert wait(batch(job_s=7200.0, counts={JobStatus.PENDING: 5}), window=window) == problem


def test_a_batch_waits_behind_others() -> None:
    assert wait(batch()) == "EMU_FREE: all 2 lanes are busy; other batches have 10 pending jobs"
    assert wait(batch(), pending=4) == "EMU_FREE: all 2 lanes are busy; other batches have 1 pending job"
    assert wait(batch(), pending=3, lanes=1) == "EMU_FREE: its lane is busy"
    assert wait(batch(), running=1) is None


@pytest.mark.parametrize(
    "record",
    [
        batch(BatchStatus.RUNNING, counts={JobStatus.PENDING: 1, JobStatus.RUNNING: 1}),
        batch(BatchStatus.RUNNING, counts={JobStatus.DONE: 1}, open=True),
        batch(BatchStatus.DONE, counts={JobStatus.DONE: 1}),
    ],
)
def test_a_batch_that_runs_or_has_nothing_to_run_waits_for_nothing(record: BatchRecord) -> None:
    assert wait(record, paused="new lens") is None
