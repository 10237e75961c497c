"""Connections to Redis, and the store, which combines everything on one server and namespace."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import hiredis
import msgspec
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.utils import str_if_bytes

from tweezer.model.errors import InvalidInput
from tweezer.model.summaries import abridge
from tweezer.store.batch_index import BatchIndex
from tweezer.store.devices import Devices
from tweezer.store.guards import FailedLogins, RecentCalls, StreamTickets
from tweezer.store.job_logs import JobLogs
from tweezer.store.keys import Keys
from tweezer.store.measures import Processes, Quotas
from tweezer.store.producers import Admission, Commands
from tweezer.store.reader import Reader
from tweezer.store.recovery import Recovery
from tweezer.store.remote import Remote
from tweezer.store.results import INLINE_MAX_BYTES, Results, ResultsFolder
from tweezer.store.scripts import Scripts, eval_command
from tweezer.store.snapshots import Snapshots
from tweezer.store.streams.feed import EventStream, News
from tweezer.store.workers import Tickets

SENTINEL_SCHEME = "redis+sentinel"


_BROKEN = (RuntimeError, AttributeError, redis_errors.InvalidResponse)


class SentinelUrl(msgspec.Struct, frozen=True):
    """A URL of Sentinels, which report the Redis primary:
    ``redis+sentinel://[user:password@]host:port[,host:port…]/service[/db]``. The credentials are those of Redis.
    """

    hosts: tuple[tuple[str, int], ...]
    service: str
    database: int = 0
    username: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Parse the URL. Raises InvalidInput("url", …)."""
        parts = urlsplit(url)
        credentials, _, places = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        hosts = []
        for place in places.split(","):
            host, _, port = place.rpartition(":")
            if not host or not port.isdecimal():
                raise InvalidInput(
                    "url", f"{place!r} is not host:port; expected {SENTINEL_SCHEME}://host:26379,host:26379/service"
                )
            hosts.append((host, int(port)))
        service, _, database = parts.path.strip("/").partition("/")
        if not service or not (database or "0").isdecimal():
            raise InvalidInput(
                "url", f"has no service name; expected {SENTINEL_SCHEME}://host:26379/service, or …/service/0"
            )
        return cls(tuple(hosts), service, int(database or 0), unquote(username) or None, unquote(password) or None)


_PLAIN_SCHEMES = ("redis", "rediss", "unix")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_OPTION_VALUES = {"ssl_cert_reqs": ("none", "optional", "required"), "ssl_check_hostname": ("true", "false")}


def check_url(url: str) -> None:
    """Raise InvalidInput("url", …) for a Redis URL that redis-py would misread. The message never quotes a password.

    redis-py passes any option on as an argument, and uses database 0 if it cannot parse the number.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidInput("url", f"is not a valid URL; expected, for example, {Connect().url}") from None
    if parts.scheme not in (*_PLAIN_SCHEMES, SENTINEL_SCHEME):
        raise InvalidInput("url", f"must start with redis://, rediss://, unix:// or {SENTINEL_SCHEME}://")
    if parts.fragment or url.endswith("#"):
        raise InvalidInput("url", "must not contain '#'; write %23 for one in a password")
    if parts.scheme == SENTINEL_SCHEME:
        if parts.query:
            raise InvalidInput("url", f"must not have options after '?' with {SENTINEL_SCHEME}://")
        SentinelUrl.parse(url)
        return
    try:
        _ = parts.port
    except ValueError:
        raise InvalidInput(
            "url",
            "has a port that is not a number up to 65535; write %2F, %3A and %40 for '/', ':' and '@' in a password",
        ) from None
    database = parts.path.removeprefix("/")
    if parts.scheme == "unix":
        if not parts.path:
            raise InvalidInput("url", "has no socket path; expected unix:///run/redis.sock, or …?db=0")
    elif database and not (database.isascii() and database.isdecimal()):
        raise InvalidInput("url", f"the database must be a number, as in {Connect().url} (got {database!r})")
    _check_options(parts.scheme, parts.query, has_database=bool(database) and parts.scheme != "unix")


def _check_options(scheme: str, query: str, *, has_database: bool) -> None:
    known = ("db", *_TLS_OPTIONS) if scheme == "rediss" else ("db",)
    seen: set[str] = set()
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            hint = f"the options are {', '.join(known)}" if name not in _TLS_OPTIONS else "use rediss:// for TLS"
            raise InvalidInput("url", f"has an unknown option {name!r}; {hint}")
        if name in seen or (name == "db" and has_database):
            raise InvalidInput("url", f"has {name} twice")
        seen.add(name)
        allowed = _OPTION_VALUES.get(name)
        if (allowed and value.lower() not in allowed) or not value or (name == "db" and not value.isdecimal()):
            wanted = f"one of {', '.join(allowed)}" if allowed else "a number" if name == "db" else "a path"
            raise InvalidInput("url", f"the option {name} must be {wanted} (got {value!r})")


class _PacksInC:
    """A connection that packs commands with hiredis.

    redis-py does this in its blocking client only. Its asyncio client packs in Python, at 0.6 µs per argument, which
    was a third of the worker's time for a settle of a hundred jobs.
    """

    def pack_command(self, *arguments: Any) -> list[bytes]:
        name = arguments[0]
        if isinstance(name, str) and " " in name:
            arguments = (*name.split(), *arguments[1:])
        try:
            return [hiredis.pack_command(arguments)]
        except TypeError as error:
            raise redis_errors.DataError(str(error)) from error


class _Dependable(AbstractConnection):
    """A connection that raises redis-py's ConnectionError for every failure of the transport.

    redis-py itself translates OSError. A lost connection also raises RuntimeError ("the handler is closed", from
    uvloop) and AttributeError (from redis-py, whose reader is None), and a garbled reply raises InvalidResponse. A
    connection to a server that became a replica is closed, because the same address may now lead to the new primary.
    """

    is_closed: ClassVar[bool] = False
    """Whether the store of these connections was closed: a call that then runs must not connect again."""

    async def connect(self) -> None:
        if self.is_closed:
            raise redis_errors.ConnectionError("the store was closed")
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        except _BROKEN as error:
            await self._raise_broken(error)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send a command. redis-py would start a task for it, because of the timeout."""
        try:
            if not self.is_connected:
                await self.connect()
            elif check_health:
                await self.check_health()  # type: ignore[no-untyped-call]
            await self._write([command] if isinstance(command, bytes) else command)
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise redis_errors.TimeoutError("the command could not be sent in time") from None
        except (OSError, *_BROKEN) as error:
            await self._raise_broken(error)
        except BaseException:
            await self.disconnect(nowait=True)  # a part of the command may have been sent
            raise

    async def _write(self, command: Iterable[bytes]) -> None:
        writer = self._writer
        if writer is None:
            raise redis_errors.ConnectionError("the connection was lost")
        writer.writelines(command)
        if writer.transport.get_write_buffer_size():
            async with asyncio.timeout(self.socket_timeout):
                await writer.drain()

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except redis_errors.ReadOnlyError:
            await self.disconnect(nowait=True)
            raise
        except _BROKEN as error:
            await self._raise_broken(error)

    async def can_read_destructive(self) -> bool:
        """Return whether there is an unread reply. redis-py would begin to read, and cancel that."""
        reader: Any = self._reader
        if reader is None or reader.at_eof() or reader.exception() is not None:
            raise redis_errors.ConnectionError("the connection was lost")
        return bool(reader._buffer)  # noqa: SLF001  # StreamReader has no other way to ask

    async def disconnect(self, nowait: bool = False) -> None:
        try:
            await super().disconnect(nowait)
        except _BROKEN:  # the connection was lost before it could be closed
            self._reader = self._writer = None

    async def _raise_broken(self, error: Exception) -> NoReturn:
        if isinstance(error, RuntimeError) and "loop" in str(error):  # the caller's mistake
            raise error
        await self.disconnect(nowait=True)
        raise redis_errors.ConnectionError(f"the connection was lost: {error}") from error


class _Arrives(AbstractConnection):
    """A connection that first reports to the scripts which server it reached (``arrive.lua``)."""

    keys: ClassVar[Keys]

    async def on_connect(self) -> None:
        await super().on_connect()
        try:
            about = str_if_bytes(await self._ask("INFO", "server"))
        except redis_errors.ResponseError:
            return  # this user may not call INFO; workers may, and they connect regularly
        if not isinstance(about, str):  # a reply to another coroutine's command, on a connection shared by channels
            raise redis_errors.ConnectionError("the connection was used before it was established")
        if run := re.search(r"run_id:(\w+)", about):
            with contextlib.suppress(redis_errors.ReadOnlyError):  # a replica hands out no jobs
                await self._ask(*eval_command(self.keys, "arrive", run_id=run[1]))

    async def _ask(self, *command: Any) -> Any:
        await self.send_command(*command, check_health=False)
        return await super().read_response()  # super's: a replica's refusal must not close a new connection


class Connect(msgspec.Struct, frozen=True):
    """How to connect to Redis.

    Attributes:
        url: ``redis://``, ``rediss://``, ``unix://``, or the URL of Sentinels (:class:`SentinelUrl`). With ``rediss://``
            the server must have a certificate for the host in the URL, unless the URL ends in
            ``?ssl_check_hostname=false``. ``?ssl_ca_certs=FILE`` sets the certificate authority.
        namespace: Prefix of all keys.
        connect_s: Timeout of an attempt to connect, in seconds.
        command_s: Timeout of a command, in seconds.
        connections_max: Maximum number of connections.
        results_dir: The results folder, where workers write large results; None in a process that does not read them.
        result_inline_kb: Size of a packed result, in KiB, above which a worker writes it to the results folder.
    """

    url: str = "redis://127.0.0.1:6379/0"
    namespace: str = "tweezer"
    connect_s: float = 5.0
    command_s: float = 10.0
    connections_max: int = 64
    results_dir: Path | None = None
    result_inline_kb: int = INLINE_MAX_BYTES >> 10

    def __repr__(self) -> str:
        return abridge(self, "Connect", hidden=("url",))  # which may contain a password


class Store:
    """Access to Redis for the rest of Tweezer."""

    def __init__(
        self,
        redis: Redis,
        *,
        namespace: str = "tweezer",
        results: Results | None = None,
        scripts: Scripts | None = None,
        results_dir: Path | None = None,
    ) -> None:
        self.redis = redis
        self.connect: Connect | None = None
        """How the store was opened; None if it was made from an existing client."""
        self.results = results or Results()
        self.job_logs = JobLogs(results_dir)
        self.keys = Keys(namespace)
        scripts = scripts or Scripts(redis, self.keys)
        self.scripts = scripts
        self.recent_calls = RecentCalls(scripts)
        self.commands = Commands(scripts, self.recent_calls)
        self.tickets = Tickets(scripts)
        self.remote = Remote(scripts)
        self.reader = Reader(scripts, self.results)
        self.devices = Devices(scripts)
        self.quotas = Quotas(scripts)
        self.processes = Processes(scripts)
        self.failed_logins = FailedLogins(scripts)
        self.stream_tickets = StreamTickets(scripts)
        self.admission = Admission(self.commands, self.reader)
        self.news = News(scripts)
        self.events = EventStream(scripts)
        self.snapshots = Snapshots(scripts)
        self.index = BatchIndex(scripts)
        self.recovery = Recovery(scripts)

    @classmethod
    def open(cls, connect: Connect) -> Store:
        """Open a store with its own connections, which are made on first use. Raises InvalidInput("url", …)."""
        check_url(connect.url)
        try:
            redis = _redis(connect)
        except ValueError:  # its message may quote a password
            raise InvalidInput("url", f"is not a valid Redis URL; expected, for example, {Connect().url}") from None
        pool = redis.connection_pool
        own = {"keys": Keys(connect.namespace)}
        pool.connection_class = type("Connection", (_PacksInC, _Dependable, _Arrives, pool.connection_class), own)
        folder = ResultsFolder(connect.results_dir) if connect.results_dir else None
        results = Results(folder, inline_max=connect.result_inline_kb << 10)
        store = cls(redis, namespace=connect.namespace, results=results, results_dir=connect.results_dir)
        store.connect = connect
        return store

    async def close(self) -> None:
        """Close all connections. Calls that are running fail with Unavailable."""
        pool = self.redis.connection_pool
        if issubclass(pool.connection_class, _Dependable):
            pool.connection_class.is_closed = True
        await self.news.close()
        await self.redis.aclose()
        if isinstance(pool, SentinelConnectionPool):
            for sentinel in pool.sentinel_manager.sentinels:
                await sentinel.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _redis(connect: Connect) -> Redis:
    limits: dict[str, Any] = {
        "socket_connect_timeout": connect.connect_s,
        "socket_timeout": connect.command_s,
        "max_connections": connect.connections_max,
        "health_check_interval": 30,
    }
    if not connect.url.startswith(f"{SENTINEL_SCHEME}://"):
        if connect.url.startswith("rediss://"):
            limits["ssl_check_hostname"] = True  # redis-py 5 accepts a certificate for any host by default
        plain: Redis = Redis.from_url(connect.url, **limits)
        return plain
    place = SentinelUrl.parse(connect.url)
    asking = {name: limits[name] for name in ("socket_connect_timeout", "socket_timeout")}
    sentinel = Sentinel(list(place.hosts), sentinel_kwargs=asking)
    redis: Redis = sentinel.master_for(
        place.service, db=place.database, username=place.username, password=place.password, **limits
    )
    return redis
