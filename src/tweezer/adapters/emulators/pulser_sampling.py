"""Evolves a sequence once and measures it many times.

An evolution without randomness is the same for all jobs that differ only in ``runs`` and ``seed``. The emulator
therefore returns the *states* at the times at which bitstrings are requested, and each job samples its bitstrings from
them, with the emulator's code and in Pulser's order. A plain run of the emulator gives the same counter if the
generators are seeded right before its first measurement.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pulser.backend import BitStrings, EmulationConfig, Results

_DETERMINISTIC_NOISE = frozenset({"SPAM", "dephasing", "relaxation", "depolarizing", "eff_noise", "leakage"})
_STEP_BYTES = 1024


class Measurable(ABC):
    """A kept state from which bitstrings are sampled.

    nbytes: Approximate size in memory, in bytes.
    """

    nbytes: int

    @abstractmethod
    def measure(self, observable: BitStrings, config: EmulationConfig[Any]) -> Counter[str]:
        """Sample bitstrings, in the register's order of qubits."""


def estimate_bytes(value: Any, seen: set[int] | None = None) -> int:
    """Return the approximate size in bytes of a value and what it refers to. Shared or seen objects count once."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(size := getattr(value, "nbytes", None), int):
        return size
    if hasattr(value, "as_ndarray"):  # qutip.core.data.Dense
        return int(value.as_ndarray().nbytes)
    if hasattr(value, "as_scipy"):  # qutip.core.data.CSR
        sparse = value.as_scipy()
        return int(sparse.data.nbytes + sparse.indices.nbytes + sparse.indptr.nbytes)
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        parts = vars(value).values()
    return sys.getsizeof(value) + sum(estimate_bytes(part, seen) for part in parts)


Step = tuple[float, int, Any]
"""A time of an evolution (0 to 1), the index of an observable in its configuration, and its value at that time."""


class Evolution:
    """A solved evolution: the values of its observables, with a ``Measurable`` in place of each value of bitstrings."""

    def __init__(self, results: Results, steps: Iterable[Step]) -> None:
        self._atom_order = results.atom_order
        self._total_duration = results.total_duration
        self._steps = sorted(steps, key=lambda step: step[:2])

    @property
    def nbytes(self) -> int:
        """Approximate size in memory, in bytes."""
        return _STEP_BYTES * (1 + len(self._steps)) + estimate_bytes([value for _, _, value in self._steps])

    def measure(self, config: EmulationConfig[Any]) -> Results:
        """Return the results of one job. ``config`` may differ only in its shots. Draws from the global generators."""
        results = Results(atom_order=self._atom_order, total_duration=self._total_duration)
        for t, place, value in self._steps:
            observable: Any = config.observables[place]
            measured = value.measure(observable, config) if isinstance(value, Measurable) else value
            results._store(observable=observable, time=t, value=measured)  # noqa: SLF001  # Pulser's only way in
        return results


def list_steps(config: EmulationConfig[Any], results: Results) -> Iterable[Step]:
    """Yield the values of the configuration's observables that the results contain."""
    recorded = results.get_tagged_results()
    for place, observable in enumerate(config.observables):
        if values := recorded.get(observable.tag):
            for t, value in zip(results.get_result_times(observable.tag), values, strict=True):
                yield t, place, value


def is_deterministic(config: EmulationConfig[Any], sequence: Any, *, draws_jumps: bool) -> bool:
    """Return whether an evolution has no randomness.

    draws_jumps: The solver unravels the noise of a master equation into random quantum jumps.
    """
    preferred = sequence.device.noise_model if config.prefer_device_noise_model else None
    noise = preferred or config.noise_model
    return is_steady(noise) and not (draws_jumps and not set(noise.noise_types) <= {"SPAM"})


def is_steady(noise: Any) -> bool:
    """Return whether the noise is the same in every run. Detection errors act only on the sampling."""
    kinds = set(noise.noise_types)
    return kinds <= _DETERMINISTIC_NOISE and not ("SPAM" in kinds and noise.state_prep_error != 0)
