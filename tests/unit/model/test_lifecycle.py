"""The lifecycle table is consistent in itself; that the scripts follow it is tested in ``tests/store``."""

from __future__ import annotations

import pytest

from tweezer.model.lifecycle import (
    BATCH_BY_LETTER,
    BATCH_TABLE,
    JOB_BY_LETTER,
    JOB_TABLE,
    TERMINAL_BATCH,
    TERMINAL_JOB,
    BatchEvent,
    BatchStatus,
    JobEvent,
    JobStatus,
)


@pytest.mark.parametrize("status", sorted(TERMINAL_JOB))
def test_no_event_leaves_a_terminal_job_status(status: JobStatus) -> None:
    assert status.terminal
    assert [event for event in JobEvent if (status, event) in JOB_TABLE] == []


@pytest.mark.parametrize("status", sorted(TERMINAL_BATCH))
def test_no_event_leaves_a_terminal_batch_status(status: BatchStatus) -> None:
    assert status.terminal
    assert [event for event in BatchEvent if (status, event) in BATCH_TABLE] == []


def test_each_live_job_status_can_reach_every_terminal_status() -> None:
    for status in set(JobStatus) - TERMINAL_JOB:
        assert not status.terminal
        reached = {status}
        for _ in JobStatus:
            reached |= {after for (before, _), after in JOB_TABLE.items() if before in reached}
        assert reached >= TERMINAL_JOB


def test_every_status_of_a_batch_is_reached_from_pending() -> None:
    reached = {BatchStatus.PENDING}
    for _ in BatchStatus:
        reached |= {after for (before, _), after in BATCH_TABLE.items() if before in reached}
    assert reached == set(BatchStatus)


def test_every_event_occurs_in_the_tables() -> None:
    assert {event for _, event in JOB_TABLE} == set(JobEvent)
    assert {event for _, event in BATCH_TABLE} == set(BatchEvent)


def test_a_job_runs_before_it_is_done() -> None:
    assert {before for (before, _), after in JOB_TABLE.items() if after is JobStatus.DONE} == {JobStatus.RUNNING}


def test_a_paused_batch_does_not_expire() -> None:
    assert (BatchStatus.PAUSED, BatchEvent.EXPIRE) not in BATCH_TABLE


def test_only_a_timeout_has_two_reasons_for_which_a_batch_ends() -> None:
    for end in TERMINAL_BATCH:
        events = {event for (_, event), after in BATCH_TABLE.items() if after is end}
        assert len(events) == (2 if end is BatchStatus.TIMED_OUT else 1)


def test_letters_of_statuses_are_unique() -> None:
    assert len(JOB_BY_LETTER) == len(JobStatus)
    assert len(BATCH_BY_LETTER) == len(BatchStatus)
    assert all(JOB_BY_LETTER[status.letter] is status for status in JobStatus)
    assert all(BATCH_BY_LETTER[status.letter] is status for status in BatchStatus)


def test_no_status_uses_the_letter_for_none() -> None:
    """``N`` means that a batch did not exist before (``NP:20``)."""
    assert "N" not in JOB_BY_LETTER.keys() | BATCH_BY_LETTER.keys()


def test_the_wire_words_are_pasqals() -> None:
    assert [status.value for status in JobStatus] == ["PENDING", "RUNNING", "DONE", "ERROR", "CANCELED"]
    assert [status.value for status in BatchStatus] == [
        "PENDING",
        "RUNNING",
        "PAUSED",
        "DONE",
        "ERROR",
        "CANCELED",
        "TIMED_OUT",
    ]
