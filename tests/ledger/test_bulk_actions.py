"""Acting on all batches that match a filter: what is found, what is done, and how a call is divided into steps."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select
from tests.ledger.test_batch_lists import _forget, _recorded_long_ago
from tests.support.ledger_rig import LedgerRig
from tests.support.records import change_record, read_record

from tweezer.ledger import bulk_actions
from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.batch_reader import BatchReader
from tweezer.ledger.bulk_actions import BulkAction, BulkActions, BulkOutcome, BulkRequest
from tweezer.ledger.queries.filters import BatchFilter
from tweezer.ledger.schema import batches
from tweezer.model.errors import InvalidInput, NotFound, TweezerError, Unavailable
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import OutcomeKind
from tweezer.model.rules import Dependency, Rules
from tweezer.store.keys import Key

CALLER = Principal("key", Role.USER, frozenset({"a"}))
CANCEL, RETRY, ARCHIVE, DELETE = BulkAction
DONE, ERROR = OutcomeKind.DONE, OutcomeKind.ERROR


class Bulk:
    """Actions of a caller on a bench."""

    def __init__(self, bench: LedgerRig) -> None:
        self.bench = bench
        self.rig = bench.rig
        self.reader = BatchReader(bench.rig.store, bench.queries)

    def actions(self, caller: Principal = CALLER) -> BulkActions:
        return BulkActions(self.rig.store, self.reader, self.bench.database, caller)

    async def step(
        self, action: BulkAction, caller: Principal = CALLER, *, after: str | None = "", **options: Any
    ) -> BulkOutcome:
        """Make one step. The options are those of the request, and criteria of the filter."""
        fields = {name: options.pop(name) for name in ("every", "dry_run", "by", "job_statuses") if name in options}
        request = BulkRequest(action=action, wanted=BatchFilter(**options), after=after or "", **fields)
        return await self.actions(caller).run(request)

    async def submit(self, *tags: str, **options: Any) -> UUID:
        return await self.rig.submit(
            options.pop("jobs", 1), about={"tags": tags, **options.pop("about", {})}, **options
        )

    async def ended(self, *outcomes: OutcomeKind, tags: tuple[str, ...] = (), **options: Any) -> UUID:
        """Submit a batch whose jobs end with these outcomes, while no other batch waits."""
        batch_id = await self.submit(*tags, jobs=len(outcomes), **options)
        grant = await self.rig.take()
        jobs = grant.jobs
        for outcome in outcomes:
            jobs = (await self.rig.settle(grant, {jobs[0].index: outcome})).jobs
        assert (await self.rig.batch(batch_id)).status.terminal
        return batch_id

    async def status(self, batch_id: UUID) -> BatchStatus:
        return (await self.reader.batch(CALLER, batch_id)).status

    def archived(self) -> set[UUID]:
        with self.bench.database.read() as connection:
            return set(connection.scalars(select(batches.c.id).where(batches.c.archived_ms.is_not(None))))


@pytest.fixture
def bulk(bench: LedgerRig) -> Bulk:
    return Bulk(bench)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_actions, "STEP_MAX", 2)


# --- what is found


async def test_matches_are_found_in_redis_and_in_the_ledger(bulk: Bulk) -> None:
    forgotten = await bulk.ended(ERROR, tags=("x",))
    await _forget(bulk.bench, forgotten)
    recorded = await bulk.ended(ERROR, tags=("x",))
    await _recorded_long_ago(bulk.bench)
    fresh = await bulk.ended(ERROR, tags=("x",))
    await bulk.ended(ERROR, tags=("y",))
    outcome = await bulk.step(RETRY, tags_all=("x",), dry_run=True)
    assert (outcome.count, outcome.ids, outcome.next) == (3, [fresh, recorded, forgotten], None)


async def test_the_current_state_decides_rather_than_the_recorded_one(bulk: Bulk) -> None:
    batch_id = await bulk.submit("x")
    await _recorded_long_ago(bulk.bench)
    await bulk.rig.run_all()  # the ledger does not have this end yet
    assert (await bulk.step(CANCEL, tags_all=("x",))).count == 0
    assert (await bulk.step(DELETE, tags_all=("x",), dry_run=True)).ids == [batch_id]


async def test_only_batches_of_the_callers_projects_are_found(bulk: Bulk) -> None:
    ours, theirs = await bulk.submit("x"), await bulk.submit("x", project="b")
    assert (await bulk.step(CANCEL, tags_all=("x",), projects=("b",))).count == 0
    assert (await bulk.step(CANCEL, every=True)).ids == [ours]
    assert (await bulk.rig.batch(theirs)).status is BatchStatus.PENDING
    operator = Principal("key", Role.OPERATOR)
    await bulk.bench.record()
    assert (await bulk.step(CANCEL, operator, tags_all=("x",))).ids == [theirs]


@pytest.mark.parametrize("action", list(BulkAction))
async def test_a_call_without_a_filter_must_ask_for_every_batch(bulk: Bulk, action: BulkAction) -> None:
    for projects in ((), ("a",)):
        with pytest.raises(InvalidInput, match=r"^all: is needed to select every batch; add a filter"):
            await bulk.step(action, projects=projects)
    assert (await bulk.step(action, every=True)).count == 0


@pytest.mark.parametrize(
    ("action", "status", "able"),
    [
        (CANCEL, "DONE", "PENDING, RUNNING, PAUSED"),
        (RETRY, "PENDING", "DONE, ERROR"),
        (ARCHIVE, "RUNNING", "DONE, ERROR"),
        (DELETE, "PAUSED", "DONE, ERROR"),
    ],
)
async def test_a_status_that_excludes_the_action_is_rejected(
    bulk: Bulk, action: BulkAction, status: str, able: str
) -> None:
    with pytest.raises(InvalidInput, match=rf"^status: {action} cannot act on batches that are {status}; use {able}"):
        await bulk.step(action, statuses=(BatchStatus(status),))


async def test_a_cursor_that_no_step_returned_is_rejected(bulk: Bulk) -> None:
    for cursor in ("x", f"1.{new_batch_id()}", "1", "9" * 30):
        with pytest.raises(InvalidInput, match=r"^after: is not a valid cursor"):
            await bulk.step(CANCEL, every=True, after=cursor)


async def test_a_dry_run_changes_nothing_and_shows_at_most_a_thousand_ids(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_actions, "SHOWN_MAX", 2)
    batches = [await bulk.submit("x") for _ in range(3)]
    outcome = await bulk.step(CANCEL, tags_all=("x",), dry_run=True)
    assert (outcome.count, outcome.ids) == (3, [batches[2], batches[1]])
    assert {await bulk.status(batch_id) for batch_id in batches} == {BatchStatus.PENDING}


# --- steps


@pytest.mark.usefixtures("small_steps")
async def test_each_match_is_handled_once_whether_or_not_it_still_matches(bulk: Bulk) -> None:
    """A running batch still matches after its cancel."""
    batches = [await bulk.submit("x") for _ in range(5)]
    await bulk.rig.take()
    await _recorded_long_ago(bulk.bench)
    batches += [await bulk.submit("x") for _ in range(2)]
    steps = [await bulk.step(CANCEL, tags_all=("x",))]
    while steps[-1].next is not None:
        steps.append(await bulk.step(CANCEL, tags_all=("x",), after=steps[-1].next))
    assert [step.count for step in steps] == [2, 2, 2, 1]
    assert [batch_id for step in steps for batch_id in step.ids] == batches[::-1]


@pytest.mark.usefixtures("small_steps")
async def test_batches_created_in_the_same_millisecond_are_not_skipped(bulk: Bulk) -> None:
    batches = [await bulk.submit("x") for _ in range(7)]
    created = int((await read_record(bulk.rig.store, batches[0]))["created"])
    for batch_id in batches:
        await change_record(bulk.rig.store, batch_id, created=created)
        await bulk.rig.redis.zadd(bulk.rig.keys(Key.BATCHES, "a"), {str(batch_id): created // 1000})
    found: list[UUID] = []
    after: str | None = ""
    while after is not None:
        step = await bulk.step(CANCEL, tags_all=("x",), after=after)
        found, after = found + step.ids, step.next
    assert sorted(found) == sorted(batches)


@pytest.mark.usefixtures("small_steps")
async def test_batches_submitted_after_the_first_step_began_are_left_alone(bulk: Bulk) -> None:
    batches = [await bulk.submit("x") for _ in range(3)]
    first = await bulk.step(CANCEL, tags_all=("x",))
    late = await bulk.submit("x")
    second = await bulk.step(CANCEL, tags_all=("x",), after=first.next)
    assert first.ids + second.ids == batches[::-1]
    assert second.next is None
    assert await bulk.status(late) is BatchStatus.PENDING
    confirmed = await bulk.step(CANCEL, tags_all=("x",), created_to=first.until)
    assert confirmed.count == 0
    assert await bulk.status(late) is BatchStatus.PENDING


async def test_a_step_that_takes_too_long_reports_what_it_did_and_where_to_continue(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [await bulk.submit("x") for _ in range(4)]
    monkeypatch.setattr(bulk_actions, "_STEP_S", -1.0)
    first = await bulk.step(CANCEL, tags_all=("x",))
    assert first.ids == [batches[3]]
    second = await bulk.step(CANCEL, tags_all=("x",), after=first.next)
    assert second.ids == [batches[2]]
    monkeypatch.setattr(bulk_actions, "_SEARCH_S", -1.0)
    third = await bulk.step(CANCEL, tags_all=("x",), after=second.next)
    assert third.ids == [batches[1]]
    fourth = await bulk.step(CANCEL, tags_all=("x",), after=third.next)
    assert (fourth.ids, fourth.next) == ([batches[0]], None)


async def test_a_step_that_is_cut_lists_a_kept_batch_only_once(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    old = await bulk.ended(DONE, tags=("x",))
    live_old = await bulk.submit("x")
    new = await bulk.submit("x")
    await bulk.rig.commands.cancel(new, project="a")
    live_new = await bulk.submit("x")
    await bulk.bench.record()
    monkeypatch.setattr(bulk_actions, "_STEP_S", -1.0)
    monkeypatch.setattr(bulk_actions._Delete, "at_once", 1)
    first = await bulk.step(DELETE, tags_all=("x",))
    assert (first.ids, first.live) == ([new], [live_new])
    second = await bulk.step(DELETE, tags_all=("x",), after=first.next)
    assert (second.ids, second.live, second.next) == ([old], [live_old], None)


async def test_an_outage_ends_a_step_early_and_is_raised_if_nothing_was_done(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [await bulk.submit("x") for _ in range(3)]
    cancel, calls = bulk.rig.commands.cancel, 0

    async def failing(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise Unavailable("Redis is away")
        await cancel(*arguments, **options)

    monkeypatch.setattr(bulk.rig.commands, "cancel", failing)
    first = await bulk.step(CANCEL, tags_all=("x",))
    assert first.ids == [batches[2]]
    with pytest.raises(Unavailable):
        await bulk.step(CANCEL, tags_all=("x",), after=first.next)
    monkeypatch.undo()
    assert (await bulk.step(CANCEL, tags_all=("x",), after=first.next)).ids == [batches[1], batches[0]]


# --- cancel


async def test_a_cancel_records_who_asked_and_leaves_ended_batches_alone(bulk: Bulk) -> None:
    done = await bulk.ended(DONE, tags=("x",))
    waiting = await bulk.submit("x")
    outcome = await bulk.step(CANCEL, tags_all=("x",), by="alice")
    assert (outcome.ids, outcome.already, outcome.failed) == ([waiting], [], {})
    assert (await bulk.rig.batch(waiting)).cancels[0].by == "alice"
    assert await bulk.status(done) is BatchStatus.DONE
    assert (await bulk.step(CANCEL, tags_all=("x",))).count == 0


async def test_a_batch_that_ends_during_the_call_is_reported(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = await bulk.submit("x"), await bulk.submit("x")
    cancel = bulk.rig.commands.cancel

    async def racing(batch_id: UUID, **options: Any) -> None:
        if batch_id == first:
            await cancel(batch_id, project="a")  # someone else does it just before
        await cancel(batch_id, **options)

    monkeypatch.setattr(bulk.rig.commands, "cancel", racing)
    outcome = await bulk.step(CANCEL, tags_all=("x",))
    assert (outcome.ids, outcome.already) == ([last], [first])


async def test_a_batch_that_redis_has_lost_is_reported_as_a_failure(bulk: Bulk) -> None:
    lost = await bulk.submit("x")
    await _recorded_long_ago(bulk.bench)
    await bulk.rig.redis.delete(bulk.rig.keys(Key.BATCH, lost))
    bulk.rig.checks_usage = False
    outcome = await bulk.step(CANCEL, tags_all=("x",))
    assert outcome.count == 0
    assert "is being restored; try again" in outcome.failed[lost]


# --- retry


async def test_a_retry_repeats_the_jobs_that_did_not_succeed(bulk: Bulk) -> None:
    failed = await bulk.ended(DONE, ERROR, OutcomeKind.CANCELED, tags=("x",), about={"name": "scan"})
    await bulk.ended(DONE, tags=("x",))
    running = await bulk.submit("x")
    outcome = await bulk.step(RETRY, tags_all=("x",))
    assert (outcome.count, outcome.ids, outcome.live) == (1, [failed], [])
    child = await bulk.rig.batch(outcome.retries[failed])
    assert (child.doc.parent_id, child.doc.name, child.doc.tags, child.jobs) == (str(failed), "scan", ("x",), 2)
    jobs = await bulk.rig.reader.jobs(child, range(2))
    assert [job.spec.parent_id for job in jobs] == [str(job_id(failed, 1)), str(job_id(failed, 2))]
    assert (await bulk.rig.batch(failed)).children == (child.id,)
    assert (await bulk.rig.batch(running)).children == ()


async def test_the_statuses_of_the_jobs_to_retry_can_be_chosen(bulk: Bulk) -> None:
    failed, stopped = await bulk.ended(ERROR), await bulk.ended(OutcomeKind.CANCELED)
    outcome = await bulk.step(RETRY, every=True, job_statuses=(JobStatus.CANCELED,), dry_run=True)
    assert outcome.ids == [stopped]
    outcome = await bulk.step(RETRY, every=True, job_statuses=(JobStatus.ERROR,), dry_run=True)
    assert outcome.ids == [failed]


async def test_a_repeated_retry_makes_no_second_batch(bulk: Bulk) -> None:
    failed = await bulk.ended(ERROR, tags=("x",))
    first = await bulk.step(RETRY, tags_all=("x",))
    second = await bulk.step(RETRY, tags_all=("x",))
    assert (second.count, second.already, second.retries) == (0, [failed], {})
    await bulk.rig.run_all()  # the retry succeeds
    assert (await bulk.step(RETRY, tags_all=("x",))).already == [failed]
    assert (await bulk.rig.batch(failed)).children == (first.retries[failed],)


async def test_a_retry_that_redis_knows_nothing_of_is_found_in_the_ledger(bulk: Bulk) -> None:
    failed = await bulk.ended(ERROR, tags=("x",))
    child = (await bulk.step(RETRY, tags_all=("x",))).retries[failed]
    await bulk.bench.record()
    await bulk.rig.redis.hdel(bulk.rig.keys(Key.BATCH, failed), "children")  # the process died before it noted it
    outcome = await bulk.step(RETRY, tags_all=("x",))
    assert (outcome.count, outcome.already) == (0, [failed])
    assert await bulk.status(child) is BatchStatus.PENDING


async def test_concurrent_retries_make_one_batch(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = await bulk.ended(ERROR, tags=("x",))

    async def find_none(*_: object) -> set[UUID]:
        return set()

    monkeypatch.setattr(BatchReader, "repeated", find_none)  # each call looks before the other one writes
    first, second = [await bulk.step(RETRY, tags_all=("x",)) for _ in range(2)]
    assert first.retries == second.retries
    other = await bulk.step(RETRY, tags_all=("x",), job_statuses=(JobStatus.ERROR,))
    assert other.retries == first.retries
    assert (await bulk.rig.batch(failed)).children == (first.retries[failed],)


async def test_a_failed_retry_is_retried_rather_than_its_parent(bulk: Bulk) -> None:
    failed = await bulk.ended(ERROR, tags=("x",))
    child = (await bulk.step(RETRY, tags_all=("x",))).retries[failed]
    await bulk.rig.run(await bulk.rig.take(), ERROR)
    outcome = await bulk.step(RETRY, tags_all=("x",))
    assert (outcome.ids, outcome.already) == ([child], [failed])


async def test_a_retry_keeps_the_rules_but_neither_start_nor_dependencies(bulk: Bulk) -> None:
    parent = await bulk.ended(DONE)
    rules = Rules(schedule_threshold_s=5, queue_timeout_s=60, keep_s=7, depends_on=(Dependency(parent),))
    failed = await bulk.ended(ERROR, tags=("x",), rules=rules)
    child = (await bulk.step(RETRY, tags_all=("x",))).retries[failed]
    assert (await bulk.rig.batch(child)).doc.rules == Rules(queue_timeout_s=60, keep_s=7)


async def test_a_batch_that_cannot_be_retried_does_not_stop_the_others(bulk: Bulk) -> None:
    await bulk.rig.announce("GONE")
    orphan = await bulk.submit("x", device="GONE")
    await bulk.rig.commands.cancel(orphan, project="a")
    await bulk.rig.redis.delete(bulk.rig.keys(Key.DEVICE, "GONE"))
    bulk.rig.checks_usage = False
    failed = await bulk.ended(ERROR, tags=("x",))
    outcome = await bulk.step(RETRY, tags_all=("x",))
    assert outcome.ids == [failed]
    assert "there is no device 'GONE'" in outcome.failed[orphan]


# --- archive


async def test_ended_batches_are_archived_once_and_live_ones_are_listed(bulk: Bulk) -> None:
    forgotten = await bulk.ended(DONE, tags=("x",))
    await _forget(bulk.bench, forgotten)
    ended = await bulk.ended(ERROR, tags=("x",))
    kept = await bulk.ended(DONE, tags=("y",))
    live = await bulk.submit("x")
    await bulk.bench.record()
    plan = await bulk.step(ARCHIVE, tags_all=("x",), dry_run=True)
    assert (plan.ids, plan.live, bulk.archived()) == ([ended, forgotten], [live], set())
    outcome = await bulk.step(ARCHIVE, tags_all=("x",))
    assert (outcome.ids, outcome.already, outcome.live, outcome.failed) == ([ended, forgotten], [], [live], {})
    assert bulk.archived() == {ended, forgotten}
    assert await bulk.status(ended) is BatchStatus.DONE, "the batch stays"
    again = await bulk.step(ARCHIVE, every=True)
    assert (again.ids, again.already, again.live) == ([kept], [ended, forgotten], [live])
    bulk.bench.counts_add_up()


async def test_a_batch_that_is_not_recorded_yet_is_archived_by_a_later_call(bulk: Bulk) -> None:
    batch_id = await bulk.submit("x")
    await bulk.bench.record()
    await bulk.rig.run_all()  # the ledger does not have this end yet
    outcome = await bulk.step(ARCHIVE, tags_all=("x",))
    assert (outcome.ids, list(outcome.failed)) == ([], [batch_id])
    assert "being recorded; try again" in outcome.failed[batch_id]
    await bulk.bench.record()
    assert (await bulk.step(ARCHIVE, tags_all=("x",))).ids == [batch_id]


# --- delete


async def test_ended_batches_are_deleted_and_live_ones_are_listed(bulk: Bulk) -> None:
    forgotten = await bulk.ended(DONE, tags=("x",))
    await _forget(bulk.bench, forgotten)
    ended = await bulk.ended(ERROR, tags=("x",))
    kept = await bulk.ended(DONE, tags=("y",))
    live = await bulk.submit("x")
    await bulk.bench.record()
    outcome = await bulk.step(DELETE, tags_all=("x",))
    assert (outcome.ids, outcome.live, outcome.failed) == ([ended, forgotten], [live], {})
    for batch_id in (ended, forgotten):
        with pytest.raises(NotFound):
            await bulk.reader.batch(CALLER, batch_id)
    assert {await bulk.status(batch_id) for batch_id in (kept, live)} == {BatchStatus.DONE, BatchStatus.PENDING}
    bulk.bench.counts_add_up()
    assert (await bulk.step(DELETE, tags_all=("x",))).ids == []


async def test_a_batch_that_is_not_recorded_yet_is_deleted_by_a_later_call(bulk: Bulk) -> None:
    batch_id = await bulk.ended(DONE, tags=("x",))
    outcome = await bulk.step(DELETE, tags_all=("x",))
    assert outcome.ids == []
    assert "being recorded; try again" in outcome.failed[batch_id]
    await bulk.bench.record()
    assert (await bulk.step(DELETE, tags_all=("x",))).ids == [batch_id]


async def test_archiving_and_deleting_need_a_ledger(bulk: Bulk) -> None:
    actions = BulkActions(bulk.rig.store, BatchReader(bulk.rig.store, None), None, CALLER)
    for action in (ARCHIVE, DELETE):
        with pytest.raises(TweezerError, match="ing batches needs the ledger") as raised:
            await actions.run(BulkRequest(action=action, wanted=BatchFilter(), every=True))
        assert raised.value.code == "no_ledger"
    assert (await actions.run(BulkRequest(action=CANCEL, wanted=BatchFilter(), every=True))).count == 0
