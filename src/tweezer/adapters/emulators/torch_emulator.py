"""What emu-sv and emu-mps have in common. Imported in the processes of lanes only.

Which threads and GPU they use is in the environment of the process (``OMP_NUM_THREADS``, ``CUDA_VISIBLE_DEVICES``),
which is the operator's; see :mod:`tweezer.adapters.lane.process`.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from typing import Any

import numpy as np
import torch
from pulser import Sequence
from pulser.backend import EmulationConfig, EmulatorBackend, Results

from tweezer.adapters.emulators.progress import Course
from tweezer.adapters.emulators.pulser_configuration import FIELD, Dialect
from tweezer.adapters.emulators.pulser_sequences import FIELD as SEQUENCE
from tweezer.adapters.emulators.pulser_sequences import brief
from tweezer.adapters.emulators.torch_sampling import Bystander, KeptInstead, without_statistics
from tweezer.adapters.lane.backend import Refusal, Watch
from tweezer.model.messages import Fault

_NO_MEMORY = ("can't allocate memory", "out of memory")
_SHORT_SEEDS = 1 << 32
_LONGEST_GRID = 100_000
_SHORTEST_NS = 2
_ONE_ATOM = "1 qubit states"  # of emu-mps, when errors of the preparation left a single atom


def chosen_hardware() -> dict[str, Any]:
    """What the operator decides of a configuration. Sets the threads and silences warnings in this process.

    Raises ``OSError`` where a GPU is asked for and there is none.
    """
    warnings.simplefilter("ignore")  # they are for who writes a sequence, not for a worker's log
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    gpu = bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpu and not torch.cuda.is_available():
        raise OSError(
            f"the device's option gpus asks for a GPU, but torch {torch.__version__} sees none: install a CUDA build "
            "of torch and check nvidia-smi, or leave gpus out to run on the CPU"
        )
    return {"gpu": gpu, "log_level": logging.WARNING}


class Listener(Bystander):
    """Tells the course of an evolution, and hears there that it is to stop.

    It looks at times that the emulator goes through anyway, so that the steps are what they would be without.
    """

    def __init__(self, course: Course, duration_ns: float, dt: float) -> None:
        steps = min(math.floor(duration_ns / dt), _LONGEST_GRID)
        grid = sorted({min(step * dt / duration_ns, 1.0) for step in range(steps + 1)})
        super().__init__(grid, "heard")
        self._course = course

    def __call__(self, config: Any, t: float, state: Any, hamiltonian: Any, result: Results) -> None:
        if t == 0:
            self._course.begin_evolution()
        self._course.reach(t)


class TorchEmulation:
    """One run, with the libraries' errors sorted."""

    def __init__(self, backend: EmulatorBackend, config: EmulationConfig[Any]) -> None:
        self._backend = backend
        self._config = config

    def run(self) -> Results:
        """The results of the configuration's observables."""
        try:
            results: Any = self._backend.run()
        except (AssertionError, RecursionError) as error:  # so they say what they do not take, or do not converge to
            raise Refusal(Fault("user", f"cannot be emulated: {brief(error)}", FIELD)) from error
        except ValueError as error:
            if _ONE_ATOM not in str(error):
                raise
            message = (
                "state preparation errors left a single atom, which emu-mps cannot emulate; use EMU_SV or EMU_FREE"
            )
            raise Refusal(Fault("user", message, f"{FIELD}.noise_model")) from error
        except RuntimeError as error:
            if any(words in str(error).lower() for words in _NO_MEMORY):
                raise MemoryError(brief(error)) from error
            if "converge" in str(error):
                raise Refusal(Fault("user", f"cannot be emulated: {brief(error)}", FIELD)) from error
            raise
        return without_statistics(self._config, results)


class TorchEmulator:
    """What emu-sv and emu-mps have in common of an :class:`~tweezer.adapters.emulators.pulser_backend.Emulator`."""

    name: str
    packages: tuple[str, ...]
    library: type[EmulatorBackend]
    bases: frozenset[str]
    fewest_atoms = 1
    unsolvable: tuple[type[Exception], ...] = ()

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect

    def settle(self, config: EmulationConfig[Any], sequence: Sequence[Any], runs: int | None) -> EmulationConfig[Any]:
        """Where nothing is random one trajectory says it all, as with QuTiP."""
        changes: dict[str, Any] = {}
        if self.is_deterministic(config, sequence) and config.n_trajectories != 1:
            changes["n_trajectories"] = 1
        return config.with_changes(**changes) if changes else config

    def is_deterministic(self, config: EmulationConfig[Any], sequence: Sequence[Any]) -> bool:
        raise NotImplementedError

    def fit(self, sequence: Sequence[Any]) -> Sequence[Any]:
        for name, channel in sequence.declared_channels.items():
            if channel.basis not in self.bases:
                message = f"{name} addresses the {channel.basis} basis, which {self.name} cannot emulate; EMU_FREE can"
                raise Refusal(Fault("user", message, SEQUENCE))
        atoms = len(sequence.register.qubit_ids)
        if atoms < self.fewest_atoms:
            message = (
                f"has {atoms} atom, and {self.name} needs at least {self.fewest_atoms}; EMU_SV and EMU_FREE take it"
            )
            raise Refusal(Fault("user", message, SEQUENCE))
        return sequence

    def unmeasured(self, config: EmulationConfig[Any]) -> KeptInstead:
        return KeptInstead(config)

    def emulation(self, sequence: Sequence[Any], config: EmulationConfig[Any], watch: Watch) -> TorchEmulation:
        course = Course(watch, 1.0, 1 if self.is_deterministic(config, sequence) else config.n_trajectories)
        duration_ns = sequence.get_duration(include_fall_time=config.with_modulation)
        if duration_ns < _SHORTEST_NS:
            message = f"lasts {duration_ns} ns; {self.name} needs at least {_SHORTEST_NS} ns"
            raise Refusal(Fault("user", message, SEQUENCE))
        listener = Listener(course, max(float(duration_ns), 1.0), config.dt)
        heard: EmulationConfig[Any] = config.with_changes(observables=(*config.observables, listener))
        return TorchEmulation(self.library(sequence, config=heard), config)

    def seed(self, seed: int) -> None:
        """A seed of up to 32 bits is as torch takes it; of a longer one it would heed as many."""
        torch.manual_seed(seed if seed < _SHORT_SEEDS else int(np.random.SeedSequence(seed).generate_state(1)[0]))
