"""Attempts to deliver webhooks: the parts that all outboxes of a courier share."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID
from weakref import WeakValueDictionary

import msgspec
import structlog

from tweezer import tracing
from tweezer.duties import repeat
from tweezer.ledger.database import Database
from tweezer.ledger.schema import now_ms
from tweezer.model.errors import NotFound, TweezerError
from tweezer.model.events import Notice
from tweezer.model.signatures import signed_headers
from tweezer.model.webhooks import EndpointData, EventType, timestamp
from tweezer.store.connection import Store
from tweezer.webhooks.deliveries import PENDING, Alarms, AttemptOutcome, ClaimedDelivery, Deliveries
from tweezer.webhooks.endpoints import Endpoint, disable_endpoint, find_endpoint, note_failure, note_success
from tweezer.webhooks.secrets import SecretCache
from tweezer.webhooks.sender import Sender, SendResult

log = structlog.get_logger(__name__)

CLAIM_S = 30.0

_GATHER_S = 0.05  # how long outcomes are collected before they are written
_WRITTEN_AT_ONCE = 1000
_GIVEN_UP_S = 10.0  # how long nothing is claimed for an endpoint after the notice that disables it


class Claim(msgspec.Struct, frozen=True):
    """How long a courier may keep deliveries that it has claimed.

    begin_by: until when (monotonic) it may start an attempt. until_ms: when (since 1970) they are due for other
    couriers again; an attempt that started in time is over by then.
    """

    begin_by: float
    until_ms: int


class Deliverer:
    """The attempts of a courier, and the record of their outcomes.

    connections: concurrent attempts of all outboxes together. claim_s: how long deliveries may wait in this courier.
    """

    def __init__(
        self,
        store: Store,
        database: Database,
        deliveries: Deliveries,
        sender: Sender,
        secrets: SecretCache,
        *,
        connections: int,
        disable_s: float,
        claim_s: float = CLAIM_S,
    ) -> None:
        self._store = store
        self._alarms = Alarms(store)
        self._database = database
        self._deliveries = deliveries
        self._sender = sender
        self._secrets = secrets
        self._slots = asyncio.Semaphore(connections)
        self._share = max(connections // 2, 1)
        self._shares: WeakValueDictionary[int, asyncio.Semaphore] = WeakValueDictionary()  # of projects with attempts
        self._disable_ms = round(disable_s * 1000)
        self._claim_s = claim_s
        self._given_up: dict[UUID, float] = {}
        self._outcomes: list[tuple[UUID, AttemptOutcome]] = []
        self._came = asyncio.Event()

    def new_claim(self) -> Claim:
        """Return a claim for deliveries that are claimed now."""
        claim_s = self._claim_s + self._sender.timeout_s + 1.0
        return Claim(time.monotonic() + self._claim_s, now_ms() + round(claim_s * 1000))

    def expect(self, endpoint: Endpoint) -> None:
        """Load the endpoint's secrets, because something will be sent to it soon."""
        self._secrets.expect(endpoint.secret_owner)

    async def send(self, endpoint: Endpoint, due: ClaimedDelivery, begin_by: float) -> SendResult | None:
        """Make one attempt; return None if it could not start by then. Failures of the receiver are in the result."""
        # A project may use half of the connections, so that its dead receivers do not delay other projects.
        share = self._shares.setdefault(endpoint.project_no, asyncio.Semaphore(self._share))
        if not await self._enter(share, begin_by):
            return None
        try:
            secrets = await self._secrets.get(
                endpoint.secret_owner
            )  # read now: they may have been rotated while it waited
            body = due.body.encode()
            headers = signed_headers(secrets, due.event, int(time.time()), body)
            if tracing.is_on() and (batch_id := batch_of(due.event)) is not None:
                about = {
                    "tweezer.event": due.type,
                    "tweezer.endpoint": str(endpoint.id),
                    "tweezer.attempt": due.attempts + 1,
                }
                with tracing.of_batch("tweezer.webhook", batch_id, due.trace, **about):
                    return await self._sender.post(endpoint.url, body, headers | tracing.propagated())
            return await self._sender.post(endpoint.url, body, headers)
        finally:
            self._slots.release()
            share.release()

    async def _enter(self, share: asyncio.Semaphore, begin_by: float) -> bool:
        """Acquire a slot and one of the project's share; return whether that was possible by then."""
        if not (share.locked() or self._slots.locked()):  # neither has to wait, so no timeout is needed
            await share.acquire()
            await self._slots.acquire()
            return True
        try:
            async with asyncio.timeout(begin_by - time.monotonic()):
                await share.acquire()
                try:
                    await self._slots.acquire()
                except BaseException:
                    share.release()
                    raise
        except TimeoutError:
            return False
        return True

    def record(self, endpoint_id: UUID, outcome: AttemptOutcome) -> None:
        """Write the outcome soon. If this process dies before that, the attempt is repeated."""
        self._outcomes.append((endpoint_id, outcome))
        self._came.set()

    async def write_outcomes(self) -> None:
        """Write outcomes in groups until cancelled."""
        await repeat("outcomes", self._write_some)

    async def _write_some(self) -> None:
        await self._came.wait()
        self._came.clear()
        try:
            if len(self._outcomes) < _WRITTEN_AT_ONCE:
                await asyncio.sleep(_GATHER_S)
            await self.flush()
        except BaseException:
            self._came.set()
            raise

    async def flush(self) -> None:
        """Write the collected outcomes, and arm alarms for further attempts. Raises TweezerError."""
        outcomes = self._outcomes[:_WRITTEN_AT_ONCE]
        await self._database.run(self._deliveries.record, [outcome for _, outcome in outcomes])
        del self._outcomes[: len(outcomes)]
        if self._outcomes:
            self._came.set()
        alarms = {
            (endpoint_id, outcome.due_ms // 1000): outcome.due_ms
            for endpoint_id, outcome in outcomes
            if outcome.due_ms is not None and outcome.status == PENDING
        }
        for (endpoint_id, _), due_ms in alarms.items():
            await self._arm(endpoint_id, due_ms)

    async def close(self) -> None:
        """Write the remaining outcomes, and close the connections to receivers."""
        try:
            while self._outcomes:
                await self.flush()
        finally:
            await self._sender.close()

    async def claim(self, endpoint_id: UUID, most: int, claim: Claim) -> tuple[Endpoint, list[ClaimedDelivery]] | None:
        """Claim due deliveries to an endpoint; return them with the endpoint.

        Returns None if the endpoint was deleted, was just given up, or is disabled. Pending deliveries to a disabled
        endpoint are held back.
        """
        endpoint = await self.find_endpoint(endpoint_id)
        if endpoint is None:
            return None
        if endpoint.disabled is not None:
            self._given_up.pop(endpoint_id, None)
            await self._database.run(self._deliveries.hold_pending, endpoint_id)
            return None
        if self._is_given_up(endpoint_id):
            return None
        return endpoint, await self._database.run(self._deliveries.claim, endpoint_id, most, claim.until_ms)

    async def postpone(self, endpoint_id: UUID, ids: Sequence[UUID], due_ms: int) -> None:
        """Release claimed deliveries that were not attempted, and arm an alarm for the time when they are due."""
        if ids:
            await self._database.run(self._deliveries.postpone, ids, due_ms)
        await self._arm(endpoint_id, due_ms)

    async def _arm(self, endpoint_id: UUID, due_ms: int) -> None:
        """Arm an alarm; if that fails, the couriers' sweep finds what is due."""
        try:
            await self._alarms.arm(endpoint_id, due_ms)
        except TweezerError as error:
            log.warning("alarm.not_armed", endpoint=str(endpoint_id), error=error.message)

    async def note_failure(self, endpoint_id: UUID, at_ms: int) -> None:
        """Note a failed attempt; give up an endpoint if all attempts have failed for too long."""
        since = await self._database.run_write(note_failure, endpoint_id, at_ms)
        if at_ms - since > self._disable_ms:
            days = self._disable_ms / 86_400_000
            await self.give_up(endpoint_id, f"every attempt has failed for {days:.3g} days")

    async def note_success(self, endpoint_id: UUID) -> None:
        """Note a successful attempt after failed ones."""
        await self._database.run_write(note_success, [endpoint_id])

    async def give_up(self, endpoint_id: UUID, why: str) -> None:
        """Publish the notice that the endpoint is disabled. :meth:`disable` disables it once the notice is processed.

        Until then this courier claims nothing for the endpoint. If Redis loses the notice, the next failure publishes
        it again with the same id.
        """
        if self._is_given_up(endpoint_id):
            return
        self._given_up[endpoint_id] = time.monotonic() + _GIVEN_UP_S
        try:
            endpoint = await self.find_endpoint(endpoint_id)
            if endpoint is not None and endpoint.disabled is None:
                since_ms = await self._database.run_write(note_failure, endpoint_id, now_ms())
                await self._store.events.tell(_make_notice(endpoint, why, since_ms))
        except BaseException:
            self._given_up.pop(endpoint_id, None)
            raise

    async def disable(self, notice: Notice) -> None:
        """Disable the endpoint of a notice, once the deliveries of that notice are in the ledger.

        May be repeated: an endpoint that was enabled in the meantime stays enabled.
        """
        data = msgspec.json.decode(notice.data, type=EndpointData)
        identity, why, since_ms = UUID(data.endpoint_id), data.reason, _parse_since_ms(notice)
        with contextlib.suppress(NotFound):
            if await self._database.run_write(disable_endpoint, identity, why, failing_since_ms=since_ms):
                log.warning("endpoint.disabled", endpoint=data.endpoint_id, project=notice.project, reason=why)
        await self._alarms.note_change()

    def _is_given_up(self, endpoint_id: UUID) -> bool:
        if time.monotonic() < self._given_up.get(endpoint_id, 0.0):
            return True
        self._given_up.pop(endpoint_id, None)
        return False

    async def find_endpoint(self, endpoint_id: UUID) -> Endpoint | None:
        """Return the current endpoint; None if it was deleted."""
        try:
            return await self._database.run_read(find_endpoint, endpoint_id)
        except NotFound:
            return None


def batch_of(event: str) -> UUID | None:
    """Return the batch whose event has this id; None for a notice."""
    try:
        return UUID(event.partition(":")[0])
    except ValueError:
        return None


def _make_notice(endpoint: Endpoint, why: str, since_ms: int) -> Notice:
    now_us = time.time_ns() // 1000
    data = EndpointData(str(endpoint.id), without_query(endpoint.url), why, timestamp(now_us))
    return Notice(
        f"{endpoint.id}:{since_ms}000",
        EventType.ENDPOINT_DISABLED,
        endpoint.project,
        now_us,
        msgspec.json.encode(data).decode(),
    )


def _parse_since_ms(notice: Notice) -> int:
    """Return when the endpoint's attempts began to fail: the last part of the notice's id."""
    return int(notice.id.rpartition(":")[2]) // 1000


def without_query(url: str) -> str:
    """Return a URL without its query, which may be a secret."""
    return urlunsplit(urlsplit(url)._replace(query="", fragment=""))
