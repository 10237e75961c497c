"""Bad input from a user or a stranger does not stop any shared process: with real processes, on both databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import NULL, Site
from tests.support.records import NEWER
from tests.support.waiting import PATIENCE_S, until
from tests.support.webhook_receiver import Receiver

from tweezer import BatchStatus
from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.database import Database
from tweezer.ledger.dead_letters import Consumer, Letter, list_letters
from tweezer.ledger.queries.queries import Queries
from tweezer.model.wire import serialize
from tweezer.store.keys import Key

OPERATOR = Principal("test", Role.OPERATOR)
JOBS = [{"runs": 3}]


@pytest.mark.slow
async def test_poison_of_every_kind_does_not_stop_other_work(
    real_redis_url: str, ledger_url: str, database: Database, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "database_url": ledger_url,
        "webhook_allow": "127.0.0.0/8",
        "data_dir": str(tmp_path),
    }
    queries = Queries(database)

    def letters(consumer: Consumer) -> list[Letter]:
        with database.read() as connection:
            return list_letters(connection, consumer=consumer)

    async with (
        Receiver() as receiver,
        Site(real_redis_url, tmp_path, **settings) as site,
        site.connect("theirs") as theirs,
    ):
        processes = [site.spawn(name) for name in ("recorder", "courier", "scheduler")]
        for process in (*processes, *await site.workers(1)):
            await site.serves(process)
        redis: Any = site.store.redis
        events, key = site.store.keys(Key.EVENTS), site.store.keys

        tagged = await site.queue.submit(None, JOBS, device=NULL, open=True)  # as an older version accepted it
        await redis.hset(key(Key.BATCH, tagged.id), "tags", r'["a\u0000b"]')
        damaged = await site.queue.submit(None, JOBS, device=NULL, open=True)
        await redis.hset(key(Key.BATCH, damaged.id), mapping={"doc": b"\xc1", "times": b"%d,0,0,0" % 2**70})
        newer = await site.queue.submit(None, JOBS, device=NULL, open=True, webhook=receiver.url("/newer"))
        await redis.hset(key(Key.BATCH, newer.id), "v", NEWER)
        for fields in ({"x": "y"}, {"b": str(tagged.id), "s": 1, "t": 1, "e": "XX"}, {"n": "device.up", "t": 1}):
            await redis.xadd(events, fields)
        for number, function in enumerate((["a"], {"a": 1})):
            message = serialize({"t": None, "f": function, "a": [], "k": {}, "et": 1})
            await redis.set(f"arq:job:poison-{number}", message)
            await redis.zadd(key(Key.INTAKE), {f"poison-{number}": 1})
        await redis.zadd(key(Key.SCHEDULER), {b"\xff": 1})
        await redis.zadd(key(Key.COURIER), {b"\xff": 1})

        for number in range(3):
            batch = await theirs.submit(None, JOBS, device=NULL, webhook=receiver.url(f"/{number}"))
            assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
            await until(lambda: _is_recorded(queries, batch.id), "another project's batch in the ledger")  # noqa: B023
            await until(
                lambda: "batch.done" in {it.type for it in receiver.received if it.path == f"/{number}"},  # noqa: B023
                "another project's webhook",
            )
        await until(lambda: len(letters(Consumer.INTAKE)) == 2, "the messages are parked")
        await until(lambda: len(letters(Consumer.SCHEDULER)) == 1, "and the scheduler's own")
        assert {letter.batch for letter in letters(Consumer.RECORDER)} >= {newer.id, None}
        assert all(process.alive for process in processes)
        assert not [line for process in processes for line in process.logged("process.failed")]


def _is_recorded(queries: Queries, batch_id: Any) -> bool:
    batch = queries.batch(OPERATOR, batch_id)
    return batch is not None and batch.status.terminal
