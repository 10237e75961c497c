"""The state machine of remote jobs, without a machine: when it submits a job, and when it must not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from tests.support.waiting import until

from tweezer.adapters.protocol import SubmitGuard
from tweezer.adapters.remote import service as module
from tweezer.adapters.remote.errors import RemoteUnreachable, SubmitDeferred, SubmitRefused, SubmitUncertain
from tweezer.adapters.remote.lane import RemoteLane
from tweezer.adapters.remote.service import JobContext, Observed, RemoteId, RemoteService, fail
from tweezer.duties import Backoff
from tweezer.model.errors import FaultKind
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.intents import Intent
from tweezer.model.lifecycle import JobStatus, Stage
from tweezer.model.messages import BatchDoc, BatchWork, JobSpec, JobWork, Outcome, OutcomeKind, Progress, Result

SENT = Intent("a", None, None)
"""An intent of another holder, which may have submitted the job."""


class Service(RemoteService[None]):
    """An API that answers submits with ``answers`` in turn, and finds the job after ``finds_after`` searches."""

    name, unit = "the machine", "job"
    turned_away_s = ask_again_s = forgotten_s = 0.1

    def __init__(self, *answers: Exception | None, finds_after: int = 1000, recognises_s: float = 0.0) -> None:
        self._answers = list(answers)
        self._finds_after = finds_after
        self.arrives_s = 0.1
        self.recognises_s = recognises_s
        self.submits = self.searches = 0

    async def find(self, context: JobContext, intent: Intent) -> RemoteId | None:
        self.searches += 1
        return RemoteId("1") if self.searches > self._finds_after else None

    async def send(self, context: JobContext, before_send: Callable[[], None]) -> RemoteId:
        before_send()
        self.submits += 1
        if (error := self._answers.pop(0)) is not None:
            raise error
        return RemoteId("1")

    async def decide_refused(self, context: JobContext, error: SubmitRefused) -> Outcome:
        return fail("refused", error.message, FaultKind.USER)

    async def poll(self, context: JobContext, uid: str) -> Observed[None]:
        return Observed(None, JobStatus.DONE, Progress(Stage.ON_DEVICE))

    async def collect(self, context: JobContext, job: None) -> Outcome:
        return Outcome(OutcomeKind.DONE, result=Result())

    async def collect_part(self, context: JobContext, job: None) -> Result | None:
        return None

    async def cancel(self, uid: str) -> None: ...

    async def rest(self, context: JobContext, uid: str, *, through_cancel: bool) -> None: ...

    def decide_failed(self, uid: str, job: None) -> Outcome:
        raise AssertionError

    def explain_displaced(self, uid: str) -> str:
        raise AssertionError


class Guard:
    """A guard that keeps one intent. ``left_s`` is the rest of the lease; ``is_ours`` is the result of ``set_out``."""

    lease_s = 0.1

    def __init__(self, intent: Intent | None = None, *, left_s: float = 15.0, is_ours: bool = True) -> None:
        self.intent = intent
        self._left_s = left_s
        self._is_ours = is_ours
        self.withdrawn = 0

    async def known(self) -> Intent | None:
        return self.intent

    async def intend(self, *, unsent: bool) -> Intent:
        assert self.intent is None or not self.intent.may_be_sent
        self.intent = Intent("b", None, None, may_be_sent=False, is_new=True)
        return self.intent

    async def set_out(self) -> bool:
        self.intent = Intent("b", None, None)
        return self._is_ours

    async def note(self, uid: str, *, named: bool | None = None) -> None:
        self.intent = Intent("b", None, uid)

    async def withdraw(self) -> None:
        self.intent = None
        self.withdrawn += 1

    def left_s(self) -> float:
        return self._left_s


def run(service: Service, guard: Guard, *, cancel: bool = False) -> asyncio.Task[Outcome]:
    batch_id = new_batch_id()
    lane = RemoteLane(service)
    lane._batch = BatchWork(batch_id, BatchDoc("QPU"))
    job = JobWork(job_id(batch_id, 0), 0, JobSpec(runs=1), 0)
    return asyncio.create_task(lane.run_remotely(job, lambda _: None, cast(SubmitGuard, guard), cancel=cancel))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between attempts."""
    monkeypatch.setattr(module, "BACKOFF", Backoff(base_s=0.01, cap_s=0.01))


def code(outcome: Outcome) -> str:
    return outcome.fault.code if outcome.fault is not None else outcome.kind.value


async def test_a_job_is_searched_for_and_then_submitted_once() -> None:
    service, guard = Service(None), Guard()
    assert code(await run(service, guard)) == "done"
    assert (service.searches, service.submits) == (1, 1)


async def test_an_uncertain_submit_is_never_sent_again() -> None:
    service, guard = Service(SubmitUncertain("no answer")), Guard()
    assert code(await run(service, guard)) == "unknown"
    assert (service.submits, guard.withdrawn) == (1, 0)


async def test_an_uncertain_submit_that_arrived_is_followed() -> None:
    service, guard = Service(SubmitUncertain("no answer"), finds_after=3), Guard()
    assert code(await run(service, guard)) == "done"
    assert service.submits == 1


@pytest.mark.parametrize(("finds_after", "expected"), [(2, "done"), (1000, "unknown")])
async def test_a_job_that_another_holder_may_have_submitted_is_only_searched_for(
    finds_after: int, expected: str
) -> None:
    service, guard = Service(finds_after=finds_after), Guard(SENT)
    assert code(await run(service, guard)) == expected
    assert (service.submits, guard.withdrawn) == (0, 0)


async def test_a_submit_that_the_other_side_recognises_may_be_repeated() -> None:
    service = Service(SubmitUncertain("no answer"), RemoteUnreachable("junk"), None, recognises_s=60.0)
    assert code(await run(service, Guard())) == "done"
    assert service.submits == 3


async def test_a_submit_whose_cancel_was_requested_is_not_repeated() -> None:
    service, guard = Service(recognises_s=60.0), Guard(SENT)
    assert code(await run(service, guard, cancel=True)) == "unknown"
    assert (service.submits, guard.withdrawn) == (0, 0)


async def test_a_submit_that_was_certainly_not_executed_is_withdrawn_and_sent_again() -> None:
    service, guard = Service(SubmitDeferred("429"), SubmitDeferred("no token"), None), Guard()
    assert code(await run(service, guard)) == "done"
    assert (service.submits, guard.withdrawn) == (3, 2)


async def test_a_refused_submit_is_withdrawn() -> None:
    service, guard = Service(SubmitRefused("no", status=400)), Guard()
    assert code(await run(service, guard)) == "refused"
    assert guard.withdrawn == 1


@pytest.mark.parametrize("guard", [Guard(left_s=0.0), Guard(is_ours=False)], ids=["lease over", "ticket lost"])
async def test_nothing_is_sent_without_the_ticket(guard: Guard) -> None:
    service = Service()
    running = run(service, guard)
    await until(lambda: guard.withdrawn >= 3, "three tries")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert service.submits == 0


async def test_a_job_whose_cancel_was_requested_is_not_submitted() -> None:
    service, guard = Service(), Guard()
    outcome = await run(service, guard, cancel=True)
    assert (outcome.kind, outcome.began, guard.intent) == (OutcomeKind.CANCELED, False, None)
    assert service.submits == 0


async def test_while_redis_may_have_forgotten_a_submit_none_is_sent() -> None:
    service, guard = Service(None), Guard()
    since_loss_s = 0.0

    async def intend(*, unsent: bool) -> Intent:
        nonlocal since_loss_s
        since_loss_s += 0.05
        guard.intent = Intent("b", None, None, may_be_sent=False, is_new=True, since_loss_s=since_loss_s)
        return guard.intent

    guard.intend = intend  # type: ignore[method-assign]
    assert code(await run(service, guard)) == "done"
    assert guard.withdrawn >= 3  # until the lease of 0.1 s and the transmission of 0.1 s are over
    assert service.submits == 1
