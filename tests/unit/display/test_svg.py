"""Histograms as SVG: valid, escaped, and of the right size."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tweezer.display.html import STATUS_COLOURS
from tweezer.display.svg import BAR_COLOUR, draw_histogram

SVG = "{http://www.w3.org/2000/svg}"
COUNTER = {"101101": 105, "010010": 240, "110000": 60, "000000": 50, "111111": 45}


def parse(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314  our own output


def bars(root: ET.Element) -> list[tuple[str, float, str]]:
    """Return the label, the length and the colour of each bar."""
    return [
        (group.findall(f"{SVG}text")[0].text or "", float(bar.get("width", "0")), bar.get("fill", ""))
        for group in root.findall(f"{SVG}g")
        for bar in group.findall(f"{SVG}rect")
    ]


def test_bars_are_as_long_as_their_shares() -> None:
    (first, longest, _), (second, length, _), *_ = bars(parse(draw_histogram(COUNTER)))
    assert (first, second) == ("010010", "101101")
    assert length == pytest.approx(longest * 105 / 240, abs=0.1)


def test_all_others_are_a_line_that_leaves_the_bars_their_length() -> None:
    counter = {"0000": 9, "1111": 3} | {f"{number:04b}": 1 for number in range(2, 12)}
    root = parse(draw_histogram(counter, top=2))
    assert [(label, colour) for label, _, colour in bars(root)] == [("0000", BAR_COLOUR), ("1111", BAR_COLOUR)]
    assert bars(root)[0][1] == bars(parse(draw_histogram({"0000": 9, "1111": 3})))[0][1], "as long as without others"
    assert root.findall(f"{SVG}text")[-1].text == "10 others: 10 (45.5%)"


def test_figures_have_shots_and_share() -> None:
    assert "240 (48.0%)" in draw_histogram(COUNTER)
    assert "1\u202f000\u202f000 (100.0%)" in draw_histogram({"0": 1_000_000})


def test_an_empty_counter_is_drawn_in_words() -> None:
    root = parse(draw_histogram({}, title="job 3"))
    assert [text.text for text in root.iter(f"{SVG}text")] == ["job 3", "no shots"]
    assert len(bars(parse(draw_histogram({"00": 0})))) == 1


def test_a_long_bitstring_is_cut_in_its_middle_and_complete_in_the_tooltip() -> None:
    bits = "01" * 100
    root = parse(draw_histogram({bits: 3}))
    assert bars(root)[0][0] == "010101010101010…101010101010101"
    assert f"{bits}: 3 (100.0%)" in [title.text for title in root.iter(f"{SVG}title")]


def test_only_a_file_has_a_style_and_a_background() -> None:
    assert "<style>" not in draw_histogram(COUNTER)
    assert "prefers-color-scheme:dark" in draw_histogram(COUNTER, standalone=True)


@given(st.dictionaries(st.text(), st.integers(0, 10**9), max_size=30), st.text(), st.integers(1, 20), st.booleans())
def test_any_counter_is_a_valid_drawing_within_its_frame(
    counter: dict[str, int], title: str, top: int, standalone: bool
) -> None:
    root = parse(draw_histogram(counter, title=title, top=top, standalone=standalone))
    width, height = (float(root.get(name, "0")) for name in ("width", "height"))
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.get("x", "0")) + float(bar.get("width", "0")) <= width
        assert float(bar.get("y", "0")) + float(bar.get("height", "0")) <= height
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {"svg", "style", "text", "g", "title", "rect"}


def luminance(colour: str) -> float:
    """Return the relative luminance as in WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("background", ["#ffffff", "#1e1e1e", "#111111"])
def test_colours_have_contrast_on_light_and_dark_backgrounds(background: str) -> None:
    for colour in {BAR_COLOUR, *STATUS_COLOURS.values()}:
        dark, light = sorted((luminance(colour), luminance(background)))
        assert (light + 0.05) / (dark + 0.05) >= 3, colour
