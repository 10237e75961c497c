"""Attempts of a job, as its events show them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from tweezer.model.attempts import JobAttempt, JobAttemptOutcome, read_attempts
from tweezer.model.events import RETURNS, Event, read_events
from tweezer.model.messages import Fault, encode_fault

BATCH = UUID("0199f3a2-7c1e-8b1d-9f04-a1b2c3000000")
EPOCH = datetime.fromtimestamp(0, UTC)
FIRST, SECOND = "lab1:812:3fa901:2", "lab2:7:a1b2c3:0"
FAULT = Fault("transient", "the laser is out of lock")


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def events(*entries: tuple[str, str] | tuple[str, str, str]) -> list[Event]:
    """Return the events of entries (words, holder, faults), one each second from the first one on."""
    numbers = count(1)
    found: list[Event] = []
    for second, (words, *rest) in enumerate(entries, 1):
        for word in words.split():
            found += read_events(BATCH, next(numbers), second * 1_000_000, word, *rest)
    return found


def summaries(found: Iterable[JobAttempt]) -> list[tuple[int, str | None, str | None]]:
    return [(it.number, it.worker, it.outcome) for it in found]


def test_a_job_that_never_began_has_no_attempt() -> None:
    assert read_attempts([]) == []
    assert read_attempts(events(("0PC", ""))) == []
    assert read_attempts(events(("0PE", "")), fault=FAULT) == []


def test_an_attempt_that_runs_has_no_end() -> None:
    assert read_attempts(events(("0PR", FIRST))) == [JobAttempt(1, "lab1:812:3fa901", 2, at(1))]


def test_each_attempt_has_its_worker_its_times_and_its_end() -> None:
    found = read_attempts(
        events(("0PR", FIRST), ("0RP", f"{FIRST} lost"), ("0PR", SECOND), ("0RD", SECOND)), started=at(3)
    )
    assert found == [
        JobAttempt(1, "lab1:812:3fa901", 2, at(1), at(2), JobAttemptOutcome.LOST),
        JobAttempt(2, "lab2:7:a1b2c3", 0, at(3), at(4), JobAttemptOutcome.DONE),
    ]
    assert found[0].reason == RETURNS["lost"]
    assert found[1].reason is None
    assert [it.duration_s for it in found] == [1.0, 1.0]


def test_a_repeated_attempt_has_its_own_fault_and_the_last_one_that_of_the_job() -> None:
    faults = f"0,3 retry {encode_fault(FAULT).decode()}"
    last = Fault("user", "expected 3 values")
    found = read_attempts(
        events(("0PR", FIRST), ("0RP", f"{FIRST} retry", faults), ("0PR", FIRST), ("0RE", FIRST)), fault=last
    )
    assert [(it.outcome, it.fault) for it in found] == [("retry", FAULT), ("error", last)]


def test_the_fault_of_a_job_belongs_to_no_attempt_that_did_not_fail() -> None:
    (found,) = read_attempts(events(("0PR", FIRST), ("0RC", FIRST)), fault=FAULT)
    assert (found.outcome, found.fault) == (JobAttemptOutcome.CANCELED, None)


def test_a_job_on_a_machine_that_another_worker_continued_is_one_attempt() -> None:
    assert summaries(read_attempts(events(("0PR", FIRST), ("0RD", SECOND)))) == [(1, "lab2:7:a1b2c3", "done")]


def test_an_attempt_that_was_reported_with_its_end_has_the_begin_of_the_record() -> None:
    (found,) = read_attempts(events(("0PR 0RD", FIRST)), started=at(0.25))
    assert (found.started, found.ended) == (at(0.25), at(1))


def test_an_end_that_a_power_loss_took_is_unknown() -> None:
    found = read_attempts(events(("0PR", FIRST), ("0PR", SECOND), ("0RD", SECOND)))
    assert summaries(found) == [(1, "lab1:812:3fa901", "unknown"), (2, "lab2:7:a1b2c3", "done")]
    assert found[0].ended is None


def test_an_attempt_without_a_recorded_begin_has_none() -> None:
    (found,) = read_attempts(events(("0RD", FIRST)))
    assert (found.started, found.ended, found.duration_s) == (None, at(1), None)


def test_events_from_before_holders_were_recorded_make_attempts_too() -> None:
    found = read_attempts(events(("0PR", ""), ("0RP", ""), ("0PR", ""), ("0RD", "")))
    assert summaries(found) == [(1, None, "unknown"), (2, None, "done")]


def test_each_reason_for_another_attempt_is_an_outcome_and_a_newer_one_is_unknown() -> None:
    assert set(RETURNS) | {"done", "error", "canceled", "unknown"} == set(JobAttemptOutcome)
    assert JobAttemptOutcome("of a newer version") is JobAttemptOutcome.UNKNOWN


@given(st.lists(st.tuples(st.sampled_from(["0PR", "0RP", "0RD", "0RE", "0RC", "0PC"]), st.text(max_size=30))))
def test_any_events_make_attempts_with_rising_numbers(entries: list[tuple[str, str]]) -> None:
    found = read_attempts(events(*entries))
    assert [it.number for it in found] == list(range(1, len(found) + 1))
    assert all(it.outcome is not None for it in found[:-1])
