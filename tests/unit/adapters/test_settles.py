"""Settles of the same moment are sent in one call, and none is left out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from tweezer.model.errors import Unavailable
from tweezer.model.ids import new_batch_id
from tweezer.store.records import TicketRef
from tweezer.store.scripts import Scripts
from tweezer.store.workers import NextStep, Tickets


class Answering:
    """Scripts that reply at once: one reply for each ticket."""

    def __init__(self, pause: bool) -> None:
        self.calls: list[int] = []
        self._pause = pause
        self.down = False

    async def call(self, name: str, *, tickets: Sequence[Any], outcomes: Sequence[Any]) -> list[Any]:
        self.calls.append(len(tickets))
        if self._pause:
            await asyncio.sleep(0)
        if self.down:
            raise Unavailable("gone")
        return [[b"retired", 0]] * len(tickets)


async def settle(tickets: Tickets) -> NextStep:
    turn = await tickets.settle(TicketRef(new_batch_id(), 0), "1", [], want=1, used_s=0, lease_s=1)
    return turn.next


@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 40])
async def test_every_concurrent_settle_is_answered(lanes: int, pause: bool) -> None:
    scripts = Answering(pause)
    tickets = Tickets(cast(Scripts, scripts))

    async def lane() -> None:
        for _ in range(50):
            assert await settle(tickets) is NextStep.RETIRED

    async with asyncio.timeout(30):
        await asyncio.gather(*(lane() for _ in range(lanes)))
    assert sum(scripts.calls) == 50 * lanes
    assert max(scripts.calls) <= 16


async def test_simultaneous_settles_share_a_call() -> None:
    scripts = Answering(pause=True)
    tickets = Tickets(cast(Scripts, scripts))
    await asyncio.gather(*(settle(tickets) for _ in range(10)))
    assert len(scripts.calls) < 10


async def test_each_settle_of_a_failed_call_gets_the_error_and_may_be_repeated() -> None:
    scripts = Answering(pause=True)
    tickets = Tickets(cast(Scripts, scripts))
    scripts.down = True
    answers = await asyncio.gather(*(settle(tickets) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(answer, Unavailable) for answer in answers)
    scripts.down = False
    assert await settle(tickets) is NextStep.RETIRED
