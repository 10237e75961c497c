"""Submit, add and close; what they refuse, and that a refusal changes nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.batch_reader import BatchReader
from tweezer.model.errors import Conflict, InvalidInput, NotFound, QueueFull
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import BatchDoc, JobSpec, Limits, OutcomeKind, Priority
from tweezer.store import producers
from tweezer.store.keys import Key

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

    from tweezer.store.records import JobRecord


async def read_job(rig: StoreRig, identity: UUID, project: str) -> JobRecord:
    caller = Principal("key", Role.USER, frozenset({project}))
    return await BatchReader(rig.store, None).job(caller, identity)


async def test_a_submitted_batch_reads_back_as_it_was_sent(rig: StoreRig) -> None:
    doc = BatchDoc(device="EMU", sequence="{…}", name="sweep", tags=("x", "y"), limits=Limits(open_timeout_s=7))
    specs = [JobSpec(runs=3, variables={"omega": 1.5}), JobSpec(runs=4, seed=11)]
    batch_id = await rig.commands.submit(new_batch_id(), "a", doc, specs, priority=Priority.HIGH, open=True)

    batch = await rig.batch(batch_id)
    assert (batch.doc, batch.project, batch.priority, batch.open) == (doc, "a", Priority.HIGH, True)
    assert (batch.status, batch.jobs, batch.counts[JobStatus.PENDING]) == (BatchStatus.PENDING, 2, 2)
    assert [job.spec for job in await rig.jobs(batch_id)] == specs
    assert (await read_job(rig, (await rig.jobs(batch_id))[1].id, "a")).spec == specs[1]


async def test_ten_thousand_jobs_are_submitted_in_one_call_and_all_run(rig: StoreRig) -> None:
    batch_id = await rig.submit([JobSpec(runs=1 + index % 7) for index in range(10_000)])
    assert (await rig.reader.device("EMU")).pending == 10_000  # type: ignore[union-attr]

    indices: list[int] = []
    while grants := await rig.grants():
        jobs = grants[0].jobs
        while jobs:
            indices += [job.index for job in jobs]
            assert all(job.spec.runs == 1 + job.index % 7 for job in jobs)
            jobs = (await rig.settle(grants[0], {job.index: OutcomeKind.DONE for job in jobs}, want=1000)).jobs
    batch = await rig.batch(batch_id)
    assert sorted(indices) == list(range(10_000))
    assert (batch.status, batch.counts[JobStatus.DONE]) == (BatchStatus.DONE, 10_000)
    assert batch.sequence_number == 1 + 20_000 + 2


async def test_a_worker_may_want_more_jobs_than_one_call_hands_out(rig: StoreRig) -> None:
    batch_id = await rig.submit(10_000, open=True)
    for _ in range(2):
        await rig.commands.add_jobs(batch_id, [JobSpec(runs=1)] * 10_000, project="a")
    turn = await rig.settle(await rig.take(), {0: OutcomeKind.DONE}, want=100_000)
    assert [job.index for job in turn.jobs] == list(range(1, 1 + len(turn.jobs)))
    assert 100 <= len(turn.jobs) <= 10_000


async def test_added_jobs_get_the_next_indices(rig: StoreRig) -> None:
    batch_id = await rig.submit(2, open=True)
    assert await rig.commands.add_jobs(batch_id, [JobSpec(runs=5), JobSpec(runs=6)], project="a") == 2
    assert await rig.commands.add_jobs(batch_id, [JobSpec(runs=7)], project=None) == 4
    assert [job.spec.runs for job in await rig.jobs(batch_id)] == [10, 10, 5, 6, 7]


async def test_a_closed_batch_takes_no_more_jobs(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    await rig.commands.close(batch_id, project="a")
    before = await rig.snapshot()
    with pytest.raises(Conflict, match="closed") as refusal:
        await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")
    assert refusal.value.code == "closed"
    assert await rig.snapshot() == before


async def test_a_batch_that_ended_takes_no_more_jobs(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    await rig.commands.cancel(batch_id, project="a")
    with pytest.raises(Conflict) as refusal:
        await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")
    assert refusal.value.code == "terminal"


async def test_closing_twice_or_after_the_end_changes_nothing(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    await rig.commands.close(batch_id, project="a")
    await rig.commands.close(batch_id, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.PENDING
    await rig.run_all()
    before = await rig.snapshot()
    await rig.commands.close(batch_id, project="a")
    assert await rig.snapshot() == before


async def test_a_submit_with_the_id_of_a_batch_repeats_it_but_not_in_another_project(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    before = await rig.snapshot()
    assert await rig.submit(1, batch_id=batch_id) == batch_id
    with pytest.raises(Conflict, match="already exists in another project") as refusal:
        await rig.submit(1, batch_id=batch_id, project="b")
    assert refusal.value.code == "exists"
    assert await rig.snapshot() == before


async def test_an_unknown_device_is_named_and_nothing_is_written(rig: StoreRig) -> None:
    before = await rig.snapshot()
    with pytest.raises(InvalidInput, match="NO_SUCH") as refusal:
        await rig.submit(1, device="NO_SUCH")
    assert refusal.value.field == "device"
    assert await rig.snapshot() == before


async def test_a_batch_may_have_no_more_jobs_than_the_limit(rig: StoreRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producers, "MAX_JOBS_PER_BATCH", 3)
    batch_id = await rig.submit(2, open=True)
    before = await rig.snapshot()
    with pytest.raises(InvalidInput, match=r"at most 3 jobs \(this one has 2\)") as refusal:
        await rig.commands.add_jobs(batch_id, [JobSpec()] * 2, project="a")
    assert refusal.value.field == "jobs"
    assert await rig.snapshot() == before
    assert await rig.commands.add_jobs(batch_id, [JobSpec()], project="a") == 2


async def test_a_batch_with_a_start_time_is_not_handed_out_before_it(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, not_before=datetime.now(UTC) + timedelta(hours=1))
    taken = await rig.tickets.take("EMU", ["lane"], lease_s=15)
    assert taken.grants == []
    assert taken.due_s is not None
    assert 3500 < taken.due_s <= 3601

    await rig.make_due(batch_id)
    assert (await rig.take()).batch_id == batch_id


@pytest.mark.parametrize(
    ("microsecond", "stored"), [(0, 0), (123_000, 123_000), (123_001, 124_000), (123_999, 124_000)]
)
async def test_a_start_time_is_never_stored_as_an_earlier_one(rig: StoreRig, microsecond: int, stored: int) -> None:
    start = datetime(2099, 1, 31, 8, 0, 0, microsecond, tzinfo=UTC)
    batch_id = await rig.submit(1, not_before=start)
    assert (await rig.batch(batch_id)).not_before == start.replace(microsecond=stored)


async def test_a_start_time_in_the_past_is_now(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, not_before=datetime.now(UTC) - timedelta(hours=1))
    assert (await rig.take()).batch_id == batch_id


async def test_a_closed_batch_without_jobs_is_done_at_once(rig: StoreRig) -> None:
    batch_id = await rig.submit(0)
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE
    assert await rig.event_texts(batch_id) == ["batch.created", "batch.done"]
    assert await rig.grants() == []


async def test_a_repeated_submit_answers_the_first_batch_and_writes_nothing(rig: StoreRig) -> None:
    first = await rig.submit(3, idempotency_key="k")
    before = await rig.snapshot()
    assert await rig.submit(3, idempotency_key="k") == first
    assert await rig.snapshot() == before


@pytest.mark.parametrize("other", [{"jobs": 4}, {"open": True}, {"priority": Priority.LOW}])
async def test_a_key_that_was_used_for_another_body_is_a_conflict(rig: StoreRig, other: dict[str, object]) -> None:
    await rig.submit(3, idempotency_key="k")
    before = await rig.snapshot()
    with pytest.raises(Conflict) as refusal:
        await rig.submit(**{"jobs": 3, "idempotency_key": "k", **other})  # type: ignore[arg-type]
    assert refusal.value.code == "idempotency"
    assert await rig.snapshot() == before


async def test_idempotency_keys_belong_to_a_project(rig: StoreRig) -> None:
    ours = await rig.submit(1, project="a", idempotency_key="k")
    theirs = await rig.submit(2, project="b", idempotency_key="k")
    assert ours != theirs
    assert (await rig.batch(theirs)).jobs == 2


async def test_an_idempotency_key_outlives_its_batch_and_expires_by_itself(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, idempotency_key="k")
    await rig.run_all()
    await rig.forget(batch_id)
    assert await rig.submit(1, idempotency_key="k") == batch_id
    assert 0 < await rig.redis.pttl(rig.keys(Key.IDEMPOTENCY, "a", "k")) <= 86_400_000


async def test_a_repeated_add_answers_the_same_index(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    for _ in range(2):
        first = await rig.commands.add_jobs(batch_id, [JobSpec(runs=2)] * 2, project="a", idempotency_key="k")
        assert first == 1
    assert (await rig.batch(batch_id)).jobs == 3
    with pytest.raises(Conflict) as refusal:
        await rig.commands.add_jobs(batch_id, [JobSpec(runs=3)], project="a", idempotency_key="k")
    assert refusal.value.code == "idempotency"


async def test_a_repeated_add_is_answered_even_when_the_batch_was_closed_since(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    await rig.commands.add_jobs(batch_id, [JobSpec()], project="a", idempotency_key="k")
    await rig.commands.close(batch_id, project="a")
    assert await rig.commands.add_jobs(batch_id, [JobSpec()], project="a", idempotency_key="k") == 1


async def test_a_backlog_limit_refuses_jobs_beyond_it(rig: StoreRig) -> None:
    await rig.announce(max_backlog=3)
    batch_id = await rig.submit(2, open=True)
    before = await rig.snapshot()
    with pytest.raises(QueueFull, match="backlog of EMU is limited to 3"):
        await rig.submit(2)
    with pytest.raises(QueueFull):
        await rig.commands.add_jobs(batch_id, [JobSpec()] * 2, project="a")
    assert await rig.snapshot() == before
    assert await rig.commands.add_jobs(batch_id, [JobSpec()], project="a") == 2
    await rig.run_all()
    assert await rig.submit(3) != batch_id


async def test_a_full_store_refuses_new_work_with_the_reason_until_it_has_room(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    await rig.tickets.set_full("memory at 81 %", ttl_s=30)
    before = await rig.snapshot()
    with pytest.raises(QueueFull, match="memory at 81 %"):
        await rig.submit(1)
    with pytest.raises(QueueFull, match="memory at 81 %"):
        await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")
    assert await rig.snapshot() == before
    await rig.run_all()
    await rig.commands.close(batch_id, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE

    await rig.tickets.set_full(None, ttl_s=30)
    assert isinstance(await rig.submit(1), UUID)


async def test_a_repeated_submit_is_answered_even_when_the_store_is_full_by_now(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, idempotency_key="k")
    await rig.tickets.set_full("full", ttl_s=30)
    assert await rig.submit(1, idempotency_key="k") == batch_id


CALLS: dict[str, Callable[[StoreRig, UUID], Awaitable[object]]] = {
    "close": lambda rig, batch_id: rig.commands.close(batch_id, project="ours"),
    "cancel": lambda rig, batch_id: rig.commands.cancel(batch_id, project="ours"),
    "pause": lambda rig, batch_id: rig.commands.pause(batch_id, project="ours"),
    "resume": lambda rig, batch_id: rig.commands.resume(batch_id, project="ours"),
    "add_jobs": lambda rig, batch_id: rig.commands.add_jobs(batch_id, [JobSpec()], project="ours"),
    "cancel_jobs": lambda rig, batch_id: rig.commands.cancel_jobs(batch_id, [0], project="ours"),
    "read_batch": lambda rig, batch_id: rig.reader.batch(batch_id, project="ours"),
    "read_job": lambda rig, batch_id: read_job(rig, job_id(batch_id, 0), "ours"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("whose", ["foreign", "nobody's"])
async def test_a_foreign_batch_is_not_found_and_not_touched(rig: StoreRig, call: str, whose: str) -> None:
    theirs = await rig.submit(2, open=True, project="theirs")
    target = theirs if whose == "foreign" else new_batch_id()
    before = await rig.snapshot()
    with pytest.raises(NotFound, match=str(target)):  # a first job has its batch's id
        await CALLS[call](rig, target)
    assert await rig.snapshot() == before


async def test_a_job_beyond_the_last_is_not_found(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    with pytest.raises(NotFound):
        await read_job(rig, UUID(int=batch_id.int + 1), "a")
