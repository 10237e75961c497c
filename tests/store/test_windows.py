"""Planned maintenance: no job begins during it, or before it if the job would not end in time."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tweezer.model.errors import Conflict, InvalidInput, NotFound
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import JobSpec, Limits, OutcomeKind
from tweezer.model.windows import WINDOWS_MAX, UnavailabilityKind, Window
from tweezer.store.devices import new_window
from tweezer.store.keys import Key
from tweezer.store.workers import NextStep

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

    from tweezer.store.records import DeviceRecord

DEVICE, QPU = "EMU", "QPU"
DONE, PENDING = JobStatus.DONE, JobStatus.PENDING


def after(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def plan(
    rig: StoreRig, begins_s: float, ends_s: float, reason: str = "new lens", *, device: str = DEVICE
) -> Window:
    window = new_window(after(begins_s), after(ends_s), reason)
    await rig.devices.plan(device, window)
    return window


async def pass_time(rig: StoreRig, seconds: float, *, device: str = DEVICE) -> None:
    """Let this much time pass for the plan of a device, by moving all its windows."""
    redis, windows, record = rig.redis, rig.keys(Key.WINDOWS, device), rig.keys(Key.DEVICE, device)

    def moved(value: bytes) -> str:
        begins, ends, rest = value.decode().split(" ", 2)
        return f"{int(begins) - round(seconds * 1000)} {int(ends) - round(seconds * 1000)} {rest}"

    for identity, value in (await redis.hgetall(windows)).items():
        await redis.hset(windows, identity, moved(value))
    for field in ("window", "window_told"):
        if (value := await redis.hget(record, field)) is not None:
            await redis.hset(record, field, moved(value))
    if (until := await redis.hget(record, "paused_until")) is not None:
        await redis.hset(record, "paused_until", int(until) - round(seconds * 1000))


async def record_of(rig: StoreRig, device: str = DEVICE) -> DeviceRecord:
    found = await rig.reader.device(device)
    assert found is not None
    return found


async def notices(rig: StoreRig) -> list[tuple[str, dict[str, Any]]]:
    entries = await rig.store.events.read(most=1000)
    return [(it.notice.type, json.loads(it.notice.data)) for it in entries if it.notice]


async def learn(rig: StoreRig, job_s: float, *, device: str = DEVICE) -> None:
    """Let recent jobs of the device take this long."""
    await rig.redis.hset(rig.keys(Key.DEVICE, device), "job_ms", round(job_s * 1000))


# --- a pause with an end


async def test_a_pause_ends_at_its_time(rig: StoreRig) -> None:
    until = after(3600)
    await rig.devices.pause(DEVICE, "coffee", until=until)
    batch_id = await rig.submit(1)
    record = await record_of(rig)
    assert record.paused_until is not None
    assert abs((record.paused_until - until).total_seconds()) < 0.002
    await rig.tickets.sweep()
    assert await rig.grants() == []
    await pass_time(rig, 3600)
    await rig.silence()
    await rig.tickets.sweep()
    assert await rig.bell() == 1
    assert (await rig.take()).batch_id == batch_id
    record = await record_of(rig)
    assert (record.paused, record.paused_until, record.unavailability(after(0))) == (None, None, None)
    told = await notices(rig)
    assert [type_ for type_, _ in told] == ["device.paused", "device.up"]
    assert (told[0][1]["reason"], told[0][1]["until"] is not None) == ("coffee", True)
    assert told[1][1] == {"device": DEVICE, "status": "up", "reason": None, "until": None}


async def test_pausing_again_changes_the_reason_and_the_end_and_has_an_event_if_they_differ(rig: StoreRig) -> None:
    until = after(3600)
    for _ in range(2):
        await rig.devices.pause(DEVICE, "coffee", until=until)
    await rig.devices.pause(DEVICE, "lunch", until=until)
    await rig.devices.pause(DEVICE, "lunch")
    record = await record_of(rig)
    assert (record.paused, record.paused_until) == ("lunch", None)
    told = [(data["reason"], data["until"] is not None) for _, data in await notices(rig)]
    assert told == [("coffee", True), ("lunch", True), ("lunch", False)]


async def test_a_pause_ends_in_the_future(rig: StoreRig) -> None:
    before = await rig.snapshot()
    for until in (after(-1), datetime(2099, 1, 1)):  # noqa: DTZ001  # the second has no time zone
        with pytest.raises(InvalidInput) as refusal:
            await rig.devices.pause(DEVICE, "coffee", until=until)
        assert refusal.value.field == "until"
    assert await rig.snapshot() == before


# --- windows


async def test_windows_are_kept_in_order_until_they_are_over(rig: StoreRig) -> None:
    late, soon = await plan(rig, 7200, 7300, "late"), await plan(rig, 60, 120, "soon")
    found = await rig.reader.windows(DEVICE)
    assert [(it.id, it.reason) for it in found] == [(soon.id, "soon"), (late.id, "late")]
    shown = (await record_of(rig)).window
    assert shown is not None
    assert shown.id == soon.id
    await pass_time(rig, 200)
    await rig.tickets.sweep()
    assert [it.id for it in await rig.reader.windows(DEVICE)] == [late.id]
    await rig.devices.drop(DEVICE, late.id)
    assert await rig.reader.windows(DEVICE) == []
    assert (await record_of(rig)).window is None
    assert await notices(rig) == []  # the first one had no listener


async def test_no_job_begins_during_a_window_and_its_begin_and_end_have_events(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    window = await plan(rig, 60, 120)
    await rig.tickets.sweep()
    assert await notices(rig) == []
    await pass_time(rig, 61)
    assert await rig.grants() == []  # even before a sweep has seen it
    await rig.tickets.sweep()
    await rig.tickets.sweep()
    hold = (await record_of(rig)).unavailability(after(0))
    assert hold is not None
    assert (hold.kind, hold.reason, hold.until is not None) == (UnavailabilityKind.MAINTENANCE, "new lens", True)
    await pass_time(rig, 60)
    await rig.silence()
    await rig.tickets.sweep()
    await rig.tickets.sweep()
    assert await rig.bell() == 1
    assert (await rig.take()).batch_id == batch_id
    told = await notices(rig)
    assert [type_ for type_, _ in told] == ["device.paused", "device.up"]
    about = told[0][1]
    assert (about["status"], about["reason"]) == ("maintenance", "new lens")
    assert datetime.fromisoformat(about["until"]) == window.ends


async def test_running_jobs_finish_when_a_window_begins(rig: StoreRig) -> None:
    batch_id = await rig.submit(3)
    grant = await rig.take()
    await plan(rig, 60, 120)
    await pass_time(rig, 61)
    assert await rig.renew(grant) == set()
    turn = await rig.settle(grant, {0: OutcomeKind.DONE}, want=2)
    assert (turn.next, turn.refused) == (NextStep.YIELD, 0)
    assert await rig.statuses(batch_id) == [DONE, PENDING, PENDING]


async def test_a_current_window_has_an_event_at_once_and_ends_when_it_is_removed(rig: StoreRig) -> None:
    window = await plan(rig, -1, 3600)
    await rig.devices.drop(DEVICE, window.id)
    assert [type_ for type_, _ in await notices(rig)] == ["device.paused", "device.up"]
    with pytest.raises(NotFound, match=window.id):
        await rig.devices.drop(DEVICE, window.id)


async def test_adjacent_windows_have_no_gap(rig: StoreRig) -> None:
    await plan(rig, -1, 60, "lens")
    (first,) = await rig.reader.windows(DEVICE)
    await rig.devices.plan(DEVICE, new_window(first.ends, after(120), "mirror"))
    await pass_time(rig, 61)
    await rig.tickets.sweep()
    assert [(type_, data["reason"]) for type_, data in await notices(rig)] == [
        ("device.paused", "lens"),
        ("device.paused", "mirror"),
    ]


@pytest.mark.parametrize("other", ["pause", "down"])
async def test_a_device_is_up_again_when_every_reason_to_pause_has_ended(rig: StoreRig, other: str) -> None:
    if other == "pause":
        await rig.devices.pause(DEVICE, "coffee")
    else:
        await rig.devices.set_condition(DEVICE, "down", "no light")
    window = await plan(rig, -1, 3600)
    await rig.devices.drop(DEVICE, window.id)
    window = await plan(rig, -1, 3600)
    before = [type_ for type_, _ in await notices(rig)]
    assert "device.up" not in before
    if other == "pause":
        await rig.devices.resume(DEVICE)
    else:
        await rig.devices.set_condition(DEVICE, "up", "")
    assert [type_ for type_, _ in await notices(rig)] == before
    await rig.devices.drop(DEVICE, window.id)
    assert [type_ for type_, _ in await notices(rig)] == [*before, "device.up"]


async def test_impossible_windows_are_refused(rig: StoreRig) -> None:
    window = await plan(rig, 60, 120)
    before = await rig.snapshot()
    await rig.devices.plan(DEVICE, window)  # once more, because the reply was lost
    for begins_s, ends_s in ((0, 61), (119, 200), (70, 80), (50, 130)):
        with pytest.raises(Conflict, match="overlaps"):
            await plan(rig, begins_s, ends_s)
    for begins_s, ends_s, reason, field in (
        (-20, -10, "why", "ends_at"),
        (300, 200, "why", "ends_at"),
        (300, 400, " ", "reason"),
    ):
        with pytest.raises(InvalidInput) as refusal:
            await plan(rig, begins_s, ends_s, reason)
        assert refusal.value.field == field
    with pytest.raises(InvalidInput) as refusal:
        new_window(datetime(2099, 1, 1), after(10), "why")  # noqa: DTZ001
    assert refusal.value.field == "begins_at"
    with pytest.raises(NotFound, match="NO_SUCH"):
        await plan(rig, 60, 120, device="NO_SUCH")
    with pytest.raises(NotFound, match="NO_SUCH"):
        await rig.devices.drop("NO_SUCH", window.id)
    assert await rig.snapshot() == before


async def test_the_number_of_windows_is_limited(rig: StoreRig) -> None:
    for number in range(WINDOWS_MAX):
        await plan(rig, 100 + 10 * number, 109 + 10 * number)
    with pytest.raises(Conflict, match=str(WINDOWS_MAX)):
        await plan(rig, 10_000, 10_010)


# --- jobs that would not end in time


async def test_settled_jobs_give_the_mean_duration_of_jobs(rig: StoreRig) -> None:
    batch_id = await rig.submit(2)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE})  # of 2 s
    assert ((await record_of(rig)).job_s, (await rig.batch(batch_id)).job_s) == (2.0, 2.0)
    await rig.settle(grant, {1: OutcomeKind.ERROR})
    assert ((await record_of(rig)).job_s, (await rig.batch(batch_id)).job_s) == (2.0, 2.0)
    await learn(rig, 12.0)
    await rig.submit(5)
    await rig.run_all()
    job_s = (await record_of(rig)).job_s
    assert job_s is not None
    assert 6.0 < job_s < 8.0  # its weight is halved after five others


async def test_a_batch_that_would_not_end_before_a_window_waits_and_others_run(rig: StoreRig) -> None:
    await learn(rig, 10.0)
    long, short = await rig.submit(10), await rig.submit(5)
    await plan(rig, 60, 120)
    assert (await rig.take()).batch_id == short
    await rig.silence()
    assert await rig.grants() == []
    assert await rig.bell() == 0  # or workers would call take again and again
    window = (await record_of(rig)).waits_for_window(await rig.batch(long), after(0))
    assert window is not None
    assert (await record_of(rig)).waits_for_window(await rig.batch(short), after(0)) is None
    await pass_time(rig, 121)
    await rig.tickets.sweep()
    assert (await rig.take()).batch_id == long


async def test_many_batches_that_wait_do_not_hide_one_that_ends_in_time(rig: StoreRig) -> None:
    await learn(rig, 10.0)
    for _ in range(150):
        await rig.submit(10)
    short = await rig.submit(1)
    await plan(rig, 60, 120)
    assert (await rig.take()).batch_id == short


async def test_lanes_share_the_jobs_of_a_batch(rig: StoreRig) -> None:
    await learn(rig, 10.0)
    batch_id = await rig.submit(10)
    await plan(rig, 60, 120)
    assert await rig.grants() == []
    await rig.announce(lanes=2)
    assert {grant.batch_id for grant in await rig.grants()} == {batch_id}


async def test_no_job_is_expected_to_take_longer_than_it_may(rig: StoreRig) -> None:
    await learn(rig, 100.0)
    await plan(rig, 60, 120)
    await rig.submit(1)
    assert await rig.grants() == []
    quick = await rig.submit(5, limits=Limits(job_timeout_s=10.0))
    assert (await rig.take()).batch_id == quick


async def test_no_batch_waits_for_a_window_while_the_duration_of_jobs_is_unknown(rig: StoreRig) -> None:
    batch_id = await rig.submit(100)
    await plan(rig, 60, 120)
    assert (await rig.take()).batch_id == batch_id


async def test_a_batch_that_has_begun_continues_by_how_long_its_jobs_take(rig: StoreRig) -> None:
    await learn(rig, 1000.0)
    batch_id = await rig.submit(3)
    grant = await rig.take()
    await plan(rig, 60, 120)
    turn = await rig.settle(grant, {0: OutcomeKind.DONE})  # it took 2 s; other batches do not matter
    assert (turn.next, [job.index for job in turn.jobs]) == (NextStep.JOBS, [1])
    await pass_time(rig, 59)
    turn = await rig.settle(grant, {1: OutcomeKind.DONE})
    assert (turn.next, turn.jobs) == (NextStep.YIELD, [])
    assert await rig.statuses(batch_id) == [DONE, DONE, PENDING]
    assert await rig.grants() == []


# --- a machine


@pytest.fixture
async def machine(rig: StoreRig) -> StoreRig:
    """A rig with a machine that one batch at a time has for itself."""
    await rig.announce(QPU, worker="q", exclusive=1, reattaches=1, is_emulator=0)
    return rig


async def test_an_open_batch_gives_up_the_machine_when_a_window_begins(machine: StoreRig) -> None:
    rig = machine
    batch_id = await rig.submit(1, device=QPU, open=True)
    grant = await rig.take(device=QPU)
    await plan(rig, 60, 120, device=QPU)
    assert (await rig.settle(grant, {0: OutcomeKind.DONE})).next is NextStep.RESERVED
    await pass_time(rig, 61, device=QPU)
    assert (await rig.settle(grant, {})).next is NextStep.RETIRED
    assert await rig.members(Key.LEASES, QPU) == set()
    assert (await rig.batch(batch_id)).open


async def test_a_machine_that_is_reserved_begins_no_job_that_would_not_end_in_time(machine: StoreRig) -> None:
    rig = machine
    batch_id = await rig.submit(1, device=QPU, open=True)
    short = await rig.submit(1, device=QPU, limits=Limits(job_timeout_s=0.5))
    grant = await rig.take(device=QPU)
    assert grant.batch_id == batch_id
    await plan(rig, 1.5, 120, device=QPU)
    assert (await rig.settle(grant, {0: OutcomeKind.DONE})).next is NextStep.RESERVED
    await rig.commands.add_jobs(batch_id, [JobSpec(runs=10)], project="a")
    assert (await rig.settle(grant, {})).next is NextStep.YIELD
    assert (await rig.take(device=QPU)).batch_id == short


@pytest.mark.parametrize("held", ["pause", "down", "window"])
async def test_a_job_on_a_machine_is_followed_while_the_device_is_paused(machine: StoreRig, held: str) -> None:
    rig = machine
    batch_id = await rig.submit(2, device=QPU)
    other = await rig.submit(1, device=QPU)
    grant = await rig.take(device=QPU)
    await rig.store.scripts.call("intend", ticket=str(grant.ticket), token=grant.token, index=0, name="try", sent="1")
    match held:
        case "pause":
            await rig.devices.pause(QPU, "coffee")
        case "down":
            await rig.devices.set_condition(QPU, "down", "no light")
        case "window":
            await plan(rig, -1, 3600, device=QPU)
    await rig.tickets.drain(grant.ticket, grant.token)
    taken = await rig.tickets.take(QPU, ["lane"], lease_s=15)
    assert [[job.index for job in each.jobs] for each in taken.grants] == [[0]]
    turn = await rig.settle(taken.grants[0], {0: OutcomeKind.DONE})
    assert (turn.next, await rig.statuses(batch_id)) == (NextStep.YIELD, [DONE, PENDING])
    taken = await rig.tickets.take(QPU, ["lane"], lease_s=15)
    assert (taken.grants, taken.paused) == ([], True)
    assert await rig.statuses(other) == [PENDING]


async def test_the_time_since_which_the_status_of_a_machine_is_unknown_is_shown(machine: StoreRig) -> None:
    rig = machine
    for reason in ("no answer", "no answer, again"):
        await rig.devices.set_condition(QPU, "unknown", reason)
    record = await record_of(rig, QPU)
    assert (record.unsure, record.unavailability(after(0))) == ("no answer, again", None)
    assert record.unsure_since is not None
    await rig.devices.set_condition(QPU, "up", "")
    record = await record_of(rig, QPU)
    assert (record.unsure, record.unsure_since) == (None, None)
