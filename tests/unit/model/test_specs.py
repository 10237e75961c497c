"""Reading a device's specs without Pulser, and the specs of the emulators."""

from __future__ import annotations

import json

import pytest

from tweezer.adapters.registry import ADAPTERS, DEVICE_KINDS, Binding, get_specs
from tweezer.adapters.specs import make_virtual_specs
from tweezer.model.errors import InvalidInput
from tweezer.model.specs import MAX_SPECS_BYTES, DeviceSpecs, read_specs


def test_the_queue_reads_name_and_limits() -> None:
    text = '{"name": "FRESNEL", "max_atom_num": 25, "max_runs": 500, "layouts": [], "noise": Infinity}'
    assert read_specs(text) == DeviceSpecs(text, "FRESNEL", 25, 500)
    assert read_specs('{"name": "X", "max_atom_num": null}') == DeviceSpecs(
        '{"name": "X", "max_atom_num": null}', "X", None, None
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not the abstract representation of a Pulser device"),
        ("[]", "is not the abstract representation of a Pulser device"),
        ("{}", "missing required field `name`"),
        ('{"name": ""}', "at `$.name`"),
        ('{"name": "X", "max_atom_num": 0}', "at `$.max_atom_num`"),
        ("[" * 100_000, "is not the abstract representation"),
        ("\ud800", "is not valid Unicode text"),
        (json.dumps("x" * MAX_SPECS_BYTES), "must be at most 1 MiB"),
    ],
)
def test_invalid_specs_are_refused_by_field(text: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_specs(text, field="devices.X.specs")
    assert raised.value.field == "devices.X.specs"
    assert problem in raised.value.problem


def test_every_adapter_has_specs_under_the_name_of_the_device() -> None:
    def name(device: str, kind: str) -> str | None:
        specs = get_specs(device, Binding(kind))
        return None if specs is None else specs.name

    asked = {kind for kind, adapter in ADAPTERS.items() if adapter.specs is None}  # their machines report the specs
    assert asked == {"qpu", "forward"}
    assert {name("OURS", kind) for kind in ADAPTERS.keys() - asked} == {"OURS"}
    assert {name(device, kind) for device, kind in DEVICE_KINDS.items()} == DEVICE_KINDS.keys()
    assert make_virtual_specs("A").max_atom_num is None
