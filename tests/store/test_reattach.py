"""Jobs that continue on another server after their worker died: another worker of the device takes them over."""

from __future__ import annotations

from tests.support.store_rig import DEVICE, StoreRig

from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import OutcomeKind
from tweezer.store.workers import Grant

UID = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"


async def intend(rig: StoreRig, grant: Grant) -> bytes:
    """Write the intent to forward the granted job; return the script's reply, without the wait for the disk."""
    (job,) = grant.jobs
    word, *_ = await rig.store.scripts.call(
        "intend", ticket=str(grant.ticket), token=grant.token, index=job.index, name=grant.token, sent="1"
    )
    assert isinstance(word, bytes)
    return word


async def test_every_lane_claims_one_job_at_a_time(rig: StoreRig) -> None:
    await rig.announce(lanes=2, reattaches=1)
    await rig.submit(8)
    grants = await rig.grants(2)
    assert [len(grant.jobs) for grant in grants] == [1, 1]
    turn = await rig.settle(grants[0], {grants[0].jobs[0].index: OutcomeKind.DONE}, want=100)
    assert len(turn.jobs) == 1


async def test_a_lost_tickets_job_runs_on_and_is_handed_out_again_as_the_same_attempt(rig: StoreRig) -> None:
    await rig.announce(lanes=2, reattaches=1)
    batch_id = await rig.submit(4)
    grants = await rig.grants(2)
    for grant in grants:
        assert await intend(rig, grant) == b"new"
        await rig.store.remote.note(batch_id, grant.jobs[0].index, grant.token, UID)
        await rig.lapse(grant)
    await rig.tickets.sweep()
    assert [(await rig.job(batch_id, index)).status for index in (0, 1)] == [JobStatus.RUNNING] * 2
    again = await rig.grants(2)
    assert sorted((job.index, job.attempt) for grant in again for job in grant.jobs) == [(0, 1), (1, 1)]
    assert [await intend(rig, grant) for grant in again] == [b"known"] * 2
    for grant in again:
        known = await rig.store.remote.known(batch_id, grant.jobs[0].index)
        assert known is not None
        assert (known.uid, known.after) == (UID, None)
        await rig.run(grant)
    assert {job.status for job in await rig.jobs(batch_id)} == {JobStatus.DONE}


async def test_a_job_that_was_not_forwarded_is_pending_again(rig: StoreRig) -> None:
    await rig.announce(reattaches=1)
    batch_id = await rig.submit()
    grant = await rig.take()
    await rig.lapse(grant)
    await rig.tickets.sweep()
    assert (await rig.job(batch_id, 0)).status is JobStatus.PENDING


async def test_a_batch_from_before_the_devices_first_worker_is_taken_as_well(rig: StoreRig) -> None:
    await rig.announce()
    batch_id = await rig.submit()
    await rig.announce(DEVICE, reattaches=1)
    grant = await rig.take()
    await intend(rig, grant)
    await rig.lapse(grant)
    await rig.tickets.sweep()
    assert (await rig.job(batch_id, 0)).status is JobStatus.RUNNING
    await rig.run(await rig.take())
    assert (await rig.job(batch_id, 0)).status is JobStatus.DONE
