"""The rules of a batch: lateness, the queue timeout, the failure threshold, and the limit of all retries."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from msgspec.structs import replace
from tests.support.power_loss import checkpoint, fall_back, recorded

from tweezer.model.cancels import RULE, CancelOutcome
from tweezer.model.errors import Conflict, FaultKind, InvalidInput
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import BatchDoc, Fault, JobSpec, Limits, Outcome, OutcomeKind
from tweezer.model.rules import OnFailures, Rules
from tweezer.store.keys import Key
from tweezer.store.measures import DeviceMeasures, measure
from tweezer.store.producers import Submission
from tweezer.store.records import STATE_FIELDS
from tweezer.store.streams.feed import read_cancel
from tweezer.store.workers import Grant, JobProgress, NextStep

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

DONE, ERROR, CANCELED = JobStatus.DONE, JobStatus.ERROR, JobStatus.CANCELED
PENDING, RUNNING = JobStatus.PENDING, JobStatus.RUNNING
LONG_AGO, FAR_AHEAD = datetime(2020, 1, 1, tzinfo=UTC), datetime(2500, 1, 1, tzinfo=UTC)
WAITS_A_MINUTE = Rules(queue_timeout_s=60)
CRASH = Outcome(OutcomeKind.RETRY, fault=Fault("crash", "the lane's process died"), cause=FaultKind.CRASH)


async def fail_jobs(rig: StoreRig, grant: Grant, number: int) -> Any:
    """Fail this number of jobs, one after the other, and return what the last settle returned."""
    turn: Any = None
    jobs = grant.jobs
    for _ in range(number):
        turn = await rig.settle(grant, {jobs[0].index: OutcomeKind.ERROR})
        jobs = turn.jobs
    return turn


async def counted(rig: StoreRig) -> tuple[int, int, int]:
    """Return how many batches were late, expired, and were stopped by their failures."""
    device: DeviceMeasures = next(it for it in (await measure(rig.store.scripts, None)).devices if it.name == "EMU")
    return device.late, device.expired, device.stopped


class TestQueueTimeout:
    async def test_a_batch_that_does_not_start_in_time_expires(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(3, rules=WAITS_A_MINUTE)
        await rig.let_expire(batch_id)
        assert await rig.swept() == (1, 0, 0)
        batch = await rig.batch(batch_id)
        assert (batch.status, batch.open, batch.ended is not None) == (BatchStatus.TIMED_OUT, False, True)
        assert batch.fault == Fault(
            "expired",
            "no job of the batch started within 60 s; submit it again, with a longer time if it may wait",
            "queue_timeout_s",
        )
        for job in await rig.jobs(batch_id):
            assert (job.status, job.faults) == (CANCELED, (batch.fault,))
            assert (job.cancel_outcome, [it.by for it in job.cancels]) == (CancelOutcome.PREVENTED, [RULE])
        assert await rig.event_texts(batch_id) == [
            "batch.created",
            *(f"{index} job.canceled" for index in range(3)),
            "batch.timed_out",
        ]
        assert await counted(rig) == (0, 1, 0)
        assert await rig.grants() == []
        assert await rig.swept() == (0, 0, 0)

    async def test_no_deadline_is_left_when_a_batch_starts_or_ends(self, rig: StoreRig) -> None:
        started = await rig.submit(1, rules=WAITS_A_MINUTE)
        canceled = await rig.submit(1, rules=WAITS_A_MINUTE)
        empty = await rig.submit(0, rules=WAITS_A_MINUTE)
        assert await rig.members(Key.DEADLINES) == {str(started), str(canceled)}
        assert (await rig.batch(empty)).status is BatchStatus.DONE
        assert (await rig.take()).batch_id == started
        assert await rig.members(Key.DEADLINES) == {str(canceled)}
        await rig.commands.cancel(canceled, project="a")
        assert await rig.members(Key.DEADLINES) == set()

    async def test_a_batch_that_started_in_time_does_not_expire(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(2, rules=WAITS_A_MINUTE)
        grant = await rig.take()
        await rig.redis.zadd(rig.keys(Key.DEADLINES), {str(batch_id): 1})  # as if an older worker had begun the job
        await rig.let_expire(batch_id)
        await rig.tickets.drain(grant.ticket, grant.token)
        assert await rig.swept() == (0, 0, 0)
        assert await rig.run_all() == [batch_id]
        assert (await rig.batch(batch_id)).status is BatchStatus.DONE

    async def test_the_timeout_counts_from_the_start_time(self, rig: StoreRig) -> None:
        now = await rig.submit(1, rules=WAITS_A_MINUTE)
        later = await rig.submit(1, rules=WAITS_A_MINUTE, not_before=FAR_AHEAD)
        past = await rig.submit(1, rules=WAITS_A_MINUTE, not_before=LONG_AGO)
        for batch_id in (now, past):
            batch = await rig.batch(batch_id)
            assert batch.expires is not None
            assert 59 < (batch.expires - batch.created).total_seconds() < 61
        expires = (await rig.batch(later)).expires
        assert expires is not None
        assert abs((expires - FAR_AHEAD).total_seconds() - 60) < 0.1

    async def test_a_batch_without_the_rule_does_not_expire(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, rules=Rules(failure_threshold=1, keep_s=5))
        assert (await rig.batch(batch_id)).expires is None
        assert await rig.members(Key.DEADLINES) == set()

    async def test_a_paused_batch_expires(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, rules=WAITS_A_MINUTE)
        await rig.commands.pause(batch_id, project="a")
        await rig.let_expire(batch_id)
        assert await rig.swept() == (1, 0, 0)
        assert (await rig.batch(batch_id)).status is BatchStatus.TIMED_OUT

    async def test_an_open_batch_without_jobs_expires(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(0, open=True, rules=WAITS_A_MINUTE)
        await rig.let_expire(batch_id)
        assert await rig.swept() == (1, 0, 0)
        assert (await rig.batch(batch_id)).status is BatchStatus.TIMED_OUT
        assert await rig.members(Key.IDLE) == set()
        with pytest.raises(Conflict):
            await rig.commands.add_jobs(batch_id, [JobSpec(runs=1)], project="a")

    async def test_an_expired_batch_is_not_handed_out_before_the_next_sweep(self, rig: StoreRig) -> None:
        expired = [await rig.submit(2, rules=WAITS_A_MINUTE) for _ in range(2)]
        last = await rig.submit(1)
        for batch_id in expired:
            await rig.let_expire(batch_id)
        assert (await rig.take()).batch_id == last
        for batch_id in expired:
            assert (await rig.batch(batch_id)).status is BatchStatus.TIMED_OUT
            assert await rig.statuses(batch_id) == [CANCELED, CANCELED]
        assert await counted(rig) == (0, 2, 0)

    async def test_nothing_expires_while_the_gate_is_shut(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, rules=WAITS_A_MINUTE)
        await rig.let_expire(batch_id)
        await rig.recovery.mark_ledger()
        await rig.start_again()
        assert await rig.swept() == (0, 0, 0)
        assert await rig.grants() == []
        assert (await rig.batch(batch_id)).status is BatchStatus.PENDING
        await rig.recovery.open_gate()
        assert await rig.swept() == (1, 0, 0)

    async def test_a_job_that_a_user_cancelled_earlier_does_not_show_the_fault(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(2, rules=WAITS_A_MINUTE)
        await rig.commands.cancel_jobs(batch_id, [0], project="a", by="ann")
        name = rig.keys(Key.STATE, batch_id)
        state = (await rig.redis.hget(name, "0")).split()
        for word in ("ended", "cancel"):
            state[STATE_FIELDS.index(word)] = b"5"  # long ago
        await rig.redis.hset(name, "0", b" ".join(state))
        await rig.let_expire(batch_id)
        await rig.swept()
        first, second = await rig.jobs(batch_id)
        assert (first.status, first.faults) == (CANCELED, ())
        assert [it.code for it in second.faults] == ["expired"]

    async def test_many_batches_expire_in_several_sweeps(self, rig: StoreRig) -> None:
        batches = [await rig.submit(1, rules=WAITS_A_MINUTE) for _ in range(5)]
        for batch_id in batches:
            await rig.let_expire(batch_id)
        found = [await rig.tickets.sweep(most=2) for _ in range(3)]
        assert [(it.timed_out, it.more) for it in found] == [(2, True), (2, True), (1, False)]

    async def test_a_sweep_cancels_a_limited_number_of_jobs(self, rig: StoreRig) -> None:
        large = await rig.submit(10_000, rules=WAITS_A_MINUTE)
        small = await rig.submit(1, rules=WAITS_A_MINUTE)
        await rig.let_expire(large)
        await rig.let_expire(small)
        await rig.redis.zadd(rig.keys(Key.DEADLINES), {str(small): 2})
        found = await rig.tickets.sweep()
        assert (found.timed_out, found.more) == (1, True)
        assert (await rig.batch(small)).status is BatchStatus.PENDING
        assert await rig.swept() == (1, 0, 0)

    async def test_a_batch_that_cannot_be_read_is_checked_again(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, rules=WAITS_A_MINUTE)
        await rig.let_expire(batch_id)
        name = rig.keys(Key.BATCH, batch_id)
        await rig.redis.hset(name, "v", "99")
        assert await rig.swept() == (0, 0, 0)
        assert float(await rig.redis.zscore(rig.keys(Key.DEADLINES), str(batch_id))) > 1
        await rig.redis.hset(name, "v", "2")
        await rig.redis.zadd(rig.keys(Key.DEADLINES), {str(batch_id): 1})
        assert await rig.swept() == (1, 0, 0)

    async def test_a_batch_that_was_discarded_leaves_no_deadline(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, rules=WAITS_A_MINUTE)
        await rig.commands.discard(batch_id)
        assert await rig.members(Key.DEADLINES) == set()

    async def test_rules_that_cannot_be_read_are_ignored(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, rules=WAITS_A_MINUTE)
        await rig.redis.hset(rig.keys(Key.BATCH, batch_id), "rules", "{")
        await rig.redis.zadd(rig.keys(Key.DEADLINES), {str(batch_id): 1})
        assert await rig.swept() == (0, 0, 0)
        assert await rig.run_all() == [batch_id]
        await rig.redis.hset(rig.keys(Key.BATCH, batch_id), "rules", "{}")
        assert (await rig.batch(batch_id)).status is BatchStatus.DONE


class TestLateness:
    LATE = Rules(schedule_threshold_s=60)

    async def test_a_late_batch_is_reported_once_and_runs(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, rules=self.LATE, not_before=LONG_AGO)
        for _ in range(2):
            assert await rig.swept() == (0, 0, 0)
        event = (await rig.events(batch_id))[-1]
        assert (event.type, event.status, event.previous) == (
            "batch.late",
            BatchStatus.PENDING,
            BatchStatus.PENDING,
        )
        assert await rig.event_texts(batch_id) == ["batch.created", "batch.late"]
        assert await counted(rig) == (1, 0, 0)
        assert await rig.run_all() == [batch_id]
        assert [it.sequence for it in await rig.events(batch_id)] == [1, 2, 3, 4, 5, 6]

    async def test_a_batch_that_starts_in_time_is_not_late(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, rules=self.LATE, not_before=LONG_AGO)
        await rig.take()
        assert await rig.swept() == (0, 0, 0)
        assert "batch.late" not in await rig.event_texts(batch_id)

    async def test_a_batch_is_not_late_before_its_time(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, rules=self.LATE, not_before=FAR_AHEAD)
        assert await rig.swept() == (0, 0, 0)
        assert await rig.event_texts(batch_id) == ["batch.created"]
        due_ms = await rig.redis.zscore(rig.keys(Key.DEADLINES), str(batch_id))
        assert due_ms == round(FAR_AHEAD.timestamp() * 1000) + 60_000

    async def test_a_paused_batch_can_be_late(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, rules=self.LATE, not_before=LONG_AGO)
        await rig.commands.pause(batch_id, project="a")
        await rig.swept()
        assert (await rig.event_texts(batch_id))[-1] == "batch.late"
        assert (await rig.batch(batch_id)).status is BatchStatus.PAUSED

    async def test_a_late_batch_expires_afterwards(self, rig: StoreRig) -> None:
        rules = Rules(schedule_threshold_s=60, queue_timeout_s=90)
        batch_id = await rig.submit(1, rules=rules, not_before=LONG_AGO)
        await rig.swept()
        await rig.let_expire(batch_id)
        assert await rig.swept() == (1, 0, 0)
        assert await rig.event_texts(batch_id) == [
            "batch.created",
            "batch.late",
            "0 job.canceled",
            "batch.timed_out",
        ]

    async def test_a_batch_that_expired_before_it_was_late_is_not_reported_as_late(self, rig: StoreRig) -> None:
        rules = Rules(schedule_threshold_s=60, queue_timeout_s=30)
        batch_id = await rig.submit(1, rules=rules, not_before=LONG_AGO)
        await rig.let_expire(batch_id)
        assert await rig.swept() == (1, 0, 0)
        assert "batch.late" not in await rig.event_texts(batch_id)


class TestFailureThreshold:
    async def test_a_batch_pauses_at_the_threshold(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(10, rules=Rules(failure_threshold=3))
        turn = await fail_jobs(rig, await rig.take(), 3)
        assert (turn.next, turn.jobs) == (NextStep.RETIRED, [])
        batch = await rig.batch(batch_id)
        assert (batch.status, batch.fault, batch.counts[ERROR]) == (BatchStatus.PAUSED, None, 3)
        assert batch.pause is not None
        assert (batch.pause.by, batch.pause.reason) == (
            RULE,
            "failure_threshold: 3 jobs failed; resume the batch to continue, or cancel it",
        )
        assert (await rig.event_texts(batch_id))[-1] == "batch.paused"
        assert await rig.grants() == []
        assert await counted(rig) == (0, 0, 1)

    async def test_after_a_resume_so_many_more_must_fail(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(10, rules=Rules(failure_threshold=2))
        await fail_jobs(rig, await rig.take(), 2)
        await rig.commands.resume(batch_id, project="a")
        assert (await rig.batch(batch_id)).pause is None
        grant = await rig.take()
        turn = await rig.settle(grant, {grant.jobs[0].index: OutcomeKind.ERROR})
        assert turn.next is NextStep.JOBS
        turn = await rig.settle(grant, {turn.jobs[0].index: OutcomeKind.ERROR})
        assert turn.next is NextStep.RETIRED
        assert (await rig.batch(batch_id)).status is BatchStatus.PAUSED
        assert await counted(rig) == (0, 0, 2)

    async def test_jobs_that_fail_while_it_is_paused_do_not_count_after_the_resume(self, two_lanes: StoreRig) -> None:
        rig = two_lanes
        batch_id = await rig.submit(10, rules=Rules(failure_threshold=2))
        first, second = await rig.grants(2)
        await fail_jobs(rig, first, 2)
        await rig.settle(second, {second.jobs[0].index: OutcomeKind.ERROR})
        assert (await rig.batch(batch_id)).counts[ERROR] == 3
        await rig.commands.resume(batch_id, project="a")
        grant = (await rig.grants())[0]
        turn = await rig.settle(grant, {grant.jobs[0].index: OutcomeKind.ERROR})
        assert turn.next is NextStep.JOBS

    async def test_a_batch_that_a_user_paused_gets_the_reason(self, two_lanes: StoreRig) -> None:
        rig = two_lanes
        batch_id = await rig.submit(10, rules=Rules(failure_threshold=2))
        grants = await rig.grants(2)
        await rig.commands.pause(batch_id, project="a", by="ann", reason="lunch")
        for grant in grants:
            await rig.settle(grant, {grant.jobs[0].index: OutcomeKind.ERROR})
        batch = await rig.batch(batch_id)
        assert batch.pause is not None
        assert batch.pause.by == RULE
        assert [it for it in await rig.event_texts(batch_id) if it.startswith("batch.")] == [
            *("batch.created", "batch.running", "batch.paused")
        ]

    async def test_a_batch_is_cancelled_at_the_threshold(self, two_lanes: StoreRig) -> None:
        rig = two_lanes
        rules = Rules(failure_threshold=1, on_failures=OnFailures.CANCEL)
        batch_id = await rig.submit(10, rules=rules)
        first, second = await rig.grants(2)
        turn = await rig.settle(first, {0: OutcomeKind.ERROR}, want=3)
        assert (turn.next, turn.jobs) == (NextStep.RETIRED, [])
        batch = await rig.batch(batch_id)
        assert (batch.status, batch.open) == (BatchStatus.RUNNING, False)
        assert await rig.renew(second) == {1}
        await rig.settle(second, {1: OutcomeKind.CANCELED})
        batch = await rig.batch(batch_id)
        assert batch.status is BatchStatus.CANCELED
        assert batch.fault == Fault(
            "failures",
            "1 job failed, so the batch was cancelled; correct the failed jobs, then submit the rest again",
            "failure_threshold",
        )
        failed, *others = await rig.jobs(batch_id)
        assert [it.code for it in failed.faults] == ["user"]
        assert {job.status for job in others} == {CANCELED}
        assert {job.faults for job in others} == {(batch.fault,)}
        assert others[0].cancel_outcome is CancelOutcome.STOPPED
        assert [(it.by, it.jobs) for it in batch.cancels] == [(RULE, "*")]
        assert (await rig.event_texts(batch_id))[-1] == "batch.canceled"
        assert await counted(rig) == (0, 0, 1)

    async def test_the_pool_learns_which_running_jobs_a_threshold_cancels(self, two_lanes: StoreRig) -> None:
        rig = two_lanes
        rules = Rules(failure_threshold=1, on_failures=OnFailures.CANCEL)
        batch_id = await rig.submit(10, rules=rules)
        first, _ = await rig.grants(2)
        async with rig.store.news.pool("EMU") as messages:
            await messages.next(5)
            await rig.settle(first, {0: OutcomeKind.ERROR})
            (message,) = await messages.next(5)
        assert (read_cancel(message).batch_id, read_cancel(message).indices) == (batch_id, frozenset({1}))

    async def test_jobs_that_the_ticket_still_holds_are_cancelled(self, rig: StoreRig) -> None:
        rules = Rules(failure_threshold=1, on_failures=OnFailures.CANCEL)
        batch_id = await rig.submit(12, rules=rules)
        grant = await rig.take()
        held = (await rig.settle(grant, {0: OutcomeKind.DONE}, want=4)).jobs
        await rig.renew(grant, JobProgress(held[1].index, Stage.ON_DEVICE))
        turn = await rig.settle(grant, {held[0].index: OutcomeKind.ERROR}, want=4)
        assert [(job.index, job.cancel_requested) for job in turn.jobs] == [(held[1].index, True)]
        await rig.settle(grant, {held[1].index: OutcomeKind.CANCELED})
        assert (await rig.batch(batch_id)).status is BatchStatus.CANCELED
        assert (await rig.statuses(batch_id)).count(CANCELED) == 10

    async def test_a_batch_whose_last_job_fails_is_not_paused(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(2, rules=Rules(failure_threshold=2, on_failures=OnFailures.PAUSE))
        await rig.run(await rig.take(), OutcomeKind.ERROR)
        assert (await rig.batch(batch_id)).status is BatchStatus.DONE
        assert (await rig.event_texts(batch_id))[-1] == "batch.done"
        assert await counted(rig) == (0, 0, 0)

    async def test_a_batch_is_cancelled_even_if_its_last_job_reaches_the_threshold(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, rules=Rules(failure_threshold=1, on_failures=OnFailures.CANCEL))
        await rig.run(await rig.take(), OutcomeKind.ERROR)
        batch = await rig.batch(batch_id)
        assert batch.status is BatchStatus.CANCELED
        assert batch.fault is not None
        assert batch.fault.code == "failures"
        assert await rig.statuses(batch_id) == [ERROR]
        assert await counted(rig) == (0, 0, 1)

    async def test_an_open_batch_without_work_pauses_at_the_threshold(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, open=True, rules=Rules(failure_threshold=1))
        await rig.run(await rig.take(), OutcomeKind.ERROR)
        assert (await rig.batch(batch_id)).status is BatchStatus.PAUSED
        assert await rig.members(Key.IDLE) == set()

    async def test_a_repeated_settle_counts_failures_once(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(10, rules=Rules(failure_threshold=2))
        grant = await rig.take()
        for _ in range(3):
            await rig.settle(grant, {0: OutcomeKind.ERROR})
        assert (await rig.batch(batch_id)).status is BatchStatus.RUNNING
        await rig.settle(grant, {1: OutcomeKind.ERROR})
        await rig.commands.resume(batch_id, project="a")
        assert (await rig.settle(grant, {1: OutcomeKind.ERROR})).next is NextStep.RETIRED
        assert (await rig.batch(batch_id)).status is BatchStatus.RUNNING
        assert await counted(rig) == (0, 0, 1)

    async def test_jobs_that_are_retried_or_cancelled_do_not_count(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(5, rules=Rules(failure_threshold=1))
        grant = await rig.take()
        await rig.settle(grant, {0: OutcomeKind.RETRY})
        await rig.commands.cancel_jobs(batch_id, [1, 2], project="a")
        assert (await rig.batch(batch_id)).status is BatchStatus.RUNNING

    async def test_a_job_that_loses_too_many_workers_counts(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(2, rules=Rules(failure_threshold=1))
        for _ in range(10):
            grant = await rig.take_as("lane")
            await rig.lapse(grant)
            await rig.swept()
        assert await rig.statuses(batch_id) == [ERROR, PENDING]
        assert (await rig.batch(batch_id)).status is BatchStatus.PAUSED
        assert await rig.grants() == []

    async def test_a_job_that_is_reported_as_failed_counts(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(3, rules=Rules(failure_threshold=1))
        await rig.take()
        await rig.commands.report(batch_id, 0, status=ERROR, project="a")
        assert (await rig.batch(batch_id)).status is BatchStatus.PAUSED
        assert await rig.grants() == []

    async def test_a_batch_that_cannot_run_ends_in_error(self, rig: StoreRig) -> None:
        rules = Rules(failure_threshold=1, on_failures=OnFailures.CANCEL)
        batch_id = await rig.submit(3, rules=rules)
        grant = await rig.take()
        await rig.tickets.fail_batch(grant.ticket, grant.token, Fault("user", "it cannot run"))
        batch = await rig.batch(batch_id)
        assert (batch.status, batch.fault and batch.fault.code) == (BatchStatus.ERROR, "user")

    async def test_failures_that_an_older_worker_did_not_check_count_at_the_next_one(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(10, rules=Rules(failure_threshold=3))
        name = rig.keys(Key.BATCH, batch_id)
        rules = await rig.redis.hget(name, "rules")
        await rig.redis.hdel(name, "rules")
        grant = await rig.take()
        turn = await fail_jobs(rig, grant, 4)
        await rig.redis.hset(name, "rules", rules)
        await rig.settle(grant, {turn.jobs[0].index: OutcomeKind.ERROR})
        assert (await rig.batch(batch_id)).status is BatchStatus.PAUSED


class TestTotalRetries:
    @pytest.mark.parametrize("outcome", [OutcomeKind.RETRY, CRASH], ids=["transient", "crash"])
    async def test_the_limit_holds_for_all_jobs_together(self, rig: StoreRig, outcome: Any) -> None:
        batch_id = await rig.submit(3, rules=Rules(total_retries=2))
        for expected in (PENDING, PENDING, ERROR):
            grant = await rig.take_as("lane")
            index = grant.jobs[0].index
            await rig.settle(grant, {index: outcome}, want=0)
            assert (await rig.job(batch_id, index)).status is expected
        assert (await rig.batch(batch_id)).retried == 2

    async def test_the_stricter_limit_wins(self, rig: StoreRig) -> None:
        per_job = await rig.submit(1, limits=Limits(transient_retries=0), rules=Rules(total_retries=5))
        await rig.settle(await rig.take(), {0: OutcomeKind.RETRY})
        assert await rig.statuses(per_job) == [ERROR]
        total = await rig.submit(1, limits=Limits(transient_retries=5), rules=Rules(total_retries=0))
        await rig.settle(await rig.take(), {0: OutcomeKind.RETRY})
        assert await rig.statuses(total) == [ERROR]
        assert [(await rig.batch(it)).retried for it in (per_job, total)] == [0, 0]

    async def test_lost_workers_and_drains_do_not_count(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, rules=Rules(total_retries=0))
        await rig.lapse(await rig.take())
        await rig.swept()
        grant = await rig.take()
        await rig.tickets.drain(grant.ticket, grant.token)
        assert await rig.statuses(batch_id) == [PENDING]

    async def test_a_repeated_settle_counts_a_retry_once(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(2, rules=Rules(total_retries=5))
        grant = await rig.take()
        for _ in range(3):
            await rig.settle(grant, {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)}, want=1)
        assert (await rig.batch(batch_id)).retried == 1

    async def test_a_job_whose_cancel_was_requested_uses_no_retry(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(1, rules=Rules(total_retries=5))
        grant = await rig.take()
        await rig.commands.cancel_jobs(batch_id, [0], project="a")
        await rig.settle(grant, {0: OutcomeKind.RETRY})
        assert ((await rig.batch(batch_id)).retried, await rig.statuses(batch_id)) == (0, [CANCELED])

    async def test_the_limit_holds_after_a_pause(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(2, rules=Rules(total_retries=1))
        await rig.settle(await rig.take(), {0: OutcomeKind.RETRY}, want=0)
        await rig.commands.pause(batch_id, project="a")
        await rig.commands.resume(batch_id, project="a")
        grant = await rig.take_as("lane")
        await rig.settle(grant, {grant.jobs[0].index: OutcomeKind.RETRY}, want=0)
        assert (await rig.batch(batch_id)).retried == 1
        assert (await rig.batch(batch_id)).counts[ERROR] == 1

    async def test_jobs_that_fail_for_want_of_retries_count_towards_the_threshold(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(5, rules=Rules(total_retries=0, failure_threshold=1))
        await rig.settle(await rig.take(), {0: OutcomeKind.RETRY})
        assert (await rig.batch(batch_id)).status is BatchStatus.PAUSED


class TestSeveralRules:
    async def test_a_batch_without_rules_has_no_field_for_them(self, rig: StoreRig) -> None:
        for rules in (None, Rules(keep_s=60)):
            batch_id = await rig.submit(1, rules=rules)
            assert await rig.redis.hexists(rig.keys(Key.BATCH, batch_id), "rules") == 0

    async def test_a_submit_checks_the_rules(self, rig: StoreRig) -> None:
        submission = Submission(None, [{"sequence": "{}"}], "EMU", rules=Rules(schedule_threshold_s=1))
        with pytest.raises(InvalidInput, match="schedule_threshold_s: has no effect without start_at"):
            await rig.store.admission.submit(submission, project="a")
        with pytest.raises(InvalidInput, match="failure_threshold: expected a whole number"):
            await rig.store.admission.submit(replace(submission, rules=Rules(failure_threshold=0)), project="a")
        batch_id = await rig.store.admission.submit(replace(submission, not_before=FAR_AHEAD), project="a")
        assert (await rig.batch(batch_id)).doc.rules == submission.rules
        assert await rig.members(Key.DEADLINES) == {str(batch_id)}

    async def test_rules_of_a_newer_version_are_kept(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(3, rules=Rules(total_retries=1))
        name = rig.keys(Key.BATCH, batch_id)
        await rig.redis.hset(name, "rules", '{"retries":1,"unknown":7}')
        await rig.settle(await rig.take(), {0: OutcomeKind.RETRY})
        assert json.loads(await rig.redis.hget(name, "rules")) == {"retries": 1, "retried": 1, "unknown": 7}
        assert (await rig.batch(batch_id)).retried == 1

    async def test_a_call_with_other_rules_conflicts(self, rig: StoreRig) -> None:
        options: dict[str, Any] = {"idempotency_key": "k"}
        batch_id = await rig.submit(1, rules=WAITS_A_MINUTE, **options)
        assert await rig.submit(1, rules=WAITS_A_MINUTE, **options) == batch_id
        with pytest.raises(Conflict):
            await rig.submit(1, rules=Rules(queue_timeout_s=61), **options)
        with pytest.raises(Conflict):
            await rig.submit(1, **options)

    async def test_the_rules_of_several_batches_are_independent(self, rig: StoreRig) -> None:
        strict = await rig.submit(3, rules=Rules(failure_threshold=1))
        lenient = await rig.submit(3, rules=Rules(failure_threshold=3, on_failures=OnFailures.CANCEL))
        plain = await rig.submit(3)
        for _ in range(3):
            for grant in await rig.grants():
                await rig.run(grant, OutcomeKind.ERROR)
        statuses = [(await rig.batch(it)).status for it in (strict, lenient, plain)]
        assert statuses == [BatchStatus.PAUSED, BatchStatus.CANCELED, BatchStatus.DONE]


class TestLossOfData:
    async def restore(self, rig: StoreRig, before: Any, batch_id: UUID) -> None:
        """Go back to an earlier state of Redis, and restore the batch from the ledger."""
        ledger = await recorded(rig.store, batch_id)
        await fall_back(rig.store, before)
        assert await rig.recovery.restore(*ledger) == 0
        await rig.recovery.open_gate()

    @pytest.mark.parametrize("gone", [True, False], ids=["missing", "older"])
    async def test_the_rules_of_a_batch_that_has_not_started_are_restored(self, rig: StoreRig, gone: bool) -> None:
        rules = Rules(schedule_threshold_s=60, queue_timeout_s=90, failure_threshold=1)
        before = await checkpoint(rig.store)
        batch_id = await rig.submit(2, rules=rules, not_before=LONG_AGO)
        if not gone:
            before = await checkpoint(rig.store)
        await rig.swept()
        expires = (await rig.batch(batch_id)).expires
        await self.restore(rig, before, batch_id)
        assert (await rig.batch(batch_id)).expires == expires
        assert await rig.members(Key.DEADLINES) == {str(batch_id)}
        await rig.swept()
        assert len([it for it in await rig.events(batch_id) if it.type == "batch.late"]) == 0  # it was reported before
        await rig.let_expire(batch_id)
        assert await rig.swept() == (1, 0, 0)

    async def test_the_deadline_is_not_restored_once_the_batch_has_started(self, rig: StoreRig) -> None:
        before = await checkpoint(rig.store)
        batch_id = await rig.submit(2, rules=WAITS_A_MINUTE)
        await rig.take()
        await self.restore(rig, before, batch_id)
        assert await rig.members(Key.DEADLINES) == set()

    async def test_an_expired_batch_stays_expired(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(2, rules=WAITS_A_MINUTE)
        before = await checkpoint(rig.store)
        await rig.let_expire(batch_id)
        await rig.swept()
        await self.restore(rig, before, batch_id)
        assert (await rig.batch(batch_id)).status is BatchStatus.TIMED_OUT
        assert await rig.members(Key.DEADLINES) == set()
        assert [job.faults[0].code for job in await rig.jobs(batch_id)] == ["expired", "expired"]
        assert await rig.grants() == []

    async def test_what_was_used_of_the_rules_is_restored(self, rig: StoreRig) -> None:
        batch_id = await rig.submit(5, rules=Rules(total_retries=1, failure_threshold=2))
        before = await checkpoint(rig.store)
        grant = await rig.take()
        await rig.settle(grant, {0: OutcomeKind.RETRY}, want=0)
        grant = await rig.take_as("lane")
        turn = await rig.settle(grant, {grant.jobs[0].index: OutcomeKind.ERROR})
        await rig.settle(grant, {turn.jobs[0].index: OutcomeKind.ERROR})
        await self.restore(rig, before, batch_id)
        batch = await rig.batch(batch_id)
        assert (batch.status, batch.retried) == (BatchStatus.PAUSED, 1)
        await rig.commands.resume(batch_id, project="a")
        grant = await rig.take_as("lane")
        turn = await rig.settle(grant, {grant.jobs[0].index: OutcomeKind.RETRY})
        assert turn.next is NextStep.JOBS
        assert (await rig.batch(batch_id)).counts[ERROR] == 3


async def test_a_batch_of_a_producer_without_rules_has_none(rig: StoreRig) -> None:
    """Older producers write no rules in the doc, and no field."""
    batch_id = await rig.submit(1)
    batch = await rig.batch(batch_id)
    assert (batch.doc, batch.expires, batch.retried) == (BatchDoc("EMU", "{}"), None, 0)
