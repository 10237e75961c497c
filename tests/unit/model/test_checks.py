"""The checks before anything is written: what they refuse, and that they raise nothing but InvalidInput."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pulser import Pulse, Register, Sequence
from pulser.devices import MockDevice
from pulser.register.special_layouts import SquareLatticeLayout
from tests.support.costs import untraced
from tests.support.effort import effort

from tweezer.model.arguments import check_list
from tweezer.model.checks import (
    MAX_CONFIGURATION_BYTES,
    MAX_CONFIGURATION_DEPTH,
    MAX_DEVICE_LENGTH,
    MAX_INTEGER,
    MAX_JOB_TIMEOUT_S,
    MAX_NAME_LENGTH,
    MAX_OPEN_TIMEOUT_S,
    MAX_SEED,
    MAX_TAG_LENGTH,
    MAX_TAGS,
    MAX_TRANSIENT_RETRIES,
    MAX_WEBHOOK_LENGTH,
    as_job_spec,
    as_limits,
    check_batch,
    check_jobs,
    check_text,
    list_jobs,
    suggest_name,
)
from tweezer.model.errors import InvalidInput
from tweezer.model.messages import (
    MAX_JOBS_PER_CALL,
    BatchDoc,
    JobSpec,
    Limits,
    decode_doc,
    decode_spec,
    encode_doc,
    encode_spec,
)
from tweezer.model.rules import Rules
from tweezer.model.sequence import read_sequence

LAYOUT = SquareLatticeLayout(3, 3, 6)
REGISTER = Register.square(2, 6.0, prefix="q")


HUGE = 10**5000  # Python refuses to convert it to a text


def make_sequence(register: Any = REGISTER, *, use: bool = True, **variables: tuple[type, int]) -> Sequence[Any]:
    sequence = Sequence(register, MockDevice)
    sequence.declare_channel("rydberg", "rydberg_global")
    for name, (dtype, size) in variables.items():
        variable = sequence.declare_variable(name, size=size, dtype=dtype)
        if use:
            sequence.add(Pulse.ConstantPulse(100, 1, 0, variable[0]), "rydberg")
    return sequence


PARAMETRISED = make_sequence(omega=(float, 1), steps=(int, 1), detunings=(float, 3), atoms=(int, 2))
MAPPABLE = make_sequence(LAYOUT.make_mappable_register(3))
BUILT_TEXT = make_sequence().to_abstract_repr()
HEADER = read_sequence(PARAMETRISED.to_abstract_repr())
MAPPABLE_HEADER = read_sequence(MAPPABLE.to_abstract_repr())
BUILT_HEADER = read_sequence(BUILT_TEXT)
GOOD: dict[str, Any] = {"omega": 1.5, "steps": 4, "detunings": [0.0, 1.0, 2.0], "atoms": [0, 1]}


def check(*jobs: Any, header: Any = HEADER, max_runs: int = 1000, needs_runs: bool = True) -> None:
    check_jobs(jobs, header, max_runs=max_runs, needs_runs=needs_runs)


def fault_of(*jobs: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(InvalidInput) as caught:
        check(*jobs, **options)
    return caught.value.field, caught.value.problem


def fault_of_batch(**parts: Any) -> tuple[str, str]:
    with pytest.raises(InvalidInput) as caught:
        check_batch(BatchDoc(**({"device": "EMU_FREE"} | parts)))
    return caught.value.field, caught.value.problem


# --- jobs ---------------------------------------------------------------------------------------------


def test_good_jobs_pass() -> None:
    check()
    check(JobSpec(runs=1, variables=GOOD), JobSpec(runs=1000, variables=GOOD, seed=MAX_SEED))
    check(JobSpec(runs=5, variables=GOOD), JobSpec(runs=5, sequence=BUILT_TEXT))
    check(JobSpec(runs=5, sequence=BUILT_TEXT), header=None)
    check(JobSpec(runs=5), header=BUILT_HEADER)


@pytest.mark.parametrize(
    "values",
    [
        {"omega": [1.5]},
        {"omega": 2},
        {"steps": [3]},
        {"steps": 3.0},
        {"detunings": (1, 2.5, -3)},
        {"atoms": [0.0, 1]},
        {"omega": 1e300},
    ],
)
def test_values_that_pulser_treats_as_equal_pass(values: dict[str, Any]) -> None:
    check(JobSpec(runs=5, variables=GOOD | values))
    PARAMETRISED.build(**(GOOD | values))


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("omega", math.nan, "omega", "expected a finite number that fits in 64 bits, got nan"),
        ("omega", math.inf, "omega", "got inf"),
        ("omega", True, "omega", "got True"),
        ("omega", "1.5", "omega", "got '1.5'"),
        ("omega", None, "omega", "got None"),
        ("omega", {}, "omega", "got an empty dict"),
        ("omega", [], "omega", "expected 1 value, got 0"),
        ("omega", [1.0, 2.0], "omega", "expected 1 value, got 2"),
        ("omega", [[1.0]], "omega[0]", "got a list"),
        ("omega", MAX_INTEGER + 1, "omega", "fits in 64 bits"),
        pytest.param("omega", HUGE, "omega", "got a whole number of 16610 bits", id="huge"),
        ("omega", np.float64(1.0), "omega", "got a value of type float64"),
        ("detunings", 1.0, "detunings", "expected a list of 3 values, got a single number"),
        ("detunings", [1.0, 2.0], "detunings", "expected 3 values, got 2"),
        ("detunings", [1.0, math.inf, 2.0], "detunings[1]", "got inf"),
        ("detunings", [1.0, 2.0, None], "detunings[2]", "got None"),
        ("steps", 2.5, "steps", "expected a whole number (the variable is of type int)"),
        ("steps", 1e300, "steps", "expected a whole number"),
        ("steps", math.nan, "steps", "expected a whole number"),
        ("steps", -MAX_INTEGER - 1, "steps", "fits in 64 bits"),
        ("atoms", [0, 0.5], "atoms[1]", "expected a whole number"),
    ],
)
def test_a_bad_value_is_named(name: str, value: Any, field: str, expected: str) -> None:
    good = JobSpec(runs=5, variables=GOOD)
    found, problem = fault_of(good, good, good, JobSpec(runs=5, variables=GOOD | {name: value}))
    assert found == f"jobs[3].variables.{field}"
    assert expected in problem


def test_a_missing_variable_is_named() -> None:
    without = {name: value for name, value in GOOD.items() if name != "steps"}
    assert fault_of(JobSpec(runs=5, variables=without))[0] == "jobs[0].variables.steps"
    assert fault_of(JobSpec(runs=5))[0] == "jobs[0].variables.omega"


def test_an_unknown_variable_is_named_with_the_known_ones_and_the_nearest() -> None:
    field, problem = fault_of(JobSpec(runs=5, variables=GOOD | {"omgea": 1.0}))
    assert field == "jobs[0].variables.omgea"
    assert (
        problem == "is not a variable of the sequence (did you mean omega?); it declares atoms, detunings, omega, steps"
    )
    assert "did you mean" not in fault_of(JobSpec(runs=5, variables=GOOD | {"zzz": 1.0}))[1]
    assert "declares none" in fault_of(JobSpec(runs=5, variables={"omega": 1.0}), header=BUILT_HEADER)[1]


@pytest.mark.parametrize("name", ["", "a\nb", "\ud800", "x" * 1_000_000, 5, None, (1, 2)])
def test_a_strange_name_is_shown_shortened_and_escaped(name: Any) -> None:
    field, problem = fault_of(JobSpec(runs=5, variables=GOOD | {name: 1.0}))
    message = f"{field}: {problem}"
    assert len(message.encode()) < 500
    assert message.isprintable()


def test_a_sequence_that_uses_none_of_its_variables_needs_no_values() -> None:
    header = read_sequence(make_sequence(use=False, omega=(float, 1), steps=(int, 1)).to_abstract_repr())
    check(JobSpec(runs=5), JobSpec(runs=5, variables={"steps": 3}), header=header)
    assert fault_of(JobSpec(runs=5, variables={"steps": 0.5}), header=header)[0] == "jobs[0].variables.steps"
    assert fault_of(JobSpec(runs=5, variables={"step": 1}), header=header)[0] == "jobs[0].variables.step"


@pytest.mark.parametrize("variables", [None, [], "omega", 5])
def test_variables_are_a_dictionary(variables: Any) -> None:
    assert fault_of(JobSpec(runs=5, variables=variables))[0] == "jobs[0].variables"
    assert fault_of(JobSpec(runs=5, variables=variables, sequence=BUILT_TEXT))[0] == "jobs[0].variables"


@pytest.mark.parametrize("runs", [0, -1, 1001, True, 5.0, "5", math.nan, [5], pytest.param(HUGE, id="huge")])
def test_runs_out_of_bounds_are_refused(runs: Any) -> None:
    for needs_runs in (True, False):
        field, problem = fault_of(JobSpec(runs=runs, variables=GOOD), needs_runs=needs_runs)
        assert field == "jobs[0].runs"
        assert "from 1 to 1000" in problem


def test_runs_may_be_omitted_only_if_the_configuration_has_them() -> None:
    check(JobSpec(variables=GOOD), needs_runs=False)
    assert fault_of(JobSpec(variables=GOOD))[0] == "jobs[0].runs"


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, True, 1.0, "1", []])
def test_a_seed_is_a_whole_number_of_32_bits(seed: Any) -> None:
    assert fault_of(JobSpec(runs=5, variables=GOOD, seed=seed))[0] == "jobs[0].seed"


def test_a_call_carries_a_bounded_number_of_jobs() -> None:
    job = JobSpec(runs=5, variables=GOOD)
    check(*[job] * MAX_JOBS_PER_CALL)
    field, problem = fault_of(*[job] * (MAX_JOBS_PER_CALL + 1))
    assert field == "jobs"
    assert f"at most {MAX_JOBS_PER_CALL}" in problem


@pytest.mark.parametrize("jobs", [None, "jobs", {}, 3])
def test_jobs_are_a_list(jobs: Any) -> None:
    with pytest.raises(InvalidInput, match="jobs: expected a list of jobs"):
        check_jobs(jobs, HEADER, max_runs=1000, needs_runs=True)


def test_a_job_is_a_job_spec() -> None:
    assert fault_of(JobSpec(runs=5, variables=GOOD), {"runs": 5})[0] == "jobs[1]"


def test_a_batch_without_a_sequence_requires_one_in_each_job() -> None:
    field, problem = fault_of(JobSpec(runs=5, sequence=BUILT_TEXT), JobSpec(runs=5), header=None)
    assert (field, problem) == ("jobs[1].sequence", "is required because the batch has no sequence")


def test_a_sequence_in_a_job_is_read_and_excludes_variables() -> None:
    assert fault_of(JobSpec(runs=5, sequence=BUILT_TEXT, variables={"omega": 1.0}))[0] == "jobs[0].variables"
    field, problem = fault_of(JobSpec(runs=5, variables=GOOD), JobSpec(runs=5, sequence="{}"))
    assert field == "jobs[1].sequence"
    assert "use Sequence.to_abstract_repr()" in problem
    junk: Any = 5
    assert fault_of(JobSpec(runs=5, sequence=junk))[0] == "jobs[0].sequence"


def test_a_sequence_in_a_job_is_built() -> None:
    parametrised, mappable = PARAMETRISED.to_abstract_repr(), MAPPABLE.to_abstract_repr()
    field, problem = fault_of(JobSpec(runs=5, sequence=parametrised))
    assert (field, problem[:26]) == ("jobs[0].sequence", "needs values of omega, ste")
    assert "mappable" in fault_of(JobSpec(runs=5, sequence=BUILT_TEXT), JobSpec(runs=5, sequence=mappable))[1]


@pytest.mark.parametrize(
    ("qubits", "field", "expected"),
    [
        ({}, "", "expected a dictionary from qubit ids to trap ids, got an empty dict"),
        (None, "", "got None"),
        ([0, 1], "", "got a list"),
        ({"q0": 0, "a1": 1}, ".a1", "its qubits are q0, q1, q2"),
        ({0: 0}, ".0", "is not a qubit of the register"),
        ({"q0": 0, "q1": 1, "q2": 2, "q3": 3}, ".q3", "its qubits are q0, q1, q2"),
        ({"q1": 0}, "", "must place the first 1 qubits of the register, in any order: q0"),
        ({"q0": 0, "q2": 1}, "", "q0, q1"),
        ({"q0": 9}, ".q0", "expected the id of a trap, 0 to 8, got 9"),
        ({"q0": -1}, ".q0", "got -1"),
        ({"q0": 1.0}, ".q0", "got 1.0"),
        ({"q0": True}, ".q0", "got True"),
        ({"q0": None}, ".q0", "got None"),
        ({"q0": 4, "q1": 4}, ".q1", "trap 4 is already taken by q0"),
    ],
)
def test_a_mappable_register_is_filled_by_the_rules_of_pulser(qubits: Any, field: str, expected: str) -> None:
    found, problem = fault_of(JobSpec(runs=5, variables={"qubits": qubits}), header=MAPPABLE_HEADER)
    assert found == f"jobs[0].variables.qubits{field}"
    assert expected in problem


def test_qubits_are_required_where_the_register_is_mappable_and_refused_elsewhere() -> None:
    check(JobSpec(runs=5, variables={"qubits": {"q0": 3}}), header=MAPPABLE_HEADER)
    field, problem = fault_of(JobSpec(runs=5), header=MAPPABLE_HEADER)
    assert field == "jobs[0].variables.qubits"
    assert problem.startswith("is missing")
    assert (
        "only allowed with a mappable register" in fault_of(JobSpec(runs=5, variables=GOOD | {"qubits": {"q0": 3}}))[1]
    )


@settings(max_examples=effort(short=20, full=60), deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["q0", "q1", "q2", "q3"]),
        st.integers(-1, 9) | st.sampled_from([1.0, True, "0"]),
        max_size=4,
    )
)
def test_qubits_pass_only_if_pulser_builds_the_register_with_them(qubits: dict[str, Any]) -> None:
    try:
        check(JobSpec(runs=5, variables={"qubits": qubits}), header=MAPPABLE_HEADER)
    except InvalidInput:
        return
    assert not MAPPABLE.build(qubits=qubits).is_register_mappable()


def test_jobs_are_checked_about_as_fast_as_they_are_made() -> None:
    header = read_sequence(make_sequence(omega=(float, 1), delta=(float, 1)).to_abstract_repr())
    made_s = checked_s = math.inf
    for _ in range(5):
        with untraced():
            began = time.thread_time()
            jobs = [JobSpec(runs=100, variables={"omega": i / 10, "delta": -i / 5}) for i in range(MAX_JOBS_PER_CALL)]
            made = time.thread_time()
            check_jobs(jobs, header, max_runs=1000, needs_runs=True)
            made_s, checked_s = min(made_s, made - began), min(checked_s, time.thread_time() - made)
    assert checked_s < 5 * made_s  # about as long


# --- jobs as they are given ---------------------------------------------------------------------------


def test_a_dictionary_becomes_a_job_spec() -> None:
    given_job = {"runs": 5, "variables": {"omega": 1.0}, "seed": 3, "sequence": None}
    assert as_job_spec(given_job, 0) == JobSpec(runs=5, variables={"omega": 1.0}, seed=3)
    assert as_job_spec({}, 0) == JobSpec()
    assert as_job_spec({"variables": None}, 0) == JobSpec()
    spec = JobSpec(runs=5, variables=GOOD)
    assert as_job_spec(spec, 0) == spec


def test_numpy_becomes_plain_numbers_and_lists() -> None:
    variables = {
        "omega": np.float64(1.5),
        "steps": np.array([4]),
        "detunings": np.linspace(0, 1, 3),
        "atoms": [np.int64(0), np.int32(1)],
    }
    job: dict[str, Any] = {"runs": np.int64(7), "variables": variables, "seed": np.uint32(1)}
    for given_job in (job, JobSpec(**job)):
        spec = as_job_spec(given_job, 0)
        check(spec)
        assert spec == JobSpec(
            runs=7, variables={"omega": 1.5, "steps": [4], "detunings": [0.0, 0.5, 1.0], "atoms": [0, 1]}, seed=1
        )
        assert decode_spec(encode_spec(spec)) == spec


@pytest.mark.parametrize("number", [7.0, np.float64(7), np.array(7.0), np.int64(7)])
def test_runs_and_seed_may_be_floats_without_a_fraction(number: Any) -> None:
    spec = as_job_spec({"runs": number, "seed": number}, 0)
    assert (spec.runs, spec.seed) == (7, 7)
    assert [type(value) for value in (spec.runs, spec.seed)] == [int, int]


@pytest.mark.parametrize("number", [7.5, np.float32(0.1), math.inf, math.nan, 1e300])
def test_runs_with_a_fraction_or_without_an_end_are_refused(number: Any) -> None:
    assert fault_of(as_job_spec({"runs": number, "variables": GOOD}, 0))[0] == "jobs[0].runs"


@pytest.mark.parametrize("job", [JobSpec(runs=5), {"runs": 5}])
def test_a_single_job_outside_a_list_is_refused_with_advice(job: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^jobs: expected a list of jobs, got a single job; put it in a list"):
        list_jobs(job)
    assert list_jobs(iter([job])) == [job]


def test_a_text_instead_of_a_list_is_refused_with_advice() -> None:
    with pytest.raises(InvalidInput) as caught:
        check_list("tags", "sweep", "texts")
    assert str(caught.value) == "tags: expected a list of texts, got 'sweep'; put a single one in a list: ['sweep']"


def test_limits_may_be_a_dictionary() -> None:
    assert as_limits({}) == as_limits(None) == Limits()
    assert as_limits({"job_timeout_s": np.float64(60)}) == Limits(job_timeout_s=60)
    with pytest.raises(InvalidInput) as caught:
        as_limits({"job_timeout": 60})
    assert caught.value.field == "limits.job_timeout"
    assert caught.value.problem.startswith(
        "is not a limit (did you mean job_timeout_s?); the limits are job_timeout_s,"
    )
    with pytest.raises(InvalidInput, match=r"limits\.7: is not a limit; "):
        as_limits({7: 60})
    with pytest.raises(InvalidInput, match="limits: expected Limits or a dictionary of its fields, got 60"):
        as_limits(60)


def test_names_are_compared_without_case() -> None:
    assert suggest_name("emu_fre", ["EMU_FREE", "FRESNEL"]) == " (did you mean EMU_FREE?)"
    assert suggest_name("Fresnel", ["EMU_FREE", "FRESNEL"]) == " (did you mean FRESNEL?)"
    assert suggest_name("QPU", ["EMU_FREE", "FRESNEL"]) == ""


def test_an_array_of_no_dimension_is_a_number_and_one_of_two_is_refused() -> None:
    assert as_job_spec({"variables": {"omega": np.array(2.0)}}, 0).variables == {"omega": 2.0}
    spec = as_job_spec({"runs": 5, "variables": GOOD | {"detunings": np.zeros((3, 1))}}, 0)
    assert fault_of(spec)[0] == "jobs[0].variables.detunings[0]"


def test_whole_numbers_as_qubit_ids_become_strings_as_in_pulsers_format() -> None:
    job = {"variables": {"qubits": {0: np.int64(4), np.int64(1): 2, "2": 3}}}
    assert as_job_spec(job, 0).variables == {"qubits": {"0": 4, "1": 2, "2": 3}}
    with pytest.raises(InvalidInput, match="the same qubit id twice") as caught:
        as_job_spec({"variables": {"qubits": {0: 4, "0": 2}}}, 7)
    assert caught.value.field == "jobs[7].variables.qubits"


def test_a_pulser_sequence_in_a_job_is_serialised() -> None:
    assert as_job_spec({"runs": 5, "sequence": make_sequence()}, 0).sequence == BUILT_TEXT
    with pytest.raises(InvalidInput) as caught:
        as_job_spec({"runs": 5, "sequence": 5}, 2)
    assert caught.value.field == "jobs[2].sequence"


def test_an_unknown_key_of_a_job_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput) as caught:
        as_job_spec({"run": 5}, 4)
    assert caught.value.field == "jobs[4].run"
    assert caught.value.problem.startswith("is not a field of a job (did you mean runs?)")


class _Unreadable:
    def tolist(self) -> list[float]:
        raise RuntimeError("on another device")


def test_values_that_cannot_be_read_are_refused_with_the_reason() -> None:
    with pytest.raises(InvalidInput) as caught:
        as_job_spec({"variables": {"omega": _Unreadable()}}, 1)
    assert caught.value.field == "jobs[1].variables.omega"
    assert "on another device" in caught.value.problem


@pytest.mark.parametrize("job", [None, 5, "runs", [5], np.zeros(3)])
def test_values_of_other_types_are_not_jobs(job: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        as_job_spec(job, 3)
    assert caught.value.field == "jobs[3]"


# --- batches ------------------------------------------------------------------------------------------


def test_a_good_batch_passes_and_gives_its_header() -> None:
    doc = BatchDoc(
        device="EMU_FREE",
        sequence=PARAMETRISED.to_abstract_repr(),
        name="a first batch",
        tags=("a", "b" * MAX_TAG_LENGTH),
        webhook="https://example.org:8443/hook?x=1",
        backend_configuration='{"autosave_dt": Infinity}',
        configuration={"dt": 0.5, "with_noise": False, "list": [1, None, "text", {}]},
        limits=Limits(MAX_JOB_TIMEOUT_S, MAX_OPEN_TIMEOUT_S, MAX_TRANSIENT_RETRIES),
        user="somebody",
    )
    assert check_batch(doc) == HEADER
    assert check_batch(BatchDoc(device="FRESNEL")) is None


@pytest.mark.parametrize(
    ("field", "parts"),
    [
        ("device", {"device": ""}),
        ("device", {"device": None}),
        ("device", {"device": "x" * (MAX_DEVICE_LENGTH + 1)}),
        ("device", {"device": "\ud800"}),
        ("sequence", {"sequence": "{}"}),
        ("sequence", {"sequence": b"{}"}),
        ("name", {"name": ""}),
        ("name", {"name": 5}),
        ("name", {"name": "x" * (MAX_NAME_LENGTH + 1)}),
        ("user", {"user": []}),
        ("parent_id", {"parent_id": "x" * (MAX_NAME_LENGTH + 1)}),
        ("tags", {"tags": "abc"}),
        ("tags", {"tags": None}),
        ("tags", {"tags": tuple(str(i) for i in range(MAX_TAGS + 1))}),
        ("tags[1]", {"tags": ("a", "")}),
        ("tags[1]", {"tags": ("a", "x" * (MAX_TAG_LENGTH + 1))}),
        ("tags[0]", {"tags": ([],)}),
        ("tags[2]", {"tags": ("a", "b", "a")}),
        ("backend_configuration", {"backend_configuration": {}}),
        ("backend_configuration", {"backend_configuration": ""}),
        ("backend_configuration", {"backend_configuration": "[]"}),
        ("backend_configuration", {"backend_configuration": "{"}),
        ("backend_configuration", {"backend_configuration": '"\ud800"'}),
        ("backend_configuration", {"backend_configuration": "[" * 100_000}),
        ("backend_configuration", {"backend_configuration": '{"a": ' + "9" * 5000 + "}"}),
        ("backend_configuration", {"backend_configuration": "{}" + " " * MAX_CONFIGURATION_BYTES}),
        ("configuration", {"configuration": "{}"}),
        ("configuration", {"configuration": {1: 2}}),
        ("configuration", {"configuration": {"\ud800": 2}}),
        ("configuration", {"configuration": {"x" * MAX_CONFIGURATION_BYTES: 2}}),
        ("configuration", {"configuration": {"a": "x" * MAX_CONFIGURATION_BYTES}}),
        ("configuration", {"configuration": {"a": [0.123456] * (MAX_CONFIGURATION_BYTES // 4)}}),
        ("configuration.a", {"configuration": {"a": math.inf}}),
        ("configuration.a", {"configuration": {"a": [{"b": math.nan}]}}),
        ("configuration.a", {"configuration": {"a": 2**64}}),
        ("configuration.a", {"configuration": {"a": object()}}),
        ("configuration.a", {"configuration": {"a": ["\ud800"]}}),
        ("configuration.a", {"configuration": {"a": b"bytes"}}),
        ("limits", {"limits": {"job_timeout_s": 1}}),
        ("limits.job_timeout_s", {"limits": Limits(job_timeout_s=0)}),
        ("limits.job_timeout_s", {"limits": Limits(job_timeout_s=math.nan)}),
        ("limits.job_timeout_s", {"limits": Limits(job_timeout_s=math.inf)}),
        ("limits.job_timeout_s", {"limits": Limits(job_timeout_s=MAX_JOB_TIMEOUT_S + 1)}),
        ("limits.open_timeout_s", {"limits": Limits(open_timeout_s=-1)}),
        ("limits.open_timeout_s", {"limits": Limits(open_timeout_s=True)}),
        ("limits.open_timeout_s", {"limits": Limits(open_timeout_s=MAX_OPEN_TIMEOUT_S + 1)}),
        ("limits.transient_retries", {"limits": Limits(transient_retries=-1)}),
        ("limits.transient_retries", {"limits": Limits(transient_retries=MAX_TRANSIENT_RETRIES + 1)}),
        ("limits.transient_retries", {"limits": Limits(transient_retries=1.5)}),  # type: ignore[arg-type]
    ],
)
def test_a_bad_part_of_a_batch_is_named(field: str, parts: dict[str, Any]) -> None:
    found, problem = fault_of_batch(**parts)
    assert found == field
    assert len(problem) < 300


def test_a_configuration_that_contains_itself_or_is_too_deep_is_refused() -> None:
    itself: dict[str, Any] = {}
    itself["again"] = [itself, itself]
    assert "levels deep" in fault_of_batch(configuration=itself)[1]
    deep: dict[str, Any] = {}
    for _ in range(MAX_CONFIGURATION_DEPTH):
        deep = {"a": deep}
    assert check_batch(BatchDoc(device="EMU_FREE", configuration=deep)) is None
    assert "levels deep" in fault_of_batch(configuration={"a": deep})[1]


@pytest.mark.parametrize(
    "webhook",
    ["http://localhost", "https://example.org/", "HTTPS://example.org:1/x?y=%20#z", "http://[::1]:8000/hook"],
)
def test_a_webhook_may_be_any_http_url(webhook: str) -> None:
    assert check_batch(BatchDoc(device="EMU_FREE", webhook=webhook)) is None


@pytest.mark.parametrize(
    "webhook",
    [
        "",
        "example.org/hook",
        "ftp://example.org",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "http://:80/",
        "http://[::1",
        "http://example.org:0/",
        "http://example.org:99999/",
        "http://example.org:port/",
        "http://user@example.org/",
        "http://user:secret@example.org/",
        "http://@example.org/",
        "http://example.org\\@evil.org/",
        "http://exam ple.org/",
        "http://example.org/\nHost: evil.org",
        "http://example.org/\u00a0",
        "http://example.org/\ud800",
        "http://example.org/" + "x" * MAX_WEBHOOK_LENGTH,
        b"http://example.org",
        80,
    ],
)
def test_a_webhook_that_is_not_a_plain_http_url_is_refused(webhook: Any) -> None:
    field, problem = fault_of_batch(webhook=webhook)
    assert field == "webhook"
    assert "secret" not in problem


# --- junk ---------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [*GOOD, "qubits", "q0", "q1", "runs", "variables", "seed", "sequence", BUILT_TEXT, "http://a/", "\ud800", "{}"]
)
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | WORDS
    | st.binary(max_size=3)
    | st.just(np.float64(2.0))
    | st.just(np.arange(3))
    | st.just(2**70),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | WORDS | st.integers(), inner, max_size=4)
    ),
    max_leaves=6,
)
VARIABLES = st.fixed_dictionaries(
    {}, optional={name: st.just(value) | JUNK for name, value in GOOD.items()} | {"qubits": JUNK}
)
JOBS = st.fixed_dictionaries(
    {},
    optional={
        "runs": st.integers(1, 10) | JUNK,
        "variables": VARIABLES | JUNK,
        "seed": JUNK,
        "sequence": st.just(BUILT_TEXT) | JUNK,
    },
)


def refusal_of(call: Callable[[], Any]) -> InvalidInput | None:
    try:
        call()
    except InvalidInput as error:
        return error
    return None


@settings(max_examples=effort(short=60, full=300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(JOBS | JUNK, max_size=3), st.sampled_from([HEADER, MAPPABLE_HEADER, BUILT_HEADER, None]))
def test_junk_jobs_give_an_invalid_input_or_can_be_stored(jobs: list[Any], header: Any) -> None:
    specs: list[JobSpec] = []

    def submit() -> None:
        specs.extend(as_job_spec(job, index) for index, job in enumerate(jobs))
        check(*specs, header=header, needs_runs=False)

    refusal = refusal_of(submit)
    if refusal is None:
        assert all(decode_spec(encode_spec(spec)).runs == spec.runs for spec in specs)
    else:
        assert refusal.field.startswith("jobs[")
        assert str(refusal).encode()


@settings(max_examples=effort(short=60, full=300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(JOBS, max_size=3), st.sampled_from([HEADER, MAPPABLE_HEADER, BUILT_HEADER, None]))
def test_junk_job_specs_give_an_invalid_input_or_can_be_stored(jobs: list[Any], header: Any) -> None:
    specs = [JobSpec(**job) for job in jobs]
    refusal = refusal_of(lambda: check(*specs, header=header, needs_runs=False))
    if refusal is None:
        assert all(decode_spec(encode_spec(spec)).runs == spec.runs for spec in specs)
    else:
        assert refusal.field.startswith("jobs[")
        assert str(refusal).encode()


@settings(max_examples=effort(short=60, full=300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {"device": st.just("EMU_FREE") | JUNK},
        optional={
            name: st.just(getattr(BatchDoc(device=""), name)) | JUNK
            for name in BatchDoc.__struct_fields__
            if name not in ("device", "limits")
        }
        | {
            "limits": st.builds(Limits, JUNK, JUNK, JUNK) | JUNK,
            "rules": st.builds(Rules, *[JUNK] * len(Rules.__struct_fields__)) | st.none() | JUNK,
        },
    )
)
def test_a_junk_batch_gives_an_invalid_input_or_can_be_stored(parts: dict[str, Any]) -> None:
    doc = BatchDoc(**parts)
    refusal = refusal_of(lambda: check_batch(doc))
    if refusal is None:
        assert decode_doc(encode_doc(doc)).device == doc.device
    else:
        assert str(refusal).encode()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a\0b", "has a control character (U+0000, character 2); remove it"),
        ("\x1b[2J", "has a control character (U+001B, character 1); remove it"),
        ("line\n", "has a control character (U+000A, character 5); remove it"),
        ("\x9b", "has a control character (U+009B, character 1); remove it"),
        ("\ud800", "is not valid Unicode text (it contains half of a surrogate pair)"),
        ("", "expected a string of 1 to 5 characters, got ''"),
        ("a" * 6, "expected a string of 1 to 5 characters, got 'aaaaaa'"),
        (5, "expected a string of 1 to 5 characters, got 5"),
    ],
)
def test_an_unsuitable_text_is_refused_with_the_reason(text: Any, problem: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_text("name", text, 5)
    assert (refused.value.field, refused.value.problem) == ("name", problem)


def test_a_text_of_several_lines_may_have_line_ends_and_tabs_only() -> None:
    assert check_text("reason", "a\r\n\tb", 5, lines=True) == "a\r\n\tb"
    with pytest.raises(InvalidInput, match="U\\+001B"):
        check_text("reason", "a\n\x1b", 5, lines=True)


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (JobSpec(runs=True), "runs"),
        (JobSpec(runs="5"), "runs"),  # type: ignore[arg-type]
        (JobSpec(seed=True), "seed"),
        (JobSpec(sequence=5), "sequence"),  # type: ignore[arg-type]
        (JobSpec(sequence="a\0"), "sequence"),
        (JobSpec(variables=[]), "variables"),  # type: ignore[arg-type]
        (JobSpec(variables={5: 1}), "variables"),  # type: ignore[dict-item]
        (JobSpec(variables={"x": math.nan}), "variables.x"),
        (JobSpec(variables={"x": {1}}), "variables.x"),
        (JobSpec(variables={"x": ["\ud800"]}), "variables.x.0"),
    ],
)
def test_types_are_checked_for_a_device_that_takes_any_sequence(job: JobSpec, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_jobs([job], None, max_runs=1000, needs_runs=False, checks_sequence=False)
    assert refused.value.field == f"jobs[0].{field}"
    check_jobs([JobSpec(variables={"x": [1, {"y": None}]})], None, max_runs=9, needs_runs=False, checks_sequence=False)
