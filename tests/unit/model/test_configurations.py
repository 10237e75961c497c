"""The old options of emulators: each supported option with its possible values."""

from __future__ import annotations

from typing import Any

import pytest

from tweezer.model.configurations import OLDER_OPTIONS, check_older_options
from tweezer.model.errors import InvalidInput


@pytest.mark.parametrize(
    "options", [{"dt": 10}, {"precision": "normal", "max_bond_dim": 300}, {"precision": 0.5, "dt": None}, {}]
)
def test_options_that_emu_mps_supports_are_accepted(options: dict[str, Any]) -> None:
    check_older_options(options, "emu-mps")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dt": 0}, "dt"),
        ({"dt": "10"}, "dt"),
        ({"precision": "best"}, "precision"),
        ({"max_bond_dim": 1.5}, "max_bond_dim"),
        ({"dt": 10, "with_noise": True}, "with_noise"),
    ],
)
def test_a_wrong_value_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_older_options(options, "emu-mps")
    assert caught.value.field == f"configuration.{field}"


def test_the_options_are_those_of_the_lanes() -> None:
    torch_backend = pytest.importorskip("tweezer.adapters.emulators.emu_mps_backend")
    assert set(OLDER_OPTIONS["emu-mps"].__struct_fields__) == set(torch_backend._OLDER)
