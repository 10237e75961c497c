"""Input that an emulator cannot run is refused with the user's field and what to change."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pulser import NoiseModel, Pulse, Register, Sequence
from pulser.backend import BitStrings, EmulationConfig
from pulser.devices import MockDevice

from tweezer.adapters.lane.backend import Refusal, Watch
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import BatchDoc, BatchWork, Fault, JobSpec, JobWork

pytestmark = [pytest.mark.emulator, pytest.mark.filterwarnings("ignore")]
QUTIP = "qutip"
TORCH = [pytest.param(name, marks=pytest.mark.torch) for name in ("emu_mps", "emu_sv")]


def pulsed(change: Callable[[Any], Any] = lambda value: value, *, duration_ns: int = 200) -> dict[str, Any]:
    sequence: Sequence[Any] = Sequence(Register({"a": (0, 0), "b": (8, 0)}), MockDevice)
    sequence.declare_channel("channel", "rydberg_global")
    value = sequence.declare_variable("value")
    sequence.add(Pulse.ConstantPulse(duration_ns, change(value), 0, 0), "channel")
    document: dict[str, Any] = json.loads(sequence.to_abstract_repr())
    return document


def configuration(**options: Any) -> dict[str, Any]:
    config: EmulationConfig[Any] = EmulationConfig(observables=[BitStrings(evaluation_times=[1.0])], **options)
    document: dict[str, Any] = json.loads(config.to_abstract_repr())
    return document


def refusal(emulator: str, sequence: dict[str, Any], value: float, config: dict[str, Any] | None = None) -> Fault:
    pytest.importorskip(emulator)
    backend = importlib.import_module(f"tweezer.adapters.emulators.{emulator}_backend").open_backend(
        Watch(lambda *_: None, 1.0), 1 << 20
    )
    text = None if config is None else json.dumps(config)
    doc = BatchDoc(device="EMU", sequence=json.dumps(sequence), backend_configuration=text)
    job = JobWork(job_id(new_batch_id(), 0), 0, JobSpec(runs=10, variables={"value": value}), seed=1)

    def emulate() -> None:
        backend.prepare(BatchWork(new_batch_id(), doc))
        backend.run(job)

    with pytest.raises(Refusal) as raised:
        emulate()
    return raised.value.fault


@pytest.mark.parametrize(
    ("change", "value"), [(np.sqrt, -1.0), (lambda it: 1 / it, 0.0)], ids=["root of -1", "division by 0"]
)
def test_values_that_make_pulses_infinite_are_named(change: Callable[[Any], Any], value: float) -> None:
    fault = refusal(QUTIP, pulsed(change), value)
    assert fault.field == "variables"
    assert "channel 'channel' that are not finite" in fault.message


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_an_atom_without_a_position_is_named(number: float) -> None:
    sequence = pulsed()
    sequence["register"][0]["x"] = number
    fault = refusal(QUTIP, sequence, 1.0)
    assert (fault.field, fault.message) == ("sequence", f"must contain only finite numbers: register[0].x is {number}")


def test_an_evaluation_time_that_is_not_a_number_is_named() -> None:
    config = configuration()
    config["observables"][0]["evaluation_times"] = [math.nan]
    fault = refusal(QUTIP, pulsed(), 1.0, config)
    assert fault.field == "backend_configuration.observables"
    assert fault.message.endswith("observables[0].evaluation_times[0] is nan")


def test_pulses_that_the_solver_cannot_follow_are_a_users_error() -> None:
    fault = refusal(QUTIP, pulsed(), 1e300)
    assert (fault.code, fault.field) == ("user", "sequence")


@pytest.mark.parametrize("duration_ns", [1, 2, 3])
def test_the_error_of_a_pulse_too_short_for_qutip_has_the_minimum(duration_ns: int) -> None:
    fault = refusal(QUTIP, pulsed(duration_ns=duration_ns), 1.0)
    assert (fault.field, fault.message.split(",")[0]) == ("sequence", f"lasts {duration_ns} ns")
    assert "4 samples" in fault.message


@pytest.mark.parametrize("emulator", [QUTIP, *TORCH])
def test_an_initial_state_of_another_size_is_named(emulator: str) -> None:
    config = {**configuration(), "initial_state": {"eigenstates": ["r", "g"], "amplitudes": {"rrr": 1.0}}}
    fault = refusal(emulator, pulsed(), 1.0, config)
    assert fault.field == "backend_configuration.initial_state"
    assert fault.message == "must be a state of 2 atoms, as the sequence has (got 3)"


@pytest.mark.parametrize("emulator", TORCH)
def test_a_pulse_that_is_too_short_for_a_torch_emulator_is_reported(emulator: str) -> None:
    fault = refusal(emulator, pulsed(duration_ns=1), 1.0)
    assert (fault.field, fault.message.split(" for ")[0]) == ("sequence", "must last at least 2 ns")
    assert fault.message.endswith("(got 1 ns)")


@pytest.mark.torch
def test_a_single_atom_left_by_preparation_errors_is_named_for_tensor_networks() -> None:
    config = configuration(noise_model=NoiseModel(state_prep_error=0.9), n_trajectories=5)
    fault = refusal("emu_mps", pulsed(), 1.0, config)
    assert fault.field == "backend_configuration.noise_model"
    assert "single atom" in fault.message
