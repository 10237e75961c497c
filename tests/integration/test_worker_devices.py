"""Devices of an operator: real workers serve them and announce their specs; invalid specs are refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pulser.devices import AnalogDevice
from tests.support.processes import Site
from tests.support.waiting import until

import tweezer
from tweezer.store.keys import Key
from tweezer.store.producers import Submission

TWIN, OTHER = "TWIN", "OTHER"


@pytest.fixture
async def site(real_redis_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    (tmp_path / "twin.json").write_text(AnalogDevice.to_abstract_repr())
    (tmp_path / "bad.json").write_text(json.dumps({"name": "bad"}))
    twin = {"adapter": "null", "options": {"checks_sequence": True}, "specs": str(tmp_path / "twin.json")}
    bad = {"adapter": "null", "specs": str(tmp_path / "bad.json")}
    devices = {TWIN: twin, OTHER: twin, "BAD": bad, "PLAIN": {"adapter": "null"}}
    async with Site(real_redis_url, tmp_path, devices=json.dumps(devices)) as site:
        yield site


def sequence(device: str = "AnalogDevice", *, atoms: int = 1) -> str:
    register = [{"name": f"q{number}", "x": 10.0 * number, "y": 0.0} for number in range(atoms)]
    header = {"version": "1", "name": "s", "device": {"name": device}, "register": register, "channels": {}}
    return json.dumps({**header, "variables": {}, "operations": [], "measurement": None})


@pytest.mark.slow
async def test_several_devices_share_an_adapter(site: Site) -> None:
    await site.workers(1, TWIN)
    await site.workers(1, "PLAIN")
    found = {device.name: device for device in await site.queue.devices()}
    assert {(name, device.adapter, device.specs_name) for name, device in found.items()} == {
        (TWIN, "null", "AnalogDevice"),
        ("PLAIN", "null", "PLAIN"),
    }
    assert (found[TWIN].checks_sequence, found["PLAIN"].checks_sequence) == (True, False)
    assert (await site.store.reader.device_specs())[TWIN] == AnalogDevice.to_abstract_repr()


async def test_the_limits_of_the_specs_hold_at_submit(site: Site) -> None:
    await site.workers(1, TWIN)
    too_many = sequence(atoms=AnalogDevice.max_atom_num + 1)
    with pytest.raises(tweezer.InvalidInput, match="sequence: has 81 atoms; the device allows at most 80"):
        await site.queue.submit(too_many, [{"runs": 1}], device=TWIN)
    with pytest.raises(tweezer.InvalidInput, match=r"jobs\[0\].sequence: has 81 atoms"):
        await site.queue.submit(None, [{"runs": 1, "sequence": too_many}], device=TWIN)
    with pytest.raises(tweezer.InvalidInput, match=r"jobs\[0\].runs: expected a whole number from 1 to 2000"):
        await site.queue.submit(sequence(), [{"runs": 2001}], device=TWIN)
    batch = await site.queue.submit(sequence(atoms=80), [{"runs": 2000}], device=TWIN)
    assert (await batch.wait(30)).counts[tweezer.JobStatus.DONE] == 1


async def test_the_device_of_a_batch_is_that_of_its_sequence(site: Site) -> None:
    await site.workers(1, TWIN)
    for carried in ("AnalogDevice", TWIN):
        submission = Submission(sequence(carried), [{"runs": 1}], None)
        batch_id = await site.store.admission.submit(submission, project="ours")
        assert (await site.queue.batch(batch_id).wait(30)).device == TWIN
    known = r"the devices are TWIN \(in sequences: AnalogDevice\)"
    with pytest.raises(tweezer.InvalidInput, match=f"'MockDevice'; {known}"):
        await site.store.admission.submit(Submission(sequence("MockDevice"), [{"runs": 1}], None), project="ours")


@pytest.mark.slow
async def test_a_second_device_with_the_same_specs_is_refused(site: Site) -> None:
    await site.workers(1, TWIN)
    late = site.worker(OTHER)
    assert await late.ended() != 0
    assert "specs: the name 'AnalogDevice' is already used by the specs of device TWIN" in late.text
    assert [device.name for device in await site.queue.devices()] == [TWIN]


async def test_a_worker_with_bad_specs_does_not_start(site: Site) -> None:
    worker = site.worker("BAD")
    assert await worker.ended() != 0
    assert "devices.BAD.specs: Pulser cannot read these device specs" in worker.text
    assert await site.queue.devices() == []


async def test_a_worker_announces_a_device_again_that_redis_lost(site: Site) -> None:
    await site.workers(1, "PLAIN")
    await site.store.redis.delete(site.store.keys(Key.DEVICE, "PLAIN"))

    async def is_announced() -> bool:
        return "PLAIN" in await site.store.reader.device_specs()

    await until(is_announced, "the specs of the device")
