"""How Tweezer's rates change with the number of jobs, lanes, workers and projects. The jobs do nothing.

Jobs are submitted while the device is paused, and drained when it is resumed, as in ``dispatch.py``. One parameter
varies at a time, and every case runs in two forms: large batches, and batches of one job.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
from dispatch import drain
from harness import Figure, figure, median, note


@dataclass(frozen=True)
class Case:
    """One measured point: ``batches`` of ``jobs`` each, submitted by ``projects`` and drained by ``workers``."""

    batches: int
    jobs: int
    lanes: int
    workers: int = 1
    projects: int = 1


@dataclass(frozen=True)
class Rates:
    """Jobs a second, medians of the rounds."""

    submit: float
    drain: float


Line = dict[int, Case]
"""The cases of a line in a plot, by the value of the parameter."""

LARGE, SINGLE = Case(1000, 100, 4), Case(5000, 1, 32)
FORMS = {"batches of 100 jobs": LARGE, "batches of one job": SINGLE}
PLOTS: dict[str, dict[str, Line]] = {
    "jobs": {
        "batches of up to 10,000 jobs": {
            1_000: Case(1, 1_000, 4),
            10_000: Case(1, 10_000, 4),
            100_000: Case(10, 10_000, 4),
            1_000_000: Case(100, 10_000, 4),
        },
        "batches of one job": {count: replace(SINGLE, batches=count) for count in (1_000, 10_000, 100_000)},
    },
    "lanes": {name: {one: replace(form, lanes=one) for one in (1, 2, 4, 8, 16)} for name, form in FORMS.items()},
    "workers": {name: {one: replace(form, workers=one) for one in (1, 2, 3, 4)} for name, form in FORMS.items()},
    "projects": {
        name: {one: replace(form, projects=one) for one in (1, 10, 100, 1000)} for name, form in FORMS.items()
    },
}
"""The lines of each plot, by its parameter and their form of batches."""


def shorten(line: Line) -> Line:
    """Return the ends of a line with at most 10 batches, for a smoke test."""
    return {value: replace(line[value], batches=min(10, line[value].batches)) for value in (min(line), max(line))}


async def measure(url: str, cases: set[Case], rounds: int) -> dict[Case, Rates]:
    """Run each case once a round."""
    taken: dict[Case, list[tuple[float, float]]] = {case: [] for case in cases}
    for number in range(1, rounds + 1):
        for case in sorted(cases, key=lambda case: case.batches * case.jobs):
            took = await drain(url, case.batches, case.jobs, case.lanes, workers=case.workers, projects=case.projects)
            taken[case].append(took)
            note(f"round {number}, {case}: submitted in {took[0]:.2f} s, drained in {took[1]:.2f} s")
    return {
        case: Rates(*(case.batches * case.jobs / median(step) for step in zip(*times, strict=True)))
        for case, times in taken.items()
    }


def compare(plots: Mapping[str, Mapping[str, Line]], rates: Mapping[Case, Rates]) -> list[Figure]:
    """Return how the drain rate at the largest value of each parameter compares with that at the smallest."""
    return [
        figure(
            f"drain rate, {name}: {max(line):,} {parameter} / {min(line):,}",
            rates[line[max(line)]].drain / rates[line[min(line)]].drain,
            "",
        )
        for parameter, forms in plots.items()
        for name, line in forms.items()
    ]


def draw(folder: Path, parameter: str, forms: Mapping[str, Line], rates: Mapping[Case, Rates]) -> None:
    """Draw the rates against a parameter into ``growth-PARAMETER.svg``."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "growth"}  # text as text, and the same file each time
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(6, 3.6), layout="constrained")
    axes = canvas.add_subplot()
    for (name, line), color in zip(forms.items(), ("tab:blue", "tab:green"), strict=True):
        for step, style in (("drain", "o-"), ("submit", "o:")):
            values = [getattr(rates[case], step) for case in line.values()]
            axes.plot(list(line), values, style, color=color, label=f"{step}, {name}")
    many = max(max(line) for line in forms.values()) > 16
    axes.set(xscale="log" if many else "linear", yscale="log", xlabel=parameter, ylabel="jobs a second")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    canvas.savefig(folder / f"growth-{parameter}.svg", metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of each measurement (1)")
    parser.add_argument("--only", action="append", choices=PLOTS, help="vary this parameter; may be repeated (all)")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw growth-*.svg into this folder")
    parser.add_argument("--quick", action="store_true", help="a fraction of the work: a smoke test, not a measurement")
    parser.add_argument("--strict", action="store_true", help="no effect: no figure has a target")
    asked = parser.parse_args()
    plots: dict[str, dict[str, Line]] = {
        parameter: {name: shorten(line) if asked.quick else line for name, line in forms.items()}
        for parameter, forms in PLOTS.items()
        if parameter in (asked.only or PLOTS)
    }
    cases = {case for forms in plots.values() for line in forms.values() for case in line.values()}
    with harness.server() as running:
        setup = harness.setup_of(running, asked.rounds, quick=asked.quick)
        rates = harness.run(measure(running.url, cases, asked.rounds))
    if asked.plots is not None:
        asked.plots.mkdir(parents=True, exist_ok=True)
        for parameter, forms in plots.items():
            draw(asked.plots, parameter, forms, rates)
    measured: dict[str, Any] = {
        f"{step}, {name}, {parameter} {value:,}: jobs/s": getattr(rates[case], step)
        for parameter, forms in plots.items()
        for name, line in forms.items()
        for value, case in line.items()
        for step in ("submit", "drain")
    }
    harness.report(compare(plots, rates), setup | {"measured": harness.rounded(measured)}, as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
