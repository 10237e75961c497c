"""The order of batches: fair shares between projects, priorities, ageing, and turns that end."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tweezer.duties import Backoff
from tweezer.model.errors import Conflict, NotFound
from tweezer.model.messages import Fault, OutcomeKind, Priority
from tweezer.store.keys import Key
from tweezer.store.workers import NextStep

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig


async def serve(rig: StoreRig, *, used_s: float) -> UUID:
    """Take the next ticket, run one job of it for this long, and return its batch."""
    grant = await rig.take()
    await rig.settle(grant, {job.index: OutcomeKind.DONE for job in grant.jobs}, want=0, used_s=used_s)
    return grant.batch_id


async def test_two_projects_take_turns(rig: StoreRig) -> None:
    ours, theirs = await rig.submit(20, project="ours"), await rig.submit(20, project="theirs")
    turns = [await serve(rig, used_s=1.0) for _ in range(12)]
    assert abs(turns.count(ours) - turns.count(theirs)) <= 1
    assert all(len(set(turns[at : at + 3])) == 2 for at in range(10))


async def test_a_project_gets_its_share_of_time_not_of_turns(rig: StoreRig) -> None:
    slow, quick = await rig.submit(40, project="slow"), await rig.submit(40, project="quick")
    used = {slow: 0.0, quick: 0.0}
    for _ in range(24):
        grant = await rig.take()
        took = 4.0 if grant.batch_id == slow else 1.0
        used[grant.batch_id] += took
        await rig.settle(grant, {grant.jobs[0].index: OutcomeKind.DONE}, want=0, used_s=took)
    assert abs(used[slow] - used[quick]) <= 6.0


@pytest.mark.parametrize("way", ["fail", "release"])
async def test_lane_time_of_a_batch_that_could_not_be_prepared_is_charged(rig: StoreRig, way: str) -> None:
    await rig.submit(1, project="a")
    grant, fault = await rig.take(), Fault("timeout", "took too long")
    if way == "fail":
        assert await rig.tickets.fail_batch(grant.ticket, grant.token, fault, used_s=30)
    else:
        backoff = Backoff(base_s=0, cap_s=0)
        await rig.tickets.release(grant.ticket, grant.token, fault, backoff=backoff, failures_max=1, used_s=30)
    second = await rig.submit(1, project="a")
    others = [await rig.submit(1, project="b") for _ in range(3)]
    assert await rig.run_all() == [*others, second]


async def test_an_idle_project_does_not_accumulate_its_share(rig: StoreRig) -> None:
    await rig.submit(40, project="busy")
    for _ in range(20):
        await serve(rig, used_s=1.0)
    late = await rig.submit(40, project="late")
    turns = [await serve(rig, used_s=1.0) for _ in range(10)]
    assert 4 <= turns.count(late) <= 6


async def test_a_higher_priority_goes_first(rig: StoreRig) -> None:
    low = await rig.submit(1, project="a", priority=Priority.LOW)
    medium = await rig.submit(1, project="b", priority=Priority.MEDIUM)
    high = await rig.submit(1, project="c", priority=Priority.HIGH)
    assert await rig.run_all() == [high, medium, low]


async def test_age_beats_priority_in_the_end(rig: StoreRig) -> None:
    """LOW ranks 600 s of service behind HIGH; after that much service it is next."""
    low = await rig.submit(1, project="patient", priority=Priority.LOW)
    served = []
    for _ in range(14):
        await rig.submit(1, project="pushing", priority=Priority.HIGH)
        served.append(await serve(rig, used_s=60.0))
    assert low in served
    assert served.index(low) >= 9


async def test_a_turn_ends_after_the_quantum_when_another_is_waiting(rig: StoreRig) -> None:
    ours = await rig.submit(10, project="ours")
    grant = await rig.take()
    theirs = await rig.submit(1, project="theirs")
    turn = await rig.settle(grant, {0: OutcomeKind.DONE}, used_s=0.6)
    assert turn.next is NextStep.JOBS
    turn = await rig.settle(grant, {turn.jobs[0].index: OutcomeKind.DONE}, used_s=0.6)
    assert (turn.next, turn.jobs) == (NextStep.YIELD, [])
    assert await serve(rig, used_s=0.1) == theirs
    assert await serve(rig, used_s=0.1) == ours


async def test_a_turn_continues_while_no_other_project_waits(rig: StoreRig) -> None:
    await rig.submit(5)
    grant = await rig.take()
    for index in range(4):
        turn = await rig.settle(grant, {index: OutcomeKind.DONE}, used_s=5.0)
        assert [job.index for job in turn.jobs] == [index + 1]


async def test_jobs_that_were_claimed_ahead_do_not_prolong_a_turn(rig: StoreRig) -> None:
    batch_id = await rig.submit(40, project="ours")
    grant = await rig.take()
    turn = await rig.settle(grant, {0: OutcomeKind.DONE}, want=10)
    assert len(turn.jobs) == 10
    theirs = await rig.submit(1, project="theirs")
    turn = await rig.settle(grant, {1: OutcomeKind.DONE}, want=10, used_s=2.0)
    assert turn.next is NextStep.YIELD
    assert await rig.members(Key.HELD, batch_id, 0) == set()
    assert await serve(rig, used_s=0.1) == theirs


async def test_an_exclusive_device_is_not_yielded(rig: StoreRig) -> None:
    await rig.announce("QPU", worker="q", exclusive=1)
    await rig.submit(3, project="ours", device="QPU")
    grant = await rig.take(device="QPU")
    await rig.submit(1, project="theirs", device="QPU")
    turn = await rig.settle(grant, {0: OutcomeKind.DONE}, used_s=100.0)
    assert [job.index for job in turn.jobs] == [1]


async def test_each_device_has_its_own_queue(rig: StoreRig) -> None:
    await rig.announce("OTHER", worker="o")
    here, there = await rig.submit(1), await rig.submit(1, device="OTHER")
    assert await rig.run_all() == [here]
    assert await rig.run_all(device="OTHER") == [there]


async def test_a_new_priority_moves_a_waiting_batch_at_once(rig: StoreRig) -> None:
    first, second, third = [await rig.submit(1) for _ in range(3)]
    await rig.commands.set_priority(third, Priority.HIGH, project="a")
    await rig.commands.set_priority(first, Priority.LOW, project="a")
    assert (await rig.batch(third)).priority is Priority.HIGH
    assert await rig.run_all() == [third, second, first]


async def test_a_batch_that_gets_its_priority_later_ranks_like_one_that_had_it(rig: StoreRig) -> None:
    async def score(batch_id: UUID) -> float:
        found: float | None = await rig.redis.zscore(rig.keys(Key.READY, "EMU"), f"{batch_id}:0")
        assert found is not None
        return found

    batch_id = await rig.submit(1)
    medium = await score(batch_id)
    await rig.commands.set_priority(batch_id, Priority.HIGH, project="a")
    await rig.commands.set_priority(batch_id, Priority.LOW, project="a")
    assert await score(batch_id) == medium + 540_000
    await rig.commands.set_priority(batch_id, Priority.MEDIUM, project="a")
    assert await score(batch_id) == medium


async def test_a_new_priority_of_a_running_batch_counts_from_its_next_turn(rig: StoreRig) -> None:
    batch_id = await rig.submit(5)
    grant = await rig.take()
    await rig.commands.set_priority(batch_id, Priority.LOW, project="a")
    other = await rig.submit(1)
    turn = await rig.settle(grant, {grant.jobs[0].index: OutcomeKind.DONE}, want=1, used_s=2)
    assert turn.next is NextStep.YIELD
    assert (await rig.take()).batch_id == other


async def test_the_priority_of_an_ended_or_foreign_batch_does_not_change(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    with pytest.raises(NotFound):
        await rig.commands.set_priority(batch_id, Priority.HIGH, project="b")
    await rig.run_all()
    before = await rig.snapshot()
    with pytest.raises(Conflict, match="has ended"):
        await rig.commands.set_priority(batch_id, Priority.HIGH, project="a")
    assert await rig.snapshot() == before


async def test_an_equal_priority_changes_nothing(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    before = await rig.snapshot()
    await rig.commands.set_priority(batch_id, Priority.MEDIUM, project="a")
    assert await rig.snapshot() == before
