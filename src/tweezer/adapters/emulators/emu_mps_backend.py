"""EMU_MPS, and EMU_TN as it was called before: tensor networks, by emu-mps. Imported in the processes of lanes only."""

from __future__ import annotations

from typing import Any

from emu_mps import MPSBackend, MPSConfig
from emu_mps.mps_backend_impl import MPSBackendImpl
from pulser import Sequence
from pulser.backend import BitStrings, CorrelationMatrix, EmulationConfig, Occupation

from tweezer.adapters.emulators.pulser_backend import PulserBackend
from tweezer.adapters.emulators.pulser_configuration import Dialect, TensorKeys
from tweezer.adapters.emulators.pulser_sampling import is_deterministic
from tweezer.adapters.emulators.torch_emulator import TorchEmulator, chosen_hardware
from tweezer.adapters.lane.backend import Watch

_PUT_BACK_BY_TAG = (BitStrings, Occupation, CorrelationMatrix)


_OLDER = {"dt": {}, "max_bond_dim": {}, "precision": {"low": 1e-4, "normal": 1e-5, "high": 1e-6}}
"""Of EMU_TN's configuration in pasqal-cloud; what the words mean is our choice, normal being emu-mps' own."""


class EmuMPS(TorchEmulator):
    """An :class:`~tweezer.adapters.emulators.pulser_backend.Emulator`: ``emu_mps.MPSBackend``."""

    name = "emu-mps"
    packages: tuple[str, ...] = ("emu-mps", "torch")
    library = MPSBackend
    bases = frozenset({"ground-rydberg", "XY"})
    fewest_atoms = 2

    def settle(self, config: EmulationConfig[Any], sequence: Sequence[Any], runs: int | None) -> EmulationConfig[Any]:
        """As above, and in the register's order where emu-mps would not find the way back from its own.

        It puts ``bitstrings``, ``occupation`` and ``correlation_matrix`` back into order, but not those with a suffix
        (2.10.1).
        """
        settled = super().settle(config, sequence, runs)
        suffixed = any(
            isinstance(observable, _PUT_BACK_BY_TAG) and "_" in observable.tag.removeprefix(observable._base_tag)  # noqa: SLF001  # the tag without its suffix
            for observable in settled.observables
        )
        if not (suffixed and settled.optimize_qubit_ordering):
            return settled
        changed: EmulationConfig[Any] = settled.with_changes(optimize_qubit_ordering=False)
        return changed

    def is_deterministic(self, config: EmulationConfig[Any], sequence: Sequence[Any]) -> bool:
        return is_deterministic(config, sequence, draws_jumps=True)


def open_backend(watch: Watch, memo_bytes: int) -> PulserBackend:
    """Make this backend; sets threads and warnings of the process it is called in.

    Where emu-mps would save its state to a file, after each update of a pair of tensors, it looks up instead: a
    step of a large state takes minutes.
    """

    def look_up(_: MPSBackendImpl) -> None:
        watch.check()

    MPSBackendImpl.save_simulation = look_up
    dialect = Dialect(MPSConfig, TensorKeys, chosen_hardware(), full_times=False, older=_OLDER)
    return PulserBackend(EmuMPS(dialect), watch, memo_bytes)
