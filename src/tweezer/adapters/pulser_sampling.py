"""Evolving once and measuring many times.

An evolution without randomness is the same for all jobs that differ only in ``runs`` and ``seed``. So
Pulser is asked for the *states* at the times when bitstrings are wanted, and each job then samples its
own bitstrings from them, with Pulser's own code and in Pulser's own order: Pulser itself gives the same
counter when numpy is seeded right before its first measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pulser.backend import BitStrings, Observable, Results, StateResult
from pulser.backend.state import Eigenstate
from pulser_simulation import QutipConfig, QutipState

_DETERMINISTIC_NOISE = frozenset({"SPAM", "dephasing", "relaxation", "depolarizing", "eff_noise", "leakage"})
_STEP_BYTES = 1024


class Distribution(QutipState):
    """The probabilities of a state's basis states: all that sampling needs, in half the memory or less."""

    def __init__(self, state: QutipState) -> None:
        amplitudes = state.to_qobj()
        weights: Any = (np.abs(amplitudes.full()) ** 2).flatten() if amplitudes.isket else np.abs(amplitudes.diag())
        self._weights: np.ndarray[Any, np.dtype[np.float64]] = weights
        self._n_qudits = state.n_qudits
        self._eigenstates = state.eigenstates
        self._amplitudes = None

    @property
    def n_qudits(self) -> int:
        return self._n_qudits

    @property
    def nbytes(self) -> int:
        return self._weights.nbytes

    def probabilities(self, *, cutoff: float = 1e-12) -> dict[str, float]:
        """As :meth:`QutipState.probabilities`."""
        indices, chances = self._likely(cutoff)
        return dict(zip(map(self.get_basis_state_from_index, indices.tolist()), chances, strict=True))

    def bitstring_probabilities(
        self, *, one_state: Eigenstate | None = None, cutoff: float = 1e-12
    ) -> Mapping[str, float]:
        """As :meth:`QutipState.bitstring_probabilities`; quicker for qubits, where an index spells its bitstring."""
        one = one_state or self.infer_one_state()
        if self.qudit_dim != 2 or one not in self.eigenstates:
            return super().bitstring_probabilities(one_state=one_state, cutoff=cutoff)
        indices, chances = self._likely(cutoff)
        flip = (1 << self._n_qudits) - 1 if self.eigenstates[0] == one else 0
        spelling = f"0{self._n_qudits}b"
        return dict(zip((format(index ^ flip, spelling) for index in indices.tolist()), chances, strict=True))

    def _likely(self, cutoff: float) -> tuple[Any, Any]:
        indices = np.flatnonzero(self._weights > cutoff)
        chances = self._weights[indices]
        return indices, chances / np.sum(chances)


class Evolution:
    """What a job's evolution left: the values of its observables, and distributions where bitstrings are wanted."""

    def __init__(self, config: QutipConfig, evolved: Results) -> None:
        """``evolved`` are the results of :func:`states_instead_of_bitstrings` of this configuration."""
        self._atom_order = evolved.atom_order
        self._total_duration = evolved.total_duration
        steps: list[tuple[float, int, Any]] = []
        recorded = evolved.get_tagged_results()
        for place, observable in enumerate(config.observables):
            tag = _state_tag(place) if isinstance(observable, BitStrings) else observable.tag
            values = recorded.get(tag, [])
            times = evolved.get_result_times(tag) if values else []
            for t, value in zip(times, values, strict=True):
                steps.append((t, place, Distribution(value) if isinstance(value, QutipState) else value))
        self._steps = sorted(steps, key=lambda step: step[:2])

    @property
    def nbytes(self) -> int:
        """About how much memory it keeps."""
        distributions = (value.nbytes for _, _, value in self._steps if isinstance(value, Distribution))
        return _STEP_BYTES * (1 + len(self._steps)) + sum(distributions)

    def measure(self, config: QutipConfig) -> Results:
        """The results of one job; ``config`` is as before but for its shots. Draws from numpy's generator."""
        results = Results(atom_order=self._atom_order, total_duration=self._total_duration)
        for t, place, value in self._steps:
            observable: Observable = config.observables[place]
            measured = (
                observable.apply(config=config, state=value, hamiltonian=None)  # type: ignore[arg-type]
                if isinstance(value, Distribution)
                else value
            )
            results._store(observable=observable, time=t, value=measured)  # noqa: SLF001  # Pulser's only way in
        return results


def is_deterministic(config: QutipConfig, sequence: Any) -> bool:
    """Whether nothing in the evolution is random; errors of detection only act on the sampling."""
    preferred = sequence.device.noise_model if config.prefer_device_noise_model else None
    noise = preferred or config.noise_model
    kinds = set(noise.noise_types)
    if not kinds <= _DETERMINISTIC_NOISE or ("SPAM" in kinds and noise.state_prep_error != 0):
        return False
    return kinds <= {"SPAM"} or config.solver.value != "MonteCarlo"


def states_instead_of_bitstrings(config: QutipConfig) -> QutipConfig:
    """The configuration that has the states where bitstrings were to be sampled."""
    observables = tuple(
        StateResult(evaluation_times=_listed(observable.evaluation_times), tag_suffix=_suffix(place))
        if isinstance(observable, BitStrings)
        else observable
        for place, observable in enumerate(config.observables)
    )
    changed: QutipConfig = config.with_changes(observables=observables)
    return changed


def _listed(times: Any) -> list[float] | None:
    return None if times is None else [float(t) for t in times]


def _suffix(place: int) -> str:
    return f"instead_of_{place}"


def _state_tag(place: int) -> str:
    return f"state_{_suffix(place)}"
