"""Drives a batch: one lane, one ticket, from its grant to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum

import msgspec
import structlog

from tweezer.adapters.protocol import Lane
from tweezer.model.errors import ExecutionError, FaultKind, ResultUnavailable, Unavailable
from tweezer.model.ids import job_id
from tweezer.model.messages import (
    MAX_SETTLE_BYTES,
    BatchWork,
    Fault,
    JobWork,
    Outcome,
    OutcomeKind,
    derived_seed,
)
from tweezer.model.tasks import is_cancelled
from tweezer.queue.holding import Holding, Keeper, until_answered
from tweezer.queue.policy import Policy
from tweezer.store.results import Results
from tweezer.store.tickets import Grant, HeldJob, Next, Settlement, Tickets, Turn

log = structlog.get_logger(__name__)


class End(StrEnum):
    """How the work on a ticket ended, for the log."""

    RETIRED = "retired"
    YIELDED = "yielded"
    PARKED = "parked"
    LOST = "lost"
    RELEASED = "released"
    DRAINED = "drained"
    BATCH_FAILED = "batch_failed"


_END_OF_TURN = {
    Next.RETIRED: End.RETIRED,
    Next.YIELD: End.YIELDED,
    Next.PARKED: End.PARKED,
    Next.STALE: End.LOST,
}


_WORTH_ANOTHER_TRY = frozenset({FaultKind.TRANSIENT, FaultKind.CRASH, FaultKind.INTERNAL})
"""Why a batch could not be prepared this time; for the other kinds it never can."""

_RESULTS_RETRY_S = 60.0
"""Before a job is run again whose result the results folder did not take: somebody has to make room there."""


class Driver:
    """Works on tickets, one call of :meth:`drive` each."""

    def __init__(
        self, tickets: Tickets, results: Results, keeper: Keeper, policy: Policy, draining: Callable[[], bool]
    ) -> None:
        self._tickets = tickets
        self._results = results
        self._keeper = keeper
        self._policy = policy
        self._draining = draining

    async def drive(self, grant: Grant, lane: Lane) -> End:
        """Prepares the batch, runs its jobs turn by turn, and leaves the ticket to Redis again.

        Whatever happens, the ticket ends by a script: retired, yielded, released, or lost to its lease.
        """
        holding = Holding(grant, lane)
        self._keeper.add(holding)
        try:
            await lane.prepare(BatchWork(grant.batch_id, grant.doc))
            jobs = grant.jobs
            while True:
                turn = await self._turn(holding, jobs)
                if turn.next is not Next.JOBS:
                    return _END_OF_TURN[turn.next]
                jobs = turn.jobs
        except ExecutionError as error:
            return await self._prepare_failed(grant, error)
        except asyncio.CancelledError:
            await self._give_back(grant)
            return End.DRAINED
        except Exception as error:
            log.exception("ticket.failed", error=str(error))
            fault = Fault("internal", f"Tweezer failed to run the batch: {type(error).__name__}: {error}")
            return await self._release(grant, fault)
        finally:
            self._keeper.remove(holding)

    async def _turn(self, holding: Holding, jobs: list[HeldJob]) -> Turn:
        """Runs held jobs, then settles them and claims the next."""
        grant, began = holding.grant, time.monotonic()
        settlements: list[Settlement] = []
        size = 0
        for job in jobs:
            settlements.append(settlement := await self._pack(grant, job, await self._run(holding, job)))
            size += settlement.size
            full = size + self._results.inline_max >= MAX_SETTLE_BYTES
            if full or self._leaving() or time.monotonic() - began >= self._policy.turn_s:
                break
        used_s = time.monotonic() - began
        if holding.lost:
            return Turn(Next.STALE, len(settlements))
        turn = await until_answered(
            lambda: self._tickets.settle(
                grant.ticket,
                grant.token,
                settlements,
                want=self._want(len(jobs), used_s),
                used_s=used_s,
                lease_s=self._policy.lease_s,
            ),
            self._policy.redis_backoff,
            "settling jobs",
        )
        if turn.refused:
            log.warning("settle.refused", outcomes=turn.refused, next=turn.next.value)
        return turn

    def _leaving(self) -> bool:
        return self._draining() or is_cancelled()

    def _want(self, held: int, used_s: float) -> int:
        """How many jobs to claim next: twice as many while turns are short, one when they are long."""
        if self._leaving():
            return 0
        if used_s >= self._policy.turn_s:
            return 1
        return min(2 * held, self._policy.claim_max)

    async def _run(self, holding: Holding, job: HeldJob) -> Outcome:
        if holding.must_stop(job.index) or job.cancel_requested:
            return Outcome(OutcomeKind.CANCELED)
        identity = job_id(holding.grant.batch_id, job.index)
        seed = job.spec.seed if job.spec.seed is not None else derived_seed(identity)
        holding.begin(job.index)
        try:
            outcome = await holding.lane.run(
                JobWork(identity, job.index, job.spec, seed, max(job.attempt, 1)), holding.report
            )
        finally:
            holding.end(job.index)
        if outcome.cause is FaultKind.TRANSIENT and outcome.retry_in_s == 0:
            delay_s = self._policy.job_backoff.delay_s(max(job.attempt, 1))
            outcome = msgspec.structs.replace(outcome, retry_in_s=delay_s)
        if outcome.kind is OutcomeKind.ERROR or outcome.kind is OutcomeKind.RETRY:
            log.warning(
                "job.failed",
                job=str(identity),
                outcome=outcome.kind.value,
                cause=outcome.cause and outcome.cause.value,
                fault=outcome.fault and str(outcome.fault),
            )
        return outcome

    async def _pack(self, grant: Grant, job: HeldJob, outcome: Outcome) -> Settlement:
        """The outcome for settle. A result that the results folder does not take asks for another attempt."""
        if outcome.kind is not OutcomeKind.DONE or outcome.result is None:
            return Settlement.of(job.index, outcome)
        try:
            return Settlement.of(
                job.index, outcome, await self._results.pack(grant.batch_id, job.index, outcome.result)
            )
        except ResultUnavailable as error:
            log.warning("result.not_kept", job=str(job_id(grant.batch_id, job.index)), error=error.message)
            fault = Fault(error.code, error.message)
            retry = msgspec.structs.replace(
                outcome,
                kind=OutcomeKind.RETRY,
                result=None,
                fault=fault,
                cause=FaultKind.TRANSIENT,
                retry_in_s=_RESULTS_RETRY_S,
            )
            return Settlement.of(job.index, retry)

    async def _prepare_failed(self, grant: Grant, error: ExecutionError) -> End:
        fault = Fault(error.code, error.problem, error.field)
        if error.kind in _WORTH_ANOTHER_TRY:
            return await self._release(grant, fault)
        log.warning("batch.cannot_run", fault=str(fault))
        await until_answered(
            lambda: self._tickets.fail_batch(grant.ticket, grant.token, fault),
            self._policy.redis_backoff,
            "ending a batch that cannot run",
        )
        return End.BATCH_FAILED

    async def _release(self, grant: Grant, fault: Fault) -> End:
        doomed = await until_answered(
            lambda: self._tickets.release(
                grant.ticket,
                grant.token,
                fault,
                backoff=self._policy.ticket_backoff,
                failures_max=self._policy.failures_max,
            ),
            self._policy.redis_backoff,
            "releasing a ticket",
        )
        log.warning("ticket.released", fault=str(fault), batch_ended=doomed)
        return End.BATCH_FAILED if doomed else End.RELEASED

    async def _give_back(self, grant: Grant) -> None:
        """Drains: one try, for the worker is going; a lease that stays behind expires."""
        try:
            await self._tickets.drain(grant.ticket, grant.token)
        except Unavailable as error:
            log.warning("ticket.not_given_back", error=error.message, returns_after_s=self._policy.lease_s)
