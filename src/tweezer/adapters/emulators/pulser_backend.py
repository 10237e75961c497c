"""Runs Pulser sequences on any emulator library. Imported in lane processes only."""

from __future__ import annotations

import json
import random
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np
from pulser import Sequence
from pulser.backend import EmulationConfig, Results
from pulser.exceptions.serialization import AbstractReprError

from tweezer.adapters.emulators.pulser_configuration import FIELD, Configuration, Dialect, read_configuration
from tweezer.adapters.emulators.pulser_sampling import Evolution
from tweezer.adapters.emulators.pulser_sequences import ParsedSequence, Sequences, describe_error, find_infinite_channel
from tweezer.adapters.lane.backend import Execution, Refusal, Watch
from tweezer.model.lru import Recent
from tweezer.model.messages import BatchWork, Fault, JobWork, Provenance, Result, Steps

_CHECKS = 100
_CONFIGURATIONS_KEPT = 16
_EVOLUTION_SEED = 0  # of a shared evolution: emu-mps tries random orders of the qubits and takes the best
USER_ERRORS: tuple[type[Exception], ...] = (ValueError, TypeError, NotImplementedError, AbstractReprError)
"""The errors that Pulser and its emulators raise for invalid input."""


class Emulation(Protocol):
    """One run of an emulator, ready to start."""

    def run(self) -> Results: ...


class Unmeasured(Protocol):
    """A configuration that keeps states instead of sampling bitstrings."""

    config: EmulationConfig[Any]

    def make_evolution(self, results: Results) -> Evolution:
        """Return the evolution, from the results of a run with ``config``."""


class Emulator(Protocol):
    """The interface to one emulator library.

    Its methods raise :class:`~tweezer.adapters.lane.backend.Refusal`, or one of ``USER_ERRORS``, for invalid input.

    Attributes:
        name: The backend's name in the provenance of results.
        packages: The packages whose versions are recorded in the provenance.
        dialect: How the library is configured.
        unsolvable: The errors, besides ``USER_ERRORS``, that its solver raises for pulses that it cannot integrate.
    """

    name: str
    packages: tuple[str, ...]
    dialect: Dialect
    unsolvable: tuple[type[Exception], ...]

    def settle(self, config: EmulationConfig[Any], sequence: Sequence[Any], runs: int | None) -> EmulationConfig[Any]:
        """Return the configuration of one job.

        Args:
            config: The batch's configuration, with the job's number of shots.
            sequence: The job's sequence, which may not be built yet.
            runs: The job's number of shots; None if the configuration defines it.
        """

    def fit(self, sequence: Sequence[Any]) -> Sequence[Any]:
        """Return the built sequence as the library runs it; raise ``Refusal`` if the library cannot run it."""

    def is_deterministic(self, config: EmulationConfig[Any], sequence: Sequence[Any]) -> bool:
        """Return whether the evolution has no randomness."""

    def make_unmeasured(self, config: EmulationConfig[Any]) -> Unmeasured:
        """Return a configuration that evolves once and is measured later."""

    def make_emulation(self, sequence: Sequence[Any], config: EmulationConfig[Any], watch: Watch) -> Emulation:
        """Return a run that calls ``watch.advance`` regularly."""

    def seed(self, seed: int) -> None:
        """Seed the library's own generators, beside numpy's and Python's."""


class PulserBackend:
    """A :class:`~tweezer.adapters.lane.backend.Backend` for Pulser sequences.

    A job is evolved, or the evolution of an equal job is reused. Then the generators are seeded and the job is
    measured, so its counter does not depend on the jobs before it. If the evolution itself is random, the generators
    are seeded first and the job runs in full.
    """

    def __init__(self, emulator: Emulator, watch: Watch, memo_bytes: int) -> None:
        self.evolutions = 0
        self._emulator = emulator
        self._watch = watch
        self._sequences = Sequences()
        self._configurations: Recent[tuple[str | None, str], Configuration] = Recent(_CONFIGURATIONS_KEPT)
        self._evolutions: Recent[tuple[str, str, str], Evolution] = Recent(memo_bytes)
        self._versions = collect_versions(emulator.packages)
        self._configuration: Configuration | None = None

    def prepare(self, batch: BatchWork) -> None:
        doc = batch.doc
        self._configuration = self._configure(doc.backend_configuration, doc.configuration)
        self._sequences.prepare(batch)

    def run(self, job: JobWork) -> Execution:
        began = time.monotonic()
        if self._configuration is None:
            raise ValueError("run before prepare")
        if job.spec.runs is not None and job.spec.runs < 1:
            raise Refusal(Fault("invalid", f"must be at least 1 (got {job.spec.runs})", "runs"))
        parsed = self._sequences.find(job)
        runs = job.spec.runs
        config = self._emulator.settle(self._configuration.with_runs(runs), parsed.sequence, runs)
        if self._emulator.is_deterministic(config, parsed.sequence):
            evolution, prepared = self._evolve(parsed, job, config, self._configuration.digest)
            self._seed(job.seed)
            results = _measure(evolution, config)
        else:
            self._seed(job.seed)
            emulation = self._build_emulation(parsed, job, config)
            prepared = time.monotonic()
            results = self._solve(emulation)
        result = self._build_result(results, config, parsed, job.seed)
        return Execution(result, preparation_s=prepared - began, device_s=time.monotonic() - prepared)

    def _configure(self, text: str | None, older: dict[str, Any] | None) -> Configuration:
        key = text, json.dumps(older, sort_keys=True)
        configuration = self._configurations.get(key)
        if configuration is None:
            configuration = read_configuration(self._emulator.dialect, text, older)
            self._configurations.put(key, configuration)
        return configuration

    def _evolve(
        self, parsed: ParsedSequence, job: JobWork, config: EmulationConfig[Any], digest: str
    ) -> tuple[Evolution, float]:
        """Return the evolution of a job and the time at which its preparation ended."""
        key = parsed.digest, json.dumps(job.spec.variables, sort_keys=True), digest
        evolution = self._evolutions.get(key)
        if evolution is not None:
            return evolution, time.monotonic()
        self._seed(_EVOLUTION_SEED)
        unmeasured = self._emulator.make_unmeasured(config)
        emulation = self._build_emulation(parsed, job, unmeasured.config)
        prepared = time.monotonic()
        evolution = unmeasured.make_evolution(self._solve(emulation))
        self._evolutions.put(key, evolution, evolution.nbytes)
        return evolution, prepared

    def _build_emulation(self, parsed: ParsedSequence, job: JobWork, config: EmulationConfig[Any]) -> Emulation:
        sequence = self._emulator.fit(parsed.build(job.spec.variables))
        _check_initial_state(config, sequence)
        try:
            return self._emulator.make_emulation(sequence, config, self._watch)
        except USER_ERRORS as error:
            if parsed.sequence.is_parametrized() and (channel := find_infinite_channel(sequence)):
                message = f"give pulses on channel {channel!r} that are not finite, such as 1/0 or the root of -1"
                raise Refusal(Fault("user", message, "variables")) from error
            raise Refusal(Fault("user", f"cannot be emulated: {describe_error(error)}", "sequence")) from error

    def _solve(self, emulation: Emulation) -> Results:
        self.evolutions += 1
        self._watch.check()
        try:
            return emulation.run()
        except USER_ERRORS + self._emulator.unsolvable as error:  # mypy does not accept the unpacked form
            raise Refusal(Fault("user", f"cannot be emulated: {describe_error(error)}", "sequence")) from error

    def _build_result(
        self, results: Results, config: EmulationConfig[Any], parsed: ParsedSequence, seed: int
    ) -> Result:
        provenance = Provenance(
            backend=self._emulator.name,
            versions=self._versions,
            specs_digest=parsed.specs_digest,
            configuration=config.to_abstract_repr(skip_validation=True),
            seed=seed,
        )
        return Result(_get_counter(results), results.to_abstract_repr(), provenance)

    def _seed(self, seed: int) -> None:
        seed_generators(seed)
        self._emulator.seed(seed)


def seed_generators(seed: int) -> None:
    """Seed numpy's global generator, which Pulser uses, and Python's.

    ``numpy.random.seed`` takes a seed of up to 32 bits; a longer one is passed as a list of 32-bit words.
    """
    if seed < 0:
        raise Refusal(Fault("invalid", f"must not be negative (got {seed})", "seed"))
    random.seed(seed)
    words = [seed >> shift & 0xFFFFFFFF for shift in range(0, max(seed.bit_length(), 1), 32)]
    np.random.seed(words[0] if len(words) == 1 else words)


def _check_initial_state(config: EmulationConfig[Any], sequence: Sequence[Any]) -> None:
    atoms = len(sequence.register.qubit_ids)
    state = config.initial_state
    if state is not None and state.n_qudits != atoms:
        message = f"must be a state of {atoms} atoms, as the sequence has (got {state.n_qudits})"
        raise Refusal(Fault("user", message, f"{FIELD}.initial_state"))


def _measure(evolution: Evolution, config: EmulationConfig[Any]) -> Results:
    try:
        return evolution.measure(config)
    except USER_ERRORS + (RuntimeError, AssertionError) as error:  # noqa: RUF005  # mypy does not accept the unpacked form
        raise Refusal(Fault("user", f"cannot be measured: {describe_error(error)}", FIELD)) from error


def _get_counter(results: Results) -> dict[str, int] | None:
    try:
        return dict(results.final_bitstrings)
    except RuntimeError:  # the configuration requests no final bitstrings
        return None


def collect_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of numpy, Pulser, Tweezer and these packages, as far as they are installed."""
    versions = {}
    for package in ("numpy", "pulser-core", *packages, "tweezer"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


class EvolutionProgress:
    """The progress of the current evolution. Its steps are nanoseconds of the sequence, which is Pulser's resolution.

    length: Duration of one evolution, in the solver's unit of time. duration_ns: The same in nanoseconds. evolutions:
    How many the job is expected to take.
    """

    def __init__(self, watch: Watch, length: float, duration_ns: float, evolutions: int) -> None:
        self._watch = watch
        self._length = length
        self._duration_ns = max(round(duration_ns), 1)
        self._evolutions = evolutions
        self._begun = 0
        self.step = length / _CHECKS
        """The largest step between two checks, for a solver whose steps can be chosen."""

    def begin_evolution(self) -> None:
        self._begun += 1

    def reach(self, t: float) -> None:
        """Report that the evolution reached the time ``t``. Raises ``Aborted`` if the job must stop."""
        done = max(self._begun - 1, 0) + min(t / self._length, 1.0)
        self._watch.advance(done / self._evolutions, lambda: self._count_steps(t))

    def _count_steps(self, t: float) -> Steps:
        before, reached = max(self._begun - 1, 0), round(min(t / self._length, 1.0) * self._duration_ns)
        total = self._evolutions * self._duration_ns
        message = f"{reached} of {self._duration_ns} ns"
        if self._evolutions > 1:
            message += f" of trajectory {before + 1} of {self._evolutions}"
        return Steps(min(before * self._duration_ns + reached, total), total, message)
