"""The demo's sequence: antiferromagnetic order in a ring of atoms.

Neighbours in the ring are within the Rydberg blockade radius, so that they cannot both be excited. The laser's detuning
is swept from far below resonance, where no atom is excited, to a positive value, where excitations lower the energy. As
many atoms as possible are then excited, which is every second one; the two such patterns have the same energy. The
variable ``delta_final`` is the final detuning. (After Bernien et al., Nature 551, 579, 2017, but with a ring.)
"""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi, sin

ATOMS = 8
RABI = 2 * pi * 1.5
"""Maximum Rabi frequency in rad/µs."""
INTERACTION = 2 * pi * 4.0
"""Interaction between neighbours in rad/µs."""
DELTA_START = -2 * pi * 3.0
"""Initial detuning in rad/µs."""
RISE_NS, SWEEP_NS, FALL_NS = 300, 3400, 300

DELTA_LOWEST, DELTA_HIGHEST = -15.0, 25.0
"""Range of the final detunings in the demo, in rad/µs."""

ORDERED = frozenset({"01" * (ATOMS // 2), "10" * (ATOMS // 2)})
"""The bitstrings with perfect order: every second atom is excited."""


def build_sequence(specs: str | None = None) -> str:
    """Return the sequence, with the variable ``delta_final``, in Pulser's abstract representation. Imports Pulser.

    specs: the device's abstract representation; None for a device without limits.
    """
    from pulser import Pulse, Register, Sequence
    from pulser.devices import MockDevice
    from pulser.json.abstract_repr.deserializer import deserialize_device
    from pulser.waveforms import RampWaveform

    device = MockDevice if specs is None else deserialize_device(specs)
    spacing = (device.interaction_coeff / INTERACTION) ** (1 / 6)
    radius = spacing / (2 * sin(pi / ATOMS))
    turns = {f"q{number}": 2 * pi * number / ATOMS for number in range(ATOMS)}
    ring = Register({name: (radius * cos(turn), radius * sin(turn)) for name, turn in turns.items()})
    sequence = Sequence(ring, device)
    sequence.declare_channel("ising", "rydberg_global")
    delta_final = sequence.declare_variable("delta_final", dtype=float)
    sequence.add(Pulse.ConstantDetuning(RampWaveform(RISE_NS, 0.0, RABI), DELTA_START, 0.0), "ising")
    sequence.add(Pulse.ConstantAmplitude(RABI, RampWaveform(SWEEP_NS, DELTA_START, delta_final), 0.0), "ising")
    sequence.add(Pulse.ConstantDetuning(RampWaveform(FALL_NS, RABI, 0.0), delta_final, 0.0), "ising")
    sequence.measure("ground-rydberg")
    text: str = sequence.to_abstract_repr()
    return text


def final_detunings(jobs: int) -> list[float]:
    """Return evenly spaced final detunings in rad/µs."""
    step = (DELTA_HIGHEST - DELTA_LOWEST) / max(jobs - 1, 1)
    return [round(DELTA_LOWEST + number * step, 3) for number in range(jobs)]


def order(counter: Mapping[str, int]) -> float:
    """Return the staggered order: the mean over shots of |excited even sites − excited odd sites| / (atoms / 2).

    It is 0 if no atom is excited, and 1 if every second atom is excited in each shot.
    """
    shots = sum(counter.values())
    imbalance = sum(
        count * abs(bits[0::2].count("1") - bits[1::2].count("1")) / (len(bits) / 2) for bits, count in counter.items()
    )
    return imbalance / shots if shots else 0.0


def drawing(bits: str) -> list[str]:
    """Draw the ring of atoms as text; ● is an excited atom."""
    places = ((0, 8), (1, 13), (3, 15), (5, 13), (6, 8), (5, 3), (3, 1), (1, 3))
    canvas = [[" "] * 17 for _ in range(7)]
    for (row, column), bit in zip(places, bits, strict=True):
        canvas[row][column] = "●" if bit == "1" else "○"
    return ["".join(line).rstrip() for line in canvas]
