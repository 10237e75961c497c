"""The sequence of the other examples: it drives six atoms into a checkerboard of excited atoms.

Write it to a file for the command line: python examples/checkerboard.py > sequence.json
"""

from collections.abc import Mapping

from pulser import Pulse, Register, Sequence
from pulser.devices import AnalogDevice
from pulser.waveforms import RampWaveform

CHECKERBOARDS = ("101010", "010101")
"""The two bitstrings in which no two neighbours on the grid of two rows and three columns are both excited,
and half of the atoms are. The first three bits are the first row."""


def build_sequence() -> Sequence:
    """Return the sequence, with the variable `final_detuning` in rad/µs."""
    sequence = Sequence(Register.rectangle(2, 3, spacing=6, prefix="q"), AnalogDevice)
    sequence.declare_channel("ising", "rydberg_global")
    final_detuning = sequence.declare_variable("final_detuning")
    sequence.add(Pulse.ConstantDetuning(RampWaveform(500, 0, 8), -12, 0), "ising")
    sequence.add(Pulse.ConstantAmplitude(8, RampWaveform(1500, -12, final_detuning), 0), "ising")
    sequence.add(Pulse.ConstantDetuning(RampWaveform(500, 8, 0), final_detuning, 0), "ising")
    sequence.measure("ground-rydberg")
    return sequence


def order(counter: Mapping[str, int]) -> float:
    """Return the share of shots, from 0 to 1, that measured one of the two checkerboards."""
    return sum(counter.get(bits, 0) for bits in CHECKERBOARDS) / sum(counter.values())


if __name__ == "__main__":
    print(build_sequence().to_abstract_repr())
