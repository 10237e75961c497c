"""What every command needs: the settings, and the queue behind them."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import click

from tweezer.model.errors import TweezerError, Unavailable

if TYPE_CHECKING:  # imported where they are used, so that `tweezer --help` is quick
    from tweezer.client import AsyncQueue
    from tweezer.ledger.database import Database
    from tweezer.ledger.place import OpenDatabase
    from tweezer.settings import Settings

_IMPATIENT_S = 2.0
_PATIENT_S = 60.0


class Access(NamedTuple):
    """The global options; None leaves a setting to the environment."""

    redis: str | None = None
    project: str | None = None
    namespace: str | None = None

    def settings(self, given: Mapping[str, object] | None = None) -> Settings:
        """Load the settings; these options, and those of the command line, go first (key to value; None: not given).

        Raises InvalidInput.
        """
        from tweezer.settings import load

        options = {"redis.url": self.redis, "namespace": self.namespace, "project_id": self.project, **(given or {})}
        return load({key: value for key, value in options.items() if value is not None})

    @asynccontextmanager
    async def queue(self, *, patient: bool = False) -> AsyncIterator[AsyncQueue]:
        """The project's queue. Raises Unavailable when Redis is not there.

        patient: once it was reached, wait for a minute for a Redis that went away.
        """
        from tweezer.client import AsyncQueue
        from tweezer.store.connection import Store

        settings = self.settings()
        store = Store.open(settings.connect())
        retry_s = _PATIENT_S if patient else _IMPATIENT_S
        async with AsyncQueue(store, settings.project_id, retry_s=retry_s, ledger=_ledger(settings)) as queue:
            try:
                await store.reader.ping()
            except Unavailable as error:
                raise Unavailable(
                    f"{error.message.rstrip('.')}; start it (`tweezer up` has one of its own), or name another with "
                    "--redis or TWEEZER_REDIS_URL"
                ) from error
            yield queue

    @contextmanager
    def ledger(self, command: str, *, at_any_step: bool = False) -> Iterator[Database]:
        """The ledger's database, for this command. Raises TweezerError unless its tables are those that it needs.

        at_any_step: whatever its tables are; a SQLite file that is not there is made.
        """
        require(command, "server", "sqlalchemy", "alembic", "psycopg")
        from tweezer.ledger.database import Database
        from tweezer.ledger.migrate import require_schema

        database = Database.open(self.settings().locate_ledger(), create=at_any_step)
        try:
            if not at_any_step:
                require_schema(database)
            yield database
        finally:
            database.close()


def _ledger(settings: Settings) -> OpenDatabase | None:
    """Where the ledger is, if there is one: a command that reads must not make the file of its default."""
    from tweezer.ledger.place import sqlite_file

    place = settings.locate_ledger()
    file = sqlite_file(place.url)
    return place if file is None or file.exists() else None


pass_access = click.make_pass_decorator(Access)


def require(command: str, extra: str, *modules: str) -> None:
    """Raises TweezerError that names the extra to install unless all these modules are there."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise TweezerError(
            f"`tweezer {command}` needs {' and '.join(missing)}: pip install 'tweezer[{extra}]'", code="missing_extra"
        )
