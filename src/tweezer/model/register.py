"""Whether the atoms of a sequence fit a device, judged without Pulser and before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from tweezer.model.errors import InvalidInput
from tweezer.model.sequence import SequenceHeader

_PRECISION = 1e-6  # micrometres; Pulser's own (COORD_PRECISION)


class Room(msgspec.Struct, frozen=True):
    """What a device has for atoms; None: no limit. min_distance: of two atoms, and max_radius: from the middle, in
    micrometres."""

    max_atoms: int | None = None
    min_distance: float | None = None
    max_radius: float | None = None


ANYWHERE = Room()


def check_register(header: SequenceHeader, room: Room) -> None:
    """Raises InvalidInput("sequence", …). Of a mappable register, how many atoms there are and where is known when it
    is built; the device judges that."""
    if header.mappable:
        return
    if room.max_atoms is not None and header.qubits > room.max_atoms:
        raise InvalidInput("sequence", f"has {header.qubits} atoms; the device takes at most {room.max_atoms}")
    if room.max_radius is not None:
        farthest = max(math.hypot(*place) for place in header.places)
        if farthest > room.max_radius + _PRECISION:
            raise InvalidInput(
                "sequence",
                f"has an atom {farthest:.6g} µm from the middle; the device takes at most {room.max_radius:g} µm",
            )
    if room.min_distance is not None:
        near = _closer_than(room.min_distance - _PRECISION, header.places)
        if near is not None:
            raise InvalidInput(
                "sequence", f"has atoms {near:.6g} µm apart; the device takes at least {room.min_distance:g} µm"
            )


def _closer_than(least: float, places: Sequence[tuple[float, float, float]]) -> float | None:
    """The distance of two places that are closer than that, if there are any."""
    ordered = sorted(places)
    for first, place in enumerate(ordered):
        for second in range(first + 1, len(ordered)):
            if ordered[second][0] - place[0] >= least:
                break
            if (distance := math.dist(place, ordered[second])) < least:
                return distance
    return None
