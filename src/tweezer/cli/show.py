"""Output for a terminal: bars, histograms, plots and tables, as plain ASCII where colours or blocks do not work."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import click

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = " ▁▂▃▄▅▆▇█"
_ASCII = str.maketrans(
    dict(zip("▏▎▍▌▋▊▉█", "   -####", strict=True))
    | dict(zip("▁▂▃▄▅▆▇", "_..-=##", strict=True))
    | {"░": ".", "│": "|", "┤": "+", "└": "+", "─": "-", "┬": "+", "·": "-", "…": "...", "●": "@", "○": "o"}
    | {"–": "-", "−": "-", "×": "x", "µ": "u", "✓": "ok"}
)

MAX_WIDTH = 100

_ESC = "".join(chr(0xF0000 + number % 0xFFFE) for number in memoryview(os.urandom(16)).cast("I"))
"""Placeholder for the ESC of a style until it is printed. It is random, so that no text from outside contains it.
(Importing ``secrets`` would take a twentieth of the time of ``tweezer --help``.)"""


def width() -> int:
    """Return the number of columns to draw in."""
    return min(shutil.get_terminal_size((80, 24)).columns, MAX_WIDTH)


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print for people: escape control characters, and replace characters that the terminal's encoding lacks."""
    stream = sys.stderr if err else sys.stdout
    shown = "\x1b".join(escaped(part, lines=True) for part in text.split(_ESC))
    click.echo(plain(shown, stream.encoding), err=err, nl=nl)


def escaped(text: str, *, lines: bool = False) -> str:
    """Escape what a terminal would execute instead of showing: ESC, OSC, U+202E, …

    Names, tags and messages come from users and machines. lines: keep line ends and tabs.
    """
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        it if it.isprintable() or it in kept else it.encode("unicode_escape", "surrogatepass").decode() for it in text
    )


def style(text: str, *, fg: str | None = None, bold: bool | None = None, dim: bool | None = None) -> str:
    """Style a text as click does, for :func:`echo`, which escapes the text itself."""
    before, after = click.style("|", fg=fg, bold=bold, dim=dim).split("|")
    return f"{before}{{}}{after}".replace("\x1b", _ESC).format(text)


def unstyle(text: str) -> str:
    """Return the text without its styles."""
    return click.unstyle(text.replace(_ESC, "\x1b"))


def confirm(question: str) -> None:
    """Ask for confirmation, and end the command unless the answer is yes."""
    click.confirm(escaped(question), abort=True)


def plain(text: str, encoding: str | None) -> str:
    """Replace the characters that the encoding lacks."""
    try:
        text.encode(encoding or "ascii")
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding or "ascii", "replace").decode(encoding or "ascii")
    except LookupError:
        return text.translate(_ASCII)
    return text


def bar(fraction: float, cells: int) -> str:
    """Return a horizontal bar, ``fraction`` of ``cells`` long, in eighths of a cell, without padding."""
    eighths = round(min(max(fraction, 0.0), 1.0) * cells * 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def histogram(
    counter: Mapping[str, int], *, top: int, columns: int, marked: Collection[str] = (), indent: str = "  "
) -> list[str]:
    """Return the most frequent bitstrings, one line each, and one for the rest; ``marked`` ones are coloured."""
    total = sum(counter.values())
    if not total:
        return [f"{indent}no shots"]
    ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    shown, rest = ranked[:top], ranked[top:]
    label = max(len(bits) for bits, _ in shown)
    digits = len(str(shown[0][1]))
    cells = max(columns - len(indent) - label - digits - 13, 8)
    lines = []
    for bits, count in shown:
        line = f"{bar(count / shown[0][1], cells):<{cells}}"
        drawn = style(line, fg="green" if bits in marked else "cyan")
        lines.append(f"{indent}{bits:<{label}}  {drawn}  {count:>{digits}}  {count / total:6.1%}")
    if rest:
        shots = sum(count for _, count in rest)
        others = f"{len(rest)} others" if len(rest) > 1 else "1 other"
        lines.append(style(f"{indent}{others}: {shots} ({shots / total:.1%})", dim=True))
    return lines


def columns_plot(
    values: Sequence[float], *, left: str, right: str, label: str, height: int = 8, cells: int = 2, indent: str = "  "
) -> list[str]:
    """Draw values from 0 to 1 as columns, each ``cells`` wide; ``left`` and ``right`` label the ends of the axis."""
    lines = []
    for row in range(height, 0, -1):
        tick = {height: "1.0 ┤", (height + 2) // 2: "0.5 ┤"}.get(row, "    │")
        cut = [min(max(value * height - (row - 1), 0.0), 1.0) for value in values]
        drawn = "".join(_LEVELS[round(part * 8)] * cells for part in cut)
        lines.append(f"{indent}{tick}{style(drawn.rstrip(), fg='green')}")
    axis = len(values) * cells
    between = max(axis - len(left) - len(right), 1)
    lines += [
        f"{indent}0.0 └{'─' * axis}",
        f"{indent}     {left}{label:^{between}}{right}",
    ]
    return lines


def thinned(numbers: Sequence[float], most: int) -> list[float]:
    """Return at most ``most`` of the numbers, evenly chosen."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(at * (len(numbers) - 1) / (most - 1))] for at in range(most)]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a table with aligned columns; numbers are right-aligned."""
    cells = [[escaped(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in [list(header), *cells]) for at in range(len(header))]
    numeric = [all(isinstance(row[at], int | float) for row in rows) and bool(rows) for at in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (
            f"{cell:>{size}}" if right else f"{cell:<{size}}"
            for cell, size, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    return [style(line(list(header)), bold=True), *map(line, cells)]


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a :func:`table`."""
    echo("\n".join(table(header, rows)))


def duration(seconds: float) -> str:
    """Format a duration: ``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 d 4 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            count, rest = divmod(whole, size)
            return f"{count} {unit} {rest // part} {smaller}" if rest // part else f"{count} {unit}"
    return f"{whole} s"


def minute(moment: datetime | None) -> str:
    """Format a time: ``2026-11-22 10:00 UTC``, or a dash for None."""
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def values(variables: Mapping[str, object]) -> str:
    """Format the variables of a job on one line."""
    return " ".join(
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in variables.items()
    )
