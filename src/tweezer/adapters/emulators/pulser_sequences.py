"""From a client's text and values to a sequence that can run."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import jsonschema
import numpy as np
from pulser import Sequence
from pulser.register.mappable_reg import MappableRegister
from pulser.sampler import sample

from tweezer.adapters.emulators.schema_errors import explain
from tweezer.adapters.lane.backend import Refusal
from tweezer.model.messages import Fault

FIELD = "sequence"
_LONGEST_TEXT = 240


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
        """The sequence with these values; names it does not declare are ignored, as Pulser does.

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


def brief(error: BaseException) -> str:
    """Return what a library says, with its causes, short enough for a sentence; the place first for a JSON Schema."""
    if isinstance(error, jsonschema.ValidationError):
        text = explain(error)
    else:
        said: list[str] = []
        cause: BaseException | None = error
        while cause is not None:
            words = explain(cause) if isinstance(cause, jsonschema.ValidationError) else str(cause)
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
    """The value of a declared variable: a number, or a list of as many as it declares."""
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
    """Where the qubits of a mappable register go: qubit id → trap id."""
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
