"""What a device's specs say, read without Pulser.

Specs are Pulser's abstract representation of a device (``device-schema.json`` of pulser-core), as text. Only what the
queue goes by is read here; whether Pulser takes them is for :mod:`tweezer.adapters.specs` to find out.
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
"""How long specs may be, in bytes of UTF-8; with a layout of thousands of traps they have a few hundred thousand."""


MAX_NAME_LENGTH = 100
"""Characters of the name in specs."""


class DeviceSpecs(msgspec.Struct, frozen=True):
    """The specs of a device.

    text: as Pulser wrote it. name: the one that sequences for the device carry. max_atom_num, max_runs: None where
    there is no limit; so min_atom_distance and max_radial_distance, of atoms from each other and from the middle, in
    micrometres. digest: SHA-256 of the text.
    """

    text: str
    name: str
    max_atom_num: int | None
    max_runs: int | None
    min_atom_distance: float | None = None
    max_radial_distance: float | None = None

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


class _SpecsDocument(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_LENGTH)]
    max_atom_num: Annotated[int, Meta(ge=1)] | None = None
    max_runs: Annotated[int, Meta(ge=1)] | None = None
    min_atom_distance: float | None = None
    max_radial_distance: float | None = None


def read_specs(text: str, *, field: str = "specs") -> DeviceSpecs:
    """The specs of this text. ``field`` is what errors call it. Raises InvalidInput."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(field, "has characters that are not Unicode text") from error
    if size > MAX_SPECS_BYTES:
        raise InvalidInput(field, f"is longer than {MAX_SPECS_BYTES >> 20} MiB, the most that is accepted")
    try:
        document = msgspec.convert(json.loads(text), _SpecsDocument)  # Python's JSON: Pulser may write Infinity
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            field, f"is not the abstract representation of a Pulser device: {error}; use device.to_abstract_repr()"
        ) from error
    check_text(f"{field}.name", document.name, MAX_NAME_LENGTH)
    return DeviceSpecs(text, **msgspec.structs.asdict(document))
