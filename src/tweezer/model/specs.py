"""Reads a device's specs without Pulser.

Specs are Pulser's abstract representation of a device (``device-schema.json`` of pulser-core), as text. Only the
fields that the queue uses are read; :mod:`tweezer.adapters.specs` checks that Pulser accepts the specs.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

import msgspec
from msgspec import Meta

from tweezer.model.checks import check_text
from tweezer.model.errors import InvalidInput

MAX_SPECS_BYTES = 1 << 20
"""Maximum size of specs, in bytes of UTF-8. With a layout of thousands of traps they have a few hundred thousand."""


MAX_NAME_LENGTH = 100
"""Maximum length of the name in specs, in characters."""


class DeviceSpecs(msgspec.Struct, frozen=True):
    """The specs of a device.

    text: as Pulser serialised them. name: the device's name in sequences. min_atom_distance, max_radial_distance: of
    atoms from each other and from the centre, in micrometres. A limit that is None does not exist.
    """

    text: str
    name: str
    max_atom_num: int | None
    max_runs: int | None
    min_atom_distance: float | None = None
    max_radial_distance: float | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class _SpecsDocument(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_LENGTH)]
    max_atom_num: Annotated[int, Meta(ge=1)] | None = None
    max_runs: Annotated[int, Meta(ge=1)] | None = None
    min_atom_distance: float | None = None
    max_radial_distance: float | None = None


def read_specs(text: str, *, field: str = "specs") -> DeviceSpecs:
    """Parse specs. ``field`` is the name of the text in errors. Raises InvalidInput."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(field, "is not valid Unicode text") from error
    if size > MAX_SPECS_BYTES:
        raise InvalidInput(field, f"must be at most {MAX_SPECS_BYTES >> 20} MiB")
    try:
        document = msgspec.convert(json.loads(text), _SpecsDocument)  # Python's JSON: Pulser may write Infinity
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            field, f"is not the abstract representation of a Pulser device: {error}; use device.to_abstract_repr()"
        ) from error
    check_text(f"{field}.name", document.name, MAX_NAME_LENGTH)
    return DeviceSpecs(text, **msgspec.structs.asdict(document))
