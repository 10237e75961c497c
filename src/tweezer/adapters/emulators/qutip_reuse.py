"""Reuse what ``pulser_simulation`` computes again for every job although it is always the same.

``Hamiltonian._get_basis_op_matrices`` builds the operators of one atom under another default data type, for which
QuTiP rebuilds its dispatch tables: about 50 ms a job, whatever its size. And a run without noise builds the same
Hamiltonian twice, once as the noiseless one. Both are private names of ``pulser_simulation``: where one is missing or
is something else, the library works as it is.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

from pulser.noise_model import NoiseModel
from pulser_simulation.hamiltonian import Hamiltonian
from pulser_simulation.simulation import QutipEmulator

_OPERATORS, _NOISELESS = "_get_basis_op_matrices", "_get_noiseless_hamiltonian"
_BASES_KEPT = 32
_NO_NOISE = NoiseModel()


def install() -> None:
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
