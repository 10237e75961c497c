"""The header of a serialised sequence, compared with Pulser, and with junk."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pulser import Pulse, Register, Register3D, Sequence
from pulser.devices import AnalogDevice, Device, MockDevice, VirtualDevice
from pulser.noise_model import NoiseModel
from pulser.register.special_layouts import SquareLatticeLayout
from pulser.waveforms import InterpolatedWaveform
from tests.support.costs import cpu_time_below
from tests.support.effort import effort

from tweezer.model.errors import InvalidInput
from tweezer.model.sequence import (
    MAX_PYTHON_NUMBERS,
    MAX_SEQUENCE_BYTES,
    MAX_VARIABLES,
    DeclaredVariable,
    SequenceHeader,
    VariableType,
    read_sequence,
    sequence_text,
)

LAYOUT = SquareLatticeLayout(5, 5, 6)


def make_sequence(
    register: Any = None, *, variables: bool = True, device: Device | VirtualDevice = MockDevice
) -> Sequence[Any]:
    sequence = Sequence(register or Register.square(2, 6.0, prefix="q"), device)
    sequence.declare_channel("rydberg", "rydberg_global")
    if variables:
        omega = sequence.declare_variable("omega")
        duration = sequence.declare_variable("duration", dtype=int)
        detunings = sequence.declare_variable("detunings", size=3)
        sequence.add(Pulse.ConstantPulse(1000, omega, 0, 0), "rydberg")
        sequence.add(Pulse.ConstantAmplitude(1, InterpolatedWaveform(1000, detunings), 0), "rydberg")
        sequence.delay(duration, "rydberg")
    else:
        sequence.add(Pulse.ConstantPulse(400, 1, 0, 0), "rydberg")
    return sequence


PARAMETRISED = make_sequence().to_abstract_repr()
MAPPABLE = make_sequence(LAYOUT.make_mappable_register(4)).to_abstract_repr()
DECLARED = {
    "omega": DeclaredVariable(VariableType.FLOAT, 1),
    "duration": DeclaredVariable(VariableType.INT, 1),
    "detunings": DeclaredVariable(VariableType.FLOAT, 3),
}


def changed(text: str, **parts: Any) -> str:
    return json.dumps(json.loads(text) | parts)


def problem_of(text: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_sequence(text)
    assert caught.value.field == "sequence"
    return caught.value.problem


def problem_of_content(content: object) -> str:
    with pytest.raises(InvalidInput, match="sequence: ") as caught:
        read_sequence(sequence_text(content))
    return caught.value.problem


def test_the_header_matches_the_sequence() -> None:
    header = read_sequence(PARAMETRISED)
    assert header == SequenceHeader(
        device="MockDevice",
        variables=DECLARED,
        qubit_ids=("q0", "q1", "q2", "q3"),
        traps=None,
        mappable=False,
        parametrized=True,
        measured=False,
        places=((-3, -3, 0), (3, -3, 0), (-3, 3, 0), (3, 3, 0)),
    )
    assert header.qubits == 4
    assert header.needs_build


def test_a_mappable_register_gives_its_qubits_and_traps() -> None:
    header = read_sequence(MAPPABLE)
    assert header.mappable
    assert header.qubit_ids == ("q0", "q1", "q2", "q3")
    assert header.traps == 25


def test_default_traps_and_default_values_change_nothing_in_the_header() -> None:
    text = make_sequence(LAYOUT.make_mappable_register(4)).to_abstract_repr(
        qubits={"q0": 3, "q1": 4}, omega=1.0, duration=100, detunings=[1, 2, 3]
    )
    assert read_sequence(text) == read_sequence(MAPPABLE)


@pytest.mark.parametrize(
    "register",
    [
        Register.triangular_lattice(2, 3, 6.0, prefix="atom"),
        LAYOUT.define_register(0, 3, 7),
        Register3D.cubic(2, 6.0, prefix="q"),
        LAYOUT.make_mappable_register(3),
    ],
)
@pytest.mark.parametrize("variables", [True, False])
def test_the_header_agrees_with_pulser(register: Any, variables: bool) -> None:
    sequence = make_sequence(register, variables=variables)
    sequence.measure("ground-rydberg")
    header = read_sequence(sequence.to_abstract_repr())
    assert header.qubit_ids == tuple(register.qubit_ids)
    assert header.mappable == sequence.is_register_mappable()
    assert header.parametrized == sequence.is_parametrized()
    assert header.measured
    assert header.traps == (register.layout.number_of_traps if register.layout else None)
    assert {name: (v.type, v.size) for name, v in header.variables.items()} == {
        name: (v.dtype.__name__, v.size) for name, v in sequence.declared_variables.items()
    }


def test_a_variable_that_is_never_used_does_not_make_the_sequence_parametrised() -> None:
    sequence = make_sequence(variables=False)
    sequence.declare_variable("variable")
    assert not sequence.is_parametrized()
    header = read_sequence(sequence.to_abstract_repr())
    assert header.variables == {"variable": DeclaredVariable(VariableType.FLOAT, 1)}
    assert not header.parametrized
    assert not header.needs_build


def test_a_device_may_be_given_by_its_name_alone() -> None:
    assert read_sequence(changed(PARAMETRISED, device="AnalogDevice")).device == "AnalogDevice"


def test_infinity_and_nan_are_numbers_and_unchanged_within_strings() -> None:
    device = VirtualDevice(
        name='my "NaN" device, Infinity',
        dimensions=2,
        rydberg_level=60,
        channel_objects=tuple(MockDevice.channels.values())[:1],
        noise_model=NoiseModel(relaxation_rate=float("inf")),
    )
    text = make_sequence(variables=False, device=device).to_abstract_repr(skip_validation=True)
    assert ": Infinity" in text
    assert read_sequence(text).device == 'my "NaN" device, Infinity'
    unbounded = text.replace('"max_amp": null', '"max_amp": -Infinity')
    assert read_sequence(unbounded).device == 'my "NaN" device, Infinity'
    assert "is not JSON" in problem_of(text.replace(": Infinity", ": -NaN"))
    assert "is not JSON" in problem_of(text.replace(": Infinity", ": 1Infinity"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a Pulser sequence", "it is not JSON"),
        (PARAMETRISED[:2000], "it is not JSON"),
        (PARAMETRISED + "}", "it is not JSON"),
        ('"\ud800"', "not valid Unicode"),
        ("null", "Expected `object`, got `null`"),
        ("[]", "Expected `object`, got `array`"),
        ("{}", "missing required field"),
        (AnalogDevice.to_abstract_repr(), "$.channels"),
        (b"{}", "expected a string, got a value of type bytes"),
        (None, "expected a string, got a value of type"),
        (12, "expected a string, got a value of type"),
        (changed(PARAMETRISED, version="2"), "version '2'"),
        (changed(PARAMETRISED, device={}), "$.device"),
        (changed(PARAMETRISED, device=""), "its device has no name"),
        (changed(PARAMETRISED, device=None), "$.device"),
        (changed(PARAMETRISED, register=[]), "no qubits"),
        (changed(PARAMETRISED, register={}), "$.register"),
        (changed(PARAMETRISED, register=[{"name": "q0"}]), "entry 0 of its register"),
        (changed(PARAMETRISED, register=[{"qid": "q0", "x": 0, "y": 0}]), "entry 0 of its register"),
        (changed(PARAMETRISED, register=[{"name": "q0", "x": 0, "y": 0}, {"qid": "q1"}]), "entry 1 of its register"),
        (changed(PARAMETRISED, register=[{"name": "q0", "x": 0, "y": 0}] * 2), "the qubit 'q0' twice"),
        (changed(PARAMETRISED, register=[{"qid": "q0"}]), "no layout of traps"),
        (changed(MAPPABLE, layout={"coordinates": [[0, 0]]}), "4 qubits, but its layout has only 1 traps"),
        (changed(MAPPABLE, layout=None), "$.layout"),
        (changed(PARAMETRISED, operations={}), "operations are not a list"),
        (changed(PARAMETRISED, variables=[]), "its variables cannot be read"),
        (changed(PARAMETRISED, variables={"omega": {"type": "str", "value": [1]}}), "its variables cannot be read"),
        (changed(PARAMETRISED, variables={"omega": {"type": "int"}}), "its variables cannot be read"),
        (
            changed(PARAMETRISED, variables={"omega": {"type": "int", "value": []}}),
            "its variable 'omega' has no values",
        ),
        (
            changed(PARAMETRISED, variables={"qubits": {"type": "int", "value": [1]}}),
            "qubits is reserved and cannot be the name",
        ),
    ],
)
def test_a_text_that_is_not_a_sequence_is_refused_with_advice(text: Any, expected: str) -> None:
    problem = problem_of(text)
    assert expected in problem
    assert problem.startswith("is not a serialised Pulser sequence: ")
    assert problem.endswith("; use Sequence.to_abstract_repr()")


def test_the_legacy_format_is_recognised() -> None:
    legacy = make_sequence(variables=False)._serialize()
    assert "legacy format" in problem_of(legacy)
    assert "use Sequence.to_abstract_repr()" in problem_of('{"_build": true, "__module__": "pulser.sequence.sequence"}')


def test_a_variable_that_is_declared_twice_is_refused() -> None:
    twice = PARAMETRISED.replace('"variables": {', '"variables": {"\\u006fmega": {"type": "int", "value": [1]}, ')
    assert "declares the variable 'omega' twice" in problem_of(twice)


def test_a_sequence_that_is_too_long_is_refused_and_one_that_just_fits_is_read() -> None:
    padding = " " * (MAX_SEQUENCE_BYTES - len(PARAMETRISED))
    assert read_sequence(PARAMETRISED + padding) == read_sequence(PARAMETRISED)
    assert "must be at most 8 MiB" in problem_of(PARAMETRISED + padding + " ")
    assert "must be at most 8 MiB" in problem_of("é" * (MAX_SEQUENCE_BYTES - 1))


def test_more_variables_than_are_accepted_are_refused() -> None:
    variables = {f"v{i}": {"type": "int", "value": [0]} for i in range(MAX_VARIABLES + 1)}
    assert f"at most {MAX_VARIABLES}" in problem_of(changed(PARAMETRISED, variables=variables))


@pytest.mark.parametrize("deep", ["[" * 200_000, '{"a":' * 200_000, "[" * 5_000 + "]" * 5_000])
def test_deep_nesting_is_an_error_and_not_a_crash(deep: str) -> None:
    for text in (deep, PARAMETRISED[:-1] + ', "extra": ' + deep + "}"):
        assert problem_of(text)
    assert problem_of(PARAMETRISED.replace('"variables": {', '"variables": {"a": ' + deep + ","))


@pytest.mark.parametrize("unit", ['"",', '"\\"', '"', "-", "NaN,", "Infinity", '{"a":NaN},', "[],"])
def test_hostile_text_takes_linear_time(unit: str) -> None:
    text = PARAMETRISED[:-1] + ', "extra": [NaN, ' + unit * ((MAX_SEQUENCE_BYTES - 10_000) // len(unit))
    with cpu_time_below(5):
        assert problem_of(text)


def test_many_infinities_are_refused() -> None:
    text = PARAMETRISED[:-1] + ', "extra": [' + "NaN," * MAX_PYTHON_NUMBERS + "NaN]}"
    assert "numbers that are NaN or Infinity" in problem_of(text)


def test_numbers_that_no_float_holds_are_refused() -> None:
    variables = '"variables": {"a": {"type": "float", "value": [' + "9" * 5000 + "]}, "
    assert "its variables cannot be read" in problem_of(PARAMETRISED.replace('"variables": {', variables))


def test_a_string_is_an_already_serialised_sequence() -> None:
    assert sequence_text("anything") == "anything"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_content_of_a_file_is_read_with_and_without_a_byte_order_mark(mark: str) -> None:
    for content in (mark + PARAMETRISED, (mark + PARAMETRISED).encode(), bytearray((mark + PARAMETRISED).encode())):
        assert sequence_text(content) == PARAMETRISED


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_recognised(protocol: int) -> None:
    data = pickle.dumps(make_sequence(variables=False), protocol)
    for content in (data, data.decode("latin-1")):
        assert (
            problem_of_content(content)
            == "looks like a pickle, which is not accepted; write the file with Sequence.to_abstract_repr()"
        )


@pytest.mark.parametrize(
    "path",
    ["ring.json", "../data/a ring.pkl", "/home/ada/ring", "C:\\data\\ring.json", Path("ring"), Path("ring.json")],
)
def test_a_path_is_recognised(path: str | Path) -> None:
    assert problem_of_content(path).startswith("looks like a path; read the file first, for example")


def test_other_mistakes_are_recognised() -> None:
    for empty in ("", " \n", b"", "\ufeff"):
        assert problem_of_content(empty) == "is empty; expected the string of Sequence.to_abstract_repr()"
    once = json.dumps(PARAMETRISED)
    for text in (once, json.dumps(once)):
        assert problem_of_content(text).startswith("was encoded as JSON twice; use the string")
    assert problem_of_content(PARAMETRISED.encode("utf-16")) == "is text in UTF-16; save it as UTF-8"
    assert problem_of_content(PARAMETRISED.encode("latin-1") + b"\xe9").startswith("is not valid UTF-8 text: ")


@pytest.mark.parametrize("unit", ["/", "a/", "\\", '"', '"\\', "c.", "V", "(", "\x80"])
def test_recognising_a_mistake_takes_linear_time(unit: str) -> None:
    with cpu_time_below(2):
        assert problem_of(unit * (MAX_SEQUENCE_BYTES // (2 * len(unit))))


def test_a_pulser_sequence_is_serialised() -> None:
    assert sequence_text(make_sequence()) == PARAMETRISED


class _Refusing:
    def to_abstract_repr(self) -> str:
        raise RuntimeError("no such pulse")


class _Confused:
    def to_abstract_repr(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (None, "expected a Pulser Sequence"),
        (7, "got a value of type int"),
        ({"version": "1"}, "got a value of type dict"),
        (Sequence, "Pulser cannot serialise it"),
        (_Refusing(), "Pulser cannot serialise it: no such pulse"),
        (_Confused(), "not a string"),
    ],
)
def test_an_object_that_cannot_be_serialised_is_refused(thing: object, expected: str) -> None:
    with pytest.raises(InvalidInput, match="sequence: ") as caught:
        sequence_text(thing)
    assert expected in caught.value.problem


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("__module__"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = range(len(document)) if isinstance(document, list) else document
    return [path] + (
        [place for key in keys for place in _places(document[key], (*path, key))]
        if isinstance(document, (list, dict))
        else []
    )


BASES = [json.loads(text) for text in (PARAMETRISED, MAPPABLE)]
for _base in BASES:  # the interesting parts are outside the device's specs
    _base["device"] = {"name": "MockDevice"}


@st.composite
def mutants(draw: st.DrawFn) -> str:
    """Draw a real sequence in which some parts are replaced, removed, doubled, or whose text is cut off."""
    document = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_places(document)[1:] or [()]))
        if not path:
            break
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "remove", "double"])):
            case "replace":
                holder[path[-1]] = draw(JUNK)
            case "remove":
                del holder[path[-1]]
            case "double" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[path[-1]]))
            case _:
                holder[draw(st.text())] = copy.deepcopy(holder[path[-1]])
    text = json.dumps(document, ensure_ascii=draw(st.booleans()))
    if draw(st.booleans()):
        position = draw(st.integers(0, len(text)))
        text = text[:position] + draw(st.text(max_size=3)) + text[draw(st.integers(position, len(text))) :]
    return text


def read_or_refuse(text: Any) -> tuple[SequenceHeader | None, InvalidInput | None]:
    try:
        return read_sequence(text), None
    except InvalidInput as error:
        return None, error


@settings(max_examples=effort(short=80, full=400), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutants() | st.text() | JUNK.map(json.dumps) | JUNK)
def test_a_mutated_sequence_gives_a_header_or_an_invalid_input(text: Any) -> None:
    header, refusal = read_or_refuse(text)
    if refusal is not None:
        assert refusal.field == "sequence"
        assert str(refusal).encode()
    else:
        assert isinstance(header, SequenceHeader)
        assert header.qubits == len(set(header.qubit_ids)) >= 1
        assert header.device
        assert all(variable.size >= 1 for variable in header.variables.values())


def test_the_byte_order_mark_of_a_file_is_not_part_of_the_sequence() -> None:
    assert sequence_text("\ufeff{}") == "{}"
