"""The same emulations without a queue: a pool of two processes that have Pulser loaded.

The processes of the pool import this module too, so heavy libraries are imported where they are used.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from multiprocessing.pool import Pool
from typing import Any, Self

import msgspec

from tweezer.model.messages import Result, encode_result

QUBITS = 8
_DURATION_NS = 2000
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Item(msgspec.Struct, frozen=True):
    """One job: its number of shots and the values of its variables."""

    runs: int
    variables: dict[str, float]


def sequence_text(qubits: int = QUBITS) -> str:
    """Return an adiabatic sweep on a ring; its Rabi frequency and final detuning are variables."""
    import numpy as np
    import pulser

    radius_um = 6.0 / (2 * math.sin(math.pi / qubits))
    angles = 2 * math.pi * np.arange(qubits) / qubits
    places = radius_um * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    sequence: Any = pulser.Sequence(pulser.Register.from_coordinates(places, prefix="q"), pulser.MockDevice)
    sequence.declare_channel("rydberg", "rydberg_global")
    omega, detuning = sequence.declare_variable("omega"), sequence.declare_variable("detuning")
    rise = pulser.RampWaveform(_DURATION_NS // 4, 0.0, omega)
    sweep = pulser.RampWaveform(_DURATION_NS // 2, -detuning, detuning)
    fall = pulser.RampWaveform(_DURATION_NS // 4, omega, 0.0)
    sequence.add(pulser.Pulse.ConstantDetuning(rise, -detuning, 0.0), "rydberg")
    sequence.add(pulser.Pulse.ConstantAmplitude(omega, sweep, 0.0), "rydberg")
    sequence.add(pulser.Pulse.ConstantDetuning(fall, detuning, 0.0), "rydberg")
    text: str = sequence.to_abstract_repr()
    return text


_sequence: Any = None


def _load(text: str) -> None:
    global _sequence  # noqa: PLW0603  # what a process of a pool keeps between its items
    import warnings

    import pulser
    import pulser_simulation  # noqa: F401  # so that the first item does not include the import

    warnings.simplefilter("ignore")
    _sequence = pulser.Sequence.from_abstract_repr(text)


def _emulate(item: Item) -> bytes:
    from pulser.backend import BitStrings
    from pulser_simulation import QutipBackendV2, QutipConfig

    built = _sequence.build(**item.variables)
    results = QutipBackendV2(built, config=QutipConfig(observables=[BitStrings(num_shots=item.runs)])).run()
    return encode_result(Result(dict(results.final_bitstrings), results.to_abstract_repr()))


class BarePool:
    """A warm pool, as a context manager."""

    def __init__(self, text: str, processes: int) -> None:
        for name in _THREADS:
            os.environ[name] = "1"  # as in a lane: two processes with several threads each would compete for the cores
        self._pool: Pool = multiprocessing.get_context("spawn").Pool(processes, _load, (text,))

    @property
    def pids(self) -> list[int]:
        """Return the ids of the processes."""
        return [process.pid for process in self._pool._pool]  # type: ignore[attr-defined]  # noqa: SLF001

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(None, None, None)
        self._pool.join()

    def emulate(self, items: list[Item], timeout_s: float) -> float:
        """Return the seconds until all results are back; each item is sent to the pool on its own."""
        began = time.perf_counter()
        results = self._pool.map_async(_emulate, items, chunksize=1).get(timeout_s)
        elapsed_s = time.perf_counter() - began
        assert len(results) == len(items)
        return elapsed_s
