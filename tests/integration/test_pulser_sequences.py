"""A sequence that misses Pulser's schema is refused with the place and the problem."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pulser import Pulse, Register, Sequence
from pulser.devices import DigitalAnalogDevice
from pulser.json.abstract_repr import SCHEMAS, deserializer
from pulser.json.abstract_repr.validation import validate_abstract_repr
from pulser.json.utils import ObjectType

from tweezer.adapters.emulators import pulser_sequences
from tweezer.adapters.emulators.pulser_sequences import ParsedSequence, explain_operation
from tweezer.adapters.lane.backend import Refusal

pytestmark = [pytest.mark.emulator, pytest.mark.filterwarnings("ignore::UserWarning")]


def document() -> dict[str, Any]:
    sequence: Sequence[Any] = Sequence(Register({"a": (0, 0), "b": (8, 0)}), DigitalAnalogDevice)
    sequence.declare_channel("channel", "rydberg_global")
    amplitude = sequence.declare_variable("amplitude")
    sequence.add(Pulse.ConstantPulse(200, amplitude, 0, 0), "channel")
    parsed: dict[str, Any] = json.loads(sequence.to_abstract_repr())
    return parsed


def refusal(text: str) -> str:
    """Return the message with which a sequence is refused."""
    with pytest.raises(Refusal) as raised:
        ParsedSequence(text)
    assert raised.value.fault.field == "sequence"
    return raised.value.fault.message


@pytest.fixture
def plain_pulser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check as Pulser does; another test may have patched it."""
    monkeypatch.setattr(deserializer, "validate_abstract_repr", validate_abstract_repr)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Check as in a lane, which has checked no device yet; return the kind of each check that Pulser makes."""
    kinds: list[str] = []

    def count(text: str, kind: ObjectType) -> None:
        kinds.append(kind)
        validate_abstract_repr(text, kind)

    monkeypatch.setattr(pulser_sequences, "validate_abstract_repr", count)
    monkeypatch.setattr(deserializer, "validate_abstract_repr", None)
    pulser_sequences.check_parts_once()
    pulser_sequences._valid_parts.clear()
    return kinds


CHANGES = pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda it: it["operations"][0].update(op="teleport"), "operations[0].op: 'teleport' is not one of 'align'"),
        (lambda it: it["operations"][0].update(surprise=1), "operations[0]: Additional properties are not allowed"),
        (lambda it: it["operations"][0].update(channel=3), "operations[0].channel: 3 is not of type string"),
        (
            lambda it: it["operations"][0]["amplitude"].update(kind="wobble"),
            "operations[0].amplitude.kind: 'wobble' is not one of 'composite'",
        ),
        (lambda it: it["operations"][0]["amplitude"].pop("duration"), "operations[0].amplitude: 'duration' is a"),
        (lambda it: it["register"][0].update(x="far"), "register[0].x: 'far' is not of type number"),
        (lambda it: it["variables"]["amplitude"].update(type="complex"), "variables.amplitude.type: 'complex' is not"),
        (lambda it: it["device"].update(rydberg_level="high"), "device.rydberg_level: 'high' is not of type number"),
        (lambda it: it.update(device="AnalogDevice"), "device: 'AnalogDevice' is not of type object"),
        (lambda it: it.update(surprise=1), "Additional properties are not allowed ('surprise' was unexpected)"),
        (lambda it: it.pop("register"), "'register' is a required property"),
        (lambda it: it.update(version="7"), "version: '7' is not '1'"),
    ],
)


@CHANGES
def test_the_error_of_a_document_that_violates_the_schema_has_place_and_reason(
    change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    changed = document()
    change(changed)
    message = refusal(json.dumps(changed))
    assert message.startswith(f"is not a Pulser sequence: {problem}")
    assert len(message) < 300


@CHANGES
def test_the_error_is_the_same_after_the_device_was_checked(
    change: Callable[[dict[str, Any]], object], problem: str, plain_pulser: None, request: pytest.FixtureRequest
) -> None:
    changed = document()
    change(changed)
    before = refusal(json.dumps(changed))
    request.getfixturevalue("checks")
    for _ in range(2):
        assert refusal(json.dumps(changed)) == before
        ParsedSequence(json.dumps(document()))


@pytest.mark.parametrize("text", ["", "3", "[]", "{", "null", '{"device": {}}', "[" * 100_000])
def test_a_text_that_is_not_a_sequence_has_the_same_error(
    text: str, plain_pulser: None, request: pytest.FixtureRequest
) -> None:
    before = refusal(text)
    request.getfixturevalue("checks")
    assert refusal(text) == before


def test_parts_of_a_sequence_that_differ_only_in_numbers_are_checked_once(checks: list[str]) -> None:
    changed = document()
    for place in range(3):
        changed["register"][0]["x"] = place + 0.5
        changed["operations"][0]["amplitude"]["duration"] = 200 + place
        ParsedSequence(json.dumps(changed))
    assert checks == ["device", "sequence"]
    changed["device"]["max_atom_num"] = 7
    ParsedSequence(json.dumps(changed))
    changed["register"][0]["name"] = "another"
    ParsedSequence(json.dumps(changed))
    assert checks[2:] == ["device", "sequence"]


def test_the_name_of_a_device_is_checked_with_the_rest(checks: list[str]) -> None:
    changed = document() | {"device": "MockDevice"}
    for place in range(3):
        changed["register"][0]["x"] = place + 0.5
        ParsedSequence(json.dumps(changed))
    assert checks == ["sequence"]


def test_the_schema_has_no_limits_for_the_numbers_of_a_sequence() -> None:
    known = {"$ref", "additionalProperties", "anyOf", "const", "description", "enum", "items", "maxItems", "minItems"}
    known |= {"$id", "$schema", "definitions", "properties", "required", "type"}
    left: list[Any] = [SCHEMAS["sequence"], SCHEMAS["layout"]]
    while left:
        schema = left.pop()
        assert schema.keys() <= known
        assert schema.get("$ref", "#").startswith(("#", "layout-schema.json", "device-schema.json"))
        assert all(isinstance(value, str) for value in [*schema.get("enum", ()), schema.get("const", "")])
        left += [
            *schema.get("properties", {}).values(),
            *schema.get("definitions", {}).values(),
            *schema.get("anyOf", ()),
        ]
        left += [inner for key in ("items", "additionalProperties") if isinstance(inner := schema.get(key), dict)]


def test_a_document_of_an_old_pulser_is_recognised() -> None:
    with pytest.raises(Refusal, match=r"'_build' (was|were) unexpected"):
        ParsedSequence('{"_build": true, "__module__": "pulser.sequence", "__name__": "Sequence"}')


def test_the_cause_of_a_librarys_error_is_shown() -> None:
    changed = document()
    changed["device"]["max_atom_num"] = -1
    with pytest.raises(Refusal, match=r"Device deserialization failed: .*max_atom_num"):
        ParsedSequence(json.dumps(changed))


def test_an_operation_beyond_a_channels_limit_is_explained_with_its_place_and_the_limits() -> None:
    changed = document()
    pulse = next(it for it in changed["operations"] if it["op"] == "pulse")
    high = {"kind": "constant", "duration": 100, "value": 1000.0}
    changed["operations"].append({**pulse, "amplitude": high, "detuning": {**high, "value": 0.0}})
    channel = DigitalAnalogDevice.channels["rydberg_global"]
    assert refusal(json.dumps(changed)).endswith(
        f"; see operations[{len(changed['operations']) - 1}] on channel 'channel', whose limits are an amplitude of "
        f"{channel.max_amp:.6g} rad/µs and a detuning of {channel.max_abs_detuning:.6g} rad/µs"
    )
    changed["operations"] *= 500
    assert refusal(json.dumps(changed)).endswith("chosen channel"), "a long sequence is not searched"


@pytest.mark.parametrize("text", ["", "[]", '{"operations": 3, "channels": {}}', '{"operations": [3], "channels": []}'])
def test_a_text_that_is_not_a_sequence_has_no_operation_to_show(text: str) -> None:
    assert explain_operation(text) == ""


def test_a_value_beyond_a_channels_limit_is_explained_with_the_channel_and_the_limit() -> None:
    parsed = ParsedSequence(json.dumps(document()))
    with pytest.raises(Refusal) as raised:
        parsed.build({"amplitude": 20.0})
    assert raised.value.fault.field == "variables"
    limit = DigitalAnalogDevice.channels["rydberg_global"].max_amp
    assert raised.value.fault.message.endswith(
        f"; channel 'channel' has an amplitude of 20 rad/µs at 0 ns, the limit is {limit:.6g} rad/µs"
    )
