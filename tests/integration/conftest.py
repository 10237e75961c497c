"""The ways in which producers reach a queue."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.processes import QUICK, Process, make_key
from tests.support.queues import Reach
from tests.support.redis_users import as_user
from tests.support.waiting import wait_until

from tweezer.store.acl import RedisUser


@pytest.fixture(params=["redis", "http"])
def reach(request: pytest.FixtureRequest, real_redis_url: str, tmp_path: Path) -> Iterator[Reach]:
    """Redis, and an HTTP API with a key. The key of the project ``ours`` is an operator's."""
    if request.param == "redis":
        url = as_user(real_redis_url, RedisUser.PRODUCER)
        yield lambda project: {"url": url, "project": project}
        return
    shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "ledger.db")
    settings = {"redis_url": as_user(real_redis_url, RedisUser.API), "data_dir": tmp_path, "api_port": 0}
    api = Process(["api"], {**QUICK, **settings}, tmp_path / "api.log")
    wait_until(lambda: bool(api.logged("api.listening")) or not api.alive)
    url = str(api.logged("api.listening")[0]["url"])
    yield lambda project: {
        "url": url,
        "project": project,
        "key": make_key(tmp_path, None if project == "ours" else project),
    }
    api.kill()
