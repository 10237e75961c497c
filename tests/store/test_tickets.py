"""The calls of a worker on a ticket: take, settle, renew, give back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from tweezer.model.errors import FaultKind
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import Fault, JobSpec, Limits, OutcomeKind
from tweezer.store.keys import Key
from tweezer.store.workers import JobProgress, NextStep

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

DONE, ERROR, CANCELED = JobStatus.DONE, JobStatus.ERROR, JobStatus.CANCELED
PENDING, RUNNING = JobStatus.PENDING, JobStatus.RUNNING
FAULT = Fault("user", "the sequence is wrong", "sequence")


async def test_a_grant_contains_everything_that_a_worker_needs(rig: StoreRig) -> None:
    batch_id = await rig.submit([JobSpec(runs=7, variables={"t": [1, 2]})], project="ours")
    grant = await rig.take()
    assert (grant.batch_id, grant.project, grant.exclusive) == (batch_id, "ours", False)
    assert grant.doc == (await rig.batch(batch_id)).doc
    (job,) = grant.jobs
    assert (job.index, job.attempt, job.cancel_requested) == (0, 1, False)
    assert job.spec == JobSpec(runs=7, variables={"t": [1, 2]})


async def test_the_events_of_a_batch_are_in_order(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    await rig.run(await rig.take())
    assert await rig.event_texts(batch_id) == [
        "batch.created",
        "batch.running",
        "0 job.running",
        "0 job.done",
        "1 job.running",
        "1 job.done",
        "batch.done",
    ]


async def test_a_take_without_work_grants_nothing(rig: StoreRig) -> None:
    before = await rig.snapshot()
    taken = await rig.tickets.take("EMU", ["lane"], lease_s=15)
    assert (taken.grants, taken.due_s, taken.paused, taken.left_alone) == ([], None, False, [])
    assert await rig.snapshot() == before


async def test_a_take_grants_one_ticket_a_lane(rig: StoreRig) -> None:
    batches = {await rig.submit(1, project=project) for project in "abc"}
    first, second = await rig.grants(2), await rig.grants(2)
    assert (len(first), len(second)) == (2, 1)
    assert {grant.batch_id for grant in first + second} == batches


async def test_each_outcome_gives_its_status(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE})
    await rig.settle(grant, {1: OutcomeKind.ERROR})
    await rig.settle(grant, {2: OutcomeKind.CANCELED})
    assert await rig.statuses(batch_id) == [DONE, ERROR, CANCELED]
    batch = await rig.batch(batch_id)
    assert (batch.status, batch.fault) == (BatchStatus.DONE, None)
    assert batch.counts == {PENDING: 0, RUNNING: 0, DONE: 1, ERROR: 1, CANCELED: 1}
    assert (await rig.job(batch_id, 1)).faults == (Fault("user", "it broke"),)
    assert set(await rig.reader.results(batch_id, [0, 1, 2])) == {0}


async def test_the_clocks_of_a_job_are_three_numbers(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    running = await rig.job(batch_id, 0)
    assert (running.stage, running.started is not None, running.ended) == (Stage.PREPARING, True, None)
    await rig.settle(grant, {0: OutcomeKind.DONE})
    job = await rig.job(batch_id, 0)
    assert (job.preparation_s, job.device_s, job.stage) == (0.5, 1.5, None)
    assert job.queue_s is not None
    assert 0 <= job.queue_s < 60
    assert job.started is not None
    assert job.ended is not None
    assert job.created <= job.ended


async def test_progress_is_published_but_not_an_event(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    told = await rig.event_texts(batch_id)
    async with rig.store.news.batch(batch_id) as heard:
        await heard.next(5)
        assert await rig.renew(grant, JobProgress(0, Stage.ON_DEVICE, 0.25)) == set()
        assert await heard.next(5) == [b"~0 on_device 25.0"]
    job = await rig.job(batch_id, 0)
    assert (job.stage, job.progress) == (Stage.ON_DEVICE, 0.25)
    assert await rig.event_texts(batch_id) == told


async def test_a_renewed_lease_does_not_expire(rig: StoreRig) -> None:
    await rig.submit(1)
    grant = await rig.take()
    await rig.lapse(grant)
    assert await rig.renew(grant) == set()
    assert await rig.swept() == (0, 0, 0)
    assert (await rig.settle(grant, {0: OutcomeKind.DONE})).refused == 0


async def test_progress_of_a_job_that_is_not_held_is_ignored(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    await rig.renew(grant, JobProgress(1, Stage.ON_DEVICE))
    assert await rig.statuses(batch_id) == [RUNNING, PENDING]


@pytest.mark.parametrize("token", ["0", "1", "99999999999999999", ""])
async def test_a_stale_token_changes_nothing(rig: StoreRig, token: str) -> None:
    await rig.submit(3)
    grant = await rig.take()
    stale = replace(grant, token=token)
    before = await rig.snapshot()
    turn = await rig.settle(stale, {0: OutcomeKind.DONE})
    assert (turn.next, turn.refused, turn.jobs) == (NextStep.STALE, 1, [])
    assert await rig.renew(stale, JobProgress(0, Stage.ON_DEVICE)) is None
    assert not await rig.tickets.drain(stale.ticket, token)
    assert not await rig.release(stale, FAULT, failures_max=1)
    assert not await rig.tickets.fail_batch(stale.ticket, token, FAULT)
    after = await rig.snapshot()
    assert after[rig.keys(Key.DEVICE, "EMU")].pop(b"stale") == b"1"
    assert after == before


async def test_an_outcome_of_a_job_that_the_ticket_does_not_hold_is_refused(two_lanes: StoreRig) -> None:
    rig = two_lanes
    batch_id = await rig.submit(3)
    first, second = await rig.grants(2)
    for index in (1, 2):  # held by the other ticket; not handed out
        turn = await rig.settle(first, {index: OutcomeKind.DONE})
        assert (turn.refused, [job.index for job in turn.jobs]) == (1, [0])
    assert await rig.statuses(batch_id) == [RUNNING, RUNNING, PENDING]
    assert (await rig.settle(second, {1: OutcomeKind.DONE})).refused == 0


async def test_a_transient_failure_is_retried_after_its_delay(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    turn = await rig.settle(grant, {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)})
    assert turn.next is NextStep.PARKED
    assert (await rig.job(batch_id, 0)).status is PENDING
    taken = await rig.tickets.take("EMU", ["lane"], lease_s=15)
    assert taken.grants == []
    assert taken.due_s is not None
    assert 50 < taken.due_s <= 60

    await rig.make_due(batch_id)
    again = await rig.take()
    assert [(job.index, job.attempt) for job in again.jobs] == [(0, 2)]
    await rig.run(again)
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE
    assert "0 job.pending" in await rig.event_texts(batch_id)


async def test_a_delayed_job_does_not_delay_the_others(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    grant = await rig.take()
    turn = await rig.settle(grant, {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)})
    assert (turn.next, [job.index for job in turn.jobs]) == (NextStep.JOBS, [1])
    turn = await rig.settle(grant, {1: OutcomeKind.DONE})
    assert [job.index for job in turn.jobs] == [2]
    assert (await rig.settle(grant, {2: OutcomeKind.DONE})).next is NextStep.PARKED
    await rig.make_due(batch_id)
    assert await rig.run_all() == [batch_id]
    assert await rig.statuses(batch_id) == [DONE] * 3


async def test_transient_failures_are_limited_by_the_batch(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, limits=Limits(transient_retries=2))
    for attempt in (1, 2, 3):
        grant = await rig.take()
        assert grant.jobs[0].attempt == attempt
        await rig.settle(grant, {0: OutcomeKind.RETRY})
    job = await rig.job(batch_id, 0)
    assert (job.status, job.attempt) == (ERROR, 3)
    assert job.faults == (Fault("transient", "it broke"),)
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE


async def test_a_job_may_crash_its_lane_three_times(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, limits=Limits(transient_retries=0))
    for attempt in (1, 2, 3):
        grant = await rig.take()
        assert grant.jobs[0].attempt == attempt
        await rig.settle(grant, {0: rig.outcome(OutcomeKind.RETRY, FaultKind.CRASH)})
    assert (await rig.job(batch_id, 0)).status is ERROR


async def test_a_drain_gives_jobs_back_without_using_up_an_attempt(rig: StoreRig) -> None:
    batch_id = await rig.submit(10)
    grant = await rig.take()
    turn = await rig.settle(grant, {0: OutcomeKind.DONE}, want=3)
    assert [job.index for job in turn.jobs] == [1, 2, 3]
    assert await rig.tickets.drain(grant.ticket, grant.token)
    assert await rig.statuses(batch_id) == [DONE] + [PENDING] * 9
    again = await rig.take()
    assert [(job.index, job.attempt) for job in again.jobs] == [(1, 1)]
    assert not await rig.tickets.drain(grant.ticket, grant.token)


async def test_a_settle_that_wants_no_jobs_gives_back_the_held_ones(rig: StoreRig) -> None:
    batch_id = await rig.submit(10)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE}, want=3)
    turn = await rig.settle(grant, {1: OutcomeKind.DONE}, want=0)
    assert (turn.next, turn.jobs) == (NextStep.YIELD, [])
    assert await rig.statuses(batch_id) == [DONE, DONE] + [PENDING] * 8
    assert await rig.members(Key.LEASES, "EMU") == set()
    assert await rig.members(Key.HELD, batch_id, 0) == set()


async def test_a_batch_that_cannot_run_ends_in_error_with_its_reason(rig: StoreRig) -> None:
    batch_id = await rig.submit(4, open=True)
    grant = await rig.take()
    assert await rig.tickets.fail_batch(grant.ticket, grant.token, FAULT)
    batch = await rig.batch(batch_id)
    assert (batch.status, batch.fault, batch.open) == (BatchStatus.ERROR, FAULT, False)
    assert await rig.statuses(batch_id) == [ERROR] * 4
    assert all(job.faults == (FAULT,) for job in await rig.jobs(batch_id))
    assert (await rig.event_texts(batch_id))[-1] == "batch.error"
    assert await rig.grants() == []


async def test_a_batch_that_cannot_run_waits_for_its_running_jobs(two_lanes: StoreRig) -> None:
    rig = two_lanes
    batch_id = await rig.submit(4)
    first, second = await rig.grants(2)
    await rig.tickets.fail_batch(first.ticket, first.token, FAULT)
    assert (await rig.batch(batch_id)).status is BatchStatus.RUNNING
    assert await rig.statuses(batch_id) == [ERROR, RUNNING, ERROR, ERROR]
    assert (await rig.settle(second, {1: OutcomeKind.DONE})).next is NextStep.RETIRED
    assert (await rig.batch(batch_id)).status is BatchStatus.ERROR
    assert (await rig.job(batch_id, 1)).status is DONE


async def test_a_batch_never_has_more_tickets_than_lanes_or_waiting_jobs(rig: StoreRig) -> None:
    await rig.announce(lanes=3)
    small, large = await rig.submit(2), await rig.submit(50, project="b")
    tickets = await rig.members(Key.READY, "EMU")
    assert tickets == {f"{small}:0", f"{small}:1", *(f"{large}:{n}" for n in range(3))}


async def test_an_exclusive_device_has_one_ticket_a_batch(rig: StoreRig) -> None:
    await rig.announce("QPU", lanes=1, worker="q", exclusive=1)
    await rig.announce("QPU", lanes=3, worker="r", exclusive=1)
    batch_id = await rig.submit(9, device="QPU")
    (grant,) = await rig.grants(4, device="QPU")
    assert grant.exclusive
    assert await rig.members(Key.READY, "QPU") == set()
    await rig.tickets.drain(grant.ticket, grant.token)
    assert await rig.run_all(device="QPU") == [batch_id]


async def test_counters_of_batch_and_device_follow_the_jobs(two_lanes: StoreRig) -> None:
    rig = two_lanes
    batches = [await rig.submit(6), await rig.submit(5, project="b")]
    first, second = await rig.grants(2)
    await rig.settle(first, {first.jobs[0].index: OutcomeKind.DONE}, want=2)
    await rig.settle(second, {second.jobs[0].index: OutcomeKind.ERROR})
    await rig.commands.cancel_jobs(batches[0], [5], project="a")
    totals = dict.fromkeys(JobStatus, 0)
    for batch_id in batches:
        statuses = await rig.statuses(batch_id)
        counts = (await rig.batch(batch_id)).counts
        for status in JobStatus:
            assert counts[status] == statuses.count(status)
            totals[status] += counts[status]
    device = await rig.reader.device("EMU")
    assert device is not None
    assert (device.pending, device.running) == (totals[PENDING], totals[RUNNING])
