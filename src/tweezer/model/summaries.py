"""Short texts about counters, jobs and batches, on one line, for reprs, tables and progress.

They contain neither a serialised sequence nor a secret, and all text from outside is escaped and cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from tweezer.model.arguments import shown

_TEXT_LENGTH = 60
_VALUES_LENGTH = 100
_FEW = 5
_HIDDEN = "…"


def cut(text: str, length: int = _TEXT_LENGTH) -> str:
    """Return the text on one line: escaped where it is not printable, and with an ellipsis if it is too long."""
    short = text if len(text) <= length else f"{text[: length - 1]}…"
    if short.isprintable():
        return short
    return "".join(it if it.isprintable() else it.encode("unicode_escape", "surrogatepass").decode() for it in short)


def cut_middle(text: str, length: int) -> str:
    """Return the text without its middle if it is too long, as for a bitstring of many qubits."""
    if len(text) <= length:
        return cut(text, length)
    half = (length - 1) // 2
    return f"{cut(text[:half], half)}…{cut(text[-half:], half)}"


def rank(counter: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the bitstrings with their shots, the most frequent first, and equal ones in the order of their bits."""
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def describe_counter(counter: Mapping[str, int]) -> str:
    """Return the number of shots and the most frequent bitstring with its share: ``500 shots, 101101 21%``."""
    shots = sum(counter.values())
    if not shots:
        return "0 shots"
    bits, count = min(counter.items(), key=lambda item: (-item[1], item[0]))
    return f"{format_count(shots, 'shot')}, {cut_middle(bits, 32)} {count / shots:.0%}"


def describe_values(variables: Mapping[str, object]) -> str:
    """Return the values of a job's variables: ``omega=6.5 phases=[0, 1.5]``."""
    return cut(" ".join(f"{name}={_value(value)}" for name, value in variables.items()), _VALUES_LENGTH)


def _value(value: object) -> str:
    match value:
        case float():
            return f"{value:.6g}"
        case list() | tuple():
            return f"[{', '.join(map(_value, value[:_VALUES_LENGTH]))}]"
        case _:
            try:
                return str(value)[: 2 * _VALUES_LENGTH]
            except ValueError:  # Python does not print integers of more than a few thousand digits
                return shown(value)


def format_duration(seconds: float) -> str:
    """Format a duration: ``40 ms``, ``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 d 4 h``."""
    if 0 < seconds < 0.0995:
        return f"{max(round(seconds * 1000), 1)} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            count, rest = divmod(whole, size)
            return f"{count} {unit} {rest // part} {smaller}" if rest // part else f"{count} {unit}"
    return f"{whole} s"


def format_count(number: int, noun: str) -> str:
    """Return ``1 job`` or ``2 jobs``; ``batch`` becomes ``batches``."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('ch') else 's'}"


def describe_job(index: int, status: str, variables: Mapping[str, object], *details: str) -> str:
    """Return a job: ``<job 3 DONE omega=6.5, 500 shots, 101101 21%>``."""
    return f"<job {index} {status} {', '.join(filter(None, (describe_values(variables), *details)))}".rstrip() + ">"


def describe_counts(counts: Mapping[Any, int]) -> str:
    """Return the jobs of a batch by status: ``4 jobs: 3 DONE, 1 ERROR``."""
    total = sum(counts.values())
    by = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{format_count(total, 'job')}{f': {by}' if by else ''}"


def abridge(record: msgspec.Struct, name: str, *, hidden: tuple[str, ...] = ()) -> str:
    """Return a record as the call that makes it, with the fields that were set, long values cut and some hidden."""
    fields = record.__struct_fields__
    defaults = dict(zip(reversed(fields), reversed(record.__struct_defaults__), strict=False))
    given = [
        f"{field}={_HIDDEN if field in hidden else _literal(value)}"
        for field in fields
        if not _is_default(value := getattr(record, field), defaults.get(field, msgspec.NODEFAULT))
    ]
    return f"{name}({', '.join(given)})"


def _is_default(value: object, default: Any) -> bool:
    made = default.factory() if hasattr(default, "factory") else default  # msgspec wraps mutable defaults
    return type(value) is type(made) and bool(value == made)  # arrays are not compared


def _literal(value: object) -> str:
    match value:
        case StrEnum():
            return value.value
        case str():
            return repr(cut(value))
        case dict():
            items = itertools.islice(value.items(), _VALUES_LENGTH)
            return cut("{" + ", ".join(f"{key!r}: {_value(item)}" for key, item in items) + "}", _VALUES_LENGTH)
        case list() | tuple():
            return cut(_value(value[:_FEW]), _VALUES_LENGTH)
        case _:
            return cut(_value(value), _VALUES_LENGTH)
