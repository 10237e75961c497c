"""Expressions of literals that would block a lane are refused before Pulser reads them, and no others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support.costs import cpu_time_below

from tweezer.model.errors import InvalidInput
from tweezer.model.expressions import MAX_DEPTH, check_expressions
from tweezer.model.sequence import read_sequence

HUGE = 10**300


def binary(name: str, lhs: Any, rhs: Any) -> dict[str, Any]:
    return {"expression": name, "lhs": lhs, "rhs": rhs}


def unary(name: str, lhs: Any) -> dict[str, Any]:
    return {"expression": name, "lhs": lhs}


def operations(value: Any) -> bytes:
    return json.dumps([{"op": "pulse", "amplitude": {"kind": "constant", "value": value}}]).encode()


def nested(depth: int) -> Any:
    value: Any = {"variable": "t"}
    for _ in range(depth):
        value = binary("add", value, 1)
    return value


@pytest.mark.parametrize(
    "value",
    [
        binary("pow", 10, 100_000_000),
        binary("pow", 10, 10**30),
        binary("pow", -2, 2000),
        binary("pow", unary("abs", 10), unary("neg", -100_000_000)),
        binary("pow", binary("pow", 10, 10), binary("pow", 10, 8)),
        binary("pow", unary("floor", 10), unary("ceil", 10**8)),
        binary("mul", binary("mul", 10**8, 10**200), binary("pow", 10, 150)),
        binary("mul", [1, 2], 1_000_000_000),
        binary("mul", 1_000_000_000, binary("add", [1], [2])),
        binary("index", {"variable": "t"}, binary("pow", 10, 100_000_000)),
        nested(MAX_DEPTH + 1),
    ],
)
def test_an_expression_that_explodes_is_refused_with_its_place(value: Any) -> None:
    place = r"^sequence: operations\[0\]\.amplitude\.value: .*;"
    with cpu_time_below(1), pytest.raises(InvalidInput, match=place) as refusal:
        check_expressions(operations(value))
    assert refusal.value.field == "sequence"


def test_a_key_that_is_written_with_escapes_is_recognised() -> None:
    text = operations(binary("pow", 10, 100_000_000)).replace(b'"expression"', rb'"\u0065xpression"')
    with pytest.raises(InvalidInput, match="a power of whole numbers"):
        check_expressions(text)


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        binary("pow", 2, 10),
        binary("pow", 2, -5),
        binary("pow", 10, -100_000_000),
        binary("pow", 2.0, 100_000_000),
        binary("pow", -8, 0.5),
        binary("pow", 1, 10**300),
        binary("div", 1, 0),
        binary("mod", 7, 0),
        binary("mul", HUGE, 10**8),
        binary("mul", 1e300, 1e300),
        binary("pow", {"variable": "t"}, 100_000_000),
        binary("mul", binary("index", {"variable": "t"}, 0), 1000),
        binary("add", [1, 2], {"variable": "t"}),
        unary("exp", 100_000),
        unary("sqrt", binary("sub", 3, 4)),
        nested(MAX_DEPTH - 1),
        {"variable": "t"},
        {"expression": ["pow"], "lhs": None},
    ],
)
def test_other_expressions_are_left_to_pulser(value: Any) -> None:
    check_expressions(operations(value))


def test_a_sequence_that_would_block_a_lane_for_a_minute_is_refused() -> None:
    sequence = {
        "version": "1",
        "name": "pulser-exported",
        "register": [{"name": "q0", "x": 0.0, "y": 0.0}],
        "channels": {"g": "rydberg_global"},
        "variables": {},
        "operations": json.loads(operations(binary("pow", 10, 100_000_000))),
        "measurement": None,
        "device": {"name": "MockDevice"},
    }
    with pytest.raises(InvalidInput, match=r"operations\[0\]\.amplitude\.value: a power of whole numbers"):
        read_sequence(json.dumps(sequence))
