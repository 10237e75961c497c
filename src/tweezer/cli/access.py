"""What every command needs: the settings, and the queue behind them."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import click
import msgspec

from tweezer.client import AsyncQueue
from tweezer.model.errors import TweezerError, Unavailable
from tweezer.settings import Settings, load
from tweezer.store.connection import Store

_IMPATIENT_S = 2.0
_PATIENT_S = 60.0


class Access(msgspec.Struct, frozen=True):
    """The global options; None leaves a setting to the environment."""

    redis: str | None = None
    project: str = "default"
    namespace: str | None = None

    def settings(self, **given: object) -> Settings:
        """The settings, where the options of the command line (None: not given) go first. Raises InvalidInput."""
        options = {"redis_url": self.redis, "namespace": self.namespace, **given}
        return load({name: value for name, value in options.items() if value is not None})

    @asynccontextmanager
    async def queue(self, *, patient: bool = False) -> AsyncIterator[AsyncQueue]:
        """The project's queue. Raises Unavailable when Redis is not there.

        patient: once it was reached, wait for a minute for a Redis that went away.
        """
        settings = self.settings()
        store = Store.open(settings.connect())
        async with AsyncQueue(store, self.project, retry_s=_PATIENT_S if patient else _IMPATIENT_S) as queue:
            try:
                await store.reader.ping()
            except Unavailable as error:
                raise Unavailable(
                    f"{error.message.rstrip('.')}; start it (`tweezer up` has one of its own), or name another with "
                    "--redis or TWEEZER_REDIS_URL"
                ) from error
            yield queue


pass_access = click.make_pass_decorator(Access)


def require(command: str, extra: str, *modules: str) -> None:
    """Raises TweezerError that names the extra to install unless all these modules are there."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise TweezerError(
            f"`tweezer {command}` needs {' and '.join(missing)}: pip install 'tweezer[{extra}]'", code="missing_extra"
        )
