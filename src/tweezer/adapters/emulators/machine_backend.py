"""EMU_FRESNEL: QuTiP in place of a machine, within its limits, with its noise. Imported in processes of lanes only."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from pulser import Sequence
from pulser.backend import BitStrings, EmulationConfig, Results
from pulser.json.abstract_repr.deserializer import deserialize_device
from pulser_simulation import QutipBackendV2

from tweezer.adapters.emulators.pulser_backend import Emulation, PulserBackend
from tweezer.adapters.emulators.pulser_configuration import with_shots
from tweezer.adapters.emulators.pulser_sampling import is_steady
from tweezer.adapters.emulators.pulser_sequences import FIELD, brief
from tweezer.adapters.emulators.qutip_backend import Qutip, install
from tweezer.adapters.lane.backend import Refusal, Watch
from tweezer.model.messages import Fault

TRAJECTORIES = 40
"""How many draws of a machine's random noise a job gets whose client says nothing, as in Pulser."""


class MachineTwin(Qutip):
    """A :class:`~tweezer.adapters.emulators.pulser_backend.Emulator` of one machine, or of a sequence's own device.

    specs: of the machine, in Pulser's abstract representation; None: a sequence's own device.
    """

    def __init__(self, specs: str | None) -> None:
        self._machine = None if specs is None else deserialize_device(specs)

    def settle(self, config: EmulationConfig[Any], sequence: Sequence[Any], runs: int | None) -> EmulationConfig[Any]:
        """With the machine's noise where the client asks for none of its own, or for the machine's.

        The model is copied into the configuration: Pulser's preference for the device's leaves out errors of detection.
        """
        machine = self._machine or sequence.device
        most = machine.max_runs
        if runs is not None and most is not None and runs > most:
            raise Refusal(Fault("invalid", f"must be at most {most}, the limit of {machine.name}, not {runs}", "runs"))
        asked: Any = config.noise_model
        if machine.noise_model is None or (asked.noise_types and not config.prefer_device_noise_model):
            return config
        trajectories = config.n_trajectories if config.n_trajectories > 1 else min(TRAJECTORIES, runs or TRAJECTORIES)
        changed: EmulationConfig[Any] = config.with_changes(
            noise_model=machine.noise_model, prefer_device_noise_model=False, n_trajectories=trajectories
        )
        return changed

    def fit(self, sequence: Sequence[Any]) -> Sequence[Any]:
        """Return the sequence on the machine, pulse for pulse as it was."""
        try:
            if self._machine is not None and sequence.device != self._machine:
                sequence = sequence.with_new_device(self._machine, strict=True)
            QutipBackendV2.validate_sequence(sequence, mimic_qpu=True)
        except (ValueError, TypeError, NotImplementedError) as error:
            name = self._machine.name if self._machine else sequence.device.name
            raise Refusal(Fault("user", f"does not fit the device {name}: {brief(error)}", FIELD)) from error
        return sequence

    def emulation(self, sequence: Sequence[Any], config: EmulationConfig[Any], watch: Watch) -> Emulation:
        if is_steady(config.noise_model):
            return super().emulation(sequence, config, watch)
        return _Machine(super().emulation(sequence, _shared_out(config), watch), config)


class _Machine:
    """A run with random noise, whose every shot is one: as many in all as were asked for.

    Pulser takes all shots in each trajectory. Here a trajectory takes its share, rounded up, and of all
    shots as many are drawn as were wanted.
    """

    def __init__(self, emulation: Emulation, config: EmulationConfig[Any]) -> None:
        self._emulation = emulation
        self._config = config

    def run(self) -> Results:
        results = self._emulation.run()
        for observable in self._config.observables:
            if isinstance(observable, BitStrings) and observable.tag in results.get_result_tags():
                shots = observable.num_shots or self._config.default_num_shots
                counters = results._results[results._find_uuid(observable.tag)]  # noqa: SLF001  # Pulser's only way in
                counters[:] = [_drawn(counter, shots) for counter in counters]
        return results


def _shared_out(config: EmulationConfig[Any]) -> EmulationConfig[Any]:
    """Return the configuration of one trajectory, with its share of the shots, rounded up."""
    observables = tuple(
        with_shots(observable, -(-(observable.num_shots or config.default_num_shots) // config.n_trajectories))
        if isinstance(observable, BitStrings)
        else observable
        for observable in config.observables
    )
    changed: EmulationConfig[Any] = config.with_changes(observables=observables)
    return changed


def _drawn(counter: Counter[str], shots: int) -> Counter[str]:
    """Return so many of these shots, each as likely as the next."""
    bitstrings = sorted(counter)
    counts = [counter[bits] for bits in bitstrings]
    if shots >= sum(counts):
        return counter
    generator = np.random.default_rng(int(np.random.randint(1 << 32, dtype=np.uint64)))
    drawn = generator.multivariate_hypergeometric(counts, shots).tolist()
    return Counter({bits: count for bits, count in zip(bitstrings, drawn, strict=True) if count})


def open_backend(watch: Watch, memo_bytes: int, specs: str | None = None) -> PulserBackend:
    """Make this backend, for a machine of these specs; changes the process it is called in."""
    install()
    return PulserBackend(MachineTwin(specs), watch, memo_bytes)
