"""Patches of QuTiP and ``pulser_simulation`` in a lane's process: progress, seeds, and less repeated work.

QuTiP's integrator is replaced, through QuTiP's registry, by one that goes to each evaluation time in small steps and
reports progress between them. The underlying solver chooses its first step by the distance to the requested time, and
later steps by the error alone, so the first step goes towards the evaluation time. Between its steps the solver
interpolates, so the states are exactly the same. The Monte Carlo solver takes fresh entropy from the system by default;
here it gets seeds from numpy's generator.

``Hamiltonian._get_basis_op_matrices`` builds the operators of one atom under another default data type, for which
QuTiP rebuilds its dispatch tables: about 50 ms for a job of any size. And a run without noise builds the same
Hamiltonian twice, once as the noiseless one. Both are private names of ``pulser_simulation``. If a name is missing or
has another signature, it is not patched.
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
    """QuTiP's default integrator, which reports progress and can be stopped."""

    progress: EvolutionProgress | None = None
    """The progress of the running job, in microseconds. A process runs one job at a time."""

    def set_state(self, t: float, state0: Any) -> None:
        if t == 0 and self.progress is not None:
            self.progress.begin_evolution()
        super().set_state(t, state0)
        self._is_at_start = True

    def integrate(self, t: float, copy: bool = True) -> Any:
        if self.progress is not None:
            start = self.get_state(copy=False)[0]
            parts = math.ceil((t - start) / self.progress.step)
            if self._is_at_start and parts > 1:
                super().mcstep(t, copy=False)  # one step, as long as it would be without the division
            for part in range(1, parts):
                super().integrate(start + (t - start) * part / parts, copy=False)
                self.progress.reach(start + (t - start) * part / parts)
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
    """Patch QuTiP in this process: progress and seeds."""
    Solver.add_integrator(WatchedAdams, "adams")
    qutip.mcsolve = _seeded_mcsolve


_OPERATORS, _NOISELESS = "_get_basis_op_matrices", "_get_noiseless_hamiltonian"


def install_reuse() -> None:
    """Patch ``pulser_simulation`` in this process, as far as its private names are as expected."""
    operators = inspect.getattr_static(Hamiltonian, _OPERATORS, None)
    if isinstance(operators, staticmethod) and list(inspect.signature(operators).parameters) == ["eigenbasis"]:
        setattr(Hamiltonian, _OPERATORS, staticmethod(_cache_operators(operators.__func__)))
    noiseless = inspect.getattr_static(QutipEmulator, _NOISELESS, None)
    if callable(noiseless) and list(inspect.signature(noiseless).parameters) == ["self", "leakage"]:
        setattr(QutipEmulator, _NOISELESS, _reuse_noiseless(noiseless))


def _cache_operators(build: Any) -> Any:
    """Build the operators of each eigenbasis once. Each caller gets its own dictionaries of the shared operators."""

    @lru_cache(maxsize=_BASES_KEPT)
    def built(eigenbasis: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
        basis, operators = build(list(eigenbasis))
        return basis, operators

    def copied(eigenbasis: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        basis, operators = built(tuple(eigenbasis))
        return dict(basis), dict(operators)

    return copied


def _reuse_noiseless(build: Any) -> Any:
    """Use the Hamiltonian of the run as the noiseless one when the run has no noise."""

    def noiseless(self: QutipEmulator, leakage: bool) -> Hamiltonian:
        if not leakage and self.noise_model == _NO_NOISE:
            return self._current_hamiltonian  # the run's
        built: Hamiltonian = build(self, leakage)
        return built

    return noiseless
