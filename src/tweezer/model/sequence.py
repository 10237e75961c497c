"""Reads the header of a serialised Pulser sequence without Pulser.

The format is Pulser's abstract representation, version 1 (``sequence-schema.json`` of pulser-core). Only the parts
that producers and the API check before a submit are read; the adapter checks the rest when it prepares the batch.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import reprlib
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from tweezer.model.errors import InvalidInput
from tweezer.model.expressions import check_expressions

MAX_SEQUENCE_BYTES = 8 << 20
"""Maximum size of a serialised sequence, in bytes of UTF-8."""

MAX_VARIABLES = 10_000
"""Maximum number of variables of a sequence; each job has a value for each."""

MAX_PYTHON_NUMBERS = 10_000
"""Maximum number of ``NaN`` and ``Infinity`` in a sequence. Pulser writes a few, in a device's noise model."""

RESERVED_NAMES = frozenset({"qubits", "seq_name", "json_dumps_options"})
"""Names that Pulser refuses for a variable (``Sequence.declare_variable``)."""

_FORMAT_VERSION = "1"


class VariableType(StrEnum):
    """The type of a variable's values, as Pulser writes it."""

    INT = "int"
    FLOAT = "float"


class DeclaredVariable(msgspec.Struct, frozen=True):
    """A variable of a sequence. A scalar and a list of one value are the same in Pulser's format: size 1."""

    type: VariableType
    size: int


class SequenceHeader(msgspec.Struct, frozen=True):
    """The properties of a sequence that can be read without Pulser.

    device: name of the device that the sequence was built for.
    variables: the declared variables by name, used or not.
    qubit_ids: in the register's order; of a mappable register, all that can be placed.
    traps: number of traps of the register's layout; None without a layout.
    mappable: whether each job assigns the qubits to traps (``qubits``).
    parametrized: whether an operation refers to a variable.
    measured: whether the sequence ends with an explicit measurement.
    places: x, y, z of each atom in micrometres; empty for a mappable register.
    """

    device: str
    variables: dict[str, DeclaredVariable]
    qubit_ids: tuple[str, ...]
    traps: int | None
    mappable: bool
    parametrized: bool
    measured: bool
    places: tuple[tuple[float, float, float], ...] = ()

    @property
    def qubits(self) -> int:
        """The number of qubits; the largest possible one where the register is mappable."""
        return len(self.qubit_ids)

    @property
    def needs_build(self) -> bool:
        """Whether the sequence must be built (``Sequence.build``), with a value for each declared variable."""
        return self.parametrized or self.mappable


class _Device(msgspec.Struct):
    name: str


class _Atom(msgspec.Struct):
    """A placed atom (name, x, y, optional z), or a qubit of a mappable register (qid)."""

    name: str | None = None
    qid: str | None = None
    x: float | None = None
    y: float | None = None
    z: float = 0.0


class _Layout(msgspec.Struct):
    coordinates: list[list[float]]


class _Variable(msgspec.Struct):
    type: VariableType
    value: list[float]


class _Document(msgspec.Struct):
    version: str
    name: str
    device: str | _Device
    register: list[_Atom]
    channels: dict[str, str]
    variables: msgspec.Raw
    operations: msgspec.Raw
    measurement: str | None
    layout: _Layout | msgspec.UnsetType = msgspec.UNSET


_document_decoder = msgspec.json.Decoder(_Document)
_variables_decoder = msgspec.json.Decoder(dict[str, _Variable])

_PYTHON_NUMBERS = re.compile(
    rb"""(?:[^"NI-]++|"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|N(?!aN)|-?I(?!nfinity)|-(?!I))++|(NaN|-?Infinity)""", re.DOTALL
)
"""Group 1 is a number that only Python's JSON supports; everything else, strings in particular, matches without it. An
unterminated string matches up to the end of the text, so that hostile input is scanned only once."""

_BYTE_ORDER_MARK = "\ufeff"
_PICKLE = re.compile(r"\x80|c[\w.]+\n\w+\n|\([dil]|V[^\n]*\np\d")  # of any protocol, read as Latin-1
_PICKLE_BEGIN = 200
_PATH_LENGTH = 1000
_PATH = re.compile(r"""[^\n"{}\[\]]*(?:[/\\][^\n"{}\[\]]*|\.[A-Za-z]\w{0,7})""")
_IS_A_PATH = "looks like a path; read the file first, for example with Path(…).read_text()"
_IS_A_PICKLE = "looks like a pickle, which is not accepted; write the file with Sequence.to_abstract_repr()"

_VARIABLE_REFERENCE = re.compile(rb'"variable"\s*:')
"""The key of a reference to a variable; within a string its quotes would be escaped."""


def read_sequence(text: str) -> SequenceHeader:
    """Read the header of a serialised sequence.

    Raises InvalidInput("sequence", …) for anything but Pulser's abstract representation, of any type or size.
    Accepts ``NaN`` and ``Infinity`` as numbers, as Pulser does.
    """
    data = _encoded(text)
    try:
        document = _decode_document(data)
    except (msgspec.DecodeError, RecursionError) as error:  # ValidationError included
        if problem := _recognise(text):
            raise InvalidInput("sequence", problem) from error
        if isinstance(error, msgspec.ValidationError) and b'"__module__"' in data:
            raise InvalidInput(
                "sequence", "is in Pulser's legacy format, which is not accepted; use Sequence.to_abstract_repr()"
            ) from error
        raise _not_a_sequence(_why_unreadable(error)) from error
    if document.version != _FORMAT_VERSION:
        raise _not_a_sequence(f"version {reprlib.repr(document.version)} of the format is not supported")
    operations = bytes(document.operations)
    if not operations.startswith(b"["):
        raise _not_a_sequence("its operations are not a list")
    try:
        check_expressions(operations)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _not_a_sequence(f"its operations cannot be read ({error})") from error
    qubit_ids, mappable = _read_register(document.register)
    traps = None if document.layout is msgspec.UNSET else len(document.layout.coordinates)
    _check_traps(len(qubit_ids), mappable, traps)
    return SequenceHeader(
        device=_device_name(document.device),
        variables=_read_variables(bytes(document.variables)),
        qubit_ids=qubit_ids,
        traps=traps,
        mappable=mappable,
        parametrized=_VARIABLE_REFERENCE.search(operations) is not None,
        measured=document.measurement is not None,
        places=() if mappable else tuple((atom.x or 0.0, atom.y or 0.0, atom.z) for atom in document.register),
    )


def sequence_text(sequence: object) -> str:
    """Serialise a Pulser ``Sequence``. A string is returned as it is, without a byte order mark.

    Raises InvalidInput("sequence", …) for other types, and when Pulser cannot serialise the sequence.
    """
    if isinstance(sequence, str):
        return str(sequence).removeprefix(_BYTE_ORDER_MARK)
    if isinstance(sequence, (bytes, bytearray)):
        return decode_text("sequence", bytes(sequence))
    if isinstance(sequence, os.PathLike):
        raise InvalidInput("sequence", _IS_A_PATH)
    serialise = getattr(sequence, "to_abstract_repr", None)
    if not callable(serialise):
        raise InvalidInput(
            "sequence",
            f"expected a Pulser Sequence or the string of its to_abstract_repr(), got {_type_name(sequence)}",
        )
    try:
        text = serialise()
    except Exception as error:  # foreign code: Pulser, numpy and jsonschema raise errors of many types
        raise InvalidInput("sequence", f"Pulser cannot serialise it: {error}") from error
    if not isinstance(text, str):
        raise InvalidInput("sequence", f"its to_abstract_repr() returned {_type_name(text)}, not a string")
    return text


def decode_text(field: str, data: bytes) -> str:
    """Decode the content of a file with a sequence or a configuration, without a byte order mark.

    Raises InvalidInput(field, …) for a pickle, and for text in another encoding than UTF-8.
    """
    if _PICKLE.match(data[:_PICKLE_BEGIN].decode("latin-1")):
        raise InvalidInput(field, _IS_A_PICKLE)
    try:
        return data.decode().removeprefix(_BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise InvalidInput(field, "is text in UTF-16; save it as UTF-8") from error
        raise InvalidInput(field, f"is not valid UTF-8 text: {error}") from error


def _recognise(text: str) -> str | None:
    """Return what a text that is not a sequence seems to be, and what to do; None if that is not known."""
    if not text.strip():
        return "is empty; expected the string of Sequence.to_abstract_repr()"
    if _PICKLE.match(text):
        return _IS_A_PICKLE
    if len(text) <= _PATH_LENGTH and _PATH.fullmatch(text):
        return _IS_A_PATH
    if text.lstrip().startswith('"'):
        try:
            inner = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if inner.lstrip().startswith(("{", '"')):
            return "was encoded as JSON twice; use the string of Sequence.to_abstract_repr() as it is"
    return None


def _not_a_sequence(reason: str) -> InvalidInput:
    return InvalidInput("sequence", f"is not a serialised Pulser sequence: {reason}; use Sequence.to_abstract_repr()")


def _why_unreadable(error: Exception) -> str:
    match error:
        case msgspec.ValidationError():
            return str(error)
        case RecursionError():
            return "its JSON is nested too deeply"
        case _:
            return f"it is not JSON ({error})"


def _type_name(value: object) -> str:
    return f"a value of type {type(value).__name__}"


def _encoded(text: object) -> bytes:
    if not isinstance(text, str):
        raise _not_a_sequence(f"expected a string, got {_type_name(text)}")
    if len(text) <= MAX_SEQUENCE_BYTES:
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise _not_a_sequence("it is not valid Unicode text") from error
        if len(data) <= MAX_SEQUENCE_BYTES:
            return data
    raise InvalidInput("sequence", f"must be at most {MAX_SEQUENCE_BYTES >> 20} MiB")


def _decode_document(data: bytes) -> _Document:
    try:
        return _document_decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        plain = _plain_json(data)
        if plain is data:
            raise
        return _document_decoder.decode(plain)


def _plain_json(data: bytes) -> bytes:
    """Replace each ``NaN`` and ``Infinity`` by zero: the header does not use their values."""
    if b"NaN" not in data and b"Infinity" not in data:
        return data
    if data.count(b"NaN") + data.count(b"Infinity") > MAX_PYTHON_NUMBERS:
        raise _not_a_sequence(f"it has more than {MAX_PYTHON_NUMBERS} numbers that are NaN or Infinity")
    return _PYTHON_NUMBERS.sub(lambda match: b" 0 " if match[1] else match[0], data)


def _device_name(device: str | _Device) -> str:
    name = device if isinstance(device, str) else device.name
    if not name:
        raise _not_a_sequence("its device has no name")
    return name


def _read_register(atoms: list[_Atom]) -> tuple[tuple[str, ...], bool]:
    """Return the qubit ids, and whether the register is mappable. As in Pulser, the first entry decides that."""
    if not atoms:
        raise _not_a_sequence("its register has no qubits")
    mappable = atoms[0].qid is not None
    ids = []
    for position, atom in enumerate(atoms):
        placed = atom.x is not None and atom.y is not None
        name = atom.qid if mappable else atom.name
        if name is None or placed is mappable:
            raise _not_a_sequence(f"entry {position} of its register is neither an atom nor a qubit without a position")
        ids.append(name)
    if len(set(ids)) != len(ids):
        raise _not_a_sequence(f"its register has the qubit {reprlib.repr(_first_repeated(ids))} twice")
    return tuple(ids), mappable


def _check_traps(qubits: int, mappable: bool, traps: int | None) -> None:
    if mappable and traps is None:
        raise _not_a_sequence("its register is mappable but has no layout of traps")
    if traps is not None and qubits > traps:
        raise _not_a_sequence(f"its register has {qubits} qubits, but its layout has only {traps} traps")


def _read_variables(raw: bytes) -> dict[str, DeclaredVariable]:
    try:
        variables = _variables_decoder.decode(raw)
        if len(variables) > MAX_VARIABLES:
            raise InvalidInput("sequence", f"at most {MAX_VARIABLES} variables are allowed (got {len(variables)})")
        names: list[str] = [name for name, _ in json.loads(raw, object_pairs_hook=list)] if variables else []
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _not_a_sequence(f"its variables cannot be read ({error})") from error
    if len(names) != len(variables):
        raise _not_a_sequence(f"it declares the variable {reprlib.repr(_first_repeated(names))} twice")
    declared = {}
    for name, variable in variables.items():
        if name in RESERVED_NAMES:
            raise _not_a_sequence(f"{name} is reserved and cannot be the name of a variable")
        if not variable.value:
            raise _not_a_sequence(f"its variable {reprlib.repr(name)} has no values, so its size is unknown")
        declared[name] = DeclaredVariable(variable.type, len(variable.value))
    return declared


def _first_repeated(names: list[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


_PRECISION = 1e-6  # micrometres; as in Pulser (COORD_PRECISION)


class Geometry(msgspec.Struct, frozen=True):
    """The limits of a device on the register; None means no limit.

    min_distance: between two atoms. max_radius: distance of an atom from the centre. Both in micrometres.
    """

    max_atoms: int | None = None
    min_distance: float | None = None
    max_radius: float | None = None


ANYWHERE = Geometry()


def check_register(header: SequenceHeader, geometry: Geometry) -> None:
    """Check the register against the limits of a device. Raises InvalidInput("sequence", …).

    A mappable register is not checked here: its atoms are known only when it is built, and the device checks them.
    """
    if header.mappable:
        return
    if geometry.max_atoms is not None and header.qubits > geometry.max_atoms:
        raise InvalidInput("sequence", f"has {header.qubits} atoms; the device allows at most {geometry.max_atoms}")
    if geometry.max_radius is not None:
        farthest = max(math.hypot(*place) for place in header.places)
        if farthest > geometry.max_radius + _PRECISION:
            raise InvalidInput(
                "sequence",
                f"has an atom {farthest:.6g} µm from the centre; the device allows at most {geometry.max_radius:g} µm",
            )
    if geometry.min_distance is not None:
        near = _closer_than(geometry.min_distance - _PRECISION, header.places)
        if near is not None:
            raise InvalidInput(
                "sequence", f"has atoms {near:.6g} µm apart; the device requires at least {geometry.min_distance:g} µm"
            )


def _closer_than(least: float, places: Sequence[tuple[float, float, float]]) -> float | None:
    """Return the distance of two places that are closer than ``least``; None without any."""
    ordered = sorted(places)
    for first, place in enumerate(ordered):
        for second in range(first + 1, len(ordered)):
            if ordered[second][0] - place[0] >= least:
                break
            if (distance := math.dist(place, ordered[second])) < least:
                return distance
    return None
