"""Which news make a held request read the state again, and its behaviour while Redis is unavailable."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from tweezer.api.http import longpoll
from tweezer.api.http.longpoll import LongPolls, may_change_job, may_end_batch
from tweezer.model.errors import Unavailable
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import BatchDoc, Priority
from tweezer.store.records import BatchRecord
from tweezer.store.streams.feed import ChannelReader

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
def test_a_closed_batch_ends_with_a_separate_event(messages: list[bytes], closed: bool, opened: bool) -> None:
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
    assert may_change_job(messages, 3) is about


async def held(reads: Iterator[str | Exception], *, wait_s: float) -> str:
    """Return the response to a held request whose reads of Redis return these, one after the other."""

    @contextlib.asynccontextmanager
    async def listen(batch_id: UUID) -> AsyncIterator[ChannelReader]:
        heard = ChannelReader()
        heard.put(None)  # as when Redis confirms the subscription
        yield heard

    async def read() -> str:
        found = next(reads)
        if isinstance(found, Exception):
            raise found
        return found

    async def receive() -> Any:
        await asyncio.Event().wait()

    holds: Any = LongPolls(SimpleNamespace(news=SimpleNamespace(batch=listen)))  # type: ignore[arg-type]
    answer: str = await holds.until(
        lambda state: state == "DONE",
        read,
        batch_id=BATCH,
        matters=lambda messages, state: False,
        wait_s=wait_s,
        account="user",
        receive=receive,
    )
    return answer


async def test_an_outage_of_redis_that_ends_in_time_only_delays_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longpoll, "_LOOK_AGAIN_S", 0.01)
    away = Unavailable("Redis cannot be reached")
    assert await held(iter(["RUNNING", away, away, "RUNNING", away, "DONE"]), wait_s=20) == "DONE"


async def test_a_lasting_outage_of_redis_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longpoll, "_LOOK_AGAIN_S", 0.05)
    with pytest.raises(Unavailable):
        await held(iter(["RUNNING", *[Unavailable("Redis cannot be reached")] * 100]), wait_s=0.2)
