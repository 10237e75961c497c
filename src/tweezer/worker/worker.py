"""The worker: arq's runtime with tickets instead of arq's messages."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import deque
from itertools import islice
from typing import Any

import structlog
from arq import func
from arq.connections import ArqRedis
from arq.worker import Worker
from redis import exceptions as redis_errors

from tweezer import tracing
from tweezer.adapters.lane.jail import COMPLETE
from tweezer.adapters.protocol import Adapter, Lane, MachineAdapter
from tweezer.duties import Duties, heeding_cancel, is_cancelled, repeat, until_answered
from tweezer.model.errors import ExecutionError, FaultKind, InvalidInput, Unavailable
from tweezer.model.ids import created_s, new_worker_id
from tweezer.model.specs import DeviceSpecs
from tweezer.store.connection import Store
from tweezer.store.keys import Key
from tweezer.store.scripts import translating
from tweezer.store.streams.feed import read_cancel
from tweezer.store.workers import Grant, TakeResult
from tweezer.worker.config import WorkerConfig
from tweezer.worker.executor import Executor
from tweezer.worker.heartbeat import SWEEP_S, MachineProbe, Presence, Sweeper
from tweezer.worker.leases import LeaseKeeper, log_reclaimed

log = structlog.get_logger(__name__)

_TAKE_MAX = 32  # tickets taken in one call


async def ticket(context: dict[Any, Any]) -> None:
    """Registered because arq requires a function. Tickets do not come through arq's queue."""


class TicketWorker(Worker):
    """Serves one device with a number of lanes.

    arq provides signals, draining, burst mode and health checks. Instead of polling a queue, the worker waits for the
    device's doorbell and takes tickets. Only scripts end tickets.

    specs: The device's specs for clients; None: clients get none, or the machine's. version: The package's version, for
    the list of workers.
    """

    def __init__(
        self,
        store: Store,
        device: str,
        adapter: Adapter,
        *,
        adapter_name: str,
        specs: DeviceSpecs | None = None,
        lanes: int,
        config: WorkerConfig,
        version: str,
        burst: bool = False,
        handle_signals: bool = True,
    ) -> None:
        super().__init__(
            functions=[func(ticket, name="ticket")],  # type: ignore[arg-type]
            queue_name=store.keys(Key.READY, device),
            redis_pool=ArqRedis(store.redis.connection_pool),
            burst=burst,
            handle_signals=handle_signals,
            job_completion_wait=max(1, round(config.drain_s)),
            max_jobs=lanes,
        )
        self.id = new_worker_id()
        self.store = store
        self.device = device
        self._adapter = adapter
        self._lane_count = lanes
        self._config = config
        self._lanes: list[Lane] = []
        self._free: deque[int] = deque()
        self._dropped: list[Grant] = []  # taken, but cancelled before the work on them began
        self._freed = asyncio.Event()
        self._keeper = LeaseKeeper(store.tickets, config)
        self._sweeper = Sweeper(store, config)
        self._executor = Executor(store, self._keeper, config, lambda: not self.allow_pick_jobs)
        self._wait_s = 0.0
        self._is_done = False
        self._log = log.bind()  # once, not for each ticket
        self._presence = Presence(store, self.id, device, adapter_name, adapter.capabilities, specs, config, version)
        self.duties = Duties()
        self._probe: MachineProbe | None = None

    # -- start and stop -----------------------------------------------------------------------------

    async def _start(self) -> None:
        structlog.contextvars.bind_contextvars(device=self.device, worker=self.id)
        if self._adapter.capabilities.reattaches:
            durability = await until_answered(
                self.store.remote.require_durability, self._config.redis_backoff, "checking the durability of Redis"
            )
            log.info("worker.durability", by=durability.value)
        if isinstance(self._adapter, MachineAdapter):
            self._probe = MachineProbe(self.store, self.device, self._adapter, self._presence)
            await self._probe.handshake()
        self._lanes = list(await asyncio.gather(*(self._open_lane() for _ in range(self._lane_count))))
        self._free.extend(range(self._lane_count))
        await until_answered(self._announce, self._config.redis_backoff, "announcing the worker")
        backoff = self._config.redis_backoff
        self.duties.start("heartbeat", self._beat, every_s=self._config.beat_s, backoff=backoff)
        self.duties.start("sweep", self._sweep, every_s=SWEEP_S, backoff=backoff)
        self.duties.start("leases", self._keeper.keep, every_s=self._keeper.tick_s, backoff=backoff)
        self.duties.start("cancels", self._receive_cancels, backoff=backoff)
        if self._probe is not None:
            self.duties.start("probe", self._probe.probe, every_s=self._adapter.capabilities.probe_s)
        log.info("worker.started", lanes=self._lane_count)

    async def _open_lane(self) -> Lane:
        """Open a lane. Wait for a machine that cannot be reached, because it may run jobs of this worker."""
        tries = 0
        while True:
            try:
                return await self._adapter.open_lane()
            except ExecutionError as error:
                if self._probe is None or error.kind is not FaultKind.TRANSIENT:
                    raise
                tries += 1
                await self._probe.wait(error.message, tries)

    async def close(self) -> None:
        """Give back the running jobs, and close lanes and connections, even if Redis does not answer."""
        if not self._handle_signals:
            self.handle_sig(signal.SIGUSR1)
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        with contextlib.suppress(Unavailable):
            await self._give_back_dropped()
        await asyncio.gather(*(lane.close() for lane in self._lanes))
        if isinstance(self._adapter, MachineAdapter):
            await self._adapter.close()
        with contextlib.suppress(Unavailable, redis_errors.RedisError, OSError):
            await self._presence.leave()
            await self.pool.delete(self.health_check_key)
        await self.store.close()
        log.info("worker.stopped", worker=self.id)

    async def _give_back_dropped(self) -> None:
        """Give back the dropped tickets at once. If that fails, they come back when their leases expire."""
        dropped, self._dropped = self._dropped, []
        for grant in dropped:
            await self.store.tickets.drain(grant.ticket, grant.token)

    async def _announce(self) -> None:
        await self.store.tickets.publish_settings(self._config.store)
        await self._presence.announce()
        await self._beat()

    async def _beat(self) -> None:
        await self._presence.beat(
            lanes=self._lane_count,
            busy=self._lane_count - len(self._free),
            draining=not self.allow_pick_jobs,
            jail=self._describe_jail(),
        )

    def _describe_jail(self) -> str:
        """Return the jail of the lanes, an incomplete one first; empty if the lanes have no processes."""
        return min((lane.jail for lane in self._lanes if lane.jail), key=lambda it: it == COMPLETE, default="")

    async def _sweep(self) -> None:
        await self._keeper.catch_up()
        await self._sweeper.sweep()

    async def _receive_cancels(self) -> None:
        async with self.store.news.pool(self.device) as messages:
            while not is_cancelled():
                for message in await messages.next(timeout_s=None):
                    try:
                        self._keeper.cancel(read_cancel(message))
                    except InvalidInput as error:
                        log.warning("cancel.unreadable", error=error.message)

    # -- taking tickets -------------------------------------------------------------------------------

    async def main(self) -> None:
        """Run until stopped. Replaces arq's polling with the doorbell."""
        async with self.duties:
            try:
                with heeding_cancel():
                    await self._start()
                await repeat(
                    "take", self._poll_iteration, backoff=self._config.redis_backoff, while_=lambda: not self._is_done
                )
            finally:  # leases are renewed and cancels received until the last lane is free
                await self._end_tasks()

    async def _end_tasks(self) -> None:
        for task in self.tasks.values():
            if not task.cancelling():
                task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def _poll_iteration(self) -> None:
        """Take tickets for free lanes, or wait until a lane is free."""
        with translating():
            if self.burst and not self.tasks and await self.pool.zcard(self.queue_name) == 0:
                self._is_done = True
                return
            if self.allow_pick_jobs and self._free:
                await self._take_or_wait()
            else:
                self._freed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._config.bell_s):
                        await self._freed.wait()
            await self.heart_beat()

    async def _take_or_wait(self) -> None:
        await self._keeper.catch_up()
        taken = await self._take()
        log_reclaimed(taken.reclaimed)
        for name in taken.left_alone:
            log.warning("ticket.skipped", ticket=name, reason="its batch was written by a newer version, or is damaged")
        if self.allow_pick_jobs:
            for grant in taken.grants:
                self._work_on(grant)
        else:  # it began to drain while it waited
            self._dropped += taken.grants
            await self._give_back_dropped()
        due_s = self._config.bell_s if taken.due_s is None else max(taken.due_s, 0.01)
        self._wait_s = 0.0 if taken.grants or self.burst else min(due_s, self._config.bell_s)

    async def _take(self) -> TakeResult:
        """Take tickets for the free lanes. If the last take found none, wait for the doorbell first.

        A worker that is stopped meanwhile gives back the granted tickets.
        """
        lanes = [f"{self.id}:{number}" for number in islice(self._free, _TAKE_MAX)]
        taking = asyncio.ensure_future(
            self.store.tickets.take(self.device, lanes, lease_s=self._config.lease_s, wait_s=self._wait_s)
        )
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            with contextlib.suppress(Unavailable):
                await self.store.tickets.ring(self.device)
                self._dropped += (await taking).grants
            raise

    def _work_on(self, grant: Grant) -> None:
        number = self._free.popleft()
        name = f"{grant.ticket}:{grant.token}"  # the ticket may be granted again while the lane that lost it ends
        task = self.loop.create_task(self._work(grant, number))
        self.tasks[name] = task

        def free(done: asyncio.Task[Any]) -> None:
            del self.tasks[name]
            if done.cancelled():
                self._dropped.append(grant)
            elif (error := done.exception()) is not None:  # the ticket comes back when its lease expires
                log.error("ticket.failed", ticket=str(grant.ticket), error=str(error), exc_info=error)
            self._free.append(number)
            self._freed.set()
            self.jobs_complete += 1

        task.add_done_callback(free)

    async def _work(self, grant: Grant, number: int) -> None:
        structlog.contextvars.bind_contextvars(
            batch=str(grant.batch_id), ticket=grant.ticket.number, token=grant.token, lane=number
        )
        about = {"tweezer.device": self.device, "tweezer.worker": self.id, "tweezer.lane": number}
        with tracing.of_batch("tweezer.ticket", grant.batch_id, grant.doc.trace, **about):
            tracing.record("tweezer.queue", created_s(grant.batch_id))
            end = await self._executor.execute(grant, self._lanes[number])
        self._log.debug("ticket.ended", end=end.value)
