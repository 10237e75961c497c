"""The stream of events, the news, and the doorbell."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tweezer.model.errors import FaultKind
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Fault, JobSpec, OutcomeKind
from tweezer.store.keys import Key
from tweezer.store.workers import Grant

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig


async def test_an_entry_holds_all_events_of_one_call(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    await rig.run(await rig.take())
    entries = await rig.store.events.read()
    assert [len(entry.events) for entry in entries] == [1, 2, 2, 2]
    assert [event.sequence for entry in entries for event in entry.events] == list(range(1, 8))
    assert {event.batch_id for entry in entries for event in entry.events} == {batch_id}


async def test_the_first_event_contains_the_number_of_jobs(rig: StoreRig) -> None:
    batch_id = await rig.submit(42, open=True)
    (created,) = await rig.events(batch_id)
    assert (created.type, created.jobs, created.status) == ("batch.created", 42, BatchStatus.PENDING)
    await rig.commands.add_jobs(batch_id, [JobSpec()] * 3, project="a")
    assert len(await rig.events(batch_id)) == 1


async def test_each_attempt_names_its_lane_and_why_it_ended_early(rig: StoreRig) -> None:
    await rig.announce("EMU", lanes=1)
    batch_id = await rig.submit(1)
    grant = await rig.take_as("w:1")
    await rig.settle(grant, {0: rig.outcome(OutcomeKind.RETRY)})
    grant = await rig.take_as("w:2")
    await rig.settle(grant, {0: rig.outcome(OutcomeKind.RETRY, FaultKind.CRASH)})
    grant = await rig.take_as("w:3")
    await rig.lapse(grant)
    found = await rig.tickets.sweep()
    assert [(it.ticket, it.lane) for it in found.reclaimed] == [(grant.ticket, "w:3")]
    grant = await rig.take_as("w:4")
    await rig.tickets.drain(grant.ticket, grant.token)
    grant = await rig.take_as("w:5")
    await rig.release(grant, Fault("transient", "out of order"))
    grant = await rig.take_as("w:6")
    await rig.commands.report(batch_id, 0, project="a", status=JobStatus.PENDING)
    await rig.run(await rig.take_as("w:7"))
    events = [(it.status.value, it.lane, it.why) for it in await rig.events(batch_id) if it.index is not None]
    whys = ["retry", "crash", "lost", "drain", "fail", "report"]
    expected = [pair for lane, why in enumerate(whys, 1) for pair in (("RUNNING", lane, None), ("PENDING", lane, why))]
    assert events == [*expected, ("RUNNING", 7, None), ("DONE", 7, None)]
    assert {it.worker for it in await rig.events(batch_id)} == {None, "w"}


async def test_a_take_returns_the_leases_that_it_reclaims(rig: StoreRig) -> None:
    await rig.submit(1)
    first = await rig.take_as("w:1")
    await rig.lapse(first)
    taken = await rig.tickets.take("EMU", ["w:2"], lease_s=15)
    assert [(it.ticket, it.lane) for it in taken.reclaimed] == [(first.ticket, "w:1")]
    assert [grant.ticket for grant in taken.grants] == [first.ticket]
    assert (await rig.tickets.take("EMU", ["w:2"], lease_s=15)).reclaimed == []


async def test_changes_without_a_lane_name_none(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    await rig.commands.cancel(batch_id, project="a")
    assert {(it.worker, it.lane, it.why) for it in await rig.events(batch_id)} == {(None, None, None)}


@pytest.mark.parametrize("holder", [b"", b"\xff\xfe:1", b"w\x00:1", b"x" * 100_000, b"w:1 lost \x1b[31m"])
async def test_a_holder_of_another_program_does_not_stop_a_reader(rig: StoreRig, holder: bytes) -> None:
    row = {"b": str(new_batch_id()), "s": "1", "t": "1720000000123456", "e": "0RP", "h": holder}
    await rig.redis.xadd(rig.keys(Key.EVENTS), row)
    (entry,) = await rig.store.events.read()
    assert entry.problem is None
    assert len(entry.holder) <= 200
    assert "\0" not in entry.holder
    assert [event.type for event in entry.events] == ["job.pending"]


async def test_an_entry_of_an_older_version_has_no_lane(rig: StoreRig) -> None:
    await rig.redis.xadd(
        rig.keys(Key.EVENTS), {"b": str(new_batch_id()), "s": "1", "t": "1720000000123456", "e": "0PR"}
    )
    (entry,) = await rig.store.events.read()
    assert [(event.worker, event.lane) for event in entry.events] == [(None, None)]


async def test_reading_continues_after_a_position(rig: StoreRig) -> None:
    await rig.submit(2)
    await rig.run(await rig.take())
    entries = await rig.store.events.read()
    paged = []
    position = "0-0"
    while page := await rig.store.events.read(position, most=1):
        paged += page
        position = page[-1].id
    assert paged == entries


async def test_sequence_numbers_count_up_within_each_batch(two_lanes: StoreRig) -> None:
    rig = two_lanes
    batches = [await rig.submit(4, project=project) for project in "ab"]
    while grants := await rig.grants(2):
        for grant in grants:
            await rig.settle(grant, {job.index: OutcomeKind.DONE for job in grant.jobs}, want=0)
    for batch_id in batches:
        events = await rig.events(batch_id)
        assert [event.sequence for event in events] == list(range(1, 1 + 1 + 1 + 8 + 1))
        assert (await rig.batch(batch_id)).sequence_number == len(events)
        assert len({event.id for event in events}) == len(events)


async def test_the_news_of_a_batch_are_its_event_texts(rig: StoreRig) -> None:
    batch_id, other = await rig.submit(1), await rig.submit(1, project="b")
    async with rig.store.news.batch(batch_id) as heard:
        await heard.next(5)
        await rig.commands.cancel(other, project="b")
        grant = await rig.take()
        await rig.settle(grant, {0: OutcomeKind.DONE})
        messages: list[bytes] = []
        while len(messages) < 2:
            messages += await heard.next(5)
    assert messages == [b"PR 0PR", b"0RD RD"]


async def test_a_listener_learns_that_it_may_have_missed_something(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    async with rig.store.news.batch(batch_id) as heard:
        assert await heard.next(5) == []
        assert await heard.next(0.01) == []


async def test_a_listener_that_left_does_not_end_the_listening_of_others(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    async with rig.store.news.batch(batch_id) as staying:
        await staying.next(5)
        async with rig.store.news.batch(batch_id) as leaving:
            await leaving.next(5)
        await staying.next(0.01)
        await rig.commands.cancel_jobs(batch_id, [0], project="a")
        assert await staying.next(5) == [b"0PC"]


@pytest.mark.parametrize("change", ["add_jobs", "close", "cancel", "cancel_jobs"])
async def test_a_change_without_a_transition_is_an_entry_without_an_event_text(rig: StoreRig, change: str) -> None:
    batch_id = await rig.submit(1, open=True)
    await rig.take()
    before = await rig.store.events.read()
    async with rig.store.news.batch(batch_id) as heard:
        await heard.next(5)
        match change:
            case "add_jobs":
                await rig.commands.add_jobs(batch_id, [JobSpec()] * 3, project="a")
            case "close":
                await rig.commands.close(batch_id, project="a")
            case "cancel":
                await rig.commands.cancel(batch_id, project="a")
            case "cancel_jobs":
                await rig.commands.cancel_jobs(batch_id, [0], project="a")
        (entry,) = (await rig.store.events.read())[len(before) :]
        assert (entry.batch_id, entry.first, entry.words, entry.events) == (batch_id, 4, "", [])
        assert (await rig.batch(batch_id)).sequence_number == 3
        assert await heard.next(0.05) == []


async def test_a_call_that_changes_nothing_writes_no_entry(rig: StoreRig) -> None:
    batch_id = await rig.submit(1, open=True)
    await rig.commands.close(batch_id, project="a")
    before = await rig.store.events.read()
    await rig.commands.close(batch_id, project="a")
    await rig.commands.cancel_jobs(batch_id, [7], project="a")
    assert await rig.store.events.read() == before


async def test_trimming_drops_what_is_older_than_the_position(rig: StoreRig) -> None:
    for _ in range(4):
        await rig.submit(0)
    entries = await rig.store.events.read()
    assert await rig.tickets.trim(entries[2].id) == 2
    assert await rig.store.events.read() == entries[2:]


async def test_trimming_a_missing_stream_drops_nothing(rig: StoreRig) -> None:
    assert await rig.tickets.trim("9999999999999-0") == 0


@pytest.mark.parametrize("acknowledged", [0, 1, 2])
async def test_trimming_waits_for_the_oldest_unacknowledged_entry(rig: StoreRig, acknowledged: int) -> None:
    for _ in range(4):
        await rig.submit(0)
    stream = rig.keys(Key.EVENTS)
    entries = await rig.store.events.read()
    await rig.redis.xgroup_create(stream, "couriers", id="0")
    await rig.redis.xreadgroup("couriers", "c", {stream: ">"}, count=2)
    for entry in entries[:acknowledged]:
        await rig.redis.xack(stream, "couriers", entry.id)
    await rig.tickets.trim(entries[3].id)
    kept = [entry.id for entry in await rig.store.events.read()]
    assert kept == [entry.id for entry in entries[min(acknowledged, 1) :]]


async def take(rig: StoreRig, wait_s: float) -> list[Grant]:
    return (await rig.tickets.take("EMU", ["lane"], lease_s=15, wait_s=wait_s)).grants


async def test_the_doorbell_wakes_a_waiting_worker(real_rig: StoreRig) -> None:
    """fakeredis is not tested: there a blocking pop in a pipeline blocks every client."""
    waiting = asyncio.create_task(take(real_rig, 20))
    batch_id = await real_rig.submit(1)
    assert [grant.batch_id for grant in await waiting] == [batch_id]
    assert await real_rig.bell() == 0


async def test_the_wait_for_the_doorbell_has_a_time_limit(real_rig: StoreRig) -> None:
    assert await take(real_rig, 0.01) == []


async def test_a_wait_survives_a_server_that_forgot_the_scripts(real_rig: StoreRig) -> None:
    await real_rig.redis.script_flush()
    batch_id = await real_rig.submit(1)
    await real_rig.redis.script_flush()
    assert [grant.batch_id for grant in await take(real_rig, 20)] == [batch_id]


async def test_a_cancelled_wait_rings_the_bell_again(real_rig: StoreRig) -> None:
    waiting = asyncio.create_task(take(real_rig, 20))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await real_rig.bell() == 1
    batch_id = await real_rig.submit(1)
    assert [grant.batch_id for grant in await take(real_rig, 20)] == [batch_id]


async def test_every_transition_replayed_from_the_stream_gives_the_statuses(two_lanes: StoreRig) -> None:
    rig = two_lanes
    batch_id = await rig.submit(12)
    first, second = await rig.grants(2)
    await rig.settle(first, {0: OutcomeKind.DONE}, want=3)
    await rig.settle(second, {1: rig.outcome(OutcomeKind.RETRY)})
    await rig.tickets.drain(first.ticket, first.token)
    await rig.commands.cancel(batch_id, project="a")
    replayed: dict[int | None, JobStatus | BatchStatus] = dict.fromkeys(range(12), JobStatus.PENDING)
    for event in await rig.events(batch_id):
        assert replayed.get(event.index) == event.previous
        replayed[event.index] = event.status
    assert replayed.pop(None) is (await rig.batch(batch_id)).status
    assert list(replayed.values()) == await rig.statuses(batch_id)
