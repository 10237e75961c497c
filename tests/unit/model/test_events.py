"""The words of the events stream, and their events."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from tweezer.model.events import RETURNS, Event, JobNews, Word, count_events, read_events, read_news, words_of_news
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import Fault, Steps, encode_fault, pack_steps

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


def test_the_creation_event_has_the_number_of_jobs() -> None:
    assert read("NP:20") == [Event(BATCH, 1, TIME_US, BatchStatus.PENDING, None, None, 20)]


def test_sequence_numbers_continue_over_words_and_ranges() -> None:
    events = read("PR 0PR 0RD 1-3PC RD", first=2)
    assert [event.sequence for event in events] == list(range(2, 9))
    assert [event.index for event in events] == [None, 0, 0, 1, 2, 3, None]


def test_events_of_jobs_have_the_worker_and_lane_of_their_entry() -> None:
    batch, running, pending = read_events(BATCH, 1, TIME_US, "PR 0PR 1RP", "lab1:812:3fa901:2 lost")
    assert (batch.worker, batch.lane, batch.why) == (None, None, None)
    assert (running.worker, running.lane, running.why) == ("lab1:812:3fa901", 2, None)
    assert (pending.worker, pending.lane, pending.why) == ("lab1:812:3fa901", 2, "lost")
    assert pending.reason == RETURNS["lost"]


@pytest.mark.parametrize("holder", ["", " ", "lane", ":", "a:b", "w:0x1", "w:٣", "w:999999", " why", "w:1 why not"])
def test_a_holder_that_cannot_be_read_is_not_an_error(holder: str) -> None:
    (event,) = read_events(BATCH, 1, TIME_US, "0RP", holder)
    assert event.why is None
    assert event.reason is None
    assert event.lane in (None, 1)


def test_an_empty_text_has_no_events() -> None:
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


def test_an_event_has_the_same_id_everywhere() -> None:
    one, two = read("0-1PC", first=4)
    assert one.id == f"{BATCH}:4:{TIME_US}"
    assert one.id != two.id
    assert read("0-1PC", first=4)[0].id == one.id


def test_the_time_of_an_event_is_utc() -> None:
    (event,) = read("PR")
    assert event.time == datetime(2024, 7, 3, 9, 46, 40, 123456, UTC)


@pytest.mark.parametrize("junk", ["x", "5P", "5-PR", "PRX", "-5PR", "pr", "0PR;", "5PR:x"])
def test_junk_is_refused(junk: str) -> None:
    with pytest.raises(ValueError, match="not a valid event word"):
        read(junk)


@pytest.mark.parametrize("unknown", ["PX", "0XR", "0PS"])
def test_an_unknown_letter_is_refused(unknown: str) -> None:
    with pytest.raises(ValueError, match="not a valid event word"):
        read(unknown)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("5PR", Word("PR", range(5, 6))),
        ("0-99PC", Word("PC", range(100))),
        ("PR", Word("PR")),
        ("NP:20", Word("NP", submitted=20)),
        ("RI", Word("RI")),
    ],
)
def test_a_word_is_written_as_it_was_read(text: str, word: Word) -> None:
    assert Word.parse(text) == word
    assert str(word) == text


def test_a_word_can_be_split_after_its_first_events() -> None:
    word = Word.parse("3-9PC")
    assert str(word.skip(0)) == "3-9PC"
    assert str(word.skip(2)) == "5-9PC"
    assert str(word.skip(6)) == "9PC"


def test_events_are_counted_without_being_created() -> None:
    assert count_events("PR 0PR 0RD 1-3PC RD") == 7
    assert count_events("") == 0


def test_news_are_words_or_progress_of_a_job() -> None:
    assert read_news(b"~3 on_device 40") == JobNews(3, Stage.ON_DEVICE, 40.0)
    assert read_news(b"~12 preparing -") == JobNews(12, Stage.PREPARING, None)
    assert read_news(b"3RD RD") == [Word("RD", range(3, 4)), Word("RD")]
    assert words_of_news([b"~3 on_device 40", b"3RD RD", b"", b"4PR"]) == [*map(Word.parse, ("3RD", "RD", "4PR"))]


def test_the_fault_of_a_repeated_attempt_belongs_to_the_events_of_its_jobs_only() -> None:
    fault = Fault("transient", "a line\nanother")
    faults = f"1,3 retry {encode_fault(fault).decode()}\n4 crash {encode_fault(Fault('crash', 'gone')).decode()}"
    words = "0RD 1-2RP 3RP 4RP 1PR"
    found = list(read_events(BATCH, 1, TIME_US, words, "lab1:812:3fa901:2 drain", faults))
    assert [(it.index, it.why, it.fault and it.fault.message) for it in found] == [
        (0, None, None),
        (1, "retry", fault.message),
        (2, "drain", None),
        (3, "retry", fault.message),
        (4, "crash", "gone"),
        (1, None, None),
    ]


@pytest.mark.parametrize(
    "faults", ["x", "1", "1 retry", "1 retry {", "1 retry 7", "a retry {}", "1,, retry {}", "\n\n", "1 retry {}"]
)
def test_faults_that_cannot_be_read_are_ignored(faults: str) -> None:
    (event,) = read_events(BATCH, 1, TIME_US, "1RP", "w:1 retry", faults)
    assert (event.why, event.fault) == ("retry", None)


def test_news_of_progress_may_have_steps() -> None:
    assert read_news(b"~5 on_device 40.0") == JobNews(5, Stage.ON_DEVICE, 40.0)
    steps = Steps(2, 5, "trajectory 3 of 5")
    numbers, message = pack_steps(steps)
    assert read_news(f"~5 on_device 40.0 {numbers} {message}".encode()) == JobNews(5, Stage.ON_DEVICE, 40.0, steps)
