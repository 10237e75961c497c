"""A worker's background duties: its heartbeat, sweeps, the check of Redis' memory, and probes of its machine."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any

import structlog

from tweezer.adapters.protocol import Capabilities, MachineAdapter, MachineState
from tweezer.adapters.specs import check_specs
from tweezer.duties import Backoff
from tweezer.model.errors import NotFound, TweezerError, Unavailable
from tweezer.model.messages import RECORD_VERSION
from tweezer.model.specs import DeviceSpecs
from tweezer.store.connection import Store
from tweezer.worker.config import WorkerConfig
from tweezer.worker.leases import log_reclaimed

_BACKOFF = Backoff(base_s=1.0, cap_s=30.0)

log = structlog.get_logger(__name__)

SWEEP_S = 1.0
"""Seconds between two sweeps of a process."""

_SWEEPS_MAX = 20  # calls each time, while there is more to do


class Presence:
    """The heartbeat of a worker, which also reports its lanes."""

    def __init__(
        self,
        store: Store,
        worker: str,
        device: str,
        adapter: str,
        capabilities: Capabilities,
        specs: DeviceSpecs | None,
        config: WorkerConfig,
        version: str,
    ) -> None:
        self._tickets = store.tickets
        self._devices = store.devices
        self.specs = specs
        self._worker = worker
        self._device = device
        self._config = config
        self._about_device: dict[str, Any] = {
            "adapter": adapter,
            "exclusive": int(capabilities.exclusive),
            "reattaches": int(capabilities.reattaches),
            "checks_sequence": int(capabilities.checks_sequence),
            "is_emulator": int(capabilities.is_emulator),
            "max_runs": capabilities.max_runs,
            "max_backlog": config.max_backlog,
        }
        self._about_worker: dict[str, Any] = {
            "host": socket.gethostname(),
            "version": version,
            "record_version": RECORD_VERSION,
            "started": round(time.time() * 1000),
        }

    async def announce(self) -> None:
        """Store the device's specs, before anything else about it. Raises InvalidInput if another has their name."""
        if self.specs is not None:
            await self._devices.announce(self._device, self._about_device, self.specs)

    async def beat(self, *, lanes: int, busy: int, draining: bool, jail: str) -> str:
        """Send a heartbeat. Announce the device again if Redis lost its specs. Return why it is paused, or ''."""
        about = {**self._about_worker, "lanes": lanes, "busy": busy, "draining": int(draining), "jail": jail}
        beat = await self._tickets.heartbeat(
            self._worker,
            self._device,
            ttl_s=3 * self._config.beat_s,
            about_device=self._about_device,
            about_worker=about,
        )
        if not beat.has_specs:
            await self.announce()
        return beat.paused

    async def leave(self) -> None:
        await self._tickets.heartbeat(self._worker, self._device, ttl_s=0, about_device={}, about_worker={})


class Sweeper:
    """Sweeps, and checks whether Redis is full. Any number of processes may sweep."""

    def __init__(self, store: Store, config: WorkerConfig) -> None:
        self._store = store
        self._config = config
        self._may_be_full = True

    async def sweep(self) -> None:
        config = self._config
        info = await self._store.reader.server_info("memory")
        limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
        for _ in range(_SWEEPS_MAX):
            found = await self._store.tickets.sweep(memory=round(config.full_at * limit))
            log_reclaimed(found.reclaimed)
            if found.timed_out:
                log.info("sweep.found", batches_timed_out=found.timed_out)
            if not found.more:
                break
        full = None
        if limit and used > config.full_at * limit:
            full = f"Redis uses {used >> 20} of its {limit >> 20} MiB, more than {config.full_at:.0%}"
        if full or self._may_be_full:
            await self._store.tickets.set_full(full, ttl_s=5 * config.bell_s)
        self._may_be_full = full is not None


class MachineProbe:
    """Reads a machine's condition and specs, and writes them to the store."""

    def __init__(self, store: Store, device: str, machine: MachineAdapter, presence: Presence) -> None:
        self._store = store
        self._device = device
        self._machine = machine
        self._presence = presence
        self._reported: MachineState | None = None

    async def handshake(self) -> None:
        """Wait for the machine's specs, unless a file has them. Raises InvalidInput if Pulser cannot read them."""
        tries = 0
        while self._presence.specs is None:
            try:
                text = await self._machine.specs_text()
            except TweezerError as error:
                tries += 1
                await self.wait(error.message, tries)
            else:
                self._presence.specs = await asyncio.to_thread(check_specs, text, field="specs of the machine")

    async def wait(self, why: str, tries: int) -> None:
        """Wait before the next attempt. Meanwhile the machine's condition is unknown."""
        log.warning("machine.handshake_failed", error=why, tries=tries)
        with contextlib.suppress(NotFound, Unavailable):  # a device that was never announced has no condition yet
            await self._store.devices.set_condition(self._device, MachineState.UNKNOWN.value, why)
        await asyncio.sleep(_BACKOFF.delay_s(tries))

    async def probe(self) -> None:
        """Read the machine's condition and record it. No job is granted while it is down."""
        condition = await self._machine.probe()
        try:
            await self._store.devices.set_condition(self._device, condition.state.value, condition.reason)
        except NotFound:
            return  # not announced yet
        if condition.state is not self._reported:
            self._reported = condition.state
            log.info("machine.condition", state=condition.state.value, reason=condition.reason)
