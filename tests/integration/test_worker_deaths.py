"""Workers that die, are stopped or drained: their work continues elsewhere, and each job ends once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.processes import LEASE_S, MISBEHAVING, Site, runs, statuses
from tests.support.waiting import PATIENCE_S, until

from tweezer import BatchStatus, JobStatus
from tweezer.model.lifecycle import BatchStatus as Batch

DONE, ERROR = JobStatus.DONE, JobStatus.ERROR
SECOND_US = 1_000_000
RESTART_US = (LEASE_S + 1) * SECOND_US
DRAIN_S = 1.0


@pytest.fixture
async def site(real_redis_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with Site(real_redis_url, tmp_path, worker_drain_s=DRAIN_S) as site:
        yield site
        await site.idle()


async def test_work_of_a_killed_worker_restarts_within_a_lease_and_a_second(site: Site) -> None:
    await site.workers(2, lanes=4)
    batches = [await site.submit([{"sleep_s": 1.5}]) for _ in range(4)]
    await site.running(*batches)
    doomed = await site.holder(batches[0])
    hit = [batch for batch in batches if await site.holder(batch) is doomed]
    killed_us = await site.now_us()
    doomed.kill()
    for batch in batches:
        assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
        starts, (job,) = await site.starts(batch), await site.audit(batch)
        assert job.status is DONE
        assert job.attempt == len(starts) == (2 if batch in hit else 1)
        if batch in hit:
            assert starts[0] < killed_us < starts[1] <= killed_us + RESTART_US


async def test_logs_and_events_show_the_story_of_a_job_that_ran_twice(site: Site) -> None:
    (doomed,) = await site.workers(1)
    batch = await site.submit([{"sleep_s": 1.0}])
    await site.running(batch)
    (taken,) = await doomed.wait_logged("batch.taken")
    assert (taken["batch"], taken["jobs"], taken["lane"], taken["level"]) == (str(batch.id), "0", 0, "info")
    doomed.kill()
    (survivor,) = await site.workers(1)
    (back,) = await survivor.wait_logged("lease.taken_back")
    assert (back["batch"], back["taken_from"], back["lane"]) == (str(batch.id), taken["worker"], "0")
    assert "lease" in back["reason"]
    (again,) = await survivor.wait_logged("batch.taken")
    (done,) = await survivor.wait_logged("job.done")
    assert (done["batch"], done["jobs"], done["worker"]) == (str(batch.id), "0", again["worker"])
    assert done["seconds"] >= 1.0
    events = [(it.type, it.worker, it.why) for it in await site.events(batch) if it.index is not None]
    assert events == [
        ("job.running", taken["worker"], None),
        ("job.pending", taken["worker"], "lost"),
        ("job.running", again["worker"], None),
        ("job.done", again["worker"], None),
    ]
    attempts = await site.queue.attempts(f"{batch.id}/0")
    assert [(it.number, it.worker, it.lane, it.outcome) for it in attempts] == [
        (1, taken["worker"], 0, "lost"),
        (2, again["worker"], 0, "done"),
    ]
    assert attempts[0].ended is not None
    assert attempts[1].started is not None
    assert attempts[0].ended <= attempts[1].started
    assert attempts[1].duration_s is not None
    assert attempts[1].duration_s >= 1.0
    await site.audit(batch)


async def test_a_drained_worker_logs_what_it_gives_back(site: Site) -> None:
    (first,) = await site.workers(1)
    batch = await site.submit([{"sleep_s": 60.0}])
    await first.wait_logged("batch.taken")
    first.terminate()
    (given_back,) = await first.wait_logged("ticket.given_back")
    assert (given_back["batch"], given_back["reason"]) == (str(batch.id), "the worker stops")
    await batch.cancel()


async def test_work_of_a_killed_worker_waits_for_one_that_starts_later(site: Site) -> None:
    (doomed,) = await site.workers(1)
    batch = await site.submit([{"sleep_s": 0.3}] * 2)
    await site.running(batch)
    doomed.kill()
    site.worker()
    assert (await batch.wait(PATIENCE_S)).counts[DONE] == 2
    await site.audit(batch)


async def test_a_killed_worker_leaves_the_list_of_workers(site: Site) -> None:
    doomed, survivor = await site.workers(2)
    assert len(await site.queue.workers()) == 2
    doomed.kill()

    async def one_is_left() -> bool:
        names = [worker.id for worker in await site.queue.workers()]
        device = await site.store.reader.device("NULL")
        return len(names) == 1 and f":{survivor.pid}:" in names[0] and device is not None and device.lanes == 1

    await until(one_is_left)


async def test_sigterm_lets_a_job_that_fits_finish(site: Site) -> None:
    await site.workers(2, worker_drain_s=10)
    batch = await site.submit([{"sleep_s": 1.0}])
    leaving = await site.holder(batch)
    leaving.terminate()
    assert await leaving.ended() == 0
    record = await batch.record()
    assert record.status is BatchStatus.DONE, "it was settled before the process ended"
    (job,) = await site.audit(batch)
    assert job.attempt == len(await site.starts(batch)) == 1


async def test_sigterm_gives_back_a_job_that_does_not_fit_without_using_up_an_attempt(site: Site) -> None:
    await site.workers(2)
    batch = await site.submit([{"sleep_s": 2.5}])
    leaving = await site.holder(batch)
    drained_us = await site.now_us()
    leaving.terminate()
    assert await leaving.ended(DRAIN_S + 5) == 0
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    (job,) = await site.audit(batch)
    assert job.attempt == 1
    first, again = await site.starts(batch)
    assert [it.outcome for it in await site.queue.attempts(job.id)] == ["drain", "done"]
    assert first < drained_us
    assert again - drained_us >= (DRAIN_S - 0.1) * SECOND_US, "the job had too little time to finish"
    assert again - drained_us <= (DRAIN_S + 1) * SECOND_US, "another worker did not take it at once"
    (remaining,) = await site.queue.workers()
    assert f":{leaving.pid}:" not in remaining.id


async def test_a_draining_worker_takes_no_more_work(site: Site) -> None:
    (leaving,) = await site.workers(1, worker_drain_s=3)
    batch = await site.submit([{"sleep_s": 0.6}] * 3)
    await site.held(batch)
    leaving.terminate()
    assert await leaving.ended() == 0
    assert (await batch.record()).counts == {
        JobStatus.PENDING: 2,
        JobStatus.RUNNING: 0,
        DONE: 1,
        ERROR: 0,
        JobStatus.CANCELED: 0,
    }
    await site.workers(1)
    assert (await batch.wait(PATIENCE_S)).counts[DONE] == 3
    assert [job.attempt for job in await site.audit(batch)] == [1, 1, 1]


@pytest.mark.parametrize("action", ["terminate", "kill"])
async def test_no_lane_survives_its_worker(site: Site, action: str) -> None:
    (worker,) = await site.workers(1, MISBEHAVING, lanes=2)
    batch = await site.submit([{"act": "ignore cancels"}], device=MISBEHAVING)
    await site.running(batch)
    lanes = worker.lanes()
    assert len(lanes) == 2
    getattr(worker, action)()
    await worker.ended()
    await until(lambda: not any(map(runs, lanes)), "the end of the lanes")
    await batch.cancel()
    await site.workers(1, MISBEHAVING)
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.CANCELED


async def test_a_worker_without_work_stops_at_once(site: Site) -> None:
    for worker in await site.workers(2):
        worker.terminate()
        assert await worker.ended(5) == 0
        assert await worker.wait_logged("worker.stopped")
    assert await site.queue.workers() == []


async def test_the_outcome_of_a_worker_that_was_stopped_is_refused(site: Site) -> None:
    """It continues after its job's time limit, when another worker has already taken the job."""
    await site.workers(2)
    batch = await site.submit([{"sleep_s": 0.5}])
    zombie = await site.holder(batch)
    zombie.freeze()
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    before = await site.events(batch)
    zombie.thaw()
    await until(lambda: bool(zombie.logged("settle.refused") or zombie.logged("lease.lost")), "the refusal")
    after = await site.submit([{}] * 20)
    assert (await after.wait(PATIENCE_S)).status is BatchStatus.DONE
    assert await site.events(batch) == before, "the stale worker changed the job"
    (job,) = await site.audit(batch)
    assert (job.status, job.attempt) == (DONE, 2)


async def test_a_worker_that_was_stopped_continues_to_work(site: Site) -> None:
    workers = await site.workers(2)
    batch = await site.submit([{"sleep_s": 0.5}])
    zombie = await site.holder(batch)
    zombie.freeze()
    await batch.wait(PATIENCE_S)
    for worker in workers:
        if worker is not zombie:
            worker.kill()
    zombie.thaw()
    later = await site.submit([{"sleep_s": 0.1}] * 3)
    assert (await later.wait(PATIENCE_S)).status is BatchStatus.DONE
    assert zombie.alive
    for each in (batch, later):
        await site.audit(each)


async def test_a_worker_that_was_stopped_for_less_than_its_lease_loses_nothing(site: Site) -> None:
    await site.workers(2, worker_lease_s=10)
    batch = await site.submit([{"sleep_s": 0.4}])
    sleeper = await site.holder(batch)
    began = await site.now_us()
    sleeper.freeze()

    async def job_time_is_over() -> bool:
        return await site.now_us() - began > 0.8 * SECOND_US

    await until(job_time_is_over)
    sleeper.thaw()
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    (job,) = await site.audit(batch)
    assert job.attempt == 1


async def test_a_worker_that_takes_its_own_lost_ticket_again_keeps_its_lanes_and_leases(site: Site) -> None:
    """Its old lane is still being stopped while another has the ticket: its solver does not check for a cancel."""
    (zombie,) = await site.workers(1, MISBEHAVING, lanes=2, test_soft_cancel_s=2)
    batch = await site.submit([{"act": "ignore cancels"}], device=MISBEHAVING)

    await site.running(batch)
    zombie.freeze()

    async def reclaimed() -> bool:
        await site.store.tickets.sweep()
        # The frozen worker has a take in progress: Redis may grant it the ticket again at once, and reclaim that, too.
        return (await batch.record()).counts[JobStatus.PENDING] == 1 or len(await site.starts(batch)) > 1

    async def runs_again() -> bool:
        lost = {entry["token"] for entry in zombie.logged("lease.lost")}
        running = (await batch.record()).counts[JobStatus.RUNNING] == 1
        return bool(lost) and running and len(await site.starts(batch)) == len(lost) + 1

    await until(reclaimed)
    zombie.thaw()
    await until(runs_again, "another execution than those whose lease was lost")
    (before,) = await batch.jobs()
    others = [await site.submit([{"act": "ignore cancels"}], device=MISBEHAVING)]
    await site.running(batch, *others)
    await batch.cancel()
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.CANCELED
    (job,) = await site.audit(batch)
    assert job.attempt == before.attempt, "its lease was lost while it ran"
    others.append(await site.submit([{"act": "ignore cancels"}], device=MISBEHAVING))
    await site.running(*others)
    for each in others:
        await each.cancel()
        await each.wait(PATIENCE_S)


@pytest.mark.slow
async def test_poison_that_kills_workers_ends_in_error_and_innocents_finish(site: Site) -> None:
    workers = await site.workers(2)
    batch = await site.submit([{}, {}, {"crash": 1}, {}, {}])
    innocent = await site.submit([{"sleep_s": 0.1}] * 3)

    async def over() -> bool:
        for at, worker in enumerate(workers):
            if not worker.alive:
                workers[at] = site.worker()
        return (await batch.record()).status.terminal and (await innocent.record()).status.terminal

    await until(over, "the end of the poison", 90)
    jobs = await site.audit(batch)
    poison = jobs.pop(2)
    assert (poison.status, poison.attempt) == (ERROR, 10)
    (fault,) = poison.faults
    assert fault.code == "lost"
    assert "begun 10 times by workers that were lost" in fault.message
    assert statuses(jobs) == [DONE] * 4
    assert all(job.attempt <= 2 for job in jobs), "only the first crash may affect a neighbour"
    assert (await batch.record()).status is Batch.DONE
    for job in await site.audit(innocent):
        assert job.status is DONE
        assert job.attempt <= 3
