"""Checks of single arguments of the producers' API: of the right type, or InvalidInput that names the argument."""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Iterable
from typing import Any

import msgspec

from tweezer.model.errors import InvalidInput

_MAPS_AND_TEXTS = (str, bytes, bytearray, memoryview, dict)


def check_path(field: str, value: object) -> str:
    """Return the path as a text. Raises InvalidInput unless it is a path, and not empty."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidInput(field, f"expects the path of a folder, got {shown(value)}")
    return path


def check_flag(field: str, value: object) -> bool:
    """Return the flag. Raises InvalidInput for anything but True and False, however true it is."""
    if not isinstance(value, bool):
        raise InvalidInput(field, f"expects True or False, got {shown(value)}")
    return value


def check_seconds(field: str, value: object) -> float:
    """Return the duration. Raises InvalidInput unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidInput(field, f"expects a finite number of seconds, got {shown(value)}")
    return value


def check_list(field: str, value: object, what: str) -> list[Any]:
    """Return the items as a list. Raises InvalidInput for a single one, a text, or a dictionary."""
    if isinstance(value, _MAPS_AND_TEXTS) or not isinstance(value, Iterable):
        raise InvalidInput(field, f"expects a list of {what}, got {shown(value)}")
    return list(value)


def check_indices(field: str, value: object, most: int) -> list[int]:
    """Return the numbers of jobs as a list. Raises InvalidInput, naming the one that is wrong."""
    indices = check_list(field, value, "job numbers")
    if len(indices) > most:
        raise InvalidInput(field, f"expects at most {most} job numbers, got {len(indices)}")
    for position, index in enumerate(indices):
        if type(index) is not int or not 0 <= index < most:
            raise InvalidInput(
                f"{field}[{position}]", f"expects a whole number from 0 to {most - 1}, got {shown(index)}"
            )
    return indices


def shown(value: object) -> str:
    """Return a value as an error message shows it: short, and without trusting its ``repr``."""
    if type(value) is int and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    if value is None or type(value) in (int, float, bool, str):
        return reprlib.repr(value)
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__}" if value else f"an empty {type(value).__name__}"
    return f"a value of type {type(value).__name__}"


_PLACE = re.compile(r"(?P<problem>.*?)(?: - at `\$(?P<place>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")
_PROBLEM_LENGTH = 500


def conversion_error(error: msgspec.ValidationError, root: str) -> InvalidInput:
    """Return the error for one of msgspec, which names the place as ``$.jobs[3].runs``.

    ``root`` is the field where the place is no field, but the whole of it, or an item of a list.
    """
    found = _PLACE.fullmatch(str(error))
    assert found is not None
    place, problem = found["place"] or "", found["problem"].replace("`", "")
    if missing := _MISSING.fullmatch(found["problem"]):
        place, problem = f"{place}.{missing['name']}", "is missing"
    field = place.removeprefix(".") if place.startswith(".") else f"{root}{place}"
    problem = problem[:1].lower() + problem[1:]
    return InvalidInput(field, problem if len(problem) <= _PROBLEM_LENGTH else f"{problem[:_PROBLEM_LENGTH]}…")
