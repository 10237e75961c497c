"""Producers and commands read batches that Redis has forgotten from the ledger, and cannot change them."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest
from tests.support.ledger_rig import LedgerRig
from tests.support.records import end_earlier

from tweezer.model.errors import Conflict, NotFound
from tweezer.model.ids import job_id
from tweezer.model.lifecycle import BatchStatus, JobStatus


async def _forgotten(bench: LedgerRig) -> UUID:
    batch_id = await bench.rig.submit(3)
    await bench.rig.run_all()
    await bench.record()
    await bench.rig.tickets.set_full("full", ttl_s=60)
    await end_earlier(bench.rig.store, batch_id, by_s=30)
    assert (await bench.recorder._forgetter.forget()).gone == [batch_id]
    return batch_id


async def test_a_forgotten_batch_can_be_read_as_before(bench: LedgerRig) -> None:
    batch_id = await _forgotten(bench)
    async with bench.queue() as queue:
        batch = queue.batch(batch_id)
        record = await batch.record()
        assert record.status is BatchStatus.DONE
        assert record.doc.sequence == "{}"
        assert [job.status for job in await batch.jobs()] == [JobStatus.DONE] * 3
        assert [one.counter for one in await batch.results(timeout_s=1)] == [{"01": 10}] * 3
        assert (await queue.result(job_id(batch_id, 2))).counter == {"01": 10}


async def test_a_command_on_a_forgotten_batch_reports_that_it_has_ended(bench: LedgerRig) -> None:
    batch_id = await _forgotten(bench)
    async with bench.queue() as queue:
        with pytest.raises(Conflict, match="has ended"):
            await queue.batch(batch_id).cancel()
        with pytest.raises(Conflict, match="has ended"):
            await queue.batch(batch_id).add_jobs([{"runs": 1}])


async def test_a_foreign_batch_in_the_ledger_is_not_found(bench: LedgerRig) -> None:
    batch_id = await _forgotten(bench)
    async with bench.queue("b") as queue:
        for call in (queue.batch(batch_id).record, queue.batch(batch_id).cancel):
            with pytest.raises(NotFound):
                await call()
        with pytest.raises(NotFound):
            await queue.job(job_id(batch_id, 0))


async def test_without_a_ledger_a_forgotten_batch_is_not_found(bench: LedgerRig) -> None:
    batch_id = await _forgotten(bench)
    async with bench.queue(ledger=False) as queue:
        with pytest.raises(NotFound):
            await queue.batch(batch_id).record()


async def test_an_export_is_the_same_before_and_after_redis_forgot_the_batch(bench: LedgerRig, tmp_path: Path) -> None:
    from tweezer.cli.results import _lines

    batch_id = await bench.rig.submit(3)
    await bench.rig.run_all()
    await bench.record()
    async with bench.queue() as queue:
        before = [json.loads(line) async for line in _lines(queue.batch(batch_id))]
        await bench.rig.tickets.set_full("full", ttl_s=60)
        await end_earlier(bench.rig.store, batch_id, by_s=30)
        await bench.recorder._forgetter.forget()
        after = [json.loads(line) async for line in _lines(queue.batch(batch_id))]
        assert before == after
        assert [line["type"] for line in after] == ["batch", "job", "job", "job"]
        assert after[0]["sequence_builder"] == "{}"
        assert after[3]["result"]["counter"] == {"01": 10}
