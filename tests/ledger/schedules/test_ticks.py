"""One batch for each tick, also if schedulers die, clocks change or Redis loses data."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from sqlalchemy import update
from tests.support.ledger_rig import LedgerRig
from tests.support.power_loss import checkpoint, fall_back
from tests.support.store_rig import DEVICE

from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import create_key, create_session, revoke_key, rotate_key
from tweezer.ledger.access.projects import project_no, set_limits
from tweezer.ledger.access.users import add_to_project, create_user, remove_from_project, set_disabled
from tweezer.ledger.retention import delete_batch, delete_project
from tweezer.ledger.schedules import runner as runner_module
from tweezer.ledger.schedules.records import (
    Creator,
    Missed,
    Overlap,
    Schedule,
    ScheduleSettings,
    ScheduleStatus,
    ScheduleTick,
    TickOutcome,
)
from tweezer.ledger.schedules.runner import ScheduleRunner
from tweezer.ledger.schedules.schedules import (
    create_schedule,
    find_schedule,
    list_schedules,
    pack_template,
    pause_schedule,
    resume_schedule,
)
from tweezer.ledger.schedules.ticks import LEASE_MS, delete_old_ticks, read_schedule_health
from tweezer.ledger.schema import keys, now_ms, schedules
from tweezer.model.errors import Conflict, InvalidInput, Unavailable
from tweezer.model.lifecycle import BatchStatus
from tweezer.model.quotas import QuotaExceeded
from tweezer.store.producers import Submission

PROJECT = "lab"
MINUTE, DAY = 60_000, 86_400_000
ALICE = Creator("alice@lab")


class Clock:
    """A clock that the test sets, in milliseconds since 1970. It is behind, so that batches of ticks start at once."""

    def __init__(self) -> None:
        self.now = now_ms() - DAY

    def __call__(self) -> int:
        return self.now


class Scheduling:
    """A ledger with schedules, and schedulers with their clocks."""

    def __init__(self, bench: LedgerRig) -> None:
        self.bench = bench
        self.clock = Clock()
        self.runner = self.another()

    def another(self, clock: Clock | None = None) -> ScheduleRunner:
        return ScheduleRunner(self.bench.rig.store, self.bench.database, clock=clock or self.clock)

    def add(self, *, creator: Creator = ALICE, device: str = DEVICE, jobs: int = 1, **given: Any) -> UUID:
        """Create a schedule, each minute by default."""
        settings = ScheduleSettings(**{"name": f"s-{uuid4()}"} | ({} if "cron" in given else {"every_s": 60}) | given)
        submission = Submission(sequence="{}", jobs=[{"runs": 10}] * jobs, device=device, tags=("nightly",))
        with self.bench.database.write() as connection:
            packed = pack_template(submission)
            identity = create_schedule(connection, None, settings, packed, project_id=PROJECT, creator=creator)
            times = {"anchor_ms": schedules.c.anchor_ms - DAY, "next_ms": schedules.c.next_ms - DAY}
            connection.execute(update(schedules).where(schedules.c.id == identity).values(times))
            return identity

    def schedule(self, identity: UUID, *, ticks: int = 100) -> Schedule:
        with self.bench.database.read() as connection:
            return find_schedule(connection, identity, None, ticks=ticks)

    def ticks(self, identity: UUID) -> list[ScheduleTick]:
        """Return the ticks, oldest first."""
        return list(reversed(self.schedule(identity).ticks))

    def to_next(self, identity: UUID, after_ms: int = 0) -> None:
        """Set the clock to the next tick, or later."""
        next_at = self.schedule(identity).next_at
        assert next_at is not None
        self.clock.now = round(next_at.timestamp() * 1000) + after_ms

    async def pass_tick(self, identity: UUID) -> ScheduleTick:
        """Let the next tick come and be handled; return it."""
        self.to_next(identity)
        await self.runner.look()
        return self.ticks(identity)[-1]

    async def batches(self) -> list[UUID]:
        """Return the batches that Redis has, oldest first."""
        return sorted([it async for it in self.bench.rig.store.snapshots.batch_ids()])

    async def notices(self) -> list[tuple[str, dict[str, Any]]]:
        entries = await self.bench.rig.store.events.read(most=1000)
        return [(it.notice.type, msgspec.json.decode(it.notice.data)) for it in entries if it.notice is not None]

    async def end_all(self) -> None:
        await self.bench.rig.run_all()
        await self.bench.record()


@pytest.fixture
async def lab(bench: LedgerRig) -> Scheduling:
    return Scheduling(bench)


# --- one batch for each tick


async def test_each_tick_submits_one_batch_that_leads_back_to_its_schedule(lab: Scheduling) -> None:
    identity = lab.add()
    assert await lab.runner.look() == 0
    tick = await lab.pass_tick(identity)
    assert tick.outcome is TickOutcome.SUBMITTED
    assert tick.batch_id is not None
    batch = await lab.bench.rig.store.reader.batch(tick.batch_id, project=PROJECT)
    written = tick.tick_at.isoformat(timespec="milliseconds").replace("+00:00", "Z").replace(".000Z", "Z")
    assert batch.doc.tags == ("nightly", f"schedule:{identity}", f"tick:{written}")
    assert batch.not_before == tick.tick_at
    await lab.end_all()
    again = await lab.pass_tick(identity)
    assert again.batch_id != tick.batch_id
    assert (again.tick_at - tick.tick_at).total_seconds() == 60


async def test_two_schedulers_submit_one_batch_for_each_tick(lab: Scheduling) -> None:
    identities = [lab.add(overlap=Overlap.QUEUE) for _ in range(10)]
    runners = [lab.runner, lab.another()]
    for _ in range(5):
        lab.to_next(identities[-1])
        await asyncio.gather(*(runner.look() for runner in runners))
    assert len(await lab.batches()) == 50
    assert all(len(lab.ticks(identity)) == 5 for identity in identities)


async def test_a_scheduler_that_is_killed_before_the_submit_leaves_the_tick_to_another(
    lab: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = lab.add()
    lab.to_next(identity)
    _die_in(monkeypatch, lab.runner, "_submit", after=False)
    with pytest.raises(_KilledError):
        await lab.runner.look()
    await _take_over(lab)
    assert [tick.outcome for tick in lab.ticks(identity)] == [TickOutcome.SUBMITTED]
    assert len(await lab.batches()) == 1


async def test_a_scheduler_that_is_killed_after_the_submit_leaves_one_batch(
    lab: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = lab.add()
    lab.to_next(identity)
    _die_in(monkeypatch, lab.runner, "_submit", after=True)
    with pytest.raises(_KilledError):
        await lab.runner.look()
    assert len(await lab.batches()) == 1
    await _take_over(lab)
    assert [tick.outcome for tick in lab.ticks(identity)] == [TickOutcome.SUBMITTED]
    assert len(await lab.batches()) == 1


async def test_a_batch_that_has_ended_and_was_forgotten_is_not_submitted_again_after_a_kill(
    lab: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = lab.add()
    lab.to_next(identity)
    _die_in(monkeypatch, lab.runner, "_submit", after=True)
    with pytest.raises(_KilledError):
        await lab.runner.look()
    (batch_id,) = await lab.batches()
    await lab.end_all()
    await lab.bench.rig.forget(batch_id)
    await _take_over(lab)
    assert await lab.batches() == []
    assert lab.ticks(identity)[0].batch_id == batch_id


async def test_a_lease_that_has_not_ended_keeps_other_schedulers_away(
    lab: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = lab.add()
    lab.to_next(identity)
    _die_in(monkeypatch, lab.runner, "_submit", after=False)
    with pytest.raises(_KilledError):
        await lab.runner.look()
    lab.clock.now += LEASE_MS - 1
    other = lab.another()
    with lab.bench.database.write() as connection:
        pause_schedule(connection, identity, creator=ALICE, project_ids=None)  # no further ticks
    assert await other.look() == 0
    assert await lab.batches() == []


# --- clocks


async def test_a_clock_that_is_set_back_neither_loses_nor_doubles_a_tick(lab: Scheduling) -> None:
    identity = lab.add(overlap=Overlap.QUEUE)
    for _ in range(3):
        await lab.pass_tick(identity)
    lab.clock.now -= 2 * MINUTE
    runner = lab.another()
    await runner.look()
    for _ in range(3):
        lab.clock.now += MINUTE
        await runner.look()
    times = [tick.tick_at.timestamp() for tick in lab.ticks(identity)]
    assert [later - earlier for earlier, later in pairwise(times)] == [60.0] * (len(times) - 1)
    assert len(await lab.batches()) == len(times) == 4


async def test_a_clock_that_was_far_ahead_does_not_stop_a_schedule(lab: Scheduling) -> None:
    identity = lab.add(overlap=Overlap.QUEUE)
    await lab.pass_tick(identity)
    right = lab.clock.now
    lab.clock.now += 365 * 24 * 60 * MINUTE
    await lab.runner.look()
    assert lab.ticks(identity)[-1].missed > 500_000 or lab.ticks(identity)[-1].missed == 10_000
    lab.clock.now = right
    runner = lab.another()
    await runner.look()
    lab.clock.now = right + MINUTE
    await runner.look()
    assert len(await lab.batches()) == 3


async def test_schedulers_with_different_clocks_submit_one_batch(lab: Scheduling) -> None:
    identity = lab.add(overlap=Overlap.QUEUE)
    behind = Clock()
    other = lab.another(behind)
    for _ in range(4):
        lab.to_next(identity)
        behind.now = lab.clock.now - 1500
        await lab.runner.look()
        await other.look()
        behind.now = lab.clock.now
        await other.look()
    assert len(await lab.batches()) == len(lab.ticks(identity)) == 4


# --- Redis


async def test_a_batch_that_redis_lost_before_it_was_recorded_is_submitted_again(lab: Scheduling) -> None:
    identity = lab.add()
    empty = await checkpoint(lab.bench.rig.store)
    tick = await lab.pass_tick(identity)
    await fall_back(lab.bench.rig.store, empty)
    assert await lab.batches() == []
    await _take_over(lab)
    assert await lab.batches() == [tick.batch_id]
    await lab.bench.record()
    lab.clock.now += LEASE_MS
    await lab.another().look()
    assert lab.bench.rows("SELECT count(*) FROM schedule_ticks WHERE due_ms IS NOT NULL") == [(0,)]


async def test_a_recorded_batch_is_not_submitted_again_when_redis_has_lost_everything(lab: Scheduling) -> None:
    identity = lab.add()
    empty = await checkpoint(lab.bench.rig.store)
    await lab.pass_tick(identity)
    await lab.bench.record()
    await fall_back(lab.bench.rig.store, empty)
    await _take_over(lab)
    assert await lab.batches() == []
    assert [it.outcome for it in lab.ticks(identity)] == [TickOutcome.SUBMITTED]


async def test_a_batch_that_was_deleted_is_not_submitted_again(lab: Scheduling) -> None:
    identity = lab.add()
    tick = await lab.pass_tick(identity)
    await lab.end_all()
    assert tick.batch_id is not None
    await delete_batch(lab.bench.rig.store, lab.bench.database, tick.batch_id, project=PROJECT)
    await _take_over(lab)
    assert await lab.batches() == []


async def test_ticks_wait_while_redis_does_not_answer(lab: Scheduling, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = lab.add()
    lab.to_next(identity)

    async def refuse(*_: object, **__: object) -> None:
        raise Unavailable("Redis cannot be reached")

    with monkeypatch.context() as patched:
        patched.setattr(lab.bench.rig.store.admission, "submit", refuse)
        await lab.runner.look()
        for _ in range(3):
            lab.clock.now += MINUTE
            await lab.runner.look()
    lab.clock.now += MINUTE // 2
    await lab.runner.look()
    outcomes = [tick.outcome for tick in lab.ticks(identity)]
    assert outcomes == [*[TickOutcome.SKIPPED] * 3, TickOutcome.SUBMITTED]
    assert {tick.code for tick in lab.ticks(identity)[:3]} == {"missed"}
    assert len(await lab.batches()) == 1


# --- overlap and missed ticks


async def test_a_tick_is_skipped_while_the_last_batch_has_not_ended(lab: Scheduling) -> None:
    identity = lab.add(overlap=Overlap.SKIP)
    first = await lab.pass_tick(identity)
    second = await lab.pass_tick(identity)
    assert (second.outcome, second.code, second.batch_id) == (TickOutcome.SKIPPED, "overlap", None)
    assert str(first.batch_id) in (second.message or "")
    await lab.end_all()
    assert (await lab.pass_tick(identity)).outcome is TickOutcome.SUBMITTED
    ((type_, data),) = await lab.notices()
    assert type_ == "schedule.skipped"
    assert (data["project_id"], data["schedule_id"], data["code"]) == (PROJECT, str(identity), "overlap")


async def test_a_batch_that_only_the_ledger_has_is_known_to_have_ended(lab: Scheduling) -> None:
    identity = lab.add()
    first = await lab.pass_tick(identity)
    await lab.end_all()
    assert first.batch_id is not None
    await lab.bench.rig.forget(first.batch_id)
    assert (await lab.pass_tick(identity)).outcome is TickOutcome.SUBMITTED


async def test_with_queue_each_tick_is_submitted(lab: Scheduling) -> None:
    identity = lab.add(overlap=Overlap.QUEUE)
    for _ in range(4):
        assert (await lab.pass_tick(identity)).outcome is TickOutcome.SUBMITTED
    assert len(await lab.batches()) == 4


async def test_after_a_downtime_one_batch_runs_for_the_last_missed_tick(lab: Scheduling) -> None:
    identity = lab.add(missed=Missed.RUN_ONCE)
    lab.to_next(identity, 125 * MINUTE + 30_000)
    await lab.runner.look()
    (tick,) = lab.ticks(identity)
    assert (tick.outcome, tick.missed) == (TickOutcome.SUBMITTED, 125)
    assert lab.clock.now - tick.tick_at.timestamp() * 1000 == pytest.approx(30_000)


@pytest.mark.parametrize(("late_ms", "outcome"), [(50_000, TickOutcome.SUBMITTED), (61_000, TickOutcome.SKIPPED)])
async def test_missed_ticks_are_skipped_unless_within_the_grace(
    lab: Scheduling, late_ms: int, outcome: TickOutcome
) -> None:
    identity = lab.add(missed=Missed.SKIP, every_s=3600, grace_s=60, overlap=Overlap.QUEUE)
    lab.to_next(identity, late_ms)
    await lab.runner.look()
    (tick,) = lab.ticks(identity)
    assert tick.outcome is outcome
    assert (await lab.pass_tick(identity)).outcome is TickOutcome.SUBMITTED


# --- failures


async def test_a_tick_that_fails_is_reported_and_the_next_one_runs(lab: Scheduling) -> None:
    identity = lab.add(device="GONE")
    tick = await lab.pass_tick(identity)
    assert (tick.outcome, tick.code) == (TickOutcome.FAILED, InvalidInput.code)
    assert "there is no device 'GONE'" in (tick.message or "")
    ((type_, data),) = await lab.notices()
    assert (type_, data["reason"]) == ("schedule.failed", tick.message)
    assert lab.schedule(identity).last == tick
    assert (await lab.pass_tick(identity)).outcome is TickOutcome.FAILED
    assert lab.schedule(identity).status is ScheduleStatus.ACTIVE


async def test_schedules_count_towards_the_quotas_of_their_project(lab: Scheduling) -> None:
    identity = lab.add(jobs=5)
    with lab.bench.database.write() as connection:
        limits = set_limits(connection, PROJECT, {"queued_jobs": 3}).limits
    await lab.bench.rig.store.quotas.set_limits({PROJECT: limits})
    tick = await lab.pass_tick(identity)
    assert (tick.outcome, tick.code) == (TickOutcome.FAILED, QuotaExceeded.code)
    assert await lab.batches() == []


async def test_an_event_that_was_not_published_is_published_later(
    lab: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = lab.add(device="GONE")
    lab.to_next(identity)

    async def refuse(*_: object) -> None:
        raise Unavailable("Redis cannot be reached")

    with monkeypatch.context() as patched:
        patched.setattr(lab.bench.rig.store.events, "tell", refuse)
        await lab.runner.look()
    assert await lab.notices() == []
    for _ in range(3):
        lab.clock.now += 5000
        await lab.runner.look()
    assert [type_ for type_, _ in await lab.notices()] == ["schedule.failed"]


async def test_a_defect_in_one_schedule_does_not_stop_the_others(
    lab: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = lab.add(name="broken"), lab.add(name="sound")
    make = runner_module.make_submission

    def fail(tick: Any) -> Submission:
        if tick.name == "broken":
            raise RuntimeError("a defect")
        return make(tick)

    monkeypatch.setattr(runner_module, "make_submission", fail)
    lab.to_next(sound)
    await lab.runner.look()
    assert lab.ticks(broken)[0].code == "internal"
    assert lab.ticks(sound)[0].outcome is TickOutcome.SUBMITTED


# --- creators


def _make_key(lab: Scheduling, **options: Any) -> str:
    with lab.bench.database.write() as connection:
        project_no(connection, PROJECT)
        return create_key(connection, name="k", role=Role.USER, project_id=PROJECT, **options).about.id


def _make_user(lab: Scheduling) -> str:
    with lab.bench.database.write() as connection:
        project_no(connection, PROJECT)
        user = create_user(connection, "bob", None)
        add_to_project(connection, "bob", PROJECT)
        create_session(connection, user.id, session_s=1)
        return user.id


async def test_a_schedule_stops_when_the_key_that_created_it_is_revoked(lab: Scheduling) -> None:
    key = _make_key(lab)
    identity = lab.add(creator=Creator("key", key=key))
    assert (await lab.pass_tick(identity)).outcome is TickOutcome.SUBMITTED
    with lab.bench.database.write() as connection:
        revoke_key(connection, key)
    lab.to_next(identity)
    await lab.runner.look()
    found = lab.schedule(identity)
    assert (found.status, found.changed_by, found.next_at) == (ScheduleStatus.STOPPED, "tweezer", None)
    assert found.reason == f"the key that created it, {key}, is revoked"
    assert len(found.ticks) == 1
    ((type_, data),) = await lab.notices()
    assert (type_, data["reason"]) == ("schedule.stopped", found.reason)


async def test_a_schedule_stops_before_its_next_tick_when_its_creator_is_disabled(lab: Scheduling) -> None:
    identity = lab.add(creator=Creator("bob", user=_make_user(lab)), every_s=86_400)
    with lab.bench.database.write() as connection:
        set_disabled(connection, "bob", True)
    await lab.another().look()
    assert lab.schedule(identity).reason == "its creator, user bob, is disabled"
    await lab.another().look()
    assert [type_ for type_, _ in await lab.notices()] == ["schedule.stopped"]


async def test_a_schedule_stops_when_its_creator_leaves_the_project(lab: Scheduling) -> None:
    identity = lab.add(creator=Creator("bob", user=_make_user(lab)))
    with lab.bench.database.write() as connection:
        remove_from_project(connection, "bob", PROJECT)
    await lab.another().look()
    assert lab.schedule(identity).reason == "its creator, user bob, is no longer in the project"


async def test_a_schedule_follows_a_rotated_key(lab: Scheduling) -> None:
    key = _make_key(lab)
    identity = lab.add(creator=Creator("key", key=key))
    with lab.bench.database.write() as connection:
        rotate_key(connection, key, overlap_s=0)
        revoke_key(connection, key)
    assert (await lab.pass_tick(identity)).outcome is TickOutcome.SUBMITTED


async def test_a_schedule_of_a_key_that_expired_stops(lab: Scheduling) -> None:
    identity = lab.add(creator=Creator("key", key=_make_key(lab, expires_s=30)))
    lab.to_next(identity)
    with lab.bench.database.write() as connection:
        connection.execute(update(keys).values(expires_ms=lab.clock.now))
    await lab.runner.look()
    assert "has expired" in (lab.schedule(identity).reason or "")


async def test_who_resumes_a_stopped_schedule_becomes_its_creator(lab: Scheduling) -> None:
    key = _make_key(lab)
    identity = lab.add(creator=Creator("key", key=key))
    with lab.bench.database.write() as connection:
        revoke_key(connection, key)
    await lab.another().look()
    with lab.bench.database.write() as connection:
        resumed = resume_schedule(connection, identity, creator=ALICE, project_ids=None)
    assert (resumed.status, resumed.created_by, resumed.reason) == (ScheduleStatus.ACTIVE, ALICE.by, None)
    assert (await lab.pass_tick(identity)).outcome is TickOutcome.SUBMITTED


async def test_the_schedules_of_a_deleted_project_stop_and_are_deleted(lab: Scheduling) -> None:
    identity = lab.add()
    await lab.pass_tick(identity)
    await lab.end_all()
    await delete_project(lab.bench.rig.store, lab.bench.database, PROJECT)
    assert [type_ for type_, _ in await lab.notices()] == ["schedule.stopped"]
    with lab.bench.database.read() as connection:
        assert list_schedules(connection, None) == []
    lab.clock.now += 10 * MINUTE
    assert await lab.another().look() == 0
    assert await lab.batches() == []


# --- on request


async def test_a_run_on_request_submits_one_batch_for_each_key(lab: Scheduling) -> None:
    identity = lab.add()
    run = lab.runner.run_now
    first = await run(identity, "a", creator=ALICE, project_ids=None)
    assert await run(identity, "a", creator=ALICE, project_ids=None) == first
    second = await run(identity, "b", creator=ALICE, project_ids=None)
    assert await lab.batches() == sorted({first, second})
    assert [tick.manual for tick in lab.ticks(identity)] == [True, True]


async def test_a_run_on_request_that_fails_is_kept(lab: Scheduling) -> None:
    identity = lab.add(device="GONE")
    with pytest.raises(InvalidInput, match="there is no device"):
        await lab.runner.run_now(identity, "a", creator=ALICE, project_ids=None)
    assert lab.ticks(identity)[0].outcome is TickOutcome.FAILED
    with pytest.raises(Conflict, match=r"run the schedule with another key .*there is no device"):
        await lab.runner.run_now(identity, "a", creator=ALICE, project_ids=None)
    assert len(lab.ticks(identity)) == 1


async def test_a_paused_schedule_has_no_ticks_but_can_run_on_request(lab: Scheduling) -> None:
    identity = lab.add()
    with lab.bench.database.write() as connection:
        pause_schedule(connection, identity, creator=ALICE, reason="new lens", project_ids=None)
    lab.clock.now += 10 * MINUTE
    await lab.runner.look()
    assert lab.ticks(identity) == []
    batch_id = await lab.runner.run_now(identity, "a", creator=ALICE, project_ids=None)
    batch = await lab.bench.rig.store.reader.batch(batch_id, project=PROJECT)
    assert batch.status is BatchStatus.PENDING


# --- what is kept


async def test_old_ticks_are_deleted_except_the_last_one(lab: Scheduling) -> None:
    identity = lab.add(overlap=Overlap.QUEUE)
    for _ in range(3):
        await lab.pass_tick(identity)
    await lab.bench.record()
    lab.clock.now += LEASE_MS
    with lab.bench.database.write() as connection:
        pause_schedule(connection, identity, creator=ALICE, project_ids=None)
    await lab.runner.look()
    with lab.bench.database.write() as connection:
        assert delete_old_ticks(connection, lab.clock.now + 8 * 24 * 60 * MINUTE) == 2
    assert len(lab.ticks(identity)) == 1


async def test_health_counts_schedules_and_ticks(lab: Scheduling) -> None:
    identity = lab.add(name="nightly")
    lab.to_next(identity, 1500)
    await lab.runner.look()
    await lab.pass_tick(identity)
    lab.clock.now = now_ms() - 3 * MINUTE
    with lab.bench.database.write() as connection:
        connection.execute(update(schedules).values(next_ms=lab.clock.now))
    with lab.bench.database.read() as connection:
        health = read_schedule_health(connection)
    assert health.statuses[ScheduleStatus.ACTIVE] == 1
    assert (health.ticks[TickOutcome.SUBMITTED], health.ticks[TickOutcome.SKIPPED]) == (1, 1)
    assert health.last_lag_s == pytest.approx(1.5)
    assert health.overdue_s == pytest.approx(180, abs=60)
    assert health.overdue == ("nightly", PROJECT)


# -----------------------------------------------------------------------------------------------------------


class _KilledError(BaseException):
    """The scheduler was killed."""


def _die_in(monkeypatch: pytest.MonkeyPatch, runner: ScheduleRunner, name: str, *, after: bool) -> None:
    """Make a method of the runner kill it, before or after its work."""
    method = getattr(runner, name)

    async def die(*arguments: Any) -> None:
        if after:
            await method(*arguments)
        raise _KilledError

    monkeypatch.setattr(runner, name, die)


async def _take_over(lab: Scheduling) -> None:
    """Let another scheduler handle what is left, after the lease of the last one."""
    with lab.bench.database.write() as connection:
        for schedule in list_schedules(connection, None):
            pause_schedule(connection, schedule.id, creator=ALICE, project_ids=None)
    lab.clock.now += LEASE_MS
    await lab.another().look()
