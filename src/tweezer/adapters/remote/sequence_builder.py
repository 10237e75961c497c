"""What a machine needs of Pulser: sequences built with a job's values, and results of what it measured.

Imported in the processes of lanes only. Its ``run`` gives the built sequence in place of results.
"""

from __future__ import annotations

import time

from pulser.backend import Results
from pulser.json.abstract_repr.deserializer import deserialize_device

from tweezer.adapters.emulators.pulser_backend import collect_versions
from tweezer.adapters.emulators.pulser_sequences import FIELD, ParsedSequence, Sequences, brief
from tweezer.adapters.lane.backend import Execution, Refusal, Watch
from tweezer.model.messages import BatchWork, Fault, JobWork, Provenance, Result


class SequenceBuilder:
    """A :class:`~tweezer.adapters.lane.backend.Collector`. specs: of the machine; '' where they are not known."""

    def __init__(self, specs: str) -> None:
        self.evolutions = 0
        self._machine = deserialize_device(specs) if specs else None
        self._sequences = Sequences(self._check_device)

    def prepare(self, batch: BatchWork) -> None:
        self._sequences.prepare(batch)

    def run(self, job: JobWork) -> Execution:
        began = time.monotonic()
        self._check_runs(job.spec.runs)
        sequence = self._sequences.find(job).build(job.spec.variables)
        try:
            text = sequence.to_abstract_repr()
        except (ValueError, TypeError, NotImplementedError) as error:
            raise Refusal(Fault("user", f"cannot be sent to the machine: {brief(error)}", FIELD)) from error
        return Execution(Result(serialised_results=text), preparation_s=time.monotonic() - began, device_s=0.0)

    def collect(self, job: JobWork, measured: dict[str, int]) -> Execution:
        began = time.monotonic()
        parsed = self._sequences.find(job)
        sequence = parsed.build(job.spec.variables)
        atoms = [str(name) for name in sequence.register.qubit_ids]
        if any(len(bits) != len(atoms) for bits in measured):
            message = f"the machine measured bitstrings of another length than the sequence has atoms ({len(atoms)})"
            raise ValueError(message)
        results = Results.from_final_bitstrings(atoms, sequence.get_duration(), measured)
        provenance = Provenance(
            backend=self._machine.name if self._machine is not None else sequence.device.name,
            versions=collect_versions(()),
            specs_digest=parsed.specs_digest,
        )
        result = Result(measured, results.to_abstract_repr(), provenance)
        return Execution(result, preparation_s=time.monotonic() - began, device_s=0.0)

    def _check_device(self, parsed: ParsedSequence) -> None:
        """The sequence must be made for this machine, or be one that fits it pulse for pulse."""
        machine, device = self._machine, parsed.sequence.device
        if machine is None or device == machine:
            return
        try:
            parsed.sequence = parsed.sequence.with_new_device(machine, strict=True)
        except (ValueError, TypeError, NotImplementedError) as error:
            message = f"is made for {device.name} and does not fit {machine.name}: {brief(error)}"
            raise Refusal(Fault("user", message, FIELD)) from error

    def _check_runs(self, runs: int | None) -> None:
        if runs is None or runs < 1:
            raise Refusal(Fault("invalid", f"must be at least 1 on a machine, not {runs}", "runs"))
        most = None if self._machine is None else self._machine.max_runs
        if most is not None and runs > most:
            raise Refusal(Fault("invalid", f"must be at most {most}, the limit of the machine, not {runs}", "runs"))


def open_backend(watch: Watch, memo_bytes: int, specs: str = "") -> SequenceBuilder:
    """Make this backend; there is nothing to watch and nothing to keep."""
    return SequenceBuilder(specs)
