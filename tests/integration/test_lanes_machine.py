"""EMU_FRESNEL: QuTiP with the limits and the noise of a machine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from pulser import NoiseModel, Pulse, Sequence
from pulser.backend import BitStrings, EmulationConfig
from pulser.devices import AnalogDevice, MockDevice
from pulser.json.abstract_repr.deserializer import deserialize_device
from pulser.register.register_layout import RegisterLayout

from tweezer.adapters.lane.lane import ChildLane
from tweezer.adapters.registry import Binding, get_specs, make_adapter
from tweezer.model.errors import FaultKind, InvalidInput
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import BatchDoc, BatchWork, Fault, JobSpec, JobWork, Outcome, OutcomeKind, Progress

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PATIENCE_S = 60.0
NOISE = NoiseModel(p_false_pos=0.2, p_false_neg=0.0, temperature=50.0, dephasing_rate=0.1)
MACHINE = dataclasses.replace(AnalogDevice, name="TWIN", max_runs=500, noise_model=NoiseModel(p_false_pos=0.5))
RESTLESS = dataclasses.replace(AnalogDevice, name="RESTLESS", noise_model=NOISE)


def pulsed(device: Any = AnalogDevice, omega: float = 0.0, duration_ns: int = 400) -> str:
    """Return two atoms on a layout with one pulse. By default it has no amplitude: each 1 is a detection error."""
    layout = RegisterLayout([(6.0 * column, 6.0 * row) for column in range(4) for row in range(4)])
    sequence: Sequence[Any] = Sequence(layout.define_register(0, 1, qubit_ids=("q0", "q1")), device)
    sequence.declare_channel("channel", "rydberg_global")
    sequence.add(Pulse.ConstantPulse(duration_ns, omega, 0.0, 0.0), "channel")
    return sequence.to_abstract_repr()


def batch(sequence: str, **doc: Any) -> BatchWork:
    return BatchWork(new_batch_id(), BatchDoc(device="EMU_FRESNEL", sequence=sequence, **doc))


def job(runs: int | None = 100, seed: int = 1) -> JobWork:
    return JobWork(job_id(UUID(int=8 << 76), 0), 0, JobSpec(runs=runs), seed)


def ignore(progress: Progress) -> None:
    """Ignore a report."""


async def run(lane: ChildLane, work: JobWork) -> Outcome:
    return await asyncio.wait_for(lane.run(work, ignore), PATIENCE_S)


async def counter(lane: ChildLane, work: JobWork) -> dict[str, int]:
    outcome = await run(lane, work)
    assert outcome.kind is OutcomeKind.DONE, outcome.fault
    assert outcome.result is not None
    return outcome.result.counter or {}


async def refusal(lane: ChildLane, work: JobWork) -> Fault:
    outcome = await run(lane, work)
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.USER)
    assert outcome.fault is not None
    return outcome.fault


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lane() -> AsyncIterator[ChildLane]:
    """A lane of EMU_FRESNEL without configuration."""
    lane = await make_adapter(Binding("machine")).open_lane()
    assert isinstance(lane, ChildLane)
    yield lane
    await lane.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def twin(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChildLane]:
    """A lane of a machine whose specs the operator provides."""
    specs = tmp_path_factory.mktemp("specs") / "twin.json"
    specs.write_text(MACHINE.to_abstract_repr())
    lane = await make_adapter(Binding("machine", specs=specs)).open_lane()
    assert isinstance(lane, ChildLane)
    yield lane
    await lane.close()


async def test_without_a_specs_file_clients_get_the_specs_of_a_real_device(lane: ChildLane) -> None:
    specs = get_specs("EMU_FRESNEL", Binding("machine"))
    assert specs is not None
    device = deserialize_device(specs.text)
    assert device == dataclasses.replace(AnalogDevice, name="EMU_FRESNEL")
    await lane.prepare(batch(pulsed(device)))
    assert await counter(lane, job()) == {"00": 100}


async def test_a_sequence_for_a_virtual_device_is_refused(lane: ChildLane) -> None:
    await lane.prepare(batch(pulsed(MockDevice)))
    fault = await refusal(lane, job())
    assert fault.field == "sequence"
    assert "real device" in fault.message


async def test_more_runs_than_the_machine_allows_are_refused(lane: ChildLane, twin: ChildLane) -> None:
    assert AnalogDevice.max_runs == 2000
    for machine, limit in ((lane, 2000), (twin, 500)):
        await machine.prepare(batch(pulsed()))
        fault = await refusal(machine, job(limit + 1))
        assert fault.field == "runs"
        assert f"at most {limit}" in fault.message


async def test_a_sequence_must_fit_the_machine_of_the_operators_specs(twin: ChildLane) -> None:
    await twin.prepare(batch(pulsed(MACHINE)))
    await counter(twin, job())
    await twin.prepare(batch(pulsed(AnalogDevice)))  # another name, the same limits
    await counter(twin, job())
    await twin.prepare(batch(pulsed(MockDevice, omega=100.0)))
    fault = await refusal(twin, job())
    assert fault.field == "sequence"
    assert "does not fit the device TWIN" in fault.message
    limit = AnalogDevice.channels["rydberg_global"].max_amp
    expected = f"channel 'channel' has an amplitude of 100 rad/µs at 0 ns, the limit is {limit:.6g} rad/µs"
    assert fault.message.endswith(expected)


async def test_the_machines_noise_applies_unless_the_client_gives_a_noise_model(twin: ChildLane) -> None:
    await twin.prepare(batch(pulsed()))
    counted = await counter(twin, job(400))
    assert sum(counted.values()) == 400
    ones = sum(bits.count("1") * count for bits, count in counted.items())
    assert 300 < ones < 500  # half of 800
    own = EmulationConfig(
        observables=[BitStrings(evaluation_times=[1.0])], noise_model=NoiseModel(p_false_pos=1e-9)
    ).to_abstract_repr()
    await twin.prepare(batch(pulsed(), backend_configuration=own))
    assert await counter(twin, job()) == {"00": 100}
    prefers_device = json.dumps(json.loads(own) | {"prefer_device_noise_model": True})
    await twin.prepare(batch(pulsed(), backend_configuration=prefers_device))
    assert await counter(twin, job()) != {"00": 100}


async def test_random_noise_keeps_the_number_of_shots_and_depends_on_the_seed(lane: ChildLane) -> None:
    await lane.prepare(batch(pulsed(RESTLESS, omega=6.0)))
    first = await counter(lane, job(101, 5))
    assert sum(first.values()) == 101  # although 40 trajectories with 3 shots each have 120
    assert await counter(lane, job(101, 5)) == first
    assert await counter(lane, job(101, 6)) != first


async def test_a_missing_file_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read") as raised:
        make_adapter(Binding("machine", specs=tmp_path / "missing.json"))
    assert raised.value.field == "specs"
