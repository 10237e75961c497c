"""The lane of a QPU: how it searches for a job among those of the machine."""

from __future__ import annotations

import contextlib
from typing import cast
from uuid import UUID

import pytest

from tweezer.adapters.lane.lane import ChildLane
from tweezer.adapters.protocol import DeviceUnavailable, Report, SubmitGuard
from tweezer.adapters.remote import service as module
from tweezer.adapters.remote.errors import RemoteUnreachable, SubmitRefused, SubmitTurnedAway, UnknownRemoteJob
from tweezer.adapters.remote.lane import RemoteLane
from tweezer.adapters.remote.options import QpuOptions
from tweezer.adapters.remote.qpu.adapter import QpuService
from tweezer.adapters.remote.qpu.api import Operational, QpuApi, QpuJob
from tweezer.adapters.remote.service import JobContext
from tweezer.duties import Backoff
from tweezer.model.errors import FaultKind
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.intents import Intent, Mark
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import BatchDoc, BatchWork, JobSpec, JobWork, Outcome, OutcomeKind, Result

OPTIONS = QpuOptions(base_url="http://qpu.example.org")
NOTHING = Mark()


class History:
    """An API of a machine with jobs, one of which may be ours.

    ``bad`` is how many reads fail after each one that is answered.
    """

    def __init__(
        self,
        jobs: int,
        ours: UUID | None = None,
        at: int = 0,
        gaps: tuple[int, ...] = (),
        status: JobStatus = JobStatus.DONE,
        names: bool = True,
        nb_run: int | None = None,
        bad: int = 0,
    ) -> None:
        self._jobs = jobs
        self._ours = ours
        self._names = names
        self._nb_run = nb_run
        self._bad = bad
        self._at = at
        self._gaps = gaps
        self._status = status
        self.asked: list[int] = []

    async def get_job(self, uid: int, *, patient: bool = True) -> QpuJob:
        self.asked.append(uid)
        if len(self.asked) % (self._bad + 1):
            raise RemoteUnreachable("junk")
        if not 1 <= uid <= self._jobs or uid in self._gaps:
            raise UnknownRemoteJob("unknown", status=400, remote_code="400")
        name = str(self._ours) if uid == self._at else f"another's {uid}"
        context = {"pasqman_job_id": name} if self._names else {}
        return QpuJob(uid, self._status, nb_run=self._nb_run, context=context)


def work() -> JobWork:
    return JobWork(job_id(new_batch_id(), 0), 0, JobSpec(runs=1), 0, 1)


class Holder:
    """A submit guard with the notes of another holder, and what is known of the machine."""

    def __init__(self, intent: Intent, mark: Mark = NOTHING) -> None:
        self._intent = intent
        self._mark = mark
        self.lease_s = 15.0
        self.set_backs: list[tuple[int | None, int]] = []

    async def known(self) -> Intent:
        return self._intent

    async def mark(self) -> Mark:
        return self._mark

    async def note_set_back(self, uid: int | None, since: int) -> None:
        self.set_backs.append((uid, since))
        self._mark = Mark(since, set_back_us=self._intent.written_us + 1, since=since)

    async def note_timeout(self) -> None:
        raise AssertionError("it was noted")


async def find(history: History, job: JobWork, after: int | None, holder: Holder | None = None) -> int | None:
    """Search until every job was checked, and return what was found."""
    service = QpuService(cast(QpuApi, history), cast(ChildLane, None), OPTIONS)
    intent = Intent("a", after, None, written_us=1)
    holder = holder or Holder(intent)
    while True:
        with contextlib.suppress(RemoteUnreachable):
            return await found(service, job, intent, holder)


async def found(service: QpuService, job: JobWork, intent: Intent, holder: Holder) -> int | None:
    batch = BatchWork(new_batch_id(), BatchDoc("QPU"))
    context = JobContext(job, batch, lambda _: None, cast(SubmitGuard, holder), cancel=False)
    remote = await service.find(context, intent)
    return None if remote is None else int(remote.uid)


@pytest.mark.parametrize("after", [0, 3, 6])
async def test_a_job_after_the_last_known_one_is_found(after: int) -> None:
    job = work()
    assert await find(History(9, job.job_id, at=7), job, after) == 7
    assert await find(History(9), job, after) is None


async def test_missing_ids_hide_no_job() -> None:
    job = work()
    assert await find(History(9, job.job_id, at=9, gaps=(7, 8)), job, 6) == 9


async def test_thousands_of_newer_foreign_jobs_are_searched_in_turns() -> None:
    job = work()
    history = History(5000, job.job_id, at=4990)
    assert await find(history, job, 10) == 4990
    assert len(history.asked) < 5500


@pytest.mark.parametrize("jobs", [0, 1, 2, 3, 4999, 100_000])
async def test_on_a_machine_with_an_unknown_history_the_newest_jobs_are_searched(
    jobs: int,
) -> None:
    job = work()
    history = History(jobs, job.job_id, at=jobs)
    assert await find(history, job, None) == (jobs or None)
    assert len(history.asked) < 300  # not all of them


async def set_back_from(history: History, job: JobWork, mark: Mark) -> tuple[int | None, list[tuple[int | None, int]]]:
    """Return where a job that should follow the last known one is found, and which restarts of the ids were noted."""
    holder = Holder(Intent("a", mark.uid, None, written_us=1), mark)
    return await find(history, job, mark.uid, holder), holder.set_backs


async def test_ids_have_not_restarted_while_the_last_known_job_exists() -> None:
    job = work()
    history = History(9, job.job_id, at=8)
    assert await set_back_from(history, job, Mark(6, "another's 6", has_names=True)) == (8, [])
    assert await set_back_from(history, job, Mark(6)) == (8, [])  # a record of a version that did not note names


@pytest.mark.parametrize("jobs", [1, 6, 7, 300])
async def test_a_job_is_found_among_the_newest_if_the_last_known_one_is_missing_or_foreign(jobs: int) -> None:
    job = work()
    history = History(jobs, job.job_id, at=jobs)
    searched = await set_back_from(history, job, Mark(6, str(work().job_id), has_names=True))
    assert searched == (jobs, [(6, max(jobs - 200, 0))])
    assert await set_back_from(History(5), job, Mark(6)) == (None, [(6, 0)])


async def test_on_a_machine_that_returns_names_a_nameless_job_is_not_the_last_known_one() -> None:
    job = work()
    history = History(9, names=False)
    assert (await set_back_from(history, job, Mark(6, "ours", has_names=True)))[1] == [(6, 0)]
    assert (await set_back_from(history, job, Mark(6, "ours")))[1] == []


async def test_names_read_before_the_ids_restarted_hide_no_job_after_that() -> None:
    first, second = work(), work()
    before, after = History(9, first.job_id, at=9), History(9, second.job_id, at=7)
    service = QpuService(cast(QpuApi, before), cast(ChildLane, None), OPTIONS)
    intent = Intent("a", 5, None, written_us=1)
    holder = Holder(intent)
    assert await found(service, first, intent, holder) == 9
    service._api = cast(QpuApi, after)
    assert await found(service, second, intent, holder) == 7
    assert holder.set_backs == [(None, 0)]


async def test_an_intent_from_before_a_restart_of_the_ids_is_searched_in_all_newer_jobs() -> None:
    job = work()
    intent = Intent("a", 6, None, written_us=1)
    holder = Holder(intent, Mark(9, "another's 9", has_names=True, set_back_us=2, since=0))
    assert await find(History(9, job.job_id, at=1), job, 6, holder) == 1
    assert holder.set_backs == []


async def follow(
    history: History,
    job: JobWork,
    intent: Intent,
    *,
    mark: Mark = NOTHING,
    cancel: bool = True,
    forgotten_s: float = 30,
) -> Outcome:
    options = QpuOptions(base_url="http://qpu.example.org", poll_s=0.01, forgotten_s=forgotten_s)
    lane = RemoteLane(QpuService(cast(QpuApi, history), cast(ChildLane, None), options))
    lane._batch = BatchWork(new_batch_id(), BatchDoc("QPU"))
    return await lane.run_remotely(job, lambda _: None, cast(SubmitGuard, Holder(intent, mark)), cancel=cancel)


async def test_another_job_with_the_noted_id_is_neither_followed_nor_cancelled() -> None:
    history = History(3)  # it cannot cancel jobs
    outcome = await follow(history, work(), Intent("a", 1, "2"))
    assert outcome.fault is not None
    assert (outcome.kind, outcome.fault.code, outcome.result) == (OutcomeKind.ERROR, "unknown", None)
    assert "now another client's (named another's 2)" in outcome.fault.message


@pytest.mark.parametrize(
    ("mark", "nb_run", "code"),
    [
        (Mark(2, has_names=True), 1, "unknown"),  # the machine would have returned our name
        (Mark(2), 7, "unknown"),  # we asked for one shot
        (Mark(2), 1, "machine"),
        (Mark(2), None, "machine"),
    ],
)
async def test_a_nameless_job_is_ours_only_on_a_machine_without_names_and_with_our_shots(
    mark: Mark, nb_run: int | None, code: str
) -> None:
    history = History(3, names=False, nb_run=nb_run, status=JobStatus.ERROR)
    outcome = await follow(history, work(), Intent("a", 1, "2"), mark=mark)
    assert outcome.fault is not None
    assert outcome.fault.code == code


async def test_reads_that_fail_do_not_make_a_forgotten_job_last_longer(impatient: None) -> None:
    history = History(0, bad=1)
    outcome = await follow(history, work(), Intent("a", 1, "2"), cancel=False, forgotten_s=0.1)
    assert outcome.fault is not None
    assert outcome.fault.code == "unknown"
    assert "forgot" in outcome.fault.message


async def test_a_job_with_a_noted_timeout_was_not_stopped_by_another_client() -> None:
    job = work()
    history = History(3, job.job_id, at=2, status=JobStatus.CANCELED)
    outcome = await follow(history, job, Intent("a", 1, "2", timed_out=True, age_s=40.0))
    assert outcome.fault is not None
    assert (outcome.fault.code, outcome.cause) == ("timeout", FaultKind.TIMEOUT)
    assert outcome.device_s >= 40


class Door:
    """An API, a builder and a submit guard for a machine without jobs.

    ``meets`` has the errors of the submits in turn, None for a job; ``statuses`` those of the machine after a refusal.
    """

    left_s = lease_s = 15.0

    def __init__(self, *meets: Exception | None, statuses: tuple[Operational | None, ...] = ()) -> None:
        self._meets = list(meets)
        self._statuses = list(statuses)
        self._asked_before = True
        self.withdrawn = 0

    async def submit(self, **_: object) -> QpuJob:
        self._asked_before = False
        if (met := self._meets.pop(0)) is not None:
            raise met
        return QpuJob(1, JobStatus.PENDING)

    async def get_status(self) -> Operational:
        before, self._asked_before = self._asked_before, True
        status = Operational.UP if before or not self._statuses else self._statuses.pop(0)
        if status is None:
            raise RemoteUnreachable("a gateway's page")
        return status

    async def get_job(self, uid: int, *, patient: bool = True) -> QpuJob:
        if uid == 1 and not self._meets:
            return QpuJob(1, JobStatus.ERROR)
        raise UnknownRemoteJob("unknown", status=400, remote_code="400")

    async def run(self, job: JobWork, report: Report) -> Outcome:
        return Outcome(OutcomeKind.DONE, result=Result(serialised_results="{}"))

    async def known(self) -> Intent | None:
        return None

    async def intend(self, *, unsent: bool) -> Intent:
        return Intent("a", 0, None, is_new=True)

    async def set_out(self) -> bool:
        return True

    async def mark(self) -> Mark:
        return NOTHING

    async def withdraw(self) -> None:
        self.withdrawn += 1

    async def note(self, uid: str, *, named: bool | None = None) -> None:
        assert (uid, named) == ("1", False)

    async def code(self, *, turned_away_s: float = 60.0) -> str:
        """Return how a job ends here: the code of its error, or ``machine`` if it was submitted."""
        options = QpuOptions(base_url="http://qpu.example.org", poll_s=0.01, turned_away_s=turned_away_s)
        lane = RemoteLane(QpuService(cast(QpuApi, self), cast(ChildLane, self), options))
        lane._batch = BatchWork(new_batch_id(), BatchDoc("QPU"))
        outcome = await lane.run_remotely(work(), lambda _: None, cast(SubmitGuard, self), cancel=False)
        assert outcome.fault is not None
        return outcome.fault.code


REFUSED, TURNED_AWAY = SubmitRefused("no", status=400), SubmitTurnedAway("a proxy's 404")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between attempts."""
    monkeypatch.setattr(module, "BACKOFF", Backoff(base_s=0.01, cap_s=0.01))


@pytest.mark.usefixtures("impatient")
async def test_a_job_is_refused_only_after_two_refusals_of_a_machine_that_is_up() -> None:
    assert await Door(REFUSED, None).code() == "machine"
    door = Door(REFUSED, REFUSED)
    assert await door.code() == "refused"
    assert door.withdrawn == 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [Operational.DOWN, None])
async def test_a_machine_that_refuses_and_is_not_up_takes_no_jobs_now(
    status: Operational | None,
) -> None:
    for door in (Door(REFUSED, statuses=(status,)), Door(REFUSED, REFUSED, statuses=(Operational.UP, status))):
        with pytest.raises(DeviceUnavailable):
            await door.code()
        assert door.withdrawn


@pytest.mark.usefixtures("impatient")
async def test_a_submit_rejected_by_a_proxy_is_repeated_for_a_while() -> None:
    assert await Door(*[TURNED_AWAY] * 5, None).code() == "machine"
    assert await Door(*[TURNED_AWAY] * 100).code(turned_away_s=0.05) == "refused"
