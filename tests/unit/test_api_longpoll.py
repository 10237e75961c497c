"""Which news make a held request look at the state again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tweezer.api.longpoll import may_change_job, may_end_batch
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import BatchDoc, Priority
from tweezer.store.records import BatchRecord

BATCH = new_batch_id()


def record(*, open: bool) -> BatchRecord:
    now = datetime.now(UTC)
    return BatchRecord(
        id=BATCH,
        project="p",
        device="EMU_FREE",
        priority=Priority.MEDIUM,
        status=BatchStatus.RUNNING,
        open=open,
        created=now,
        updated=now,
        started=now,
        ended=None,
        jobs=10,
        counts=dict.fromkeys(JobStatus, 2),
        sequence_number=1,
        doc=BatchDoc(device="EMU_FREE"),
        fault=None,
    )


@pytest.mark.parametrize(
    ("messages", "closed", "opened"),
    [
        ([b"~3 on_device 40"], False, False),
        ([b"3RD 4PR"], False, True),
        ([b"PS"], False, True),
        ([b"9RD RD"], True, True),
        ([b"~3 on_device 40", b"3RD", b"0-99999PC RC"], True, True),
        ([b"PE"], True, True),
        ([b"ST"], True, True),
    ],
)
def test_a_closed_batch_ends_with_an_event_of_its_own(messages: list[bytes], closed: bool, opened: bool) -> None:
    assert may_end_batch(messages, record(open=False)) is closed
    assert may_end_batch(messages, record(open=True)) is opened


@pytest.mark.parametrize(
    ("messages", "about"),
    [
        ([b"~3 on_device 40"], False),
        ([b"13RD 4RD"], False),
        ([b"4RD", b"5PR 3RD"], True),
        ([b"0-9PC"], True),
        ([b"RD"], True),
    ],
)
def test_a_job_changes_by_events_about_itself_a_range_or_the_batch(messages: list[bytes], about: bool) -> None:
    assert may_change_job(messages, BATCH, 3) is about
