"""The worker's side of jobs that run on a machine: intents, which are on the disk before anything is submitted."""

from __future__ import annotations

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
    """How Redis is made to have a write on its disk before it is relied upon."""

    WAIT = "waitaof"  # by waiting for it: Redis 7.2 and later, Valkey
    ALWAYS = "always"  # it answers no sooner (appendfsync always)


class NotDurable(TweezerError):
    """Redis may forget what it has answered, so nothing may be submitted to a machine."""

    code = "not_durable"


class Remote:
    """Intents and what is known of submits."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._durability: Durability | None = None
        self._replicas = 0

    async def require_durability(self) -> Durability:
        """Finds out how this Redis is made to keep an intent. Raises NotDurable, saying what to change; Unavailable."""
        redis = self._scripts.redis
        with translating():
            about: dict[str, Any] = await redis.info()
            if not int(about.get("aof_enabled", 0)):
                raise NotDurable(
                    "Redis keeps no append-only file, so a job could be submitted twice after a crash: set "
                    "`appendonly yes` before serving a machine"
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
                "Redis before 7.2 cannot be waited for until a write is on its disk, and whether it has `appendfsync "
                "always` may not be read: use Redis 7.2 or later, or Valkey; or add +config|get to this user of Redis, "
                "who can then read every setting"
            ) from None
        except redis_errors.ResponseError:
            policy = {}
        if policy.get("appendfsync") != "always":
            raise NotDurable(
                "Redis before 7.2 cannot be waited for until a write is on its disk, so a job could be submitted twice "
                "after a power loss: set `appendfsync always`, or use Redis 7.2 or later, or Valkey"
            )
        return Durability.ALWAYS

    async def intend(self, ticket: TicketRef, token: str, index: int, name: str, *, unsent: bool) -> Intent | None:
        """Writes that the job is to be submitted, and returns when that is on the disk; the intent that there is, if
        there is one by which it may have been. None when the ticket is lost or the job is to be cancelled.

        name: of this intent, without spaces. unsent: nothing is submitted before :meth:`set_out`. Raises NotDurable
        when it is written and not known to be on the disk; Unavailable.
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
        """The intent that there is. Raises Unavailable."""
        redis, name = self._scripts.redis, self._scripts.keys(Key.REMOTE, batch_id)
        record: bytes | None = await ask(redis.execute_command("HGET", name, index))
        if record is None:
            return None
        server: bytes | None = await ask(redis.get(self._scripts.keys(Key.SERVER)))
        seconds, microseconds = await ask(redis.time())
        now_us = int(seconds) * 1_000_000 + int(microseconds)
        return Intent.parse(record.decode(), lost_ms=int((server or b"0").split()[0]), now_us=now_us)

    async def set_out(self, ticket: TicketRef, token: str, index: int, intent: str) -> bool:
        """Says that the job is submitted now; whether it may be. Raises Unavailable."""
        return await self._scripts.call_ok("set_out", ticket=str(ticket), token=token, index=index, name=intent)

    async def note(self, batch_id: UUID, index: int, intent: str, uid: str, *, named: bool | None = None) -> None:
        """Record the machine's id of the job. Raises Unavailable.

        named: whether the machine returned the id that we gave the job; None where machines do not count their jobs.
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
        """Record that the machine's ids began anew. Raises Unavailable.

        uid: the last known job, by which that was noticed. since: a job of the machine that is older than any of ours
        submitted after the set-back.
        """
        last_uid = "-" if uid is None else str(uid)
        await self._scripts.call("note_set_back", device=device, last_uid=last_uid, since=since)

    async def withdraw(self, batch_id: UUID, index: int, intent: str) -> bool:
        """Takes the intent of this name back: nothing was submitted; whether it could be. Raises Unavailable."""
        return await self._scripts.call_ok("withdraw_intent", batch_id=str(batch_id), index=index, name=intent)

    async def _call_durably(self, name: str, /, **arguments: Any) -> list[Any]:
        """Calls a script and waits for the disk, on one connection: Redis waits for what that has written."""
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
                raise NotDurable(f"Redis did not have an intent on its disk, or on a replica, within {_BARRIER_MS} ms")
        return cast(list[Any], reply)
