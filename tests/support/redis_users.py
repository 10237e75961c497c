"""Redis servers for tests, with the users of a deployment, as which processes under test connect.

The user ``default`` may do everything. Tests use it for preparations and checks.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from tweezer.cli.local import redis_server
from tweezer.store.acl import EACH_CALLS, SCRIPTS, RedisUser, acl_lines, add_credentials, hash_password, user_name
from tweezer.store.connection import Store
from tweezer.store.keys import Keys
from tweezer.store.scripts import Scripts

STORE_NAMESPACE = "test"
"""The namespace of the store tests."""

_PASSWORD = "of-the-tests"


class RedisServer(redis_server.RedisServer):
    """A server with these users.

    ``workers_read_settings`` lets workers read its configuration, which those of a machine need before Redis 7.2.
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        options: Mapping[str, str] | None = None,
        workers_read_settings: bool = False,
        **others: Any,
    ) -> None:
        users = _users_file(workers_read_settings=workers_read_settings)
        super().__init__(data, options={**(options or {}), "aclfile": str(users)}, **others)


def as_user(url: str, user: RedisUser, *, namespace: str = "tweezer") -> str:
    """Return the URL of such a server for a process that connects as this user."""
    return add_credentials(url, user_name(user, namespace), _PASSWORD)


@functools.cache
def _users_file(*, workers_read_settings: bool) -> Path:
    passwords = dict.fromkeys(RedisUser, hash_password(_PASSWORD))
    users = [line for name in ("tweezer", STORE_NAMESPACE) for line in acl_lines(name, passwords)[1:]]
    if workers_read_settings:
        worker = f"user {user_name(RedisUser.WORKER, 'tweezer')} "
        users = [f"{line} +config|get" if line.startswith(worker) else line for line in users]
    folder = Path(tempfile.mkdtemp(prefix="tweezer-users-"))
    atexit.register(_remove, folder, os.getpid())
    path = folder / "users.acl"
    path.write_text("\n".join(["user default on nopass ~* &* +@all", *users, ""]))
    return path


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a process under test is a fork and must not remove the folder
        shutil.rmtree(folder, ignore_errors=True)


_USERS_OF_PARTS = {
    "commands": RedisUser.OPERATOR,
    "tickets": RedisUser.WORKER,
    "remote": RedisUser.WORKER,
    "reader": RedisUser.PRODUCER,
    "devices": RedisUser.API,
    "quotas": RedisUser.RECORDER,
    "failed_logins": RedisUser.API,
    "stream_tickets": RedisUser.API,
    "recent_calls": RedisUser.API,
    "admission": RedisUser.PRODUCER,
    "news": RedisUser.WORKER,
    "events": RedisUser.RECORDER,
    "snapshots": RedisUser.RECORDER,
    "recovery": RedisUser.RECORDER,
    "scripts": RedisUser.COURIER,
}
"""The user with whose connection each part of a store sends commands outside scripts."""


@asynccontextmanager
async def store_of_users(plain: Redis, url: str) -> AsyncIterator[Store]:
    """Yield a store whose parts connect as users, and whose scripts run as users that may call them.

    ``plain`` is the test's own client.
    """
    keys = Keys(STORE_NAMESPACE)
    async with AsyncExitStack() as closing:
        clients = {
            user: await closing.enter_async_context(Redis.from_url(as_user(url, user, namespace=STORE_NAMESPACE)))
            for user in RedisUser
        }
        store = Store(plain, namespace=STORE_NAMESPACE)
        for part, user in _USERS_OF_PARTS.items():
            scripts = _ScriptsOfUsers(clients, user, keys)
            other = Store(clients[user], namespace=STORE_NAMESPACE, scripts=scripts)
            setattr(store, part, getattr(other, part))
        yield store


class _ScriptsOfUsers(Scripts):
    """Scripts that are each called as a user that may call them."""

    def __init__(self, clients: Mapping[RedisUser, Redis], user: RedisUser, keys: Keys) -> None:
        super().__init__(clients[user], keys)
        own = {*EACH_CALLS} if user is RedisUser.OPERATOR else {*SCRIPTS.get(user, ()), *EACH_CALLS}
        self._elsewhere: dict[str, Scripts] = {}
        for other, names in SCRIPTS.items():  # the operator, who may call all scripts, comes last
            for name in names:
                if name not in own:
                    self._elsewhere.setdefault(name, Scripts(clients[other], keys))

    async def call(self, name: str, /, **arguments: Any) -> list[Any]:
        elsewhere = self._elsewhere.get(name)
        if elsewhere is None:
            return await super().call(name, **arguments)
        return await elsewhere.call(name, **arguments)
