"""Events as they happen: for producers, on the command line, and over the API, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from tests.support.api_rig import bearer
from tests.support.processes import Site
from tests.support.redis_users import RedisServer, as_user
from tests.support.waiting import PATIENCE_S, until

import tweezer
from tweezer.cli import main
from tweezer.ledger.access.keys import create_key
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.recorder.recorder import Recorder
from tweezer.store.acl import RedisUser


class Place(Site):
    """A site with a ledger."""

    def __init__(self, url: str, folder: Path, ledger: Path) -> None:
        self.ledger_url = f"sqlite:///{shutil.copy(ledger, folder / 'ledger.db')}"
        super().__init__(url, folder, database_url=self.ledger_url, data_dir=folder)
        self.database = Database.open(OpenDatabase(url=self.ledger_url))
        self.recorder = Recorder(self.store, self.database, namespace="tweezer")

    def key(self) -> str:
        """Make a key of the API for the project."""
        with self.database.write() as connection:
            project_no(connection, "ours")
            return create_key(connection, name="test", project_id="ours").text

    async def record(self) -> None:
        """Record and trim the stream, so that it has one entry."""
        await self.recorder.resume()
        await self.recorder.catch_up()
        await self.store.tickets.trim(self.recorder.position)

    async def readers(self) -> int:
        """Return how many clients wait for the end of the stream in Redis."""
        clients = await self.store.redis.client_list()
        return sum(client["cmd"] == "xread" and "b" in client["flags"] for client in clients)

    def door_with_ledger(self) -> tweezer.AsyncQueue:
        return tweezer.connect_async(
            as_user(self.url, RedisUser.PRODUCER), project="ours", database_url=self.ledger_url
        )

    def call(self, *arguments: str) -> list[str]:
        """Return the output of a command."""
        environment = {"TWEEZER_DATABASE_URL": self.ledger_url, "TWEEZER_PROJECT_ID": "ours"}
        ran = CliRunner(env=environment).invoke(main, ["--redis", as_user(self.url, RedisUser.OPERATOR), *arguments])
        assert ran.exit_code == 0, ran.output
        return ran.stdout.splitlines()


@contextlib.asynccontextmanager
async def placed(url: str, folder: Path, ledger: Path) -> AsyncIterator[Place]:
    async with Place(url, folder, ledger) as place:
        await place.workers(1, lanes=2)
        yield place
        place.database.close()


@pytest.fixture
async def place(real_redis_url: str, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Place]:
    """A place with a worker of two lanes."""
    async with placed(real_redis_url, tmp_path, sqlite_template) as place:
        yield place


# -- producers ----------------------------------------------------------------------------------------------


async def test_a_producer_gets_each_event_once_and_in_order_until_the_end(place: Place) -> None:
    batch = await place.submit([{"sleep_s": 0.1}, {"fail": "too hot"}, {}, {"sleep_s": 0.2}])
    others = [await place.submit([{}]) for _ in range(20)]
    events = [event async for event in batch.events(timeout_s=PATIENCE_S)]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [events[0].type, events[-1].type] == ["batch.created", "batch.done"]
    assert events == await place.events(batch)
    for other in others:
        await other.wait(PATIENCE_S)


async def test_a_producer_continues_after_an_event_or_from_now(place: Place) -> None:
    batch = await place.queue.submit(None, [{"runs": 1}], device="NULL", open=True)
    await batch.wait(PATIENCE_S)
    before = [event async for event in batch.events(follow=False)]
    assert len(before) == 4
    assert [event async for event in batch.events("now", follow=False)] == []
    for at, event in enumerate(before):
        for place_of in (event, event.id):
            assert [it async for it in batch.events(place_of, follow=False)] == before[at + 1 :]
    from_now = batch.events("now", timeout_s=PATIENCE_S)
    first = asyncio.ensure_future(anext(from_now))
    while not first.done():  # no one else can know when its "now" has passed
        await batch.add_jobs([{"runs": 1}])
        await asyncio.sleep(0.05)
    await batch.close()
    heard = [await first] + [event async for event in from_now]
    whole = [event async for event in batch.events()]
    assert heard == whole[-len(heard) :]
    assert (heard[-1].type, len(before) <= len(whole) - len(heard)) == ("batch.done", True)
    for junk in ("", "x", f"{batch.id}:1", before[0].id.replace("-", "-0", 1)):
        with pytest.raises(tweezer.InvalidInput, match="after: "):
            await anext(batch.events(junk))


async def test_trimmed_events_come_from_the_ledger_or_not_at_all(place: Place) -> None:
    batch = await place.submit([{}] * 30)
    await batch.wait(PATIENCE_S)
    whole = await place.events(batch)
    await place.submit([{}])
    await place.record()
    with pytest.raises(tweezer.EventsTrimmed, match=r"from number 1 on .* TWEEZER_DATABASE_URL .*, or .* after='now'"):
        await anext(batch.events())
    async with place.door_with_ledger() as queue:
        assert [event async for event in queue.batch(batch.id).events()] == whole
        assert [event async for event in queue.batch(batch.id).events(whole[7])] == whole[8:]
        await place.store.redis.delete("tweezer:events")
        assert [event async for event in queue.batch(batch.id).events()] == whole


async def test_a_follower_whose_events_are_trimmed_gets_an_error_and_does_not_wait(place: Place) -> None:
    open_ones = [await place.queue.submit(None, [{"runs": 1}], device="NULL", open=True) for _ in range(2)]
    for batch in open_ones:
        await batch.wait(PATIENCE_S)
    async with place.door_with_ledger() as queue:
        without, with_it = open_ones[0].events(), queue.batch(open_ones[1].id).events()
        for following in (without, with_it):
            for number in range(1, 5):
                assert (await anext(following)).sequence == number
        for batch in open_ones:
            await batch.close()
        await place.submit([{}])
        await place.record()
        with pytest.raises(tweezer.EventsTrimmed, match="from number 5 on"):
            await asyncio.wait_for(anext(without), PATIENCE_S)
        assert [event.type async for event in with_it] == ["batch.done"]


async def test_the_wait_for_an_event_has_a_time_limit(place: Place) -> None:
    batch = await place.queue.submit(None, [], device="NULL", open=True)
    with pytest.raises(tweezer.WaitTimeout):
        _ = [event async for event in batch.events(timeout_s=0.05)]
    await batch.cancel()


async def test_the_events_of_a_foreign_batch_are_not_found(place: Place) -> None:
    batch = await place.submit([{}])
    async with place.connect("theirs") as queue:
        with pytest.raises(tweezer.NotFound):
            await anext(queue.batch(batch.id).events())
    await batch.wait(PATIENCE_S)


async def test_without_asyncio_it_is_the_same(place: Place) -> None:
    def follow() -> list[tweezer.Event]:
        with tweezer.connect(as_user(place.url, RedisUser.PRODUCER), project="ours") as queue:
            batch = queue.submit(None, [{"runs": 1}] * 3, device="NULL")
            found = list(batch.events(timeout_s=PATIENCE_S))
            assert list(batch.events(found[-2])) == found[-1:]
            return found

    events = await asyncio.to_thread(follow)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].type == "batch.done"


# -- on the command line ------------------------------------------------------------------------------------


async def test_the_command_shows_the_events_of_a_batch_and_of_the_project(place: Place) -> None:
    batch = await place.submit([{}, {}])
    lines = await asyncio.to_thread(place.call, "events", str(batch.id), "--follow")
    assert len(lines) == 1 + 1 + 4 + 1
    assert lines[0].endswith(f"batch.created      {batch.id}  PENDING")
    assert lines[-1].endswith(f"batch.done         {batch.id}  RUNNING -> DONE")
    assert sum(f"{batch.id} job 1  PENDING -> RUNNING" in line for line in lines) == 1
    await place.record()
    more = await place.submit([{}])
    await more.wait(PATIENCE_S)
    for about, wanted in (((), [batch, more]), ((str(batch.id),), [batch])):
        told = await asyncio.to_thread(place.call, "events", *about, "--json", "--type", "batch.done")
        assert [json.loads(line)["data"]["batch_id"] for line in told] == [str(each.id) for each in wanted]
    behind = json.loads((await asyncio.to_thread(place.call, "events", "--json"))[-2])["id"]
    assert len(await asyncio.to_thread(place.call, "events", "--after", behind)) == 1


# -- over the API -------------------------------------------------------------------------------------------


class Told:
    """Return a stream of server-sent events as it is received."""

    def __init__(self, http: httpx.AsyncClient, path: str, last_id: str | None = None) -> None:
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        self.frames: list[dict[str, str]] = []
        self.ended = False
        self._task = asyncio.create_task(self._read(http, path, headers))

    async def _read(self, http: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
        frame: dict[str, str] = {}
        async with http.stream("GET", path, headers=headers) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    frame[name] = value
                elif not line and frame:
                    self.frames.append(frame)
                    frame = {}
        self.ended = True

    def types(self) -> list[str]:
        return [frame["event"] for frame in self.frames if "event" in frame]

    async def open(self) -> None:
        await until(lambda: bool(self.frames), "an open stream")

    async def end(self) -> None:
        await asyncio.wait_for(self._task, PATIENCE_S)

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@contextlib.asynccontextmanager
async def calling(place: Place) -> AsyncIterator[httpx.AsyncClient]:
    _, url = await place.api()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=bearer(place.key()), timeout=PATIENCE_S, limits=limits) as http:
        yield http


async def test_streams_of_many_batches_share_one_connection_to_redis(place: Place) -> None:
    async with calling(place) as http:
        batches = [await place.queue.submit(None, [], device="NULL", open=True) for _ in range(40)]
        streams = [Told(http, f"/api/v2/batches/{batch.id}/events/stream") for batch in batches]
        await until(lambda: all(len(stream.types()) == 1 for stream in streams), "what there is")
        assert await place.readers() == 1
        for batch in batches:
            await batch.add_jobs([{"runs": 1}])
            await batch.close()
        for stream, batch in zip(streams, batches, strict=True):
            await stream.end()
            ids = [frame["id"] for frame in stream.frames if frame.get("event", "end") != "end"]
            assert ids == [event.id for event in await place.events(batch)]
            assert stream.types()[-2:] == ["batch.done", "end"]


async def test_a_stream_survives_a_restart_of_redis(tmp_path: Path, sqlite_template: Path) -> None:
    with RedisServer(tmp_path / "redis", port=0, appendfsync="always") as redis:
        async with placed(redis.url, tmp_path, sqlite_template) as place, calling(place) as http:
            stream = Told(http, "/api/v2/events/stream?type=batch.created")
            await stream.open()
            before = await place.submit([{}])
            await until(lambda: len(stream.types()) == 1, "an event")
            await asyncio.to_thread(redis.restart)
            after = await place.submit([{}])
            await until(lambda: len(stream.types()) == 2, "an event behind the restart")
            told = [json.loads(frame["data"])["data"]["batch_id"] for frame in stream.frames if "data" in frame]
            assert told == [str(before.id), str(after.id)]
            await stream.leave()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_that_stops_ends_its_streams(place: Place, how: signal.Signals) -> None:
    async with calling(place) as http:
        streams = [Told(http, "/api/v2/events/stream?after=now") for _ in range(5)]
        for stream in streams:
            await stream.open()
        api = place.processes[-1]
        api.signal(how)
        for stream in streams:
            await stream.end()
        assert await api.ended() == 0


async def test_a_client_that_leaves_stops_the_listening(place: Place) -> None:
    async with calling(place) as http:
        stream = Told(http, "/api/v2/events/stream?after=now")
        await stream.open()
        await stream.leave()

        async def nobody_listens() -> bool:
            return await place.readers() == 0

        await until(nobody_listens, "an end of listening")
