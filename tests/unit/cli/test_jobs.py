"""Jobs from flags and JSON lines."""

from __future__ import annotations

import io
from typing import Any

import click
import pytest

from tweezer.cli.jobs import read_jobs
from tweezer.model.errors import InvalidInput


@pytest.mark.parametrize(
    ("flag", "job"),
    [
        ("runs=100", {"runs": 100}),
        ("runs=100,omega=5.2", {"runs": 100, "variables": {"omega": 5.2}}),
        ("omega=[1,2.5], runs=3, seed=7", {"runs": 3, "seed": 7, "variables": {"omega": [1, 2.5]}}),
        ('runs=3,qubits={"q0": 1, "q1": 4}', {"runs": 3, "variables": {"qubits": {"q0": 1, "q1": 4}}}),
        ("a=-.5,b=1e3", {"variables": {"a": -0.5, "b": 1000.0}}),
    ],
)
def test_a_flag_is_a_job(flag: str, job: dict[str, Any]) -> None:
    assert read_jobs([flag], None, [], None) == [job]


def test_runs_and_variables_alone_are_one_job() -> None:
    assert read_jobs([], 100, ["omega=5", "t=[1,2]"], None) == [{"runs": 100, "variables": {"omega": 5, "t": [1, 2]}}]


def test_runs_and_variables_complete_each_job() -> None:
    lines = io.StringIO('{"runs": 7}\n{"variables": {"omega": 2}}\n')
    assert read_jobs(["omega=1"], 100, ["omega=5", "t=3"], lines) == [
        {"runs": 100, "variables": {"omega": 1, "t": 3}},
        {"runs": 7, "variables": {"omega": 5, "t": 3}},
        {"runs": 100, "variables": {"omega": 2, "t": 3}},
    ]


def test_a_variable_that_is_given_twice_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="x is given twice"):
        read_jobs([], 1, ["x=1", " x =2"], None)
    with pytest.raises(click.BadParameter, match='has the key "q0" twice'):
        read_jobs([], 1, ['qubits={"q0": 1, "q0": 2}'], None)
    with pytest.raises(click.BadParameter, match="gives runs twice"):
        read_jobs(["runs=1,runs=2"], 1, [], None)


@pytest.mark.parametrize(
    "line", ['{"runs": 1, "runs": 2}', '{"variables": {"x": 1, "x": 2}}', '{"a\\u001b": 1, "a\\u001b": 2}']
)
def test_a_key_that_a_line_has_twice_is_refused(line: str) -> None:
    with pytest.raises(InvalidInput, match=r"line 2: has the key \".*\" twice$") as raised:
        read_jobs([], None, [], io.StringIO(f'{{"runs": 7}}\n{line}\n'))
    assert raised.value.message.isprintable()


def test_a_line_that_nests_too_deeply_is_refused() -> None:
    with pytest.raises(InvalidInput, match="line 1: is not valid JSON"):
        read_jobs([], None, [], io.StringIO('{"a":' * 100_000))


def test_no_arguments_mean_no_job() -> None:
    assert read_jobs([], None, [], None) == []


def test_variables_of_a_line_are_checked_later() -> None:
    assert read_jobs([], None, ["omega=5"], io.StringIO('{"variables": 3}\n')) == [{"variables": 3}]
