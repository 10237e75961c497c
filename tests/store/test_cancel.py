"""Cancel of a job, of many, and of a batch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tweezer.model.cancels import CancelAttempt, CancelOutcome, read_attempts
from tweezer.model.errors import Conflict, FaultKind, InvalidInput
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Fault, Outcome, OutcomeKind, Result
from tweezer.store.producers import CancelAnswer
from tweezer.store.streams.feed import read_cancel
from tweezer.store.workers import NextStep

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

DONE, CANCELED, PENDING, RUNNING = JobStatus.DONE, JobStatus.CANCELED, JobStatus.PENDING, JobStatus.RUNNING


async def test_a_cancel_returns_an_outcome_for_each_job(rig: StoreRig) -> None:
    batch_id = await rig.submit(4)
    await rig.settle(await rig.take(), {0: OutcomeKind.DONE})
    answers = await rig.commands.cancel_jobs(batch_id, [3, 0, 1, 9, 3], project="a")
    assert answers == [
        CancelAnswer.CANCELED,
        CancelAnswer.OVER,
        CancelAnswer.REQUESTED,
        CancelAnswer.UNKNOWN,
        CancelAnswer.OVER,
    ]
    assert await rig.statuses(batch_id) == [DONE, RUNNING, PENDING, CANCELED]


async def test_cancelling_a_job_that_does_not_exist_returns_unknown_and_counts_nothing(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    assert await rig.commands.cancel_jobs(batch_id, [-1, 1], project="a") == [CancelAnswer.UNKNOWN] * 2
    assert (await rig.batch(batch_id)).counts[PENDING] == 1
    assert await rig.event_texts(batch_id) == ["batch.created"]


async def test_a_cancelled_job_is_never_handed_out(rig: StoreRig) -> None:
    batch_id = await rig.submit(4)
    await rig.commands.cancel_jobs(batch_id, [0, 2], project="a")
    grant = await rig.take()
    assert [job.index for job in grant.jobs] == [1]
    turn = await rig.settle(grant, {1: OutcomeKind.DONE})
    assert [job.index for job in turn.jobs] == [3]
    await rig.settle(grant, {3: OutcomeKind.DONE})
    assert await rig.statuses(batch_id) == [CANCELED, DONE, CANCELED, DONE]


async def test_a_held_job_that_was_cancelled_leaves_the_held_set(rig: StoreRig) -> None:
    batch_id = await rig.submit(8)
    grant = await rig.take()
    turn = await rig.settle(grant, {0: OutcomeKind.DONE}, want=4)
    assert [job.index for job in turn.jobs] == [1, 2, 3, 4]
    await rig.commands.cancel_jobs(batch_id, [2], project="a")
    assert await rig.renew(grant) == {2}
    turn = await rig.settle(grant, {1: OutcomeKind.DONE})
    assert [job.index for job in turn.jobs] == [3, 4]


async def test_an_outcome_of_a_cancelled_job_is_refused(rig: StoreRig) -> None:
    batch_id = await rig.submit(8)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE}, want=2)
    await rig.commands.cancel_jobs(batch_id, [2], project="a")
    turn = await rig.settle(grant, {2: OutcomeKind.DONE}, want=1)
    assert turn.refused == 1
    assert (await rig.job(batch_id, 2)).status is CANCELED
    assert await rig.reader.results(batch_id, [2]) == {}


async def test_a_delayed_job_is_cancelled_at_once(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    turn = await rig.settle(grant, {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)})
    assert turn.next is NextStep.PARKED
    assert await rig.commands.cancel_jobs(batch_id, [0], project="a") == [CancelAnswer.CANCELED]
    assert (await rig.batch(batch_id)).status is BatchStatus.DONE
    await rig.make_due(batch_id)
    assert await rig.grants() == []


async def test_cancelling_one_delayed_job_does_not_change_the_time_of_another(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    for index in (0, 1):
        await rig.settle(grant, {index: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)})
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    await rig.make_due(batch_id)
    grant = await rig.take()
    assert [(job.index, job.attempt) for job in grant.jobs] == [(1, 2)]
    assert (await rig.settle(grant, {1: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)})).next is NextStep.PARKED
    await rig.commands.cancel_jobs(batch_id, [1], project="a")
    assert await rig.statuses(batch_id) == [CANCELED, CANCELED]


async def test_a_ticket_does_not_wait_for_a_delayed_job_that_was_cancelled(rig: StoreRig) -> None:
    batch_id = await rig.submit(2, open=True)
    grant = await rig.take()
    turn = await rig.settle(grant, {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)})
    assert turn.next is NextStep.JOBS
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    assert (await rig.settle(grant, {1: OutcomeKind.DONE})).next is NextStep.RETIRED
    assert await rig.grants() == []


async def test_cancelling_a_job_twice_counts_the_requests_and_keeps_the_first_time(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.take()
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    first = await rig.job(batch_id, 0)
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    second = await rig.job(batch_id, 0)
    assert (first.cancel_requests, second.cancel_requests) == (1, 2)
    assert first.cancel_requested == second.cancel_requested is not None


async def test_the_result_of_a_job_may_arrive_before_its_cancel(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    await rig.settle(grant, {0: OutcomeKind.DONE})
    assert (await rig.job(batch_id, 0)).status is DONE
    assert (await rig.reader.results(batch_id, [0]))[0].counter == {"01": 10}


async def test_cancelling_a_batch_ends_what_is_pending_and_waits_for_what_runs(rig: StoreRig) -> None:
    batch_id = await rig.submit(5, open=True)
    grant = await rig.take()
    await rig.commands.cancel(batch_id, project="a")
    batch = await rig.batch(batch_id)
    assert (batch.status, batch.open) == (BatchStatus.RUNNING, False)
    assert await rig.statuses(batch_id) == [RUNNING] + [CANCELED] * 4
    assert await rig.renew(grant) == {0}

    turn = await rig.settle(grant, {0: OutcomeKind.CANCELED})
    assert turn.next is NextStep.RETIRED
    assert (await rig.batch(batch_id)).status is BatchStatus.CANCELED
    assert (await rig.event_texts(batch_id))[-2:] == ["0 job.canceled", "batch.canceled"]


async def test_a_cancelled_batch_is_canceled_even_if_its_last_job_was_done(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    await rig.commands.cancel(batch_id, project="a")
    await rig.settle(grant, {0: OutcomeKind.DONE})
    assert (await rig.batch(batch_id)).status is BatchStatus.CANCELED
    assert await rig.statuses(batch_id) == [DONE, CANCELED]


async def test_a_batch_is_cancelled_wherever_its_jobs_are(rig: StoreRig) -> None:
    """Submit jobs: one runs, one is held, one came back, one waits for a retry, one was cancelled, two are new."""
    await rig.announce(lanes=2)
    batch_id = await rig.submit(20)
    first, second = await rig.grants(2)
    turn = await rig.settle(first, {0: rig.outcome(OutcomeKind.RETRY, retry_in_s=60)}, want=3)
    assert len(turn.jobs) > 1
    await rig.tickets.drain(second.ticket, second.token)
    await rig.commands.cancel_jobs(batch_id, [15], project="a")

    await rig.commands.cancel(batch_id, project="a")
    statuses = await rig.statuses(batch_id)
    running = turn.jobs[0].index
    assert statuses.pop(running) is RUNNING
    assert set(statuses) == {CANCELED}
    assert (await rig.settle(first, {running: OutcomeKind.CANCELED})).next is NextStep.RETIRED
    assert (await rig.batch(batch_id)).counts[CANCELED] == 20
    device = await rig.reader.device("EMU")
    assert device is not None
    assert (device.pending, device.running) == (0, 0)


async def test_a_batch_that_ended_cannot_be_cancelled(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.run_all()
    before = await rig.snapshot()
    with pytest.raises(Conflict) as refusal:
        await rig.commands.cancel(batch_id, project="a")
    assert refusal.value.code == "terminal"
    assert await rig.snapshot() == before


async def test_a_large_cancel_writes_a_range_as_one_event_text(rig: StoreRig) -> None:
    batch_id = await rig.submit(5000)
    await rig.commands.cancel_jobs(batch_id, [100], project="a")
    await rig.commands.cancel(batch_id, project="a")
    entries = await rig.redis.xrange(rig.keys.prefix + "events")
    words = entries[-1][1][b"e"].decode().split()
    assert words == ["0-99PC", "101-4999PC", "PC"]
    events = await rig.events(batch_id)
    assert [event.sequence for event in events] == list(range(1, 5003))
    assert (await rig.batch(batch_id)).sequence_number == 5002


async def test_a_cancel_of_running_jobs_is_published_with_their_indices(rig: StoreRig) -> None:
    await rig.announce(lanes=2)
    batch_id = await rig.submit(4)
    await rig.grants(2)
    async with rig.store.news.pool("EMU") as heard:
        await heard.next(5)  # the first wake-up after subscribing
        await rig.commands.cancel(batch_id, project="a")
        (message,) = await heard.next(5)
    request = read_cancel(message)
    assert (request.batch_id, set(request.indices)) == (batch_id, {0, 1})


async def test_a_cancel_of_pending_jobs_is_not_published(rig: StoreRig) -> None:
    pending, running = await rig.submit(2), await rig.submit(1, project="b")
    async with rig.store.news.pool("EMU") as heard:
        await heard.next(5)
        await rig.commands.cancel(pending, project="a")
        assert (await rig.take()).batch_id == running
        await rig.commands.cancel(running, project="b")
        (message,) = await heard.next(5)
    assert read_cancel(message).batch_id == running


def asked(attempts: tuple[CancelAttempt, ...]) -> list[tuple[str, str]]:
    return [(attempt.by, attempt.jobs) for attempt in attempts]


async def test_a_cancel_is_noted_with_its_author_its_jobs_and_its_time(rig: StoreRig) -> None:
    batch_id = await rig.submit(9)
    await rig.take()
    before = (await rig.batch(batch_id)).updated
    await rig.commands.cancel_jobs(batch_id, [0, 4, 5, 6, 8, 99], project="a", by="alice (key k3v9)")
    await rig.commands.cancel_jobs(batch_id, [0, 4], project="a", by="bob@lab")
    await rig.commands.cancel(batch_id, project="a")
    batch = await rig.batch(batch_id)
    assert asked(batch.cancels) == [("alice (key k3v9)", "0,4-6,8"), ("bob@lab", "0"), ("unknown", "*")]
    times = [attempt.at for attempt in batch.cancels]
    assert times == sorted(times)
    assert before <= times[0] <= batch.updated
    everybody = [asked(job.cancels) for job in await rig.jobs(batch_id)]
    assert everybody[0] == asked(batch.cancels)
    assert everybody[1] == everybody[7] == [("unknown", "*")]
    assert everybody[4][0] == ("alice (key k3v9)", "0,4-6,8")
    assert ("bob@lab", "0") not in everybody[4]


async def test_a_refused_cancel_is_not_noted(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    await rig.settle(await rig.take(), {0: OutcomeKind.DONE})
    assert await rig.commands.cancel_jobs(batch_id, [0, 7], project="a", by="late") == [
        CancelAnswer.OVER,
        CancelAnswer.UNKNOWN,
    ]
    assert (await rig.batch(batch_id)).cancels == ()
    assert (await rig.job(batch_id, 0)).cancel_outcome is None


async def test_a_repeated_cancel_is_noted_once(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    await rig.take()
    for _ in range(2):
        await rig.commands.cancel_jobs(batch_id, [0], project="a", by="alice", idempotency_key="once")
    assert asked((await rig.batch(batch_id)).cancels) == [("alice", "0")]


@pytest.mark.parametrize("by", ["", " ", "two\nlines", "x" * 201])
async def test_the_author_of_a_cancel_must_be_a_name(rig: StoreRig, by: str) -> None:
    batch_id = await rig.submit(1)
    with pytest.raises(InvalidInput, match="by: must be"):
        await rig.commands.cancel(batch_id, project="a", by=by)
    assert await rig.statuses(batch_id) == [PENDING]


async def test_the_list_of_cancels_is_bounded_and_all_are_counted(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    await rig.take()
    for number in range(400):
        await rig.commands.cancel_jobs(batch_id, [0], project="a", by=f"{number:03} {'x' * 196}")
    batch = await rig.batch(batch_id)
    assert 250 < len(batch.cancels) < 400
    assert [attempt.by[:3] for attempt in batch.cancels] == [f"{number:03}" for number in range(len(batch.cancels))]
    assert (await rig.job(batch_id, 0)).cancel_requests == 400


async def test_a_cancel_prevents_jobs_that_no_lane_has_begun(rig: StoreRig) -> None:
    batch_id = await rig.submit(4)
    grant = await rig.take()
    await rig.commands.cancel_jobs(batch_id, [3], project="a")
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    assert (await rig.job(batch_id, 0)).cancel_outcome is None
    await rig.settle(grant, {0: Outcome(OutcomeKind.CANCELED, began=False)})
    await rig.commands.cancel(batch_id, project="a")
    await rig.settle(grant, {1: OutcomeKind.CANCELED})
    jobs = await rig.jobs(batch_id)
    prevented, stopped = CancelOutcome.PREVENTED, CancelOutcome.STOPPED
    assert [job.cancel_outcome for job in jobs] == [prevented, stopped, prevented, prevented]
    assert [job.may_have_result for job in jobs] == [False, True, False, False]
    assert all(job.cancel_requested is not None for job in jobs)


async def test_results_measured_before_a_job_was_stopped_are_kept(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    await rig.settle(grant, {0: Outcome(OutcomeKind.CANCELED, result=Result(counter={"01": 3}))})
    job = await rig.job(batch_id, 0)
    assert (job.status, job.cancel_outcome) == (CANCELED, CancelOutcome.STOPPED)
    assert (await rig.reader.results(batch_id, [0]))[0].counter == {"01": 3}


async def test_a_cancel_is_too_late_for_a_job_that_ends_first(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    for index, kind in enumerate((OutcomeKind.DONE, OutcomeKind.ERROR)):
        await rig.commands.cancel_jobs(batch_id, [index], project="a")
        await rig.settle(grant, {index: kind})
    assert [job.cancel_outcome for job in await rig.jobs(batch_id)] == [CancelOutcome.TOO_LATE] * 2


async def test_a_cancelled_job_of_a_lost_worker_was_stopped(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    await rig.lapse(grant)
    await rig.grants()
    job = await rig.job(batch_id, 0)
    assert (job.status, job.cancel_outcome) == (CANCELED, CancelOutcome.STOPPED)


@pytest.mark.parametrize("code", ["unconfirmed", "unknown"])
async def test_a_cancel_with_an_unknown_effect_is_unconfirmed(rig: StoreRig, code: str) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    unsure = Outcome(OutcomeKind.ERROR, fault=Fault(code, "the machine is silent"), cause=FaultKind.INTERNAL)
    await rig.commands.cancel_jobs(batch_id, [0], project="a")
    await rig.settle(grant, {0: unsure})
    await rig.settle(grant, {1: unsure})
    assert [job.cancel_outcome for job in await rig.jobs(batch_id)] == [CancelOutcome.UNCONFIRMED, None]


async def test_the_holder_of_a_job_notes_its_timeout_as_a_separate_request(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    await rig.tickets.note_timeout(grant.ticket, "1", 0)  # a stale token
    await rig.tickets.note_timeout(grant.ticket, grant.token, 1)  # not held
    assert (await rig.batch(batch_id)).cancels == ()
    await rig.tickets.note_timeout(grant.ticket, grant.token, 0)
    assert await rig.renew(grant) == set()  # its holder stops it without a request
    await rig.settle(grant, {0: rig.outcome(OutcomeKind.ERROR, FaultKind.TIMEOUT)})
    job = await rig.job(batch_id, 0)
    assert (job.status, job.cancel_outcome, job.cancel_requested) == (JobStatus.ERROR, CancelOutcome.STOPPED, None)
    assert asked(job.cancels) == [("timeout", "0")]
    assert await rig.statuses(batch_id) == [JobStatus.ERROR, RUNNING]


async def test_a_drain_does_not_count_as_a_cancel(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    await rig.tickets.drain(grant.ticket, grant.token)
    assert (await rig.batch(batch_id)).cancels == ()
    assert (await rig.job(batch_id, 0)).cancel_requests == 0


def test_attempts_are_read_from_their_lines() -> None:
    first, second = read_attempts("1700000000000 0,4-6 alice of the lab\n1700000000500 * timeout")
    assert (first.jobs, first.by, first.at.year) == ("0,4-6", "alice of the lab", 2023)
    assert (second.jobs, second.ranges) == ("*", None)
    assert [index for index in range(9) if first.concerns(index, None, None)] == [0, 4, 5, 6]
    assert not second.concerns(0, None, None)
    assert second.concerns(0, first.at, None)
    assert not second.concerns(0, first.at, first.at)
    assert read_attempts("") == ()


async def test_every_listener_receives_the_news_of_a_batch(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    async with rig.store.news.batch(batch_id) as one, rig.store.news.batch(batch_id) as other:
        for heard in (one, other):
            await heard.next(5)
        await rig.commands.cancel_jobs(batch_id, [0], project="a")
        assert await one.next(5) == [b"0PC"]
        assert await other.next(5) == [b"0PC"]


async def test_a_fault_in_json_with_quotes_and_newlines_survives_the_scripts(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    grant = await rig.take()
    outcome = rig.outcome(OutcomeKind.ERROR)
    assert outcome.fault is not None
    nasty = json.dumps('a "quote", a\nline, ]==] and %s')
    fault = type(outcome.fault)("user", nasty, "jobs[0].variables.x")
    await rig.settle(grant, {0: type(outcome)(OutcomeKind.ERROR, fault=fault)})
    assert (await rig.job(batch_id, 0)).faults == (fault,)
