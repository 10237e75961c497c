"""Output for a terminal: bars, histograms, plots and tables, as plain ASCII where colours or blocks do not work."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tweezer.model.lifecycle import BatchStatus, JobStatus

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
    if fg is None and bold is None and dim is None:
        return text
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
    from tweezer.model.summaries import rank

    total = sum(counter.values())
    if not total:
        return [f"{indent}no shots"]
    ranked = rank(counter)
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


STATUS_COLOURS: Mapping[str, str | None] = {
    "PENDING": None,
    "RUNNING": "cyan",
    "DONE": "green",
    "ERROR": "red",
    "CANCELED": "yellow",
    "PAUSED": "yellow",
    "TIMED_OUT": "yellow",
}


def status(of: BatchStatus | JobStatus) -> str:
    """Return the word of a status in its colour."""
    return style(of.value, fg=STATUS_COLOURS[of.value])


_STYLED = re.compile(rf"((?:{_ESC}\[[0-9;]*m)*)(.*?)((?:{_ESC}\[[0-9;]*m)*)", re.DOTALL)
_GAP = 2
_PROSE = 10  # cells up to this width are never broken
_WORD = 40  # words up to this length are never broken


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, columns: int | None = None) -> list[str]:
    """Return the lines of a table with aligned columns; numbers are right-aligned, and cells may be styled.

    Where lines would be longer than ``columns`` (by default those of the terminal; no limit in a pipe or a file), long
    cells continue on the next line; if that is not enough, each row becomes a block with a line for each cell.
    """
    limit = columns or _terminal_columns()
    cells = [[_cell(cell) for cell in row] for row in rows]
    numeric = [_is_numeric([row[at] for row in rows]) for at in range(len(header))]
    natural = [max(_width(row[at]) for row in [list(header), *cells]) for at in range(len(header))]
    widths = natural if limit is None else _fit(natural, [list(header), *cells], limit - _GAP * (len(header) - 1))
    if widths is None:
        return _blocks(header, cells, limit)
    lines = [style(_line(header, widths, numeric).rstrip(), bold=True)]
    for row in cells:
        parts = [_wrapped(cell, size) for cell, size in zip(row, widths, strict=True)]
        height = max(map(len, parts), default=1)
        filled = [[*part, *[""] * (height - len(part))] for part in parts]
        lines += (_line([part[at] for part in filled], widths, numeric).rstrip() for at in range(height))
    return lines


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a :func:`table`."""
    echo("\n".join(table(header, rows)))


def fields(rows: Iterable[tuple[str, object]], *, columns: int | None = None) -> list[str]:
    """Return a line for each name and value, without those whose value is empty. Long values continue below.

    Lines of a value are joined with semicolons.
    """
    limit = columns or _terminal_columns()
    shown = [(name, _cell("; ".join(str(value).splitlines()))) for name, value in rows if value]
    label = max((len(name) for name, _ in shown), default=0)
    lines: list[str] = []
    for name, value in shown:
        parts = [value] if limit is None else _wrapped(value, max(limit - label - _GAP, _PROSE))
        heads = [style(f"{name:<{label}}", dim=True), *[" " * label] * (len(parts) - 1)]
        lines += (f"{head}  {part}" for head, part in zip(heads, parts, strict=True))
    return lines


def _terminal_columns() -> int | None:
    """Return the columns of the terminal, or None if the output goes elsewhere (unless COLUMNS is set)."""
    if not os.environ.get("COLUMNS") and not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size((80, 24)).columns


def _is_numeric(cells: Sequence[object]) -> bool:
    """Return whether a column has numbers and otherwise only empty cells."""
    return {type(cell) in (int, float) for cell in cells if cell != ""} == {True}


def _cell(value: object) -> str:
    """Escape a cell, but not its styles."""
    return _ESC.join(map(escaped, str(value).split(_ESC)))


def _width(text: str) -> int:
    """Return the number of columns that a text without line ends takes on a terminal."""
    text = unstyle(text)
    if text.isascii():
        return len(text)
    return sum(1 + (unicodedata.east_asian_width(it) in "WF") for it in text if not unicodedata.combining(it))


def _fit(natural: Sequence[int], rows: Sequence[Sequence[str]], space: int) -> list[int] | None:
    """Narrow the columns in which that breaks the fewest cells until all fit the space; None if they do not."""
    columns = list(zip(*rows, strict=True))
    longest = [max(_width(word) for cell in column for word in cell.split(" ")) for column in columns]
    least = [min(size, max(_PROSE, min(word, _WORD))) for size, word in zip(natural, longest, strict=True)]
    sizes = [sorted(map(_width, column)) for column in columns]
    widths = list(natural)

    def cost(at: int) -> tuple[int, int]:
        return len(sizes[at]) - bisect_right(sizes[at], widths[at] - 1), -widths[at]

    while (excess := sum(widths) - space) > 0:
        narrowed = min((at for at, size in enumerate(widths) if size > least[at]), key=cost, default=None)
        if narrowed is None:
            return None
        below = bisect_left(sizes[narrowed], widths[narrowed])  # down to the next cell, no other one is broken
        next_size = sizes[narrowed][below - 1] if below else 0
        widths[narrowed] = max(widths[narrowed] - excess, least[narrowed], min(next_size, widths[narrowed] - 1))
    return widths


def _wrapped(text: str, columns: int) -> list[str]:
    """Break a cell into lines, each in the style of the cell."""
    size = _width(text)
    if size <= columns:
        return [text]
    before, plain_text, after = _STYLED.fullmatch(text).groups()  # type: ignore[union-attr]  # it matches every text
    characters = max(columns * len(plain_text) // size, 1)  # fewer, if some take two columns
    lines = textwrap.wrap(plain_text, characters, break_on_hyphens=False)
    return [f"{before}{line}{after}" for line in lines]


def _line(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padding = [" " * (size - _width(cell)) for cell, size in zip(row, widths, strict=True)]
    padded = (pad + cell if right else cell + pad for cell, pad, right in zip(row, padding, numeric, strict=True))
    return (" " * _GAP).join(padded)


def _blocks(header: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None) -> list[str]:
    """Return a block of lines for each row, with an empty line between two blocks."""
    blocks = [fields(zip(header, row, strict=True), columns=columns) for row in rows]
    return [line for at, block in enumerate(blocks) for line in ([""] if at else []) + block]


def minute(moment: datetime | None) -> str:
    """Format a time: ``2026-11-22 10:00 UTC``, or a dash for None."""
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def second(moment: datetime) -> str:
    """Format a time in the local time zone: ``2026-11-22 11:00:02 CET``."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %Z}"


def ranges(numbers: Iterable[int], *, most: int = 6) -> str:
    """Format ascending numbers: ``0, 3-7, 9``, with an ellipsis after ``most`` ranges."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    shown = [f"{first}-{last}" if first < last else str(first) for first, last in found[:most]]
    return ", ".join([*shown, "…"] if len(found) > most else shown)
