"""The words of the events stream, and the events that they stand for."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from tweezer.model.events import Event, read_events
from tweezer.model.lifecycle import BatchStatus, JobStatus

BATCH = UUID("0190d1f4-9c3b-8000-8000-000000000000")
TIME_US = 1_720_000_000_123_456


def read(words: str, first: int = 1) -> list[Event]:
    return list(read_events(BATCH, first, TIME_US, words))


def test_a_word_with_an_index_is_a_transition_of_a_job() -> None:
    assert read("5PR", first=3) == [Event(BATCH, 3, TIME_US, JobStatus.RUNNING, JobStatus.PENDING, 5)]


def test_a_word_with_a_range_is_one_event_a_job() -> None:
    events = read("10-12PC", first=7)
    assert [(event.index, event.sequence) for event in events] == [(10, 7), (11, 8), (12, 9)]
    assert {(event.previous, event.status) for event in events} == {(JobStatus.PENDING, JobStatus.CANCELED)}


def test_a_word_without_an_index_is_a_transition_of_the_batch() -> None:
    assert read("RS") == [Event(BATCH, 1, TIME_US, BatchStatus.PAUSED, BatchStatus.RUNNING)]


def test_the_creation_says_how_many_jobs_there_were() -> None:
    assert read("NP:20") == [Event(BATCH, 1, TIME_US, BatchStatus.PENDING, None, None, 20)]


def test_sequence_numbers_count_on_over_words_and_ranges() -> None:
    events = read("PR 0PR 0RD 1-3PC RD", first=2)
    assert [event.sequence for event in events] == list(range(2, 9))
    assert [event.index for event in events] == [None, 0, 0, 1, 2, 3, None]


def test_no_words_are_no_events() -> None:
    assert read("") == []


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("NP:2", "batch.created"),
        ("PR", "batch.running"),
        ("RS", "batch.paused"),
        ("SR", "batch.resumed"),
        ("SP", "batch.resumed"),
        ("SD", "batch.done"),
        ("SC", "batch.canceled"),
        ("RD", "batch.done"),
        ("RE", "batch.error"),
        ("RC", "batch.canceled"),
        ("PT", "batch.timed_out"),
        ("0PR", "job.running"),
        ("0RP", "job.pending"),
        ("0RD", "job.done"),
        ("0RE", "job.error"),
        ("0PC", "job.canceled"),
    ],
)
def test_each_transition_has_its_type(word: str, kind: str) -> None:
    (event,) = read(word)
    assert event.type == kind


def test_an_event_has_the_same_id_wherever_it_is_told() -> None:
    one, two = read("0-1PC", first=4)
    assert one.id == f"{BATCH}:4:{TIME_US}"
    assert one.id != two.id
    assert read("0-1PC", first=4)[0].id == one.id


def test_the_time_of_an_event_is_utc() -> None:
    (event,) = read("PR")
    assert event.time == datetime(2024, 7, 3, 9, 46, 40, 123456, UTC)


@pytest.mark.parametrize("junk", ["x", "5P", "5-PR", "PRX", "-5PR", "pr", "0PR;", "5PR:x"])
def test_junk_is_refused(junk: str) -> None:
    with pytest.raises(ValueError, match="not a word"):
        read(junk)


@pytest.mark.parametrize("unknown", ["PX", "0XR", "0PS"])
def test_an_unknown_letter_is_refused(unknown: str) -> None:
    with pytest.raises(LookupError):
        read(unknown)
