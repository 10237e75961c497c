"""What producers ask of batches: submit, add, close, cancel, pause, resume; and what the ledger asks: forget.

A method returns when the change is made, or raises and nothing has changed, except that
:class:`~tweezer.model.errors.Unavailable` leaves it unknown: repeat the call, with the same idempotency
key where it takes one. ``project`` None is an operator, who may touch everybody's batches.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NoReturn, TypeVar, cast
from uuid import UUID

import msgspec
import structlog

from tweezer.model.cancels import UNKNOWN, check_by
from tweezer.model.checks import MAX_REASON_LENGTH, check_characters, check_key, check_tags, check_text
from tweezer.model.errors import Conflict, InvalidInput, NewerRecord, NotFound, QueueFull
from tweezer.model.lifecycle import BATCH_BY_LETTER, JOB_BY_LETTER, BatchStatus, JobStatus
from tweezer.model.messages import (
    MAX_JOBS_PER_BATCH,
    RECORD_VERSION,
    BatchDoc,
    Fault,
    JobSpec,
    Priority,
    compress,
    encode_fault,
    pack_doc,
    pack_spec,
)
from tweezer.model.quotas import QuotaExceeded
from tweezer.model.webhooks import DeviceData, written
from tweezer.model.windows import HoldKind, check_time
from tweezer.store.keys import Key
from tweezer.store.scripts import Scripts, translating

log = structlog.get_logger(__name__)

_BATCH_ID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_QUICK_BYTES = 256 << 10  # are compressed in a few milliseconds: not worth a thread
_GLOB = re.compile(r"([*?\[\]\\])")

T = TypeVar("T")


class CancelAnswer(StrEnum):
    """What a cancel did to one job; ``requested``: it runs, and its worker was told."""

    CANCELED = "canceled"
    REQUESTED = "requested"
    OVER = "over"
    UNKNOWN = "unknown"


def _digest(parts: Iterable[bytes | str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _packed(field: str, encode: Callable[[T], bytes], value: T) -> bytes:
    """The value as MessagePack. Devices that check nothing let through what cannot be kept: a number too large."""
    try:
        return encode(value)
    except (OverflowError, TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(field, f"cannot be kept: {error}") from error


def _packed_jobs(jobs: Sequence[JobSpec]) -> list[bytes]:
    return [_packed(f"jobs[{index}]", pack_spec, job) for index, job in enumerate(jobs)]


async def _compressed(packed: Sequence[bytes]) -> list[bytes]:
    """As Redis holds them. What would hold the event loop up is compressed in a thread."""
    if sum(map(len, packed)) <= _QUICK_BYTES:
        return list(map(compress, packed))
    return await asyncio.to_thread(lambda: list(map(compress, packed)))


def _refuse(word: bytes, batch_id: UUID, *details: bytes) -> NoReturn:
    """Raises the error for a script's word of refusal."""
    detail = details[0] if details else b""
    match word:
        case b"unknown":
            raise NotFound("batch", str(batch_id))
        case b"newer":
            raise NewerRecord(batch_id, RECORD_VERSION)
        case b"over":
            raise Conflict(f"batch {batch_id} has ended", code="terminal")
        case b"closed":
            raise Conflict(f"batch {batch_id} is closed: submit it with open=True to add jobs later", code="closed")
        case b"conflict":
            raise Conflict(
                "the idempotency key was used for another call with other content; use a new key",
                code="idempotency",
            )
        case b"full":
            raise QueueFull(f"no more work is taken for now: {detail.decode()}")
        case b"quota":
            project, quota, *numbers = (text.decode() for text in details)
            raise QuotaExceeded(project, quota, *map(int, numbers))
        case b"too_many":
            raise InvalidInput(
                "jobs",
                f"the batch has {int(detail)} jobs and may have {MAX_JOBS_PER_BATCH}; start another batch",
            )
        case _:
            raise AssertionError(f"a script answered {word!r}")


def _why_not(has: JobStatus, status: JobStatus | None) -> str:
    """Why a job of a status cannot be reported to have another one, or progress."""
    match status:
        case JobStatus.RUNNING if has is not JobStatus.RUNNING:
            return "only the worker that holds it begins it"
        case JobStatus.DONE:
            return "only the worker that holds it has its result"
        case _:
            return "only a job that is and stays RUNNING has progress"


class Commands:
    """Changes that users ask for."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def submit(
        self,
        batch_id: UUID,
        project: str,
        doc: BatchDoc,
        jobs: Sequence[JobSpec],
        *,
        priority: Priority = Priority.MEDIUM,
        open: bool = False,
        not_before: datetime | None = None,
        idempotency_key: str = "",
    ) -> UUID:
        """Writes a batch; returns its id: that of the first call when this one repeats it."""
        check_key(idempotency_key)
        packed_doc, packed = _packed("batch", pack_doc, doc), _packed_jobs(jobs)
        due_ms = 0 if not_before is None else round(not_before.timestamp() * 1000)
        head = (doc.device, priority.value, str(int(open)))
        digest = _digest([*head, packed_doc, str(due_ms), *packed]) if idempotency_key else ""
        stored_doc, *stored = await _compressed([packed_doc, *packed])
        reply = await self._scripts.call(
            "submit",
            batch_id=str(batch_id),
            project=project,
            device=doc.device,
            priority=priority.value,
            open=int(open),
            doc=stored_doc,
            not_before_ms=due_ms,
            idle_ms=round(doc.limits.open_timeout_s * 1000),
            retries=doc.limits.transient_retries,
            timeout_ms=round(doc.limits.job_timeout_s * 1000),
            idempotency_key=idempotency_key,
            digest=digest,
            specs=stored,
        )
        match reply[0]:
            case b"ok" | b"repeated":
                return UUID(reply[1].decode())
            case b"unknown_device":
                raise InvalidInput("device", f"there is no device {doc.device}; `tweezer devices` lists them")
            case b"exists":
                raise Conflict(f"batch {batch_id} exists already", code="exists")
            case word:
                _refuse(word, batch_id, *reply[1:])

    async def add_jobs(
        self, batch_id: UUID, jobs: Sequence[JobSpec], *, project: str | None, idempotency_key: str = ""
    ) -> int:
        """Appends jobs to an open batch; returns the index of the first of them."""
        check_key(idempotency_key)
        packed = _packed_jobs(jobs)
        digest = _digest([str(batch_id), *packed]) if idempotency_key else ""
        stored = await _compressed(packed)
        reply = await self._scripts.call(
            "add_jobs",
            batch_id=str(batch_id),
            project=project or "",
            idempotency_key=idempotency_key,
            digest=digest,
            jobs_max=MAX_JOBS_PER_BATCH,
            specs=stored,
        )
        if reply[0] in (b"ok", b"repeated"):
            return int(reply[1])
        _refuse(reply[0], batch_id, *reply[1:])

    async def close(self, batch_id: UUID, *, project: str | None) -> None:
        """No more jobs will come; closing a closed batch, or one that ended, changes nothing."""
        await self._command("close", batch_id, project, fine=(b"over",))

    async def cancel(
        self, batch_id: UUID, *, project: str | None, by: str = UNKNOWN, idempotency_key: str = ""
    ) -> None:
        """Ends a batch: pending jobs at once, running ones as their workers stop them. by: who asks, which is noted."""
        digest = _digest(["cancel", str(batch_id)])
        key = check_key(idempotency_key)
        await self._command("cancel_batch", batch_id, project, idempotency_key=key, digest=digest, by=check_by(by))

    async def pause(self, batch_id: UUID, *, project: str | None) -> None:
        """Hands out no more jobs of the batch; what runs finishes."""
        await self._command("pause_batch", batch_id, project)

    async def resume(self, batch_id: UUID, *, project: str | None) -> None:
        await self._command("resume_batch", batch_id, project)

    async def cancel_jobs(
        self,
        batch_id: UUID,
        indices: Sequence[int],
        *,
        project: str | None,
        by: str = UNKNOWN,
        idempotency_key: str = "",
    ) -> list[CancelAnswer]:
        """Cancels some jobs of a batch; one answer a job, in the order given. by: who asks, which is noted."""
        digest = _digest(["cancel_jobs", str(batch_id), *map(str, indices)])
        reply = await self._command(
            "cancel_jobs",
            batch_id,
            project,
            idempotency_key=idempotency_key,
            digest=digest,
            by=check_by(by),
            indices=indices,
        )
        return [CancelAnswer(word) for word in reply[1].decode().split()]

    async def set_tags(self, batch_id: UUID, tags: Sequence[str], *, project: str | None) -> None:
        """Replaces the tags of a batch, live or ended. Raises InvalidInput("tags…", …)."""
        check_tags(tags)
        await self._command("set_tags", batch_id, project, tags=msgspec.json.encode(tags))

    async def note_child(self, batch_id: UUID, child: UUID) -> bool:
        """Notes that another batch repeats this one; False when it is not here any more."""
        (word,) = await self._scripts.call("note_child", batch_id=str(batch_id), child=str(child))
        return bool(word == b"ok")

    async def end(
        self, batch_id: UUID, status: BatchStatus, *, project: str | None, fault: Fault | None = None
    ) -> None:
        """Ends a batch in ERROR, for the reason of the fault, where what runs may finish; or one that is open without
        work in TIMED_OUT."""
        if fault is not None:
            check_characters("reason", fault.message, lines=True)
        reply = await self._scripts.call(
            "end_batch",
            batch_id=str(batch_id),
            project=project or "",
            to=status.letter,
            fault=b"" if fault is None else encode_fault(fault),
        )
        if reply[0] == b"forbidden":
            has = BATCH_BY_LETTER[reply[1].decode()]
            raise Conflict(
                f"batch {batch_id} is {has} and cannot become {status}: only one that is open and without work can"
            )
        if reply[0] != b"ok":
            _refuse(reply[0], batch_id)

    async def report(
        self,
        batch_id: UUID,
        index: int,
        *,
        status: JobStatus | None = None,
        percent: int | None = None,
        fault: Fault | None = None,
        project: str | None,
    ) -> None:
        """Says of a live job what its holder did not: that it ends, or goes back to wait, how far it is, why it fails.

        Who runs it then has lost it. A result, and the begin of a job, are its holder's alone to tell. Raises Conflict.
        """
        if fault is not None:
            check_characters("errors", fault.message, lines=True)
        reply = await self._scripts.call(
            "report",
            batch_id=str(batch_id),
            project=project or "",
            index=index,
            to="" if status is None else status.letter,
            percent="" if percent is None else str(percent),
            fault=b"" if fault is None else encode_fault(fault),
        )
        match reply[0]:
            case b"ok":
                return
            case b"over":
                raise Conflict(f"job {index} of batch {batch_id} has ended", code="terminal")
            case b"forbidden":
                has = JOB_BY_LETTER[reply[1].decode()]
                raise Conflict(f"job {index} of batch {batch_id} is {has}: {_why_not(has, status)}")
            case word:
                _refuse(word, batch_id)

    async def ended(self, *, least_age_s: float, most: int) -> list[UUID]:
        """Batches that ended at least that long ago and are still here, the oldest first."""
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
        """Removes batches that ended at least that long ago and are recorded, with their jobs and results.

        ``recorded``: the number of the last event of each that is. Returns those that are not here any more; one that
        is live, or has a later event, stays.
        """
        batches = [(str(batch_id), number) for batch_id, number in recorded.items()]
        words = await self._scripts.call("forget", least_age_ms=round(least_age_s * 1000), batches=batches)
        return [batch_id for batch_id, word in zip(recorded, words, strict=True) if word in (b"ok", b"unknown")]

    async def discard(self, batch_id: UUID) -> None:
        """Removes a batch whatever its status, and even if it cannot be read. Raises Conflict while a lane works on it,
        and NewerRecord."""
        (word,) = await self._scripts.call("discard", batch_id=str(batch_id))
        if word == b"held":
            raise Conflict(f"a worker is at work on batch {batch_id}: `tweezer cancel {batch_id}` first", code="live")
        if word == b"version":
            raise NewerRecord(batch_id, RECORD_VERSION)

    async def forget_project(self, project: str) -> None:
        """Removes what is left of a project without batches: its counters and limits, its idempotency keys, and its
        place in the queues."""
        redis, keys = self._scripts.redis, self._scripts.keys
        pattern = keys(Key.IDEMPOTENCY, _GLOB.sub(r"\\\1", project), "*")
        with translating():
            for device in await cast(Awaitable[set[bytes]], redis.smembers(keys(Key.DEVICES))):
                await cast(Awaitable[int], redis.hdel(keys(Key.FAIR, device.decode()), f"p:{project}"))
            await redis.delete(keys(Key.PROJECT, project))
            async for name in redis.scan_iter(pattern, count=1000):
                await redis.unlink(name)

    async def pause_device(self, device: str, reason: str, *, until: datetime | None = None) -> None:
        """Grants no more tickets of a device, until a time, if one is given; what runs finishes. Doing it again changes
        why and until when. Raises InvalidInput, and NotFound."""
        if reason != "":
            check_text("reason", reason, MAX_REASON_LENGTH)
        if until is not None:
            check_time("until", until)
        data = _device_data(device, HoldKind.PAUSED, reason, until)
        until_ms = 0 if until is None else round(until.timestamp() * 1000)
        await self._device_command("pause_device", device, reason=reason, until_ms=until_ms, data=data)

    async def resume_device(self, device: str) -> None:
        """Ends a pause; maintenance that is under way goes on."""
        await self._device_command("resume_device", device)

    async def set_condition(self, device: str, state: str, reason: str) -> None:
        """Whether a machine can run jobs: ``up``, ``down``, or ``unknown``, which changes nothing but what is shown."""
        data = _device_data(device, state, reason or None)
        await self._device_command("set_condition", device, condition=state, reason=reason, data=data)

    async def _command(
        self, script: str, batch_id: UUID, project: str | None, *, fine: tuple[bytes, ...] = (), **arguments: Any
    ) -> list[Any]:
        reply = await self._scripts.call(script, batch_id=str(batch_id), project=project or "", **arguments)
        if reply[0] not in (b"ok", b"repeated", *fine):
            _refuse(reply[0], batch_id)
        return reply

    async def _device_command(self, script: str, device: str, **arguments: Any) -> None:
        (word,) = await self._scripts.call(script, device=device, **arguments)
        if word == b"past":
            raise InvalidInput("until", "is not to come; give a later time, or none to pause until somebody resumes it")
        if word != b"ok":
            raise NotFound("device", device)


def _device_data(device: str, status: str, reason: str | None = None, until: datetime | None = None) -> bytes:
    return msgspec.json.encode(DeviceData(device, status, reason, None if until is None else written(until)))
