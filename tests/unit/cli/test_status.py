"""What is shown of a batch that waits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from tests.support.records import make_batch, make_job

from tweezer.cli.options import clock
from tweezer.cli.status import _description, explain_standstill
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import BatchDoc
from tweezer.store.records import BatchRecord, DeviceRecord, JobRecord, describe_wait

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
    times = {"created": NOW, "updated": NOW}
    return make_batch(by_status, status=status, device="FRESNEL", doc=BatchDoc("FRESNEL"), id=new_batch_id(), **times)


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


class Standing:
    """A batch none of whose jobs ends."""

    def __init__(self, device: DeviceRecord, *jobs: JobRecord) -> None:
        self.queue = self
        self._device = device
        self._jobs = jobs
        self.reads = 0

    async def device(self, name: str) -> DeviceRecord:
        return self._device

    async def jobs_at(self, record: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        self.reads += 1
        return [self._jobs[index] for index in indices if index < len(self._jobs)]


def explain(standing: Standing, record: BatchRecord, progress: Mapping[int, float] | None = None) -> str | None:
    handle: Any = standing
    return asyncio.run(explain_standstill(handle, record, progress or {}))


def test_a_job_that_prepares_for_long_is_shown_with_its_stage_and_duration() -> None:
    since = datetime.now(UTC) - timedelta(seconds=180)
    running = make_job(1, JobStatus.RUNNING, stage=Stage.PREPARING, stage_since=since)
    standing = Standing(QPU, make_job(0), running, make_job(2, JobStatus.PENDING, stage=Stage.QUEUED))
    record = batch(BatchStatus.RUNNING, done=1, running=1, pending=1)
    assert explain(standing, record) == "preparing for 3 min"
    assert explain(Standing(AWAY, running), record) == f"FRESNEL: no answer since {clock(NOW)}: connection refused"


def test_jobs_are_read_only_while_one_runs_without_progress() -> None:
    standing = Standing(QPU, make_job(0, JobStatus.RUNNING, stage=Stage.ON_DEVICE))
    assert explain(standing, batch(BatchStatus.RUNNING, running=1), {0: 0.4}) is None
    assert explain(standing, batch(BatchStatus.RUNNING, done=1)) is None
    assert standing.reads == 0
    huge = batch(BatchStatus.RUNNING, running=1, pending=99_999)
    assert explain(Standing(QPU), huge) is None
