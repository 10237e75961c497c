"""Calls without an idempotency key: which of two equal calls is a retry; with a store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fakeredis
import httpx
import pytest
from starlette.types import Receive, Scope, Send
from tests.support.api_rig import DEVICE, HOST, PROJECT, ApiRig, bearer
from tests.support.waiting import until

from tweezer.api.access import replay_guard
from tweezer.api.http.header_limits import CONNECTION
from tweezer.api.read_model import ReadModel
from tweezer.ledger.database import Database
from tweezer.model.errors import Unavailable
from tweezer.settings import ApiSettings, Settings
from tweezer.store import guards as calls
from tweezer.store.connection import Store
from tweezer.store.guards import CallState, RecentCalls
from tweezer.store.keys import Key

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
            patch.setattr(ReadModel, "batch_with_jobs", Mock(side_effect=failure))  # the batch is written by then
            assert (await rig.send()).status_code in (500, 503)
            assert (await rig.send()).status_code in (500, 503)
        first = await rig.id_of()
        assert await rig.written() == before + 1
        assert await rig.id_of() != first


async def test_only_an_equal_call_is_a_retry(rig: Ours) -> None:
    first = await rig.id_of(wire=Wire(cut=True))
    assert await rig.id_of(content=BODY | {"name": "other"}) != first
    assert await rig.id_of(user="bob") != first
    assert await rig.id_of(key="k") != first
    assert await rig.id_of() == first


async def test_concurrent_equal_calls_are_separate_calls(rig: Ours) -> None:
    assert len(set(await asyncio.gather(*(rig.id_of(wire=Wire()) for _ in range(20))))) == 20
    assert await rig.left() == []


async def test_each_lost_call_has_one_retry(rig: Ours) -> None:
    lost = set(await asyncio.gather(*(rig.id_of(wire=Wire(cut=True)) for _ in range(3))))
    found = [await rig.id_of() for _ in range(4)]
    assert (len(lost), set(found[:3])) == (3, lost)
    assert found[3] not in lost


async def test_a_retry_joins_a_lost_call_that_still_runs(rig: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, reached, go_on = rig.store.commands.submit, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any, **options: Any) -> Any:
        if not reached.is_set():
            reached.set()
            await go_on.wait()
        return await submit(*args, **options)

    monkeypatch.setattr(rig.store.commands, "submit", slow)
    wire = Wire()
    first = asyncio.create_task(rig.id_of(wire=wire))
    await reached.wait()
    other = await rig.id_of(wire=Wire())  # the connection of the first one is still open
    wire.cut = True
    retry = await rig.id_of(wire=Wire())
    go_on.set()
    assert await first == retry != other


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
    submit = rig.store.commands.submit

    async def slow(*args: Any, **options: Any) -> Any:
        await until(lambda: marked.count(CallState.RUNNING) > 2)
        return await submit(*args, **options)

    monkeypatch.setattr(rig.store.commands, "submit", slow)
    await rig.id_of(wire=Wire())
    assert marked[-1] is CallState.OVER


# ------------------------------------------------------------------------------------------------- in the store


@pytest.fixture
async def known() -> AsyncIterator[RecentCalls]:
    store = Store(fakeredis.FakeAsyncRedis())
    yield store.recent_calls
    await store.close()


async def test_an_attempt_without_a_renewal_is_lost_after_its_lease(
    known: RecentCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await known.begin("d", project="p")
    assert not (await known.begin("d", project="p")).again
    monkeypatch.setattr(calls, "LEASE_S", 0.0)
    dead = await known.begin("other", project="p")
    assert not (await known.begin("other", project="p", running=[dead.key])).again
    found = await known.begin("other", project="p", running=[running.key])
    assert (found.again, found.key) == (True, dead.key)


async def test_the_former_owner_cannot_renew_an_attempt_that_was_taken_over(known: RecentCalls) -> None:
    first = await known.begin("d", project="p")
    await known.mark(first, CallState.ABANDONED)
    second = await known.begin("d", project="p")
    assert (second.key, second.again) == (first.key, True)
    assert not await known.mark(first, CallState.OVER)
    assert await known.mark(second, CallState.ABANDONED)
    assert (await known.begin("d", project="p")).key == first.key


async def test_the_wait_for_a_lost_call_is_bounded(known: RecentCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await known.begin("d", project="p")
    await known.mark(first, CallState.ABANDONED)
    redis: Any = known._scripts.redis
    assert 0 < await redis.pttl("tweezer:calls:d") <= 1000 * (calls.LEASE_S + calls.RETRY_S)
    monkeypatch.setattr(calls, "RETRY_S", -1.0)
    assert not (await known.begin("d", project="p")).again
