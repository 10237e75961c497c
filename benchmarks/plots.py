"""Plots for the documentation: an SVG with a light and a dark scheme, like its diagrams."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

# Sizes in pixels: a panel's plotted area, the space around it, and the space of the legend above all panels.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM, _LEGEND = 280, 220, 76, 16, 12, 52, 60
_STYLE = """\
    .page { fill: #fafbfc; stroke: #cfd8dc; } text { fill: #263238; } .grid { stroke: #cfd8dc; }
    .y { text-anchor: end; } .x { text-anchor: middle; } .name { text-anchor: middle; font-weight: 600; }
    .line { fill: none; stroke-width: 2; } .dashed { stroke-dasharray: 5 4; }
    .c0 { stroke: #00796b; } circle.c0 { fill: #00796b; } .c1 { stroke: #ef6c00; } circle.c1 { fill: #ef6c00; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #1b1e27; stroke: #37474f; } text { fill: #eceff1; } .grid { stroke: #37474f; }
      .c0 { stroke: #26a69a; } circle.c0 { fill: #26a69a; } .c1 { stroke: #ffb74d; } circle.c1 { fill: #ffb74d; }
    }"""


@dataclass(frozen=True)
class Curve:
    """A line of a panel: its y by x. ``look`` is a class of colour, ``c0`` or ``c1``, and perhaps ``dashed``."""

    look: str
    points: Mapping[int, float]


def plot(title: str, legend: Mapping[str, str], panels: Mapping[str, Sequence[Curve]]) -> str:
    """Return an SVG with two panels in a row, each named by its x, that share a logarithmic y.

    The values of x have equal distances. The legend has the look of each label.
    """
    values = [y for curves in panels.values() for curve in curves for y in curve.points.values()]
    ticks = _ticks(min(values), max(values))
    across, down = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    width, height = 2 * across, _LEGEND + down * math.ceil(len(panels) / 2)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-size="13"',
            "     font-family=\"system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif\">",
            f"  <title>{escape(title)}</title>",
            f"  <style>\n{_STYLE}\n  </style>",
            f'  <rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="10" class="page"/>',
            *(line for place, item in enumerate(legend.items()) for line in _entry(place, *item, across)),
            *(
                line
                for place, (name, curves) in enumerate(panels.items())
                for line in _panel(name, curves, ticks, place % 2 * across + _LEFT, _LEGEND + place // 2 * down + _TOP)
            ),
            "</svg>\n",
        ]
    )


def _ticks(least: float, most: float) -> list[int]:
    """Return 1, 2 and 5 times each power of ten, from the last one below all values to the first one above."""
    steps = [step * 10**power for power in range(math.floor(math.log10(least)), 10) for step in (1, 2, 5)]
    first = max(at for at, step in enumerate(steps) if step <= least)
    return steps[first : next(at for at, step in enumerate(steps) if step >= most) + 1]


def _entry(place: int, label: str, look: str, across: int) -> Iterator[str]:
    x, y = place % 2 * across + _LEFT, 22 + place // 2 * 20
    yield f'  <path class="line {look}" d="M{x} {y} h32"/>'
    yield f'  <text x="{x + 40}" y="{y + 4}">{escape(label)}</text>'


def _panel(name: str, curves: Sequence[Curve], ticks: Sequence[int], left: int, top: int) -> Iterator[str]:
    columns = sorted({x for curve in curves for x in curve.points})
    low, high = math.log(ticks[0]), math.log(ticks[-1])

    def right_of(x: int) -> float:
        return left + (columns.index(x) + 0.5) / len(columns) * _WIDTH

    def below(y: float) -> float:
        return top + (high - math.log(y)) / (high - low) * _HEIGHT

    for tick in ticks:
        yield f'  <path class="grid" d="M{left} {below(tick):.1f} h{_WIDTH}"/>'
        yield f'  <text class="y" x="{left - 8}" y="{below(tick) + 4:.1f}">{tick:,}</text>'
    for x in columns:
        yield f'  <text class="x" x="{right_of(x):.1f}" y="{top + _HEIGHT + 18}">{x:,}</text>'
    yield f'  <text class="name" x="{left + _WIDTH / 2:g}" y="{top + _HEIGHT + 38}">{escape(name)}</text>'
    for curve in curves:
        points = [(right_of(x), below(y)) for x, y in curve.points.items()]
        yield f'  <polyline class="line {curve.look}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        for x, y in points:
            yield f'  <circle class="{curve.look.split()[0]}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
