"""The users of Redis on real servers: what each one may not do, and processes whose user lacks a right."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from tests.support.processes import Site
from tests.support.redis_users import RedisServer, as_user

from tweezer.model.errors import TweezerError
from tweezer.store.acl import RedisUser
from tweezer.store.connection import Connect, Store
from tweezer.store.remote import NotDurable
from tweezer.store.scripts import StoreConfig

BOUND = [user for user in RedisUser if user is not RedisUser.ADMIN]

FORBIDDEN: list[tuple[Any, ...]] = [
    ("CONFIG", "SET", "maxmemory", "0"),
    ("ACL", "LIST"),
    ("FLUSHALL",),
    ("KEYS", "*"),
    ("CLIENT", "KILL", "ID", "1"),
    ("SCRIPT", "FLUSH"),
    ("SHUTDOWN", "NOSAVE"),
    ("REPLICAOF", "NO", "ONE"),
    ("EXISTS", "foreign"),
    ("EXISTS", "tweezer2:settings"),
    ("SUBSCRIBE", "foreign"),
]

OF_OTHERS = {
    RedisUser.API: ("tweezer:intake", "tweezer:scheduler", "arq:job:message", "tweezer:counted"),
    RedisUser.WORKER: (
        "tweezer:intake",
        "arq:job:message",
        "tweezer:logins:a:b",
        "tweezer:calls:a",
        "tweezer:recorder",
    ),
    RedisUser.SCHEDULER: ("tweezer:logins:a:b", "tweezer:recorder", "tweezer:courier"),
    RedisUser.RECORDER: ("tweezer:intake", "arq:job:message", "tweezer:logins:a:b", "tweezer:idempotency:a:b"),
    RedisUser.COURIER: ("tweezer:intake", "tweezer:project:a", "tweezer:logins:a:b", "tweezer:recorder"),
    RedisUser.PRODUCER: ("tweezer:intake", "arq:job:message", "tweezer:logins:a:b", "tweezer:endpoints"),
    RedisUser.SENDER: ("tweezer:batch:a", "tweezer:events", "tweezer:settings", "tweezer:courier"),
}
"""Keys of Tweezer that a user may not touch."""


@pytest.fixture(
    params=[pytest.param("redis", marks=pytest.mark.redis), pytest.param("valkey", marks=pytest.mark.valkey)]
)
def server(request: pytest.FixtureRequest) -> RedisServer:
    return cast(RedisServer, request.getfixturevalue(f"{request.param}_server"))


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server whose users a test may change."""
    with RedisServer() as server:
        yield server


@pytest.fixture
async def site(own_server: RedisServer, tmp_path: Path, sqlite_url: str) -> AsyncIterator[Site]:
    async with Site(own_server.url, tmp_path, database_url=sqlite_url, data_dir=tmp_path, api_port=0) as site:
        yield site


def refused(url: str, *command: object) -> None:
    with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


@pytest.mark.parametrize("user", BOUND)
def test_a_user_of_redis_has_only_the_rights_of_its_process(user: RedisUser, server: RedisServer) -> None:
    url = as_user(server.url, user)
    for command in FORBIDDEN:
        refused(url, *command)
    for key in OF_OTHERS.get(user, ()):
        refused(url, "EXISTS", key)
    if user is not RedisUser.OPERATOR:
        refused(url, "CONFIG", "GET", "requirepass")


@pytest.mark.parametrize("user", [user for user in BOUND if user is not RedisUser.SENDER])
@pytest.mark.parametrize("call", ["'GET', 'foreign'", "'FLUSHALL'", "'PUBLISH', 'foreign', 'x'"])
async def test_a_user_has_no_more_rights_in_a_script(user: RedisUser, call: str, server: RedisServer) -> None:
    async with Store.open(Connect(as_user(server.url, user))) as store:
        text: Any = f"return redis.call({call})"
        with pytest.raises(redis.exceptions.ResponseError, match=r"ACL failure|script can't"):
            await store.redis.execute_command("EVAL", text, 1, store.keys.prefix)


async def test_a_right_that_a_script_lacks_is_reported_as_such(own_server: RedisServer) -> None:
    with redis.Redis.from_url(own_server.url) as plain:
        plain.execute_command("ACL", "SETUSER", "tweezer-worker", "-hset")
    async with Store.open(Connect(as_user(own_server.url, RedisUser.WORKER))) as store:
        with pytest.raises(TweezerError, match=r"lacks a permission in Redis .* `tweezer redis-users`") as refusal:
            await store.tickets.publish_settings(StoreConfig())
    assert refusal.value.code == "redis_auth"
    assert not refusal.value.retryable


@pytest.mark.parametrize("process", ["worker", "scheduler", "recorder", "courier", "api"])
async def test_a_process_with_the_user_of_another_ends_with_the_reason(process: str, site: Site) -> None:
    started = site.spawn(process, worker_device="NULL", redis_url=as_user(site.url, RedisUser.SENDER))
    assert await started.ended() == 1
    assert "the user in TWEEZER_REDIS_URL lacks a permission in Redis" in started.text


async def test_a_process_that_lacks_a_right_reports_it_and_continues_once_it_is_granted(site: Site) -> None:
    redis: Any = site.store.redis
    await redis.execute_command("ACL", "SETUSER", "tweezer-recorder", "-xrange")
    recorder = site.spawn("recorder")
    (failure, *_) = await recorder.wait_logged("duty.failed")
    assert "lacks a permission in Redis" in failure["error"]
    await redis.execute_command("ACL", "SETUSER", "tweezer-recorder", "+xrange")
    await recorder.wait_logged("recorder.active")
    worker = site.worker()
    await site.serves(worker)
    batch = await site.submit([{}])
    await batch.wait(60)


@pytest.mark.redis
async def test_a_worker_of_a_machine_names_the_right_that_an_older_redis_needs(redis_server: RedisServer) -> None:
    async with Store.open(Connect(as_user(redis_server.url, RedisUser.WORKER))) as store:
        with pytest.raises(NotDurable, match=r"grant the user \+config\|get"):
            await store.remote.require_durability()
