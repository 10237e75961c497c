"""EMU_MPS, formerly EMU_TN: tensor networks with emu-mps. Imported in lane processes only."""

from __future__ import annotations

from typing import Any

from emu_mps import MPSBackend, MPSConfig
from emu_mps.mps_backend_impl import MPSBackendImpl
from pulser import Sequence
from pulser.backend import BitStrings, CorrelationMatrix, EmulationConfig, Occupation

from tweezer.adapters.emulators.pulser_backend import PulserBackend
from tweezer.adapters.emulators.pulser_configuration import Dialect, TensorKeys
from tweezer.adapters.emulators.pulser_sampling import is_deterministic
from tweezer.adapters.emulators.torch_emulator import TorchEmulator, configure_hardware
from tweezer.adapters.lane.backend import Watch

_REORDERED = (BitStrings, Occupation, CorrelationMatrix)

_OLDER = {"dt": {}, "max_bond_dim": {}, "precision": {"low": 1e-4, "normal": 1e-5, "high": 1e-6}}
"""Keys of EMU_TN's configuration in pasqal-cloud. The values of ``precision`` are our choice; ``normal`` is emu-mps'
default."""


class EmuMPS(TorchEmulator):
    """An :class:`~tweezer.adapters.emulators.pulser_backend.Emulator`: ``emu_mps.MPSBackend``."""

    name = "emu-mps"
    packages: tuple[str, ...] = ("emu-mps", "torch")
    library = MPSBackend
    bases = frozenset({"ground-rydberg", "XY"})
    fewest_atoms = 2

    def settle(self, config: EmulationConfig[Any], sequence: Sequence[Any], runs: int | None) -> EmulationConfig[Any]:
        """As the base class, but keep the register's order of qubits where emu-mps would not restore it.

        emu-mps 2.10.1 restores the order of ``bitstrings``, ``occupation`` and ``correlation_matrix``, but not of those
        with a tag suffix.
        """
        settled = super().settle(config, sequence, runs)
        suffixed = any(
            isinstance(observable, _REORDERED) and "_" in observable.tag.removeprefix(observable._base_tag)  # noqa: SLF001  # the tag without its suffix
            for observable in settled.observables
        )
        if not (suffixed and settled.optimize_qubit_ordering):
            return settled
        changed: EmulationConfig[Any] = settled.with_changes(optimize_qubit_ordering=False)
        return changed

    def is_deterministic(self, config: EmulationConfig[Any], sequence: Sequence[Any]) -> bool:
        return is_deterministic(config, sequence, draws_jumps=True)


def open_backend(watch: Watch, memo_bytes: int) -> PulserBackend:
    """Make this backend. Sets the threads and warning filters of the process.

    emu-mps would save its state to a file after each update of a pair of tensors. Instead it checks there whether the
    job must stop, because one step of a large state takes minutes.
    """

    def check(_: MPSBackendImpl) -> None:
        watch.check()

    MPSBackendImpl.save_simulation = check
    dialect = Dialect(MPSConfig, TensorKeys, configure_hardware(), full_times=False, older=_OLDER)
    return PulserBackend(EmuMPS(dialect), watch, memo_bytes)
