"""The courier process: delivers webhooks until a signal."""

from __future__ import annotations

import os
from typing import Any
from uuid import UUID

import structlog
from arq.worker import Worker, func

from tweezer.duties import DUTY_BACKOFF, Duties
from tweezer.ledger.access.links import ResultLinks
from tweezer.ledger.database import Database
from tweezer.ledger.installation import wait_for_ledger
from tweezer.model.ids import new_worker_id
from tweezer.processes.runtime import (
    Parker,
    ParkingWorker,
    arq_options,
    done_before,
    run_on_a_loop,
    stopped_by_signals,
    watching_loop,
    work,
)
from tweezer.settings import Settings
from tweezer.store.connection import Store
from tweezer.store.keys import Key
from tweezer.webhooks.attempts import Deliverer
from tweezer.webhooks.courier import Courier, CourierTuning
from tweezer.webhooks.deliveries import DELIVER, Deliveries
from tweezer.webhooks.outbox import RetrySchedule
from tweezer.webhooks.payloads import Payloads
from tweezer.webhooks.secrets import SecretCache
from tweezer.webhooks.sender import CONNECTIONS_MAX, Sender

log = structlog.get_logger(__name__)

_NICENESS = 19  # workers and Redis have priority for a core
_SWEEP_S = 10.0
_DRAIN_S = 5.0
_DISABLE_S = 5 * 86_400.0  # an endpoint without a success for this time is disabled
_POLL_S = 1.0  # between checks for alarms when idle


async def deliver(context: dict[Any, Any], endpoint_id: str) -> None:
    """Handle an alarm: a delivery to this endpoint is due."""
    courier: Courier = context["courier"]
    await courier.fetch(UUID(endpoint_id))


def run_courier(settings: Settings, *, tuning: CourierTuning | None = None) -> None:
    """Deliver webhooks until SIGTERM or SIGINT; several couriers may run."""
    os.nice(_NICENESS)
    run_on_a_loop(lambda: CourierProcess(settings, tuning))


class CourierProcess:
    """A courier with its own store, database and connections."""

    def __init__(self, settings: Settings, tuning: CourierTuning | None = None) -> None:
        self._settings = settings
        self._tuning = tuning or CourierTuning()
        self._store = Store.open(settings.connect())
        self._database = Database.open(settings.locate_ledger())
        self._vault = settings.vault()

    async def async_run(self) -> None:
        """Run until a signal. Raises TweezerError when the ledger's tables are missing or not up to date, or when Redis
        belongs to another ledger."""
        stopping = stopped_by_signals()
        settings = self._settings
        if not await done_before(stopping, wait_for_ledger(settings.locate_ledger(), settings.connect())):
            return
        sender = Sender(settings.webhook_policy(), timeout_s=settings.webhook.timeout_s)
        deliverer = Deliverer(
            self._store,
            self._database,
            Deliveries(self._database, settings.namespace),
            sender,
            SecretCache(self._database, self._vault),
            connections=CONNECTIONS_MAX,
            disable_s=_DISABLE_S,
            claim_s=self._tuning.claim_s,
        )
        links = ResultLinks(
            self._database, lambda: self._vault, base_url=settings.public_base(), link_s=settings.webhook.link_s
        )
        courier = Courier(
            self._store,
            self._database,
            Payloads(self._store, self._database, links),
            deliverer,
            namespace=settings.namespace,
            reader=new_worker_id(),
            schedule=RetrySchedule(settings.webhook.schedule_s),
            connections=settings.webhook.endpoint_connections,
            tuning=self._tuning,
        )
        log.info("courier.started")
        try:
            with watching_loop():
                async with Duties() as duties:
                    duties.watch("courier", courier.run())
                    duties.watch("outcomes", deliverer.write_outcomes())
                    duties.start("sweep", courier.sweep, every_s=_SWEEP_S)
                    await work(
                        lambda: self._workers(courier), stopping, doing="alarms", drain_s=_DRAIN_S, backoff=DUTY_BACKOFF
                    )
        finally:
            await courier.close()

    async def close(self) -> None:
        await self._store.close()
        self._database.close()
        log.info("courier.stopped")

    async def _workers(self, courier: Courier) -> tuple[Worker]:
        queue = self._store.keys(Key.COURIER)
        return (
            ParkingWorker(
                parker=Parker(self._settings, "courier"),
                functions=[func(deliver, name=DELIVER, keep_result=0, max_tries=2)],  # type: ignore[arg-type]
                queue_name=queue,
                poll_delay=_POLL_S,
                job_timeout=60,
                **arq_options(self._store, {"courier": courier}),
            ),
        )
