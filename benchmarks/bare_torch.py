"""emu-sv and emu-mps without a queue, one run at a time. Needs torch, both emulators and Pulser, but not Tweezer.

Heavy libraries are imported where they are used.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from multiprocessing.pool import Pool
from typing import Any, Self

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_SPACING_UM = 6.0


def sequence_text(qubits: int, duration_ns: int) -> str:
    """Return an adiabatic sweep on a square lattice that is as square as possible; its final detuning is a variable."""
    import pulser

    columns = max(column for column in range(1, math.isqrt(qubits) + 1) if qubits % column == 0)
    register = pulser.Register.rectangle(columns, qubits // columns, spacing=_SPACING_UM, prefix="q")
    sequence: Any = pulser.Sequence(register, pulser.MockDevice)
    sequence.declare_channel("rydberg", "rydberg_global")
    detuning = sequence.declare_variable("detuning")
    rise = pulser.RampWaveform(duration_ns // 4, 0.0, 9.0)
    sweep = pulser.RampWaveform(duration_ns // 2, -15.0, detuning)
    fall = pulser.RampWaveform(duration_ns // 4, 9.0, 0.0)
    sequence.add(pulser.Pulse.ConstantDetuning(rise, -15.0, 0.0), "rydberg")
    sequence.add(pulser.Pulse.ConstantAmplitude(9.0, sweep, 0.0), "rydberg")
    sequence.add(pulser.Pulse.ConstantDetuning(fall, detuning, 0.0), "rydberg")
    return str(sequence.to_abstract_repr())


def configuration_text(runs: int) -> str:
    """Return a configuration that measures bitstrings at the end, with the usual step of 10 ns."""
    from pulser.backend import BitStrings, EmulationConfig

    config: Any = EmulationConfig(observables=[BitStrings(evaluation_times=[1.0], num_shots=runs)])
    return json.dumps({**json.loads(config.to_abstract_repr()), "dt": 10.0})


def emulate(device: str, text: str, detuning: float, runs: int, *, gpu: bool = False) -> float:
    """Return the seconds to build, run and serialise one sequence with the library of ``EMU_SV`` or ``EMU_MPS``."""
    import warnings

    import pulser

    warnings.simplefilter("ignore")
    sequence = pulser.Sequence.from_abstract_repr(text)
    backend, config_type = _library(device)
    options = json.loads(configuration_text(runs)) | {"gpu": gpu, "log_level": 30}
    config = config_type.from_abstract_repr(json.dumps(options))
    began = time.perf_counter()
    results = backend(sequence.build(detuning=detuning), config=config).run()
    serialised = results.to_abstract_repr()
    elapsed_s = time.perf_counter() - began
    assert serialised
    assert sum(results.final_bitstrings.values()) == runs
    return elapsed_s


def _library(device: str) -> tuple[Any, Any]:
    if device == "EMU_SV":
        from emu_sv import SVBackend, SVConfig

        return SVBackend, SVConfig
    from emu_mps import MPSBackend, MPSConfig

    return MPSBackend, MPSConfig


class BareEmulator:
    """A warm process with one thread, like that of a lane, as a context manager."""

    def __init__(self) -> None:
        for name in _THREADS:
            os.environ[name] = "1"
        self._pool: Pool = multiprocessing.get_context("spawn").Pool(1)

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(None, None, None)
        self._pool.join()

    def emulate(self, device: str, text: str, detuning: float, runs: int, timeout_s: float) -> float:
        """Return the seconds until the results are back."""
        began = time.perf_counter()
        self._pool.apply_async(emulate, (device, text, detuning, runs)).get(timeout_s)
        return time.perf_counter() - began
