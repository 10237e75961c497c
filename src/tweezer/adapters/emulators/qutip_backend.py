"""EMU_FREE: Pulser sequences solved exactly by QuTiP. Imported in the processes of lanes only."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from pulser import Sequence
from pulser.backend import EmulationConfig
from pulser_simulation import QutipBackendV2, QutipConfig
from qutip.solver.integrator import IntegratorException

from tweezer.adapters.emulators import qutip_reuse, qutip_solver
from tweezer.adapters.emulators.progress import Course
from tweezer.adapters.emulators.pulser_backend import Emulation, PulserBackend
from tweezer.adapters.emulators.pulser_configuration import Dialect, QutipKeys
from tweezer.adapters.emulators.pulser_sampling import has_jumps, is_steady, noise_of
from tweezer.adapters.emulators.qutip_sampling import StatesInstead
from tweezer.adapters.lane.backend import Refusal, Watch
from tweezer.model.messages import Fault

_FEWEST_SAMPLES = 4
_ONE_STATES = {"ground-rydberg": "r", "digital": "h"}


class Qutip:
    """An :class:`~tweezer.adapters.emulators.pulser_backend.Emulator`: ``pulser_simulation.QutipBackendV2``."""

    name = "qutip"
    packages: tuple[str, ...] = ("pulser-simulation", "qutip")
    unsolvable: tuple[type[Exception], ...] = (IntegratorException,)
    dialect = Dialect(
        QutipConfig,
        QutipKeys,
        lacks={"interaction_matrix": "QuTiP cannot replace the interactions: use EMU_SV or EMU_MPS"},
    )

    def settle(self, config: EmulationConfig[Any], sequence: Sequence[Any], runs: int | None) -> EmulationConfig[Any]:
        """Say which state counts as 1 where an atom has three: the one of the sequence's own measurement basis.

        As ``pulser_simulation.CoherentResults.sample_final_state``: without a measurement, that of the digital basis.
        """
        if not {"ground-rydberg", "digital"} <= set(sequence.get_addressed_bases()):
            return config
        measured = sequence.get_measurement_basis() if sequence.is_measured() else "digital"
        one_state = _ONE_STATES[measured]
        settled: EmulationConfig[Any] = config.with_changes(
            observables=tuple(_with_one_state(observable, one_state) for observable in config.observables)
        )
        return settled

    def fit(self, sequence: Sequence[Any]) -> Sequence[Any]:
        return sequence

    def is_deterministic(self, config: EmulationConfig[Any], sequence: Sequence[Any]) -> bool:
        noise = noise_of(config, sequence)
        return is_steady(noise) and not (has_jumps(noise) and config.solver.value == "MonteCarlo")

    def unmeasured(self, config: EmulationConfig[Any]) -> StatesInstead:
        return StatesInstead(config)

    def emulation(self, sequence: Sequence[Any], config: EmulationConfig[Any], watch: Watch) -> Emulation:
        duration_ns = sequence.get_duration(include_fall_time=config.with_modulation)
        if duration_ns * config.sampling_rate < _FEWEST_SAMPLES:
            message = f"lasts {duration_ns} ns: QuTiP needs {_FEWEST_SAMPLES} samples (sampling_rate times duration)"
            raise Refusal(Fault("user", message, "sequence"))
        total_us = duration_ns / 1000
        evolutions = 1 if self.is_deterministic(config, sequence) else config.n_trajectories
        qutip_solver.WatchedAdams.course = Course(watch, max(total_us, 1e-3), evolutions)
        return QutipBackendV2(sequence, config=config)

    def seed(self, seed: int) -> None:
        """Nothing: QuTiP draws from numpy's generator, by our patch."""


def _with_one_state(observable: Any, one_state: str) -> Any:
    """The observable, with this state as the one that measures to 1 if it needs one and its client named none."""
    if getattr(observable, "one_state", one_state) is not None:
        return observable
    changed = copy.copy(observable)
    changed.one_state = one_state
    return changed


def open_backend(watch: Watch, memo_bytes: int) -> PulserBackend:
    """The factory of this backend; changes the process it is called in (QuTiP's integrator, warnings)."""
    install()
    return PulserBackend(Qutip(), watch, memo_bytes)


def install() -> None:
    """Have this process serve QuTiP."""
    warnings.simplefilter("ignore")  # they are for who writes a sequence, not for a worker's log
    qutip_solver.install()
    qutip_reuse.install()
