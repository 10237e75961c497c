"""EMU_SV: state vectors with emu-sv. Imported in lane processes only."""

from __future__ import annotations

from typing import Any

from emu_sv import SVBackend, SVConfig
from pulser import Sequence
from pulser.backend import EmulationConfig

from tweezer.adapters.emulators.pulser_backend import PulserBackend
from tweezer.adapters.emulators.pulser_configuration import Dialect, StateVectorKeys
from tweezer.adapters.emulators.pulser_sampling import is_deterministic
from tweezer.adapters.emulators.torch_emulator import TorchEmulator, configure_hardware
from tweezer.adapters.lane.backend import Watch


class EmuSV(TorchEmulator):
    """An :class:`~tweezer.adapters.emulators.pulser_backend.Emulator`: ``emu_sv.SVBackend``."""

    name = "emu-sv"
    packages: tuple[str, ...] = ("emu-sv", "torch")
    library = SVBackend
    bases = frozenset({"ground-rydberg"})

    def is_deterministic(self, config: EmulationConfig[Any], sequence: Sequence[Any]) -> bool:
        return is_deterministic(config, sequence, draws_jumps=config.solver == "montecarlo")


def open_backend(watch: Watch, memo_bytes: int) -> PulserBackend:
    """Make this backend. Sets the threads and warning filters of the process."""
    dialect = Dialect(SVConfig, StateVectorKeys, configure_hardware(), full_times=False)
    return PulserBackend(EmuSV(dialect), watch, memo_bytes)
