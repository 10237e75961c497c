"""Access to the ledger's database, which is SQLite or PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast
from urllib.parse import quote
from uuid import UUID

from sqlalchemy import Connection, Engine, Table, create_engine, event, exc
from sqlalchemy.engine import URL, make_url

from tweezer.ledger.config import OpenDatabase, sqlite_file
from tweezer.model.errors import InvalidInput, Unavailable

P = ParamSpec("P")
T = TypeVar("T")

_ACCOUNT: ContextVar[str] = ContextVar("account", default="")

SCHEMES = ("sqlite", "postgresql")

_FILE = "file"  # in a connection's record: the path and the identity of SQLite's file

_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",  # the stream is trimmed after a commit, so the commit must be on the disk
    "foreign_keys = ON",
    "cache_size = -65536",  # 64 MiB
    "temp_store = MEMORY",
)
_POSTGRES = {
    "plan_cache_mode": "force_custom_plan",  # the right index depends on the values in the query
    "jit": "off",  # compiling takes longer than the statements
    "max_parallel_workers_per_gather": 0,  # so does starting processes
}


@contextlib.contextmanager
def sharing(account: str) -> Iterator[None]:
    """Use databases on behalf of an account, whose number of concurrent calls is limited; '' is not limited."""
    token = _ACCOUNT.set(account)
    try:
        yield
    finally:
        _ACCOUNT.reset(token)


_TOO_LARGE = frozenset({"54000", "54001", "54011", "54023"})
"""SQLSTATE codes of PostgreSQL's operational errors that are caused by the data, not by the database."""


class Database:
    """A database and the threads that use it; asyncio code calls :meth:`run`."""

    def __init__(self, engine: Engine, *, threads: int, share: int | None = None) -> None:
        """share: number of threads that one account can use at once; its other calls wait. None means all."""
        self.engine = engine
        self._share = share or threads
        self._turns: dict[str, _Turn] = {}
        self.is_sqlite = engine.dialect.name == "sqlite"
        # By default PostgreSQL shows each statement of a transaction the data that was committed before it.
        self._reading = engine if self.is_sqlite else engine.execution_options(isolation_level="REPEATABLE READ")
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="ledger")

    @classmethod
    def open(cls, given: OpenDatabase, *, create: bool = False) -> Database:
        """Open a database; it is connected on first use. Raises InvalidInput("database_url", …).

        create: create the SQLite file if it does not exist. A running process must not do this: the file may be
        missing temporarily, and an empty file in its place would look like a ledger.
        """
        url = parse_url(given.url)
        options: dict[str, Any] = {
            "pool_size": given.connections_max,
            "max_overflow": 0,
            "pool_timeout": given.patience_s,
            "hide_parameters": True,  # errors are logged, and values include bodies, URLs and secrets
        }
        if url.get_backend_name() == "sqlite":
            assert url.database is not None
            if create and not (file := Path(url.database)).exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch(mode=0o600)  # it contains secrets; SQLite gives its other files the same mode
            engine = create_engine(url, connect_args={"timeout": given.patience_s}, **options)
            event.listen(engine, "do_connect", _connect_sqlite)
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "checkout", _check_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            settings = {"statement_timeout": round(given.statement_s * 1000), **_POSTGRES}
            arguments = {
                "connect_timeout": max(round(given.patience_s), 1),
                "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
            }
            engine = create_engine(url, connect_args=arguments, pool_pre_ping=True, **options)
        return cls(engine, threads=given.connections_max, share=given.share)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Begin a transaction that reads a consistent state of the database. Raises Unavailable."""
        with translating(), self._reading.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Begin a transaction that commits at the end of the block, or changes nothing. Raises Unavailable."""
        with (
            translating(),
            self.engine.connect() as connection,
            connection.execution_options(writes=True).begin(),
        ):
            yield connection

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call blocking ``work`` in a thread of the database; each account can use a few at a time."""
        account = _ACCOUNT.get()
        if not account:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        turn = self._turns.setdefault(account, _Turn(self._share))
        turn.users += 1

        def leave() -> None:
            turn.users -= 1
            if not turn.users:
                del self._turns[account]

        try:
            await turn.free.acquire()
        except BaseException:
            leave()
            raise
        working = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

        def end(_: object) -> None:
            turn.free.release()
            leave()

        working.add_done_callback(end)
        return await asyncio.shield(working)  # cancelling the caller does not stop the thread

    async def run_read(
        self, work: Callable[Concatenate[Connection, P], T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Call ``work`` with a connection, in a transaction that reads and in a thread. Raises Unavailable."""
        return await self.run(_call_within, self.read, work, arguments, options)

    async def run_write(
        self, work: Callable[Concatenate[Connection, P], T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Do the same in a transaction that writes."""
        return await self.run(_call_within, self.write, work, arguments, options)

    def id(self, identity: UUID) -> UUID | bytes:
        """Return an id in the form that the driver accepts."""
        return identity.bytes if self.is_sqlite else identity

    def close(self) -> None:
        self._threads.shutdown()
        self.engine.dispose()


def _call_within(
    transaction: Callable[[], AbstractContextManager[Connection]],
    work: Callable[..., T],
    arguments: Sequence[Any],
    options: Mapping[str, Any],
) -> T:
    with transaction() as connection:
        return work(connection, *arguments, **options)


class _Turn:
    """The threads that one account may use, and the number of calls that use or wait for one."""

    def __init__(self, share: int) -> None:
        self.free = asyncio.Semaphore(share)
        self.users = 0


def parse_url(text: str) -> URL:
    """Return the URL with its driver. Raises InvalidInput("database_url", …), which never quotes the password."""
    try:
        url = make_url(re.sub(r"^postgres(?=\+|:)", "postgresql", text))  # the spelling of Heroku and of libpq
    except exc.ArgumentError:
        url = None
    if url is None or url.get_backend_name() not in SCHEMES:
        raise InvalidInput(
            "database_url",
            "is not a valid database URL; expected, for example, sqlite:////var/lib/tweezer/ledger.db or "
            "postgresql://user@host/tweezer",
        )
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    file = sqlite_file(text)
    if file is None or str(file) == ":memory:":
        raise InvalidInput(
            "database_url", "has no file; expected sqlite:///ledger.db or sqlite:////var/lib/tweezer/ledger.db"
        )
    return url.set(drivername="sqlite+pysqlite", database=str(file))  # SQLAlchemy before 2.1 does not unescape the path


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """Convert errors of a database that is unreachable, locked or full to Unavailable."""
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        if getattr(getattr(error, "orig", None), "sqlstate", None) in _TOO_LARGE:
            raise
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise Unavailable(f"the ledger's database cannot be used: {cause}") from error
    except exc.DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable(f"the connection to the ledger's database was lost: {error.orig}") from error
        if type(error) is exc.DatabaseError:  # SQLite: the file is damaged or not a database
            raise Unavailable(f"the ledger's database cannot be used: {error.orig}") from error
        raise


def load(connection: Connection, table: Table | str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Insert many rows in the fastest way: COPY, or one prepared statement.

    Values must be in the form that the driver accepts, ids as returned by :meth:`Database.id`.
    """
    names = ", ".join(f'"{column}"' for column in columns)
    cursor = connection.connection.cursor()
    try:
        if connection.dialect.name == "sqlite":
            marks = ", ".join("?" * len(columns))
            cast(sqlite3.Cursor, cursor).executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", rows)  # noqa: S608  our names
            return
        with cast(Any, cursor).copy(f"COPY {table} ({names}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
    except connection.dialect.loaded_dbapi.Error as error:  # SQLAlchemy does not convert errors of a driver's cursor
        driver = connection.dialect.loaded_dbapi.Error
        raise exc.DBAPIError.instance(None, None, error, driver, dialect=connection.dialect) from error
    finally:
        cursor.close()


def _connect_sqlite(_dialect: object, record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
    """Make SQLite open an existing file only, and remember the file's identity."""
    path = Path(arguments[0]).absolute()
    arguments[0], options["uri"] = f"file:{quote(str(path))}?mode=rw", True
    if record is not None:
        record.info[_FILE] = path, _identity(path)


def _check_sqlite(_connection: object, record: Any, _proxy: object) -> None:
    """Discard a connection whose file was moved or replaced, because its writes would be lost."""
    path, identity = record.info[_FILE]
    if identity is None or _identity(path) != identity:
        raise exc.DisconnectionError(f"{path} was moved away or replaced")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # _begin_sqlite begins transactions
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that began as a reader cannot always become a writer, so writers begin with IMMEDIATE.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
