"""What a lane's process changes in QuTiP and ``pulser_simulation``: progress, seeds, and less work done twice.

QuTiP's integrator is replaced (by its own registry) by one that goes to each evaluation time in small
steps and looks up between them. The solver behind it chooses its first step by how far it is asked to go, and its
later ones by the error alone; so it makes the first one towards the evaluation time. Between its own steps it
interpolates, so the states are exactly the same. The Monte Carlo solver, which takes fresh entropy from the system, is
handed seeds from numpy's generator instead.

``Hamiltonian._get_basis_op_matrices`` builds the operators of one atom under another default data type, for which
QuTiP rebuilds its dispatch tables: about 50 ms a job, whatever its size. And a run without noise builds the same
Hamiltonian twice, once as the noiseless one. Both are private names of ``pulser_simulation``: where one is missing or
is something else, the library works as it is.
"""

from __future__ import annotations

import inspect
import math
from functools import lru_cache
from typing import Any

import numpy as np
import qutip
from pulser.noise_model import NoiseModel
from pulser_simulation.hamiltonian import Hamiltonian
from pulser_simulation.simulation import QutipEmulator
from qutip.solver.integrator.scipy_integrator import IntegratorScipyAdams
from qutip.solver.solver_base import Solver

from tweezer.adapters.emulators.pulser_backend import EvolutionProgress

_BASES_KEPT = 32
_NO_NOISE = NoiseModel()


class WatchedAdams(IntegratorScipyAdams):  # type: ignore[misc]  # QuTiP has no types
    """QuTiP's default integrator, looking up as it goes."""

    progress: EvolutionProgress | None = None
    """Of the running job, in microseconds as in Pulser; there is one job at a time in a process."""

    def set_state(self, t: float, state0: Any) -> None:
        if t == 0 and self.progress is not None:
            self.progress.begin_evolution()
        super().set_state(t, state0)
        self._is_at_start = True

    def integrate(self, t: float, copy: bool = True) -> Any:
        if self.progress is not None:
            start = self.get_state(copy=False)[0]
            looks = math.ceil((t - start) / self.progress.step)
            if self._is_at_start and looks > 1:
                super().mcstep(t, copy=False)  # one step of its own, as long as it would be without us
            for look in range(1, looks):
                super().integrate(start + (t - start) * look / looks, copy=False)
                self.progress.reach(start + (t - start) * look / looks)
        self._is_at_start = False
        return super().integrate(t, copy)

    def mcstep(self, t: float, copy: bool = True) -> Any:
        if self.progress is not None:
            self.progress.reach(self.get_state(copy=False)[0])
        return super().mcstep(t, copy)


_unseeded_mcsolve = qutip.mcsolve


def _seeded_mcsolve(*arguments: Any, **options: Any) -> Any:
    options.setdefault("seeds", int(np.random.randint(1 << 32, dtype=np.uint64)))
    return _unseeded_mcsolve(*arguments, **options)


def install_solver() -> None:
    """Have QuTiP use all of this, in this process."""
    Solver.add_integrator(WatchedAdams, "adams")
    qutip.mcsolve = _seeded_mcsolve


_OPERATORS, _NOISELESS = "_get_basis_op_matrices", "_get_noiseless_hamiltonian"


def install_reuse() -> None:
    """Change ``pulser_simulation`` in this process, where it is as expected."""
    operators = inspect.getattr_static(Hamiltonian, _OPERATORS, None)
    if isinstance(operators, staticmethod) and list(inspect.signature(operators).parameters) == ["eigenbasis"]:
        setattr(Hamiltonian, _OPERATORS, staticmethod(_remembered(operators.__func__)))
    noiseless = inspect.getattr_static(QutipEmulator, _NOISELESS, None)
    if callable(noiseless) and list(inspect.signature(noiseless).parameters) == ["self", "leakage"]:
        setattr(QutipEmulator, _NOISELESS, _current_if_noiseless(noiseless))


def _remembered(build: Any) -> Any:
    """Build the operators of each eigenbasis once. Each caller gets its own dictionaries of shared operators."""

    @lru_cache(maxsize=_BASES_KEPT)
    def built(eigenbasis: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
        basis, operators = build(list(eigenbasis))
        return basis, operators

    def copied(eigenbasis: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        basis, operators = built(tuple(eigenbasis))
        return dict(basis), dict(operators)

    return copied


def _current_if_noiseless(build: Any) -> Any:
    """Use the Hamiltonian of the run as the noiseless one when the run has no noise."""

    def noiseless(self: QutipEmulator, leakage: bool) -> Hamiltonian:
        if not leakage and self.noise_model == _NO_NOISE:
            return self._current_hamiltonian  # that of the run
        built: Hamiltonian = build(self, leakage)
        return built

    return noiseless
