# ruff: noqa: INP001  # a script beside the pages that it writes, not a package
"""Draw the diagrams and tables of docs/explanation/lifecycle.md from src/tweezer/model/lifecycle.py.

    python docs/draw_lifecycle.py            updates the page and its diagrams
    python docs/draw_lifecycle.py --check    exits with 1 if one of them is out of date

The text between ``<!-- drawn: name -->`` and ``<!-- end -->`` is replaced; the rest is written by hand. The diagrams
are docs/images/lifecycle-jobs.svg and lifecycle-batches.svg. tests/unit/test_docs.py checks that all are up to date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from drawing import update

from tweezer.model.lifecycle import (
    BATCH_TABLE,
    JOB_TABLE,
    TERMINAL_BATCH,
    TERMINAL_JOB,
    BatchEvent,
    BatchStatus,
    JobEvent,
    JobStatus,
)

PAGE = Path(__file__).parent / "explanation" / "lifecycle.md"
IMAGES = Path(__file__).parent / "images"

Table = Mapping[tuple[Any, Any], StrEnum]
Refinement = tuple[StrEnum, StrEnum, str]

_BLOCK = re.compile(r"(<!-- drawn: (?P<name>[a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# The two rules that refine the tables, as the module's docstrings state them.
_IF_CANCELLED: tuple[Refinement, ...] = (
    (
        JobStatus.RUNNING,
        JobStatus.CANCELED,
        f"{JobEvent.RETRY} / {JobEvent.RECLAIM} / {JobEvent.GIVE_BACK} after a cancel request",
    ),
)
_IF_NEVER_BEGUN: tuple[Refinement, ...] = (
    (BatchStatus.PAUSED, BatchStatus.PENDING, f"{BatchEvent.RESUME} when no job ever began"),
)

# Sizes of a diagram, in pixels: the distance of two columns, the height of a row, and a status' box.
_COLUMN, _ROW, _BOX_WIDTH, _BOX_HEIGHT, _MARGIN = 150, 34, 112, 30, 24
_STYLE = """\
    .box { fill: #d7f0ec; stroke: #00796b; stroke-width: 1.5; } .end { fill: #eceff1; stroke: #546e7a; }
    .line { stroke: #b0bec5; stroke-dasharray: 4 4; } .row { stroke: #455a64; stroke-width: 1.6; fill: none; }
    .row { marker-end: url(#arrow); } text { fill: #263238; text-anchor: middle; } .name { font-weight: 600; }
    .event { font-size: 12px; stroke: #fafbfc; stroke-width: 5px; paint-order: stroke; }
    .page { fill: #fafbfc; stroke: #cfd8dc; } .head { fill: #455a64; }
    @media (prefers-color-scheme: dark) {
      .box { fill: #0f3d38; stroke: #26a69a; } .end { fill: #2b323d; stroke: #78909c; }
      .line { stroke: #546e7a; } .row { stroke: #90a4ae; } text { fill: #eceff1; }
      .event { stroke: #1b1e27; } .page { fill: #1b1e27; stroke: #37474f; } .head { fill: #90a4ae; }
    }"""


def diagram(
    subject: str, table: Table, statuses: type[StrEnum], over: frozenset[StrEnum], refined: tuple[Refinement, ...]
) -> str:
    """Return an SVG with a column for each status and an arrow, with its events, for each pair that a table links."""
    arrows: dict[tuple[StrEnum, StrEnum], list[str]] = {}
    for (before, event), after in table.items():
        arrows.setdefault((before, after), []).append(event.value)
    for before, after, why in refined:
        arrows.setdefault((before, after), []).append(why)
    order = list(statuses)
    pairs = sorted(arrows, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))
    top = _MARGIN + _BOX_HEIGHT
    width = _COLUMN * len(order) + 2 * _MARGIN
    height = top + _ROW * (len(pairs) + 1) + _MARGIN
    columns = {status: _MARGIN + _COLUMN * (place + 0.5) for place, status in enumerate(order)}
    rows = [(top + _ROW * (place + 1), pair) for place, pair in enumerate(pairs)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-size="14"',
            "     font-family=\"system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif\">",
            f"  <title>The transitions of {subject}</title>",
            f"  <style>\n{_STYLE}\n  </style>",
            '  <marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8"',
            '          orient="auto"><path class="head" d="M0 0 L10 5 L0 10 z"/>',
            "  </marker>",
            f'  <rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="10" class="page"/>',
            *(line for status, x in columns.items() for line in _column(status, x, height, is_end=status in over)),
            *(
                line
                for y, (before, after) in rows
                for line in _arrow(columns[before], columns[after], y, ", ".join(arrows[before, after]))
            ),
            "</svg>\n",
        ]
    )


def _column(status: StrEnum, x: float, height: int, *, is_end: bool) -> Iterator[str]:
    left, classes = x - _BOX_WIDTH / 2, "box end" if is_end else "box"
    yield f'  <line class="line" x1="{x:g}" y1="{_MARGIN + _BOX_HEIGHT}" x2="{x:g}" y2="{height - _MARGIN / 2:g}"/>'
    yield (
        f'  <rect class="{classes}" x="{left:g}" y="{_MARGIN - 6}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6"/>'
    )
    yield f'  <text class="name" x="{x:g}" y="{_MARGIN + 14}">{status.value}</text>'


def _arrow(start: float, end: float, y: int, events: str) -> Iterator[str]:
    if start == end:
        yield f'  <path class="row" d="M{start:g} {y - 8} h26 v12 h-24"/>'
        yield f'  <text class="event" x="{start + 32:g}" y="{y + 2}" style="text-anchor: start">{events}</text>'
    else:
        yield f'  <path class="row" d="M{start:g} {y} H{end:g}"/>'
        yield f'  <text class="event" x="{(start + end) / 2:g}" y="{y - 8}">{events}</text>'


def matrix(table: Table, statuses: type[StrEnum], events: type[StrEnum], over: frozenset[StrEnum]) -> str:
    """Return a table of events and live statuses: the next status, or a dash if the event is refused."""
    live = [status for status in statuses if status not in over]
    header = [["event", *(f"from {status.value}" for status in live)], ["---"] * (1 + len(live))]
    rows = [[f"`{event.value}`", *(_cell(table.get((status, event))) for status in live)] for event in events]
    return "\n".join(f"| {' | '.join(row)} |" for row in header + rows)


def _cell(status: StrEnum | None) -> str:
    return "–" if status is None else status.value


DRAWN: Mapping[str, Callable[[], str]] = {
    "table of jobs": lambda: matrix(JOB_TABLE, JobStatus, JobEvent, TERMINAL_JOB),
    "table of batches": lambda: matrix(BATCH_TABLE, BatchStatus, BatchEvent, TERMINAL_BATCH),
}


def drawn(page: str) -> str:
    """Return the page with up-to-date tables. Raises ValueError if one is missing or unknown."""
    seen = [match["name"] for match in _BLOCK.finditer(page)]
    if sorted(seen) != sorted(DRAWN):
        raise ValueError(f"{PAGE.name}: has the drawn parts {seen}; it must have {sorted(DRAWN)}, once each")
    return _BLOCK.sub(lambda match: f"{match[1]}\n{DRAWN[match['name']]()}\n\n{match[3]}", page)


def images() -> dict[Path, str]:
    """Return the diagrams by file."""
    return {
        IMAGES / "lifecycle-jobs.svg": diagram("a job", JOB_TABLE, JobStatus, TERMINAL_JOB, _IF_CANCELLED),
        IMAGES / "lifecycle-batches.svg": diagram("a batch", BATCH_TABLE, BatchStatus, TERMINAL_BATCH, _IF_NEVER_BEGUN),
    }


if __name__ == "__main__":
    sys.exit(update({PAGE: drawn(PAGE.read_text(encoding="utf-8")), **images()}))
