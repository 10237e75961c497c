"""Bounds what the expressions of a sequence may come to before Pulser computes them.

Pulser computes an expression of literals with Python's own numbers as it reads a sequence: ``10 ** 10 ** 8`` takes a
minute, and a list times a number is that many lists. Here the same is computed with a bound on each step. What depends
on a variable is computed with numpy's numbers of fixed size when the sequence is built, and is not looked into.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import msgspec

from tweezer.model.errors import InvalidInput

MAX_DEPTH = 250
"""How deep expressions may be nested; Pulser reads each level on Python's stack."""

MAX_BITS = 1024
"""How large a whole number may be: the largest float is below 2 to the power of this."""

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
"""What gives a whole number of a whole number, or what is as large."""

_Folded = int | float | list[Any] | None
"""A literal, or what an expression of literals comes to; None: not known, or of a fixed size."""


def check_expressions(operations: bytes) -> None:
    """Check the operations of a serialised sequence, which are JSON.

    Raises InvalidInput("sequence", …) for an expression that is too large to compute, with its place.
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
    """An expression is not computed; the text says why, and what to write instead."""


def _fold(node: Any, depth: int) -> _Folded:
    if depth > MAX_DEPTH:
        raise _TooLarge(f"expressions are nested more than {MAX_DEPTH} levels deep; compute a part of it beforehand")
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
            raise _TooLarge("a list is multiplied by a literal; write the list that this is to be")
        return left if isinstance(left, list) else right
    if name == "pow" and isinstance(left, int) and isinstance(right, int) and _has_too_many_bits(left, right):
        raise _TooLarge("a power of whole numbers has more than 308 digits; write a float that Pulser can hold")
    try:
        value = _SIMPLE[name](left, right)
    except (ArithmeticError, ValueError):
        return None  # it fails in Pulser too, and at once
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise _TooLarge("a whole number comes to more than 308 digits; write a float that Pulser can hold")
    return value if isinstance(value, (int, float)) else None


def _has_too_many_bits(base: int, exponent: int) -> bool:
    return abs(base) > 1 and exponent > 0 and (exponent > MAX_BITS or exponent * math.log2(abs(base)) > MAX_BITS)
