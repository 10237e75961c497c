"""Batches and jobs that users look up: complete for users who may see them, and not found for others."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from tests.support.store_rig import StoreRig

from tweezer.model.errors import Unavailable
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import Fault, JobSpec, OutcomeKind
from tweezer.store.reader import Lookups
from tweezer.store.scripts import Scripts

MINE, THEIRS = ("a", "b"), ("c", "b")


@pytest.fixture
def lookups(rig: StoreRig) -> Lookups:
    return Lookups(rig.store.scripts)


async def _mixed(rig: StoreRig) -> UUID:
    """Submit a batch: one job is done, one failed, one runs, two wait."""
    batch_id = await rig.submit([JobSpec(runs=n, variables={"x": n}) for n in range(1, 6)])
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE})
    await rig.settle(grant, {1: OutcomeKind.ERROR})
    return batch_id


@pytest.mark.parametrize("projects", [None, ("a",), MINE])
async def test_a_batch_and_its_jobs_are_what_the_reader_reads(
    rig: StoreRig, lookups: Lookups, projects: tuple[str, ...] | None
) -> None:
    batch_id = await _mixed(rig)
    batch, jobs = await rig.batch(batch_id), await rig.jobs(batch_id)
    assert len({job.status for job in jobs}) > 2
    assert await lookups.batch(batch_id, projects=projects, jobs_max=5) == (batch, jobs)
    assert await lookups.batch(batch_id, projects=projects, jobs_max=4) == (batch, [])
    assert await lookups.batch(batch_id, projects=projects) == (batch, [])
    assert [await lookups.job(job.id, projects=projects) for job in jobs] == jobs


@pytest.mark.parametrize("projects", [THEIRS, ()])
async def test_a_batch_of_another_project_is_not_found(
    rig: StoreRig, lookups: Lookups, projects: tuple[str, ...]
) -> None:
    batch_id = await _mixed(rig)
    assert await lookups.batch(batch_id, projects=projects, jobs_max=10) is None
    assert await lookups.job(job_id(batch_id, 0), projects=projects) is None


async def test_an_unknown_batch_is_not_found(rig: StoreRig, lookups: Lookups) -> None:
    batch_id = await _mixed(rig)
    assert await lookups.batch(new_batch_id(), projects=None, jobs_max=10) is None
    assert await lookups.job(job_id(batch_id, 5), projects=None) is None
    assert await lookups.job(new_batch_id(), projects=None) is None


async def test_a_batch_without_jobs_can_be_read(rig: StoreRig, lookups: Lookups) -> None:
    batch_id = await rig.submit([], open=True)
    assert await lookups.batch(batch_id, projects=MINE, jobs_max=10) == (await rig.batch(batch_id), [])
    await rig.commands.close(batch_id, project="a")


async def test_a_job_that_failed_because_of_its_batch_shows_why(rig: StoreRig, lookups: Lookups) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    fault = Fault("user", "it does not fit", "sequence")
    await rig.tickets.fail_batch(grant.ticket, grant.token, fault)
    job = await lookups.job(job_id(batch_id, 1), projects=MINE)
    assert job is not None
    assert (job.status, job.faults) == (JobStatus.ERROR, (fault,))


async def test_many_concurrent_reads_each_get_their_own_job(
    rig: StoreRig, lookups: Lookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await rig.submit([JobSpec(runs=n) for n in range(300)])
    calls = 0
    call = Scripts.call

    async def counting(self: Scripts, name: str, /, **arguments: Any) -> list[Any]:
        nonlocal calls
        calls += 1
        return await call(self, name, **arguments)

    monkeypatch.setattr(Scripts, "call", counting)
    asked = [(index, MINE if index % 3 else THEIRS) for index in range(300)]
    jobs = await asyncio.gather(*(lookups.job(job_id(batch_id, index), projects=who) for index, who in asked))
    assert [None if job is None else job.spec.runs for job in jobs] == [
        index if index % 3 else None for index, _ in asked
    ]
    assert calls == 5


async def test_a_cancelled_read_does_not_cancel_others(rig: StoreRig, lookups: Lookups) -> None:
    batch_id = await rig.submit(2)
    leaving = asyncio.create_task(lookups.job(job_id(batch_id, 0), projects=MINE))
    staying = asyncio.create_task(lookups.job(job_id(batch_id, 1), projects=MINE))
    await asyncio.sleep(0)
    leaving.cancel()
    job = await staying
    assert job is not None
    assert job.index == 1
    assert (await asyncio.gather(leaving, return_exceptions=True))[0].__class__ is asyncio.CancelledError
    assert await lookups.job(job_id(batch_id, 0), projects=MINE) is not None


async def test_a_failure_reaches_every_concurrent_read_and_no_later_one(
    rig: StoreRig, lookups: Lookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await rig.submit(1)

    async def fail(self: Scripts, name: str, /, **arguments: Any) -> list[Any]:
        raise Unavailable("Redis cannot be reached: gone")

    with monkeypatch.context() as patch:
        patch.setattr(Scripts, "call", fail)
        asked = (lookups.job(job_id(batch_id, 0), projects=None) for _ in range(3))
        found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in found] == [Unavailable] * 3
    assert await lookups.job(job_id(batch_id, 0), projects=None) is not None
