"""Limits on the expressions of a sequence, checked before Pulser evaluates them.

Pulser evaluates an expression of literals with Python's own numbers while it reads a sequence: ``10 ** 10 ** 8`` takes
a minute, and a list times a number repeats the list that many times. This module evaluates such expressions with a
limit on each step. Expressions of variables are not checked: they are evaluated with numpy's fixed-size numbers when
the sequence is built.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import msgspec

from tweezer.model.errors import InvalidInput

MAX_DEPTH = 250
"""Maximum nesting of expressions; Pulser reads each level on Python's stack."""

MAX_BITS = 1024
"""Maximum size of a whole number in bits; the largest float is below 2**1024."""

_SIMPLE: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "truediv": operator.truediv,
    "mod": operator.mod,
    "pow": operator.pow,
}
_WHOLE: dict[str, Callable[[Any], Any]] = {"neg": operator.neg, "abs": abs, "ceil": operator.pos, "floor": operator.pos}
"""Functions whose result is not larger than their argument; a whole number stays one."""

_Folded = int | float | list[Any] | None
"""A literal or the value of an expression of literals; None: unknown, or of a fixed size."""


def check_expressions(operations: bytes) -> None:
    """Check the operations of a serialised sequence, given as JSON.

    Raises InvalidInput("sequence", …) with the place of an expression that is too large to evaluate.
    """
    if b'"expression"' not in operations and b"\\u" not in operations:  # a key may be written with escapes
        return
    waiting: list[tuple[str, Any]] = [("operations", msgspec.json.decode(operations))]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, list):
            waiting.extend((f"{place}[{at}]", item) for at, item in enumerate(value) if isinstance(item, (dict, list)))
        elif "expression" in value:
            try:
                _fold(value, 1)
            except _TooLarge as error:
                raise InvalidInput("sequence", f"{place}: {error}") from None
        else:
            waiting.extend((f"{place}.{key}", it) for key, it in value.items() if isinstance(it, (dict, list)))


class _TooLarge(Exception):
    """An expression is too large to evaluate; the message explains why and what to write instead."""


def _fold(node: Any, depth: int) -> _Folded:
    if depth > MAX_DEPTH:
        raise _TooLarge(f"expressions are nested more than {MAX_DEPTH} levels deep; compute a part in advance")
    if isinstance(node, int) and node.bit_length() > MAX_BITS:
        raise _TooLarge("a whole number has more than 308 digits; write it as a float, such as 1e300")
    if isinstance(node, (int, float, list)):
        return node
    if not isinstance(node, dict) or "expression" not in node:
        return None
    name = node["expression"]
    left = _fold(node.get("lhs"), depth + 1)
    right = _fold(node.get("rhs"), depth + 1)
    if "rhs" not in node:
        function = _WHOLE.get(name) if isinstance(name, str) else None
        return function(left) if function is not None and isinstance(left, (int, float)) else None
    return _compute(name, left, right)


def _compute(name: Any, left: _Folded, right: _Folded) -> _Folded:
    if left is None or right is None or not isinstance(name, str) or name not in _SIMPLE:
        return None
    if isinstance(left, list) or isinstance(right, list):
        if name == "mul":
            raise _TooLarge("a list is multiplied by a literal; write out the resulting list")
        return left if isinstance(left, list) else right
    if name == "pow" and isinstance(left, int) and isinstance(right, int) and _has_too_many_bits(left, right):
        raise _TooLarge("a power of whole numbers has more than 308 digits; use a float within Pulser's range")
    try:
        value = _SIMPLE[name](left, right)
    except (ArithmeticError, ValueError):
        return None  # Pulser fails too, and immediately
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise _TooLarge("a whole number has more than 308 digits; use a float within Pulser's range")
    return value if isinstance(value, (int, float)) else None


def _has_too_many_bits(base: int, exponent: int) -> bool:
    return abs(base) > 1 and exponent > 0 and (exponent > MAX_BITS or exponent * math.log2(abs(base)) > MAX_BITS)
