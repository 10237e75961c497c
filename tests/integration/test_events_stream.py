"""Streams of events for producers, on the command line and over the API, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
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
from tweezer.model.ids import job_id, short_id
from tweezer.store.acl import RedisUser


class LedgerSite(Site):
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

    def connect_with_ledger(self) -> tweezer.AsyncQueue:
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
async def open_site(url: str, folder: Path, ledger: Path) -> AsyncIterator[LedgerSite]:
    async with LedgerSite(url, folder, ledger) as site:
        await site.workers(1, lanes=2)
        yield site
        site.database.close()


@pytest.fixture
async def site(real_redis_url: str, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[LedgerSite]:
    """A site with a ledger and a worker with two lanes."""
    async with open_site(real_redis_url, tmp_path, sqlite_template) as site:
        yield site


# -- producers ----------------------------------------------------------------------------------------------


async def test_a_producer_gets_each_event_once_and_in_order_until_the_end(site: LedgerSite) -> None:
    batch = await site.submit([{"sleep_s": 0.1}, {"fail": "too hot"}, {}, {"sleep_s": 0.2}])
    others = [await site.submit([{}]) for _ in range(20)]
    events = [event async for event in batch.events(timeout_s=PATIENCE_S)]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [events[0].type, events[-1].type] == ["batch.created", "batch.done"]
    assert events == await site.events(batch)
    for other in others:
        await other.wait(PATIENCE_S)


async def test_a_producer_continues_after_an_event_or_from_now(site: LedgerSite) -> None:
    batch = await site.queue.submit(None, [{"runs": 1}], device="NULL", open=True)
    await batch.wait(PATIENCE_S)
    before = [event async for event in batch.events(follow=False)]
    assert len(before) == 4
    assert [event async for event in batch.events("now", follow=False)] == []
    for at, event in enumerate(before):
        for position in (event, event.id):
            assert [it async for it in batch.events(position, follow=False)] == before[at + 1 :]
    from_now = batch.events("now", timeout_s=PATIENCE_S)
    first = asyncio.ensure_future(anext(from_now))
    while not first.done():  # only the stream itself can show that its "now" has passed
        await batch.add_jobs([{"runs": 1}])
        await asyncio.sleep(0.05)
    await batch.close()
    received = [await first] + [event async for event in from_now]
    whole = [event async for event in batch.events()]
    assert received == whole[-len(received) :]
    assert (received[-1].type, len(before) <= len(whole) - len(received)) == ("batch.done", True)
    for junk in ("", "x", f"{batch.id}:1", before[0].id.replace("-", "-0", 1)):
        with pytest.raises(tweezer.InvalidInput, match="after: "):
            await anext(batch.events(junk))


async def test_trimmed_events_are_read_from_the_ledger_or_raise_an_error(site: LedgerSite) -> None:
    batch = await site.submit([{}] * 30)
    await batch.wait(PATIENCE_S)
    whole = await site.events(batch)
    await site.submit([{}])
    await site.record()
    with pytest.raises(tweezer.EventsTrimmed, match=r"from number 1 on .* TWEEZER_DATABASE_URL .*, or .* after='now'"):
        await anext(batch.events())
    async with site.connect_with_ledger() as queue:
        assert [event async for event in queue.batch(batch.id).events()] == whole
        assert [event async for event in queue.batch(batch.id).events(whole[7])] == whole[8:]
        await site.store.redis.delete("tweezer:events")
        assert [event async for event in queue.batch(batch.id).events()] == whole


async def test_a_follower_whose_events_are_trimmed_gets_an_error_and_does_not_wait(site: LedgerSite) -> None:
    open_ones = [await site.queue.submit(None, [{"runs": 1}], device="NULL", open=True) for _ in range(2)]
    for batch in open_ones:
        await batch.wait(PATIENCE_S)
    async with site.connect_with_ledger() as queue:
        without, with_it = open_ones[0].events(), queue.batch(open_ones[1].id).events()
        for following in (without, with_it):
            for number in range(1, 5):
                assert (await anext(following)).sequence == number
        for batch in open_ones:
            await batch.close()
        await site.submit([{}])
        await site.record()
        with pytest.raises(tweezer.EventsTrimmed, match="from number 5 on"):
            await asyncio.wait_for(anext(without), PATIENCE_S)
        assert [event.type async for event in with_it] == ["batch.done"]


async def test_the_wait_for_an_event_has_a_time_limit(site: LedgerSite) -> None:
    batch = await site.queue.submit(None, [], device="NULL", open=True)
    with pytest.raises(tweezer.WaitTimeout):
        _ = [event async for event in batch.events(timeout_s=0.05)]
    await batch.cancel()


async def test_the_events_of_a_foreign_batch_are_not_found(site: LedgerSite) -> None:
    batch = await site.submit([{}])
    async with site.connect("theirs") as queue:
        with pytest.raises(tweezer.NotFound):
            await anext(queue.batch(batch.id).events())
    await batch.wait(PATIENCE_S)


async def test_the_synchronous_api_yields_the_same_events(site: LedgerSite) -> None:
    def follow() -> list[tweezer.Event]:
        with tweezer.connect(as_user(site.url, RedisUser.PRODUCER), project="ours") as queue:
            batch = queue.submit(None, [{"runs": 1}] * 3, device="NULL")
            found = list(batch.events(timeout_s=PATIENCE_S))
            assert list(batch.events(found[-2])) == found[-1:]
            return found

    events = await asyncio.to_thread(follow)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].type == "batch.done"


# -- on the command line ------------------------------------------------------------------------------------


async def test_the_command_shows_the_events_of_a_batch_and_of_the_project(site: LedgerSite) -> None:
    batch = await site.submit([{}, {}])
    lines = await asyncio.to_thread(site.call, "events", str(batch.id), "--follow")
    assert len(lines) == 1 + 1 + 4 + 1
    name = short_id(batch.id)
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d [\d:]{{8}}\.\d{{3}} \S+  batch\.created      {name}  PENDING", lines[0])
    assert lines[-1].endswith(f"batch.done         {name}  RUNNING -> DONE")
    assert sum(f"{name}/1  PENDING -> RUNNING" in line for line in lines) == 1
    await site.record()
    more = await site.submit([{}])
    await more.wait(PATIENCE_S)
    for about, wanted in (((), [batch, more]), ((str(batch.id),), [batch])):
        shown = await asyncio.to_thread(site.call, "events", *about, "--json", "--type", "batch.done")
        assert [json.loads(line)["data"]["batch_id"] for line in shown] == [str(each.id) for each in wanted]
    behind = json.loads((await asyncio.to_thread(site.call, "events", "--json"))[-2])["id"]
    assert len(await asyncio.to_thread(site.call, "events", "--after", behind)) == 1


async def test_the_events_of_a_job_name_the_worker_of_each_attempt(site: LedgerSite) -> None:
    batch = await site.submit([{}, {}])
    await batch.wait(PATIENCE_S)
    running, done = await asyncio.to_thread(site.call, "events", f"{batch.id}/1")
    assert re.search(r"job\.running +PENDING -> RUNNING  on \S+:\d+:\w+, lane [01]$", running)
    assert re.search(r"job\.done +RUNNING -> DONE$", done)
    by_id = await asyncio.to_thread(site.call, "events", str(job_id(batch.id, 1)))
    assert by_id == [running, done]
    whole = await asyncio.to_thread(site.call, "events", str(batch.id))
    assert len([line for line in whole if f"{short_id(batch.id)}/1" in line]) == 2


# -- over the API -------------------------------------------------------------------------------------------


class EventStream:
    """A stream of server-sent events, read in the background."""

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

    async def disconnect(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@contextlib.asynccontextmanager
async def calling(site: LedgerSite) -> AsyncIterator[httpx.AsyncClient]:
    _, url = await site.api()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=bearer(site.key()), timeout=PATIENCE_S, limits=limits) as http:
        yield http


async def test_streams_of_many_batches_share_one_connection_to_redis(site: LedgerSite) -> None:
    async with calling(site) as http:
        batches = [await site.queue.submit(None, [], device="NULL", open=True) for _ in range(40)]
        streams = [EventStream(http, f"/api/v2/batches/{batch.id}/events/stream") for batch in batches]
        await until(lambda: all(len(stream.types()) == 1 for stream in streams), "the first event of each stream")
        assert await site.readers() == 1
        for batch in batches:
            await batch.add_jobs([{"runs": 1}])
            await batch.close()
        for stream, batch in zip(streams, batches, strict=True):
            await stream.end()
            ids = [frame["id"] for frame in stream.frames if frame.get("event", "end") != "end"]
            assert ids == [event.id for event in await site.events(batch)]
            assert stream.types()[-2:] == ["batch.done", "end"]


async def test_a_stream_survives_a_restart_of_redis(tmp_path: Path, sqlite_template: Path) -> None:
    with RedisServer(tmp_path / "redis", port=0, appendfsync="always") as redis:
        async with open_site(redis.url, tmp_path, sqlite_template) as site, calling(site) as http:
            stream = EventStream(http, "/api/v2/events/stream?type=batch.created")
            await stream.open()
            before = await site.submit([{}])
            await until(lambda: len(stream.types()) == 1, "an event")
            await asyncio.to_thread(redis.restart)
            after = await site.submit([{}])
            await until(lambda: len(stream.types()) == 2, "an event after the restart")
            batch_ids = [json.loads(frame["data"])["data"]["batch_id"] for frame in stream.frames if "data" in frame]
            assert batch_ids == [str(before.id), str(after.id)]
            await stream.disconnect()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_that_stops_ends_its_streams(site: LedgerSite, how: signal.Signals) -> None:
    async with calling(site) as http:
        streams = [EventStream(http, "/api/v2/events/stream?after=now") for _ in range(5)]
        for stream in streams:
            await stream.open()
        api = site.processes[-1]
        api.signal(how)
        for stream in streams:
            await stream.end()
        assert await api.ended() == 0


async def test_the_api_stops_reading_when_its_last_client_disconnects(site: LedgerSite) -> None:
    async with calling(site) as http:
        stream = EventStream(http, "/api/v2/events/stream?after=now")
        await stream.open()
        await stream.disconnect()

        async def has_no_readers() -> bool:
            return await site.readers() == 0

        await until(has_no_readers, "the end of the read")
