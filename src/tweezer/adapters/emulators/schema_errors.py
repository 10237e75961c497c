"""Say what is wrong with a document that misses a JSON Schema: the place and the problem, in one sentence.

Pulser's schemas are alternatives within alternatives (``anyOf``): the library's own message then quotes the whole
document. Here the alternative that the document was most likely meant to be is followed down to its error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from jsonschema import ValidationError

_CHOICES_SHOWN = 12


def explain(error: ValidationError) -> str:
    """Return ``operations[0].op: 'teleport' is not one of 'target', 'delay', …``."""
    while error.context:
        branches = _branches(error)
        chosen = min(branches, key=_distance)
        if words := _choices(branches):
            return f"{_place(chosen[0])}{_mismatch(chosen[0].instance, words)}"
        error = min(chosen, key=lambda one: -len(one.absolute_path))
    return f"{_place(error)}{_problem(error)}"


def _branches(error: ValidationError) -> list[list[ValidationError]]:
    """The errors of each alternative that failed; those that tell alternatives apart first."""
    found: dict[object, list[ValidationError]] = defaultdict(list)
    for one in error.context or ():
        found[one.schema_path[0]].append(one)
    return [sorted(errors, key=lambda one: not _is_tag(one)) for errors in found.values()]


def _is_tag(error: ValidationError) -> bool:
    return error.validator in {"const", "enum"}


def _distance(errors: list[ValidationError]) -> tuple[bool, bool, int]:
    """How far the document is from this alternative."""
    at = len(errors[0].parent.absolute_path) if errors[0].parent is not None else 0
    return (
        any(_is_tag(one) and len(one.absolute_path) <= at + 1 for one in errors),
        any(one.validator == "type" and len(one.absolute_path) == at for one in errors),
        len(errors),
    )


def _choices(branches: list[list[ValidationError]]) -> list[object]:
    """The values that would be right, where all alternatives want another one at the same place."""
    tags = [next((one for one in errors if _is_tag(one)), None) for errors in branches]
    if len({tuple(tag.absolute_path) if tag is not None else None for tag in tags}) != 1 or tags[0] is None:
        return []
    words: list[object] = []
    for tag in tags:
        assert tag is not None
        words += _wanted(tag)
    return words


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
