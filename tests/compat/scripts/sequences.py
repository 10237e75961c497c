"""Typical sequences, built by the Pulser of the environment."""

from __future__ import annotations

from typing import Any

from pulser import Pulse, Register, Sequence
from pulser.devices import AnalogDevice, MockDevice
from pulser.register.register_layout import RegisterLayout

CHANNEL = "rydberg_global"


def rabi(*, qubits: int = 4, measured: bool = True) -> Sequence[Any]:
    """Return a pulse of 400 ns without variables."""
    sequence = Sequence(_line(qubits), MockDevice)
    sequence.declare_channel(CHANNEL, CHANNEL)
    sequence.add(Pulse.ConstantPulse(400, 6.0, 0.0, 0.0), CHANNEL)
    if measured:
        sequence.measure("ground-rydberg")
    return sequence


def single() -> Sequence[Any]:
    """Return the same for one qubit, which is what the null device counts."""
    return rabi(qubits=1)


def sweep(*, qubits: int = 4) -> Sequence[Any]:
    """Return a pulse whose amplitude is the variable omega."""
    sequence = Sequence(_line(qubits), MockDevice)
    sequence.declare_channel(CHANNEL, CHANNEL)
    omega = sequence.declare_variable("omega")
    sequence.add(Pulse.ConstantPulse(400, omega, 0.0, 0.0), CHANNEL)
    sequence.measure("ground-rydberg")
    return sequence


def mappable() -> Sequence[Any]:
    """Return a sequence that places two of three qubits in the traps of a layout by the variable qubits."""
    layout = RegisterLayout([(0.0, 0.0), (8.0, 0.0), (16.0, 0.0), (24.0, 0.0), (32.0, 0.0), (40.0, 0.0)])
    sequence = Sequence(layout.make_mappable_register(3), MockDevice)
    sequence.declare_channel(CHANNEL, CHANNEL)
    sequence.add(Pulse.ConstantPulse(400, 6.0, 0.0, 0.0), CHANNEL)
    return sequence


def for_the_analog_device() -> Sequence[Any]:
    """Return a sequence that a QPU accepts: on its layout, within its limits, with the variable omega."""
    layout = AnalogDevice.pre_calibrated_layouts[0] if AnalogDevice.pre_calibrated_layouts else _layout()
    sequence = Sequence(layout.define_register(0, 1, qubit_ids=("q0", "q1")), AnalogDevice)
    sequence.declare_channel(CHANNEL, CHANNEL)
    omega = sequence.declare_variable("omega")
    sequence.add(Pulse.ConstantPulse(400, omega, 0.0, 0.0), CHANNEL)
    return sequence


_NAMED: dict[str, Any] = {
    "rabi": rabi,
    "sweep": sweep,
    "mappable": mappable,
    "single": single,
    "analog": for_the_analog_device,
}


def text(name: str, **options: Any) -> str:
    """Return one of the above in serialised form."""
    sequence = _NAMED[name](**options)
    return str(sequence.to_abstract_repr())


def analog_specs(_: Any) -> str:
    """Return the specs of Pulser's device that represents a QPU."""
    return str(AnalogDevice.to_abstract_repr())


def _line(qubits: int) -> Register:
    return Register({f"q{number}": (8.0 * number, 0.0) for number in range(qubits)})


def _layout() -> RegisterLayout:
    return RegisterLayout([(6.0 * column, 6.0 * row) for column in range(4) for row in range(4)])
