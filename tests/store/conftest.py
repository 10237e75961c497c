"""Fixtures of the store tests.

Each fails a test that leaves a key without an owner or an expiry, or a wrong counter of a project.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

import pytest
from redis.asyncio import Redis
from tests.support.redis_users import RedisServer, store_of_users
from tests.support.store_rig import StoreRig
from tests.support.usage import expected_counts, found_counts


async def _rigged(redis: Redis, url: str | None) -> AsyncIterator[StoreRig]:
    """Yield a rig; on a server, each script is called as a user of Redis that may call it."""
    if url is not None:
        async with store_of_users(redis, url) as store:
            async for rig in _checked(StoreRig(redis, store)):
                yield rig
    else:
        async for rig in _checked(StoreRig(redis)):
            yield rig


async def _checked(rig: StoreRig) -> AsyncIterator[StoreRig]:
    await rig.announce()
    yield rig
    await rig.store.news.close()
    assert await rig.leaks() == []
    assert not rig.checks_usage or await found_counts(rig.store) == await expected_counts(rig.store)


@pytest.fixture
async def rig(redis_client: Redis, store_url: str | None) -> AsyncIterator[StoreRig]:
    """A store with one device that has one lane."""
    async for rig in _rigged(redis_client, store_url):
        yield rig


@pytest.fixture
async def two_lanes(rig: StoreRig) -> StoreRig:
    """A store with one device that has two lanes, so that a batch may have two tickets."""
    await rig.announce(lanes=2)
    return rig


@pytest.fixture(
    params=[pytest.param("redis", marks=pytest.mark.redis), pytest.param("valkey", marks=pytest.mark.valkey)]
)
async def real_rig(request: pytest.FixtureRequest) -> AsyncIterator[StoreRig]:
    """A store on real servers only, for features that fakeredis lacks."""
    server = cast(RedisServer, request.getfixturevalue(f"{request.param}_server"))
    async with Redis.from_url(server.url) as client:
        await client.flushall()
        async for rig in _rigged(client, server.url):
            yield rig
