"""The slot of a QPU: how it looks for a job among those that the machine has."""

from __future__ import annotations

from typing import cast
from uuid import UUID

import pytest

from tweezer.adapters.child import ChildLane
from tweezer.adapters.qpu.answers import RemoteJob, RemoteStatus
from tweezer.adapters.qpu.api import QpuApi
from tweezer.adapters.qpu.errors import QpuUnreachable, UnknownJob
from tweezer.adapters.qpu.lane import QpuLane
from tweezer.adapters.qpu.options import QpuOptions
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import JobSpec, JobWork
from tweezer.model.remote import Intent

OPTIONS = QpuOptions(base_url="http://qpu.example.org")


class History:
    """In place of the API: a machine with jobs, of which one may be ours."""

    def __init__(self, jobs: int, ours: UUID | None = None, at: int = 0, gaps: tuple[int, ...] = ()) -> None:
        self._jobs = jobs
        self._ours = ours
        self._at = at
        self._gaps = gaps
        self.asked: list[int] = []

    async def job(self, uid: int) -> RemoteJob:
        self.asked.append(uid)
        if not 1 <= uid <= self._jobs or uid in self._gaps:
            raise UnknownJob("unknown", status=400, remote_code="400")
        name = str(self._ours) if uid == self._at else "somebody's"
        return RemoteJob(uid, RemoteStatus.DONE, context={"pasqman_job_id": name})


def work() -> JobWork:
    return JobWork(job_id(new_batch_id(), 0), 0, JobSpec(runs=1), 0, 1)


async def find(history: History, job: JobWork, after: int | None) -> int | None:
    """What it finds, asked again as long as it has not looked through all."""
    lane = QpuLane(cast(QpuApi, history), cast(ChildLane, None), OPTIONS)
    while True:
        try:
            return await lane._find(job, Intent("a", after, None))
        except QpuUnreachable:
            pass


@pytest.mark.parametrize("after", [0, 3, 6])
async def test_a_job_after_the_last_known_one_is_found(after: int) -> None:
    job = work()
    assert await find(History(9, job.job_id, at=7), job, after) == 7
    assert await find(History(9), job, after) is None


async def test_ids_that_are_missing_hide_no_job() -> None:
    job = work()
    assert await find(History(9, job.job_id, at=9, gaps=(7, 8)), job, 6) == 9


async def test_a_machine_that_ran_thousands_of_others_jobs_meanwhile_is_looked_through_in_turns() -> None:
    job = work()
    history = History(5000, job.job_id, at=4990)
    assert await find(history, job, 10) == 4990
    assert len(history.asked) < 5500


@pytest.mark.parametrize("jobs", [0, 1, 2, 3, 4999, 100_000])
async def test_of_a_machine_with_a_past_that_the_queue_does_not_know_the_newest_jobs_are_looked_through(
    jobs: int,
) -> None:
    job = work()
    history = History(jobs, job.job_id, at=jobs)
    assert await find(history, job, None) == (jobs or None)
    assert len(history.asked) < 300  # and not all of them
