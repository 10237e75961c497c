"""The null adapter does nothing, or what the variables of a job ask for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from tweezer.adapters.null import NullAdapter, NullLane
from tweezer.model.errors import ExecutionError, FaultKind
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.lifecycle import Stage
from tweezer.model.messages import BatchDoc, BatchWork, JobSpec, JobWork, Limits, OutcomeKind, Progress

BATCH = BatchWork(new_batch_id(), BatchDoc(device="NULL"))


def job(**variables: Any) -> JobWork:
    return JobWork(job_id(BATCH.batch_id, 0), 0, JobSpec(runs=7, variables=variables), seed=1)


def ignore(progress: Progress) -> None:
    """Ignore a report."""


async def prepared_lane(doc: BatchDoc = BATCH.doc) -> NullLane:
    lane = await NullAdapter().open_lane()
    await lane.prepare(BatchWork(BATCH.batch_id, doc))
    return lane


async def test_a_null_batch_needs_no_sequence() -> None:
    assert not NullAdapter().capabilities.checks_sequence


async def test_a_plain_job_ends_without_yielding_to_other_tasks() -> None:
    lane = await prepared_lane()
    running = lane.run(job(), ignore)
    with pytest.raises(StopIteration) as ended:
        running.send(None)
    outcome = ended.value.value
    assert outcome.kind is OutcomeKind.DONE
    assert outcome.result.counter == {"0": 7}


async def test_a_sleeping_job_reports_progress_and_ends() -> None:
    lane = await prepared_lane()
    reports: list[Progress] = []
    outcome = await lane.run(job(sleep_s=0.25), reports.append)
    assert outcome.kind is OutcomeKind.DONE
    fractions = [report.fraction or 0.0 for report in reports]
    assert fractions == sorted(fractions)
    assert len(fractions) >= 2
    assert {report.stage for report in reports} == {Stage.ON_DEVICE}


async def test_a_sleeping_job_can_be_cancelled() -> None:
    lane, asleep = await prepared_lane(), asyncio.Event()
    running = asyncio.create_task(lane.run(job(sleep_s=60), lambda progress: asleep.set()))
    await asyncio.wait_for(asleep.wait(), 5)
    await lane.cancel()
    assert (await asyncio.wait_for(running, 5)).kind is OutcomeKind.CANCELED


async def test_a_cancel_without_a_job_does_not_touch_the_next_one() -> None:
    lane = await prepared_lane()
    await lane.cancel()
    assert (await lane.run(job(sleep_s=0.01), ignore)).kind is OutcomeKind.DONE


async def test_closing_a_lane_gives_its_job_back() -> None:
    lane, asleep = await prepared_lane(), asyncio.Event()
    running = asyncio.create_task(lane.run(job(sleep_s=60), lambda progress: asleep.set()))
    await asyncio.wait_for(asleep.wait(), 5)
    await lane.close()
    outcome = await asyncio.wait_for(running, 5)
    assert (outcome.kind, outcome.cause) == (OutcomeKind.RETRY, FaultKind.TRANSIENT)


async def test_a_sleeping_job_ends_at_its_time_limit() -> None:
    lane = await prepared_lane(BatchDoc(device="NULL", limits=Limits(job_timeout_s=0.05)))
    outcome = await asyncio.wait_for(lane.run(job(sleep_s=60), ignore), 5)
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.TIMEOUT)
    assert outcome.fault is not None
    assert "0.05 s" in outcome.fault.message


@pytest.mark.parametrize(
    ("variable", "kind", "cause"),
    [("fail", OutcomeKind.ERROR, FaultKind.USER), ("retry", OutcomeKind.RETRY, FaultKind.TRANSIENT)],
)
async def test_a_job_fails_as_it_asks(variable: str, kind: OutcomeKind, cause: FaultKind) -> None:
    lane = await prepared_lane()
    outcome = await lane.run(job(**{variable: "as asked"}), ignore)
    assert (outcome.kind, outcome.cause) == (kind, cause)
    assert outcome.fault is not None
    assert outcome.fault.message == "as asked"


@pytest.mark.parametrize(("wish", "kind"), [("fail", FaultKind.USER), ("transient", FaultKind.TRANSIENT)])
async def test_a_batch_can_ask_to_fail_in_its_preparation(wish: str, kind: FaultKind) -> None:
    with pytest.raises(ExecutionError) as raised:
        await prepared_lane(BatchDoc(device="NULL", configuration={"prepare": wish}))
    assert raised.value.kind is kind


def test_a_crash_ends_the_process() -> None:
    program = """
import asyncio
from tweezer.adapters.null import NullLane
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import JobSpec, JobWork
asyncio.run(NullLane().run(JobWork(new_batch_id(), 0, JobSpec(variables={"crash": True}), seed=1), print))
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode == 1
