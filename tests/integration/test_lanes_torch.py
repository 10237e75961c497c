"""EMU_SV, EMU_MPS and EMU_TN: Pulser sequences in a lane's process, emulated by emu-sv and emu-mps."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import pytest_asyncio
from pulser import NoiseModel, Pulse, Register, Sequence
from pulser.backend import (
    BitStrings,
    CorrelationMatrix,
    EmulationConfig,
    Energy,
    EnergySecondMoment,
    EnergyVariance,
    Observable,
    Occupation,
    Results,
)
from pulser.devices import MockDevice
from pulser_simulation import QutipBackendV2, QutipConfig

from tweezer.adapters.lane.lane import ChildLane, LaneOptions
from tweezer.adapters.registry import DEVICE_KINDS, Binding, make_adapter
from tweezer.model.errors import ExecutionError, FaultKind, InvalidInput
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import BatchDoc, BatchWork, JobSpec, JobWork, Limits, Outcome, OutcomeKind, Progress, Steps

torch = pytest.importorskip("torch", reason="the extra torch is not installed")

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.torch,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:pulser"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PATIENCE_S = 100.0
DT = 50.0
VALUES: dict[str, Any] = {"omega": 5.0}
SV, MPS = "EMU_SV", "EMU_MPS"
PLACES = {"q0": (0.0, 0.0), "q1": (6.0, 0.0), "q2": (0.0, 7.0)}


def pulsed(atoms: int = 3, duration_ns: int = 400, channel: str = "rydberg_global") -> Sequence[Any]:
    """Return a sequence whose atoms all differ, so that their order shows; the amplitude is the variable ``omega``."""
    places = dict(list(PLACES.items())[:atoms]) if atoms <= 3 else Register.square(4, 6.0, prefix="q").qubits
    sequence: Sequence[Any] = Sequence(Register(places), MockDevice)
    sequence.declare_channel("channel", channel)
    omega = sequence.declare_variable("omega", dtype=float)
    sequence.add(Pulse.ConstantPulse(duration_ns, omega, 1.0 if channel.startswith("rydberg") else 0.0, 0.0), "channel")
    return sequence


TEXT = pulsed().to_abstract_repr()


def plain(*observables: Observable, **options: Any) -> str:
    """Return a configuration with coarse steps and these options."""
    asked = observables or (BitStrings(evaluation_times=[1.0]),)
    config: EmulationConfig[Any] = EmulationConfig(observables=asked)
    return json.dumps({**json.loads(config.to_abstract_repr()), "dt": DT, **options})


def batch(sequence: str | None = TEXT, **doc: Any) -> BatchWork:
    doc.setdefault("backend_configuration", plain())
    return BatchWork(new_batch_id(), BatchDoc(device=SV, sequence=sequence, **doc))


def job(runs: int | None = 200, seed: int = 1, **variables: Any) -> JobWork:
    spec = JobSpec(runs=runs, variables=variables or VALUES)
    return JobWork(job_id(UUID(int=8 << 76), 0), 0, spec, seed)


def ignore(progress: Progress) -> None:
    """Ignore a report."""


async def open_lane(device: str, options: LaneOptions | None = None) -> ChildLane:
    lane = await make_adapter(Binding(DEVICE_KINDS[device]), options).open_lane()
    assert isinstance(lane, ChildLane)
    return lane


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lane_sv() -> AsyncIterator[ChildLane]:
    lane = await open_lane(SV)
    yield lane
    await lane.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lane_mps() -> AsyncIterator[ChildLane]:
    lane = await open_lane(MPS)
    yield lane
    await lane.close()


@pytest.fixture(params=[SV, MPS])
def lane(request: pytest.FixtureRequest, lane_sv: ChildLane, lane_mps: ChildLane) -> ChildLane:
    """Both emulators in turn."""
    return lane_sv if request.param == SV else lane_mps


async def run(lane: ChildLane, work: JobWork) -> Outcome:
    return await asyncio.wait_for(lane.run(work, ignore), PATIENCE_S)


async def results(lane: ChildLane, work: JobWork) -> Results:
    outcome = await run(lane, work)
    assert outcome.kind is OutcomeKind.DONE, outcome.fault
    assert outcome.result is not None
    return Results.from_abstract_repr(outcome.result.serialised_results or "")


async def counter(lane: ChildLane, work: JobWork) -> dict[str, int]:
    outcome = await run(lane, work)
    assert outcome.kind is OutcomeKind.DONE, outcome.fault
    assert outcome.result is not None
    assert outcome.result.counter is not None
    return outcome.result.counter


def bare(device: str, text: str, seed: int) -> Results:
    """Return the results of the library itself, in this process."""
    import emu_mps
    import emu_sv

    library, config = (emu_sv.SVBackend, emu_sv.SVConfig) if device == SV else (emu_mps.MPSBackend, emu_mps.MPSConfig)
    options = json.loads(text) | {"gpu": False, "log_level": 40}
    if device == SV:
        del options["optimize_qubit_ordering"]
    configured = config.from_abstract_repr(json.dumps(options))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    found: Results = library(pulsed().build(**VALUES), config=configured).run()
    return found


@pytest.mark.parametrize("device", [SV, MPS])
async def test_a_job_gives_what_the_bare_library_gives(device: str, lane_sv: ChildLane, lane_mps: ChildLane) -> None:
    lane = lane_sv if device == SV else lane_mps
    observables = (BitStrings(evaluation_times=[1.0], num_shots=300), Occupation(evaluation_times=[1.0]))
    text = plain(*observables, optimize_qubit_ordering=False)  # emu-mps chooses the first order at random
    await lane.prepare(batch(backend_configuration=text))
    work = job(None, 7)
    theirs = bare(device, text, 7)
    assert await counter(lane, work) == dict(theirs.final_bitstrings)
    assert np.allclose((await results(lane, work)).occupation[0], np.asarray(theirs.occupation[0]), atol=1e-9)


async def test_without_a_configuration_final_bitstrings_are_sampled(lane_sv: ChildLane) -> None:
    await lane_sv.prepare(batch(backend_configuration=None))
    counted = await counter(lane_sv, job(50))
    assert (sum(counted.values()), {len(bits) for bits in counted}) == (50, {3})


async def test_every_observable_of_the_configuration_comes_back(lane: ChildLane) -> None:
    asked = (
        BitStrings(evaluation_times=[0.5, 1.0]),
        BitStrings(evaluation_times=[1.0], num_shots=10, tag_suffix="again"),
        Occupation(evaluation_times=[0.0, 0.5, 1.0]),
        CorrelationMatrix(evaluation_times=[1.0]),
        Energy(evaluation_times=[1.0]),
        EnergyVariance(evaluation_times=[1.0]),
        EnergySecondMoment(evaluation_times=[1.0]),
    )
    await lane.prepare(batch(backend_configuration=plain(*asked)))
    found = await results(lane, job(None))
    assert set(found.get_result_tags()) == {observable.tag for observable in asked}
    assert (len(found.bitstrings), len(found.occupation)) == (2, 3)
    assert sum(found.bitstrings_again[0].values()) == 10
    assert found.atom_order == ("q0", "q1", "q2")


async def test_qubits_are_in_the_registers_order_for_every_emulator(lane: ChildLane) -> None:
    asked = (BitStrings(evaluation_times=[1.0]), Occupation(evaluation_times=[1.0]))
    named = tuple(type(one)(evaluation_times=[1.0], tag_suffix="named") for one in asked)
    exact = QutipBackendV2(
        pulsed().build(**VALUES), config=QutipConfig(observables=[Occupation(evaluation_times=[1.0])])
    ).run()
    expected = np.asarray(exact.occupation[0])
    for observables in (asked, (*asked, *named)):
        await lane.prepare(batch(backend_configuration=plain(*observables, dt=10)))
        found = await results(lane, job(4000))
        for occupation in (found.get_tagged_results()[each.tag][0] for each in observables[1::2]):
            assert np.allclose(np.asarray(occupation), expected, atol=5e-3)
        for drawn in (found.get_tagged_results()[each.tag][0] for each in observables[::2]):
            ones = [sum(n for bits, n in drawn.items() if bits[place] == "1") / 4000 for place in range(3)]
            assert np.allclose(ones, expected, atol=0.05)


async def test_an_equal_seed_gives_an_equal_counter_and_another_seed_a_different_one(lane: ChildLane) -> None:
    await lane.prepare(batch())
    first = await counter(lane, job(300, 42))
    await counter(lane, job(300, 43, omega=3.0))
    assert await counter(lane, job(300, 42)) == first
    others = [await counter(lane, job(300, seed)) for seed in (1, 2, 1 + 2**32, 1 + 2**63)]
    assert len({json.dumps(each, sort_keys=True) for each in others}) == 4


async def test_equal_jobs_are_evolved_once_and_distinct_ones_each(lane: ChildLane) -> None:
    await lane.prepare(batch())
    await counter(lane, job(10, 1, omega=4.0))
    before = lane.evolutions
    drawn = Counter[str]()
    for runs in range(11, 16):
        drawn.update(await counter(lane, job(runs, runs, omega=4.0)))
    assert (drawn.total(), lane.evolutions) == (65, before)
    await counter(lane, job(10, 1, omega=4.5))
    assert lane.evolutions == before + 1


@pytest.mark.parametrize("noise", [NoiseModel(amp_sigma=0.1), NoiseModel(relaxation_rate=1.0)])
async def test_a_noisy_job_runs_by_itself_and_its_seed_decides(lane_mps: ChildLane, noise: NoiseModel) -> None:
    config: EmulationConfig[Any] = EmulationConfig(
        observables=[BitStrings(evaluation_times=[1.0])], noise_model=noise, n_trajectories=2
    )
    text = json.dumps({**json.loads(config.to_abstract_repr()), "dt": 100})
    await lane_mps.prepare(batch(backend_configuration=text))
    first = await counter(lane_mps, job(40, 1))
    assert sum(first.values()) == 80  # Pulser takes the same number of samples in each trajectory
    before = lane_mps.evolutions
    assert await counter(lane_mps, job(40, 1)) == first
    assert lane_mps.evolutions == before + 1


async def test_noise_that_is_not_random_is_evolved_once(lane_sv: ChildLane) -> None:
    config: EmulationConfig[Any] = EmulationConfig(
        observables=[BitStrings(evaluation_times=[1.0])],
        noise_model=NoiseModel(dephasing_rate=0.5, p_false_pos=0.1),
        n_trajectories=5,
    )
    text = json.dumps({**json.loads(config.to_abstract_repr()), "dt": DT})
    await lane_sv.prepare(batch(backend_configuration=text))
    assert sum((await counter(lane_sv, job(100, 1))).values()) == 100
    before = lane_sv.evolutions
    await counter(lane_sv, job(100, 2))
    assert lane_sv.evolutions == before


async def test_an_xy_sequence_runs_on_emu_mps_alone(lane_sv: ChildLane, lane_mps: ChildLane) -> None:
    text = pulsed(2, channel="mw_global").to_abstract_repr()
    await lane_mps.prepare(batch(text))
    assert sum((await counter(lane_mps, job(20))).values()) == 20
    await lane_sv.prepare(batch(text))
    outcome = await run(lane_sv, job(20))
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.USER)
    assert outcome.fault is not None
    assert outcome.fault.field == "sequence"
    assert "XY" in outcome.fault.message


async def test_one_atom_is_too_few_for_emu_mps(lane_sv: ChildLane, lane_mps: ChildLane) -> None:
    text = pulsed(1).to_abstract_repr()
    await lane_sv.prepare(batch(text))
    assert sum((await counter(lane_sv, job(20))).values()) == 20
    await lane_mps.prepare(batch(text))
    outcome = await run(lane_mps, job(20))
    assert outcome.fault is not None
    assert (outcome.cause, outcome.fault.field) == (FaultKind.USER, "sequence")
    assert "at least 2" in outcome.fault.message


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"log_file": "/tmp/written-by-a-client"}, "log_file"),
        ({"autosave_prefix": "x"}, "autosave_prefix"),
        ({"autosave_dt": 11}, "autosave_dt"),
        ({"callbacks": ["x"]}, "callbacks"),
        ({"surprise": 1}, "surprise"),
        ({"dt": 0}, "dt"),
        ({"dt": "ten"}, "dt"),
        ({"dt": math.inf}, "dt"),
        ({"dt": math.nan}, "dt"),
        ({"max_krylov_dim": 0}, "max_krylov_dim"),
        ({"interaction_cutoff": -1}, "interaction_cutoff"),
        ({"solver": "abacus"}, "solver"),
        ({"default_evaluation_times": "Full"}, "default_evaluation_times"),
    ],
)
async def test_dangerous_unknown_and_wrong_options_are_refused_by_name(
    lane: ChildLane, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(ExecutionError) as raised:
        await lane.prepare(batch(backend_configuration=plain(**options)))
    assert (raised.value.kind, raised.value.field) == (FaultKind.USER, f"backend_configuration.{field}")


async def test_the_log_file_of_a_clients_configuration_is_not_written(lane_sv: ChildLane, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ExecutionError, match="is not allowed, because it makes the emulator write files"):
        await lane_sv.prepare(batch(backend_configuration=plain(log_file=str(log))))
    assert not log.exists()


@pytest.mark.parametrize(
    "options", [{"precision": 0}, {"max_bond_dim": 1.5}, {"extra_krylov_tolerance": 2}, {"optimize_qubit_ordering": 1}]
)
async def test_options_of_emu_mps_are_checked_by_it_and_dropped_by_emu_sv(
    lane_sv: ChildLane, lane_mps: ChildLane, options: dict[str, Any]
) -> None:
    with pytest.raises(ExecutionError) as raised:
        await lane_mps.prepare(batch(backend_configuration=plain(**options)))
    assert raised.value.field == f"backend_configuration.{next(iter(options))}"
    await lane_sv.prepare(batch(backend_configuration=plain(**options)))


async def test_options_that_clients_serialise_are_accepted_and_those_of_operators_refused(lane: ChildLane) -> None:
    import emu_mps
    import emu_sv

    for config in (emu_sv.SVConfig, emu_mps.MPSConfig):
        whole = config(observables=[BitStrings(evaluation_times=[1.0])], dt=DT, log_level=40)
        options = json.loads(whole.to_abstract_repr()) | {"gpu": True, "num_gpus_to_use": 1, "solver": None}
        await lane.prepare(batch(backend_configuration=json.dumps(options)))
        outcome = await run(lane, job(5))
        assert outcome.result is not None, outcome.fault
        assert outcome.result.provenance is not None
        ran = json.loads(outcome.result.provenance.configuration or "")
        assert (ran["gpu"], ran["log_level"], ran["dt"]) == (False, 30, DT)
        assert outcome.result.provenance.backend in {"emu-sv", "emu-mps"}
        assert "torch" in outcome.result.provenance.versions


async def test_a_tolerance_that_cannot_be_met_is_the_users_error(lane_sv: ChildLane) -> None:
    text = plain(dt=400, max_krylov_dim=1, krylov_tolerance=1e-14)
    await lane_sv.prepare(batch(backend_configuration=text))
    outcome = await run(lane_sv, job(5))
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.USER)
    assert outcome.fault is not None
    assert outcome.fault.field == "backend_configuration"


LONG_TEXT = pulsed(16, 10_000).to_abstract_repr()


@pytest.mark.parametrize("device", [SV, MPS])
async def test_progress_comes_from_within_the_solver_and_a_cancel_is_noticed_there(
    device: str, lane_sv: ChildLane, lane_mps: ChildLane
) -> None:
    lane = lane_sv if device == SV else lane_mps
    await lane.prepare(batch(LONG_TEXT, backend_configuration=plain(dt=1.0)))
    pid, fractions = lane.pid, []
    steps: list[Steps | None] = []
    enough = asyncio.Event()

    def report(progress: Progress) -> None:
        fractions.append(progress.fraction or 0.0)
        steps.append(progress.steps)
        if len(fractions) >= 2:
            enough.set()

    task = asyncio.create_task(lane.run(job(10), report))
    await asyncio.wait_for(enough.wait(), PATIENCE_S)
    await lane.cancel()
    outcome = await asyncio.wait_for(task, PATIENCE_S)
    assert outcome.kind is OutcomeKind.CANCELED
    assert fractions == sorted(fractions)
    assert 0.0 < fractions[-1] < 1.0
    assert all(count is not None and count.message == f"{count.done} of {count.total} ns" for count in steps)
    assert lane.pid == pid  # it was a soft cancel
    await lane.prepare(batch())
    assert (await run(lane, job(5))).kind is OutcomeKind.DONE


async def test_a_job_ends_at_its_time_limit(lane: ChildLane) -> None:
    text = plain(dt=1.0)
    await lane.prepare(batch(LONG_TEXT, backend_configuration=text, limits=Limits(job_timeout_s=0.5)))
    outcome = await run(lane, job(10))
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.TIMEOUT)


async def test_a_job_that_is_too_large_for_the_lane_ends_in_out_of_memory() -> None:
    lane = await open_lane(SV, LaneOptions(memory_limit_mb=1000, watch_interval_s=0.02))
    huge: Sequence[Any] = Sequence(Register.rectangle(5, 5, 6.0, prefix="q"), MockDevice)
    huge.declare_channel("channel", "rydberg_global")
    huge.add(Pulse.ConstantPulse(400, 5.0, 0.0, 0.0), "channel")
    await lane.prepare(batch(huge.to_abstract_repr()))
    outcome = await run(lane, job(10))
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.OUT_OF_MEMORY)
    await lane.close()


async def test_the_older_name_is_served_by_emu_mps() -> None:
    lane = await open_lane("EMU_TN")
    await lane.prepare(batch())
    outcome = await run(lane, job(5))
    assert outcome.result is not None
    assert outcome.result.provenance is not None
    assert outcome.result.provenance.backend == "emu-mps"
    await lane.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
async def test_a_missing_gpu_is_reported_when_the_lane_opens() -> None:
    with pytest.raises(ExecutionError, match=r"option gpus requests a GPU, but torch .* finds none"):
        await make_adapter(Binding("emu-sv", {"gpus": 1})).open_lane()


async def test_more_gpus_than_the_worker_may_use_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "2")
    with pytest.raises(
        InvalidInput, match=r"must be at most 1, the number of GPUs in CUDA_VISIBLE_DEVICES of this process \(got 2\)"
    ):
        make_adapter(Binding("emu-mps", {"gpus": 2}))
