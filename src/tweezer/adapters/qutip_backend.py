"""EMU_FREE: Pulser sequences solved exactly by QuTiP. Imported in the processes of lanes only."""

from __future__ import annotations

import warnings
from typing import Any

from pulser import Sequence
from pulser.backend import EmulationConfig
from pulser_simulation import QutipBackendV2, QutipConfig

from tweezer.adapters import qutip_solver
from tweezer.adapters.course import Course
from tweezer.adapters.lane_backend import Watch
from tweezer.adapters.pulser_backend import Emulation, PulserBackend
from tweezer.adapters.pulser_configuration import Dialect, QutipKeys
from tweezer.adapters.pulser_sampling import has_jumps, is_steady, noise_of
from tweezer.adapters.qutip_sampling import StatesInstead


class Qutip:
    """An :class:`~tweezer.adapters.pulser_backend.Emulator`: ``pulser_simulation.QutipBackendV2``."""

    name = "qutip"
    packages: tuple[str, ...] = ("pulser-simulation", "qutip")
    dialect = Dialect(QutipConfig, QutipKeys)

    def settle(self, config: EmulationConfig[Any], sequence: Sequence[Any], runs: int | None) -> EmulationConfig[Any]:
        return config

    def fit(self, sequence: Sequence[Any]) -> Sequence[Any]:
        return sequence

    def is_deterministic(self, config: EmulationConfig[Any], sequence: Sequence[Any]) -> bool:
        noise = noise_of(config, sequence)
        return is_steady(noise) and not (has_jumps(noise) and config.solver.value == "MonteCarlo")

    def unmeasured(self, config: EmulationConfig[Any]) -> StatesInstead:
        return StatesInstead(config)

    def emulation(self, sequence: Sequence[Any], config: EmulationConfig[Any], watch: Watch) -> Emulation:
        total_us = sequence.get_duration(include_fall_time=config.with_modulation) / 1000
        evolutions = 1 if self.is_deterministic(config, sequence) else config.n_trajectories
        qutip_solver.WatchedAdams.course = Course(watch, max(total_us, 1e-3), evolutions)
        return QutipBackendV2(sequence, config=config)

    def seed(self, seed: int) -> None:
        """Nothing: QuTiP draws from numpy's generator, by our patch."""


def open_backend(watch: Watch, memo_bytes: int) -> PulserBackend:
    """The factory of this backend; changes the process it is called in (QuTiP's integrator, warnings)."""
    install()
    return PulserBackend(Qutip(), watch, memo_bytes)


def install() -> None:
    """Have this process serve QuTiP."""
    warnings.simplefilter("ignore")  # they are for who writes a sequence, not for a worker's log
    qutip_solver.install()
