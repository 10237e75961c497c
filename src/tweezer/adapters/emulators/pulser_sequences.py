"""From a client's text and values to a sequence that can run."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jsonschema import ValidationError
from pulser import Sequence
from pulser.register.mappable_reg import MappableRegister
from pulser.sampler import sample

from tweezer.adapters.lane.backend import Refusal
from tweezer.model.lru import Recent
from tweezer.model.messages import BatchWork, Fault, JobWork

_CHOICES_SHOWN = 12

FIELD = "sequence"
_LONGEST_TEXT = 240
_SEQUENCES_KEPT = 16


class ParsedSequence:
    """A sequence as its client wrote it, parsed and valid but perhaps not built.

    digest: SHA-256 of the text. specs_digest: SHA-256 of its device's canonical JSON.
    """

    def __init__(self, text: str) -> None:
        """Raises ``Refusal`` naming ``sequence`` when the text is not a sequence that could run."""
        try:
            self.sequence = Sequence.from_abstract_repr(text)
            document = json.loads(text)
            device = document["device"]
        except MemoryError:
            raise
        except Exception as error:  # whatever it is, its cause is the text that we were sent
            raise Refusal(Fault("user", f"is not a Pulser sequence: {brief(error)}", FIELD)) from error
        if found := infinite_number({name: part for name, part in document.items() if name != "device"}):
            raise Refusal(Fault("invalid", f"has a number that is not finite: {found}", FIELD))
        if not self.sequence.declared_channels:
            raise Refusal(Fault("user", "declares no channel, so there is nothing to run", FIELD))
        if not self.sequence.is_parametrized() and self.sequence.is_empty():
            raise Refusal(Fault("user", "has no pulse, so there is nothing to run", FIELD))
        canonical = json.dumps(device, sort_keys=True, separators=(",", ":"))
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.specs_digest = hashlib.sha256(canonical.encode()).hexdigest()

    def build(self, variables: dict[str, Any]) -> Sequence[Any]:
        """Return the sequence with these values; names it does not declare are ignored, as Pulser does.

        Raises ``Refusal`` naming ``variables.<name>``.
        """
        sequence = self.sequence
        if not sequence.is_parametrized() and not sequence.is_register_mappable():
            return sequence
        values = {
            name: _value(name, variable.size, variable.dtype is int, variables)
            for name, variable in sequence.declared_variables.items()
        }
        if sequence.is_register_mappable():
            values["qubits"] = _qubits(sequence, variables)
        try:
            return sequence.build(**values)
        except MemoryError:
            raise
        except Exception as error:  # the sequence was valid, so the values are at fault
            message = f"the sequence cannot be built with these values: {brief(error)}"
            raise Refusal(Fault("user", message, "variables")) from error


class Sequences:
    """The sequence of the prepared batch, and those of jobs that have one of their own; equal texts are parsed once.

    check: called with each that is parsed; it may change it, and raises ``Refusal`` for one that is not taken.
    """

    def __init__(self, check: Callable[[ParsedSequence], None] | None = None) -> None:
        self._check = check
        self._known: Recent[str, ParsedSequence] = Recent(_SEQUENCES_KEPT)
        self._of_batch: ParsedSequence | None = None

    def prepare(self, batch: BatchWork) -> None:
        self._of_batch = self._parse(batch.doc.sequence) if batch.doc.sequence is not None else None

    def find(self, job: JobWork) -> ParsedSequence:
        """Return the sequence of a job. Raises ``Refusal``."""
        parsed = self._parse(job.spec.sequence) if job.spec.sequence is not None else self._of_batch
        if parsed is None:
            raise Refusal(Fault("invalid", "neither the job nor its batch has one", FIELD))
        return parsed

    def _parse(self, text: str) -> ParsedSequence:
        parsed = self._known.get(text)
        if parsed is None:
            parsed = ParsedSequence(text)
            if self._check is not None:
                self._check(parsed)
            self._known.put(text, parsed)
        return parsed


def brief(error: BaseException) -> str:
    """Return what a library says, with its causes, short enough for a sentence; the place first for a JSON Schema."""
    if isinstance(error, ValidationError):
        text = explain_schema_error(error)
    else:
        said: list[str] = []
        cause: BaseException | None = error
        while cause is not None:
            words = explain_schema_error(cause) if isinstance(cause, ValidationError) else str(cause)
            if words not in said:
                said.append(words or type(cause).__name__)
            cause = cause.__cause__
        text = ": ".join(one.strip().removesuffix(".") if one is not said[-1] else one for one in said)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def infinite_channel(sequence: Sequence[Any]) -> str | None:
    """Return the name of the first channel of a built sequence with a sample that is not finite."""
    for name, samples in sample(sequence).channel_samples.items():
        if not all(np.isfinite(part.as_array(detach=True)).all() for part in (samples.amp, samples.det, samples.phase)):
            return name
    return None


def infinite_number(document: Any, *, infinity: bool = False) -> str | None:
    """Return the place and value of the first number that is not finite, such as ``register[0].x is nan``.

    infinity: whether an infinite number may stand there, so that only NaN is found.
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


def _value(name: str, size: int, whole: bool, variables: dict[str, Any]) -> Any:
    """Return the value of a declared variable: a number, or a list of as many as it declares."""
    field = f"variables.{name}"
    wanted = "a number" if size == 1 else f"a list of {size} numbers"
    if name not in variables:
        raise Refusal(Fault("invalid", f"is missing: the sequence needs {wanted} for {name}", field))
    given = variables[name]
    numbers = given if isinstance(given, list | tuple) else [given]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise Refusal(Fault("invalid", f"must be {wanted}, not {brief(ValueError(repr(given)))}", field))
        if whole and number != int(number):
            raise Refusal(Fault("invalid", f"must be whole, not {number}", field))
    if len(numbers) != size:
        raise Refusal(Fault("invalid", f"has {len(numbers)} values, the sequence declares {size}", field))
    return given


def _qubits(sequence: Sequence[Any], variables: dict[str, Any]) -> dict[str, int]:
    """Return where the qubits of a mappable register go: qubit id → trap id."""
    field = "variables.qubits"
    qubits = variables.get("qubits")
    if qubits is None:
        raise Refusal(Fault("invalid", "is missing: the register is mappable and needs qubit id → trap id", field))
    if not isinstance(qubits, dict) or not qubits or not all(type(trap) is int for trap in qubits.values()):
        raise Refusal(Fault("invalid", "must map qubit ids to trap ids (whole numbers)", field))
    register = sequence.get_register(include_mappable=True)
    if not isinstance(register, MappableRegister):
        raise TypeError(f"a mappable register is a {type(register).__name__}")
    try:
        register.build_register(qubits)
    except (ValueError, TypeError, IndexError) as error:
        raise Refusal(Fault("user", f"cannot be used: {brief(error)}", field)) from error
    return qubits


def explain_schema_error(error: ValidationError) -> str:
    """Return the place and the problem: ``operations[0].op: 'teleport' is not one of 'target', 'delay', …``.

    Pulser's schemas are alternatives within alternatives (``anyOf``): the library's own message then quotes the whole
    document. Here the alternative that the document was most likely meant to be is followed down to its error.
    """
    while error.context:
        branches = _branches(error)
        chosen = min(branches, key=_distance)
        if words := _choices(branches):
            return f"{_place(chosen[0])}{_mismatch(chosen[0].instance, words)}"
        error = min(chosen, key=lambda one: -len(one.absolute_path))
    return f"{_place(error)}{_problem(error)}"


def _branches(error: ValidationError) -> list[list[ValidationError]]:
    """Return the errors of each alternative that failed; those that tell alternatives apart first."""
    found: dict[object, list[ValidationError]] = defaultdict(list)
    for one in error.context or ():
        found[one.schema_path[0]].append(one)
    return [sorted(errors, key=lambda one: not _is_tag(one)) for errors in found.values()]


def _is_tag(error: ValidationError) -> bool:
    return error.validator in {"const", "enum"}


def _distance(errors: list[ValidationError]) -> tuple[bool, bool, int]:
    """Return how far the document is from this alternative."""
    at = len(errors[0].parent.absolute_path) if errors[0].parent is not None else 0
    return (
        any(_is_tag(one) and len(one.absolute_path) <= at + 1 for one in errors),
        any(one.validator == "type" and len(one.absolute_path) == at for one in errors),
        len(errors),
    )


def _choices(branches: list[list[ValidationError]]) -> list[object]:
    """Return the values that would be right, where all alternatives want another one at the same place."""
    tags = [next((one for one in errors if _is_tag(one)), None) for errors in branches]
    if len({tuple(tag.absolute_path) if tag is not None else None for tag in tags}) != 1 or tags[0] is None:
        return []
    return [word for tag in tags if tag is not None for word in _wanted(tag)]


def _wanted(tag: ValidationError) -> list[object]:
    value: Any = tag.validator_value
    return list(value) if tag.validator == "enum" else [value]


def _problem(error: ValidationError) -> str:
    match error.validator:
        case "const" | "enum":
            return _mismatch(error.instance, _wanted(error))
        case "type":
            wanted: Any = error.validator_value
            kinds = wanted if isinstance(wanted, str) else " or ".join(wanted)
            return f"{_short(repr(error.instance))} is not of type {kinds}"
        case _:
            return str(error.message)


def _place(error: ValidationError) -> str:
    text = ""
    for step in error.absolute_path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return f"{text.removeprefix('.')}: " if text else ""


def _mismatch(value: object, wanted: Iterable[object]) -> str:
    words = list(dict.fromkeys(map(repr, wanted)))
    shown = ", ".join([*words[:_CHOICES_SHOWN], *(["…"] if len(words) > _CHOICES_SHOWN else [])])
    return f"{_short(repr(value))} is not {'one of ' if len(words) > 1 else ''}{shown}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"
