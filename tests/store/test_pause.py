"""Pause and resume, of a batch and of a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tweezer.model.errors import Conflict, InvalidInput, NotFound
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import JobSpec, OutcomeKind
from tweezer.store.keys import Key
from tweezer.store.workers import JobProgress, NextStep

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

DONE, PENDING, RUNNING = JobStatus.DONE, JobStatus.PENDING, JobStatus.RUNNING


async def test_a_paused_batch_is_not_handed_out(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    await rig.commands.pause(batch_id, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.PAUSED
    assert await rig.grants() == []
    await rig.commands.resume(batch_id, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.PENDING
    assert (await rig.take()).batch_id == batch_id


async def test_pausing_twice_and_resuming_twice_has_one_event_each(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    for _ in range(2):
        await rig.commands.pause(batch_id, project="a")
    for _ in range(2):
        await rig.commands.resume(batch_id, project="a")
    assert await rig.event_texts(batch_id) == ["batch.created", "batch.paused", "batch.resumed"]


async def test_running_jobs_finish_when_their_batch_is_paused(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    grant = await rig.take()
    await rig.commands.pause(batch_id, project="a")
    assert await rig.renew(grant) == set()
    turn = await rig.settle(grant, {0: OutcomeKind.DONE}, want=2)
    assert (turn.next, turn.refused, turn.jobs) == (NextStep.RETIRED, 0, [])
    assert await rig.statuses(batch_id) == [DONE, PENDING, PENDING]
    assert (await rig.batch(batch_id)).status is BatchStatus.PAUSED


@pytest.mark.parametrize("what", ["batch", "device"])
async def test_a_held_job_that_runs_stays_with_its_holder_through_a_pause(rig: StoreRig, what: str) -> None:
    batch_id = await rig.submit(10)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE}, want=3)
    await rig.renew(grant, JobProgress(2, Stage.ON_DEVICE))
    if what == "batch":
        await rig.commands.pause(batch_id, project="a")
    else:
        await rig.devices.pause("EMU", "maintenance")
    turn = await rig.settle(grant, {1: OutcomeKind.DONE}, want=3)
    assert (turn.next, [job.index for job in turn.jobs]) == (NextStep.JOBS, [2])
    assert await rig.statuses(batch_id) == [DONE, DONE, RUNNING] + [PENDING] * 7
    turn = await rig.settle(grant, {2: OutcomeKind.DONE}, want=3)
    assert (turn.next, turn.refused) == (NextStep.RETIRED if what == "batch" else NextStep.YIELD, 0)


async def test_jobs_added_to_a_paused_batch_wait_for_its_resume(rig: StoreRig) -> None:
    batch_id = await rig.submit(0, open=True)
    await rig.commands.pause(batch_id, project="a")
    await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")
    assert await rig.grants() == []
    await rig.commands.resume(batch_id, project="a")
    assert (await rig.take()).batch_id == batch_id


async def test_a_paused_batch_ends_when_its_last_job_does(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.commands.pause(batch_id, project="a")
    await rig.settle(grant, {0: OutcomeKind.DONE})
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE
    with pytest.raises(Conflict) as refusal:
        await rig.commands.resume(batch_id, project="a")
    assert refusal.value.code == "terminal"


async def test_a_batch_that_ended_cannot_be_paused(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.run_all()
    before = await rig.snapshot()
    with pytest.raises(Conflict):
        await rig.commands.pause(batch_id, project="a")
    assert await rig.snapshot() == before


async def test_a_batch_that_was_paused_during_a_retry_delay_continues_after_the_resume(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.settle(await rig.take(), {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)})
    await rig.commands.pause(batch_id, project="a")
    await rig.make_due(batch_id)
    assert await rig.grants() == []
    await rig.commands.resume(batch_id, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.RUNNING
    assert [job.index for job in (await rig.take()).jobs] == [0]


async def test_a_paused_device_grants_no_ticket_and_accepts_submits(rig: StoreRig) -> None:
    await rig.devices.pause("EMU", "calibration")
    await rig.submit(1)
    taken = await rig.tickets.take("EMU", ["lane"], lease_s=15)
    assert (taken.grants, taken.paused) == ([], True)
    device = await rig.reader.device("EMU")
    assert device is not None
    assert device.paused == "calibration"
    assert await rig.members(Key.READY, "EMU") != set()


async def test_a_resumed_device_wakes_its_workers(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.devices.pause("EMU", "calibration")
    await rig.silence()
    await rig.devices.resume("EMU")
    assert await rig.bell() == 1
    assert (await rig.take()).batch_id == batch_id


async def test_running_jobs_on_a_paused_device_finish_and_held_ones_are_returned(rig: StoreRig) -> None:
    batch_id = await rig.submit(10)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE}, want=3)
    await rig.devices.pause("EMU", "calibration")
    turn = await rig.settle(grant, {1: OutcomeKind.DONE}, want=3)
    assert (turn.next, turn.jobs) == (NextStep.YIELD, [])
    assert await rig.statuses(batch_id) == [DONE, DONE] + [PENDING] * 8
    await rig.devices.resume("EMU")
    assert await rig.run_all() == [batch_id]


async def test_heartbeats_return_why_the_device_is_paused(rig: StoreRig) -> None:
    await rig.devices.pause("EMU", "calibration")
    assert await rig.announce() == "calibration"
    await rig.devices.resume("EMU")
    assert await rig.announce() == ""


@pytest.mark.parametrize("call", ["pause", "resume"])
async def test_a_device_that_was_never_announced_is_not_found(rig: StoreRig, call: str) -> None:
    before = await rig.snapshot()
    with pytest.raises(NotFound, match="NO_SUCH"):
        await getattr(rig.devices, call)("NO_SUCH", *(["why"] if call == "pause" else []))
    assert await rig.snapshot() == before


async def test_a_paused_batch_has_who_paused_it_when_and_why(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.commands.pause(batch_id, project="a", by="ada@lab", reason="check the results")
    paused = await rig.batch(batch_id)
    assert paused.pause is not None
    assert (paused.pause.by, paused.pause.reason) == ("ada@lab", "check the results")
    assert paused.pause.at >= paused.created
    await rig.commands.pause(batch_id, project="a", by="bob")
    assert (await rig.batch(batch_id)).pause == paused.pause
    await rig.commands.pause(batch_id, project="a", by="bob", reason="a new lens")
    changed = (await rig.batch(batch_id)).pause
    assert changed is not None
    assert (changed.by, changed.reason) == ("bob", "a new lens")
    await rig.commands.resume(batch_id, project="a")
    assert (await rig.batch(batch_id)).pause is None
    assert await rig.event_texts(batch_id) == ["batch.created", "batch.paused", "batch.resumed"]


@pytest.mark.parametrize(("field", "given"), [("by", ""), ("by", "a\nb"), ("reason", "x" * 501), ("reason", "\x1b[2J")])
async def test_a_pause_with_an_invalid_name_or_reason_changes_nothing(rig: StoreRig, field: str, given: str) -> None:
    batch_id = await rig.submit(1)
    with pytest.raises(InvalidInput, match=field):
        await rig.commands.pause(batch_id, project="a", **{field: given})
    assert (await rig.batch(batch_id)).status is BatchStatus.PENDING
