"""EMU_FREE: Pulser sequences solved exactly by QuTiP. Imported in lane processes only."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from pulser import Sequence
from pulser.backend import BitStrings, EmulationConfig, Results, StateResult
from pulser.backend.state import Eigenstate
from pulser_simulation import QutipBackendV2, QutipConfig, QutipState
from qutip.solver.integrator import IntegratorException

from tweezer.adapters.emulators import qutip_patches
from tweezer.adapters.emulators.pulser_backend import Emulation, EvolutionProgress, PulserBackend
from tweezer.adapters.emulators.pulser_configuration import Dialect, QutipKeys
from tweezer.adapters.emulators.pulser_sampling import Evolution, Measurable, Step, is_deterministic, list_steps
from tweezer.adapters.lane.backend import Refusal, Watch
from tweezer.model.messages import Fault

_FEWEST_SAMPLES = 4
_ONE_STATES = {"ground-rydberg": "r", "digital": "h"}


class Distribution(QutipState, Measurable):
    """The probabilities of a state's basis states, which suffice for sampling and take at most half the memory."""

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
        indices, chances = self._select_likely(cutoff)
        return dict(zip(map(self.get_basis_state_from_index, indices.tolist()), chances, strict=True))

    def bitstring_probabilities(
        self, *, one_state: Eigenstate | None = None, cutoff: float = 1e-12
    ) -> Mapping[str, float]:
        """As :meth:`QutipState.bitstring_probabilities`; faster for qubits, whose binary indices are bitstrings."""
        one = one_state or self.infer_one_state()
        if self.qudit_dim != 2 or one not in self.eigenstates:
            return super().bitstring_probabilities(one_state=one_state, cutoff=cutoff)
        indices, chances = self._select_likely(cutoff)
        flip = (1 << self._n_qudits) - 1 if self.eigenstates[0] == one else 0
        spelling = f"0{self._n_qudits}b"
        return dict(zip((format(index ^ flip, spelling) for index in indices.tolist()), chances, strict=True))

    def _select_likely(self, cutoff: float) -> tuple[Any, Any]:
        indices = np.flatnonzero(self._weights > cutoff)
        chances = self._weights[indices]
        return indices, chances / np.sum(chances)


class StatesInResults:
    """A configuration that records states in place of bitstrings."""

    def __init__(self, config: EmulationConfig[Any]) -> None:
        self._requested = config
        observables = tuple(
            StateResult(evaluation_times=_list_times(observable.evaluation_times), tag_suffix=f"instead_of_{place}")
            if isinstance(observable, BitStrings)
            else observable
            for place, observable in enumerate(config.observables)
        )
        self.config: EmulationConfig[Any] = config.with_changes(observables=observables)

    def make_evolution(self, results: Results) -> Evolution:
        steps: list[Step] = [
            (t, place, Distribution(value) if isinstance(self._requested.observables[place], BitStrings) else value)
            for t, place, value in list_steps(self.config, results)
        ]
        return Evolution(results, steps)


def _list_times(times: Any) -> list[float] | None:
    return None if times is None else [float(t) for t in times]


class Qutip:
    """An :class:`~tweezer.adapters.emulators.pulser_backend.Emulator`: ``pulser_simulation.QutipBackendV2``."""

    name = "qutip"
    packages: tuple[str, ...] = ("pulser-simulation", "qutip")
    unsolvable: tuple[type[Exception], ...] = (IntegratorException,)
    dialect = Dialect(
        QutipConfig,
        QutipKeys,
        unsupported={
            "interaction_matrix": "QuTiP cannot replace the interactions; use EMU_SV or EMU_MPS, or remove it"
        },
    )

    def settle(self, config: EmulationConfig[Any], sequence: Sequence[Any], runs: int | None) -> EmulationConfig[Any]:
        """Define which state counts as 1 if atoms have three states: the one of the sequence's measurement basis.

        Without a measurement it is that of the digital basis, as in
        ``pulser_simulation.CoherentResults.sample_final_state``.
        """
        if not {"ground-rydberg", "digital"} <= set(sequence.get_addressed_bases()):
            return config
        measured = sequence.get_measurement_basis() if sequence.is_measured() else "digital"
        one_state = _ONE_STATES[measured]
        settled: EmulationConfig[Any] = config.with_changes(
            observables=tuple(_set_one_state(observable, one_state) for observable in config.observables)
        )
        return settled

    def fit(self, sequence: Sequence[Any]) -> Sequence[Any]:
        return sequence

    def is_deterministic(self, config: EmulationConfig[Any], sequence: Sequence[Any]) -> bool:
        return is_deterministic(config, sequence, draws_jumps=config.solver.value == "MonteCarlo")

    def make_unmeasured(self, config: EmulationConfig[Any]) -> StatesInResults:
        return StatesInResults(config)

    def make_emulation(self, sequence: Sequence[Any], config: EmulationConfig[Any], watch: Watch) -> Emulation:
        duration_ns = sequence.get_duration(include_fall_time=config.with_modulation)
        if duration_ns * config.sampling_rate < _FEWEST_SAMPLES:
            message = (
                f"lasts {duration_ns} ns, which at a sampling_rate of {config.sampling_rate:g} is less than the "
                f"{_FEWEST_SAMPLES} samples that QuTiP needs; make it longer or raise the sampling_rate"
            )
            raise Refusal(Fault("user", message, "sequence"))
        total_us = duration_ns / 1000
        evolutions = 1 if self.is_deterministic(config, sequence) else config.n_trajectories
        qutip_patches.WatchedAdams.progress = EvolutionProgress(watch, max(total_us, 1e-3), duration_ns, evolutions)
        return QutipBackendV2(sequence, config=config)

    def seed(self, seed: int) -> None:
        """Do nothing: with our patch QuTiP draws from numpy's generator."""


def _set_one_state(observable: Any, one_state: str) -> Any:
    """Return the observable with this state as the one that counts as 1, unless it has one or needs none."""
    if getattr(observable, "one_state", one_state) is not None:
        return observable
    changed = copy.copy(observable)
    changed.one_state = one_state
    return changed


def open_backend(watch: Watch, memo_bytes: int) -> PulserBackend:
    """Make this backend. Replaces QuTiP's integrator and silences warnings in the process."""
    install()
    return PulserBackend(Qutip(), watch, memo_bytes)


def install() -> None:
    """Patch QuTiP and silence warnings in this process."""
    warnings.simplefilter("ignore")  # they are for the author of a sequence, not for the worker's log
    qutip_patches.install_solver()
    qutip_patches.install_reuse()
