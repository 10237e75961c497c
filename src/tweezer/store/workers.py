"""What workers ask: take, settle, renew, release; and what they report about themselves.

All calls may be repeated after :class:`~tweezer.model.errors.Unavailable`; a stale token is returned, not raised.
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
    decode_doc,
    decode_spec,
    encode_fault,
    encode_result,
    stored_size,
)
from tweezer.store.keys import Key
from tweezer.store.records import DAMAGED, TicketRef
from tweezer.store.scripts import Scripts, StoreConfig, ask


class HeldJob(msgspec.Struct, frozen=True):
    """A job that a ticket holds. ``attempt`` is 0 while its execution has not begun. problem: why its spec cannot be
    read, if it cannot: then the job can only fail."""

    index: int
    attempt: int
    cancel_requested: bool
    spec: JobSpec
    problem: str | None = None


class Grant(msgspec.Struct, frozen=True):
    """A taken ticket: one lane may work on one batch, and the first job to run.

    taken_at: monotonic time before it was asked for: its lease lasts from then, at least. problem: why the batch's doc
    cannot be read, if it cannot: then the batch can only fail.
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


class TakeResult(msgspec.Struct, frozen=True):
    """What a take brought.

    due_s: when the next lease expires or the next ticket is due, if any. paused: nothing is granted for now: the device
    is paused, or all work waits for what Redis lost to be put back.
    """

    grants: list[Grant]
    due_s: float | None
    paused: bool
    left_alone: list[str]


class NextStep(StrEnum):
    """What the holder of a ticket does after a settle."""

    JOBS = "jobs"  # run the jobs that came with the answer
    RETIRED = "retired"  # the ticket is over: nothing is left for it
    YIELD = "yield"  # another batch's turn, or a pause: the ticket is queued again
    PARKED = "parked"  # the ticket waits for a retry's time
    RESERVED = (
        "reserved"  # the device stays the ticket's, for jobs that may come: wait for the batch's call, and settle
    )
    STALE = "stale"  # somebody else has the ticket; an outcome was refused


class SettleResult(msgspec.Struct, frozen=True):
    """The answer to a settle. ``refused``: outcomes that were not this token's to write. ``over_quota``: indices of
    jobs whose result was not kept: the quota of their project has no room for it."""

    next: NextStep
    refused: int
    jobs: list[HeldJob] = []
    over_quota: frozenset[int] = frozenset()


_WITH_RESULT = frozenset({OutcomeKind.DONE.value, OutcomeKind.CANCELED.value})
_AROUND_PAYLOAD = 100  # bytes: the other arguments of an outcome


class Settlement(msgspec.Struct, frozen=True):
    """The outcome of one job, packed for settle. partial: what a job that ends in an error had measured."""

    index: int
    kind: str
    payload: bytes
    preparation_ms: int
    execution_ms: int
    retry_ms: int
    partial: bytes = b""

    @classmethod
    def of(cls, index: int, outcome: Outcome, packed: bytes | None = None) -> Settlement:
        """``packed``: the result as :meth:`~tweezer.store.results.Results.pack` gives it; if None it is packed here."""
        payload = partial = b""
        kind = outcome.kind.value
        if outcome.result is not None:
            payload = encode_result(outcome.result) if packed is None else packed
        if outcome.fault is not None:
            payload, partial = encode_fault(outcome.fault), payload
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
        """The packed result, or what was measured of one; empty without."""
        return self.partial or (self.payload if self.kind in _WITH_RESULT else b"")

    @property
    def size(self) -> int:
        """About how many bytes it takes of a call."""
        return len(self.payload) + len(self.partial) + _AROUND_PAYLOAD


class JobProgress(msgspec.Struct, frozen=True):
    """What a held job is doing; telling this begins it."""

    index: int
    stage: Stage
    fraction: float | None = None


class Renewal(msgspec.Struct, frozen=True):
    """The answer to a renewal. ``stop``: held jobs that must be stopped. ``is_reported``: whether the progress was
    written; while the gate is shut it is not, and must be sent again."""

    stop: frozenset[int]
    is_reported: bool = True


class CancelRequest(msgspec.Struct, frozen=True):
    """Running jobs whose end a user asked for."""

    batch_id: UUID
    indices: frozenset[int]


_SENDERS = 2  # calls of settle under way at a time
_TOGETHER = 16  # tickets of one call


def _jobs(flat: list[Any]) -> list[HeldJob]:
    return [_job(*flat[at : at + 4]) for at in range(0, len(flat), 4)]


def _job(index: bytes, attempt: bytes, cancel: bytes, spec: bytes) -> HeldJob:
    head = (int(index), int(attempt), cancel == b"1")
    try:
        return HeldJob(*head, decode_spec(spec.split(b" ", 1)[1]))
    except DAMAGED as error:
        return HeldJob(*head, JobSpec(), str(error))


def _doc(packed: bytes) -> tuple[BatchDoc, str | None]:
    """The doc, or an empty one and why it cannot be read."""
    try:
        return decode_doc(packed), None
    except DAMAGED as error:
        return BatchDoc(""), str(error)


def _taken(reply: list[Any], asked_at: float) -> TakeResult:
    word, due_ms, left_alone, *grants = reply
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
    )


class HeartbeatResult(msgspec.Struct, frozen=True):
    """What a heartbeat hears: why the device is paused, or ''; whether Redis knows what clients are told of it."""

    paused: str
    has_specs: bool


class _Settle(msgspec.Struct, frozen=True):
    """One ticket's part of a call of settle."""

    ticket: tuple[str | int, ...]
    outcomes: list[tuple[Any, ...]]


class Tickets:
    """The worker's side of the store."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._settles = CombinedCalls(self._settle, most=_TOGETHER, budget=MAX_SETTLE_BYTES, at_a_time=_SENDERS)

    async def take(self, device: str, lanes: Sequence[str], *, lease_s: float, wait_s: float = 0.0) -> TakeResult:
        """Takes up to one ticket a lane, the best first; at once, or when the device's bell rings.

        With ``wait_s`` it waits so long for the bell, and takes then in any case. Both commands go out
        together: Redis runs the take as the bell rings. A cancelled wait rings the bell again, for the
        server may have heard it for a reply that nobody reads.
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
        """Rings the doorbell of a device: whoever waits for it takes now."""
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
        """Writes outcomes and claims up to ``want`` jobs; ``used_s`` is the lane time since the last call.

        Settles of several tickets that come together, or while others are under way, go out in one call.
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
        """Returns when an open batch that holds its device may have jobs, or was closed, or after so long."""
        call = ("BLPOP", self._scripts.keys(Key.CALL, batch_id), max(wait_s, 0.01))
        await ask(self._scripts.redis.execute_command(*call))

    async def renew(
        self, ticket: TicketRef, token: str, progress: Sequence[JobProgress], *, lease_s: float
    ) -> Renewal | None:
        """Keep the lease, and report what the jobs are doing. None: the ticket is lost."""
        rows = [
            (job.index, job.stage.value, "-" if job.fraction is None else str(round(100 * job.fraction, 1)))
            for job in progress
        ]
        word, *stop = await self._scripts.call(
            "renew", ticket=str(ticket), token=token, lease_ms=round(lease_s * 1000), progress=rows
        )
        return None if word == b"stale" else Renewal(frozenset(map(int, stop)), is_reported=word != b"shut")

    async def drain(self, ticket: TicketRef, token: str) -> bool:
        """Gives the ticket and its jobs back at once, no attempt burnt. False when it was lost."""
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
        """Give the ticket back after a failure of its body, to be tried again after the backoff for failures in a row.

        ``is_crash``: the lane's process died of it; then fewer are allowed. ``used_s``: lane time since the last
        call. True when the batch ended in ERROR by it.
        """
        word = await self._release(
            ticket,
            token,
            "crash" if is_crash else "fail",
            failures_max=failures_max,
            delay_ms=round(backoff.base_s * 1000),
            delay_max_ms=round(backoff.cap_s * 1000),
            fault=encode_fault(fault),
            used_ms=round(used_s * 1000),
        )
        return word == b"doomed"

    async def _release(self, ticket: TicketRef, token: str, why: str, **arguments: Any) -> bytes:
        none = {"failures_max": 0, "delay_ms": 0, "delay_max_ms": 0, "fault": b"", "used_ms": 0}
        reply = await self._scripts.call("release", ticket=str(ticket), token=token, why=why, **none | arguments)
        return bytes(reply[0])

    async def note_timeout(self, ticket: TicketRef, token: str, index: int) -> None:
        """The job takes longer than its limit and is asked to stop: noted as a request; nothing when it is not held."""
        await self._scripts.call("note_timeout", ticket=str(ticket), token=token, index=index, by=TIMEOUT)

    async def fail_batch(self, ticket: TicketRef, token: str, fault: Fault, *, used_s: float = 0.0) -> bool:
        """The batch cannot run: ends it in ERROR; ``used_s`` is the lane time since the last call. False when the
        ticket was lost."""
        return await self._scripts.call_ok(
            "fail", ticket=str(ticket), token=token, fault=encode_fault(fault), used_ms=round(used_s * 1000)
        )

    async def heartbeat(
        self, worker: str, device: str, *, ttl_s: float, about_device: dict[str, Any], about_worker: dict[str, Any]
    ) -> HeartbeatResult:
        """Says that the worker lives; a ``ttl_s`` of 0 is goodbye."""
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
        """Writes what operators set to where scripts read it."""
        await self._scripts.call("set_settings", values=config.stored().items())

    async def sweep(self, *, most: int = 100, memory: int | None = None) -> tuple[int, int, int]:
        """What time brings about; returns how many batches timed out, leases expired, tickets became ready.

        ``memory``: bytes that Redis may fill with work, 0 where it has no limit; None: not known.
        """
        found = await self._scripts.call("sweep", most=most, memory="" if memory is None else str(memory))
        _, timed_out, reclaimed, readied = found
        return int(timed_out), int(reclaimed), int(readied)

    async def trim(self, before: str) -> int:
        """Drops events that nobody needs any more, at most up to this entry, which stays."""
        return int((await self._scripts.call("trim", recorded=before))[1])

    async def is_full(self) -> bool:
        """Whether new work is refused because Redis runs full."""
        return bool(await ask(self._scripts.redis.exists(self._scripts.keys(Key.FULL))))

    async def set_full(self, reason: str | None, *, ttl_s: float) -> None:
        """Refuses new work for a while, with the reason; None takes that back."""
        await self._scripts.call("set_full", reason=reason or "", ttl_ms=round(ttl_s * 1000))
