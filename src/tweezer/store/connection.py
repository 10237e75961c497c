"""Opens the store: one Redis, one namespace."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import msgspec
from redis.asyncio import Redis

from tweezer.store.commands import Commands
from tweezer.store.feed import EventStream, News
from tweezer.store.keys import Keys
from tweezer.store.reader import Reader
from tweezer.store.scripts import Scripts, StoreConfig
from tweezer.store.tickets import Tickets


class Connect(msgspec.Struct, frozen=True):
    """How to reach Redis. ``connect_s`` and ``command_s`` bound each attempt."""

    url: str = "redis://127.0.0.1:6379/0"
    namespace: str = "tweezer"
    connect_s: float = 5.0
    command_s: float = 30.0
    connections_max: int = 64


class Store:
    """All that the rest of Tweezer asks of Redis."""

    def __init__(self, redis: Redis, *, namespace: str = "tweezer", config: StoreConfig | None = None) -> None:
        self.redis = redis
        self.keys = Keys(namespace)
        scripts = Scripts(redis, self.keys, config or StoreConfig())
        self.scripts = scripts
        self.commands = Commands(scripts)
        self.tickets = Tickets(scripts)
        self.reader = Reader(scripts)
        self.news = News(scripts)
        self.events = EventStream(scripts)

    @classmethod
    def open(cls, connect: Connect, config: StoreConfig | None = None) -> Store:
        """A store on connections of its own; nothing is sent until it is used."""
        redis = Redis.from_url(
            connect.url,
            socket_connect_timeout=connect.connect_s,
            socket_timeout=connect.command_s,
            max_connections=connect.connections_max,
            health_check_interval=30,
        )
        return cls(redis, namespace=connect.namespace, config=config)

    async def close(self) -> None:
        await self.news.close()
        await self.redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
