"""What the scripts keep of an attempt that is repeated, and the steps of a running job's progress."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec
import pytest

from tweezer.model.attempts import JobAttempt, read_attempts
from tweezer.model.errors import FaultKind
from tweezer.model.events import JobNews, read_news
from tweezer.model.ids import job_id
from tweezer.model.lifecycle import JobStatus, Stage
from tweezer.model.messages import Fault, Limits, Outcome, OutcomeKind, Steps
from tweezer.store.keys import Key
from tweezer.store.streams.feed import ChannelReader, Entry, pack_entry, unpack_entry
from tweezer.store.workers import JobProgress

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

FAULT = Fault("transient", "it broke")
STEPS = Steps(2, 5, "trajectory 3 of 5")


async def entries(rig: StoreRig) -> list[Entry]:
    return await rig.store.events.read(most=1000)


async def attempts(rig: StoreRig, batch_id: UUID, index: int = 0) -> list[JobAttempt]:
    events = [event for entry in await entries(rig) for event in entry.events]
    job = await rig.job(batch_id, index)
    fault = job.faults[0] if job.faults else None
    return read_attempts((it for it in events if it.index == index), started=job.started, fault=fault)


def ends(found: list[JobAttempt]) -> list[tuple[str | None, Fault | None]]:
    return [(it.outcome, it.fault) for it in found]


async def receive(reader: ChannelReader, *, words: int) -> list[bytes]:
    """Return the messages up to a line of progress with this number of words."""
    found: list[bytes] = []
    async with asyncio.timeout(5.0):
        while not any(it.startswith(b"~") and len(it.split()) == words for it in found):
            found += await reader.next(None)
    return found


async def test_the_fault_of_each_retried_attempt_is_kept(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, limits=Limits(transient_retries=1))
    await rig.settle(await rig.take_as("here:1:a:0"), {0: OutcomeKind.RETRY})
    last = Fault("transient", "it broke again")
    await rig.settle(
        await rig.take_as("here:1:a:1"), {0: Outcome(OutcomeKind.RETRY, fault=last, cause=FaultKind.TRANSIENT)}
    )
    found = await attempts(rig, batch_id)
    assert ends(found) == [("retry", FAULT), ("error", last)]
    assert [(it.worker, it.lane) for it in found] == [("here:1:a", 0), ("here:1:a", 1)]


async def test_a_crash_of_the_lane_is_kept_with_its_fault(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    crash = Outcome(OutcomeKind.RETRY, fault=Fault("crash", "killed by signal 9"), cause=FaultKind.CRASH)
    await rig.settle(await rig.take_as("here:1:a:0"), {0: crash})
    await rig.run_all()
    assert ends(await attempts(rig, batch_id)) == [("crash", crash.fault), ("done", None)]


async def test_a_failure_of_the_ticket_is_the_fault_of_its_running_jobs(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE))
    await rig.release(grant, Fault("internal", "internal error"))
    assert ends(await attempts(rig, batch_id)) == [("fail", Fault("internal", "internal error"))]


async def test_a_lost_worker_a_drain_and_a_report_are_attempts_without_a_fault(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take_as("here:1:a:0")
    await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE))
    await rig.lapse(grant)
    await rig.swept()
    grant = await rig.take_as("here:2:b:0")
    await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE))
    await rig.tickets.drain(grant.ticket, grant.token)
    grant = await rig.take_as("here:3:c:0")
    await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE))
    await rig.commands.report(batch_id, 0, status=JobStatus.PENDING, project="a")
    await rig.run(await rig.take_as("here:4:d:0"))
    found = await attempts(rig, batch_id)
    assert ends(found) == [("lost", None), ("drain", None), ("report", None), ("done", None)]
    assert [it.worker for it in found] == ["here:1:a", "here:2:b", "here:3:c", "here:4:d"]
    assert (await rig.job(batch_id, 0)).attempt == 3  # the drain does not count


async def test_errors_that_are_reported_with_a_return_belong_to_that_attempt(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.renew(await rig.take(), JobProgress(0, Stage.ON_DEVICE))
    reported = Fault("reported", "the laser\nis out of lock")
    await rig.commands.report(batch_id, 0, status=JobStatus.PENDING, fault=reported, project="a")
    assert ends(await attempts(rig, batch_id)) == [("report", reported)]


async def test_a_cancel_while_the_job_runs_ends_the_attempt(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE))
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    await rig.settle(grant, {0: OutcomeKind.CANCELED})
    assert ends(await attempts(rig, batch_id)) == [("canceled", None)]


async def test_equal_faults_of_one_call_are_stored_once(rig: StoreRig) -> None:
    batch_id = await rig.submit(8)
    grant = await rig.take()
    turn = await rig.settle(grant, {0: OutcomeKind.DONE}, want=7)
    await rig.settle(grant, {job.index: OutcomeKind.RETRY for job in turn.jobs}, want=1)
    (entry,) = [it for it in await entries(rig) if it.faults]
    assert entry.faults.count("it broke") == 1
    for job in turn.jobs:
        assert ends(await attempts(rig, batch_id, job.index))[0] == ("retry", FAULT)


async def test_faults_of_one_call_are_limited_in_length_and_in_sum(rig: StoreRig) -> None:
    await rig.submit(40)
    grant = await rig.take()
    held = (await rig.settle(grant, {0: OutcomeKind.DONE}, want=20)).jobs
    outcomes = {
        job.index: Outcome(
            OutcomeKind.RETRY, fault=Fault("transient", f"{job.index} {'x' * 9000}"), cause=FaultKind.TRANSIENT
        )
        for job in held
    }
    await rig.settle(grant, outcomes, want=1)
    (entry,) = [it for it in await entries(rig) if it.faults]
    messages = [event.fault.message for event in entry.events if event.fault is not None]
    assert len(held) > len(messages) >= 7
    assert {len(it) for it in messages} == {2000}
    assert len(entry.faults) < 20_000


async def test_reasons_and_faults_of_one_call_are_those_of_each_job(rig: StoreRig) -> None:
    """One settle retries a job and gives another one back."""
    batch_id = await rig.submit(8)
    grant = await rig.take()
    jobs = (await rig.settle(grant, {0: OutcomeKind.DONE}, want=2)).jobs
    first, second = (job.index for job in jobs)
    await rig.renew(grant, JobProgress(first, Stage.ON_DEVICE), JobProgress(second, Stage.ON_DEVICE))
    await rig.settle(grant, {first: OutcomeKind.RETRY}, want=0)
    assert ends(await attempts(rig, batch_id, first)) == [("retry", FAULT)]
    assert ends(await attempts(rig, batch_id, second)) == [("drain", None)]


async def test_an_entry_of_an_older_version_has_no_faults_and_one_with_faults_survives_storage(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.settle(await rig.take(), {0: OutcomeKind.RETRY})
    (entry,) = [it for it in await entries(rig) if it.faults]
    assert unpack_entry(entry.id, pack_entry(entry)) == entry
    older = msgspec.structs.replace(entry, faults="")
    assert unpack_entry(entry.id, pack_entry(older)) == older
    await rig.store.events.put_back([entry])
    restored = (await entries(rig))[-1]
    assert (restored.faults, restored.batch_id) == (entry.faults, batch_id)


# --- progress in steps


async def test_steps_are_shown_while_the_job_runs_and_take_no_room_afterwards(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE, steps=STEPS))
    job = await rig.job(batch_id, 0)
    assert (job.progress, job.steps) == (0.4, STEPS)
    await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE, 0.5))
    assert (await rig.job(batch_id, 0)).steps is None
    before = await rig.redis.hget(rig.keys(Key.STATE, batch_id), "0")
    await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE, 0.5, STEPS))
    await rig.run(grant)
    job = await rig.job(batch_id, 0)
    assert (job.status, job.steps) == (JobStatus.DONE, None)
    after = await rig.redis.hget(rig.keys(Key.STATE, batch_id), "0")
    assert len(after.split()) == len(before.split())


@pytest.mark.parametrize("kind", [OutcomeKind.RETRY, OutcomeKind.DONE])
async def test_another_attempt_begins_without_steps(rig: StoreRig, kind: OutcomeKind) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE, steps=STEPS))
    await rig.settle(grant, {0: kind})
    await rig.make_due(batch_id)
    await rig.run_all()
    assert (await rig.job(batch_id, 0)).steps is None


async def test_a_state_of_an_older_version_can_get_steps(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE))
    name = rig.keys(Key.STATE, batch_id)
    words = (await rig.redis.hget(name, "0")).split()
    await rig.redis.hset(name, "0", b" ".join(words[:14]))
    await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE, steps=STEPS))
    assert (await rig.job(batch_id, 0)).steps == STEPS
    await rig.run(grant)
    assert (await rig.job(batch_id, 0)).status is JobStatus.DONE


async def test_an_older_listener_receives_only_lines_that_it_can_read(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    async with rig.store.news.batch(batch_id) as older, rig.store.news.batch(batch_id, steps=True) as newer:
        await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE, steps=STEPS))
        messages = await receive(older, words=3)
        found = await receive(newer, words=5)
    assert b"~0 on_device 40.0" in messages
    assert all(len(it.split()) <= 3 for it in messages)
    news = [it for it in map(read_news, found) if isinstance(it, JobNews)]
    assert news == [JobNews(0, Stage.ON_DEVICE, 40.0), JobNews(0, Stage.ON_DEVICE, 40.0, STEPS)]


async def test_values_of_an_adapter_that_cannot_be_do_not_reach_redis(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE, float("nan"), Steps(9, 2, "a\x1b[2J\n" + "x" * 500)))
    job = await rig.job(batch_id, 0)
    assert (job.id, job.progress) == (job_id(batch_id, 0), None)
    assert job.steps is not None
    assert (job.steps.done, job.steps.total) == (None, None)
    assert job.steps.message is not None
    assert job.steps.message.isprintable()
    assert len(job.steps.message) == 200


async def test_reported_steps_set_the_percentage_and_leave_the_rest_unchanged(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.renew(await rig.take(), JobProgress(0, Stage.ON_DEVICE))
    await rig.commands.report(batch_id, 0, steps=STEPS, project="a")
    job = await rig.job(batch_id, 0)
    assert (job.progress, job.steps) == (0.4, STEPS)
    await rig.commands.report(batch_id, 0, steps=Steps(message="still warm"), project="a")
    job = await rig.job(batch_id, 0)
    assert (job.progress, job.steps) == (0.4, Steps(2, 5, "still warm"))
    await rig.commands.report(batch_id, 0, percent=50, project="a")
    job = await rig.job(batch_id, 0)
    assert (job.progress, job.steps) == (0.5, Steps(2, 5, "still warm"))
