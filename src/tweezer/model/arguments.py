"""Type checks for arguments of the producers' API. Each raises InvalidInput with the argument's name."""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from tweezer.model.errors import InvalidInput

NAME_LENGTH = 100
"""A longer name is cut in error messages."""

_MAPS_AND_TEXTS = (str, bytes, bytearray, memoryview, dict)


def check_path(field: str, value: object) -> str:
    """Return the path as a string. Raises InvalidInput unless it is a path and not empty."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidInput(field, f"expected the path of a folder, got {shown(value)}")
    return path


def check_flag(field: str, value: object) -> bool:
    """Return the flag. Raises InvalidInput for anything but True and False, truthy values included."""
    if not isinstance(value, bool):
        raise InvalidInput(field, f"expected True or False, got {shown(value)}")
    return value


def check_seconds(field: str, value: object) -> float:
    """Return the duration. Raises InvalidInput unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidInput(field, f"expected a finite number of seconds, got {shown(value)}")
    return value


def check_list(field: str, value: object, what: str) -> list[Any]:
    """Return the items as a list. Raises InvalidInput for a single item, a string or a dictionary."""
    if isinstance(value, _MAPS_AND_TEXTS) or not isinstance(value, Iterable):
        hint = f"; put a single one in a list: [{shown(value)}]" if isinstance(value, str) else ""
        raise InvalidInput(field, f"expected a list of {what}, got {shown(value)}{hint}")
    return list(value)


def check_indices(field: str, value: object, most: int) -> list[int]:
    """Return job numbers as a list. Raises InvalidInput that names the invalid one."""
    indices = check_list(field, value, "job numbers")
    if len(indices) > most:
        raise InvalidInput(field, f"at most {most} job numbers are allowed (got {len(indices)})")
    for position, index in enumerate(indices):
        if type(index) is not int or not 0 <= index < most:
            raise InvalidInput(
                f"{field}[{position}]", f"expected a whole number from 0 to {most - 1}, got {shown(index)}"
            )
    return indices


def read_secret(field: str, path: Path) -> str:
    """Return the content of a secret file without its line end. Raises InvalidInput for the field or variable."""
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip("\r\n")
    except OSError as error:
        raise InvalidInput(field, f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(field, f"{path} is not valid UTF-8 text") from error
    if not text:
        raise InvalidInput(field, f"{path} is empty")
    return text


def shown(value: object) -> str:
    """Format a value for an error message: short, and without calling the ``repr`` of foreign types."""
    if type(value) is int and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    if value is None or type(value) in (int, float, bool, str):
        return reprlib.repr(value)
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__}" if value else f"an empty {type(value).__name__}"
    return f"a value of type {type(value).__name__}"


def quote_name(name: object) -> str:
    """Return a name as a part of a field's name; quoted and cut when it could be misread."""
    if isinstance(name, str) and name.isprintable() and 0 < len(name) <= NAME_LENGTH:
        return str(name)
    return shown(name)


_PLACE = re.compile(r"(?P<problem>.*?)(?: - at `\$(?P<place>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`")
_PROBLEM_LENGTH = 500


def conversion_error(error: msgspec.ValidationError, root: str) -> InvalidInput:
    """Convert msgspec's error, whose place reads ``$.jobs[3].runs``, into InvalidInput.

    Args:
        error: The error of msgspec.
        root: The field to name where the place is the whole document or an item of a list.
    """
    found = _PLACE.fullmatch(str(error))
    assert found is not None
    place, problem = found["place"] or "", found["problem"].replace("`", "")
    if missing := _MISSING.fullmatch(found["problem"]):
        place, problem = f"{place}.{missing['name']}", "is missing"
    elif unknown := _UNKNOWN.fullmatch(found["problem"]):
        place, problem = f"{place}.{quote_name(unknown['name'])}", "is not a known field"
    field = place.removeprefix(".") if place.startswith(".") else f"{root}{place}"
    problem = problem[:1].lower() + problem[1:]
    return InvalidInput(field, problem if len(problem) <= _PROBLEM_LENGTH else f"{problem[:_PROBLEM_LENGTH]}…")
