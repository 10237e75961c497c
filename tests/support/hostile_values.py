"""Values that every entry point must survive: each is rejected with the name of its field, or kept unchanged."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

MILLION = 1_000_000
DEPTH = 10_000

NUL, ESCAPE, REVERSED, HALF = "a\0b", "a\x1b[31mb", "a\u202eb", "a\ud800b"
"""U+202E reverses what follows it and is Unicode text; half of a surrogate pair is not."""
CONTROLS = (NUL, ESCAPE, HALF)
"""Texts that must be rejected everywhere."""


def nested(depth: int = DEPTH) -> list[Any]:
    """Return a list in a list in a list."""
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


TEXTS = {
    "NUL": NUL,
    "ESC": ESCAPE,
    "U+202E": REVERSED,
    "half a surrogate pair": HALF,
    "a million characters": "a" * MILLION,
    "nothing": "",
}
NUMBERS = {"NaN": math.nan, "1e400": math.inf, "-1e400": -math.inf}
TYPES: dict[str, Any] = {
    "null": None,
    "a flag": True,
    "a number": -7,
    "a fraction": 0.25,
    "a list": [],
    "an object": {},
}
"""A value of each JSON type: one of the types is right, the others are wrong."""
ELEMENTS, NESTED = [0] * MILLION, nested()
LARGE = {"a million elements": ELEMENTS, "a depth of 10,000": NESTED}

_PLACE = "the hostile value goes here"


def json_with(document: Any, path: tuple[str | int, ...], value: Any) -> bytes:
    """Return the document as JSON with this value, which may be invalid JSON, at this path."""
    text = json.dumps(replaced(document, path, _PLACE))
    return text.replace(f'"{_PLACE}"', _written(value), 1).encode()


def _written(value: Any) -> str:
    if value is NESTED:
        return "[" * (DEPTH + 1) + "]" * (DEPTH + 1)  # json.dumps would recurse
    if value is ELEMENTS:
        return f"[0{',0' * (MILLION - 1)}]"
    return json.dumps(value).replace("Infinity", "1e400")


def replaced(document: Any, path: Sequence[str | int], value: Any) -> Any:
    """Return the document with this value at this path."""
    if not path:
        return value
    first, *rest = path
    if isinstance(first, int):
        items = list(document or ())
        return [*items[:first], replaced(items[first] if items else None, rest, value), *items[first + 1 :]]
    return {**(document or {}), first: replaced((document or {}).get(first), rest, value)}


# Wrong arguments for Python functions.

NO_TEXT: list[Any] = [7, True, math.nan, b"text", ["text"], object(), *CONTROLS, "a" * MILLION]
NO_TEXT_AT_ALL: list[Any] = [*NO_TEXT, ""]
NO_LIST: list[Any] = [None, 7, math.nan, "abc", b"abc", {"a": 1}, object()]
NO_FLAG: list[Any] = [None, 0, 1, math.nan, "no", "True", []]
NO_SECONDS: list[Any] = [math.nan, math.inf, "3", True, [1.0], object()]
NO_TIME: list[Any] = [
    7,
    math.nan,
    "2027-01-31T08:00",
    datetime(2030, 1, 1),  # noqa: DTZ001
    date(2030, 1, 1),
    datetime.max.replace(tzinfo=UTC),
]
NO_ID: list[Any] = [None, 7, "", "abc", b"abc", ["abc"], object(), *CONTROLS, "a" * MILLION]
