"""What the demo runs: antiferromagnetic order that appears in a ring of atoms.

Neighbours in the ring are closer than the Rydberg blockade allows both to be excited. A sweep of the laser's
detuning from far below resonance, where no atom is excited, to a positive value makes excitations cheap: as
many atoms as can be are excited, which is every second one. The two ways to do that are equally good. How far
the sweep goes is the variable ``delta_final``. (After Bernien et al., Nature 551, 579, 2017, with a ring.)
"""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi, sin

ATOMS = 8
RABI = 2 * pi * 1.5
"""Largest Rabi frequency, rad/µs."""
INTERACTION = 2 * pi * 4.0
"""Between neighbours, rad/µs."""
DELTA_START = -2 * pi * 3.0
"""Detuning at the start, rad/µs."""
RISE_NS, SWEEP_NS, FALL_NS = 300, 3400, 300

DELTA_LOWEST, DELTA_HIGHEST = -15.0, 25.0
"""Between which final detunings the demo sweeps, rad/µs."""

ORDERED = frozenset({"01" * (ATOMS // 2), "10" * (ATOMS // 2)})
"""The bitstrings of perfect order: every second atom excited."""


def build_sequence(specs: str | None = None) -> str:
    """Return the sequence, with the variable ``delta_final``, as Pulser serialises it. Imports Pulser.

    specs: of the device that it is for, in Pulser's abstract representation; None is one without limits.
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
    """Evenly spaced, from the lowest to the highest."""
    step = (DELTA_HIGHEST - DELTA_LOWEST) / max(jobs - 1, 1)
    return [round(DELTA_LOWEST + number * step, 3) for number in range(jobs)]


def order(counter: Mapping[str, int]) -> float:
    """Return the staggered order of the shots: the mean of |excited on even sites − on odd sites| / (atoms / 2).

    0 when no atom is excited, 1 when every second one is in each shot.
    """
    shots = sum(counter.values())
    imbalance = sum(
        count * abs(bits[0::2].count("1") - bits[1::2].count("1")) / (len(bits) / 2) for bits, count in counter.items()
    )
    return imbalance / shots if shots else 0.0


def drawing(bits: str) -> list[str]:
    """Return the ring of atoms as text: ● is excited."""
    places = ((0, 8), (1, 13), (3, 15), (5, 13), (6, 8), (5, 3), (3, 1), (1, 3))
    canvas = [[" "] * 17 for _ in range(7)]
    for (row, column), bit in zip(places, bits, strict=True):
        canvas[row][column] = "●" if bit == "1" else "○"
    return ["".join(line).rstrip() for line in canvas]
