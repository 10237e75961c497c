"""Supervised loops: a failed step is repeated, and a task that ends unexpectedly is noticed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from redis import exceptions as redis_errors
from tests.support.waiting import until

from tweezer.duties import Backoff, Duties, Duty, DutyEnded, repeat, until_answered
from tweezer.model.errors import InvalidInput, QueueFull, TweezerError, Unavailable
from tweezer.store import connection
from tweezer.store.connection import Connect, Store
from tweezer.store.scripts import translate_error

SOON = Backoff(base_s=0.0, cap_s=0.0)


class Steps:
    """A step that raises these errors in turn, and counts its calls."""

    def __init__(self, *outcomes: BaseException | None) -> None:
        self.outcomes = list(outcomes)
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        await asyncio.sleep(0)
        if self.outcomes and (error := self.outcomes.pop(0)) is not None:
            raise error


async def test_a_loop_continues_after_every_kind_of_failure() -> None:
    step = Steps(Unavailable("away"), OSError("reset"), ValueError("a bug"), asyncio.CancelledError(), None)
    with structlog.testing.capture_logs() as logged:
        await repeat("test", step, backoff=SOON, while_=lambda: step.calls < 6)
    assert step.calls == 6
    assert [(it["event"], it["log_level"], it["failures"]) for it in logged] == [
        ("duty.failed", "warning", 1),
        ("duty.failed", "warning", 2),
        ("duty.failed", "error", 3),
        ("duty.failed", "error", 4),
    ]
    assert {it["duty"] for it in logged} == {"test"}


async def test_a_loop_that_is_cancelled_ends() -> None:
    step = Steps()
    task = asyncio.create_task(repeat("test", step, every_s=0.001))
    await until(lambda: step.calls > 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_after_a_failure_the_pause_is_the_backoff() -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    step = Steps(None, Unavailable("away"), None)
    backoff = Backoff(base_s=4.0, cap_s=4.0)
    await repeat("test", step, every_s=1.0, backoff=backoff, while_=lambda: step.calls < 3, pause=pause)
    assert (pauses[0], pauses[2]) == (1.0, 1.0)
    assert 2.0 <= pauses[1] <= 4.0


async def test_queue_full_and_unavailable_are_retried_and_other_errors_are_raised() -> None:
    step = Steps(QueueFull("full"), Unavailable("away"), None)
    await until_answered(step, SOON, "testing")
    assert step.calls == 3
    with pytest.raises(InvalidInput):
        await until_answered(Steps(InvalidInput("field", "is wrong")), SOON, "testing")


@pytest.mark.parametrize("name", ["first", "second"])
async def test_a_duty_that_is_cancelled_ends_the_block_with_the_reason(name: str) -> None:
    duties, step = Duties(), Steps()

    async def process() -> None:
        async with duties:
            duties.start("first", step, every_s=0.001)
            duties.start("second", step, every_s=0.001)
            await until(lambda: step.calls > 2)
            duties.tasks[name].cancel()
            await asyncio.Event().wait()

    with pytest.raises(DutyEnded, match=f"'{name}' of this process ended: it was cancelled"):
        await process()
    assert duties.failure is not None
    assert all(task.done() for task in duties.tasks.values())
    current = asyncio.current_task()
    assert current is not None
    assert not current.cancelling()


async def test_a_duty_that_returns_or_raises_ends_the_block_with_the_reason() -> None:
    async def process(duty: Steps) -> None:
        async with Duties() as duties:
            duties.watch("test", duty())
            await asyncio.Event().wait()

    for duty, reason in ((Steps(), "it returned"), (Steps(ValueError("broken")), "ValueError: broken")):
        with pytest.raises(DutyEnded, match=reason):
            await process(duty)


async def test_duties_end_with_their_block_and_its_own_error_is_kept() -> None:
    duties, step = Duties(), Steps()

    async def process() -> None:
        async with duties:
            duties.start("test", step, every_s=0.001)
            raise TweezerError("of the block")

    with pytest.raises(TweezerError, match="of the block"):
        await process()
    assert duties.failure is None
    assert duties.tasks["test"].done()


async def test_waiters_of_a_loop_that_ends_get_an_error_and_it_can_start_again() -> None:
    step, told = Steps(), list[TweezerError]()
    duty = Duty("test", step, is_needed=lambda: True, ended=told.append)
    duty.start()
    await until(lambda: step.calls > 2)
    assert duty.task is not None
    duty.task.cancel()
    await until(lambda: bool(told))
    assert "it was cancelled" in told[0].message
    calls = step.calls
    duty.start()
    await until(lambda: step.calls > calls)
    await duty.stop()
    assert len(told) == 1


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (redis_errors.ReadOnlyError("You can't write against a read only replica."), "unavailable"),
        (redis_errors.ResponseError("UNBLOCKED client unblocked via CLIENT UNBLOCK"), "unavailable"),
        (redis_errors.ResponseError("MISCONF Errors writing to the AOF file"), "unavailable"),
        (
            redis_errors.ResponseError("Error running script (call to f): @user_script:1: -READONLY"),
            "unavailable",
        ),
        (redis_errors.BusyLoadingError("Redis is loading the dataset in memory"), "unavailable"),
        (redis_errors.ConnectionError("max number of clients reached"), "unavailable"),
        (redis_errors.InvalidResponse("Protocol error, got 'x' as reply type byte"), "unavailable"),
        (redis_errors.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "full"),
        (redis_errors.NoPermissionError("this user has no permissions"), "redis_auth"),
        (redis_errors.ResponseError("wrong number of arguments"), "redis"),
    ],
)
def test_errors_of_redis_are_distinguished(raised: redis_errors.RedisError, code: str) -> None:
    assert translate_error(raised).code == code


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "Error 111 connecting to localhost:1. Connect call failed ('127.0.0.1', 1).",
            "no server listens at localhost:1",
        ),
        (
            "Error Multiple exceptions: [Errno 111] Connect call failed ('::1', 1, 0, 0) connecting to localhost:1.",
            "no server listens at localhost:1",
        ),
        ("Error -2 connecting to nowhere:1. Name or service not known.", "name or service not known (nowhere:1)"),
        (
            "Error 2 connecting to /run/r. No such file or directory.",
            "no such file or directory (/run/r)",
        ),
        (
            'the connection was lost: Protocol error, got "H" as reply type byte',
            "another kind of server answers at its URL; check the port (the API has a different one)",
        ),
        ("max number of clients reached", "max number of clients reached"),
    ],
)
def test_an_unreachable_redis_is_described_briefly(text: str, reason: str) -> None:
    assert str(translate_error(redis_errors.ConnectionError(text))) == f"Redis cannot be reached: {reason}"


@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed"),
        AttributeError("'NoneType' object has no attribute 'read'"),
        redis_errors.InvalidResponse("Protocol error"),
    ],
)
async def test_a_broken_connection_counts_as_unavailable(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(connection._Dependable, "_write", fail)
    monkeypatch.setattr(connection._Dependable, "connect", lambda _: asyncio.sleep(0))
    monkeypatch.setattr(connection._Dependable, "can_read_destructive", lambda _: asyncio.sleep(0))
    async with Store.open(Connect()) as store:
        with pytest.raises(Unavailable, match="the connection was lost"):
            await store.reader.ping()
