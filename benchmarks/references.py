"""The references that ``dispatch.py`` compares Tweezer with: tuned arq, a bare Lua loop, a bare echo.

Tuned arq is arq 0.28 with 100 messages at once, a poll each 5 ms, uvloop, results not kept, and enqueueing
gathered by 100; logging is quiet.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import harness
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from redis.asyncio import Redis

from tweezer.model.messages import JobSpec, Outcome, OutcomeKind, Result, decode_spec, encode_result, encode_spec

QUEUE = "benchmark:arq"
MESSAGE = "nothing"
ECHO = "benchmark:echo"
GATHERED = 100

# The bare loop: set the results of the previous ids, and pop the next ids off a list.
POP_AND_SET = """
for at = 2, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1]) end
local ids = {}
for at = 1, tonumber(ARGV[1]) do
  local id = redis.call('LPOP', KEYS[1])
  if not id then break end
  ids[at] = id
end
return ids
"""

# The same without a loop, by two variadic commands. For information: the limit of Redis itself.
POP_AND_SET_VARIADIC = """
if #ARGV > 1 then redis.call('HSET', KEYS[2], unpack(ARGV, 2)) end
return redis.call('LPOP', KEYS[1], ARGV[1])
"""

# The least that a queue with leases does for a job: pop its id, read its record, note that it runs and its owner …
CLAIM = """
local reply = {}
for _ = 1, tonumber(ARGV[1]) do
  local id = redis.call('LPOP', 'ids')
  if not id then break end
  redis.call('HSET', 'states', id, 'running')
  redis.call('ZADD', 'leases', ARGV[2], id)
  reply[#reply + 1] = id
  reply[#reply + 1] = redis.call('HGET', 'specs', id)
end
return reply
"""

# … then write its status and result, and give up the lease.
COMMIT = """
for at = 1, #ARGV, 2 do
  redis.call('HSET', 'states', ARGV[at], 'done')
  redis.call('HSET', 'results', ARGV[at], ARGV[at + 1])
  redis.call('ZREM', 'leases', ARGV[at])
end
"""


async def arq_pool(url: str) -> ArqRedis:
    return await create_pool(RedisSettings.from_dsn(url), default_queue_name=QUEUE)


async def arq_enqueue(pool: ArqRedis, messages: int) -> float:
    """Enqueue no-op messages and return the seconds."""
    began = time.perf_counter()
    for first in range(0, messages, GATHERED):
        await asyncio.gather(*(pool.enqueue_job(MESSAGE) for _ in range(min(GATHERED, messages - first))))
    return time.perf_counter() - began


async def arq_round(url: str, messages: int) -> tuple[float, float]:
    """Enqueue messages, then let a worker drain them; return the seconds of each step."""
    pool = await arq_pool(url)

    async def drained() -> bool:
        return int(await pool.zcard(QUEUE)) == 0

    try:
        await pool.flushall()
        enqueue_s = await arq_enqueue(pool, messages)
        async with harness.program("arq", url) as worker:
            began = time.perf_counter()
            worker.send("go")
            await harness.until(drained, "arq drained its queue", 2 * harness.WAIT_S)
            drain_s = time.perf_counter() - began
            await asyncio.sleep(0.2)  # the queue is empty before the worker has cleaned up after its last messages
            return enqueue_s, drain_s
    finally:
        await pool.aclose()


async def pop_and_set(url: str, jobs: int, script: str = POP_AND_SET, *, at_once: int = 100) -> float:
    """Call one script for the last 100 results and the next 100 ids until all are done; return the seconds."""
    client = Redis.from_url(url)
    try:
        await client.flushall()
        await client.rpush("ids", *range(jobs))
        call = client.register_script(script)
        result = encode_result(Result(counter={"0": 100}))
        done: list[bytes] = []
        began = time.perf_counter()
        while ids := await call(keys=["ids", "results"], args=[at_once, *done]):
            done = [part for one in ids for part in (one, result)]
        elapsed_s = time.perf_counter() - began
        if await client.hlen("results") != jobs:
            raise harness.Broken("the bare loop lost results")
        return elapsed_s
    finally:
        await client.aclose()


async def _run_nothing(spec: JobSpec) -> Outcome:
    return Outcome(OutcomeKind.DONE, result=Result(counter={"0": spec.runs or 1}))


async def claim_and_commit(url: str, jobs: int, *, at_once: int = 100) -> float:
    """Run a bare queue: claim a hundred jobs, decode each, await it, encode its result, commit the hundred.

    It has no events, no tokens, no fairness and no counters. Return the seconds.
    """
    client = Redis.from_url(url)
    try:
        await client.flushall()
        spec = encode_spec(JobSpec(100, {"a": 1.0, "b": 2.0}))
        await client.hset("specs", mapping={str(index): spec for index in range(jobs)})
        await client.rpush("ids", *range(jobs))
        claim, commit = client.register_script(CLAIM), client.register_script(COMMIT)
        began = time.perf_counter()
        while taken := await claim(args=[at_once, 1]):
            done: list[bytes] = []
            for identity, packed in zip(taken[::2], taken[1::2], strict=True):
                outcome = await _run_nothing(decode_spec(packed))
                assert outcome.result is not None
                done += (identity, encode_result(outcome.result))
            await commit(args=done)
        elapsed_s = time.perf_counter() - began
        if await client.hlen("results") != jobs:
            raise harness.Broken("the bare queue lost results")
        return elapsed_s
    finally:
        await client.aclose()


async def starts(worker: harness.Program, send: Callable[[], Awaitable[object]], samples: int) -> list[float]:
    """Return the milliseconds from each send to the start of its job in the worker, which is idle before each."""
    taken: list[float] = []
    for number in range(samples + 5):
        await asyncio.sleep(random.uniform(0.010, 0.020))
        began = time.monotonic_ns()
        await send()
        latency_ms = (int(await worker.line()) - began) / 1e6
        if number >= 5:
            taken.append(latency_ms)
    return taken


async def arq_latency(url: str, samples: int) -> list[float]:
    pool = await arq_pool(url)
    try:
        await pool.flushall()
        async with harness.program("arq", url, "--stamping") as worker:
            worker.send("go")
            return await starts(worker, lambda: pool.enqueue_job(MESSAGE), samples)
    finally:
        await pool.aclose()


async def echo_latency(url: str, samples: int) -> list[float]:
    """Return the milliseconds from an LPUSH here to the return of a BLPOP in another process."""
    client = Redis.from_url(url)
    try:
        await client.flushall()
        async with harness.program("echo", url) as worker:
            return await starts(worker, lambda: client.lpush(ECHO, b"1"), samples)
    finally:
        await client.aclose()
