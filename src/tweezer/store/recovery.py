"""The recorder's side of the store: restores what Redis lost, and removes what the ledger has recorded.

A Redis server that restarts without its last writes does not notice the loss. Therefore the first connection to a
server that was not in use before shuts the gate (``arrive.lua``): no job is handed out and no older batch changes
until the recorder has compared Redis with the ledger, or a time limit has passed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
import structlog
from redis import exceptions as redis_errors

from tweezer.model.lifecycle import BatchStatus
from tweezer.model.messages import stored_size
from tweezer.store.keys import Key
from tweezer.store.scripts import Scripts, ask, eval_command, translating

log = structlog.get_logger(__name__)

_BATCH_ID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_JOBS_MAX = 1000  # per call
_BYTES_MAX = 1 << 20
_DISK_MS = 5000


class RestoredBatch(msgspec.Struct, frozen=True):
    """A batch from the ledger.

    fields: the recorded fields of its record in Redis, and ``doc``. ended: how those of the batches that it waits for
    ended that have ended in the ledger, as in :attr:`~tweezer.store.records.BatchRecord.end`.
    """

    batch_id: UUID
    sequence_number: int
    status: BatchStatus
    fields: dict[str, bytes]
    ended: dict[UUID, str] = {}


class RestoredJob(msgspec.Struct, frozen=True):
    """A job from the ledger: its columns in Redis, as recorded."""

    index: int
    spec: bytes
    state: str | None = None
    result: bytes | None = None
    fault: bytes | None = None


class Gate(msgspec.Struct, frozen=True):
    """The state of the gate.

    server: identifies the running server; empty if no connection has reported it. has_ledger: whether a recorder has
    read the stream of this Redis, or restored what it lost.
    """

    is_shut: bool
    server: bytes
    has_ledger: bool


class Recovery:
    """The recorder's operations on Redis. Methods raise Unavailable."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def restore(self, batch: RestoredBatch, jobs: Sequence[RestoredJob]) -> int:
        """Restore what Redis lacks of a batch; return how many of its jobs are still missing.

        jobs: the jobs of the batch in the order of their indices, split over any number of calls. A call may be
        repeated: what exists is kept.
        """
        lacking = 0
        for page in _pages(jobs):
            word, *rest = await self._scripts.call(
                "restore",
                batch_id=str(batch.batch_id),
                recorded=batch.sequence_number,
                status=batch.status.letter,
                fields=batch.fields.items(),
                ended=[(str(parent), end) for parent, end in batch.ended.items()],
                jobs=page,
            )
            lacking = int(rest[0]) if word == b"ok" else 0
        return lacking

    async def gate(self) -> Gate:
        """Read the state of the gate."""
        pipeline = self._scripts.redis.pipeline(transaction=False)
        pipeline.exists(self._scripts.keys(Key.GATE))
        pipeline.get(self._scripts.keys(Key.SERVER))
        pipeline.exists(self._scripts.keys(Key.LEDGER))
        is_shut, server, has_ledger = await ask(pipeline.execute())
        return Gate(bool(is_shut), server or b"", bool(has_ledger))

    async def open_gate(self, seen: Gate | None = None) -> bool:
        """Open the gate, once Redis has everything that the ledger has. seen: the gate before that was compared.

        Returns False, and leaves the gate shut, if Redis has restarted since.
        """
        return await self._scripts.call_ok("open_gate", server=b"*" if seen is None else seen.server)

    async def mark_ledger(self) -> str:
        """Record that there is a ledger: from now on the gate is shut when Redis restarts.

        Returns the id of the entry up to which a ledger has recorded everything, where the stream may begin. For a
        stream that was never trimmed this is the id before the first. The first mark is on Redis' disk when this
        returns, if Redis can confirm that: without the mark, a restart would leave the gate open.
        """
        with translating():
            async with self._scripts.redis.client() as connection:  # WAITAOF waits for the writes of its connection
                word, trimmed = await connection.execute_command(*eval_command(self._scripts.keys, "mark_ledger"))
                if word == b"new":
                    with contextlib.suppress(redis_errors.ResponseError):  # before Redis 7.2, or no append-only file
                        await connection.execute_command("WAITAOF", 1, 0, _DISK_MS)
        return str(trimmed.decode())

    async def join_ledger(self, installation: str, *, force: bool = False) -> str | None:
        """Record which ledger this Redis belongs to; return the id of another installation if it belongs to that."""
        word, *rest = await self._scripts.call("join_ledger", installation=installation, force=str(int(force)))
        return None if word == b"ok" else str(rest[0].decode())

    async def installation(self) -> str | None:
        """Return the id of the installation that this Redis belongs to; None before a recorder has joined it."""
        found = await ask(self._scripts.redis.get(self._scripts.keys(Key.INSTALLATION)))
        return None if found is None else str(found.decode())

    async def claim_recorder(self, owner: str, ttl_s: float) -> bool:
        """Make this recorder the active one for ``ttl_s``, or extend that; return False while another is active."""
        return await self._scripts.call_ok("claim_recorder", recorder=owner, ttl_ms=round(ttl_s * 1000))

    async def release_recorder(self, owner: str) -> None:
        """Let another recorder become active; do nothing if this one is not active."""
        await self._scripts.call("claim_recorder", recorder=owner, ttl_ms=0)

    async def ended(self, *, least_age_s: float, most: int) -> list[UUID]:
        """Return batches that ended at least ``least_age_s`` ago and are still in Redis, oldest first."""
        redis, name = self._scripts.redis, self._scripts.keys(Key.ENDED)
        with translating():
            seconds, microseconds = await redis.time()
            until = seconds * 1000 + microseconds // 1000 - round(least_age_s * 1000)
            found = await redis.zrangebyscore(name, "-inf", until, start=0, num=most)
            ids = [UUID(batch_id.decode()) for batch_id in found if _BATCH_ID.fullmatch(batch_id)]
            if len(ids) < len(found):
                log.warning("ended.not_ids", members=len(found) - len(ids))
                await redis.zrem(name, *(it for it in found if not _BATCH_ID.fullmatch(it)))
        return ids

    async def forget(self, recorded: Mapping[UUID, int], *, least_age_s: float) -> list[UUID]:
        """Remove recorded batches that ended at least ``least_age_s`` ago, with their jobs and results.

        recorded: the number of the last recorded event of each batch. A batch that is live or has a later event is
        kept. Returns the batches that Redis no longer has.
        """
        batches = [(str(batch_id), number) for batch_id, number in recorded.items()]
        words = await self._scripts.call("forget", least_age_ms=round(least_age_s * 1000), batches=batches)
        return [batch_id for batch_id, word in zip(recorded, words, strict=True) if word in (b"ok", b"unknown")]


def _pages(jobs: Sequence[RestoredJob]) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows of the jobs in pages of limited size; at least one page, for a batch without jobs."""
    page: list[tuple[Any, ...]] = []
    size = 0
    for job in jobs:
        result = job.result or b""
        page.append((job.index, job.spec, job.state or b"", result, stored_size(result), job.fault or b""))
        size += len(job.spec) + len(result)
        if len(page) == _JOBS_MAX or size > _BYTES_MAX:
            yield page
            page, size = [], 0
    if page or not jobs:
        yield page
