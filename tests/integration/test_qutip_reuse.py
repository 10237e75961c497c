"""The changes to QuTiP for reuse between jobs change no counter; a changed library is not patched."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import qutip
from pulser import NoiseModel, Pulse, Register, Sequence
from pulser.backend import BitStrings, EmulationConfig, Energy, Results, StateResult
from pulser.devices import MockDevice
from pulser_simulation import QutipBackendV2, QutipConfig
from pulser_simulation.hamiltonian import Hamiltonian
from pulser_simulation.simulation import QutipEmulator
from qutip.solver.integrator.scipy_integrator import IntegratorScipyAdams
from qutip.solver.solver_base import Solver

from tweezer.adapters.emulators import qutip_patches
from tweezer.adapters.emulators.pulser_backend import PulserBackend, seed_generators
from tweezer.adapters.emulators.qutip_backend import Qutip
from tweezer.adapters.lane.backend import Watch
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import BatchDoc, BatchWork, JobSpec, JobWork

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.filterwarnings("ignore::UserWarning:pulser"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:pulser"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CHANNELS = {"ground-rydberg": ["rydberg_global"], "digital": ["raman_local"], "XY": ["mw_global"]}
CHANNELS["all"] = [*CHANNELS["ground-rydberg"], *CHANNELS["digital"]]
NOISES: dict[str, dict[str, Any]] = {
    "none": {},
    "detection": {"noise_model": NoiseModel(p_false_pos=0.1, p_false_neg=0.05)},
    "dephasing": {"noise_model": NoiseModel(dephasing_rate=0.8)},
    "amplitude": {"noise_model": NoiseModel(amp_sigma=0.2), "n_trajectories": 2},
    "jumps": {"noise_model": NoiseModel(relaxation_rate=0.8), "solver": "MonteCarlo", "n_trajectories": 2},
}
UNKNOWN_TO = {"digital": ["jumps"], "all": ["jumps"], "XY": ["jumps", "amplitude"]}
_NAMES = ((Hamiltonian, "_get_basis_op_matrices"), (QutipEmulator, "_get_noiseless_hamiltonian"))


def pulsed(basis: str) -> str:
    sequence: Sequence[Any] = Sequence(Register({"a": (0, 0), "b": (6, 0), "c": (0, 8)}), MockDevice)
    for number, channel in enumerate(CHANNELS[basis]):
        local = {"initial_target": "a"} if channel.endswith("local") else {}
        sequence.declare_channel(f"channel {number}", channel, **local)
        sequence.add(Pulse.ConstantPulse(300, 6.0, 1.0, 0.0), f"channel {number}")
    if basis == "all":
        sequence.measure("ground-rydberg")
    return sequence.to_abstract_repr()


def counters(text: str, options: dict[str, Any]) -> list[Any]:
    """Return what a new lane measures in three jobs, two of them equal."""
    solver = options.get("solver")
    rest = {name: value for name, value in options.items() if name != "solver"}
    observables = [BitStrings(evaluation_times=[0.5, 1.0]), Energy(evaluation_times=[1.0])]
    config = EmulationConfig(observables=observables, **rest, **({"solver": solver} if solver else {}))
    backend = PulserBackend(Qutip(), Watch(lambda *_: None, 1.0), memo_bytes=1 << 20)
    doc = BatchDoc(device="EMU_FREE", sequence=text, backend_configuration=config.to_abstract_repr())
    backend.prepare(BatchWork(new_batch_id(), doc))
    jobs = [
        JobWork(job_id(UUID(int=8 << 76), 0), 0, JobSpec(runs=runs), seed) for runs, seed in ((50, 1), (50, 1), (70, 2))
    ]
    return [backend.run(job).result.counter for job in jobs]


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use QuTiP as in a lane, without reuse; restore the libraries at the end."""
    for owner, name in (*_NAMES, (qutip, "mcsolve")):
        monkeypatch.setattr(owner, name, owner.__dict__[name])
    qutip_patches.install_solver()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("basis", CHANNELS)
def test_counters_are_the_same_with_and_without_reuse(as_it_was: None, basis: str, noise: str) -> None:
    if noise in UNKNOWN_TO.get(basis, ()):
        pytest.skip("Pulser has no such noise in this basis")
    text = pulsed(basis)
    before = counters(text, NOISES[noise])
    qutip_patches.install_reuse()
    assert counters(text, NOISES[noise]) == before
    assert before[0] == before[1]


def test_a_changed_library_is_not_patched(as_it_was: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: Any, leakage: bool, more: int) -> None: ...

    monkeypatch.delattr(Hamiltonian, "_get_basis_op_matrices")
    monkeypatch.setattr(QutipEmulator, "_get_noiseless_hamiltonian", other)
    qutip_patches.install_reuse()
    assert not hasattr(Hamiltonian, "_get_basis_op_matrices")
    assert QutipEmulator.__dict__["_get_noiseless_hamiltonian"] is other


PULSES = {
    "one long": [Pulse.ConstantPulse(1000, 6.0, 0.0, 0.0)],
    "one short": [Pulse.ConstantPulse(16, 3.0, 0.0, 0.0)],
    "short and long": [Pulse.ConstantPulse(52, 9.0, 0.0, 0.0), Pulse.ConstantPulse(2000, 1.0, -3.0, 0.0)],
}


@pytest.mark.parametrize("noise", [NoiseModel(), NoiseModel(relaxation_rate=0.3)], ids=["pure", "relaxation"])
@pytest.mark.parametrize("pulses", PULSES)
def test_a_million_shots_are_those_of_pulser_alone(as_it_was: None, pulses: str, noise: NoiseModel) -> None:
    """A lane checks for a cancel while QuTiP solves, which must not change the states: 1e6 shots show 1e-6."""
    sequence: Sequence[Any] = Sequence(Register({"a": (0, 0), "b": (6, 0), "c": (0, 8)}), MockDevice)
    sequence.declare_channel("rydberg", "rydberg_global")
    for pulse in PULSES[pulses]:
        sequence.add(pulse, "rydberg")
    times, seed, shots = (0.3, 1.0), 5, 1_000_000

    Solver.add_integrator(IntegratorScipyAdams, "adams")
    bare = QutipConfig(observables=[StateResult(evaluation_times=times)], noise_model=noise)
    states = QutipBackendV2(sequence, config=bare).run().state
    seed_generators(seed)
    expected = [dict(state.sample(num_shots=shots)) for state in states]

    qutip_patches.install_solver()
    backend = PulserBackend(Qutip(), Watch(lambda *_: None, 1.0), memo_bytes=1 << 20)
    wanted = [BitStrings(evaluation_times=times)]
    text = QutipConfig(observables=wanted, noise_model=noise).to_abstract_repr()
    doc = BatchDoc("EMU_FREE", sequence.to_abstract_repr(), backend_configuration=text)
    backend.prepare(BatchWork(new_batch_id(), doc))
    ran = backend.run(JobWork(job_id(UUID(int=8 << 76), 0), 0, JobSpec(runs=shots), seed)).result
    assert ran.counter == expected[-1]
    measured = Results.from_abstract_repr(ran.serialised_results or "")
    assert [dict(one) for one in measured.bitstrings] == expected
