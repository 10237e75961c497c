"""What all outboxes of a courier share: the sender, the rows in the ledger, the alarms."""

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

from tweezer.duties import repeat
from tweezer.ledger.clock import now_ms
from tweezer.ledger.database import Database
from tweezer.model.errors import NotFound, TweezerError
from tweezer.model.signatures import signed_headers
from tweezer.model.webhooks import EndpointData, EventType, timestamp
from tweezer.store.connection import Store
from tweezer.store.streams.feed import Notice
from tweezer.webhooks.deliveries import PENDING, Alarms, Deliveries, Due, Outcome
from tweezer.webhooks.endpoints import Endpoint, disable_endpoint, find_endpoint, note_failing, note_working
from tweezer.webhooks.secrets import SecretCache
from tweezer.webhooks.sender import Answer, Sender

log = structlog.get_logger(__name__)

HOLD_S = 30.0

_GATHER_S = 0.05  # how long outcomes come together before they are written
_WRITTEN_AT_ONCE = 1000
_GIVEN_UP_S = 10.0  # how long nothing is claimed for an endpoint after it was told that it is disabled


class Hold(msgspec.Struct, frozen=True):
    """begin_by: until when (monotonic) what a courier holds is to be attempted. until_ms: when, since 1970, it is due
    for others; an attempt that was begun in time is over by then."""

    begin_by: float
    until_ms: int


class Desk:
    """Sends, and writes down what became of it. ``connections``: attempts at once, of all outboxes together.
    ``hold_s``: how long deliveries may wait here."""

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
        hold_s: float = HOLD_S,
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
        self._hold_s = hold_s
        self._given_up: dict[UUID, float] = {}
        self._outcomes: list[tuple[UUID, Outcome]] = []
        self._came = asyncio.Event()

    def hold(self) -> Hold:
        """Of what is taken now."""
        held_s = self._hold_s + self._sender.timeout_s + 1.0
        return Hold(time.monotonic() + self._hold_s, now_ms() + round(held_s * 1000))

    def expect(self, endpoint: Endpoint) -> None:
        """Something is about to be sent there."""
        self._secrets.expect(endpoint.secret_owner)

    async def post(self, endpoint: Endpoint, due: Due, begin_by: float) -> Answer | None:
        """One attempt; None when it could not begin by then. Never raises for what the receiver does."""
        share = self._share_of(endpoint.project_no)
        if not await self._enter(share, begin_by):
            return None
        try:
            secrets = await self._secrets.get(endpoint.secret_owner)  # now: while it waited they may have been rotated
            body = due.body.encode()
            headers = signed_headers(secrets, due.event, int(time.time()), body)
            return await self._sender.post(endpoint.url, body, headers)
        finally:
            self._slots.release()
            share.release()

    async def _enter(self, share: asyncio.Semaphore, begin_by: float) -> bool:
        """Takes a slot and one of the project's share; whether that was possible by then."""
        if not (share.locked() or self._slots.locked()):  # then neither waits, and there is nothing to time
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

    def _share_of(self, project_no: int) -> asyncio.Semaphore:
        """Half of the attempts at once are the most that one project has: its dead receivers delay nobody else's."""
        share = self._shares.get(project_no)
        if share is None:
            share = self._shares[project_no] = asyncio.Semaphore(self._share)
        return share

    def finish(self, endpoint_id: UUID, outcome: Outcome) -> None:
        """To be written down soon. If this process dies before, the attempt is made again."""
        self._outcomes.append((endpoint_id, outcome))
        self._came.set()

    async def write(self) -> None:
        """Writes outcomes down until cancelled, many at once."""
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
        """Writes down what there is, and arms the alarms of what is to be tried again. Raises TweezerError."""
        outcomes = self._outcomes[:_WRITTEN_AT_ONCE]
        await self._database.run(self._deliveries.finish, [outcome for _, outcome in outcomes])
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
        """Writes down what is left, and closes the connections to receivers."""
        try:
            while self._outcomes:
                await self.flush()
        finally:
            await self._sender.close()

    async def claim(self, endpoint_id: UUID, most: int, hold: Hold) -> tuple[Endpoint, list[Due]] | None:
        """The endpoint, and deliveries to it that are due and this courier's now. None if it is gone, or was just given
        up, or is disabled: what was pending is then held back."""
        endpoint = await self.find(endpoint_id)
        if endpoint is None:
            return None
        if endpoint.disabled is not None:
            self._given_up.pop(endpoint_id, None)
            await self._database.run(self._deliveries.hold, endpoint_id)
            return None
        if self._is_given_up(endpoint_id):
            return None
        return endpoint, await self._database.run(_claim, self._deliveries, endpoint_id, most, hold.until_ms)

    async def postpone(self, ids: Sequence[UUID], due_ms: int) -> None:
        """Lets go of what is held and was not attempted."""
        if ids:
            await self._database.run(self._deliveries.postpone, ids, due_ms)

    async def postpone_and_arm(self, endpoint_id: UUID, ids: Sequence[UUID], due_ms: int) -> None:
        """The same, and somebody looks at the endpoint again then."""
        await self.postpone(ids, due_ms)
        await self._arm(endpoint_id, due_ms)

    async def _arm(self, endpoint_id: UUID, due_ms: int) -> None:
        """Sets an alarm; without one the couriers' sweep finds what is due."""
        try:
            await self._alarms.arm(endpoint_id, due_ms)
        except TweezerError as error:
            log.warning("alarm.not_armed", endpoint=str(endpoint_id), error=error.message)

    async def failed(self, endpoint_id: UUID, at_ms: int) -> None:
        """An attempt failed; an endpoint of which all have for too long is disabled."""
        since = await self._database.run(self._note_failing, endpoint_id, at_ms)
        if at_ms - since > self._disable_ms:
            days = self._disable_ms / 86_400_000
            await self.give_up(endpoint_id, f"every attempt has failed for {days:.3g} days")

    async def worked(self, endpoint_id: UUID) -> None:
        """An attempt worked after some that failed."""
        await self._database.run(self._note_working, endpoint_id)

    async def give_up(self, endpoint_id: UUID, why: str) -> None:
        """Tells the project that nothing more is sent there; :meth:`disable` makes it so when that is on its way.

        Until then this courier claims nothing for it. If Redis loses what was told, the next failure tells it again,
        by the same id.
        """
        if self._is_given_up(endpoint_id):
            return
        self._given_up[endpoint_id] = time.monotonic() + _GIVEN_UP_S
        try:
            endpoint = await self.find(endpoint_id)
            if endpoint is not None and endpoint.disabled is None:
                since_ms = await self._database.run(self._note_failing, endpoint_id, now_ms())
                await self._store.events.tell(_notice(endpoint, why, since_ms))
        except BaseException:
            self._given_up.pop(endpoint_id, None)
            raise

    async def disable(self, notice: Notice) -> None:
        """What was told of an endpoint is in the ledger for all who are told: now it is so. May be repeated: since it
        was enabled again, another notice is needed."""
        told = msgspec.json.decode(notice.data, type=EndpointData)
        endpoint_id, since_ms = UUID(told.endpoint_id), _since_ms(notice)
        if await self._database.run(self._disable, endpoint_id, told.reason, since_ms):
            log.warning("endpoint.disabled", endpoint=str(endpoint_id), project=notice.project, reason=told.reason)
        await self._alarms.changed()

    def _is_given_up(self, endpoint_id: UUID) -> bool:
        if time.monotonic() < self._given_up.get(endpoint_id, 0.0):
            return True
        self._given_up.pop(endpoint_id, None)
        return False

    async def find(self, endpoint_id: UUID) -> Endpoint | None:
        """The endpoint as it stands."""

        def find() -> Endpoint | None:
            with self._database.read() as connection:
                try:
                    return find_endpoint(connection, endpoint_id, None)
                except NotFound:
                    return None

        return await self._database.run(find)

    def _note_failing(self, endpoint_id: UUID, at_ms: int) -> int:
        with self._database.write() as connection:
            return note_failing(connection, endpoint_id, at_ms)

    def _note_working(self, endpoint_id: UUID) -> None:
        with self._database.write() as connection:
            note_working(connection, [endpoint_id])

    def _disable(self, endpoint_id: UUID, why: str, since_ms: int) -> bool:
        with self._database.write() as connection, contextlib.suppress(NotFound):
            return disable_endpoint(connection, endpoint_id, why, failing_since_ms=since_ms) is not None
        return False


def _notice(endpoint: Endpoint, why: str, since_ms: int) -> Notice:
    now_us = time.time_ns() // 1000
    data = EndpointData(str(endpoint.id), without_query(endpoint.url), why, timestamp(now_us))
    return Notice(
        f"{endpoint.id}:{since_ms}000",
        EventType.ENDPOINT_DISABLED,
        endpoint.project,
        now_us,
        msgspec.json.encode(data).decode(),
    )


def _since_ms(notice: Notice) -> int:
    """Since when all attempts at the endpoint have failed: the last part of the notice's id."""
    return int(notice.id.rpartition(":")[2]) // 1000


def without_query(url: str) -> str:
    """What may be shown of a URL: its query may be a secret."""
    return urlunsplit(urlsplit(url)._replace(query="", fragment=""))


def _claim(deliveries: Deliveries, endpoint_id: UUID, most: int, until_ms: int) -> list[Due]:
    return deliveries.claim(endpoint_id, most=most, until_ms=until_ms)
