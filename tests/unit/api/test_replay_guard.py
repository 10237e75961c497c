"""Calls without an idempotency key: which of two equal calls is a retry; with a store in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import fakeredis
import httpx
import pytest
from starlette.types import Receive, Scope, Send
from tests.support.api_rig import DEVICE, HOST, PROJECT, ApiRig, bearer
from tests.support.waiting import until

from tweezer.api.access import replay_guard
from tweezer.api.access.replay_guard import ReplayGuard
from tweezer.api.batches.schemas import BatchResponse
from tweezer.api.http.header_limits import CONNECTION
from tweezer.ledger.database import Database
from tweezer.model.errors import Unavailable
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import BatchDoc, JobSpec
from tweezer.settings import ApiSettings, Settings
from tweezer.store import guards as calls
from tweezer.store.connection import Store
from tweezer.store.guards import CallAttempt, CallState
from tweezer.store.keys import Key
from tweezer.store.scripts import CALL_LEASE_S, CALL_RETRY_S

BATCHES = "/api/v1/batches"
JOBS = [{"runs": 5}]
BODY = {"sequence_builder": None, "device_type": DEVICE, "jobs": JOBS, "open": True}


class Wire:
    """A connection that the client closes: ``cut`` before the response, ``is_lost`` while it is written."""

    def __init__(self, *, cut: bool = False, is_lost: bool = False) -> None:
        self.cut = cut
        self.is_lost = is_lost

    def is_closing(self) -> bool:
        return self.cut


class Ours(ApiRig):
    """The rig, with a user's key and connections that may be cut."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings, database)
        self.users = {name: self.key(project=PROJECT) for name in ("ada", "bob")}

    async def send(
        self, path: str = BATCHES, content: Any = BODY, *, wire: Wire | None = None, user: str = "ada", key: str = ""
    ) -> httpx.Response:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if wire is not None:
                scope[CONNECTION] = wire
            await self.app(scope, receive, send)

        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=HOST, headers=bearer(self.users[user])) as http:
            return await http.post(path, json=content, headers={"Idempotency-Key": key} if key else {})

    async def id_of(self, *args: Any, **options: Any) -> str:
        response = await self.send(*args, **options)
        assert response.status_code == 200, response.text
        return str(response.json()["data"]["id"])

    def keeping(self) -> list[object]:
        """Return what renews the leases of running calls."""
        guard: ReplayGuard = self.app.state.replay_guard
        return [call.keeping for calls in guard._serving.values() for call in calls]

    async def written(self) -> int:
        """Return the number of entries in the stream of events: each batch makes one."""
        redis: Any = self.store.redis
        return int(await redis.xlen(self.store.keys(Key.EVENTS)))

    async def left(self) -> list[bytes]:
        """Return the keys that remember calls."""
        redis: Any = self.store.redis
        return [name for name in await redis.keys("*") if name.startswith((b"tweezer:calls", b"tweezer:idempotency"))]


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[Ours]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = Ours(Settings(api=ApiSettings(requests_per_s=10_000)), ledger)
    await rig.store.tickets.heartbeat(
        "w",
        DEVICE,
        ttl_s=60,
        about_device={"adapter": "null", "exclusive": 0, "max_runs": 1000, "checks_sequence": 0},
        about_worker={"lanes": 1, "started": 1, "host": "here", "version": "0", "record_version": 1},
    )
    yield rig
    await rig.close()


# ------------------------------------------------------------------------------------------------- over the API


async def test_an_equal_call_after_a_complete_response_is_a_new_call(rig: Ours) -> None:
    assert len({await rig.id_of(wire=Wire()) for _ in range(3)}) == 3
    assert await rig.left() == []


@pytest.mark.parametrize("wire", [Wire(cut=True), Wire(is_lost=True)])
async def test_an_equal_call_after_a_lost_response_is_a_retry(rig: Ours, wire: Wire) -> None:
    first = await rig.id_of(wire=wire)
    assert await rig.id_of(wire=wire) == first
    assert await rig.id_of(wire=Wire()) == first
    assert await rig.id_of(wire=Wire()) != first


async def test_an_equal_call_after_a_server_error_is_a_retry(rig: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    for failure in (Unavailable("Redis went away"), ZeroDivisionError("a defect")):
        before = await rig.written()
        with monkeypatch.context() as patch:
            patch.setattr(BatchResponse, "from_records", Mock(side_effect=failure))  # the batch is written by then
            assert (await rig.send()).status_code in (500, 503)
            assert (await rig.send()).status_code in (500, 503)
        first = await rig.id_of()
        assert await rig.written() == before + 1
        assert await rig.id_of() != first


async def test_an_equal_call_after_a_lost_reply_of_redis_is_a_retry(rig: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    call = rig.store.scripts.call

    async def losing(name: str, **arguments: Any) -> Any:
        reply = await call(name, **arguments)
        if name == "submit" and reply[0] == b"ok":
            raise Unavailable("the connection was lost")
        return reply

    before = await rig.written()
    with monkeypatch.context() as patch:
        patch.setattr(rig.store.scripts, "call", losing)
        assert (await rig.send()).status_code == 503
    first = await rig.id_of()
    assert await rig.written() == before + 1
    assert await rig.id_of() != first


async def test_only_an_equal_call_is_a_retry(rig: Ours) -> None:
    first = await rig.id_of(wire=Wire(cut=True))
    assert await rig.id_of(content=BODY | {"name": "other"}) != first
    assert await rig.id_of(user="bob") != first
    assert await rig.id_of(key="k") != first
    assert await rig.id_of() == first


async def test_concurrent_equal_calls_are_separate_calls(rig: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALL_LEASE_S", 60.0)  # a busy machine may need longer to mark the calls
    assert len(set(await asyncio.gather(*(rig.id_of(wire=Wire()) for _ in range(20))))) == 20
    assert await rig.left() == []


async def test_each_lost_call_has_one_retry(rig: Ours) -> None:
    lost = set(await asyncio.gather(*(rig.id_of(wire=Wire(is_lost=True)) for _ in range(3))))
    found = [await rig.id_of() for _ in range(4)]
    assert (len(lost), set(found[:3])) == (3, lost)
    assert found[3] not in lost


@pytest.mark.parametrize("is_noticed", [False, True])
async def test_a_retry_joins_a_lost_call_that_still_runs(
    rig: Ours, monkeypatch: pytest.MonkeyPatch, is_noticed: bool
) -> None:
    monkeypatch.setattr(replay_guard, "_RENEW_S", 0.01)
    submit, reached, go_on = rig.store.commands.write, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any, **options: Any) -> Any:
        if not reached.is_set():
            reached.set()
            await go_on.wait()
        return await submit(*args, **options)

    monkeypatch.setattr(rig.store.commands, "write", slow)
    wire = Wire()
    first = asyncio.create_task(rig.id_of(wire=wire))
    await reached.wait()
    other = await rig.id_of(wire=Wire())  # the connection of the first one is still open
    wire.cut = True
    if is_noticed:  # its lease is no longer renewed
        await until(lambda: all(isinstance(it, asyncio.Task) and it.done() for it in rig.keeping()))
    retry = asyncio.create_task(rig.id_of(wire=Wire()))
    await asyncio.sleep(0)
    assert await rig.id_of(content=BODY | {"name": "other"}) != other
    go_on.set()
    assert await first == await retry != other


async def test_added_jobs_are_repeated_in_the_same_way(rig: Ours) -> None:
    path = f"/api/v2/batches/{await rig.id_of()}/jobs"
    counts = [
        (await rig.send(path, JOBS, wire=wire)).json()["data"]["jobs_count"]
        for wire in (Wire(), Wire(cut=True), Wire(), Wire())
    ]
    assert counts == [2, 3, 3, 4]


async def test_a_refusal_leaves_no_trace_and_does_not_affect_a_lost_call(rig: Ours) -> None:
    wrong = BODY | {"device_type": "ELSEWHERE"}
    assert (await rig.send(content=wrong)).status_code == 400
    assert await rig.left() == []
    batch = await rig.id_of()
    path = f"/api/v2/batches/{batch}/jobs"
    await rig.send(path, JOBS, wire=Wire(cut=True))
    rig.app.state.live._store.admission._devices.clear()
    await rig.http.patch(f"/api/v2/batches/{batch}/complete")
    assert (await rig.send(path, JOBS)).json()["data"]["jobs_count"] == 2  # the response to the first call
    assert (await rig.send(path, JOBS)).json()["data"]["reason"] == "closed"


async def test_a_long_call_does_not_count_as_lost(rig: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_guard, "_RENEW_S", 0.001)
    marked: list[CallState] = []
    mark = rig.store.recent_calls.mark

    async def noting(attempt: Any, state: CallState) -> bool:
        marked.append(state)
        return await mark(attempt, state)

    monkeypatch.setattr(rig.store.recent_calls, "mark", noting)
    submit = rig.store.commands.write

    async def slow(*args: Any, **options: Any) -> Any:
        await until(lambda: marked.count(CallState.RUNNING) > 2)
        return await submit(*args, **options)

    monkeypatch.setattr(rig.store.commands, "write", slow)
    await rig.id_of(wire=Wire())
    assert marked[-1] is CallState.OVER


# ------------------------------------------------------------------------------------------------- in the store


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    store = Store(fakeredis.FakeAsyncRedis())
    about_device, about_worker = {"adapter": "null", "exclusive": 0, "max_runs": 1000}, {"lanes": 0}
    await store.tickets.heartbeat("w", DEVICE, ttl_s=60, about_device=about_device, about_worker=about_worker)
    yield store
    await store.close()


async def make_call(store: Store, equal: str = "d", running: Sequence[str] = ()) -> CallAttempt:
    attempt = CallAttempt(equal, running)
    await store.commands.submit(new_batch_id(), PROJECT, BatchDoc(DEVICE), [JobSpec()], attempt=attempt)
    return attempt


async def let_pass(store: Store, seconds: float, equal: str = "d") -> None:
    """Change what Redis knows of equal calls as if this time had passed."""
    redis: Any = store.redis
    name = store.keys(Key.CALLS, equal)
    for call, value in (await redis.hgetall(name)).items():
        since, _, rest = value.partition(b" ")
        await redis.hset(name, call, b"%d %b" % (int(since) - round(1000 * seconds), rest))


async def test_an_attempt_without_a_renewal_is_lost_after_its_lease(store: Store) -> None:
    first = await make_call(store)
    second = await make_call(store)
    assert second.call == second.id
    await let_pass(store, CALL_LEASE_S)
    third = await make_call(store, running=[first.id, second.id])
    assert third.call == third.id
    assert (await make_call(store, running=[second.id])).call == first.id
    assert (await make_call(store, "other")).call != second.id


async def test_the_former_owner_cannot_renew_an_attempt_that_was_taken_over(store: Store) -> None:
    known = store.recent_calls
    first = await make_call(store)
    await known.mark(first, CallState.ABANDONED)
    second = await make_call(store)
    assert second.call == first.id
    assert not await known.mark(first, CallState.OVER)
    assert await known.mark(second, CallState.ABANDONED)
    assert (await make_call(store)).call == first.id


async def test_the_wait_for_a_lost_call_is_bounded(store: Store) -> None:
    first = await make_call(store)
    await store.recent_calls.mark(first, CallState.ABANDONED)
    redis: Any = store.redis
    assert 0 < await redis.pttl("tweezer:calls:d") <= 1000 * (CALL_LEASE_S + CALL_RETRY_S)
    await let_pass(store, CALL_RETRY_S + 1)
    later = await make_call(store)
    assert later.call == later.id


async def test_a_call_that_the_previous_version_began_is_not_repeated(store: Store) -> None:
    redis: Any = store.redis
    await redis.hset("tweezer:calls:d", "id", f"{time.time_ns() // 1_000_000 - 1000} id")
    attempt = await make_call(store)
    assert attempt.call == attempt.id


async def test_a_call_that_redis_executes_too_late_writes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis: Any = store.redis
    await make_call(store)
    call, sent = store.scripts.call, []

    async def held_up(name: str, **arguments: Any) -> Any:
        sent.append(arguments["expires_us"])
        if len(sent) == 1:
            arguments["expires_us"] -= round(1e6 * calls.EXPIRES_S) + 1  # as if it had arrived later
        return await call(name, **arguments)

    monkeypatch.setattr(store.scripts, "call", held_up)
    await make_call(store)
    assert len(sent) == 2
    assert await redis.xlen(store.keys(Key.EVENTS)) == 2


async def test_the_first_call_of_a_process_reads_the_time_of_redis(store: Store) -> None:
    assert store.recent_calls.begin(CallAttempt("d"))["expires_us"] == 0
    await make_call(store)
    seconds, _ = await cast(Any, store.redis).time()
    assert abs(store.recent_calls.begin(CallAttempt("d"))["expires_us"] / 1e6 - seconds - calls.EXPIRES_S) < 5
