"""Alarms for couriers: jobs of arq on their queue."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import fakeredis
import pytest

from tweezer.model.errors import Unavailable
from tweezer.store.connection import Store
from tweezer.webhooks.deliveries import Alarms


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    store = Store(fakeredis.FakeAsyncRedis())
    yield store
    await store.close()


def redis_of(store: Store) -> Any:
    return store.redis


async def rung(store: Store) -> list[tuple[str, float]]:
    rows = await redis_of(store).zrange("tweezer:courier", 0, -1, withscores=True)
    return [(name.decode(), score) for name, score in rows]


async def test_alarms_in_the_same_second_are_one_and_never_ring_early(store: Store) -> None:
    endpoint, due_ms = uuid4(), now_ms() + 60_000
    alarms = Alarms(store)
    for milliseconds in (0, 1, 900):
        await alarms.arm(endpoint, due_ms // 1000 * 1000 + milliseconds)
    (early, first), (late, second) = await rung(store)
    assert {early, late} == {f"tweezer:courier:{endpoint}:{due_ms // 1000 + more}" for more in (0, 1)}
    assert (first, second) == (due_ms // 1000 * 1000, due_ms // 1000 * 1000 + 1000)
    assert await redis_of(store).pttl(f"arq:job:{early}") > 6 * 86_400_000


async def test_alarms_for_now_are_separate_jobs(store: Store) -> None:
    endpoint = uuid4()
    for due_ms in (None, None, now_ms() - 5_000):
        await Alarms(store).arm(endpoint, due_ms)
    rows = await rung(store)
    assert len(rows) == 3
    assert all(score <= now_ms() + 1 for _, score in rows)


async def test_setting_an_alarm_without_redis_raises_unavailable() -> None:
    away = Store(fakeredis.FakeAsyncRedis(connected=False))
    with pytest.raises(Unavailable):
        await Alarms(away).arm(uuid4(), None)
    await away.close()
