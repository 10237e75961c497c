"""The common part of emu-sv and emu-mps. Imported in lane processes only.

The operator decides how many threads and which GPU they use, by variables of the process's environment
(``OMP_NUM_THREADS``, ``CUDA_VISIBLE_DEVICES``); see :mod:`tweezer.adapters.lane.process`.

States that replace bitstrings are kept by an observable. They are not taken from the results as with QuTiP, because
emu-mps gives up its ordering of the qubits if a state is among the results.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import warnings
from collections import Counter
from typing import Any

import numpy as np
import torch
from pulser import Sequence
from pulser.backend import BitStrings, EmulationConfig, EmulatorBackend, Observable, Results
from pulser.backend.observable import AggregationMethod

from tweezer.adapters.emulators.pulser_backend import EvolutionProgress
from tweezer.adapters.emulators.pulser_configuration import FIELD, Dialect
from tweezer.adapters.emulators.pulser_sampling import Evolution, Measurable, Step, list_steps
from tweezer.adapters.emulators.pulser_sequences import FIELD as SEQUENCE
from tweezer.adapters.emulators.pulser_sequences import describe_error
from tweezer.adapters.lane.backend import Refusal, Watch
from tweezer.model.messages import Fault

_NO_MEMORY = ("can't allocate memory", "out of memory")
_SHORT_SEEDS = 1 << 32
_LONGEST_GRID = 100_000
_SHORTEST_NS = 2
_ONE_ATOM = "1 qubit states"  # in emu-mps' error if preparation errors left a single atom

QUIET_TAG = "statistics"
"""The tag of observables for which emu-mps never gives up its ordering of the qubits."""


class SilentObserver(Observable):
    """An observable that is called at its times and stores nothing in the results."""

    def __init__(self, evaluation_times: Any, tag_suffix: str) -> None:
        super().__init__(
            evaluation_times=None if evaluation_times is None else [float(t) for t in evaluation_times],
            tag_suffix=tag_suffix,
            default_aggregation_method=AggregationMethod.SKIP,
        )

    @property
    def _base_tag(self) -> str:
        return QUIET_TAG

    def __deepcopy__(self, memo: dict[int, Any]) -> SilentObserver:
        return self  # configurations are copied often, and the calls must reach this object

    def apply(self, **_: Any) -> None:
        """Return nothing to store."""


class StateObserver(SilentObserver):
    """Keeps the states at the times of one observable.

    kept: Time (0 to 1), state, and the order of its atoms.
    """

    def __init__(self, evaluation_times: Any, place: int) -> None:
        super().__init__(evaluation_times, f"instead_of_{place}")
        self.kept: list[tuple[float, Any, tuple[Any, ...]]] = []

    def __call__(self, config: Any, t: float, state: Any, hamiltonian: Any, result: Results) -> None:
        tolerance = 0.5 / result.total_duration if result.total_duration else 1e-6
        own = self.evaluation_times
        wanted = (
            config.is_evaluation_time(t, tol=tolerance)
            if own is None
            else config.is_time_in_evaluation_times(t, own, tol=tolerance)
        )
        if wanted:
            self.kept.append((t, copy.deepcopy(state), tuple(result.atom_order)))


class KeptState(Measurable):
    """A state of emu-sv or emu-mps.

    order: The position in the state of each atom of the register.
    """

    def __init__(self, state: Any, order: list[int]) -> None:
        self._state = state
        self._order = None if order == sorted(order) else order
        tensors = state.factors if hasattr(state, "factors") else [state.data]
        self.nbytes = sum(tensor.nbytes for tensor in tensors)
        if hasattr(state, "orthogonalize"):
            state.orthogonalize(0)  # as sampling does, so that the first sample equals later ones

    def measure(self, observable: BitStrings, config: EmulationConfig[Any]) -> Counter[str]:
        counter = observable.apply(config=config, state=self._state)
        order = self._order
        if order is None:
            return counter
        return Counter({"".join(bits[place] for place in order): count for bits, count in counter.items()})


class StatesInMemory:
    """A configuration that keeps states in place of bitstrings."""

    def __init__(self, config: EmulationConfig[Any]) -> None:
        self._requested = config
        self._observers = {
            place: StateObserver(observable.evaluation_times, place)
            for place, observable in enumerate(config.observables)
            if isinstance(observable, BitStrings)
        }
        observables = tuple(
            self._observers.get(place, observable) for place, observable in enumerate(config.observables)
        )
        self.config: EmulationConfig[Any] = config.with_changes(observables=observables)

    def make_evolution(self, results: Results) -> Evolution:
        steps: list[Step] = [
            (t, place, KeptState(state, [order.index(atom) for atom in results.atom_order]))
            for place, observer in self._observers.items()
            for t, state, order in observer.kept
        ]
        others = (step for step in list_steps(self._requested, results) if step[1] not in self._observers)
        return Evolution(results, [*steps, *others])


def drop_statistics(config: EmulationConfig[Any], results: Results) -> Results:
    """Return the results of the configuration's observables, without the emulator's statistics of its steps."""
    kept = Results(atom_order=results.atom_order, total_duration=results.total_duration)
    for t, place, value in sorted(list_steps(config, results), key=lambda step: step[:2]):
        kept._store(observable=config.observables[place], time=t, value=value)  # noqa: SLF001  # Pulser's only way in
    return kept


def configure_hardware() -> dict[str, Any]:
    """Set torch's threads, silence warnings, and return the options that the operator decides.

    Raises ``OSError`` if a GPU is requested and torch finds none.
    """
    warnings.simplefilter("ignore")  # they are for the author of a sequence, not for the worker's log
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    gpu = bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpu and not torch.cuda.is_available():
        raise OSError(
            f"the device's option gpus requests a GPU, but torch {torch.__version__} finds none; install a CUDA build "
            "of torch and check nvidia-smi, or remove gpus to run on the CPU"
        )
    return {"gpu": gpu, "log_level": logging.WARNING}


class ProgressObserver(SilentObserver):
    """Reports the progress of an evolution, and stops it on request.

    It is called at times that the emulator reaches anyway, so it does not change the emulator's steps.
    """

    def __init__(self, progress: EvolutionProgress, duration_ns: float, dt: float) -> None:
        steps = min(math.floor(duration_ns / dt), _LONGEST_GRID)
        grid = sorted({min(step * dt / duration_ns, 1.0) for step in range(steps + 1)})
        super().__init__(grid, "progress")
        self._progress = progress

    def __call__(self, config: Any, t: float, state: Any, hamiltonian: Any, result: Results) -> None:
        if t == 0:
            self._progress.begin_evolution()
        self._progress.reach(t)


class TorchEmulation:
    """One run, which translates the libraries' errors."""

    def __init__(self, backend: EmulatorBackend, config: EmulationConfig[Any]) -> None:
        self._backend = backend
        self._config = config

    def run(self) -> Results:
        """Return the results of the configuration's observables."""
        try:
            results: Any = self._backend.run()
        except (AssertionError, RecursionError) as error:  # raised for invalid input, or if a solver does not converge
            raise Refusal(Fault("user", f"cannot be emulated: {describe_error(error)}", FIELD)) from error
        except ValueError as error:
            if _ONE_ATOM not in str(error):
                raise
            message = (
                "state preparation errors left a single atom, which emu-mps cannot emulate; use EMU_SV or EMU_FREE"
            )
            raise Refusal(Fault("user", message, f"{FIELD}.noise_model")) from error
        except RuntimeError as error:
            if any(words in str(error).lower() for words in _NO_MEMORY):
                raise MemoryError(describe_error(error)) from error
            if "converge" in str(error):
                raise Refusal(Fault("user", f"cannot be emulated: {describe_error(error)}", FIELD)) from error
            raise
        return drop_statistics(self._config, results)


class TorchEmulator:
    """The base class of the :class:`~tweezer.adapters.emulators.pulser_backend.Emulator` of emu-sv and of emu-mps."""

    name: str
    packages: tuple[str, ...]
    library: type[EmulatorBackend]
    bases: frozenset[str]
    fewest_atoms = 1
    unsolvable: tuple[type[Exception], ...] = ()

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect

    def settle(self, config: EmulationConfig[Any], sequence: Sequence[Any], runs: int | None) -> EmulationConfig[Any]:
        """Run one trajectory if the evolution has no randomness, as QuTiP does."""
        changes: dict[str, Any] = {}
        if self.is_deterministic(config, sequence) and config.n_trajectories != 1:
            changes["n_trajectories"] = 1
        return config.with_changes(**changes) if changes else config

    def is_deterministic(self, config: EmulationConfig[Any], sequence: Sequence[Any]) -> bool:
        raise NotImplementedError

    def fit(self, sequence: Sequence[Any]) -> Sequence[Any]:
        for name, channel in sequence.declared_channels.items():
            if channel.basis not in self.bases:
                message = (
                    f"channel {name!r} has the {channel.basis} basis, which {self.name} cannot emulate; use EMU_FREE"
                )
                raise Refusal(Fault("user", message, SEQUENCE))
        atoms = len(sequence.register.qubit_ids)
        if atoms < self.fewest_atoms:
            message = (
                f"must have at least {self.fewest_atoms} atoms for {self.name} (got {atoms}); use EMU_SV or EMU_FREE"
            )
            raise Refusal(Fault("user", message, SEQUENCE))
        return sequence

    def make_unmeasured(self, config: EmulationConfig[Any]) -> StatesInMemory:
        return StatesInMemory(config)

    def make_emulation(self, sequence: Sequence[Any], config: EmulationConfig[Any], watch: Watch) -> TorchEmulation:
        duration_ns = sequence.get_duration(include_fall_time=config.with_modulation)
        if duration_ns < _SHORTEST_NS:
            message = f"must last at least {_SHORTEST_NS} ns for {self.name} (got {duration_ns} ns)"
            raise Refusal(Fault("user", message, SEQUENCE))
        evolutions = 1 if self.is_deterministic(config, sequence) else config.n_trajectories
        progress = EvolutionProgress(watch, 1.0, duration_ns, evolutions)
        observer = ProgressObserver(progress, max(float(duration_ns), 1.0), config.dt)
        observed: EmulationConfig[Any] = config.with_changes(observables=(*config.observables, observer))
        return TorchEmulation(self.library(sequence, config=observed), config)

    def seed(self, seed: int) -> None:
        """Seed torch. A longer seed is hashed to 32 bits, because torch would ignore its other bits."""
        torch.manual_seed(seed if seed < _SHORT_SEEDS else int(np.random.SeedSequence(seed).generate_state(1)[0]))
