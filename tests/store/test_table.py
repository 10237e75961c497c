"""The scripts against the lifecycle table: every status, every event, with a held and with a stale token.

Real calls bring a batch into each state and then apply the event. An event that the table does not list must change
nothing.
"""

from __future__ import annotations

import contextlib
from itertools import product
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from msgspec.structs import replace

from tweezer.model.errors import Conflict
from tweezer.model.lifecycle import BATCH_TABLE, JOB_TABLE, BatchEvent, BatchStatus, JobEvent, JobStatus, Stage
from tweezer.model.messages import Fault, OutcomeKind
from tweezer.model.rules import Rules
from tweezer.store.keys import Key
from tweezer.store.workers import Grant, JobProgress

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

FAULT = Fault("user", "it cannot run")
RULES = Rules(queue_timeout_s=60)
SETTLED = {
    JobEvent.FINISH: OutcomeKind.DONE,
    JobEvent.FAIL: OutcomeKind.ERROR,
    JobEvent.STOP: OutcomeKind.CANCELED,
    JobEvent.RETRY: OutcomeKind.RETRY,
}
WITHOUT_TOKEN = {JobEvent.CANCEL}  # a user's; all others have a ticket's token, or (reclaim) find its lease expired
RETURNS = (JobEvent.RETRY, JobEvent.RECLAIM, JobEvent.GIVE_BACK)


async def reach_job(rig: StoreRig, status: JobStatus) -> tuple[UUID, Grant, Grant, int]:
    """Return an open batch, two of its tickets, and the index of a job in this status.

    The first ticket holds the job, or held it until it settled it.
    """
    await rig.announce(lanes=2)
    batch_id = await rig.submit(12, open=True)
    grant, other = await rig.grants(2)
    ends = {JobStatus.ERROR: OutcomeKind.ERROR, JobStatus.CANCELED: OutcomeKind.CANCELED}
    turn = await rig.settle(grant, {0: ends.get(status, OutcomeKind.DONE)}, want=3)
    running, pending, _ = (job.index for job in turn.jobs)
    index = {JobStatus.PENDING: pending, JobStatus.RUNNING: running}.get(status, 0)
    assert (await rig.job(batch_id, index)).status is status
    return batch_id, grant, other, index


async def apply_to_job(rig: StoreRig, event: JobEvent, grant: Grant, other: Grant, index: int, *, stale: bool) -> None:
    if stale:
        grant, other = (replace(each, token=str(int(each.token) + 1)) for each in (grant, other))
    match event:
        case JobEvent.BEGIN:
            await rig.renew(grant, JobProgress(index, Stage.ON_DEVICE))
        case JobEvent.FINISH | JobEvent.FAIL | JobEvent.STOP:
            await rig.settle(grant, {index: SETTLED[event]})
        case JobEvent.RETRY:
            await rig.settle(grant, {index: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)})
        case JobEvent.RECLAIM:
            if not stale:
                await rig.lapse(grant)
            await rig.tickets.sweep()
        case JobEvent.GIVE_BACK:
            await rig.tickets.drain(grant.ticket, grant.token)
        case JobEvent.CANCEL:
            await rig.commands.cancel_jobs(grant.batch_id, [index], project="a")
        case JobEvent.DOOM:  # by another ticket of the batch: the jobs of this one continue
            await rig.tickets.fail_batch(other.ticket, other.token, FAULT)


def status_after(status: JobStatus, event: JobEvent, *, stale: bool) -> JobStatus:
    """Return the status that the table and the rules require for a job that the ticket holds if it is live."""
    if stale and event not in WITHOUT_TOKEN:
        return status
    if status is JobStatus.PENDING and event in SETTLED:  # the job begins and gets its outcome
        status = JOB_TABLE[status, JobEvent.BEGIN]
    return JOB_TABLE.get((status, event), status)


@pytest.mark.parametrize("stale", [False, True], ids=["held", "stale"])
@pytest.mark.parametrize(("status", "event"), list(product(JobStatus, JobEvent)))
async def test_the_scripts_move_a_job_as_in_the_table(
    rig: StoreRig, status: JobStatus, event: JobEvent, stale: bool
) -> None:
    batch_id, grant, other, index = await reach_job(rig, status)
    before = [told for told in await rig.events(batch_id) if told.index == index]

    await apply_to_job(rig, event, grant, other, index, stale=stale)

    expected = status_after(status, event, stale=stale)
    assert (await rig.job(batch_id, index)).status is expected
    moves = [told.status for told in await rig.events(batch_id) if told.index == index][len(before) :]
    if status is JobStatus.PENDING and event in SETTLED and not stale:
        assert moves == [JobStatus.RUNNING, expected]
    else:
        assert moves == ([] if expected is status else [expected])


@pytest.mark.parametrize("event", [event for event in JobEvent if event not in (JobEvent.CANCEL, JobEvent.DOOM)])
async def test_a_ticket_moves_no_job_that_another_one_holds(rig: StoreRig, event: JobEvent) -> None:
    """Every event but a cancel, which is a user's, and doom, which concerns the whole batch."""
    batch_id, grant, other, index = await reach_job(rig, JobStatus.PENDING)
    await apply_to_job(rig, event, other, grant, index, stale=False)
    assert (await rig.job(batch_id, index)).status is JobStatus.PENDING
    assert all(told.index != index for told in await rig.events(batch_id))


@pytest.mark.parametrize("event", RETURNS)
async def test_a_job_whose_cancel_was_requested_is_canceled_where_it_would_return(
    rig: StoreRig, event: JobEvent
) -> None:
    batch_id, grant, other, index = await reach_job(rig, JobStatus.RUNNING)
    await rig.commands.cancel_jobs(batch_id, [index], project="a")
    assert JOB_TABLE[JobStatus.RUNNING, event] is JobStatus.PENDING
    await apply_to_job(rig, event, grant, other, index, stale=False)
    assert (await rig.job(batch_id, index)).status is JobStatus.CANCELED


async def reach_batch(
    rig: StoreRig, status: BatchStatus, *, working: bool, began: bool = True
) -> tuple[UUID, Grant | None]:
    """Return an open batch in this status, and its ticket if it ever had one. It has a queue timeout.

    With ``working`` it has jobs to run, and the ticket holds one that has not begun; else it has no jobs to run. began:
    False for a PAUSED batch that never had a ticket.
    """
    if status is BatchStatus.PENDING or not began:
        batch_id = await rig.submit(8 if working else 0, open=True, rules=RULES)
        if status is BatchStatus.PAUSED:
            await rig.commands.pause(batch_id, project="a")
        return batch_id, None
    live = status in (BatchStatus.RUNNING, BatchStatus.PAUSED)
    batch_id = await rig.submit(8 if live and working else 1, open=live or status is BatchStatus.TIMED_OUT, rules=RULES)
    grant = await rig.take()
    match status:
        case BatchStatus.RUNNING:
            await rig.settle(grant, {0: OutcomeKind.DONE}, want=2)
        case BatchStatus.PAUSED:
            await rig.settle(grant, {0: OutcomeKind.DONE}, want=2)
            await rig.commands.pause(batch_id, project="a")
        case BatchStatus.DONE:
            await rig.run(grant)
        case BatchStatus.ERROR:
            await rig.tickets.fail_batch(grant.ticket, grant.token, FAULT)
        case BatchStatus.CANCELED:
            await rig.commands.cancel(batch_id, project="a")
            await rig.settle(grant, {0: OutcomeKind.CANCELED})
        case BatchStatus.TIMED_OUT:
            await rig.run(grant)
            await rig.run_out(batch_id)
            await rig.tickets.sweep()
    return batch_id, grant


async def apply_to_batch(rig: StoreRig, event: BatchEvent, batch_id: UUID, grant: Grant | None, *, stale: bool) -> None:
    """Ignore the refusals of terminal batches; the caller checks the result."""
    if grant is not None and stale:
        grant = replace(grant, token=str(int(grant.token) + 1))
    match event:
        case BatchEvent.BEGIN:
            if grant is None:
                await rig.grants()
            else:
                await rig.renew(grant, JobProgress(2, Stage.ON_DEVICE))
        case BatchEvent.PAUSE:
            await rig.commands.pause(batch_id, project="a")
        case BatchEvent.RESUME:
            await rig.commands.resume(batch_id, project="a")
        case BatchEvent.COMPLETE:
            await rig.commands.close(batch_id, project="a")
            if grant is not None:
                await rig.commands.cancel_jobs(batch_id, range(2, 8), project="a")
                await rig.settle(grant, {1: OutcomeKind.DONE})
        case BatchEvent.CANCEL:
            await rig.commands.cancel(batch_id, project="a")
            if grant is not None:
                await rig.settle(grant, {1: OutcomeKind.CANCELED})
        case BatchEvent.DOOM:
            grant = (
                grant or await rig.take()
            )  # begins the batch: only the holder of a ticket can find that it cannot run
            token = str(int(grant.token) + 1) if stale else grant.token
            await rig.tickets.fail_batch(grant.ticket, token, FAULT)
        case BatchEvent.EXPIRE:
            await rig.redis.zadd(rig.keys(Key.IDLE), {str(batch_id): 1})
            await rig.tickets.sweep()
        case BatchEvent.OVERDUE:
            await rig.let_expire(batch_id)
            await rig.redis.zadd(rig.keys(Key.DEADLINES), {str(batch_id): 1})
            await rig.tickets.sweep()


WITH_TOKEN = (BatchEvent.BEGIN, BatchEvent.COMPLETE, BatchEvent.CANCEL, BatchEvent.DOOM)
ROWS = [
    (status, event, stale)
    for status, event, stale in product(BatchStatus, BatchEvent, (False, True))
    if not stale or (event in WITH_TOKEN and status is not BatchStatus.PENDING)
]


@pytest.mark.parametrize(("status", "event", "stale"), ROWS)
async def test_the_scripts_move_a_batch_as_in_the_table(
    rig: StoreRig, status: BatchStatus, event: BatchEvent, stale: bool
) -> None:
    idle = event is BatchEvent.EXPIRE or (status, event) == (BatchStatus.PENDING, BatchEvent.COMPLETE)
    began = (status, event) != (BatchStatus.PAUSED, BatchEvent.OVERDUE)
    batch_id, grant = await reach_batch(rig, status, working=not idle, began=began)
    assert (await rig.batch(batch_id)).status is status

    with contextlib.suppress(Conflict) if status.terminal else contextlib.nullcontext():
        await apply_to_batch(rig, event, batch_id, grant, stale=stale)

    expected = status if stale else BATCH_TABLE.get((status, event), status)
    assert (await rig.batch(batch_id)).status is expected
    moves = [told for told in await rig.events(batch_id) if told.index is None]
    assert [told.previous for told in moves] == [None, *(told.status for told in moves[:-1])]
    assert moves[-1].status is expected
    if status.terminal:
        assert await rig.members(Key.ENDED) == {str(batch_id)}


async def test_a_batch_with_work_does_not_expire(rig: StoreRig) -> None:
    batch_id = await rig.submit(2, open=True)
    await rig.redis.zadd(rig.keys(Key.IDLE), {str(batch_id): 1})
    assert await rig.swept() == (0, 0, 0)
    assert (await rig.batch(batch_id)).status is BatchStatus.PENDING


async def test_a_batch_with_work_does_not_complete_by_being_closed(rig: StoreRig) -> None:
    batch_id = await rig.submit(2, open=True)
    await rig.commands.close(batch_id, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.PENDING
    assert await rig.run_all() == [batch_id]


async def test_a_paused_batch_that_never_began_resumes_to_pending(rig: StoreRig) -> None:
    """The only case in which RESUME differs from the table."""
    batch_id = await rig.submit(1)
    await rig.commands.pause(batch_id, project="a")
    await rig.commands.resume(batch_id, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.PENDING
