"""Attempts of jobs, from the ledger and from the stream of events after what is recorded."""

from __future__ import annotations

from uuid import UUID

import pytest
from tests.support.ledger_rig import OPERATOR, LedgerRig
from tests.support.records import end_earlier

from tweezer.ledger.batch_reader import BatchReader
from tweezer.model.attempts import JobAttempt
from tweezer.model.errors import EventsTrimmed, NotFound
from tweezer.model.ids import job_id
from tweezer.model.lifecycle import Stage
from tweezer.model.messages import Fault, OutcomeKind, Steps
from tweezer.store.workers import JobProgress

FAULT = Fault("transient", "it broke")


async def retry(bench: LedgerRig) -> UUID:
    """Return a batch whose job has failed once, and waits."""
    batch_id = await bench.rig.submit(1)
    await bench.rig.settle(await bench.rig.take_as("here:1:a:0"), {0: OutcomeKind.RETRY})
    return batch_id


async def read(bench: LedgerRig, batch_id: UUID, index: int = 0) -> list[JobAttempt]:
    reader = BatchReader(bench.rig.store, bench.queries)
    return await reader.attempts(OPERATOR, job_id(batch_id, index))


def ends(found: list[JobAttempt]) -> list[tuple[str | None, Fault | None]]:
    return [(it.outcome, it.fault) for it in found]


async def test_attempts_are_the_same_before_during_and_after_recording(bench: LedgerRig) -> None:
    batch_id = await retry(bench)
    fresh = await read(bench, batch_id)
    assert ends(fresh) == [("retry", FAULT)]
    await bench.record()
    assert await read(bench, batch_id) == fresh
    grant = await bench.rig.take_as("here:2:b:1")
    await bench.rig.renew(grant, JobProgress(0, Stage.ON_DEVICE))
    half = await read(bench, batch_id)
    assert ends(half) == [("retry", FAULT), (None, None)]
    await bench.rig.run(grant)
    whole = await read(bench, batch_id)
    assert ends(whole) == [("retry", FAULT), ("done", None)]
    assert whole[1].worker == "here:2:b"
    await bench.record()
    assert await read(bench, batch_id) == whole


async def test_attempts_outlive_the_trimming_of_the_stream_and_their_batch_in_redis(bench: LedgerRig) -> None:
    batch_id = await retry(bench)
    await bench.rig.make_due(batch_id)
    await bench.rig.run_all()
    before = await read(bench, batch_id)
    await bench.record()
    await bench.rig.tickets.trim(bench.recorder.position)
    assert await read(bench, batch_id) == before
    await bench.rig.tickets.set_full("full", ttl_s=60)
    await end_earlier(bench.rig.store, batch_id, by_s=30)
    assert (await bench.recorder._forgetter.forget()).gone == [batch_id]
    forgotten = await read(bench, batch_id)
    assert ends(forgotten) == ends(before) == [("retry", FAULT), ("done", None)]
    async with bench.queue() as queue:
        assert await queue.attempts(job_id(batch_id, 0)) == forgotten


async def test_events_that_are_trimmed_during_a_read_are_read_from_the_ledger(
    bench: LedgerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await retry(bench)
    read_on = bench.rig.store.events.read_on
    calls = []

    async def record_and_trim_first(after: str, *, most: int) -> object:
        calls.append(after)
        if len(calls) == 1:
            await bench.record()
            await bench.rig.submit(1)
            await bench.record()
            await bench.rig.tickets.trim(bench.recorder.position)
        return await read_on(after, most=most)

    monkeypatch.setattr(bench.rig.store.events, "read_on", record_and_trim_first)
    assert ends(await read(bench, batch_id)) == [("retry", FAULT)]
    assert len(calls) == 2


async def test_attempts_are_found_on_any_page_of_the_stream(bench: LedgerRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tweezer.ledger.batch_reader._EVENTS_PAGE", 2)
    batch_id = await retry(bench)
    for _ in range(5):
        await bench.rig.submit(1)
    await bench.rig.make_due(batch_id)
    await bench.rig.run_all()
    assert ends(await read(bench, batch_id)) == [("retry", FAULT), ("done", None)]


async def test_a_job_that_never_began_has_no_attempts_also_when_it_was_cancelled(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit(12)
    assert await read(bench, batch_id, 11) == []
    await bench.rig.commands.cancel(batch_id, project="a")
    assert await read(bench, batch_id, 11) == []
    await bench.record()
    assert await read(bench, batch_id, 1) == []


async def test_attempts_of_another_project_are_not_found(bench: LedgerRig) -> None:
    batch_id = await retry(bench)
    await bench.record()
    async with bench.queue("b") as queue:
        with pytest.raises(NotFound):
            await queue.attempts(job_id(batch_id, 0))
        with pytest.raises(NotFound):
            await queue.attempts(job_id(batch_id, 7))


async def test_without_a_ledger_attempts_are_read_from_the_stream_while_it_has_them(bench: LedgerRig) -> None:
    batch_id = await retry(bench)
    async with bench.queue(ledger=False) as queue:
        assert ends(await queue.attempts(job_id(batch_id, 0))) == [("retry", FAULT)]
        await bench.record()
        await bench.rig.submit(1)
        await bench.record()
        await bench.rig.tickets.trim(bench.recorder.position)
        with pytest.raises(EventsTrimmed, match="TWEEZER_DATABASE_URL"):
            await queue.attempts(job_id(batch_id, 0))


async def test_a_row_of_an_older_recorder_has_no_faults(bench: LedgerRig) -> None:
    batch_id = await retry(bench)
    await bench.record()
    with bench.database.write() as connection:
        connection.exec_driver_sql("UPDATE transitions SET faults = NULL")
    assert ends(await read(bench, batch_id)) == [("retry", None)]


async def test_the_ledger_stores_the_state_of_a_job_with_steps(bench: LedgerRig) -> None:
    batch_id = await bench.rig.submit(2)
    steps = Steps(10**14 - 1, 10**14, "é" * 200)
    grant = await bench.rig.take()
    await bench.rig.renew(grant, JobProgress(0, Stage.ON_DEVICE, 0.123, steps))
    await bench.record()
    await bench.agree(batch_id)
    assert bench.jobs(batch_id)[0].steps == steps
    await bench.rig.run(grant)
    await bench.record()
    await bench.agree(batch_id)
