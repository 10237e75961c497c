"""A pool of workers in real processes: every job is run once, and the records are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.processes import WITNESSED, Site
from tests.support.waiting import PATIENCE_S, until

import tweezer
from tweezer import BatchStatus, JobStatus

DONE = JobStatus.DONE


@pytest.fixture
async def site(real_redis_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with Site(real_redis_url, tmp_path) as site:
        yield site
        await site.idle()


async def test_two_workers_run_the_batches_of_two_projects_to_their_ends(site: Site) -> None:
    workers = await site.workers(2, lanes=3)
    async with site.connect("theirs") as theirs:
        batches = [await site.submit([{"sleep_s": 0.01}] * 30) for _ in range(4)]
        batches += [await theirs.submit(None, [{"runs": 2}] * 200, device="NULL") for _ in range(4)]
        batches.append(await site.submit([{}, {"fail": "no"}, {}]))
        for batch in batches:
            assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
            assert {job.attempt for job in await site.audit(batch)} == {1}
        ended: Counter[JobStatus] = Counter()
        for batch in batches:
            ended.update((await batch.record()).counts)
        assert ended == Counter({DONE: 4 * 30 + 4 * 200 + 2, JobStatus.ERROR: 1})
        with pytest.raises(tweezer.NotFound):
            await site.queue.batch(batches[5].id).record()
    seen = [event.id for event in await site.events()]
    assert len(seen) == len(set(seen))
    assert all(worker.alive for worker in workers)
    (device,) = await site.queue.devices()
    assert (device.lanes, device.pending, device.running, device.paused) == (6, 0, 0, None)


async def test_all_lanes_work_and_short_batches_overtake_long_ones(site: Site) -> None:
    """Projects share the lanes fairly: a later project does not wait for all work of the other."""
    await site.workers(2, lanes=2)
    async with site.connect("theirs") as theirs:
        long = await site.submit([{"sleep_s": 0.1}] * 100)

        async def all_lanes_are_busy() -> bool:
            return (await long.record()).counts[JobStatus.RUNNING] == 4

        await until(all_lanes_are_busy)
        short = await theirs.submit(None, [{"runs": 1}] * 5, device="NULL")
        assert (await short.wait(PATIENCE_S)).status is BatchStatus.DONE
        assert (await long.record()).counts[JobStatus.PENDING] > 20
        await long.cancel()
        await long.wait(PATIENCE_S)
        await site.audit(long)


async def test_every_execution_is_recorded(site: Site, tmp_path: Path) -> None:
    """Without failures each job is run exactly once, as the lanes record it outside Redis."""
    witness = tmp_path / "witness"
    await site.workers(2, WITNESSED, lanes=2, test_witness=witness)
    batches = [await site.submit([{}] * 150, device=WITNESSED) for _ in range(3)]
    executions = {}
    for batch in batches:
        for job in await batch.results(PATIENCE_S):
            (executions[str(job.id)],) = job.counter
    seen = [line.split() for line in witness.read_text().splitlines()]
    assert dict(seen) == executions
    assert len(seen) == 450


async def test_jobs_added_to_an_open_batch_run_as_they_arrive(site: Site) -> None:
    await site.workers(2, lanes=2)
    batch = await site.queue.submit(None, device="NULL", open=True)
    for count in (1, 10, 100):
        first = await batch.add_jobs([{"runs": 1}] * count)
        record = await batch.wait(PATIENCE_S)
        assert record.open
        assert record.counts[DONE] == first + count
    await batch.close()
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    await site.audit(batch)


async def test_a_paused_batch_waits_and_continues(site: Site) -> None:
    await site.workers(1)
    batch = await site.submit([{"sleep_s": 0.1}] * 5)
    await site.running(batch)
    await batch.pause()

    async def nothing_runs() -> bool:
        return (await batch.record()).counts[JobStatus.RUNNING] == 0

    await until(nothing_runs)
    other = await site.submit([{}])
    await other.wait(PATIENCE_S)  # the lane is free for others
    record = await batch.record()
    assert record.status is BatchStatus.PAUSED
    assert record.counts[JobStatus.PENDING] == 4
    await batch.resume()
    assert (await batch.wait(PATIENCE_S)).counts[DONE] == 5
    assert {job.attempt for job in await site.audit(batch)} == {1}


async def test_a_paused_device_starts_nothing_until_it_is_resumed(site: Site) -> None:
    await site.workers(2)
    await site.queue.pause_device("NULL", "the laser is being aligned")
    batch = await site.submit([{}] * 3)
    with pytest.raises(tweezer.WaitTimeout):
        await batch.wait(0.3)
    (device,) = await site.queue.devices()
    assert device.paused == "the laser is being aligned"
    await site.queue.resume_device("NULL")
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    await site.audit(batch)


async def test_progress_of_a_long_job_is_reported_while_it_runs(site: Site) -> None:
    await site.workers(1)
    batch = await site.submit([{"sleep_s": 1.5}])
    seen: list[float] = []

    async def reported_twice() -> bool:
        (job,) = await batch.jobs()
        if job.progress is not None and job.progress not in seen:
            seen.append(job.progress)
            assert job.steps is not None
            assert job.steps.done is not None
            assert abs(job.steps.done / 15 - job.progress) < 0.1
            assert (job.steps.total, job.steps.message and job.steps.message[-8:]) == (15, "of 1.5 s")
        return len(seen) >= 2

    await until(reported_twice)
    assert seen == sorted(seen)
    assert 0 <= seen[0] < seen[1] <= 1
    await batch.wait(PATIENCE_S)
    (job,) = await site.audit(batch)
    assert job.queue_s is not None
