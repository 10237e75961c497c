"""EMU_FRESNEL: a machine emulated by QuTiP, with its limits and its noise. Imported in lane processes only."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from pulser import Sequence
from pulser.backend import BitStrings, EmulationConfig, Results
from pulser.json.abstract_repr.deserializer import deserialize_device
from pulser_simulation import QutipBackendV2

from tweezer.adapters.emulators.pulser_backend import Emulation, PulserBackend
from tweezer.adapters.emulators.pulser_configuration import set_shots
from tweezer.adapters.emulators.pulser_sampling import is_steady
from tweezer.adapters.emulators.pulser_sequences import FIELD, describe_error, explain_limit
from tweezer.adapters.emulators.qutip_backend import Qutip, install
from tweezer.adapters.lane.backend import Refusal, Watch
from tweezer.model.messages import Fault

TRAJECTORIES = 40
"""The number of trajectories of random noise if the client does not specify one, as in Pulser."""


class MachineTwin(Qutip):
    """An :class:`~tweezer.adapters.emulators.pulser_backend.Emulator` of one machine.

    specs: The machine's specs, in Pulser's abstract representation. None: the device of each sequence is the machine.
    """

    def __init__(self, specs: str | None) -> None:
        self._machine = None if specs is None else deserialize_device(specs)

    def settle(self, config: EmulationConfig[Any], sequence: Sequence[Any], runs: int | None) -> EmulationConfig[Any]:
        """Add the machine's noise, unless the client requests another noise model.

        The model is copied into the configuration, because ``prefer_device_noise_model`` leaves out detection errors.
        """
        machine = self._machine or sequence.device
        most = machine.max_runs
        if runs is not None and most is not None and runs > most:
            raise Refusal(Fault("invalid", f"must be at most {most}, the limit of {machine.name} (got {runs})", "runs"))
        requested: Any = config.noise_model
        if machine.noise_model is None or (requested.noise_types and not config.prefer_device_noise_model):
            return config
        trajectories = config.n_trajectories if config.n_trajectories > 1 else min(TRAJECTORIES, runs or TRAJECTORIES)
        changed: EmulationConfig[Any] = config.with_changes(
            noise_model=machine.noise_model, prefer_device_noise_model=False, n_trajectories=trajectories
        )
        return changed

    def fit(self, sequence: Sequence[Any]) -> Sequence[Any]:
        """Return the sequence on the machine's device, with unchanged pulses."""
        try:
            if self._machine is not None and sequence.device != self._machine:
                sequence = sequence.with_new_device(self._machine, strict=True)
            QutipBackendV2.validate_sequence(sequence, mimic_qpu=True)
        except (ValueError, TypeError, NotImplementedError) as error:
            name = self._machine.name if self._machine else sequence.device.name
            limit = explain_limit(sequence, self._machine or sequence.device, {})
            message = f"does not fit the device {name}: {describe_error(error)}{limit}"
            raise Refusal(Fault("user", message, FIELD)) from error
        return sequence

    def make_emulation(self, sequence: Sequence[Any], config: EmulationConfig[Any], watch: Watch) -> Emulation:
        if is_steady(config.noise_model):
            return super().make_emulation(sequence, config, watch)
        return _Machine(super().make_emulation(sequence, _share_shots(config), watch), config)


class _Machine:
    """A run with random noise whose number of shots is the requested one.

    Pulser measures all shots in each trajectory. Here each trajectory measures its share, rounded up, and the requested
    number is then drawn from all shots.
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
                counters[:] = [_draw_shots(counter, shots) for counter in counters]
        return results


def _share_shots(config: EmulationConfig[Any]) -> EmulationConfig[Any]:
    """Return the configuration of one trajectory, with its share of the shots, rounded up."""
    observables = tuple(
        set_shots(observable, -(-(observable.num_shots or config.default_num_shots) // config.n_trajectories))
        if isinstance(observable, BitStrings)
        else observable
        for observable in config.observables
    )
    changed: EmulationConfig[Any] = config.with_changes(observables=observables)
    return changed


def _draw_shots(counter: Counter[str], shots: int) -> Counter[str]:
    """Draw this many shots, without replacement and with equal probability."""
    bitstrings = sorted(counter)
    counts = [counter[bits] for bits in bitstrings]
    if shots >= sum(counts):
        return counter
    generator = np.random.default_rng(int(np.random.randint(1 << 32, dtype=np.uint64)))
    drawn = generator.multivariate_hypergeometric(counts, shots).tolist()
    return Counter({bits: count for bits, count in zip(bitstrings, drawn, strict=True) if count})


def open_backend(watch: Watch, memo_bytes: int, specs: str | None = None) -> PulserBackend:
    """Make this backend for a machine with these specs. Patches QuTiP in the process."""
    install()
    return PulserBackend(MachineTwin(specs), watch, memo_bytes)
