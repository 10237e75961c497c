"""The recorder writes everything that happens in Redis into the ledger, once, even if processes die."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import pytest
import structlog
from sqlalchemy import text
from tests.support.ledger_rig import OPERATOR, LedgerRig
from tests.support.records import change_record, end_earlier
from tests.support.waiting import until

from tweezer.ledger.queries.filters import JobFilter
from tweezer.ledger.queries.statistics import device_totals
from tweezer.ledger.recorder.writing import Superseded
from tweezer.ledger.schema import TIME_BOUNDS_MS
from tweezer.model.cancels import CancelOutcome
from tweezer.model.errors import NotFound
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import BatchDoc, Fault, JobSpec, OutcomeKind, decode_result
from tweezer.model.rules import OnFailures, Rules
from tweezer.store.streams.feed import position_id, position_number

DONE, ERROR, RETRY = OutcomeKind.DONE, OutcomeKind.ERROR, OutcomeKind.RETRY
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def test_a_batch_is_recorded_as_redis_has_it_at_every_step(bench: LedgerRig) -> None:
    rig = bench.rig
    batch_id = await rig.submit([JobSpec(runs=7), JobSpec(runs=8, variables={"omega": 1.5}), JobSpec()], open=True)
    await bench.record()
    await bench.agree(batch_id)
    grant = await rig.take()
    await bench.record()
    await bench.agree(batch_id)
    await rig.settle(grant, {0: DONE}, want=1)
    await bench.record()
    await bench.agree(batch_id)
    await rig.commands.close(batch_id, project=None)
    await bench.record()
    await bench.agree(batch_id)
    await rig.run_all()
    await rig.announce(lanes=2)
    await bench.record()
    await bench.agree(batch_id)


async def test_results_and_faults_are_in_the_ledger_once_their_jobs_have_ended(bench: LedgerRig) -> None:
    rig = bench.rig
    batch_id = await rig.submit(2)
    grant = await rig.take()
    turn = await rig.settle(grant, {0: DONE})
    assert [job.index for job in turn.jobs] == [1]
    await rig.settle(grant, {1: ERROR})
    await bench.record()
    packed = bench.queries.packed_result(job_id(batch_id, 0))
    assert packed is not None
    assert decode_result(packed).counter == {"01": 10}
    assert bench.queries.packed_result(job_id(batch_id, 1)) is None
    assert [job.status for job in bench.jobs(batch_id)] == [JobStatus.DONE, JobStatus.ERROR]
    assert bench.jobs(batch_id)[1].faults == (Fault("user", "it broke"),)


@pytest.mark.parametrize("is_forgotten", [False, True])
async def test_what_the_rules_of_a_batch_did_is_in_the_ledger(bench: LedgerRig, is_forgotten: bool) -> None:
    rig = bench.rig
    expired = await rig.submit(2, rules=Rules(schedule_threshold_s=1, queue_timeout_s=60), not_before=LONG_AGO)
    await rig.swept()
    await rig.let_expire(expired)
    await rig.swept()
    rules = Rules(failure_threshold=1, on_failures=OnFailures.CANCEL, total_retries=5, keep_s=7)
    stopped = await rig.submit(4, rules=rules)
    first, second = await rig.grants(2)
    await rig.settle(first, {0: RETRY}, want=0)
    (first,) = await rig.grants()
    await rig.settle(first, {first.jobs[0].index: ERROR})
    await rig.settle(second, {1: OutcomeKind.CANCELED})
    await bench.record()
    for batch_id in (expired, stopped):
        await bench.agree(batch_id)
        if is_forgotten:
            assert await rig.forget(batch_id)
    found = {batch_id: bench.batch(batch_id) for batch_id in (expired, stopped)}
    assert [it and (it.status, it.fault and it.fault.code, it.retried) for it in found.values()] == [
        (BatchStatus.TIMED_OUT, "expired", 0),
        (BatchStatus.CANCELED, "failures", 1),
    ]
    assert [job.faults[0].code for job in bench.jobs(expired)] == ["expired"] * 2
    assert [job.faults[0].code for job in bench.jobs(stopped)] == ["user", *["failures"] * 3]
    listed = bench.queries.jobs(OPERATOR, JobFilter(batches=(stopped,))).rows
    assert sorted(job.faults[0].code for job in listed) == ["failures"] * 3 + ["user"]
    failed = JobFilter(batches=(stopped,), failed=True)
    assert [job.status for job in bench.queries.jobs(OPERATOR, failed).rows] == [JobStatus.ERROR]
    assert sum(map(failed.takes, listed)) == 1
    assert [it and it.doc.rules for it in found.values()][1] == rules
    entries = bench.queries.entries(expired, 0)
    assert [event.type for it in entries for event in it.events] == [
        "batch.created",
        "batch.late",
        *["job.canceled"] * 2,
        "batch.timed_out",
    ]


async def test_every_transition_is_recorded_once_with_its_number_and_time(bench: LedgerRig) -> None:
    rig = bench.rig
    batch_id = await rig.submit(5)
    await rig.run_all()
    await bench.record()
    await bench.record()
    told = [event for entry in await rig.store.events.read(most=1000) for event in entry.events]
    assert [event.sequence for event in told] == list(range(1, len(told) + 1))
    of_jobs = [event for index in range(5) for event in bench.queries.transitions(job_id(batch_id, index))]
    assert sorted(of_jobs, key=lambda event: event.sequence) == [event for event in told if event.index is not None]


async def test_recorded_transitions_name_the_lane_and_why_it_lost_a_job(bench: LedgerRig) -> None:
    rig = bench.rig
    batch_id = await rig.submit(1)
    await rig.lapse(await rig.take_as("lab1:812:3fa901:0"))
    await rig.tickets.sweep()
    await rig.run(await rig.take_as("lab2:77:c0ffee:3"))
    await bench.record()
    found = bench.queries.transitions(batch_id)
    assert [(it.type, it.worker, it.lane, it.why) for it in found] == [
        ("job.running", "lab1:812:3fa901", 0, None),
        ("job.pending", "lab1:812:3fa901", 0, "lost"),
        ("job.running", "lab2:77:c0ffee", 3, None),
        ("job.done", "lab2:77:c0ffee", 3, None),
    ]


async def test_each_submitted_batch_is_logged_once(bench: LedgerRig) -> None:
    with structlog.testing.capture_logs() as logged:
        batch_id = await bench.rig.submit(3, project="lab")
        await bench.record()
        await bench.rig.run_all()
        await bench.record()
    lines = [{**line} for line in logged if line["event"] == "batch.submitted"]
    assert [(line["batch"], line["jobs"], line["project"], line["device"]) for line in lines] == [
        (str(batch_id), "0-2", "lab", "EMU")
    ]


async def test_ended_jobs_are_counted_once_with_their_times_even_if_they_are_deleted(bench: LedgerRig) -> None:
    rig = bench.rig
    batch_id = await rig.submit(3)
    await rig.run(await rig.take())
    await bench.record()
    with bench.database.read() as connection:
        found = device_totals(connection)["EMU"]
    assert found.ended == {JobStatus.DONE: 3, JobStatus.ERROR: 0, JobStatus.CANCELED: 0}
    assert sum(found.queued.counts) == sum(found.ran.counts) == 3
    assert found.ran.sum_s == 4.5  # each ran for 1.5 s
    assert found.ran.counts[TIME_BOUNDS_MS.index(5000)] == 3
    later = await rig.submit(1)
    await rig.commands.cancel(later, project="a")
    again = bench.another_recorder()
    await again.resume()
    await again.catch_up()
    with bench.database.write() as connection:
        for table in ("jobs", "batches"):
            connection.execute(text(f"DELETE FROM {table} WHERE id = :id"), {"id": bench.database.id(batch_id)})  # noqa: S608
    with bench.database.read() as connection:
        found = device_totals(connection)["EMU"]
    assert found.ended == {JobStatus.DONE: 3, JobStatus.ERROR: 0, JobStatus.CANCELED: 1}
    assert sum(found.queued.counts) == 3, "a job that never began has no times"


async def test_the_stream_can_be_recorded_in_parts_of_any_size(bench: LedgerRig) -> None:
    rig = bench.rig
    ids = [await rig.submit(4, project=f"p{number % 3}") for number in range(6)]
    await rig.run_all()
    await rig.submit(3)
    recorder = bench.another_recorder(entries=1)
    await recorder.resume()
    await recorder.catch_up()
    for batch_id in ids:
        await bench.agree(batch_id)
    bench.counts_add_up()
    ((done,),) = bench.rows("SELECT sum(done) FROM hours")
    assert done == 24


async def test_of_two_recorders_at_the_same_position_only_one_succeeds(bench: LedgerRig) -> None:
    one, other = bench.recorder, bench.another_recorder()
    await one.resume()
    await other.resume()
    batch_id = await bench.rig.submit(3)
    await one.catch_up()
    with pytest.raises(Superseded):
        await other.catch_up()
    await bench.rig.run_all()
    await other.resume()
    await other.catch_up()
    with pytest.raises(Superseded):
        await one.catch_up()
    await bench.agree(batch_id)
    bench.counts_add_up()
    entries = await bench.rig.store.events.read(most=1000)
    assert bench.rows("SELECT count(*) FROM transitions") == [(len(entries),)]


async def test_a_failed_write_leaves_nothing_and_is_repeated(bench: LedgerRig, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await bench.rig.submit(3)
    await bench.rig.run_all()

    def broken(*_: object) -> None:
        raise OSError("the disk is on fire")

    with monkeypatch.context() as patched:
        patched.setattr("tweezer.ledger.recorder.writing.Writer._upsert", broken)
        with pytest.raises(OSError, match="fire"):
            await bench.record()
    assert bench.rows("SELECT count(*) FROM transitions") == [(0,)]
    assert bench.rows("SELECT position FROM recorder") == [("0-0",)]
    await bench.record()
    await bench.agree(batch_id)


async def test_jobs_added_to_an_open_batch_are_listed_before_they_begin(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit(1, open=True)
    await bench.record()
    await bench.rig.commands.add_jobs(batch_id, [JobSpec(runs=3), JobSpec(runs=4)], project=None)
    await bench.record()
    await bench.agree(batch_id)
    assert [job.spec.runs for job in bench.jobs(batch_id)] == [10, 3, 4]
    await bench.rig.commands.cancel(batch_id, project=None)


async def test_a_cancel_of_many_jobs_is_recorded_of_each(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit(1500)
    await bench.record()
    await bench.rig.commands.cancel(batch_id, project=None)
    await bench.record()
    await bench.agree(batch_id)
    assert bench.rows("SELECT status, count(*) FROM jobs GROUP BY 1") == [("C", 1500)]
    bench.counts_add_up()


async def test_the_authors_of_cancels_are_recorded_and_outlive_the_batch_in_redis(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit(3)
    grant = await bench.rig.take()
    await bench.record()
    await bench.rig.commands.cancel_jobs(batch_id, [0, 2], project="a", by="alice (key k3v9)")
    await bench.rig.commands.cancel(batch_id, project="a", by="bob@lab")
    await bench.rig.settle(grant, {0: OutcomeKind.CANCELED})
    await bench.record()
    await bench.agree(batch_id)
    assert await bench.rig.forget(batch_id)
    batch, jobs = bench.batch(batch_id), bench.jobs(batch_id)
    assert batch is not None
    assert [(attempt.by, attempt.jobs) for attempt in batch.cancels] == [("alice (key k3v9)", "0,2"), ("bob@lab", "*")]
    assert [job.cancels[0].by for job in jobs] == ["alice (key k3v9)", "bob@lab", "alice (key k3v9)"]
    assert [job.cancel_outcome for job in jobs] == [
        CancelOutcome.STOPPED,
        CancelOutcome.PREVENTED,
        CancelOutcome.PREVENTED,
    ]
    listed = bench.queries.jobs(OPERATOR, JobFilter(batches=(batch_id,))).rows
    assert sorted(listed, key=lambda job: job.index) == jobs


async def test_a_job_that_is_tried_again_is_pending_in_between(bench: LedgerRig) -> None:
    rig = bench.rig
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await bench.record()
    assert [job.status for job in bench.jobs(batch_id)] == [JobStatus.RUNNING]
    await rig.settle(grant, {0: RETRY})
    await bench.record()
    assert [job.status for job in bench.jobs(batch_id)] == [JobStatus.PENDING]
    await rig.run_all()
    await bench.record()
    await bench.agree(batch_id)
    bench.counts_add_up()


async def test_the_first_end_of_a_job_is_kept(bench: LedgerRig) -> None:
    """Redis may restart without a recorded end, and report another one before the ledger corrects it."""
    batch_id = await bench.rig.submit(1, open=True)
    grant = await bench.rig.take()
    await bench.rig.settle(grant, {0: DONE})
    await bench.record()
    with bench.database.write() as connection:
        connection.execute(text("UPDATE recorder SET position = '0-0'"))
        connection.execute(text("DELETE FROM transitions"))
    state = bench.rig.keys.prefix + f"batch:{batch_id}:state"
    words = (await bench.rig.redis.hget(state, "0")).decode().split()
    await bench.rig.redis.hset(state, "0", " ".join(["E", *words[1:]]))
    await bench.record()
    assert [job.status for job in bench.jobs(batch_id)] == [JobStatus.DONE]
    bench.counts_add_up()
    await bench.rig.commands.cancel(batch_id, project=None)


async def test_a_batch_is_forgotten_once_it_is_recorded_and_the_grace_is_over(bench: LedgerRig) -> None:
    rig = bench.rig
    ended, live = await rig.submit(2), await rig.submit(1, open=True)
    await rig.run_all()
    forgetter = bench.recorder._forgetter
    await rig.redis.zadd(rig.keys.prefix + "ended", {str(ended): 1})
    await change_record(rig.store, ended, ended=1)
    assert (await forgetter.forget()).gone == [], "the ledger does not have it"
    await bench.record()
    assert (await forgetter.forget()).gone == [ended]
    with pytest.raises(NotFound):
        await rig.reader.batch(ended, project=None)
    assert (await rig.reader.batch(live, project=None)).status is BatchStatus.RUNNING
    found = bench.batch(ended)
    assert found is not None
    assert found.status is BatchStatus.DONE
    await rig.commands.close(live, project=None)


async def test_a_full_redis_forgets_once_a_submit_is_no_longer_repeated(bench: LedgerRig) -> None:
    rig = bench.rig
    ended = await rig.submit(2)
    await rig.run_all()
    await bench.record()
    await rig.tickets.set_full("Redis uses 9 of its 10 MiB", ttl_s=60)
    assert (await bench.recorder._forgetter.forget()).gone == []
    await end_earlier(rig.store, ended, by_s=30)
    assert (await bench.recorder._forgetter.forget()).gone == [ended]
    assert bench.batch(ended) is not None


async def test_unchecked_values_of_a_null_device_do_not_stop_the_ledger(bench: LedgerRig) -> None:
    doc = BatchDoc("EMU", sequence="a\0b", tags=("x" * 500, "\0", "\0"), user="u" * 500, parent_id="no id")
    jobs = [JobSpec(runs=(1 << 64) - 1), JobSpec(runs=-1)]
    batch_id = await bench.rig.commands.submit(new_batch_id(), "p" * 64, doc, jobs)
    await bench.rig.run_all()
    await bench.record()
    assert [job.status for job in bench.jobs(batch_id)] == [JobStatus.DONE, JobStatus.DONE]


async def test_a_batch_that_is_in_neither_place_is_skipped(bench: LedgerRig) -> None:
    gone = await bench.rig.submit(1)
    async for key in bench.rig.redis.scan_iter(match=f"*{gone}*"):
        await bench.rig.redis.delete(key)
    kept = await bench.rig.submit(1)
    await bench.record()
    assert bench.batch(gone) is None
    await bench.agree(kept)


async def test_a_new_ledger_takes_over_what_redis_has_although_the_stream_was_trimmed(bench: LedgerRig) -> None:
    rig = bench.rig
    ended, live = await rig.submit(2), await rig.submit(3, open=True)
    await rig.run_all()
    await bench.record()
    await bench.recorder.tidy()
    for table in ("transitions", "results", "jobs", "sequences", "batches", "counters", "hours", "recorder"):
        with bench.database.write() as connection:
            connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608
    await rig.commands.add_jobs(live, [JobSpec(runs=1)], project=None)
    await bench.record()
    for batch_id in (ended, live):
        await bench.agree(batch_id)
    bench.counts_add_up()
    assert bench.queries.packed_result(job_id(ended, 1)) is not None
    await rig.commands.close(live, project=None)
    await rig.run_all()
    await bench.record()
    await bench.agree(live)


async def test_a_ledger_from_a_backup_catches_up_and_brings_nothing_back_to_redis(bench: LedgerRig) -> None:
    rig = bench.rig
    early = await rig.submit(2)
    await rig.run_all()
    await bench.record()
    await bench.recorder.tidy()
    backup = bench.rows("SELECT position FROM recorder")[0][0]
    late = await rig.submit(2)
    await rig.run_all()
    await bench.record()
    await bench.recorder.tidy()
    with bench.database.write() as connection:  # as it was before the second batch
        connection.execute(text("UPDATE recorder SET position = :backup"), {"backup": backup})
        connection.execute(text("DELETE FROM transitions WHERE batch = :late"), {"late": bench.database.id(late)})
        connection.execute(text("DELETE FROM results"))
        connection.execute(text("DELETE FROM jobs WHERE id >= :late"), {"late": bench.database.id(late)})
        connection.execute(text("DELETE FROM sequences WHERE id = :late"), {"late": bench.database.id(late)})
        connection.execute(text("DELETE FROM batches WHERE id = :late"), {"late": bench.database.id(late)})
    await rig.tickets.set_full("full", ttl_s=60)
    await rig.recovery.forget({early: bench.batch(early).sequence_number}, least_age_s=0)  # type: ignore[union-attr]
    await bench.record()
    await bench.agree(late)
    with pytest.raises(NotFound):
        await rig.reader.batch(early, project=None)


async def test_an_ended_batch_that_the_ledger_lacks_is_recorded_before_it_is_forgotten(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit(2)
    await bench.rig.run_all()
    await bench.record()
    for table in ("transitions", "results", "jobs", "sequences", "batches", "counters", "hours"):
        with bench.database.write() as connection:
            connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608
    await bench.recorder.resume()
    await bench.rig.tickets.set_full("full", ttl_s=60)
    await end_earlier(bench.rig.store, batch_id, by_s=30)
    assert not await bench.recorder.tidy()
    assert bench.batch(batch_id) is not None
    assert await bench.recorder.tidy()
    with pytest.raises(NotFound):
        await bench.rig.reader.batch(batch_id, project=None)
    assert len(bench.jobs(batch_id)) == 2


async def test_one_recorder_works_and_the_next_takes_over_when_it_ends(bench: LedgerRig) -> None:
    recorders = [bench.another_recorder(lease_s=1.0, gather_s=0.0, look_s=0.1) for _ in range(2)]
    first, second = (asyncio.create_task(recorder.run()) for recorder in recorders)
    batch_id = await bench.rig.submit(2)
    await until(lambda: _has(bench, batch_id), "the batch is recorded")
    active = first if recorders[0].position != "0-0" else second
    active.cancel()
    await asyncio.wait([active])
    await bench.rig.run_all()
    await until(lambda: _is_over(bench, batch_id), "the other one goes on")
    for task in (first, second):
        task.cancel()
    await asyncio.wait([first, second])


async def _has(bench: LedgerRig, batch_id: UUID) -> bool:
    return bench.batch(batch_id) is not None


async def _is_over(bench: LedgerRig, batch_id: UUID) -> bool:
    batch = bench.batch(batch_id)
    return batch is not None and batch.status.terminal


def test_positions_are_numbers_in_the_order_of_the_stream() -> None:
    ids = ["0-0", "0-1", "1-0", "1795326156997-0", "1795326156997-12", "1795326156998-0"]
    numbers = [position_number(entry_id) for entry_id in ids]
    assert numbers == sorted(numbers)
    assert [position_id(number) for number in numbers] == ids
