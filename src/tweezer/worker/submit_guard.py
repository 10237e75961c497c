"""The record, in the store, of a job's submit to a machine."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from tweezer.duties import until_answered
from tweezer.model.errors import Unavailable
from tweezer.model.intents import Intent, Mark
from tweezer.store.remote import NotDurable, Remote
from tweezer.store.workers import Tickets
from tweezer.worker.config import WorkerConfig
from tweezer.worker.leases import HeldTicket

log = structlog.get_logger(__name__)

T = TypeVar("T")

_tries = itertools.count(1)


class TicketSubmitGuard:
    """The :class:`~tweezer.adapters.protocol.SubmitGuard` of a job of a held ticket. Calls repeat until Redis answers.

    Each intent has a unique name, because a call that got no answer may arrive late. A late call then cannot change
    another intent, and an intent that appears after it was withdrawn is recognised by its name.
    """

    def __init__(self, remote: Remote, tickets: Tickets, held: HeldTicket, index: int, config: WorkerConfig) -> None:
        self._remote = remote
        self._tickets = tickets
        self._held = held
        self._index = index
        self._config = config
        self._intent: Intent | None = None
        self._own: set[str] = set()
        self._withdrawn: set[str] = set()

    async def known(self) -> Intent | None:
        batch_id = self._held.grant.batch_id
        found = await self._ask(lambda: self._remote.known(batch_id, self._index), "looking for an intent")
        if found is not None and found.name in self._withdrawn:
            await self._take_back(found.name)
            found = None
        self._intent = found
        return found

    async def intend(self, *, unsent: bool = False) -> Intent | None:
        grant = self._held.grant
        tries = 0
        while not self._held.lost:
            self._own.add(name := f"{grant.token}.{next(_tries)}")
            try:
                intent = await self._remote.intend(grant.ticket, grant.token, self._index, name, unsent=unsent)
                if intent is not None and not intent.is_new and intent.name in self._own | self._withdrawn:
                    self._own.add(intent.name)
                    raise NotDurable("an earlier intent arrived late")
            except (Unavailable, NotDurable) as error:  # it is unknown whether the intent was written, and to disk
                tries += 1
                log.warning("intent.unconfirmed", index=self._index, error=error.message, tries=tries)
                await asyncio.sleep(self._config.redis_backoff.delay_s(tries))
                await self.withdraw()
            else:
                self._intent = intent
                return intent
        return None

    async def set_out(self) -> bool:
        assert self._intent is not None
        grant, name = self._held.grant, self._intent.name
        return await self._ask(
            lambda: self._remote.set_out(grant.ticket, grant.token, self._index, name), "recording a submit"
        )

    async def note(self, uid: str, *, named: bool | None = None) -> None:
        assert self._intent is not None
        batch_id, name = self._held.grant.batch_id, self._intent.name
        await self._ask(
            lambda: self._remote.note(batch_id, self._index, name, uid, named=named),
            "recording a machine's job id",
        )

    async def mark(self) -> Mark:
        device = self._held.grant.doc.device
        return await self._ask(lambda: self._remote.mark(device), "reading the machine's last known job")

    async def note_set_back(self, uid: int | None, since: int) -> None:
        device = self._held.grant.doc.device
        await self._ask(lambda: self._remote.note_set_back(device, uid, since), "recording a set-back of the machine")

    async def withdraw(self) -> None:
        for name in tuple(self._own):
            await self._take_back(name)

    async def note_timeout(self) -> None:
        grant, tickets = self._held.grant, self._tickets
        await self._ask(lambda: tickets.note_timeout(grant.ticket, grant.token, self._index), "recording a timeout")

    async def _take_back(self, name: str) -> None:
        batch_id = self._held.grant.batch_id
        self._withdrawn.add(name)
        await self._ask(lambda: self._remote.withdraw(batch_id, self._index, name), "withdrawing an intent")
        self._own.discard(name)

    def left_s(self) -> float:
        if self._held.lost:
            return 0.0
        return self._held.renewed + self._config.lease_s - time.monotonic()

    @property
    def lease_s(self) -> float:
        return self._config.lease_s

    async def _ask(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        return await until_answered(call, self._config.redis_backoff, what)
