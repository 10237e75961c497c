"""Whether the atoms of a sequence fit a device."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tweezer.model.errors import InvalidInput
from tweezer.model.sequence import Geometry, SequenceHeader, check_register

MACHINE = Geometry(max_atoms=4, min_distance=5.0, max_radius=20.0)
Place = tuple[float, float, float]


def header(*places: Place, mappable: bool = False) -> SequenceHeader:
    ids = tuple(f"q{index}" for index in range(len(places) or 9))
    return SequenceHeader(
        "QPU", {}, ids, 9 if mappable else None, mappable, parametrized=False, measured=True, places=places
    )


@pytest.mark.parametrize(
    "places",
    [
        [(0.0, 0.0, 0.0)],
        [(0.0, 0.0, 0.0), (5.0, 0.0, 0.0), (0.0, 5.0, 0.0), (-20.0, 0.0, 0.0)],
        [(0.0, 0.0, 0.0), (3.0, 4.0 - 1e-7, 0.0)],  # as exact as Pulser is
        [(0.0, 0.0, 0.0), (0.0, 0.0, 6.0)],
    ],
)
def test_atoms_with_enough_distance_are_accepted(places: list[Place]) -> None:
    check_register(header(*places), MACHINE)


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ([(0.0, 6.0 * index, 0.0) for index in range(5)], "has 5 atoms; the device allows at most 4"),
        ([(0.0, 0.0, 0.0), (0.0, 20.1, 0.0)], "has an atom 20.1 µm from the centre; the device allows at most 20 µm"),
        (
            [(0.0, 0.0, 0.0), (9.0, 0.0, 0.0), (0.0, 2.0, 0.0)],
            "has atoms 2 µm apart; the device requires at least 5 µm",
        ),
        ([(1.0, 1.0, 0.0), (1.0, 1.0, 0.0)], "has atoms 0 µm apart; the device requires at least 5 µm"),
    ],
)
def test_atoms_that_are_too_close_are_refused(places: list[Place], says: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_register(header(*places), MACHINE)
    assert (raised.value.field, raised.value.problem) == ("sequence", says)


def test_atoms_without_positions_are_checked_later() -> None:
    check_register(header(mappable=True), MACHINE)


@given(st.lists(st.tuples(*[st.floats(-30, 30)] * 3), min_size=1, max_size=12), st.floats(0.1, 40))
def test_the_closest_atoms_are_found_anywhere(places: list[Place], least: float) -> None:
    closest = min((math.dist(a, b) for i, a in enumerate(places) for b in places[i + 1 :]), default=math.inf)
    try:
        check_register(header(*places), Geometry(min_distance=least))
        assert closest >= least - 1e-6
    except InvalidInput:
        assert closest < least
