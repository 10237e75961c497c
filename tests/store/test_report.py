"""Reports on a batch or a job by a caller that does not hold it: ends, returns, progress, faults, tags, children."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tweezer.model.errors import Conflict, NotFound
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import JOB_TABLE, BatchStatus, JobEvent, JobStatus, Stage
from tweezer.model.messages import Fault, OutcomeKind
from tweezer.store.keys import Key
from tweezer.store.workers import Grant, JobProgress, NextStep

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

FAULT = Fault("reported", "the laser is out of lock")
DONE, ERROR, CANCELED = JobStatus.DONE, JobStatus.ERROR, JobStatus.CANCELED
PENDING, RUNNING = JobStatus.PENDING, JobStatus.RUNNING
EVENTS = {  # the event of the table for a report of each status
    PENDING: {CANCELED: JobEvent.CANCEL, ERROR: JobEvent.DOOM},
    RUNNING: {CANCELED: JobEvent.STOP, ERROR: JobEvent.FAIL, PENDING: JobEvent.GIVE_BACK},
}


async def reach(rig: StoreRig, status: JobStatus) -> tuple[UUID, int, Grant]:
    """Return a batch, the index of its job in this status, and the ticket that holds the job if it is live."""
    batch_id = await rig.submit(8)
    grant = await rig.take()
    if status.terminal:
        kind = {DONE: OutcomeKind.DONE, ERROR: OutcomeKind.ERROR, CANCELED: OutcomeKind.CANCELED}[status]
        await rig.settle(grant, {0: kind}, want=2)
        return batch_id, 0, grant
    turn = await rig.settle(grant, {0: OutcomeKind.DONE}, want=3)
    index = turn.jobs[0].index if status is RUNNING else turn.jobs[1].index
    assert (await rig.job(batch_id, index)).status is status
    return batch_id, index, grant


@pytest.mark.parametrize("wanted", JobStatus)
@pytest.mark.parametrize("status", JobStatus)
async def test_a_report_moves_a_job_as_in_the_table_or_changes_nothing(
    rig: StoreRig, status: JobStatus, wanted: JobStatus
) -> None:
    batch_id, index, grant = await reach(rig, status)
    before = await rig.snapshot()
    event = EVENTS.get(status, {}).get(wanted)
    if event is None:
        if status is wanted and not status.terminal:
            await rig.commands.report(batch_id, index, status=wanted, project="a")
        else:
            with pytest.raises(Conflict):
                await rig.commands.report(batch_id, index, status=wanted, project="a")
            assert await rig.snapshot() == before
        assert (await rig.job(batch_id, index)).status is status
        return
    told = len(await rig.event_texts(batch_id))
    await rig.commands.report(batch_id, index, status=wanted, project="a")
    assert JOB_TABLE[status, event] is wanted
    assert (await rig.job(batch_id, index)).status is wanted
    assert (await rig.event_texts(batch_id))[told:] == [f"{index} job.{wanted.lower()}"]
    await rig.run_all()
    await rig.run(grant)  # the holder of a job that did not run keeps its ticket
    if status is RUNNING:
        assert (await rig.batch(batch_id)).status is BatchStatus.DONE


@pytest.mark.parametrize("wanted", [PENDING, ERROR, CANCELED])
async def test_the_holder_of_a_running_job_loses_it_and_its_ticket(rig: StoreRig, wanted: JobStatus) -> None:
    batch_id, index, grant = await reach(rig, RUNNING)
    await rig.commands.report(batch_id, index, status=wanted, project="a")
    assert await rig.renew(grant, JobProgress(index, Stage.ON_DEVICE)) is None
    assert (await rig.settle(grant, {index: OutcomeKind.DONE})).next is NextStep.STALE
    assert (await rig.job(batch_id, index)).status is wanted
    assert await rig.members(Key.LEASES, "EMU") == set()
    statuses = await rig.statuses(batch_id)
    assert statuses[:2] == [DONE, wanted]
    assert set(statuses[2:]) == {PENDING}


async def test_the_other_jobs_of_the_ticket_run_with_another_one(rig: StoreRig) -> None:
    batch_id, index, _ = await reach(rig, RUNNING)
    await rig.commands.report(batch_id, index, status=ERROR, fault=FAULT, project="a")
    await rig.run_all()
    assert await rig.statuses(batch_id) == [DONE, ERROR, *[DONE] * 6]
    assert (await rig.job(batch_id, index)).faults == (FAULT,)
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE


async def test_a_job_whose_cancel_was_requested_is_canceled_where_it_would_wait(rig: StoreRig) -> None:
    batch_id, index, _ = await reach(rig, RUNNING)
    await rig.commands.cancel_jobs(batch_id, [index], project="a")
    await rig.commands.report(batch_id, index, status=PENDING, project="a")
    assert (await rig.job(batch_id, index)).status is CANCELED


async def test_the_last_job_ends_its_batch(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.take()
    await rig.commands.report(batch_id, 0, status=ERROR, fault=FAULT, project=None)
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE
    assert (await rig.event_texts(batch_id))[-2:] == ["0 job.error", "batch.done"]


async def test_a_job_that_waits_for_a_retry_can_be_ended(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.settle(await rig.take(), {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)})
    await rig.commands.report(batch_id, 0, status=CANCELED, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE
    assert await rig.members(Key.DUE, "EMU") == set()


async def test_progress_and_errors_of_a_running_job_can_be_reported(rig: StoreRig) -> None:
    batch_id, index, _ = await reach(rig, RUNNING)
    async with rig.store.news.batch(batch_id) as heard:
        await rig.commands.report(batch_id, index, percent=40, fault=FAULT, project="a")
        messages = await heard.next(5.0)
        while not messages:  # the subscription itself causes the first wake-up
            messages = await heard.next(5.0)
    assert messages[0].startswith(f"~{index} ".encode())
    job = await rig.job(batch_id, index)
    assert (job.status, job.progress, job.faults) == (RUNNING, 0.4, (FAULT,))


@pytest.mark.parametrize("status", [PENDING, DONE, ERROR, CANCELED])
async def test_only_a_running_job_has_progress(rig: StoreRig, status: JobStatus) -> None:
    batch_id, index, _ = await reach(rig, status)
    with pytest.raises(Conflict):
        await rig.commands.report(batch_id, index, percent=40, fault=FAULT, project="a")
    assert FAULT not in (await rig.job(batch_id, index)).faults


async def test_an_error_ends_a_batch_once_its_running_jobs_have_ended(rig: StoreRig) -> None:
    batch_id, index, grant = await reach(rig, RUNNING)
    await rig.commands.end(batch_id, BatchStatus.ERROR, fault=FAULT, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.RUNNING
    assert (await rig.statuses(batch_id)).count(ERROR) == 6
    await rig.settle(grant, {index: OutcomeKind.DONE})
    batch = await rig.batch(batch_id)
    assert (batch.status, batch.fault) == (BatchStatus.ERROR, FAULT)


async def test_a_batch_times_out_early_only_when_it_is_open_and_without_work(rig: StoreRig) -> None:
    closed, busy, idle = await rig.submit(1), await rig.submit(1, open=True), await rig.submit(0, open=True)
    for batch_id in (closed, busy):
        before = await rig.snapshot()
        with pytest.raises(Conflict):
            await rig.commands.end(batch_id, BatchStatus.TIMED_OUT, project="a")
        assert await rig.snapshot() == before
    await rig.commands.end(idle, BatchStatus.TIMED_OUT, project="a")
    assert (await rig.batch(idle)).status is BatchStatus.TIMED_OUT
    assert await rig.members(Key.IDLE) == set()
    with pytest.raises(Conflict):
        await rig.commands.end(idle, BatchStatus.ERROR, fault=FAULT, project="a")


async def test_batches_of_other_projects_are_not_found(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    before = await rig.snapshot()
    for call in (
        rig.commands.report(batch_id, 0, status=ERROR, project="b"),
        rig.commands.report(batch_id, 1, status=ERROR, project="a"),
        rig.commands.end(batch_id, BatchStatus.ERROR, fault=FAULT, project="b"),
        rig.commands.set_tags(batch_id, ["x"], project="b"),
    ):
        with pytest.raises(NotFound):
            await call
    assert await rig.snapshot() == before


async def test_tags_are_replaced_live_or_ended(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.commands.set_tags(batch_id, ["a", "ä"], project="a")
    assert (await rig.batch(batch_id)).doc.tags == ("a", "ä")
    await rig.run_all()
    sequence_number = (await rig.batch(batch_id)).sequence_number
    await rig.commands.set_tags(batch_id, [], project="a")
    batch = await rig.batch(batch_id)
    assert (batch.doc.tags, batch.status, batch.sequence_number) == ((), BatchStatus.DONE, sequence_number)
    entries = await rig.store.events.read(most=1000)
    assert (entries[-1].batch_id, entries[-1].words) == (batch_id, "")


async def test_each_repeat_of_a_batch_is_noted_once(rig: StoreRig) -> None:
    batch_id, children = await rig.submit(1), (new_batch_id(), new_batch_id())
    for child in (*children, children[0]):
        assert await rig.commands.note_child(batch_id, child)
    assert (await rig.batch(batch_id)).children == children
    assert not await rig.commands.note_child(new_batch_id(), children[0])
