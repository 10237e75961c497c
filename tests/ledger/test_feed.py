"""The feed of events: each once and in order, whether they are in Redis or in the ledger."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update
from tests.support.ledger_rig import NAMESPACE, LedgerRig

from tweezer.ledger.positions import Cursor, read_cursor
from tweezer.ledger.queries import feed as feed_module
from tweezer.ledger.queries.feed import EventPage, Feed, Selection
from tweezer.ledger.retention import delete_batches
from tweezer.ledger.schema import recorder
from tweezer.model.errors import InvalidInput
from tweezer.model.events import Notice
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import OutcomeKind
from tweezer.model.rules import Rules
from tweezer.model.webhooks import EventType
from tweezer.store.keys import Key

ALL = Selection()
TIME_US = 1_700_000_000_000_017


class Reader:
    """A reader of a selection, page by page from a position on, that keeps the ids it got."""

    def __init__(self, feed: Feed, selection: Selection = ALL, cursor: Cursor | None = None) -> None:
        self._feed = feed
        self._selection = selection
        self.cursor = cursor or Cursor()
        self.ids: list[str] = []

    async def step(self, limit: int, **options: Any) -> EventPage:
        page = await self._feed.read(self._selection, self.cursor, limit=limit, **options)
        assert len(page.events) <= limit
        self.ids += [event.id for event in page.events]
        self.cursor = read_cursor(str(page.next))  # type: ignore[assignment]
        return page

    async def read_all(self, limit: int = 1000, **options: Any) -> list[str]:
        while (await self.step(limit, **options)).more:
            pass
        return self.ids


@pytest.fixture
def feed(bench: LedgerRig) -> Feed:
    return Feed(bench.rig.store, bench.database, namespace=NAMESPACE)


class Course:
    """The history of a bench: moves its events, and keeps all ids in order."""

    def __init__(self, bench: LedgerRig) -> None:
        self._bench = bench
        self._all: dict[str, None] = {}

    async def ids(self) -> list[str]:
        """Return the ids of all events but the internal ones."""
        for entry in await self._bench.rig.store.events.read(most=100_000):
            if entry.is_restored:
                continue
            if entry.notice is not None:
                self._all[entry.notice.id] = None
            self._all |= {event.id: None for event in entry.events if event.type in list(EventType)}
        return list(self._all)

    async def record(self) -> None:
        await self._bench.record()

    async def trim(self) -> None:
        await self.ids()
        await self._bench.rig.tickets.trim(self._bench.recorder.position)


@pytest.fixture
def course(bench: LedgerRig) -> Course:
    return Course(bench)


async def run_a_batch(bench: LedgerRig, jobs: int = 3, project: str = "a") -> UUID:
    batch_id = await bench.rig.submit(jobs, project=project)
    await bench.rig.run_all()
    return batch_id


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
async def test_a_page_continues_after_the_previous_one(
    bench: LedgerRig, feed: Feed, course: Course, limit: int
) -> None:
    for _ in range(3):
        await run_a_batch(bench)
    await course.record()
    await course.trim()
    await run_a_batch(bench)  # not recorded yet
    wanted = await course.ids()
    assert await Reader(feed).read_all(limit) == wanted
    assert len(wanted) == 4 * 9


@pytest.mark.parametrize("seed", range(8))
async def test_every_event_is_returned_once_and_in_order_despite_recorder_and_trim(
    bench: LedgerRig, feed: Feed, course: Course, seed: int
) -> None:
    chance = random.Random(seed)
    rig = bench.rig
    batches: list[UUID] = []
    readers = {"abc": Reader(feed)} | {some: Reader(feed, Selection(frozenset(some))) for some in ("a", "ab")}
    interrupt(bench, course, chance)
    for _ in range(60):
        match chance.choice(["submit", "work", "work", "cancel", "record", "trim", "read", "read", "read", "read"]):
            case "submit":
                batches.append(await rig.submit(chance.randint(1, 9), project=chance.choice("abc")))
            case "work":
                for grant in await rig.grants():
                    kind = chance.choice([OutcomeKind.DONE, OutcomeKind.ERROR, OutcomeKind.RETRY])
                    await rig.settle(grant, {job.index: kind for job in grant.jobs}, want=chance.randint(0, 5))
            case "cancel":
                for batch_id in chance.sample(batches, min(len(batches), 1)):
                    if not (await rig.batch(batch_id)).status.terminal:
                        await rig.commands.cancel(batch_id, project=None)
            case "record":
                await course.record()
            case "trim":
                await course.trim()
            case _:
                for reader in readers.values():
                    await reader.step(chance.randint(1, 12))
    wanted = await course.ids()
    owners = {str(batch_id): (await rig.batch(batch_id)).project for batch_id in batches}
    for projects, reader in readers.items():
        assert await reader.read_all() == [it for it in wanted if owners[it.split(":")[0]] in projects]
    for identity, project in owners.items():
        own = Reader(feed, Selection(frozenset({project}), UUID(identity)))
        assert await own.read_all(3) == [it for it in wanted if it.startswith(identity)]


def interrupt(bench: LedgerRig, course: Course, chance: random.Random) -> None:
    """Let the recorder run now and then between a page's reads of the ledger and of the stream."""
    stream = bench.rig.store.events
    read_on = stream.read_on

    async def read_late(after: str, *, most: int) -> Any:
        if chance.random() < 0.4:
            await course.record()
            await course.trim()
        return await read_on(after, most=most)

    stream.read_on = read_late  # type: ignore[method-assign]


async def test_rows_that_redis_lost_are_returned_after_the_recorder_went_back(
    bench: LedgerRig, feed: Feed, course: Course
) -> None:
    first = await run_a_batch(bench)
    await course.record()
    behind = Reader(feed)
    await behind.step(2)
    left = await bench.rig.store.events.last()
    second = await run_a_batch(bench)
    wanted = await course.ids()
    await course.record()
    lost = await bench.rig.store.events.read(left)
    await bench.rig.redis.xdel(bench.rig.keys(Key.EVENTS), *(entry.id for entry in lost))
    with bench.database.write() as connection:
        connection.execute(update(recorder).values(position=left))
    await bench.rig.store.events.put_back(lost)  # for the couriers
    third = await bench.rig.submit(1)
    wanted += [it for it in await course.ids() if it.startswith(str(third))]
    assert await behind.read_all() == wanted
    assert {UUID(it.split(":")[0]) for it in wanted} == {first, second, third}


async def test_a_reader_continues_after_the_last_event_it_has_seen(
    bench: LedgerRig, feed: Feed, course: Course
) -> None:
    await run_a_batch(bench, 4)
    await bench.rig.commands.cancel(await bench.rig.submit(50), project=None)  # an entry of many events
    await course.record()
    await course.trim()
    await run_a_batch(bench, 2)
    wanted = await course.ids()
    for at, event_id in enumerate(wanted):
        cursor = await feed.cursor(event_id, ALL)
        assert await Reader(feed, cursor=cursor).read_all() == wanted[at + 1 :]


async def test_reading_continues_at_the_time_of_an_event_whose_batch_was_deleted(
    bench: LedgerRig, feed: Feed, course: Course
) -> None:
    kept = await run_a_batch(bench)
    gone = await run_a_batch(bench)
    last = (await course.ids())[-1]
    await course.record()
    await course.trim()
    assert await delete_batches(bench.rig.store, bench.database, {gone: 9}) == [gone]
    later = await run_a_batch(bench)
    ids = await Reader(feed, cursor=await feed.cursor(last, ALL)).read_all()
    assert [it for it in await course.ids() if it.startswith(str(later))] == ids[-9:]
    assert {it.split(":")[0] for it in ids} <= {str(kept), str(later)}


async def test_the_position_of_a_foreign_event_is_not_revealed(bench: LedgerRig, feed: Feed, course: Course) -> None:
    await run_a_batch(bench, project="b")
    foreign = (await course.ids())[3]
    unknown = f"{new_batch_id()}:4:{foreign.split(':')[2]}"
    of_a = Selection(frozenset("a"))
    assert await feed.cursor(foreign, of_a) == await feed.cursor(unknown, of_a)
    assert await feed.cursor(foreign, of_a) != await feed.cursor(foreign, Selection(frozenset("b")))


async def test_now_is_after_every_event(bench: LedgerRig, feed: Feed, course: Course) -> None:
    for recorded in (False, True):
        await run_a_batch(bench)
        if recorded:
            await course.record()
            await bench.rig.redis.delete(bench.rig.keys(Key.EVENTS))
        before = await course.ids()
        reader = Reader(feed, cursor=await feed.cursor("now", ALL))
        assert await reader.read_all() == []
        await run_a_batch(bench)
        assert await reader.read_all() == (await course.ids())[len(before) :]


@pytest.mark.parametrize(
    "after",
    ["", "x", "-1-0", "99999999999999-0", "1-9999999", f"{1 << 43}-0", "1-1.x", f"{UUID(int=1)}:1:{1 << 60}", "a:b"],
)
async def test_an_invalid_position_is_refused_by_name(feed: Feed, after: str) -> None:
    with pytest.raises(InvalidInput, match="after: must be the id of an event, the `next` of a previous response"):
        await feed.cursor(after, ALL)


async def test_types_are_filtered_and_the_position_moves_on(bench: LedgerRig, feed: Feed) -> None:
    batch_id = await run_a_batch(bench, 5)
    for recorded in (False, True):
        if recorded:
            await bench.record()
        reader = Reader(feed, Selection(frozenset("a"), batch_id))
        page = await reader.step(1000, types=["job.done"])
        assert [event.type for event in page.events] == ["job.done"] * 5
        assert page.ended, "its end was not reported"
        assert not (await reader.step(1000)).events


@pytest.mark.parametrize("is_recorded", [False, True])
async def test_events_of_jobs_name_the_lane_that_ran_them(bench: LedgerRig, feed: Feed, is_recorded: bool) -> None:
    await bench.rig.submit(1)
    await bench.rig.run(await bench.rig.take_as("lab1:812:3fa901:2"))
    if is_recorded:
        await bench.record()
    page = await feed.read(ALL, Cursor())
    held = {event.type: (event.data.get("worker"), event.data.get("lane")) for event in page.events}
    assert held["job.running"] == held["job.done"] == ("lab1:812:3fa901", 2)
    assert held["batch.created"] == held["batch.done"] == (None, None)


async def test_internal_events_are_not_returned(bench: LedgerRig, feed: Feed) -> None:
    await bench.rig.submit(1)
    grant = await bench.rig.take()
    await bench.rig.settle(grant, {0: OutcomeKind.RETRY}, want=0)
    page = await Reader(feed).step(10)
    assert [event.type for event in page.events][:3] == ["batch.created", "batch.running", "job.running"]
    assert "job.pending" not in [event.type for event in page.events]


async def test_an_entry_with_many_events_is_returned_in_pages(bench: LedgerRig, feed: Feed, course: Course) -> None:
    batch_id = await bench.rig.submit(2500)
    await bench.rig.commands.cancel(batch_id, project=None)
    wanted = await course.ids()
    reader = Reader(feed)
    pages = [await reader.step(1000) for _ in range(3)]
    assert [len(page.events) for page in pages] == [1000, 1000, 502]
    assert [page.more for page in pages] == [True, True, False]
    assert reader.ids == wanted


async def test_the_number_of_rows_scanned_for_a_page_is_limited(
    bench: LedgerRig, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tweezer.ledger.queries.feed.SCANNED_MAX", 10)
    monkeypatch.setattr("tweezer.ledger.queries.feed._STEP", 4)
    for _ in range(6):
        await run_a_batch(bench)
    last = await bench.rig.submit(1, project="b")
    await bench.record()
    await bench.rig.run_all()
    reader = Reader(feed)
    pages = [await reader.step(10, types=["batch.error"])]
    while pages[-1].more:
        pages.append(await reader.step(10, types=["batch.error"]))
    assert len(pages) > 3
    assert reader.ids == []
    assert (await Reader(feed, Selection(frozenset("b"), last)).read_all())[0].startswith(f"{last}:1:")


@pytest.mark.parametrize("recorded", [False, True])
async def test_one_type_is_found_as_among_all(
    bench: LedgerRig, feed: Feed, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    """The database filters by itself, in windows of any size, for all projects or some."""
    monkeypatch.setattr("tweezer.ledger.queries.feed._STEP", 4)
    for project in ("a", "b", "a"):
        await run_a_batch(bench, 3, project=project)
    await bench.rig.submit(25, project="b")
    held = await bench.rig.submit(1, project="a")
    await bench.rig.commands.pause(held, project="a")
    await bench.rig.commands.resume(held, project="a")
    await bench.rig.commands.cancel(held, project="a")
    start = datetime(2020, 1, 1, tzinfo=UTC)
    await bench.rig.submit(1, project="a", rules=Rules(schedule_threshold_s=1), not_before=start)
    await bench.rig.swept()
    for number, whose in enumerate((None, "a", "b")):
        await bench.rig.store.events.tell(
            Notice(f"d{number}:{TIME_US}", EventType.DEVICE_PAUSED, whose, TIME_US, '{"device": "EMU"}')
        )
    if recorded:
        await bench.record()
        await bench.rig.redis.delete(bench.rig.keys(Key.EVENTS))
    for selection in (ALL, Selection(frozenset("a")), Selection(frozenset("ab")), Selection(frozenset("a"), held)):
        events = []
        reader = Reader(feed, selection)
        while (page := await reader.step(1000)).more or page.events:
            events += page.events
        seen = {event.type for event in events}
        assert (
            selection.batch_id or {"job.done", "batch.created", "device.paused", "batch.resumed", "batch.late"} <= seen
        )
        for scanned, merged in ((3, 50), (20_000, 50), (3, 1)):
            monkeypatch.setattr("tweezer.ledger.queries.feed.SCANNED_MAX", scanned)
            monkeypatch.setattr("tweezer.ledger.queries.feed._MERGED_MAX", merged)
            for kind in EventType:
                wanted = [event.id for event in events if event.type == kind]
                assert await Reader(feed, selection).read_all(types=[kind]) == wanted, (kind, selection)


async def test_rows_of_other_types_stay_in_the_database(
    bench: LedgerRig, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(10):
        await run_a_batch(bench, 3)
    await bench.record()
    read = 0
    add = feed_module._PageBuilder.add

    def counting(teller: Any, item: Any, skipped: int) -> int | None:
        nonlocal read
        read += 1
        return add(teller, item, skipped)

    monkeypatch.setattr(feed_module._PageBuilder, "add", counting)
    assert await Reader(feed, Selection(frozenset("a"))).read_all(types=["batch.error"]) == []
    assert await Reader(feed, Selection(frozenset("a"))).read_all(types=["endpoint.disabled"]) == []
    assert read == 0
    assert len(await Reader(feed, Selection(frozenset("a"))).read_all(types=["batch.done"])) == 10
    assert read == 10


async def test_notices_are_among_the_events_of_their_projects(bench: LedgerRig, feed: Feed, course: Course) -> None:
    for recorded in (True, False):
        for name, project in (("d", None), ("a", "a"), ("b", "b")):
            notice = Notice(
                f"{name}{recorded:d}:{TIME_US}", EventType.DEVICE_PAUSED, project, TIME_US, '{"device": "EMU"}'
            )
            await bench.rig.store.events.tell(notice)
        if recorded:
            await bench.record()
            await bench.rig.redis.delete(bench.rig.keys(Key.EVENTS))
    page = await Reader(feed).step(10)
    assert [event.id for event in page.events] == [
        f"d1:{TIME_US}",
        f"a1:{TIME_US}",
        f"b1:{TIME_US}",
        f"d0:{TIME_US}",
        f"a0:{TIME_US}",
        f"b0:{TIME_US}",
    ]
    assert page.events[0].type == "device.paused"
    assert page.events[0].data == {"device": "EMU"}
    assert await Reader(feed, Selection(frozenset("a"))).read_all() == [
        f"d1:{TIME_US}",
        f"a1:{TIME_US}",
        f"d0:{TIME_US}",
        f"a0:{TIME_US}",
    ]
    assert await Reader(feed, cursor=await feed.cursor(f"b1:{TIME_US}", ALL)).read_all() == [
        f"d0:{TIME_US}",
        f"a0:{TIME_US}",
        f"b0:{TIME_US}",
    ]
    assert await Reader(feed, Selection(frozenset("a"), new_batch_id())).read_all() == []
