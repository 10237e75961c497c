"""The worker's side of jobs on a machine: intents, which are on Redis' disk before a job is submitted."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, cast
from uuid import UUID

from redis import exceptions as redis_errors

from tweezer.model.errors import TweezerError
from tweezer.model.ids import job_id
from tweezer.model.intents import Intent, Mark
from tweezer.store.keys import Key
from tweezer.store.records import TicketRef
from tweezer.store.scripts import Scripts, ask, eval_command, translating

_BARRIER_MS = 5000
_MARK = ("last_uid", "last_job", "has_names", "set_back")


class Durability(StrEnum):
    """How a write is made durable on Redis' disk."""

    WAIT = "waitaof"  # by waiting with WAITAOF: Redis 7.2 and later, Valkey
    ALWAYS = "always"  # Redis replies only after fsync (appendfsync always)


class NotDurable(TweezerError):
    """Redis may lose a write that it has acknowledged, so no job can be submitted to a machine."""

    code = "not_durable"


class Remote:
    """Reads and writes the intents of jobs on machines."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._durability: Durability | None = None
        self._replicas = 0

    async def require_durability(self) -> Durability:
        """Determine how intents are made durable on this Redis. Raises NotDurable, Unavailable."""
        redis = self._scripts.redis
        with translating():
            about: dict[str, Any] = await redis.info()
            if not int(about.get("aof_enabled", 0)):
                raise NotDurable(
                    "Redis does not write an append-only file, so a job could be submitted twice after a crash; set "
                    "`appendonly yes` before serving a QPU"
                )
            self._replicas = int(about.get("connected_slaves", 0))
            try:
                await redis.execute_command("WAITAOF", 0, 0, 1)
                self._durability = Durability.WAIT
            except redis_errors.NoPermissionError:
                raise
            except redis_errors.ResponseError:  # an unknown command
                self._durability = await self._fsync()
        return self._durability

    async def _fsync(self) -> Durability:
        try:
            policy = await self._scripts.redis.config_get("appendfsync")
        except redis_errors.NoPermissionError:
            raise NotDurable(
                "this Redis is older than 7.2, so Tweezer cannot wait until a write is on its disk, and this Redis "
                "user may not check for `appendfsync always`; use Redis 7.2 or later, or Valkey; or grant the user "
                "+config|get, which lets it read every setting"
            ) from None
        except redis_errors.ResponseError:
            policy = {}
        if policy.get("appendfsync") != "always":
            raise NotDurable(
                "this Redis is older than 7.2, so Tweezer cannot wait until a write is on its disk, and a job could be "
                "submitted twice after a power loss; set `appendfsync always`, or use Redis 7.2 or later, or Valkey"
            )
        return Durability.ALWAYS

    async def intend(self, ticket: TicketRef, token: str, index: int, name: str, *, unsent: bool) -> Intent | None:
        """Write the intent to submit a job, and return it when it is on the disk.

        If the job may already have been submitted under another intent, return that one. Return None if the ticket is
        lost or the job was cancelled.

        name: of this intent, without spaces. unsent: the job will not be submitted before :meth:`set_out`. Raises
        NotDurable if the intent was written but may not be on the disk; Unavailable.
        """
        word, *rest = await self._call_durably(
            "intend", ticket=str(ticket), token=token, index=index, name=name, sent="0" if unsent else "1"
        )
        if word == b"known":
            return await self.known(ticket.batch_id, index)
        if word != b"new":
            return None
        record, since = (part.decode() for part in rest)
        now_us = int(record.split()[0])
        return Intent.parse(record, lost_ms=now_us // 1000 - int(since) if since else 0, now_us=now_us, is_new=True)

    async def known(self, batch_id: UUID, index: int) -> Intent | None:
        """Return the existing intent of a job, or None. Raises Unavailable."""
        redis, name = self._scripts.redis, self._scripts.keys(Key.REMOTE, batch_id)
        record: bytes | None = await ask(redis.execute_command("HGET", name, index))
        if record is None:
            return None
        server: bytes | None = await ask(redis.get(self._scripts.keys(Key.SERVER)))
        seconds, microseconds = await ask(redis.time())
        now_us = int(seconds) * 1_000_000 + int(microseconds)
        return Intent.parse(record.decode(), lost_ms=int((server or b"0").split()[0]), now_us=now_us)

    async def machine_ids(self, batch_id: UUID, indices: Sequence[int]) -> dict[int, str]:
        """Return the machine's ids of the jobs whose intents have one, by index. Raises Unavailable."""
        if not indices:
            return {}
        name = self._scripts.keys(Key.REMOTE, batch_id)
        records: list[bytes | None] = await ask(self._scripts.redis.execute_command("HMGET", name, *indices))
        intents = {
            index: Intent.parse(record.decode(), lost_ms=0, now_us=0)
            for index, record in zip(indices, records, strict=True)
            if record is not None
        }
        return {index: intent.uid for index, intent in intents.items() if intent.uid is not None}

    async def set_out(self, ticket: TicketRef, token: str, index: int, intent: str) -> bool:
        """Record that the job is being submitted now; return whether it may be. Raises Unavailable."""
        return await self._scripts.call_ok("set_out", ticket=str(ticket), token=token, index=index, name=intent)

    async def note(self, batch_id: UUID, index: int, intent: str, uid: str, *, named: bool | None = None) -> None:
        """Record the machine's id of the job. Raises Unavailable.

        named: whether the machine returned the id that Tweezer gave the job; None if it does not number its jobs.
        """
        await self._scripts.call(
            "note_remote",
            batch_id=str(batch_id),
            index=index,
            name=intent,
            uid=uid,
            job_id=str(job_id(batch_id, index)),
            has_names="" if named is None else str(int(named)),
        )

    async def mark(self, device: str) -> Mark:
        """Return the last known job of a machine. Raises Unavailable."""
        redis, name = self._scripts.redis, self._scripts.keys(Key.DEVICE, device)
        row: list[bytes | None] = await ask(redis.execute_command("HMGET", name, *_MARK))
        return Mark.parse(*(None if value is None else value.decode() for value in row))

    async def note_set_back(self, device: str, uid: int | None, since: int) -> None:
        """Record a set-back: the machine's job ids restarted. Raises Unavailable.

        uid: the last known job, which revealed it. since: a job on the machine that is older than any job that Tweezer
        submitted after the set-back.
        """
        last_uid = "-" if uid is None else str(uid)
        await self._scripts.call("note_set_back", device=device, last_uid=last_uid, since=since)

    async def withdraw(self, batch_id: UUID, index: int, intent: str) -> bool:
        """Withdraw the intent with this name, because nothing was submitted; return whether that was possible.

        Raises Unavailable.
        """
        return await self._scripts.call_ok("withdraw_intent", batch_id=str(batch_id), index=index, name=intent)

    async def _call_durably(self, name: str, /, **arguments: Any) -> list[Any]:
        """Call a script and wait for the disk on the same connection, because Redis waits for its writes only."""
        if self._durability is None:
            await self.require_durability()
        pipeline = self._scripts.redis.pipeline(transaction=False)
        pipeline.execute_command(*eval_command(self._scripts.keys, name, **arguments))
        if self._durability is Durability.WAIT:
            pipeline.execute_command("WAITAOF", 1, 0, _BARRIER_MS)
        if self._replicas:
            pipeline.execute_command("WAIT", 1, _BARRIER_MS)
        reply, *waits = await ask(pipeline.execute())
        for wait in waits:
            if int(wait[0] if isinstance(wait, list) else wait) < 1:
                raise NotDurable(f"Redis did not write an intent to its disk or a replica within {_BARRIER_MS} ms")
        return cast(list[Any], reply)
