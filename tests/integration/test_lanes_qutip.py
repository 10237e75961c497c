"""EMU_FREE: Pulser sequences in a lane's process, solved by QuTiP."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import pytest_asyncio
from pulser import NoiseModel, Pulse, Register, Sequence
from pulser.backend import BitStrings, CorrelationMatrix, EmulationConfig, Observable, Occupation, Results, StateResult
from pulser.backend.observable import AggregationMethod
from pulser.devices import MockDevice
from pulser.register.register_layout import RegisterLayout
from pulser.waveforms import RampWaveform
from pulser_simulation import QutipBackendV2, QutipConfig, QutipEmulator
from scipy.stats import chisquare  # type: ignore[import-untyped]  # it has no types

from tweezer.adapters.lane.lane import ChildLane, LaneOptions
from tweezer.adapters.registry import Binding, make_adapter
from tweezer.model.errors import ExecutionError, FaultKind
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import (
    BatchDoc,
    BatchWork,
    JobSpec,
    JobWork,
    Limits,
    Outcome,
    OutcomeKind,
    Progress,
    Provenance,
    Steps,
)

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::UserWarning:pulser"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:pulser"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pulser"),
]
PATIENCE_S = 60.0
VALUES: dict[str, Any] = {"omega": 6.0, "delta": 8.0}


def adiabatic(atoms: int = 4, duration_ns: int = 400) -> Sequence[Any]:
    """Return a sweep to antiferromagnetic order; ``omega`` and ``delta`` are variables."""
    sequence: Sequence[Any] = Sequence(Register.rectangle(2, atoms // 2, spacing=6.0, prefix="q"), MockDevice)
    sequence.declare_channel("rydberg", "rydberg_global")
    omega = sequence.declare_variable("omega", dtype=float)
    delta = sequence.declare_variable("delta", dtype=float)
    quarter = duration_ns // 4
    sequence.add(Pulse.ConstantDetuning(RampWaveform(quarter, 0.0, omega), -6.0, 0.0), "rydberg")
    sequence.add(Pulse.ConstantAmplitude(omega, RampWaveform(2 * quarter, -6.0, delta), 0.0), "rydberg")
    sequence.add(Pulse.ConstantDetuning(RampWaveform(quarter, omega, 0.0), delta, 0.0), "rydberg")
    return sequence


TEXT = adiabatic().to_abstract_repr()
NOISY = EmulationConfig(
    observables=[BitStrings(evaluation_times=[1.0])],
    noise_model=NoiseModel(amp_sigma=0.1, dephasing_rate=0.5),
    n_trajectories=3,
).to_abstract_repr()


def batch(sequence: str | None = TEXT, **doc: Any) -> BatchWork:
    return BatchWork(new_batch_id(), BatchDoc(device="EMU_FREE", sequence=sequence, **doc))


def job(runs: int | None = 200, seed: int = 1, sequence: str | None = None, **variables: Any) -> JobWork:
    spec = JobSpec(runs=runs, variables=variables, sequence=sequence)
    return JobWork(job_id(UUID(int=8 << 76), 0), 0, spec, seed)


def ignore(progress: Progress) -> None:
    """Ignore a report."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lane() -> AsyncIterator[ChildLane]:
    lane = await open_lane()
    yield lane
    await lane.close()


async def open_lane(options: LaneOptions | None = None) -> ChildLane:
    lane = await make_adapter(Binding("qutip"), options).open_lane()
    assert isinstance(lane, ChildLane)
    return lane


async def run(lane: ChildLane, work: JobWork) -> Outcome:
    return await asyncio.wait_for(lane.run(work, ignore), PATIENCE_S)


async def counter(lane: ChildLane, work: JobWork) -> dict[str, int]:
    outcome = await run(lane, work)
    assert outcome.kind is OutcomeKind.DONE, outcome.fault
    assert outcome.result is not None
    assert outcome.result.counter is not None
    return outcome.result.counter


class SeedBeforeMeasuring(Observable):
    """An observable that seeds numpy at its first call, which is before the observables that follow it."""

    def __init__(self, seed: int) -> None:
        super().__init__(default_aggregation_method=AggregationMethod.SKIP)
        self._seed: int | None = seed

    @property
    def _base_tag(self) -> str:
        return "seed"

    def __call__(self, *arguments: Any, **options: Any) -> None:
        if self._seed is not None:
            np.random.seed(self._seed)
            self._seed = None

    def __deepcopy__(self, memo: dict[int, Any]) -> SeedBeforeMeasuring:
        return self

    def apply(self, **options: Any) -> None:
        """Return nothing."""


def bare_results(config: QutipConfig, seed: int, **variables: Any) -> Results:
    """Emulate the same with Pulser alone."""
    seeded = config.with_changes(observables=(SeedBeforeMeasuring(seed), *config.observables))
    results = QutipBackendV2(adiabatic().build(**variables), config=seeded).run()
    assert isinstance(results, Results)
    return results


async def test_a_job_gives_what_pulser_gives_for_the_same_seed(lane: ChildLane) -> None:
    await lane.prepare(batch())
    config = QutipConfig(observables=[BitStrings(evaluation_times=[1.0], num_shots=500)])
    for seed in (1, 2**32 - 1):
        expected = bare_results(config, seed, **VALUES).final_bitstrings
        assert await counter(lane, job(500, seed, **VALUES)) == dict(expected)


async def test_all_observables_and_times_are_pulsers_for_the_same_seed(lane: ChildLane) -> None:
    config: EmulationConfig[Any] = EmulationConfig(
        observables=[
            BitStrings(evaluation_times=[0.5, 1.0], num_shots=100),
            Occupation(evaluation_times=[0.1, 0.5, 1.0]),
            BitStrings(evaluation_times=[0.25, 0.5], num_shots=50, tag_suffix="early"),
            CorrelationMatrix(),
        ],
        noise_model=NoiseModel(p_false_pos=0.1, p_false_neg=0.2, relaxation_rate=0.3),
    )
    text = config.to_abstract_repr()
    await lane.prepare(batch(backend_configuration=text))
    outcome = await run(lane, job(None, 5, **VALUES))
    assert outcome.result is not None, outcome.fault
    expected = bare_results(QutipConfig.from_abstract_repr(text), 5, **VALUES)  # type: ignore[arg-type]
    assert json.loads(outcome.result.serialised_results or "") == json.loads(expected.to_abstract_repr())
    assert outcome.result.counter == dict(expected.final_bitstrings)


async def test_results_carry_their_provenance_and_can_be_read_by_pulser(lane: ChildLane) -> None:
    await lane.prepare(batch())
    outcome = await run(lane, job(30, 77, **VALUES))
    assert outcome.result is not None
    results = Results.from_abstract_repr(outcome.result.serialised_results or "")
    assert dict(results.final_bitstrings) == outcome.result.counter
    assert results.atom_order == ("q0", "q1", "q2", "q3")
    provenance = outcome.result.provenance
    assert isinstance(provenance, Provenance)
    assert (provenance.backend, provenance.seed) == ("qutip", 77)
    assert {"pulser-core", "pulser-simulation", "qutip", "numpy"} <= provenance.versions.keys()
    assert provenance.specs_digest is not None
    assert len(provenance.specs_digest) == 64
    assert json.loads(provenance.configuration or "")["default_num_shots"] == 30
    assert outcome.preparation_s >= 0
    assert outcome.device_s > 0


async def test_an_equal_seed_gives_an_equal_counter_on_any_lane_and_after_any_jobs(lane: ChildLane) -> None:
    await lane.prepare(batch())
    first = await counter(lane, job(200, 42, **VALUES))
    await counter(lane, job(200, 43, omega=3.0, delta=2.0))
    again = await counter(lane, job(200, 42, **VALUES))
    other = await open_lane()
    await other.prepare(batch())
    elsewhere = await counter(other, job(200, 42, **VALUES))
    await other.close()
    assert first == again == elsewhere


async def test_different_seeds_give_different_counters(lane: ChildLane) -> None:
    await lane.prepare(batch())
    counters = [await counter(lane, job(500, seed, **VALUES)) for seed in range(5)]
    assert len({json.dumps(each, sort_keys=True) for each in counters}) == 5
    long_seeds = [await counter(lane, job(500, seed, **VALUES)) for seed in (1, 1 + 2**32, 1 + 2**63)]
    assert len({json.dumps(each, sort_keys=True) for each in long_seeds}) == 3


async def test_equal_jobs_are_evolved_once_and_distinct_ones_each(lane: ChildLane) -> None:
    await lane.prepare(batch())
    await counter(lane, job(10, 1, omega=5.0, delta=1.0))
    before = lane.evolutions
    for runs in range(11, 21):
        assert sum((await counter(lane, job(runs, runs, omega=5.0, delta=1.0))).values()) == runs
    assert lane.evolutions == before
    await counter(lane, job(10, 1, omega=5.0, delta=1.5))
    assert lane.evolutions == before + 1


async def test_equal_jobs_that_share_an_evolution_pass_a_chi_square_test(lane: ChildLane) -> None:
    await lane.prepare(batch())
    before = lane.evolutions
    drawn: Counter[str] = Counter()
    for seed in range(40):
        drawn.update(await counter(lane, job(250, seed, omega=4.5, delta=3.0)))
    assert lane.evolutions == before + 1
    config = QutipConfig(observables=[StateResult()])
    chances = bare_results(config, 0, omega=4.5, delta=3.0).final_state.bitstring_probabilities()  # type: ignore[attr-defined]
    likely = [bitstring for bitstring, chance in chances.items() if chance * 10_000 >= 5]
    observed = [drawn[bitstring] for bitstring in likely]
    expected = [10_000 * chances[bitstring] for bitstring in likely]
    observed.append(10_000 - sum(observed))
    expected.append(10_000 - sum(expected))
    assert chisquare(observed, expected).pvalue > 0.001


@pytest.mark.parametrize(
    ("noise", "solver"),
    [
        (NoiseModel(amp_sigma=0.1), "default"),
        (NoiseModel(state_prep_error=0.2, p_false_pos=0.01), "default"),
        (NoiseModel(amp_sigma=0.1, dephasing_rate=0.5), "default"),  # QuTiP's Monte Carlo solver draws, too
        (NoiseModel(relaxation_rate=3.0), "MonteCarlo"),
    ],
    ids=["amplitude", "state preparation", "jumps and amplitude", "jumps alone"],
)
async def test_a_noisy_job_runs_by_itself_and_its_seed_decides(lane: ChildLane, noise: NoiseModel, solver: Any) -> None:
    config = QutipConfig(
        observables=[BitStrings(evaluation_times=[1.0])], noise_model=noise, n_trajectories=3, solver=solver
    )
    await lane.prepare(batch(backend_configuration=config.to_abstract_repr()))
    first = await counter(lane, job(100, 1, **VALUES))
    before = lane.evolutions
    assert await counter(lane, job(100, 1, **VALUES)) == first
    assert await counter(lane, job(100, 2, **VALUES)) != first
    assert lane.evolutions == before + 2


async def test_noise_that_is_not_random_is_evolved_once(lane: ChildLane) -> None:
    config: EmulationConfig[Any] = EmulationConfig(
        observables=[BitStrings(evaluation_times=[1.0])], noise_model=NoiseModel(p_false_pos=0.1)
    )
    await lane.prepare(batch(backend_configuration=config.to_abstract_repr()))
    await counter(lane, job(100, 1, **VALUES))
    before = lane.evolutions
    await counter(lane, job(100, 2, **VALUES))
    assert lane.evolutions == before


async def test_runs_override_the_shots_of_the_configuration_and_may_be_omitted(lane: ChildLane) -> None:
    config: EmulationConfig[Any] = EmulationConfig(observables=[BitStrings(evaluation_times=[1.0], num_shots=33)])
    await lane.prepare(batch(backend_configuration=config.to_abstract_repr()))
    assert sum((await counter(lane, job(7, **VALUES))).values()) == 7
    assert sum((await counter(lane, job(None, **VALUES))).values()) == 33


async def test_without_final_bitstrings_there_is_no_counter(lane: ChildLane) -> None:
    config: EmulationConfig[Any] = EmulationConfig(observables=[Occupation(evaluation_times=[0.5, 1.0])])
    await lane.prepare(batch(backend_configuration=config.to_abstract_repr()))
    outcome = await run(lane, job(7, **VALUES))
    assert outcome.kind is OutcomeKind.DONE
    assert outcome.result is not None
    assert outcome.result.counter is None
    assert len(Results.from_abstract_repr(outcome.result.serialised_results or "").occupation) == 2


async def test_a_job_may_bring_its_own_sequence(lane: ChildLane) -> None:
    await lane.prepare(batch(sequence=None))
    own = adiabatic().build(**VALUES).to_abstract_repr()
    assert sum((await counter(lane, job(20, sequence=own))).values()) == 20
    outcome = await run(lane, job(20))
    assert outcome.fault is not None
    assert (outcome.fault.code, outcome.fault.field) == ("invalid", "sequence")
    outcome = await run(lane, job(20, sequence="{}"))
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.USER)
    assert outcome.fault is not None
    assert outcome.fault.field == "sequence"


def mappable() -> str:
    layout = RegisterLayout([[0.0, 0.0], [0.0, 7.0], [7.0, 0.0], [7.0, 7.0]])
    sequence: Sequence[Any] = Sequence(layout.make_mappable_register(2), MockDevice)
    sequence.declare_channel("rydberg", "rydberg_global")
    sequence.add(Pulse.ConstantPulse(200, math.pi, 0.0, 0.0), "rydberg")
    return sequence.to_abstract_repr()


async def test_a_mappable_register_is_filled_by_the_jobs_qubits(lane: ChildLane) -> None:
    await lane.prepare(batch(mappable()))
    counted = await counter(lane, job(50, qubits={"q0": 3, "q1": 0}))
    assert {len(bitstring) for bitstring in counted} == {2}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "is missing"),
        ({"qubits": {}}, "must map"),
        ({"qubits": [0, 1]}, "must map"),
        ({"qubits": {"q0": "trap"}}, "must map"),
        ({"qubits": {"q0": 99}}, "cannot be used"),
        ({"qubits": {"nobody": 1}}, "cannot be used"),
        ({"qubits": {"q0": 1, "q1": 1}}, "cannot be used"),
    ],
)
async def test_the_error_for_qubits_that_cannot_be_mapped_names_them(
    lane: ChildLane, variables: dict[str, Any], words: str
) -> None:
    await lane.prepare(batch(mappable()))
    outcome = await run(lane, job(50, **variables))
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.USER)
    assert outcome.fault is not None
    assert outcome.fault.field == "variables.qubits"
    assert words in outcome.fault.message


@pytest.mark.parametrize(
    ("variables", "field", "words"),
    [
        ({"delta": 1.0}, "variables.omega", "is missing: the sequence needs a number for omega"),
        ({"omega": [1.0, 2.0], "delta": 1.0}, "variables.omega", "must be a number (got 2 values)"),
        ({"omega": "six", "delta": 1.0}, "variables.omega", "must be a number (got 'six')"),
        ({"omega": math.nan, "delta": 1.0}, "variables.omega", "must be a number"),
        ({"omega": None, "delta": 1.0}, "variables.omega", "must be a number"),
        ({"omega": [[1.0]], "delta": 1.0}, "variables.omega", "must be a number"),
        ({"omega": -5.0, "delta": 1.0}, "variables", "cannot be built with these values"),
    ],
)
async def test_the_error_for_a_value_that_does_not_fit_names_it(
    lane: ChildLane, variables: dict[str, Any], field: str, words: str
) -> None:
    await lane.prepare(batch())
    outcome = await run(lane, job(50, **variables))
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.USER)
    assert outcome.fault is not None
    assert outcome.fault.field == field
    assert words in outcome.fault.message
    assert (await run(lane, job(50, **VALUES, unknown=1))).kind is OutcomeKind.DONE


@pytest.mark.parametrize(("runs", "seed", "field"), [(0, 1, "runs"), (-3, 1, "runs"), (1, -1, "seed")])
async def test_the_error_for_runs_or_seeds_out_of_bounds_names_them(
    lane: ChildLane, runs: int, seed: int, field: str
) -> None:
    await lane.prepare(batch())
    outcome = await run(lane, job(runs, seed, **VALUES))
    assert outcome.kind is OutcomeKind.ERROR
    assert outcome.fault is not None
    assert (outcome.fault.code, outcome.fault.field) == ("invalid", field)


EMPTY: Sequence[Any] = Sequence(Register.square(2, spacing=6.0, prefix="q"), MockDevice)
NO_CHANNEL = EMPTY.to_abstract_repr()
EMPTY.declare_channel("rydberg", "rydberg_global")
NO_PULSE = EMPTY.to_abstract_repr()
WRONG_CHANNEL = json.dumps({**json.loads(TEXT), "channels": {"rydberg": "no_such_channel"}})
WRONG_OPERATION = json.dumps({**json.loads(TEXT), "operations": [{"op": "dance"}]})


@pytest.mark.parametrize(
    "sequence",
    [
        "",
        "not JSON at all",
        "{}",
        "[]",
        "null",
        "12",
        '"text"',
        "[" * 100_000,
        "\ud800".encode("utf-8", "replace").decode(),
        MockDevice.to_abstract_repr(),
        NO_CHANNEL,
        NO_PULSE,
        WRONG_CHANNEL,
        WRONG_OPERATION,
    ],
    ids=range(14),
)
async def test_junk_is_refused_at_prepare_with_a_short_reason_and_the_lane_continues(
    lane: ChildLane, sequence: str
) -> None:
    pid = lane.pid
    with pytest.raises(ExecutionError) as raised:
        await lane.prepare(batch(sequence))
    assert (raised.value.kind, raised.value.field) == (FaultKind.USER, "sequence")
    assert len(raised.value.message) < 400
    assert "\n" not in raised.value.message
    await lane.prepare(batch())
    assert (await run(lane, job(5, **VALUES))).kind is OutcomeKind.DONE
    assert lane.pid == pid


PLAIN = json.loads(EmulationConfig(observables=[BitStrings(evaluation_times=[1.0])]).to_abstract_repr())


def configured(**options: Any) -> str:
    """Return a configuration with more options in Python's JSON, where infinity is ``Infinity``."""
    return json.dumps(PLAIN | options)


async def test_options_for_other_emulators_are_accepted(lane: ChildLane) -> None:
    text = configured(
        num_gpus_to_use=1,
        autosave_dt=math.inf,
        optimize_qubit_ordering=True,
        log_file=None,
        solver="tdvp",
        interaction_matrix=None,
    )
    assert "Infinity" in text
    await lane.prepare(batch(backend_configuration=text))
    assert sum((await counter(lane, job(5, **VALUES))).values()) == 5


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"log_file": "/etc/passwd"}, "backend_configuration.log_file"),
        ({"autosave_prefix": "x"}, "backend_configuration.autosave_prefix"),
        ({"autosave_dt": 10}, "backend_configuration.autosave_dt"),
        ({"callbacks": ["x"]}, "backend_configuration.callbacks"),
        ({"surprise": 1}, "backend_configuration.surprise"),
        ({"backend_options": {"log_file": "x"}}, "backend_configuration.backend_options"),
        ({"observables": "all"}, "backend_configuration"),
        ({"observables": [{"observable": "mood"}]}, "backend_configuration"),
        ({"solver": "abacus"}, "backend_configuration.solver"),
        ({"default_num_shots": -1}, "backend_configuration"),
        ({"interaction_matrix": [[0.0, 1.0], [1.0, 0.0]]}, "backend_configuration.interaction_matrix"),
    ],
)
async def test_dangerous_unknown_and_wrong_options_are_refused(
    lane: ChildLane, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(ExecutionError) as raised:
        await lane.prepare(batch(backend_configuration=configured(**options)))
    assert (raised.value.kind, raised.value.field) == (FaultKind.USER, field)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "[" * 100_000])
async def test_a_configuration_that_is_junk_is_refused(lane: ChildLane, text: str) -> None:
    with pytest.raises(ExecutionError) as raised:
        await lane.prepare(batch(backend_configuration=text))
    assert (raised.value.kind, raised.value.field) == (FaultKind.USER, "backend_configuration")


async def test_an_old_configuration_with_unsupported_options_is_refused(lane: ChildLane) -> None:
    await lane.prepare(batch(configuration={"with_noise": False, "strict_validation": True, "result_types": None}))
    with pytest.raises(ExecutionError) as raised:
        await lane.prepare(batch(configuration={"with_noise": True}))
    assert raised.value.field == "configuration.with_noise"


def mixed(measured: str | None, *, pulses: tuple[str, ...] = ("raman", "rydberg")) -> Sequence[Any]:
    """Return a sequence that moves atom a to the hyperfine state, then atom b to the Rydberg state."""
    sequence: Sequence[Any] = Sequence(Register({"a": (0, 0), "b": (30, 0)}), MockDevice)
    for name, atom in (("raman", "a"), ("rydberg", "b")):
        if name in pulses:
            sequence.declare_channel(name, f"{name}_local", initial_target=atom)
            sequence.add(Pulse.ConstantPulse(200, math.pi / 0.2, 0.0, 0.0), name)
    if measured is not None:
        sequence.measure(measured)
    return sequence


@pytest.mark.filterwarnings("ignore:QutipEmulator is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("measured", "expected"), [("digital", "10"), (None, "10"), ("ground-rydberg", "01")])
async def test_atoms_with_three_states_are_counted_in_the_sequences_own_measurement_basis(
    lane: ChildLane, measured: str | None, expected: str
) -> None:
    sequence = mixed(measured)
    bare = QutipEmulator.from_sequence(sequence).run().sample_final_state(100)
    await lane.prepare(batch(sequence.to_abstract_repr()))
    assert (await counter(lane, job(100)))[expected] >= 95
    assert bare[expected] >= 95
    observed = EmulationConfig(observables=[Occupation(evaluation_times=[1.0])]).to_abstract_repr()
    await lane.prepare(batch(sequence.to_abstract_repr(), backend_configuration=observed))
    outcome = await run(lane, job(100))
    assert outcome.result is not None
    assert outcome.result.serialised_results is not None
    occupation = Results.from_abstract_repr(outcome.result.serialised_results).occupation[-1]
    assert [round(float(one)) for one in occupation] == [int(bit) for bit in expected]


async def test_a_late_rejection_by_pulser_is_a_users_error(lane: ChildLane) -> None:
    noisy: EmulationConfig[Any] = EmulationConfig(
        observables=[BitStrings(evaluation_times=[1.0])], noise_model=NoiseModel(relaxation_rate=1.0)
    )
    text = mixed(None, pulses=("raman",)).to_abstract_repr()
    await lane.prepare(batch(text, backend_configuration=noisy.to_abstract_repr()))
    outcome = await run(lane, job(5))
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.USER)
    assert outcome.fault is not None
    assert "ground-rydberg" in outcome.fault.message


LONG = adiabatic(8, 40_000).to_abstract_repr()


async def test_progress_comes_from_within_the_solver_and_a_cancel_is_noticed() -> None:
    lane = await open_lane(LaneOptions(soft_cancel_s=30.0, progress_interval_s=0.02))
    await lane.prepare(batch(LONG))
    pid, fractions = lane.pid, []
    steps: list[Steps | None] = []
    enough = asyncio.Event()

    def report(progress: Progress) -> None:
        fractions.append(progress.fraction or 0.0)
        steps.append(progress.steps)
        if len(fractions) >= 3:
            enough.set()

    task = asyncio.create_task(lane.run(job(10, **VALUES), report))
    await asyncio.wait_for(enough.wait(), PATIENCE_S)
    await lane.cancel()
    outcome = await asyncio.wait_for(task, PATIENCE_S)
    assert outcome.kind is OutcomeKind.CANCELED
    assert fractions == sorted(fractions)
    assert 0.0 < fractions[0] < fractions[-1] < 1.0
    for fraction, count in zip(fractions, steps, strict=True):
        assert count is not None
        assert count.total
        assert count.done is not None
        assert abs(count.done / count.total - fraction) < 1e-3
        assert count.message == f"{count.done} of {count.total} ns"
    assert lane.pid == pid  # it was a soft cancel
    await lane.prepare(batch())
    assert (await run(lane, job(5, **VALUES))).kind is OutcomeKind.DONE
    await lane.close()


async def test_a_job_ends_at_its_time_limit() -> None:
    lane = await open_lane()
    await lane.prepare(batch(LONG, limits=Limits(job_timeout_s=0.3)))
    outcome = await run(lane, job(10, **VALUES))
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.TIMEOUT)
    await lane.close()


@pytest.mark.slow
async def test_a_sequence_that_is_too_large_for_the_lane_ends_in_out_of_memory() -> None:
    lane = await open_lane(LaneOptions(memory_limit_mb=600, watch_interval_s=0.02))
    await lane.prepare(batch(adiabatic(18).to_abstract_repr()))
    outcome = await run(lane, job(10, **VALUES))
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.OUT_OF_MEMORY)
    assert outcome.fault is not None
    assert "600 MB" in outcome.fault.message
    await lane.prepare(batch())
    assert (await run(lane, job(5, **VALUES))).kind is OutcomeKind.DONE
    await lane.close()
