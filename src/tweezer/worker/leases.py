"""The tickets that this worker holds, and the renewal of their leases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import structlog

from tweezer.adapters.protocol import Lane, WritingLane
from tweezer.adapters.remote.lane import RemoteLane
from tweezer.model.errors import TweezerError
from tweezer.model.events import RETURNS
from tweezer.model.lifecycle import Stage
from tweezer.model.messages import Progress
from tweezer.store.workers import CancelRequest, Grant, JobProgress, LostLease, Tickets
from tweezer.worker.config import WorkerConfig

log = structlog.get_logger(__name__)

_TICK_S = 1.0


class HeldTicket:
    """A ticket that this worker holds: the running job, its unreported progress, and the jobs that must stop."""

    def __init__(self, grant: Grant, lane: Lane) -> None:
        self.grant = grant
        self.lane = lane
        self.remote = lane if isinstance(lane, RemoteLane) else None
        self.writing = lane if isinstance(lane, WritingLane) else None
        self.lost = False
        self.unpaid_s = 0.0
        """Seconds of preparation that the project has not been charged for yet."""
        self.renewed = grant.taken_at
        self._running: int | None = None
        self._stop: set[int] = set()
        self.unreported: dict[int, JobProgress] = {}
        self._stopping: asyncio.Task[None] | None = None

    def begin(self, index: int) -> None:
        """Note that the lane begins with this job."""
        self._running = index
        self.unreported[index] = JobProgress(index, Stage.PREPARING)

    def report(self, progress: Progress) -> None:
        """Keep the running job's progress for the next renewal."""
        if self._running is not None:
            self.unreported[self._running] = JobProgress(
                self._running, progress.stage, progress.fraction, progress.steps
            )

    def end(self, index: int) -> None:
        self._running = None
        self.unreported.pop(index, None)

    def must_stop(self, index: int) -> bool:
        return self.lost or index in self._stop

    def stop(self, indices: frozenset[int]) -> None:
        """Stop these jobs, as a user requested."""
        self._stop |= indices
        if self._running in indices:
            self._stop_lane()

    def lose(self) -> None:
        """Note that the ticket is lost and stop the running job, whose outcome would be ignored."""
        self.lost = True
        if self._running is not None:
            self._stop_lane()

    def take_unreported(self) -> list[JobProgress]:
        unreported, self.unreported = list(self.unreported.values()), {}
        return unreported

    def put_back(self, unreported: list[JobProgress]) -> None:
        """Keep progress that could not be reported, unless it is outdated or the job has ended."""
        for job in unreported:
            if job.index == self._running:
                self.unreported.setdefault(job.index, job)

    def _stop_lane(self) -> None:
        if self.lost and self.remote is not None:
            self.remote.detach()
        elif self._stopping is None or self._stopping.done():
            self._stopping = asyncio.create_task(self.lane.cancel())
            self._stopping.add_done_callback(_note_failure)


def _note_failure(stopping: asyncio.Task[None]) -> None:
    if not stopping.cancelled() and (error := stopping.exception()) is not None:
        log.error("lane.not_stopped", error=str(error), exc_info=error)


def log_reclaimed(leases: Iterable[LostLease]) -> None:
    """Log tickets that were taken back because their worker stopped renewing their leases."""
    for lease in leases:
        worker, _, lane = lease.lane.rpartition(":")
        held = {"taken_from": worker, "lane": lane, "ticket": lease.ticket.number}
        log.warning("lease.taken_back", batch=str(lease.ticket.batch_id), **held, reason=RETURNS["lost"])


class LeaseKeeper:
    """Renews the leases of this worker's tickets, and stops the jobs that the answers name."""

    def __init__(self, tickets: Tickets, config: WorkerConfig) -> None:
        self._tickets = tickets
        self._config = config
        self._held: set[HeldTicket] = set()  # a lost ticket may be granted again while its first work still ends

    def add(self, held: HeldTicket) -> None:
        self._held.add(held)

    def remove(self, held: HeldTicket) -> None:
        self._held.discard(held)

    def cancel(self, request: CancelRequest) -> None:
        """Stop running jobs of a batch, whichever ticket of this worker holds them."""
        for held in self._held:
            if held.grant.batch_id == request.batch_id:
                held.stop(request.indices)

    @property
    def tick_s(self) -> float:
        """Seconds between two calls of :meth:`keep`."""
        return min(_TICK_S, self._config.lease_s / 5)

    async def keep(self) -> None:
        """Renew the leases that are due, and those of jobs with unreported progress."""
        now = time.monotonic()
        due = [
            held
            for held in self._held
            if not held.lost and (held.unreported or now - held.renewed >= self._config.lease_s / 3)
        ]
        await asyncio.gather(*map(self._renew, due))

    async def catch_up(self) -> None:
        """Renew expired leases before this worker's own take or sweep reclaims them.

        Raises Unavailable while Redis does not answer.
        """
        now = time.monotonic()
        lapsed = [held for held in self._held if not held.lost and now - held.renewed >= self._config.lease_s]
        await asyncio.gather(*map(self._renew_now, lapsed))

    async def _renew(self, held: HeldTicket) -> None:
        try:
            await self._renew_now(held)
        except TweezerError as error:
            log.warning("lease.not_renewed", ticket=str(held.grant.ticket), error=error.message)
        except Exception as error:  # must not prevent the renewal of the other leases
            log.exception("lease.not_renewed", ticket=str(held.grant.ticket), error=str(error))

    async def _renew_now(self, held: HeldTicket) -> None:
        grant, unreported, before = held.grant, held.take_unreported(), time.monotonic()
        try:
            renewal = await self._tickets.renew(grant.ticket, grant.token, unreported, lease_s=self._config.lease_s)
        except BaseException:
            held.put_back(unreported)
            raise
        held.renewed = before
        if renewal is None:
            if held in self._held:
                log.warning("lease.lost", ticket=str(grant.ticket), token=grant.token)
                held.lose()
            return
        if not renewal.is_reported:
            held.put_back(unreported)
        if renewal.stop:
            held.stop(renewal.stop)
