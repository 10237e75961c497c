"""Rule 24, the ledger wins: what Redis lost and the ledger has is restored, and the rest runs once."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from msgspec.structs import replace
from tests.support.power_loss import Recorded, checkpoint, fall_back, recorded
from tests.support.records import drop_update

from tweezer.model.errors import NotFound
from tweezer.model.events import Event
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Fault, JobSpec, OutcomeKind
from tweezer.store.keys import Key
from tweezer.store.workers import NextStep

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

DONE, ERROR, CANCELED = JobStatus.DONE, JobStatus.ERROR, JobStatus.CANCELED
PENDING, RUNNING = JobStatus.PENDING, JobStatus.RUNNING
FAULT = Fault("user", "it cannot run")


async def restore(rig: StoreRig, ledger: Recorded) -> None:
    """Restore a whole batch as the recorder does, and check that the counters of the device are right afterwards."""
    assert await rig.recovery.restore(*ledger) == 0
    await rig.recovery.open_gate()
    await assert_counted(rig, ledger[0].batch_id)


async def assert_counted(rig: StoreRig, *batches: UUID) -> None:
    """Check that the counters of each batch and of the device match the jobs."""
    total: Counter[JobStatus] = Counter()
    for batch_id in batches:
        statuses = Counter(await rig.statuses(batch_id))
        assert (await rig.batch(batch_id)).counts == {status: statuses[status] for status in JobStatus}
        total += statuses
    device = await rig.reader.device("EMU")
    assert device is not None
    assert (device.pending, device.running) == (total[PENDING], total[RUNNING])


async def run_the_rest(rig: StoreRig, batch_id: UUID) -> list[int]:
    """Run the remaining jobs of the batch, and return the indices of those that began, in order."""
    before = len(await rig.events(batch_id))
    while grants := await rig.grants():
        await rig.run(grants[0], want=1000)
    new = (await rig.events(batch_id))[before:]
    return [event.index for event in new if event.index is not None and event.status is RUNNING]


async def state_of(rig: StoreRig) -> dict[str, Any]:
    """Return everything that a restore must not change: all but the doorbell and the time of the record."""
    found = await rig.snapshot(but={rig.keys(Key.BELL, "EMU")})
    for value in found.values():
        if isinstance(value, dict):
            drop_update(value)
    return found


# ------------------------------------------------------------------------------ where a job was when Redis lost its end


async def test_a_pending_job_ends_and_is_skipped_later(rig: StoreRig) -> None:
    batch_id = await rig.submit(5)
    saved = await checkpoint(rig.store)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE})
    await rig.settle(grant, {1: OutcomeKind.ERROR})
    ledger = await recorded(rig.store, batch_id)
    jobs = await rig.jobs(batch_id)
    await fall_back(rig.store, saved)
    assert await rig.statuses(batch_id) == [PENDING] * 5

    await restore(rig, ledger)
    assert (await rig.jobs(batch_id))[:2] == jobs[:2]
    assert await rig.statuses(batch_id) == [DONE, ERROR, PENDING, PENDING, PENDING]
    assert (await rig.reader.results(batch_id, [0]))[0].counter == {"01": 10}
    assert await run_the_rest(rig, batch_id) == [2, 3, 4]
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE


@pytest.mark.parametrize("gone", [False, True], ids=["older", "gone"])
async def test_the_authors_of_cancels_are_restored(rig: StoreRig, gone: bool) -> None:
    saved = await checkpoint(rig.store)
    batch_id = await rig.submit(3)
    await rig.commands.cancel_jobs(batch_id, [1], project="a", by="alice")
    if not gone:
        saved = await checkpoint(rig.store)
    await rig.commands.cancel_jobs(batch_id, [2], project="a", by="bob")
    before = (await rig.batch(batch_id)).cancels
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    await restore(rig, ledger)
    assert (await rig.batch(batch_id)).cancels == before
    assert [[attempt.by for attempt in job.cancels] for job in await rig.jobs(batch_id)] == [[], ["alice"], ["bob"]]


async def test_the_device_of_a_restored_batch_is_listed_before_its_worker_returns(rig: StoreRig) -> None:
    saved = await checkpoint(rig.store)
    await rig.announce("LATER", worker="later")
    batch_id = await rig.submit(2, device="LATER")
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    assert await rig.reader.device("LATER") is None
    assert await rig.recovery.restore(*ledger) == 0
    device = await rig.reader.device("LATER")
    assert device is not None
    assert (device.pending, device.lanes) == (2, 0)
    assert device in await rig.reader.devices()


async def test_jobs_before_the_cursor_become_pending_again(rig: StoreRig) -> None:
    batch_id = await rig.submit(3000)
    saved = await checkpoint(rig.store)
    await rig.commands.cancel_jobs(batch_id, [5, 2500], project="a")
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    await rig.commands.cancel_jobs(batch_id, [7], project="a")  # while the ledger was unavailable

    await restore(rig, ledger)
    begun = await run_the_rest(rig, batch_id)
    assert sorted(begun) == [index for index in range(3000) if index not in (5, 7, 2500)]
    assert (await rig.batch(batch_id)).counts == {DONE: 2997, CANCELED: 3, ERROR: 0, PENDING: 0, RUNNING: 0}


async def test_a_held_job_leaves_its_holder(rig: StoreRig) -> None:
    batch_id = await rig.submit(10)
    grant = await rig.take()
    turn = await rig.settle(grant, {0: OutcomeKind.DONE}, want=4)
    assert [job.index for job in turn.jobs] == [1, 2, 3, 4]
    saved = await checkpoint(rig.store)
    last = await rig.settle(grant, {1: OutcomeKind.DONE, 3: OutcomeKind.ERROR}, want=4)
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)

    await restore(rig, ledger)
    assert await rig.members(Key.HELD, batch_id, 0) == {"2", "4"}
    again = await rig.settle(grant, {1: OutcomeKind.DONE, 3: OutcomeKind.ERROR}, want=4)
    assert (again.next, again.refused) == (NextStep.JOBS, 0), "its holder settled it, and may repeat that"
    assert {job.index for job in again.jobs} == {job.index for job in last.jobs}
    await rig.run(grant)
    assert await run_the_rest(rig, batch_id) == []
    assert (await rig.batch(batch_id)).counts[DONE] == 9


async def test_what_the_holder_of_a_running_job_settles_later_is_refused(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    saved = await checkpoint(rig.store)
    await rig.lapse(grant)
    heir = await rig.take()
    await rig.settle(heir, {0: OutcomeKind.ERROR})
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    assert (await rig.job(batch_id, 0)).status is RUNNING

    await restore(rig, ledger)
    assert (await rig.job(batch_id, 0)).status is ERROR
    assert await rig.renew(grant) == set()
    turn = await rig.settle(grant, {0: OutcomeKind.DONE})
    assert (turn.next, turn.refused, [job.index for job in turn.jobs]) == (NextStep.JOBS, 1, [1])
    assert (await rig.job(batch_id, 0)).status is ERROR
    await rig.run(replace(grant, jobs=turn.jobs))
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE


async def test_a_job_that_came_back_is_not_handed_out_again(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    grant = await rig.take()
    await rig.tickets.drain(grant.ticket, grant.token)
    assert await rig.members(Key.BACK, batch_id) == {"0"}
    saved = await checkpoint(rig.store)
    await rig.settle(await rig.take(), {0: OutcomeKind.DONE}, want=0)
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)

    await restore(rig, ledger)
    assert await run_the_rest(rig, batch_id) == [1, 2]
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE


async def test_a_job_that_waits_for_a_retry_ends(rig: StoreRig) -> None:
    batch_id = await rig.submit(2, open=True)
    await rig.settle(await rig.take(), {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)}, want=0)
    saved = await checkpoint(rig.store)
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)

    await restore(rig, ledger)
    assert await rig.members(Key.DELAY, batch_id) == set()
    assert await run_the_rest(rig, batch_id) == [1]
    await rig.commands.close(batch_id, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE


# --------------------------------------------------------------------------- live jobs that the ledger knows better


def moves(rig_events: list[Event], index: int) -> list[JobStatus]:
    return [JobStatus(event.status) for event in rig_events if event.index == index]


async def test_a_running_job_whose_ticket_redis_lost_becomes_pending_with_an_event(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    saved = await checkpoint(rig.store)
    lost = await rig.take()
    ledger, told = await recorded(rig.store, batch_id), await rig.events(batch_id)
    await fall_back(rig.store, saved)
    await restore(rig, ledger)
    assert await rig.statuses(batch_id) == [PENDING] * 3
    assert await rig.renew(lost) is None
    assert sorted(await run_the_rest(rig, batch_id)) == [0, 1, 2]
    feed = told + (await rig.events(batch_id))[1:]
    assert [event.sequence for event in feed] == list(range(1, len(feed) + 1))
    assert moves(feed, 0) == [RUNNING, PENDING, RUNNING, DONE]


async def test_a_job_continues_if_redis_lost_its_begin_but_not_its_holder(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    grant = await rig.take()
    saved = await checkpoint(rig.store)
    await rig.settle(grant, {0: OutcomeKind.DONE})
    ledger, told = await recorded(rig.store, batch_id), await rig.events(batch_id)
    assert (await rig.job(batch_id, 1)).status is RUNNING
    await fall_back(rig.store, saved)
    before = len(await rig.events(batch_id))
    await restore(rig, ledger)
    assert await rig.statuses(batch_id) == [DONE, RUNNING, PENDING]
    turn = await rig.settle(grant, {1: OutcomeKind.DONE})
    assert (turn.refused, [job.index for job in turn.jobs]) == (0, [2])
    feed = told + (await rig.events(batch_id))[before:]
    assert [event.sequence for event in feed] == list(range(1, len(feed) + 1))
    assert moves(feed, 1) == [RUNNING, DONE]


async def test_a_job_whose_return_redis_lost_is_taken_from_its_holder(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    saved = await checkpoint(rig.store)
    await rig.settle(grant, {0: OutcomeKind.RETRY}, want=0)
    ledger, told = await recorded(rig.store, batch_id), await rig.events(batch_id)
    await fall_back(rig.store, saved)
    before = len(await rig.events(batch_id))
    await restore(rig, ledger)
    assert await rig.statuses(batch_id) == [PENDING, PENDING]
    assert await rig.members(Key.HELD, batch_id, 0) == set()
    again = await rig.settle(grant, {0: OutcomeKind.RETRY}, want=0)
    assert again.refused == 0, "this token settled it"
    assert sorted(await run_the_rest(rig, batch_id)) == [0, 1]
    feed = told + (await rig.events(batch_id))[before:]
    assert moves(feed, 0) == [RUNNING, PENDING, RUNNING, DONE]


async def test_a_job_whose_cancel_was_requested_ends_when_its_ticket_is_lost(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    saved = await checkpoint(rig.store)
    await rig.take()
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    await restore(rig, ledger)
    assert await rig.statuses(batch_id) == [CANCELED, PENDING]


# ------------------------------------------------------------------------------------------- batches that are missing


async def test_a_batch_that_redis_does_not_know_is_restored(rig: StoreRig) -> None:
    saved = await checkpoint(rig.store)
    batch_id = await rig.submit([JobSpec(runs=1 + index) for index in range(4)])
    await rig.settle(await rig.take(), {0: OutcomeKind.DONE})  # it holds the next job, and is lost
    ledger = await recorded(rig.store, batch_id)
    batch, (first, *_) = await rig.batch(batch_id), await rig.jobs(batch_id)
    await fall_back(rig.store, saved)
    with pytest.raises(NotFound):
        await rig.batch(batch_id)

    await restore(rig, ledger)
    now = await rig.batch(batch_id)
    assert now.sequence_number == batch.sequence_number + 1, "the job that ran is pending again"
    same = {"updated": now.updated, "counts": now.counts, "sequence_number": now.sequence_number}
    assert now == replace(batch, **same)
    assert [job.spec.runs for job in await rig.jobs(batch_id)] == [1, 2, 3, 4]
    assert (await rig.jobs(batch_id))[0] == first
    assert await rig.statuses(batch_id) == [DONE, PENDING, PENDING, PENDING]
    assert await run_the_rest(rig, batch_id) == [1, 2, 3]
    events = await rig.events(batch_id)
    assert [event.sequence for event in events] == list(range(ledger[0].sequence_number + 1, now.sequence_number + 8))
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE


async def test_a_batch_that_is_restored_by_several_calls_is_not_handed_out_before_the_last(rig: StoreRig) -> None:
    saved = await checkpoint(rig.store)
    batch_id = await rig.submit(2500)
    await rig.commands.cancel_jobs(batch_id, [*range(0, 2500, 2), 2499], project="a")
    batch, jobs = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)

    assert await rig.recovery.restore(batch, jobs[:1200]) == 1300
    await rig.recovery.open_gate()
    assert await rig.grants() == []
    with pytest.raises(NotFound):
        await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")
    assert await rig.recovery.restore(batch, jobs[2000:]) == 1300, "jobs after a gap are not accepted"
    await restore(rig, (batch, jobs))
    assert sorted(await run_the_rest(rig, batch_id)) == list(range(1, 2499, 2))
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE


@pytest.mark.parametrize("open", [True, False])
async def test_a_batch_without_jobs_is_restored(rig: StoreRig, open: bool) -> None:
    saved = await checkpoint(rig.store)
    batch_id = await rig.submit(0, open=open)
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    await restore(rig, ledger)
    assert (await rig.batch(batch_id)).status is (BatchStatus.PENDING if open else BatchStatus.DONE)
    assert await rig.members(Key.IDLE) == ({str(batch_id)} if open else set())
    assert await rig.members(Key.ENDED) == (set() if open else {str(batch_id)})


async def test_a_batch_of_another_version_is_left_alone(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    batch, jobs = await recorded(rig.store, batch_id)
    saved = await checkpoint(rig.store)
    await rig.redis.hset(rig.keys(Key.BATCH, batch_id), "v", "999")
    gate = {rig.keys(Key.GATE)}
    before = await rig.snapshot(but=gate)
    assert await rig.recovery.restore(replace(batch, sequence_number=7), jobs) == 0
    assert await rig.snapshot(but=gate) == before
    await fall_back(rig.store, saved)
    await rig.forget(batch_id)
    newer = replace(batch, batch_id=new_batch_id(), fields={**batch.fields, "v": b"999"})
    before = await rig.snapshot(but=gate)
    assert await rig.recovery.restore(newer, jobs) == 0
    assert await rig.snapshot(but=gate) == before


# ---------------------------------------------------------------------------------- batches that Redis has, but older


async def end(rig: StoreRig, batch_id: UUID, status: BatchStatus) -> None:
    """Bring a batch of one running job to this end."""
    (grant,) = await rig.grants()
    match status:
        case BatchStatus.DONE:
            await rig.settle(grant, {0: OutcomeKind.DONE})
            await rig.commands.close(batch_id, project="a")
        case BatchStatus.ERROR:
            await rig.tickets.fail_batch(grant.ticket, grant.token, FAULT)
        case BatchStatus.CANCELED:
            await rig.commands.cancel(batch_id, project="a")
            await rig.settle(grant, {0: OutcomeKind.CANCELED})
        case _:
            await rig.settle(grant, {0: OutcomeKind.DONE})
            await rig.run_out(batch_id)
            await rig.tickets.sweep()


@pytest.mark.parametrize("gone", [False, True], ids=["older", "gone"])
@pytest.mark.parametrize("status", [status for status in BatchStatus if status.terminal])
async def test_the_end_of_a_batch_is_restored(rig: StoreRig, status: BatchStatus, gone: bool) -> None:
    saved = await checkpoint(rig.store)
    batch_id = await rig.submit(1, open=True)
    if not gone:
        saved = await checkpoint(rig.store)
    await end(rig, batch_id, status)
    batch, (job,) = await rig.batch(batch_id), await rig.jobs(batch_id)
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    told = await rig.event_texts(batch_id)

    await restore(rig, ledger)
    now = await rig.batch(batch_id)
    assert now == replace(batch, updated=now.updated)
    assert now.status is status
    assert await rig.jobs(batch_id) == [job]
    assert await rig.event_texts(batch_id) == told, "no event of the ledger is repeated"
    assert await rig.grants() == []
    assert await rig.members(Key.READY, "EMU") == set()
    assert await rig.members(Key.IDLE) == set()
    assert await rig.forget(batch_id)
    assert await rig.redis.keys(f"*{batch_id}*") == []


async def test_a_holder_learns_that_its_batch_has_ended(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    saved = await checkpoint(rig.store)
    await rig.settle(grant, {0: OutcomeKind.DONE})
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    await restore(rig, ledger)
    turn = await rig.settle(grant, {0: OutcomeKind.DONE})
    assert (turn.next, turn.refused) == (NextStep.RETIRED, 0)
    assert await rig.members(Key.LEASES, "EMU") == set()


async def test_a_batch_whose_jobs_have_all_ended_ends_with_an_event(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    saved = await checkpoint(rig.store)
    await rig.run(await rig.take())
    batch, jobs = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    live = replace(batch, sequence_number=4, status=BatchStatus.RUNNING, fields={**batch.fields, "ended": b"0"})
    await restore(rig, (live, jobs))
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE
    ((number, told),) = [(event.sequence, event.type) for event in (await rig.events(batch_id))[1:]]
    assert (number, told) == (5, "batch.done")


async def test_jobs_that_were_added_are_restored(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    saved = await checkpoint(rig.store)
    await rig.commands.add_jobs(batch_id, [JobSpec(runs=7)] * 1500, project="a")
    await rig.run(await rig.take())
    await rig.commands.close(batch_id, project="a")
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    batch, jobs = ledger
    unrun = [replace(job, state=None, result=None) if job.index % 3 else job for job in jobs]
    live = replace(batch, status=BatchStatus.RUNNING)

    assert await rig.recovery.restore(live, unrun[:1000]) == 501
    await restore(rig, (live, unrun))
    assert (await rig.batch(batch_id)).open is False
    assert sorted(await run_the_rest(rig, batch_id)) == [index for index in range(1501) if index % 3]
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE


@pytest.mark.parametrize("paused", [True, False])
async def test_a_lost_pause_or_resume_is_restored(rig: StoreRig, paused: bool) -> None:
    batch_id = await rig.submit(2)
    if not paused:
        await rig.commands.pause(batch_id, project="a")
    saved = await checkpoint(rig.store)
    await (rig.commands.pause if paused else rig.commands.resume)(batch_id, project="a")
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    await restore(rig, ledger)
    assert (await rig.batch(batch_id)).status is (BatchStatus.PAUSED if paused else BatchStatus.PENDING)
    assert await run_the_rest(rig, batch_id) == ([] if paused else [0, 1])


@pytest.mark.parametrize("lost", [True, False])
async def test_the_later_one_of_two_pauses_is_restored(rig: StoreRig, lost: bool) -> None:
    batch_id = await rig.submit(1)
    await rig.commands.pause(batch_id, project="a", by="ada", reason="earlier")
    await rig.redis.hset(rig.keys(Key.BATCH, batch_id), "paused", "1 ada\nearlier")
    first, saved = await recorded(rig.store, batch_id), await checkpoint(rig.store)
    await rig.commands.pause(batch_id, project="a", by="bob", reason="later")
    ledger = first
    if lost:
        ledger = await recorded(rig.store, batch_id)
        await fall_back(rig.store, saved)
    await restore(rig, ledger)
    pause = (await rig.batch(batch_id)).pause
    assert pause is not None
    assert (pause.by, pause.reason) == ("bob", "later")


async def test_a_restored_cancel_of_a_batch_completes(rig: StoreRig) -> None:
    batch_id = await rig.submit(5)
    grant = await rig.take()
    saved = await checkpoint(rig.store)
    await rig.commands.cancel(batch_id, project="a")
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    await restore(rig, ledger)
    assert await rig.statuses(batch_id) == [RUNNING] + [CANCELED] * 4
    await rig.settle(grant, {0: OutcomeKind.DONE})
    assert (await rig.batch(batch_id)).status is BatchStatus.CANCELED


async def test_the_first_begin_has_one_event(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    saved = await checkpoint(rig.store)
    await rig.settle(await rig.take(), {0: OutcomeKind.DONE}, want=0)
    ledger, started = await recorded(rig.store, batch_id), (await rig.batch(batch_id)).started
    await fall_back(rig.store, saved)
    await restore(rig, ledger)
    batch = await rig.batch(batch_id)
    assert (batch.status, batch.started) == (BatchStatus.RUNNING, started)
    await run_the_rest(rig, batch_id)
    assert (await rig.event_texts(batch_id)) == ["batch.created", "1 job.running", "1 job.done", "batch.done"]


async def test_an_end_that_redis_decided_meanwhile_is_kept(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    saved = await checkpoint(rig.store)
    await rig.settle(grant, {0: OutcomeKind.ERROR})
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    await rig.settle(grant, {0: OutcomeKind.DONE})
    await restore(rig, ledger)
    assert await rig.statuses(batch_id) == [DONE, RUNNING]
    assert await rig.redis.hgetall(rig.keys(Key.FAULT, batch_id)) == {}


@pytest.mark.parametrize("gone", [False, True], ids=["older", "gone"])
async def test_restoring_twice_changes_nothing(two_lanes: StoreRig, gone: bool) -> None:
    rig = two_lanes
    saved = await checkpoint(rig.store)
    batch_id = await rig.submit(12, open=True)
    if not gone:
        saved = await checkpoint(rig.store)
    first, second = await rig.grants(2)
    await rig.settle(first, {0: OutcomeKind.DONE}, want=3)
    await rig.settle(second, {1: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)}, want=3)
    await rig.commands.cancel_jobs(batch_id, [8], project="a")
    ledger = await recorded(rig.store, batch_id)
    await fall_back(rig.store, saved)
    await restore(rig, ledger)
    before = await state_of(rig)
    for _ in range(2):
        await restore(rig, ledger)
        assert await state_of(rig) == before


async def test_restoring_what_redis_has_changes_nothing(two_lanes: StoreRig) -> None:
    rig = two_lanes
    batch_id = await rig.submit(12, open=True)
    first, second = await rig.grants(2)
    await rig.settle(first, {0: OutcomeKind.DONE}, want=3)
    await rig.settle(second, {1: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)}, want=3)
    older = await recorded(rig.store, batch_id)
    await rig.commands.cancel_jobs(batch_id, [8], project="a")
    await rig.tickets.drain(first.ticket, first.token)
    before = await state_of(rig)
    await restore(rig, older)
    await restore(rig, await recorded(rig.store, batch_id))
    assert await state_of(rig) == before
