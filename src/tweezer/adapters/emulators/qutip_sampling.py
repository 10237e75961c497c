"""Evolving once with QuTiP: states in place of bitstrings, of which the probabilities are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from pulser.backend import BitStrings, EmulationConfig, Results, StateResult
from pulser.backend.state import Eigenstate
from pulser_simulation import QutipState

from tweezer.adapters.emulators.pulser_sampling import Evolution, Measurable, Step, timed


class Distribution(QutipState, Measurable):
    """The probabilities of a state's basis states: all that sampling needs, in half the memory or less."""

    def __init__(self, state: QutipState) -> None:
        amplitudes = state.to_qobj()
        weights: Any = (np.abs(amplitudes.full()) ** 2).flatten() if amplitudes.isket else np.abs(amplitudes.diag())
        self._weights: np.ndarray[Any, np.dtype[np.float64]] = weights
        self._n_qudits = state.n_qudits
        self._eigenstates = state.eigenstates
        self._amplitudes = None
        self.nbytes = self._weights.nbytes

    @property
    def n_qudits(self) -> int:
        return self._n_qudits

    def measure(self, observable: BitStrings, config: EmulationConfig[Any]) -> Counter[str]:
        return observable.apply(config=config, state=self)

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


class StatesInstead:
    """A configuration that has the states where bitstrings were to be sampled."""

    def __init__(self, config: EmulationConfig[Any]) -> None:
        self._asked = config
        self._observables = tuple(
            StateResult(evaluation_times=_listed(observable.evaluation_times), tag_suffix=f"instead_of_{place}")
            if isinstance(observable, BitStrings)
            else observable
            for place, observable in enumerate(config.observables)
        )
        self.config: EmulationConfig[Any] = config.with_changes(observables=self._observables)

    def evolution(self, results: Results) -> Evolution:
        """What this configuration's results leave."""
        recorded = results.get_tagged_results()
        steps: list[Step] = [
            (t, place, Distribution(value) if isinstance(self._asked.observables[place], BitStrings) else value)
            for place, observable in enumerate(self._observables)
            for t, value in timed(results, recorded, observable)
        ]
        return Evolution(results, steps)


def _listed(times: Any) -> list[float] | None:
    return None if times is None else [float(t) for t in times]
