"""Replaced tags, new priorities and dependencies: the ledger follows them, and lists find batches by them."""

from __future__ import annotations

from uuid import UUID

from tests.support.ledger_rig import OPERATOR, LedgerRig

from tweezer.ledger.queries.filters import BatchFilter, JobFilter
from tweezer.ledger.recorder.writing import replace_tags
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import BatchDoc, JobSpec, Priority
from tweezer.model.rules import Dependency, Rules


def tagged(bench: LedgerRig, tag: str) -> tuple[list[UUID], int]:
    """Return the batches that lists find by a tag, and the number of jobs."""
    found = bench.queries.batches(OPERATOR, BatchFilter(tags_any=(tag,)))
    return [batch.id for batch in found.rows], bench.queries.jobs(OPERATOR, JobFilter(tags_any=(tag,))).total


async def test_the_ledger_follows_when_tags_are_replaced(bench: LedgerRig) -> None:
    batch_id, other = await bench.rig.submit(3), await bench.rig.submit(1)
    await bench.rig.commands.set_tags(batch_id, ["a", "b"], project="a")
    await bench.record()
    await bench.agree(batch_id)
    await bench.rig.commands.set_tags(batch_id, ["b", "c"], project="a")
    await bench.rig.commands.set_tags(other, ["c"], project="a")
    await bench.record()
    await bench.agree(batch_id)
    assert tagged(bench, "a") == ([], 0)
    assert tagged(bench, "b") == ([batch_id], 3)
    assert sorted(tagged(bench, "c")[0]) == sorted([batch_id, other])


async def test_tags_of_ended_batches_are_recorded_and_kept(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit(1)
    await bench.rig.run_all()
    await bench.record()
    await bench.rig.commands.set_tags(batch_id, ["late"], project="a")
    await bench.record()
    assert tagged(bench, "late") == ([batch_id], 1)
    assert await bench.rig.forget(batch_id)
    assert await bench.database.run_write(replace_tags, batch_id, ["later"])
    assert (tagged(bench, "late"), tagged(bench, "later")) == (([], 0), ([batch_id], 1))
    batch = bench.batch(batch_id)
    assert batch is not None
    assert (batch.doc.tags, batch.doc.sequence) == (("later",), "{}")


async def test_a_recorder_that_starts_over_does_not_change_tags(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit(2, open=True)
    await bench.rig.commands.set_tags(batch_id, ["a"], project="a")
    await bench.record()
    await bench.rig.commands.close(batch_id, project="a")
    bench.recorder = bench.another_recorder()
    await bench.record()
    await bench.agree(batch_id)
    assert tagged(bench, "a") == ([batch_id], 2)


async def test_a_batch_that_the_ledger_does_not_have_gets_no_tags(bench: LedgerRig) -> None:
    assert not await bench.database.run_write(replace_tags, new_batch_id(), ["a"])
    assert bench.rows("SELECT * FROM tags") == []


def ranked(bench: LedgerRig, priority: Priority) -> tuple[list[UUID], int]:
    """Return the batches that lists find by a priority, and the number of jobs."""
    found = bench.queries.batches(OPERATOR, BatchFilter(priorities=(priority,)))
    return [batch.id for batch in found.rows], bench.queries.jobs(OPERATOR, JobFilter(priorities=(priority,))).total


async def test_the_ledger_follows_when_the_priority_changes(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit(3, open=True)
    await bench.record()
    await bench.rig.commands.set_priority(batch_id, Priority.HIGH, project="a")
    await bench.rig.commands.add_jobs(batch_id, [JobSpec(runs=1)], project="a")
    await bench.record()
    await bench.agree(batch_id)
    assert ranked(bench, Priority.MEDIUM) == ([], 0)
    assert ranked(bench, Priority.HIGH) == ([batch_id], 4)


async def test_a_recorder_that_starts_over_follows_a_priority_that_it_has_not_recorded(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit(2)
    await bench.record()
    await bench.rig.commands.set_priority(batch_id, Priority.LOW, project="a")
    bench.recorder = bench.another_recorder()
    await bench.record()
    assert ranked(bench, Priority.LOW) == ([batch_id], 2)


async def test_lists_find_dependents_of_a_batch(bench: LedgerRig) -> None:
    parent = await bench.rig.submit(1)
    doc = BatchDoc("EMU", "{}", rules=Rules(depends_on=(Dependency(parent),)))
    child = await bench.rig.commands.submit(new_batch_id(), "a", doc, [JobSpec(runs=1)])
    await bench.record()
    found = bench.queries.batches(OPERATOR, BatchFilter(depends_on=(parent,)))
    assert [batch.id for batch in found.rows] == [child]
    assert bench.queries.batches(OPERATOR, BatchFilter(depends_on=(child,))).rows == []
