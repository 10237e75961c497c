"""Tickets for streams: they work once, for one stream, for a minute, with the rights of the API's user of Redis."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.store_rig import StoreRig

from tweezer.store.guards import STREAM_TICKET_S

KEY, PATH = "abcdefgh2345", "/api/v2/events/stream"


async def test_a_ticket_is_redeemed_by_one_of_several_requests(rig: StoreRig) -> None:
    tickets = rig.store.stream_tickets
    ticket, another = await tickets.issue(KEY, PATH), await tickets.issue("zyxwvuts7654", PATH)
    assert ticket != another
    found = await asyncio.gather(*(tickets.redeem(ticket, PATH) for _ in range(10)))
    assert sorted(found, key=str) == [None] * 9 + [KEY]
    assert await tickets.redeem(another, PATH) == "zyxwvuts7654"


async def test_a_ticket_is_not_valid_for_another_stream_and_is_used_up_by_the_attempt(rig: StoreRig) -> None:
    tickets = rig.store.stream_tickets
    for wrong in ("", f"{PATH}/", f"{KEY} {PATH}", "/api/v2/batches/x/events/stream"):
        ticket = await tickets.issue(KEY, PATH)
        assert await tickets.redeem(ticket, wrong) is None
        assert await tickets.redeem(ticket, PATH) is None
    for unknown in ("", "x", "\udcff", "x" * 100_000):
        assert await tickets.redeem(unknown, PATH) is None


async def test_a_ticket_expires(rig: StoreRig) -> None:
    redis: Any = rig.store.redis
    await rig.store.stream_tickets.issue(KEY, PATH)
    (name,) = [key async for key in redis.scan_iter(match="*stream_ticket:*")]
    assert 0 < await redis.pttl(name) <= STREAM_TICKET_S * 1000
