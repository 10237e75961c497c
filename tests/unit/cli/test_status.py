"""What is shown of a batch that waits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from tweezer.cli.options import clock
from tweezer.cli.status import _description
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import BatchDoc, Priority
from tweezer.store.records import BatchRecord, DeviceRecord, describe_wait

NOW = datetime.now(UTC)

QPU = DeviceRecord(
    name="FRESNEL",
    adapter="qpu",
    exclusive=True,
    checks_sequence=True,
    max_runs=1000,
    lanes=1,
    pending=0,
    running=1,
    paused=None,
)
AWAY = msgspec.structs.replace(QPU, unsure="connection refused", unsure_since=NOW)


def batch(status: BatchStatus, **counts: int) -> BatchRecord:
    by_status = {one: counts.get(one.value.lower(), 0) for one in JobStatus}
    return BatchRecord(
        id=new_batch_id(),
        project="default",
        device="FRESNEL",
        priority=Priority.MEDIUM,
        status=status,
        open=False,
        created=NOW,
        updated=NOW,
        jobs=sum(by_status.values()),
        counts=by_status,
        sequence_number=1,
        doc=BatchDoc("FRESNEL"),
    )


def test_a_machine_that_is_away_under_a_running_job_is_named() -> None:
    running = batch(BatchStatus.RUNNING, running=1, pending=3)
    assert describe_wait(running, AWAY, NOW, clock) == f"FRESNEL: no answer since {clock(NOW)}: connection refused"
    assert describe_wait(running, QPU, NOW, clock) is None


@pytest.mark.parametrize(
    ("start", "status", "rows"),
    [
        (timedelta(hours=1), BatchStatus.PENDING, ["waits for"]),
        (timedelta(hours=1), BatchStatus.PAUSED, ["waits for", "starts"]),
        (timedelta(hours=1), BatchStatus.CANCELED, ["starts"]),
        (timedelta(hours=-1), BatchStatus.PENDING, ["starts"]),
    ],
)
def test_a_start_time_is_shown_once(start: timedelta, status: BatchStatus, rows: list[str]) -> None:
    planned = msgspec.structs.replace(batch(status, pending=1), not_before=NOW + start)
    text = "\n".join(_description(planned, None))
    assert [row for row in ("waits for", "starts") if row in text] == rows


@pytest.mark.parametrize("record", [batch(BatchStatus.DONE, done=1), batch(BatchStatus.RUNNING, done=1)])
def test_a_batch_without_work_waits_for_nothing(record: BatchRecord) -> None:
    assert describe_wait(record, AWAY, NOW, clock) is None


def test_a_batch_without_a_worker_waits_for_one_even_if_the_machine_was_down() -> None:
    unserved = msgspec.structs.replace(QPU, lanes=0, down="warming up")
    assert describe_wait(batch(BatchStatus.PENDING, pending=2), unserved, NOW, clock) == "FRESNEL: no worker"


def test_a_start_time_is_shown_once() -> None:
    later = NOW + timedelta(days=1)
    waiting = msgspec.structs.replace(batch(BatchStatus.PENDING, pending=1), not_before=later)
    for record in (waiting, msgspec.structs.replace(waiting, status=BatchStatus.PAUSED)):
        lines = _description(record, describe_wait(record, QPU, NOW, clock))
        assert sum(f"{later.astimezone():%Y-%m-%d %H:%M}" in line for line in lines) == 1
