"""A whole installation for a benchmark, with default settings except for addresses and folders."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import harness
from asking import free_port, serving

from tweezer.ledger.access.keys import create_key
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.health import read_health
from tweezer.ledger.migrate import upgrade
from tweezer.store.connection import Connect, Store
from tweezer.store.keys import Key

PROJECT = "6f1c2b3a-0d4e-4f5a-8b6c-7d8e9f0a1b2c"
NAMESPACE = "tweezer"


class Installation:
    """A Redis, a SQLite ledger with its recorder, and the API with default settings; each client has its own key."""

    def __init__(self, redis_url: str, port: int, database: Database, keys: list[str]) -> None:
        self.redis_url = redis_url
        self.port = port
        self.keys = keys
        self._database = database

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, redis_url: str, folder: Path, clients: int) -> AsyncIterator[Installation]:
        url, port = f"sqlite:///{folder / 'ledger.db'}", free_port()
        with contextlib.closing(Database.open(OpenDatabase(url), create=True)) as database:
            upgrade(database)
            with database.write() as connection:
                project_no(connection, PROJECT)
                keys = [create_key(connection, name=f"{n}", project_id=PROJECT).text for n in range(clients)]
            settings = {"redis_url": redis_url, "database_url": url, "api_port": str(port), "log_level": "WARNING"}
            environment = {f"TWEEZER_{name.upper()}": value for name, value in settings.items()}
            async with (
                harness.program("recorder", redis_url, "--ledger", url),
                serving("-m", "tweezer.cli", "api", environment=environment, port=port),
            ):
                yield cls(redis_url, port, database, keys)

    @contextlib.asynccontextmanager
    async def serves(self, device: str, lanes: int) -> AsyncIterator[None]:
        """Run a worker whose lanes are warm until the block ends."""
        async with Store.open(Connect(url=self.redis_url)) as store:

            async def is_warm() -> bool:
                found = await store.reader.device(device)
                return found is not None and found.lanes == lanes

            async with harness.program("tickets", self.redis_url, "--device", device, "--lanes", str(lanes)):
                await harness.until(is_warm, "the lanes are warm", 2 * harness.WAIT_S)
                yield

    async def recorded(self) -> None:
        """Wait until the recorder has caught up, so that the next measurement does not include that work."""
        async with Store.open(Connect(url=self.redis_url)) as store:

            async def is_recorded() -> bool:
                ((last, _),) = await store.redis.xrevrange(store.keys(Key.EVENTS), count=1)
                return bool(read_health(self._database).positions.get(NAMESPACE) == last.decode())

            await harness.until(is_recorded, "everything is recorded", harness.WAIT_S)
