"""Dependencies in the ledger: their record, ends that Redis has forgotten, and a Redis that lost everything."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from sqlalchemy import delete, select, update
from tests.support.records import change_record

from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.batch_reader import BatchReader
from tweezer.ledger.recorder.restore import restore
from tweezer.ledger.retention import delete_batch, discard_batch
from tweezer.ledger.schema import batches, jobs, transitions
from tweezer.model.errors import InvalidInput, NotFound
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import JobSpec, OutcomeKind
from tweezer.model.rules import Dependency, Rules, When
from tweezer.store.producers import Submission
from tweezer.store.streams.feed import START

if TYPE_CHECKING:
    from tests.support.ledger_rig import LedgerRig

PENDING, DONE, CANCELED = BatchStatus.PENDING, BatchStatus.DONE, BatchStatus.CANCELED
USER = Principal("test", Role.USER, frozenset({"a"}))


def after(*parents: UUID, when: When = When.DONE) -> Rules:
    return Rules(depends_on=tuple(Dependency(parent, when) for parent in parents))


async def admit(bench: LedgerRig, *parents: UUID, when: When = When.DONE, project: str = "a") -> UUID:
    """Submit a batch like a client with a ledger."""
    submission = Submission("{}", [JobSpec(runs=1)], "EMU", rules=after(*parents, when=when))
    find_ends = BatchReader(bench.rig.store, bench.queries).find_ends
    return await bench.rig.store.admission.submit(submission, project=project, find_ends=find_ends)


async def forget(bench: LedgerRig, batch_id: UUID) -> None:
    """Let Redis forget a batch that has ended and is recorded."""
    await bench.record()
    await change_record(bench.rig.store, batch_id, ended=1)
    await bench.rig.redis.zadd(bench.rig.keys.prefix + "ended", {str(batch_id): 1})
    assert (await bench.recorder._forgetter.forget()).gone == [batch_id]


async def lose_everything(bench: LedgerRig) -> None:
    """Empty Redis, and restore it from the ledger as the recorder does; batches that ended are too old."""
    await bench.rig.redis.flushall()
    await bench.rig.announce(lanes=2)
    await restore(bench.rig.store, bench.database, after=START, ended_within_ms=0)
    await bench.rig.recovery.open_gate()
    await bench.rig.sweep_all()


async def test_what_a_batch_waits_for_is_recorded_at_every_step(bench: LedgerRig) -> None:
    rig = bench.rig
    first, second = await rig.submit(), await rig.submit()
    third = await rig.submit(rules=after(first, second))
    for waits_for in ({first, second}, {second}, set()):
        await bench.record()
        await bench.agree(third)
        recorded = bench.batch(third)
        assert recorded is not None
        assert set(recorded.waits_for) == waits_for
        if waits_for:
            await rig.run((await rig.grants())[0])
        assert recorded.doc.rules == after(first, second)
    await rig.run_all()
    await bench.record()
    await bench.agree(third)


async def test_the_reason_of_a_batch_that_a_dependency_cancelled_is_recorded(bench: LedgerRig) -> None:
    first = await bench.rig.submit()
    second = await bench.rig.submit(2, rules=after(first))
    await bench.rig.commands.cancel(first, project="a")
    await bench.record()
    await bench.agree(second)
    recorded = bench.batch(second)
    assert recorded is not None
    assert recorded.fault is not None
    assert recorded.fault.code == "dependency"
    assert [[fault.code for fault in job.faults] for job in bench.jobs(second)] == [["dependency"]] * 2


@pytest.mark.parametrize("kind", [OutcomeKind.DONE, OutcomeKind.ERROR])
async def test_a_batch_that_redis_forgot_satisfies_dependencies_by_its_recorded_end(
    bench: LedgerRig, kind: OutcomeKind
) -> None:
    rig = bench.rig
    first = await rig.submit()
    await rig.run(await rig.take(), kind)
    await forget(bench, first)
    found = {when: await admit(bench, first, when=when) for when in When}
    fails = {when: (await rig.batch(batch_id)).status for when, batch_id in found.items()}
    is_failed = kind is OutcomeKind.ERROR
    assert fails == {When.DONE: PENDING, When.ENDED: PENDING, When.ERROR: PENDING if is_failed else CANCELED}
    with pytest.raises(InvalidInput, match=r"depends_on\[0\]: there is no batch .* in this project"):
        await admit(bench, first, project="b")


async def test_a_deleted_batch_is_unknown(bench: LedgerRig) -> None:
    first, second = await bench.rig.submit(), await bench.rig.submit()
    await bench.rig.run_all()
    await bench.record()
    await delete_batch(bench.rig.store, bench.database, first, project="a")
    with pytest.raises(InvalidInput, match=rf"depends_on\[1\]: there is no batch {first}"):
        await admit(bench, second, first)


async def test_a_deleted_batch_has_decided_about_its_dependents_before(bench: LedgerRig) -> None:
    rig = bench.rig
    first = await rig.submit()
    dependents = [await rig.submit(rules=after(first)) for _ in range(60)]
    await rig.run(await rig.take())
    await bench.record()
    await delete_batch(rig.store, bench.database, first, project="a")
    await rig.sweep_all()
    assert set(await rig.run_all()) == set(dependents)


async def test_the_dependents_of_a_batch_that_operators_gave_up_are_cancelled(bench: LedgerRig) -> None:
    rig = bench.rig
    first = await rig.submit()
    second = await rig.submit(rules=after(first, when=When.ENDED))
    await bench.record()
    await discard_batch(rig.store, bench.database, first)
    await rig.sweep_all()
    batch = await rig.batch(second)
    assert (batch.status, batch.fault is not None and batch.fault.code) == (CANCELED, "dependency")
    await bench.record()
    await bench.agree(second)


async def test_a_chain_waits_again_after_redis_lost_everything(bench: LedgerRig) -> None:
    rig = bench.rig
    first = await rig.submit()
    second = await rig.submit(rules=after(first))
    third = await rig.submit(rules=after(first, second))
    await bench.record()
    await lose_everything(bench)
    assert set((await rig.batch(third)).waits_for) == {first, second}
    assert await rig.run_all() == [first, second, third]


@pytest.mark.parametrize(
    ("kind", "when", "status"),
    [
        (OutcomeKind.DONE, When.DONE, PENDING),
        (OutcomeKind.DONE, When.ERROR, CANCELED),
        (OutcomeKind.ERROR, When.ERROR, PENDING),
    ],
)
async def test_an_end_that_only_the_ledger_has_decides_after_a_loss(
    bench: LedgerRig, kind: OutcomeKind, when: When, status: BatchStatus
) -> None:
    """The ledger recorded the end of a batch, and Redis lost everything before it recorded the effect."""
    rig = bench.rig
    first = await rig.submit()
    second = await rig.submit(rules=after(first, when=when))
    await bench.record()
    grant = await rig.take()
    with bench.database.read() as connection:
        waiting = connection.execute(select(batches.c.record).where(batches.c.id == second)).scalar_one()
    await rig.run(grant, kind)
    await bench.record()
    with bench.database.write() as connection:  # as if the effect were not recorded yet
        was = {"status": "P", "ended_ms": None}
        connection.execute(update(batches).where(batches.c.id == second).values(**was, record=waiting))
        connection.execute(update(jobs).where(jobs.c.id == second).values(**was, state=None))
    await lose_everything(bench)
    with pytest.raises(NotFound):
        await rig.batch(first)
    batch = await rig.batch(second)
    assert (batch.status, batch.waits_for) == (status, ())
    assert set(await rig.statuses(second)) == {JobStatus.PENDING if status is PENDING else JobStatus.CANCELED}


async def test_a_dependent_whose_other_batch_is_nowhere_is_cancelled_after_a_loss(bench: LedgerRig) -> None:
    rig = bench.rig
    first = await rig.submit()
    second = await rig.submit(rules=after(first, when=When.ENDED))
    await bench.record()
    with bench.database.write() as connection:
        connection.execute(delete(transitions).where(transitions.c.batch == first))
        connection.execute(delete(batches).where(batches.c.id == first))
    await lose_everything(bench)
    assert (await rig.batch(second)).status is CANCELED
