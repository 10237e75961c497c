"""EMU_FREE: Pulser sequences solved exactly by QuTiP. Imported in the processes of lanes only."""

from __future__ import annotations

import json
import random
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import qutip
from pulser import Sequence
from pulser.backend import Results
from pulser.exceptions.serialization import AbstractReprError
from pulser_simulation import QutipBackendV2, QutipConfig

from tweezer.adapters import qutip_solver
from tweezer.adapters.lane_backend import Execution, Refusal, Watch
from tweezer.adapters.pulser_configuration import Configuration, read_configuration
from tweezer.adapters.pulser_sampling import Evolution, is_deterministic, states_instead_of_bitstrings
from tweezer.adapters.pulser_sequences import ParsedSequence, brief
from tweezer.adapters.recent import Recent
from tweezer.model.messages import BatchWork, Fault, JobWork, Provenance, Result

_NAME = "qutip"
_SEQUENCES_KEPT = 16
_USER_ERRORS = (ValueError, TypeError, NotImplementedError, AbstractReprError)


class QutipBackend:
    """Prepares batches and runs their jobs with ``pulser_simulation.QutipBackendV2``.

    A job is evolved, or an equal one's evolution is used again; then its generators are seeded; then it
    is measured. So its counter does not depend on which jobs ran before it. A job whose evolution is itself
    random is seeded first and runs in full.
    """

    def __init__(self, watch: Watch, memo_bytes: int) -> None:
        self.evolutions = 0
        self._watch = watch
        self._sequences: Recent[str, ParsedSequence] = Recent(_SEQUENCES_KEPT)
        self._evolutions: Recent[tuple[str, str, str], Evolution] = Recent(memo_bytes)
        self._versions = _versions()
        self._sequence: ParsedSequence | None = None
        self._configuration: Configuration | None = None

    def prepare(self, batch: BatchWork) -> None:
        self._configuration = read_configuration(batch.doc.backend_configuration, batch.doc.configuration)
        self._sequence = self._parse(batch.doc.sequence) if batch.doc.sequence is not None else None

    def run(self, job: JobWork) -> Execution:
        began = time.monotonic()
        if self._configuration is None:
            raise ValueError("run before prepare")
        if job.spec.runs is not None and job.spec.runs < 1:
            raise Refusal(Fault("invalid", f"must be at least 1, not {job.spec.runs}", "runs"))
        parsed = self._parse(job.spec.sequence) if job.spec.sequence is not None else self._sequence
        if parsed is None:
            raise Refusal(Fault("invalid", "neither the job nor its batch has one", "sequence"))
        config = self._configuration.with_runs(job.spec.runs)
        if is_deterministic(config, parsed.sequence):
            evolution, prepared = self._evolution(parsed, job, self._configuration, began)
            seed_generators(job.seed)
            results = _measure(evolution, config)
        else:
            seed_generators(job.seed)
            emulation = self._emulation(parsed.build(job.spec.variables), config, config.n_trajectories)
            prepared = time.monotonic()
            results = self._solve(emulation)
        result = self._result(results, config, parsed, job.seed)
        return Execution(result, preparation_s=prepared - began, device_s=time.monotonic() - prepared)

    def _parse(self, text: str) -> ParsedSequence:
        parsed = self._sequences.get(text)
        if parsed is None:
            parsed = ParsedSequence(text)
            self._sequences.put(text, parsed)
        return parsed

    def _evolution(
        self, parsed: ParsedSequence, job: JobWork, configuration: Configuration, began: float
    ) -> tuple[Evolution, float]:
        """The evolution of a job, and when its preparation ended."""
        key = parsed.digest, json.dumps(job.spec.variables, sort_keys=True), configuration.digest
        evolution = self._evolutions.get(key)
        if evolution is not None:
            return evolution, time.monotonic()
        config = states_instead_of_bitstrings(configuration.config)
        emulation = self._emulation(parsed.build(job.spec.variables), config, evolutions=1)
        prepared = time.monotonic()
        evolution = Evolution(configuration.config, self._solve(emulation))
        self._evolutions.put(key, evolution, evolution.nbytes)
        return evolution, prepared

    def _emulation(self, sequence: Sequence[Any], config: QutipConfig, evolutions: int) -> QutipBackendV2:
        total_us = sequence.get_duration(include_fall_time=config.with_modulation) / 1000
        qutip_solver.WatchedAdams.course = qutip_solver.Course(self._watch, max(total_us, 1e-3), evolutions)
        try:
            return QutipBackendV2(sequence, config=config)
        except _USER_ERRORS as error:
            raise Refusal(Fault("user", f"cannot be emulated: {brief(error)}", "sequence")) from error

    def _solve(self, emulation: QutipBackendV2) -> Results:
        self.evolutions += 1
        self._watch.check()
        try:
            return emulation.run()
        except _USER_ERRORS as error:
            raise Refusal(Fault("user", f"cannot be emulated: {brief(error)}")) from error

    def _result(self, results: Results, config: QutipConfig, parsed: ParsedSequence, seed: int) -> Result:
        provenance = Provenance(
            backend=_NAME,
            versions=self._versions,
            specs_digest=parsed.specs_digest,
            configuration=config.to_abstract_repr(skip_validation=True),
            seed=seed,
        )
        return Result(_counter(results), results.to_abstract_repr(), provenance)


def open_backend(watch: Watch, memo_bytes: int) -> QutipBackend:
    """The factory of this backend; changes the process it is called in (QuTiP's integrator, warnings)."""
    warnings.simplefilter("ignore")  # they are for who writes a sequence, not for a worker's log
    qutip_solver.install()
    return QutipBackend(watch, memo_bytes)


def seed_generators(seed: int) -> None:
    """Seed all that a job draws from: numpy's global generator (Pulser and, by our patch, QuTiP) and Python's.

    A seed of up to 32 bits is what ``numpy.random.seed`` takes; a longer one is handed over in words.
    """
    if seed < 0:
        raise Refusal(Fault("invalid", f"must not be negative, but is {seed}", "seed"))
    random.seed(seed)
    words = [seed >> shift & 0xFFFFFFFF for shift in range(0, max(seed.bit_length(), 1), 32)]
    np.random.seed(words[0] if len(words) == 1 else words)


def _measure(evolution: Evolution, config: QutipConfig) -> Results:
    try:
        return evolution.measure(config)
    except (*_USER_ERRORS, RuntimeError) as error:
        raise Refusal(Fault("user", f"cannot be measured: {brief(error)}", "backend_configuration")) from error


def _counter(results: Results) -> dict[str, int] | None:
    try:
        return dict(results.final_bitstrings)
    except RuntimeError:  # the configuration asks for none
        return None


def _versions() -> dict[str, str]:
    versions = {"qutip": qutip.__version__, "numpy": np.__version__}
    for package in ("pulser-core", "pulser-simulation", "tweezer"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
