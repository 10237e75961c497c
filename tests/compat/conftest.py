"""One installation and one interpreter of each of Pasqal's client stacks, for all tests of this folder.

``TWEEZER_COMPAT_A`` and ``TWEEZER_COMPAT_B`` name the interpreters: A has ``pasqal-cloud`` 0.24 and ``pulser``, B
has ``pulser-pasqal`` 0.24 and ``pasqal-cloud`` 0.22. ``TWEEZER_COMPAT_C`` and ``_D`` have only ``pasqal-cloud``, 0.20
and 0.13. ``.ci/run`` makes all four. Without them a test is skipped, or fails with ``TWEEZER_REQUIRE_SERVERS=1``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from tests.compat.clients import Client
from tests.compat.cloud import PROJECT, Cloud
from tests.support.redis_users import RedisServer
from tests.support.requirements import give_up


def find_interpreter(stack: str) -> str:
    variable = f"TWEEZER_COMPAT_{stack.upper()}"
    found = shutil.which(os.environ.get(variable, ""))
    if found is None:
        give_up(f"{variable} does not name the interpreter of an environment with Pasqal's client")
    return found


@pytest.fixture(scope="session")
def interpreter_a() -> Iterator[Client]:
    with Client(find_interpreter("a"), "a") as client:
        yield client


@pytest.fixture(scope="session")
def interpreter_b() -> Iterator[Client]:
    with Client(find_interpreter("b"), "b") as client:
        yield client


@pytest.fixture(scope="session")
def cloud(interpreter_a: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """An installation with a separate Redis: the Redis of other tests is emptied between them."""
    specs = interpreter_a.call("sequences.analog_specs", through={"base": "http://nowhere", "project": PROJECT})
    with RedisServer() as redis, Cloud(tmp_path_factory.mktemp("cloud"), redis, qpu_specs=specs) as cloud:
        yield cloud


@pytest.fixture
def client_a(interpreter_a: Client, cloud: Cloud) -> Client:
    """Stack A with the key of a project."""
    return _give_access(interpreter_a, cloud)


@pytest.fixture
def client_b(interpreter_b: Client, cloud: Cloud) -> Client:
    """Stack B with the key of a project."""
    return _give_access(interpreter_b, cloud)


@pytest.fixture(params=["a", "b"])
def client(request: pytest.FixtureRequest) -> Client:
    """Both stacks in turn."""
    client: Client = request.getfixturevalue(f"client_{request.param}")
    return client


def _give_access(client: Client, cloud: Cloud) -> Client:
    client.access = {"base": cloud.base, "project": PROJECT, "key": cloud.key}
    return client
