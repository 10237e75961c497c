"""The workers' side of the store: take, settle, renew, release, and heartbeats.

All calls may be repeated after :class:`~tweezer.model.errors.Unavailable`. A stale token is returned, not raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

from tweezer.duties import Backoff
from tweezer.model.cancels import TIMEOUT
from tweezer.model.errors import FaultKind, TweezerError
from tweezer.model.lifecycle import Stage
from tweezer.model.lru import CombinedCalls
from tweezer.model.messages import (
    MAX_SETTLE_BYTES,
    BatchDoc,
    Fault,
    JobSpec,
    Outcome,
    OutcomeKind,
    Progress,
    Steps,
    decode_doc,
    decode_spec,
    encode_fault,
    encode_result,
    fit_progress,
    pack_steps,
    shorten_fault,
    stored_size,
)
from tweezer.store.keys import Key
from tweezer.store.records import DAMAGED, TicketRef
from tweezer.store.scripts import Scripts, StoreConfig, ask


class HeldJob(msgspec.Struct, frozen=True):
    """A job that a ticket holds.

    attempt: 0 while its execution has not begun. problem: why its spec cannot be read (the job can then only fail).
    """

    index: int
    attempt: int
    cancel_requested: bool
    spec: JobSpec
    problem: str | None = None


class Grant(msgspec.Struct, frozen=True):
    """A ticket that was granted to a lane, with the first job to run.

    taken_at: monotonic time of the request; the lease lasts at least from then. problem: why the batch's doc cannot be
    read (the batch can then only fail).
    """

    ticket: TicketRef
    token: str
    project: str
    doc: BatchDoc
    exclusive: bool
    jobs: list[HeldJob]
    taken_at: float
    problem: str | None = None

    @property
    def batch_id(self) -> UUID:
        return self.ticket.batch_id


class LostLease(msgspec.Struct, frozen=True):
    """A ticket that was taken back because its lease expired, and the lane that held it: ``host:pid:random:lane``."""

    ticket: TicketRef
    lane: str

    @classmethod
    def read(cls, reply: list[Any]) -> list[LostLease]:
        return [cls(TicketRef.parse(name.decode()), lane.decode(errors="replace")) for name, lane in reply]


class SweepResult(msgspec.Struct, frozen=True):
    """What a sweep found: numbers of batches that timed out and of tickets that became ready, and expired leases.

    more: whether more batches are late or expire, or wait for others that have ended.
    """

    timed_out: int
    readied: int
    reclaimed: list[LostLease]
    more: bool = False


class TakeResult(msgspec.Struct, frozen=True):
    """The tickets granted by one ``take`` call.

    due_s: seconds until the next lease expires or the next ticket is due; None without any. paused: nothing is granted
    for now, because the device is paused or the gate is shut. left_alone: tickets of batches that cannot be
    read. reclaimed: the leases that had expired.
    """

    grants: list[Grant]
    due_s: float | None
    paused: bool
    left_alone: list[str]
    reclaimed: list[LostLease]


class NextStep(StrEnum):
    """The next step of a ticket's holder after a settle."""

    JOBS = "jobs"  # run the jobs in the reply
    RETIRED = "retired"  # the ticket has ended: there are no more jobs for it
    YIELD = "yield"  # it is another batch's turn, or the device is paused: the ticket is queued again
    PARKED = "parked"  # the ticket waits until a retry is due
    RESERVED = "reserved"  # keep the device for jobs that may be added: wait for the batch's call and settle
    STALE = "stale"  # another holder has the ticket; an outcome was refused


class SettleResult(msgspec.Struct, frozen=True):
    """The result of a settle.

    refused: number of outcomes that this token was not allowed to write. over_quota: indices of jobs whose result was
    not stored because their project's quota is used up.
    """

    next: NextStep
    refused: int
    jobs: list[HeldJob] = []
    over_quota: frozenset[int] = frozenset()


_WITH_RESULT = frozenset({OutcomeKind.DONE.value, OutcomeKind.CANCELED.value})
_AROUND_PAYLOAD = 100  # bytes of an outcome's other arguments


class Settlement(msgspec.Struct, frozen=True):
    """The outcome of one job, packed for settle. partial: the packed measurements of a job that ends in an error."""

    index: int
    kind: str
    payload: bytes
    preparation_ms: int
    execution_ms: int
    retry_ms: int
    partial: bytes = b""

    @classmethod
    def of(cls, index: int, outcome: Outcome, packed: bytes | None = None) -> Settlement:
        """Pack an outcome. packed: its result, packed by :meth:`~tweezer.store.results.Results.pack`; None packs it
        here."""
        payload = partial = b""
        kind = outcome.kind.value
        if outcome.result is not None:
            payload = encode_result(outcome.result) if packed is None else packed
        if outcome.fault is not None:
            is_retried = outcome.kind is OutcomeKind.RETRY
            fault = shorten_fault(outcome.fault) if is_retried else outcome.fault
            payload, partial = encode_fault(fault), payload
        if outcome.kind is OutcomeKind.CANCELED and not outcome.began:
            kind = "prevented"
        if outcome.kind is OutcomeKind.RETRY and outcome.cause is FaultKind.CRASH:
            kind = "crash"
        return cls(
            index,
            kind,
            payload,
            round(outcome.preparation_s * 1000),
            round(outcome.device_s * 1000),
            round(outcome.retry_in_s * 1000),
            partial,
        )

    @property
    def result(self) -> bytes:
        """The packed result or partial measurements; empty without any."""
        return self.partial or (self.payload if self.kind in _WITH_RESULT else b"")

    @property
    def size(self) -> int:
        """Approximate size within a call, in bytes."""
        return len(self.payload) + len(self.partial) + _AROUND_PAYLOAD


class JobProgress(msgspec.Struct, frozen=True):
    """The progress of a held job. Reporting it begins the job."""

    index: int
    stage: Stage
    fraction: float | None = None
    steps: Steps | None = None


class Renewal(msgspec.Struct, frozen=True):
    """The result of a renewal.

    stop: held jobs that must be stopped. is_reported: whether the progress was written; while the gate is shut it is
    not, and must be sent again.
    """

    stop: frozenset[int]
    is_reported: bool = True


class CancelRequest(msgspec.Struct, frozen=True):
    """Running jobs that a user cancelled."""

    batch_id: UUID
    indices: frozenset[int]


_SENDERS = 2  # concurrent calls of settle
_TOGETHER = 16  # tickets per call


def _pack_progress(job: JobProgress) -> tuple[str, str, str, str]:
    """Return the progress as words: the stage, percent, and those of the steps."""
    fits = fit_progress(Progress(job.stage, job.fraction, job.steps))
    percent = "-" if fits.fraction is None else str(round(100 * fits.fraction, 1))
    return fits.stage.value, percent, *pack_steps(fits.steps)


def _jobs(flat: list[Any]) -> list[HeldJob]:
    return [_job(*flat[at : at + 4]) for at in range(0, len(flat), 4)]


def _job(index: bytes, attempt: bytes, cancel: bytes, spec: bytes) -> HeldJob:
    head = (int(index), int(attempt), cancel == b"1")
    try:
        return HeldJob(*head, decode_spec(spec.split(b" ", 1)[1]))
    except DAMAGED as error:
        return HeldJob(*head, JobSpec(), str(error))


def _doc(packed: bytes) -> tuple[BatchDoc, str | None]:
    """Decode a doc; if that fails, return an empty one and the reason."""
    try:
        return decode_doc(packed), None
    except DAMAGED as error:
        return BatchDoc(""), str(error)


def _taken(reply: list[Any], asked_at: float) -> TakeResult:
    word, due_ms, left_alone, reclaimed, *grants = reply
    granted = []
    for name, token, project, packed, exclusive, jobs in grants:
        doc, problem = _doc(packed)
        granted.append(
            Grant(
                ticket=TicketRef.parse(name.decode()),
                token=token.decode(),
                project=project.decode(errors="replace"),
                doc=doc,
                exclusive=exclusive == b"1",
                jobs=_jobs(jobs),
                taken_at=asked_at,
                problem=problem,
            )
        )
    return TakeResult(
        grants=granted,
        due_s=None if int(due_ms) < 0 else int(due_ms) / 1000,
        paused=word in (b"paused", b"shut"),
        left_alone=[name.decode() for name in left_alone],
        reclaimed=LostLease.read(reclaimed),
    )


class HeartbeatResult(msgspec.Struct, frozen=True):
    """The result of a heartbeat. paused: why the device is paused, or ''. has_specs: whether Redis has its specs."""

    paused: str
    has_specs: bool


class _Settle(msgspec.Struct, frozen=True):
    """One ticket's arguments in a call of settle."""

    ticket: tuple[str | int, ...]
    outcomes: list[tuple[Any, ...]]


class Tickets:
    """A worker's operations on tickets and their jobs."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._settles = CombinedCalls(self._settle, most=_TOGETHER, budget=MAX_SETTLE_BYTES, at_a_time=_SENDERS)

    async def take(self, device: str, lanes: Sequence[str], *, lease_s: float, wait_s: float = 0.0) -> TakeResult:
        """Take up to one ticket per lane, the best first, at once or when the device's bell rings.

        With ``wait_s`` it waits for the bell, but takes after that time in any case. Both commands are sent together,
        so that Redis runs the take when the bell rings. A cancelled wait rings the bell again, because the server may
        have consumed a ring for a reply that is never read.
        """
        arguments = {"device": device, "lease_ms": round(lease_s * 1000), "lanes": lanes}
        asked_at = time.monotonic()
        if not wait_s:
            return _taken(await self._scripts.call("take", **arguments), asked_at)
        bell = ("BLPOP", self._scripts.keys(Key.BELL, device), max(wait_s, 0.01))
        try:
            return _taken(await self._scripts.call_after(bell, "take", **arguments), asked_at)
        except asyncio.CancelledError:
            with contextlib.suppress(TweezerError):
                await self.ring(device)
            raise

    async def ring(self, device: str) -> None:
        """Ring the doorbell of a device, so that a waiting worker takes now."""
        await self._scripts.call("ring", device=device)

    async def settle(
        self,
        ticket: TicketRef,
        token: str,
        settlements: Sequence[Settlement],
        *,
        want: int,
        used_s: float,
        lease_s: float,
    ) -> SettleResult:
        """Write outcomes and claim up to ``want`` jobs. used_s: lane time since the last call.

        Concurrent settles of several tickets, and those that arrive during a call, share one call.
        """
        outcomes: list[tuple[Any, ...]] = []
        for s in settlements:
            if s.partial:
                outcomes.append((s.index, "partial", s.partial, 0, 0, 0, stored_size(s.partial)))
            result_bytes = 0 if s.partial else stored_size(s.result)
            outcomes.append((s.index, s.kind, s.payload, s.preparation_ms, s.execution_ms, s.retry_ms, result_bytes))
        row = (str(ticket), token, round(lease_s * 1000), want, round(used_s * 1000), len(outcomes))
        size = sum(s.size for s in settlements)
        reply = await self._settles.get(_Settle(row, outcomes), size=size)
        word, refused, jobs, over = [*reply, [], []][:4]
        return SettleResult(NextStep(word.decode()), int(refused), _jobs(jobs), frozenset(map(int, over)))

    async def _settle(self, settles: list[_Settle]) -> list[list[Any]]:
        outcomes = [outcome for settle in settles for outcome in settle.outcomes]
        return await self._scripts.call("settle", tickets=[settle.ticket for settle in settles], outcomes=outcomes)

    async def wait_for_call(self, batch_id: UUID, *, wait_s: float) -> None:
        """Wait until an open batch that holds its device may have new jobs or was closed, or for ``wait_s``."""
        call = ("BLPOP", self._scripts.keys(Key.CALL, batch_id), max(wait_s, 0.01))
        await ask(self._scripts.redis.execute_command(*call))

    async def renew(
        self, ticket: TicketRef, token: str, progress: Sequence[JobProgress], *, lease_s: float
    ) -> Renewal | None:
        """Renew the lease and report the jobs' progress. Returns None if the ticket is lost."""
        rows = [(job.index, *_pack_progress(job)) for job in progress]
        word, *stop = await self._scripts.call(
            "renew", ticket=str(ticket), token=token, lease_ms=round(lease_s * 1000), progress=rows
        )
        return None if word == b"stale" else Renewal(frozenset(map(int, stop)), is_reported=word != b"shut")

    async def drain(self, ticket: TicketRef, token: str) -> bool:
        """Give the ticket and its jobs back without using up an attempt. Returns False if the ticket was lost."""
        return await self._release(ticket, token, "drain") != b"stale"

    async def release(
        self,
        ticket: TicketRef,
        token: str,
        fault: Fault,
        *,
        backoff: Backoff,
        failures_max: int,
        is_crash: bool = False,
        used_s: float = 0.0,
    ) -> bool:
        """Give the ticket back after a failure to prepare or run its batch; it is retried after the backoff.

        is_crash: the lane's process died, for which fewer failures are allowed. used_s: lane time since the last call.
        Returns True if this ended the batch in ERROR.
        """
        word = await self._release(
            ticket,
            token,
            "crash" if is_crash else "fail",
            failures_max=failures_max,
            delay_ms=round(backoff.base_s * 1000),
            delay_max_ms=round(backoff.cap_s * 1000),
            fault=encode_fault(shorten_fault(fault)),
            used_ms=round(used_s * 1000),
        )
        return word == b"doomed"

    async def _release(self, ticket: TicketRef, token: str, why: str, **arguments: Any) -> bytes:
        none = {"failures_max": 0, "delay_ms": 0, "delay_max_ms": 0, "fault": b"", "used_ms": 0}
        reply = await self._scripts.call("release", ticket=str(ticket), token=token, why=why, **none | arguments)
        return bytes(reply[0])

    async def note_timeout(self, ticket: TicketRef, token: str, index: int) -> None:
        """Record that a held job exceeded its time limit and was asked to stop; do nothing if it is not held."""
        await self._scripts.call("note_timeout", ticket=str(ticket), token=token, index=index, by=TIMEOUT)

    async def fail_batch(self, ticket: TicketRef, token: str, fault: Fault, *, used_s: float = 0.0) -> bool:
        """End a batch that cannot run in ERROR. used_s: lane time since the last call.

        Returns False if the ticket was lost.
        """
        return await self._scripts.call_ok(
            "fail", ticket=str(ticket), token=token, fault=encode_fault(fault), used_ms=round(used_s * 1000)
        )

    async def heartbeat(
        self, worker: str, device: str, *, ttl_s: float, about_device: dict[str, Any], about_worker: dict[str, Any]
    ) -> HeartbeatResult:
        """Report that the worker is running, for ``ttl_s``; 0 removes the worker."""
        reply = await self._scripts.call(
            "heartbeat",
            worker=worker,
            device=device,
            ttl_ms=round(ttl_s * 1000),
            about_device=about_device.items(),
            about_worker=about_worker.items(),
        )
        return HeartbeatResult(paused=reply[1].decode(), has_specs=bool(reply[2]))

    async def publish_settings(self, config: StoreConfig) -> None:
        """Publish the settings to Redis, where the scripts read them."""
        await self._scripts.call("set_settings", values=config.stored().items())

    async def sweep(self, *, most: int = 100, memory: int | None = None) -> SweepResult:
        """Apply everything that is due.

        memory: bytes that Redis has for work, 0 if unlimited; None if unknown.
        """
        found = await self._scripts.call("sweep", most=most, memory="" if memory is None else str(memory))
        _, timed_out, readied, reclaimed, more = found
        return SweepResult(int(timed_out), int(readied), LostLease.read(reclaimed), more == b"1")

    async def trim(self, before: str) -> int:
        """Trim events that all readers have read, up to this entry, which is kept; return the number of entries."""
        return int((await self._scripts.call("trim", recorded=before))[1])

    async def is_full(self) -> bool:
        """Return whether new work is refused because Redis is nearly full."""
        return bool(await ask(self._scripts.redis.exists(self._scripts.keys(Key.FULL))))

    async def set_full(self, reason: str | None, *, ttl_s: float) -> None:
        """Refuse new work for ``ttl_s`` with this reason; None ends that."""
        await self._scripts.call("set_full", reason=reason or "", ttl_ms=round(ttl_s * 1000))
