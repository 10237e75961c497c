"""Pulser reads the specs of emulators and of operators' files, here and in each client stack."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pulser.devices import AnalogDevice, MockDevice, VirtualDevice
from pulser.json.abstract_repr.deserializer import deserialize_device
from tests.support.requirements import give_up

from tweezer.adapters import specs
from tweezer.adapters.registry import Binding, get_specs
from tweezer.adapters.specs import check_specs, make_virtual_specs
from tweezer.model.errors import InvalidInput, TweezerError

_READ = """
import sys
from pulser.json.abstract_repr.deserializer import deserialize_device
device = deserialize_device(sys.stdin.read())
print(type(device).__name__, device.name)
"""


def test_the_device_of_an_emulator_is_pulsers_mock_device_with_another_name() -> None:
    device = deserialize_device(make_virtual_specs("EMU_FREE").text)
    assert isinstance(device, VirtualDevice)
    assert device.name == "EMU_FREE"
    ours, theirs = (json.loads(each) for each in (make_virtual_specs("MockDevice").text, MockDevice.to_abstract_repr()))
    assert {**ours, "pulser_version": None} == {**theirs, "pulser_version": None}


@pytest.mark.compat
@pytest.mark.parametrize("stack", ["A", "B"])
def test_every_client_stack_reads_the_device_of_an_emulator(stack: str) -> None:
    interpreter = shutil.which(os.environ.get(f"TWEEZER_COMPAT_{stack}", ""))
    if interpreter is None:
        give_up(f"TWEEZER_COMPAT_{stack} does not name the interpreter of an environment with Pasqal's client")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run(
        [interpreter, "-c", _READ],
        input=make_virtual_specs("NULL").text,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=True,
    )
    assert ran.stdout.split() == ["VirtualDevice", "NULL"]


@pytest.mark.slow
def test_a_specs_file_is_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "analog.json"
    file.write_text(AnalogDevice.to_abstract_repr())
    found = get_specs("TWIN", Binding("qutip", specs=file))
    assert found is not None
    assert (found.name, found.max_atom_num, found.max_runs) == ("AnalogDevice", 80, 2000)


@pytest.mark.slow
def test_the_error_for_an_invalid_specs_file_names_it(tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    with pytest.raises(InvalidInput, match=r"devices\.TWIN\.specs: .*broken\.json cannot be read: No such file"):
        get_specs("TWIN", Binding("qutip", specs=file))
    file.write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match="is not UTF-8 text"):
        get_specs("TWIN", Binding("qutip", specs=file))
    file.write_text(json.dumps({**json.loads(AnalogDevice.to_abstract_repr()), "min_atom_distance": -1}))
    with pytest.raises(InvalidInput, match=r"devices\.TWIN\.specs: .* 'min_atom_distance' must be greater") as raised:
        get_specs("TWIN", Binding("qutip", specs=file))
    assert "\n" not in str(raised.value)


def test_without_pulser_external_specs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs, "_ask_pulser", lambda text: subprocess.CompletedProcess([], 3, "", "No module named …"))
    with pytest.raises(
        TweezerError, match=r"because Pulser is not installed here; run `pip install '\.\[emulators\]'`"
    ):
        check_specs(make_virtual_specs("X").text)


@pytest.mark.slow
def test_checking_specs_does_not_import_pulser_in_this_process() -> None:
    program = """
import sys
from tweezer.adapters.specs import check_specs, make_virtual_specs
check_specs(make_virtual_specs("X").text)
sys.exit(1 if {"pulser", "numpy"} & set(sys.modules) else 0)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
