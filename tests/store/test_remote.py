"""Jobs on a machine: intents and their names, and which ticket is next after a holder died."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import pytest

from tweezer.model.ids import job_id
from tweezer.model.intents import Mark
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Fault, JobSpec, OutcomeKind, Priority
from tweezer.store.keys import Key
from tweezer.store.workers import Grant, NextStep

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

FAULT = Fault("internal", "the process that builds sequences does not start")
UP, DOWN = "up", "down"


@pytest.fixture
async def machine(rig: StoreRig) -> StoreRig:
    """A device with one machine, which one batch at a time has for itself."""
    await rig.announce(exclusive=1, reattaches=1)
    return rig


async def intend(rig: StoreRig, grant: Grant, name: str = "a", *, sent: bool = True) -> str:
    """Write the intent to submit the grant's job, and return the script's reply."""
    (job,) = grant.jobs
    reply: Any = await rig.store.scripts.call(
        "intend", ticket=str(grant.ticket), token=grant.token, index=job.index, name=name, sent=str(int(sent))
    )
    return str(reply[0].decode())


async def set_out(rig: StoreRig, grant: Grant, name: str = "a") -> bool:
    return await rig.store.remote.set_out(grant.ticket, grant.token, grant.jobs[0].index, name)


async def known(rig: StoreRig, batch_id: UUID, index: int = 0) -> tuple[str, str | None] | None:
    """Return the name of the job's intent and its id on the machine."""
    intent = await rig.store.remote.known(batch_id, index)
    return None if intent is None else (intent.name, intent.uid)


async def orphan(rig: StoreRig, **options: Any) -> UUID:
    """Submit a batch whose first job is on the machine and whose worker has died."""
    batch_id = await rig.submit(3, **options)
    grant = await rig.take()
    assert (grant.batch_id, await intend(rig, grant)) == (batch_id, "new")
    await rig.store.remote.note(batch_id, 0, "a", "7")
    await rig.lapse(grant)
    return batch_id


async def test_an_intent_is_written_once_and_then_known(machine: StoreRig) -> None:
    rig = machine
    batch_id = await rig.submit(1)
    grant = await rig.take()
    assert [await intend(rig, grant), await intend(rig, grant, "b")] == ["new", "known"]
    assert await known(rig, batch_id) == ("a", None)
    assert [await rig.store.remote.withdraw(batch_id, 0, name) for name in ("b", "a", "a")] == [False, True, False]
    assert await known(rig, batch_id) is None


async def test_a_withdrawal_that_arrives_late_leaves_the_next_intent_alone(machine: StoreRig) -> None:
    rig = machine
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await intend(rig, grant, "a")
    await rig.store.remote.withdraw(batch_id, 0, "a")
    await intend(rig, grant, "b")
    assert not await rig.store.remote.withdraw(batch_id, 0, "a")
    assert await known(rig, batch_id) == ("b", None)


async def test_an_intent_that_arrives_after_its_ticket_was_given_back_is_refused(machine: StoreRig) -> None:
    rig = machine
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.tickets.drain(grant.ticket, grant.token)
    assert await intend(rig, grant) == "stale"
    assert await known(rig, batch_id) is None


async def test_a_holder_that_lost_the_ticket_may_still_withdraw_its_intent(machine: StoreRig) -> None:
    rig = machine
    batch_id = await rig.submit(1)
    first = await rig.take()
    await intend(rig, first)
    await rig.lapse(first)
    second = await rig.take()
    assert await rig.store.remote.withdraw(batch_id, 0, "a")
    assert await intend(rig, second, "b") == "new"


async def test_a_job_that_the_machine_has_is_not_withdrawn(machine: StoreRig) -> None:
    rig = machine
    batch_id = await rig.submit(1)
    await intend(rig, await rig.take())
    await rig.store.remote.note(batch_id, 0, "a", "7")
    assert not await rig.store.remote.withdraw(batch_id, 0, "a")
    assert await known(rig, batch_id) == ("a", "7")


async def test_a_note_is_accepted_after_the_ticket_is_lost(machine: StoreRig) -> None:
    rig = machine
    batch_id = await rig.submit(1)
    first = await rig.take()
    await intend(rig, first)
    await rig.lapse(first)
    await rig.take()
    await rig.store.remote.note(batch_id, 0, "a", "7")
    assert await known(rig, batch_id) == ("a", "7")
    await rig.store.remote.note(batch_id, 0, "b", "8")
    assert await known(rig, batch_id) == ("a", "7")


async def test_another_holder_may_start_over_until_the_writer_of_an_intent_begins_its_call(machine: StoreRig) -> None:
    rig = machine
    batch_id = await rig.submit(1)
    first = await rig.take()
    await intend(rig, first, "a", sent=False)
    await rig.lapse(first)
    second = await rig.take()
    assert second.batch_id == batch_id
    assert await intend(rig, second, "b", sent=False) == "new"
    assert [await set_out(rig, first, "a"), await set_out(rig, second, "b")] == [False, True]
    await rig.lapse(second)
    third = await rig.take()
    assert await intend(rig, third, "c", sent=False) == "known"
    assert await known(rig, batch_id) == ("b", None)


async def test_a_holder_that_lost_the_ticket_may_not_begin_its_call(machine: StoreRig) -> None:
    rig = machine
    await rig.submit(1)
    first = await rig.take()
    await intend(rig, first, sent=False)
    await rig.lapse(first)
    await rig.take()
    assert not await set_out(rig, first)


async def test_begin_call_may_be_repeated(machine: StoreRig) -> None:
    rig = machine
    await rig.submit(1)
    grant = await rig.take()
    await intend(rig, grant, sent=False)
    assert [await set_out(rig, grant), await set_out(rig, grant)] == [True, True]


async def test_an_older_intent_may_have_been_sent_where_redis_may_lose_its_last_writes(machine: StoreRig) -> None:
    rig = machine
    await rig.start_again("the first")
    batch_id = await rig.submit(1)
    first = await rig.take()
    await intend(rig, first, "a", sent=False)
    await rig.start_again("the second")
    assert not await set_out(rig, first)
    found = await rig.store.remote.known(batch_id, 0)
    assert found is not None
    assert found.may_be_sent
    await rig.lapse(first)
    assert await intend(rig, await rig.take(), "b", sent=False) == "known"


async def test_a_job_that_was_not_sent_is_pending_again_after_its_holder_died(machine: StoreRig) -> None:
    rig = machine
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await intend(rig, grant, sent=False)
    await rig.tickets.drain(grant.ticket, grant.token)
    assert await rig.statuses(batch_id) == [JobStatus.PENDING]
    await rig.devices.pause("EMU", "for a while")
    assert await rig.grants() == []


async def test_an_intent_contains_how_long_ago_an_earlier_one_may_have_been_lost(machine: StoreRig) -> None:
    rig = machine
    await rig.start_again("the first")
    batch_id = await rig.submit(1)
    grant = await rig.take()

    async def since_loss(name: str) -> bytes:
        reply: Any = await rig.store.scripts.call(
            "intend", ticket=str(grant.ticket), token=grant.token, index=0, name=name, sent="0"
        )
        await rig.store.remote.withdraw(batch_id, 0, name)
        return bytes(reply[2])

    assert await since_loss("a") == b""
    await rig.start_again("the second")
    assert 0 <= int(await since_loss("b")) < 5000


async def test_a_job_that_waits_since_redis_restarted_is_searched_for_from_then_on(machine: StoreRig) -> None:
    rig = machine

    async def after(batch_id: UUID) -> int | None:
        """Return after which job of the machine the search for the first job begins, and give the machine a new job."""
        (grant,) = [it for it in await rig.grants() if it.batch_id == batch_id]
        assert await intend(rig, grant) == "new"
        intent = await rig.store.remote.known(batch_id, 0)
        assert intent is not None
        await rig.store.remote.note(batch_id, 0, "a", str((intent.after or 0) + 10))
        await rig.settle(grant, {0: OutcomeKind.DONE})
        return intent.after

    await rig.start_again("the first")
    assert await after(await rig.submit(1)) is None
    old = await rig.submit(1, priority=Priority.LOW)
    await rig.start_again("the second")
    assert await after(await rig.submit(1)) == 10
    assert await after(await rig.submit(1)) == 20
    await rig.start_again("the third")
    assert await after(await rig.submit(1)) == 30
    for number in range(60):  # more than are kept separately
        await rig.start_again(f"one more: {number}")
        assert await after(await rig.submit(1)) == 40 + 10 * number
    assert await after(old) == 10


async def test_the_last_known_job_of_a_machine_has_its_remote_id_and_our_job_id(machine: StoreRig) -> None:
    rig = machine
    assert await rig.store.remote.mark("EMU") == Mark()
    batch_id = await rig.submit(2)
    grant = await rig.take()
    await intend(rig, grant)
    await rig.store.remote.note(batch_id, 0, "a", "7", named=True)
    mark = Mark(7, str(job_id(batch_id, 0)), has_names=True)
    assert await rig.store.remote.mark("EMU") == mark
    await rig.redis.hset(rig.keys(Key.DEVICE, "EMU"), "last_uid", "8")  # as a worker does that does not note names
    assert await rig.store.remote.mark("EMU") == Mark(8, None, has_names=True)
    await rig.redis.hset(rig.keys(Key.DEVICE, "EMU"), "last_uid", "7")
    turn = await rig.settle(grant, {0: OutcomeKind.DONE})
    await intend(rig, msgspec.structs.replace(grant, jobs=turn.jobs))
    await rig.store.remote.note(batch_id, 1, "a", "9", named=False)
    assert await rig.store.remote.mark("EMU") == Mark(9, str(job_id(batch_id, 1)))


async def test_a_machine_whose_ids_restarted_is_searched_from_the_restart(machine: StoreRig) -> None:
    rig = machine
    await rig.start_again("the first")
    waits = await rig.submit(1, priority=Priority.LOW)
    first = await rig.submit(1)
    grant = await rig.take()
    await intend(rig, grant)
    await rig.store.remote.note(first, 0, "a", "7", named=True)
    await rig.settle(grant, {0: OutcomeKind.DONE})
    await rig.start_again("the second")

    before = await rig.store.remote.known(first, 0)
    await rig.store.remote.note_set_back("EMU", 7, 2)
    await rig.store.remote.note_set_back("EMU", 7, 100)  # repeated, because the reply was lost
    mark = await rig.store.remote.mark("EMU")
    assert (mark.uid, mark.job, mark.has_names, mark.since) == (2, None, True, 2)
    assert before is not None
    assert mark.after(before) == 2

    grant = await rig.take()
    assert (grant.batch_id, await intend(rig, grant)) == (waits, "new")
    intent = await rig.store.remote.known(waits, 0)
    assert intent is not None
    assert (intent.after, mark.after(intent)) == (2, 2)
    await rig.store.remote.note(waits, 0, "a", "3", named=True)
    assert (await rig.store.remote.mark("EMU")).uid == 3


async def reserved(rig: StoreRig, how: str) -> tuple[UUID, UUID]:
    """Submit an idle open batch that has the machine but no holder, and another batch that waits for the machine."""
    batch_id = await rig.submit(1, open=True)
    grant = await rig.take()
    waits = await rig.submit(1, project="another", priority=Priority.HIGH)
    if how == "drained with its last job":
        assert (await rig.settle(grant, {0: OutcomeKind.DONE}, want=0)).next is NextStep.PARKED
        return batch_id, waits
    assert (await rig.settle(grant, {0: OutcomeKind.DONE})).next is NextStep.RESERVED
    match how:
        case "drained":
            assert (await rig.settle(grant, {}, want=0)).next is NextStep.PARKED
        case "released":
            await rig.tickets.drain(grant.ticket, grant.token)
        case "killed":
            await rig.lapse(grant)
    return batch_id, waits


async def look_again(rig: StoreRig, batch_id: UUID) -> None:
    """Let a few seconds pass, and let a worker check again which batch has the machine."""
    await rig.redis.zadd(rig.keys(Key.LEASES, "EMU"), {f"{batch_id}:0": 1}, xx=True)
    await rig.tickets.sweep()


@pytest.mark.parametrize("how", ["drained", "drained with its last job", "released", "killed"])
async def test_an_open_batch_without_work_keeps_the_machine_after_its_holder_left(machine: StoreRig, how: str) -> None:
    rig = machine
    batch_id, waits = await reserved(rig, how)
    for _ in range(3):
        assert await rig.grants() == []
        await look_again(rig, batch_id)
    await rig.commands.add_jobs(batch_id, [JobSpec(runs=1)], project=None)
    grant = await rig.take()
    assert (grant.batch_id, [job.index for job in grant.jobs]) == (batch_id, [1])
    assert (await rig.settle(grant, {1: OutcomeKind.DONE})).next is NextStep.RESERVED
    await rig.commands.close(batch_id, project=None)
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE
    assert (await rig.take()).batch_id == waits


@pytest.mark.parametrize("end", ["close", "cancel", "time-out", "pause of the batch", "pause of the machine"])
async def test_a_machine_that_is_reserved_without_a_holder_is_given_up_in_time(machine: StoreRig, end: str) -> None:
    rig = machine
    batch_id, waits = await reserved(rig, "killed")
    await rig.tickets.sweep()
    match end:
        case "close":
            await rig.commands.close(batch_id, project=None)
        case "cancel":
            await rig.commands.cancel(batch_id, project=None)
        case "time-out":
            await rig.run_out(batch_id)
            await rig.tickets.sweep()
            assert (await rig.batch(batch_id)).status is BatchStatus.TIMED_OUT
        case "pause of the batch":
            await rig.commands.pause(batch_id, project=None)
            await look_again(rig, batch_id)
        case "pause of the machine":
            await rig.devices.pause("EMU", "maintenance")
            await look_again(rig, batch_id)
            await rig.devices.resume("EMU")
    assert (await rig.take()).batch_id == waits


async def test_an_open_batch_keeps_a_machine_that_is_down_for_a_moment(machine: StoreRig) -> None:
    rig = machine
    batch_id = await rig.submit(1, open=True)
    grant = await rig.take()
    await rig.submit(1, project="another", priority=Priority.HIGH)
    await rig.settle(grant, {0: OutcomeKind.DONE})
    await rig.devices.set_condition("EMU", DOWN, "it rests")
    assert (await rig.settle(grant, {})).next is NextStep.RESERVED
    await rig.commands.add_jobs(batch_id, [JobSpec(runs=1)], project=None)
    assert (await rig.settle(grant, {})).next is NextStep.YIELD
    assert await rig.grants() == []
    await rig.devices.set_condition("EMU", UP, "")
    assert (await rig.take()).batch_id == batch_id


async def test_adding_and_cancelling_a_job_without_a_holder_does_not_give_the_machine_up(
    machine: StoreRig,
) -> None:
    rig = machine
    batch_id, waits = await reserved(rig, "killed")
    await rig.tickets.sweep()
    await rig.commands.add_jobs(batch_id, [JobSpec(runs=1)], project=None)
    await rig.commands.cancel_jobs(batch_id, [1], project=None)
    assert await rig.grants() == []
    await rig.commands.add_jobs(batch_id, [JobSpec(runs=1)], project=None)
    assert [job.index for job in (await rig.take()).jobs] == [2]
    assert (await rig.batch(waits)).status is BatchStatus.PENDING


async def test_a_batch_that_has_the_machine_continues_after_a_drain_between_two_jobs(machine: StoreRig) -> None:
    rig = machine
    batch_id = await rig.submit(2)
    grant = await rig.take()
    await rig.submit(1, project="another", priority=Priority.HIGH)
    assert (await rig.settle(grant, {0: OutcomeKind.DONE}, want=0)).next is NextStep.YIELD
    grant = await rig.take()
    assert (grant.batch_id, [job.index for job in grant.jobs]) == (batch_id, [1])


async def test_the_job_on_the_machine_comes_before_all_other_work(machine: StoreRig) -> None:
    rig = machine
    batch_id = await orphan(rig)
    await rig.submit(1, project="another")
    grant = await rig.take()
    assert (grant.batch_id, [job.attempt for job in grant.jobs]) == (batch_id, [1])


async def test_no_other_batch_gets_the_machine_while_a_failed_read_of_its_job_is_retried(machine: StoreRig) -> None:
    rig = machine
    batch_id = await orphan(rig)
    await rig.submit(1, project="another")
    await rig.release(await rig.take(), FAULT, retry_in_s=60)
    assert await rig.grants() == []
    await rig.redis.zadd(rig.keys(Key.LEASES, "EMU"), {f"{batch_id}:0": 1}, xx=True)
    assert (await rig.take()).batch_id == batch_id


async def test_the_next_holder_stops_the_job_of_a_batch_that_was_cancelled_without_a_holder(machine: StoreRig) -> None:
    rig = machine
    batch_id = await orphan(rig)
    await rig.tickets.sweep()
    await rig.commands.cancel(batch_id, project=None)
    assert await rig.statuses(batch_id) == [JobStatus.RUNNING, JobStatus.CANCELED, JobStatus.CANCELED]
    grant = await rig.take()
    assert [(job.index, job.cancel_requested) for job in grant.jobs] == [(0, True)]
    await rig.settle(grant, {0: OutcomeKind.CANCELED})
    assert (await rig.batch(batch_id)).status is BatchStatus.CANCELED


async def test_a_paused_batch_gets_a_holder_only_for_its_job_on_the_machine(machine: StoreRig) -> None:
    rig = machine
    batch_id = await orphan(rig)
    await rig.commands.pause(batch_id, project=None)
    grant = await rig.take()
    assert [job.index for job in grant.jobs] == [0]
    await rig.settle(grant, {0: OutcomeKind.DONE})
    assert await rig.grants() == []
    assert await rig.statuses(batch_id) == [JobStatus.DONE, JobStatus.PENDING, JobStatus.PENDING]


async def test_a_machine_that_is_down_gets_a_holder_only_for_the_job_that_it_has(machine: StoreRig) -> None:
    rig = machine
    batch_id = await orphan(rig)
    await rig.devices.set_condition("EMU", DOWN, "it rests")
    grant = await rig.take()
    assert (grant.batch_id, [job.index for job in grant.jobs]) == (batch_id, [0])
    await rig.settle(grant, {0: OutcomeKind.DONE})
    assert await rig.grants() == []
    await rig.devices.set_condition("EMU", UP, "")
    assert [job.index for job in (await rig.take()).jobs] == [1]


async def test_a_failed_batch_leaves_the_machines_job_to_the_next_holder(machine: StoreRig) -> None:
    rig = machine
    batch_id = await orphan(rig)
    assert await rig.release(await rig.take(), FAULT, failures_max=1)
    assert await rig.statuses(batch_id) == [JobStatus.RUNNING, JobStatus.ERROR, JobStatus.ERROR]
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE})
    batch = await rig.batch(batch_id)
    assert (batch.status, batch.counts[JobStatus.DONE]) == (BatchStatus.ERROR, 1)
