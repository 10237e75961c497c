"""The slot of a QPU: how it looks for a job among those that the machine has."""

from __future__ import annotations

from typing import cast
from uuid import UUID

import pytest

from tweezer.adapters.child import ChildLane
from tweezer.adapters.protocol import Custody
from tweezer.adapters.qpu.answers import RemoteJob, RemoteStatus
from tweezer.adapters.qpu.api import QpuApi
from tweezer.adapters.qpu.errors import QpuUnreachable, UnknownJob
from tweezer.adapters.qpu.lane import QpuLane
from tweezer.adapters.qpu.options import QpuOptions
from tweezer.model.errors import FaultKind
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import BatchDoc, BatchWork, JobSpec, JobWork, Outcome, OutcomeKind
from tweezer.model.remote import Intent

OPTIONS = QpuOptions(base_url="http://qpu.example.org")


class History:
    """In place of the API: a machine with jobs, of which one may be ours."""

    def __init__(
        self,
        jobs: int,
        ours: UUID | None = None,
        at: int = 0,
        gaps: tuple[int, ...] = (),
        status: RemoteStatus = RemoteStatus.DONE,
    ) -> None:
        self._jobs = jobs
        self._ours = ours
        self._at = at
        self._gaps = gaps
        self._status = status
        self.asked: list[int] = []

    async def job(self, uid: int, *, patient: bool = True) -> RemoteJob:
        self.asked.append(uid)
        if not 1 <= uid <= self._jobs or uid in self._gaps:
            raise UnknownJob("unknown", status=400, remote_code="400")
        name = str(self._ours) if uid == self._at else "somebody's"
        return RemoteJob(uid, self._status, context={"pasqman_job_id": name})


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


class Holder:
    """In place of the custody: what another holder has noted."""

    def __init__(self, intent: Intent) -> None:
        self._intent = intent
        self.lease_s = 15.0

    async def known(self) -> Intent:
        return self._intent

    async def note_timeout(self) -> None:
        raise AssertionError("it was noted")


async def follow(history: History, job: JobWork, intent: Intent) -> Outcome:
    lane = QpuLane(cast(QpuApi, history), cast(ChildLane, None), OPTIONS)
    lane._batch = BatchWork(new_batch_id(), BatchDoc("QPU"))
    return await lane.run_remotely(job, lambda _: None, cast(Custody, Holder(intent)), cancel=True)


async def test_another_job_under_the_noted_id_is_neither_taken_for_ours_nor_cancelled() -> None:
    history = History(3)  # which cannot be asked to cancel
    outcome = await follow(history, work(), Intent("a", 1, "2"))
    assert outcome.fault is not None
    assert (outcome.kind, outcome.fault.code, outcome.result) == (OutcomeKind.ERROR, "unknown", None)
    assert "somebody's" in outcome.fault.message


async def test_a_job_that_somebody_saw_time_out_was_not_stopped_by_a_stranger() -> None:
    job = work()
    history = History(3, job.job_id, at=2, status=RemoteStatus.CANCELED)
    outcome = await follow(history, job, Intent("a", 1, "2", timed_out=True, age_s=40.0))
    assert outcome.fault is not None
    assert (outcome.fault.code, outcome.cause) == ("timeout", FaultKind.TIMEOUT)
    assert outcome.device_s >= 40
