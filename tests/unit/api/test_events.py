"""The feed of events over the API: pages, held requests, and streams."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from tests.support.api_rig import DONE, FAILED, PROJECT, SOON_S, ApiRig, bearer, within
from tests.support.waiting import PATIENCE_S, until

from tweezer.api.events import streams
from tweezer.duties import Backoff
from tweezer.ledger.access.credentials import Role, key_id
from tweezer.ledger.access.keys import revoke_key
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.queries.feed import Feed, Selection
from tweezer.ledger.recorder.recorder import Recorder
from tweezer.model.errors import Unavailable
from tweezer.model.events import Notice
from tweezer.model.ids import job_id
from tweezer.model.webhooks import EventType
from tweezer.settings import ApiSettings, Settings

CREATED = ["batch.created"]
NOW_US = 1_795_341_602_000_000
RAN = ["batch.running", "job.running", "job.done", "batch.done"]


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[ApiRig]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = ApiRig(Settings(api=ApiSettings(longpoll_s=20)), ledger)
    await rig.announce()
    yield rig
    await rig.close()


async def page(rig: ApiRig, path: str, **parameters: Any) -> dict[str, Any]:
    answer = await rig.get(path, params={"wait_s": 0, **parameters})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    assert set(body) == {"status", "message", "code", "data", "next"}
    return body


def types(body: dict[str, Any]) -> list[str]:
    return [event["type"] for event in body["data"]]


# -- pages ------------------------------------------------------------------------------------------------


async def test_a_page_has_the_events_of_the_keys_projects(rig: ApiRig) -> None:
    key = rig.key()
    batch_id = await rig.submit(1)
    await rig.submit(1, project="another")
    answer = await rig.get("/api/v2/events", key=key, params={"wait_s": 0})
    (event,) = answer.json()["data"]
    assert event["type"] == "batch.created"
    assert event["id"].startswith(f"{batch_id}:1:")
    assert event["timestamp"].endswith("Z")
    assert {name: event["data"][name] for name in ("batch_id", "project_id", "status", "sequence")} == {
        "batch_id": str(batch_id),
        "project_id": PROJECT,
        "status": "PENDING",
        "sequence": 1,
    }


async def test_an_operator_sees_all_and_may_name_projects(rig: ApiRig) -> None:
    for project in "pqr":
        await rig.submit(1, project=project)
    assert len((await page(rig, "/api/v2/events"))["data"]) == 3
    named = await page(rig, "/api/v2/events", project_id=["q", "r", "unknown"])
    assert [event["data"]["project_id"] for event in named["data"]] == ["q", "r"]
    answer = await rig.get("/api/v2/events", key=rig.key(), params={"wait_s": 0, "project_id": "q"})
    assert answer.json()["data"] == []


async def test_reading_continues_after_next_or_after_the_id_of_an_event(rig: ApiRig) -> None:
    batch_id = await rig.submit(2)
    await rig.run(DONE, FAILED)
    path = f"/api/v2/batches/{batch_id}/events"
    whole = await page(rig, path)
    assert types(whole) == [*CREATED, *RAN[:3], "job.running", "job.error", "batch.done"]
    for how in ("next", "id"):
        found, after = [], None
        while True:
            part = await page(rig, path, limit=2, **({} if after is None else {"after": after}))
            if not part["data"]:
                break
            found += part["data"]
            after = part["next"] if how == "next" else part["data"][-1]["id"]
        assert found == whole["data"]


async def test_types_narrow_a_page(rig: ApiRig) -> None:
    await rig.submit(1)
    await rig.run()
    assert types(await page(rig, "/api/v2/events", type=["job.done", "batch.done"])) == ["job.done", "batch.done"]


async def test_internal_events_are_shown_on_request_only(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    await rig.take()
    put_back = await rig.http.patch(f"/api/v1/jobs/{job_id(batch_id, 0)}/status", json={"status": "PENDING"})
    assert put_back.status_code == 200
    for path in ("/api/v2/events", f"/api/v2/batches/{batch_id}/events"):
        shown = types(await page(rig, path))
        assert "job.pending" not in shown
        whole = await page(rig, path, internal=True)
        assert [it for it in types(whole) if it not in ("job.pending", "batch.pending")] == shown
        assert [event["data"]["sequence"] for event in whole["data"]] == [*range(1, len(whole["data"]) + 1)]
        (pending,) = (event["data"] for event in whole["data"] if event["type"] == "job.pending")
        assert pending["reason"] == "it was reported as pending through the API"
        assert types(await page(rig, path, internal=True, type="job.running")) == ["job.running"]


async def test_now_is_the_end(rig: ApiRig) -> None:
    await rig.submit(1)
    nothing = await page(rig, "/api/v2/events", after="now")
    assert nothing["data"] == []
    await rig.run()
    assert types(await page(rig, "/api/v2/events", after=nothing["next"])) == RAN


async def test_notices_reach_only_the_projects_that_they_concern(rig: ApiRig) -> None:
    key = rig.key()
    for at, project in enumerate((None, PROJECT, "another")):
        notice = Notice(f"x:{at}", EventType.DEVICE_DOWN, project, at, '{"device": "EMU_FREE"}')
        await rig.store.events.tell(notice)
    answer = await rig.get("/api/v2/events", key=key, params={"wait_s": 0})
    assert [event["id"] for event in answer.json()["data"]] == ["x:0", "x:1"]


async def test_events_that_redis_has_trimmed_come_from_the_ledger(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    await rig.run()
    recorder = Recorder(rig.store, rig.database, namespace="tweezer")
    await recorder.resume()
    await recorder.catch_up()
    await rig.store.redis.flushall()
    for path in ("/api/v2/events", f"/api/v2/batches/{batch_id}/events"):
        assert types(await page(rig, path)) == CREATED + RAN


async def test_a_heavy_reader_leaves_connections_for_others(ledger: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Database.open(OpenDatabase(url=str(ledger.engine.url), connections_max=3, share=2))
    rig = ApiRig(Settings(), shared)
    release, begun = threading.Event(), 0
    read_rows = Feed._read_rows

    def slowly(feed: Feed, connection: Any, selection: Selection, *rest: Any) -> Any:
        nonlocal begun
        if selection.projects == frozenset({PROJECT}):
            begun += 1
            release.wait(PATIENCE_S)
        return read_rows(feed, connection, selection, *rest)

    monkeypatch.setattr(Feed, "_read_rows", slowly)
    try:
        greedy, other = rig.key(), rig.key(project="another")
        path = "/api/v2/events?wait_s=0&type=endpoint.disabled"
        reading = [asyncio.create_task(rig.get(path, key=greedy)) for _ in range(8)]
        await until(lambda: begun == 2)
        assert (await rig.get(path, key=other)).status_code == 200
        assert (await rig.get("/api/v1/batches", key=other)).status_code == 200
        assert begun == 2
        release.set()
        assert {answer.status_code for answer in await asyncio.gather(*reading)} == {200}
    finally:
        release.set()
        await rig.close()
        shared.close()


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"after": "junk"}, "after"),
        ({"after": ""}, "after"),
        ({"after": f"{UUID(int=1)}:3"}, "after"),
        ({"after": f"{UUID(int=1)}:0:0"}, "after"),
        ({"after": f"{UUID(int=1)}:0:{NOW_US}"}, "after"),
        ({"after": f"{UUID(int=1)}:1:17"}, "after"),
        ({"after": "EMU_FREE:3"}, "after"),
        ({"type": "job.pending"}, "type"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"wait_s": 21}, "wait_s"),
    ],
)
async def test_an_invalid_parameter_is_refused_by_name(rig: ApiRig, parameters: dict[str, Any], field: str) -> None:
    batch_id = await rig.submit(1)
    for path in ("/api/v2/events", f"/api/v2/batches/{batch_id}/events"):
        answer = await rig.get(path, params=parameters)
        assert answer.status_code == 422
        assert field in answer.json()["detail"][0]["loc"]
        assert answer.json()["data"]["field"] == field
        if "wait_s" not in parameters and "limit" not in parameters:
            assert (await rig.get(f"{path}/stream", params=parameters)).status_code == 422


async def test_the_events_of_a_foreign_batch_are_not_found(rig: ApiRig) -> None:
    batch_id = await rig.submit(1, project="another")
    key = rig.key()
    for identity in (batch_id, uuid4()):
        for path in (f"/api/v2/batches/{identity}/events", f"/api/v2/batches/{identity}/events/stream"):
            answer = await rig.get(path, key=key)
            assert answer.status_code == 404
            assert answer.json()["data"]["description"] == f"there is no batch {identity}"


# -- requests that are held ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/api/v2/events", "/api/v2/batches/{}/events"])
async def test_a_request_is_held_until_there_is_an_event(rig: ApiRig, place: str) -> None:
    batch_id = await rig.submit(1)
    path = place.format(batch_id)
    after = (await page(rig, path))["next"]
    request = await rig.held(f"{path}?after={after}")
    await rig.submit(1, project="another") if "batches" in path else None
    grant = await rig.take()
    assert types((await within(request)).json()) == RAN[:2]
    assert grant.batch_id == batch_id
    assert rig.holding() == 0


async def test_a_filtered_request_is_held_until_an_event_of_its_types(rig: ApiRig) -> None:
    batch_id = await rig.submit(2)
    request = await rig.held(f"/api/v2/batches/{batch_id}/events?type=batch.done")
    await rig.run(DONE, FAILED)
    assert types((await within(request)).json()) == ["batch.done"]


@pytest.mark.parametrize("place", ["/api/v2/events", "/api/v2/batches/{}/events", "/api/v1/batches/{}/status"])
async def test_a_held_request_returns_nothing_after_its_key_was_revoked(
    rig: ApiRig, ledger: Database, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("tweezer.api.access.auth.REMEMBERED_S", 0.0)  # how long a request trusts its key
    batch_id, key = await rig.submit(1), rig.key()
    path = place.format(batch_id)
    if "events" in place:
        path += f"?after={(await page(rig, path))['next']}"
    before = rig.holding()
    request = asyncio.create_task(rig.get(path, key=key))
    await until(lambda: rig.holding() > before)
    with ledger.write() as connection:
        revoke_key(connection, key_id(key) or "")
    rig.app.state.following._authenticator._known.forget(key_id(key))  # as after a second
    await rig.run(DONE)
    answer = await within(request)
    assert (answer.status_code, answer.json()["data"]["reason"]) == (401, "unauthorized")
    assert "batch" not in answer.text


async def test_foreign_events_wake_no_held_request(rig: ApiRig, monkeypatch: pytest.MonkeyPatch) -> None:
    key, reads = rig.key(), 0
    read = rig.app.state.following.feed.read

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(*arguments, **options)

    monkeypatch.setattr(rig.app.state.following.feed, "read", counted)
    asking = asyncio.create_task(rig.get("/api/v2/events?after=now", key=key))
    await until(lambda: rig.holding() == 1 and reads == 2)
    others = [await rig.submit(1, project="another") for _ in range(5)]
    mine = await rig.submit(1)
    answer = await within(asking)
    assert [event["data"]["batch_id"] for event in answer.json()["data"]] == [str(mine)]
    assert reads == 3
    assert others


async def test_a_batch_that_has_ended_answers_at_once(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    await rig.run()
    path = f"/api/v2/batches/{batch_id}/events"
    after = (await page(rig, path))["next"]
    answer = await asyncio.wait_for(rig.get(f"{path}?after={after}"), SOON_S)
    assert answer.json()["data"] == []


async def test_a_stopping_server_answers_held_requests_for_events(rig: ApiRig) -> None:
    request = await rig.held("/api/v2/events?after=now")
    rig.app.state.holds.end()
    assert (await within(request)).json()["data"] == []


async def test_a_hold_for_events_ends_after_its_time(rig: ApiRig) -> None:
    answer = await asyncio.wait_for(rig.get("/api/v2/events?after=now&wait_s=0.05"), SOON_S)
    assert answer.json()["data"] == []


# -- streams ------------------------------------------------------------------------------------------------


class Stream:
    """A stream of server-sent events, called as by a server; ``frames`` are those received, without comments."""

    def __init__(self, rig: ApiRig, path: str, key: str | None, headers: dict[str, str] | None = None) -> None:
        path, _, query = path.partition("?")
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [
                (name.lower().encode(), value.encode())
                for name, value in {"Host": "here", **(bearer(key) if key else {}), **(headers or {})}.items()
            ],
            "server": ("here", 80),
            "client": ("there", 1),
        }
        self._app = rig.app
        self._gone = asyncio.Event()
        self.status = 0
        self.text = ""
        self.sends = 0
        self.pace: asyncio.Semaphore | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._app(self._scope, self._receive, self._send))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._gone.set()
        await asyncio.wait_for(self._task, SOON_S)

    async def _receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sends += 1
        if self.pace is not None:
            await self.pace.acquire()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.text += message["body"].decode()

    def frames(self) -> list[dict[str, str]]:
        blocks = [block for block in self.text.split("\n\n") if block]
        lines = [[line for line in block.split("\n") if not line.startswith(":")] for block in blocks]
        return [dict(line.split(": ", 1) for line in block) for block in lines if block]

    def types(self) -> list[str]:
        return [frame["event"] for frame in self.frames() if "event" in frame]

    async def until(self, count: int) -> list[dict[str, str]]:
        """Wait for this many events and return all of them."""
        await until(lambda: len(self.types()) >= count)
        return [frame for frame in self.frames() if "event" in frame]

    async def ends(self) -> None:
        """Wait until the server ends the stream."""
        await asyncio.wait_for(asyncio.shield(self._task), SOON_S)


async def test_a_stream_sends_events_as_they_happen(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    async with Stream(rig, "/api/v2/events/stream", rig.key()) as stream:
        await stream.until(1)
        await rig.run()
        frames = await stream.until(5)
        assert stream.types() == CREATED + RAN
        listed = (await page(rig, f"/api/v2/batches/{batch_id}/events"))["data"]
        assert [json.loads(frame["data"]) for frame in frames] == listed
        assert [frame["id"] for frame in frames] == [event["id"] for event in listed]
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store"
        assert stream.frames()[0]["retry"] == "2000"
    assert rig.holding() == 0


async def test_the_stream_of_a_batch_ends_after_its_last_event(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    path = f"/api/v2/batches/{batch_id}/events/stream"
    async with Stream(rig, f"{path}?type=job.done", rig.key()) as stream:
        await until(lambda: rig.holding() == 1)
        await rig.run()
        await stream.ends()
    assert stream.types() == ["job.done", "end"]
    async with Stream(rig, path, rig.key()) as again:
        await again.ends()
    assert again.types() == [*CREATED, *RAN, "end"]


async def test_a_stream_resumes_after_the_last_event_id(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    await rig.run()
    key, path = rig.key(), f"/api/v2/batches/{batch_id}/events/stream"
    async with Stream(rig, path, key) as first:
        await first.ends()
    ids = [frame["id"] for frame in first.frames() if "id" in frame]
    assert len(ids) == 6  # the start, and five events
    for at, last in enumerate(ids[:-1]):
        async with Stream(rig, f"{path}?after=junk", key, {"Last-Event-ID": last}) as stream:
            await stream.ends()
        assert stream.types() == [*(CREATED + RAN)[at:], "end"]
    async with Stream(rig, path, key, {"Last-Event-ID": ids[-1]}) as over:
        await over.ends()
    assert (over.status, over.text) == (204, ""), "nothing is left, and a browser tries no more"


async def test_a_stream_cut_before_its_first_event_misses_none(rig: ApiRig) -> None:
    key = rig.key()
    async with Stream(rig, "/api/v2/events/stream?after=now", key) as stream:
        await until(lambda: rig.holding() == 1)
    await rig.submit(1)
    (place,) = [frame["id"] for frame in stream.frames()]
    async with Stream(rig, "/api/v2/events/stream?after=now", key, {"Last-Event-ID": place}) as again:
        await again.until(1)
    assert again.types() == CREATED


async def test_a_silent_stream_sends_keep_alives(rig: ApiRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BEAT_S", 0.02)
    monkeypatch.setattr(streams, "_LOOK_S", 0.01)
    async with Stream(rig, "/api/v2/events/stream?after=now", rig.key()) as stream:
        await until(lambda: stream.text.count(": still here\n") >= 2)
        await rig.submit(1)
        await stream.until(1)


async def test_a_stream_ends_when_its_key_is_revoked(rig: ApiRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_LOOK_S", 0.01)
    async with Stream(rig, "/api/v2/events/stream?after=now", rig.key()) as stream:
        await until(lambda: rig.holding() == 1)
        with rig.database.write() as connection:
            connection.execute(text("UPDATE keys SET revoked_ms = 1 WHERE role = :role"), {"role": Role.USER.value})
        await stream.ends()
    assert stream.types() == []


async def test_a_stream_ends_when_the_server_does(rig: ApiRig) -> None:
    async with Stream(rig, "/api/v2/events/stream", rig.key()) as stream:
        await until(lambda: rig.holding() == 1)
        rig.app.state.holds.end()
        await stream.ends()


async def test_the_server_does_not_read_ahead_for_a_slow_client(rig: ApiRig, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    read = rig.app.state.following.feed.read

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(*arguments, **options)

    monkeypatch.setattr(rig.app.state.following.feed, "read", counted)
    batch_id = await rig.submit(1000)
    await rig.store.commands.cancel(batch_id, project=None)
    stream = Stream(rig, f"/api/v2/batches/{batch_id}/events/stream", rig.key())
    stream.pace = asyncio.Semaphore(0)
    async with stream:
        for sends, wanted in enumerate(
            (1, 1, 2, 3), 1
        ):  # first whether there is anything; then a page, once it can be sent
            await until(lambda sends=sends: stream.sends == sends)  # type: ignore[misc]
            assert reads == wanted
            stream.pace.release()
        stream.pace = None
        await stream.ends()
    assert len(stream.types()) == 1 + 1000 + 1 + 1
    assert reads > 10


async def test_the_streams_of_a_project_are_limited_over_all_its_keys(
    rig: ApiRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STREAMS_MAX", 2)
    key, path = rig.key(), "/api/v2/events/stream?after=now"
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(Stream(rig, path, key))
        await until(lambda: rig.holding() == 2)
        for another in (key, rig.key()):
            refused = await rig.get(path, key=another)
            assert (refused.status_code, refused.json()["data"]["reason"]) == (429, "too_many_streams")
            assert refused.headers["retry-after"] == "2"
        async with Stream(rig, path, rig.key(project="other")):
            await until(lambda: rig.holding() == 3)
    async with Stream(rig, path, key):
        await until(lambda: rig.holding() == 1)


async def test_a_deleted_batch_ends_its_stream(rig: ApiRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BEAT_S", 0.02)
    monkeypatch.setattr(streams, "_LOOK_S", 0.01)
    batch_id: UUID = await rig.submit(1)
    async with Stream(rig, f"/api/v2/batches/{batch_id}/events/stream", rig.key()) as stream:
        await stream.until(1)
        await rig.store.redis.flushall()
        await stream.ends()
    assert stream.types() == CREATED


async def test_a_stream_that_is_interrupted_misses_nothing(rig: ApiRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "Backoff", lambda: Backoff(base_s=0.001, cap_s=0.001))
    turns = itertools.count()

    def disturb(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        async def disturbed(*arguments: Any, **options: Any) -> Any:
            if next(turns) % 3 == 1:
                raise Unavailable("disturbed")
            return await call(*arguments, **options)

        monkeypatch.setattr(owner, name, disturbed)

    batch_id = await rig.submit(30)
    async with Stream(rig, f"/api/v2/batches/{batch_id}/events/stream", rig.key()) as stream:
        await stream.until(1)
        disturb(rig.app.state.following.feed, "read")
        disturb(rig.app.state.following._authenticator, "still_knows")
        await rig.run(*[DONE] * 30)
        await stream.ends()
    sequences = [
        json.loads(frame["data"])["data"]["sequence"] for frame in stream.frames() if "id" in frame and "data" in frame
    ]
    assert sequences == list(range(1, 1 + 1 + 1 + 2 * 30 + 1))
    assert ": Redis or the ledger does not respond\n\n" in stream.text


# -- tickets ------------------------------------------------------------------------------------------------


async def issue(rig: ApiRig, key: str, path: str = "/api/v2/events/stream") -> str:
    """Return the URL of the stream with a ticket, without the server's address."""
    answer = await rig.http.post(f"{path}/ticket", headers=bearer(key))
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert (body["code"], body["message"]) == ("201", "Created.")
    assert body["data"]["url"] == f"http://127.0.0.1:8000{path}?ticket={body['data']['ticket']}"
    return str(body["data"]["url"]).removeprefix("http://127.0.0.1:8000")


@pytest.mark.parametrize("role", [Role.USER, Role.READ])
async def test_a_ticket_opens_its_stream_once_with_the_rights_of_its_key(rig: ApiRig, role: Role) -> None:
    await rig.submit(1)
    url = await issue(rig, rig.key(role))
    async with Stream(rig, f"{url}&after=now", None) as stream:
        await until(lambda: rig.holding() == 1)
        await rig.submit(0, open=True, project="another")
        await rig.run()
        await stream.until(len(RAN))
    assert stream.types() == RAN
    async with Stream(rig, url, None) as again:
        await again.ends()
    assert (again.status, json.loads(again.text)["data"]["reason"]) == (401, "unauthorized")
    assert "the ticket is not valid: it has expired, was used" in json.loads(again.text)["data"]["description"]


async def test_a_ticket_opens_no_other_stream_and_no_other_route(rig: ApiRig) -> None:
    batch_id, other, key = await rig.submit(1), await rig.submit(1), rig.key()
    path = f"/api/v2/batches/{batch_id}/events/stream"
    foreign = (
        f"/api/v2/batches/{other}/events/stream",
        "/api/v2/events/stream",
        f"/api/v2/batches/{batch_id}/events",
        f"/api/v2/batches/{batch_id}",
    )
    for wrong in foreign:
        _, _, query = (await issue(rig, key, path)).partition("?")
        assert (await rig.stranger.get(f"{wrong}?{query}")).status_code == 401
    for query in ("ticket=", "ticket=x", f"ticket={'x' * 5000}", "ticket=%ff", "ticket=a&ticket=b"):
        assert (await rig.stranger.get(f"{path}?{query}")).status_code == 401
    await rig.store.commands.cancel(batch_id, project=None)
    url = await issue(rig, key, path)
    refused = await rig.http.get(url, headers=bearer(key))
    assert (refused.status_code, refused.json()["data"]["field"]) == (400, "ticket")
    async with Stream(rig, url, None) as stream:
        await stream.ends()
    assert (stream.status, stream.types()[0], stream.types()[-1]) == (200, "batch.created", "end")


async def test_a_ticket_is_issued_for_what_its_caller_can_read(rig: ApiRig) -> None:
    batch_id = await rig.submit(1, project="another")
    path = f"/api/v2/batches/{batch_id}/events/stream/ticket"
    assert (await rig.http.post(path, headers=bearer(rig.key()))).status_code == 404
    metrics = rig.key(Role.METRICS, project=None)
    assert (await rig.http.post("/api/v2/events/stream/ticket", headers=bearer(metrics))).status_code == 403
    assert (await rig.stranger.post("/api/v2/events/stream/ticket")).status_code == 401


async def test_a_ticket_expires_after_a_minute_and_redis_has_only_its_digest(rig: ApiRig) -> None:
    url = await issue(rig, rig.key())
    redis: Any = rig.store.redis
    (name,) = await redis.keys("tweezer:stream_ticket:*")
    assert 50_000 < await redis.pttl(name) <= 60_000
    assert url.partition("ticket=")[2].encode() not in name + await redis.get(name)
    await redis.delete(name)  # as after a minute
    assert (await rig.stranger.get(url)).status_code == 401


async def test_a_stream_with_a_ticket_ends_when_its_key_is_revoked(
    rig: ApiRig, ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_LOOK_S", 0.01)
    key = rig.key()
    url, late = await issue(rig, key), await issue(rig, key)
    async with Stream(rig, url, None) as stream:
        await until(lambda: rig.holding() == 1)
        with ledger.write() as connection:
            revoke_key(connection, key_id(key) or "")
        await stream.ends()
    assert (await rig.stranger.get(late)).status_code == 401


async def test_tickets_count_towards_the_limits_of_their_key(rig: ApiRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STREAMS_MAX", 1)
    key = rig.key()
    url = await issue(rig, key)
    async with Stream(rig, "/api/v2/events/stream?after=now", key):
        await until(lambda: rig.holding() == 1)
        assert (await rig.stranger.get(url)).status_code == 429


async def test_without_redis_there_are_no_tickets(rig: ApiRig) -> None:
    url = await issue(rig, rig.key())
    rig.server.connected = False
    assert (await rig.http.post("/api/v2/events/stream/ticket")).status_code == 503
    assert (await rig.stranger.get(url)).status_code == 503
    rig.server.connected = True
