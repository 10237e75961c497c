"""The adapter of each device, and what the registry imports into a worker's process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tweezer.adapters.lane.lane import LaneOptions
from tweezer.adapters.null import NullAdapter
from tweezer.adapters.protocol import Adapter
from tweezer.adapters.registry import (
    Binding,
    EmulatorAdapter,
    EmulatorOptions,
    check_binding,
    default_binding,
    make_adapter,
)
from tweezer.model.errors import InvalidInput
from tweezer.settings import Settings


def test_a_device_has_a_default_adapter() -> None:
    binding = default_binding("EMU_FREE")
    assert binding is not None
    emulator: Adapter = make_adapter(binding, LaneOptions(memory_limit_mb=512))
    assert isinstance(emulator, EmulatorAdapter)
    assert emulator.capabilities.checks_sequence
    assert not emulator.capabilities.exclusive
    assert default_binding("NULL") == Binding("null")
    assert isinstance(make_adapter(Binding("null")), NullAdapter)


def test_an_unknown_device_or_kind_is_named() -> None:
    with pytest.raises(InvalidInput, match="no adapter serves NOWHERE; use one of EMU_FREE") as device:
        Settings().binding("NOWHERE")
    assert device.value.field == "device"
    with pytest.raises(InvalidInput, match="'abacus' is not an adapter; use one of qutip") as kind:
        make_adapter(Binding("abacus"))
    assert kind.value.field == "adapter"


def test_options_of_a_device_override_the_common_ones() -> None:
    lanes = LaneOptions(memory_limit_mb=512, threads=1)
    options = check_binding("qutip", {"threads": 4, "prepare_timeout_s": 5})
    assert isinstance(options, EmulatorOptions)
    assert options.override(lanes) == LaneOptions(memory_limit_mb=512, threads=4, prepare_timeout_s=5.0)
    assert make_adapter(Binding("null", {"checks_sequence": True})).capabilities.checks_sequence


@pytest.mark.parametrize(
    ("adapter", "options", "field", "problem"),
    [
        ("qutip", {"thread": 4}, "options.thread", "is not an option of the adapter qutip; use memory_limit_mb, "),
        ("qutip", {"threads": "4"}, "options.threads", "expected `int | null`"),
        ("qutip", {"memo_mb": 1, "threads": 0}, "options.threads", "expected `int` >= 1"),
        ("null", {"threads": 4}, "options.threads", "is not an option of the adapter null"),
    ],
)
def test_options_that_an_adapter_does_not_have_are_named(
    adapter: str, options: dict[str, Any], field: str, problem: str
) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_binding(adapter, options)
    assert raised.value.field == field
    assert raised.value.problem.startswith(problem.replace("`", ""))


def test_the_workers_process_imports_no_emulator() -> None:
    program = """
import sys
from tweezer.adapters.registry import Binding, make_adapter
make_adapter(Binding("qutip"))
heavy = {"pulser", "pulser_simulation", "qutip", "numpy", "scipy", "torch"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
