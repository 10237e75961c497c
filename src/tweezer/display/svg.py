"""Histograms as SVG: for notebooks, files and pages, in light and dark surroundings.

The bars have a colour that differs in lightness from both backgrounds: it has a contrast of at least 3:1 on
white and on black. Texts have the colour of the surrounding text.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from tweezer.model.summaries import cut, cut_middle, format_count, rank

BAR_COLOUR = "#2b7fc3"

_WIDTH = 560
_ROW = 20
_BAR = 13
_CHARACTER = 7.5  # width of a character of the labels, which have a fixed width
_LABEL = 32  # characters; the middle of longer bitstrings is left out
_TITLE = 1000  # characters
_FIGURES = 120
_GAP = 8

_STANDALONE = (
    "<style>svg{color:#1f2328;background:#ffffff}"
    "@media(prefers-color-scheme:dark){svg{color:#e6e6e6;background:#111111}}</style>"
)


def draw_histogram(
    counter: Mapping[str, int], *, top: int = 12, title: str | None = None, standalone: bool = False
) -> str:
    """Draw the most frequent bitstrings as horizontal bars, and write how many others there are.

    Args:
        counter: Number of shots by bitstring.
        top: Number of bitstrings to draw, at least 1.
        title: A line above the bars.
        standalone: Whether the drawing is a separate file or page, which then has a background, light or dark as the
            reader prefers. Otherwise it takes its colours from the page around it.

    Returns:
        An ``<svg>`` element without scripts or references. All text is escaped.
    """
    shots = sum(counter.values())
    order = rank(counter)
    rows, rest = order[:top], order[top:]
    most = max((count for _, count in rows), default=0) or 1
    labels = round(max((min(len(bits), _LABEL) for bits, _ in rows), default=0) * _CHARACTER) + 2
    space = _WIDTH - labels - _FIGURES - 2 * _GAP
    above = _ROW if title else 0
    height = above + _ROW * (max(len(rows), 1) + bool(rest))
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    label = escape(_summary(counter, title))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}" font-size="12">',
        _STANDALONE if standalone else "",
    ]
    if title:
        parts.append(_text(0, 13, cut(title, 90), ' font-weight="bold" font-family="sans-serif"'))
    if not rows:
        parts.append(_text(0, above + 14, "no shots", ' font-family="sans-serif"'))
    for number, (bits, count) in enumerate(rows):
        y = above + number * _ROW
        length = max(round(space * count / most, 1), 1.0)
        figures = _figures(count, shots)
        parts += [
            f"<g><title>{escape(cut(bits, _TITLE))}: {figures}</title>",
            _text(labels, y + 14, cut_middle(bits, _LABEL), ' text-anchor="end" font-family="monospace"'),
            f'<rect x="{labels + _GAP}" y="{y + 3}" width="{length:g}" height="{_BAR}" rx="2" fill="{BAR_COLOUR}"/>',
            _text(round(labels + 2 * _GAP + length, 1), y + 14, figures, ' font-family="sans-serif"'),
            "</g>",
        ]
    if rest:  # without a bar, which would often make all others too short to compare
        others = f"{format_count(len(rest), 'other')}: {_figures(sum(count for _, count in rest), shots)}"
        parts.append(_text(labels + _GAP, height - _ROW + 14, others, ' font-family="sans-serif"'))
    return "".join([*parts, "</svg>"])


def _figures(count: int, shots: int) -> str:
    return f"{count:,} ({count / (shots or 1):.1%})".replace(",", "\u202f")


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="currentColor"{attributes}>{escape(text)}</text>'


def _summary(counter: Mapping[str, int], title: str | None) -> str:
    """Return the content of the drawing as a sentence, for readers who do not see it."""
    shots = sum(counter.values())
    parts = [f"{cut_middle(bits, _LABEL)} {count / (shots or 1):.1%}" for bits, count in rank(counter)[:3]]
    return f"{cut(title, 90) + ': ' if title else ''}{format_count(shots, 'shot')}; {', '.join(parts)}"
