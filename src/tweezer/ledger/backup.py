"""Backups of the ledger, made while it is in use, and their restoration."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import inspect, literal, select, table
from sqlalchemy.engine import URL

from tweezer.ledger.database import Database
from tweezer.ledger.migrate import VERSION_TABLE, schema_version
from tweezer.ledger.migrations import HEAD
from tweezer.ledger.schema import metadata
from tweezer.model.errors import TweezerError

_DUMP = ("pg_dump", "--format=custom", "--no-owner", "--no-privileges")
_RESTORE = ("pg_restore", "--no-owner", "--no-privileges", "--clean", "--if-exists", "--single-transaction")
_DUMPED_TABLE = re.compile(r"^\d+; \d+ \d+ TABLE \S+ (\S+) ", re.MULTILINE)
_PATIENCE_S = 30.0


class BackupFailed(TweezerError):
    """A backup or its restoration failed. Nothing was changed; the message contains what to do."""

    code = "backup"


def backup(database: Database, file: Path) -> None:
    """Write a consistent copy of the ledger to a new file that only its owner may read.

    The file is a SQLite database, or the output of ``pg_dump --format=custom``. Raises BackupFailed, Unavailable,
    OSError.
    """
    if file.exists():
        raise BackupFailed(f"{file} already exists; give the name of a new file")
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        if database.is_sqlite:
            _copy_sqlite(database, part)
        else:
            _call(database.engine.url, *_DUMP, f"--file={part}")
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)


def restore(database: Database, file: Path, *, force: bool = False) -> str | None:
    """Replace the ledger by a backup, or leave it unchanged; return the version of its tables.

    force: also if the ledger is not empty; its contents are lost. Raises BackupFailed, Unavailable.
    """
    if not file.is_file():
        raise BackupFailed(f"there is no file {file}")
    if not force and (filled := _find_filled_table(database)):
        raise BackupFailed(
            f"the ledger is not empty (see its table {filled}); choose another database with TWEEZER_DATABASE_URL, or "
            "pass --force to overwrite it (its contents will be lost)"
        )
    if database.is_sqlite:
        _restore_sqlite(database, file)
    else:
        _restore_postgres(database, file)
    return schema_version(database)


def _find_filled_table(database: Database) -> str | None:
    """Return a table of the ledger that is not empty, if there is one."""
    with database.read() as connection:
        there = set(inspect(connection).get_table_names())
        for name in metadata.tables:
            if name in there and connection.execute(select(literal(1)).select_from(table(name)).limit(1)).first():
                return name
    return None


# ---------------------------------------------------------------------------------------------------- SQLite


def _copy_sqlite(database: Database, part: Path) -> None:
    with database.read() as connection, _as_backup_failed(part), contextlib.closing(sqlite3.connect(part)) as copy:
        source = connection.connection.driver_connection
        assert isinstance(source, sqlite3.Connection)
        source.backup(copy)  # in one step, while writers continue
        copy.execute("PRAGMA journal_mode = DELETE")  # so that it can be read from a read-only folder
    _check_sqlite(part)


def _restore_sqlite(database: Database, file: Path) -> None:
    _check_sqlite(file)
    until = time.monotonic() + _PATIENCE_S

    def look(status: int, _remaining: int, _total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > until:
            raise BackupFailed("the ledger is in use; stop the recorder and the API first")

    with database.engine.connect() as connection, _as_backup_failed(file), _read_sqlite(file) as source:
        target = connection.connection.driver_connection
        assert isinstance(target, sqlite3.Connection)
        source.backup(target, progress=look)


def _check_sqlite(file: Path) -> None:
    """Raise BackupFailed unless the file is an intact ledger of a known version."""
    with _as_backup_failed(file), _read_sqlite(file) as source:
        (found,) = source.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise BackupFailed(f"{file} is damaged ({found}); use another backup")
        versions = source.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall()  # noqa: S608  a constant
    if not versions or versions[0][0] > HEAD:
        raise BackupFailed(f"{file} was made by a newer version of Tweezer; upgrade Tweezer first")


@contextlib.contextmanager
def _read_sqlite(file: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=ro", uri=True)) as source:
        yield source


@contextlib.contextmanager
def _as_backup_failed(file: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise BackupFailed(f"{file} is not a backup of a ledger, or cannot be used: {error}") from error


# ------------------------------------------------------------------------------------------------ PostgreSQL


def _restore_postgres(database: Database, file: Path) -> None:
    listed = _call(database.engine.url, "pg_restore", "--list", str(file), connects=False)
    dumped = set(_DUMPED_TABLE.findall(listed))
    if VERSION_TABLE not in dumped:
        raise BackupFailed(f"{file} is not a backup of a ledger")
    with database.read() as connection:
        there = set(inspect(connection).get_table_names())
    if newer := sorted((there & set(metadata.tables)) - dumped):
        raise BackupFailed(
            f"the ledger has tables that {file} does not have ({', '.join(newer)}); restore it into an empty database, "
            "and set TWEEZER_DATABASE_URL to that"
        )
    _call(database.engine.url, *_RESTORE, str(file))


def _call(url: URL, program: str, *arguments: str, connects: bool = True) -> str:
    """Run a PostgreSQL program on the database, with the password in its environment; return its output."""
    bare = url.set(drivername="postgresql")._replace(password=None).render_as_string()
    command = [program, *arguments, *([f"--dbname={bare}"] if connects else [])]
    if shutil.which(program) is None:
        raise BackupFailed(
            f"{program} is not installed; install PostgreSQL's client programs (Debian: apt-get install "
            f"postgresql-client), or run on a host that has them: {shlex.join(command)}"
        )
    environment = os.environ if url.password is None else os.environ | {"PGPASSWORD": url.password}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise BackupFailed(f"{program} failed: {lines[0].removeprefix(f'{program}: ')}")
    return done.stdout.decode(errors="replace")
