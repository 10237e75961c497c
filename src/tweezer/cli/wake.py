"""Wakes the couriers for what a command has made due."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

from tweezer.cli import show
from tweezer.cli.access import Access
from tweezer.model.errors import Unavailable
from tweezer.store.connection import Store
from tweezer.webhooks.alarms import Alarms


def wake(access: Access, endpoint: UUID) -> None:
    """Sets an alarm for now; says so when Redis is not there: the couriers' sweep finds it later."""

    _tell(access, lambda alarms: alarms.arm(endpoint, None))


def tell_changed(access: Access) -> None:
    """Says that endpoints were changed; couriers see it within a second where Redis is not there."""
    _tell(access, lambda alarms: alarms.changed())


def _tell(access: Access, what: Callable[[Alarms], Awaitable[None]]) -> None:
    async def tell() -> None:
        async with Store.open(access.settings().connect()) as store:
            await what(Alarms(store))

    try:
        asyncio.run(tell())
    except Unavailable as error:
        show.echo(f"No courier was told, they find it by themselves, later: {error.message}", err=True)
