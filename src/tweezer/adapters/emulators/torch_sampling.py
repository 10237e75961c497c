"""Evolving once with emu-sv or emu-mps: states that are kept where bitstrings were to be sampled.

They are not taken from the results, as with QuTiP: emu-mps would give up its ordering of the qubits for a state
among them.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from pulser.backend import BitStrings, EmulationConfig, Observable, Results
from pulser.backend.observable import AggregationMethod

from tweezer.adapters.emulators.pulser_sampling import Evolution, Measurable, Step, steps_of

QUIET_TAG = "statistics"
"""The tag with which emu-mps keeps its ordering of the qubits, whatever the observable does."""


class Bystander(Observable):
    """An observable that is called at its times, and leaves nothing in the results."""

    def __init__(self, evaluation_times: Any, tag_suffix: str) -> None:
        super().__init__(
            evaluation_times=None if evaluation_times is None else [float(t) for t in evaluation_times],
            tag_suffix=tag_suffix,
            default_aggregation_method=AggregationMethod.SKIP,
        )

    @property
    def _base_tag(self) -> str:
        return QUIET_TAG

    def __deepcopy__(self, memo: dict[int, Any]) -> Bystander:
        return self  # configurations are copied over and over, and this one is to be heard

    def apply(self, **_: Any) -> None:
        """What it leaves: nothing."""


class Keeper(Bystander):
    """Keeps the states at the times of one observable. kept: time, state, and the order of its atoms."""

    def __init__(self, evaluation_times: Any, place: int) -> None:
        super().__init__(evaluation_times, f"instead_of_{place}")
        self.kept: list[tuple[float, Any, tuple[Any, ...]]] = []

    def __call__(self, config: Any, t: float, state: Any, hamiltonian: Any, result: Results) -> None:
        tolerance = 0.5 / result.total_duration if result.total_duration else 1e-6
        own = self.evaluation_times
        wanted = (
            config.is_evaluation_time(t, tol=tolerance)
            if own is None
            else config.is_time_in_evaluation_times(t, own, tol=tolerance)
        )
        if wanted:
            self.kept.append((t, copy.deepcopy(state), tuple(result.atom_order)))


class KeptState(Measurable):
    """A state of emu-sv or emu-mps. order: for each atom of the register, its place in the state."""

    def __init__(self, state: Any, order: list[int]) -> None:
        self._state = state
        self._order = None if order == sorted(order) else order
        tensors = state.factors if hasattr(state, "factors") else [state.data]
        self.nbytes = sum(tensor.nbytes for tensor in tensors)
        if hasattr(state, "orthogonalize"):
            state.orthogonalize(0)  # sampling does it, too: so the first sample is like all that follow

    def measure(self, observable: BitStrings, config: EmulationConfig[Any]) -> Counter[str]:
        counter = observable.apply(config=config, state=self._state)
        order = self._order
        if order is None:
            return counter
        return Counter({"".join(bits[place] for place in order): count for bits, count in counter.items()})


class KeptInstead:
    """A configuration that keeps the states where bitstrings were to be sampled."""

    def __init__(self, config: EmulationConfig[Any]) -> None:
        self._asked = config
        self._keepers = {
            place: Keeper(observable.evaluation_times, place)
            for place, observable in enumerate(config.observables)
            if isinstance(observable, BitStrings)
        }
        observables = tuple(self._keepers.get(place, observable) for place, observable in enumerate(config.observables))
        self.config: EmulationConfig[Any] = config.with_changes(observables=observables)

    def evolution(self, results: Results) -> Evolution:
        """What this configuration's results and the kept states leave."""
        steps: list[Step] = [
            (t, place, KeptState(state, [order.index(atom) for atom in results.atom_order]))
            for place, keeper in self._keepers.items()
            for t, state, order in keeper.kept
        ]
        others = (step for step in steps_of(self._asked, results) if step[1] not in self._keepers)
        return Evolution(results, [*steps, *others])


def without_statistics(config: EmulationConfig[Any], results: Results) -> Results:
    """The results of the configuration's observables alone: not what the emulator tells of its own steps."""
    told = Results(atom_order=results.atom_order, total_duration=results.total_duration)
    for t, place, value in sorted(steps_of(config, results), key=lambda step: step[:2]):
        told._store(observable=config.observables[place], time=t, value=value)  # noqa: SLF001  # Pulser's only way in
    return told
