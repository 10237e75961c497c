"""Batches from plain arq messages: each is processed once, rejected with a reason, or kept while Redis is full."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args, get_origin
from uuid import UUID

import msgspec
import pytest
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.constants import job_key_prefix, result_key_prefix
from arq.jobs import Job as ArqJob
from arq.jobs import SerializationError
from tests.support.hostile_values import DEPTH, ELEMENTS, ESCAPE, HALF, NUL, NUMBERS, TEXTS, TYPES, replaced
from tests.support.processes import Site
from tests.support.redis_users import RedisServer, as_user
from tests.support.waiting import PATIENCE_S, until

from tweezer import BatchStatus, Conflict, JobStatus, NotFound, Priority
from tweezer.intake import AddJobs, CancelBatch, SubmitBatch
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.dead_letters import Consumer, list_letters
from tweezer.ledger.migrate import upgrade
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import BatchDoc
from tweezer.model.wire import deserialize, serialize
from tweezer.processes.runtime import send_again
from tweezer.store.acl import RedisUser
from tweezer.store.keys import Key

INTAKE = "tweezer:intake"
JOB = {"runs": 3}
MAXMEMORY_MB = 20


@pytest.fixture
async def site(real_redis_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """A site with a scheduler, which processes the messages, and a worker of the null device."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    database = Database.open(OpenDatabase(url), create=True)
    upgrade(database)
    database.close()
    async with Site(real_redis_url, tmp_path, database_url=url) as site:
        scheduler = site.spawn("scheduler")
        await site.workers(1)
        await site.serves(scheduler)
        yield site
        await site.idle()
        assert scheduler.alive


@pytest.fixture
async def pool(site: Site) -> AsyncIterator[ArqRedis]:
    async with await open_pool(site.url) as pool:
        yield pool


async def open_pool(url: str, **options: Any) -> ArqRedis:
    options = {"job_serializer": serialize, "job_deserializer": deserialize, **options}
    return await create_pool(
        RedisSettings.from_dsn(as_user(url, RedisUser.SENDER)), default_queue_name=INTAKE, **options
    )


async def call(pool: ArqRedis, function: str, *arguments: Any, **options: Any) -> Any:
    """Send a message and return its result; a failure raises SerializationError with its text."""
    message = await pool.enqueue_job(function, *arguments, **options)
    assert message is not None, "arq already has a message with this id"
    return await message.result(timeout=PATIENCE_S, poll_delay=0.02)


def submission(**fields: Any) -> dict[str, Any]:
    return {"device": "NULL", "project": "ours", "jobs": [JOB], **fields}


async def refusal(pool: ArqRedis, function: str, *arguments: Any, **options: Any) -> str:
    with pytest.raises(SerializationError) as raised:  # arq raises it for a failure that was sent as text
        await call(pool, function, *arguments, **options)
    return str(raised.value)


async def count_batches(site: Site) -> int:
    return len({event.batch_id for event in await site.events()})


# -------------------------------------------------------------------------------------------------- submitting


async def test_a_message_becomes_a_batch_and_returns_its_id(site: Site, pool: ArqRedis) -> None:
    wanted = submission(jobs=[{"runs": 3}, {"runs": 4.0}], name="scan", tags=["a", "b"], priority="high")
    batch = site.queue.batch(await call(pool, "submit_batch", wanted))
    first, second = await batch.results(PATIENCE_S)
    assert (first.counter, second.counter) == ({"0": 3}, {"0": 4})
    record = await batch.record()
    assert (record.doc.name, record.doc.tags, record.priority) == ("scan", ("a", "b"), Priority.HIGH)
    assert (record.project, record.status) == ("ours", BatchStatus.DONE)
    await site.audit(batch)


async def test_jobs_are_added_to_an_open_batch_and_a_batch_is_cancelled(site: Site, pool: ArqRedis) -> None:
    batch_id = await call(pool, "submit_batch", submission(open=True, jobs=[JOB]))
    more = {"batch_id": batch_id, "project": "ours", "jobs": [{"variables": {"sleep_s": 60}}, JOB]}
    assert await call(pool, "add_jobs", more) == 1
    batch = site.queue.batch(batch_id)
    await site.running(batch)
    cancel = {"batch_id": batch_id, "project": "ours"}
    assert await call(pool, "cancel_batch", cancel) is None
    record = await batch.wait(PATIENCE_S)
    assert await call(pool, "cancel_batch", cancel) is None, "cancelling an ended batch is not an error"
    assert record.status is BatchStatus.CANCELED
    assert record.counts[JobStatus.CANCELED] == 2
    await site.audit(batch)


async def test_a_message_may_have_a_start_time_and_limits(site: Site, pool: ArqRedis) -> None:
    start = datetime.now(UTC) + timedelta(seconds=0.7)
    wanted = submission(not_before=start, limits={"job_timeout_s": 0.2}, jobs=[{"variables": {"sleep_s": 60}}])
    batch = site.queue.batch(await call(pool, "submit_batch", wanted))
    (job,) = await batch.results(PATIENCE_S)
    assert (job.error or "").startswith("the job took longer than 0.2 s; raise job_timeout_s")
    assert (await site.starts(batch))[0] >= start.timestamp() * 1_000_000 - 1000


async def test_waiting_messages_are_processed_once_a_scheduler_runs(real_redis_url: str, tmp_path: Path) -> None:
    async with Site(real_redis_url, tmp_path) as site, await open_pool(site.url) as pool:
        await site.workers(1)
        message = await pool.enqueue_job("submit_batch", submission())
        assert message is not None
        site.spawn("scheduler")
        batch = site.queue.batch(await message.result(timeout=PATIENCE_S, poll_delay=0.02))
        assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE


# ------------------------------------------------------------------------------------------------- repeated messages


async def test_a_message_delivered_twice_makes_one_batch(site: Site, pool: ArqRedis) -> None:
    """If a process dies between its submit and the end of its arq job, arq delivers the message again."""
    first = await call(pool, "submit_batch", submission(), _job_id="once")
    await site.store.redis.delete(result_key_prefix + "once")
    assert await call(pool, "submit_batch", submission(), _job_id="once") == first
    assert await count_batches(site) == 1
    await site.queue.batch(first).wait(PATIENCE_S)


async def test_jobs_of_a_message_delivered_twice_are_added_once(site: Site, pool: ArqRedis) -> None:
    batch_id = await call(pool, "submit_batch", submission(open=True))
    more = {"batch_id": batch_id, "project": "ours", "jobs": [JOB] * 2}
    for _ in range(2):
        assert await call(pool, "add_jobs", more, _job_id="more") == 1
        await site.store.redis.delete(result_key_prefix + "more")
    batch = site.queue.batch(batch_id)
    await batch.close()
    assert (await batch.wait(PATIENCE_S)).jobs == 3


async def test_two_messages_with_one_idempotency_key_make_one_batch(site: Site, pool: ArqRedis) -> None:
    wanted = submission(idempotency_key="scan-7")
    first = await call(pool, "submit_batch", wanted)
    assert await call(pool, "submit_batch", wanted) == first
    assert "idempotency" in await refusal(pool, "submit_batch", submission(idempotency_key="scan-7", name="other"))
    assert await count_batches(site) == 1
    await site.queue.batch(first).wait(PATIENCE_S)


# ---------------------------------------------------------------------------------------------------- rejected messages


MALFORMED: list[tuple[str, Any, str]] = [
    ("submit_batch", {"device": "NULL"}, "jobs"),
    ("submit_batch", {"device": "NULL", "jobs": []}, "jobs"),
    ("submit_batch", {"device": "NULL", "jobs": [{"shots": 3}]}, "shots"),
    ("submit_batch", {"device": "NULL", "jobs": [{"runs": "three"}]}, "runs"),
    ("submit_batch", {"device": "NULL", "jobs": [JOB], "colour": 1}, "colour"),
    ("submit_batch", {"device": "NULL", "jobs": [JOB], "priority": "URGENT"}, "priority"),
    ("submit_batch", {"device": "NULL", "jobs": [JOB], "limits": {"patience_s": 1}}, "patience_s"),
    ("submit_batch", {"device": "NULL", "jobs": [JOB], "not_before": "2026-01-01T00:00:00"}, "not_before"),
    ("submit_batch", {"device": "NONE", "jobs": [JOB]}, "device"),
    ("submit_batch", {"device": "NUL", "jobs": [JOB]}, "did you mean NULL?"),
    ("submit_batch", {"device": "NULL", "jobs": [{"runs": 2.5}]}, "runs"),
    ("submit_batch", {"jobs": [JOB]}, "device"),
    ("submit_batch", [1, 2], "SubmitBatch"),
    ("submit_batch", None, "SubmitBatch"),
    ("add_jobs", {"batch_id": "seven", "jobs": [JOB]}, "batch_id"),
    ("add_jobs", {"jobs": [JOB]}, "batch_id"),
    ("cancel_batch", {"batch_id": str(UUID(int=7))}, str(UUID(int=7))),
    ("cancel_batch", {}, "batch_id"),
]
"""The function, the message, and the text that the error must contain."""


async def test_the_error_for_a_malformed_message_names_the_field(site: Site, pool: ArqRedis) -> None:
    errors = [await refusal(pool, function, message) for function, message, _ in MALFORMED]
    unnamed = [(case, text) for case, text in zip(MALFORMED, errors, strict=True) if case[2] not in text]
    assert unnamed == []
    assert await count_batches(site) == 0


def places(kind: Any, name: str = "") -> Iterator[str]:
    """Yield the path of each field of a message, nested fields included."""
    for field in msgspec.structs.fields(kind):
        inner = f"{name}.{field.name}".removeprefix(".")
        yield inner
        if get_origin(field.type) is list:
            yield f"{inner}[0]"
            field.type = get_args(field.type)[0]
            inner = f"{inner}[0]"
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from places(field.type, inner)


def with_value(message: dict[str, Any], place: str, value: Any) -> Any:
    """Return the message with this value at a path such as ``jobs[0].runs``."""
    path = [int(part) if part.isdigit() else part for part in re.findall(r"\w+", place)]
    return replaced(message, path, value)


OPEN = BatchDoc(device="NULL")
LONG = 2000
"""An error with more characters is too long to read."""

HOSTILE = {name: value for name, value in {**TEXTS, **NUMBERS, **TYPES}.items() if value != HALF}
"""Half of a surrogate pair is left out, because MessagePack cannot contain it."""


def complaint(place: str, error: SerializationError) -> str:
    """Describe what is wrong with the error, or return ''."""
    text = str(error)
    if len(text) > LONG:
        return f"has an error of {len(text)} characters"
    if place in text or (place in ("project", "batch_id") and "there is no batch" in text):
        return ""
    return f"is not named in the error: {text}"


async def test_a_hostile_value_is_stored_unchanged_or_refused_with_its_field(site: Site, pool: ArqRedis) -> None:
    cases: list[tuple[str, str, Any, ArqJob]] = []
    opened = []
    for function, kind in (("submit_batch", SubmitBatch), ("add_jobs", AddJobs), ("cancel_batch", CancelBatch)):
        for place in places(kind):
            values = HOSTILE | ({"a million elements": ELEMENTS} if place in ("jobs", "tags") else {})
            for name, value in values.items():
                message = submission()
                if function != "submit_batch":
                    opened.append(await site.store.commands.submit(new_batch_id(), "ours", OPEN, [], open=True))
                    message = {"batch_id": str(opened[-1]), "project": "ours"}
                    message |= {"jobs": [JOB]} if function == "add_jobs" else {}
                sent = await pool.enqueue_job(function, with_value(message, place, value))
                assert sent is not None
                cases.append((f"{function}: {place} = {name}", place, value, sent))
    wrong = []
    for what, place, value, sent in cases:
        try:
            result = await sent.result(timeout=PATIENCE_S, poll_delay=0.01)
        except SerializationError as error:
            wrong += [f"{what} {problem}"] if (problem := complaint(place, error)) else []
            continue
        if value in (NUL, ESCAPE) or value in NUMBERS.values():
            wrong.append(f"{what} was accepted")
        elif value and place in ("name", "tags[0]", "webhook"):
            doc = (await site.store.reader.batch(UUID(result), project=None)).doc
            if value not in (doc.name, *doc.tags, doc.webhook):
                wrong.append(f"{what} was changed")
    assert not wrong, "\n".join(wrong)
    assert len(cases) > 300
    for event in await site.events():
        with contextlib.suppress(Conflict, NotFound):
            await site.store.commands.cancel(event.batch_id, project=None)


async def test_the_batch_of_another_project_is_not_found(site: Site, pool: ArqRedis) -> None:
    batch_id = await call(pool, "submit_batch", submission(open=True))
    theirs = {"batch_id": batch_id, "project": "theirs"}
    assert "there is no batch" in await refusal(pool, "cancel_batch", theirs)
    assert "there is no batch" in await refusal(pool, "add_jobs", {**theirs, "jobs": [JOB]})
    batch = site.queue.batch(batch_id)
    assert (await batch.record()).jobs == 1
    await batch.cancel()
    async with site.connect("theirs") as queue:
        with pytest.raises(NotFound):
            await queue.batch(batch_id).record()


async def test_wrong_arguments_and_unknown_functions_are_errors(site: Site, pool: ArqRedis) -> None:
    assert "submit_batch" in await refusal(pool, "submit_batch")
    assert "submit_batch" in await refusal(pool, "submit_batch", submission(), 3)
    assert "drop_everything" in await refusal(pool, "drop_everything", {})
    assert await count_batches(site) == 0


class Exploit:
    """An object that creates the folder ``trace`` when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


async def test_a_pickled_message_is_refused_and_never_unpickled(site: Site, pool: ArqRedis, tmp_path: Path) -> None:
    trace = tmp_path / "unpickled"
    async with await open_pool(site.url, job_serializer=None, job_deserializer=None) as naive:  # arq's default, pickle
        message = await naive.enqueue_job("submit_batch", Exploit(trace))
    assert message is not None

    async def is_gone() -> bool:
        return not await pool.exists(job_key_prefix + message.job_id) and await pool.zcard(INTAKE) == 0

    await until(is_gone)
    assert not trace.exists()
    assert await count_batches(site) == 0
    batch = site.queue.batch(await call(pool, "submit_batch", submission()))  # later messages are still processed
    await batch.wait(PATIENCE_S)


def plain(message: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode(message)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"job_serializer": None, "job_deserializer": None}, "pickle"),
        ({"job_serializer": plain, "job_deserializer": msgspec.msgpack.decode}, "MessagePack without a version"),
    ],
)
async def test_the_error_for_a_wrong_serialisation_can_be_read(site: Site, options: dict[str, Any], kind: str) -> None:
    async with await open_pool(site.url, **options) as sender:
        with pytest.raises(SerializationError) as raised:
            await call(sender, "submit_batch", submission())
    assert f"encoded as {kind}; call arq.create_pool with job_serializer=tweezer.model.wire" in str(raised.value)
    assert await count_batches(site) == 0


JUNK = (b"", b"\x80\x04N.", b"junk", b"\x92\x02\x80", b"\x91\x01", b"\xc0", b"\x92\x01\xc0", b"\x92\x01\x80")


async def test_junk_is_dropped_and_later_messages_are_processed(site: Site, pool: ArqRedis) -> None:
    async def all_gone() -> bool:
        return bool(await pool.zcard(INTAKE) == 0)

    redis: Any = site.store.redis
    for number, data in enumerate(JUNK):
        await redis.set(f"{job_key_prefix}junk{number}", data, ex=600)
        await redis.zadd(INTAKE, {f"junk{number}": 1})
    await until(all_gone)
    assert await count_batches(site) == 0
    batch = site.queue.batch(await call(pool, "submit_batch", submission()))
    await batch.wait(PATIENCE_S)


# ----------------------------------------------------------------------------------------------- Redis is full


@pytest.fixture
def small_server(tmp_path: Path, real_redis_url: str) -> Iterator[RedisServer]:
    """A private server with little memory. The fixture of the shared server skips the test if none is installed."""
    with RedisServer(tmp_path / "redis", options={"maxmemory": f"{MAXMEMORY_MB}mb"}) as server:
        yield server


async def test_while_redis_is_full_a_message_waits_and_is_processed_later(
    small_server: RedisServer, tmp_path: Path
) -> None:
    async with Site(small_server.url, tmp_path) as site, await open_pool(site.url) as pool:
        scheduler = site.spawn("scheduler")
        await site.workers(1)
        await site.serves(scheduler)
        redis: Any = site.store.redis
        number = 0

        async def full() -> bool:
            nonlocal number
            # Repeatedly, because buffers that shrink later count as used memory, too.
            while (await redis.info("memory"))["used_memory"] < 0.85 * MAXMEMORY_MB * (1 << 20):
                await redis.set(f"ballast{(number := number + 1)}", b"x" * 100_000)
            return bool(await redis.exists(site.store.keys(Key.FULL)))

        await until(full)
        message = await pool.enqueue_job("submit_batch", submission())
        assert message is not None

        async def was_tried() -> bool:
            return int(await redis.get(f"arq:retry:{message.job_id}") or 0) >= 1

        await until(was_tried)
        await redis.delete(*await redis.keys("ballast*"))
        batch = site.queue.batch(await message.result(timeout=PATIENCE_S, poll_delay=0.05))
        assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
        assert await count_batches(site) == 1


async def test_unusable_messages_are_parked_and_others_are_processed(
    site: Site, pool: ArqRedis, tmp_path: Path
) -> None:
    """The scheduler continues after any content of the queue, and each unusable message becomes a dead letter."""
    database = Database.open(OpenDatabase(f"sqlite:///{tmp_path / 'ledger.db'}"), create=True)
    queue: Any = site.store.redis

    async def put(message_id: bytes | str, data: Any, score: float = 1) -> None:
        await queue.set(job_key_prefix.encode() + _encode(message_id), data)
        await queue.zadd(INTAKE, {message_id: score})

    shape: dict[str, Any] = {"t": None, "f": "submit_batch", "a": [], "k": {}, "et": 1}
    broken: list[dict[str, Any]] = [{"f": ["a"]}, {"a": {}}, {"k": []}, {"t": "x"}, {"et": 2**62}]
    for number, change in enumerate(broken):
        await put(f"broken-{number}", serialize(shape | change))
    await put("junk", b"\xff\x00")
    await put("deep", serialize(shape | {"a": "XXX"}).replace(b"\xa3XXX", b"\x91" * DEPTH + b"\x90"))
    await put("half", serialize(shape | {"a": ["aXXXb"]}).replace(b"XXX", b"\xed\xa0\x80"))  # half of a surrogate pair
    await put("short", serialize({"f": "submit_batch"}))
    await put(b"\xff\xfe", serialize(shape))
    await put("endless", serialize(shape), float("-inf"))
    await queue.rpush(job_key_prefix + "list", "x")
    await queue.zadd(INTAKE, {"list": 1})
    await queue.hset("arq:retry:counted", "x", 1)
    await put("counted", serialize(shape))

    def parked() -> dict[str, str]:
        with database.read() as connection:
            return {letter.origin: letter.error for letter in list_letters(connection, consumer=Consumer.INTAKE)}

    await until(lambda: len(parked()) == 13, "all messages to be parked")
    assert "Expected `str`, got `array` - at `$.f`" in parked()["broken-0"]
    assert "nested too deeply" in parked()["deep"]
    assert "UTF-8" in parked()["half"]
    assert "\\xff\\xfe" in parked()
    await until(lambda: _is_empty(queue), "an empty queue")
    batch = site.queue.batch(await call(pool, "submit_batch", submission()))
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE

    again = serialize(shape | {"a": [submission(name="again")]})
    await send_again(site.store, "again", again)
    await until(lambda: _has_batches(site, 2), "a batch from the retried message")
    database.close()
    await queue.delete("arq:retry:counted")


async def _is_empty(queue: Any) -> bool:
    return bool(await queue.zcard(INTAKE) == 0)


async def _has_batches(site: Site, count: int) -> bool:
    return await count_batches(site) == count


def _encode(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


async def test_the_error_for_a_message_that_alone_exceeds_a_quota_names_the_quota(site: Site, pool: ArqRedis) -> None:
    await site.store.quotas.set_limits({"ours": {"queued_jobs": 3}})
    error = await refusal(pool, "submit_batch", submission(jobs=[JOB] * 4))
    assert "queued_jobs: project ours may have 3 queued jobs; this call alone adds 4" in error
    assert await count_batches(site) == 0
