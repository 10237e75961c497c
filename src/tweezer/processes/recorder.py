"""The recorder process: writes the ledger until a signal, or is on standby while another recorder does."""

from __future__ import annotations

import os

import structlog

from tweezer.duties import DUTY_BACKOFF, Duties
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import wait_for_schema
from tweezer.ledger.recorder.recorder import NICENESS, Recorder
from tweezer.processes.runtime import done_before, require_access, run_on_a_loop, stopped_by_signals
from tweezer.settings import Settings
from tweezer.store.connection import Store

log = structlog.get_logger(__name__)


def run_recorder(settings: Settings) -> None:
    """Write the events of the queue to the ledger until SIGTERM or SIGINT, or wait while another recorder does."""
    os.nice(NICENESS)
    run_on_a_loop(lambda: RecorderProcess(settings))


class RecorderProcess:
    """A recorder with its own store and database."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = Store.open(settings.connect())
        self._database = Database.open(settings.locate_ledger())
        self._recorder = Recorder(
            self._store,
            self._database,
            namespace=settings.namespace,
            grace_s=settings.redis.grace_s,
        )

    async def async_run(self) -> None:
        """Run until a signal. Raises TweezerError when the ledger's tables are missing or not up to date."""
        stopping = stopped_by_signals()
        if not await done_before(stopping, wait_for_schema(self._settings.locate_ledger())):
            return
        if not await require_access(self._store, stopping, DUTY_BACKOFF):
            return
        log.info("recorder.started")
        async with Duties() as duties:
            duties.watch("recorder", self._recorder.run())
            await stopping.wait()

    async def close(self) -> None:
        await self._store.close()
        self._database.close()
        log.info("recorder.stopped")
