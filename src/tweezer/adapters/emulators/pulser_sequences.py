"""Parses a client's sequence and builds it with a job's values."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jsonschema import ValidationError
from pulser import Sequence
from pulser.devices import MockDevice
from pulser.json.abstract_repr import deserializer
from pulser.json.abstract_repr.validation import validate_abstract_repr
from pulser.json.utils import ObjectType
from pulser.register.mappable_reg import MappableRegister
from pulser.sampler import sample

from tweezer.adapters.lane.backend import Refusal
from tweezer.model.lru import Recent
from tweezer.model.messages import BatchWork, Fault, JobWork

FIELD = "sequence"
_CHOICES_SHOWN = 12
_LONGEST_TEXT = 240
_SEQUENCES_KEPT = 16
_OPERATIONS_EXAMINED = 500
_PARTS_KEPT = 256
_VALID_DEVICE = "MockDevice"  # Pulser's schema accepts some names in place of a device

_valid_parts: Recent[bytes, bool] = Recent(_PARTS_KEPT)


class ParsedSequence:
    """A client's sequence, parsed and valid, but not built with a job's values.

    Attributes:
        sequence: Pulser's sequence.
        digest: SHA-256 of the text, hexadecimal.
        specs_digest: SHA-256 of the canonical JSON of the sequence's device, hexadecimal.
    """

    def __init__(self, text: str) -> None:
        """Parse Pulser's abstract representation. Raises ``Refusal`` naming ``sequence`` if it cannot run."""
        try:
            self.sequence = Sequence.from_abstract_repr(text)
            document = json.loads(text)
            device = document["device"]
        except MemoryError:
            raise
        except Exception as error:  # any error is caused by the client's text
            place = "" if isinstance(error, ValidationError) else explain_operation(text)
            raise Refusal(Fault("user", f"is not a Pulser sequence: {describe_error(error)}{place}", FIELD)) from error
        if found := find_infinite_number({name: part for name, part in document.items() if name != "device"}):
            raise Refusal(Fault("invalid", f"must contain only finite numbers: {found}", FIELD))
        if not self.sequence.declared_channels:
            raise Refusal(Fault("user", "must declare a channel and add a pulse to it", FIELD))
        if not self.sequence.is_parametrized() and self.sequence.is_empty():
            raise Refusal(Fault("user", "must contain a pulse", FIELD))
        canonical = json.dumps(device, sort_keys=True, separators=(",", ":"))
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.specs_digest = hashlib.sha256(canonical.encode()).hexdigest()

    def build(self, variables: dict[str, Any]) -> Sequence[Any]:
        """Build the sequence with a job's values. Names that it does not declare are ignored, as in Pulser.

        Raises ``Refusal`` naming ``variables.<name>``.
        """
        sequence = self.sequence
        if not sequence.is_parametrized() and not sequence.is_register_mappable():
            return sequence
        values = {
            name: _read_value(name, variable.size, variable.dtype is int, variables)
            for name, variable in sequence.declared_variables.items()
        }
        if sequence.is_register_mappable():
            values["qubits"] = _read_qubits(sequence, variables)
        try:
            return sequence.build(**values)
        except MemoryError:
            raise
        except Exception as error:  # the sequence was valid, so the values are at fault
            problem = f"{describe_error(error)}{explain_limit(sequence, sequence.device, values)}"
            message = f"the sequence cannot be built with these values: {problem}"
            raise Refusal(Fault("user", message, "variables")) from error


class Sequences:
    """The sequences of a prepared batch: its own, and those of jobs that bring theirs. Equal texts are parsed once.

    Patches Pulser in the process. check: Called with each sequence that is parsed. It may change the sequence, or raise
    ``Refusal``.
    """

    def __init__(self, check: Callable[[ParsedSequence], None] | None = None) -> None:
        check_parts_once()
        self._check = check
        self._known: Recent[str, ParsedSequence] = Recent(_SEQUENCES_KEPT)
        self._default: ParsedSequence | None = None

    def prepare(self, batch: BatchWork) -> None:
        self._default = self._parse(batch.doc.sequence) if batch.doc.sequence is not None else None

    def find(self, job: JobWork) -> ParsedSequence:
        """Return the sequence of a job. Raises ``Refusal``."""
        parsed = self._parse(job.spec.sequence) if job.spec.sequence is not None else self._default
        if parsed is None:
            raise Refusal(Fault("invalid", "is required, in the job or in its batch", FIELD))
        return parsed

    def _parse(self, text: str) -> ParsedSequence:
        parsed = self._known.get(text)
        if parsed is None:
            parsed = ParsedSequence(text)
            if self._check is not None:
                self._check(parsed)
            self._known.put(text, parsed)
        return parsed


def describe_error(error: BaseException) -> str:
    """Return a library's message and those of its causes, shortened. A JSON Schema error begins with its place."""
    if isinstance(error, ValidationError):
        text = explain_schema_error(error)
    else:
        messages: list[str] = []
        cause: BaseException | None = error
        while cause is not None:
            message = explain_schema_error(cause) if isinstance(cause, ValidationError) else str(cause)
            if message not in messages:
                messages.append(message or type(cause).__name__)
            cause = cause.__cause__
        text = ": ".join(one.strip().removesuffix(".") for one in messages)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def explain_operation(text: str) -> str:
    """Return which operation of a sequence Pulser refuses, to end a message; empty if that cannot be found."""
    try:
        document = json.loads(text)
        operations, channels = document["operations"], document["channels"]
        if len(operations) > _OPERATIONS_EXAMINED:  # the search parses the sequence again and again
            return ""

        def is_refused(count: int) -> bool:
            try:
                Sequence.from_abstract_repr(json.dumps({**document, "operations": operations[:count]}))
            except Exception:  # noqa: BLE001  # like the sequence as a whole
                return True
            return False

        at = bisect_left(range(len(operations) + 1), True, key=is_refused) - 1
        if not 0 <= at < len(operations):
            return ""
        name = operations[at].get("channel")
        specs: dict[str, Any] = next(
            (it for it in document["device"]["channels"] if it["id"] == channels.get(name)), {}
        )
    except Exception:  # noqa: BLE001  # the message is complete without it
        return ""
    limits = [
        f"{quantity} of {specs[key]:.6g} rad/µs"
        for quantity, key in (("an amplitude", "max_amp"), ("a detuning", "max_abs_detuning"))
        if isinstance(specs.get(key), int | float)
    ]
    channel = f" on channel {name!r}" if name is not None else ""
    return f"; see operations[{at}]{channel}" + (f", whose limits are {' and '.join(limits)}" if limits else "")


def explain_limit(sequence: Sequence[Any], device: Any, values: Mapping[str, Any]) -> str:
    """Return which limit of a device's channel a pulse exceeds, to end a message; empty if that cannot be found.

    values: The values with which the sequence is built; empty if it is built already.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unlimited = sequence.with_new_device(MockDevice)
            samples = sample(unlimited.build(**values) if values else unlimited).channel_samples
    except Exception:  # noqa: BLE001  # the message is complete without it
        return ""
    for name, declared in sequence.declared_channels.items():
        limits = next(
            (device.channels.get(key) for key, it in sequence.device.channels.items() if it == declared), None
        )
        if limits is None or name not in samples:
            continue
        for quantity, part, most in (
            ("an amplitude", samples[name].amp, limits.max_amp),
            ("a detuning", samples[name].det, limits.max_abs_detuning),
        ):
            strength = np.abs(part.as_array(detach=True))
            exceeds = np.round(strength, 6) > (np.inf if most is None else most)
            if exceeds.any():
                at_ns = int(np.argmax(exceeds))
                found = f"{quantity} of {strength[at_ns]:.6g} rad/µs at {at_ns} ns"
                return f"; channel {name!r} has {found}, the limit is {most:.6g} rad/µs"
    return ""


def find_infinite_channel(sequence: Sequence[Any]) -> str | None:
    """Return the first channel of a built sequence that has a sample that is not finite, if any."""
    for name, samples in sample(sequence).channel_samples.items():
        if not all(np.isfinite(part.as_array(detach=True)).all() for part in (samples.amp, samples.det, samples.phase)):
            return name
    return None


def find_infinite_number(document: Any, *, infinity: bool = False) -> str | None:
    """Return the place and value of the first number that is not finite, such as ``register[0].x is nan``.

    infinity: Infinite numbers are allowed, so only NaN is found.
    """
    left = [("", document)]
    while left:
        place, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{place}.{name}" if place else str(name), one) for name, one in value.items()]
        elif isinstance(value, list):
            left += [(f"{place}[{index}]", one) for index, one in enumerate(value)]
        elif isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not infinity)):
            return f"{place or 'it'} is {value}"
    return None


def _read_value(name: str, size: int, whole: bool, variables: dict[str, Any]) -> Any:
    """Return the value of a declared variable: a number, or a list of ``size`` numbers."""
    field = f"variables.{name}"
    expected = "a number" if size == 1 else f"a list of {size} numbers"
    if name not in variables:
        raise Refusal(Fault("invalid", f"is missing: the sequence needs {expected} for {name}", field))
    given = variables[name]
    numbers = given if isinstance(given, list | tuple) else [given]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            message = f"must be {expected} (got {describe_error(ValueError(repr(given)))})"
            raise Refusal(Fault("invalid", message, field))
        if whole and number != int(number):
            raise Refusal(Fault("invalid", f"must be a whole number (got {number})", field))
    if len(numbers) != size:
        raise Refusal(Fault("invalid", f"must be {expected} (got {len(numbers)} values)", field))
    return given


def _read_qubits(sequence: Sequence[Any], variables: dict[str, Any]) -> dict[str, int]:
    """Return the traps of a mappable register's qubits: qubit id → trap id."""
    field = "variables.qubits"
    qubits = variables.get("qubits")
    if qubits is None:
        raise Refusal(Fault("invalid", "is missing: the register is mappable and needs qubit id → trap id", field))
    if not isinstance(qubits, dict) or not qubits or not all(type(trap) is int for trap in qubits.values()):
        raise Refusal(Fault("invalid", "must map qubit ids to trap ids, which are whole numbers", field))
    register = sequence.get_register(include_mappable=True)
    if not isinstance(register, MappableRegister):
        raise TypeError(f"a mappable register is a {type(register).__name__}")
    try:
        register.build_register(qubits)
    except (ValueError, TypeError, IndexError) as error:
        raise Refusal(Fault("user", f"cannot be used: {describe_error(error)}", field)) from error
    return qubits


def explain_schema_error(error: ValidationError) -> str:
    """Return the place and the problem: ``operations[0].op: 'teleport' is not one of 'target', 'delay', …``.

    Pulser's schemas nest alternatives (``anyOf``), for which the library's message quotes the whole document. This
    function follows the alternative that the document most likely intends down to its error.
    """
    while error.context:
        branches = _group_by_branch(error)
        chosen = min(branches, key=_rank)
        if words := _list_choices(branches):
            return f"{_format_place(chosen[0])}{_describe_mismatch(chosen[0].instance, words)}"
        error = min(chosen, key=lambda one: -len(one.absolute_path))
    return f"{_format_place(error)}{_describe_problem(error)}"


def _group_by_branch(error: ValidationError) -> list[list[ValidationError]]:
    """Return the errors of each alternative, beginning with those that distinguish the alternatives."""
    found: dict[object, list[ValidationError]] = defaultdict(list)
    for one in error.context or ():
        found[one.schema_path[0]].append(one)
    return [sorted(errors, key=lambda one: not _is_tag(one)) for errors in found.values()]


def _is_tag(error: ValidationError) -> bool:
    return error.validator in {"const", "enum"}


def _rank(errors: list[ValidationError]) -> tuple[bool, bool, int]:
    """Return a measure of how far the document is from this alternative."""
    at = len(errors[0].parent.absolute_path) if errors[0].parent is not None else 0
    return (
        any(_is_tag(one) and len(one.absolute_path) <= at + 1 for one in errors),
        any(one.validator == "type" and len(one.absolute_path) == at for one in errors),
        len(errors),
    )


def _list_choices(branches: list[list[ValidationError]]) -> list[object]:
    """Return the valid values if all alternatives expect different ones at the same place; else an empty list."""
    tags = [next((one for one in errors if _is_tag(one)), None) for errors in branches]
    if len({tuple(tag.absolute_path) if tag is not None else None for tag in tags}) != 1 or tags[0] is None:
        return []
    return [word for tag in tags if tag is not None for word in _list_expected(tag)]


def _list_expected(tag: ValidationError) -> list[object]:
    value: Any = tag.validator_value
    return list(value) if tag.validator == "enum" else [value]


def _describe_problem(error: ValidationError) -> str:
    match error.validator:
        case "const" | "enum":
            return _describe_mismatch(error.instance, _list_expected(error))
        case "type":
            expected: Any = error.validator_value
            kinds = expected if isinstance(expected, str) else " or ".join(expected)
            return f"{_shorten(repr(error.instance))} is not of type {kinds}"
        case _:
            return str(error.message)


def _format_place(error: ValidationError) -> str:
    text = ""
    for step in error.absolute_path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return f"{text.removeprefix('.')}: " if text else ""


def _describe_mismatch(value: object, expected: Iterable[object]) -> str:
    words = list(dict.fromkeys(map(repr, expected)))
    shown = ", ".join([*words[:_CHOICES_SHOWN], *(["…"] if len(words) > _CHOICES_SHOWN else [])])
    return f"{_shorten(repr(value))} is not {'one of ' if len(words) > 1 else ''}{shown}"


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"


def check_parts_once() -> None:
    """Let Pulser check the parts of sequences against its JSON schema once in this process.

    Nine tenths of the time in which Pulser reads a sequence go into this check. Here a device is checked once. The rest
    is checked once for all texts that differ only in numbers, because the schema has no limits for the numbers of a
    sequence. A text that is not valid is checked again as a whole, so its error is Pulser's.
    """
    setattr(deserializer, "validate_abstract_repr", _validate)  # noqa: B010  # a name that it imports


def _validate(obj_str: str, name: ObjectType) -> None:
    if name != "sequence":
        return validate_abstract_repr(obj_str, name)
    try:
        form = json.loads(obj_str, parse_int=lambda _: 0, parse_float=lambda _: 0.5)
        device = json.loads(obj_str)["device"]
        if not isinstance(device, str):  # a name is checked with the rest
            _validate_part(device, "device")
            form["device"] = _VALID_DEVICE
        _validate_part(form, name)
    except Exception:  # noqa: BLE001  # reported by this check of the whole text
        validate_abstract_repr(obj_str, name)


def _validate_part(part: object, name: ObjectType) -> None:
    text = json.dumps(part)
    key = hashlib.sha256(f"{name} {text}".encode()).digest()
    if _valid_parts.get(key) is None:
        validate_abstract_repr(text, name)
        _valid_parts.put(key, True)
