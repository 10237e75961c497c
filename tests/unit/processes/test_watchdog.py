"""A blocked event loop is reported, with the place that blocks it."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs
from structlog.typing import EventDict
from tests.support.waiting import until, wait_until

from tweezer.processes.runtime import watching_loop


def found(logged: list[EventDict], event: str) -> list[EventDict]:
    return [entry for entry in logged if entry["event"] == event]


async def test_a_loop_that_is_blocked_is_reported_with_the_place() -> None:
    with capture_logs() as logged, watching_loop(beat_s=0.01, late_s=0.1):
        wait_until(lambda: bool(found(logged, "loop.blocked")))  # this blocks the loop
        await until(lambda: bool(found(logged, "loop.runs_again")))
    (blocked,) = found(logged, "loop.blocked")
    assert any("wait_until" in place for place in blocked["at"])
    assert blocked["for_s"] >= 0.1
    assert blocked["log_level"] == "warning"


async def test_a_loop_that_runs_is_not_reported() -> None:
    with capture_logs() as logged, watching_loop(beat_s=0.01, late_s=5.0):
        for _ in range(100):
            await asyncio.sleep(0)
    assert logged == []
