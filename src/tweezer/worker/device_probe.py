"""How the machine behind a device is: asked before the worker begins, and again and again."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from tweezer.adapters.protocol import Machine, MachineState
from tweezer.adapters.specs import checked_specs
from tweezer.duties import Backoff
from tweezer.model.errors import NotFound, TweezerError, Unavailable
from tweezer.store.connection import Store
from tweezer.worker.heartbeat import Presence

log = structlog.get_logger(__name__)

_PATIENT = Backoff(base_s=1.0, cap_s=30.0)


class MachineWatch:
    """Tells the store how the machine is, and clients what it is like."""

    def __init__(self, store: Store, device: str, machine: Machine, presence: Presence) -> None:
        self._store = store
        self._device = device
        self._machine = machine
        self._presence = presence
        self._told: MachineState | None = None

    async def meet(self) -> None:
        """Waits until the machine has said what it is like, unless its operator did. Raises InvalidInput where Pulser
        cannot read it."""
        tries = 0
        while self._presence.specs is None:
            try:
                text = await self._machine.specs_text()
            except TweezerError as error:
                tries += 1
                await self.wait(error.message, tries)
            else:
                self._presence.specs = await asyncio.to_thread(checked_specs, text, field="specs of the machine")

    async def wait(self, why: str, tries: int) -> None:
        """Waits before the machine is asked again; meanwhile it is shown that nobody knows how it is."""
        log.warning("machine.not_met", error=why, tries=tries)
        with contextlib.suppress(NotFound, Unavailable):  # one that was never announced is shown nowhere yet
            await self._store.commands.set_condition(self._device, MachineState.UNKNOWN.value, why)
        await asyncio.sleep(_PATIENT.delay_s(tries))

    async def look(self) -> None:
        """Asks how it is, and passes that on: nothing is handed out while it is down."""
        condition = await self._machine.probe()
        try:
            await self._store.commands.set_condition(self._device, condition.state.value, condition.reason)
        except NotFound:
            return  # not announced yet
        if condition.state is not self._told:
            self._told = condition.state
            log.info("machine.condition", state=condition.state.value, reason=condition.reason)
