"""Batches that depend on others: they wait, start, or are cancelled when those end."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace
from tests.support.power_loss import Recorded, checkpoint, fall_back, recorded

from tweezer.model.errors import Conflict, InvalidInput, Unavailable
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Fault, JobSpec, OutcomeKind
from tweezer.model.rules import Dependency, Rules, When
from tweezer.store.keys import Key
from tweezer.store.producers import CancelAnswer, Submission

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

PENDING, RUNNING, PAUSED = BatchStatus.PENDING, BatchStatus.RUNNING, BatchStatus.PAUSED
DONE, ERROR, CANCELED, TIMED_OUT = BatchStatus.DONE, BatchStatus.ERROR, BatchStatus.CANCELED, BatchStatus.TIMED_OUT
FAULT = Fault("internal", "it broke")


def after(*parents: UUID | Dependency) -> Rules:
    """Return rules that make a batch depend on others."""
    return Rules(depends_on=tuple(it if isinstance(it, Dependency) else Dependency(it) for it in parents))


async def submit_after(rig: StoreRig, *parents: UUID | Dependency, jobs: int = 1, **options: Any) -> UUID:
    return await rig.submit(jobs, rules=after(*parents), **options)


async def status_of(rig: StoreRig, batch_id: UUID) -> BatchStatus:
    return (await rig.batch(batch_id)).status


async def waits_for(rig: StoreRig, batch_id: UUID) -> set[UUID]:
    return set((await rig.batch(batch_id)).waits_for)


async def tickets(rig: StoreRig) -> set[str]:
    """Return the batches with tickets."""
    names = [name for key in (Key.READY, Key.DUE, Key.LEASES) for name in await rig.members(key, "EMU")]
    return {name.rpartition(":")[0] for name in names}


async def finish_all(rig: StoreRig) -> list[UUID]:
    """Run all work, and sweep, until nothing is left to do; return the batches in the order in which they ran."""
    order = []
    while ran := await rig.run_all():
        order += ran
        await rig.sweep_all()
    return order


async def assert_cancelled(rig: StoreRig, batch_id: UUID, *needles: str) -> None:
    """Assert that a batch was cancelled because of a dependency, with all its jobs."""
    batch = await rig.batch(batch_id)
    assert batch.status is CANCELED
    assert batch.fault is not None
    assert (batch.fault.code, batch.fault.field) == ("dependency", "depends_on")
    assert all(needle in batch.fault.message for needle in needles), batch.fault.message
    assert not batch.waits_for
    assert not batch.open
    for job in await rig.jobs(batch_id):
        assert (job.status, job.faults) == (JobStatus.CANCELED, (batch.fault,))


# --------------------------------------------------------------------------------------------------- waiting


async def test_a_batch_waits_for_another_and_starts_when_that_is_done(rig: StoreRig) -> None:
    first = await rig.submit(2)
    second = await submit_after(rig, first)
    assert (await status_of(rig, second), await waits_for(rig, second)) == (PENDING, {first})
    assert await tickets(rig) == {str(first)}
    grant = await rig.take()
    await rig.silence()
    await rig.run(grant)
    assert await rig.bell() == 1
    assert await waits_for(rig, second) == set()
    assert await tickets(rig) == {str(second)}
    assert await rig.run_all() == [second]
    assert await status_of(rig, second) is DONE
    assert await rig.event_texts(second) == [
        *("batch.created", "batch.running", "0 job.running", "0 job.done", "batch.done"),
    ]


async def test_a_batch_waits_for_all_that_it_depends_on(rig: StoreRig) -> None:
    """A diamond: one batch, two that depend on it, and one that depends on these."""
    top = await rig.submit()
    left, right = await submit_after(rig, top), await submit_after(rig, top)
    bottom = await submit_after(rig, left, Dependency(right, When.ENDED))
    assert await rig.run_all() == [top, left, right, bottom]
    assert await status_of(rig, bottom) is DONE


async def test_a_batch_that_waits_for_less_is_recorded(rig: StoreRig) -> None:
    """The ledger learns of a met dependency by an entry without words."""
    first, second = await rig.submit(), await rig.submit()
    third = await submit_after(rig, first, second)
    before = len(await rig.store.events.read(most=1000))
    await rig.run(await rig.take())
    entries = (await rig.store.events.read(most=1000))[before:]
    assert [entry.words for entry in entries if entry.batch_id == third] == [""]
    assert await waits_for(rig, third) == {second}
    assert await finish_all(rig) == [second, third]


@pytest.mark.parametrize("jobs", [1, 3])
async def test_a_chain_runs_in_its_order(rig: StoreRig, jobs: int) -> None:
    chain = [await rig.submit(jobs)]
    for _ in range(20):
        chain.append(await submit_after(rig, chain[-1], jobs=jobs))
    assert await rig.run_all() == chain


async def test_dependents_start_in_the_order_of_their_submits_and_the_sweep_releases_the_rest(rig: StoreRig) -> None:
    first = await rig.submit()
    dependents = [await submit_after(rig, first) for _ in range(200)]
    await rig.run(await rig.take())
    assert len(await tickets(rig)) == 50
    await rig.silence()
    await rig.sweep_all()
    assert await rig.bell() == 1
    assert len(await tickets(rig)) == 200
    assert await rig.members(Key.RELEASES) == set()
    assert await rig.run_all() == dependents


async def test_many_dependents_are_cancelled_in_bounded_steps(rig: StoreRig) -> None:
    first = await rig.submit()
    dependents = [await submit_after(rig, first, jobs=3000) for _ in range(8)]
    await rig.commands.cancel(first, project="a")
    ended = [await status_of(rig, batch_id) for batch_id in dependents]
    assert ended == [CANCELED] * 4 + [PENDING] * 4  # 10,000 jobs in one script, and at most one batch beyond
    await rig.sweep_all()
    for batch_id in dependents:
        await assert_cancelled(rig, batch_id)


async def test_a_chain_of_cancels_takes_a_loop_and_no_recursion(rig: StoreRig) -> None:
    chain = [await rig.submit()]
    for _ in range(120):
        chain.append(await submit_after(rig, chain[-1]))
    await rig.commands.cancel(chain[0], project="a")
    assert await status_of(rig, chain[50]) is CANCELED
    assert await status_of(rig, chain[51]) is PENDING
    await rig.sweep_all()
    for parent, batch_id in itertools.pairwise(chain):
        await assert_cancelled(rig, batch_id, str(parent))
        assert await rig.event_texts(batch_id) == ["batch.created", "0 job.canceled", "batch.canceled"]


# ------------------------------------------------------------------------------- how the other batch must end


async def end_done(rig: StoreRig, batch_id: UUID) -> None:
    await rig.run(await rig.take())


async def end_done_with_a_failed_job(rig: StoreRig, batch_id: UUID) -> None:
    await rig.run(await rig.take(), OutcomeKind.ERROR)


async def end_in_error(rig: StoreRig, batch_id: UUID) -> None:
    grant = await rig.take()
    await rig.tickets.fail_batch(grant.ticket, grant.token, FAULT)


async def end_cancelled(rig: StoreRig, batch_id: UUID) -> None:
    await rig.commands.cancel(batch_id, project="a")


async def end_timed_out(rig: StoreRig, batch_id: UUID) -> None:
    await rig.run(await rig.take())
    await rig.run_out(batch_id)
    await rig.tickets.sweep()


ENDS = [
    (end_done, DONE, {When.DONE, When.ENDED}),
    (end_done_with_a_failed_job, DONE, {When.DONE, When.ENDED, When.ERROR}),
    (end_in_error, ERROR, {When.ENDED, When.ERROR}),
    (end_cancelled, CANCELED, {When.ENDED, When.ERROR}),
    (end_timed_out, TIMED_OUT, {When.ENDED, When.ERROR}),
]


@pytest.mark.parametrize("is_late", [False, True], ids=["submitted_before", "submitted_after"])
@pytest.mark.parametrize(("end", "status", "satisfies"), ENDS)
async def test_how_a_batch_ends_decides_about_its_dependents(
    rig: StoreRig, end: Any, status: BatchStatus, satisfies: set[When], is_late: bool
) -> None:
    first = await rig.submit(open=end is end_timed_out)
    dependents = {}
    if is_late:
        await end(rig, first)
    for when in When:
        dependents[when] = await submit_after(rig, Dependency(first, when), jobs=2)
    if not is_late:
        await end(rig, first)
    assert await status_of(rig, first) is status
    for when, batch_id in dependents.items():
        if when in satisfies:
            assert (await status_of(rig, batch_id), await waits_for(rig, batch_id)) == (PENDING, set())
        else:
            await assert_cancelled(rig, batch_id, str(first))
            assert await rig.event_texts(batch_id) == [
                *("batch.created", "0 job.canceled", "1 job.canceled", "batch.canceled"),
            ]
    assert set(await rig.run_all()) == {dependents[when] for when in satisfies}


async def end_by_release(rig: StoreRig, batch_id: UUID) -> None:
    assert await rig.release(await rig.take(), FAULT, failures_max=1)


async def end_by_reclaim(rig: StoreRig, batch_id: UUID) -> None:
    grant = await rig.take()
    await rig.commands.cancel(batch_id, project="a")
    await rig.lapse(grant)
    await rig.devices.pause("EMU", "so that this take only reclaims")
    assert await rig.grants() == []
    await rig.devices.resume("EMU")


async def end_by_report(rig: StoreRig, batch_id: UUID) -> None:
    await rig.commands.report(batch_id, 0, status=JobStatus.ERROR, fault=FAULT, project="a")


async def end_by_end_batch(rig: StoreRig, batch_id: UUID) -> None:
    await rig.commands.end(batch_id, ERROR, fault=FAULT, project="a")


async def end_by_cancel_jobs(rig: StoreRig, batch_id: UUID) -> None:
    await rig.commands.cancel_jobs(batch_id, [0], project="a")


async def end_by_sweep(rig: StoreRig, batch_id: UUID) -> None:
    grant = await rig.take()
    await rig.commands.cancel(batch_id, project="a")
    await rig.lapse(grant)
    await rig.tickets.sweep()


async def end_by_resume(rig: StoreRig, batch_id: UUID) -> None:
    await rig.commands.pause(batch_id, project="a")
    await rig.commands.cancel_jobs(batch_id, [0], project="a")


async def end_by_close(rig: StoreRig, batch_id: UUID) -> None:
    await rig.commands.close(batch_id, project="a")


WAYS = [
    *(end_by_release, end_by_reclaim, end_by_report, end_by_end_batch, end_by_cancel_jobs, end_by_sweep),
    *(end_by_resume, end_by_close),
]


@pytest.mark.parametrize("end", WAYS)
async def test_any_call_that_ends_a_batch_releases_its_dependents(rig: StoreRig, end: Any) -> None:
    is_open = end is end_by_close
    first = await rig.submit(0 if is_open else 1, open=is_open)
    second = await submit_after(rig, Dependency(first, When.ENDED))
    await end(rig, first)
    assert (await status_of(rig, first)).terminal
    assert await rig.run_all() == [second]


# ------------------------------------------------------------------------------------------ a batch that waits


async def test_a_waiting_batch_takes_jobs_and_tags_and_is_closed(rig: StoreRig) -> None:
    first = await rig.submit()
    second = await submit_after(rig, first, open=True)
    await rig.commands.add_jobs(second, [JobSpec()] * 2, project="a")
    await rig.commands.set_tags(second, ["late"], project="a")
    await rig.commands.close(second, project="a")
    assert await tickets(rig) == {str(first)}
    assert await rig.run_all() == [first, second]
    batch = await rig.batch(second)
    assert (batch.status, batch.jobs, batch.doc.tags) == (DONE, 3, ("late",))


async def test_an_open_batch_does_not_idle_while_it_waits(rig: StoreRig) -> None:
    first = await rig.submit()
    second = await submit_after(rig, first, jobs=0, open=True)
    await rig.commands.add_jobs(second, [JobSpec()], project="a")
    await rig.commands.cancel_jobs(second, [0], project="a")
    assert await rig.members(Key.IDLE) == set()
    await rig.run(await rig.take())
    assert await rig.members(Key.IDLE) == {str(second)}
    await rig.commands.close(second, project="a")


async def test_a_closed_batch_without_jobs_ends_when_it_is_released(rig: StoreRig) -> None:
    first = await rig.submit()
    second = await submit_after(rig, first, jobs=0, open=True)
    third = await submit_after(rig, second)
    await rig.commands.close(second, project="a")
    assert await status_of(rig, second) is PENDING
    assert await rig.run_all() == [first, third]
    assert await status_of(rig, second) is DONE
    assert await rig.event_texts(second) == ["batch.created", "batch.done"]


async def test_a_batch_whose_jobs_are_all_cancelled_ends_when_it_is_released(rig: StoreRig) -> None:
    first = await rig.submit()
    second = await submit_after(rig, first, jobs=2)
    answers = await rig.commands.cancel_jobs(second, [0, 1], project="a")
    assert answers == [CancelAnswer.CANCELED] * 2
    assert await status_of(rig, second) is PENDING
    assert await rig.run_all() == [first]
    assert await status_of(rig, second) is DONE


async def test_a_waiting_batch_is_cancelled_at_once(rig: StoreRig) -> None:
    first = await rig.submit()
    second = await submit_after(rig, first, jobs=2)
    third = await submit_after(rig, second)
    await rig.commands.cancel(second, project="a")
    batch = await rig.batch(second)
    assert (batch.status, batch.fault, batch.waits_for) == (CANCELED, None, ())
    await assert_cancelled(rig, third, f"batch {second} ended in CANCELED instead of DONE")
    assert await rig.members(Key.DEPENDENTS, first) == set()
    assert await rig.run_all() == [first]


async def test_a_waiting_batch_can_be_ended(rig: StoreRig) -> None:
    first = await rig.submit()
    second = await submit_after(rig, first)
    third = await submit_after(rig, first, jobs=0, open=True)
    await rig.commands.end(second, ERROR, fault=FAULT, project="a")
    await rig.commands.end(third, TIMED_OUT, project="a")
    assert (await status_of(rig, second), await status_of(rig, third)) == (ERROR, TIMED_OUT)
    assert await rig.members(Key.DEPENDENTS, first) == set()
    assert await rig.run_all() == [first]


async def test_a_paused_batch_stays_paused_when_it_is_released(rig: StoreRig) -> None:
    first = await rig.submit()
    second = await submit_after(rig, first)
    await rig.commands.pause(second, project="a")
    assert await rig.run_all() == [first]
    assert (await status_of(rig, second), await waits_for(rig, second)) == (PAUSED, set())
    await rig.commands.resume(second, project="a")
    assert await rig.run_all() == [second]


async def test_a_resumed_batch_continues_to_wait(rig: StoreRig) -> None:
    first = await rig.submit()
    second = await submit_after(rig, first)
    await rig.commands.pause(second, project="a")
    await rig.commands.resume(second, project="a")
    assert await tickets(rig) == {str(first)}
    assert await rig.run_all() == [first, second]


async def test_new_lanes_give_a_waiting_batch_no_ticket(rig: StoreRig) -> None:
    first = await rig.submit()
    second = await submit_after(rig, first, jobs=9)
    grant = await rig.take()
    await rig.announce(lanes=8)
    assert await rig.grants(8) == []
    await rig.tickets.sweep()
    assert await tickets(rig) == {str(first)}
    await rig.run(grant)
    assert len(await rig.grants(8)) == 8
    await rig.commands.cancel(second, project="a")
    await rig.redis.flushall()  # instead of settling the tickets


async def test_a_start_time_counts_after_the_release(rig: StoreRig) -> None:
    first = await rig.submit()
    second = await submit_after(rig, first, not_before=datetime.now(UTC) + timedelta(hours=1))
    assert await rig.run_all() == [first]
    assert await rig.members(Key.DUE, "EMU") == {f"{second}:0"}
    await rig.make_due(second)
    assert await rig.run_all() == [second]


async def test_the_queue_timeout_counts_from_the_release(rig: StoreRig) -> None:
    first = await rig.submit()
    rules = replace(after(first), queue_timeout_s=3600.0)
    second = await rig.submit(rules=rules)
    assert (await rig.batch(second)).expires is None
    assert await rig.members(Key.DEADLINES) == set()
    await rig.run(await rig.take())
    assert (await rig.batch(second)).expires is not None
    assert await rig.members(Key.DEADLINES) == {str(second)}
    third = await rig.submit(rules=rules)
    assert (await rig.batch(third)).expires is not None
    await rig.run_all()


async def test_a_batch_may_be_late_while_it_waits(rig: StoreRig) -> None:
    first = await rig.submit()
    rules = replace(after(first), schedule_threshold_s=60.0, queue_timeout_s=3600.0)
    second = await rig.submit(rules=rules, not_before=datetime.now(UTC) - timedelta(hours=1))
    await rig.sweep_all()
    assert await rig.event_texts(second) == ["batch.created", "batch.late"]
    assert await waits_for(rig, second) == {first}
    assert await rig.run_all() == [first, second]


async def test_a_waiting_batch_counts_towards_the_quota_and_the_backlog(rig: StoreRig) -> None:
    first = await rig.submit()
    await submit_after(rig, first, jobs=5)
    device = await rig.reader.device("EMU")
    assert device is not None
    assert device.pending == 6
    await rig.commands.cancel(first, project="a")
    device = await rig.reader.device("EMU")
    assert device is not None
    assert device.pending == 0


async def test_a_dependent_on_another_device_rings_its_bell(rig: StoreRig) -> None:
    await rig.announce("OTHER", worker="w2")
    first = await rig.submit()
    second = await submit_after(rig, first, device="OTHER")
    assert await rig.bell("OTHER") == 0
    await rig.run(await rig.take())
    assert await rig.bell("OTHER") == 1
    assert await rig.run_all(device="OTHER") == [second]


async def test_a_discarded_batch_leaves_those_that_it_waited_for(rig: StoreRig) -> None:
    first = await rig.submit()
    second = await submit_after(rig, first)
    await rig.commands.discard(second)
    assert await rig.members(Key.DEPENDENTS, first) == set()
    assert await rig.run_all() == [first]


async def test_the_dependents_of_a_discarded_batch_are_cancelled(rig: StoreRig) -> None:
    first = await rig.submit()
    second, third = await submit_after(rig, Dependency(first, When.ENDED)), await submit_after(rig, first)
    await rig.commands.discard(first)
    await rig.sweep_all()
    for batch_id in (second, third):
        await assert_cancelled(rig, batch_id, f"batch {first} was deleted")


async def test_a_batch_that_is_discarded_after_its_end_has_ended_for_its_dependents(rig: StoreRig) -> None:
    first = await rig.submit()
    dependents = [await submit_after(rig, first) for _ in range(60)]
    await rig.run(await rig.take())
    await rig.commands.discard(first)
    await rig.sweep_all()
    assert await rig.run_all() == dependents


async def test_a_dependent_that_cannot_be_read_is_retried_by_the_sweep(rig: StoreRig) -> None:
    first = await rig.submit()
    second, third = await submit_after(rig, first), await submit_after(rig, first)
    await rig.redis.hset(rig.keys(Key.BATCH, second), "v", "999")
    assert await rig.run_all() == [first, third]
    assert not (await rig.tickets.sweep()).more
    await rig.redis.hset(rig.keys(Key.BATCH, second), "v", "2")
    await rig.redis.zadd(rig.keys(Key.RELEASES), {f"{first}:D": 1}, xx=True)
    await rig.sweep_all()
    assert await rig.run_all() == [second]


async def test_a_forgotten_batch_has_released_its_dependents_or_will(rig: StoreRig) -> None:
    """The end of a batch is kept until all its dependents were handled, even if the batch is forgotten before."""
    first = await rig.submit()
    dependents = [await submit_after(rig, first) for _ in range(60)]
    await rig.run(await rig.take())
    assert await rig.forget(first)
    await rig.sweep_all()
    assert await rig.run_all() == dependents


# ------------------------------------------------------------------------------------------------------ submit


async def test_a_batch_cannot_depend_on_itself(rig: StoreRig) -> None:
    own = new_batch_id()
    with pytest.raises(InvalidInput, match=r"depends_on\[1\]: is the id of the batch itself"):
        await submit_after(rig, await rig.submit(), own, batch_id=own)
    await rig.run_all()


async def test_a_batch_that_does_not_exist_or_belongs_to_others_is_refused(rig: StoreRig) -> None:
    mine, theirs, none = await rig.submit(), await rig.submit(project="b"), uuid4()
    before = await rig.snapshot()
    for position, unknown in ((0, theirs), (1, none)):
        parents = [unknown, mine] if position == 0 else [mine, unknown]
        text = rf"depends_on\[{position}\]: there is no batch {unknown} in this project; name one"
        with pytest.raises(InvalidInput, match=text):
            await submit_after(rig, *parents)
    assert await rig.snapshot() == before
    await rig.run_all()


async def test_a_batch_of_an_unknown_version_is_refused(rig: StoreRig) -> None:
    first = await rig.submit()
    await rig.redis.hset(rig.keys(Key.BATCH, first), "v", "999")
    with pytest.raises(InvalidInput, match="there is no batch"):
        await submit_after(rig, first)
    await rig.redis.hset(rig.keys(Key.BATCH, first), "v", "2")
    await rig.run_all()


async def test_a_repeated_submit_returns_the_first_batch_after_the_other_one_ended(rig: StoreRig) -> None:
    first = await rig.submit()
    options: dict[str, Any] = {"rules": after(first), "idempotency_key": "k"}
    second = await rig.submit(**options)
    await rig.commands.cancel(first, project="a")
    await assert_cancelled(rig, second)
    assert await rig.forget(first)
    assert await rig.submit(**options) == second
    with pytest.raises(Conflict, match="idempotency key"):
        await rig.submit(rules=after(Dependency(second, When.ENDED)), idempotency_key="k")


async def test_the_ledger_knows_the_end_of_batches_that_redis_forgot(rig: StoreRig) -> None:
    first = await rig.submit()
    await rig.run_all()
    assert await rig.forget(first)

    async def find_ends(project: str, batch_ids: object) -> dict[UUID, str]:
        assert (project, list(batch_ids)) == ("a", [first])  # type: ignore[call-overload]
        return {first: "DF"}

    async def find_live(project: str, batch_ids: object) -> dict[UUID, str]:
        return {first: ""}

    async def find_none(project: str, batch_ids: object) -> dict[UUID, str]:
        return {}

    def submission(when: When) -> Submission:
        return Submission("{}", [JobSpec(runs=1)], "EMU", rules=after(Dependency(first, when)))

    admission = rig.store.admission
    for when in When:
        second = await admission.submit(submission(when), project="a", find_ends=find_ends)
        assert await rig.run_all() == [second]
    with pytest.raises(Unavailable, match="is being restored"):
        await admission.submit(submission(When.DONE), project="a", find_ends=find_live)
    for find in (find_none, None):
        with pytest.raises(InvalidInput, match=r"depends_on\[0\]: there is no batch"):
            await admission.submit(submission(When.DONE), project="a", find_ends=find)


async def test_a_submit_and_the_end_of_the_other_batch_are_atomic(rig: StoreRig) -> None:
    """Whichever comes first, the dependent runs."""
    firsts = [await rig.submit() for _ in range(20)]
    grants = [await rig.take() for _ in firsts]
    seconds, _ = await asyncio.gather(
        asyncio.gather(*(submit_after(rig, first) for first in firsts)),
        asyncio.gather(*(rig.run(grant) for grant in grants)),
    )
    assert set(await rig.run_all()) == set(seconds)


# -------------------------------------------------------------------------------------------------- the gate


async def test_nothing_is_released_while_the_gate_is_shut(rig: StoreRig) -> None:
    await rig.recovery.mark_ledger()
    await rig.start_again()
    first = await rig.submit()
    second, third = await submit_after(rig, first), await submit_after(rig, Dependency(first, When.ENDED))
    await rig.commands.cancel(first, project="a")
    assert not (await rig.tickets.sweep()).more
    for batch_id in (second, third):
        assert (await status_of(rig, batch_id), await waits_for(rig, batch_id)) == (PENDING, {first})
    await rig.recovery.open_gate()
    await rig.sweep_all()
    await assert_cancelled(rig, second)
    assert await rig.run_all() == [third]


async def test_a_batch_that_redis_may_have_lost_is_not_refused_but_unavailable(rig: StoreRig) -> None:
    await rig.recovery.mark_ledger()
    await rig.start_again()
    with pytest.raises(Unavailable):
        await submit_after(rig, uuid4())
    await rig.recovery.open_gate()
    with pytest.raises(InvalidInput):
        await submit_after(rig, uuid4())


# ----------------------------------------------------------------------------------- a Redis that lost its last writes


async def restore(rig: StoreRig, *ledger: Recorded, ended: dict[UUID, str] | None = None) -> None:
    """Restore batches as the recorder does. ended: those that they wait for that ended in the ledger."""
    for batch, jobs in ledger:
        assert await rig.recovery.restore(replace(batch, ended=ended or {}), jobs) == 0
    await rig.recovery.open_gate()
    await rig.sweep_all()


async def test_a_lost_dependent_waits_again(rig: StoreRig) -> None:
    first = await rig.submit()
    saved = await checkpoint(rig.store)
    second = await submit_after(rig, first, jobs=2)
    ledger = await recorded(rig.store, second)
    await fall_back(rig.store, saved)
    await restore(rig, ledger)
    assert await waits_for(rig, second) == {first}
    assert await tickets(rig) == {str(first)}
    assert await rig.run_all() == [first, second]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]], ids=["parents_first", "dependents_first"])
async def test_a_chain_that_redis_lost_completely_waits_again(rig: StoreRig, order: list[int]) -> None:
    saved = await checkpoint(rig.store)
    first = await rig.submit()
    second = await submit_after(rig, first)
    third = await submit_after(rig, first, second, jobs=0, open=True)
    ledger = [await recorded(rig.store, batch_id) for batch_id in (first, second, third)]
    await fall_back(rig.store, saved)
    await restore(rig, *(ledger[at] for at in order))
    assert await waits_for(rig, third) == {first, second}
    assert await tickets(rig) == {str(first)}
    assert await rig.members(Key.IDLE) == set()
    assert await rig.run_all() == [first, second]
    assert await rig.members(Key.IDLE) == {str(third)}
    await rig.commands.close(third, project="a")


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]], ids=["parents_first", "dependents_first"])
async def test_a_lost_end_is_restored_with_its_effect(rig: StoreRig, order: list[int]) -> None:
    """Redis lost the end of a batch, the release of one dependent and the cancel of another."""
    first = await rig.submit()
    second, third = await submit_after(rig, Dependency(first, When.ENDED)), await submit_after(rig, first)
    saved = await checkpoint(rig.store)
    await rig.commands.cancel(first, project="a")
    await rig.run(await rig.take())
    ledger = [await recorded(rig.store, batch_id) for batch_id in (first, second, third)]
    await fall_back(rig.store, saved)
    await restore(rig, *(ledger[at] for at in order))
    await assert_cancelled(rig, third)
    assert (await status_of(rig, first), await status_of(rig, second)) == (CANCELED, DONE)
    assert await rig.run_all() == []


async def test_a_restored_end_releases_those_that_still_waited(rig: StoreRig) -> None:
    """The ledger recorded the end of a batch, but nothing of its dependents since."""
    first = await rig.submit()
    second, third = await submit_after(rig, Dependency(first, When.ENDED)), await submit_after(rig, first)
    saved = await checkpoint(rig.store)
    await rig.commands.cancel(first, project="a")
    ledger = await recorded(rig.store, first)
    await fall_back(rig.store, saved)
    await restore(rig, ledger)
    await assert_cancelled(rig, third)
    assert await rig.run_all() == [second]


@pytest.mark.parametrize(("ended", "runs"), [("D", True), ("DF", True), ("C", False), (None, False)])
async def test_a_restored_dependent_follows_an_end_that_only_the_ledger_has(
    rig: StoreRig, ended: str | None, runs: bool
) -> None:
    """Redis has lost everything, and a batch that ended long ago is not restored; None: it was deleted."""
    saved = await checkpoint(rig.store)
    first = await rig.submit()
    second = await submit_after(rig, first)
    ledger = await recorded(rig.store, second)
    await fall_back(rig.store, saved)
    await restore(rig, ledger, ended={} if ended is None else {first: ended})
    if runs:
        assert await rig.run_all() == [second]
    else:
        await assert_cancelled(rig, second, str(first))


async def test_a_dependent_that_was_released_since_is_not_made_to_wait_again(rig: StoreRig) -> None:
    """Redis has the release, which the ledger has not recorded yet."""
    first, other = await rig.submit(), await rig.submit()
    second = await submit_after(rig, first, other)
    ledger = await recorded(rig.store, second)
    await rig.run(await rig.take())
    await restore(rig, ledger)
    assert await waits_for(rig, second) == {other}
    assert await finish_all(rig) == [other, second]
