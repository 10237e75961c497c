"""A private PostgreSQL for tests and benchmarks: it listens on a socket in its own folder and ends with its owner.

It does not touch the system's cluster. ``fsync`` is off, because no test simulates a power loss of PostgreSQL.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg
from psycopg import sql

_USER = "postgres"
_START_WITHIN_S = 60.0
_STOP_WITHIN_S = 20.0
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "timezone": "UTC",
}

# PostgreSQL does not run as root, so root changes to the user postgres first. At the owner's death it gets the signal
# of an immediate shutdown, which ends its children, too; changing the user would clear that signal, so it is set after.
_OWNED = """
import ctypes, os, sys
owner, user, group, *command = sys.argv[1:]
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(int(group))
    os.setuid(int(user))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 3)
if os.getppid() == int(owner):
    os.execv(command[0], command)
"""


class NoPostgres(Exception):
    """No PostgreSQL can be started here; the message explains what to do."""


class PostgresServer:
    """A cluster in a temporary folder, as a context manager."""

    def __init__(self, **settings: str) -> None:
        self.programs = _programs()
        self._settings = {**_SETTINGS, **settings}
        self._user, self._group = _identity()
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="tweezer-pg-", dir="/tmp"))  # the path of a socket must be short
        try:
            os.chown(self._folder, self._user, self._group)
            subprocess.run(
                self._owned("initdb", "-D", str(self._data), "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-sync",
                            "--locale=C"),
                check=True, capture_output=True, cwd=self._folder, timeout=_START_WITHIN_S,
            )  # fmt: skip
            self.start()
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._owned("postgres", "-D", str(self._data), "-k", str(self._folder), *options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                process_group=0,  # Ctrl-C must not reach it
            )
        deadline = time.monotonic() + _START_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NoPostgres(f"PostgreSQL does not start:\n{(self._folder / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT closes all connections and writes everything to the disk, SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(_STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def url(self, database: str = _USER) -> str:
        return f"postgresql://{_USER}@/{database}?host={quote(str(self._folder), safe='')}"

    def create(self, database: str, template: str | None = None) -> str:
        """Make a database, as a copy of the template if there is one, and return its URL."""
        names = sql.Identifier(database), sql.Identifier(template or "template1")
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
        return self.url(database)

    def drop(self, database: str) -> None:
        """Remove a database, even if clients are still connected to it."""
        self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _owned(self, program: str, *arguments: str) -> list[str]:
        identity = [str(number) for number in (os.getpid(), self._user, self._group)]
        return [sys.executable, "-c", _OWNED, *identity, str(self.programs / program), *arguments]

    def _clear(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)


def _programs() -> Path:
    """Return the folder of PostgreSQL's programs: of the one on PATH, or of Debian's newest."""
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if not folders:
        raise NoPostgres("no PostgreSQL server found: install it (Debian: apt-get install postgresql)")
    return max(folders, key=lambda folder: int(folder.parent.name))


def _identity() -> tuple[int, int]:
    """Return the user and the group of the server's process."""
    if os.getuid() != 0:
        return os.getuid(), os.getgid()
    try:
        entry = pwd.getpwnam(_USER)
    except KeyError as error:
        raise NoPostgres(f"PostgreSQL does not run as root, and there is no user {_USER}: make one") from error
    return entry.pw_uid, entry.pw_gid
