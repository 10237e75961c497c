"""Builds sequences with a job's values for a machine, and makes Pulser's results from what the machine measured.

Imported in lane processes only. Its ``run`` returns the built sequence in place of results.
"""

from __future__ import annotations

import time

from pulser.backend import Results
from pulser.json.abstract_repr.deserializer import deserialize_device

from tweezer.adapters.emulators.pulser_backend import collect_versions
from tweezer.adapters.emulators.pulser_sequences import FIELD, ParsedSequence, Sequences, describe_error, explain_limit
from tweezer.adapters.lane.backend import Execution, Refusal, Watch
from tweezer.model.messages import BatchWork, Fault, JobWork, Provenance, Result


class SequenceBuilder:
    """A :class:`~tweezer.adapters.lane.backend.Collector`.

    specs: The machine's specs, in Pulser's abstract representation; empty if they are not known.
    """

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
            raise Refusal(
                Fault("user", f"cannot be converted for the machine: {describe_error(error)}", FIELD)
            ) from error
        return Execution(Result(serialised_results=text), preparation_s=time.monotonic() - began, device_s=0.0)

    def collect(self, job: JobWork, measured: dict[str, int]) -> Execution:
        began = time.monotonic()
        parsed = self._sequences.find(job)
        sequence = parsed.build(job.spec.variables)
        atoms = [str(name) for name in sequence.register.qubit_ids]
        if any(len(bits) != len(atoms) for bits in measured):
            message = (
                f"the machine returned bitstrings whose length is not the sequence's number of atoms ({len(atoms)})"
            )
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
        """Check that the sequence is made for this machine, or move it there with unchanged pulses."""
        machine, device = self._machine, parsed.sequence.device
        if machine is None or device == machine:
            return
        try:
            parsed.sequence = parsed.sequence.with_new_device(machine, strict=True)
        except (ValueError, TypeError, NotImplementedError) as error:
            limit = "" if parsed.sequence.is_parametrized() else explain_limit(parsed.sequence, machine, {})
            message = f"is made for {device.name} and does not fit {machine.name}: {describe_error(error)}{limit}"
            raise Refusal(Fault("user", message, FIELD)) from error

    def _check_runs(self, runs: int | None) -> None:
        if runs is None or runs < 1:
            raise Refusal(Fault("invalid", f"must be at least 1 on a machine (got {runs})", "runs"))
        most = None if self._machine is None else self._machine.max_runs
        if most is not None and runs > most:
            raise Refusal(Fault("invalid", f"must be at most {most}, the limit of the machine (got {runs})", "runs"))


def open_backend(watch: Watch, memo_bytes: int, specs: str = "") -> SequenceBuilder:
    """Make this backend. It does not use the watch and keeps nothing."""
    return SequenceBuilder(specs)
