"""The interleavings of ``docs/explanation/protocol.md``, with one or more tests for each, named after its rule.

The tests of some rules are beside what they are about: those of lanes and worker processes (10 in part, 13), of QPUs
(19–21) and of the scheduler (27). Those about a restore by the ledger (24) are in ``test_restore.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from tests.support.records import change_record, drop_update

from tweezer.model.errors import Conflict, FaultKind, NotFound, QueueFull
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import Fault, JobSpec, Limits, OutcomeKind
from tweezer.store.keys import Key
from tweezer.store.producers import CancelAnswer
from tweezer.store.streams.feed import read_cancel
from tweezer.store.workers import JobProgress, NextStep

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

DONE, ERROR, CANCELED = JobStatus.DONE, JobStatus.ERROR, JobStatus.CANCELED
PENDING, RUNNING = JobStatus.PENDING, JobStatus.RUNNING
FAULT = Fault("internal", "the body failed")


async def state_of(rig: StoreRig) -> object:
    """Return everything that a repeated call must not change: all but leases, service and times."""
    moving = {rig.keys(Key.LEASES, "EMU"), rig.keys(Key.FAIR, "EMU"), rig.keys(Key.BELL, "EMU")}
    found = await rig.snapshot(but=moving)
    for value in found.values():
        if isinstance(value, dict):
            drop_update(value)
    return found


# ------------------------------------------------------------------------------------------- tickets and lanes


async def test_rule_1_tickets_follow_the_lanes_and_are_topped_up_in_take(rig: StoreRig) -> None:
    batch_id = await rig.submit(9)
    assert await rig.members(Key.READY, "EMU") == {f"{batch_id}:0"}
    await rig.announce(lanes=3)
    assert [str(grant.ticket) for grant in await rig.grants(5)] == [f"{batch_id}:{n}" for n in range(3)]
    assert await rig.members(Key.READY, "EMU") == set()


async def test_rule_1_jobs_added_while_a_lane_works_get_tickets_for_the_other_lanes(two_lanes: StoreRig) -> None:
    rig = two_lanes
    batch_id = await rig.submit(1, open=True)
    first = await rig.take()
    assert await rig.grants() == []
    await rig.commands.add_jobs(batch_id, [JobSpec()] * 5, project="a")
    second = await rig.take()
    assert second.ticket != first.ticket
    assert {job.index for job in second.jobs} == {1}


async def test_rule_2_ready_and_leased_never_share_a_set(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    name = {f"{batch_id}:0"}
    assert (await rig.members(Key.READY, "EMU"), await rig.members(Key.LEASES, "EMU")) == (name, set())
    grant = await rig.take()
    assert (await rig.members(Key.READY, "EMU"), await rig.members(Key.LEASES, "EMU")) == (set(), name)
    await rig.lapse(grant)
    await rig.tickets.sweep()
    assert (await rig.members(Key.READY, "EMU"), await rig.members(Key.LEASES, "EMU")) == (name, set())


async def test_rule_2_take_reclaims_and_grants_in_one_call(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    lost = await rig.take()
    await rig.lapse(lost)
    again = await rig.take()
    assert again.ticket == lost.ticket
    assert again.token != lost.token
    assert [(job.index, job.attempt) for job in again.jobs] == [(0, 2)]
    assert (await rig.event_texts(batch_id))[-2:] == ["0 job.pending", "0 job.running"]


async def test_rule_2_take_returns_when_the_next_lease_expires(rig: StoreRig) -> None:
    await rig.submit(1)
    taken = await rig.tickets.take("EMU", ["lane"], lease_s=15)
    assert taken.due_s is not None
    assert 14 < taken.due_s <= 15


async def test_rule_3_a_thousand_batches_of_one_project_do_not_delay_the_only_batch_of_another(rig: StoreRig) -> None:
    for _ in range(1000):
        await rig.submit(1, project="many")
    one = await rig.submit(1, project="one")
    assert one in [(await rig.take()).batch_id for _ in range(2)]
    await rig.redis.flushall()  # instead of ending a thousand live batches


async def test_rule_3_a_yield_ranks_the_ticket_anew(rig: StoreRig) -> None:
    ours = await rig.submit(10, project="ours")
    grant = await rig.take()
    theirs = [await rig.submit(1, project=f"p{n}") for n in range(3)]
    assert (await rig.settle(grant, {0: OutcomeKind.DONE}, used_s=1.5)).next is NextStep.YIELD
    order = []
    for _ in range(4):
        grant = await rig.take()
        order.append(grant.batch_id)
        await rig.settle(grant, {grant.jobs[0].index: OutcomeKind.DONE}, used_s=0.01, want=0)
    assert set(order[:3]) == set(theirs)
    assert order[3] == ours


async def test_rule_4_the_doorbell_holds_at_most_one_element(rig: StoreRig) -> None:
    for _ in range(5):
        await rig.submit(1)
    assert await rig.bell() == 1
    await rig.store.scripts.call("ring", device="EMU")
    assert await rig.bell() == 1


async def test_rule_4_a_take_that_leaves_ready_tickets_rings_again(rig: StoreRig) -> None:
    await rig.submit(1)
    await rig.submit(1)
    await rig.silence()
    await rig.take()
    assert await rig.bell() == 1
    await rig.silence()
    await rig.take()
    assert await rig.bell() == 0


@pytest.mark.parametrize("cause", ["submit", "add", "resume", "release", "drain", "yield", "close_retry"])
async def test_rule_4_every_call_that_adds_work_rings(rig: StoreRig, cause: str) -> None:
    batch_id = await rig.submit(3, open=True)
    grant = await rig.take()
    await rig.silence()
    match cause:
        case "submit":
            await rig.submit(1)
        case "add":
            await rig.settle(grant, {0: OutcomeKind.DONE}, want=0)
            await rig.silence()
            await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")
        case "resume":
            await rig.commands.pause(batch_id, project="a")
            assert await rig.bell() == 0
            await rig.commands.resume(batch_id, project="a")
        case "release":
            await rig.release(grant, FAULT)
        case "drain":
            await rig.tickets.drain(grant.ticket, grant.token)
        case "yield":
            await rig.settle(grant, {0: OutcomeKind.DONE}, want=0)
        case "close_retry":
            await rig.settle(grant, {0: OutcomeKind.RETRY}, want=0)
    assert await rig.bell() == 1


async def test_rule_5_a_failed_ticket_comes_back_after_its_backoff(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    assert not await rig.release(grant, FAULT, retry_in_s=60, failures_max=3)
    assert await rig.grants() == []
    assert await rig.members(Key.DUE, "EMU") == {f"{batch_id}:0"}
    await rig.make_due(batch_id)
    assert (await rig.take()).ticket == grant.ticket


async def test_rule_5_too_many_failures_in_a_row_end_the_batch_with_the_reason(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    for left in (2, 1, 0):
        grant = await rig.take()
        doomed = await rig.release(grant, FAULT, failures_max=3)
        assert doomed is (left == 0)
    batch = await rig.batch(batch_id)
    assert (batch.status, batch.fault) == (BatchStatus.ERROR, FAULT)
    assert await rig.statuses(batch_id) == [ERROR] * 3
    assert await rig.grants() == []


async def test_rule_5_a_job_that_ends_breaks_the_row_of_failures(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    for _ in range(2):
        grant = await rig.take()
        await rig.release(grant, FAULT, failures_max=2)
        grant = await rig.take()
        await rig.settle(grant, {grant.jobs[0].index: OutcomeKind.DONE}, want=0)
    assert (await rig.batch(batch_id)).status is BatchStatus.RUNNING


async def test_rule_5_a_ticket_is_not_ended_while_a_retry_waits(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    turn = await rig.settle(grant, {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)})
    assert turn.next is NextStep.PARKED
    assert await rig.members(Key.DUE, "EMU") == {f"{batch_id}:0"}


async def test_rule_6_jobs_added_after_the_ticket_retired_are_handed_out(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    assert (await rig.settle(await rig.take(), {0: OutcomeKind.DONE})).next is NextStep.RETIRED
    await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")
    assert [job.index for job in (await rig.take()).jobs] == [1]


async def test_rule_6_jobs_resumed_after_the_ticket_retired_are_handed_out(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    await rig.commands.pause(batch_id, project="a")
    assert (await rig.settle(grant, {0: OutcomeKind.DONE})).next is NextStep.RETIRED
    await rig.commands.resume(batch_id, project="a")
    assert [job.index for job in (await rig.take()).jobs] == [1]


async def test_rule_6_jobs_added_while_the_ticket_is_parked_do_not_wait_for_the_retry(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    turn = await rig.settle(await rig.take(), {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=3600)})
    assert turn.next is NextStep.PARKED
    await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")
    grant = await rig.take()
    assert [job.index for job in grant.jobs] == [1]
    assert (await rig.settle(grant, {1: OutcomeKind.DONE})).next is NextStep.PARKED


async def test_rule_6_jobs_added_during_a_backoff_do_not_end_it(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    grant = await rig.take()
    await rig.release(grant, FAULT, retry_in_s=60)
    await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")
    assert await rig.grants() == []


async def test_rule_6_a_start_time_holds_for_added_jobs_too(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    await change_record(rig.store, batch_id, not_before=10**14)
    await rig.take()
    await rig.announce(lanes=2)
    await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")
    assert await rig.grants() == []


# ------------------------------------------------------------------------------------------------------ tokens


async def test_rule_7_a_token_does_not_repeat_after_redis_lost_its_last_second(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    before = {name: await rig.redis.dump(name) for name in await rig.redis.keys("*")}
    lost = await rig.take()
    await rig.redis.flushall()
    for name, dump in before.items():  # Redis came back without the take
        await rig.redis.restore(name, 0, dump)
    again = await rig.take()
    assert (again.batch_id, again.ticket) == (batch_id, lost.ticket)
    assert again.token != lost.token
    assert (await rig.settle(lost, {0: OutcomeKind.DONE})).next is NextStep.STALE
    await rig.announce()  # as its heartbeat would: a restored key has lost its expiry


async def test_rule_7_a_token_grows_even_if_the_clock_went_back(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    future = 8 * 10**15
    await change_record(rig.store, batch_id, token=future)
    assert (await rig.take()).token == str(future + 1)


async def test_rule_7_an_older_ticket_of_the_batch_is_not_stale(two_lanes: StoreRig) -> None:
    rig = two_lanes
    await rig.submit(4)
    older, newer = await rig.grants(2)
    assert int(older.token) < int(newer.token)
    assert await rig.renew(older) is not None
    turn = await rig.settle(older, {0: OutcomeKind.DONE})
    assert (turn.next, turn.refused) == (NextStep.JOBS, 0)


async def test_rule_8_a_lost_settle_reply_strands_no_job(rig: StoreRig) -> None:
    batch_id = await rig.submit(20)
    grant = await rig.take()
    lost = await rig.settle(grant, {0: OutcomeKind.DONE}, want=4)
    assert len(lost.jobs) == 4
    before = await state_of(rig)
    repeated = await rig.settle(grant, {0: OutcomeKind.DONE}, want=4)
    assert repeated == lost
    assert await state_of(rig) == before
    await rig.run(grant)
    assert (await rig.batch(batch_id)).counts[DONE] == 20


async def test_rule_8_a_repeated_settle_claims_no_more_than_its_share(two_lanes: StoreRig) -> None:
    rig = two_lanes
    await rig.submit(40)
    grant, _ = await rig.grants(2)
    first = await rig.settle(grant, {0: OutcomeKind.DONE}, want=100)
    for _ in range(5):
        assert await rig.settle(grant, {0: OutcomeKind.DONE}, want=100) == first


async def test_rule_8_a_repeated_settle_that_retired_the_ticket_is_answered_retired(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    grant = await rig.take()
    assert (await rig.settle(grant, {0: OutcomeKind.DONE})).next is NextStep.RETIRED
    before = await state_of(rig)
    repeated = await rig.settle(grant, {0: OutcomeKind.DONE})
    assert (repeated.next, repeated.refused) == (NextStep.RETIRED, 0)
    assert await state_of(rig) == before
    assert (await rig.event_texts(batch_id)).count("0 job.done") == 1


async def test_rule_8_a_repeated_settle_that_ended_the_batch_is_answered_retired(rig: StoreRig) -> None:
    await rig.submit(1)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.ERROR})
    before = await state_of(rig)
    repeated = await rig.settle(grant, {0: OutcomeKind.ERROR})
    assert (repeated.next, repeated.refused) == (NextStep.RETIRED, 0)
    assert await state_of(rig) == before


@pytest.mark.parametrize("losses", [1, 2, 3])
@pytest.mark.parametrize("cause", [FaultKind.TRANSIENT, FaultKind.CRASH])
@pytest.mark.parametrize("jobs", [1, 2, 5])
async def test_rule_8_a_repeated_retry_is_one_failure(rig: StoreRig, losses: int, cause: FaultKind, jobs: int) -> None:
    batch_id = await rig.submit(jobs, limits=Limits(transient_retries=1))
    grant = await rig.take()
    outcomes = {0: rig.outcome(OutcomeKind.RETRY, cause)}
    await rig.settle(grant, outcomes)
    before = await state_of(rig)
    for _ in range(losses):
        assert (await rig.settle(grant, outcomes)).refused == 0
        assert await state_of(rig) == before
    assert (await rig.event_texts(batch_id)).count("0 job.pending") == 1
    assert (await rig.job(batch_id, 0)).attempt == 1


async def test_rule_8_a_retried_job_runs_again_under_another_token(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    assert (await rig.settle(grant, {0: OutcomeKind.RETRY})).next is NextStep.YIELD
    again = await rig.take()
    assert [(job.index, job.attempt) for job in again.jobs] == [(0, 2)]
    late = await rig.settle(grant, {0: OutcomeKind.RETRY})
    assert (late.next, late.refused) == (NextStep.STALE, 1)
    await rig.run(again)
    assert await rig.statuses(batch_id) == [DONE]


async def test_rule_8_a_delayed_retry_that_is_due_waits_for_another_token_too(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    grant = await rig.take()
    outcomes = {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)}
    turn = await rig.settle(grant, outcomes)
    await rig.make_due(batch_id)
    repeated = await rig.settle(grant, outcomes)
    assert repeated == turn
    turn = await rig.settle(grant, {1: OutcomeKind.DONE})
    turn = await rig.settle(grant, {2: OutcomeKind.DONE})
    assert turn.next is NextStep.YIELD
    assert [(job.index, job.attempt) for job in (await rig.take()).jobs] == [(0, 2)]


async def test_rule_8_settle_answers_the_whole_held_set(rig: StoreRig) -> None:
    await rig.submit(20)
    grant = await rig.take()
    held = await rig.settle(grant, {0: OutcomeKind.DONE}, want=4)
    assert [job.index for job in held.jobs] == [1, 2, 3, 4]
    turn = await rig.settle(grant, {1: OutcomeKind.DONE}, want=4)
    assert [job.index for job in turn.jobs] == [2, 3, 4, 5]


async def test_rule_9_an_expired_lease_that_no_lane_took_still_settles(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    await rig.lapse(grant)
    turn = await rig.settle(grant, {0: OutcomeKind.DONE})
    assert (turn.next, turn.refused) == (NextStep.JOBS, 0)
    assert await rig.swept() == (0, 0, 0)  # it settled, so its lease runs again
    assert await rig.statuses(batch_id) == [DONE, RUNNING]


async def test_rule_9_a_settle_with_a_stale_token_is_refused_and_one_outcome_is_kept(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    zombie = await rig.take()
    await rig.lapse(zombie)
    heir = await rig.take()
    before = await rig.snapshot()
    turn = await rig.settle(zombie, {0: OutcomeKind.DONE})
    assert (turn.next, turn.refused) == (NextStep.STALE, 1)
    assert await rig.renew(zombie) is None
    after = await rig.snapshot()
    assert after[rig.keys(Key.DEVICE, "EMU")].pop(b"stale") == b"1"
    assert after == before
    await rig.settle(heir, {0: OutcomeKind.ERROR})
    assert (await rig.settle(zombie, {0: OutcomeKind.DONE})).refused == 1
    assert await rig.statuses(batch_id) == [ERROR]


async def test_rule_10_the_first_claim_is_one_job_and_the_share_is_a_half_of_each_lanes(two_lanes: StoreRig) -> None:
    rig = two_lanes
    await rig.submit(41)
    grant = await rig.take()
    assert len(grant.jobs) == 1
    turn = await rig.settle(grant, {0: OutcomeKind.DONE}, want=1000)
    assert len(turn.jobs) == 10  # ceil(40 / (2 * 2))


async def test_rule_10_a_job_runs_when_its_own_execution_begins(rig: StoreRig) -> None:
    batch_id = await rig.submit(20)
    grant = await rig.take()
    turn = await rig.settle(grant, {0: OutcomeKind.DONE}, want=4)
    assert [job.attempt for job in turn.jobs] == [1, 0, 0, 0]
    assert (await rig.statuses(batch_id))[:5] == [DONE, RUNNING, PENDING, PENDING, PENDING]
    assert (await rig.job(batch_id, 2)).started is None
    await rig.renew(grant, JobProgress(2, Stage.ON_DEVICE))
    assert (await rig.statuses(batch_id))[:5] == [DONE, RUNNING, RUNNING, PENDING, PENDING]
    await rig.settle(grant, {3: OutcomeKind.DONE}, want=4)
    assert (await rig.event_texts(batch_id))[-2:] == ["3 job.running", "3 job.done"]


async def test_rule_11_reclaim_finds_jobs_by_the_held_set_and_counts_only_jobs_that_began(rig: StoreRig) -> None:
    batch_id = await rig.submit(20)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE}, want=4)
    await rig.lapse(grant)
    assert await rig.swept() == (0, 1, 0)
    assert await rig.statuses(batch_id) == [DONE] + [PENDING] * 19
    assert [(await rig.job(batch_id, index)).attempt for index in (1, 2, 3, 4)] == [1, 0, 0, 0]
    assert await rig.members(Key.HELD, batch_id, 0) == set()


async def test_rule_11_a_job_with_an_attempt_behind_it_is_claimed_alone(rig: StoreRig) -> None:
    batch_id = await rig.submit(20)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE}, want=4)  # 1 begun; 2, 3, 4 held
    await rig.lapse(grant)
    grant = await rig.take()
    assert [(job.index, job.attempt) for job in grant.jobs] == [(1, 2)]
    turn = await rig.settle(grant, {1: OutcomeKind.DONE}, want=4)
    assert [(job.index, job.attempt) for job in turn.jobs] == [(2, 1), (3, 0), (4, 0), (5, 0)]
    assert (await rig.batch(batch_id)).counts[RUNNING] == 1


async def test_rule_11_a_job_with_an_attempt_behind_it_does_not_join_those_that_are_held(two_lanes: StoreRig) -> None:
    rig = two_lanes
    batch_id = await rig.submit(40)
    first, second = await rig.grants(2)
    held = await rig.settle(first, {0: OutcomeKind.DONE}, want=4)
    await rig.settle(second, {1: OutcomeKind.RETRY}, want=0)
    suspect = 1
    turn = await rig.settle(first, {held.jobs[0].index: OutcomeKind.DONE}, want=4)
    assert suspect not in [job.index for job in turn.jobs]
    assert [job.index for job in (await rig.take()).jobs] == [suspect]
    assert (await rig.job(batch_id, suspect)).attempt == 2


async def test_rule_11_the_tenth_lost_worker_ends_the_job(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    for attempt in range(1, 11):
        grant = await rig.take()
        assert grant.jobs[0].attempt == attempt
        await rig.lapse(grant)
        await rig.tickets.sweep()
    job = await rig.job(batch_id, 0)
    assert (job.status, job.faults[0].code) == (ERROR, "lost")
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE


async def test_rule_11_limits_are_separate(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, limits=Limits(transient_retries=2))
    for kind in (FaultKind.CRASH, FaultKind.TRANSIENT, None, FaultKind.CRASH, None, FaultKind.TRANSIENT, None):
        grant = await rig.take()
        if kind is None:
            await rig.lapse(grant)
            await rig.tickets.sweep()
        else:
            await rig.settle(grant, {0: rig.outcome(OutcomeKind.RETRY, kind)})
        assert await rig.statuses(batch_id) == [PENDING]
    await rig.settle(await rig.take(), {0: rig.outcome(OutcomeKind.RETRY, FaultKind.CRASH)})
    assert await rig.statuses(batch_id) == [ERROR]


async def test_rule_11_a_drain_does_not_use_up_an_attempt(rig: StoreRig) -> None:
    await rig.submit(1)
    for _ in range(20):
        grant = await rig.take()
        assert [job.attempt for job in grant.jobs] == [1]
        await rig.tickets.drain(grant.ticket, grant.token)


@pytest.mark.parametrize("way", ["reclaim", "drain", "release", "retry"])
async def test_rule_12_a_job_whose_cancel_was_requested_is_never_run_again(rig: StoreRig, way: str) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    assert await rig.commands.cancel_jobs(batch_id, [0], project="a") == [CancelAnswer.REQUESTED]
    match way:
        case "reclaim":
            await rig.lapse(grant)
            await rig.tickets.sweep()
        case "drain":
            await rig.tickets.drain(grant.ticket, grant.token)
        case "release":
            await rig.release(grant, FAULT)
        case "retry":
            await rig.settle(grant, {0: OutcomeKind.RETRY})
    assert await rig.statuses(batch_id) == [CANCELED]
    assert await rig.grants() == []
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE


# ----------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("last", ["settle", "close", "cancel", "reclaim", "drain", "release", "cancel_batch"])
async def test_rule_14_every_call_that_ends_the_last_job_ends_the_batch(rig: StoreRig, last: str) -> None:
    batch_id = await rig.submit(1, open=last == "close")
    grant = await rig.take()
    if last in ("reclaim", "drain", "release"):
        await rig.commands.cancel_jobs(batch_id, [0], project="a")
    match last:
        case "settle":
            await rig.settle(grant, {0: OutcomeKind.DONE})
        case "close":
            await rig.settle(grant, {0: OutcomeKind.DONE})
            assert (await rig.batch(batch_id)).status is BatchStatus.RUNNING
            await rig.commands.close(batch_id, project="a")
        case "cancel":
            await rig.tickets.drain(grant.ticket, grant.token)
            await rig.commands.cancel_jobs(batch_id, [0], project="a")
        case "reclaim":
            await rig.lapse(grant)
            await rig.tickets.sweep()
        case "drain":
            await rig.tickets.drain(grant.ticket, grant.token)
        case "release":
            await rig.release(grant, FAULT)
        case "cancel_batch":
            await rig.tickets.drain(grant.ticket, grant.token)
            await rig.commands.cancel(batch_id, project="a")
    expected = BatchStatus.CANCELED if last == "cancel_batch" else BatchStatus.DONE
    assert (await rig.batch(batch_id)).status is expected
    assert (await rig.event_texts(batch_id))[-1] == f"batch.{expected.value.lower()}"


async def test_rule_14_cancelling_every_job_leaves_the_batch_done(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    await rig.commands.cancel_jobs(batch_id, [0, 1, 2], project="a")
    assert await rig.statuses(batch_id) == [CANCELED] * 3
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE


async def test_rule_14_the_first_job_begun_moves_the_batch_to_running(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    await rig.run(await rig.take())
    assert (await rig.event_texts(batch_id)).count("batch.running") == 1
    batch = await rig.batch(batch_id)
    assert batch.started is not None
    assert batch.ended is not None


async def test_rule_15_an_open_batch_without_work_times_out(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    assert await rig.members(Key.IDLE) == set()
    await rig.run(await rig.take())
    assert await rig.members(Key.IDLE) == {str(batch_id)}
    await rig.run_out(batch_id)
    assert await rig.swept() == (1, 0, 0)
    batch = await rig.batch(batch_id)
    assert (batch.status, batch.open) == (BatchStatus.TIMED_OUT, False)
    with pytest.raises(Conflict):
        await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")


async def test_rule_15_jobs_added_at_the_last_moment_keep_the_batch_open(rig: StoreRig) -> None:
    batch_id = await rig.submit(0, open=True)
    await rig.run_out(batch_id)
    await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")
    assert await rig.swept() == (0, 0, 0)
    assert (await rig.batch(batch_id)).status is BatchStatus.PENDING


async def test_rule_15_the_deadline_is_the_batchs_own_and_starts_when_its_work_ends(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True, limits=Limits(open_timeout_s=1000))
    await rig.run(await rig.take())
    now = (await rig.redis.time())[0] * 1000
    deadline = await rig.redis.zscore(rig.keys(Key.IDLE), str(batch_id))
    assert deadline is not None
    assert 990_000 < deadline - now < 1_010_000


async def test_rule_15_reading_an_idle_batch_does_not_extend_its_deadline(rig: StoreRig) -> None:
    batch_id = await rig.submit(0, open=True)
    await rig.run_out(batch_id)
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    assert await rig.swept() == (1, 0, 0)


async def test_rule_16_a_pause_stops_the_idle_clock_and_a_resume_starts_it(rig: StoreRig) -> None:
    batch_id = await rig.submit(0, open=True)
    assert await rig.members(Key.IDLE) == {str(batch_id)}
    await rig.commands.pause(batch_id, project="a")
    assert await rig.members(Key.IDLE) == set()
    await rig.commands.resume(batch_id, project="a")
    assert await rig.members(Key.IDLE) == {str(batch_id)}


async def test_rule_16_running_jobs_finish_and_a_resume_restores_the_status(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    await rig.commands.pause(batch_id, project="a")
    await rig.settle(grant, {0: OutcomeKind.DONE})
    assert (await rig.batch(batch_id)).status is BatchStatus.PAUSED
    await rig.commands.resume(batch_id, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.RUNNING
    assert (await rig.event_texts(batch_id))[-1] == "batch.resumed"
    await rig.run_all()
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE


async def test_rule_16_a_paused_batch_can_end(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    await rig.commands.pause(batch_id, project="a")
    await rig.commands.cancel(batch_id, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.CANCELED


async def test_rule_17_a_cancel_of_running_work_is_published_and_renew_is_the_fallback(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    async with rig.store.news.pool("EMU") as heard:
        await heard.next(5)
        await rig.commands.cancel_jobs(batch_id, [0, 1], project="a")
        (message,) = await heard.next(5)
    assert read_cancel(message).indices == {0}
    for _ in range(2):  # each time it is read
        assert await rig.renew(grant) == {0}


async def test_rule_18_a_repeated_submit_writes_one_batch(rig: StoreRig) -> None:
    first = await rig.submit(2, idempotency_key="once")
    assert await rig.submit(2, idempotency_key="once") == first
    assert len(await rig.members(Key.READY, "EMU")) == 1
    with pytest.raises(Conflict) as refusal:
        await rig.submit(3, idempotency_key="once")
    assert refusal.value.code == "idempotency"


# ------------------------------------------------------------------------------------------------------ events


async def test_rule_22_each_transition_has_one_event_and_a_submit_is_one(rig: StoreRig) -> None:
    batch_id = await rig.submit(1000)
    await rig.take()
    await rig.commands.cancel(batch_id, project="a")
    events = await rig.events(batch_id)
    assert [event.sequence for event in events] == list(range(1, 1 + 1 + 1 + 1 + 999))
    assert [event.type for event in events[:3]] == ["batch.created", "batch.running", "job.running"]
    assert {event.type for event in events[3:]} == {"job.canceled"}
    assert [event.index for event in events[3:]] == list(range(1, 1000))
    assert len({event.id for event in events}) == len(events)


async def test_rule_22_a_reclaimed_job_has_a_pending_event(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.lapse(grant)
    await rig.tickets.sweep()
    assert (await rig.event_texts(batch_id))[-1] == "0 job.pending"


async def test_rule_23_trimming_stops_at_the_slowest_reader(rig: StoreRig) -> None:
    for _ in range(5):
        await rig.submit(0)
    stream = rig.keys(Key.EVENTS)
    entries = [entry.id for entry in await rig.store.events.read()]
    for group, read in (("couriers", 3), ("archive", 2)):
        await rig.redis.xgroup_create(stream, group, id="0")
        await rig.redis.xreadgroup(group, "c", {stream: ">"}, count=read)
    await rig.redis.xack(stream, "archive", *entries[:2])
    await rig.tickets.trim(entries[4])
    assert [entry.id for entry in await rig.store.events.read()] == entries  # couriers have acknowledged nothing
    await rig.redis.xack(stream, "couriers", *entries[:3])
    await rig.tickets.trim(entries[4])
    assert [entry.id for entry in await rig.store.events.read()] == entries[
        1:
    ]  # the archive has received the second last
    await rig.tickets.trim(entries[0])  # a recorder that is further behind
    assert [entry.id for entry in await rig.store.events.read()] == entries[1:]


async def test_rule_26_a_full_store_refuses_new_work_and_ends_what_it_has(rig: StoreRig) -> None:
    batch_id = await rig.submit(3, open=True)
    await rig.tickets.set_full("80 % of maxmemory", ttl_s=30)
    with pytest.raises(QueueFull, match="80 %"):
        await rig.submit(1)
    with pytest.raises(QueueFull, match="80 %"):
        await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")
    grant = await rig.take()
    assert await rig.renew(grant) is not None
    await rig.lapse(grant)
    await rig.tickets.sweep()
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE}, want=0)
    await rig.commands.cancel(batch_id, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.CANCELED


async def test_a_foreign_or_forgotten_batch_is_unknown_to_workers_too(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE})
    await rig.forget(batch_id)
    turn = await rig.settle(grant, {0: OutcomeKind.DONE})
    assert (turn.next, turn.refused) == (NextStep.STALE, 1)
    assert await rig.renew(grant) is None
    with pytest.raises(NotFound):
        await rig.commands.cancel(UUID(int=batch_id.int), project="a")
    assert await rig.redis.keys(f"*{batch_id}*") == []
