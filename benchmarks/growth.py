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

import harness
from dispatch import drain
from harness import Figure, figure, median, note
from plots import Curve, plot


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

LARGE, SINGLE = "large batches", "batches of one job"
FORMS = {LARGE: Case(1000, 100, 4), SINGLE: Case(5000, 1, 32)}
PLOTS: dict[str, dict[str, Line]] = {
    "jobs": {
        LARGE: {count: Case(max(1, count // 10_000), min(count, 10_000), 4) for count in (10**3, 10**4, 10**5, 10**6)},
        SINGLE: {count: replace(FORMS[SINGLE], batches=count) for count in (10**3, 10**4, 10**5)},
    },
    "lanes": {name: {one: replace(form, lanes=one) for one in (1, 2, 4, 8, 16)} for name, form in FORMS.items()},
    "workers": {name: {one: replace(form, workers=one) for one in (1, 2, 3, 4)} for name, form in FORMS.items()},
    "projects": {
        name: {one: replace(form, projects=one) for one in (1, 10, 100, 1000)} for name, form in FORMS.items()
    },
}
"""The lines of each plot, by its parameter and their form of batches."""
LOOKS = {LARGE: "c0", SINGLE: "c1"}


def shorten(line: Line) -> Line:
    """Return the ends of a line with at most 10 batches, for a smoke test."""
    return {value: replace(line[value], batches=min(10, line[value].batches)) for value in (min(line), max(line))}


def limit(line: Line, most: int) -> Line:
    """Return the cases of a line that have at most this many jobs, or the smallest one."""
    return {value: case for value, case in line.items() if value == min(line) or case.batches * case.jobs <= most}


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


def draw(plots: Mapping[str, Mapping[str, Line]], rates: Mapping[Case, Rates]) -> str:
    """Return an SVG with a panel for each parameter."""

    def curves(form: str, line: Line) -> list[Curve]:
        return [
            Curve(LOOKS[form], {value: rates[case].drain for value, case in line.items()}),
            Curve(f"{LOOKS[form]} dashed", {value: rates[case].submit for value, case in line.items()}),
        ]

    legend = {f"drain of {form}": look for form, look in LOOKS.items()}
    legend |= {f"submit of {form}": f"{look} dashed" for form, look in LOOKS.items()}
    return plot(
        "Jobs a second by the number of jobs, lanes, workers and projects",
        legend,
        {parameter: [one for item in forms.items() for one in curves(*item)] for parameter, forms in plots.items()},
    )


def table(plots: Mapping[str, Mapping[str, Line]], rates: Mapping[Case, Rates]) -> str:
    """Return a Markdown table of jobs a second, for docs/benchmarks.md."""
    columns = [(form, step) for form in FORMS for step in ("submit", "drain")]
    rows = []
    for parameter, forms in plots.items():
        for value in forms[LARGE]:
            cases = [(forms[form].get(value), step) for form, step in columns]
            cells = ["–" if case is None else f"{getattr(rates[case], step):,.0f}" for case, step in cases]
            rows.append([f"{value:,} {parameter.removesuffix('s') if value == 1 else parameter}", *cells])
    return harness.markdown(["jobs a second", *(f"{form}: {step}" for form, step in columns)], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of each measurement (1)")
    parser.add_argument("--only", action="append", choices=PLOTS, help="vary this parameter; may be repeated (all)")
    parser.add_argument("--most", type=int, default=10**6, help="leave out cases with more jobs (1000000)")
    parser.add_argument("--markdown", action="store_true", help="first print a Markdown table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw an SVG into this file")
    parser.add_argument("--quick", action="store_true", help="a fraction of the work: a smoke test, not a measurement")
    parser.add_argument("--strict", action="store_true", help="no effect: no figure has a target")
    asked = parser.parse_args()
    plots: dict[str, dict[str, Line]] = {
        parameter: {name: shorten(line) if asked.quick else limit(line, asked.most) for name, line in forms.items()}
        for parameter, forms in PLOTS.items()
        if parameter in (asked.only or PLOTS)
    }
    cases = {case for forms in plots.values() for line in forms.values() for case in line.values()}
    with harness.server() as running:
        setup = harness.setup_of(running, asked.rounds, quick=asked.quick)
        rates = harness.run(measure(running.url, cases, asked.rounds))
    if asked.plot is not None:
        asked.plot.write_text(draw(plots, rates), encoding="utf-8")
    if asked.markdown:
        print(table(plots, rates), end="\n\n")
    measured = {
        f"{step}, {name}, {value:,} {parameter}: jobs/s": getattr(rates[case], step)
        for parameter, forms in plots.items()
        for name, line in forms.items()
        for value, case in line.items()
        for step in ("submit", "drain")
    }
    harness.report(compare(plots, rates), setup | {"measured": harness.rounded(measured)}, as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
