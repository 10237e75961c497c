"""What a check found, and how it is told."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import click
import msgspec

from tweezer.cli import show


class Level(StrEnum):
    """``FAIL``: a promise of the queue does not hold, or work stands still. ``WARN``: look at it."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


class Finding(msgspec.Struct, frozen=True):
    """One thing that was checked: what was found and what it means, and what to change if anything."""

    name: str
    level: Level
    says: str
    change: str | None = None


_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


def tell(context: click.Context, findings: Sequence[Finding], *, as_json: bool) -> None:
    """Prints them, and ends the command with exit code 1 when something FAILs."""
    if as_json:
        click.echo(msgspec.json.encode(findings))
    else:
        for finding in findings:
            show.echo("\n".join(_lines(finding, show.width())))
    if any(finding.level is Level.FAIL for finding in findings):
        context.exit(1)


def _lines(finding: Finding, columns: int) -> list[str]:
    label = show.style(f"{finding.level.value:<4}", fg=_COLOURS[finding.level], bold=finding.level is not Level.OK)
    indent = " " * 6
    says = click.wrap_text(f"{finding.name}: {finding.says}", columns, initial_indent=indent, subsequent_indent=indent)
    lines = [f"{label}  {show.style(finding.name, bold=True)}{says[len(indent + finding.name) :]}"]
    if finding.change:
        lines.append(
            click.wrap_text(f"→ {finding.change}", columns, initial_indent=indent, subsequent_indent=indent + "  ")
        )
    return lines
