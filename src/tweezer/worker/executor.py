"""Runs the jobs of one ticket on one lane, from its grant to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import TypeVar

import msgspec
import structlog

from tweezer import tracing
from tweezer.adapters.protocol import DeviceUnavailable, Lane
from tweezer.duties import is_cancelled, until_answered
from tweezer.logs import PacedLog
from tweezer.model.errors import ExecutionError, FaultKind, ResultUnavailable, TweezerError, Unavailable
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
from tweezer.store.connection import Store
from tweezer.store.workers import Grant, HeldJob, NextStep, Settlement, SettleResult
from tweezer.worker.config import WorkerConfig
from tweezer.worker.leases import HeldTicket, LeaseKeeper
from tweezer.worker.output import JobOutput
from tweezer.worker.submit_guard import TicketSubmitGuard

log = structlog.get_logger(__name__)

T = TypeVar("T")


class TicketEnd(StrEnum):
    """How the work on a ticket ended, for the log."""

    RETIRED = "retired"
    YIELDED = "yielded"
    PARKED = "parked"
    LOST = "lost"
    RELEASED = "released"
    DRAINED = "drained"
    BATCH_FAILED = "batch_failed"


_END_OF_TURN = {
    NextStep.RETIRED: TicketEnd.RETIRED,
    NextStep.YIELD: TicketEnd.YIELDED,
    NextStep.PARKED: TicketEnd.PARKED,
    NextStep.STALE: TicketEnd.LOST,
}


_LOGGED_ENDS = {"job.done": {"done"}, "job.canceled": {"canceled", "prevented"}}
"""The events of the log, with their kinds of settlements."""

_RETRIED_KINDS = frozenset({FaultKind.TRANSIENT, FaultKind.CRASH, FaultKind.INTERNAL})
"""The kinds of failures after which preparing a batch is tried again."""


class Executor:
    """Works on tickets, one call of :meth:`execute` each."""

    def __init__(self, store: Store, keeper: LeaseKeeper, config: WorkerConfig, draining: Callable[[], bool]) -> None:
        self._tickets = store.tickets
        self._results = store.results
        self._logs = store.job_logs
        self._remote = store.remote
        self._devices = store.devices
        self._keeper = keeper
        self._config = config
        self._draining = draining
        self._log = PacedLog(log)

    async def execute(self, grant: Grant, lane: Lane) -> TicketEnd:
        """Prepare the batch and run its jobs turn by turn.

        In every case a script ends the work on the ticket: it is retired, yielded or released, or its lease expires.
        """
        held = HeldTicket(grant, lane)
        self._keeper.add(held)
        try:
            if grant.problem is not None:
                raise ExecutionError(FaultKind.USER, f"the batch's record in Redis cannot be read: {grant.problem}")
            self._log.info("batch.taken", [job.index for job in grant.jobs])
            await self._prepare(held)
            jobs = grant.jobs
            while True:
                turn = await self._turn(held, jobs)
                while turn.next is NextStep.RESERVED:
                    turn = await self._wait_for_jobs(held)
                if turn.next is not NextStep.JOBS:
                    return _END_OF_TURN[turn.next]
                jobs = turn.jobs
        except DeviceUnavailable as unavailable:
            log.warning("machine.unavailable", reason=str(unavailable))
            await self._report_unavailable(grant, unavailable)
            await self._give_back(grant, str(unavailable))
            return TicketEnd.DRAINED
        except ExecutionError as error:
            return await self._prepare_failed(held, error)
        except asyncio.CancelledError:
            await self._give_back(grant, "the worker stops")
            return TicketEnd.DRAINED
        except Exception as error:
            log.exception("ticket.failed", error=str(error))
            fault = Fault(
                "internal",
                f"internal error: {type(error).__name__}: {error}; this is a bug in Tweezer, report it",
            )
            return await self._release(held, fault)
        finally:
            self._keeper.remove(held)

    async def _prepare(self, held: HeldTicket) -> None:
        """Prepare the batch. The next call charges the time to its project, even if the preparation fails."""
        began = time.monotonic()
        try:
            with tracing.span("tweezer.prepare"):
                await held.lane.prepare(BatchWork(held.grant.batch_id, held.grant.doc))
        finally:
            held.unpaid_s = time.monotonic() - began

    async def _turn(self, held: HeldTicket, jobs: list[HeldJob]) -> SettleResult:
        """Run held jobs, then settle them and claim the next."""
        began = time.monotonic()
        settlements: list[Settlement] = []
        size = 0
        for job in jobs:
            with tracing.span("tweezer.job", **{"tweezer.job": job.index, "tweezer.attempt": job.attempt}):
                settlements.append(settlement := await self._pack(held, job, await self._run(held, job)))
            size += settlement.size
            full = size + self._results.inline_max >= MAX_SETTLE_BYTES
            if full or self._is_leaving() or time.monotonic() - began >= self._config.turn_s:
                break
        used_s = time.monotonic() - began
        return await self._settle(held, settlements, want=self._want(len(jobs), used_s), used_s=used_s)

    async def _wait_for_jobs(self, held: HeldTicket) -> SettleResult:
        """Wait for jobs of an open batch that holds the device: until the batch's bell rings, or ``bell_s``."""
        await self._ask(
            lambda: self._tickets.wait_for_call(held.grant.batch_id, wait_s=self._config.bell_s),
            "waiting for jobs",
        )
        return await self._settle(held, (), want=0 if self._is_leaving() else 1, used_s=0.0)

    async def _settle(
        self, held: HeldTicket, settlements: Sequence[Settlement], *, want: int, used_s: float
    ) -> SettleResult:
        grant = held.grant
        if held.lost:
            return SettleResult(NextStep.STALE, len(settlements))
        used_s += held.unpaid_s
        with tracing.span("tweezer.settle", **{"tweezer.jobs": len(settlements)}):
            turn = await self._ask(
                lambda: self._tickets.settle(
                    grant.ticket, grant.token, settlements, want=want, used_s=used_s, lease_s=self._config.lease_s
                ),
                "settling jobs",
            )
        held.unpaid_s = 0.0
        if turn.refused:
            write = log.warning if turn.next is NextStep.STALE else log.info  # info: of jobs that were cancelled
            write("settle.refused", outcomes=turn.refused, next=turn.next.value)
        if turn.over_quota:
            await self._discard([s for s in settlements if s.index in turn.over_quota])
        if turn.next is not NextStep.STALE:
            self._log_ends([s for s in settlements if s.index not in turn.over_quota])
        return turn

    def _log_ends(self, settlements: Sequence[Settlement]) -> None:
        """Log the jobs that a turn ended, with the sum of their times; those that failed were logged before."""
        for event, kinds in _LOGGED_ENDS.items():
            if ended := [s for s in settlements if s.kind in kinds]:
                seconds = sum(s.preparation_ms + s.execution_ms for s in ended) / 1000
                self._log.info(event, sorted(s.index for s in ended), seconds=seconds)

    async def _discard(self, settlements: Sequence[Settlement]) -> None:
        """Remove the files of results that exceed the quota of their project."""
        log.warning("results.over_quota", jobs=[s.index for s in settlements])
        for settlement in settlements:
            try:
                await self._results.discard(settlement.result)
            except ResultUnavailable as error:
                log.warning("result.not_removed", error=error.message)

    def _is_leaving(self) -> bool:
        return self._draining() or is_cancelled()

    def _want(self, held: int, used_s: float) -> int:
        """Return how many jobs to claim next: twice as many after a short turn, one after a long turn."""
        if self._is_leaving():
            return 0
        if used_s >= self._config.turn_s:
            return 1
        return min(2 * held, self._config.claim_max)

    async def _run(self, held: HeldTicket, job: HeldJob) -> Outcome:
        stop = held.must_stop(job.index) or job.cancel_requested
        if held.lost or (stop and held.remote is None):  # the outcome of a lost ticket is ignored
            return Outcome(OutcomeKind.CANCELED, began=False)
        if job.problem is not None:
            fault = Fault("unreadable", f"the job's record in Redis cannot be read: {job.problem}")
            return Outcome(OutcomeKind.ERROR, fault=fault, cause=FaultKind.INTERNAL)
        identity = job_id(held.grant.batch_id, job.index)
        seed = job.spec.seed if job.spec.seed is not None else derived_seed(identity)
        work = JobWork(identity, job.index, job.spec, seed, max(job.attempt, 1))
        held.begin(job.index)
        try:
            if held.remote is not None:
                outcome = await held.remote.run_remotely(work, held.report, self._guard(held, job.index), cancel=stop)
            else:
                outcome = await self._run_locally(held, work)
                if outcome.cause is FaultKind.TIMEOUT and not held.lost:  # it was stopped, as by a cancel
                    await self._guard(held, job.index).note_timeout()
        finally:
            held.end(job.index)
        if outcome.cause is FaultKind.TRANSIENT and outcome.retry_in_s == 0:
            delay_s = self._config.job_backoff.delay_s(max(job.attempt, 1))
            outcome = msgspec.structs.replace(outcome, retry_in_s=delay_s)
        if outcome.kind is OutcomeKind.ERROR or outcome.kind is OutcomeKind.RETRY:
            self._log.warning(
                "job.failed",
                [job.index],
                outcome=outcome.kind.value,
                cause=outcome.cause and outcome.cause.value,
                fault=outcome.fault and str(outcome.fault),
            )
        return outcome

    async def _run_locally(self, held: HeldTicket, work: JobWork) -> Outcome:
        """Run a job on the lane, and store what the lane writes meanwhile."""
        if held.writing is None:
            return await held.lane.run(work, held.report)
        output = JobOutput(self._logs, work)
        held.writing.on_output = output.add
        try:
            return await held.lane.run(work, held.report)
        finally:
            held.writing.on_output = None
            await output.close()

    def _guard(self, held: HeldTicket, index: int) -> TicketSubmitGuard:
        return TicketSubmitGuard(self._remote, self._tickets, held, index, self._config)

    async def _pack(self, held: HeldTicket, job: HeldJob, outcome: Outcome) -> Settlement:
        """Convert an outcome for ``settle``.

        If the results folder cannot store the result, the job is retried; a machine's job must not run twice, so its
        result is kept until it can be stored.
        """
        grant = held.grant
        if outcome.result is None:
            return Settlement.of(job.index, outcome)
        try:
            return Settlement.of(
                job.index, outcome, await self._results.pack(grant.batch_id, job.index, outcome.result)
            )
        except ResultUnavailable as error:
            log.warning("result.not_stored", jobs=str(job.index), error=error.message)
            if held.remote is not None and not held.lost:
                await asyncio.sleep(self._config.results_s)
                return await self._pack(held, job, outcome)
            fault = Fault(error.code, error.message)
            retry = msgspec.structs.replace(
                outcome,
                kind=OutcomeKind.RETRY,
                result=None,
                fault=fault,
                cause=FaultKind.TRANSIENT,
                retry_in_s=self._config.results_s,
            )
            return Settlement.of(job.index, retry)

    async def _prepare_failed(self, held: HeldTicket, error: ExecutionError) -> TicketEnd:
        grant = held.grant
        fault = Fault(error.code, error.problem, error.field)
        if error.kind in _RETRIED_KINDS:
            return await self._release(held, fault, is_crash=error.kind is FaultKind.CRASH)
        log.warning("batch.cannot_run", fault=str(fault))
        await self._ask(
            lambda: self._tickets.fail_batch(grant.ticket, grant.token, fault, used_s=held.unpaid_s),
            "ending a batch that cannot run",
        )
        return TicketEnd.BATCH_FAILED

    async def _release(self, held: HeldTicket, fault: Fault, *, is_crash: bool = False) -> TicketEnd:
        grant = held.grant
        doomed = await self._ask(
            lambda: self._tickets.release(
                grant.ticket,
                grant.token,
                fault,
                backoff=self._config.ticket_backoff,
                failures_max=self._config.failures_max,
                used_s=held.unpaid_s,
                is_crash=is_crash,
            ),
            "releasing a ticket",
        )
        log.warning("ticket.released", fault=str(fault), batch_ended=doomed)
        return TicketEnd.BATCH_FAILED if doomed else TicketEnd.RELEASED

    async def _report_unavailable(self, grant: Grant, unavailable: DeviceUnavailable) -> None:
        """Record that the machine is down until the next probe; otherwise the ticket would be granted again at once."""
        try:
            await self._devices.set_condition(grant.doc.device, "down", str(unavailable))
        except TweezerError as error:
            log.warning("machine.down_not_reported", error=error.message)

    async def _ask(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        return await until_answered(call, self._config.redis_backoff, what)

    async def _give_back(self, grant: Grant, reason: str) -> None:
        """Give the ticket back, in one attempt because the worker is stopping. Otherwise its lease expires."""
        try:
            if await self._tickets.drain(grant.ticket, grant.token):
                log.info("ticket.given_back", reason=reason)
        except Unavailable as error:
            log.warning("ticket.not_given_back", error=error.message, returns_after_s=self._config.lease_s)
