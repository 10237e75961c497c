"""The options that describe jobs on the command line: flags and JSON lines."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

import click

from tweezer.model.errors import InvalidInput

_OF_THE_JOB = ("runs", "seed")

_OPTIONS = (
    click.option("--job", "flags", multiple=True, metavar="runs=N,NAME=VALUE,…", help="A job; may be repeated."),
    click.option("--runs", type=int, help="Number of runs of each job that does not set it."),
    click.option(
        "--var",
        "variables",
        multiple=True,
        metavar="NAME=VALUE",
        help="Value of a variable in each job that does not set it; write a list as [1,2], in quotes for zsh.",
    ),
    click.option(
        "--jobs",
        "lines",
        type=click.File("r", encoding="utf-8-sig"),
        metavar="FILE",
        help='JSON lines, one job each: {"runs": 100, "variables": {"omega": 5.2}, "seed": 7}; - reads stdin.',
    ),
)


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options ``flags``, ``runs``, ``variables`` and ``lines``, for :func:`read_jobs`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_jobs(
    flags: Iterable[str], runs: int | None, variables: Iterable[str], lines: TextIO | None
) -> list[dict[str, Any]]:
    """Return the jobs that the options describe; ``runs`` and ``variables`` alone make one job.

    Raises UsageError for a flag that cannot be read, InvalidInput for a line of a file.
    """
    common: dict[str, Any] = {}
    for text in variables:
        name, value = _assignment(text, "--var")
        if name in common:
            raise click.BadParameter(f"{name} is given twice; give it once", param_hint="--var")
        common[name] = value
    jobs = [_flag(text) for text in flags]
    if lines is not None:
        jobs += _lines(lines)
    if not jobs and (common or runs is not None):
        jobs = [{}]
    for job in jobs:
        if runs is not None:
            job.setdefault("runs", runs)
        if common and isinstance(job.get("variables", {}), dict):
            job["variables"] = common | job.get("variables", {})
    return jobs


def _flag(text: str) -> dict[str, Any]:
    job: dict[str, Any] = {}
    variables: dict[str, Any] = {}
    for part in _parts(text):
        name, value = _assignment(part, "--job")
        into = job if name in _OF_THE_JOB else variables
        if name in into:
            raise click.BadParameter(f"{text!r} gives {name} twice; give it once", param_hint="--job")
        into[name] = value
    if variables:
        job["variables"] = variables
    return job


def _parts(text: str) -> Iterator[str]:
    """Split at commas, but not within brackets."""
    depth, begin = 0, 0
    for at, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            yield text[begin:at]
            begin = at + 1
    yield text[begin:]


def _assignment(text: str, option: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise click.BadParameter(f"{text!r} must have the form name=value", param_hint=option)
    return name.strip(), _value(value.strip(), text, option)


class _Repeated(Exception):
    """A JSON object has this key more than once."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the JSON object. Repeated keys are rejected, as over HTTP."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Repeated(json.dumps(key))
        found[key] = value
    return found


def _value(value: str, text: str, option: str) -> Any:
    try:
        return json.loads(value, object_pairs_hook=_object)
    except _Repeated as error:
        raise click.BadParameter(f"{text!r} has the key {error} twice", param_hint=option) from None
    except (ValueError, RecursionError):
        with contextlib.suppress(ValueError):
            return float(value)
    raise click.BadParameter(f"{value!r} in {text!r} must be a number or a list such as [1,2]", param_hint=option)


def _lines(file: TextIO) -> Iterator[dict[str, Any]]:
    name = getattr(file, "name", "the file")
    try:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                job = json.loads(line.strip(), object_pairs_hook=_object)
            except _Repeated as error:
                raise InvalidInput(f"{name}, line {number}", f"has the key {error} twice") from None
            except (ValueError, RecursionError) as error:
                raise InvalidInput(
                    f"{name}, line {number}", f"is not valid JSON: {getattr(error, 'msg', error)}"
                ) from error
            if not isinstance(job, dict):
                raise InvalidInput(f"{name}, line {number}", 'must be an object such as {"runs": 100}')
            yield job
    except UnicodeDecodeError as error:
        raise InvalidInput(name, f"is not valid UTF-8 text: {error}") from error
