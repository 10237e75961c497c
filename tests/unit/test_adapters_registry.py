"""Which adapter serves a device, and what having adapters costs the worker's process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tweezer.adapters.child import LaneOptions
from tweezer.adapters.emulator import EmulatorAdapter
from tweezer.adapters.null import NullAdapter
from tweezer.adapters.protocol import Adapter
from tweezer.adapters.registry import adapter_for
from tweezer.model.errors import InvalidInput


def test_a_device_has_a_usual_adapter() -> None:
    emulator: Adapter = adapter_for("EMU_FREE", LaneOptions(memory_limit_mb=512))
    assert isinstance(emulator, EmulatorAdapter)
    assert emulator.traits.checks_sequence
    assert not emulator.traits.exclusive
    assert isinstance(adapter_for("NULL"), NullAdapter)


def test_the_operator_may_choose_another_kind() -> None:
    assert isinstance(adapter_for("EMU_FREE", kind="null"), NullAdapter)
    assert isinstance(adapter_for("MY_DEVICE", kind="qutip"), EmulatorAdapter)


def test_an_unknown_device_or_kind_is_named() -> None:
    with pytest.raises(InvalidInput, match="no adapter serves NOWHERE; known devices are EMU_FREE") as device:
        adapter_for("NOWHERE")
    assert device.value.field == "device"
    with pytest.raises(InvalidInput, match="there is no adapter abacus") as kind:
        adapter_for("EMU_FREE", kind="abacus")
    assert kind.value.field == "adapter"


def test_the_workers_process_imports_no_emulator() -> None:
    program = """
import sys
from tweezer.adapters.registry import adapter_for
adapter_for("EMU_FREE")
heavy = {"pulser", "pulser_simulation", "qutip", "numpy", "scipy", "torch"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
