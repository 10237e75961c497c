"""Tasks in the ledger: lists, counts, transitions and archiving, on both databases."""

from __future__ import annotations

from uuid import UUID

import pytest
from sqlalchemy import select, text, update
from tests.support.ledger_rig import OPERATOR, LedgerRig

from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.archive import Archived, archive, archive_due, archive_older, restore_archived
from tweezer.ledger.queries import tasks
from tweezer.ledger.queries.tasks import TaskFilter, TaskPage, TaskRecord, count_tasks, list_tasks, read_tasks
from tweezer.ledger.retention import delete_batch
from tweezer.ledger.schema import batches
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus
from tweezer.model.messages import JobSpec, OutcomeKind
from tweezer.model.rules import Rules
from tweezer.model.tasks import StateFilter, TaskState, TaskStatus

DONE, ERROR, RETRY = OutcomeKind.DONE, OutcomeKind.ERROR, OutcomeKind.RETRY
HOUR_MS = 3_600_000


def listed(
    bench: LedgerRig,
    wanted: TaskFilter | None = None,
    *,
    caller: Principal = OPERATOR,
    limit: int = 100,
    offset: int = 0,
) -> TaskPage:
    return list_tasks(bench.database, caller, wanted or TaskFilter(), limit=limit, offset=offset)


def ids(page: TaskPage) -> list[UUID]:
    return [task.batch.id for task in page.tasks]


def counts(bench: LedgerRig) -> dict[str, int]:
    found = count_tasks(bench.database, OPERATOR)
    return {status.value: count for status, count in found.items() if count}


def task(bench: LedgerRig, batch_id: UUID) -> TaskRecord:
    (found,) = read_tasks(bench.database, OPERATOR, [batch_id])
    return found


def archived(bench: LedgerRig, *batch_ids: UUID, caller: Principal = OPERATOR) -> Archived:
    with bench.database.write() as connection:
        return archive(connection, caller, batch_ids)


async def ended(bench: LedgerRig, kind: OutcomeKind = DONE, rules: Rules | None = None, **fields: object) -> UUID:
    batch_id = await bench.rig.submit(2, about=fields, rules=rules)
    await bench.rig.run(await bench.rig.take(), kind)
    await bench.record()
    return batch_id


async def test_the_amounts_of_a_batch_are_the_sums_over_its_jobs_however_they_are_recorded(bench: LedgerRig) -> None:
    rig = bench.rig
    batch_id = await rig.submit([JobSpec(runs=7), JobSpec(), JobSpec(runs_shown=50)], open=True)
    await bench.record()
    bench.amounts_add_up(batch_id)
    grant = await rig.take()
    await rig.settle(grant, {0: ERROR}, want=1)
    await bench.record()
    bench.amounts_add_up(batch_id)
    bench.recorder = bench.another_recorder(entries=1)  # every entry is a transaction
    await rig.commands.add_jobs(batch_id, [JobSpec(runs=100)] * 3, project=None)
    await rig.commands.close(batch_id, project=None)
    await rig.run_all()
    await bench.record()
    bench.amounts_add_up(batch_id)
    bench.counts_add_up()
    assert task(bench, batch_id).shots == 7 + 1 + 50 + 300


async def test_a_job_that_is_retried_adds_its_device_time_once(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit(1)
    for kind in (RETRY, DONE):
        grant = await bench.rig.take()
        await bench.record()
        await bench.rig.settle(grant, {0: kind})
        await bench.record()
    bench.amounts_add_up(batch_id)
    bench.counts_add_up()


async def test_runs_beyond_any_number_do_not_stop_the_recorder(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit([JobSpec(runs=2**63)] * 100)
    await bench.record()
    assert task(bench, batch_id).shots == 100 * 10**12


async def test_each_task_is_counted_by_its_coarse_status(bench: LedgerRig) -> None:
    rig = bench.rig
    await ended(bench)
    await ended(bench, ERROR)
    canceled = await rig.submit(1)
    await rig.commands.cancel(canceled, project=None)
    await bench.record()
    assert counts(bench) == {"success": 1, "failed": 1, "cancelled": 1}
    paused = await rig.submit(1)
    await rig.commands.pause(paused, project=None)
    await bench.record()
    assert counts(bench) == {"success": 1, "failed": 1, "cancelled": 1, "pending": 1}
    await rig.commands.resume(paused, project=None)
    await rig.take()
    await bench.record()
    assert counts(bench) == {"success": 1, "failed": 1, "cancelled": 1, "running": 1}
    bench.counts_add_up()
    for status in TaskStatus:
        page = listed(bench, TaskFilter(status=status))
        assert page.total == len(page.tasks) == counts(bench).get(status.value, 0)
        assert {task.status for task in page.tasks} <= {status}


async def test_transitions_are_the_last_two_of_the_batch(bench: LedgerRig) -> None:
    rig = bench.rig
    batch_id = await rig.submit(2)
    await bench.record()
    assert task(bench, batch_id).transitions() == (None, task(bench, batch_id).batch.created, None)
    grant = await rig.take()
    await rig.commands.pause(batch_id, project=None)
    await bench.record()
    events = [it for it in await rig.events(batch_id) if it.index is None]
    assert [it.type for it in events] == ["batch.created", "batch.running", "batch.paused"]
    previous, changed, previously = task(bench, batch_id).transitions()
    assert previous is BatchStatus.RUNNING
    assert (changed, previously) == tuple(
        event.time.replace(microsecond=event.time.microsecond // 1000 * 1000) for event in (events[2], events[1])
    )
    await rig.commands.resume(batch_id, project=None)
    await rig.run(grant)
    await bench.record()
    assert task(bench, batch_id).transitions()[0] is BatchStatus.RUNNING
    assert task(bench, batch_id).state is TaskState.FINISHED


async def test_transitions_are_right_where_a_row_was_newer_than_the_position(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit(1)
    await bench.rig.run_all()
    recorder = bench.another_recorder(entries=1)
    await recorder.resume()
    await recorder.catch_up()
    previous, changed, previously = task(bench, batch_id).transitions()
    assert previous is BatchStatus.RUNNING
    assert previously is not None
    assert previously <= changed == task(bench, batch_id).batch.ended


async def test_transitions_of_batches_from_older_versions_follow_from_their_times(bench: LedgerRig) -> None:
    batch_id = await ended(bench)
    with bench.database.write() as connection:
        connection.execute(update(batches).values(previous=None, changed_ms=None, previous_ms=None))
    found = task(bench, batch_id)
    assert found.transitions() == (BatchStatus.RUNNING, found.batch.ended, found.batch.started)


async def test_archived_tasks_leave_the_list_and_the_counts_and_come_back(bench: LedgerRig) -> None:
    first, second = await ended(bench), await ended(bench, ERROR)
    assert archived(bench, first) == Archived([first], [])
    assert archived(bench, first) == Archived([first], []), "it may be repeated"
    assert ids(listed(bench)) == [second]
    assert counts(bench) == {"failed": 1}
    page = listed(bench, TaskFilter(state=StateFilter.ARCHIVED))
    assert (ids(page), page.total) == ([first], 1)
    bench.counts_add_up()
    assert bench.batch(first) is not None, "a batch stays in the list of batches"
    with bench.database.write() as connection:
        assert restore_archived(connection, OPERATOR, first)
        assert not restore_archived(connection, OPERATOR, first)
    assert ids(listed(bench)) == [second, first]
    bench.counts_add_up()


async def test_only_the_callers_batches_that_have_ended_are_archived(bench: LedgerRig) -> None:
    stranger = Principal("s", Role.USER, frozenset({"other"}))
    over, live = await ended(bench), await bench.rig.submit(1)
    await bench.record()
    assert archived(bench, over, live, new_batch_id(), caller=stranger) == Archived([], [])
    assert archived(bench, over, live, new_batch_id()) == Archived([over], [live])
    assert await archive_older(bench.database, stranger, hours=0, ended_only=False) == Archived()
    with bench.database.write() as connection:
        assert not restore_archived(connection, stranger, over)
    bench.counts_add_up()


async def test_an_archived_batch_is_deleted_with_its_counts(bench: LedgerRig) -> None:
    first, second = await ended(bench), await ended(bench)
    archived(bench, first)
    for batch_id in (first, second):
        await delete_batch(bench.rig.store, bench.database, batch_id, project=None)
        bench.counts_add_up()


async def test_old_tasks_are_archived_in_pages_and_live_ones_only_on_request(
    bench: LedgerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tweezer.ledger.archive._PAGE", 2)
    old = [await ended(bench) for _ in range(5)]
    young, live = await ended(bench), await bench.rig.submit(1)
    await bench.record()
    with bench.database.write() as connection:
        aged = update(batches).where(batches.c.id.in_([*old, live]))
        connection.execute(aged.values(updated_ms=batches.c.updated_ms - 2 * HOUR_MS))
    found = await archive_older(bench.database, OPERATOR, hours=1, ended_only=True)
    assert (sorted(found.done), found.live) == (sorted(old), [live])
    assert ids(listed(bench)) == [live, young]
    assert await archive_older(bench.database, OPERATOR, hours=1, ended_only=False) == Archived([live], [])
    assert ids(listed(bench)) == [young]
    bench.counts_add_up()
    await bench.rig.run_all()
    await bench.record()
    bench.counts_add_up()
    with bench.database.write() as connection:
        assert restore_archived(connection, OPERATOR, live)
    assert counts(bench) == {"success": 2}
    bench.counts_add_up()


async def test_a_batch_is_archived_when_it_was_kept_for_its_time_and_a_restored_one_stays(bench: LedgerRig) -> None:
    due, later, never = (
        await ended(bench, rules=Rules(keep_s=60.0)),
        await ended(bench, rules=Rules(keep_s=7200.0)),
        await ended(bench),
    )
    live = await bench.rig.submit(1, rules=Rules(keep_s=0.0))
    await bench.record()
    assert await archive_due(bench.database) == 0
    with bench.database.write() as connection:
        connection.execute(update(batches).values(ended_ms=batches.c.ended_ms - HOUR_MS))
    assert await archive_due(bench.database) == 1
    assert set(ids(listed(bench))) == {later, never, live}
    with bench.database.write() as connection:
        restore_archived(connection, OPERATOR, due)
    assert await archive_due(bench.database) == 0
    bench.counts_add_up()


async def test_tags_and_parts_of_names_select_tasks(bench: LedgerRig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await ended(bench, name="a 50% Sweep", tags=("t1", "t2"))
    second = await ended(bench, name="sweep_b", tags=("t1", "t"))
    third = await ended(bench, tags=("t1",))
    assert ids(listed(bench, TaskFilter(tags=(("t1",), ("t2", "t"))))) == [second, first]
    assert ids(listed(bench, TaskFilter(tags=(("t2",), ("t",))))) == []
    assert ids(listed(bench, TaskFilter(tags=(("t1",),)))) == [third, second, first]
    for part, found in (("weep", [second, first]), ("Sweep", [first]), ("%", [first]), ("_", [second])):
        page = listed(bench, TaskFilter(name_contains=part))
        assert (ids(page), page.total, page.is_cut) == (found, len(found), False)
    monkeypatch.setattr(tasks, "NAMES_SCANNED", 2)
    page = listed(bench, TaskFilter(name_contains="weep"))
    assert (ids(page), page.total, page.is_cut) == ([second], 1, True)


async def test_pages_have_each_task_once_in_one_or_several_projects(bench: LedgerRig) -> None:
    made = [await bench.rig.submit(1, project=project) for project in "aabbc"]
    await bench.record()
    for caller in (
        OPERATOR,
        Principal("u", Role.USER, frozenset({"a", "b"})),
        Principal("u", Role.USER, frozenset("a")),
    ):
        mine = [it for it, project in zip(made, "aabbc", strict=True) if caller.sees(project)]
        found = [ids(listed(bench, caller=caller, limit=2, offset=offset)) for offset in (0, 2, 4)]
        assert sorted(it for page in found for it in page) == sorted(mine)
        assert listed(bench, caller=caller, limit=1).total == len(mine)
        assert listed(bench, TaskFilter(backend="NONE"), caller=caller).total == 0


async def test_each_state_and_group_selects_its_batches(bench: LedgerRig) -> None:
    done = await ended(bench)
    waiting = await bench.rig.submit(1)
    await bench.record()
    expected = {
        StateFilter.WAITING: [waiting],
        StateFilter.RUNNING: [],
        StateFilter.FINISHED: [done],
        StateFilter.COMPLETE: [done],
        StateFilter.INCOMPLETE: [waiting],
        StateFilter.CURRENT: [waiting, done],
        StateFilter.ARCHIVED: [],
    }
    assert {state: ids(listed(bench, TaskFilter(state=state))) for state in expected} == expected


async def test_the_hourly_search_for_due_batches_uses_its_index(bench: LedgerRig) -> None:
    with bench.database.read() as connection:
        if bench.database.is_sqlite:
            query = "EXPLAIN QUERY PLAN SELECT id FROM batches WHERE keep_ms IS NOT NULL AND archived_ms IS NULL"
            plan = " ".join(str(row) for row in connection.execute(text(f"{query} ORDER BY ended_ms")))
            assert "ix_batches_keep" in plan
        assert connection.execute(select(batches.c.id)).all() == []
