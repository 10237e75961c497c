"""Opens the store: one Redis, one namespace."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import hiredis
import msgspec
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from tweezer.model.errors import InvalidInput
from tweezer.store.admission import Admission
from tweezer.store.commands import Commands
from tweezer.store.feed import EventStream, News
from tweezer.store.keys import Keys
from tweezer.store.reader import Reader
from tweezer.store.scripts import Scripts
from tweezer.store.tickets import Tickets

SENTINEL_SCHEME = "redis+sentinel"


class SentinelUrl(msgspec.Struct, frozen=True):
    """Where Sentinels tell which Redis is the primary: ``redis+sentinel://[user:password@]host:port[,host:port…]/service[/db]``.

    The credentials are those of Redis.
    """

    hosts: tuple[tuple[str, int], ...]
    service: str
    database: int = 0
    username: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Raises InvalidInput, saying what is missing."""
        parts = urlsplit(url)
        credentials, _, places = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        hosts = []
        for place in places.split(","):
            host, _, port = place.rpartition(":")
            if not host or not port.isdecimal():
                raise InvalidInput(
                    "url", f"{place!r} is not host:port; write {SENTINEL_SCHEME}://host:26379,host:26379/service"
                )
            hosts.append((host, int(port)))
        service, _, database = parts.path.strip("/").partition("/")
        if not service or not (database or "0").isdecimal():
            raise InvalidInput("url", f"names no service; write {SENTINEL_SCHEME}://host:26379/service, or …/service/0")
        return cls(tuple(hosts), service, int(database or 0), unquote(username) or None, unquote(password) or None)


class _PacksInC:
    """A connection that packs commands with hiredis.

    redis-py does so in its blocking half only; its asyncio half spends 0.6 µs an argument in Python, which
    for a settle of a hundred jobs was a third of the worker's time.
    """

    def pack_command(self, *arguments: Any) -> list[bytes]:
        name = arguments[0]
        if isinstance(name, str) and " " in name:
            arguments = (*name.split(), *arguments[1:])
        try:
            return [hiredis.pack_command(arguments)]
        except TypeError as error:
            raise redis_errors.DataError(str(error)) from error


class Connect(msgspec.Struct, frozen=True):
    """How to reach Redis. ``url``: ``redis://``, ``rediss://``, ``unix://``, or that of a :class:`SentinelUrl`.

    ``connect_s`` and ``command_s`` bound each attempt.
    """

    url: str = "redis://127.0.0.1:6379/0"
    namespace: str = "tweezer"
    connect_s: float = 5.0
    command_s: float = 30.0
    connections_max: int = 64


class Store:
    """All that the rest of Tweezer asks of Redis."""

    def __init__(self, redis: Redis, *, namespace: str = "tweezer") -> None:
        self.redis = redis
        self.keys = Keys(namespace)
        scripts = Scripts(redis, self.keys)
        self.scripts = scripts
        self.commands = Commands(scripts)
        self.tickets = Tickets(scripts)
        self.reader = Reader(scripts)
        self.admission = Admission(self.commands, self.reader)
        self.news = News(scripts)
        self.events = EventStream(scripts)

    @classmethod
    def open(cls, connect: Connect) -> Store:
        """A store on connections of its own; nothing is sent until it is used. Raises InvalidInput("url", …)."""
        try:
            redis = _redis(connect)
        except ValueError:  # its text may quote a password
            raise InvalidInput("url", f"is no URL of Redis such as {Connect().url}") from None
        pool = redis.connection_pool
        pool.connection_class = type("Connection", (_PacksInC, pool.connection_class), {})
        return cls(redis, namespace=connect.namespace)

    async def close(self) -> None:
        await self.news.close()
        await self.redis.aclose()
        pool = self.redis.connection_pool
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
        plain: Redis = Redis.from_url(connect.url, **limits)
        return plain
    place = SentinelUrl.parse(connect.url)
    asking = {name: limits[name] for name in ("socket_connect_timeout", "socket_timeout")}
    sentinel = Sentinel(list(place.hosts), sentinel_kwargs=asking)
    redis: Redis = sentinel.master_for(
        place.service, db=place.database, username=place.username, password=place.password, **limits
    )
    return redis
