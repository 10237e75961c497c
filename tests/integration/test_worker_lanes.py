"""Failures and cancels in a lane, and their effects on the job, its neighbours and the lane."""

from __future__ import annotations

import errno
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import LEASE_S, MISBEHAVING, Site, statuses
from tests.support.waiting import PATIENCE_S, until

from tweezer import AsyncBatch, BatchStatus, JobStatus, Limits
from tweezer.model.cancels import CancelOutcome
from tweezer.model.lifecycle import Stage
from tweezer.store.keys import Key
from tweezer.store.producers import CancelAnswer

DONE, ERROR, CANCELED, RUNNING = JobStatus.DONE, JobStatus.ERROR, JobStatus.CANCELED, JobStatus.RUNNING
CANCEL_US = 2_000_000


@pytest.fixture
async def site(real_redis_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with Site(real_redis_url, tmp_path) as site:
        yield site
        await site.idle()


async def stopped_after_us(site: Site, batch: AsyncBatch, index: int = 0) -> int:
    """Return the seconds from the request of a job's end to its end, both as Redis noted them."""
    requested = (await batch.jobs())[index].cancel_requested
    (event,) = [e for e in await site.events(batch) if e.index == index and e.status is CANCELED]
    assert requested is not None
    return event.time_us - round(requested.timestamp() * 1_000_000)


# ------------------------------------------------------------------------------------------------- cancelling


@pytest.mark.parametrize("lease_s", [LEASE_S, 60.0])
async def test_a_running_job_is_cancelled_within_two_seconds(site: Site, lease_s: float) -> None:
    """The cancel arrives at once, long before the lease is renewed; the lane continues with the next job."""
    await site.workers(1, worker_lease_s=lease_s)
    batch = await site.submit([{"sleep_s": 60}, {}, {"sleep_s": 60}, {}])
    await site.running(batch)
    assert await batch.cancel_jobs([0, 2, 0]) == [CancelAnswer.REQUESTED, CancelAnswer.CANCELED, CancelAnswer.REQUESTED]
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    jobs = await site.audit(batch)
    assert statuses(jobs) == [CANCELED, DONE, CANCELED, DONE]
    assert jobs[0].cancel_requests == 2
    stopped, prevented = CancelOutcome.STOPPED, CancelOutcome.PREVENTED
    assert [job.cancel_outcome for job in jobs] == [stopped, None, prevented, None]
    assert await stopped_after_us(site, batch) < CANCEL_US
    assert await batch.cancel_jobs([0, 1]) == [CancelAnswer.OVER, CancelAnswer.OVER]


async def test_a_cancelled_batch_frees_its_lanes_within_two_seconds(site: Site) -> None:
    await site.workers(1, lanes=2)
    batch = await site.submit([{"sleep_s": 60}] * 50)

    async def both_lanes_run() -> bool:
        return (await batch.record()).counts[RUNNING] == 2

    await until(both_lanes_run)
    waiting = await site.submit([{}])
    cancelled_us = await site.now_us()
    await batch.cancel()
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.CANCELED
    await waiting.wait(PATIENCE_S)
    assert (await site.starts(waiting))[0] - cancelled_us < CANCEL_US
    assert statuses(await site.audit(batch)) == [CANCELED] * 50
    for index in (0, 1):
        assert await stopped_after_us(site, batch, index) < CANCEL_US


async def test_a_solver_that_never_checks_for_a_cancel_is_cancelled_too(site: Site) -> None:
    (worker,) = await site.workers(1, MISBEHAVING, test_soft_cancel_s=0.5)
    batch = await site.submit([{"act": "ignore cancels"}, {"act": "echo"}], device=MISBEHAVING)
    await site.renewed(batch)
    await batch.cancel_jobs([0])
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    assert statuses(await site.audit(batch)) == [CANCELED, DONE]
    assert await stopped_after_us(site, batch) < CANCEL_US
    assert await worker.wait_logged("lane.broken")


async def test_a_job_of_a_killed_worker_whose_cancel_was_requested_is_not_run_again(site: Site) -> None:
    (worker,) = await site.workers(1)
    batch = await site.submit([{"sleep_s": 60}, {}])
    await site.running(batch)
    worker.freeze()
    await batch.cancel_jobs([0])
    worker.kill()
    await site.workers(1)
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    assert statuses(await site.audit(batch)) == [CANCELED, DONE]
    assert len(await site.starts(batch)) == 1


# ------------------------------------------------------------------------------------------------- the jail


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a jail for lanes")
async def test_a_job_cannot_reach_the_worker_its_folders_or_the_network(site: Site, tmp_path: Path) -> None:
    secret = tmp_path / "data" / "secrets.key"
    secret.parent.mkdir()
    secret.write_text("hush")
    await site.workers(1, MISBEHAVING, data_dir=secret.parent)
    batch = await site.submit([{"act": "escape", "value": str(secret)}], device=MISBEHAVING)
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    (result,) = await batch.results()
    assert result.counter is not None
    refused = {errno.EPERM, errno.EACCES}
    assert {name: error for name, error in result.counter.items() if error not in refused} == {}
    assert secret.read_text() == "hush"
    assert [worker.jail for worker in await site.queue.workers()] == ["on"]


async def test_a_worker_reports_lanes_without_a_jail(site: Site) -> None:
    (worker,) = await site.workers(1, MISBEHAVING, worker_jail="off")
    assert [it.jail for it in await site.queue.workers()] == ["off"]
    assert await worker.wait_logged("lane.not_jailed")


# -------------------------------------------------------------------------------------- faults and their limits


async def test_a_job_out_of_memory_ends_in_error_and_its_neighbours_finish(site: Site) -> None:
    await site.workers(1, MISBEHAVING, lanes=2, worker_memory_limit_mb=400)
    hungry = await site.submit([{"act": "echo"}, {"act": "hog"}, {"act": "echo"}], device=MISBEHAVING)
    beside = await site.submit([{"act": "echo"}] * 5, device=MISBEHAVING)
    for batch in (hungry, beside):
        assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    jobs = await site.audit(hungry)
    assert statuses(jobs) == [DONE, ERROR, DONE]
    assert [fault.code for fault in jobs[1].faults] == ["out_of_memory"]
    assert "400 MB" in str(jobs[1].faults[0])
    assert [job.attempt for job in jobs] == [1, 1, 1], "the job was retried"
    assert [job.attempt for job in await site.audit(beside)] == [1] * 5


async def test_poison_that_kills_its_lane_ends_in_error_and_innocents_are_run_once(site: Site) -> None:
    await site.workers(1, MISBEHAVING, lanes=2)
    acts: list[dict[str, Any]] = [{"act": "echo"}] * 6
    acts[2] = {"act": "exit", "value": 3}
    batch = await site.submit(acts, device=MISBEHAVING)
    beside = await site.submit([{"act": "echo"}] * 3, device=MISBEHAVING)
    for each in (batch, beside):
        assert (await each.wait(PATIENCE_S)).status is BatchStatus.DONE
    jobs = await site.audit(batch)
    poison = jobs.pop(2)
    assert (poison.status, poison.attempt) == (ERROR, 3)
    assert [str(fault) for fault in poison.faults] == ["the lane's process exited with code 3"]
    attempts = await site.queue.attempts(poison.id)
    assert [it.outcome for it in attempts] == ["crash", "crash", "error"]
    assert {str(it.fault) for it in attempts} == {"the lane's process exited with code 3"}
    assert [(job.status, job.attempt) for job in jobs] == [(DONE, 1)] * 5
    assert [(job.status, job.attempt) for job in await site.audit(beside)] == [(DONE, 1)] * 3


async def test_a_job_past_its_time_ends_in_error(site: Site) -> None:
    await site.workers(1)
    batch = await site.submit([{"sleep_s": 60}, {}], limits=Limits(job_timeout_s=0.3))
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    jobs = await site.audit(batch)
    assert statuses(jobs) == [ERROR, DONE]
    assert [fault.code for fault in jobs[0].faults] == ["timeout"]
    assert [attempt.by for attempt in jobs[0].cancels] == ["timeout"]
    assert [job.cancel_outcome for job in jobs] == [CancelOutcome.STOPPED, None]
    assert jobs[0].attempt == 1


async def test_a_transient_failure_is_retried_later_and_then_final(site: Site) -> None:
    await site.workers(1)
    batch = await site.submit([{"retry": "no signal"}, {}, {}], limits=Limits(transient_retries=1))
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    jobs = await site.audit(batch)
    assert statuses(jobs) == [ERROR, DONE, DONE]
    assert [str(fault) for fault in jobs[0].faults] == ["no signal"]
    attempts = await site.queue.attempts(jobs[0].id)
    assert [(it.outcome, str(it.fault)) for it in attempts] == [("retry", "no signal"), ("error", "no signal")]
    first, second = await site.starts(batch)
    assert second - first >= 500_000, "the backoff of a first failure is at least half a second"
    last = max(e.time_us for e in await site.events(batch) if e.index in (1, 2))
    assert last < second, "other jobs waited for the retry"


async def test_a_users_error_is_reported_and_final(site: Site) -> None:
    await site.workers(1)
    batch = await site.submit([{"fail": "omega is too large"}, {}])
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    failed, done = await batch.results()
    assert (failed.status, failed.error) == (ERROR, "omega is too large")
    assert done.counter == {"0": 1}
    await site.audit(batch)


# ----------------------------------------------------------------------------------------------- preparing


async def test_a_batch_that_cannot_be_prepared_ends_in_error_and_names_the_field(site: Site) -> None:
    await site.workers(1, lanes=2)
    batch = await site.submit_doc(5, configuration={"prepare": "fail"})
    record = await batch.wait(PATIENCE_S)
    assert record.status is BatchStatus.ERROR
    assert record.fault is not None
    assert record.fault.field == "configuration.prepare"
    jobs = await site.audit(batch)
    assert {job.status for job in jobs} == {ERROR}
    assert {job.faults for job in jobs} == {(record.fault,)}
    good = await site.submit([{}])
    assert (await good.wait(PATIENCE_S)).status is BatchStatus.DONE


async def test_a_batch_with_a_transient_failure_in_its_preparation_is_retried_with_backoff_and_then_ends(
    site: Site,
) -> None:
    (worker,) = await site.workers(1, test_failures_max=3)
    batch = await site.submit_doc(2, configuration={"prepare": "transient"})
    record = await batch.wait(PATIENCE_S)
    assert record.status is BatchStatus.ERROR
    assert record.fault is not None
    assert "this time" in record.fault.message
    assert {job.status for job in await site.audit(batch)} == {ERROR}
    releases = await worker.wait_logged("ticket.released", 3)
    assert [line["batch_ended"] for line in releases] == [False, False, True]
    first, second, third = (datetime.fromisoformat(line["timestamp"]) for line in releases)
    assert (second - first).total_seconds() >= 0.45
    assert (third - second).total_seconds() >= 0.95


async def test_preparing_has_a_separate_limit_and_its_time_is_charged(site: Site) -> None:
    await site.workers(1, MISBEHAVING, worker_prepare_timeout_s=1)
    batch = await site.submit_doc(1, device=MISBEHAVING, sequence="hang")
    record = await batch.wait(PATIENCE_S)
    assert record.status is BatchStatus.ERROR
    assert record.fault is not None
    assert "preparing the batch took longer than 1 s; make its sequence smaller" in record.fault.message
    redis: Any = site.store.redis
    charged_ms = await redis.hget(site.store.keys(Key.FAIR, MISBEHAVING), f"p:{record.project}")
    assert int(charged_ms) >= 1000
    await site.audit(batch)


async def test_a_batch_whose_preparation_kills_its_lane_three_times_ends_in_error(site: Site) -> None:
    (worker,) = await site.workers(1, MISBEHAVING)
    batch = await site.submit_doc(1, device=MISBEHAVING, sequence="crash")
    record = await batch.wait(PATIENCE_S)
    assert record.status is BatchStatus.ERROR
    assert record.fault is not None
    assert "exited with code 4" in record.fault.message
    assert len(await worker.wait_logged("ticket.released", 3)) == 3
    await site.audit(batch)


# ---------------------------------------------------------------------------------------------- EMU_FREE for real


def chain(atoms: int, duration_ns: int) -> str:
    """Return a sequence that runs long enough to be stopped in the middle."""
    from pulser import Pulse, Register, Sequence
    from pulser.devices import MockDevice

    sequence: Any = Sequence(Register.rectangle(1, atoms, spacing=6.0, prefix="q"), MockDevice)
    sequence.declare_channel("rydberg", "rydberg_global")
    sequence.add(Pulse.ConstantPulse(duration_ns, 6.0, 1.0, 0.0), "rydberg")
    return str(sequence.to_abstract_repr())


@pytest.mark.slow
@pytest.mark.emulator
async def test_a_real_emulation_is_cancelled_within_two_seconds_and_its_lane_continues(site: Site) -> None:
    await site.workers(1, "EMU_FREE")
    long = await site.queue.submit(chain(14, 40_000), [{"runs": 100}], device="EMU_FREE")

    async def on_device() -> bool:
        (job,) = await long.jobs()
        return job.stage is Stage.ON_DEVICE and job.progress is not None

    await until(on_device)
    short = await site.queue.submit(chain(2, 400), [{"runs": 100}], device="EMU_FREE")
    cancelled_us = await site.now_us()
    await long.cancel()
    assert (await long.wait(PATIENCE_S)).status is BatchStatus.CANCELED
    assert await stopped_after_us(site, long) < CANCEL_US
    (done,) = await short.results(PATIENCE_S)
    assert sum(done.counter.values()) == 100
    assert (await site.starts(short))[0] - cancelled_us < CANCEL_US
    for batch in (long, short):
        await site.audit(batch)


@pytest.mark.emulator
async def test_a_fault_that_only_pulser_finds_ends_the_batch_and_names_the_field(site: Site) -> None:
    """The header is valid, so producers accept it; the pulses are not."""
    await site.workers(1, "EMU_FREE")
    text = chain(2, 400).replace('"kind": "constant"', '"kind": "no_such_waveform"')
    batch = await site.queue.submit(text, [{"runs": 10}] * 2, device="EMU_FREE")
    record = await batch.wait(PATIENCE_S)
    assert record.status is BatchStatus.ERROR
    assert record.fault is not None
    assert record.fault.field is not None
    assert record.fault.field.startswith("sequence")
    assert statuses(await site.audit(batch)) == [ERROR, ERROR]
