"""The specs of devices that clients see: which ones apply, and that no two devices have the same name in them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.support.store_rig import StoreRig

from tweezer.model.errors import Conflict, InvalidInput, NotFound
from tweezer.model.messages import JobSpec
from tweezer.model.specs import DeviceSpecs, read_specs
from tweezer.model.windows import UnavailabilityKind
from tweezer.store.devices import new_window
from tweezer.store.keys import Key
from tweezer.store.measures import REPORT_S, ProcessKind

ABOUT = {"adapter": "null", "exclusive": 0, "checks_sequence": 1, "max_runs": 1000}


def specs(name: str, **limits: int) -> DeviceSpecs:
    return read_specs(json.dumps({"name": name, **limits}))


async def test_a_worker_announces_the_specs_of_its_device(rig: StoreRig) -> None:
    await rig.devices.announce("TWIN", ABOUT, specs("FRESNEL", max_atom_num=25, max_runs=500))
    device = await rig.reader.device("TWIN")
    assert device is not None
    assert (device.specs_name, device.max_atom_num, device.max_runs) == ("FRESNEL", 25, 500)
    assert (device.is_emulator, device.active, device.lanes) == (True, True, 0)
    assert device.created is not None
    assert await rig.reader.device_specs() == {"TWIN": specs("FRESNEL", max_atom_num=25, max_runs=500).text}


async def test_an_announcement_replaces_the_previous_one_and_its_limits(rig: StoreRig) -> None:
    await rig.devices.announce("TWIN", ABOUT, specs("FRESNEL", max_atom_num=25, max_runs=500))
    await rig.devices.announce("TWIN", ABOUT, specs("FRESNEL", max_runs=5000))
    device = await rig.reader.device("TWIN")
    assert device is not None
    assert (device.max_atom_num, device.max_runs) == (None, 1000)  # the adapter's own limit is the lower one


async def test_two_devices_never_have_the_same_name_in_their_specs(rig: StoreRig) -> None:
    await rig.devices.announce("ONE", ABOUT, specs("FRESNEL"))
    for call in (rig.devices.announce("TWO", ABOUT, specs("FRESNEL")), rig.devices.create("TWO", {}, specs("FRESNEL"))):
        with pytest.raises(InvalidInput, match="name 'FRESNEL' is already used by the specs of device ONE") as raised:
            await call
        assert raised.value.field == "specs"
    assert await rig.reader.device("TWO") is None
    await rig.devices.announce("TWO", ABOUT, specs("OTHER"))
    with pytest.raises(InvalidInput, match="ONE"):
        await rig.devices.give_specs("TWO", specs("FRESNEL"))
    assert (await rig.reader.device_specs())["TWO"] == specs("OTHER").text


async def test_the_name_of_a_device_without_workers_becomes_free(rig: StoreRig) -> None:
    """A device can be renamed this way; one whose worker is just starting, or that has work, keeps its name."""
    await rig.announce("OLD", worker="old")
    await rig.devices.announce("OLD", ABOUT, specs("FRESNEL"))
    record = rig.keys(Key.DEVICE, "OLD")
    await rig.redis.hset(record, "specs_at", 1)
    with pytest.raises(InvalidInput, match="OLD"):  # it has a worker
        await rig.devices.announce("NEW", ABOUT, specs("FRESNEL"))
    await rig.tickets.heartbeat("old", "OLD", ttl_s=0, about_device={}, about_worker={})
    await rig.submit(1, device="OLD")
    with pytest.raises(InvalidInput, match="OLD"):  # a job waits for it
        await rig.devices.announce("NEW", ABOUT, specs("FRESNEL"))
    await rig.redis.hset(record, "pending", 0)
    await rig.devices.announce("NEW", ABOUT, specs("FRESNEL"))
    assert await rig.reader.device_specs() == {"NEW": specs("FRESNEL").text}
    await rig.redis.hset(record, "pending", 1)


async def test_specs_of_an_operator_take_precedence_over_those_of_workers(rig: StoreRig) -> None:
    await rig.devices.announce("EMU", ABOUT, specs("EMU", max_atom_num=30))
    await rig.devices.give_specs("EMU", specs("EMU", max_atom_num=10))
    await rig.devices.announce("EMU", ABOUT, specs("EMU", max_atom_num=30))
    device = await rig.reader.device("EMU")
    assert device is not None
    assert device.max_atom_num == 10


async def test_after_an_operators_specs_were_removed_workers_announce_theirs_again(rig: StoreRig) -> None:
    beat: dict[str, Any] = {"ttl_s": 60, "about_device": ABOUT, "about_worker": {"lanes": 1}}
    await rig.devices.announce("EMU", ABOUT, specs("EMU"))
    assert (await rig.tickets.heartbeat("w", "EMU", **beat)).has_specs
    with pytest.raises(Conflict, match="no operator has set the specs of EMU, so there is nothing to remove"):
        await rig.devices.forget_specs("EMU")
    await rig.devices.give_specs("EMU", specs("EMU", max_atom_num=10))
    await rig.devices.forget_specs("EMU")
    assert await rig.reader.device_specs() == {}
    assert not (await rig.tickets.heartbeat("w", "EMU", **beat)).has_specs


async def test_a_device_is_created_once(rig: StoreRig) -> None:
    await rig.devices.create("LATER", {**ABOUT, "inactive": 1}, specs("LATER"))
    with pytest.raises(Conflict, match="device LATER already exists"):
        await rig.devices.create("LATER", ABOUT, specs("LATER"))
    device = await rig.reader.device("LATER")
    assert device is not None
    assert not device.active
    assert "LATER" not in await rig.reader.device_specs()
    await rig.announce("LATER", worker="l")
    assert "LATER" in await rig.reader.device_specs()


async def test_specs_of_an_unknown_device_are_not_found(rig: StoreRig) -> None:
    for call in (rig.devices.give_specs("NONE", specs("NONE")), rig.devices.forget_specs("NONE")):
        with pytest.raises(NotFound, match="there is no device NONE"):
            await call


async def test_a_device_without_workers_and_work_is_forgotten_with_all_its_keys(rig: StoreRig) -> None:
    await rig.announce("OLD", worker="old")
    await rig.devices.announce("OLD", ABOUT, specs("FRESNEL"))
    batch_id = await rig.submit(1, device="OLD")
    await rig.run_all(device="OLD")
    begins = datetime.now(UTC) + timedelta(days=1)
    await rig.devices.plan("OLD", new_window(begins, begins + timedelta(hours=1), "new lens"))
    with pytest.raises(Conflict, match="OLD is served by 1 worker; stop every worker") as raised:
        await rig.devices.forget("OLD")
    assert raised.value.code == "served"
    await rig.redis.delete(rig.keys(Key.WORKERS, "OLD"))
    await rig.devices.forget("OLD")
    assert await rig.reader.device("OLD") is None
    assert "OLD" not in await rig.reader.device_names()
    assert await rig.redis.keys(f"*{rig.keys(Key.DEVICE, 'OLD')}*") == []
    assert (await rig.batch(batch_id)).status.terminal
    with pytest.raises(NotFound):
        await rig.devices.forget("OLD")
    await rig.announce("OLD", worker="new")
    assert (await rig.reader.device("OLD")) is not None


async def test_a_device_with_work_is_not_forgotten(rig: StoreRig) -> None:
    await rig.announce("OLD", worker="old")
    batch_id = await rig.submit(2, device="OLD")
    await rig.redis.delete(rig.keys(Key.WORKERS, "OLD"))
    before = await rig.snapshot(but=[rig.keys(Key.DEVICE, "OLD")])
    with pytest.raises(Conflict, match="2 pending and 0 running jobs") as raised:
        await rig.devices.forget("OLD")
    assert raised.value.code == "busy"
    assert await rig.snapshot(but=[rig.keys(Key.DEVICE, "OLD")]) == before
    await rig.commands.cancel(batch_id, project="a")
    await rig.devices.forget("OLD")


async def test_an_open_batch_of_a_forgotten_device_takes_no_jobs_until_it_is_announced_again(rig: StoreRig) -> None:
    """An open batch without jobs does not keep its device; its later jobs would wait unseen."""
    await rig.announce("OLD", worker="old")
    batch_id = await rig.submit(0, device="OLD", open=True)
    await rig.redis.delete(rig.keys(Key.WORKERS, "OLD"))
    await rig.devices.forget("OLD")
    with pytest.raises(InvalidInput, match="there is no device OLD; `tweezer devices` lists them"):
        await rig.commands.add_jobs(batch_id, [JobSpec(runs=1)], project="a")
    assert await rig.reader.device("OLD") is None
    await rig.announce("OLD", worker="new")
    await rig.commands.add_jobs(batch_id, [JobSpec(runs=1)], project="a")
    await rig.commands.close(batch_id, project="a")
    await rig.run_all(device="OLD")
    assert (await rig.batch(batch_id)).status.terminal


async def test_a_device_without_workers_is_not_reported_as_down(rig: StoreRig) -> None:
    await rig.announce("QPU", worker="w1", exclusive=1)
    await rig.devices.set_condition("QPU", "down", "warming up")
    record = await rig.reader.device("QPU")
    assert record is not None
    hold = record.unavailability(datetime.now(UTC))
    assert (hold and hold.kind) is UnavailabilityKind.DOWN
    await rig.tickets.heartbeat("w1", "QPU", ttl_s=0, about_device={}, about_worker={})
    record = await rig.reader.device("QPU")
    assert record is not None
    hold = record.unavailability(datetime.now(UTC))
    assert (hold and hold.kind) is UnavailabilityKind.UNSERVED


async def test_a_process_is_found_until_it_stops_reporting(rig: StoreRig) -> None:
    assert await rig.store.processes.find(ProcessKind.SCHEDULER) is None
    await rig.store.processes.report(ProcessKind.SCHEDULER, "lab1:812:3fa901")
    assert await rig.store.processes.find(ProcessKind.SCHEDULER) == "lab1:812:3fa901"
    assert await rig.store.processes.find(ProcessKind.API) is None
    assert 0 < await rig.redis.pttl(rig.keys(Key.PROCESS, ProcessKind.SCHEDULER)) <= 3000 * REPORT_S
