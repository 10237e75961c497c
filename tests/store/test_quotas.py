"""Quotas of projects: what they count, what they refuse and with which error, and that the counters stay exact."""

from __future__ import annotations

import random

import pytest
from tests.support.power_loss import checkpoint, fall_back, recorded
from tests.support.records import change_record
from tests.support.store_rig import StoreRig
from tests.support.usage import expected_counts, found_counts

from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import JobSpec, Outcome, OutcomeKind, Result, ResultFile, encode_result_file
from tweezer.model.quotas import QuotaExceeded
from tweezer.store.keys import Key
from tweezer.store.scripts import StoreConfig
from tweezer.store.workers import Settlement

MIB = 1 << 20


def noise(length: int) -> str:
    """Return a text that has at least this many bytes when it is compressed."""
    return random.Random(length).randbytes(length).hex()


async def use_limits(rig: StoreRig, **limits: int) -> None:
    await rig.tickets.publish_settings(StoreConfig(**limits))


async def test_queued_jobs_beyond_the_quota_are_refused_and_nothing_is_written(rig: StoreRig) -> None:
    await use_limits(rig, queued_jobs=3)
    batch_id = await rig.submit(2, open=True)
    before = await rig.snapshot()
    with pytest.raises(QuotaExceeded) as refusal:
        await rig.submit(2)
    assert refusal.value.message == (
        "queued_jobs: project a may have 3 queued jobs; 2 are in use and this call adds 2; wait until some have "
        "ended, or cancel some"
    )
    assert (refusal.value.quota, refusal.value.limit, refusal.value.used, refusal.value.asked) == (
        "queued_jobs",
        3,
        2,
        2,
    )
    assert refusal.value.retryable
    with pytest.raises(QuotaExceeded):
        await rig.commands.add_jobs(batch_id, [JobSpec()] * 2, project="a")
    assert await rig.snapshot() == before


async def test_a_project_at_its_quota_does_not_affect_another(rig: StoreRig) -> None:
    await use_limits(rig, queued_jobs=3)
    await rig.submit(3, project="a")
    with pytest.raises(QuotaExceeded):
        await rig.submit(1, project="a")
    await rig.submit(3, project="b")


async def test_jobs_that_begin_or_are_cancelled_leave_room_for_others(rig: StoreRig) -> None:
    await use_limits(rig, queued_jobs=3)
    batch_id = await rig.submit(3)
    await rig.take()
    await rig.submit(1)
    await rig.commands.cancel_jobs(batch_id, [2], project="a")
    await rig.submit(1)
    with pytest.raises(QuotaExceeded):
        await rig.submit(1)


async def test_the_error_of_a_call_that_alone_exceeds_the_quota_advises_to_split_it(rig: StoreRig) -> None:
    await use_limits(rig, queued_jobs=3)
    with pytest.raises(QuotaExceeded, match="this call alone adds 4; split it") as refusal:
        await rig.submit(4)
    assert not refusal.value.retryable


async def test_an_open_batch_without_jobs_is_refused_once_no_queued_job_is_left(rig: StoreRig) -> None:
    await use_limits(rig, queued_jobs=3)
    await rig.submit(3)
    with pytest.raises(QuotaExceeded):
        await rig.submit(0, open=True)


async def test_a_repeated_submit_is_answered_although_the_quota_is_used_up(rig: StoreRig) -> None:
    await use_limits(rig, queued_jobs=1)
    batch_id = await rig.submit(1, idempotency_key="k")
    assert await rig.submit(1, idempotency_key="k") == batch_id


async def test_queued_bytes_count_what_redis_stores_until_the_batch_ends(rig: StoreRig) -> None:
    await use_limits(rig, queued_bytes=200_000)
    batch_id = await rig.submit([JobSpec(sequence=noise(150_000))])
    with pytest.raises(QuotaExceeded, match="queued_bytes: project a may have 200000 bytes of sequences and jobs"):
        await rig.submit([JobSpec(sequence=noise(150_000))])
    await rig.commands.cancel(batch_id, project="a")
    await rig.submit([JobSpec(sequence=noise(150_000))])


async def test_queued_bytes_count_sequences_with_their_compressed_size(rig: StoreRig) -> None:
    await use_limits(rig, queued_bytes=200_000)
    await rig.submit([JobSpec(sequence="[0,0]" * 1_000_000)])


async def test_queued_bytes_are_at_most_a_quarter_of_what_redis_may_fill(rig: StoreRig) -> None:
    await rig.tickets.sweep(memory=400_000)
    with pytest.raises(QuotaExceeded, match="may have 100000 bytes"):
        await rig.submit([JobSpec(sequence=noise(150_000))])
    await rig.tickets.sweep(memory=0)
    await rig.submit([JobSpec(sequence=noise(150_000))])


async def test_a_quota_of_0_means_unlimited(rig: StoreRig) -> None:
    await use_limits(rig, queued_jobs=0, queued_bytes=0, result_bytes=0)
    await rig.tickets.sweep(memory=1000)
    await rig.submit(100)
    await rig.run_all()


async def test_a_result_beyond_the_quota_is_not_kept_and_its_job_ends_in_error_with_the_reason(rig: StoreRig) -> None:
    await use_limits(rig, result_bytes=5000)
    batch_id = await rig.submit(3)
    grant = await rig.take()
    big = Outcome(OutcomeKind.DONE, result=Result(serialised_results=noise(6000)))
    turn = await rig.settle(grant, {0: big}, want=1)
    assert turn.over_quota == {0}
    job = await rig.job(batch_id, 0)
    assert job.status is JobStatus.ERROR
    assert job.faults[0].code == "quota"
    assert job.faults[0].message.startswith(
        "result_bytes: project a may keep 5000 bytes of results; 0 are kept and this "
    )
    turn = await rig.settle(grant, {turn.jobs[0].index: OutcomeKind.DONE}, want=1)
    assert turn.over_quota == frozenset()
    assert await rig.statuses(batch_id) == [JobStatus.ERROR, JobStatus.DONE, JobStatus.RUNNING]


async def test_results_of_a_cancelled_job_beyond_the_quota_are_dropped(rig: StoreRig) -> None:
    await use_limits(rig, result_bytes=5000)
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.commands.cancel(batch_id, project="a")
    part = Outcome(OutcomeKind.CANCELED, result=Result(serialised_results=noise(6000)))
    assert (await rig.settle(grant, {0: part})).over_quota == {0}
    assert await rig.statuses(batch_id) == [JobStatus.CANCELED]
    assert await rig.redis.hgetall(rig.keys(Key.RESULT, batch_id)) == {}


async def test_a_result_in_the_results_folder_counts_with_the_size_of_its_file(rig: StoreRig) -> None:
    await use_limits(rig, result_bytes=3 * MIB)
    await rig.submit(2)
    grant = await rig.take()
    packed = encode_result_file(ResultFile("name", 2 * MIB, bytes(32)))
    done = Outcome(OutcomeKind.DONE, result=Result())
    for index, over in ((0, frozenset()), (1, frozenset({1}))):
        turn = await rig.tickets.settle(
            grant.ticket, grant.token, [Settlement.of(index, done, packed)], want=1, used_s=0.0, lease_s=15
        )
        assert turn.over_quota == over
    assert await found_counts(rig.store) == {"a": {"results": 2 * MIB}}


async def test_results_of_a_machine_are_kept_even_beyond_the_quota(rig: StoreRig) -> None:
    await rig.announce("QPU", exclusive=1, reattaches=1)
    await use_limits(rig, result_bytes=10)
    batch_id = await rig.submit(1, device="QPU")
    (grant,) = await rig.grants(device="QPU")
    assert (await rig.settle(grant, {0: OutcomeKind.DONE})).over_quota == frozenset()
    assert await rig.statuses(batch_id) == [JobStatus.DONE]
    with pytest.raises(QuotaExceeded, match="result_bytes: project a may have 10 bytes of results") as refusal:
        await rig.submit(1)
    assert not refusal.value.retryable


async def test_results_of_a_batch_that_redis_forgot_still_count(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.run_all()
    size = (await found_counts(rig.store))["a"]["results"]
    assert await rig.forget(batch_id)
    assert await found_counts(rig.store) == {}
    assert await rig.redis.hgetall(rig.keys(Key.PROJECT, "a")) == {b"kept": str(size).encode()}
    await use_limits(rig, result_bytes=size)
    with pytest.raises(QuotaExceeded, match="result_bytes"):
        await rig.submit(1)


async def test_a_project_without_work_and_results_leaves_no_key_behind(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    await rig.commands.cancel(batch_id, project="a")
    assert await rig.forget(batch_id)
    assert await rig.redis.exists(rig.keys(Key.PROJECT, "a")) == 0


async def test_counters_of_a_restored_batch_count_what_was_restored(rig: StoreRig) -> None:
    before = await checkpoint(rig.store)
    batch_id = await rig.submit(5, open=True)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE}, want=0)
    ledger, counts = await recorded(rig.store, batch_id), await found_counts(rig.store)
    await fall_back(rig.store, before)
    assert await found_counts(rig.store) == {}
    assert await rig.recovery.restore(*ledger) == 0
    assert await found_counts(rig.store) == await expected_counts(rig.store)
    assert (await found_counts(rig.store))["a"]["results"] == counts["a"]["results"]


async def test_a_batch_without_counts_is_counted_from_its_next_change(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    await change_record(rig.store, batch_id, charged=0, bytes=0, results=0)
    await rig.redis.delete(rig.keys(Key.PROJECT, "a"))
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    assert await found_counts(rig.store) == {"a": {"jobs": 2}}
    await rig.run_all()
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE
    assert (await found_counts(rig.store)).get("a", {}).keys() == {"results"}
